package main

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestUpdateMe(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	patchIn := func(t *testing.T, body any, header http.Header) answer {
		t.Helper()
		return s.in(t).do(request{method: "PATCH", path: "/v1/users/me", token: m.token, body: body, header: header})
	}
	patch := func(body any, header http.Header) answer { t.Helper(); return patchIn(t, body, header) }
	name := func(n string) map[string]string { return map[string]string{"name": n} }
	before := s.get("/v1/users/me", m.token)
	if got := patch(name("  Ame\u0301lie "), nil).want(200, "").str("name"); got != "Am\u00e9lie" {
		t.Errorf("not trimmed and composed: %q", got)
	}
	// R17, R25
	for _, tc := range []struct {
		name    string
		body    any
		status  int
		code    string
		pointer string
		field   string
	}{
		{"empty", name("   "), 422, "invalid_fields", "/name", "required"},
		{"missing", map[string]string{}, 200, "", "", ""},
		{"100 points", name(strings.Repeat("é", 100)), 200, "", "", ""},
		{"101 points", name(strings.Repeat("é", 101)), 422, "invalid_fields", "/name", "too_long"},
		{"NUL", name("a\x00b"), 422, "invalid_fields", "/name", "forbidden_character"},
		{"C1", name("a\u0085b"), 422, "invalid_fields", "/name", "forbidden_character"},
		{"line separator", name("a\u2028b"), 422, "invalid_fields", "/name", "forbidden_character"},
		{"override", name("a\u202eb"), 422, "invalid_fields", "/name", "forbidden_character"},
		{"isolate", name("a\u2066b"), 422, "invalid_fields", "/name", "forbidden_character"},
		{"number", `{"name":5}`, 400, "malformed_request", "/name", "wrong_type"},
		{"null", `{"name":null}`, 400, "malformed_request", "/name", "wrong_type"},
		{"role", `{"name":"x","role":"admin"}`, 400, "malformed_request", "/role", "unknown_field"},
		{"email_verified", `{"name":"x","email_verified":true}`, 400, "malformed_request", "/email_verified", "unknown_field"},
		{"disabled", `{"name":"x","disabled":false}`, 400, "malformed_request", "/disabled", "unknown_field"},
		{"password_hash", `{"name":"x","password_hash":"x"}`, 400, "malformed_request", "/password_hash", "unknown_field"},
		{"id", `{"name":"x","id":"x"}`, 400, "malformed_request", "/id", "unknown_field"},
		{"wrong case", `{"Name":"x"}`, 400, "malformed_request", "/Name", "unknown_field"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := patchIn(t, tc.body, nil).want(tc.status, tc.code)
			if tc.pointer != "" && a.fields()[tc.pointer] != tc.field {
				t.Errorf("fields: %s", a.body)
			}
		})
	}
	if got := scalar[string](s, "select role || email_verified || disabled from users"); got != "usertruefalse" {
		t.Errorf("a refused call changed something: %s", got)
	}
	// ETag and If-Match: no lost update.
	old := before.header.Get("ETag")
	now := s.get("/v1/users/me", m.token)
	if now.header.Get("ETag") == old {
		t.Error("the ETag did not move")
	}
	patch(name("Lost"), http.Header{"If-Match": {old}}).want(412, "precondition_failed")
	patch(name("Forged"), http.Header{"If-Match": {`"zzzzzzzzzzzz"`}}).want(412, "precondition_failed")
	patch(name("Weak"), http.Header{"If-Match": {"W/" + old}}).want(412, "precondition_failed")
	patch(name("Any"), http.Header{"If-Match": {"*"}}).want(200, "")
	now = s.get("/v1/users/me", m.token)
	after := patch(name("Kept"), http.Header{"If-Match": {`"foreign", ` + now.header.Get("ETag")}}).want(200, "")
	a := s.do(request{path: "/v1/users/me", token: m.token, header: http.Header{"If-None-Match": {"W/" + after.header.Get("ETag")}}})
	if a.status != 304 || len(a.body) != 0 || a.header.Get("ETag") != after.header.Get("ETag") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// Two changes at once with one ETag: one wins.
func TestIfMatchRace(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	tag := s.get("/v1/users/me", m.token).header.Get("ETag")
	won := together(8, func(i int) bool {
		a, err := s.try(request{method: "PATCH", path: "/v1/users/me", token: m.token,
			body: map[string]string{"name": fmt.Sprint("n", i)}, header: http.Header{"If-Match": {tag}}})
		return err == nil && a.status == 200
	})
	if won != 1 {
		t.Errorf("%d changes won", won)
	}
}

