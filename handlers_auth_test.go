package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/oauth2"
)

// register starts an account over HTTP and returns the token that was mailed.
func (s *testServer) register(email, password string, mails int) string {
	s.t.Helper()
	s.post("/v1/auth/register", "", map[string]string{"email": email, "password": password, "name": "Ada"}).want(202, "")
	return s.waitMail(email, mails).Token
}

// passTime brings the end of every window of a limit nearer.
func (s *testServer) passTime(interval string) {
	s.t.Helper()
	s.exec("update throttles set ends_at = ends_at - $1::interval", interval)
}

func (s *testServer) verify(token, password string) answer {
	s.t.Helper()
	return s.post("/v1/auth/verify-email", "", map[string]string{"token": token, "password": password})
}

func TestMainJob(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.post("/v1/auth/register", "", map[string]string{"email": "Ada@Example.com", "password": testPassword, "name": "Ada"}).want(202, "")
	token := s.waitMail("ada@example.com", 1).Token
	if len(token) != 43 {
		t.Fatalf("the mail token has %d characters", len(token))
	}
	s.signInAs("ada@example.com", testPassword).want(400, "email_not_verified") // R36

	tokens := s.verify(token, testPassword).want(200, "")
	me := s.get("/v1/users/me", tokens.str("access_token")).want(200, "")
	if me.str("email") != "ada@example.com" || me.json()["email_verified"] != true || me.str("role") != "user" {
		t.Errorf("who am I: %s", me.body)
	}
	refreshed := s.refreshWith(tokens.str("refresh_token")).want(200, "")
	s.get("/v1/users/me", refreshed.str("access_token")).want(200, "")
	s.post("/v1/auth/revoke", "", url.Values{"token": {refreshed.str("refresh_token")}}).want(200, "")
	s.get("/v1/users/me", refreshed.str("access_token")).want(401, "invalid_access_token")
	s.refreshWith(refreshed.str("refresh_token")).want(400, "invalid_grant")
}

// R37: an address that has an account gets the same answer, and its owner another mail.
func TestRegisterTellsNothing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.newUser("known@example.com", "user")
	body := func(email string) string {
		return string(s.post("/v1/auth/register", "", map[string]string{"email": email, "password": testPassword, "name": "X"}).want(202, "").body)
	}
	if a, b := body("known@example.com"), body("new@example.com"); a != b {
		t.Errorf("the answers differ:\n%s\n%s", a, b)
	}
	if m := s.waitMail("known@example.com", 1); m.Token != "" || !strings.Contains(m.Subject, "already") {
		t.Errorf("the owner got %q with token %q", m.Subject, m.Token)
	}
	s.signInAs("known@example.com", testPassword).want(200, "")
}

// R64: neither a mailbox alone nor a password alone opens an account.
func TestVerifyNeedsMailboxAndPassword(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	first := s.register("victim@example.com", "attacker password 1", 1)
	if a := s.verify(first, "victim password 12").want(422, "invalid_fields"); a.fields()["/password"] != "wrong_password" {
		t.Errorf("fields: %s", a.body)
	}
	s.allowNextMail()
	second := s.register("victim@example.com", "victim password 12", 2)
	s.verify(first, "attacker password 1").want(422, "invalid_token")   // void: a newer one was mailed (R62)
	s.verify(second, "attacker password 1").want(422, "invalid_fields") // the latest registration's password counts
	s.verify(second, "victim password 12").want(200, "")
	s.verify(second, "victim password 12").want(422, "invalid_token") // R60: once
	s.signInAs("victim@example.com", "attacker password 1").want(400, "invalid_grant")
}

// R60: of many uses of one token at once, one wins.
func TestMailTokenHasOneWinner(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := s.newReplica()
	token := s.register("ada@example.com", testPassword, 1)
	won := together(12, func(i int) bool {
		a, err := []*testServer{s, other}[i%2].try(request{method: "POST", path: "/v1/auth/verify-email",
			body: map[string]string{"token": token, "password": testPassword}})
		return err == nil && a.status == 200
	})
	if won != 1 || scalar[int](s, "select count(*) from sessions") != 1 {
		t.Errorf("%d uses of one token won", won)
	}
}

