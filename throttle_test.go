// room:throttling

package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
)

// signInFrom tries a password from an address.
func (s *testServer) signInFrom(ip, email, password string) answer {
	s.t.Helper()
	return s.do(request{method: "POST", path: "/v1/auth/token", header: http.Header{"X-Forwarded-For": {ip}},
		body: url.Values{"grant_type": {"password"}, "username": {email}, "password": {password}}})
}

// R38, R39: ten failures of an account from one network, known or not, on all replicas together.
func TestThrottleAccount(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy, throttled)
	other := s.newReplica()
	m := s.newUser("ada@example.com", "user")
	for _, email := range []string{m.email, "nobody@example.com"} {
		for i := range 10 {
			[]*testServer{s, other}[i%2].signInFrom(fmt.Sprint("192.0.2.", i), strings.ToUpper(email), "wrong password").want(400, "invalid_grant")
		}
		s.signInFrom("192.0.2.99", email, testPassword).want(429, "too_many_attempts")
		a := other.signInFrom("192.0.2.99", email, testPassword).want(429, "too_many_attempts")
		if a.header.Get("Retry-After") == "" || a.str("error") != "temporarily_unavailable" {
			t.Errorf("%v %s", a.header, a.body)
		}
	}
	if n := scalar[int](s, `select count(*) from audit_events where action = 'limit.reached' and detail ->> 'limit' = 'failures_network' and ip is not null`); n != 2 {
		t.Errorf("%d events, want one an account and window", n)
	}
	// R41: another network, live sessions and refresh go on.
	s.signInFrom("203.0.113.1", m.email, testPassword).want(200, "")
	s.get("/v1/users/me", m.token).want(200, "")
	s.refreshWith(m.refresh).want(200, "")
	// When the window is over, or the password was reset, it begins anew.
	s.exec("update throttles set ends_at = now() - interval '1 second' where key like 'failures_network %'")
	s.signInFrom("192.0.2.99", m.email, testPassword).want(200, "")
	if n := scalar[int](s, "select count(*) from throttles where key like '%ada%' or key like '%@%'"); n != 0 {
		t.Error("a key holds an address")
	}
}

// R39: attempts at once do not slip past the limit, and a refusal takes no count back.
func TestThrottleConcurrent(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy, throttled)
	s.newUser("ada@example.com", "user")
	hashed := together(25, func(int) bool {
		a, err := s.try(request{method: "POST", path: "/v1/auth/token", header: http.Header{"X-Forwarded-For": {"192.0.2.1"}},
			body: url.Values{"grant_type": {"password"}, "username": {"ada@example.com"}, "password": {"wrong password"}}})
		return err == nil && a.status == 400
	})
	if hashed > 10 || hashed == 0 {
		t.Errorf("%d guesses were tried", hashed)
	}
}

// R41: a reset clears the counters, and right passwords do not use them up.
func TestThrottleForgets(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy, throttled)
	m := s.newUser("ada@example.com", "user")
	for range 12 {
		s.signInFrom("192.0.2.1", m.email, testPassword).want(200, "")
	}
	for range 10 {
		s.signInFrom("192.0.2.1", m.email, "wrong password").want(400, "invalid_grant")
	}
	s.signInFrom("192.0.2.1", m.email, testPassword).want(429, "too_many_attempts")
	s.post("/v1/auth/forgot-password", "", map[string]string{"email": m.email}).want(202, "")
	s.post("/v1/auth/reset-password", "", map[string]string{"token": s.waitMail(m.email, 1).Token, "password": "a new password 1"}).want(204, "")
	s.signInFrom("192.0.2.1", m.email, "a new password 1").want(200, "")
	// A verdict whose window has ended, or was forgotten, meanwhile takes nothing from the next one.
	if _, err := s.db.settleThrottles(t.Context(), []counter{s.counter(failures, hashed(m.email))}, false); err != nil {
		t.Fatal(err)
	}
	if n := scalar[int](s, "select min(least(count, pending)) from throttles where key like 'failures%'"); n != 0 {
		t.Errorf("a counter stands at %d", n)
	}
}

