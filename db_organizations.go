// room:organizations

package main

import (
	"context"
	"slices"

	"github.com/jackc/pgx/v5"
)

const organizationColumns = "id, name, slug, second_factor_required, created_at, updated_at"

// lockOrganization takes the lock of everything inside; pgx.ErrNoRows when there is none.
func (d db) lockOrganization(ctx context.Context, id string) error {
	return d.execOne(ctx, `select id from organizations where id = $1 for no key update`, id)
}

// lockOwnedOrganizations locks, in the order of their ids, the organizations that a user owns.
func (d db) lockOwnedOrganizations(ctx context.Context, userID string) ([]string, error) {
	return manyBy(ctx, d, pgx.RowTo[string], `
		select o.id from organizations o
		where o.id in (select organization_id from memberships where user_id = $1 and role = 'owner')
		order by o.id for no key update`, userID)
}

// stillOwned says whether a locked user owns what was locked before, and asks for another run when it is not so.
func (d db) stillOwned(ctx context.Context, userID string, locked []string) error {
	owned, err := manyBy(ctx, d, pgx.RowTo[string], `
		select organization_id from memberships where user_id = $1 and role = 'owner' order by organization_id`, userID)
	if err == nil && !slices.Equal(locked, owned) {
		err = errMoved
	}
	return err
}

// requireOwners refuses, and names them, when some of the given, locked organizations have no active owner (R74).
func (d db) requireOwners(ctx context.Context, ids []string) error {
	ownerless, err := many[organization](ctx, d, `
		select `+organizationColumns+` from organizations o
		where id = any($1) and not exists (
			select from memberships m join users u on u.id = m.user_id
			where m.organization_id = o.id and m.role = 'owner' and not u.disabled)
		order by id`, ids)
	if err == nil && len(ownerless) > 0 {
		err = lastOwner(ownerless)
	}
	return err
}

// insertOrganization fails on organizations_slug_key.
func (d db) insertOrganization(ctx context.Context, id, name, slug string) (organization, error) {
	return one[organization](ctx, d, `
		insert into organizations (id, name, slug) values ($1, $2, $3)
		returning `+organizationColumns, id, name, slug)
}

func (d db) organizationByID(ctx context.Context, id string) (organization, error) {
	return one[organization](ctx, d, `
		select `+organizationColumns+` from organizations where id = $1`, id)
}

// organizations lists all of them, newest first, one more than the page holds.
func (d db) organizations(ctx context.Context, p pageInput) ([]organization, error) {
	return many[organization](ctx, d, `
		select `+organizationColumns+` from organizations
		where id < $1 order by id desc limit $2`, p.before(), p.Limit+1)
}

// updateOrganization changes what is given; pgx.ErrNoRows when the version is not one of those allowed.
func (d db) updateOrganization(ctx context.Context, in updateOrganizationInput) (organization, error) {
	return one[organization](ctx, d, `
		update organizations set name = coalesce($2, name), slug = coalesce($3, slug),
			second_factor_required = coalesce($4, second_factor_required)
		where id = $1 and ($5::timestamptz[] is null or updated_at = any($5))
		returning `+organizationColumns, in.OrganizationID, in.Name, in.Slug, in.SecondFactorRequired, in.IfMatch)
}

func (d db) deleteOrganization(ctx context.Context, id string, allowed versions) error {
	return d.execOne(ctx, `
		delete from organizations
		where id = $1 and ($2::timestamptz[] is null or updated_at = any($2))`, id, allowed)
}

// roleOf returns the role of an active user, empty for an outsider.
func (d db) roleOf(ctx context.Context, organizationID, userID string) (role string, err error) {
	err = d.q.QueryRow(ctx, `
		select m.role from memberships m join users u on u.id = m.user_id
		where m.organization_id = $1 and m.user_id = $2 and not u.disabled`, organizationID, userID).Scan(&role)
	return role, orElse(err, nil)
}

// membershipRole is roleOf for the subject of a change, who may be disabled; pgx.ErrNoRows for an outsider.
func (d db) membershipRole(ctx context.Context, organizationID, userID string) (role string, err error) {
	err = d.q.QueryRow(ctx, `
		select role from memberships where organization_id = $1 and user_id = $2`, organizationID, userID).Scan(&role)
	return role, err
}

