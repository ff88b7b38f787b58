// room:invitations

package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// invite asks a member of a team to invite somebody; the answer is checked.
func (s *testServer) invite(o team, as member, email, role string) answer {
	s.t.Helper()
	return s.do(o.to(as, "POST", "/invitations", jsonBody("email", email, "role", role))).want(201, "")
}

// invited is invite, and the token that was mailed.
func (s *testServer) invited(o team, as member, email, role string) string {
	s.t.Helper()
	before := s.mailsTo(email)
	s.invite(o, as, email, role)
	return s.waitMail(email, before+1).Token
}

// mailsTo is how many mails an address was sent.
func (s *testServer) mailsTo(email string) (n int) {
	s.mail.mu.Lock()
	defer s.mail.mu.Unlock()
	for _, m := range s.mail.sent {
		if m.To == email {
			n++
		}
	}
	return n
}

func accept(as member, token string) request {
	return request{method: "POST", path: "/v1/invitations/accept", token: as.token, body: jsonBody("token", token)}
}

func acceptAsNew(token, password string) request {
	return request{method: "POST", path: "/v1/auth/accept-invitation", body: jsonBody("token", token, "password", password, "name", "New")}
}

// void says whether a token opens nothing any more. A stranger shows it: a live one is refused to them and not consumed.
func (s *testServer) void(token string, stranger member) bool {
	s.t.Helper()
	a := s.do(accept(stranger, token))
	if a.code() != "other_address" && a.code() != "invalid_token" {
		s.t.Fatalf("%d %s", a.status, a.body)
	}
	return a.status == 422
}

func TestInvitations(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o, other := s.newTeam("acme"), s.newTeam("other")
	disabled := s.insertMember("disabled", "user")
	s.exec("update users set disabled = true where id = $1", disabled.id)
	type in = map[string]any
	for _, tc := range []struct {
		name           string
		as             member
		body           any
		status         int
		code           string
		pointer, field string
	}{
		{"capitals", o.owner, in{"email": "Ada@Example.COM", "role": "owner"}, 201, "", "", ""},
		{"admin invites a member", o.admin, in{"email": "bob@example.com", "role": "member"}, 201, "", "", ""},
		{"admin invites an admin", o.admin, in{"email": "eve@example.com", "role": "admin"}, 403, "forbidden", "", ""},
		{"admin renews an owner's as owner", o.admin, in{"email": "ada@example.com", "role": "owner"}, 403, "forbidden", "", ""},
		{"member", o.member, in{"email": "eve@example.com", "role": "member"}, 403, "forbidden", "", ""},
		{"owner elsewhere", other.owner, in{"email": "eve@example.com", "role": "member"}, 404, "not_found", "", ""},
		{"oneself", o.owner, in{"email": o.owner.email, "role": "member"}, 409, "already_member", "", ""},
		{"oneself in capitals", o.owner, in{"email": strings.ToUpper(o.owner.email), "role": "member"}, 409, "already_member", "", ""},
		{"a member", o.owner, in{"email": o.member.email, "role": "owner"}, 409, "already_member", "", ""},
		{"an outsider", o.owner, in{"email": o.outsider.email, "role": "admin"}, 201, "", "", ""},
		{"a disabled account", o.owner, in{"email": disabled.email, "role": "member"}, 201, "", "", ""},
		{"unknown role", o.owner, in{"email": "eve@example.com", "role": "root"}, 422, "invalid_fields", "/role", "invalid_value"},
		{"platform role", o.owner, in{"email": "eve@example.com", "role": "user"}, 422, "invalid_fields", "/role", "invalid_value"},
		{"empty role", o.owner, in{"email": "eve@example.com", "role": ""}, 422, "invalid_fields", "/role", "invalid_value"},
		{"no role", o.owner, in{"email": "eve@example.com"}, 422, "invalid_fields", "/role", "required"},
		{"no address", o.owner, in{"email": "eve", "role": "member"}, 422, "invalid_fields", "/email", "invalid_email"},
		{"two addresses", o.owner, in{"email": "eve@example.com,mal@example.com", "role": "member"}, 422, "invalid_fields", "/email", "invalid_email"},
		{"header", o.owner, in{"email": "eve@example.com\r\nBcc: mal@example.com", "role": "member"}, 422, "invalid_fields", "/email", "invalid_email"},
		{"list", o.owner, `{"email":["eve@example.com"],"role":"member"}`, 400, "malformed_request", "/email", "wrong_type"}, // R65
		{"token", o.owner, in{"email": "eve@example.com", "role": "member", "token": "x"}, 400, "malformed_request", "/token", "unknown_field"},
		{"both wrong", o.owner, in{"email": "x", "role": "x"}, 422, "invalid_fields", "/role", "invalid_value"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := s.in(t)
			a := s.do(o.to(tc.as, "POST", "/invitations", tc.body)).want(tc.status, tc.code)
			if tc.pointer != "" && a.fields()[tc.pointer] != tc.field {
				t.Errorf("fields: %s", a.body)
			}
			if tc.status == 201 && (len(a.json()) != 6 || a.str("invited_by") != tc.as.id) { // R24, R76: nothing more
				t.Errorf("%s", a.body)
			}
		})
	}
	email := func(item map[string]any) string { return item["email"].(string) }
	want := []string{disabled.email, o.outsider.email, "bob@example.com", "ada@example.com"}
	for _, limit := range []int{1, 3, 4} {
		if got := s.pages(o.path+"/invitations", o.admin.token, limit, email); !slices.Equal(got, want) {
			t.Errorf("by %d: %v", limit, got)
		}
	}
	cursor := s.get(o.path+"/invitations?limit=1", o.admin.token).str("next")
	s.join(other.id, o.admin, "admin")
	s.get(other.path+"/invitations?after="+cursor, o.admin.token).want(400, "invalid_cursor") // R20
	s.get(o.path+"/invitations?after="+cursor, o.owner.token).want(400, "invalid_cursor")
	s.get(o.path+"/invitations?after="+cursor[:42]+flipLastBits(cursor), o.admin.token).want(400, "invalid_cursor")
	s.get(o.path+"/invitations?email=ada@example.com", o.admin.token).want(400, "malformed_request")
	// R71: by way of one's own organization nobody else's is withdrawn.
	id := scalar[string](s, "select id from invitations where email = 'ada@example.com'")
	s.do(other.to(other.owner, "DELETE", "/invitations/"+id, nil)).want(404, "not_found")
	s.do(o.to(o.member, "DELETE", "/invitations/"+id, nil)).want(403, "forbidden")
	token := s.waitMail("ada@example.com", 1).Token
	s.do(o.to(o.owner, "DELETE", "/invitations/"+id, nil)).want(204, "")
	s.do(o.to(o.owner, "DELETE", "/invitations/"+id, nil)).want(404, "not_found")
	if !s.void(token, o.outsider) {
		t.Error("a withdrawn invitation is open")
	}
	s.exec("update invitations set expires_at = now() where email = 'bob@example.com'")
	if got := s.pages(o.path+"/invitations", o.admin.token, 4, email); !slices.Equal(got, want[:2]) {
		t.Errorf("one withdrawn, one expired: %v", got)
	}
	s.invite(o, o.owner, other.member.email, "member") // a member elsewhere is none here
	s.invite(other, other.owner, "zoe@example.com", "owner")
	s.invite(o, o.admin, "zoe@example.com", "member") // nor is what another organization offers taken away here
}

