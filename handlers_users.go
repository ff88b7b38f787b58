package main

import "context"

func (s *server) readMe(_ context.Context, c caller, _ readMeInput) (user, error) { return c.user, nil }

type readMeInput struct{}

type updateMeInput struct {
	IfMatch versions `header:"If-Match"`
	Name    string   `json:"name" is:"name"`
}

func (s *server) updateMe(ctx context.Context, c caller, in updateMeInput) (user, error) {
	u, err := s.db.updateUserName(ctx, c.user.ID, in.Name, in.IfMatch)
	return u, orElse(err, errStale)
}

type changePasswordInput struct {
	CurrentPassword string `json:"current_password" is:"password"`
	NewPassword     string `json:"new_password" is:"new_password"`
}

// changePassword needs the current password; it ends every other session, voids every mail token, and tells the owner
// by mail (R33).
func (s *server) changePassword(ctx context.Context, c caller, in changePasswordInput) (none, error) {
	if err := refusePassword("/new_password", in.NewPassword, c.user.Email); err != nil {
		return none{}, err
	}
	account, err := s.db.accountByEmail(ctx, c.user.Email)
	if err != nil {
		return none{}, orElse(err, errInvalidToken)
	}
	ok, _, err := s.passwords.verify(ctx, account.PasswordHash, in.CurrentPassword)
	if err != nil {
		return none{}, err
	}
	if !ok {
		return none{}, wrongPassword("/current_password")
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
		return tx.endAccess(ctx, c.user.Email, c.user.ID, &c.session)
	})
	s.wakeSender()
	return none{}, err
}

type listSessionsInput struct{ pageInput }

func (s *server) listSessions(ctx context.Context, c caller, in listSessionsInput) (page[session], error) {
	rows, err := s.db.sessionsByUser(ctx, c.user.ID, c.session, in.pageInput)
	return newPage(rows, in.Limit, func(s session) string { return s.ID }), err
}

// deleteOtherSessions keeps the session that asks.
func (s *server) deleteOtherSessions(ctx context.Context, c caller, _ none) (none, error) {
	return none{}, s.db.deleteSessions(ctx, c.user.ID, &c.session)
}

type deleteSessionInput struct {
	SessionID string `path:"session_id"`
}

func (s *server) deleteSession(ctx context.Context, c caller, in deleteSessionInput) (none, error) {
	found, err := s.db.deleteSession(ctx, c.user.ID, in.SessionID)
	if err == nil && !found {
		err = errNotFound
	}
	return none{}, err
}
