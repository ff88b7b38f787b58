// room:administration

package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

// The list is newest first; q is the beginning of an address or any part of a name, and only itself (R21).
func TestListUsers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	admin := s.newUser("root@example.com", "admin")
	for _, u := range [][2]string{
		{"ada@example.com", "Ada Lovelace"}, {"adam@example.com", "Zo\u00eb Quick"}, {"percent@example.com", "100% sure"},
		{"x_y@example.com", "Under_score"}, {"xay@example.com", "Under score"}, {"back@example.com", `back\slash`}, {"off@example.com", "Gone Lovelace"},
	} {
		s.bareUser(u[0], u[1], "user")
	}
	s.exec("update users set disabled = true where email = 'off@example.com'")
	for _, tc := range []struct{ query, want string }{
		{"", "off back xay x_y percent adam ada root"},
		{"q=ada", "adam ada"}, {"q=ADA", "adam ada"}, {"q=ada%40", "ada"}, {"q=ADA%40Example.COM", "ada"}, {"q=dam%40", ""}, {"q=example.com", ""},
		{"q=lovelace", "off ada"}, {"q=VELA", "off ada"}, {"q=a+love", "ada"}, {"q=+lovelace+", "off ada"}, {"q=a", "off back adam ada root"},
		{"q=ZOE%CC%88", "adam"}, {"q=zo%C3%AB", "adam"}, {"q=nobody", ""},
		{"q=%25", "percent"}, {"q=0%25+s", "percent"}, {"q=_", "x_y"}, {"q=x_", "x_y"}, {"q=r_s", "x_y"}, {"q=%5C", "back"}, {"q=k%5Cs", "back"}, {"q=%5C%25", ""}, {"q=l%25e", ""},
		{"q='", ""}, {"q=%25'%20or%201=1--", ""},
		{"role=admin", "root"}, {"role=user&q=a", "off back adam ada"}, {"disabled=true", "off"}, {"disabled=false&q=lovelace", "ada"},
		{"role=admin&disabled=true", ""}, {"role=user&disabled=true&q=gone", "off"}, {"limit=1", "off"}, {"limit=2&q=lovelace", "off ada"},
	} {
		a := s.get("/v1/users?"+tc.query, admin.token).want(200, "")
		var got []string
		for _, email := range a.texts("email") {
			got = append(got, strings.TrimSuffix(email, "@example.com"))
		}
		// The name of the admin is "Test admin".
		if fmt.Sprint(got) != fmt.Sprint(strings.Fields(tc.want)) {
			t.Errorf("%s: %v, want %s", tc.query, got, tc.want)
		}
		if strings.Contains(tc.query, "limit") {
			continue
		}
		if all := s.everyPage("/v1/users?"+tc.query, admin.token, "email"); fmt.Sprint(all) != fmt.Sprint(a.texts("email")) {
			t.Errorf("%s in pages: %v", tc.query, all)
		}
	}
	// R20: a cursor belongs to its list, its filters and its caller.
	other := s.newUser("second@example.com", "admin")
	cursor := s.get("/v1/users?limit=1&role=user&q=lovelace", admin.token).want(200, "").str("next")
	s.get("/v1/users?limit=5&q=lovelace&role=user&after="+cursor, admin.token).want(200, "")
	for _, query := range []string{"", "role=user", "q=lovelace", "role=admin&q=lovelace", "role=user&q=Lovelace", "role=user&q=lovelace&disabled=false"} {
		s.get("/v1/users?"+query+"&after="+cursor, admin.token).want(400, "invalid_cursor")
	}
	s.get("/v1/users?role=user&q=lovelace&after="+cursor, other.token).want(400, "invalid_cursor")
	s.get("/v1/audit-events?after="+cursor, admin.token).want(400, "invalid_cursor")
	for _, forged := range []string{"AAAA", "x", admin.id, cursor[:len(cursor)-1] + flipLastBits(cursor), cursor + "A", "'", "%2527"} {
		s.get("/v1/users?role=user&q=lovelace&after="+url.QueryEscape(forged), admin.token).want(400, "invalid_cursor")
	}
	for _, bad := range []string{"q=", "q=+", "q=" + strings.Repeat("a", 101), "q=a%00", "q=%FF", "q=a&q=b", "q=a%E2%80%AEb", "role=root", "role=", "role=Admin", "disabled=1",
		"disabled=", "disabled=TRUE", "limit=0", "limit=101", "limit=x", "offset=1", "email=ada%40example.com", "sort=name"} {
		s.get("/v1/users?"+bad, admin.token).want(400, "malformed_request")
	}
}

// Whoever is no platform admin is refused, whatever the id; to an admin what is not there is one and the same.
func TestAdminRoutes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	admin, m := s.newUser("root@example.com", "admin"), s.newUser("ada@example.com", "user")
	same := http.Header{"X-Request-Id": {"same"}}
	routes := 0
	for _, rt := range s.routes() {
		method, path, _ := strings.Cut(rt.pattern, " ")
		if rt.access != platformAdmin || strings.Contains(path, "{organization_id}") {
			continue
		}
		routes++
		var body any
		if method == "POST" || method == "PATCH" {
			body = map[string]any{}
		}
		bodies := map[string]bool{}
		for _, id := range []string{newID(), "nonsense", "00000000-0000-0000-0000-000000000000", strings.ToUpper(m.id), "%00", m.id} {
			p := strings.ReplaceAll(path, "{user_id}", id)
			s.do(request{method: method, path: p, body: body}).want(401, "unauthorized")
			s.do(request{method: method, path: p, body: body, token: m.token}).want(403, "forbidden")
			if id != m.id && p != path {
				bodies[string(s.do(request{method: method, path: p, body: body, token: admin.token, header: same}).want(404, "not_found").body)] = true
			}
		}
		if len(bodies) > 1 {
			t.Errorf("%s: different answers: %v", rt.pattern, bodies)
		}
	}
	if routes < 7 {
		t.Errorf("%d routes are for platform admins", routes)
	}
	// R50: a promotion and a demotion act on the next request.
	s.patchAs("/v1/users/"+m.id, admin.token, map[string]any{"role": "admin"}).want(200, "")
	s.get("/v1/users", m.token).want(200, "")
	s.patchAs("/v1/users/"+m.id, admin.token, map[string]any{"role": "user"}).want(200, "")
	s.newReplica().get("/v1/users", m.token).want(403, "forbidden")
	s.get("/v1/users/me", m.token).want(200, "")
}

