package main

import (
	"context"
	"crypto/rand"
	"regexp"
	"strings"
)

// Everything that depends on a role or changes one runs under a lock on the organization's row, and reads the caller's
// role under it: what the request began with may be old (R73).

// inOrganization runs fn with the organization locked and the role of a caller who has the permission.
func (s *server) inOrganization(ctx context.Context, c caller, id string, need access, fn func(tx db, role string) error) error {
	return s.db.inTx(ctx, func(tx db) error {
		if err := tx.lockOrganization(ctx, id); err != nil {
			return orElse(err, errNotFound)
		}
		role, err := tx.roleOf(ctx, id, c.user.ID)
		if err != nil {
			return err
		}
		if err := allow(role, need); err != nil {
			return err
		}
		return fn(tx, role)
	})
}

type createOrganizationInput struct {
	Name string  `json:"name" is:"name"`
	Slug *string `json:"slug" is:"slug"`
}

// createOrganization makes the caller its owner.
func (s *server) createOrganization(ctx context.Context, c caller, in createOrganizationInput) (o organization, err error) {
	slug := slugOf(in.Name)
	if in.Slug != nil {
		slug = *in.Slug
	}
	err = s.db.inTx(ctx, func(tx db) error {
		if _, err := tx.lockActiveUserByEmail(ctx, c.user.Email); err != nil {
			return orElse(err, errInvalidToken)
		}
		if o, err = tx.insertOrganization(ctx, newID(), in.Name, slug); err != nil {
			return err
		}
		if _, err := tx.insertMembership(ctx, o.ID, c.user.ID, "owner"); err != nil {
			return err
		}
		return tx.audit(ctx, c, "organization.created", &o.ID, nil, nil)
	})
	return o, err
}

var notSlug = regexp.MustCompile(`[^a-z0-9]+`)

// slugOf makes a slug that nobody has yet: what the name gives, and a few random letters.
func slugOf(name string) string {
	base := strings.Trim(notSlug.ReplaceAllString(strings.ToLower(name), "-"), "-")
	if len(base) > 30 {
		base = strings.Trim(base[:30], "-")
	}
	return strings.TrimPrefix(base+"-"+strings.ToLower(rand.Text()[:8]), "-")
}

type listOrganizationsInput struct {
	pageInput
	All *bool `query:"all"`
}

// listOrganizations lists the caller's; a platform admin may ask for all.
func (s *server) listOrganizations(ctx context.Context, c caller, in listOrganizationsInput) (page[organization], error) {
	if in.All != nil && *in.All {
		if c.user.Role != "admin" {
			return page[organization]{}, errForbidden
		}
		rows, err := s.db.organizations(ctx, in.pageInput)
		return newPage(rows, in.Limit, func(o organization) string { return o.ID }), err
	}
	rows, err := s.db.membershipsByUser(ctx, c.user.ID, in.pageInput)
	memberships := newPage(rows, in.Limit, func(m userMembership) string { return m.ID })
	organizations := page[organization]{Next: memberships.Next}
	for _, m := range memberships.Items {
		organizations.Items = append(organizations.Items, m.Organization)
	}
	return organizations, err
}

type organizationInput struct {
	OrganizationID string `path:"organization_id" is:"uuid"`
}

func (s *server) readOrganization(ctx context.Context, _ caller, in organizationInput) (organization, error) {
	o, err := s.db.organizationByID(ctx, in.OrganizationID)
	return o, orElse(err, errNotFound)
}

type updateOrganizationInput struct {
	organizationInput
	IfMatch versions `header:"If-Match"`
	Name    *string  `json:"name" is:"name"`
	Slug    *string  `json:"slug" is:"slug"`
}

func (s *server) updateOrganization(ctx context.Context, c caller, in updateOrganizationInput) (o organization, err error) {
	err = s.inOrganization(ctx, c, in.OrganizationID, orgUpdate, func(tx db, _ string) error {
		if o, err = tx.updateOrganization(ctx, in.OrganizationID, in.Name, in.Slug, in.IfMatch); err != nil {
			return orElse(err, errStale)
		}
		if in.Name == nil && in.Slug == nil {
			return nil // nothing has changed
		}
		return tx.audit(ctx, c, "organization.updated", &o.ID, nil, nil)
	})
	return o, err
}

type deleteOrganizationInput struct {
	organizationInput
	IfMatch versions `header:"If-Match"`
}

// deleteOrganization takes everything in it along, at once (R78).
func (s *server) deleteOrganization(ctx context.Context, c caller, in deleteOrganizationInput) (none, error) {
	return none{}, s.inOrganization(ctx, c, in.OrganizationID, orgDelete, func(tx db, _ string) error {
		if err := tx.deleteOrganization(ctx, in.OrganizationID, in.IfMatch); err != nil {
			return orElse(err, errStale)
		}
		return tx.audit(ctx, c, "organization.deleted", &in.OrganizationID, nil, nil)
	})
}

