package main

import (
	"context"
	"io"
	"maps"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sethvargo/go-envconfig"
)

// How sure roster is of who is there: levels of sessions, recent sign-ins, and what is told and voided when it changes.

// claimsOf reads the access token of an answer.
func (s *testServer) claimsOf(a answer) *accessClaims {
	s.t.Helper()
	claims, err := s.keys.verifyAccess(a.str("access_token"))
	if err != nil {
		s.t.Fatal(err)
	}
	return claims
}

// environment is that of a command on the server's database.
func (s *testServer) environment() envconfig.Lookuper {
	return envconfig.MapLookuper(map[string]string{"DATABASE_URL": s.cfg.DatabaseURL, "PUBLIC_URL": s.cfg.PublicURL,
		"APP_URL": s.cfg.AppURL, "SECRET_KEYS": s.cfg.SecretKeys})
}

// registerUnproved makes an account of which nobody has proved the address, and signs in.
func (s *testServer) registerUnproved(email string) (token string) {
	s.t.Helper()
	s.post("/v1/auth/register", "", jsonBody("email", email, "password", testPassword, "name", "X")).want(201, "")
	return s.signInAs(email, testPassword).want(200, "").str("access_token")
}

// resetPassword chooses a new password by mail.
func (s *testServer) resetPassword(email, password string) {
	s.t.Helper()
	s.exec("delete from throttles where key like 'mails%'")
	s.forgot(email).want(202, "")
	s.post("/v1/auth/reset-password", "", jsonBody("token", s.newestToken(email), "password", password)).want(204, "")
}

// provings are the ways in which an address becomes proved. They return the address and the password after it.
var provings = map[string]func(s *testServer, email, token string) (string, string){
	"new password by mail": func(s *testServer, email, _ string) (string, string) {
		s.resetPassword(email, "another horse battery")
		return email, "another horse battery"
	},
	"change of address": func(s *testServer, email, token string) (string, string) {
		s.move(token, "moved."+email, testPassword).want(202, "")
		s.post("/v1/auth/confirm-email", "", jsonBody("token", s.newestToken("moved."+email))).want(204, "")
		return "moved." + email, testPassword
	},
	"invitation": func(s *testServer, email, token string) (string, string) {
		owner, o := s.insertMember("owner."+newID(), "user"), newID()
		s.exec("insert into organizations (id, name, slug) values ($1, 'X', $1::uuid::text)", o)
		s.join(o, owner, "owner")
		s.post("/v1/organizations/"+o+"/invitations", owner.token, jsonBody("email", email, "role", "member")).want(201, "")
		s.post("/v1/invitations/accept", token, jsonBody("token", s.newestToken(email))).want(200, "")
		return email, testPassword
	},
	"command": func(s *testServer, email, _ string) (string, string) {
		if err := runAdmin(context.Background(), []string{email, "--password-stdin"}, s.environment(), strings.NewReader("another horse battery\n"), io.Discard); err != nil {
			s.t.Fatal(err)
		}
		return email, "another horse battery"
	},
}

// Proving an address ends every session that was there before, but for the one that proves it.
func TestProvedAddressEndsSessions(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t, func(c *config) { c.EmailVerification = false })
	for name, prove := range provings {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			email := strings.ReplaceAll(name, " ", "-") + "@example.com"
			token := s.registerUnproved(email)
			other := s.signInAs(email, testPassword).want(200, "").str("access_token")
			prove(s, email, token)
			s.get("/v1/users/me", other).want(401, "invalid_access_token")
		})
	}
}

// RFC 9068 section 2.2.1: an access token says how and when its session was signed in to, and a refresh changes none of
// it. Tokens of the version before, which say nothing, still work: other replicas make them during a rollout.
func TestAccessTokensSayHow(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada := s.newUser("ada@example.com", "user")
	s.exec("update sessions set created_at = now() - interval '1 hour'")
	refreshed := s.refreshWith(ada.refresh).want(200, "")
	lost := s.refreshWith(ada.refresh).want(200, "") // the reply was
	for _, a := range []answer{refreshed, lost} {
		c := s.claimsOf(a)
		if !slices.Equal(c.AMR, []string{"pwd"}) || c.ACR != aal1 || c.AuthTime.Unix() != scalar[int64](s, "select floor(extract(epoch from created_at))::bigint from sessions") {
			t.Error(c.AMR, c.ACR, c.AuthTime)
		}
	}
	n := newSession{user: user{ID: ada.id, Role: "user"}, SessionID: s.claimsOf(refreshed).SessionID, Generation: 2}
	token, err := s.keys.signAccess(n) // the members are there, but empty
	if err != nil {
		t.Fatal(err)
	}
	s.get("/v1/users/me", token).want(200, "")
	values := s.get("/.well-known/oauth-authorization-server", "").json()["acr_values_supported"]
	if !slices.Equal(values.([]any), []any{"aal1", "aal2"}) {
		t.Error(values)
	}
}

