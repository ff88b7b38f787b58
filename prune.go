package main

import (
	"context"
	"time"
)

// What has expired is refused by every statement that reads it; pruning only makes room.

const (
	pruneEvery = 10 * time.Minute
	pruneBatch = 1000
)

// prune deletes what is over in small batches, each a transaction of its own, so that no lock is held for long. Of all
// replicas one does it at a time. It returns how many rows went.
func (d db) prune(ctx context.Context, auditRetention time.Duration) (deleted int64, err error) {
	for _, q := range []struct {
		sql  string
		args []any
	}{
		{`delete from sessions where id in (select id from sessions where expires_at < now() limit $1)`, nil},
		{`delete from mail_tokens where token_hash in (select token_hash from mail_tokens where expires_at < now() limit $1)`, nil},
		{`delete from invitations where expires_at < now() and id in (select id from invitations where expires_at < now() limit $1)`, nil},
		{`delete from throttles where ends_at < now() and key in (select key from throttles where ends_at < now() limit $1)`, nil},
		// Sent mails count for the caps of an hour; failed ones stay for a look, and so do those that no sender takes.
		{`delete from mails where id in (
			select id from mails where coalesce(sent_at, failed_at, created_at) < now() - interval '7 days' limit $1)`, nil},
		{`delete from audit_events where id in (
			select id from audit_events where created_at < now() - $2::interval order by id limit $1)`, []any{auditRetention}},
	} {
		for more := true; more; {
			err := d.inTx(ctx, func(tx db) error {
				var mine bool
				err := tx.q.QueryRow(ctx, `select pg_try_advisory_xact_lock(hashtext('roster/prune'))`).Scan(&mine)
				if more = mine; err != nil || !mine {
					return err
				}
				tag, err := tx.q.Exec(ctx, q.sql, append([]any{pruneBatch}, q.args...)...)
				more = tag.RowsAffected() == pruneBatch
				deleted += tag.RowsAffected()
				return err
			})
			if err != nil {
				return deleted, err
			}
		}
	}
	return deleted, nil
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
		if err != nil && ctx.Err() == nil {
			s.log.Error("pruning", "cause", err.Error())
		} else if deleted > 0 {
			s.log.Info("pruned", "rows", deleted)
		}
	}
}
