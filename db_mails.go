package main

import (
	"context"
	"time"
)

// insertMail puts a mail to the owner of an address into the outbox, in the transaction that causes it. More than one
// a minute or five an hour of a kind are left out silently (R42). The address is read from the user's row (R65).
func (d db) insertMail(ctx context.Context, email, kind string) error {
	_, err := d.q.Exec(ctx, `
		insert into mails (id, user_id, kind, recipient)
		select $1, u.id, $3, u.email from users u
		where u.email = $2
			and not exists (select 1 from mails m where m.recipient = u.email and m.kind = $3
				and m.created_at > now() - interval '1 minute')
			and (select count(*) from mails m where m.recipient = u.email and m.kind = $3
				and m.created_at > now() - interval '1 hour') < 5`, newID(), email, kind)
	return err
}

// mailRow is one row of the outbox.
type mailRow struct {
	ID        string
	UserID    string
	Kind      string
	Recipient string
	Attempts  int
}

// leaseMail takes the mail that is due longest and hides it from other senders for lease; pgx.ErrNoRows when none is
// due. The row stays until it is sent, so a sender that dies loses nothing (R68).
func (d db) leaseMail(ctx context.Context, lease time.Duration) (mailRow, error) {
	return one[mailRow](ctx, d, `
		update mails m set attempts = m.attempts + 1, next_attempt_at = now() + $1::interval
		where m.id = (
			select id from mails where sent_at is null and next_attempt_at <= now()
			order by next_attempt_at limit 1 for update skip locked)
		returning m.id, m.user_id, m.kind, m.recipient, m.attempts`, lease)
}

func (d db) updateMailSent(ctx context.Context, id string) error {
	_, err := d.q.Exec(ctx, `update mails set sent_at = now() where id = $1`, id)
	return err
}

// updateMailRetry plans the next attempt.
func (d db) updateMailRetry(ctx context.Context, id string, delay time.Duration) error {
	_, err := d.q.Exec(ctx, `update mails set next_attempt_at = now() + $2::interval where id = $1`, id, delay)
	return err
}

// upsertMailToken makes hash the one live token of the mail's owner for a purpose; older ones are void (R62). It locks
// the mail, so that voidMailTokens either sees the token or has taken the mail away: then it is pgx.ErrNoRows.
func (d db) upsertMailToken(ctx context.Context, hash []byte, m mailRow, purpose string, ttl time.Duration) error {
	return d.q.QueryRow(ctx, `
		with live as (select user_id from mails where id = $2 for update)
		insert into mail_tokens (token_hash, user_id, purpose, expires_at)
		select $1, user_id, $3, now() + $4::interval from live
		on conflict (user_id, purpose) do update set token_hash = excluded.token_hash, expires_at = excluded.expires_at
		returning user_id`, hash, m.ID, purpose, ttl).Scan(nil)
}

// deleteMailToken consumes a live token in the transaction that it authorises: of any number of uses at once, one
// gets the row (R60, R61).
func (d db) deleteMailToken(ctx context.Context, hash []byte, purpose string) (userID string, err error) {
	err = d.q.QueryRow(ctx, `
		delete from mail_tokens where token_hash = $1 and purpose = $2 and expires_at > now()
		returning user_id`, hash, purpose).Scan(&userID)
	return userID, err
}

// voidMailTokens ends every token of a user. Mails that would carry one go first: a sender that is making its token
// holds the mail's row, and what it made is there to delete afterwards.
func (d db) voidMailTokens(ctx context.Context, userID string) error {
	if _, err := d.q.Exec(ctx, `
		delete from mails where user_id = $1 and sent_at is null and kind = any($2)`, userID, tokenKinds); err != nil {
		return err
	}
	_, err := d.q.Exec(ctx, `delete from mail_tokens where user_id = $1`, userID)
	return err
}
