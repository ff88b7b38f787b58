// room:audit

// The audit trail, and the export of everything stored about a user. A team without it has no record of who did what, and
// answers a person who asks for their data by hand.
//
// Its files are handlers_audit.go and db_audit.go. What ties it to the house is what `grep -n room:audit *.go` finds: rows
// of the route table, the trail that a transaction writes before it commits, a line wherever something is worth an entry,
// and what pruning and deleting an account take out of it. To take it out, delete the files and those lines.

package main

import (
	"context"
	"time"
)

// auditEvent is one line of the trail: who did what to what, from where.
type auditEvent struct {
	ID             string         `json:"id" is:"uuid"`
	Action         string         `json:"action"`
	ActorID        *string        `json:"actor_id" is:"uuid"`
	OrganizationID *string        `json:"organization_id" is:"uuid"`
	SubjectID      *string        `json:"subject_id" is:"uuid"`
	IP             *string        `json:"ip"`
	Detail         map[string]any `json:"detail"`
	CreatedAt      time.Time      `json:"created_at"`
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

type listOrganizationAuditEventsInput struct { // room:organizations
	organizationInput
	pageInput
	ActorID *string `query:"actor_id" is:"uuid"`
	Action  *string `query:"action" is:"action"`
}

func (s *server) listOrganizationAuditEvents(ctx context.Context, c caller, in listOrganizationAuditEventsInput) (page[auditEvent], error) { // room:organizations
	return s.listAuditEvents(ctx, c, listAuditEventsInput{in.pageInput, in.ActorID, &in.OrganizationID, in.Action})
}

// exportMe is everything stored about the caller, in one document; that it was read is in the trail.
func (s *server) exportMe(ctx context.Context, c caller, _ none) (export, error) {
	if err := s.exporting.enter(ctx, originOf(c.ip)); err != nil {
		return export{}, err
	}
	defer s.exporting.leave()
	if err := s.db.record(ctx, c, auditEntry{action: "user.exported", subject: c.user.ID}, nil); err != nil {
		return export{}, err
	}
	return s.db.exportUser(ctx, c.user, c.session)
}