type listMembershipsInput struct {
	organizationInput
	pageInput
}

func (s *server) listMemberships(ctx context.Context, _ caller, in listMembershipsInput) (page[membership], error) {
	rows, err := s.db.membershipsByOrganization(ctx, in.OrganizationID, in.pageInput)
	return newPage(rows, in.Limit, func(m membership) string { return m.ID }), err
}

type createMembershipInput struct {
	organizationInput
	UserID string `json:"user_id" is:"uuid"`
	Role   string `json:"role" is:"organization_role"`
}

// createMembership is for platform admins, who need no role in the organization.
func (s *server) createMembership(ctx context.Context, c caller, in createMembershipInput) (m membership, err error) {
	err = s.db.inTx(ctx, func(tx db) error {
		if err := tx.lockOrganization(ctx, in.OrganizationID); err != nil {
			return orElse(err, errNotFound)
		}
		if err := tx.lockActiveUser(ctx, in.UserID); err != nil {
			return orElse(err, invalid(fieldError{"/user_id", "unknown_user", "is not an active user"}))
		}
		if m, err = tx.insertMembership(ctx, in.OrganizationID, in.UserID, in.Role); err != nil {
			return err
		}
		return tx.audit(ctx, c, "membership.created", &in.OrganizationID, &in.UserID, map[string]any{"role": in.Role})
	})
	return m, err
}

type membershipInput struct {
	organizationInput
	UserID  string   `path:"user_id" is:"uuid"`
	IfMatch versions `header:"If-Match"`
}

type updateMembershipInput struct {
	membershipInput
	Role *string `json:"role" is:"organization_role"`
}

// updateMembership changes a role below the caller's own to another one below it; owners manage owners (R72).
func (s *server) updateMembership(ctx context.Context, c caller, in updateMembershipInput) (m membership, err error) {
	err = s.inOrganization(ctx, c, in.OrganizationID, membershipsWrite, func(tx db, role string) error {
		old, err := tx.membershipRole(ctx, in.OrganizationID, in.UserID)
		if err != nil {
			return orElse(err, errNotFound)
		}
		wanted := old
		if in.Role != nil {
			wanted = *in.Role
		}
		if !manages(role, old) || !manages(role, wanted) {
			return errForbidden
		}
		if wanted == "owner" && old != "owner" {
			// Only an active user counts as an owner; the lock keeps whoever disables them waiting (R74).
			if err := tx.lockActiveUser(ctx, in.UserID); err != nil {
				return orElse(err, invalid(fieldError{"/role", "disabled_user", "cannot be given to a disabled user"}))
			}
		}
		if m, err = tx.updateMembership(ctx, in.OrganizationID, in.UserID, wanted, in.IfMatch); err != nil {
			return orElse(err, in.IfMatch.missing())
		}
		if wanted == old {
			return nil // nothing has changed
		}
		return inOrder(tx.afterRoleChange(ctx, in.OrganizationID, in.UserID, wanted),
			tx.audit(ctx, c, "membership.updated", &in.OrganizationID, &in.UserID, map[string]any{"role": wanted, "from": old}))
	})
	return m, err
}

// deleteMembership removes a member below the caller, or the caller: leaving needs no permission.
func (s *server) deleteMembership(ctx context.Context, c caller, in membershipInput) (none, error) {
	leaving := in.UserID == c.user.ID
	need := membershipsWrite
	if leaving {
		need = membershipsRead
	}
	return none{}, s.inOrganization(ctx, c, in.OrganizationID, need, func(tx db, role string) error {
		old, err := tx.membershipRole(ctx, in.OrganizationID, in.UserID)
		if err != nil {
			return orElse(err, errNotFound)
		}
		if !leaving && !manages(role, old) {
			return errForbidden
		}
		if err := tx.deleteMembership(ctx, in.OrganizationID, in.UserID, in.IfMatch); err != nil {
			return orElse(err, in.IfMatch.missing())
		}
		return inOrder(tx.afterRoleChange(ctx, in.OrganizationID, in.UserID, ""),
			tx.audit(ctx, c, "membership.deleted", &in.OrganizationID, &in.UserID, map[string]any{"role": old}))
	})
}

// afterRoleChange keeps what must hold when a member of a locked organization has a lower role, or none: an active
// owner is left (R74), and invitations that the member could not make any more are void (R76).
func (d db) afterRoleChange(ctx context.Context, organizationID, userID, role string) error {
	if err := d.requireOwners(ctx, []string{organizationID}); err != nil {
		return err
	}
	return d.deleteInvitationsBy(ctx, organizationID, userID, grantable(role))
}

func (s *server) listMyMemberships(ctx context.Context, c caller, in pageInput) (page[userMembership], error) {
	rows, err := s.db.membershipsByUser(ctx, c.user.ID, in)
	return newPage(rows, in.Limit, func(m userMembership) string { return m.ID }), err
}
