// room:organizations

package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// signed gives a member the tokens of a session.
func (s *testServer) signed(m member, session string) member {
	s.t.Helper()
	var err error
	if m.token, err = s.keys.signAccess(newSession{user: user{ID: m.id, Role: "user"}, SessionID: session, Generation: 1}); err != nil {
		s.t.Fatal(err)
	}
	m.refresh = s.keys.signRefresh(session, 1)
	return m
}

// to returns the request of a member to a path in the organization.
func (o team) to(m member, method, path string, body any) request {
	return request{method: method, path: o.path + path, token: m.token, body: body}
}

// roleIn is the role of a member as the database has it, empty for none.
func (s *testServer) roleIn(organization string, m member) string {
	s.t.Helper()
	return scalar[string](s, `select coalesce((select role from memberships where organization_id = $1 and user_id = $2), '')`, organization, m.id)
}

// pages reads a list to its end and returns what of finds in every item.
func (s *testServer) pages(path, token string, limit int, of func(item map[string]any) string) (all []string) {
	s.t.Helper()
	query, join := fmt.Sprint("limit=", limit), "?"
	if strings.Contains(path, "?") {
		join = "&"
	}
	for next := ""; ; {
		a := s.get(path+join+query+next, token).want(200, "")
		items := a.json()["items"].([]any)
		for _, item := range items {
			all = append(all, of(item.(map[string]any)))
		}
		cursor, more := a.json()["next"].(string)
		if more && len(items) != limit || more != strings.Contains(a.header.Get("Link"), cursor+"&") {
			s.t.Errorf("a page of %d, next %q, Link %s", len(items), cursor, a.header.Get("Link"))
		}
		if !more {
			return all
		}
		next = "&after=" + cursor
	}
}

func itemID(item map[string]any) string { return item["id"].(string) }

func memberID(item map[string]any) string { return item["user"].(map[string]any)["id"].(string) }

func TestCreateOrganization(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada := s.insertMember("ada", "user")
	type in = map[string]any
	long := strings.Repeat("a", 40)
	// R17, R25
	for _, tc := range []struct {
		name           string
		body           any
		status         int
		code           string
		pointer, field string
		want           string // slug
	}{
		{"slug given", in{"name": "  Acme\u0301 ", "slug": "acme"}, 201, "", "", "", "^acme$"},
		{"taken", in{"name": "Other", "slug": "acme"}, 409, "slug_taken", "", "", ""},
		{"two characters", in{"name": "x", "slug": "a1"}, 201, "", "", "", "^a1$"},
		{"forty", in{"name": "x", "slug": long}, 201, "", "", "", "^a{40}$"},
		{"derived", in{"name": "Zoë & Söhne GmbH!"}, 201, "", "", "", "^zo-s-hne-gmbh-[a-z2-7]{8}$"},
		{"derived again", in{"name": "Zoë & Söhne GmbH!"}, 201, "", "", "", "^zo-s-hne-gmbh-[a-z2-7]{8}$"},
		{"derived from nothing", in{"name": "日本"}, 201, "", "", "", "^[a-z2-7]{8}$"},
		{"derived from much", in{"name": strings.Repeat("b", 29) + " " + strings.Repeat("b", 70)}, 201, "", "", "", "^b{29}-[a-z2-7]{8}$"},
		{"one character", in{"name": "x", "slug": "a"}, 422, "invalid_fields", "/slug", "invalid_slug", ""},
		{"forty-one", in{"name": "x", "slug": long + "a"}, 422, "invalid_fields", "/slug", "invalid_slug", ""},
		{"empty slug", in{"name": "x", "slug": ""}, 422, "invalid_fields", "/slug", "invalid_slug", ""},
		{"capitals", in{"name": "x", "slug": "Acme2"}, 422, "invalid_fields", "/slug", "invalid_slug", ""},
		{"dash first", in{"name": "x", "slug": "-ab"}, 422, "invalid_fields", "/slug", "invalid_slug", ""},
		{"dash last", in{"name": "x", "slug": "ab-"}, 422, "invalid_fields", "/slug", "invalid_slug", ""},
		{"two dashes", in{"name": "x", "slug": "a--b"}, 422, "invalid_fields", "/slug", "invalid_slug", ""},
		{"line feed", in{"name": "x", "slug": "ab\n"}, 422, "invalid_fields", "/slug", "invalid_slug", ""},
		{"letters of others", in{"name": "x", "slug": "аcme"}, 422, "invalid_fields", "/slug", "invalid_slug", ""},
		{"slug null", `{"name":"x","slug":null}`, 400, "malformed_request", "/slug", "wrong_type", ""},
		{"no name", in{"slug": "ok"}, 422, "invalid_fields", "/name", "required", ""},
		{"blank name", in{"name": " \t "}, 422, "invalid_fields", "/name", "required", ""},
		{"101 points", in{"name": strings.Repeat("é", 101)}, 422, "invalid_fields", "/name", "too_long", ""},
		{"header", in{"name": "x\r\nBcc: eve@example.com"}, 422, "invalid_fields", "/name", "forbidden_character", ""},
		{"NUL", in{"name": "a\x00b"}, 422, "invalid_fields", "/name", "forbidden_character", ""},
		{"override", in{"name": "a\u202eb"}, 422, "invalid_fields", "/name", "forbidden_character", ""},
		{"number", `{"name":5}`, 400, "malformed_request", "/name", "wrong_type", ""},
		{"owner", in{"name": "x", "owner": newID()}, 400, "malformed_request", "/owner", "unknown_field", ""},
		{"id", in{"name": "x", "id": newID()}, 400, "malformed_request", "/id", "unknown_field", ""},
		{"both wrong", in{"name": "", "slug": "-"}, 422, "invalid_fields", "/slug", "invalid_slug", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := s.in(t)
			a := s.post("/v1/organizations", ada.token, tc.body).want(tc.status, tc.code)
			if tc.pointer != "" && a.fields()[tc.pointer] != tc.field {
				t.Errorf("fields: %s", a.body)
			}
			if tc.status != 201 {
				return
			}
			if !regexp.MustCompile(tc.want).MatchString(a.str("slug")) {
				t.Errorf("the slug is %s", a.str("slug"))
			}
			if s.roleIn(a.str("id"), ada) != "owner" {
				t.Error("the caller is not its owner")
			}
			if got := s.get("/v1/organizations/"+a.str("id"), ada.token).want(200, ""); string(got.body) != string(a.body) || got.header.Get("ETag") != a.header.Get("ETag") {
				t.Errorf("created %s, read %s", a.body, got.body)
			}
		})
	}
	if got := scalar[string](s, "select name from organizations where slug = 'acme'"); got != "Acm\u00e9" {
		t.Errorf("not trimmed and composed: %q", got)
	}
	if n := scalar[int](s, "select count(*) from organizations"); n != 7 || n != scalar[int](s, "select count(*) from memberships") ||
		n != scalar[int](s, "select count(*) from audit_events where action = 'organization.created' and actor_id = $1", ada.id) {
		t.Errorf("a refused call left something: %d", n)
	}
	won := together(8, func(int) bool {
		a, err := s.try(request{method: "POST", path: "/v1/organizations", token: ada.token, body: in{"name": "x", "slug": "once"}})
		if err != nil || a.status != 201 && a.code() != "slug_taken" {
			t.Errorf("%v %d", err, a.status)
		}
		return a.status == 201
	})
	if won != 1 {
		t.Errorf("%d have one slug", won)
	}
}