// R72: an invitation is taken away, by withdrawing it or by renewing it to another role, only by those who could make it.
func TestInvitationAboveOneself(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o := s.newTeam("acme")
	for actor, m := range map[string]member{"owner": o.owner, "admin": o.admin} {
		for offered := range manageable {
			for _, live := range []bool{true, false} {
				email := actor + offered + fmt.Sprint(live) + "@example.org"
				id := s.invite(o, o.owner, email, offered).str("id")
				if !live { // what has expired offers nothing that could be taken
					s.exec("update invitations set expires_at = now() where id = $1", id)
				}
				row := "select concat(role, ' ', invited_by, ' ', expires_at) from invitations where id = $1"
				before, may := scalar[string](s, row, id), slices.Contains(manageable[actor], offered)
				status := map[bool]int{true: 201, false: 403}[may || !live]
				if a := s.do(o.to(m, "POST", "/invitations", jsonBody("email", email, "role", "member"))); a.status != status {
					t.Errorf("%s renews %s, live %v: %d %s", actor, offered, live, a.status, a.body)
				}
				if status == 403 && scalar[string](s, row, id) != before {
					t.Errorf("%s was refused, and changed the invitation of %s", actor, offered)
				}
				s.exec("update invitations set role = $2 where id = $1", id, offered)
				status = map[bool]int{true: 204, false: 403}[may]
				if a := s.do(o.to(m, "DELETE", "/invitations/"+id, nil)); a.status != status {
					t.Errorf("%s withdraws %s: %d %s", actor, offered, a.status, a.body)
				}
				if n := scalar[int](s, "select count(*) from invitations where id = $1", id); (n == 0) != may {
					t.Errorf("%s withdraws %s: %d are left", actor, offered, n)
				}
			}
		}
	}
	if n := scalar[int](s, "select count(*) from audit_events where action = 'invitation.deleted' and actor_id = $1", o.admin.id); n != 2 {
		t.Errorf("%d events of the admin's withdrawals", n)
	}
}