func TestCreateUser(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	admin := s.newUser("root@example.com", "admin")
	create := func(body any) answer { t.Helper(); return s.post("/v1/users", admin.token, body) }
	in := func(email string, more ...string) map[string]string {
		body := map[string]string{"email": email, "name": "Ada", "role": "user"}
		for i := 0; i < len(more); i += 2 {
			body[more[i]] = more[i+1]
		}
		return body
	}
	// With a password the admin answers for the address.
	u := create(in("Ada@Example.com", "password", testPassword, "role", "admin", "name", " Ada ")).want(201, "")
	if u.str("email") != "ada@example.com" || u.str("name") != "Ada" || u.str("role") != "admin" || u.json()["email_verified"] != true || u.json()["disabled"] != false {
		t.Errorf("%s", u.body)
	}
	s.get("/v1/users", s.signInAs("ada@example.com", testPassword).want(200, "").str("access_token")).want(200, "")
	// Without one the owner chooses it, by a mail that proves the mailbox.
	invited := create(in("eve@example.com")).want(201, "")
	if invited.json()["email_verified"] != false {
		t.Errorf("%s", invited.body)
	}
	s.signInAs("eve@example.com", testPassword).want(400, "invalid_grant")
	mail := s.waitMail("eve@example.com", 1)
	if !strings.Contains(mail.Text, "https://app.example/#/reset-password?token="+mail.Token) || strings.Contains(string(invited.body), mail.Token) {
		t.Errorf("%s", mail.Text)
	}
	reset := map[string]string{"token": mail.Token, "password": testPassword}
	s.post("/v1/auth/reset-password", "", reset).want(204, "")
	s.post("/v1/auth/reset-password", "", reset).want(422, "invalid_token")
	s.signInAs("eve@example.com", testPassword).want(200, "")
	if s.get("/v1/users/"+invited.str("id"), admin.token).want(200, "").json()["email_verified"] != true {
		t.Error("the address is not confirmed")
	}
	if n := scalar[int](s, "select count(*) from mails where recipient = 'ada@example.com'"); n != 0 {
		t.Error("who has a password was asked to choose one")
	}

	before := scalar[string](s, "select (select count(*) from users) || ' ' || (select count(*) from audit_events) || ' ' || (select count(*) from mails)")
	for _, email := range []string{"ada@example.com", "EVE@example.com"} {
		create(in(email)).want(409, "email_taken")
		create(in(email, "password", testPassword)).want(409, "email_taken")
	}
	for _, tc := range []struct {
		name    string
		body    any
		status  int
		pointer string
		code    string
	}{
		{"nothing", `{}`, 422, "/email", "required"},
		{"no role", `{"email":"x@example.com","name":"X"}`, 422, "/role", "required"},
		{"role", in("x@example.com", "role", "root"), 422, "/role", "invalid_value"},
		{"email", in("x"), 422, "/email", "invalid_email"},
		{"name", in("x@example.com", "name", " "), 422, "/name", "required"},
		{"short", in("x@example.com", "password", "short"), 422, "/password", "password_too_short"},
		{"long", in("x@example.com", "password", strings.Repeat("x", 257)), 422, "/password", "password_too_long"},
		{"own address", in("someone@example.com", "password", "someone@example.com"), 422, "/password", "password_too_common"},
		{"a password that no form can carry", in("x@example.com", "password", "correct horse\x00battery"), 422, "/password", "forbidden_character"},
		{"null", `{"email":"x@example.com","name":"X","role":"user","password":null}`, 400, "/password", "wrong_type"},
		{"disabled", `{"email":"x@example.com","name":"X","role":"user","disabled":true}`, 400, "/disabled", "unknown_field"},
		{"id", `{"email":"x@example.com","name":"X","role":"user","id":"x"}`, 400, "/id", "unknown_field"},
		{"email_verified", `{"email":"x@example.com","name":"X","role":"user","email_verified":true}`, 400, "/email_verified", "unknown_field"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if a := s.in(t).post("/v1/users", admin.token, tc.body); a.status != tc.status || a.fields()[tc.pointer] != tc.code {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	if after := scalar[string](s, "select (select count(*) from users) || ' ' || (select count(*) from audit_events) || ' ' || (select count(*) from mails)"); after != before {
		t.Errorf("users, events, mails: %s, then %s", before, after)
	}
}

func TestUpdateUser(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	admin, m := s.newUser("root@example.com", "admin"), s.newUser("ada@example.com", "user")
	path := "/v1/users/" + m.id
	read := s.get(path, admin.token).want(200, "")
	tag := read.header.Get("ETag")
	if a := s.do(request{path: path, token: admin.token, header: http.Header{"If-None-Match": {tag}}}); a.status != 304 {
		t.Error(a.status)
	}
	if own := s.get("/v1/users/me", m.token); string(own.body) != string(read.body) || own.header.Get("ETag") != tag {
		t.Errorf("%s\n%s", own.body, read.body)
	}
	named := s.patchAs(path, admin.token, map[string]any{"name": " Ada "}, http.Header{"If-Match": {tag}}).want(200, "")
	if named.str("name") != "Ada" || named.header.Get("ETag") == tag || named.header.Get("ETag") != s.get(path, admin.token).header.Get("ETag") {
		t.Errorf("%v %s", named.header, named.body)
	}
	events := func() int {
		return scalar[int](s, "select count(*) from audit_events where subject_id = $1 and action like 'user.%'", m.id)
	}
	if events() != 1 {
		t.Error(events(), "events")
	}
	// What is refused changes nothing and leaves no row.
	stale := http.Header{"If-Match": {tag}}
	s.patchAs(path, admin.token, map[string]any{"name": "Lost"}, stale).want(412, "precondition_failed")
	s.patchAs(path, admin.token, map[string]any{"disabled": true}, stale).want(412, "precondition_failed")
	s.deleteAs(path, admin.token, stale).want(412, "precondition_failed")
	for body, code := range map[string]string{
		`{"name":""}`: "invalid_fields", `{"role":"root"}`: "invalid_fields", `{"disabled":"true"}`: "malformed_request", `{"disabled":null}`: "malformed_request",
		`{"role":null}`: "malformed_request", `{"email":"eve@example.com"}`: "malformed_request", `{"email_verified":true}`: "malformed_request",
		`{"password":"correct horse battery"}`: "malformed_request", `{"password_hash":"x"}`: "malformed_request", `[]`: "malformed_request", // R25, R79
	} {
		if a := s.patchAs(path, admin.token, body); a.code() != code {
			t.Errorf("%s: %s", body, a.body)
		}
	}
	if events() != 1 || string(s.get(path, admin.token).body) != string(named.body) {
		t.Error("a refused change changed something")
	}
	all := s.patchAs(path, admin.token, map[string]any{"name": "Eve", "role": "admin", "disabled": true}).want(200, "")
	if all.str("name") != "Eve" || all.str("role") != "admin" || all.json()["disabled"] != true || events() != 2 {
		t.Errorf("%s", all.body)
	}
	s.deleteAs(path, admin.token, http.Header{"If-Match": {all.header.Get("ETag")}}).want(204, "")
	s.get(path, admin.token).want(404, "not_found")
	s.deleteAs(path, admin.token).want(404, "not_found")
	s.patchAs(path, admin.token, map[string]any{"name": "Ghost"}, stale).want(404, "not_found")
}

// R50, R58: disabling ends everything that a user could still use, here and on the other replica; enabling brings
// nothing of it back.
func TestDisableUser(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := s.newReplica()
	admin, m, heir := s.newUser("root@example.com", "admin"), s.newUser("ada@example.com", "user"), s.newUser("eve@example.com", "user")
	own := s.post("/v1/organizations", m.token, map[string]string{"name": "Acme"}).want(201, "")
	orgPath := "/v1/organizations/" + own.str("id")
	s.post(orgPath+"/memberships", admin.token, map[string]string{"user_id": heir.id, "role": "owner"}).want(201, "")
	s.post(orgPath+"/invitations", m.token, map[string]string{"email": "new@example.com", "role": "member"}).want(201, "")
	s.post(orgPath+"/invitations", heir.token, map[string]string{"email": "kept@example.com", "role": "member"}).want(201, "")
	invitation := s.waitMail("new@example.com", 1).Token
	s.post("/v1/auth/forgot-password", "", map[string]string{"email": m.email}).want(202, "")
	token := s.waitMail(m.email, 1).Token
	s.exec("insert into mails (id, user_id, kind, recipient, next_attempt_at) values ($1, $2, 'reset_password', 'ada@example.com', now() + interval '1 hour')", newID(), m.id)
	elsewhere := s.signInAs(m.email, testPassword).want(200, "")
	other.get("/v1/users/me", m.token).want(200, "")

	if a := s.patchAs("/v1/users/"+m.id, admin.token, map[string]any{"disabled": true}).want(200, ""); a.json()["disabled"] != true {
		t.Errorf("%s", a.body)
	}
	dead := func() {
		t.Helper()
		for _, replica := range []*testServer{s, other} {
			replica.get("/v1/users/me", m.token).want(401, "invalid_access_token")
			replica.get("/v1/users/me", elsewhere.str("access_token")).want(401, "invalid_access_token")
			replica.refreshWith(m.refresh).want(400, "invalid_grant")
		}
		s.post("/v1/auth/reset-password", "", map[string]string{"token": token, "password": "a new password 1"}).want(422, "invalid_token")
		s.post("/v1/auth/accept-invitation", "", map[string]string{"token": invitation, "password": testPassword, "name": "New"}).want(422, "invalid_token")
		if got := scalar[string](s, `select (select count(*) from sessions where user_id = $1) || ' ' || (select count(*) from mail_tokens where user_id = $1) || ' ' ||
			(select count(*) from mails where user_id = $1 and sent_at is null) || ' ' || (select string_agg(email, ' ') from invitations)`, m.id); got != "0 0 0 kept@example.com" {
			t.Error("sessions, tokens, mails, invitations:", got)
		}
	}
	dead()
	s.signInAs(m.email, testPassword).want(400, "account_disabled")
	s.post("/v1/auth/forgot-password", "", map[string]string{"email": m.email}).want(202, "")
	s.patchAs("/v1/users/"+m.id, admin.token, map[string]any{"disabled": false}).want(200, "")
	dead()
	again := s.signInAs(m.email, testPassword).want(200, "").str("access_token")

	// Ending the sessions alone.
	other.get("/v1/users/me", again).want(200, "")
	s.deleteAs("/v1/users/"+m.id+"/sessions", admin.token).want(204, "")
	other.get("/v1/users/me", again).want(401, "invalid_access_token")
	s.deleteAs("/v1/users/"+m.id+"/sessions", admin.token).want(204, "")
	if n := scalar[int](s, "select count(*) from audit_events where action = 'user.sessions_ended' and subject_id = $1 and actor_id = $2", m.id, admin.id); n != 2 {
		t.Error(n, "events")
	}
	s.get("/v1/users/me", heir.token).want(200, "")
}

// R74: neither disabling nor deleting leaves an organization without an active owner; the answer names which.
func TestAdminMeetsLastOwner(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	admin, m, heir := s.newUser("root@example.com", "admin"), s.newUser("ada@example.com", "user"), s.newUser("eve@example.com", "user")
	first := s.post("/v1/organizations", m.token, map[string]string{"name": "First"}).want(201, "").str("id")
	second := s.post("/v1/organizations", m.token, map[string]string{"name": "Second"}).want(201, "").str("id")
	refused := func(named ...string) {
		t.Helper()
		for _, a := range []answer{s.patchAs("/v1/users/"+m.id, admin.token, map[string]any{"disabled": true}), s.deleteAs("/v1/users/"+m.id, admin.token), s.deleteAs("/v1/users/me", m.token)} {
			var p problem
			if err := json.Unmarshal(a.want(409, "last_owner").body, &p); err != nil || len(p.Organizations) != len(named) {
				t.Fatalf("%v %s", err, a.body)
			}
			for i, o := range p.Organizations {
				if o.Name != named[i] {
					t.Errorf("%s", a.body)
				}
			}
		}
		s.get("/v1/users/me", m.token).want(200, "")
	}
	refused("First", "Second")
	s.post("/v1/organizations/"+first+"/memberships", admin.token, map[string]string{"user_id": heir.id, "role": "owner"}).want(201, "")
	refused("Second")
	s.exec("update users set disabled = true where id = $1", heir.id) // an owner who is disabled does not count
	refused("First", "Second")
	s.exec("update users set disabled = false where id = $1", heir.id)
	if n := scalar[int](s, "select count(*) from audit_events where action in ('user.updated', 'user.deleted')"); n != 0 {
		t.Error(n, "events of refused changes")
	}
	s.post("/v1/organizations/"+second+"/memberships", admin.token, map[string]string{"user_id": heir.id, "role": "owner"}).want(201, "")
	s.deleteAs("/v1/users/"+m.id, admin.token).want(204, "")
	if got := scalar[string](s, "select string_agg(role || user_id, ' ') from memberships"); got != "owner"+heir.id+" owner"+heir.id {
		t.Error(got)
	}
}

// R79: nobody takes their own rights away, and the platform keeps an active admin.
func TestOwnAccount(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	admin := s.newUser("root@example.com", "admin")
	path := "/v1/users/" + admin.id
	lose := map[string]func() answer{
		"demote":        func() answer { return s.patchAs(path, admin.token, map[string]any{"role": "user"}) },
		"disable":       func() answer { return s.patchAs(path, admin.token, map[string]any{"disabled": true}) },
		"both":          func() answer { return s.patchAs(path, admin.token, map[string]any{"role": "user", "disabled": true}) },
		"delete":        func() answer { return s.deleteAs(path, admin.token) },
		"delete myself": func() answer { return s.deleteAs("/v1/users/me", admin.token) },
	}
	for _, f := range lose {
		f().want(409, "last_admin")
	}
	second := s.bareUser("second@example.com", "Second", "admin")
	s.exec("update users set disabled = true where id = $1", second.ID) // who is disabled does not count
	for _, f := range lose {
		f().want(409, "last_admin")
	}
	s.exec("update users set disabled = false where id = $1", second.ID)
	for name, f := range lose {
		if name != "delete myself" {
			f().want(409, "own_account")
		}
	}
	if n := scalar[int](s, "select count(*) from audit_events where action in ('user.updated', 'user.deleted')"); n != 0 {
		t.Error(n, "events of refused changes")
	}
	s.patchAs(path, admin.token, map[string]any{"name": "Root", "role": "admin", "disabled": false}).want(200, "")
	s.deleteAs("/v1/users/"+admin.id+"/sessions", admin.token).want(204, "") // that is signing out
	s.get("/v1/users/me", admin.token).want(401, "invalid_access_token")
	admin.token = s.signInAs(admin.email, testPassword).want(200, "").str("access_token")
	lose["delete myself"]().want(204, "")
}

// R74, R82: two admins take each other's rights away at once, through two replicas: one of them always remains.
func TestAdminsAtOnce(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	replicas := []*testServer{s, s.newReplica()}
	admins := []member{s.newUser("one@example.com", "admin"), s.newUser("two@example.com", "admin")}
	s.exec("create table saved_users as table users; create table saved_sessions as table sessions")
	ways := []func(id, token string) request{
		func(id, token string) request {
			return request{method: "PATCH", path: "/v1/users/" + id, token: token, body: map[string]any{"role": "user"}}
		},
		func(id, token string) request {
			return request{method: "PATCH", path: "/v1/users/" + id, token: token, body: map[string]any{"disabled": true}}
		},
		func(id, token string) request {
			return request{method: "DELETE", path: "/v1/users/" + id, token: token}
		},
	}
	both := 0
	for round := range 100 {
		s.exec("delete from users; insert into users table saved_users; insert into sessions table saved_sessions")
		won := together(2, func(i int) bool {
			a, err := replicas[i].try(ways[[]int{round % 3, round / 3 % 3}[i]](admins[1-i].id, admins[i].token))
			if err != nil || !slices.Contains([]int{200, 204, 401, 403, 409}, a.status) || a.status == 409 && a.code() != "last_admin" {
				t.Errorf("round %d: %v %d %s", round, err, a.status, a.body)
			}
			return err == nil && a.status < 300
		})
		if left := scalar[int](s, "select count(*) from users where role = 'admin' and not disabled"); left != 1 || won != 1 {
			t.Fatalf("round %d: %d won, %d admins are left", round, won, left)
		}
		both += won
	}
	if n := scalar[int](s, "select count(*) from audit_events where action in ('user.updated', 'user.deleted')"); n != both {
		t.Errorf("%d events of %d changes", n, both)
	}
}

// R74: somebody who is disabled while they become the last admin stays one: what was read before the lock does not count.
func TestLastAdminMeanwhile(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	admin, m := s.newUser("root@example.com", "admin"), s.newUser("ada@example.com", "user")
	for name, ask := range map[string]request{
		"disable": {method: "PATCH", path: "/v1/users/" + m.id, token: admin.token, body: map[string]any{"disabled": true}},
		"delete":  {method: "DELETE", path: "/v1/users/" + m.id, token: admin.token},
		"leave":   {method: "DELETE", path: "/v1/users/me", token: m.token},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			tx, err := s.pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(context.Background()) }()
			if _, err := tx.Exec(t.Context(), "update users set role = case id when $1 then 'admin' else 'user' end", m.id); err != nil {
				t.Fatal(err)
			}
			answered := make(chan answer, 1)
			go func() {
				a, err := s.try(ask)
				if err != nil {
					t.Error(err)
				}
				answered <- a
			}()
			s.waitForLock()
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			if a := <-answered; a.status != 409 || a.code() != "last_admin" {
				t.Errorf("%d %s", a.status, a.body)
			}
			s.exec("update users set role = case id when $1 then 'user' else 'admin' end", m.id)
		})
	}
}

