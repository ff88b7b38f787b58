package main

import (
	"context"
	"time"
)

// mailRow is one row of the outbox.
type mailRow struct {
	ID        string
	UserID    *string
	Kind      string
	Recipient string
	Notice    *string
	Attempts  int
	Age       time.Duration
}

// newMail is a mail to be sent.
type newMail struct {
	kind         string
	owner        string // address of the account that it is about
	active       bool   // only if that account is not disabled
	to           string // where it goes, if not to owner
	notice       string // of a security notice: its event, and a number where its line has one
	session      *string
	invitation   *string
	registration *string
}

// insertMail returns whose the mail is, nil for nobody's: without an account, an invitation or a registration it counts
// as sent, and costs the same (R37). An account is found by its canonical address, so a mail to owner goes to the one in
// the row (R65).
func (d db) insertMail(ctx context.Context, m newMail) (owner *string, err error) {
	err = d.q.QueryRow(ctx, `
		with owner as (select id from users where email = $3 and not (disabled and $4)),
		mail as (
			insert into mails (id, kind, user_id, recipient, session_id, invitation_id, registration_id, notice, sent_at)
			select $1, $2, owner.id, $5, $6, $7, $8, nullif($9, ''),
				case when owner.id is null and $7::uuid is null and $8::uuid is null then now() end
			from (select) as asked left join owner on true)
		select (select id from owner)`,
		newID(), m.kind, m.owner, m.active, m.to, m.session, m.invitation, m.registration, m.notice).Scan(&owner)
	return owner, err
}

// leaseMail takes the mail that is due longest and hides it from other senders for lease; pgx.ErrNoRows when none is
// due. The row stays until it is sent, so a sender that dies loses nothing (R68).
func (d db) leaseMail(ctx context.Context, lease time.Duration) (mailRow, error) {
	return one[mailRow](ctx, d, `
		update mails set attempts = attempts + 1, next_attempt_at = now() + $1::interval
		where id = (
			select id from mails where sent_at is null and failed_at is null and next_attempt_at <= now()
			order by next_attempt_at limit 1 for update skip locked)
		returning id, user_id, kind, recipient, notice, attempts, now() - created_at as age`, lease)
}

func (d db) updateMailSent(ctx context.Context, id string) error {
	return d.exec(ctx, `update mails set sent_at = now() where id = $1`, id)
}

// updateMailFailed gives a mail up.
func (d db) updateMailFailed(ctx context.Context, id string) error {
	return d.exec(ctx, `update mails set failed_at = now() where id = $1`, id)
}

// updateMailRetry plans the next attempt.
func (d db) updateMailRetry(ctx context.Context, id string, delay time.Duration) error {
	return d.exec(ctx, `update mails set next_attempt_at = now() + $2::interval where id = $1`, id, delay)
}

// lockMailOwner locks the user that a mail is for; pgx.ErrNoRows when the mail is gone.
func (d db) lockMailOwner(ctx context.Context, mailID string) error {
	return d.execOne(ctx, `
		select u.id from users u join mails m on m.user_id = u.id where m.id = $1
		for no key update of u`, mailID)
}

// upsertMailToken makes hash the one live token of the mail's owner for a purpose; older ones are void (R62). The
// owner is locked, so voidMailTokens either sees the token or has taken the mail away: then it is pgx.ErrNoRows, as
// it is for a mail that was late: what its owner asked for since, by a mail of one of kinds, must not be voided by it.
func (d db) upsertMailToken(ctx context.Context, hash []byte, m mailRow, purpose string, ttl time.Duration, kinds []string) error {
	return d.execOne(ctx, `
		with live as (
			select user_id, recipient, session_id from mails m
			where id = $2 and failed_at is null and not exists (select 1 from mails newer
				where newer.user_id = m.user_id and newer.kind = any($5) and newer.created_at > m.created_at))
		insert into mail_tokens (token_hash, user_id, purpose, email, session_id, expires_at)
		select $1, user_id, $3, recipient, session_id, now() + $4::interval from live
		on conflict (user_id, purpose) do update set token_hash = excluded.token_hash, email = excluded.email,
			session_id = excluded.session_id, expires_at = excluded.expires_at`, hash, m.ID, purpose, ttl, kinds)
}

// mailToken is a token that was consumed: whose it was, the address it was mailed to, and the session that asked.
type mailToken struct {
	UserID    string
	Email     string
	SessionID *string
}

// deleteMailToken consumes a live token in the transaction that it authorises: of any number of uses at once, one
// gets the row, the others pgx.ErrNoRows (R60, R61).
func (d db) deleteMailToken(ctx context.Context, hash []byte, purpose string) (mailToken, error) {
	return one[mailToken](ctx, d, `
		delete from mail_tokens where token_hash = $1 and purpose = $2 and expires_at > now()
		returning user_id, email, session_id`, hash, purpose)
}

// voidMailTokens ends every token of a user, whose row is locked, and takes away the mails that would carry one.
func (d db) voidMailTokens(ctx context.Context, userID string) error {
	return inOrder(
		d.exec(ctx, `delete from mails where user_id = $1 and sent_at is null and kind = any($2)`, userID, tokenKinds),
		d.exec(ctx, `delete from mail_tokens where user_id = $1`, userID))
}

// pendingMails returns how many mails wait to be sent, and how old the oldest is.
func (d db) pendingMails(ctx context.Context) (n int, oldest time.Duration, err error) {
	err = d.q.QueryRow(ctx, `
		select count(*), coalesce(now() - min(created_at), '0') from mails where sent_at is null and failed_at is null`).
		Scan(&n, &oldest)
	return n, oldest, err
}