// R76: the token is in the mail and nowhere else.
func TestInvitationTokenIsInTheMailOnly(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o := s.newTeam("acme")
	ada := s.insertMember("ada", "user")
	created := s.invite(o, o.owner, ada.email, "member")
	m := s.waitMail(ada.email, 1)
	link := s.cfg.AppURL + "/#/accept-invitation?token=" + m.Token // R63
	if len(m.Token) != 43 || strings.Count(m.Text, link) != 1 || !strings.Contains(m.HTML, `href="`+link+`"`) || strings.Contains(m.Subject, m.Token) {
		t.Errorf("%+v", m)
	}
	if got := scalar[[]byte](s, "select token_hash from invitations"); !bytes.Equal(got, hashMailToken(m.Token)) {
		t.Error("the hash is another one")
	}
	for _, a := range []answer{created, s.get(o.path+"/invitations", o.owner.token), s.invite(o, o.owner, ada.email, "member"), s.do(accept(o.outsider, m.Token)),
		s.get(o.path+"/audit-events", o.owner.token), s.do(accept(ada, m.Token)), s.do(accept(ada, m.Token)), s.get("/v1/users/me/export", ada.token)} {
		if strings.Contains(string(a.body), m.Token) || strings.Contains(string(a.body), "token_hash") {
			t.Errorf("%s", a.body)
		}
	}
	if strings.Contains(s.logs.String(), m.Token) {
		t.Error("the token is in the log")
	}
	for _, table := range []string{"invitations", "mails", "mail_tokens", "audit_events"} {
		if scalar[int](s, "select count(*) from "+table+" x where strpos(x::text, $1) > 0", m.Token) != 0 {
			t.Errorf("the token is in %s", table)
		}
	}
}

// R77: one is pending per address. Inviting again changes it; its token changes with the next mail, and not before.
func TestInvitationRenewal(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t, throttled)
	o := s.newTeam("acme")
	ada := s.insertMember("ada", "user")
	created := s.invite(o, o.admin, ada.email, "member")
	first := s.newestToken(ada.email)
	s.exec("update invitations set expires_at = now() + interval '1 hour'")
	// Within the minute there is no mail (R42): the inviter is told, and nothing changes.
	before := scalar[string](s, "select jsonb_agg(i)::text from invitations i")
	s.do(o.to(o.owner, "POST", "/invitations", jsonBody("email", ada.email, "role", "admin"))).want(429, "too_many_attempts")
	if scalar[string](s, "select jsonb_agg(i)::text from invitations i") != before || scalar[int](s, "select count(*) from mails") != 1 {
		t.Error("a refused renewal changed something")
	}
	s.allowNextMail()
	renewed := s.invite(o, o.owner, ada.email, "admin")
	if renewed.str("id") != created.str("id") || renewed.str("role") != "admin" || renewed.str("invited_by") != o.owner.id || renewed.str("expires_at") <= created.str("expires_at") {
		t.Errorf("%s, then %s", created.body, renewed.body)
	}
	if s.void(first, o.outsider) {
		t.Error("there was no mail yet, and yet another token")
	}
	second := s.newestToken(ada.email)
	if !s.void(first, o.outsider) || s.void(second, o.outsider) || scalar[int](s, "select count(*) from invitations") != 1 {
		t.Error("the second mail does not replace the first")
	}
	s.do(accept(ada, first)).want(422, "invalid_token")
	if got := s.do(accept(ada, second)).want(200, "").str("role"); got != "admin" || s.roleIn(o.id, ada) != "admin" {
		t.Errorf("the role is %s", got)
	}
	s.do(accept(ada, second)).want(422, "invalid_token")
	// R61: renewing an expired one does not bring its token back to life.
	s.invite(o, o.owner, "eve@example.com", "member")
	expired := s.newestToken("eve@example.com")
	s.exec("update invitations set expires_at = now()")
	s.allowNextMail()
	s.invite(o, o.owner, "eve@example.com", "member")
	if !s.void(expired, o.outsider) {
		t.Error("the token of an expired invitation is live again")
	}
}

// R42: a hundred are pending in an organization, also when they come at once; those that have expired do not count.
func TestInvitationsAreLimited(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, throttled)
	other := s.newReplica()
	o, second := s.newTeam("acme"), s.newTeam("second")
	s.exec(`insert into invitations (id, organization_id, email, role, invited_by, expires_at)
		select gen_random_uuid(), $1, i || '@example.net', 'member', $2, now() + interval '1 day' from generate_series(1, 95) i`, o.id, o.owner.id)
	invite := func(email string) request {
		return o.to(o.admin, "POST", "/invitations", jsonBody("email", email, "role", "member"))
	}
	won := together(10, func(i int) bool {
		a, err := []*testServer{s, other}[i%2].try(invite(fmt.Sprint("new.", i, "@example.com")))
		if err != nil || a.status != 201 && a.code() != "too_many_invitations" {
			t.Errorf("%v %d", err, a.status)
		}
		return a.status == 201
	})
	if n := scalar[int](s, "select count(*) from invitations"); won != 5 || n != 100 {
		t.Errorf("%d more of 95, %d together", won, n)
	}
	if a := s.do(invite("more@example.com")).want(429, "too_many_invitations"); a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	s.do(invite("1@example.net")).want(201, "") // renewed
	s.invite(second, second.owner, "more@example.com", "member")
	s.exec("update invitations set expires_at = now() where email = '2@example.net'")
	s.do(invite("more@example.com")).want(201, "")
	s.do(invite("2@example.net")).want(429, "too_many_invitations")
}

