package main

import (
	"fmt"
	"net/http"
	"net/url"
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

// R82: whoever locks several organizations or several admins takes them in the order of their ids, whatever the order
// in which they lie in the table, so that two of them never wait for each other.
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

	older, younger := s.insertMember("older", "admin"), s.insertMember("younger", "admin")
	s.exec("update users set name = 'moved' where id = $1", older.id) // behind the other one
	s.locksFirst(deleteAccount(younger), "users", older.id, younger.id)
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

// R42: two organizations that invite one address at once get no more mails through than one after the other.
func TestInvitationMailsTogether(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t, throttled)
	s.side = s.pool
	s.waitAtCommit()
	s.exec(`insert into mails (id, kind, recipient, sent_at, created_at)
		select gen_random_uuid(), $1, 'victim@example.com', now(), now() - interval '2 minutes' from generate_series(1, 4)`, mailInvitation)
	var requests []request
	for _, slug := range []string{"acme", "second"} {
		o := s.newTeam(slug)
		requests = append(requests, o.to(o.owner, "POST", "/invitations", jsonBody("email", "victim@example.com", "role", "member")))
	}
	for _, a := range s.standoff(s.hold("invitation.created"), requests...) {
		a.want(201, "")
	}
	if n := scalar[int](s, "select count(*) from mails"); n != 5 {
		t.Errorf("%d mails within the hour", n)
	}
}

// R74: somebody who becomes an admin while they delete their account waits for the admin who deletes theirs, and stays.
func TestAdminsLeaveWhileOneBecomes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.waitAtCommit()
	root, heir := s.insertMember("root", "admin"), s.insertMember("heir", "user")
	s.exec("insert into audit_events (id, action, actor_id, ip) values ($1, 'test.event', $2, '192.0.2.1')", newID(), root.id)
	release := s.hold("user.deleted")
	// root has locked the admins, and waits before it looks for another one.
	goOn := s.inTransaction("select from audit_events where actor_id = '" + root.id + "' for update")
	promote := s.inTransaction("update users set role = 'admin' where id = '" + heir.id + "'")
	answers := s.standoff(func() {
		promote()
		s.until(func() bool { // the heir has the row, and read there what they are now
			return scalar[int](s, `select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
				and query like '%from users where id = $1 for no key update%'`) == 0
		})
		goOn()
		s.until(func() bool {
			return s.waiting() == 2 && scalar[int](s, `select count(*) from pg_stat_activity where datname = current_database()
				and wait_event_type = 'Lock' and query like '%update audit_events%'`) == 0
		})
		release()
	}, deleteAccount(heir), deleteAccount(root))
	answers[0].want(409, "last_admin")
	answers[1].want(204, "")
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
