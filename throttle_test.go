package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"
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
	if n := scalar[int](s, `select count(*) from audit_events where action = 'limit.reached' and detail ->> 'limit' = 'failures/network' and ip is not null`); n != 2 {
		t.Errorf("%d events, want one an account and window", n)
	}
	// R41: another network, live sessions and refresh go on.
	s.signInFrom("203.0.113.1", m.email, testPassword).want(200, "")
	s.get("/v1/users/me", m.token).want(200, "")
	s.refreshWith(m.refresh).want(200, "")
	// When the window is over, or the password was reset, it begins anew.
	s.exec("update throttles set ends_at = now() - interval '1 second' where key like 'failures/%'")
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
	// A success whose window has ended, or was forgotten, meanwhile takes nothing from the next one.
	if err := s.db.decrementThrottles(t.Context(), keysOf(passwordAttempts(caller{ip: netip.MustParseAddr("192.0.2.1")}, m.email))); err != nil {
		t.Fatal(err)
	}
	if n := scalar[int](s, "select min(count) from throttles where key like 'failures%'"); n != 0 {
		t.Errorf("a counter stands at %d", n)
	}
}

// R40: thirty credential calls and 150 refreshes of a network in five minutes; who cannot be told is one network.
func TestThrottleNetwork(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy, throttled)
	from := http.Header{"X-Forwarded-For": {"2001:db8::1"}}
	for range 30 {
		s.do(request{method: "POST", path: "/v1/auth/verify-email", header: from, body: map[string]string{"token": "x", "password": "x"}}).want(422, "invalid_token")
	}
	for _, path := range []string{"register", "forgot-password", "reset-password", "verify-email", "accept-invitation"} {
		body := map[string]string{"token": "x", "password": testPassword, "name": "Ada", "email": "ada@example.com"}
		for _, unknown := range map[string][]string{"register": {"token"}, "forgot-password": {"token", "password", "name"}, "reset-password": {"name", "email"},
			"verify-email": {"name", "email"}, "accept-invitation": {"email"}}[path] {
			delete(body, unknown)
		}
		s.do(request{method: "POST", path: "/v1/auth/" + path, header: http.Header{"X-Forwarded-For": {"2001:db8::ffff"}}, body: body}).want(429, "too_many_attempts")
		if a := s.do(request{method: "POST", path: "/v1/auth/" + path, header: http.Header{"X-Forwarded-For": {"2001:db8:0:1::1"}}, body: body}); a.status == 429 {
			t.Errorf("%s: the neighbouring network is refused too", path)
		}
	}
	m := s.newUser("eve@example.com", "user")
	s.refreshWith(m.refresh).want(200, "")
	s.exec("update throttles set count = 149 where key like 'refresh %'")
	s.refreshWith(m.refresh).want(200, "")
	s.refreshWith(m.refresh).want(429, "too_many_attempts")
	for address, network := range map[string]string{"": "unknown", "192.0.2.77": "192.0.2.0/24", "2001:db8:0:1:2::3": "2001:db8:0:1::/64"} {
		ip, _ := netip.ParseAddr(address)
		if got := networkOf(ip); got != network {
			t.Errorf("%q belongs to %s", address, got)
		}
	}
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
	s.refreshWith(m.refresh).want(200, "")
	begun := map[string]string{}
	for name, length := range map[string]string{"failures/network": "15 minutes", "failures": "1 hour", "credentials": "5 minutes", "refresh": "5 minutes"} {
		if !scalar[bool](s, "select ends_at > now() + $2::interval - interval '2 minutes' and ends_at <= now() + $2::interval from throttles where key like $1 || ' %'", name, length) {
			t.Errorf("the window of %s is not %s", name, length)
		}
		begun[name] = scalar[string](s, "select ends_at::text from throttles where key like $1 || ' %'", name)
	}
	s.exec("update throttles set count = 10 where key like 'failures/network %'")
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
		limit limit
		ask   request
		done  int
	}{
		{emailChanges, request{method: "POST", path: "/v1/users/me/email", body: jsonBody("email", "new@example.com", "password", testPassword)}, 202},
		{invitations, request{method: "POST", path: "/v1/organizations/" + org + "/invitations", body: jsonBody("email", "guest@example.com", "role", "member")}, 201},
		{exports, request{path: "/v1/users/me/export"}, 200},
		{foundings, request{method: "POST", path: "/v1/organizations", body: jsonBody("name", "Looms")}, 201},
		{credentialCalls, request{method: "PUT", path: "/v1/users/me/password", body: jsonBody("current_password", "wrong", "new_password", "a new password 1")}, 422},
		{credentialCalls, request{method: "POST", path: "/v1/users/me/email", body: jsonBody("email", "new@example.com", "password", "wrong")}, 422},
		{credentialCalls, request{method: "POST", path: "/v1/auth/confirm-email", body: jsonBody("token", "none")}, 422},
	} {
		tc.ask.token = ada.token
		s.exec("delete from throttles")
		if a := s.do(tc.ask); a.status != tc.done {
			t.Errorf("%s: %d %s", tc.ask.path, a.status, a.body)
		}
		s.exec("update throttles set count = $1 where key like $2", tc.limit.count, tc.limit.name+" %")
		if a := s.do(tc.ask); a.code() != "too_many_attempts" || a.header.Get("Retry-After") == "" {
			t.Errorf("%s above %s: %d %s", tc.ask.path, tc.limit.name, a.status, a.body)
		}
	}
}