// R40, R104: thirty wrong credentials of any kind from a network in five minutes, 120 from an IPv6 site; who cannot be told
// is one network. What is right goes on (R103).
func TestThrottleNetwork(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy, throttled)
	m := s.newUser("eve@example.com", "user")
	from := func(ip, path, token string, body any) answer {
		t.Helper()
		return s.do(request{method: "POST", path: path, token: token, header: http.Header{"X-Forwarded-For": {ip}}, body: body})
	}
	link := map[string]string{"token": "x", "password": testPassword}
	refresh := func(token string) url.Values {
		return url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}}
	}
	wrong := []func(ip string) answer{
		func(ip string) answer { return from(ip, "/v1/auth/verify-email", "", link) },
		func(ip string) answer { return from(ip, "/v1/auth/reset-password", "", link) },
		func(ip string) answer {
			return from(ip, "/v1/auth/accept-invitation", "", map[string]string{"token": "x", "password": testPassword, "name": "Ada"})
		},
		func(ip string) answer { return from(ip, "/v1/auth/confirm-email", "", jsonBody("token", "x")) },
		func(ip string) answer { return from(ip, "/v1/invitations/accept", m.token, jsonBody("token", "x")) },
		func(ip string) answer { return from(ip, "/v1/auth/token", "", refresh("rt_forged")) },
		func(ip string) answer { return s.signInFrom(ip, "nobody"+newID()+"@example.com", "wrong password") },
	}
	for i := range 30 {
		if a := wrong[i%len(wrong)]("2001:db8::1"); a.status != 422 && a.status != 400 {
			t.Fatalf("%d: %d %s", i, a.status, a.body)
		}
	}
	for i, try := range wrong {
		try("2001:db8::ffff").want(429, "too_many_attempts")
		if a := try(fmt.Sprintf("2001:db8:0:%x::1", i+1)); a.status == 429 {
			t.Errorf("%d: the neighbouring network is refused too", i)
		}
	}
	// R103: what is genuine is not even looked at; register and forgot-password have a limit of their own.
	a := from("2001:db8::1", "/v1/auth/token", "", refresh(m.refresh)).want(200, "")
	s.do(request{path: "/v1/users/me", token: a.str("access_token"), header: http.Header{"X-Forwarded-For": {"2001:db8::1"}}}).want(200, "")
	from("2001:db8::1", "/v1/auth/forgot-password", "", jsonBody("email", "ada@example.com")).want(202, "")
	// R104: the /48 is full with 120, from however many networks.
	for i := range 120 {
		wrong[3](fmt.Sprintf("2001:db8:1:%x::1", i)).want(422, "invalid_token")
	}
	wrong[3]("2001:db8:1:ffff::1").want(429, "too_many_attempts")
	s.signInFrom("2001:db8:1:eeee::1", m.email, testPassword).want(429, "too_many_attempts")
	s.signInFrom("2001:db8:2::1", m.email, testPassword).want(200, "")
	for address, networks := range map[string][2]string{"": {"unknown", ""}, "192.0.2.77": {"192.0.2.0/24", ""},
		"2001:db8:0:1:2::3": {"2001:db8:0:1::/64", "2001:db8::/48"}} {
		ip, _ := netip.ParseAddr(address)
		if got := [2]string{networkOf(ip), siteOf(ip)}; got != networks {
			t.Errorf("%q belongs to %s", address, got)
		}
	}
}