// R42, R108: nobody's mailbox is filled, also not by withdrawing and inviting again. What one organization sends takes
// nothing from what another may; all together send twenty an hour. Whoever invites is told, and what is refused is
// nowhere: no invitation, no mail, no event, no count.
func TestInvitationMailsAreLimited(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t, throttled)
	acme, second, third := s.newTeam("acme"), s.newTeam("second"), s.newTeam("third")
	const victim = "victim@example.com"
	ask := func(o team, email string) request {
		return o.to(o.owner, "POST", "/invitations", jsonBody("email", email, "role", "member"))
	}
	refused := func(why string, q request) {
		t.Helper()
		// The limit of the inviter's own calls comes before.
		state := `select concat((select jsonb_agg(i) from invitations i), (select jsonb_agg(m) from mails m), (select jsonb_agg(a) from audit_events a),
			(select jsonb_agg(t order by key) from throttles t where key !~ '^(invitations|changes) '))`
		before := scalar[string](s, state)
		if a := s.do(q).want(429, "too_many_attempts"); a.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
		if after := scalar[string](s, state); after != before {
			t.Errorf("%s: from\n%s\nto\n%s", why, before, after)
		}
	}
	for range 5 {
		id := s.invite(acme, acme.owner, victim, "member").str("id")
		refused("within the minute", ask(acme, victim))
		s.do(acme.to(acme.owner, "DELETE", "/invitations/"+id, nil)).want(204, "")
		refused("within the minute, withdrawn", ask(acme, victim))
		s.allowNextMail()
	}
	refused("a sixth in the hour", ask(acme, victim))
	s.do(ask(acme, "other@example.com")).want(201, "")
	for range 5 {
		s.do(ask(second, victim)).want(201, "")
		s.allowNextMail()
	}
	refused("a sixth of the second", ask(second, victim))
	s.passTime("1 hour")
	s.do(ask(acme, victim)).want(201, "")

	s.exec("update throttles set count = 19 where key like 'invitations_address %'")
	s.do(ask(second, victim)).want(201, "")
	refused("a twenty-first from all", ask(third, victim))
	s.do(ask(third, "else@example.com")).want(201, "")
	s.exec("update throttles set count = 199 where key = 'invitations_organization ' || $1", third.id)
	s.do(ask(third, "last@example.com")).want(201, "")
	refused("a 201st of the organization", ask(third, "more@example.com"))
	s.do(ask(second, "more@example.com")).want(201, "")
	// Another kind of mail counts apart.
	s.forgot(victim).want(202, "")
	if n := scalar[int](s, "select count(*) from mails where recipient = $1 and kind = $2", victim, mailResetPassword); n != 1 {
		t.Errorf("%d mails of another kind", n)
	}
}

// R75, R77: for the invited address only; the role is the row's, and a member keeps theirs.
func TestAcceptInvitation(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o := s.newTeam("acme")
	ada, eve := s.insertMember("ada", "user"), s.insertMember("eve", "user")
	s.exec("update users set email_verified = false where id = $1", ada.id)
	token := s.invited(o, o.owner, ada.email, "admin")
	before := scalar[string](s, "select jsonb_agg(i)::text from invitations i")
	s.do(accept(eve, token)).want(403, "other_address")
	s.do(accept(o.owner, token)).want(403, "other_address")
	s.do(acceptAsNew(token, ada.email)).want(422, "invalid_fields")
	if scalar[string](s, "select jsonb_agg(i)::text from invitations i") != before || s.roleIn(o.id, eve) != "" {
		t.Error("a refused call consumed it")
	}
	a := s.do(accept(ada, token)).want(200, "")
	if a.str("role") != "admin" || a.json()["organization"].(map[string]any)["id"] != o.id || s.roleIn(o.id, ada) != "admin" {
		t.Errorf("%s", a.body)
	}
	if !scalar[bool](s, "select email_verified from users where id = $1", ada.id) {
		t.Error("the token proved the mailbox, and the address is still not confirmed")
	}
	s.get(o.path, ada.token).want(200, "")
	s.do(accept(ada, token)).want(422, "invalid_token")
	// Invited before they became a member another way: up or down, their role stays.
	for _, tc := range []struct{ invited, has string }{{"owner", "member"}, {"member", "admin"}} {
		s.exec("delete from memberships where user_id = $1", eve.id)
		s.allowNextMail()
		token := s.invited(o, o.owner, eve.email, tc.invited)
		s.join(o.id, eve, tc.has)
		if got := s.do(accept(eve, token)).want(200, "").str("role"); got != tc.has || s.roleIn(o.id, eve) != tc.has {
			t.Errorf("invited as %s, a %s became %s", tc.invited, tc.has, got)
		}
	}
	for _, tc := range []struct {
		name, body string
		status     int
		code       string
	}{
		{"nothing", `{}`, 422, "invalid_fields"}, {"empty", `{"token":""}`, 422, "invalid_fields"}, {"null", `{"token":null}`, 400, "malformed_request"},
		{"unknown", `{"token":"x"}`, 422, "invalid_token"}, {"long", `{"token":"` + strings.Repeat("x", 5000) + `"}`, 422, "invalid_token"},
		{"a role", `{"token":"x","role":"owner"}`, 400, "malformed_request"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s.in(t).do(request{method: "POST", path: "/v1/invitations/accept", token: ada.token, body: tc.body}).want(tc.status, tc.code)
		})
	}
}

