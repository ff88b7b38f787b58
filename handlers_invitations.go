package main

import (
	"cmp"
	"context"
)

type createInvitationInput struct {
	organizationInput
	Email string `json:"email" is:"email"`
	Role  string `json:"role" is:"organization_role"`
}

// maxPendingInvitations is for each organization (R42).
const maxPendingInvitations = 100

// createInvitation invites an address, or renews its invitation: one is pending per organization and address (R77).
// The token is made when the mail is sent and is nowhere else (R76).
func (s *server) createInvitation(ctx context.Context, c caller, in createInvitationInput) (i invitation, err error) {
	err = s.inOrganization(ctx, c, in.OrganizationID, invitationsWrite, func(tx db, role string) error {
		if !manages(role, in.Role) {
			return errForbidden
		}
		// Whoever disables or deletes the caller at this moment waits, and then voids this invitation too (R76).
		if err := tx.lockActiveUser(ctx, c.user.ID); err != nil {
			return orElse(err, errInvalidToken)
		}
		member, invited, pending, err := tx.invitationFacts(ctx, in.OrganizationID, in.Email)
		switch {
		case err != nil:
			return err
		case member:
			return errAlreadyMember
		case !manages(role, invited): // renewing takes the role that was offered before (R72)
			return errForbidden
		case pending >= maxPendingInvitations:
			return errTooManyInvitations
		}
		if i, err = tx.upsertInvitation(ctx, newID(), in.OrganizationID, in.Email, in.Role, c.user.ID, s.cfg.InvitationTTL); err != nil {
			return err
		}
		if err := s.limitInvitation(ctx, tx, in.OrganizationID, in.Email); err != nil {
			return err
		}
		_, err = tx.insertMail(ctx, newMail{kind: mailInvitation, to: in.Email, invitation: &i.ID})
		return inOrder(err, tx.audit(ctx, c, "invitation.created", &in.OrganizationID, &i.ID, map[string]any{"role": in.Role}))
	})
	s.wakeSender()
	return i, err
}

// limitInvitation counts an invitation's mail, and refuses it where one would be left out: what an organization sends
// takes nothing from what others may send (R42, R108). A refusal is counted nowhere, as tx ends with it.
func (s *server) limitInvitation(ctx context.Context, tx db, organizationID, email string) error {
	above, err := s.count(ctx, tx, []counter{
		s.counter(mailsMinute, mailInvitation, organizationID, hashed(email)), s.counter(invitationMails, organizationID, hashed(email)),
		s.counter(invitationsAddress, hashed(email)), s.counter(invitationsOrg, organizationID)})
	for _, now := range above {
		err = s.tooMany(err, now)
	}
	return err
}

type listInvitationsInput struct {
	organizationInput
	pageInput
}

func (s *server) listInvitations(ctx context.Context, _ caller, in listInvitationsInput) (page[invitation], error) {
	rows, err := s.db.invitationsByOrganization(ctx, in.OrganizationID, in.pageInput)
	return newPage(rows, in.Limit, func(i invitation) string { return i.ID }), err
}

type deleteInvitationInput struct {
	organizationInput
	InvitationID string `path:"invitation_id" is:"uuid"`
}

// deleteInvitation withdraws an invitation to a role below the caller's own; owners withdraw any (R72).
func (s *server) deleteInvitation(ctx context.Context, c caller, in deleteInvitationInput) (none, error) {
	return none{}, s.inOrganization(ctx, c, in.OrganizationID, invitationsWrite, func(tx db, role string) error {
		offered, err := tx.deleteInvitation(ctx, in.OrganizationID, in.InvitationID)
		if err != nil {
			return orElse(err, errNotFound)
		}
		if !manages(role, offered) {
			return errForbidden
		}
		return tx.audit(ctx, c, "invitation.deleted", &in.OrganizationID, &in.InvitationID, nil)
	})
}

type acceptInvitationInput struct {
	Token string `json:"token" is:"credential"`
}