// RFC 9470: a session that is not young enough is told so, with how young it must be; here for the address.
func TestRecentSignIn(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada := s.newUser("ada@example.com", "user")
	s.exec("update sessions set created_at = now() - interval '14 minutes'")
	s.move(ada.token, "new@example.com", testPassword).want(202, "")
	s.exec("update sessions set created_at = now() - interval '16 minutes'")
	for _, a := range []answer{s.move(ada.token, "new@example.com", testPassword), s.deleteAs("/v1/users/me", ada.token)} {
		if got := a.want(403, "recent_sign_in_required").header.Get("WWW-Authenticate"); got != `Bearer error="insufficient_user_authentication", max_age=900` {
			t.Error(got)
		}
	}
}

// ASVS 7.2.4: signing in again with the refresh token at hand ends its session, if it is the same user's; whatever else
// comes there ends nothing and stands in nobody's way.
func TestSignInReplacesSession(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada, bob := s.newUser("ada@example.com", "user"), s.newUser("bob@example.com", "user")
	again := func(refresh string) {
		t.Helper()
		s.post("/v1/auth/token", "", url.Values{"grant_type": {"password"}, "username": {ada.email}, "password": {testPassword}, "refresh_token": {refresh}}).want(200, "")
	}
	for _, refresh := range []string{bob.refresh, "rt_forged", bob.refresh[:len(bob.refresh)-1] + "x"} {
		again(refresh)
	}
	s.get("/v1/users/me", ada.token).want(200, "")
	s.get("/v1/users/me", bob.token).want(200, "")
	again(ada.refresh)
	s.get("/v1/users/me", ada.token).want(401, "invalid_access_token")
	s.get("/v1/users/me", bob.token).want(200, "")
}

// An organization that requires a second factor is closed to sessions without, but for leaving it; nobody is removed.
// Only an owner who would pass says so.
func TestOrganizationRequiresSecondFactor(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o := s.newTeam("guarded")
	require := func(m member, required bool) answer {
		return s.patchAs(o.path, m.token, map[string]any{"second_factor_required": required})
	}
	raise := func(m member) {
		s.exec("update sessions set amr = '{pwd,otp,mfa}' where user_id = $1", m.id)
	}
	require(o.owner, true).want(403, "second_factor_required")
	raise(o.owner)
	raise(o.admin)
	require(o.admin, true).want(403, "forbidden")
	if a := require(o.owner, true).want(200, ""); a.json()["second_factor_required"] != true {
		t.Errorf("%s", a.body)
	}
	n := 0
	for _, rt := range s.routes() {
		if !strings.Contains(rt.pattern, "{organization_id}") || rt.access == platformAdmin {
			continue
		}
		n++
		q := matrixRequest(rt, cell{s: s, id: o.id, other: o.admin.id, invitation: newID(), token: newID(), me: o.member})
		if got := s.do(q).want(403, "second_factor_required").header.Get("WWW-Authenticate"); got != `Bearer error="insufficient_user_authentication", acr_values="aal2"` {
			t.Error(got)
		}
		q.token = o.outsider.token
		s.do(q).want(404, "not_found")
	}
	if n < 10 {
		t.Errorf("%d routes", n)
	}
	s.get(o.path, o.admin.token).want(200, "")
	s.get("/v1/users/me/memberships", o.member.token).want(200, "")
	s.deleteAs(o.path+"/memberships/"+o.member.id, o.member.token).want(204, "")
	s.exec("update sessions set amr = '{pwd}' where user_id = $1", o.owner.id)
	require(o.owner, false).want(403, "second_factor_required")
	raise(o.owner)
	require(o.owner, false).want(200, "")
}

// SECOND_FACTOR asks for one of platform admins, or of everybody; where one is added stays open.
func TestPlatformRequiresSecondFactor(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	all := s.newReplica(func(c *config) { c.SecondFactor = "all" })
	admins := s.newReplica(func(c *config) { c.SecondFactor = "admins" })
	root, ada := s.newUser("root@example.com", "admin"), s.newUser("ada@example.com", "user")
	check := func(s *testServer, m member, path string, status int, code string) {
		t.Helper()
		s.get(path, m.token).want(status, code)
	}
	check(s, root, "/v1/users", 200, "")
	for _, s := range []*testServer{admins, all} {
		check(s, root, "/v1/users", 403, "second_factor_required")
		check(s, ada, "/v1/users", 403, map[string]string{"admins": "forbidden", "all": "second_factor_required"}[s.cfg.SecondFactor])
		check(s, ada, "/v1/users/me", 200, "")
	}
	check(admins, ada, "/v1/organizations", 200, "")
	check(all, ada, "/v1/organizations", 403, "second_factor_required")
	s.exec("update sessions set amr = '{hwk,user,mfa}'")
	check(admins, root, "/v1/users", 200, "")
	check(all, root, "/v1/users", 200, "")
	check(all, ada, "/v1/organizations", 200, "")
	check(all, ada, "/v1/users", 403, "forbidden")
}

