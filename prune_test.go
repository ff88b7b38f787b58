// room:prune

package main

import (
	"strings"
	"testing"
	"time"
)

// expire puts one expired and one live row of each kind beside what the test has.
func (s *testServer) expire(m member) {
	s.t.Helper()
	s.exec(`insert into sessions (id, user_id, expires_at) select gen_random_uuid(), $1, now() + d from unnest($2::interval[]) d`,
		m.id, []string{"-1 second", "1 hour"})
	s.exec(`insert into mail_tokens (token_hash, user_id, purpose, email, expires_at) values
		('a', $1, 'reset-password', 'x', now() - interval '1 second'), ('b', $1, 'verify-email', 'x', now() + interval '1 hour')`, m.id)
	s.exec(`insert into organizations (id, name, slug) values ($1, 'Acme', 'acme')`, m.id) // any id will do
	s.exec(`insert into invitations (id, organization_id, email, role, invited_by, expires_at)
		select gen_random_uuid(), $1, 'a' || extract(epoch from d)::int || '@example.com', 'member', $1, now() + d from unnest($2::interval[]) d`,
		m.id, []string{"-1 second", "1 hour"})
	for days, kind := range map[int]string{8: "old", 6: "live"} {
		for _, state := range []string{"now(), null", "null, now()", "null, null"} {
			s.exec(`insert into mails (id, user_id, kind, recipient, sent_at, failed_at, next_attempt_at)
				values ($1, $2, $3, 'x', `+state+`, now() + interval '1 hour')`, idOf(days), m.id, kind)
		}
	}
	// A mail that waits keeps its registration.
	s.exec(`insert into registrations (id, email, name, password_hash, expires_at) values
		($1, 'old@example.com', 'X', 'x', now() - interval '1 second'), ($2, 'waits@example.com', 'X', 'x', now() - interval '1 second'),
		(gen_random_uuid(), 'live@example.com', 'X', 'x', now() + interval '1 hour')`, newID(), m.id)
	s.exec(`insert into mails (id, kind, recipient, registration_id, next_attempt_at) values ($1, 'live', 'x', $2, now() + interval '1 hour')`, newID(), m.id)
	s.exec(`insert into throttles (key, count, ends_at) values ('old', 9, now() - interval '1 second'), ('live', 9, now() + interval '1 hour')`)
	s.exec(`insert into audit_events (id, action) values ($1, 'test.old'), ($2, 'test.live')`, idOf(366), idOf(364))
}

// idOf is an id that was made some days ago.
func idOf(days int) string {
	return firstID(time.Now().AddDate(0, 0, -days))[:14] + newID()[14:]
}

// Each kind that has expired goes, each that lives stays.
func TestPrune(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	s.expire(m)
	if n, err := s.db.prune(t.Context(), s.cfg); err != nil || n != 9 {
		t.Fatal(n, "rows went,", err)
	}
	for table, want := range map[string]struct{ old, live string }{
		"sessions": {"expires_at < now()", "expires_at > now()"}, "mail_tokens": {"expires_at < now()", "expires_at > now()"},
		"invitations": {"expires_at < now()", "expires_at > now()"}, "mails": {"kind = 'old'", "kind = 'live'"},
		"registrations": {"email = 'old@example.com'", "email in ('live@example.com', 'waits@example.com')"}, "throttles": {"key = 'old'", "key = 'live'"}, "audit_events": {"action = 'test.old'", "action = 'test.live'"},
	} {
		live := map[string]int{"sessions": 2, "mails": 4, "registrations": 2}[table]
		if n := scalar[int](s, "select count(*) from "+table+" where "+want.old); n != 0 {
			t.Errorf("%s: %d expired are left", table, n)
		}
		if n := scalar[int](s, "select count(*) from "+table+" where "+want.live); n != max(live, 1) {
			t.Errorf("%s: %d live are left", table, n)
		}
	}
	s.get("/v1/users/me", m.token).want(200, "")
	if n, err := s.db.prune(t.Context(), s.cfg); err != nil || n != 0 {
		t.Error(n, "rows went the second time,", err)
	}
	if n, err := s.db.prune(t.Context(), config{AuditRetention: 24 * time.Hour}); err != nil || n != 1 || scalar[int](s, "select count(*) from audit_events where action = 'session.started'") != 1 {
		t.Error(n, "rows went with a retention of a day,", err)
	}
}

// More than a batch, by several at once: everything goes, once. While one is at it, another does nothing.
func TestPruneAtOnce(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	const expired = 2*pruneBatch + 1
	s.exec(`insert into sessions (id, user_id, expires_at) select gen_random_uuid(), $1, now() - interval '1 second' from generate_series(1, $2)`, m.id, expired)
	s.exec(`insert into audit_events (id, action) select overlay($2 placing lpad(to_hex(i), 12, '0') from 25)::uuid, 'test.old' from generate_series(1, $1) i`, expired, idOf(800))

	other, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Exec(t.Context(), `select pg_advisory_xact_lock(hashtext('roster/prune'))`); err != nil {
		t.Fatal(err)
	}
	if n, err := s.db.prune(t.Context(), s.cfg); err != nil || n != 0 {
		t.Error(n, "rows went beside another,", err)
	}
	if err := other.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	deleted := make(chan int64, 4)
	together(cap(deleted), func(int) bool {
		n, err := s.db.prune(t.Context(), s.cfg)
		if err != nil {
			t.Error(err)
		}
		deleted <- n
		return true
	})
	var sum int64
	for range cap(deleted) {
		sum += <-deleted
	}
	// Whoever finds another at it leaves that kind to them: what is left, the next run takes.
	last, err := s.db.prune(t.Context(), s.cfg)
	if err != nil || sum+last != 2*expired {
		t.Errorf("%d and %d rows went, %v", sum, last, err)
	}
	if n := scalar[int](s, "select (select count(*) from sessions where expires_at < now()) + (select count(*) from audit_events where action = 'test.old')"); n != 0 {
		t.Errorf("%d are left", n)
	}
	s.get("/v1/users/me", m.token).want(200, "")
}

