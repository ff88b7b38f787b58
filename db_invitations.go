// room:invitations

package main

import (
	"context"
	"time"
)

// invitationFacts says whether an address belongs to a member, the role that it is invited to, empty for none, and how
// many other addresses are invited.
func (d db) invitationFacts(ctx context.Context, organizationID, email string) (member bool, invited string, pending int, err error) {
	err = d.q.QueryRow(ctx, `
		select exists (select from memberships m join users u on u.id = m.user_id
				where m.organization_id = $1 and u.email = $2),
			coalesce((select role from invitations where organization_id = $1 and email = $2 and expires_at > now()), ''),
			(select count(*) from invitations where organization_id = $1 and email <> $2 and expires_at > now())`,
		organizationID, email).Scan(&member, &invited, &pending)
	return member, invited, pending, err
}

// upsertInvitation renews an invitation of the same address. A token that was mailed before stays good until the next
// mail replaces it.
func (d db) upsertInvitation(ctx context.Context, id, organizationID, email, role, invitedBy string, ttl time.Duration) (invitation, error) {
	return one[invitation](ctx, d, `
		insert into invitations as i (id, organization_id, email, role, invited_by, expires_at)
		values ($1, $2, $3, $4, $5, now() + $6::interval)
		on conflict (organization_id, email) do update
			set role = excluded.role, invited_by = excluded.invited_by, expires_at = excluded.expires_at,
				token_hash = case when i.expires_at > now() then i.token_hash end
		returning id, email, role, invited_by, created_at, expires_at`, id, organizationID, email, role, invitedBy, ttl)
}

func (d db) invitationsByOrganization(ctx context.Context, organizationID string, p pageInput) ([]invitation, error) {
	return many[invitation](ctx, d, `
		select id, email, role, invited_by, created_at, expires_at from invitations
		where organization_id = $1 and expires_at > now() and id < $2 order by id desc limit $3`,
		organizationID, p.before(), p.Limit+1)
}

// deleteInvitation returns the role that it offered; pgx.ErrNoRows when there is none.
func (d db) deleteInvitation(ctx context.Context, organizationID, id string) (role string, err error) {
	err = d.q.QueryRow(ctx, `
		delete from invitations where organization_id = $1 and id = $2 returning role`, organizationID, id).Scan(&role)
	return role, err
}

// deleteInvitationsBy voids what a member invited to and could not invite to any more; allowed are the roles they
// still may give.
func (d db) deleteInvitationsBy(ctx context.Context, organizationID, userID string, allowed []string) error {
	return d.exec(ctx, `
		delete from invitations where organization_id = $1 and invited_by = $2 and role <> all($3)`,
		organizationID, userID, allowed)
}

// deleteAllInvitationsBy voids every invitation in a user's name.
func (d db) deleteAllInvitationsBy(ctx context.Context, userID string) error {
	return d.exec(ctx, `delete from invitations where invited_by = $1`, userID)
}

// takenInvitation is what a token stands for.
type takenInvitation struct {
	OrganizationID string
	Email          string
	Role           string
}

// invitationByToken looks without consuming; pgx.ErrNoRows when the token is void.
func (d db) invitationByToken(ctx context.Context, hash []byte) (takenInvitation, error) {
	return one[takenInvitation](ctx, d, `
		select organization_id, email, role from invitations where token_hash = $1 and expires_at > now()`, hash)
}

func (d db) deleteInvitationByToken(ctx context.Context, hash []byte) (takenInvitation, error) {
	return one[takenInvitation](ctx, d, `
		delete from invitations where token_hash = $1 and expires_at > now()
		returning organization_id, email, role`, hash)
}

// updateInvitationToken makes hash the one live token of the invitation that a mail is for, and tells the mail whose
// names to say; pgx.ErrNoRows when it was withdrawn or accepted meanwhile, has expired, or a newer mail is for it.
func (d db) updateInvitationToken(ctx context.Context, hash []byte, mailID string, data map[string]any) error {
	var organization, inviter string
	err := d.q.QueryRow(ctx, `
		update invitations i set token_hash = $1
		from mails m, organizations o, users u
		where m.id = $2 and m.failed_at is null and i.id = m.invitation_id and i.expires_at > now()
			and o.id = i.organization_id and u.id = i.invited_by
			and not exists (select from mails newer where newer.invitation_id = i.id and newer.created_at > m.created_at)
		returning o.name, u.name`, hash, mailID).Scan(&organization, &inviter)
	data["Organization"], data["Inviter"] = quoted(organization), quoted(inviter)
	return err
}

func (d db) deleteInvitationsTo(ctx context.Context, email string) error {
	return d.exec(ctx, `delete from invitations where email = $1`, email)
}

// updateVerified confirms the address of a user whose mailbox was proved.
func (d db) updateVerified(ctx context.Context, id string) error {
	return d.exec(ctx, `update users set email_verified = true where id = $1 and not email_verified`, id)
}

// invitationsOf lists those by a user, and those to the address if the user proved it (R105).
func (d db) invitationsOf(ctx context.Context, u user) ([]invitation, error) {
	return many[invitation](ctx, d, `
		select id, email, role, invited_by, created_at, expires_at from invitations
		where email = $1 and $3 or invited_by = $2 order by id desc`, u.Email, u.ID, u.EmailVerified)
}
