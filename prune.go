// room:prune

// Pruning: what has expired is refused by every statement that reads it; this only makes room, inside serve now and then,
// and as a command. A team without it deletes by SQL, or lets the tables grow.
//
// What ties it to the house is what `grep -n room:prune *.go` finds: a worker and a command. To take it out, delete this
// file and those lines.

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/sethvargo/go-envconfig"
)

const (
	pruneEvery = 10 * time.Minute
	pruneBatch = 1000
	eraseBatch = 10_000
)

// prune deletes what is over in small batches, each a transaction of its own, so that no lock is held for long. Of all
// replicas one does it at a time. A step that fails stops none after it. It returns how many rows went.
func (d db) prune(ctx context.Context, cfg config) (deleted int64, err error) {
	week := time.Now().Add(-7 * 24 * time.Hour)
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
		{`delete from audit_events where id in (select id from audit_events where id < $2 order by id limit $1)`, []any{firstID(time.Now().Add(-cfg.AuditRetention))}}, // room:audit
	} {
		err = errors.Join(err, d.inBatches(ctx, func(tx db) (more bool, err error) {
			tag, err := tx.q.Exec(ctx, q.sql, append([]any{pruneBatch}, q.args...)...)
			deleted += tag.RowsAffected()
			return tag.RowsAffected() == pruneBatch, err
		}))
	}
	err = errors.Join(err, d.eraseUsers(ctx)) // room:audit
	return deleted, err
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
func (d db) eraseUsers(ctx context.Context) error { // room:audit
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
		deleted, err := s.db.prune(ctx, s.cfg)
		err = errors.Join(err, s.resealSecondFactors(ctx)) // room:second-factor
		if err != nil && ctx.Err() == nil {
			s.log.Error("pruning", "cause", err.Error())
		} else if deleted > 0 {
			s.log.Info("pruned", "rows", deleted)
		}
	}
}

// runPrune is the command that does what serve does now and then.
func runPrune(ctx context.Context, lookup envconfig.Lookuper, stdout io.Writer) error {
	s, err := openCommand(ctx, lookup, "DATABASE_URL", "AUDIT_RETENTION")
	if err != nil {
		return err
	}
	defer s.pool.Close()
	deleted, err := s.db.prune(ctx, s.cfg)
	err = errors.Join(err, s.resealSecondFactors(ctx)) // room:second-factor
	fmt.Fprintf(stdout, "%d rows deleted\n", deleted)
	return err
}
