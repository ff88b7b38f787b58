// room:administration

// What platform admins do to accounts: list, search, make, change, disable and delete them, and end their sessions; and the
// command that makes the first admin. They see no secret, and set a password only for an account that they make (R79). A
// team without it changes accounts by SQL.
//
// Its files are handlers_admin.go, db_admin.go and cmd_admin.go. What ties it to the house is what
// `grep -n room:administration *.go` finds: rows of the route table, a command, and what must hold before a user goes: the
// platform keeps an active admin. To take it out, delete the files and those lines.

package main

import (
	"cmp"
	"context"
)

type listUsersInput struct {
	pageInput
	Q        *string `query:"q" is:"search"`
	Role     *string `query:"role" is:"role"`
	Disabled *bool   `query:"disabled"`
}

// listUsers lists accounts, newest first; q is the beginning of an address or any part of a name.
func (s *server) listUsers(ctx context.Context, _ caller, in listUsersInput) (page[user], error) {
	rows, err := s.db.users(ctx, in)
	return newPage(rows, in.Limit, func(u user) string { return u.ID }), err
}

type createUserInput struct {
	Email    string  `json:"email" is:"email"`
	Name     string  `json:"name" is:"name"`
	Role     string  `json:"role" is:"role"`
	Password *string `json:"password" is:"new_password"`
}

// asAdmin runs fn with the platform locked, for a caller who is a platform admin at that moment: whoever was disabled or
// demoted while the request waited gets nothing done (R107).
func (s *server) asAdmin(ctx context.Context, c caller, fn func(tx db) error) error {
	return s.db.inTx(ctx, func(tx db) error {
		if err := tx.lockPlatform(ctx); err != nil {
			return err
		}
		if err := tx.activeAdmin(ctx, c.user.ID); err != nil {
			return orElse(err, errForbidden)
		}
		return fn(tx)
	})
}

// changeUser is what an admin does to the access of a user.
func (s *server) changeUser(ctx context.Context, c caller, userID string, fn func(tx db, before user) error) error {
	return s.asAdmin(ctx, c, func(tx db) error {
		return tx.changeAccess(ctx, userID, func(before user) error { return fn(tx, before) })
	})
}

// createUser makes an account. Without a password its owner is mailed a link to choose one, which confirms the
// address; with one, the admin answers for it.
func (s *server) createUser(ctx context.Context, c caller, in createUserInput) (u user, err error) {
	if in.Role == "admin" && !c.recent() {
		return u, errRecentSignIn
	}
	var hash string
	if in.Password != nil {
		if err := s.passwords.refuse("/password", *in.Password, in.Email); err != nil {
			return u, err
		}
		if hash, err = s.passwords.hash(ctx, c.ip, *in.Password); err != nil {
			return u, err
		}
	}
	err = s.asAdmin(ctx, c, func(tx db) error {
		if u, err = tx.insertUser(ctx, newUser{newID(), in.Email, in.Name, in.Role, hash, hash != ""}); err != nil {
			return err
		}
		if hash == "" { // room:mailflows
			if err := s.mail(ctx, tx, newMail{kind: mailSetPassword, owner: in.Email}); err != nil {
				return err
			}
		}
		tx.audit(c, auditEntry{action: "user.created", subject: u.ID, detail: map[string]any{"role": in.Role}}) // room:audit
		return nil
	})
	s.wakeSender() // room:mail
	return u, err
}

type userInput struct {
	UserID string `path:"user_id" is:"uuid"`
}

func (s *server) readUser(ctx context.Context, _ caller, in userInput) (user, error) {
	u, err := s.db.userByID(ctx, in.UserID)
	return u, orElse(err, errNotFound)
}

type updateUserInput struct {
	userInput
	IfMatch  versions `header:"If-Match"`
	Name     *string  `json:"name" is:"name"`
	Role     *string  `json:"role" is:"role"`
	Disabled *bool    `json:"disabled"`
}

// updateUser changes an account. Disabling it ends its sessions, tokens and invitations. The last active admin stays
// one, nobody takes their own rights away, and making an admin takes a recent sign-in.
func (s *server) updateUser(ctx context.Context, c caller, in updateUserInput) (u user, err error) {
	err = s.changeUser(ctx, c, in.UserID, func(tx db, before user) error {
		if in.Role != nil && *in.Role == "admin" && before.Role != "admin" && !c.recent() {
			return errRecentSignIn
		}
		if u, err = tx.updateUser(ctx, in.UserID, userChange{in.Name, in.Role, in.Disabled, in.IfMatch}); err != nil {
			return orElse(err, errStale)
		}
		if u.Disabled && !before.Disabled {
			if err := tx.endEverything(ctx, u.ID); err != nil {
				return err
			}
		}
		if lost := u.Disabled || u.Role != before.Role; lost && u.ID == c.user.ID {
			return cmp.Or(orElse(tx.anyAdmin(ctx), errLastAdmin), error(errOwnAccount))
		}
		if u.UpdatedAt.Equal(before.UpdatedAt) {
			return nil // nothing has changed
		}
		tx.audit(c, auditEntry{action: "user.updated", subject: u.ID, detail: map[string]any{"role": u.Role, "disabled": u.Disabled}}) // room:audit
		if u.Role != before.Role {                                                                                                     // room:mail
			return s.notify(ctx, tx, u.Email, "role_changed_"+u.Role)
		}
		return nil
	})
	s.wakeSender()
	return u, err
}

// endEverything ends what a disabled user could still use: sessions, mail tokens, and invitations in their name.
func (d db) endEverything(ctx context.Context, userID string) error {
	return firstError(
		d.deleteSessions(ctx, userID, nil),
		d.voidMailTokens(ctx, userID),         // room:mailflows
		d.deleteAllInvitationsBy(ctx, userID), // room:invitations
	)
}

type deleteUserInput struct {
	userInput
	IfMatch versions `header:"If-Match"`
}

func (s *server) deleteUser(ctx context.Context, c caller, in deleteUserInput) (none, error) {
	return none{}, s.changeUser(ctx, c, in.UserID, func(tx db, before user) error {
		if err := tx.deleteUser(ctx, before, in.IfMatch); err != nil {
			return orElse(err, errStale)
		}
		if in.UserID == c.user.ID {
			return cmp.Or(orElse(tx.anyAdmin(ctx), errLastAdmin), error(errOwnAccount))
		}
		tx.audit(c, auditEntry{action: "user.deleted", subject: in.UserID}) // room:audit
		return nil
	})
}

func (s *server) deleteUserSessions(ctx context.Context, c caller, in userInput) (none, error) {
	return none{}, s.asAdmin(ctx, c, func(tx db) error {
		if _, err := tx.lockUser(ctx, in.UserID); err != nil {
			return orElse(err, errNotFound)
		}
		tx.audit(c, auditEntry{action: "user.sessions_ended", subject: in.UserID}) // room:audit
		return tx.deleteSessions(ctx, in.UserID, nil)
	})
}
