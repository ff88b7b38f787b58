// room:second-factor

package main

import (
	"encoding/base32"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func init() {
	maps.Copy(matrixRequests, map[string]func(c cell) request{
		"GET /v1/users/me/second-factor":  func(cell) request { return request{} },
		"POST /v1/users/me/second-factor": func(cell) request { return request{} },
		"PUT /v1/users/me/second-factor": func(c cell) request {
			if c.me.token == "" {
				return request{body: jsonBody("token", "x", "otp", "x")}
			}
			a := c.s.post("/v1/users/me/second-factor", c.me.token, nil)
			if a.status != 201 {
				return request{body: jsonBody("token", "x", "otp", "x")}
			}
			return request{body: jsonBody("token", a.str("token"), "otp", c.s.code(a.str("secret"), 0))}
		},
		"DELETE /v1/users/me/second-factor":        func(c cell) request { c.s.insertFactor(c.me.id); return request{} },
		"POST /v1/users/me/recovery-codes":         func(c cell) request { c.s.insertFactor(c.me.id); return request{} },
		"DELETE /v1/users/{user_id}/second-factor": func(c cell) request { return request{path: "/v1/users/" + c.other + "/second-factor"} },
	})
	maps.Copy(auditActions, map[string]string{
		"POST /v1/users/me/second-factor":          "",
		"PUT /v1/users/me/second-factor":           "second_factor.enabled",
		"DELETE /v1/users/me/second-factor":        "second_factor.disabled",
		"POST /v1/users/me/recovery-codes":         "recovery_codes.replaced",
		"DELETE /v1/users/{user_id}/second-factor": "second_factor.reset",
	})
	maps.Copy(stateRefusals, map[string][]string{"enableSecondFactor": {"422"}, "replaceRecoveryCodes": {"409"}, "resetSecondFactor": {"409"}})
	semantic["enableSecondFactor"] = []string{"invalid_token"}
	withoutSuccess = append(withoutSuccess, "enableSecondFactor", "resetSecondFactor")
}

// insertFactor gives a user a second factor behind the server's back.
func (s *testServer) insertFactor(userID string) (secret []byte) {
	s.t.Helper()
	secret = []byte("12345678901234567890")
	s.exec("insert into second_factors (user_id, secret, last_step) values ($1, $2, 0) on conflict do nothing", userID, s.keys.seal(secret, userID))
	return secret
}

// code is what an authenticator app shows now, or so many steps later.
func (s *testServer) code(secret string, later int64) string {
	s.t.Helper()
	raw, err := base32.StdEncoding.DecodeString(secret)
	if err != nil {
		s.t.Fatal(err)
	}
	return totp(raw, s.step()+later)
}

func (s *testServer) step() int64 { return scalar[int64](s, "select "+secondFactorStep) }

// settled waits until the step of time has at least so many seconds left, so that what follows happens in one.
func (s *testServer) settled(seconds int) {
	for 30-scalar[int](s, "select extract(epoch from clock_timestamp())::integer % 30") < seconds {
		time.Sleep(250 * time.Millisecond)
	}
}

// enable adds a second factor by the code of the step before, so that the one of now is left, and returns its secret and
// the recovery codes.
func (s *testServer) enable(token string) (secret string, codes []string) {
	s.t.Helper()
	a := s.post("/v1/users/me/second-factor", token, nil).want(201, "")
	secret = a.str("secret")
	a = s.do(request{method: "PUT", path: "/v1/users/me/second-factor", token: token,
		body: jsonBody("token", a.str("token"), "otp", s.code(secret, -1))}).want(200, "")
	for _, code := range a.json()["recovery_codes"].([]any) {
		codes = append(codes, code.(string))
	}
	return secret, codes
}

func (s *testServer) signInWith(email, password, otp string) answer {
	s.t.Helper()
	return s.post("/v1/auth/token", "", url.Values{"grant_type": {"password"}, "username": {email}, "password": {password}, "otp": {otp}})
}

// RFC 6238 appendix B, the column of SHA-1: the last six of its eight digits.
func TestTOTPVectors(t *testing.T) {
	t.Parallel()
	secret := []byte("12345678901234567890")
	for at, want := range map[int64]string{59: "287082", 1111111109: "081804", 1111111111: "050471", 1234567890: "005924",
		2000000000: "279037", 20000000000: "353130"} {
		if got := totp(secret, at/30); got != want {
			t.Errorf("at %d: %s, want %s", at, got, want)
		}
		for drift, accepted := range map[int64]int64{-2: 0, -1: at/30 - 1, 0: at / 30, 1: at/30 + 1, 2: 0} {
			if got := totpStep(secret, at/30, totp(secret, at/30+drift)); got != accepted {
				t.Errorf("%d steps off: %d", drift, got)
			}
		}
	}
}

// RFC 6238 section 5.2: a code works once, and none that is older than one that worked; the code of the enrolment is one.
func TestSecondFactorSignIn(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada := s.newUser("ada@example.com", "user")
	other := s.signInAs(ada.email, testPassword).want(200, "").str("access_token")
	s.get("/v1/users/me/second-factor", ada.token).want(200, "")
	s.settled(10)
	secret, codes := s.enable(ada.token)
	s.get("/v1/users/me", other).want(401, "invalid_access_token")
	if state := s.get("/v1/users/me/second-factor", ada.token).want(200, "").json(); state["enabled"] != true || state["recovery_codes_left"] != 10.0 {
		t.Error(state)
	}
	now := s.code(secret, 0)
	s.signInAs(ada.email, testPassword).want(400, "otp_required")
	for name, code := range map[string]string{
		"of the enrolment": s.code(secret, -1), "of yesterday": s.code(secret, -2880), "of tomorrow": s.code(secret, 2880), "two steps early": s.code(secret, 2),
		"short": now[:5], "long": now + "0", "letters": "abcdef", "of other digits": "１２３４５６", "a recovery code of nobody": strings.Repeat("A", 26),
		"half a recovery code": codes[0][:13], "with a line break": now + "\n", "a quote": "'; --", "nothing but hyphens": "---",
	} {
		if a := s.signInWith(ada.email, testPassword, code); a.status != 400 || a.code() != "otp_invalid" {
			t.Errorf("%s: %d %s", name, a.status, a.code())
		}
	}
	s.signInWith(ada.email, testPassword, now[:3]+" "+now[3:]).want(200, "")
	s.signInWith(ada.email, testPassword, now).want(400, "otp_invalid")
	s.signInWith(ada.email, testPassword, s.code(secret, 1)).want(200, "")
	s.signInWith(ada.email, testPassword, now).want(400, "otp_invalid") // older than one that worked
	s.signInWith(ada.email, testPassword, strings.ToLower(codes[0])).want(200, "")
	s.signInWith(ada.email, testPassword, codes[0]).want(400, "otp_invalid")
	if m := s.waitMail(ada.email, 2); !strings.Contains(m.Text, "9 are left") {
		t.Error(m.Text)
	}
	// Without a factor a code is nothing to look at.
	bob := s.newUser("bob@example.com", "user")
	s.signInWith(bob.email, testPassword, "000000").want(200, "")
}

// A stranger learns nothing: whatever code comes with a wrong password, the answer is that of an unknown address.
func TestSecondFactorTellsStrangersNothing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada := s.newUser("ada@example.com", "user")
	secret, codes := s.enable(ada.token)
	strip := func(a answer) string {
		v := a.json()
		delete(v, "request_id")
		return fmt.Sprint(a.status, v)
	}
	want := strip(s.signInAs("nobody@example.com", "wrong password"))
	for _, code := range []string{s.code(secret, 0), codes[0], "000000", "x"} {
		if got := strip(s.signInWith(ada.email, "wrong password", code)); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	s.signInWith(ada.email, testPassword, codes[0]).want(200, "") // nothing was spent
}

// Fifty at once with one code, of the app or for recovery, from two replicas: one session.
func TestSecondFactorCodeOnce(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	replicas := []*testServer{s, s.newReplica()}
	ada := s.newUser("ada@example.com", "user")
	s.settled(15)
	secret, codes := s.enable(ada.token)
	for _, code := range []string{s.code(secret, 1), codes[3]} {
		var all sync.WaitGroup
		statuses := make([]string, 50)
		for i := range statuses {
			all.Go(func() {
				a, err := replicas[i%2].try(request{method: "POST", path: "/v1/auth/token", body: url.Values{
					"grant_type": {"password"}, "username": {ada.email}, "password": {testPassword}, "otp": {code}}})
				statuses[i] = fmt.Sprint(a.status, err)
				if err == nil && a.status == 400 {
					statuses[i] = a.code()
				}
			})
		}
		all.Wait()
		counts := map[string]int{}
		for _, status := range statuses {
			counts[status]++
		}
		if counts["200 <nil>"] != 1 || counts["otp_invalid"]+counts["200 <nil>"]+counts["503 <nil>"] != 50 {
			t.Error(counts)
		}
	}
	if n := scalar[int](s, "select count(*) from sessions where 'mfa' = any(amr)"); n != 3 {
		t.Errorf("%d sessions", n)
	}
}

// RFC 6238 section 5.1: wrong codes are few, whatever comes between: right passwords, a new password by mail. The owner
// learns at the fifth that somebody knows the password.
func TestSecondFactorLimits(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, throttled)
	ada := s.newUser("ada@example.com", "user")
	secret, codes := s.enable(ada.token)
	mails := 1
	for i := range 10 {
		if i == 5 {
			mails++
			if m := s.waitMail(ada.email, mails); !strings.Contains(m.Text, "5 wrong codes") {
				t.Error(m.Text)
			}
		}
		s.signInWith(ada.email, testPassword, "x").want(400, "otp_invalid")
		s.signInAs(ada.email, testPassword).want(400, "otp_required")
	}
	for _, code := range []string{"x", s.code(secret, 0), codes[0]} {
		if a := s.signInWith(ada.email, testPassword, code).want(429, "too_many_attempts"); a.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
	s.signInAs(ada.email, testPassword).want(400, "otp_required") // says nothing of the code
	s.post("/v1/auth/forgot-password", "", jsonBody("email", ada.email)).want(202, "")
	token := s.waitMail(ada.email, mails+1).Token
	s.post("/v1/auth/reset-password", "", jsonBody("token", token, "password", "another horse battery")).want(204, "")
	s.signInWith(ada.email, "another horse battery", codes[0]).want(429, "too_many_attempts")
	// The day has a limit of its own.
	s.exec("delete from throttles where key = $1", otpHour+" "+ada.id)
	s.exec("update throttles set count = 30 where key = $1", otpDay+" "+ada.id)
	s.signInWith(ada.email, "another horse battery", codes[0]).want(429, "too_many_attempts")
	s.exec("update throttles set count = 29 where key = $1", otpDay+" "+ada.id)
	again := s.signInWith(ada.email, "another horse battery", codes[0]).want(200, "")
	if n := scalar[int](s, "select count from throttles where key = $1", otpDay+" "+ada.id); n != 29 {
		t.Errorf("a right code left %d failures", n)
	}
	s.enable(again.str("access_token"))
	if n := scalar[int](s, "select count(*) from throttles where key like 'otp%'"); n != 0 {
		t.Error("enabling anew left failures of the secret before")
	}
}

// As long as an account has a second factor every session of it passed one: sign-ins with the password alone lose the race.
func TestSecondFactorEnabledWhileSigningIn(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada := s.newUser("ada@example.com", "user")
	start := s.post("/v1/users/me/second-factor", ada.token, nil).want(201, "")
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			_, _ = s.try(request{method: "POST", path: "/v1/auth/token", body: url.Values{
				"grant_type": {"password"}, "username": {ada.email}, "password": {testPassword}}})
		})
	}
	s.do(request{method: "PUT", path: "/v1/users/me/second-factor", token: ada.token,
		body: jsonBody("token", start.str("token"), "otp", s.code(start.str("secret"), 0))}).want(200, "")
	all.Wait()
	if n := scalar[int](s, "select count(*) from sessions where not amr @> '{otp,mfa}'"); n != 0 {
		t.Errorf("%d sessions passed no second factor", n)
	}
}

