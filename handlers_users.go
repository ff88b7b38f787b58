package main

import (
	"cmp"
	"context"
	"slices"
	"time"
)

func (s *server) readMe(_ context.Context, c caller, _ none) (user, error) { return c.user, nil }

type updateMeInput struct {
	IfMatch versions `header:"If-Match"`
	Name    *string  `json:"name" is:"name"`
}

func (s *server) updateMe(ctx context.Context, c caller, in updateMeInput) (u user, err error) {
	err = s.db.inTx(ctx, func(tx db) error {
		change := updateUserInput{userInput: userInput{c.user.ID}, IfMatch: in.IfMatch, Name: in.Name}
		if u, err = tx.updateUser(ctx, change); err != nil {
			return orElse(err, errStale)
		}
		if u.UpdatedAt.Equal(c.user.UpdatedAt) {
			return nil // nothing has changed
		}
		return tx.audit(ctx, c, "user.updated", nil, &u.ID, nil)
	})
	return u, err
}

type changePasswordInput struct {
	CurrentPassword string `json:"current_password" is:"password"`
	NewPassword     string `json:"new_password" is:"new_password"`
}

// changePassword needs the current password; it ends every other session, voids every mail token, and tells the owner
// by mail (R33).
func (s *server) changePassword(ctx context.Context, c caller, in changePasswordInput) (none, error) {
	if err := s.passwords.refuse("/new_password", in.NewPassword, c.user.Email); err != nil {
		return none{}, err
	}
	account, err := s.db.accountByEmail(ctx, c.user.Email)
	if err != nil {
		return none{}, orElse(err, errInvalidToken)
	}
	if err := s.requirePassword(ctx, c, account, "/current_password", in.CurrentPassword); err != nil {
		return none{}, err
	}
	hash, err := s.passwords.hash(ctx, in.NewPassword)
	if err != nil {
		return none{}, err
	}
	err = s.db.inTx(ctx, func(tx db) error {
		// Only over the hash that was verified: of two changes at once, one wins and the other must ask again.
		if err := tx.updatePasswordHash(ctx, c.user.ID, account.PasswordHash, hash); err != nil {
			return orElse(err, wrongPassword("/current_password"))
		}
		return inOrder(tx.audit(ctx, c, "password.changed", nil, &c.user.ID, nil),
			tx.endAccess(ctx, c.user.Email, c.user.ID, &c.session))
	})
	s.wakeSender()
	return none{}, err
}

// requirePassword refuses a password that is not the account's; pointer is its place in the request.
func (s *server) requirePassword(ctx context.Context, c caller, account account, pointer, password string) error {
	ok, _, err := s.checkPassword(ctx, c, account.Email, account.PasswordHash, password)
	if err != nil || ok {
		return err
	}
	return cmp.Or(s.db.audit(ctx, c, "password.refused", nil, &account.ID, nil), error(wrongPassword(pointer)))
}

// recentSignIn is how young a session must be for what cannot be undone.
const recentSignIn = 15 * time.Minute

// deleteMe deletes the account and everything personal; 409 while the caller is the last active owner of something.
type deleteMeInput struct {
	IfMatch versions `header:"If-Match"`
}

func (s *server) deleteMe(ctx context.Context, c caller, in deleteMeInput) (none, error) {
	if time.Since(c.signedIn) > recentSignIn {
		return none{}, errRecentSignIn
	}
	return none{}, s.changeAccess(ctx, c.user.ID, func(tx db, before user) error {
		return inOrder(orElse(tx.deleteUser(ctx, before, in.IfMatch), errStale), tx.audit(ctx, caller{user: before}, "user.deleted", nil, &before.ID, nil))
	})
}

// changeAccess runs fn, which takes a user's rights away, and refuses when an organization is then without an active
// owner or the platform without an active admin. It locks in the one order that everybody keeps, organizations before
// users, and begins again when the user became an owner or an admin in between (R74, R82).
func (s *server) changeAccess(ctx context.Context, userID string, fn func(tx db, before user) error) error {
	return s.db.inTx(ctx, func(tx db) error {
		locked, err := tx.lockOwnedOrganizations(ctx, userID)
		if err != nil {
			return err
		}
		first, err := tx.userByID(ctx, userID)
		if err != nil {
			return orElse(err, errNotFound)
		}
		if first.Role == "admin" {
			if err := tx.lockAdmins(ctx); err != nil {
				return err
			}
		}
		before, err := tx.lockUser(ctx, userID)
		if err != nil {
			return orElse(err, errNotFound)
		}
		owned, err := tx.ownedOrganizations(ctx, userID)
		if err != nil {
			return err
		}
		if before.Role != first.Role || !slices.Equal(locked, owned) {
			return errMoved
		}
		if err := fn(tx, before); err != nil {
			return err
		}
		if err := tx.requireOwners(ctx, owned); err != nil {
			return err
		}
		if before.Role != "admin" || before.Disabled {
			return nil
		}
		return orElse(tx.anyAdmin(ctx), errLastAdmin)
	})
}

func (s *server) listSessions(ctx context.Context, c caller, in pageInput) (page[session], error) {
	rows, err := s.db.sessionsByUser(ctx, c.user.ID, c.session, in)
	return newPage(rows, in.Limit, func(s session) string { return s.ID }), err
}

// deleteOtherSessions keeps the session that asks.
func (s *server) deleteOtherSessions(ctx context.Context, c caller, _ none) (none, error) {
	return none{}, s.db.inTx(ctx, func(tx db) error {
		return inOrder(tx.deleteSessions(ctx, c.user.ID, &c.session),
			tx.audit(ctx, c, "session.others_ended", nil, &c.user.ID, nil))
	})
}

type deleteSessionInput struct {
	SessionID string `path:"session_id" is:"uuid"`
}

func (s *server) deleteSession(ctx context.Context, c caller, in deleteSessionInput) (none, error) {
	return none{}, s.db.inTx(ctx, func(tx db) error {
		if err := tx.deleteSession(ctx, c.user.ID, in.SessionID); err != nil {
			return orElse(err, errNotFound)
		}
		return tx.audit(ctx, c, "session.ended", nil, &in.SessionID, nil)
	})
}
