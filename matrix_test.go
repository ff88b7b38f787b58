package main

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// cell is what one request of the matrix works on. Everything is its own, so no cell spends what another needs.
type cell struct {
	s          *testServer
	me         member // without a token when nobody is signed in
	session    string // another one of theirs
	subject    member // somebody else, signed in, whose address is not confirmed
	token      string // of every mail to the subject and of the invitation of an address without an account
	invited    string // token of the invitation of me
	id         string // of the organization in question
	other      string // a user who is a member of it
	invitation string // pending in it
}

func (c cell) organization(path string) string { return "/v1/organizations/" + c.id + path }

// address is one that nobody has.
func (c cell) address() string { return "new." + c.token + "@example.net" }

// matrixRoles are the columns: the caller's role in the organization, and in another one; change is what becomes of
// them between two requests.
var matrixRoles = []struct{ name, role, elsewhere, change string }{
	{name: "anonymous"},
	{name: "outsider"},
	{name: "member", role: "member"},
	{name: "admin", role: "admin"},
	{name: "owner", role: "owner"},
	{name: "owner-elsewhere", elsewhere: "owner"},
	{name: "former-member", role: "owner", change: "delete from memberships where user_id = $1"},
	{name: "demoted-admin", role: "admin", change: "update memberships set role = 'member' where user_id = $1"},
	{name: "disabled", role: "owner", change: "update users set disabled = true where id = $1"},
	{name: "platform-admin", change: "update users set role = 'admin' where id = $1"},
}

// matrixRequests says how each route is called so that whoever may call it succeeds.
var matrixRequests = map[string]func(c cell) request{
	"POST /v1/auth/register": func(c cell) request {
		return request{body: jsonBody("email", c.address(), "password", testPassword, "name", "X")}
	},
	"POST /v1/auth/verify-email": func(c cell) request { return request{body: jsonBody("token", "v"+c.token, "password", testPassword)} },
	"POST /v1/auth/token": func(c cell) request {
		return request{body: url.Values{"grant_type": {"refresh_token"}, "refresh_token": {c.subject.refresh}}}
	},
	"POST /v1/auth/revoke":          func(c cell) request { return request{body: url.Values{"token": {c.subject.refresh}}} },
	"POST /v1/auth/forgot-password": func(c cell) request { return request{body: jsonBody("email", c.subject.email)} },
	"POST /v1/auth/reset-password": func(c cell) request {
		return request{body: jsonBody("token", "r"+c.token, "password", "a new password")}
	},
	"POST /v1/auth/confirm-email": func(c cell) request { return request{body: jsonBody("token", "c"+c.token)} },
	"POST /v1/auth/accept-invitation": func(c cell) request {
		return request{body: jsonBody("token", "i"+c.token, "password", "a new password", "name", "X")}
	},

	"GET /v1/users/me":   func(cell) request { return request{} },
	"PATCH /v1/users/me": func(cell) request { return request{body: jsonBody("name", "X")} },
	"PUT /v1/users/me/password": func(cell) request {
		return request{body: jsonBody("current_password", testPassword, "new_password", "a new password")}
	},
	"POST /v1/users/me/email": func(c cell) request {
		return request{body: jsonBody("email", c.address(), "password", testPassword)}
	},
	"GET /v1/users/me/sessions":                 func(cell) request { return request{} },
	"DELETE /v1/users/me/sessions":              func(cell) request { return request{} },
	"DELETE /v1/users/me/sessions/{session_id}": func(c cell) request { return request{path: "/v1/users/me/sessions/" + c.session} },
	"DELETE /v1/users/me":                       func(cell) request { return request{} },
	"GET /v1/users/me/memberships":              func(cell) request { return request{} },
	"GET /v1/users/me/export":                   func(cell) request { return request{} },
	"POST /v1/invitations/accept":               func(c cell) request { return request{body: jsonBody("token", c.invited)} },

	"GET /v1/users": func(cell) request { return request{} },
	"POST /v1/users": func(c cell) request {
		return request{body: jsonBody("email", c.address(), "name", "X", "role", "user")}
	},
	"GET /v1/users/{user_id}": func(c cell) request { return request{path: "/v1/users/" + c.other} },
	"PATCH /v1/users/{user_id}": func(c cell) request {
		return request{path: "/v1/users/" + c.other, body: map[string]any{"disabled": true}}
	},
	"DELETE /v1/users/{user_id}":          func(c cell) request { return request{path: "/v1/users/" + c.other} },
	"DELETE /v1/users/{user_id}/sessions": func(c cell) request { return request{path: "/v1/users/" + c.other + "/sessions"} },
	"GET /v1/audit-events":                func(cell) request { return request{} },

	"POST /v1/organizations":                               func(cell) request { return request{body: jsonBody("name", "X")} },
	"GET /v1/organizations":                                func(cell) request { return request{} },
	"GET /v1/organizations/{organization_id}":              func(c cell) request { return request{path: c.organization("")} },
	"PATCH /v1/organizations/{organization_id}":            func(c cell) request { return request{path: c.organization(""), body: jsonBody("name", "X")} },
	"DELETE /v1/organizations/{organization_id}":           func(c cell) request { return request{path: c.organization("")} },
	"GET /v1/organizations/{organization_id}/memberships":  func(c cell) request { return request{path: c.organization("/memberships")} },
	"GET /v1/organizations/{organization_id}/invitations":  func(c cell) request { return request{path: c.organization("/invitations")} },
	"GET /v1/organizations/{organization_id}/audit-events": func(c cell) request { return request{path: c.organization("/audit-events")} },
	"POST /v1/organizations/{organization_id}/memberships": func(c cell) request {
		return request{path: c.organization("/memberships"), body: jsonBody("user_id", c.subject.id, "role", "member")}
	},
	"PATCH /v1/organizations/{organization_id}/memberships/{user_id}": func(c cell) request {
		return request{path: c.organization("/memberships/" + c.other), body: jsonBody("role", "member")}
	},
	"DELETE /v1/organizations/{organization_id}/memberships/{user_id}": func(c cell) request {
		return request{path: c.organization("/memberships/" + c.other)}
	},
	"POST /v1/organizations/{organization_id}/invitations": func(c cell) request {
		return request{path: c.organization("/invitations"), body: jsonBody("email", c.address(), "role", "member")}
	},
	"DELETE /v1/organizations/{organization_id}/invitations/{invitation_id}": func(c cell) request {
		return request{path: c.organization("/invitations/" + c.invitation)}
	},

	"GET /.well-known/jwks.json":                  func(cell) request { return request{} },
	"GET /.well-known/oauth-authorization-server": func(cell) request { return request{} },
	"GET /openapi.json":                           func(cell) request { return request{} },
	"GET /docs":                                   func(cell) request { return request{} },
	"GET /docs/{file}":                            func(cell) request { return request{path: "/docs/docs.js"} },
	"GET /healthz":                                func(cell) request { return request{} },
	"GET /readyz":                                 func(cell) request { return request{} },
}

