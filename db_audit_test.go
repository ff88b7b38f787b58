// room:audit

package main

import (
	"maps"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// auditActions is what each route that changes something writes, besides the session that some start. A refresh writes
// nothing: it changes no more than a counter of the session.
var auditActions = map[string]string{
	"POST /v1/auth/register":                                                 "user.registered",
	"POST /v1/auth/verify-email":                                             "email.verified session.started",
	"POST /v1/auth/token":                                                    "session.started",
	"POST /v1/auth/revoke":                                                   "session.ended",
	"POST /v1/auth/forgot-password":                                          "password.reset_requested",
	"POST /v1/auth/reset-password":                                           "password.reset",
	"POST /v1/auth/confirm-email":                                            "email.changed",
	"POST /v1/auth/accept-invitation":                                        "invitation.accepted session.started",
	"PATCH /v1/users/me":                                                     "user.updated",
	"PUT /v1/users/me/password":                                              "password.changed",
	"POST /v1/users/me/email":                                                "email.change_requested",
	"DELETE /v1/users/me/sessions":                                           "session.others_ended",
	"DELETE /v1/users/me/sessions/{session_id}":                              "session.ended",
	"DELETE /v1/users/me":                                                    "user.deleted",
	"POST /v1/invitations/accept":                                            "invitation.accepted",
	"POST /v1/users":                                                         "user.created",
	"PATCH /v1/users/{user_id}":                                              "user.updated",
	"DELETE /v1/users/{user_id}":                                             "user.deleted",
	"DELETE /v1/users/{user_id}/sessions":                                    "user.sessions_ended",
	"POST /v1/organizations":                                                 "organization.created",
	"PATCH /v1/organizations/{organization_id}":                              "organization.updated",
	"DELETE /v1/organizations/{organization_id}":                             "organization.deleted",
	"POST /v1/organizations/{organization_id}/memberships":                   "membership.created",
	"PATCH /v1/organizations/{organization_id}/memberships/{user_id}":        "membership.updated",
	"DELETE /v1/organizations/{organization_id}/memberships/{user_id}":       "membership.deleted",
	"POST /v1/organizations/{organization_id}/invitations":                   "invitation.created",
	"DELETE /v1/organizations/{organization_id}/invitations/{invitation_id}": "invitation.deleted",
}

// auditDetails are the only keys that details have: none is a secret, a name or an address.
var auditDetails = []string{"role", "from", "disabled", "code", "limit"}

// R43, R79: every route that changes something writes its event in the same transaction: without the event there is no
// change, and without the change no event. A route that is not in auditActions fails the test.
func TestEveryChangeIsAudited(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	s.insertMember("root", "admin") // another one, so that the platform admin may go
	// 57P01 is an outage to the API, 503. The trail breaks when it is written, everything else at commit.
	s.exec(`create function refuse() returns trigger language plpgsql as $$ begin raise exception using errcode = '57P01'; end $$`)
	s.exec(`create trigger refuse before insert on audit_events for each row execute function refuse()`)
	tables := scalar[[]string](s, "select array_agg(table_name::text) from information_schema.tables where table_schema = 'public'")
	tables = slices.DeleteFunc(tables, func(t string) bool { return t == "audit_events" })
	for _, table := range tables {
		s.exec("create constraint trigger refuse after insert or update or delete on " + table +
			" deferrable initially deferred for each row execute function refuse()")
	}
	refuse := func(verb string, tables ...string) {
		s.exec("alter table " + strings.Join(tables, " "+verb+" trigger refuse; alter table ") + " " + verb + " trigger refuse")
	}
	refuse("disable", append(tables, "audit_events")...)
	check := func(s *testServer, name string, q request, status int, want string) {
		t.Helper()
		last, before := newID(), s.dump()
		for _, broken := range [][]string{{"audit_events"}, tables} {
			if want == "" {
				break // a call that writes nothing
			}
			if broken[0] != "audit_events" && strings.HasSuffix(want, ".refused") {
				continue // changes nothing else
			}
			refuse("enable", broken...)
			if a := s.do(q); a.status != 503 || s.dump() != before {
				t.Errorf("%s with %v broken: %d, or something is left", name, broken, a.status)
			}
			refuse("disable", broken...)
		}
		if a := s.do(q); a.status != status {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
		if want == "" && s.dump() != before {
			t.Errorf("%s changed something without an event", name)
		}
		if got := scalar[string](s, "select coalesce(string_agg(action, ' ' order by action), '') from audit_events where id > $1", last); got != want {
			t.Errorf("%s wrote %q, want %q", name, got, want)
		}
	}
	known := maps.Clone(auditActions)
	for _, rt := range s.routes() {
		if strings.HasPrefix(rt.pattern, "GET ") {
			continue
		}
		delete(known, rt.pattern)
		c := s.newCell("owner", "")
		if rt.access == platformAdmin {
			s.exec("update users set role = 'admin' where id = $1", c.me.id)
		}
		s.exec("insert into sessions (id, user_id, expires_at) values ($1, $2, now() + interval '1 day')", newID(), c.other)
		s.exec("update memberships set role = 'admin' where user_id = $1", c.other) // or the change of role would change nothing
		q := matrixRequest(rt, c)
		if rt.pattern == "POST /v1/auth/token" {
			q.body = url.Values{"grant_type": {"password"}, "username": {c.me.email}, "password": {testPassword}}
		}
		if _, known := auditActions[rt.pattern]; !known {
			t.Errorf("%s is not in auditActions", rt.pattern)
		}
		check(s, rt.pattern, q, rt.status, auditActions[rt.pattern])
	}
	for _, pattern := range slices.Sorted(maps.Keys(known)) {
		t.Errorf("%s is in auditActions, but no route", pattern)
	}
	cfg := s.cfg
	cfg.EmailVerification = false
	unverified, _ := startMailServer(t, cfg, nil)
	register := request{method: "POST", path: "/v1/auth/register", body: jsonBody("email", "new@example.com", "password", testPassword, "name", "X")}
	check(unverified, "registering without verification", register, 201, "user.registered")
	s.exec("update users set email_verified = true where email = 'new@example.com'")
	check(s, "registering again", register, 202, "user.registered_again")
	// What was refused, and a copied token, which ends its session.
	c := s.newCell("owner", "")
	for _, name := range []string{c.me.email, "nobody@example.com"} {
		check(s, "a wrong password", request{method: "POST", path: "/v1/auth/token",
			body: url.Values{"grant_type": {"password"}, "username": {name}, "password": {"wrong password"}}}, 400, "sign_in.refused")
	}
	check(s, "a wrong current password", request{method: "PUT", path: "/v1/users/me/password", token: c.me.token,
		body: jsonBody("current_password", "wrong password", "new_password", "a new password 1")}, 422, "password.refused")
	s.refreshWith(s.refreshWith(c.me.refresh).want(200, "").str("refresh_token")).want(200, "")
	check(s, "a copy", request{method: "POST", path: "/v1/auth/token",
		body: url.Values{"grant_type": {"refresh_token"}, "refresh_token": {c.me.refresh}}}, 400, "session.reuse_detected")
	rows, _ := s.behind().Query(t.Context(), "select distinct jsonb_object_keys(detail) from audit_events where detail <> 'null'")
	keys, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(keys) == 0 {
		t.Fatal(keys, err)
	}
	for _, key := range keys {
		if !slices.Contains(auditDetails, key) {
			t.Errorf("details have a member %s", key)
		}
	}
}
