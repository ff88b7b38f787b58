package main

import (
	"cmp"
	"context"
)

func (s *server) readMe(_ context.Context, c caller, _ none) (user, error) { return c.user, nil }

type updateMeInput struct {
	IfMatch versions `header:"If-Match"`
	Name    *string  `json:"name" is:"name"`
}

func (s *server) updateMe(ctx context.Context, c caller, in updateMeInput) (u user, err error) {
	err = s.db.inTx(ctx, func(tx db) error {
		if u, err = tx.updateUser(ctx, c.user.ID, userChange{name: in.Name, allowed: in.IfMatch}); err != nil {
			return orElse(err, errStale)
		}
		if u.UpdatedAt.Equal(c.user.UpdatedAt) {
			return nil // nothing has changed
		}
		tx.audit(c, auditEntry{action: "user.updated", subject: u.ID}) // room:audit
		return nil
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
	account, err := s.db.accountByID(ctx, c.user.ID)
	if err != nil {
		return none{}, orElse(err, errInvalidToken)
	}
	if err := s.requirePassword(ctx, c, account, "/current_password", in.CurrentPassword); err != nil {
		return none{}, err
	}
	hash, err := s.passwords.hash(ctx, c.ip, in.NewPassword)
	if err != nil {
		return none{}, err
	}
	err = s.db.inTx(ctx, func(tx db) error {
		// Only over the hash that was verified: of two changes at once, one wins and the other must ask again.
		if err := tx.updatePasswordHash(ctx, c.user.ID, account.PasswordHash, hash); err != nil {
			return orElse(err, wrongPassword("/current_password"))
		}
		tx.audit(c, auditEntry{action: "password.changed", subject: c.user.ID}) // room:audit
		return s.endAccess(ctx, tx, c.user.Email, c.user.ID, &c.session)
	})
	s.wakeSender() // room:mail
	return none{}, err
}

// proveAddress comes before an address is proved: who was there until then may have been somebody else. Where it was not
// proved, every credential but the password, which the callers see to, is void, and every session but one.
func (s *server) proveAddress(ctx context.Context, tx db, userID string, except *string) error {
	u, err := tx.userByID(ctx, userID)
	if err != nil || u.EmailVerified {
		return orElse(err, nil)
	}
	return firstError(
		s.deleteSecondFactor(ctx, tx, u, "second_factor_void"), // room:second-factor
		s.deletePasskeys(ctx, tx, u, "passkeys_void"),          // room:passkeys
		tx.deleteSessions(ctx, userID, except),
	)
}

// endAccess is what a new password means: every session but one ends, every mail token is void, the owner is told.
func (s *server) endAccess(ctx context.Context, tx db, email, userID string, except *string) error {
	return firstError(
		tx.deleteSessions(ctx, userID, except),
		tx.voidMailTokens(ctx, userID),                                    // room:mailflows
		s.mail(ctx, tx, newMail{kind: mailPasswordChanged, owner: email}), // room:mail
	)
}

// checkPassword verifies the password of an account; weak says that it should be hashed anew. It need not exist: an empty
// hash matches nothing, and costs the same.
func (s *server) checkPassword(ctx context.Context, c caller, email, hash, password string) (ok, weak bool, err error) {
	verdict, err := s.guess(ctx, c, email) // room:throttling
	if err != nil {                        // room:throttling
		return false, false, err
	}
	ok, weak, err = s.passwords.verify(ctx, c.ip, hash, password)
	err = cmp.Or(err, verdict(err == nil && !ok)) // without a verdict nothing was guessed // room:throttling
	return ok, weak, err
}

// requirePassword refuses a password that is not the account's; pointer is its place in the request.
func (s *server) requirePassword(ctx context.Context, c caller, account account, pointer, password string) error {
	ok, _, err := s.checkPassword(ctx, c, account.Email, account.PasswordHash, password)
	if err != nil || ok {
		return err
	}
	err = wrongPassword(pointer)
	err = s.db.record(ctx, c, auditEntry{action: "password.refused", subject: account.ID}, err) // room:audit
	return err
}

// deleteMe deletes the account and everything personal; 409 while the caller is the last active owner of something.
type deleteMeInput struct {
	IfMatch versions `header:"If-Match"`
}

func (s *server) deleteMe(ctx context.Context, c caller, in deleteMeInput) (none, error) {
	return none{}, s.db.inTx(ctx, func(tx db) error {
		if err := tx.lockPlatform(ctx); err != nil { // room:administration
			return err
		}
		return tx.changeAccess(ctx, c.user.ID, func(before user) error {
			tx.audit(caller{user: before}, auditEntry{action: "user.deleted", subject: before.ID}) // room:audit
			return orElse(tx.deleteUser(ctx, before, in.IfMatch), errStale)
		})
	})
}

// changeAccess runs fn, which takes a user's rights away, and refuses when an organization is then without an active
// owner or the platform without an active admin. It locks in the one order that everybody keeps, the platform (which
// the caller holds), organizations, users, and begins again when the user became an owner in between (R74, R82).
func (d db) changeAccess(ctx context.Context, userID string, fn func(before user) error) error {
	owned, err := d.lockOwnedOrganizations(ctx, userID) // room:organizations
	if err != nil {                                     // room:organizations
		return err
	}
	before, err := d.lockUser(ctx, userID)
	if err != nil {
		return orElse(err, errNotFound)
	}
	if err := d.stillOwned(ctx, userID, owned); err != nil { // room:organizations
		return err
	}
	if err := fn(before); err != nil {
		return err
	}
	if err := d.requireOwners(ctx, owned); err != nil { // room:organizations
		return err
	}
	if before.Role == "admin" && !before.Disabled { // room:administration
		return orElse(d.anyAdmin(ctx), errLastAdmin)
	}
	return nil
}

func (s *server) listSessions(ctx context.Context, c caller, in pageInput) (page[session], error) {
	rows, err := s.db.sessionsByUser(ctx, c.user.ID, c.session, in)
	return newPage(rows, in.Limit, func(s session) string { return s.ID }), err
}

// deleteOtherSessions keeps the session that asks.
func (s *server) deleteOtherSessions(ctx context.Context, c caller, _ none) (none, error) {
	return none{}, s.db.inTx(ctx, func(tx db) error {
		tx.audit(c, auditEntry{action: "session.others_ended", subject: c.user.ID}) // room:audit
		return tx.deleteSessions(ctx, c.user.ID, &c.session)
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
		tx.audit(c, auditEntry{action: "session.ended", subject: in.SessionID}) // room:audit
		return nil
	})
}
