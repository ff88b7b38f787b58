// room:mailflows

package main

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// R64, R105: a registration stands in nobody's way: its address is free for whoever moves there, is given an account or
// is invited, and nobody is told that there is one. Whoever registered keeps nothing.
func TestRegistrationReservesNothing(t *testing.T) {
	t.Parallel()
	for name, take := range map[string]func(s *testServer, email string){
		"move": func(s *testServer, email string) {
			m := s.newUser("moving@example.com", "user")
			s.move(m.token, email, testPassword).want(202, "")
			s.confirm(s.newestToken(email)).want(204, "")
		},
		"admin": func(s *testServer, email string) {
			root := s.newUser("root@example.com", "admin")
			s.post("/v1/users", root.token, jsonBody("email", email, "name", "Ada", "role", "user", "password", testPassword)).want(201, "")
		},
		"admin, without password": func(s *testServer, email string) {
			root := s.newUser("root@example.com", "admin")
			s.post("/v1/users", root.token, jsonBody("email", email, "name", "Ada", "role", "user")).want(201, "")
			s.reset(s.newestToken(email), testPassword).want(204, "")
		},
		"invitation": func(s *testServer, email string) {
			o := s.newTeam("acme")
			s.invite(o, o.owner, email, "member")
			s.do(acceptAsNew(s.newestToken(email), testPassword)).want(201, "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newQuietServer(t)
			const email = "victim@example.com"
			s.startRegistration(email, attackerPassword)
			registered := s.newestToken(email)
			take(s, email)
			for _, m := range s.mailed(email) {
				if strings.Contains(m.Subject, "already") {
					t.Errorf("told that there is an account: %s", m.Subject)
				}
			}
			row := "select u::text from users u where email = $1"
			before := scalar[string](s, row, email)
			s.verify(registered, attackerPassword).want(422, "invalid_token")
			if after := scalar[string](s, row, email); after != before {
				t.Errorf("from\n%s\nto\n%s", before, after)
			}
			s.signInAs(email, attackerPassword).want(400, "invalid_grant")
			s.signInAs(email, testPassword).want(200, "")
		})
	}
}

// R64: the latest registration wins. Its name and password count, also with the link that was mailed for an earlier one.
func TestLatestRegistrationWins(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	register := func(name, password string) {
		s.post("/v1/auth/register", "", jsonBody("email", "ada@example.com", "password", password, "name", name)).want(202, "")
	}
	register("First", "the first password")
	token := s.newestToken("ada@example.com")
	register("Second", "the second password")
	register("Third", "the third password")
	if n := scalar[int](s, "select count(*) from registrations"); n != 1 {
		t.Errorf("%d registrations of one address", n)
	}
	for _, earlier := range []string{"the first password", "the second password"} {
		s.signInAs("ada@example.com", earlier).want(400, "invalid_grant")
		if a := s.verify(token, earlier).want(422, "invalid_fields"); a.fields()["/password"] != "wrong_password" {
			t.Errorf("%s", a.body)
		}
	}
	tokens := s.verify(token, "the third password").want(200, "")
	if me := s.get("/v1/users/me", tokens.str("access_token")).want(200, ""); me.str("name") != "Third" || me.json()["email_verified"] != true {
		t.Errorf("%s", me.body)
	}
	s.signInAs("ada@example.com", "the third password").want(200, "")
}

// R60: of twenty uses of one link at once, over two replicas, one makes the account and its only session.
func TestRegistrationHasOneWinner(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	replicas := []*testServer{s, s.quietReplica()}
	s.startRegistration("ada@example.com", testPassword)
	body := jsonBody("token", s.newestToken("ada@example.com"), "password", testPassword)
	won := together(20, func(i int) bool {
		a, err := replicas[i%2].try(request{method: "POST", path: "/v1/auth/verify-email", body: body})
		if err != nil || a.status != 200 && a.code() != "invalid_token" && a.code() != "overloaded" {
			t.Errorf("%v %d %s", err, a.status, a.body)
		}
		return err == nil && a.status == 200
	})
	if got := scalar[string](s, `select concat_ws(' ', (select count(*) from users), (select count(*) from sessions), (select count(*) from registrations),
		(select count(*) from audit_events where action = 'email.verified'))`); won != 1 || got != "1 1 0 1" {
		t.Errorf("%d of 20 won; users, sessions, registrations, events: %s", won, got)
	}
}