// Whatever ends an invitation ends its token, for those with an account and those without (R61, R76, R78).
func TestInvitationEnds(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	root := s.insertMember("root", "admin")
	for i, tc := range []struct {
		name string
		end  func(o team, invitation string)
		void bool
	}{
		{"nothing", func(team, string) {}, false},
		{"expired", func(_ team, id string) { s.exec("update invitations set expires_at = now() where id = $1", id) }, true},
		{"withdrawn", func(o team, id string) { s.do(o.to(o.admin, "DELETE", "/invitations/"+id, nil)).want(204, "") }, true},
		{"organization deleted", func(o team, _ string) { s.do(o.to(o.owner, "DELETE", "", nil)).want(204, "") }, true},
		{"inviter removed", func(o team, _ string) {
			s.do(o.to(o.owner, "DELETE", "/memberships/"+o.admin.id, nil)).want(204, "")
		}, true},
		{"inviter left", func(o team, _ string) { s.do(o.to(o.admin, "DELETE", "/memberships/"+o.admin.id, nil)).want(204, "") }, true},
		{"inviter deleted", func(o team, _ string) { s.do(deleteAccount(o.admin)).want(204, "") }, true},
		{"inviter disabled", func(o team, _ string) {
			s.do(request{method: "PATCH", path: "/v1/users/" + o.admin.id, token: root.token, body: `{"disabled":true}`}).want(200, "")
		}, true},
		{"inviter demoted", func(o team, _ string) {
			s.do(o.to(o.owner, "PATCH", "/memberships/"+o.admin.id, role("member"))).want(200, "")
		}, true},
		{"inviter promoted", func(o team, _ string) {
			s.do(o.to(o.owner, "PATCH", "/memberships/"+o.admin.id, role("owner"))).want(200, "")
		}, false},
		{"somebody else demoted", func(o team, _ string) {
			s.do(o.to(o.owner, "PATCH", "/memberships/"+o.member.id, role("member"))).want(200, "")
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := s.in(t)
			o := s.newTeam(fmt.Sprint("o-", i))
			ada := s.insertMember(fmt.Sprint("ada", i), "user")
			id := s.invite(o, o.admin, ada.email, "member").str("id")
			token := s.waitMail(ada.email, 1).Token
			tc.end(o, id)
			if s.void(token, o.outsider) != tc.void {
				t.Errorf("void is %v", !tc.void)
			}
			if a := s.do(accept(ada, token)); a.status != map[bool]int{false: 200, true: 422}[tc.void] {
				t.Errorf("%d %s", a.status, a.body)
			}
			if tc.void {
				s.do(acceptAsNew(token, testPassword)).want(422, "invalid_token")
				s.get(o.path, ada.token).want(404, "not_found")
			}
		})
	}
}

// R76: an owner who becomes an admin keeps the invitations that an admin may make.
func TestInvitationsOfDemotedOwner(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o, other := s.newTeam("acme"), s.newTeam("other")
	s.join(o.id, o.admin, "owner")
	s.join(other.id, o.admin, "owner")
	for _, r := range []string{"member", "admin", "owner"} {
		s.invite(o, o.admin, r+"@example.com", r)
		s.invite(other, o.admin, r+"@example.com", r)
		s.invite(o, o.owner, r+"@example.org", r)
	}
	left := func() string {
		return scalar[string](s, "select string_agg(email, ' ' order by email) from invitations where organization_id = $1", o.id)
	}
	s.do(o.to(o.owner, "PATCH", "/memberships/"+o.admin.id, role("admin"))).want(200, "")
	if got := left(); got != "admin@example.org member@example.com member@example.org owner@example.org" {
		t.Errorf("an admin has %s", got)
	}
	s.do(o.to(o.owner, "PATCH", "/memberships/"+o.admin.id, role("member"))).want(200, "")
	if got := left(); got != "admin@example.org member@example.org owner@example.org" {
		t.Errorf("a member has %s", got)
	}
	if scalar[int](s, "select count(*) from invitations where organization_id = $1", other.id) != 3 {
		t.Error("another organization's are gone")
	}
}