// Keyset pages, newest first, of one's own or, for platform admins, of all (R20).
func TestListOrganizations(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada, eve, root := s.insertMember("ada", "user"), s.insertMember("eve", "user"), s.insertMember("root", "admin")
	var own, all []string
	for i := range 7 {
		id := newID()
		s.exec("insert into organizations (id, name, slug) values ($1, 'x', $2)", id, fmt.Sprint("o-", i))
		all = append([]string{id}, all...)
		if i < 5 {
			s.join(id, ada, "member")
			own = append([]string{id}, own...)
		} else {
			s.join(id, eve, "owner")
		}
	}
	organizationID := func(item map[string]any) string { return itemID(item["organization"].(map[string]any)) }
	for _, tc := range []struct {
		path, token string
		limit       int
		of          func(map[string]any) string
		want        []string
	}{
		{"/v1/organizations", ada.token, 2, itemID, own},
		{"/v1/organizations", ada.token, 5, itemID, own},
		{"/v1/organizations?all=false", ada.token, 100, itemID, own},
		{"/v1/organizations", root.token, 1, itemID, nil},
		{"/v1/organizations?all=true", root.token, 3, itemID, all},
		{"/v1/organizations?all=true", root.token, 7, itemID, all},
		{"/v1/users/me/memberships", ada.token, 2, organizationID, own},
		{"/v1/users/me/memberships", eve.token, 50, organizationID, all[:2]},
		{"/v1/users/me/memberships", root.token, 50, organizationID, nil},
	} {
		if got := s.pages(tc.path, tc.token, tc.limit, tc.of); !slices.Equal(got, tc.want) {
			t.Errorf("%s by %d: %v, want %v", tc.path, tc.limit, got, tc.want)
		}
	}
	if a := s.get("/v1/organizations", root.token); string(a.body) != `{"items":[],"next":null}` {
		t.Errorf("an empty list is %s", a.body)
	}
	cursor := s.get("/v1/organizations?limit=2", ada.token).str("next")
	for _, tc := range []struct {
		path, token string
		status      int
		code        string
	}{
		{"/v1/organizations?all=true", ada.token, 403, "forbidden"},
		{"/v1/organizations?all=maybe", root.token, 400, "malformed_request"},
		{"/v1/organizations?all=", root.token, 400, "malformed_request"},
		{"/v1/organizations?all=true&all=true", root.token, 400, "malformed_request"},
		{"/v1/organizations?user_id=" + ada.id, root.token, 400, "malformed_request"},
		{"/v1/organizations?after=" + cursor, eve.token, 400, "invalid_cursor"},
		{"/v1/organizations?all=true&after=" + cursor, root.token, 400, "invalid_cursor"},
		{"/v1/users/me/memberships?after=" + cursor, ada.token, 400, "invalid_cursor"},
		{"/v1/organizations?after=" + all[0], ada.token, 400, "invalid_cursor"},
		{"/v1/organizations?limit=101", ada.token, 400, "malformed_request"},
	} {
		s.get(tc.path, tc.token).want(tc.status, tc.code)
	}
}

// ETag, If-None-Match and If-Match on organizations and memberships: no lost update.
func TestOrganizationVersions(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o := s.newTeam("acme")
	send := func(q request, header, value string) answer {
		t.Helper()
		q.header = http.Header{header: {value}}
		return s.do(q)
	}
	patch := func(body string) request { return o.to(o.admin, "PATCH", "", body) }
	old := s.get(o.path, o.member.token).want(200, "").header.Get("ETag")
	send(o.to(o.member, "GET", "", nil), "If-None-Match", old).want(304, "")
	now := send(patch(`{"name":"New"}`), "If-Match", old).want(200, "")
	if now.str("name") != "New" || now.str("slug") != "acme" || now.header.Get("ETag") == old {
		t.Errorf("%s", now.body)
	}
	send(patch(`{"slug":"lost"}`), "If-Match", old).want(412, "precondition_failed")
	send(patch(`{"slug":"lost"}`), "If-Match", "W/"+old).want(412, "precondition_failed")
	send(o.to(o.owner, "DELETE", "", nil), "If-Match", old).want(412, "precondition_failed")
	send(o.to(o.member, "GET", "", nil), "If-None-Match", old).want(200, "")
	send(patch(`{"slug":"taken-over"}`), "If-Match", "*").want(200, "")
	s.do(patch(`{}`)).want(200, "")
	s.newTeam("other")
	s.do(patch(`{"slug":"other"}`)).want(409, "slug_taken")
	s.do(patch(`{"slug":"x","name":""}`)).want(422, "invalid_fields")
	s.do(patch(`{"id":"x"}`)).want(400, "malformed_request")
	if a := s.get(o.path, o.admin.token); a.str("slug") != "taken-over" || a.str("name") != "New" {
		t.Errorf("a refused change came through: %s", a.body)
	}
	// What has no versions has none of these.
	id := s.invite(o, o.owner, "guest@example.com", "member").str("id")
	send(o.to(o.owner, "DELETE", "/invitations/"+id, nil), "If-Match", old).want(412, "precondition_failed")
	send(o.to(o.owner, "DELETE", "/invitations/"+id, nil), "If-Match", "*").want(204, "")
	tag := s.get(o.path, o.admin.token).header.Get("ETag")
	won := together(8, func(i int) bool {
		q := patch(fmt.Sprintf(`{"name":"n%d"}`, i))
		q.header = http.Header{"If-Match": {tag}}
		a, err := s.try(q)
		return err == nil && a.status == 200
	})
	if won != 1 {
		t.Errorf("%d changes won", won)
	}

	member := func(method string, body any) request { return o.to(o.owner, method, "/memberships/"+o.member.id, body) }
	first := s.do(member("PATCH", role("admin"))).want(200, "").header.Get("ETag")
	second := send(member("PATCH", role("member")), "If-Match", first).want(200, "").header.Get("ETag")
	send(member("PATCH", role("owner")), "If-Match", first).want(412, "precondition_failed")
	send(member("DELETE", nil), "If-Match", first).want(412, "precondition_failed")
	if got := s.roleIn(o.id, o.member); got != "member" {
		t.Errorf("the role is %s", got)
	}
	send(member("DELETE", nil), "If-Match", second).want(204, "")
	send(o.to(o.owner, "DELETE", "", nil), "If-Match", s.get(o.path, o.admin.token).header.Get("ETag")).want(204, "")
}

func TestListMemberships(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o, other := s.newTeam("acme"), s.newTeam("other")
	var want []string
	s.exec("delete from memberships where organization_id = $1", o.id)
	for r, m := range o.roles() {
		s.join(o.id, m, r)
		want = append([]string{m.id}, want...)
	}
	for _, limit := range []int{1, 2, 3} {
		if got := s.pages(o.path+"/memberships", o.member.token, limit, memberID); !slices.Equal(got, want) {
			t.Errorf("by %d: %v, want %v", limit, got, want)
		}
	}
	a := s.get(o.path+"/memberships?limit=1", o.member.token)
	item := a.json()["items"].([]any)[0].(map[string]any)
	if u := item["user"].(map[string]any); len(item) != 3 || len(u) != 3 || u["email"] == "" || u["name"] == "" { // R24
		t.Errorf("%s", a.body)
	}
	// R20: a cursor of one organization opens no other.
	s.join(other.id, o.member, "member")
	s.get(other.path+"/memberships?after="+a.str("next"), o.member.token).want(400, "invalid_cursor")
	s.get(o.path+"/memberships?after="+a.str("next"), o.owner.token).want(400, "invalid_cursor")
	s.get(o.path+"/memberships?role=owner", o.owner.token).want(400, "malformed_request")
}