// R43: what succeeds and what is refused leaves a trace, and platform admins can search it.
func TestAuditTrail(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	admin, m := s.newUser("root@example.com", "admin"), s.newUser("ada@example.com", "user")
	member := s.newUser("member@example.com", "user")
	org := s.post("/v1/organizations", m.token, map[string]string{"name": "Acme"}).want(201, "").str("id")
	foreign := s.post("/v1/organizations", admin.token, map[string]string{"name": "Other"}).want(201, "").str("id")
	s.post("/v1/organizations/"+org+"/memberships", admin.token, map[string]string{"user_id": member.id, "role": "member"}).want(201, "")
	s.post("/v1/organizations/"+org+"/invitations", m.token, map[string]string{"email": "new@example.com", "role": "admin"}).want(201, "")
	invitation := s.waitMail("new@example.com", 1).Token
	s.patchAs("/v1/users/"+m.id, admin.token, map[string]any{"name": "Secret Name"}).want(200, "")
	s.signInAs(m.email, "wrong password").want(400, "invalid_grant")
	s.signInAs("nobody@example.com", "wrong password").want(400, "invalid_grant")
	s.refreshWith(s.refreshWith(m.refresh).want(200, "").str("refresh_token")).want(200, "")
	s.refreshWith(m.refresh).want(400, "invalid_grant") // a copy
	m.token = s.signInAs(m.email, testPassword).want(200, "").str("access_token")

	all := s.get("/v1/audit-events?limit=100", admin.token).want(200, "")
	actions := all.texts("action")
	for _, want := range []string{"session.started", "organization.created", "membership.created", "invitation.created", "user.updated", "sign_in.refused", "session.reuse_detected"} {
		if !slices.Contains(actions, want) {
			t.Errorf("%s is missing in %v", want, actions)
		}
	}
	if ids := all.texts("id"); !slices.IsSortedFunc(ids, func(a, b string) int { return strings.Compare(b, a) }) || fmt.Sprint(s.everyPage("/v1/audit-events", admin.token, "id")) != fmt.Sprint(ids) {
		t.Error("not newest first, or not the same in pages")
	}
	// Who, what, on what, from where; failures too, also of an address that nobody has.
	first := s.get("/v1/audit-events?action=user.updated", admin.token).json()["items"].([]any)[0].(map[string]any)
	if first["actor_id"] != admin.id || first["subject_id"] != m.id || first["ip"] != "127.0.0.1" || first["organization_id"] != nil || fmt.Sprint(first["detail"]) != "map[disabled:false role:user]" {
		t.Error(first)
	}
	if refused := s.get("/v1/audit-events?action=sign_in.refused", admin.token); fmt.Sprint(refused.texts("subject_id")) != "[<nil> "+m.id+"]" || fmt.Sprint(refused.texts("actor_id")) != "[<nil> <nil>]" {
		t.Errorf("%s", refused.body)
	}
	for query, where := range map[string]string{
		"actor_id=" + m.id: "actor_id = '" + m.id + "'", "organization_id=" + org: "organization_id = '" + org + "'", "action=session.started": "action = 'session.started'",
		"actor_id=" + m.id + "&organization_id=" + org: "actor_id = '" + m.id + "' and organization_id = '" + org + "'", "actor_id=" + newID(): "false",
		"actor_id=" + m.id + "&organization_id=" + org + "&action=invitation.created": "action = 'invitation.created'", "action=no.such_thing": "false",
	} {
		want := scalar[string](s, "select coalesce(string_agg(id::text, ' ' order by id desc), '') from audit_events where "+where)
		if got := strings.Join(s.everyPage("/v1/audit-events?"+query, admin.token, "id"), " "); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
	for _, bad := range []string{"actor_id=x", "organization_id=", "action=X", "action=", "action=a.b'", "subject_id=" + m.id, "limit=0", "actor_id=" + m.id + "&actor_id=" + m.id} {
		s.get("/v1/audit-events?"+bad, admin.token).want(400, "malformed_request")
	}
	cursor := s.get("/v1/audit-events?limit=1&actor_id="+m.id, admin.token).str("next")
	s.get("/v1/audit-events?actor_id="+admin.id+"&after="+cursor, admin.token).want(400, "invalid_cursor")

	// An organization sees its own, whoever may read it.
	path := "/v1/organizations/" + org + "/audit-events"
	own := s.get(path, m.token).want(200, "")
	if want := scalar[string](s, "select string_agg(id::text, ' ' order by id desc) from audit_events where organization_id = $1", org); strings.Join(own.texts("id"), " ") != want ||
		strings.Join(s.everyPage(path, m.token, "id"), " ") != want {
		t.Errorf("%s", own.body)
	}
	if got := s.get(path+"?action=membership.created&actor_id="+admin.id, m.token).texts("subject_id"); fmt.Sprint(got) != "["+member.id+"]" {
		t.Error(got)
	}
	s.get(path, member.token).want(403, "forbidden")
	s.get(path, s.newUser("outsider@example.com", "user").token).want(404, "not_found")
	s.get("/v1/organizations/"+foreign+"/audit-events", m.token).want(404, "not_found")
	s.get(path+"?organization_id="+foreign, m.token).want(400, "malformed_request")
	s.get(path+"?after="+cursor, m.token).want(400, "invalid_cursor")
	// No secret and nothing personal but the address of the network.
	trail := scalar[string](s, "select string_agg(audit_events::text, ' ') from audit_events")
	for _, secret := range []string{"@", "Secret Name", "wrong password", testPassword, invitation, m.refresh[3:], m.token[20:60], "argon2", "Acme"} {
		if strings.Contains(trail, secret) {
			t.Errorf("the trail holds %q", secret)
		}
	}
}

func (f browser) do(s *testServer, method, path, token string, body any) answer {
	s.t.Helper()
	return s.do(request{method: method, path: path, token: token, body: body, header: http.Header{"X-Forwarded-For": {f.ip}, "User-Agent": {f.agent}}})
}

func (f browser) signIn(s *testServer, email, password string) answer {
	s.t.Helper()
	return f.do(s, "POST", "/v1/auth/token", "", url.Values{"grant_type": {"password"}, "username": {email}, "password": {password}})
}

// everythingPersonal has a user do all that stores something, and others do to them; it returns their token. The
// others come from elsewhere.
func everythingPersonal(s *testServer, ada, elsewhere browser) (adaID, token string) {
	s.t.Helper()
	const email, password = "ada.lovelace@example.com", "a password of Ada's"
	admin, eve := s.newUser("root@example.com", "admin"), s.newUser("eve@example.com", "user")
	ada.do(s, "POST", "/v1/auth/forgot-password", "", map[string]string{"email": "old.ada@example.com"}).want(202, "") // before there is an account
	ada.do(s, "POST", "/v1/auth/register", "", map[string]string{"email": "old.ada@example.com", "password": password, "name": "Augusta Byron"}).want(202, "")
	mailed := s.waitMail("old.ada@example.com", 1).Token
	token = ada.do(s, "POST", "/v1/auth/verify-email", "", map[string]string{"token": mailed, "password": password}).want(200, "").str("access_token")
	adaID = ada.do(s, "GET", "/v1/users/me", token, nil).str("id")
	// A new address, a wrong password, a forgotten one, a copied token, a sign-out.
	ada.do(s, "POST", "/v1/users/me/email", token, map[string]string{"email": email, "password": password}).want(202, "")
	ada.do(s, "POST", "/v1/auth/confirm-email", "", map[string]string{"token": s.waitMail(email, 1).Token}).want(204, "")
	ada.signIn(s, email, "not the password").want(400, "invalid_grant")
	ada.do(s, "POST", "/v1/auth/forgot-password", "", map[string]string{"email": email}).want(202, "")
	ada.do(s, "POST", "/v1/auth/reset-password", "", map[string]string{"token": s.waitMail(email, 2).Token, "password": password + "!"}).want(204, "")
	refresh := func(token string) answer {
		return ada.do(s, "POST", "/v1/auth/token", "", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}})
	}
	stolen := ada.signIn(s, email, password+"!").want(200, "").str("refresh_token")
	refresh(refresh(stolen).want(200, "").str("refresh_token")).want(200, "")
	refresh(stolen).want(400, "invalid_grant")
	ada.do(s, "POST", "/v1/auth/revoke", "", url.Values{"token": {ada.signIn(s, email, password+"!").want(200, "").str("refresh_token")}}).want(200, "")
	token = ada.signIn(s, email, password+"!").want(200, "").str("access_token")
	// Organizations and invitations, sent and received, and what an admin does to her.
	org := ada.do(s, "POST", "/v1/organizations", token, map[string]string{"name": "Analytical Engines"}).want(201, "").str("id")
	elsewhere.do(s, "POST", "/v1/organizations/"+org+"/memberships", admin.token, map[string]string{"user_id": eve.id, "role": "owner"}).want(201, "")
	ada.do(s, "POST", "/v1/organizations/"+org+"/invitations", token, map[string]string{"email": "guest@example.com", "role": "member"}).want(201, "")
	other := elsewhere.do(s, "POST", "/v1/organizations", eve.token, map[string]string{"name": "Eve's Own"}).want(201, "").str("id")
	elsewhere.do(s, "POST", "/v1/organizations/"+other+"/invitations", eve.token, map[string]string{"email": email, "role": "member"}).want(201, "")
	elsewhere.do(s, "POST", "/v1/organizations/"+other+"/invitations", eve.token, map[string]string{"email": "stranger@example.com", "role": "member"}).want(201, "")
	elsewhere.do(s, "POST", "/v1/users/me/email", eve.token, map[string]string{"email": email, "password": testPassword}).want(202, "") // taken
	elsewhere.do(s, "PATCH", "/v1/users/"+adaID, admin.token, map[string]any{"name": "Ada Lovelace"}).want(200, "")
	s.waitMail(email, 4) // change, reset, its notice, invitation
	return adaID, token
}