// R73, R76: an invitation that is being made when its maker goes does not outlive them.
func TestInvitationWhileInviterGoes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.waitAtCommit()
	root := s.insertMember("root", "admin")
	user := func(method string, m member, body any) request {
		return request{method: method, path: "/v1/users/" + m.id, token: root.token, body: body}
	}
	for i, tc := range []struct {
		name string
		held string // the change that comes first
		end  func(o team) request
	}{
		{"removed", "invitation.created", func(o team) request { return o.to(o.owner, "DELETE", "/memberships/"+o.admin.id, nil) }},
		{"demoted", "invitation.created", func(o team) request { return o.to(o.owner, "PATCH", "/memberships/"+o.admin.id, role("member")) }},
		{"disabled", "invitation.created", func(o team) request { return user("PATCH", o.admin, `{"disabled":true}`) }},
		{"disabled first", "user.updated", func(o team) request { return user("PATCH", o.admin, `{"disabled":true}`) }},
		{"deleted", "invitation.created", func(o team) request { return user("DELETE", o.admin, nil) }},
		{"deleted first", "user.deleted", func(o team) request { return user("DELETE", o.admin, nil) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := s.in(t)
			o := s.newTeam(fmt.Sprint("o-", i))
			requests := []request{o.to(o.admin, "POST", "/invitations", jsonBody("email", "x@example.com", "role", "member")), tc.end(o)}
			if tc.held != "invitation.created" {
				slices.Reverse(requests)
			}
			s.standoff(s.hold(tc.held), requests...)
			if n := scalar[int](s, "select count(*) from invitations where organization_id = $1", o.id); n != 0 {
				t.Error("the invitation is still open")
			}
		})
	}
}

// R75: of fifty uses at once over two replicas, one makes one membership.
func TestInvitationHasOneWinner(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	replicas := []*testServer{s, s.newReplica()}
	o := s.newTeam("acme")
	ada := s.insertMember("ada", "user")
	token := s.invited(o, o.owner, ada.email, "member")
	for _, tc := range []struct {
		n int
		q request
	}{{50, accept(ada, token)}, {8, acceptAsNew(s.invited(o, o.owner, "new@example.com", "member"), testPassword)}} {
		won := together(tc.n, func(i int) bool {
			a, err := replicas[i%2].try(tc.q)
			if err != nil || a.status >= 300 && a.code() != "invalid_token" && a.code() != "sign_in_first" {
				t.Errorf("%v %d %s", err, a.status, a.body)
			}
			return a.status < 300
		})
		if won != 1 {
			t.Errorf("%s: %d of %d won", tc.q.path, won, tc.n)
		}
	}
	if n := scalar[int](s, "select count(*) from memberships"); n != 5 || scalar[int](s, "select count(*) from users where email = 'new@example.com'") != 1 ||
		scalar[int](s, "select count(*) from audit_events where action = 'invitation.accepted'") != 2 {
		t.Errorf("%d memberships", n)
	}
}

// R61: an invitation that expires, or is withdrawn, while its use waits for the organization is void.
func TestInvitationEndsMeanwhile(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o := s.newTeam("acme")
	ada := s.insertMember("ada", "user")
	tokens := []string{s.invited(o, o.owner, ada.email, "member"), s.invited(o, o.owner, "new@example.com", "member")}
	for _, change := range []string{"update invitations set expires_at = now() - interval '1 minute'", "delete from invitations"} {
		for _, q := range []request{accept(ada, tokens[0]), acceptAsNew(tokens[1], testPassword)} {
			s.exec("update invitations set expires_at = now() + interval '1 hour'")
			release := s.inTransaction("select from organizations for no key update")
			s.standoff(func() { s.exec(change); release() }, q)[0].want(422, "invalid_token")
		}
		if n := scalar[int](s, "select count(*) from memberships"); n != 3 {
			t.Errorf("%d memberships", n)
		}
		if change != "delete from invitations" && scalar[int](s, "select count(*) from invitations") != 2 {
			t.Error("an expired invitation was consumed")
		}
	}
}

// A disabled user accepts nothing, and the invitation waits for them.
func TestInvitationOfDisabledUser(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o := s.newTeam("acme")
	ada := s.insertMember("ada", "user")
	token := s.invited(o, o.owner, ada.email, "member")
	for _, verified := range []bool{true, false} {
		s.exec("update users set disabled = true, email_verified = $2 where id = $1", ada.id, verified)
		s.do(accept(ada, token)).want(401, "invalid_access_token")
		s.do(acceptAsNew(token, testPassword)).want(409, "sign_in_first")
	}
	s.exec("update users set disabled = false where id = $1", ada.id)
	s.do(accept(ada, token)).want(200, "")
}