// R61: a registration ends with its time, and so does its link; expiry is in the statements. One that expired is begun
// anew, and its old link stays dead.
func TestRegistrationExpires(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	s.startRegistration("ada@example.com", testPassword)
	expired := s.newestToken("ada@example.com")
	expire := func() { s.exec("update registrations set expires_at = now() - interval '1 second'") }
	expire()
	s.verify(expired, testPassword).want(422, "invalid_token")
	s.signInAs("ada@example.com", testPassword).want(400, "invalid_grant")
	s.startRegistration("ada@example.com", testPassword)
	s.verify(expired, testPassword).want(422, "invalid_token")
	token := s.newestToken("ada@example.com")
	// It ends while its use waits for the row.
	tx := s.holdLock("select from registrations for update")
	answered := s.postLater("/v1/auth/verify-email", jsonBody("token", token, "password", testPassword))
	s.waitBlocked(1)
	if _, err := tx.Exec(t.Context(), "update registrations set expires_at = now() - interval '1 second'"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	(<-answered).want(422, "invalid_token")
	if n := scalar[int](s, "select count(*) from users"); n != 0 {
		t.Error("an expired link made an account")
	}
}

// R35, R36: the right password of a registration is told why it does not help; a wrong one hears the very same as one of
// an address that nobody knows.
func TestSignInWhileRegistered(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	s.startRegistration("ada@example.com", testPassword)
	signIn := func(email, password string) answer {
		return s.do(request{method: "POST", path: "/v1/auth/token", header: http.Header{"X-Request-Id": {"same"}},
			body: url.Values{"grant_type": {"password"}, "username": {email}, "password": {password}}})
	}
	if a := signIn("Ada@Example.com", testPassword).want(400, "email_not_verified"); a.str("error") != "invalid_grant" {
		t.Errorf("%s", a.body)
	}
	wrong, unknown := signIn("ada@example.com", "wrong password"), signIn("nobody@example.com", "wrong password")
	if wrong.status != unknown.status || string(wrong.body) != string(unknown.body) || wrong.code() != "invalid_grant" {
		t.Errorf("%d %s\n%d %s", wrong.status, wrong.body, unknown.status, unknown.body)
	}
	// Where no verification is asked for any more, whoever still owes one has no account all the same.
	cfg := s.cfg
	cfg.EmailVerification = false
	lax, _ := startMailServer(t, cfg, nil)
	lax.signInAs("ada@example.com", testPassword).want(400, "email_not_verified")
	// With an account, the account decides.
	s.newUser("eve@example.com", "user")
	s.startRegistration("eve@example.com", "another password")
	s.signInAs("eve@example.com", "another password").want(400, "invalid_grant")
	s.signInAs("eve@example.com", testPassword).want(200, "")
	if n := scalar[int](s, "select count(*) from sessions"); n != 2 {
		t.Errorf("%d sessions", n)
	}
}

// R105: who deletes an account whose address was proved takes along what others registered for it; no other address's.
func TestDeletedAccountTakesRegistration(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	m := s.newUser("ada@example.com", "user")
	for _, email := range []string{m.email, "eve@example.com"} {
		s.startRegistration(email, attackerPassword)
	}
	s.do(deleteAccount(m)).want(204, "")
	if got := scalar[string](s, "select string_agg(email, ' ') from registrations"); got != "eve@example.com" {
		t.Errorf("registrations of %q are left", got)
	}
	s.signInAs(m.email, attackerPassword).want(400, "invalid_grant")
}

// R105: without EMAIL_VERIFICATION anybody can have an account of somebody's address. What was meant for the address is
// not theirs: they neither see it nor take it along, and the mails that the address got still count.
func TestUnprovedAccountOwnsNothing(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t, throttled, func(c *config) { c.EmailVerification = false })
	o := s.newTeam("acme")
	const email = "victim@example.com"
	s.invite(o, o.owner, email, "member")
	s.forgot(email).want(202, "") // nobody's yet
	s.exec("insert into registrations (id, email, name, password_hash, expires_at) values ($1, $2, 'Ada', 'x', now() + interval '1 hour')", newID(), email)
	invitation := s.newestToken(email)
	state := `select concat((select jsonb_agg(i) from invitations i), (select jsonb_agg(r) from registrations r),
		(select jsonb_agg(m order by id) from mails m where user_id is null), (select jsonb_agg(t order by key) from throttles t where key ~ '^(mails|invitation)'))`
	before := scalar[string](s, state)
	s.post("/v1/auth/register", "", jsonBody("email", email, "password", attackerPassword, "name", "X")).want(201, "")
	stranger := member{email: email, token: s.signInAs(email, attackerPassword).want(200, "").str("access_token")}
	exported := s.get("/v1/users/me/export", stranger.token).want(200, "")
	for _, what := range []string{"invitations", "mails"} {
		if found, ok := exported.json()[what].([]any); !ok || len(found) != 0 {
			t.Errorf("the export of a stranger has %s: %v", what, exported.json()[what])
		}
	}
	s.do(deleteAccount(stranger)).want(204, "")
	if after := scalar[string](s, state); after != before {
		t.Errorf("from\n%s\nto\n%s", before, after)
	}
	s.forgot(email).want(202, "")
	if n := scalar[int](s, "select count(*) from mails where kind = $1", mailResetPassword); n != 1 {
		t.Errorf("%d mails within the minute", n)
	}
	s.do(acceptAsNew(invitation, victimPassword)).want(201, "")

	// Whoever proved the address has them.
	s.invite(o, o.owner, "ada@example.com", "member")
	ada := s.newUser("ada@example.com", "user")
	if exported = s.get("/v1/users/me/export", ada.token).want(200, ""); len(exported.json()["invitations"].([]any)) != 1 || len(exported.json()["mails"].([]any)) != 1 {
		t.Errorf("%s", exported.body)
	}
	s.do(deleteAccount(ada)).want(204, "")
	if n := scalar[int](s, "select count(*) from invitations where email = 'ada@example.com'") + scalar[int](s, "select count(*) from mails where recipient = 'ada@example.com'"); n != 0 {
		t.Errorf("%d rows outlive a proved account", n)
	}
}