// R33: needs the current password, ends the other sessions and every mail token, and tells the owner.
func TestChangePassword(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada.lovelace@example.com", "user")
	elsewhere := s.signInAs(m.email, testPassword).want(200, "")
	changeIn := func(t *testing.T, current, new string) answer {
		t.Helper()
		return s.in(t).do(request{method: "PUT", path: "/v1/users/me/password", token: m.token,
			body: map[string]string{"current_password": current, "new_password": new}})
	}
	change := func(current, new string) answer { t.Helper(); return changeIn(t, current, new) }
	_, hash := newMailToken()
	s.exec("insert into mail_tokens (token_hash, user_id, purpose, email, expires_at) values ($1, $2, 'reset-password', 'x', now() + interval '1 hour')", hash, m.id)
	// A mail that was sent counts against the caps, and what is somebody else's stays theirs.
	eve := s.newUser("eve@example.com", "user")
	s.exec("insert into mail_tokens (token_hash, user_id, purpose, email, expires_at) values ('x', $1, 'reset-password', 'x', now() + interval '1 hour')", eve.id)
	s.exec(`insert into mails (id, user_id, kind, recipient, sent_at, next_attempt_at) values
		($1, $2, 'reset_password', 'x', now(), now()), ($3, $4, 'reset_password', 'x', null, now() + interval '1 hour')`, newID(), m.id, newID(), eve.id)
	for _, tc := range []struct{ name, current, new, pointer, code string }{
		{"wrong", "not my password", "a new password 1", "/current_password", "wrong_password"},
		// R27
		{"short", testPassword, "eleven char", "/new_password", "password_too_short"},
		{"long", testPassword, strings.Repeat("x", 257), "/new_password", "password_too_long"},
		{"long in bytes", testPassword, strings.Repeat("\U0001F600", 257), "/new_password", "password_too_long"},
		{"address", testPassword, m.email, "/new_password", "password_too_common"},
		{"local part", testPassword, "Ada.Lovelace2026!", "/new_password", "password_too_common"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if a := changeIn(t, tc.current, tc.new).want(422, "invalid_fields"); a.fields()[tc.pointer] != tc.code {
				t.Errorf("fields: %s", a.body)
			}
		})
	}
	s.get("/v1/users/me", elsewhere.str("access_token")).want(200, "")
	if scalar[int](s, "select count(*) from mail_tokens") != 2 {
		t.Error("a refused change voided a token")
	}
	next := strings.Repeat("\U0001F600", 256) // R28: 256 code points are 1 KiB, nothing is cut
	change(testPassword, next).want(204, "")
	s.get("/v1/users/me", m.token).want(200, "")
	s.get("/v1/users/me", elsewhere.str("access_token")).want(401, "invalid_access_token")
	if scalar[int](s, "select count(*) from mail_tokens where user_id = $1", m.id) != 0 {
		t.Error("a mail token survived")
	}
	if scalar[int](s, "select count(*) from mail_tokens") != 1 || scalar[int](s, "select count(*) from mails where kind = 'reset_password'") != 2 {
		t.Error("more is gone than the tokens")
	}
	if got := s.waitMail(m.email, 1); !strings.Contains(got.Subject, "password") || got.Token != "" {
		t.Errorf("notice: %+v", got)
	}
	s.signInAs(m.email, testPassword).want(400, "invalid_grant")
	s.signInAs(m.email, next[:len(next)-4]).want(400, "invalid_grant")
	s.signInAs(m.email, next).want(200, "")
}

// Two changes of password at once: one wins, and no session of the loser's password survives.
func TestChangePasswordRace(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	won := together(4, func(i int) bool {
		a, err := s.try(request{method: "PUT", path: "/v1/users/me/password", token: m.token,
			body: map[string]string{"current_password": testPassword, "new_password": fmt.Sprint("a new password ", i)}})
		return err == nil && a.status == 204
	})
	if won != 1 {
		t.Errorf("%d changes won", won)
	}
}

