// room:mailflows

package main

import (
	"context"
	"time"
)

// A registration is somebody who asks for an account and has not proved the address. It reserves nothing and is found
// by nobody but whoever has the link in the mail.

// registration is what the link leads to.
type registration struct {
	ID           string
	Email        string
	Name         string
	PasswordHash string
}

// upsertRegistration makes a registration, or begins that of the same address anew: the latest one wins. A link that
// was mailed before stays good until the next mail replaces it, but takes the new password.
func (d db) upsertRegistration(ctx context.Context, email, name, passwordHash string, ttl time.Duration) (id string, err error) {
	err = d.q.QueryRow(ctx, `
		insert into registrations as r (id, email, name, password_hash, expires_at) values ($1, $2, $3, $4, now() + $5::interval)
		on conflict (email) do update set name = excluded.name, password_hash = excluded.password_hash,
			expires_at = excluded.expires_at, token_hash = case when r.expires_at > now() then r.token_hash end
		returning id`, newID(), email, name, passwordHash, ttl).Scan(&id)
	return id, err
}

// registrationByToken looks without consuming; pgx.ErrNoRows when the token is void.
func (d db) registrationByToken(ctx context.Context, hash []byte) (registration, error) {
	return one[registration](ctx, d, `
		select id, email, name, password_hash from registrations where token_hash = $1 and expires_at > now()`, hash)
}

// deleteRegistration consumes a token together with the very password that was verified: a registration in between has
// replaced it, and counts. Of any number of uses at once one gets the row, the others pgx.ErrNoRows (R60, R61).
func (d db) deleteRegistration(ctx context.Context, tokenHash []byte, passwordHash string) (registration, error) {
	return one[registration](ctx, d, `
		delete from registrations where token_hash = $1 and password_hash = $2 and expires_at > now()
		returning id, email, name, password_hash`, tokenHash, passwordHash)
}

// updateRegistrationToken makes hash the one live token of the registration that a mail is for, for ttl from the first
// attempt that may have delivered it; pgx.ErrNoRows when the registration is gone or was begun anew since, or that time is
// over.
func (d db) updateRegistrationToken(ctx context.Context, hash []byte, mailID string, ttl time.Duration) error {
	return d.execOne(ctx, `
		with live as (
			update mails m set link_expires_at = coalesce(m.link_expires_at, now() + $3::interval)
			where m.id = $2 and m.failed_at is null and (m.link_expires_at is null or m.link_expires_at > now())
				and not exists (select from mails newer
					where newer.registration_id = m.registration_id and newer.created_at > m.created_at)
			returning m.registration_id, m.link_expires_at)
		update registrations r set token_hash = $1, expires_at = live.link_expires_at
		from live where r.id = live.registration_id`, hash, mailID, ttl)
}

// insertResetToken is upsertMailToken for a token that goes to the operator instead of a mailbox.
func (d db) insertResetToken(ctx context.Context, hash []byte, userID, email string, ttl time.Duration) error {
	return d.exec(ctx, `
		insert into mail_tokens (token_hash, user_id, purpose, email, expires_at)
		values ($1, $2, $3, $4, now() + $5::interval)
		on conflict (user_id, purpose) do update set token_hash = excluded.token_hash, expires_at = excluded.expires_at`,
		hash, userID, purposeResetPassword, email, ttl)
}

func (d db) deleteRegistrations(ctx context.Context, email string) error {
	return d.exec(ctx, `delete from registrations where email = $1`, email)
}

// accountByMailToken returns the owner of a live token without consuming it.
func (d db) accountByMailToken(ctx context.Context, hash []byte, purpose string) (account, error) {
	return one[account](ctx, d, `
		select u.id, u.email, coalesce(u.password_hash, '') as password_hash, u.email_verified, u.disabled, false as pending
		from mail_tokens t join users u on u.id = t.user_id
		where t.token_hash = $1 and t.purpose = $2 and t.expires_at > now() and not u.disabled`, hash, purpose)
}

// updatePasswordByMail sets the password of a user who proved the mailbox.
func (d db) updatePasswordByMail(ctx context.Context, id, hash string) error {
	return d.exec(ctx, `update users set password_hash = $2, email_verified = true where id = $1`, id, hash)
}

// updateEmail fails on users_email_key when the address was taken meanwhile.
func (d db) updateEmail(ctx context.Context, id, email string) error {
	return d.exec(ctx, `update users set email = $2, email_verified = true where id = $1`, id, email)
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
	return firstError(
		d.exec(ctx, `delete from mails where user_id = $1 and sent_at is null and kind = any($2)`, userID, tokenKinds),
		d.exec(ctx, `delete from mail_tokens where user_id = $1`, userID))
}

// lockMailOwner locks the user that a mail is for; pgx.ErrNoRows when the mail is gone.
func (d db) lockMailOwner(ctx context.Context, mailID string) error {
	return d.execOne(ctx, `
		select u.id from users u join mails m on m.user_id = u.id where m.id = $1
		for no key update of u`, mailID)
}

// renewMailToken makes hash the one live token of the mail's owner. The owner is locked first, as in every flow of theirs:
// a reset at this moment waits, or is waited for (R82). pgx.ErrNoRows when the mail must not be sent.
func (d db) renewMailToken(ctx context.Context, hash []byte, m mailRow, kind mailKind) error {
	return d.inTx(ctx, func(tx db) error {
		if err := tx.lockMailOwner(ctx, m.ID); err != nil {
			return err
		}
		return tx.upsertMailToken(ctx, hash, m, kind.purpose, kind.ttl, kindsFor(kind.purpose))
	})
}

// upsertMailToken makes hash the one live token of the mail's owner for a purpose; older ones are void (R62). It is
// pgx.ErrNoRows when the mail must not be sent: it was given up or voided (the owner is locked, so voidMailTokens either
// sees the token or has taken the mail away); it went to an address that its owner has left; its owner has asked for a
// newer one since, by a mail of one of kinds; or an earlier attempt may have delivered it, and its link has been used
// or has expired.
func (d db) upsertMailToken(ctx context.Context, hash []byte, m mailRow, purpose string, ttl time.Duration, kinds []string) error {
	return d.execOne(ctx, `
		with live as (
			update mails m set link_expires_at = coalesce(m.link_expires_at, now() + $4::interval)
			from users u
			where m.id = $2 and m.failed_at is null and u.id = m.user_id and (u.email = m.recipient or $3 = 'confirm-email')
				and (m.link_expires_at is null
					or exists (select from mail_tokens t where t.user_id = u.id and t.purpose = $3 and t.expires_at > now()))
				and not exists (select from mails newer
					where newer.user_id = m.user_id and newer.kind = any($5) and newer.created_at > m.created_at)
			returning m.user_id, m.recipient, m.session_id, m.link_expires_at)
		insert into mail_tokens (token_hash, user_id, purpose, email, session_id, expires_at)
		select $1, user_id, $3, recipient, session_id, link_expires_at from live
		on conflict (user_id, purpose) do update set token_hash = excluded.token_hash, email = excluded.email,
			session_id = excluded.session_id, expires_at = excluded.expires_at`, hash, m.ID, purpose, ttl, kinds)
}