// R61: expiry is in the statement.
func TestMailTokenExpires(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	token := s.register("ada@example.com", testPassword, 1)
	s.exec("update registrations set expires_at = now() - interval '1 second'")
	s.verify(token, testPassword).want(422, "invalid_token")
}

func TestRegisterWithoutVerification(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(c *config) { c.EmailVerification = false })
	in := map[string]string{"email": "Ada@example.com", "password": testPassword, "name": " Ada  Lovelace "}
	u := s.post("/v1/auth/register", "", in).want(201, "")
	if u.str("email") != "ada@example.com" || u.str("name") != "Ada  Lovelace" || u.json()["email_verified"] != false {
		t.Errorf("registered %s", u.body)
	}
	s.post("/v1/auth/register", "", in).want(409, "email_taken")
	s.signInAs("ada@example.com", testPassword).want(200, "")
	closed := s.newReplica(func(c *config) { c.SignupEnabled = false })
	closed.post("/v1/auth/register", "", in).want(403, "signup_disabled")
}

// R35, R36: what a wrong password says depends on nothing; a right one is told why it does not help.
func TestSignInTellsNothing(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.newUser("active@example.com", "user")
	s.newUser("disabled@example.com", "user")
	s.newUser("unverified@example.com", "user")
	s.exec("update users set disabled = true where email = 'disabled@example.com'")
	s.exec("update users set email_verified = false where email = 'unverified@example.com'")
	id := http.Header{"X-Request-Id": {"same"}}
	var bodies []string
	for _, username := range []string{"active@example.com", "nobody@example.com", "disabled@example.com", "unverified@example.com", "not an address", "nul\x00@example.com"} {
		a := s.do(request{method: "POST", path: "/v1/auth/token", header: id,
			body: url.Values{"grant_type": {"password"}, "username": {username}, "password": {"wrong password"}}})
		if strings.ContainsRune(username, 0) {
			a.want(400, "malformed_request")
			continue
		}
		bodies = append(bodies, string(a.want(400, "invalid_grant").body))
	}
	for _, b := range bodies {
		if b != bodies[0] {
			t.Errorf("the answers differ:\n%s\n%s", bodies[0], b)
		}
	}
	s.signInAs("disabled@example.com", testPassword).want(400, "account_disabled")
	s.signInAs("unverified@example.com", testPassword).want(400, "email_not_verified")
}

func TestTokenEndpointErrors(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for _, tc := range []struct {
		name string
		body any
		code string
		want int
		err  string
	}{
		{"unknown grant", url.Values{"grant_type": {"client_credentials"}}, "unsupported_grant_type", 400, "unsupported_grant_type"},
		{"no grant", url.Values{"username": {"a@example.com"}}, "invalid_fields", 400, "invalid_request"},
		{"no password", url.Values{"grant_type": {"password"}, "username": {"a@example.com"}}, "invalid_request", 400, "invalid_request"},
		{"empty password is none", url.Values{"grant_type": {"password"}, "username": {"a@example.com"}, "password": {""}}, "invalid_request", 400, "invalid_request"},
		{"no refresh token", url.Values{"grant_type": {"refresh_token"}}, "invalid_request", 400, "invalid_request"},
		{"repeated", "grant_type=password&grant_type=password", "unsupported_media_type", 415, "invalid_request"},
		{"unknown parameter", url.Values{"grant_type": {"password"}, "redirect_uri": {"x"}}, "invalid_request", 400, "invalid_request"},
		{"JSON", map[string]string{"grant_type": "password"}, "unsupported_media_type", 415, "invalid_request"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := s.in(t).post("/v1/auth/token", "", tc.body).want(tc.want, tc.code)
			if a.str("error") != tc.err {
				t.Errorf("error %s, want %s", a.str("error"), tc.err)
			}
		})
	}
	repeated := s.do(request{method: "POST", path: "/v1/auth/token", body: "grant_type=password&grant_type=password",
		header: http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}})
	repeated.want(400, "malformed_request")
	if s.get("/v1/auth/token", "").want(405, "method_not_allowed").header.Get("Allow") != "POST" {
		t.Error("no Allow")
	}
}