// acceptInvitation makes the caller a member. The invitation is for an address, not for whoever has the link (R75); as
// the token came to that mailbox it confirms the address too. Somebody who is a member keeps their role (R77).
func (s *server) acceptInvitation(ctx context.Context, c caller, in acceptInvitationInput) (m userMembership, err error) {
	i, err := s.db.invitationByToken(ctx, hashMailToken(in.Token))
	if err != nil {
		return m, s.deadLink(ctx, c, err)
	}
	err = s.takeInvitation(ctx, i.OrganizationID, c.user.ID, in.Token, func(tx db, i takenInvitation) error {
		// What counts is the address that the caller has now, under the lock.
		if u, err := tx.userByID(ctx, c.user.ID); err != nil || i.Email != u.Email {
			return cmp.Or(err, error(errOtherAddress))
		}
		if err := inOrder(s.proveAddress(ctx, tx, c.user.ID, &c.session), tx.updateVerified(ctx, c.user.ID)); err != nil {
			return err
		}
		if m, err = tx.insertMembershipIfNone(ctx, i.OrganizationID, c.user.ID, i.Role); err != nil {
			return err
		}
		return tx.audit(ctx, c, "invitation.accepted", &i.OrganizationID, &c.user.ID, map[string]any{"role": m.Role})
	})
	return m, err
}

// takeInvitation runs fn in the transaction that consumes an invitation, with its organization and then the user who
// accepts, if there is one yet, locked: of any number of uses at once, one wins (R82).
func (s *server) takeInvitation(ctx context.Context, organizationID, userID, token string, fn func(tx db, i takenInvitation) error) error {
	return s.db.inTx(ctx, func(tx db) error {
		if err := tx.lockOrganization(ctx, organizationID); err != nil {
			return orElse(err, errBadMailToken)
		}
		if userID != "" {
			if err := tx.lockActiveUser(ctx, userID); err != nil {
				return orElse(err, errInvalidToken)
			}
		}
		// Again, now that nobody can renew it: the role is the one of the row (R75).
		taken, err := tx.deleteInvitationByToken(ctx, hashMailToken(token))
		if err != nil {
			return orElse(err, errBadMailToken)
		}
		return fn(tx, taken)
	})
}

type acceptInvitationAsNewUserInput struct {
	Token    string `json:"token" is:"credential"`
	Password string `json:"password" is:"new_password"`
	Name     string `json:"name" is:"name"`
}

// acceptInvitationAsNewUser makes account and membership in one step. Whoever has an account signs in first.
func (s *server) acceptInvitationAsNewUser(ctx context.Context, c caller, in acceptInvitationAsNewUserInput) (tokens, error) {
	i, err := s.db.invitationByToken(ctx, hashMailToken(in.Token))
	if err != nil {
		return tokens{}, s.deadLink(ctx, c, err)
	}
	if err := s.passwords.refuse("/password", in.Password, i.Email); err != nil {
		return tokens{}, err
	}
	if taken, err := s.db.emailTaken(ctx, i.Email); err != nil || taken {
		return tokens{}, cmp.Or(err, error(errSignInFirst))
	}
	hash, err := s.passwords.hash(ctx, in.Password)
	if err != nil {
		return tokens{}, err
	}
	var session newSession
	err = s.takeInvitation(ctx, i.OrganizationID, "", in.Token, func(tx db, i takenInvitation) error {
		u, err := tx.insertUser(ctx, newUser{newID(), i.Email, in.Name, "user", hash, true})
		if err != nil {
			return err
		}
		if _, err := tx.insertMembershipIfNone(ctx, i.OrganizationID, u.ID, i.Role); err != nil {
			return err
		}
		if session, err = s.startSession(ctx, tx, c, u.ID, passwordProof(hash)); err != nil {
			return err
		}
		c.user = u
		return tx.audit(ctx, c, "invitation.accepted", &i.OrganizationID, &u.ID, map[string]any{"role": i.Role})
	})
	if violates(err, "users_email_key") {
		err = errSignInFirst
	}
	if err != nil {
		return tokens{}, err
	}
	return s.issue(session)
}