// R102: calls that mail strangers or hash for them, a hundred of a network in five minutes.
func TestThrottleStrangers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy, throttled)
	ask := func(ip, path string) answer {
		t.Helper()
		body := map[string]string{"email": "ada" + newID()[28:] + "@example.com"}
		if path == "register" {
			body["password"], body["name"] = testPassword, "Ada"
		}
		return s.do(request{method: "POST", path: "/v1/auth/" + path, header: http.Header{"X-Forwarded-For": {ip}}, body: body})
	}
	for i := range 100 {
		ask("192.0.2.1", []string{"register", "forgot-password"}[i%2]).want(202, "")
	}
	for _, path := range []string{"register", "forgot-password"} {
		ask("192.0.2.99", path).want(429, "too_many_attempts")
		ask("198.51.100.1", path).want(202, "")
	}
	s.exec("update throttles set count = 400 where key like 'strangers_site %'")
	ask("2001:db8::1", "register").want(202, "")
	s.exec("update throttles set count = 400 where key like 'strangers_site %'")
	ask("2001:db8:0:5::1", "register").want(429, "too_many_attempts")
}

// R103: however many right passwords at once, nobody is refused and nothing stays counted.
func TestThrottleManyRight(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy, throttled)
	m := s.newUser("ada@example.com", "user")
	if n := together(40, func(int) bool {
		a, err := s.try(request{method: "POST", path: "/v1/auth/token", header: http.Header{"X-Forwarded-For": {"192.0.2.1"}},
			body: url.Values{"grant_type": {"password"}, "username": {m.email}, "password": {testPassword}}})
		return err == nil && a.status == 200
	}); n != 40 {
		t.Errorf("%d of 40 right sign-ins at once were let in", n)
	}
	if n := scalar[int](s, "select coalesce(sum(count + pending), 0) from throttles where key not like 'changes %'"); n != 0 {
		t.Errorf("%d attempts stay counted", n)
	}
	// An office at nine: each once, each right.
	for i := range 35 {
		u := s.bareUser(fmt.Sprintf("user%d@example.com", i), "X", "user")
		s.signInFrom("192.0.2.9", u.Email, testPassword).want(200, "")
	}
}

// R103: what one network is refused does not count elsewhere: 81 refused calls do not lock the owner out.
func TestThrottleRefusedElsewhere(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy, throttled)
	m := s.newUser("ada@example.com", "user")
	for i := range 120 {
		want := 400
		if i >= 10 {
			want = 429
		}
		if a := s.signInFrom("192.0.2.1", m.email, "wrong password"); a.status != want {
			t.Fatalf("%d: %d", i, a.status)
		}
	}
	if n := scalar[int](s, "select count from throttles where key like 'failures %'"); n != 10 {
		t.Errorf("%d failures of the account", n)
	}
	s.signInFrom("203.0.113.1", m.email, testPassword).want(200, "")
}

// R103: places that died with their replica are free again.
func TestThrottleLostPlaces(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy, throttled)
	m := s.newUser("ada@example.com", "user")
	s.signInFrom("192.0.2.1", m.email, testPassword).want(200, "")
	s.exec("update throttles set pending = 1000, pending_until = now() - interval '1 second'")
	s.signInFrom("192.0.2.1", m.email, testPassword).want(200, "")
	s.exec("update throttles set pending = 1000, pending_until = now() + interval '1 minute'")
	s.signInFrom("192.0.2.1", m.email, testPassword).want(503, "overloaded")
}

