// room:invitations made of organizations, mail

// Invitations to an organization, by mail, for people with and without an account. A team without them makes people
// members by their user ids (POST …/memberships, for platform admins).
//
// Its files are handlers_invitations.go and db_invitations.go. What ties it to the house is what
// `grep -n room:invitations *.go` finds: rows of the route table, a kind of mail with its token, its limits, what goes when
// its sender may no longer invite, and what is found by an address that goes. To take it out, delete the files and those
// lines.

package main

import (
	"cmp"
	"context"
	"time"
)

// invitation is pending; its token is in the mail and nowhere else.
type invitation struct {
	ID        string    `json:"id" is:"uuid"`
	Email     string    `json:"email"`
	Role      string    `json:"role" is:"organization_role"`
	InvitedBy string    `json:"invited_by" is:"uuid"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at"`
}

var (
	errTooManyInvitations = &apiError{Status: 429, Code: "too_many_invitations", Detail: "100 invitations of this organization are pending.", RetryAfter: time.Hour}
	errSignInFirst        = &apiError{Status: 409, Code: "sign_in_first", Detail: "This address has an account: sign in and accept the invitation there."}
	errOtherAddress       = &apiError{Status: 403, Code: "other_address", Detail: "This invitation is for another address than yours."}
)

// grantable lists the roles that an actor manages, of those who may invite at all.
func grantable(actor string) []string {
	roles := []string{}
	for role := range ranks {
		if allow(actor, invitationsWrite) == nil && manages(actor, role) {
			roles = append(roles, role)
		}
	}
	return roles
}

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
	err = s.inOrganization(ctx, c, in.OrganizationID, func(tx db, role string) error {
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
		if err := s.limitInvitation(ctx, tx, in.OrganizationID, in.Email); err != nil { // room:throttling
			return err
		}
		_, err = tx.insertMail(ctx, newMail{kind: mailInvitation, to: in.Email, invitation: &i.ID})
		tx.audit(c, auditEntry{action: "invitation.created", organization: in.OrganizationID, subject: i.ID, detail: map[string]any{"role": in.Role}}) // room:audit
		return err
	})
	s.wakeSender()
	return i, err
}

// limitInvitation counts an invitation's mail, and refuses it where one would be left out: what an organization sends
// takes nothing from what others may send (R42, R108). A refusal is counted nowhere, as tx ends with it.
func (s *server) limitInvitation(ctx context.Context, tx db, organizationID, email string) error { // room:throttling
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
	return none{}, s.inOrganization(ctx, c, in.OrganizationID, func(tx db, role string) error {
		offered, err := tx.deleteInvitation(ctx, in.OrganizationID, in.InvitationID)
		if err != nil {
			return orElse(err, errNotFound)
		}
		if !manages(role, offered) {
			return errForbidden
		}
		tx.audit(c, auditEntry{action: "invitation.deleted", organization: in.OrganizationID, subject: in.InvitationID}) // room:audit
		return nil
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
		if err := firstError(s.proveAddress(ctx, tx, c.user.ID, &c.session), tx.updateVerified(ctx, c.user.ID)); err != nil {
			return err
		}
		if m, err = tx.insertMembershipIfNone(ctx, i.OrganizationID, c.user.ID, i.Role); err != nil {
			return err
		}
		tx.audit(c, auditEntry{action: "invitation.accepted", organization: i.OrganizationID, subject: c.user.ID, detail: map[string]any{"role": m.Role}}) // room:audit
		return nil
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
	hash, err := s.passwords.hash(ctx, c.ip, in.Password)
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
		tx.audit(c, auditEntry{action: "invitation.accepted", organization: i.OrganizationID, subject: u.ID, detail: map[string]any{"role": i.Role}}) // room:audit
		return nil
	})
	if violates(err, "users_email_key") {
		err = errSignInFirst
	}
	if err != nil {
		return tokens{}, err
	}
	return s.issue(session)
}