// R53, R54: fifty refreshes with one token through two replicas give one identical successor.
func TestConcurrentRefresh(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := s.newReplica()
	m := s.newUser("ada@example.com", "user")
	var mu sync.Mutex
	successors := map[string]int{}
	together(50, func(i int) bool {
		a, err := []*testServer{s, other}[i%2].try(request{method: "POST", path: "/v1/auth/token",
			body: url.Values{"grant_type": {"refresh_token"}, "refresh_token": {m.refresh}}})
		if err != nil || a.status != 200 {
			t.Errorf("%v %d %s", err, a.status, a.body)
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		successors[a.str("refresh_token")]++
		return true
	})
	if len(successors) != 1 || scalar[int](s, "select generation from sessions") != 2 {
		t.Errorf("%d different successors", len(successors))
	}
}

// R54, R55: an hour later, a reply that was lost is sent again; one that arrived is not.
func TestLostReply(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := s.newReplica()
	m, eve := s.newUser("ada@example.com", "user"), s.newUser("eve@example.com", "user")
	s.get("/v1/users/me", m.token).want(200, "") // what came before the lost reply had arrived
	lost := s.refreshWith(m.refresh).want(200, "")
	s.refreshWith(eve.refresh).want(200, "")
	s.exec("update sessions set rotated_at = rotated_at - interval '1 hour'")
	again := other.refreshWith(m.refresh).want(200, "")
	if again.str("refresh_token") != lost.str("refresh_token") {
		t.Error("the successor is another one")
	}
	// The successor is used, as an access token this time: from now on the predecessor is a copy.
	s.get("/v1/users/me", again.str("access_token")).want(200, "")
	other.refreshWith(m.refresh).want(400, "invalid_grant")
	// R53: that ended the session, and the refusal did not undo it.
	s.get("/v1/users/me", again.str("access_token")).want(401, "invalid_access_token")
	s.refreshWith(again.str("refresh_token")).want(400, "invalid_grant")
	if n := scalar[int](s, "select count(*) from sessions where user_id = $1", m.id); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
	other.refreshWith(eve.refresh).want(200, "") // her reply is still lost, and her session goes on
	if !strings.Contains(other.logs.String(), "refresh token reused") {
		t.Error("nobody was told")
	}
}

// Within the grace period a second tab may come late, even when the successor was used.
func TestGracePeriod(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	s.exec("update sessions set created_at = now() - interval '1 hour', rotated_at = now() - interval '1 hour'") // it is the refresh that counts
	first := s.refreshWith(m.refresh).want(200, "")
	s.get("/v1/users/me", first.str("access_token")).want(200, "")
	late := s.refreshWith(m.refresh).want(200, "")
	if late.str("refresh_token") != first.str("refresh_token") {
		t.Error("the late tab got another branch")
	}
	second := s.refreshWith(first.str("refresh_token")).want(200, "")
	s.refreshWith(m.refresh).want(400, "invalid_grant") // two generations behind: a copy, grace or not
	s.refreshWith(second.str("refresh_token")).want(400, "invalid_grant")
}

// R56: idle and absolute ends; a refresh moves the first and never the second.
func TestSessionEnds(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	s.exec("update sessions set created_at = now() - interval '89 days', expires_at = now() + interval '1 hour'")
	next := s.refreshWith(m.refresh).want(200, "").str("refresh_token")
	if days := scalar[float64](s, "select extract(epoch from expires_at - now()) / 86400 from sessions"); days > 1.01 || days < 0.9 {
		t.Errorf("after 89 of 90 days a refresh gives %.2f more", days)
	}
	s.exec("update sessions set expires_at = now() - interval '1 second'")
	s.refreshWith(next).want(400, "invalid_grant")
	s.get("/v1/users/me", m.token).want(401, "invalid_access_token")
	// Nor does it open an organization, or appear in the list of another one.
	o := s.newTeam("acme")
	s.get(o.path, o.owner.token).want(200, "")
	s.exec("update sessions set expires_at = now() - interval '1 second'")
	s.get(o.path, o.owner.token).want(401, "invalid_access_token")
	again := s.signInAs(m.email, testPassword).want(200, "").str("access_token")
	if items := s.get("/v1/users/me/sessions", again).json()["items"].([]any); len(items) != 1 {
		t.Errorf("%d sessions are listed, one is live", len(items))
	}
}

// R56: fifty sessions a user; the oldest goes, also when they start at once.
func TestFiftySessions(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	eve, m := s.newUser("eve@example.com", "user"), s.newUser("ada@example.com", "user")
	for range maxSessions - 1 {
		if err := s.db.insertSession(t.Context(), &newSession{user: user{ID: m.id}, SessionID: newID(), AMR: []string{"pwd"}}, caller{}, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	together(4, func(int) bool {
		a, err := s.try(request{method: "POST", path: "/v1/auth/token",
			body: url.Values{"grant_type": {"password"}, "username": {m.email}, "password": {testPassword}}})
		return err == nil && a.status == 200
	})
	if n := scalar[int](s, "select count(*) from sessions where user_id = $1", m.id); n != maxSessions {
		t.Errorf("%d sessions", n)
	}
	s.get("/v1/users/me", m.token).want(401, "invalid_access_token")
	s.get("/v1/users/me", eve.token).want(200, "") // older than all of them, and somebody else's
}

// R57: a refresh notices that the account was disabled; R50: so does the next request.
func TestDisabledAccount(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	s.exec("update users set disabled = true")
	s.get("/v1/users/me", m.token).want(401, "invalid_access_token")
	s.refreshWith(m.refresh).want(400, "invalid_grant")
}

// R57: a reply that was lost is not sent again to whom would not be given it anew, and no copy is suspected.
func TestLostReplyOfEndedSession(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for i, change := range []string{"update users set disabled = true where id = $1", "update sessions set expires_at = now() - interval '1 second' where user_id = $1"} {
		m := s.newUser(fmt.Sprint("ada", i, "@example.com"), "user")
		s.refreshWith(m.refresh).want(200, "")
		s.exec(change, m.id)
		s.refreshWith(m.refresh).want(400, "invalid_grant")
		if scalar[int](s, "select count(*) from sessions where user_id = $1", m.id) != 1 {
			t.Error("taken for a copy after:", change)
		}
	}
}

// R50: sign-out acts on the next request, on the other replica too; with either token; twice is fine (R58).
func TestRevoke(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	other := s.newReplica()
	for _, kind := range []string{"refresh", "access"} {
		m := s.newUser(kind+"@example.com", "user")
		other.get("/v1/users/me", m.token).want(200, "")
		token := map[string]string{"refresh": m.refresh, "access": m.token}[kind]
		s.post("/v1/auth/revoke", "", url.Values{"token": {token}, "token_type_hint": {"whatever"}}).want(200, "")
		other.get("/v1/users/me", m.token).want(401, "invalid_access_token")
		other.post("/v1/auth/revoke", "", url.Values{"token": {token}}).want(200, "")
	}
	s.post("/v1/auth/revoke", "", url.Values{"token": {"rt_nonsense"}}).want(200, "")
	s.post("/v1/auth/revoke", "", url.Values{"token": {strings.Repeat("x", 60_000)}}).want(200, "")
	s.post("/v1/auth/revoke", "", url.Values{}).want(400, "invalid_fields")
}

// An expired access token ends nothing, and the answer is the same (RFC 7009 section 2.2).
func TestRevokeExpired(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	old := s.mint(m, func(c *accessClaims, _ map[string]any) {
		c.IssuedAt, c.ExpiresAt = jwt.NewNumericDate(time.Now().Add(-time.Hour)), jwt.NewNumericDate(time.Now().Add(-45*time.Minute))
	})
	s.get("/v1/users/me", old).want(401, "invalid_access_token")
	s.post("/v1/auth/revoke", "", url.Values{"token": {old}}).want(200, "")
	s.get("/v1/users/me", m.token).want(200, "")
}

// R48: a new secret in front signs nobody out; taking the old one away does.
func TestKeyRotation(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	old, fresh := s.cfg.SecretKeys, newSecret()
	ring := func(keys string) func(*config) {
		return func(c *config) {
			c.SecretKeys = keys
			c.secrets, _ = decodeSecrets(keys)
		}
	}
	both := s.newReplica(ring(fresh + "," + old))
	both.get("/v1/users/me", m.token).want(200, "")
	rotated := both.refreshWith(m.refresh).want(200, "")
	if len(both.get("/.well-known/jwks.json", "").json()["keys"].([]any)) != 2 {
		t.Error("the old key is not published any more")
	}
	only := s.newReplica(ring(fresh))
	only.get("/v1/users/me", m.token).want(401, "invalid_access_token")
	only.refreshWith(m.refresh).want(400, "invalid_grant")
	only.get("/v1/users/me", rotated.str("access_token")).want(200, "")
	only.refreshWith(rotated.str("refresh_token")).want(200, "")
}

// R31: a hash weaker than today's is replaced when its password is typed.
func TestRehash(t *testing.T) {
	t.Parallel()
	s := newTestServer(t).fullCost()
	m := s.newUser("ada@example.com", "user")
	s.exec("update users set password_hash = $1", weakHash(testPassword))
	s.signInAs(m.email, testPassword).want(200, "")
	if hash := scalar[string](s, "select password_hash from users"); !strings.HasPrefix(hash, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Errorf("the hash is still %s", hash[:30])
	}
	s.signInAs(m.email, testPassword).want(200, "")
}

// R31: the better hash never replaces what became of the account while it was made: the password that is stored then
// decides.
func TestRehashMeanwhile(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	replace := `with gone as (delete from users where email = $1) select pg_advisory_xact_lock(0)`
	for i, tc := range []struct {
		name   string
		change string // of the user's row, while the upgrade waits for it
		hash   string
		status int
		code   string
	}{
		{"another sign-in", "update users set password_hash = $2 where email = $1", testPasswordHash(), 200, ""},
		{"another password", "update users set password_hash = $2 where email = $1", weakHash("another password"), 400, "invalid_grant"},
		{"deleted", replace, "", 400, "invalid_grant"},
		{"deleted and made again", replace, testPasswordHash(), 200, ""}, // another account, with this very password
		{"deleted and made by another", replace, weakHash("another password"), 400, "invalid_grant"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := s.in(t)
			email := fmt.Sprint("ada", i, "@example.com")
			if _, err := s.db.insertUser(t.Context(), newUser{newID(), email, "Ada", "user", weakHash(testPassword), true}); err != nil {
				t.Fatal(err)
			}
			args := []any{email}
			if tc.change != replace {
				args = append(args, tc.hash)
			}
			tx := s.holdLock(tc.change, args...)
			answered := s.postLater("/v1/auth/token", url.Values{"grant_type": {"password"}, "username": {email}, "password": {testPassword}})
			s.waitBlocked(1)
			if tc.change == replace && tc.hash != "" {
				if _, err := (db{q: tx}).insertUser(t.Context(), newUser{newID(), email, "Eve", "user", tc.hash, true}); err != nil {
					t.Fatal(err)
				}
			}
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			(<-answered).want(tc.status, tc.code)
			if n := scalar[int](s, "select count(*) from sessions s join users u on u.id = s.user_id where email = $1", email); (n == 1) != (tc.status == 200) {
				t.Errorf("%d sessions", n)
			}
		})
	}
}

// R54: a request with tokens that a refresh replaces at that moment says nothing about the new ones: their reply may
// still get lost.
func TestConfirmationComesLate(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	m := s.newUser("ada@example.com", "user")
	tx := s.holdLock("update sessions set generation = 2, rotated_at = now() - interval '1 hour'")
	answered := make(chan answer, 1)
	go func() {
		a, err := s.try(request{path: "/v1/users/me", token: m.token})
		if err != nil {
			t.Error(err)
			a = answer{t: t}
		}
		answered <- a
	}()
	s.waitBlocked(1)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	(<-answered).want(200, "")
	s.get("/v1/users/me", m.token).want(200, "") // the older access token, once more
	if scalar[bool](s, "select confirmed from sessions") {
		t.Error("the older token confirmed the newer")
	}
	s.refreshWith(m.refresh).want(200, "")
}

// R53: a genuine token from after the point that a database was restored to is refused, and is no sign of a copy.
func TestTokenOfLaterGeneration(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	second := s.refreshWith(m.refresh).want(200, "").str("refresh_token")
	third := s.refreshWith(second).want(200, "").str("refresh_token")
	s.exec("update sessions set generation = 1")
	for _, late := range []string{second, third} {
		s.refreshWith(late).want(400, "invalid_grant")
	}
	if scalar[int](s, "select generation from sessions") != 1 {
		t.Error("the session moved")
	}
	s.refreshWith(m.refresh).want(200, "")
}

// golang.org/x/oauth2 signs in and refreshes unmodified, and an RFC 9068 resource server verifies by the JWKS.
// R51: golang.org/x/oauth2 signs in and refreshes unmodified, and an RFC 9068 resource server verifies ES256 by the JWKS.
func TestOAuthClients(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	conf := &oauth2.Config{ClientID: "roster", Endpoint: oauth2.Endpoint{TokenURL: s.url + "/v1/auth/token"}}
	token, err := conf.PasswordCredentialsToken(t.Context(), m.email, testPassword)
	if err != nil {
		t.Fatal(err)
	}
	first := token.RefreshToken
	token.Expiry = time.Now().Add(-time.Minute)
	client := conf.Client(t.Context(), token)
	response, err := client.Get(s.url + "/v1/users/me")
	if err != nil || response.StatusCode != 200 {
		t.Fatal(err, response)
	}
	response.Body.Close()
	if token, err = client.Transport.(*oauth2.Transport).Source.Token(); err != nil || token.RefreshToken == first {
		t.Fatal("the client did not refresh", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	keys, err := keyfunc.NewDefaultCtx(ctx, []string{s.url + "/.well-known/jwks.json"})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := jwt.Parse(token.AccessToken, keys.Keyfunc, jwt.WithValidMethods([]string{"ES256"}),
		jwt.WithIssuer(s.cfg.PublicURL), jwt.WithAudience(s.cfg.PublicURL), jwt.WithExpirationRequired())
	if err != nil {
		t.Fatal(err)
	}
	claims := parsed.Claims.(jwt.MapClaims)
	for _, required := range []string{"iss", "aud", "sub", "client_id", "exp", "iat", "jti", "sid", "gen", "roles", "scope"} {
		if claims[required] == nil {
			t.Errorf("no claim %s", required)
		}
	}
	if parsed.Header["typ"] != "at+jwt" || claims["sub"] != m.id {
		t.Errorf("typ %v, sub %v", parsed.Header["typ"], claims["sub"])
	}
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	a := s.get("/.well-known/oauth-authorization-server", "").want(200, "")
	if a.str("issuer") != s.cfg.PublicURL || a.str("token_endpoint") != s.cfg.PublicURL+"/v1/auth/token" {
		t.Errorf("%s", a.body)
	}
	keys := s.get("/.well-known/jwks.json", "").want(200, "")
	if keys.header.Get("Cache-Control") != "public, max-age=300" || strings.Contains(string(keys.body), `"d"`) {
		t.Errorf("%v %s", keys.header, keys.body)
	}
}