// R43: everything that happens to an account is in the trail, with who it happened to, once.
func TestAccountAudit(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	admin, m := s.newUser("root@example.com", "admin"), s.newUser("ada@example.com", "user")
	const email, password = "new@example.com", "a new password 1"
	var fresh member
	access := func() string { return s.signInAs(m.email, testPassword).want(200, "").str("access_token") }
	own := func(method, path string, body any) request {
		return request{method: method, path: "/v1/users/me" + path, token: access(), body: body}
	}
	s.forgot(m.email).want(202, "")
	reset := s.newestToken(m.email)
	for _, tc := range []struct {
		action string
		do     func() answer
	}{
		{"user.registered", func() answer { s.startRegistration(email, testPassword); return answer{} }},
		{"user.registered_again", func() answer { s.startRegistration(m.email, testPassword); return answer{} }},
		{"email.verified", func() answer { return s.verify(s.newestToken(email), testPassword) }},
		{"session.ended", func() answer {
			fresh.token = s.signInAs(email, testPassword).str("access_token")
			return s.post("/v1/auth/revoke", "", url.Values{"token": {fresh.token}})
		}},
		{"password.changed", func() answer {
			a := s.do(own("PUT", "/password", jsonBody("current_password", testPassword, "new_password", password)))
			s.exec("update users set password_hash = $2 where id = $1", m.id, testPasswordHash())
			return a
		}},
		{"session.others_ended", func() answer { return s.do(own("DELETE", "/sessions", nil)) }},
		{"session.ended", func() answer {
			q := own("DELETE", "/sessions/", nil)
			q.path += scalar[string](s, "select id::text from sessions where user_id = $1 order by id limit 1", m.id)
			return s.do(q)
		}},
		{"email.change_requested", func() answer { return s.move(access(), "moved@example.com", testPassword) }},
		{"email.changed", func() answer { m.email = "moved@example.com"; return s.confirm(s.newestToken(m.email)) }},
		{"password.reset", func() answer {
			s.reset(reset, password).want(422, "invalid_token") // the change of address voided it
			s.forgot(m.email).want(202, "")
			return s.reset(s.newestToken(m.email), password)
		}},
		{"user.created", func() answer {
			return s.post("/v1/users", admin.token, jsonBody("email", "made@example.com", "name", "X", "role", "user"))
		}},
		{"user.sessions_ended", func() answer {
			s.signInAs(m.email, password).want(200, "")
			a := s.do(request{method: "DELETE", path: "/v1/users/" + m.id + "/sessions", token: admin.token})
			if n := scalar[int](s, "select count(*) from sessions where user_id = $1", m.id); n != 0 {
				t.Errorf("%d sessions are left", n)
			}
			return a
		}},
		{"user.updated", func() answer { return s.patchAs("/v1/users/"+m.id, admin.token, map[string]any{"name": "Y"}) }},
		{"user.deleted", func() answer { return s.do(request{method: "DELETE", path: "/v1/users/" + m.id, token: admin.token}) }},
	} {
		count := func() int {
			return scalar[int](s, "select count(*) from audit_events where action = $1 and (action = 'user.registered_again' or subject_id is not null)", tc.action)
		}
		before := count()
		if a := tc.do(); a.status >= 300 || count() != before+1 {
			t.Errorf("%s: %d %s, %d events", tc.action, a.status, a.body, count()-before)
		}
	}
}