// manageable is R72, written down once more: the roles that an actor may give, change and take.
var manageable = map[string][]string{"owner": {"owner", "admin", "member"}, "admin": {"member"}, "member": {}}

// R72: every actor, on every role, to every role; by PATCH, DELETE and invitation.
func TestOrganizationRoles(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o := s.newTeam("acme")
	target := s.insertMember("target", "user")
	allowed := func(status int, actor string, roles ...string) (int, string) {
		for _, r := range roles {
			if !slices.Contains(manageable[actor], r) {
				return 403, "forbidden"
			}
		}
		return status, ""
	}
	for actor, m := range o.roles() {
		for old := range manageable {
			for new := range manageable {
				s.join(o.id, target, old)
				status, code := allowed(200, actor, old, new)
				a := s.do(o.to(m, "PATCH", "/memberships/"+target.id, role(new)))
				if a.status != status || a.code() != code {
					t.Errorf("%s makes %s %s: %d %s", actor, old, new, a.status, a.body)
				}
				if got, want := s.roleIn(o.id, target), map[int]string{200: new, 403: old}[status]; got != want {
					t.Errorf("%s makes %s %s: it is %s", actor, old, new, got)
				}
			}
			status, code := allowed(204, actor, old)
			if a := s.do(o.to(m, "DELETE", "/memberships/"+target.id, nil)); a.status != status || a.code() != code {
				t.Errorf("%s removes %s: %d %s", actor, old, a.status, a.body)
			}
			if got, want := s.roleIn(o.id, target), map[int]string{204: "", 403: old}[status]; got != want {
				t.Errorf("%s removes %s: it is %q", actor, old, got)
			}
			status, code = allowed(201, actor, old)
			a := s.do(o.to(m, "POST", "/invitations", jsonBody("email", actor+old+"@example.org", "role", old)))
			if a.status != status || a.code() != code {
				t.Errorf("%s invites %s: %d %s", actor, old, a.status, a.body)
			}
		}
	}
	// Nobody raises themselves; an owner may step down, anybody may leave.
	s.join(o.id, target, "owner")
	for _, tc := range []struct {
		as     member
		role   string
		status int
	}{
		{o.member, "member", 403}, {o.member, "admin", 403}, {o.member, "owner", 403},
		{o.admin, "owner", 403}, {o.admin, "admin", 403}, {o.admin, "member", 403},
		{o.owner, "owner", 200}, {o.owner, "admin", 200}, {o.owner, "owner", 403},
	} {
		if a := s.do(o.to(tc.as, "PATCH", "/memberships/"+tc.as.id, role(tc.role))); a.status != tc.status {
			t.Errorf("%s to %s: %d %s", tc.as.email, tc.role, a.status, a.body)
		}
	}
	for _, m := range o.roles() {
		s.do(o.to(m, "DELETE", "/memberships/"+m.id, nil)).want(204, "")
		s.do(o.to(m, "DELETE", "/memberships/"+m.id, nil)).want(404, "not_found")
	}
}

func TestMembershipInput(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o, other, root := s.newTeam("acme"), s.newTeam("other"), s.insertMember("root", "admin")
	disabled := s.insertMember("disabled", "user")
	s.exec("update users set disabled = true where id = $1", disabled.id)
	type in = map[string]any
	for _, tc := range []struct {
		name         string
		as           member
		method, path string
		body         any
		status       int
		code         string
	}{
		{"platform admin", root, "POST", "", in{"user_id": other.member.id, "role": "admin"}, 201, ""},
		{"twice", root, "POST", "", in{"user_id": other.member.id, "role": "member"}, 409, "already_member"},
		{"oneself", root, "POST", "", in{"user_id": root.id, "role": "owner"}, 201, ""},
		{"unknown user", root, "POST", "", in{"user_id": newID(), "role": "member"}, 422, "invalid_fields"},
		{"disabled user", root, "POST", "", in{"user_id": disabled.id, "role": "owner"}, 422, "invalid_fields"},
		{"no id", root, "POST", "", in{"user_id": "me", "role": "member"}, 422, "invalid_fields"},
		{"id in capitals", root, "POST", "", in{"user_id": strings.ToUpper(other.owner.id), "role": "member"}, 422, "invalid_fields"},
		{"unknown role", root, "POST", "", in{"user_id": other.owner.id, "role": "root"}, 422, "invalid_fields"},
		{"empty role", root, "POST", "", in{"user_id": other.owner.id, "role": ""}, 422, "invalid_fields"},
		{"no role", root, "POST", "", in{"user_id": other.owner.id}, 422, "invalid_fields"},
		{"owner", o.owner, "POST", "", in{"user_id": other.owner.id, "role": "member"}, 403, "forbidden"},
		{"outsider", other.owner, "POST", "", in{"user_id": other.owner.id, "role": "owner"}, 404, "not_found"},
		{"role in capitals", o.owner, "PATCH", "/" + o.member.id, role("Owner"), 422, "invalid_fields"},
		{"unknown role", o.owner, "PATCH", "/" + o.member.id, role("root"), 422, "invalid_fields"},
		{"role null", o.owner, "PATCH", "/" + o.member.id, `{"role":null}`, 400, "malformed_request"},
		{"user_id", o.owner, "PATCH", "/" + o.member.id, in{"role": "admin", "user_id": o.owner.id}, 400, "malformed_request"},
		{"me", o.owner, "PATCH", "/me", role("admin"), 404, "not_found"},
		{"member of another", o.owner, "PATCH", "/" + other.owner.id, role("member"), 404, "not_found"}, // R71
		{"member of another", o.owner, "DELETE", "/" + other.owner.id, nil, 404, "not_found"},
		{"unknown user", o.owner, "PATCH", "/" + newID(), role("member"), 404, "not_found"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s.in(t).do(o.to(tc.as, tc.method, "/memberships"+tc.path, tc.body)).want(tc.status, tc.code)
		})
	}
	s.do(team{path: "/v1/organizations/" + newID()}.to(root, "POST", "/memberships", in{"user_id": other.member.id, "role": "member"})).want(404, "not_found")
	won := together(8, func(int) bool {
		a, err := s.try(o.to(root, "POST", "/memberships", jsonBody("user_id", other.admin.id, "role", "member")))
		if err != nil || a.status != 201 && a.code() != "already_member" {
			t.Errorf("%v %d", err, a.status)
		}
		return a.status == 201
	})
	if won != 1 {
		t.Errorf("%d made one membership", won)
	}
	if s.roleIn(other.id, other.owner) != "owner" || s.roleIn(o.id, o.member) != "member" {
		t.Error("a refused call changed a role")
	}
	// A disabled member can be lowered and removed, and becomes no owner (R74).
	s.join(o.id, disabled, "member")
	s.do(o.to(o.owner, "PATCH", "/memberships/"+disabled.id, role("owner"))).want(422, "invalid_fields")
	s.do(o.to(o.owner, "PATCH", "/memberships/"+disabled.id, role("admin"))).want(200, "")
	s.do(o.to(o.owner, "DELETE", "/memberships/"+disabled.id, nil)).want(204, "")
}

