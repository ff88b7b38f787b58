package main

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// What has expired is refused by every statement that reads it; pruning only makes room.

const (
	pruneEvery = 10 * time.Minute
	pruneBatch = 1000
	eraseBatch = 10_000
)

// prune deletes what is over in small batches, each a transaction of its own, so that no lock is held for long. Of all
// replicas one does it at a time. A step that fails stops none after it. It returns how many rows went.
func (d db) prune(ctx context.Context, auditRetention time.Duration) (deleted int64, err error) {
	week, retained := time.Now().Add(-7*24*time.Hour), time.Now().Add(-auditRetention)
	for _, q := range []struct {
		sql  string
		args []any
	}{
		{`delete from sessions where id in (select id from sessions where expires_at < now() limit $1)`, nil},
		{`delete from mail_tokens where token_hash in (select token_hash from mail_tokens where expires_at < now() limit $1)`, nil},
		{`delete from invitations where expires_at < now() and id in (select id from invitations where expires_at < now() limit $1)`, nil},
		// A mail that was not sent yet gives its registration another life.
		{`delete from registrations where expires_at < now() and id in (
			select id from registrations r where expires_at < now() and not exists (
				select from mails m where m.registration_id = r.id and m.sent_at is null and m.failed_at is null) limit $1)`, nil},
		{`delete from throttles where ends_at < now() and key in (select key from throttles where ends_at < now() limit $1)`, nil},
		// Sent and failed mails stay for a look. Their ids, as those of events, are in the order of time.
		{`delete from mails where id in (select id from mails where id < $2 order by id limit $1)`, []any{firstID(week)}},
		{`delete from audit_events where id in (select id from audit_events where id < $2 order by id limit $1)`, []any{firstID(retained)}},
	} {
		err = errors.Join(err, d.inBatches(ctx, func(tx db) (more bool, err error) {
			tag, err := tx.q.Exec(ctx, q.sql, append([]any{pruneBatch}, q.args...)...)
			deleted += tag.RowsAffected()
			return tag.RowsAffected() == pruneBatch, err
		}))
	}
	return deleted, errors.Join(err, d.eraseUsers(ctx))
}

// inBatches runs fn in transactions of their own until it says that no more is left, or another replica is pruning.
func (d db) inBatches(ctx context.Context, fn func(tx db) (more bool, err error)) error {
	for more := true; more; {
		err := d.inTx(ctx, func(tx db) error {
			var mine bool
			err := tx.q.QueryRow(ctx, `select pg_try_advisory_xact_lock(hashtext('roster/prune'))`).Scan(&mine)
			if more = mine; err != nil || !mine {
				return err
			}
			more, err = fn(tx)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// eraseUsers takes the client addresses of deleted users out of the audit trail.
func (d db) eraseUsers(ctx context.Context) error {
	users, err := manyBy(ctx, d, pgx.RowTo[string], `select user_id from erasures order by created_at limit 100`)
	for _, id := range users {
		err = errors.Join(err, d.inBatches(ctx, func(tx db) (more bool, err error) {
			n, err := tx.eraseAddresses(ctx, id, eraseBatch)
			if err == nil && n == 0 {
				err = tx.exec(ctx, `delete from erasures where user_id = $1`, id)
			}
			return n > 0, err
		}))
	}
	return err
}

// firstID is the smallest UUIDv7 of a moment.
func firstID(t time.Time) string {
	var id uuid.UUID
	binary.BigEndian.PutUint64(id[:], uint64(max(t.UnixMilli(), 0))<<16) // #nosec G115 -- not negative
	return id.String()
}

// pruneRegularly is prune inside serve, until ctx ends.
func (s *server) pruneRegularly(ctx context.Context) {
	ticker := time.NewTicker(pruneEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		deleted, err := s.db.prune(ctx, s.cfg.AuditRetention)
		err = errors.Join(err, s.resealSecondFactors(ctx)) // room:second-factor
		if err != nil && ctx.Err() == nil {
			s.log.Error("pruning", "cause", err.Error())
		} else if deleted > 0 {
			s.log.Info("pruned", "rows", deleted)
		}
	}
}
