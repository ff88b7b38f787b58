package main

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"testing"
)

// The guards that no other test would miss: each race is arranged with standoff, never hoped for.

// locksFirst says that a request which waits for one row holds no other: it takes them in the order of their ids.
func (s *testServer) locksFirst(q request, table, first, second string) {
	s.t.Helper()
	lock := "select from " + table + " where id = '%s' for no key update"
	commit := s.inTransaction(fmt.Sprintf(lock, first))
	s.standoff(func() {
		if _, err := s.behind().Exec(s.t.Context(), fmt.Sprintf(lock, second)+" nowait"); err != nil {
			s.t.Errorf("%s %s holds the second of %s before the first: %v", q.method, q.path, table, err)
		}
		commit()
	}, q)[0].want(204, "")
}

// R82: whoever locks several organizations takes them in the order of their ids, whatever the order in which they lie in
// the table, so that two of them never wait for each other.
func TestLocksHaveOneOrder(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada, eve := s.insertMember("ada", "user"), s.insertMember("eve", "user")
	first, second := newID(), newID()
	for _, id := range []string{second, first} {
		s.exec("insert into organizations (id, name, slug) values ($1, 'X', $1::uuid::text)", id)
		s.join(id, ada, "owner")
		s.join(id, eve, "owner")
	}
	s.locksFirst(deleteAccount(ada), "organizations", first, second)
}

// R33, R50, R57: a sign-in whose password was right when it was verified, and is not any more, or whose account was disabled
// meanwhile, starts no session.
func TestSignInMeanwhile(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for name, change := range map[string]string{"changed": "password_hash = 'x'", "disabled": "disabled = true"} {
		m := s.insertMember(name, "user")
		q := request{method: "POST", path: "/v1/auth/token",
			body: url.Values{"grant_type": {"password"}, "username": {m.email}, "password": {testPassword}}}
		s.standoff(s.inTransaction("update users set "+change+" where id = '"+m.id+"'"), q)[0].want(400, "invalid_grant")
		if n := scalar[int](s, "select count(*) from sessions where user_id = $1", m.id); n != 1 {
			t.Errorf("%s: %d sessions", name, n)
		}
		// R66: nor does it ask for another address.
		s.exec("update users set disabled = false, password_hash = $2 where id = $1", m.id, testPasswordHash())
		q = request{method: "POST", path: "/v1/users/me/email", token: m.token, body: jsonBody("email", "new."+m.email, "password", testPassword)}
		s.standoff(s.inTransaction("update users set "+change+" where id = '"+m.id+"'"), q)[0].want(422, "invalid_fields")
		if n := scalar[int](s, "select count(*) from mails"); n != 0 {
			t.Errorf("%s: %d mails", name, n)
		}
	}
}

// R108: what one organization sends to an address takes nothing from what another may send; above its own limit the
// inviter is told, and nothing stays of the invitation.
func TestInvitationsOfOneTenant(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t, throttled)
	s.side = s.pool
	evil, good := s.newTeam("evil"), s.newTeam("good")
	invite := func(o team, email string) answer {
		t.Helper()
		return s.do(o.to(o.owner, "POST", "/invitations", jsonBody("email", email, "role", "member")))
	}
	invite(evil, "victim@example.com").want(201, "")
	invite(evil, "victim@example.com").want(429, "too_many_attempts")
	s.exec("update throttles set count = 5 where key like 'invitation_mails %'")
	s.exec("delete from throttles where key like 'mails_minute %'")
	invite(evil, "victim@example.com").want(429, "too_many_attempts")
	invite(good, "victim@example.com").want(201, "")
	if n := scalar[int](s, "select count(*) from mails where recipient = 'victim@example.com'"); n != 2 {
		t.Errorf("%d mails", n)
	}
	s.exec("update throttles set count = 200 where key = 'invitations_organization ' || $1", evil.id)
	invite(evil, "other@example.com").want(429, "too_many_attempts")
	invite(good, "other@example.com").want(201, "")
	if n := scalar[int](s, "select count(*) from invitations where organization_id = $1 and email = 'other@example.com'", evil.id); n != 0 {
		t.Error("an invitation without a mail is left")
	}
}