// R74: the last active owner stays, whichever way they go; a disabled one does not count.
func TestLastOwnerStays(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o, second := s.newTeam("acme"), s.newTeam("second")
	root, disabled := s.insertMember("root", "admin"), s.insertMember("disabled", "user")
	s.exec("update users set disabled = true where id = $1", disabled.id)
	s.join(o.id, disabled, "owner")
	s.exec("insert into organizations (id, name, slug) values ($1, 'X', 'ownerless')", newID()) // what others lack stops nobody here
	s.join(second.id, o.owner, "owner")
	s.exec("delete from memberships where organization_id = $1 and user_id = $2", second.id, second.owner.id)
	self := "/memberships/" + o.owner.id
	for _, tc := range []struct {
		name          string
		q             request
		organizations []string
	}{
		{"step down", o.to(o.owner, "PATCH", self, role("admin")), []string{o.id}},
		{"step far down", o.to(o.owner, "PATCH", self, role("member")), []string{o.id}},
		{"leave", o.to(o.owner, "DELETE", self, nil), []string{o.id}},
		{"delete the account", deleteAccount(o.owner), []string{o.id, second.id}},
		{"be disabled", request{method: "PATCH", path: "/v1/users/" + o.owner.id, token: root.token, body: `{"disabled":true}`}, []string{o.id, second.id}},
		{"be deleted", request{method: "DELETE", path: "/v1/users/" + o.owner.id, token: root.token}, []string{o.id, second.id}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := s.in(t)
			a := s.do(tc.q).want(409, "last_owner")
			var got []string
			for _, item := range a.json()["organizations"].([]any) {
				got = append(got, itemID(item.(map[string]any)))
			}
			if !slices.Equal(got, tc.organizations) {
				t.Errorf("%s", a.body)
			}
			if s.roleIn(o.id, o.owner) != "owner" || s.roleIn(second.id, o.owner) != "owner" {
				t.Error("the owner is gone")
			}
			s.get("/v1/users/me", o.owner.token).want(200, "")
		})
	}
	// With another active owner each of them goes.
	s.do(o.to(o.owner, "PATCH", "/memberships/"+disabled.id, role("member"))).want(200, "")
	s.do(o.to(root, "POST", "/memberships", jsonBody("user_id", root.id, "role", "owner"))).want(201, "")
	s.do(o.to(o.owner, "PATCH", self, role("member"))).want(200, "")
	s.do(o.to(root, "PATCH", self, role("owner"))).want(200, "")
	s.do(o.to(o.owner, "DELETE", self, nil)).want(204, "")
	s.do(o.to(root, "DELETE", "/memberships/"+root.id, nil)).want(409, "last_owner")
	a := s.do(deleteAccount(o.owner)).want(409, "last_owner")
	if len(a.json()["organizations"].([]any)) != 1 {
		t.Errorf("%s", a.body)
	}
	s.do(request{method: "DELETE", path: second.path, token: o.owner.token}).want(204, "")
	s.do(deleteAccount(o.owner)).want(204, "")
}

// R50, R78: what one replica took, the other refuses on the next request.
func TestMembershipEndsAtOnce(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := s.newReplica()
	for i, tc := range []struct {
		name string
		take func(o team) request
		left int // of the former admin's rights: the status of GET
	}{
		{"removed", func(o team) request { return o.to(o.owner, "DELETE", "/memberships/"+o.admin.id, nil) }, 404},
		{"left", func(o team) request { return o.to(o.admin, "DELETE", "/memberships/"+o.admin.id, nil) }, 404},
		{"demoted", func(o team) request { return o.to(o.owner, "PATCH", "/memberships/"+o.admin.id, role("member")) }, 200},
		{"organization deleted", func(o team) request { return o.to(o.owner, "DELETE", "", nil) }, 404},
	} {
		o := s.newTeam(fmt.Sprint("o-", i))
		for _, r := range []*testServer{s, other} {
			r.do(o.to(o.admin, "PATCH", "", `{}`)).want(200, "")
		}
		s.do(tc.take(o))
		for _, r := range []*testServer{other, s} {
			if a := r.get(o.path, o.admin.token); a.status != tc.left {
				t.Errorf("%s: GET %d", tc.name, a.status)
			}
			if a := r.do(o.to(o.admin, "PATCH", "", `{}`)); a.status != map[int]int{200: 403, 404: 404}[tc.left] {
				t.Errorf("%s: PATCH %d", tc.name, a.status)
			}
		}
		if tc.name == "organization deleted" {
			other.get(o.path+"/memberships", o.owner.token).want(404, "not_found")
			if n := scalar[int](s, "select count(*) from memberships where organization_id = $1", o.id); n != 0 {
				t.Errorf("%d memberships are left", n)
			}
		}
	}
}

// The account goes with everything personal; the audit trail stays, without an address.
func TestDeleteMe(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	token := s.register("ada@example.com", testPassword, 1)
	tokens := s.verify(token, testPassword).want(200, "")
	ada := member{email: "ada@example.com", token: tokens.str("access_token"), refresh: tokens.str("refresh_token")}
	ada.id = s.get("/v1/users/me", ada.token).str("id")
	s.signInAs(ada.email, "not the password").want(400, "invalid_grant")
	o := s.newTeam("acme")
	s.join(o.id, ada, "admin")
	s.do(o.to(ada, "POST", "/invitations", jsonBody("email", "bob@example.com", "role", "member"))).want(201, "")
	s.waitMail("bob@example.com", 1)
	s.post("/v1/auth/forgot-password", "", map[string]string{"email": ada.email}).want(202, "")
	s.waitMail(ada.email, 2)
	remove := func() answer {
		t.Helper()
		return s.do(deleteAccount(ada))
	}
	s.exec("update sessions set created_at = created_at - interval '16 minutes' where user_id = $1", ada.id)
	remove().want(403, "recent_sign_in_required")
	ada.token = s.refreshWith(ada.refresh).want(200, "").str("access_token")
	remove().want(403, "recent_sign_in_required") // a refresh is not a sign-in
	s.exec("update sessions set created_at = now() - interval '14 minutes' where user_id = $1", ada.id)
	stale := deleteAccount(ada)
	stale.header = http.Header{"If-Match": {`"zzzz"`}}
	if a := s.do(stale); a.status != 412 {
		t.Errorf("If-Match of another version: %d", a.status)
	}
	if scalar[int](s, "select count(*) from users where id = $1", ada.id) == 1 {
		remove().want(204, "")
	}
	s.get("/v1/users/me", ada.token).want(401, "invalid_access_token")
	s.signInAs(ada.email, testPassword).want(400, "invalid_grant")
	rows, _ := s.pool.Query(t.Context(), "select table_name::text from information_schema.tables where table_schema = 'public'")
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(tables) < 7 {
		t.Fatal(tables, err)
	}
	for _, table := range tables {
		if n := scalar[int](s, `select count(*) from `+table+` x where x::text like '%ada@example.com%'`); n != 0 {
			t.Errorf("%d rows of %s hold the address", n, table)
		}
		if n := scalar[int](s, `select count(*) from `+table+` x where x::text like '%'||$1||'%'`, ada.id); n != 0 && table != "audit_events" && table != "erasures" { // ids alone, the latter until pruning
			t.Errorf("%d rows of %s are left", n, table)
		}
	}
	if n := scalar[int](s, "select count(*) from audit_events where actor_id = $1", ada.id); n < 3 {
		t.Errorf("%d events are left", n)
	}
	rows, _ = s.pool.Query(t.Context(), "select action from audit_events where ip is not null and (actor_id = $1 or actor_id is null and subject_id = $1)", ada.id)
	if actions, err := pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || len(actions) > 0 {
		t.Errorf("these still have the client's address: %v %v", actions, err)
	}
	if _, err := s.db.prune(t.Context(), s.cfg); err != nil || scalar[int](s, "select count(*) from erasures") != 0 {
		t.Error("the erasure is not forgotten:", err)
	}
}