// The export holds everything that is stored about the caller, no secret and nothing of anybody else.
func TestExport(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy)
	ada, elsewhere := browser{"203.0.113.7", "Ada's Browser/1.0"}, browser{"198.51.100.9", "Somebody/2.0"}
	id, token := everythingPersonal(s, ada, elsewhere)
	a := ada.do(s, "GET", "/v1/users/me/export", token, nil).want(200, "")
	document := a.json()
	for member, where := range map[string]string{
		"sessions": "sessions where user_id = $1", "memberships": "memberships where user_id = $1",
		"invitations":  "invitations where invited_by = $1 or email = (select email from users where id = $1)",
		"mails":        "mails where user_id = $1 and kind <> 'change_email' or recipient = (select email from users where id = $1)",
		"audit_events": "audit_events where actor_id = $1 or subject_id = $1 or detail->>'user_id' = $1::text",
	} {
		items, _ := document[member].([]any)
		if n := scalar[int](s, "select count(*) from "+where, id); len(items) != n || n == 0 {
			t.Errorf("%d of %d %s", len(items), n, member)
		}
	}
	if document["has_password"] != true || document["user"].(map[string]any)["id"] != id {
		t.Errorf("%s", a.body)
	}
	for _, stored := range []string{"ada.lovelace@example.com", "old.ada@example.com", "Ada Lovelace", ada.ip, ada.agent, "Analytical Engines", "session.reuse_detected", "sign_in.refused"} {
		if !strings.Contains(string(a.body), stored) {
			t.Errorf("%s is missing", stored)
		}
	}
	for _, foreign := range []string{"argon2", "hash\":", "token", "root@example.com", "eve@example.com", "stranger@example.com", "Eve's Own", elsewhere.ip, elsewhere.agent, "Test admin"} {
		if strings.Contains(string(a.body), foreign) {
			t.Errorf("the export holds %q", foreign)
		}
	}
	s.get("/v1/users/me/export?all=true", token).want(400, "malformed_request")
	s.get("/v1/users/me/export", "").want(401, "unauthorized")
}