// R42: two organizations that invite one address at once get no more mails through than one after the other.
func TestInvitationMailsTogether(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t, throttled)
	s.side = s.pool
	s.waitAtCommit()
	s.exec("insert into throttles (key, count, ends_at) values ($1, 19, now() + interval '1 hour')", invitationsAddress+" "+hashed("victim@example.com"))
	var requests []request
	for _, slug := range []string{"acme", "second"} {
		o := s.newTeam(slug)
		requests = append(requests, o.to(o.owner, "POST", "/invitations", jsonBody("email", "victim@example.com", "role", "member")))
	}
	var statuses []int
	for _, a := range s.standoff(s.hold("invitation.created"), requests...) {
		statuses = append(statuses, a.status)
	}
	if slices.Sort(statuses); fmt.Sprint(statuses) != "[201 429]" {
		t.Errorf("answers %v", statuses)
	}
	if n := scalar[int](s, "select count(*) from mails"); n != 1 {
		t.Errorf("%d mails above the limit", n-1)
	}
}

// R107: what a platform admin asked for is not done when they were disabled or demoted while the request waited, whatever
// it waited for.
func TestAdminMeanwhile(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.insertMember("root", "admin") // the platform keeps one
	for name, change := range map[string]string{"disabled": "disabled = true", "demoted": "role = 'user'"} {
		o, heir := s.newTeam(name), s.insertMember("heir."+name, "user")
		for _, q := range []request{
			{method: "POST", path: "/v1/users", body: jsonBody("email", "backdoor@example.com", "name", "X", "role", "admin", "password", testPassword)},
			{method: "POST", path: "/v1/users", body: jsonBody("email", "mailed@example.com", "name", "X", "role", "user")},
			{method: "PATCH", path: "/v1/users/" + heir.id, body: jsonBody("role", "admin")},
			{method: "DELETE", path: "/v1/users/" + heir.id},
			{method: "DELETE", path: "/v1/users/" + heir.id + "/sessions"},
			{method: "POST", path: o.path + "/memberships", body: jsonBody("user_id", heir.id, "role", "owner")},
		} {
			rogue := s.insertMember("rogue."+newID(), "admin")
			q.token = rogue.token
			before := scalar[string](s, "select (select jsonb_agg(u order by id) from users u where id <> $1)::text || (select count(*) from sessions) || (select count(*) from memberships)", rogue.id)
			s.standoff(s.inTransaction("select pg_advisory_xact_lock(hashtext('roster/admins')); update users set "+change+" where id = '"+rogue.id+"'"), q)[0].want(403, "forbidden")
			if now := scalar[string](s, "select (select jsonb_agg(u order by id) from users u where id <> $1)::text || (select count(*) from sessions) || (select count(*) from memberships)", rogue.id); now != before {
				t.Errorf("%s: %s %s was done", name, q.method, q.path)
			}
		}
	}
}

// Making an admin takes a session younger than 15 minutes; everything else that an admin does goes on.
func TestMakingAdminsIsRecent(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	root, heir := s.newUser("root@example.com", "admin"), s.newUser("heir@example.com", "user")
	path := "/v1/users/" + heir.id
	newAdmin := jsonBody("email", "new@example.com", "name", "X", "role", "admin")
	s.exec("update sessions set created_at = now() - interval '16 minutes'")
	s.post("/v1/users", root.token, newAdmin).want(403, "recent_sign_in_required")
	s.patchAs(path, root.token, jsonBody("role", "admin")).want(403, "recent_sign_in_required")
	s.patchAs(path, root.token, jsonBody("name", "Heir", "role", "user")).want(200, "")
	s.patchAs("/v1/users/"+root.id, root.token, jsonBody("name", "Root", "role", "admin")).want(200, "")
	s.post("/v1/users", root.token, jsonBody("email", "user@example.com", "name", "X", "role", "user")).want(201, "")
	s.exec("update sessions set created_at = now() - interval '14 minutes'")
	s.post("/v1/users", root.token, newAdmin).want(201, "")
	s.patchAs(path, root.token, jsonBody("role", "admin")).want(200, "")
}

