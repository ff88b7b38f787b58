// room:organizations

// Organizations, their members and roles. A team without them loses memberships, and the invitations that are made of
// them; accounts, sign-in and sessions stay as they are.
//
// Its files are handlers_organizations.go and db_organizations.go. What ties it to the house is what
// `grep -n room:organizations *.go` finds: rows of the route table, the caller's role in the organization of the path
// (auth.go), and what must hold before a user goes or is disabled: an organization keeps an active owner. To take it out,
// delete the files and those lines; the tables stay until a migration drops them.

package main

import (
	"context"
	"crypto/rand"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Members of the organization in the path whose role has this permission.
const (
	orgRead          access = "org:read"
	orgUpdate        access = "org:update"
	orgDelete        access = "org:delete"
	membershipsRead  access = "memberships:read"
	membershipsWrite access = "memberships:write"
	invitationsWrite access = "invitations:write"
	auditRead        access = "audit:read"
)

// permissions is what each role may do in its organization.
var permissions = map[string][]access{
	"member": {orgRead, membershipsRead},
	"admin":  {orgRead, membershipsRead, orgUpdate, membershipsWrite, invitationsWrite, auditRead},
	"owner":  {orgRead, membershipsRead, orgUpdate, membershipsWrite, invitationsWrite, auditRead, orgDelete},
}

// ranks orders the roles; whoever has none ranks below all.
var ranks = map[string]int{"member": 1, "admin": 2, "owner": 3}

// allow says whether a role in an organization has a permission. To outsiders the organization does not exist.
func allow(role string, need access) error {
	switch {
	case role == "":
		return errNotFound
	case !slices.Contains(permissions[role], need):
		return errForbidden
	}
	return nil
}

// allowMember is allow for a session, which an organization may want to have passed a second factor. Whoever has none may
// still leave.
func (s *server) allowMember(r *http.Request, c caller, found signedInUser, need access) error {
	leaving := r.Method == http.MethodDelete && r.PathValue("user_id") == c.user.ID
	if found.secondFactorRequired && acrOf(c.amr) != aal2 && !leaving {
		return errSecondFactor
	}
	return allow(found.role, need)
}

// manages says whether an actor may give, change or take a role: it must be strictly below their own, except that
// owners manage owners (R72).
func manages(actor, role string) bool { return actor == "owner" || ranks[actor] > ranks[role] }

// organization is a team.
type organization struct {
	ID                   string    `json:"id" is:"uuid"`
	Name                 string    `json:"name"`
	Slug                 string    `json:"slug"`
	SecondFactorRequired bool      `json:"second_factor_required"`
	CreatedAt            time.Time `json:"created_at"`
	UpdatedAt            time.Time `json:"updated_at"`
}

func (o organization) etag() string { return etag(o.UpdatedAt) }

// membership is a user in an organization, as the organization sees it.
type membership struct {
	ID        string     `json:"-"` // the order of lists
	User      memberUser `json:"user"`
	Role      string     `json:"role" is:"organization_role"`
	CreatedAt time.Time  `json:"created_at"`
	UpdatedAt time.Time  `json:"-"`
}

func (m membership) etag() string { return etag(m.UpdatedAt) }

type memberUser struct {
	ID    string `json:"id" is:"uuid"`
	Name  string `json:"name"`
	Email string `json:"email"`
}

// userMembership is a user in an organization, as the user sees it.
type userMembership struct {
	ID           string       `json:"-"`
	Organization organization `json:"organization"`
	Role         string       `json:"role" is:"organization_role"`
	CreatedAt    time.Time    `json:"created_at"`
}

var (
	errSlugTaken     = &apiError{Status: 409, Code: "slug_taken", Detail: "Another organization has this slug."}
	errAlreadyMember = &apiError{Status: 409, Code: "already_member", Detail: "This user is a member already."}
	errLastOwner     = &apiError{Status: 409, Code: "last_owner", Detail: "An organization needs an active owner; give these another one first, or delete them."}
)

// lastOwner names the organizations that would be left without an active owner.
func lastOwner(organizations []organization) error {
	e := *errLastOwner
	e.Organizations = organizations
	return &e
}

// Everything that depends on a role or changes one runs under a lock on the organization's row, and reads the caller's
// role under it: what the request began with may be old (R73).

// inOrganization runs fn with the organization locked and the role that the caller has then, if it still gives the
// permission that the route asks for.
func (s *server) inOrganization(ctx context.Context, c caller, id string, fn func(tx db, role string) error) error {
	return s.db.inTx(ctx, func(tx db) error {
		if err := tx.lockOrganization(ctx, id); err != nil {
			return orElse(err, errNotFound)
		}
		role, err := tx.roleOf(ctx, id, c.user.ID)
		if err != nil {
			return err
		}
		if err := allow(role, c.need); err != nil {
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
		if err := tx.lockActiveUser(ctx, c.user.ID); err != nil {
			return orElse(err, errInvalidToken)
		}
		if o, err = tx.insertOrganization(ctx, newID(), in.Name, slug); err != nil {
			return err
		}
		if _, err := tx.insertMembership(ctx, o.ID, c.user.ID, "owner"); err != nil {
			return err
		}
		tx.audit(c, auditEntry{action: "organization.created", organization: o.ID}) // room:audit
		return nil
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
	IfMatch              versions `header:"If-Match"`
	Name                 *string  `json:"name" is:"name"`
	Slug                 *string  `json:"slug" is:"slug"`
	SecondFactorRequired *bool    `json:"second_factor_required"`
}

// updateOrganization changes name and slug. What is asked of the members' sessions is an owner's to say, in a session that
// would pass: nobody locks themselves out.
func (s *server) updateOrganization(ctx context.Context, c caller, in updateOrganizationInput) (o organization, err error) {
	err = s.inOrganization(ctx, c, in.OrganizationID, func(tx db, role string) error {
		switch {
		case in.SecondFactorRequired == nil:
		case role != "owner":
			return errForbidden
		case acrOf(c.amr) != aal2:
			return errSecondFactor
		}
		if o, err = tx.updateOrganization(ctx, in); err != nil {
			return orElse(err, errStale)
		}
		if in.Name == nil && in.Slug == nil && in.SecondFactorRequired == nil {
			return nil // nothing has changed
		}
		tx.audit(c, auditEntry{action: "organization.updated", organization: o.ID}) // room:audit
		return nil
	})
	return o, err
}

type deleteOrganizationInput struct {
	organizationInput
	IfMatch versions `header:"If-Match"`
}

// deleteOrganization takes everything in it along, at once (R78).
func (s *server) deleteOrganization(ctx context.Context, c caller, in deleteOrganizationInput) (none, error) {
	return none{}, s.inOrganization(ctx, c, in.OrganizationID, func(tx db, _ string) error {
		if err := tx.deleteOrganization(ctx, in.OrganizationID, in.IfMatch); err != nil {
			return orElse(err, errStale)
		}
		tx.audit(c, auditEntry{action: "organization.deleted", organization: in.OrganizationID}) // room:audit
		return nil
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

type createMembershipInput struct { // room:administration
	organizationInput
	UserID string `json:"user_id" is:"uuid"`
	Role   string `json:"role" is:"organization_role"`
}

// createMembership is for platform admins, who need no role in the organization.
func (s *server) createMembership(ctx context.Context, c caller, in createMembershipInput) (m membership, err error) { // room:administration
	err = s.asAdmin(ctx, c, func(tx db) error {
		if err := tx.lockOrganization(ctx, in.OrganizationID); err != nil {
			return orElse(err, errNotFound)
		}
		if err := tx.lockActiveUser(ctx, in.UserID); err != nil {
			return orElse(err, invalid(fieldError{"/user_id", "unknown_user", "is not an active user"}))
		}
		if m, err = tx.insertMembership(ctx, in.OrganizationID, in.UserID, in.Role); err != nil {
			return err
		}
		tx.audit(c, auditEntry{action: "membership.created", organization: in.OrganizationID, subject: in.UserID, detail: map[string]any{"role": in.Role}}) // room:audit
		return nil
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
	err = s.inOrganization(ctx, c, in.OrganizationID, func(tx db, role string) error {
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
		tx.audit(c, auditEntry{action: "membership.updated", organization: in.OrganizationID, subject: in.UserID, detail: map[string]any{"role": wanted, "from": old}}) // room:audit
		return tx.afterRoleChange(ctx, in.OrganizationID, in.UserID, wanted)
	})
	return m, err
}

// deleteMembership removes a member below the caller, or the caller: leaving needs no permission.
func (s *server) deleteMembership(ctx context.Context, c caller, in membershipInput) (none, error) {
	leaving := in.UserID == c.user.ID
	return none{}, s.inOrganization(ctx, c, in.OrganizationID, func(tx db, role string) error {
		if err := allow(role, membershipsWrite); err != nil && !leaving {
			return err
		}
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
		tx.audit(c, auditEntry{action: "membership.deleted", organization: in.OrganizationID, subject: in.UserID, detail: map[string]any{"role": old}}) // room:audit
		return tx.afterRoleChange(ctx, in.OrganizationID, in.UserID, "")
	})
}

// afterRoleChange keeps what must hold when a member of a locked organization has a lower role, or none: an active
// owner is left (R74), and invitations that the member could not make any more are void (R76).
func (d db) afterRoleChange(ctx context.Context, organizationID, userID, role string) error {
	return firstError(
		d.requireOwners(ctx, []string{organizationID}),
		d.deleteInvitationsBy(ctx, organizationID, userID, grantable(role)), // room:invitations
	)
}

func (s *server) listMyMemberships(ctx context.Context, c caller, in pageInput) (page[userMembership], error) {
	rows, err := s.db.membershipsByUser(ctx, c.user.ID, in)
	return newPage(rows, in.Limit, func(m userMembership) string { return m.ID }), err
}