// LIMITS changes the numbers of the table by name, and nothing else.
func TestLimits(t *testing.T) {
	t.Parallel()
	changed, err := parseLimits(" credentials=2/5m, mails=20/2h ")
	if err != nil || changed[credentials].count != 2 || changed[mailsHour].window != 2*time.Hour || changed[failures].count != 100 || len(changed) != len(limitTable) {
		t.Fatal(changed, err)
	}
	for _, bad := range []string{"x=1/1m", "credentials", "credentials=", "credentials=1", "credentials=0/1m", "credentials=-1/1m", "credentials=1/0s", "credentials=1/1",
		"credentials=1/10000h", "credentials=1.5/1m", "credentials=9999999999/1m", "credentials=1/1m,", ",", "=1/1m", "credentials = 1/1m"} {
		if _, err := parseLimits(bad); err == nil || strings.Contains(err.Error(), "9999") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	s := newTestServer(t, behindProxy, throttled, func(c *config) { c.limits = changed })
	for range 2 {
		s.signInFrom("192.0.2.1", "nobody@example.com", "wrong password").want(400, "invalid_grant")
	}
	s.signInFrom("192.0.2.1", "nobody@example.com", "wrong password").want(429, "too_many_attempts")
}

// R38: a hundred failures of an account in an hour, from wherever they come, and a reset forgets all of them.
func TestThrottleEverywhere(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy, throttled)
	m := s.newUser("ada@example.com", "user")
	s.signInFrom("192.0.2.1", m.email, "wrong password").want(400, "invalid_grant")
	s.exec("update throttles set count = 99 where key like 'failures %'")
	s.signInFrom("198.51.100.1", m.email, "wrong password").want(400, "invalid_grant")
	s.signInFrom("203.0.113.1", m.email, testPassword).want(429, "too_many_attempts")
	s.post("/v1/auth/forgot-password", "", map[string]string{"email": m.email}).want(202, "")
	s.post("/v1/auth/reset-password", "", map[string]string{"token": s.waitMail(m.email, 1).Token, "password": "a new password 1"}).want(204, "")
	if n := scalar[int](s, "select count(*) from throttles where key like 'failures%'"); n != 0 {
		t.Errorf("%d counters of the account are left", n)
	}
	s.signInFrom("203.0.113.1", m.email, "a new password 1").want(200, "")
}

// R38: neither a right password nor a reset takes back what was counted of another account.
func TestThrottleOfOthers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy, throttled)
	m := s.newUser("ada@example.com", "user")
	s.exec("delete from throttles")
	s.signInFrom("192.0.2.1", "victim@example.com", "wrong password").want(400, "invalid_grant")
	keys := scalar[[]string](s, "select array_agg(key) from throttles where key like 'failures%'")
	s.signInFrom("192.0.2.1", m.email, testPassword).want(200, "")
	s.post("/v1/auth/forgot-password", "", map[string]string{"email": m.email}).want(202, "")
	s.post("/v1/auth/reset-password", "", map[string]string{"token": s.waitMail(m.email, 1).Token, "password": "a new password 1"}).want(204, "")
	if n := scalar[int](s, "select count(*) from throttles where key = any($1) and count = 1", keys); n != 2 || len(keys) != 2 {
		t.Errorf("%d of the counters %v are as they were", n, keys)
	}
}

// R38, R40: each window is as long as promised, begins with its first call and is not moved by later ones; the answer
// says how much of it is left.
func TestThrottleWindows(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy, throttled)
	m := s.newUser("ada@example.com", "user")
	s.exec("delete from throttles")
	s.signInFrom("192.0.2.1", m.email, "wrong password").want(400, "invalid_grant")
	s.post("/v1/auth/forgot-password", "", jsonBody("email", m.email)).want(202, "")
	begun := map[string]string{}
	for name, length := range map[string]string{"failures_network": "15 minutes", "failures": "1 hour", "credentials": "5 minutes", "strangers": "5 minutes"} {
		if !scalar[bool](s, "select ends_at > now() + $2::interval - interval '2 minutes' and ends_at <= now() + $2::interval from throttles where key like $1 || ' %'", name, length) {
			t.Errorf("the window of %s is not %s", name, length)
		}
		begun[name] = scalar[string](s, "select ends_at::text from throttles where key like $1 || ' %'", name)
	}
	s.exec("update throttles set count = 10 where key like 'failures_network %'")
	if wait, _ := strconv.Atoi(s.signInFrom("192.0.2.1", m.email, testPassword).want(429, "too_many_attempts").header.Get("Retry-After")); wait < 13*60 || wait > 15*60 {
		t.Errorf("Retry-After is %d", wait)
	}
	for name, end := range begun {
		if now := scalar[string](s, "select ends_at::text from throttles where key like $1 || ' %'", name); now != end {
			t.Errorf("the window of %s moved from %s to %s", name, end, now)
		}
	}
	// Over is over: the next call begins a window of its own, with a count of one.
	s.exec("update throttles set ends_at = now() - interval '1 second', count = 1000")
	s.signInFrom("192.0.2.1", m.email, "wrong password").want(400, "invalid_grant")
	if n := scalar[int](s, "select count(*) from throttles where ends_at > now() and count = 1"); n != 3 {
		t.Errorf("%d counters began anew", n)
	}
}

