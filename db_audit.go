package main

import (
	"context"

	"github.com/go-json-experiment/json"
)

// audit writes one event of the trail, in the transaction of what it tells of. detail holds no secret and no personal
// data: ids and roles only.
func (d db) audit(ctx context.Context, c caller, action string, organizationID, subjectID *string, detail map[string]any) error {
	b, err := json.Marshal(detail)
	if err != nil {
		return err
	}
	var actor *string
	if c.user.ID != "" {
		actor = &c.user.ID
	}
	_, err = d.q.Exec(ctx, `
		insert into audit_events (id, action, actor_id, organization_id, subject_id, ip, detail)
		values ($1, $2, $3, $4, $5, $6, $7)`, newID(), action, actor, organizationID, subjectID, nullableIP(c.ip), b)
	return err
}