// Invited without an account: account, confirmed address and membership in one call, also where nobody may register.
func TestAcceptInvitationAsNewUser(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(c *config) { c.SignupEnabled = false })
	o := s.newTeam("acme")
	s.post("/v1/auth/register", "", jsonBody("email", "ada@example.com", "password", testPassword, "name", "Ada")).want(403, "signup_disabled")
	token := s.invited(o, o.owner, "ada@example.com", "admin")
	before := scalar[string](s, "select jsonb_agg(i)::text from invitations i")
	for _, tc := range []struct {
		name    string
		body    map[string]string
		status  int
		code    string
		pointer string
	}{
		{"address as password", jsonBody("token", token, "password", "ada@example.com", "name", "Ada"), 422, "invalid_fields", "/password"},
		{"short password", jsonBody("token", token, "password", "short", "name", "Ada"), 422, "invalid_fields", "/password"},
		{"no name", jsonBody("token", token, "password", testPassword), 422, "invalid_fields", "/name"},
		{"header in the name", jsonBody("token", token, "password", testPassword, "name", "a\r\nb"), 422, "invalid_fields", "/name"},
		{"an address", jsonBody("token", token, "password", testPassword, "name", "Ada", "email", "eve@example.com"), 400, "malformed_request", "/email"},
		{"a role", jsonBody("token", token, "password", testPassword, "name", "Ada", "role", "owner"), 400, "malformed_request", "/role"},
		{"another token", jsonBody("token", token[:42]+flipLastBits(token), "password", testPassword, "name", "Ada"), 422, "invalid_token", "/token"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := s.in(t).post("/v1/auth/accept-invitation", "", tc.body).want(tc.status, tc.code)
			if a.fields()[tc.pointer] == "" {
				t.Errorf("fields: %s", a.body)
			}
		})
	}
	if scalar[string](s, "select jsonb_agg(i)::text from invitations i") != before || scalar[int](s, "select count(*) from users where email = 'ada@example.com'") != 0 {
		t.Error("a refused call consumed something")
	}
	tokens := s.do(acceptAsNew(token, "ada's own password")).want(201, "")
	me := s.get("/v1/users/me", tokens.str("access_token")).want(200, "")
	if me.str("email") != "ada@example.com" || me.json()["email_verified"] != true || me.str("name") != "New" || me.str("role") != "user" {
		t.Errorf("%s", me.body)
	}
	if s.roleIn(o.id, member{id: me.str("id")}) != "admin" {
		t.Error("the role is not the invitation's")
	}
	s.get(o.path+"/invitations", tokens.str("access_token")).want(200, "")
	s.refreshWith(tokens.str("refresh_token")).want(200, "")
	s.do(acceptAsNew(token, testPassword)).want(422, "invalid_token")
	// With an account one signs in: the link alone is no password.
	second := s.newTeam("second")
	again := s.invited(second, second.owner, "ada@example.com", "member")
	s.do(acceptAsNew(again, "another password 1")).want(409, "sign_in_first")
	s.do(accept(member{token: tokens.str("access_token")}, again)).want(200, "")
	s.signInAs("ada@example.com", "ada's own password").want(200, "")
	s.signInAs("ada@example.com", "another password 1").want(400, "invalid_grant")
}

// Without EMAIL_VERIFICATION nobody's address is confirmed, and an account in use is nobody else's attempt.
func TestAcceptInvitationWithoutVerification(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(c *config) { c.EmailVerification = false })
	o := s.newTeam("acme")
	s.post("/v1/auth/register", "", jsonBody("email", "ada@example.com", "password", testPassword, "name", "Ada")).want(201, "")
	for _, use := range []func(){func() {}, func() { s.signInAs("ada@example.com", testPassword).want(200, "") }} {
		use()
		s.do(acceptAsNew(s.invited(o, o.owner, "ada@example.com", "admin"), "another password 1")).want(409, "sign_in_first")
	}
	ada := s.signInAs("ada@example.com", testPassword).want(200, "").str("access_token")
	if got := s.get("/v1/users/me", ada).str("name"); got != "Ada" {
		t.Error("the name is", got)
	}
	s.do(accept(member{token: ada}, s.invited(o, o.owner, "ada@example.com", "admin"))).want(200, "")
	s.do(acceptAsNew(s.invited(o, o.owner, "eve@example.com", "member"), testPassword)).want(201, "")
}

// R64, R105: whoever registered the address before its owner was invited keeps nothing of it.
func TestInvitationUndoesPreHijack(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	o := s.newTeam("acme")
	s.startRegistration("victim@example.com", attackerPassword)
	registered := s.newestToken("victim@example.com")
	s.startRegistration("victim@example.com", attackerPassword) // this mail is still on its way
	s.exec("update mails set next_attempt_at = now() + interval '1 minute' where sent_at is null")
	s.invite(o, o.owner, "victim@example.com", "member")
	tokens := s.do(acceptAsNew(s.newestToken("victim@example.com"), victimPassword)).want(201, "")
	me := s.get("/v1/users/me", tokens.str("access_token")).want(200, "")
	if me.str("name") != "New" || me.json()["email_verified"] != true {
		t.Errorf("%s", me.body)
	}
	s.dueNow()
	for _, token := range []string{registered, s.newestToken("victim@example.com")} {
		s.verify(token, attackerPassword).want(422, "invalid_token")
	}
	s.signInAs("victim@example.com", attackerPassword).want(400, "invalid_grant")
	if n := scalar[int](s, "select count(*) from users where email like 'victim@%'"); n != 1 || scalar[int](s, "select count(*) from sessions where user_id = $1", me.str("id")) != 1 {
		t.Error("something of the attacker's is left")
	}
	s.signInAs("victim@example.com", victimPassword).want(200, "")
}