// scanMembership and scanUserMembership read the columns that the statements below return.
func scanMembership(row pgx.CollectableRow) (m membership, err error) {
	err = row.Scan(&m.ID, &m.User.ID, &m.User.Name, &m.User.Email, &m.Role, &m.CreatedAt, &m.UpdatedAt)
	return m, err
}

func scanUserMembership(row pgx.CollectableRow) (m userMembership, err error) {
	o := &m.Organization
	err = row.Scan(&m.ID, &o.ID, &o.Name, &o.Slug, &o.SecondFactorRequired, &o.CreatedAt, &o.UpdatedAt, &m.Role, &m.CreatedAt)
	return m, err
}

// insertMembership fails on memberships_organization_id_user_id_key.
func (d db) insertMembership(ctx context.Context, organizationID, userID, role string) (membership, error) {
	return oneBy(ctx, d, scanMembership, `
		with m as (
			insert into memberships (id, organization_id, user_id, role) values ($1, $2, $3, $4)
			returning id, user_id, role, created_at, updated_at)
		select m.id, u.id, u.name, u.email, m.role, m.created_at, m.updated_at
		from m join users u on u.id = m.user_id`, newID(), organizationID, userID, role)
}

// insertMembershipIfNone leaves a membership that is there as it is, and returns what there is then.
func (d db) insertMembershipIfNone(ctx context.Context, organizationID, userID, role string) (userMembership, error) {
	if _, err := d.q.Exec(ctx, `
		insert into memberships (id, organization_id, user_id, role) values ($1, $2, $3, $4)
		on conflict (organization_id, user_id) do nothing`, newID(), organizationID, userID, role); err != nil {
		return userMembership{}, err
	}
	return oneBy(ctx, d, scanUserMembership, userMemberships+`
		where m.organization_id = $1 and m.user_id = $2`, organizationID, userID)
}

func (d db) updateMembership(ctx context.Context, organizationID, userID, role string, allowed versions) (membership, error) {
	return oneBy(ctx, d, scanMembership, `
		update memberships m set role = $3 from users u
		where m.organization_id = $1 and m.user_id = $2 and u.id = m.user_id
			and ($4::timestamptz[] is null or m.updated_at = any($4))
		returning m.id, u.id, u.name, u.email, m.role, m.created_at, m.updated_at`,
		organizationID, userID, role, allowed)
}

func (d db) deleteMembership(ctx context.Context, organizationID, userID string, allowed versions) error {
	return d.execOne(ctx, `
		delete from memberships where organization_id = $1 and user_id = $2
			and ($3::timestamptz[] is null or updated_at = any($3))`, organizationID, userID, allowed)
}

func (d db) membershipsByOrganization(ctx context.Context, organizationID string, p pageInput) ([]membership, error) {
	return manyBy(ctx, d, scanMembership, `
		select m.id, u.id, u.name, u.email, m.role, m.created_at, m.updated_at
		from memberships m join users u on u.id = m.user_id
		where m.organization_id = $1 and m.id < $2 order by m.id desc limit $3`, organizationID, p.before(), p.Limit+1)
}

const userMemberships = `
		select m.id, o.id, o.name, o.slug, o.second_factor_required, o.created_at, o.updated_at, m.role, m.created_at
		from memberships m join organizations o on o.id = m.organization_id`

func (d db) membershipsByUser(ctx context.Context, userID string, p pageInput) ([]userMembership, error) {
	return manyBy(ctx, d, scanUserMembership, userMemberships+`
		where m.user_id = $1 and m.id < $2 order by m.id desc limit $3`, userID, p.before(), p.Limit+1)
}

// callerIn is callerBySession with the role in an organization.
func (d db) callerIn(organizationID string) func(ctx context.Context, sessionID, userID string) (signedInUser, error) {
	return func(ctx context.Context, sessionID, userID string) (signedInUser, error) {
		r, err := oneBy(ctx, d, scanSignedIn, `
			select `+callerColumns+`coalesce(m.role, ''), coalesce(o.second_factor_required, false)
			from sessions s join users u on u.id = s.user_id
				left join memberships m on m.organization_id = $3 and m.user_id = u.id
				left join organizations o on o.id = m.organization_id
			where s.id = $1 and s.user_id = $2 and s.expires_at > now() and not u.disabled`, sessionID, userID, organizationID)
		return r, orElse(err, errInvalidToken)
	}
}