// What is renewed while pruning waits for it stays.
func TestPruneWhileRenewed(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.expire(s.newUser("ada@example.com", "user"))
	for _, tc := range []struct{ table, end string }{{"invitations", "expires_at"}, {"throttles", "ends_at"}} {
		ends := "update " + tc.table + " set " + tc.end + " = now() + interval "
		s.exec(ends + "'-1 second'")
		rows := scalar[int](s, "select count(*) from "+tc.table)
		renew := s.inTransaction(ends + "'1 hour'")
		pruned := make(chan error, 1)
		go func() {
			_, err := s.db.prune(t.Context(), s.cfg)
			pruned <- err
		}()
		s.until(func() bool { return s.waiting() == 1 })
		renew()
		if err := <-pruned; err != nil {
			t.Error(err)
		}
		if n := scalar[int](s, "select count(*) from "+tc.table); n != rows || n == 0 {
			t.Errorf("%d of %d %s are left", n, rows, tc.table)
		}
	}
}

func TestPruneCommand(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.expire(s.newUser("ada@example.com", "user"))
	for _, tc := range []struct {
		env  map[string]string
		args []string
		ok   bool
		out  string
	}{
		{map[string]string{}, nil, false, "DATABASE_URL is required"},
		{map[string]string{"DATABASE_URL": s.cfg.DatabaseURL, "AUDIT_RETENTION": "forever"}, nil, false, "AUDIT_RETENTION"},
		{map[string]string{"DATABASE_URL": s.cfg.DatabaseURL}, []string{"now"}, false, "takes no arguments"},
		{map[string]string{"DATABASE_URL": s.cfg.DatabaseURL, "AUDIT_RETENTION": "9000h"}, nil, true, "8 rows deleted\n"},
		{map[string]string{"DATABASE_URL": s.cfg.DatabaseURL}, nil, true, "1 rows deleted\n"},
		{map[string]string{"DATABASE_URL": s.cfg.DatabaseURL}, nil, true, "0 rows deleted\n"},
	} {
		out, ok := runProgram(t, tc.env, "", append([]string{"prune"}, tc.args...)...)
		if ok != tc.ok || !strings.Contains(out, tc.out) {
			t.Errorf("%v %v: exit code 0 is %v\n%s", tc.env, tc.args, ok, out)
		}
	}
}

// R110: a step that fails stops none after it.
func TestPruneGoesOn(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.expire(s.newUser("ada@example.com", "user"))
	s.exec(`create function refuse() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$`)
	s.exec("create trigger refuse before delete on sessions for each row execute function refuse()")
	s.exec("create trigger refuse before delete on throttles for each row execute function refuse()")
	n, err := s.db.prune(t.Context(), s.cfg)
	if err == nil || n != 7 {
		t.Errorf("%d rows went, %v", n, err)
	}
	if left := scalar[int](s, "select count(*) from audit_events where action = 'test.old'"); left != 0 {
		t.Errorf("%d events are left", left)
	}
}

// R102: an account can be deleted whatever it did before, and the client addresses of its doing are gone after the next
// pruning: the newest at once, the rest in batches.
func TestDeleteAfterManyEvents(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada, eve, admin := s.newUser("ada@example.com", "user"), s.newUser("eve@example.com", "user"), s.newUser("root@example.com", "admin")
	const events = 2*eraseBatch + 1
	s.exec(`insert into audit_events (id, action, actor_id, subject_id, ip) select gen_random_uuid(), 'test.event', $1, $2, '192.0.2.1' from generate_series(1, $3)`, ada.id, eve.id, events)
	s.exec(`insert into audit_events (id, action, subject_id, ip) select gen_random_uuid(), 'test.event', $1, '192.0.2.1' from generate_series(1, 10)`, ada.id)
	s.exec(`insert into audit_events (id, action, actor_id, subject_id, ip) values (gen_random_uuid(), 'test.event', $1, $2, '192.0.2.1')`, eve.id, ada.id)
	s.deleteAs("/v1/users/"+ada.id, admin.token).want(204, "")
	left := func() int {
		return scalar[int](s, "select count(*) from audit_events where action = 'test.event' and ip is not null")
	}
	if n := left(); n != 1+events-erasedAtOnce {
		t.Errorf("%d addresses are left at once", n)
	}
	if _, err := s.db.prune(t.Context(), s.cfg); err != nil {
		t.Fatal(err)
	}
	if n := left(); n != 1 || scalar[int](s, "select count(*) from erasures") != 0 {
		t.Errorf("%d addresses are left, want eve's", n)
	}
}