// R82: accepting an invitation takes the caller's row before the token, as deleting the account does: the two wait for
// each other instead of deadlocking.
func TestAcceptLocksUserFirst(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	s.side = s.pool
	o := s.newTeam("acme")
	s.exec(`insert into invitations (id, organization_id, email, role, invited_by, token_hash, expires_at)
		values ($1, $2, $3, 'member', $4, $5, now() + interval '1 day')`, newID(), o.id, o.outsider.email, o.owner.id, hashMailToken("token"))
	commit := s.inTransaction("select from users where id = '" + o.outsider.id + "' for no key update")
	s.standoff(func() {
		if _, err := s.pool.Exec(t.Context(), "select from invitations for update nowait"); err != nil {
			t.Errorf("the token was taken before the user: %v", err)
		}
		commit()
	}, request{method: "POST", path: "/v1/invitations/accept", token: o.outsider.token, body: jsonBody("token", "token")})[0].want(200, "")
}

// No update is lost: of twenty changes at once with one If-Match, each kind of resource takes one.
func TestIfMatchTogether(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	replicas := []*testServer{s, s.newReplica()}
	o, root := s.newTeam("acme"), s.insertMember("root", "admin")
	user := "/v1/users/" + o.outsider.id
	for _, tc := range []struct{ path, tag, token, field string }{
		{"/v1/users/me", s.get("/v1/users/me", o.admin.token).header.Get("ETag"), o.admin.token, "name"},
		{user, s.get(user, root.token).header.Get("ETag"), root.token, "name"},
		{o.path, s.get(o.path, o.admin.token).header.Get("ETag"), o.admin.token, "name"},
		{o.path + "/memberships/" + o.member.id, s.do(o.to(o.owner, "PATCH", "/memberships/"+o.member.id, role("member"))).header.Get("ETag"), o.owner.token, "role"},
	} {
		won := together(20, func(i int) bool {
			value := fmt.Sprint("n", i)
			if tc.field == "role" {
				value = "admin" // from member: who comes second would change nothing, and is refused all the same
			}
			a, err := replicas[i%2].try(request{method: "PATCH", path: tc.path, token: tc.token,
				body: jsonBody(tc.field, value), header: http.Header{"If-Match": {tc.tag}}})
			if err != nil || a.status != 200 && a.code() != "precondition_failed" {
				t.Errorf("%s: %v %d %s", tc.path, err, a.status, a.body)
			}
			return a.status == 200
		})
		if won != 1 {
			t.Errorf("%s: %d of 20 changes won", tc.path, won)
		}
	}
}

// R54: a predecessor that is answered later than the grace, because its successor was never used, is in the trail: it may
// be a lost reply, or somebody who keeps in step with the owner.
func TestLateReplayIsAudited(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada := s.newUser("ada@example.com", "user")
	next := s.refreshWith(ada.refresh).want(200, "").str("refresh_token")
	replayed := func(want int) {
		t.Helper()
		if got := s.refreshWith(ada.refresh).want(200, "").str("refresh_token"); got != next {
			t.Error("another successor")
		}
		if n := scalar[int](s, "select count(*) from audit_events where action = 'session.replayed' and actor_id = $1 and ip is not null", ada.id); n != want {
			t.Errorf("%d events, want %d", n, want)
		}
	}
	replayed(0)
	s.exec("update sessions set rotated_at = now() - interval '31 seconds'")
	replayed(1)
}
