// room:audit

package main

import (
	"cmp"
	"context"
	"math"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"
)

// auditEntry is one line of the trail. It holds no secret and no personal data: ids and roles only.
type auditEntry struct {
	action       string
	organization string         // id; empty: none
	subject      string         // id of what it happened to; empty: none
	detail       map[string]any // ids and roles
}

// trail is what a transaction has to say, written before it commits: without the entry there is no change, and without the
// change no entry.
type trail struct{ rows [][]any }

// audit adds an entry to the trail of the transaction.
func (d db) audit(c caller, e auditEntry) { d.trail.rows = append(d.trail.rows, e.row(c)) }

// writeTrail is the last step of a transaction that has come this far with err.
func (d db) writeTrail(ctx context.Context, err error) error {
	for _, row := range d.trail.rows {
		if err == nil {
			err = d.insertAuditEvent(ctx, row)
		}
	}
	return err
}

// record writes an entry by itself and returns refusal, for what is refused and changes nothing else.
func (d db) record(ctx context.Context, c caller, e auditEntry, refusal error) error {
	return cmp.Or(d.insertAuditEvent(ctx, e.row(c)), refusal)
}

func (e auditEntry) row(c caller) []any {
	detail, err := json.Marshal(e.detail)
	if err != nil {
		panic(err) // our own types always marshal
	}
	// pgx writes an unknown address as NULL.
	return []any{newID(), e.action, nonEmpty(c.user.ID), nonEmpty(e.organization), nonEmpty(e.subject), c.ip, string(detail)}
}

func (d db) insertAuditEvent(ctx context.Context, row []any) error {
	return d.exec(ctx, `
		insert into audit_events (id, action, actor_id, organization_id, subject_id, ip, detail)
		values ($1, $2, $3, $4, $5, $6, $7)`, row...)
}

// erasedAtOnce is how many events of a user lose their client address with the account; prune does the rest.
const erasedAtOnce = 1000

// beginErasure notes that the client addresses of a user who goes are to leave the trail, and takes the newest at once.
func (d db) beginErasure(ctx context.Context, userID string) error {
	if err := d.exec(ctx, `insert into erasures (user_id) values ($1) on conflict (user_id) do nothing`, userID); err != nil {
		return err
	}
	_, err := d.eraseAddresses(ctx, userID, erasedAtOnce)
	return err
}

// eraseAddresses takes the client addresses out of the newest events that tell of a user's own doing, at most most of
// each kind, and returns how many it took.
func (d db) eraseAddresses(ctx context.Context, userID string, most int) (int64, error) {
	tag, err := d.execTag(ctx, `
		update audit_events set ip = null where id in (
			(select id from audit_events where actor_id = $1 and ip is not null order by id desc limit $2)
			union all
			(select id from audit_events where subject_id = $1 and actor_id is null and ip is not null order by id desc limit $2))`,
		userID, most)
	return tag.RowsAffected(), err
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
	User         user             `json:"user"`
	HasPassword  bool             `json:"has_password"`
	SecondFactor *exportedFactor  `json:"second_factor"` // room:second-factor
	Passkeys     []passkey        `json:"passkeys"`      // room:passkeys
	Sessions     []session        `json:"sessions"`
	Memberships  []userMembership `json:"memberships"` // room:organizations
	Invitations  []invitation     `json:"invitations"` // room:invitations
	Mails        []exportedMail   `json:"mails"`       // room:mail
	AuditEvents  []auditEvent     `json:"audit_events"`
}

// maxExportedEvents bounds the newest events of an export: it is made in memory.
const maxExportedEvents = 10_000

// exportUser reads one snapshot. What is found by the address belongs to whoever proved it (R105).
func (d db) exportUser(ctx context.Context, u user, current string) (e export, err error) {
	e.User = u
	everything := pageInput{Limit: math.MaxInt32}
	return e, d.inTx(ctx, func(tx db) error {
		if _, err := tx.q.Exec(ctx, `set transaction isolation level repeatable read read only`); err != nil {
			return err
		}
		a, err := tx.accountByID(ctx, u.ID)
		if err != nil {
			return orElse(err, errInvalidToken)
		}
		e.HasPassword = a.PasswordHash != ""
		if e.SecondFactor, err = tx.exportSecondFactor(ctx, u.ID); err != nil { // room:second-factor
			return err // room:second-factor
		} // room:second-factor
		if e.Passkeys, err = tx.exportPasskeys(ctx, u.ID); err != nil { // room:passkeys
			return err // room:passkeys
		} // room:passkeys
		if e.Sessions, err = tx.sessionsByUser(ctx, u.ID, current, everything); err != nil {
			return err
		}
		if e.Memberships, err = tx.membershipsByUser(ctx, u.ID, everything); err != nil { // room:organizations
			return err
		}
		if e.Invitations, err = tx.invitationsOf(ctx, u); err != nil { // room:invitations
			return err
		}
		if e.Mails, err = tx.mailsOf(ctx, u); err != nil { // room:mail
			return err
		}
		e.AuditEvents, err = many[auditEvent](ctx, tx, `
			select id, action, actor_id, organization_id, subject_id, detail, created_at,
				case when actor_id is null or actor_id = $1 then host(ip) end as ip -- nobody else's
			from audit_events where actor_id = $1 or subject_id = $1 order by id desc limit $2`, u.ID, maxExportedEvents)
		return err
	})
}