// matrixRequest is the request of a route on a cell.
func matrixRequest(rt route, c cell) request {
	q := matrixRequests[rt.pattern](c)
	method, path, _ := strings.Cut(rt.pattern, " ")
	if q.method, q.token = method, c.me.token; q.path == "" {
		q.path = path
	}
	q.header = http.Header{"X-Request-Id": {"same"}}
	return q
}

// newCell fills a cell for a caller who has a role in its organization, and one in another.
func (s *testServer) newCell(role, elsewhere string) cell {
	s.t.Helper()
	c := cell{s: s, id: newID(), token: newID(), invited: newID(), other: newID(), invitation: newID(), session: newID()}
	c.me = s.insertMember("me."+c.token, "user")
	c.subject = s.insertMember("subject."+c.token, "user")
	keeper := newID() // an owner too, so that the caller may always go
	organizations, roles := []string{c.id, newID()}, []string{role, elsewhere}
	var batch pgx.Batch
	batch.Queue(`insert into users (id, email, name, email_verified) select id, id::text || '@example.com', 'X', true from unnest($1::uuid[]) id`, []string{keeper, c.other})
	batch.Queue(`update users set email_verified = false where id = $1`, c.subject.id)
	batch.Queue(`insert into sessions (id, user_id, expires_at) values ($1, $2, now() + interval '1 day')`, c.session, c.me.id)
	batch.Queue(`insert into mail_tokens (token_hash, user_id, purpose, email, expires_at)
		select sha256((left(p, 1) || $2)::bytea), $1, p, $2 || '@example.net', now() + interval '1 hour'
		from unnest(array['reset-password', 'confirm-email']) p`, c.subject.id, c.token)
	batch.Queue(`insert into registrations (id, email, name, password_hash, token_hash, expires_at)
		values ($1, $2 || '@example.org', 'X', $3, sha256(('v' || $2)::bytea), now() + interval '1 hour')`, newID(), c.token, testPasswordHash())
	batch.Queue(`insert into organizations (id, name, slug) select id, 'X', id::text from unnest($1::uuid[]) id`, organizations)
	batch.Queue(`insert into memberships (id, organization_id, user_id, role)
		select gen_random_uuid(), o, $3::uuid, role from unnest($1::uuid[], $2::text[]) x (o, role) where role <> ''
		union all select gen_random_uuid(), o, $4, 'owner' from unnest($1::uuid[]) o
		union all select gen_random_uuid(), $5, $6, 'member'`, organizations, roles, c.me.id, keeper, c.id, c.other)
	batch.Queue(`insert into invitations (id, organization_id, email, role, invited_by, token_hash, expires_at)
		select id, $1, email, 'member', $2, sha256(token::bytea), now() + interval '1 day'
		from unnest($3::uuid[], $4::text[], $5::text[]) x (id, email, token)`, c.id, keeper,
		[]string{c.invitation, newID()}, []string{"invited." + c.token + "@example.net", c.me.email}, []string{"i" + c.token, c.invited})
	if err := s.pool.SendBatch(s.t.Context(), &batch).Close(); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// R70: every route, as everybody. testdata/matrix.txt is the table; a route that this test cannot call fails it.
// R86: with a single connection, so that a handler that holds two never succeeds.
func TestMatrix(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(c *config) { c.DBMaxConns = 1 })
	s.insertMember("root", "admin") // another one, so that the platform admin may go
	var table strings.Builder
	fmt.Fprintf(&table, "%-72s", "")
	for _, column := range matrixRoles {
		fmt.Fprintf(&table, " %s", column.name)
	}
	known := maps.Clone(matrixRequests)
	for _, rt := range s.routes() {
		if known[rt.pattern] == nil {
			t.Errorf("%s is not in the matrix: say in matrixRequests how it is called", rt.pattern)
			continue
		}
		delete(known, rt.pattern)
		fmt.Fprintf(&table, "\n%-72s", rt.pattern)
		open := false
		for _, column := range matrixRoles {
			c := s.newCell(column.role, column.elsewhere)
			if column.change != "" {
				warm := "/v1/users/me"
				if column.role != "" {
					warm = c.organization("")
				}
				s.get(warm, c.me.token).want(200, "") // they were let in, and their token is known
				s.exec(column.change, c.me.id)
			}
			if column.name == "anonymous" {
				c.me.token = ""
			}
			a := s.do(matrixRequest(rt, c))
			open = open || a.status == rt.status
			fmt.Fprintf(&table, " %-*d", len(column.name), a.status)
		}
		if !open {
			t.Errorf("%s succeeds for nobody: its request proves nothing", rt.pattern)
		}
	}
	for _, pattern := range slices.Sorted(maps.Keys(known)) {
		t.Errorf("%s is in the matrix, but no route", pattern)
	}
	var got strings.Builder
	for line := range strings.Lines(table.String()) {
		got.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	if *update {
		if err := os.WriteFile("testdata/matrix.txt", []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/matrix.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("testdata/matrix.txt is not\n%s", got.String())
	}
}

// R71: what belongs to others, and what does not exist, get the same bytes: as an organization, and as a child under
// one's own.
func TestMatrixTellsNothing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	theirs := s.newCell("", "")
	// same sends a request for each id, and wants one 404 of all.
	same := func(rt route, as string, me cell, place func(c *cell, id string), ids ...string) {
		t.Helper()
		var first string
		for _, id := range ids {
			c := me
			place(&c, id)
			a := s.do(matrixRequest(rt, c)).want(404, "not_found")
			a.header.Del("Date")
			if got := fmt.Sprint(a.header, string(a.body)); first == "" {
				first = got
			} else if got != first {
				t.Errorf("%s as %s:\n%s\n%s", rt.pattern, as, first, got)
			}
		}
	}
	before := scalar[string](s, "select concat((select jsonb_agg(m order by id) from memberships m), (select jsonb_agg(i order by id) from invitations i))")
	outsider := s.insertMember("outsider", "user")
	for _, rt := range s.routes() {
		if !strings.Contains(rt.pattern, "{organization_id}") {
			continue
		}
		organization := func(c *cell, id string) { c.id = id }
		outside := theirs
		outside.me = outsider
		same(rt, "outsider", outside, organization, theirs.id, newID(), "x", strings.ToUpper(theirs.id), "%00")
		elsewhere := outside
		elsewhere.me = s.insertMember("elsewhere."+newID(), "user")
		own := newID()
		s.exec(`insert into organizations (id, name, slug) values ($1, 'X', $1::uuid::text)`, own)
		s.join(own, elsewhere.me, "owner")
		same(rt, "owner elsewhere", elsewhere, organization, theirs.id, newID())
		elsewhere.id = own
		if strings.Contains(rt.pattern, "{user_id}") {
			same(rt, "owner of another", elsewhere, func(c *cell, id string) { c.other = id }, theirs.other, newID(), outsider.id, "x")
		}
		if strings.Contains(rt.pattern, "{invitation_id}") {
			same(rt, "owner of another", elsewhere, func(c *cell, id string) { c.invitation = id }, theirs.invitation, newID(), "x")
		}
		s.exec("delete from organizations where id = $1", own)
	}
	if after := scalar[string](s, "select concat((select jsonb_agg(m order by id) from memberships m), (select jsonb_agg(i order by id) from invitations i))"); after != before {
		t.Error("something changed")
	}
}