// THROTTLE=off counts nothing and takes nothing back.
func TestThrottleOff(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy, throttled)
	m := s.newUser("ada@example.com", "user")
	s.signInFrom("192.0.2.1", m.email, "wrong password").want(400, "invalid_grant")
	s.exec("update throttles set count = 1000")
	before := scalar[string](s, "select jsonb_agg(t order by key)::text from throttles t")
	off := s.newReplica(func(c *config) { c.Throttle = "off" })
	off.signInFrom("192.0.2.1", m.email, "wrong password").want(400, "invalid_grant")
	off.signInFrom("192.0.2.1", m.email, testPassword).want(200, "")
	if now := scalar[string](s, "select jsonb_agg(t order by key)::text from throttles t"); now != before {
		t.Errorf("counted: %s, then %s", before, now)
	}
}

// R14, R42: nobody who is signed in mails strangers without end, makes others wait for the hashing gate, or has this
// replica make one big document after the other.
func TestThrottleSignedIn(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, throttled)
	ada := s.newUser("ada@example.com", "user")
	org := s.post("/v1/organizations", ada.token, jsonBody("name", "Engines")).want(201, "").str("id")
	for _, tc := range []struct {
		limit string
		ask   request
		done  int
	}{
		{emailChanges, request{method: "POST", path: "/v1/users/me/email", body: jsonBody("email", "new@example.com", "password", testPassword)}, 202},
		{invitationsUser, request{method: "POST", path: "/v1/organizations/" + org + "/invitations", body: jsonBody("email", "guest@example.com", "role", "member")}, 201},
		{exports, request{path: "/v1/users/me/export"}, 200},
		{foundings, request{method: "POST", path: "/v1/organizations", body: jsonBody("name", "Looms")}, 201},
		{credentials, request{method: "PUT", path: "/v1/users/me/password", body: jsonBody("current_password", "wrong", "new_password", "a new password 1")}, 422},
		{credentials, request{method: "POST", path: "/v1/users/me/email", body: jsonBody("email", "new@example.com", "password", "wrong")}, 422},
		{credentials, request{method: "POST", path: "/v1/auth/confirm-email", body: jsonBody("token", "none")}, 422},
		{credentials, request{method: "POST", path: "/v1/invitations/accept", body: jsonBody("token", "none")}, 422},
		{changes, request{method: "PATCH", path: "/v1/users/me", body: jsonBody("name", "Ada")}, 200},
		{changes, request{method: "DELETE", path: "/v1/users/me/sessions"}, 204},
	} {
		tc.ask.token = ada.token
		s.exec("delete from throttles")
		if a := s.do(tc.ask); a.status != tc.done {
			t.Errorf("%s: %d %s", tc.ask.path, a.status, a.body)
		}
		s.exec("update throttles set count = $1 where key like $2", s.cfg.limits[tc.limit].count, tc.limit+" %")
		if a := s.do(tc.ask); a.code() != "too_many_attempts" || a.header.Get("Retry-After") == "" {
			t.Errorf("%s above %s: %d %s", tc.ask.path, tc.limit, a.status, a.body)
		}
	}
}