func TestSessions(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	stranger := s.newUser("eve@example.com", "user")
	var others []answer
	for range 4 {
		others = append(others, s.signInAs(m.email, testPassword).want(200, ""))
	}
	type listed struct {
		ids     []string
		next    string
		current int
	}
	list := func(query, token string) listed {
		t.Helper()
		a := s.get("/v1/users/me/sessions"+query, token).want(200, "")
		var l listed
		for _, item := range a.json()["items"].([]any) {
			l.ids = append(l.ids, item.(map[string]any)["id"].(string))
			if item.(map[string]any)["current"] == true {
				l.current++
			}
		}
		if next, ok := a.json()["next"].(string); ok {
			l.next = next
			if want := `<https://roster.example/v1/users/me/sessions?after=` + next + `&limit=2>; rel="next"`; a.header.Get("Link") != want {
				t.Errorf("Link is %s, want %s", a.header.Get("Link"), want)
			}
		}
		return l
	}
	all := list("", m.token)
	if len(all.ids) != 5 || all.current != 1 || all.next != "" {
		t.Fatalf("%+v", all)
	}
	// Keyset: pages of two, newest first, nothing twice, nothing missing.
	var paged []string
	for query := "?limit=2"; ; {
		l := list(query, m.token)
		paged = append(paged, l.ids...)
		if l.next == "" {
			break
		}
		query = "?limit=2&after=" + l.next
	}
	if fmt.Sprint(paged) != fmt.Sprint(all.ids) {
		t.Errorf("pages %v, list %v", paged, all.ids)
	}
	// R20: a forged cursor, and one of another caller.
	foreign := list("?limit=2", m.token).next
	s.get("/v1/users/me/sessions?after="+foreign, stranger.token).want(400, "invalid_cursor")
	for _, bad := range []string{"x", "", foreign[:len(foreign)-1] + flipLastBits(foreign), foreign + "A", "%00"} {
		if a := s.get("/v1/users/me/sessions?after="+bad, m.token); a.status != 400 {
			t.Errorf("after=%s: %d", bad, a.status)
		}
	}
	// R21
	for _, bad := range []string{"limit=0", "limit=101", "limit=-1", "limit=1e1", "limit=+5", "limit=", "limit=1&limit=2", "offset=1", "limit=%zz", "limit=%00"} {
		s.get("/v1/users/me/sessions?"+bad, m.token).want(400, "malformed_request")
	}
	s.get("/v1/users/me?x=1", m.token).want(400, "malformed_request")

	remove := func(id, token string) answer {
		t.Helper()
		return s.do(request{method: "DELETE", path: "/v1/users/me/sessions/" + id, token: token})
	}
	// R71: somebody else's, a random one and no id at all get the same bytes.
	bodies := map[string]bool{}
	for _, id := range []string{all.ids[0], newID(), "me", strings.ToUpper(all.ids[0]), "%00"} {
		a := s.do(request{method: "DELETE", path: "/v1/users/me/sessions/" + id, token: stranger.token, header: http.Header{"X-Request-Id": {"same"}}})
		bodies[string(a.want(404, "not_found").body)] = true
	}
	if len(bodies) != 1 {
		t.Errorf("different answers: %v", bodies)
	}
	remove(all.ids[0], m.token).want(204, "")
	s.get("/v1/users/me", others[3].str("access_token")).want(401, "invalid_access_token")
	s.do(request{method: "DELETE", path: "/v1/users/me/sessions", token: m.token}).want(204, "")
	if l := list("", m.token); len(l.ids) != 1 || l.current != 1 {
		t.Errorf("%+v", l)
	}
	remove(list("", m.token).ids[0], m.token).want(204, "")
	s.get("/v1/users/me", m.token).want(401, "invalid_access_token")
}

// A session tells when and from where it was used last, as far as that is written down: at a refresh, and when what
// sign-in or refresh gave is used for the first time.
func TestSessionLastSeen(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy)
	m, elsewhere := s.newUser("ada@example.com", "user"), browser{"203.0.113.7", "Elsewhere/1.0"}
	for i, use := range []func(){
		func() { s.get("/v1/users/me", m.token).want(200, "") },
		func() {
			m.token = elsewhere.do(s, "POST", "/v1/auth/token", "", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {m.refresh}}).want(200, "").str("access_token")
		},
		func() { s.get("/v1/users/me", m.token).want(200, "") },
	} {
		s.exec("update sessions set last_seen_at = now() - interval '1 hour'")
		use()
		if !scalar[bool](s, "select last_seen_at > now() - interval '1 minute' from sessions") {
			t.Errorf("use %d was not seen", i)
		}
	}
	if got := scalar[string](s, "select host(ip) || ' ' || user_agent from sessions"); got != elsewhere.ip+" "+elsewhere.agent {
		t.Errorf("last seen at %s", got)
	}
}