// After deletion nothing personal is left in any column of any table; the trail tells it with ids alone.
func TestDeletionLeavesNothing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy, throttled)
	ada, elsewhere := browser{"203.0.113.7", "Ada's Browser/1.0"}, browser{"198.51.100.9", "Somebody/2.0"}
	id, token := everythingPersonal(s, ada, elsewhere)
	personal := []string{"ada.lovelace@example.com", "old.ada@example.com", "lovelace", "Byron", "Augusta", ada.ip, ada.agent}
	found := func() (found []string) {
		for _, table := range strings.Fields(scalar[string](s, "select string_agg(table_name, ' ') from information_schema.tables where table_schema = 'public'")) {
			rows := strings.ToLower(scalar[string](s, "select coalesce(string_agg(t::text, E'\\n'), '') from "+table+" t"))
			for row := range strings.Lines(rows) {
				for _, p := range personal {
					if strings.Contains(row, strings.ToLower(p)) {
						found = append(found, fmt.Sprintf("%s in %s: %s", p, table, strings.TrimSpace(row)))
					}
				}
			}
		}
		return found
	}
	if len(found()) < 10 {
		t.Fatal("the test stores too little", found())
	}
	elsewhere.signIn(s, "eve@example.com", "not the password").want(400, "invalid_grant") // an event that only has a subject
	trail := scalar[int](s, "select count(*) from audit_events")
	ada.do(s, "DELETE", "/v1/users/me", token, nil).want(204, "")
	if left := found(); left != nil {
		t.Errorf("left:\n%s", strings.Join(left, "\n"))
	}
	if n := scalar[int](s, "select count(*) from audit_events"); n != trail+1 || scalar[int](s, "select count(*) from audit_events where action = 'user.deleted' and subject_id = $1 and actor_id = $1", id) != 1 {
		t.Errorf("the trail has %d rows, had %d", n, trail)
	}
	if n := scalar[int](s, "select count(distinct actor_id is null) from audit_events where host(ip) = $1", elsewhere.ip); n != 2 {
		t.Error("somebody else's rows were cleaned")
	}
}