// What begins an enrolment is for one session, one user and ten minutes; whatever else comes is refused alike.
func TestSecondFactorEnrolment(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada, bob := s.newUser("ada@example.com", "user"), s.newUser("bob@example.com", "user")
	again := s.signInAs(ada.email, testPassword).want(200, "").str("access_token")
	put := func(token, enrolment, otp string) answer {
		return s.do(request{method: "PUT", path: "/v1/users/me/second-factor", token: token, body: jsonBody("token", enrolment, "otp", otp)})
	}
	start := s.post("/v1/users/me/second-factor", ada.token, nil).want(201, "")
	secret, token := start.str("secret"), start.str("token")
	if uri := start.str("uri"); !strings.HasPrefix(uri, "otpauth://totp/app.example:ada@example.com?") || !strings.Contains(uri, "secret="+secret) {
		t.Error(uri)
	}
	for i := range token {
		cut := put(ada.token, token[:max(i, 1)], s.code(secret, 0)).want(422, "invalid_fields").fields()
		other := byte('A')
		if token[i] == 'A' {
			other = 'B'
		}
		changed := put(ada.token, token[:i]+string(other)+token[i+1:], s.code(secret, 0)).want(422, "invalid_fields").fields()
		if cut["/token"] != "invalid_token" || changed["/token"] != "invalid_token" {
			t.Fatal(i, cut, changed)
		}
	}
	for name, as := range map[string]string{"another session": again, "another user": bob.token} {
		if put(as, token, s.code(secret, 0)).want(422, "invalid_fields").fields()["/token"] == "" {
			t.Error(name)
		}
	}
	claims, err := s.keys.verifyAccess(ada.token)
	if err != nil {
		t.Fatal(err)
	}
	me := caller{user: user{ID: ada.id}, session: claims.SessionID}
	expired := s.keys.seal(append(make([]byte, 8), make([]byte, totpSecret)...), enrolmentPlace(me))
	stored := s.keys.seal(append(make([]byte, 8), make([]byte, totpSecret)...), ada.id)
	for _, sealed := range [][]byte{expired, stored, nil, []byte("x")} {
		put(ada.token, "x"+fmt.Sprintf("%x", sealed), "000000").want(422, "invalid_fields")
	}
	for _, otp := range []string{"000000x", "abc", s.code(secret, 3), s.code(secret, -3)} {
		if put(ada.token, token, otp).want(422, "invalid_fields").fields()["/otp"] != "otp_invalid" {
			t.Error(otp)
		}
	}
	s.post("/v1/users/me/recovery-codes", ada.token, nil).want(409, "no_second_factor")
	s.do(request{method: "DELETE", path: "/v1/users/me/second-factor", token: ada.token}).want(404, "not_found")
	if n := scalar[int](s, "select count(*) from second_factors"); n != 0 {
		t.Error("something was stored")
	}
	put(ada.token, token, s.code(secret, 0)).want(200, "")
}