// The platform keeps an active admin, also when two delete themselves at once.
func TestDeleteMeLastAdmin(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.waitAtCommit()
	root, second, disabled := s.insertMember("root", "admin"), s.insertMember("second", "admin"), s.insertMember("disabled", "admin")
	s.exec("update users set disabled = true where id = $1", disabled.id)
	answers := s.standoff(s.hold("user.deleted"), deleteAccount(root), deleteAccount(second))
	answers[0].want(204, "")
	answers[1].want(409, "last_admin")
	s.do(deleteAccount(second)).want(409, "last_admin")
	s.get("/v1/users/me", second.token).want(200, "")
}

// change is a call that leaves an event.
type change struct {
	q      request
	action string
}

// changes are the calls on a team, in an order in which each succeeds; root is a platform admin, invitation makes one
// for an address, whose id is also its token.
func (o team) changes(root member, invitation func(email string) string) []change {
	other := "/memberships/" + o.member.id
	return []change{
		{request{method: "POST", path: "/v1/organizations", token: o.outsider.token, body: `{"name":"New"}`}, "organization.created"},
		{o.to(o.admin, "PATCH", "", `{"name":"Renamed"}`), "organization.updated"},
		{o.to(o.owner, "PATCH", other, role("owner")), "membership.updated"},
		{o.to(o.admin, "POST", "/invitations", jsonBody("email", "new@example.com", "role", "member")), "invitation.created"},
		{o.to(o.owner, "DELETE", "/invitations/"+invitation("x@example.com"), nil), "invitation.deleted"},
		{o.to(o.owner, "DELETE", other, nil), "membership.deleted"},
		{o.to(root, "POST", "/memberships", jsonBody("user_id", root.id, "role", "admin")), "membership.created"},
		{accept(o.outsider, invitation(o.outsider.email)), "invitation.accepted"},
		{acceptAsNew(invitation("y@example.com"), testPassword), "invitation.accepted"},
		{deleteAccount(o.admin), "user.deleted"},
		{o.to(o.owner, "DELETE", "", nil), "organization.deleted"},
	}
}

// newInvitation inserts one whose token is its id.
func (s *testServer) newInvitation(o team, email string) (id string) {
	s.t.Helper()
	id = newID()
	s.exec(`insert into invitations (id, organization_id, email, role, invited_by, token_hash, expires_at)
		values ($1, $2, $3, 'member', $4, $5, now() + interval '1 day')`, id, o.id, email, o.owner.id, hashMailToken(id))
	return id
}

// state is all that a change may touch, but the audit trail.
func (s *testServer) state() string {
	s.t.Helper()
	return scalar[string](s, `select concat((select jsonb_agg(o order by id) from organizations o), (select jsonb_agg(m order by id) from memberships m),
		(select jsonb_agg(i order by id) from invitations i), (select jsonb_agg(u order by id) from users u), (select count(*) from mails),
		(select count(*) from sessions))`)
}

// Every change writes one event, in its own transaction: without the event there is no change, and a refused change
// leaves none.
func TestOrganizationAudit(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o, root := s.newTeam("acme"), s.insertMember("root", "admin")
	changes := o.changes(root, func(email string) string { return s.newInvitation(o, email) })
	events := func() int {
		return scalar[int](s, "select count(*) from audit_events where action not like 'session.%'")
	}
	self := "/memberships/" + o.owner.id
	stale := o.to(o.admin, "PATCH", "", `{"name":"Lost"}`)
	stale.header = http.Header{"If-Match": {`"1"`}}
	before := s.state()
	for _, q := range []request{
		stale, o.to(o.owner, "DELETE", self, nil), o.to(o.owner, "PATCH", self, role("member")), o.to(o.admin, "PATCH", self, role("member")),
		o.to(o.owner, "DELETE", "/memberships/"+newID(), nil), o.to(o.owner, "DELETE", "/invitations/"+newID(), nil), o.to(o.admin, "DELETE", "", nil),
		o.to(o.owner, "POST", "/invitations", jsonBody("email", o.member.email, "role", "member")),
		o.to(root, "POST", "/memberships", jsonBody("user_id", o.member.id, "role", "member")),
		{method: "POST", path: "/v1/organizations", token: o.owner.token, body: `{"name":"x","slug":"acme"}`},
		deleteAccount(o.owner), accept(o.owner, "x"), acceptAsNew("x", testPassword),
	} {
		if a := s.do(q); a.status < 400 || events() != 0 || s.state() != before {
			t.Errorf("%s %s: %d left something", q.method, q.path, a.status)
		}
	}
	// A trail that cannot be written: 57P01 is an outage to the API, 503.
	s.exec(`create function refuse() returns trigger language plpgsql as $$ begin raise exception using errcode = '57P01'; end $$`)
	s.exec(`create trigger refuse before insert on audit_events for each row execute function refuse()`)
	for _, c := range changes {
		if a := s.do(c.q); a.status != 503 || s.state() != before {
			t.Errorf("%s without its event: %d", c.action, a.status)
		}
	}
	s.exec(`drop trigger refuse on audit_events`)
	names := []string{o.id, "acme", o.owner.id, "owner", o.admin.id, "admin", o.member.id, "member", o.outsider.id, "outsider", root.id, "root"}
	for i, c := range changes {
		a := s.do(c.q)
		if a.status >= 300 {
			t.Fatalf("%s: %d %s", c.action, a.status, a.body)
		}
		if got := scalar[string](s, "select action from audit_events order by id desc limit 1"); got != c.action || events() != i+1 {
			t.Errorf("%s wrote %s", c.action, got)
		}
		if c.action == "organization.created" || c.action == "invitation.created" {
			names = append(names, a.str("id"), "new")
		}
		if c.action == "invitation.deleted" {
			names = append(names, c.q.path[strings.LastIndex(c.q.path, "/")+1:], "withdrawn")
		}
	}
	names = append(names, scalar[string](s, "select id from users where email = 'y@example.com'"), "y")
	// Who did it, in which organization, to what.
	const want = `organization.created outsider new -
organization.updated admin acme -
membership.updated owner acme member
invitation.created admin acme new
invitation.deleted owner acme withdrawn
membership.deleted owner acme member
membership.created root acme root
invitation.accepted outsider acme outsider
invitation.accepted y acme y
user.deleted admin - admin
organization.deleted owner acme -`
	trail := scalar[string](s, `select string_agg(concat_ws(' ', action, coalesce(actor_id::text, '-'), coalesce(organization_id::text, '-'),
		coalesce(subject_id::text, '-')), E'\n' order by id) from audit_events where action not like 'session.%'`)
	if got := strings.NewReplacer(names...).Replace(trail); got != want {
		t.Errorf("the trail is\n%s\nwant\n%s", got, want)
	}
	if got := scalar[string](s, "select concat(detail->>'from', ' ', detail->>'role', ' ', host(ip)) from audit_events where action = 'membership.updated'"); got != "member owner 127.0.0.1" {
		t.Errorf("the event says %q", got)
	}
}