// Whoever once named somebody's address takes none of their mails along, nor what was counted against the caps (R42).
func TestDeletionLeavesOthersMails(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, throttled)
	eve, victim := s.newUser("eve@example.com", "user"), s.bareUser("victim@example.com", "Victim", "user")
	s.exec("update users set email = 'away@example.com' where id = $1", victim.ID)
	s.post("/v1/users/me/email", eve.token, map[string]string{"email": victim.Email, "password": testPassword}).want(202, "")
	s.waitMail(victim.Email, 1)
	s.exec("update users set email = $2 where id = $1", victim.ID, victim.Email)
	s.post("/v1/auth/forgot-password", "", map[string]string{"email": victim.Email}).want(202, "")
	s.waitMail(victim.Email, 2)
	s.exec("insert into mails (id, kind, recipient, sent_at) values ($1, 'invitation', $2, now())", newID(), victim.Email) // withdrawn, it still counts
	s.deleteAs("/v1/users/me", eve.token).want(204, "")
	if got := scalar[string](s, "select string_agg(kind, ' ' order by id) from mails where recipient = $1", victim.Email); got != "reset_password invitation" {
		t.Error("the mails to somebody else are", got)
	}
}

// R24: every key of every response, of every route that answers with JSON. A new one shows up here.
func TestResponseKeys(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy)
	unverified := newTestServer(t, func(c *config) { c.EmailVerification = false })
	_, token := everythingPersonal(s, browser{"203.0.113.7", "A/1"}, browser{"198.51.100.9", "B/1"})
	admin, invitee := s.newUser("second@example.com", "admin"), s.newUser("invitee@example.com", "user")
	org := s.get("/v1/organizations", token).texts("id")[0]
	id := s.get("/v1/users?q=eve", admin.token).texts("id")[0]
	invite := func(email string) string {
		s.post("/v1/organizations/"+org+"/invitations", token, map[string]string{"email": email, "role": "member"}).want(201, "")
		return s.waitMail(email, 1).Token
	}
	body := func(pairs ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	orgPath := "/v1/organizations/" + org
	answers := map[string]answer{
		"register":                  s.post("/v1/auth/register", "", body("email", "new@example.com", "password", testPassword, "name", "New")),
		"registerUnverified":        unverified.post("/v1/auth/register", "", body("email", "newer@example.com", "password", testPassword, "name", "New")),
		"verifyEmail":               s.verify(s.waitMail("new@example.com", 1).Token, testPassword),
		"issueToken":                s.signInAs(admin.email, testPassword),
		"revokeToken":               s.post("/v1/auth/revoke", "", url.Values{"token": {"x"}}),
		"forgotPassword":            s.post("/v1/auth/forgot-password", "", body("email", "nobody@example.com")),
		"acceptInvitationAsNewUser": s.post("/v1/auth/accept-invitation", "", body("token", invite("newest@example.com"), "password", testPassword, "name", "N")),
		"readMe":                    s.get("/v1/users/me", token),
		"updateMe":                  s.patchAs("/v1/users/me", token, body("name", "Ada Lovelace")),
		"changeEmail":               s.post("/v1/users/me/email", admin.token, body("email", "boss@example.com", "password", testPassword)),
		"listSessions":              s.get("/v1/users/me/sessions", token),
		"listMyMemberships":         s.get("/v1/users/me/memberships", token),
		"acceptInvitation":          s.post("/v1/invitations/accept", invitee.token, body("token", invite(invitee.email))),
		"exportMe":                  s.get("/v1/users/me/export", token),
		"listUsers":                 s.get("/v1/users", admin.token),
		"createUser":                s.post("/v1/users", admin.token, body("email", "made@example.com", "name", "Made", "role", "user")),
		"readUser":                  s.get("/v1/users/"+id, admin.token),
		"updateUser":                s.patchAs("/v1/users/"+id, admin.token, body("name", "Eve")),
		"listAuditEvents":           s.get("/v1/audit-events", admin.token),
		"createOrganization":        s.post("/v1/organizations", token, body("name", "Another")),
		"listOrganizations":         s.get("/v1/organizations", token),
		"readOrganization":          s.get(orgPath, token),
		"updateOrganization":        s.patchAs(orgPath, token, body("name", "Renamed")),
		"listMemberships":           s.get(orgPath+"/memberships", token),
		"createMembership": s.post(orgPath+"/memberships", admin.token, body("role", "member", "user_id",
			s.get("/v1/users?q=made", admin.token).texts("id")[0])),
		"updateMembership":            s.patchAs(orgPath+"/memberships/"+id, token, body("role", "member")),
		"createInvitation":            s.post(orgPath+"/invitations", token, body("email", "last@example.com", "role", "member")),
		"listInvitations":             s.get(orgPath+"/invitations", token),
		"listOrganizationAuditEvents": s.get(orgPath+"/audit-events", token),
		"readJWKS":                    s.get("/.well-known/jwks.json", ""),
		"readMetadata":                s.get("/.well-known/oauth-authorization-server", ""),
		"readHealth":                  s.get("/healthz", ""),
		"readReadiness":               s.get("/readyz", ""),
	}
	for _, rt := range append(s.routes(), unverified.routes()...) {
		if _, called := answers[rt.operation]; !called && rt.out != reflect.TypeFor[file]() && rt.status != 204 { // a room's
			answers[rt.operation] = s.do(matrixRequest(rt, s.newCell("owner", "")))
		}
		if a, called := answers[rt.operation]; rt.out != reflect.TypeFor[file]() && rt.status != 204 && (!called || a.status != rt.status) {
			t.Errorf("%s: %d %s", rt.operation, a.status, a.body)
		}
	}
	answers["a refusal"] = s.post("/v1/auth/register", "", body())
	founder := s.newUser("founder@example.com", "user")
	s.post("/v1/organizations", founder.token, body("name", "Hers")).want(201, "")
	answers["a refusal that names organizations"] = s.deleteAs("/v1/users/me", founder.token)
	answers["a refusal of OAuth"] = s.signInAs("nobody@example.com", "x")
	var lines []string
	for name, a := range answers {
		var v any
		if err := json.Unmarshal(a.body, &v); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		keys := map[string]bool{}
		keysOfJSON(keys, "", v)
		lines = append(lines, strings.TrimSpace(name+": "+strings.Join(slices.Sorted(maps.Keys(keys)), " "))+"\n")
	}
	slices.Sort(lines)
	got := strings.Join(lines, "")
	if *update {
		if err := os.WriteFile("testdata/keys.txt", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile("testdata/keys.txt")
	if err != nil || got != string(want) {
		t.Errorf("%v: not the keys of testdata/keys.txt (go test -run TestResponseKeys -update):\n%s", err, got)
	}
}

// keysOfJSON adds the path of every member. The details of an audit event differ from action to action: they are one.
func keysOfJSON(keys map[string]bool, path string, v any) {
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			keysOfJSON(keys, path, item)
		}
	case map[string]any:
		for name, inner := range v {
			p := strings.TrimPrefix(path+"."+name, ".")
			keys[p] = true
			if name != "detail" {
				keysOfJSON(keys, p, inner)
			}
		}
	}
}