// NIST SP 800-63B-4 section 4.1.2.1: who changes how they sign in has just signed in.
func TestSecondFactorNeedsRecentSignIn(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	root, ada := s.newUser("root@example.com", "admin"), s.newUser("ada@example.com", "user")
	s.exec("update sessions set created_at = now() - interval '16 minutes'")
	n := 0
	for _, rt := range s.routes() {
		_, path, _ := strings.Cut(rt.pattern, " ")
		if method, _, _ := strings.Cut(rt.pattern, " "); method != "GET" && (strings.HasSuffix(path, "second-factor") || strings.HasSuffix(path, "recovery-codes")) {
			n++
			a := s.do(request{method: method, path: strings.Replace(path, "{user_id}", ada.id, 1), token: root.token, body: jsonBody()})
			if a.want(403, "recent_sign_in_required").header.Get("WWW-Authenticate") != `Bearer error="insufficient_user_authentication", max_age=900` {
				t.Error(a.header)
			}
		}
	}
	if n != 5 {
		t.Errorf("%d routes", n)
	}
	s.get("/v1/users/me/second-factor", root.token).want(200, "")
}

// Disabling keeps the session that asks, but it has passed nothing any more; the others end.
func TestSecondFactorDisabled(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada := s.newUser("ada@example.com", "user")
	s.settled(10)
	secret, codes := s.enable(ada.token)
	other := s.signInWith(ada.email, testPassword, s.code(secret, 0)).want(200, "")
	fresh := s.post("/v1/users/me/recovery-codes", ada.token, nil).want(200, "").json()["recovery_codes"].([]any)
	s.signInWith(ada.email, testPassword, codes[0]).want(400, "otp_invalid")
	s.signInWith(ada.email, testPassword, fresh[0].(string)).want(200, "")
	s.do(request{method: "DELETE", path: "/v1/users/me/second-factor", token: ada.token}).want(204, "")
	s.get("/v1/users/me", other.str("access_token")).want(401, "invalid_access_token")
	s.get("/v1/users/me", ada.token).want(200, "")
	if amr := s.claimsOf(s.refreshWith(ada.refresh).want(200, "")).AMR; !slices.Equal(amr, []string{"pwd"}) {
		t.Error(amr)
	}
	s.signInAs(ada.email, testPassword).want(200, "")
	if n := scalar[int](s, "select (select count(*) from second_factors) + (select count(*) from recovery_codes)"); n != 0 {
		t.Error("something is left")
	}
}

