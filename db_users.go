package main

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"
)

// account is a user with the secret that handlers verify; it never leaves the program.
type account struct {
	ID            string
	Email         string
	PasswordHash  string // empty: no password was set
	EmailVerified bool
	Disabled      bool
	Pending       bool // it is only a registration
}

// accountByEmail finds whoever signs in by an address: its account, or else its registration, in the same time.
func (d db) accountByEmail(ctx context.Context, email string) (account, error) {
	return one[account](ctx, d, `
		select id, email, coalesce(password_hash, '') as password_hash, email_verified, disabled, false as pending
		from users where email = $1
		union all
		select id, email, password_hash, false, false, true from registrations where email = $1 and expires_at > now()
		order by pending limit 1`, email)
}

func (d db) accountByID(ctx context.Context, id string) (account, error) {
	return one[account](ctx, d, `
		select id, email, coalesce(password_hash, '') as password_hash, email_verified, disabled, false as pending
		from users where id = $1`, id)
}

// accountByMailToken returns the owner of a live token without consuming it.
func (d db) accountByMailToken(ctx context.Context, hash []byte, purpose string) (account, error) {
	return one[account](ctx, d, `
		select u.id, u.email, coalesce(u.password_hash, '') as password_hash, u.email_verified, u.disabled, false as pending
		from mail_tokens t join users u on u.id = t.user_id
		where t.token_hash = $1 and t.purpose = $2 and t.expires_at > now() and not u.disabled`, hash, purpose)
}

// newUser is an account to be made.
type newUser struct {
	ID, Email, Name, Role string
	PasswordHash          string // empty: none
	EmailVerified         bool   // the address needs no proof
}

// insertUser fails on users_email_key when the address has an account.
func (d db) insertUser(ctx context.Context, u newUser) (user, error) {
	return one[user](ctx, d, `
		insert into users (id, email, name, role, password_hash, email_verified)
		values ($1, $2, $3, $4, nullif($5, ''), $6)
		returning id, email, name, role, email_verified, disabled, created_at, updated_at`,
		u.ID, u.Email, u.Name, u.Role, u.PasswordHash, u.EmailVerified)
}

func (d db) userByID(ctx context.Context, id string) (user, error) {
	return one[user](ctx, d, `
		select id, email, name, role, email_verified, disabled, created_at, updated_at from users where id = $1`, id)
}

// users lists accounts, newest first, one more than the page holds. Which index serves depends on what is searched
// for, so the plan is made for each call.
func (d db) users(ctx context.Context, in listUsersInput) ([]user, error) {
	var prefix, part *string
	if in.Q != nil {
		escaped := likeEscaper.Replace(*in.Q)
		p, n := strings.ToLower(escaped)+"%", "%"+escaped+"%"
		prefix, part = &p, &n
	}
	return many[user](ctx, d, `
		select id, email, name, role, email_verified, disabled, created_at, updated_at from users
		where id < $1 and ($2::text is null or email like $2 or name ilike $3)
			and ($4::text is null or role = $4) and ($5::boolean is null or disabled = $5)
		order by id desc limit $6`,
		pgx.QueryExecModeExec, in.before(), prefix, part, in.Role, in.Disabled, in.Limit+1)
}

// likeEscaper makes a pattern that matches only itself (R21).
var likeEscaper = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)

// updateUser changes what is given; pgx.ErrNoRows when the version is not one of those allowed.
func (d db) updateUser(ctx context.Context, in updateUserInput) (user, error) {
	return one[user](ctx, d, `
		update users set name = coalesce($2, name), role = coalesce($3, role), disabled = coalesce($4, disabled)
		where id = $1 and ($5::timestamptz[] is null or updated_at = any($5))
		returning id, email, name, role, email_verified, disabled, created_at, updated_at`,
		in.UserID, in.Name, in.Role, in.Disabled, in.IfMatch)
}

// updatePasswordHash replaces old by new; pgx.ErrNoRows when old is not the password any more.
func (d db) updatePasswordHash(ctx context.Context, id, old, new string) error {
	return d.execOne(ctx, `
		update users set password_hash = $3
		where id = $1 and password_hash = $2`, id, old, new)
}