// ASVS 6.3.7: a change of rights is told, and one notice keeps none of another event back.
func TestSecurityNotices(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, throttled)
	root, ada := s.newUser("root@example.com", "admin"), s.newUser("ada@example.com", "user")
	for i, role := range []string{"admin", "user"} {
		s.patchAs("/v1/users/"+ada.id, root.token, map[string]any{"role": role}).want(200, "")
		if m := s.waitMail(ada.email, i+1); !strings.Contains(m.Text, map[string]string{"admin": "you are now an administrator", "user": "your role"}[role]) {
			t.Error(m.Text)
		}
	}
	s.patchAs("/v1/users/"+ada.id, root.token, map[string]any{"name": "Ada"}).want(200, "")
	if n := scalar[int](s, "select count(*) from mails"); n != 2 {
		t.Errorf("%d mails", n)
	}
}

// Every event that the program tells of has a line of its own in the mail: the last one is that of a role.
func TestEveryNoticeHasALine(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	seen := map[string]string{}
	for _, line := range strings.Split(readText(t, "mails/security_notice.txt"), "\n") {
		_, event, found := strings.Cut(line, `eq .Event "`)
		if !found {
			continue
		}
		event, _, _ = strings.Cut(event, `"`)
		notice := event + " 7"
		m, err := s.prepare(t.Context(), mailRow{ID: newID(), Kind: mailSecurityNotice, Notice: &notice})
		if err != nil || seen[m.Text] != "" || strings.Contains(m.Text, "your role") || strings.Contains(m.HTML, "\n\n\n") {
			t.Error(err, event, seen[m.Text], m.Text)
		}
		seen[m.Text] = event
	}
	events := slices.Collect(maps.Values(seen))
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	call := regexp.MustCompile(`s\.(?:notify|deleteSecondFactor|deletePasskeys)\([^"\n]*"([a-z_]+)`)
	for _, name := range files {
		for _, event := range call.FindAllStringSubmatch(readText(t, name), -1) {
			if !slices.Contains(events, event[1]) && event[1] != "role_changed_" {
				t.Errorf("%s: no line for %s", name, event[1])
			}
		}
	}
}

// ASVS 7.4.5: one command signs everybody out.
func TestEndAllSessions(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada, bob := s.newUser("ada@example.com", "user"), s.newUser("bob@example.com", "user")
	for _, args := range [][]string{nil, {"--end"}, {"--end-all", "x"}} {
		if err := run(t.Context(), append([]string{"sessions"}, args...), s.environment(), io.Discard); err == nil {
			t.Error(args)
		}
	}
	s.get("/v1/users/me", ada.token).want(200, "")
	var out strings.Builder
	if err := run(t.Context(), []string{"sessions", "--end-all"}, s.environment(), &out); err != nil || out.String() != "2 sessions ended\n" {
		t.Error(err, out.String())
	}
	for _, m := range []member{ada, bob} {
		s.get("/v1/users/me", m.token).want(401, "invalid_access_token")
		s.refreshWith(m.refresh).want(400, "invalid_grant")
	}
	if n := scalar[int](s, "select count(*) from audit_events where action = 'session.all_ended'"); n != 1 {
		t.Error("not in the trail")
	}
}

// ASVS 6.1.2: no password is made of the names of the service.
func TestPasswordsOfTheServiceName(t *testing.T) {
	t.Parallel()
	cfg := config{AppURL: "https://Portal.Example.org:8443", PublicURL: "https://api.example.org"}
	p := newPasswords(8, currentParams, cfg.words()...)
	for password, want := range map[string]string{"portal123456": "password_too_common", "Example2026!": "password_too_common",
		"portal.example.org": "password_too_common", "api.example.org1": "password_too_common", "roster-2026-": "password_too_common",
		"portal to narnia": "", "an example of words": "", "org12345678": ""} {
		if code, _ := p.problem(password, "ada@elsewhere.net"); code != want {
			t.Errorf("%s: %q", password, code)
		}
	}
}