// A lost device: an admin takes the factor off, never their own; so does the command.
func TestSecondFactorReset(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	root, ada := s.newUser("root@example.com", "admin"), s.newUser("ada@example.com", "user")
	s.enable(ada.token)
	s.enable(root.token)
	reset := func(id string) answer {
		return s.do(request{method: "DELETE", path: "/v1/users/" + id + "/second-factor", token: root.token})
	}
	reset(root.id).want(409, "own_account")
	reset(newID()).want(404, "not_found")
	reset(ada.id).want(204, "")
	s.get("/v1/users/me", ada.token).want(401, "invalid_access_token")
	s.signInAs(ada.email, testPassword).want(200, "")
	if m := s.waitMail(ada.email, 2); !strings.Contains(m.Text, "administrator") {
		t.Error(m.Text)
	}
	command := func(args ...string) {
		t.Helper()
		if err := runAdmin(t.Context(), args, s.environment(), strings.NewReader(testPassword+"\n"), t.Output()); err != nil {
			t.Fatal(err)
		}
	}
	command(root.email, "--password-stdin")
	s.signInAs(root.email, testPassword).want(400, "otp_required")
	command(root.email, "--reset-second-factor", "--password-stdin")
	s.signInAs(root.email, testPassword).want(200, "")
}

// What is sealed opens in its place alone. A new secret at the front seals anew, at sign-in and by prune, and a start
// without one that still seals is refused.
func TestSecondFactorKeys(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada, bob := s.newUser("ada@example.com", "user"), s.newUser("bob@example.com", "user")
	secret, _ := s.enable(ada.token)
	s.enable(bob.token)
	old := s.cfg.SecretKeys
	rotated := func(keys string) *testServer {
		return s.newReplica(func(c *config) {
			c.SecretKeys = keys
			var p problems
			c.dev = true
			c.check(&p)
			if err := p.err(); err != nil {
				t.Fatal(err)
			}
		})
	}
	fresh := newSecret()
	both, alone := rotated(fresh+","+old), rotated(fresh)
	sealedBy := func(k *keyRing) int {
		return scalar[int](s, "select count(*) from second_factors where substr(secret, 1, 4) = $1", k.signing.id[:])
	}
	if err := alone.checkSealed(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "2 second factors") {
		t.Error(err)
	}
	if err := both.checkSealed(t.Context()); err != nil {
		t.Error(err)
	}
	both.signInWith(ada.email, testPassword, s.code(secret, 0)).want(200, "")
	if n := sealedBy(both.keys); n != 1 {
		t.Errorf("%d sealed anew at sign-in", n)
	}
	if err := both.resealSecondFactors(t.Context()); err != nil || sealedBy(both.keys) != 2 {
		t.Error(err, sealedBy(both.keys))
	}
	if err := alone.checkSealed(t.Context()); err != nil {
		t.Error(err)
	}
	alone.signInWith(ada.email, testPassword, s.code(secret, 1)).want(200, "")
	// A row that was moved to another user opens nothing there.
	row := scalar[[]byte](s, "select secret from second_factors where user_id = $1", ada.id)
	if _, err := alone.keys.open(row, ada.id); err != nil {
		t.Error(err)
	}
	if _, err := alone.keys.open(row, bob.id); err == nil {
		t.Error("opens for another user")
	}
	for i := range row {
		if _, err := alone.keys.open(row[:i], ada.id); err == nil {
			t.Errorf("opens when cut to %d bytes", i)
		}
		for bit := range 8 {
			changed := slices.Clone(row)
			changed[i] ^= 1 << bit
			if _, err := alone.keys.open(changed, ada.id); err == nil {
				t.Errorf("opens with bit %d of byte %d flipped", bit, i)
			}
		}
	}
}

