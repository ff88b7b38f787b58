package main

import (
	"context"
)

// userColumns are what a user is read from, of users u.
const userColumns = "u.id, u.email, u.name, u.role, u.email_verified, u.disabled, u.created_at, u.updated_at"

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

// newUser is an account to be made.
type newUser struct {
	ID, Email, Name, Role string
	PasswordHash          string // empty: none
	EmailVerified         bool   // the address needs no proof
}

// insertUser fails on users_email_key when the address has an account.
func (d db) insertUser(ctx context.Context, u newUser) (user, error) {
	return one[user](ctx, d, `
		insert into users as u (id, email, name, role, password_hash, email_verified)
		values ($1, $2, $3, $4, nullif($5, ''), $6)
		returning `+userColumns,
		u.ID, u.Email, u.Name, u.Role, u.PasswordHash, u.EmailVerified)
}

func (d db) userByID(ctx context.Context, id string) (user, error) {
	return one[user](ctx, d, `
		select `+userColumns+` from users u where id = $1`, id)
}

// userChange is what may be changed of a user; nil leaves it as it is.
type userChange struct {
	name     *string
	role     *string
	disabled *bool
	allowed  versions
}

// updateUser changes what is given; pgx.ErrNoRows when the version is not one of those allowed.
func (d db) updateUser(ctx context.Context, id string, change userChange) (user, error) {
	return one[user](ctx, d, `
		update users u set name = coalesce($2, name), role = coalesce($3, role), disabled = coalesce($4, disabled)
		where id = $1 and ($5::timestamptz[] is null or updated_at = any($5))
		returning `+userColumns,
		id, change.name, change.role, change.disabled, change.allowed)
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
		select `+userColumns+` from users u where id = $1 and ($2::text is null or password_hash = $2) and not disabled
		for no key update`, id, passwordHash)
}

// lockActiveUser locks the row of a user who is not disabled; pgx.ErrNoRows otherwise.
func (d db) lockActiveUser(ctx context.Context, id string) error {
	return d.execOne(ctx, `select id from users where id = $1 and not disabled for no key update`, id)
}

// lockUser locks and returns a user, disabled or not; pgx.ErrNoRows when there is none.
func (d db) lockUser(ctx context.Context, id string) (user, error) {
	return one[user](ctx, d, `
		select `+userColumns+` from users u where id = $1 for no key update`, id)
}

// deleteUser takes sessions, tokens, memberships and mails along, and what was found by the address if it was proved:
// nobody's mails, invitations, registrations (R105). The client addresses of the audit trail go after it: see
// eraseUsers. pgx.ErrNoRows when the version is not one of those allowed.
func (d db) deleteUser(ctx context.Context, u user, allowed versions) error {
	var byAddress error
	if u.EmailVerified {
		byAddress = firstError(
			d.deleteMailsTo(ctx, u),             // room:mail
			d.deleteRegistrations(ctx, u.Email), // room:mailflows
			d.deleteInvitationsTo(ctx, u.Email), // room:invitations
		)
	}
	return firstError(byAddress,
		d.beginErasure(ctx, u.ID), // room:audit
		d.execOne(ctx, `
			delete from users
			where id = $1 and ($2::timestamptz[] is null or updated_at = any($2))`, u.ID, allowed))
}

func (d db) emailTaken(ctx context.Context, email string) (taken bool, err error) {
	err = d.q.QueryRow(ctx, `select exists (select from users where email = $1)`, email).Scan(&taken)
	return taken, err
}