// R82: a change that PostgreSQL undid to break a deadlock is made again, once; one that it always undoes is a 503.
func TestOrganizationRetries(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o, root := s.newTeam("acme"), s.insertMember("root", "admin")
	changes := o.changes(root, func(email string) string { return s.newInvitation(o, email) })
	s.exec(`create sequence attempts`)
	s.exec(`create function deadlock() returns trigger language plpgsql as $$ begin
		if nextval('attempts') > 0 then raise exception using errcode = '40P01'; end if; return coalesce(new, old); end $$`)
	for _, table := range []string{"organizations", "memberships", "invitations", "users", "audit_events"} {
		s.exec(`create trigger deadlock before insert or update or delete on ` + table + ` for each row execute function deadlock()`)
	}
	before := s.state()
	for _, c := range changes {
		if a := s.do(c.q).want(503, "database_unavailable"); s.state() != before || a.header.Get("Retry-After") == "" {
			t.Errorf("%s left something", c.action)
		}
	}
	s.exec(`create or replace function deadlock() returns trigger language plpgsql as $$ begin
		if nextval('attempts') = 1 then raise exception using errcode = '40P01'; end if; return coalesce(new, old); end $$`)
	for _, c := range changes {
		s.exec("alter sequence attempts restart")
		if a := s.do(c.q); a.status >= 300 || scalar[int](s, "select last_value from attempts") < 2 {
			t.Fatalf("%s: %d %s", c.action, a.status, a.body)
		}
	}
	if n := scalar[int](s, "select count(*) from audit_events where action not like 'session.%'"); n != len(changes) {
		t.Errorf("%d events of %d changes", n, len(changes))
	}
}

// The tests of the guards against races arrange them instead of hoping for them: a change waits where it is decided
// but not committed, until the one against it has been tried.

// ownerless lists the organizations without an active owner: R74 says none.
func (s *testServer) ownerless() (slugs []string) {
	s.t.Helper()
	rows, _ := s.pool.Query(s.t.Context(), `select slug from organizations o where not exists (select from memberships m join users u on u.id = m.user_id
		where m.organization_id = o.id and m.role = 'owner' and not u.disabled)`)
	slugs, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		s.t.Fatal(err)
	}
	return slugs
}

// ownerActions are what two owners can do to each other, or a platform admin to one of them, at once; held is the event
// of each.
var ownerActions = []struct {
	name, held string
	request    func(organization string, me, other, root member) request
}{
	{"demote", "membership.updated", func(o string, me, other, _ member) request {
		return request{method: "PATCH", path: "/v1/organizations/" + o + "/memberships/" + other.id, token: me.token, body: role("member")}
	}},
	{"remove", "membership.deleted", func(o string, me, other, _ member) request {
		return request{method: "DELETE", path: "/v1/organizations/" + o + "/memberships/" + other.id, token: me.token}
	}},
	{"step down", "membership.updated", func(o string, me, _, _ member) request {
		return request{method: "PATCH", path: "/v1/organizations/" + o + "/memberships/" + me.id, token: me.token, body: role("admin")}
	}},
	{"leave", "membership.deleted", func(o string, me, _, _ member) request {
		return request{method: "DELETE", path: "/v1/organizations/" + o + "/memberships/" + me.id, token: me.token}
	}},
	{"delete account", "user.deleted", func(_ string, me, _, _ member) request { return deleteAccount(me) }},
	{"be disabled", "user.updated", func(_ string, me, _, root member) request {
		return request{method: "PATCH", path: "/v1/users/" + me.id, token: root.token, body: `{"disabled":true}`}
	}},
	{"be deleted", "user.deleted", func(_ string, me, _, root member) request {
		return request{method: "DELETE", path: "/v1/users/" + me.id, token: root.token}
	}},
}

// R73, R74: whatever two owners do to each other at once, whoever comes second is told what has become of them.
func TestOwnersAtOnce(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.waitAtCommit()
	root := s.insertMember("root", "admin")
	// The first action is a line, the second a column, in the order of ownerActions.
	want := [][]int{
		{403, 403, 403, 204, 204, 200, 204},
		{404, 404, 404, 404, 204, 200, 204},
		{200, 204, 409, 409, 409, 409, 409},
		{404, 404, 409, 409, 409, 409, 409},
		{404, 404, 409, 409, 409, 409, 409},
		{200, 204, 409, 409, 409, 409, 409},
		{404, 404, 409, 409, 409, 409, 409},
	}
	pairs := s.newPairs(len(want) * len(want))
	for i, first := range ownerActions {
		for j, second := range ownerActions {
			p := pairs[i*len(want)+j]
			answers := s.standoff(s.hold(first.held), first.request(p.organization, p.owners[0], p.owners[1], root),
				second.request(p.organization, p.owners[1], p.owners[0], root))
			if answers[0].status >= 300 || answers[1].status != want[i][j] {
				t.Errorf("%s, then %s: %d, then %d %s, want %d", first.name, second.name, answers[0].status, answers[1].status, answers[1].body, want[i][j])
			}
		}
	}
	if left := s.ownerless(); len(left) > 0 {
		t.Errorf("without an active owner: %v", left)
	}
}

// R73: the caller's role counts when the change is made, not when the request began.
func TestOrganizationRoleUnderLock(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o := s.newTeam("acme")
	invitation := newID()
	s.exec(`insert into invitations (id, organization_id, email, role, invited_by, expires_at)
		values ($1, $2, 'x@example.com', 'member', $3, now() + interval '1 day')`, invitation, o.id, o.owner.id)
	for _, q := range []request{
		o.to(o.admin, "PATCH", "", `{"name":"Lost"}`), o.to(o.admin, "PATCH", "/memberships/"+o.member.id, role("member")),
		o.to(o.admin, "DELETE", "/memberships/"+o.member.id, nil), o.to(o.admin, "DELETE", "/invitations/"+invitation, nil),
		o.to(o.admin, "POST", "/invitations", jsonBody("email", "y@example.com", "role", "member")), o.to(o.admin, "DELETE", "", nil),
	} {
		for change, status := range map[string]int{"update memberships set role = 'member' where user_id =": 403, "delete from memberships where user_id =": 404,
			"update users set disabled = true where id =": 404} {
			s.exec("update users set disabled = false")
			s.join(o.id, o.admin, "owner")
			release := s.inTransaction(`select from organizations where id = '` + o.id + `' for no key update; ` + change + ` '` + o.admin.id + `'`)
			if a := s.standoff(release, q)[0]; a.status != status {
				t.Errorf("%s %s after %q: %d %s", q.method, q.path, change, a.status, a.body)
			}
		}
	}
}

// R73: whoever is disabled while their call waits for the organization has no role in it any more.
func TestDisabledUnderLock(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o := s.newTeam("acme")
	release := s.inTransaction(`select from organizations where id = '` + o.id + `' for no key update; update users set disabled = true where id = '` + o.owner.id + `'`)
	s.standoff(release, o.to(o.owner, "DELETE", "/memberships/"+o.member.id, nil))[0].want(404, "not_found")
	if s.roleIn(o.id, o.member) != "member" {
		t.Error("the member is gone")
	}
}