// A dump of the database has no secret and no code in clear, the log neither, and the export only that there is a factor.
func TestSecondFactorIsNotStoredInClear(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada := s.newUser("ada@example.com", "user")
	secret, codes := s.enable(ada.token)
	raw, err := base32.StdEncoding.DecodeString(secret)
	if err != nil {
		t.Fatal(err)
	}
	s.signInWith(ada.email, testPassword, codes[1]).want(200, "")
	s.signInWith(ada.email, testPassword, codes[1]).want(400, "otp_invalid")
	dump := s.dump() + strings.Join(s.everyValue(), "\n") + s.logs.String()
	for _, clear := range append(codes, secret, string(raw), fmt.Sprintf("%x", raw), strings.ReplaceAll(codes[2], "-", "")) {
		if strings.Contains(strings.ToLower(dump), strings.ToLower(clear)) {
			t.Errorf("%q is there in clear", clear)
		}
	}
	export := s.get("/v1/users/me/export", ada.token).want(200, "")
	if factor := export.json()["second_factor"].(map[string]any); len(factor) != 1 || factor["created_at"] == nil {
		t.Error(factor)
	}
}

// Enrolment gives access to an organization that requires it, at once, with the same token; a token of each path says how
// it was come by, and refreshing changes none of it (RFC 9068 section 2.2.1, RFC 8176).
func TestSecondFactorOpensOrganizations(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o := s.newTeam("guarded")
	s.exec("update organizations set second_factor_required = true where id = $1", o.id)
	s.get(o.path, o.member.token).want(403, "second_factor_required")
	s.settled(10)
	secret, codes := s.enable(o.member.token)
	s.get(o.path, o.member.token).want(200, "")
	for _, code := range []string{s.code(secret, 0), codes[0]} {
		a := s.signInWith(o.member.email, testPassword, code).want(200, "")
		first := s.claimsOf(a)
		for range 2 {
			a = s.refreshWith(a.str("refresh_token")).want(200, "")
			if c := s.claimsOf(a); !slices.Equal(c.AMR, []string{"pwd", "otp", "mfa"}) || c.ACR != aal2 || !c.AuthTime.Equal(first.AuthTime.Time) {
				t.Error(c.AMR, c.ACR, c.AuthTime)
			}
		}
	}
	s.do(request{method: "DELETE", path: "/v1/users/me/second-factor", token: o.member.token}).want(204, "")
	s.get(o.path, o.member.token).want(403, "second_factor_required")
}

// Whoever was there before the address was proved may have been somebody else: what they prepared is void, and the owner
// is told. A new password for a proved account keeps the factor, and the next sign-in asks for it.
func TestSecondFactorOfUnprovedAccounts(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t, func(c *config) { c.EmailVerification = false })
	for name, prove := range provings {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			email := strings.ReplaceAll(name, " ", "-") + "@example.com"
			token := s.registerUnproved(email)
			s.enable(token)
			email, password := prove(s, email, token)
			token = s.signInAs(email, password).want(200, "").str("access_token")
			if n := scalar[int](s, "select count(*) from sessions where 'mfa' = any(amr)"); n != 0 {
				t.Error("a session still counts what is void")
			}
			if n := scalar[int](s, "select count(*) from mails where notice = 'second_factor_void'"); n != 1 {
				t.Errorf("%d notices", n)
			}
			s.exec("delete from mails")
			_, codes := s.enable(token) // now the address is proved
			s.resetPassword(email, "yet another battery")
			s.signInAs(email, "yet another battery").want(400, "otp_required")
			s.signInWith(email, "yet another battery", codes[0]).want(200, "")
			s.exec("delete from mails")
			s.exec("delete from users where email = $1", email)
		})
	}
}
