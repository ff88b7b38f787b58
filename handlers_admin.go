package main

import (
	"cmp"
	"context"
)

// What platform admins do to accounts. They see no secret and set a password only for an account that they make (R79).

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

// createUser makes an account. Without a password its owner is mailed a link to choose one, which confirms the
// address; with one, the admin answers for it.
func (s *server) createUser(ctx context.Context, c caller, in createUserInput) (u user, err error) {
	var hash string
	if in.Password != nil {
		if err := s.passwords.refuse("/password", *in.Password, in.Email); err != nil {
			return u, err
		}
		if hash, err = s.passwords.hash(ctx, *in.Password); err != nil {
			return u, err
		}
	}
	err = s.db.inTx(ctx, func(tx db) error {
		if u, err = tx.insertUser(ctx, newID(), in.Email, in.Name, in.Role, hash, hash != ""); err != nil {
			return err
		}
		if hash == "" {
			if err := tx.insertMail(ctx, newMail{kind: mailSetPassword, owner: in.Email}); err != nil {
				return err
			}
		}
		return tx.audit(ctx, c, "user.created", nil, &u.ID, map[string]any{"role": in.Role})
	})
	s.wakeSender()
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
// one, and nobody takes their own rights away.
func (s *server) updateUser(ctx context.Context, c caller, in updateUserInput) (u user, err error) {
	err = s.changeAccess(ctx, in.UserID, func(tx db, before user) error {
		if u, err = tx.updateUser(ctx, in); err != nil {
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
		return tx.audit(ctx, c, "user.updated", nil, &u.ID, map[string]any{"role": u.Role, "disabled": u.Disabled})
	})
	return u, err
}

// endEverything ends what a disabled user could still use: sessions, mail tokens, and invitations in their name.
func (d db) endEverything(ctx context.Context, userID string) error {
	return inOrder(d.deleteSessions(ctx, userID, nil), d.voidMailTokens(ctx, userID), d.deleteAllInvitationsBy(ctx, userID))
}

type deleteUserInput struct {
	userInput
	IfMatch versions `header:"If-Match"`
}

func (s *server) deleteUser(ctx context.Context, c caller, in deleteUserInput) (none, error) {
	return none{}, s.changeAccess(ctx, in.UserID, func(tx db, before user) error {
		if err := tx.deleteUser(ctx, before, in.IfMatch); err != nil {
			return orElse(err, errStale)
		}
		if in.UserID == c.user.ID {
			return cmp.Or(orElse(tx.anyAdmin(ctx), errLastAdmin), error(errOwnAccount))
		}
		return tx.audit(ctx, c, "user.deleted", nil, &in.UserID, nil)
	})
}

func (s *server) deleteUserSessions(ctx context.Context, c caller, in userInput) (none, error) {
	return none{}, s.db.inTx(ctx, func(tx db) error {
		if _, err := tx.lockUser(ctx, in.UserID); err != nil {
			return orElse(err, errNotFound)
		}
		return inOrder(tx.deleteSessions(ctx, in.UserID, nil), tx.audit(ctx, c, "user.sessions_ended", nil, &in.UserID, nil))
	})
}

type listAuditEventsInput struct {
	pageInput
	ActorID        *string `query:"actor_id" is:"uuid"`
	OrganizationID *string `query:"organization_id" is:"uuid"`
	Action         *string `query:"action" is:"action"`
}

func (s *server) listAuditEvents(ctx context.Context, _ caller, in listAuditEventsInput) (page[auditEvent], error) {
	rows, err := s.db.auditEvents(ctx, in)
	return newPage(rows, in.Limit, func(e auditEvent) string { return e.ID }), err
}

type listOrganizationAuditEventsInput struct {
	organizationInput
	pageInput
	ActorID *string `query:"actor_id" is:"uuid"`
	Action  *string `query:"action" is:"action"`
}

func (s *server) listOrganizationAuditEvents(ctx context.Context, c caller, in listOrganizationAuditEventsInput) (page[auditEvent], error) {
	return s.listAuditEvents(ctx, c, listAuditEventsInput{in.pageInput, in.ActorID, &in.OrganizationID, in.Action})
}

// exportMe is everything stored about the caller, in one document.
func (s *server) exportMe(ctx context.Context, c caller, _ none) (export, error) {
	return s.db.exportUser(ctx, c.user, c.session)
}