// R74: while somebody is being disabled nobody makes them an owner, or a member.
func TestOwnerIsBeingDisabled(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o, root := s.newTeam("acme"), s.insertMember("root", "admin")
	s.exec(`insert into invitations (id, organization_id, email, role, invited_by, token_hash, expires_at)
		values ($1, $2, $3, 'owner', $4, $5, now() + interval '1 day')`, newID(), o.id, o.outsider.email, o.owner.id, hashMailToken("token"))
	for _, tc := range []struct {
		name     string
		disabled member
		q        request
		status   int
		code     string
	}{
		{"promoted", o.member, o.to(o.owner, "PATCH", "/memberships/"+o.member.id, role("owner")), 422, "invalid_fields"},
		{"made a member", o.outsider, o.to(root, "POST", "/memberships", jsonBody("user_id", o.outsider.id, "role", "owner")), 422, "invalid_fields"},
		{"accepts", o.outsider, request{method: "POST", path: "/v1/invitations/accept", token: o.outsider.token, body: `{"token":"token"}`}, 401, "invalid_access_token"},
		{"founds", o.outsider, request{method: "POST", path: "/v1/organizations", token: o.outsider.token, body: `{"name":"x"}`}, 401, "invalid_access_token"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := s.in(t)
			s.exec("update users set disabled = false")
			s.standoff(s.inTransaction(`update users set disabled = true where id = '`+tc.disabled.id+`'`), tc.q)[0].want(tc.status, tc.code)
		})
	}
	if scalar[int](s, "select count(*) from memberships") != 3 || scalar[int](s, "select count(*) from invitations") != 1 {
		t.Error("a refused call left something")
	}
}

// R74, R82: somebody who becomes an owner while deleting their account locks that organization too.
func TestDeleteMeWhileBecomingOwner(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.waitAtCommit()
	o := s.newTeam("acme")
	release := s.hold("user.deleted")
	promote := s.inTransaction(`select from organizations where id = '` + o.id + `' for no key update; select from users where id = '` + o.member.id +
		`' for no key update; update memberships set role = 'owner' where user_id = '` + o.member.id + `'`)
	answers := s.standoff(func() {
		promote()
		s.until(func() bool {
			return scalar[int](s, `select count(*) from pg_locks where locktype = 'advisory' and not granted
				and database = (select oid from pg_database where datname = current_database())`) == 1
		})
		leave := s.standoff(release, o.to(o.owner, "DELETE", "/memberships/"+o.owner.id, nil))
		leave[0].want(409, "last_owner")
	}, deleteAccount(o.member))
	answers[0].want(204, "")
	if left := s.ownerless(); len(left) > 0 {
		t.Errorf("without an active owner: %v", left)
	}
}

// A member, or an admin who invites, may delete their account at any moment: the other call says 404, never more.
func TestMembershipOfDeletedUser(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.waitAtCommit()
	for i, q := range []func(o team) request{
		func(o team) request { return o.to(o.owner, "PATCH", "/memberships/"+o.admin.id, role("member")) },
		func(o team) request { return o.to(o.owner, "DELETE", "/memberships/"+o.admin.id, nil) },
		func(o team) request {
			return o.to(o.admin, "POST", "/invitations", jsonBody("email", "x@example.com", "role", "member"))
		},
	} {
		o := s.newTeam(fmt.Sprint("o-", i))
		request := q(o)
		answers := s.standoff(s.hold("user.deleted"), deleteAccount(o.admin), request)
		answers[0].want(204, "")
		if a := answers[1]; a.status != 404 && a.status != 401 {
			t.Errorf("%s %s: %d %s", request.method, request.path, a.status, a.body)
		}
	}
}

// pair is two owners of an organization, and of a second one.
type pair struct {
	organization string
	owners       [2]member
}

func (s *testServer) newPairs(n int) []pair {
	s.t.Helper()
	pairs := make([]pair, n)
	var organizations, users, sessions []string
	for i := range pairs {
		organizations = append(organizations, newID(), newID())
		pairs[i].organization = organizations[2*i+i%2] // sometimes the first in the order of locks, sometimes not
		for j := range pairs[i].owners {
			users, sessions = append(users, newID()), append(sessions, newID())
			pairs[i].owners[j] = s.signed(member{id: users[2*i+j]}, sessions[2*i+j])
		}
	}
	s.exec(`insert into users (id, email, name, email_verified) select id, id::text || '@example.com', 'Owner', true from unnest($1::uuid[]) id`, users)
	s.exec(`insert into sessions (id, user_id, confirmed, expires_at) select s, u, true, now() + interval '1 day' from unnest($1::uuid[], $2::uuid[]) as x (s, u)`, sessions, users)
	s.exec(`insert into organizations (id, name, slug) select id, 'x', id::text from unnest($1::uuid[]) id`, organizations)
	s.exec(`insert into memberships (id, organization_id, user_id, role)
		select gen_random_uuid(), o, u, 'owner' from unnest($1::uuid[]) with ordinality as x (o, i) join unnest($2::uuid[]) with ordinality as y (u, j)
		on (i - 1) / 2 = (j - 1) / 2`, organizations, users)
	return pairs
}

// raceOwners lets two owners, each at a replica, do everything to each other at once, rounds times each.
func (s *testServer) raceOwners(replicas [2]*testServer, rounds int) {
	s.t.Helper()
	root := s.insertMember("root", "admin")
	n := len(ownerActions)
	for i, p := range s.newPairs(rounds * n * n) {
		a, b := ownerActions[i%n], ownerActions[i/n%n]
		requests := [2]request{a.request(p.organization, p.owners[0], p.owners[1], root), b.request(p.organization, p.owners[1], p.owners[0], root)}
		won := together(2, func(i int) bool {
			answer, err := replicas[i].try(requests[i])
			if err != nil || !slices.Contains([]int{200, 204, 401, 403, 404, 409, 412}, answer.status) {
				s.t.Errorf("%s against %s: %v %d %s", a.name, b.name, err, answer.status, answer.body)
			}
			return answer.status < 300
		})
		if won == 0 {
			s.t.Errorf("%s against %s: both were refused", a.name, b.name)
		}
	}
	if left := s.ownerless(); len(left) > 0 {
		s.t.Errorf("without an active owner: %v", left)
	}
}

func TestOwnersRaceOnReplicas(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.raceOwners([2]*testServer{s, s.newReplica()}, 2)
}

// More than two hundred rounds over two real processes; the test's own replica only signs the tokens.
func TestOwnersRaceOnProcesses(t *testing.T) {
	t.Parallel()
	env := serveEnv(newTestDatabase(t))
	cfg := testConfig(env["DATABASE_URL"])
	cfg.SecretKeys = env["SECRET_KEYS"]
	cfg.secrets, _ = decodeSecrets(cfg.SecretKeys)
	s := startTestServer(t, cfg, newMailbox())
	a, b := s.in(t), s.in(t)
	a.url, b.url = startServe(t, env).url, startServe(t, env).url
	s.raceOwners([2]*testServer{a, b}, 5)
}

// recorder is a tracer that keeps the statements of a pool.
type recorder struct {
	limits
	mu      sync.Mutex
	queries []pgx.TraceQueryStartData
}

func (r *recorder) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queries = append(r.queries, data)
	return ctx
}

