package main

import (
	"context"
	"math"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"
)

// audit writes one event of the trail, in the transaction of what it tells of. detail holds no secret and no personal
// data: ids and roles only.
func (d db) audit(ctx context.Context, c caller, action string, organizationID, subjectID *string, detail map[string]any) error {
	b, err := json.Marshal(detail)
	if err != nil {
		return err
	}
	_, err = d.q.Exec(ctx, `
		insert into audit_events (id, action, actor_id, organization_id, subject_id, ip, detail)
		values ($1, $2, $3, $4, $5, $6, $7)`,
		newID(), action, nonEmpty(c.user.ID), organizationID, subjectID, c.ip, string(b)) // pgx writes an unknown address as NULL
	return err
}

// auditEvents lists the trail, newest first, one more than the page holds. The plan depends on which filter is given,
// so it is made for each call.
func (d db) auditEvents(ctx context.Context, in listAuditEventsInput) ([]auditEvent, error) {
	return many[auditEvent](ctx, d, `
		select id, action, actor_id, organization_id, subject_id, host(ip) as ip, detail, created_at
		from audit_events
		where id < $1 and ($2::uuid is null or actor_id = $2) and ($3::uuid is null or organization_id = $3)
			and ($4::text is null or action = $4)
		order by id desc limit $5`,
		pgx.QueryExecModeExec, in.before(), in.ActorID, in.OrganizationID, in.Action, in.Limit+1)
}

// export is everything stored about a user.
type export struct {
	User        user             `json:"user"`
	HasPassword bool             `json:"has_password"`
	Sessions    []session        `json:"sessions"`
	Memberships []userMembership `json:"memberships"`
	Invitations []invitation     `json:"invitations"`
	Mails       []exportedMail   `json:"mails"`
	AuditEvents []auditEvent     `json:"audit_events"`
}

// exportedMail says which mails went to the user, without their texts: those are not stored.
type exportedMail struct {
	Kind      string     `json:"kind"`
	Recipient string     `json:"recipient"`
	CreatedAt time.Time  `json:"created_at"`
	SentAt    *time.Time `json:"sent_at"`
}

// maxExportedEvents bounds the newest events of an export: it is made in memory.
const maxExportedEvents = 10_000

// exportUser reads one snapshot.
func (d db) exportUser(ctx context.Context, u user, current string) (e export, err error) {
	e.User = u
	everything := pageInput{Limit: math.MaxInt32}
	return e, d.inTx(ctx, func(tx db) error {
		if _, err := tx.q.Exec(ctx, `set transaction isolation level repeatable read read only`); err != nil {
			return err
		}
		a, err := tx.accountByEmail(ctx, u.Email)
		if err != nil {
			return orElse(err, errInvalidToken)
		}
		e.HasPassword = a.PasswordHash != ""
		if e.Sessions, err = tx.sessionsByUser(ctx, u.ID, current, everything); err != nil {
			return err
		}
		if e.Memberships, err = tx.membershipsByUser(ctx, u.ID, everything); err != nil {
			return err
		}
		if e.Invitations, err = many[invitation](ctx, tx, `
			select id, email, role, invited_by, created_at, expires_at from invitations
			where email = $1 or invited_by = $2 order by id desc`, u.Email, u.ID); err != nil {
			return err
		}
		if e.Mails, err = many[exportedMail](ctx, tx, `
			select kind, recipient, created_at, sent_at from mails
			where user_id = $1 and kind <> $3 or recipient = $2 order by id desc`,
			u.ID, u.Email, mailChangeEmail); err != nil { // to other addresses they would tell which have an account (R37)
			return err
		}
		e.AuditEvents, err = many[auditEvent](ctx, tx, `
			select id, action, actor_id, organization_id, subject_id, detail, created_at,
				case when actor_id is null or actor_id = $1 then host(ip) end as ip -- nobody else's
			from audit_events where actor_id = $1 or subject_id = $1 order by id desc limit $2`, u.ID, maxExportedEvents)
		return err
	})
}
