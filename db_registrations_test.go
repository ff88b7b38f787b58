// room:mailflows

package main

import (
	"io"
	"testing"
)

// The migration to registrations loses nobody: who waits to confirm does so with the link and password they have, what
// is in use stays an account, and an account without a live link gets in by choosing a new password. Back and forth.
func TestMigrateRegistrations(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	to := func(version int32) {
		t.Helper()
		if err := migrateTo(t.Context(), s.cfg.DatabaseURL, io.Discard, func(int32) int32 { return version }); err != nil {
			t.Fatal(err)
		}
	}
	to(5)
	ids := map[string]string{}
	for name, columns := range map[string]string{
		"confirmed": "true, false, 'user'", "disabled": "true, true, 'user'", "waits": "false, false, 'user'", "unsent": "false, false, 'user'",
		"late": "false, false, 'user'", "imported": "false, false, 'user'", "member": "false, false, 'user'", "signed-in": "false, false, 'user'",
		"admin": "false, false, 'admin'", "banned": "false, true, 'user'", "invited": "false, false, 'user'",
	} {
		ids[name] = newID()
		s.exec("insert into users (id, email, name, password_hash, email_verified, disabled, role) values ($1, $2 || '@example.com', $2, $3, "+columns+")", ids[name], name, testPasswordHash())
		if name != "imported" && name != "confirmed" && name != "unsent" {
			ttl := "now() + interval '1 hour'"
			if name == "late" {
				ttl = "now() - interval '1 hour'"
			}
			s.exec("insert into mail_tokens (token_hash, user_id, purpose, email, expires_at) values ($1, $2, 'verify-email', 'x', "+ttl+")", hashMailToken(name), ids[name])
		}
	}
	s.exec("update users set password_hash = null where id = $1", ids["invited"])
	s.exec("insert into mails (id, user_id, kind, recipient, created_at) values ($1, $2, 'verify_email', 'unsent@example.com', now() - interval '1 hour')", newID(), ids["unsent"])
	s.exec("insert into mails (id, user_id, kind, recipient, sent_at) values ($1, $2, 'verify_email', 'waits@example.com', now())", newID(), ids["waits"])
	s.exec("insert into sessions (id, user_id, expires_at) values ($1, $2, now() + interval '1 hour')", newID(), ids["signed-in"])
	s.exec("insert into organizations (id, name, slug) values ($1, 'Acme', 'acme')", ids["member"])
	s.exec("insert into memberships (id, organization_id, user_id, role) values ($1, $2, $2, 'member')", newID(), ids["member"])
	everybody := func() string {
		t.Helper()
		return scalar[string](s, `select string_agg(x, ' ' order by x) from (
			select email || ' ' || name || ' ' || id || ' ' || coalesce(password_hash, '') x from users
			union all select email || ' ' || name || ' ' || id || ' ' || password_hash from registrations) everybody`)
	}
	to(6)
	before := everybody()
	if got := scalar[string](s, "select string_agg(name, ' ' order by name) from registrations"); got != "unsent waits" {
		t.Errorf("registrations: %s", got)
	}
	to(5)
	if got := scalar[string](s, "select string_agg(name, ' ' order by name) from users"); got != "admin banned confirmed disabled imported invited late member signed-in unsent waits" {
		t.Errorf("users again: %s", got)
	}
	if n := scalar[int](s, "select count(*) from mail_tokens where token_hash = $1", hashMailToken("waits")); n != 1 {
		t.Error("the link is lost on the way back")
	}
	to(requiredVersion())
	if now := everybody(); now != before {
		t.Errorf("before %s\nafter %s", before, now)
	}
	verify := func(token string) answer {
		return s.post("/v1/auth/verify-email", "", jsonBody("token", token, "password", testPassword))
	}
	if me := s.get("/v1/users/me", verify("waits").want(200, "").str("access_token")).want(200, ""); me.str("id") != ids["waits"] || me.json()["email_verified"] != true {
		t.Errorf("%s", me.body)
	}
	s.sendDue()
	verify(s.mailed("unsent@example.com")[0].Token).want(200, "")
	s.signInAs("confirmed@example.com", testPassword).want(200, "")
	s.signInAs("disabled@example.com", testPassword).want(400, "account_disabled")
	for _, name := range []string{"late", "imported", "member", "signed-in", "admin", "invited"} {
		s.signInAs(name+"@example.com", testPassword).want(400, map[bool]string{true: "invalid_grant", false: "email_not_verified"}[name == "invited"])
		s.forgot(name+"@example.com").want(202, "")
		s.sendDue()
		s.post("/v1/auth/reset-password", "", jsonBody("token", s.mailed(name + "@example.com")[0].Token, "password", "a new password 1")).want(204, "")
		s.signInAs(name+"@example.com", "a new password 1").want(200, "")
	}
}

// A version before this one, on this schema, leaves the mails of registrations to replicas that know them (R93).
func TestRegistrationMailKind(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	s.post("/v1/auth/register", "", jsonBody("email", "ada@example.com", "password", testPassword, "name", "Ada")).want(202, "")
	var kind string
	var user *string
	if err := s.pool.QueryRow(t.Context(), "select kind, user_id from mails").Scan(&kind, &user); err != nil || kind == "verify_email" || user != nil {
		t.Error(kind, user, err)
	}
	if n := scalar[int](s, "select count(*) from users"); n != 0 {
		t.Error("a registration made an account")
	}
}