// take returns the statements since the last time.
func (r *recorder) take() []pgx.TraceQueryStartData {
	r.mu.Lock()
	defer r.mu.Unlock()
	taken := r.queries
	r.queries = nil
	return taken
}

// recorded is a replica whose statements are kept.
func (s *testServer) recorded() (*testServer, *recorder) {
	s.t.Helper()
	pc, err := poolConfig(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	r := &recorder{limits: limits{acquireTimeout}}
	pc.ConnConfig.Tracer = r
	pool, err := pgxpool.NewWithConfig(s.t.Context(), pc)
	if err != nil {
		s.t.Fatal(err)
	}
	replica := s.in(s.t)
	if replica.server, err = newServer(s.cfg, pool, s.log); err != nil {
		s.t.Fatal(err)
	}
	replica.passwords = s.passwords
	listening := httptest.NewServer(replica.handler())
	replica.url = listening.URL
	s.t.Cleanup(func() { listening.Close(); pool.Close() })
	return replica, r
}

// planNode is what EXPLAIN says of one step.
type planNode struct {
	Type     string     `json:"Node Type"`
	Relation string     `json:"Relation Name"`
	Rows     float64    `json:"Actual Rows"`
	Hit      int        `json:"Shared Hit Blocks"`
	Read     int        `json:"Shared Read Blocks"`
	Plans    []planNode `json:"Plans"`
}

// each visits a step and those below it.
func (n planNode) each(visit func(planNode)) {
	visit(n)
	for _, below := range n.Plans {
		below.each(visit)
	}
}

// explain returns the plan of a statement as it ran (generic false), or as PostgreSQL keeps it for any arguments.
func (s *testServer) explain(q pgx.TraceQueryStartData, generic bool) planNode {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), s.cfg.DatabaseURL)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var text string
	if !generic {
		err = conn.QueryRow(s.t.Context(), "explain (analyze, buffers, format json) "+q.SQL, q.Args...).Scan(&text)
	} else if _, err = conn.Exec(s.t.Context(), "set plan_cache_mode = force_generic_plan; prepare q as "+q.SQL); err == nil {
		var holes []string
		for i := range q.Args {
			holes = append(holes, fmt.Sprint("$", i+1))
		}
		args := append([]any{pgx.QueryExecModeSimpleProtocol}, q.Args...)
		err = conn.QueryRow(s.t.Context(), "explain (format json) execute q("+strings.Join(holes, ",")+")", args...).Scan(&text)
	}
	var plans []struct{ Plan planNode }
	if err == nil {
		err = json.Unmarshal([]byte(text), &plans)
	}
	if err != nil {
		s.t.Fatalf("%v\n%s", err, q.SQL)
	}
	return plans[0].Plan
}

// fillOrganizations inserts organizations with members each, one that has large members, and a user who is in large
// of them.
func (s *testServer) fillOrganizations(organizations, members, large int) (o team) {
	s.t.Helper()
	o = s.newTeam("large")
	s.exec(`insert into users (id, email, name, email_verified) select md5('u' || i)::uuid, i || '@example.org', 'x', true from generate_series(0, $1 - 1) i`, organizations)
	s.exec(`insert into organizations (id, name, slug) select md5('o' || i)::uuid, 'x', 'o-' || i from generate_series(0, $1 - 1) i`, organizations)
	insert := `insert into memberships (id, role, organization_id, user_id) select gen_random_uuid(), 'member', `
	s.exec(insert+`md5('o' || i)::uuid, md5('u' || (i * $2 + k) % $1)::uuid from generate_series(0, $1 - 1) i, generate_series(0, $2 - 1) k`, organizations, members)
	s.exec(insert+`$1, md5('u' || i)::uuid from generate_series(0, $2 - 1) i`, o.id, large)
	s.exec(insert+`md5('o' || i)::uuid, $1 from generate_series(0, $2 - 1) i`, o.owner.id, large)
	s.exec(`insert into invitations (id, email, role, expires_at, organization_id, invited_by)
		select gen_random_uuid(), i || '@example.net', 'member', now() + interval '1 day', case when i < $4 then $1 else md5('o' || i)::uuid end, $2
		from generate_series(0, $3 - 1) i`, o.id, o.owner.id, organizations, large)
	s.exec(`analyze`)
	return o
}

// Lists and memberships are read by index only, and a deep page costs what the first one does: with many
// organizations, in a large one, and for somebody who is in many.
func TestOrganizationPlans(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o := s.fillOrganizations(2000, 20, 200)
	root := s.insertMember("root", "admin")
	s, statements := s.recorded()
	tables := regexp.MustCompile(`\b(organizations|memberships|invitations)\b`)
	check := func(name string, q pgx.TraceQueryStartData) {
		t.Helper()
		for _, generic := range []bool{false, true} {
			if generic || strings.HasPrefix(strings.TrimSpace(q.SQL), "select") {
				s.explain(q, generic).each(func(n planNode) {
					if n.Type == "Seq Scan" && tables.MatchString(n.Relation) || n.Type == "Sort" && n.Rows > 100 {
						t.Errorf("%s: %s %s, generic %v\n%s", name, n.Type, n.Relation, generic, q.SQL)
					}
				})
			}
		}
	}
	last := func() (q pgx.TraceQueryStartData) { // the list itself: the caller was looked up before it
		t.Helper()
		for _, q = range statements.take() {
			check("a list", q)
		}
		return q
	}
	blocks := func(q pgx.TraceQueryStartData) int {
		n := s.explain(q, false)
		return n.Hit + n.Read
	}
	for _, list := range []struct{ path, token string }{
		{"/v1/organizations?limit=20", o.owner.token}, {"/v1/organizations?all=true&limit=100", root.token}, {"/v1/users/me/memberships?limit=20", o.owner.token},
		{o.path + "/memberships?limit=20", o.member.token}, {o.path + "/invitations?limit=20", o.admin.token},
	} {
		t.Run(list.path, func(t *testing.T) {
			s := s.in(t)
			page := s.get(list.path, list.token).want(200, "")
			first := blocks(last())
			for pages := 1; ; pages++ {
				next, _ := page.json()["next"].(string)
				if next == "" {
					if pages < 10 {
						t.Errorf("only %d pages", pages)
					}
					break
				}
				statements.take()
				page = s.get(list.path+"&after="+next, list.token).want(200, "")
			}
			if deep := blocks(last()); deep > first+first/5 {
				t.Errorf("the first page reads %d blocks, the last %d", first, deep)
			}
		})
	}
	invitation := scalar[string](s, "select id from invitations where organization_id = $1 limit 1", o.id)
	statements.take()
	for _, q := range []request{
		o.to(o.member, "GET", "", nil), o.to(o.admin, "PATCH", "", `{"name":"x"}`), o.to(o.owner, "PATCH", "/memberships/"+o.member.id, role("owner")),
		o.to(o.owner, "DELETE", "/memberships/"+o.member.id, nil), o.to(o.owner, "POST", "/invitations", jsonBody("email", "1@example.net", "role", "admin")),
		o.to(o.owner, "DELETE", "/invitations/"+invitation, nil), {method: "POST", path: "/v1/organizations", token: o.outsider.token, body: `{"name":"x"}`},
		deleteAccount(o.member), o.to(o.owner, "DELETE", "", nil),
	} {
		s.do(q)
		for _, statement := range statements.take() {
			if tables.MatchString(statement.SQL) {
				check(q.method+" "+q.path, statement)
			}
		}
	}
}
