// room:passkeys

package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"time"

	"github.com/jackc/pgx/v5"
)

// passkey is one of a user's, without its key.
type passkey struct {
	ID         string     `json:"id" is:"uuid"`
	Name       string     `json:"name"`
	BackedUp   bool       `json:"backed_up"`
	CreatedAt  time.Time  `json:"created_at"`
	LastUsedAt *time.Time `json:"last_used_at"`
}

// storedPasskey is what signing in by one takes.
type storedPasskey struct {
	ID            string
	UserID        string
	PublicKey     []byte
	Disabled      bool
	EmailVerified bool
}

// passkeyByCredential finds a passkey of the domain; pgx.ErrNoRows when there is none.
func (d db) passkeyByCredential(ctx context.Context, rpID string, credentialID []byte) (storedPasskey, error) {
	return one[storedPasskey](ctx, d, `
		select p.id, p.user_id, p.public_key, u.disabled, u.email_verified
		from passkeys p join users u on u.id = p.user_id
		where p.credential_id = $1 and p.rp_id = $2`, credentialID, rpID)
}

// insertPasskey fails on passkeys_credential_id_key.
func (d db) insertPasskey(ctx context.Context, userID, rpID, name string, publicKey []byte, c ceremony) (passkey, error) {
	return one[passkey](ctx, d, `
		insert into passkeys (id, user_id, rp_id, credential_id, public_key, backup_eligible, backed_up, sign_count, name)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
		returning id, name, backed_up, created_at, last_used_at`, newID(), userID, rpID, c.credentialID, publicKey,
		c.flags&flagBackupEligible != 0, c.flags&flagBackedUp != 0, int64(c.signCount), name)
}

// passkeyUse is what a sign-in shows about a passkey, beside what was known.
type passkeyUse struct {
	BackupChanged    bool
	CounterRegressed bool // something else has counted on
}

// updatePasskeyUse notes that a passkey was used; pgx.ErrNoRows when it is gone. Its counter never falls.
func (d db) updatePasskeyUse(ctx context.Context, id string, c ceremony) (passkeyUse, error) {
	return one[passkeyUse](ctx, d, `
		with old as (select id, backup_eligible, sign_count from passkeys where id = $1 for update)
		update passkeys p set backup_eligible = $2, backed_up = $3, sign_count = greatest(old.sign_count, $4), last_used_at = now()
		from old where p.id = old.id
		returning old.backup_eligible <> $2 as backup_changed, old.sign_count + $4 > 0 and $4 <= old.sign_count as counter_regressed`,
		id, c.flags&flagBackupEligible != 0, c.flags&flagBackedUp != 0, int64(c.signCount))
}

// insertSpentChallenge is pgx.ErrNoRows when a challenge was spent before. It counts nothing, but expires like what
// counts, and longer than clocks differ after the challenge.
func (d db) insertSpentChallenge(ctx context.Context, c ceremony) error {
	hash := sha256.Sum256(c.challenge)
	return d.execOne(ctx, `
		insert into throttles (key, count, ends_at) values ($1, 1, $2) on conflict (key) do nothing`,
		"passkey "+base64.RawURLEncoding.EncodeToString(hash[:]), c.ends.Add(time.Hour))
}

// passkeysByUser lists the passkeys, newest first, one more than the page holds.
func (d db) passkeysByUser(ctx context.Context, userID string, p pageInput) ([]passkey, error) {
	return many[passkey](ctx, d, `
		select id, name, backed_up, created_at, last_used_at from passkeys
		where user_id = $1 and id < $2 order by id desc limit $3`, userID, p.before(), p.Limit+1)
}

func (d db) credentialIDsByUser(ctx context.Context, userID string) ([][]byte, error) {
	return manyBy(ctx, d, pgx.RowTo[[]byte], `select credential_id from passkeys where user_id = $1 order by id`, userID)
}

func (d db) countPasskeys(ctx context.Context, userID string) (n int, err error) {
	err = d.q.QueryRow(ctx, `select count(*) from passkeys where user_id = $1`, userID).Scan(&n)
	return n, err
}

// countPasskeysElsewhere counts those that belong to another domain.
func (d db) countPasskeysElsewhere(ctx context.Context, rpID string) (n int, err error) {
	err = d.q.QueryRow(ctx, `select count(*) from passkeys where rp_id <> $1`, rpID).Scan(&n)
	return n, err
}

func (d db) updatePasskeyName(ctx context.Context, userID, id string, name *string) (passkey, error) {
	return one[passkey](ctx, d, `
		update passkeys set name = coalesce($3, name) where user_id = $1 and id = $2
		returning id, name, backed_up, created_at, last_used_at`, userID, id, name)
}

// deletePasskey is pgx.ErrNoRows when the user has no such passkey.
func (d db) deletePasskey(ctx context.Context, userID, id string) error {
	return d.execOne(ctx, `delete from passkeys where user_id = $1 and id = $2`, userID, id)
}

// deletePasskeys is pgx.ErrNoRows when the user has none.
func (d db) deletePasskeys(ctx context.Context, userID string) error {
	return d.execOne(ctx, `delete from passkeys where user_id = $1`, userID)
}