// R64: an account that nobody has confirmed, as EMAIL_VERIFICATION=false makes them, is neither replaced by an
// invitation nor is it in the way of one: its address's owner chooses a new password, which ends what others have of it.
func TestInvitationToUnconfirmedAccount(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	o := s.newTeam("acme")
	attacker := s.insertMember("victim", "user")
	s.exec("update users set email_verified = false where id = $1", attacker.id)
	s.invite(o, o.owner, attacker.email, "member")
	token := s.newestToken(attacker.email)
	before := scalar[string](s, "select concat(u, i) from users u, invitations i where u.id = $1", attacker.id)
	s.do(acceptAsNew(token, victimPassword)).want(409, "sign_in_first")
	if scalar[string](s, "select concat(u, i) from users u, invitations i where u.id = $1", attacker.id) != before {
		t.Error("a refused call changed something")
	}
	s.forgot(attacker.email).want(202, "")
	s.reset(s.newestToken(attacker.email), victimPassword).want(204, "")
	s.do(accept(attacker, token)).want(401, "invalid_access_token")
	s.signInAs(attacker.email, testPassword).want(400, "invalid_grant")
	tokens := s.signInAs(attacker.email, victimPassword).want(200, "")
	s.do(accept(member{token: tokens.str("access_token")}, token)).want(200, "")
}

// R60: a token does what it was mailed for, and nothing else.
func TestInvitationTokenIsNoOther(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o := s.newTeam("acme")
	ada := s.insertMember("ada", "user")
	token := s.invited(o, o.owner, ada.email, "member")
	for path, body := range map[string]map[string]string{
		"/v1/auth/verify-email": jsonBody("token", token, "password", testPassword), "/v1/auth/confirm-email": jsonBody("token", token),
		"/v1/auth/reset-password": jsonBody("token", token, "password", "a new password"),
	} {
		s.post(path, "", body).want(422, "invalid_token")
	}
	s.refreshWith(token).want(400, "invalid_grant")
	s.post("/v1/auth/revoke", "", url.Values{"token": {token}}).want(200, "")
	s.do(request{path: "/v1/users/me", header: http.Header{"Authorization": {"Bearer " + token}}}).want(401, "invalid_access_token")
	for _, purpose := range []string{purposeVerifyEmail, purposeResetPassword, purposeConfirmEmail} {
		s.exec(`insert into mail_tokens (token_hash, user_id, purpose, email, expires_at) values ($1, $2, $3, $4, now() + interval '1 hour')`,
			hashMailToken(purpose), ada.id, purpose, ada.email)
		s.do(accept(ada, purpose)).want(422, "invalid_token")
		s.do(acceptAsNew(purpose, testPassword)).want(422, "invalid_token")
	}
	s.do(accept(ada, ada.refresh)).want(422, "invalid_token")
	s.do(accept(ada, scalar[string](s, "select id from invitations"))).want(422, "invalid_token")
	if scalar[int](s, "select count(*) from mail_tokens") != 3 {
		t.Error("a token was consumed elsewhere")
	}
	s.do(accept(ada, token)).want(200, "")
}

// R26: names that others chose are text in a mail: no link, no header, no HTML.
func TestInvitationMail(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	_, o := s.newTeam("other"), s.newTeam("acme")
	hostile := `<a href="https://evil.example/?a&b">www.evil.example</a> mailto:eve@evil.example Subject: x {{.Link}} 'q'`
	for _, inject := range []string{"a\r\nBcc: eve@evil.example", "a\nb", "a\u2028b", "a\u0085b"} {
		s.do(o.to(o.owner, "PATCH", "", jsonBody("name", inject))).want(422, "invalid_fields")
		s.do(request{method: "PATCH", path: "/v1/users/me", token: o.owner.token, body: jsonBody("name", inject)}).want(422, "invalid_fields")
	}
	s.do(o.to(o.owner, "PATCH", "", jsonBody("name", hostile[:100]))).want(200, "")
	s.do(request{method: "PATCH", path: "/v1/users/me", token: o.owner.token, body: jsonBody("name", hostile[len(hostile)-100:])}).want(200, "")
	s.invite(o, o.owner, "ada@example.com", "member")
	m := s.waitMail("ada@example.com", 1)
	link := s.cfg.AppURL + "/#/accept-invitation?token=" + m.Token
	// What mail programs make links of: a scheme, www, or a word with a dot or an @ in it.
	linked := regexp.MustCompile(`(?i)[a-z]+://|www\.[a-z]|mailto:[a-z]|[a-z0-9][.@][a-z]`)
	for part, text := range map[string]string{"subject": m.Subject, "text": strings.ReplaceAll(m.Text, link, "")} {
		if found := linked.FindString(text); found != "" {
			t.Errorf("the %s holds %q:\n%s", part, found, text)
		}
	}
	if strings.ContainsAny(m.Subject, "\r\n") || m.To != "ada@example.com" || m.Subject != "You are invited to an organization" {
		t.Errorf("%q to %q", m.Subject, m.To)
	}
	if !strings.Contains(m.Text, "{{.\u200bLink}}") {
		t.Error("a name was read as a template")
	}
	if strings.Count(m.HTML, "<a ") != 1 || strings.Count(m.HTML, "href=") != 1+strings.Count(m.HTML, "href=&") || !strings.Contains(m.HTML, `<a href="`+link+`"`) {
		t.Errorf("%s", m.HTML)
	}
}
