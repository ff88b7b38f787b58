// room:mail

package main

import (
	"context"
	"time"
)

// mailRow is one row of the outbox.
type mailRow struct {
	ID        string
	Subject   *string // whom it is for: an account or a registration
	Kind      string
	Recipient string
	Notice    *string
	Attempts  int
	Age       time.Duration
	Uncertain bool // an earlier attempt may have delivered it
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
		returning id, coalesce(user_id, registration_id) as subject, kind, recipient, notice, attempts, now() - created_at as age,
			link_expires_at is not null as uncertain`, lease)
}

func (d db) updateMailSent(ctx context.Context, id string) error {
	return d.exec(ctx, `update mails set sent_at = now() where id = $1`, id)
}

// updateMailFailed gives a mail up.
func (d db) updateMailFailed(ctx context.Context, id string) error {
	return d.exec(ctx, `update mails set failed_at = now() where id = $1`, id)
}

// updateMailRetry plans the next attempt. If the mail may have arrived by now, its link keeps the time that it has, else
// nobody has the link, and the next attempt gives it its full time.
func (d db) updateMailRetry(ctx context.Context, id string, delay time.Duration, uncertain bool) error {
	return d.exec(ctx, `
		update mails set next_attempt_at = now() + $2::interval, link_expires_at = case when $3 then link_expires_at end
		where id = $1`, id, delay, uncertain)
}

// deleteMailsTo takes away what was mailed to the address of a user who goes, and nobody's mails to an address that was
// theirs before, not to one that they only asked to have. What is in their name goes with them.
func (d db) deleteMailsTo(ctx context.Context, u user) error {
	return d.exec(ctx, `
		delete from mails where recipient = $2 or user_id is null and recipient in (
			select recipient from mails where user_id = $1 and kind <> $3)`, u.ID, u.Email, mailChangeEmail)
}

// pendingMails returns how many mails wait to be sent, and how old the oldest is.
func (d db) pendingMails(ctx context.Context) (n int, oldest time.Duration, err error) {
	err = d.q.QueryRow(ctx, `
		select count(*), coalesce(now() - min(created_at), '0') from mails where sent_at is null and failed_at is null`).
		Scan(&n, &oldest)
	return n, oldest, err
}

// exportedMail says which mails went to the user, without their texts: those are not stored.
type exportedMail struct {
	Kind      string     `json:"kind"`
	Recipient string     `json:"recipient"`
	CreatedAt time.Time  `json:"created_at"`
	SentAt    *time.Time `json:"sent_at"`
}

// mailsOf lists what was mailed in a user's name, and to the address if the user proved it (R105).
func (d db) mailsOf(ctx context.Context, u user) ([]exportedMail, error) {
	return many[exportedMail](ctx, d, `
		select kind, recipient, created_at, sent_at from mails
		where user_id = $1 and kind <> $3 or recipient = $2 and $4 order by id desc`,
		u.ID, u.Email, mailChangeEmail, u.EmailVerified) // to other addresses they would tell which have an account (R37)
}