// lockUserWithPassword locks the row until the transaction ends; pgx.ErrNoRows when the user was disabled or the
// password, unless it is nil, changed since it was verified.
func (d db) lockUserWithPassword(ctx context.Context, id string, passwordHash *string) (user, error) {
	return one[user](ctx, d, `
		select id, email, name, role, email_verified, disabled, created_at, updated_at
		from users where id = $1 and ($2::text is null or password_hash = $2) and not disabled
		for no key update`, id, passwordHash)
}

// lockActiveUser locks the row of a user who is not disabled; pgx.ErrNoRows otherwise.
func (d db) lockActiveUser(ctx context.Context, id string) error {
	return d.execOne(ctx, `select id from users where id = $1 and not disabled for no key update`, id)
}

// updatePasswordByMail sets the password of a user who proved the mailbox.
func (d db) updatePasswordByMail(ctx context.Context, id, hash string) error {
	return d.exec(ctx, `update users set password_hash = $2, email_verified = true where id = $1`, id, hash)
}

// updateEmail fails on users_email_key when the address was taken meanwhile.
func (d db) updateEmail(ctx context.Context, id, email string) error {
	return d.exec(ctx, `update users set email = $2, email_verified = true where id = $1`, id, email)
}

// updateVerified confirms the address of a user whose mailbox was proved.
func (d db) updateVerified(ctx context.Context, id string) error {
	return d.exec(ctx, `update users set email_verified = true where id = $1 and not email_verified`, id)
}

// lockPlatform takes the lock of everything that decides who is a platform admin, before any row.
func (d db) lockPlatform(ctx context.Context) error {
	return d.exec(ctx, `select pg_advisory_xact_lock(hashtext('roster/admins'))`)
}

// activeAdmin is pgx.ErrNoRows unless a user is a platform admin at this moment.
func (d db) activeAdmin(ctx context.Context, id string) error {
	return d.execOne(ctx, `select id from users where id = $1 and role = 'admin' and not disabled`, id)
}

// anyAdmin is pgx.ErrNoRows when there is no active platform admin.
func (d db) anyAdmin(ctx context.Context) error {
	return d.execOne(ctx, `select id from users where role = 'admin' and not disabled limit 1`)
}

// lockUser locks and returns a user, disabled or not; pgx.ErrNoRows when there is none.
func (d db) lockUser(ctx context.Context, id string) (user, error) {
	return one[user](ctx, d, `
		select id, email, name, role, email_verified, disabled, created_at, updated_at
		from users where id = $1 for no key update`, id)
}

// deleteUser takes sessions, tokens, memberships and mails along, and what was found by the address if it was proved:
// nobody's mails, invitations, registrations (R105). The client addresses of the audit trail go after it: see
// eraseUsers. pgx.ErrNoRows when the version is not one of those allowed.
func (d db) deleteUser(ctx context.Context, u user, allowed versions) error {
	if u.EmailVerified {
		// Nobody's mails also to an address that was theirs, not to one that they only asked to have.
		if err := inOrder(
			d.exec(ctx, `delete from mails where recipient = $2 or user_id is null and recipient in (
				select recipient from mails where user_id = $1 and kind <> $3)`, u.ID, u.Email, mailChangeEmail),
			d.exec(ctx, `delete from invitations where email = $1`, u.Email),
			d.exec(ctx, `delete from registrations where email = $1`, u.Email)); err != nil {
			return err
		}
	}
	if err := d.exec(ctx, `insert into erasures (user_id) values ($1) on conflict (user_id) do nothing`, u.ID); err != nil {
		return err
	}
	if _, err := d.eraseAddresses(ctx, u.ID, erasedAtOnce); err != nil {
		return err
	}
	return d.execOne(ctx, `
		delete from users
		where id = $1 and ($2::timestamptz[] is null or updated_at = any($2))`, u.ID, allowed)
}

func (d db) emailTaken(ctx context.Context, email string) (taken bool, err error) {
	err = d.q.QueryRow(ctx, `select exists (select from users where email = $1)`, email).Scan(&taken)
	return taken, err
}
