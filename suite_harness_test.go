package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func (s *testServer) patchAs(path, token string, body any, header ...http.Header) answer {
	s.t.Helper()
	return s.do(request{method: "PATCH", path: path, token: token, body: body, header: slices.Concat(header, []http.Header{nil})[0]})
}

func (s *testServer) deleteAs(path, token string, header ...http.Header) answer {
	s.t.Helper()
	return s.do(request{method: "DELETE", path: path, token: token, header: slices.Concat(header, []http.Header{nil})[0]})
}

// bareUser makes a user whom nobody signs in.
func (s *testServer) bareUser(email, name, role string) user {
	s.t.Helper()
	u, err := s.db.insertUser(s.t.Context(), newUser{newID(), email, name, role, testPasswordHash(), true})
	if err != nil {
		s.t.Fatal(err)
	}
	return u
}

// texts returns a member of every item of a list.
func (a answer) texts(name string) (texts []string) {
	a.t.Helper()
	for _, item := range a.json()["items"].([]any) {
		texts = append(texts, fmt.Sprint(item.(map[string]any)[name]))
	}
	return texts
}

// everyPage reads a list to its end, two at a time, and returns a member of every item.
func (s *testServer) everyPage(path, token, name string) (all []string) {
	s.t.Helper()
	separator := "?"
	if strings.HasSuffix(path, "?") {
		separator = ""
	} else if strings.Contains(path, "?") {
		separator = "&"
	}
	for next, n := separator+"limit=2", 0; ; n++ {
		a := s.get(path+next, token).want(200, "")
		all = append(all, a.texts(name)...)
		cursor, more := a.json()["next"].(string)
		if more != strings.Contains(a.header.Get("Link"), `rel="next"`) || n > 100 {
			s.t.Fatalf("page %d: next %q, Link %q", n, cursor, a.header.Get("Link"))
		}
		if !more {
			return all
		}
		next = separator + "limit=2&after=" + cursor
	}
}

func behindProxy(c *config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} }

// browser is a caller behind a proxy: an address and a browser.
type browser struct{ ip, agent string }

// waitForLock returns when a statement in the test's database waits for somebody else's lock.
func (s *testServer) waitForLock() {
	s.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); scalar[int](s, "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'") == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatal("nothing waits")
		}
	}
}

// runProgram runs a command as a process of its own until it ends, with this standard input.
func runProgram(t *testing.T, env map[string]string, stdin string, args ...string) (out string, ok bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Dir, cmd.Stdin = t.TempDir(), strings.NewReader(stdin)
	cmd.Env = []string{"ROSTER_TEST_AS_PROGRAM=1"}
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	b, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(b), err == nil
}

// together calls f n times at once and returns how often it was true.
func together(n int, f func(i int) bool) (yes int) {
	var mu sync.Mutex
	var group sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		group.Go(func() {
			<-start
			if f(i) {
				mu.Lock()
				yes++
				mu.Unlock()
			}
		})
	}
	close(start)
	group.Wait()
	return yes
}

// waitAtCommit makes every change that writes an audit event wait at its commit while hold has its action.
func (s *testServer) waitAtCommit() {
	s.t.Helper()
	s.exec(`create function wait_at_commit() returns trigger language plpgsql as $$ begin
		perform pg_advisory_xact_lock_shared(hashtext(new.action)); return null; end $$`)
	s.exec(`create constraint trigger wait_at_commit after insert on audit_events deferrable initially deferred
		for each row execute function wait_at_commit()`)
}

// hold keeps commits of an action waiting until it is released.
func (s *testServer) hold(action string) (release func()) {
	s.t.Helper()
	return s.inTransaction(`select pg_advisory_xact_lock(hashtext('` + action + `'))`)
}

// inTransaction runs SQL on a connection of its own, and commits when it is released.
func (s *testServer) inTransaction(sql string) (commit func()) {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), s.cfg.DatabaseURL)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err = conn.Exec(s.t.Context(), "begin; "+sql); err != nil {
		s.t.Fatal(err)
	}
	return func() {
		if _, err := conn.Exec(s.t.Context(), "commit"); err != nil {
			s.t.Error(err)
		}
		conn.Close(s.t.Context())
	}
}

// standoff sends requests, each when those before it have answered or wait for a lock; then it releases, and returns
// the answers.
func (s *testServer) standoff(release func(), requests ...request) []answer {
	s.t.Helper()
	answers := make([]answer, len(requests))
	var answered atomic.Int32
	var group sync.WaitGroup
	others := s.waiting()
	for i, q := range requests {
		group.Go(func() {
			defer answered.Add(1)
			var err error
			if answers[i], err = s.try(q); err != nil {
				s.t.Error(err)
			}
		})
		s.until(func() bool { return int(answered.Load())+s.waiting()-others > i })
	}
	release()
	group.Wait()
	return answers
}

// until waits for what must happen soon.
func (s *testServer) until(happened func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !happened(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatal("it did not happen")
		}
	}
}

// waiting is how many queries of this database wait for a lock.
func (s *testServer) waiting() int {
	s.t.Helper()
	return scalar[int](s, "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'")
}

// insertMember is newUser for tests that need many: account and session are rows, the token is signed here.
func (s *testServer) insertMember(name, role string) member {
	s.t.Helper()
	m, session := member{id: newID(), email: name + "@example.com"}, newID()
	s.exec(`
		with u as (
			insert into users (id, email, name, role, password_hash, email_verified) values ($1, $2, $3, $4, $5, true) returning id)
		insert into sessions (id, user_id, confirmed, ip, expires_at) select $6, id, true, '192.0.2.1', now() + interval '1 day' from u`,
		m.id, m.email, "Test "+name, role, testPasswordHash(), session)
	return s.signed(m, session)
}

// team is an organization with a signed-in member of each role, and somebody outside.
type team struct {
	id, path                       string
	owner, admin, member, outsider member
}

func (s *testServer) newTeam(slug string) team {
	s.t.Helper()
	o := team{id: newID(), owner: s.insertMember("owner."+slug, "user"), admin: s.insertMember("admin."+slug, "user"),
		member: s.insertMember("member."+slug, "user"), outsider: s.insertMember("outsider."+slug, "user")}
	o.path = "/v1/organizations/" + o.id
	s.exec("insert into organizations (id, name, slug) values ($1, $2, $2)", o.id, slug)
	for role, m := range o.roles() {
		s.join(o.id, m, role)
	}
	return o
}

func (o team) roles() map[string]member {
	return map[string]member{"owner": o.owner, "admin": o.admin, "member": o.member}
}

func (s *testServer) join(organization string, m member, role string) {
	s.t.Helper()
	s.exec(`insert into memberships (id, organization_id, user_id, role) values ($1, $2, $3, $4)
		on conflict (organization_id, user_id) do update set role = excluded.role`, newID(), organization, m.id, role)
}

func deleteAccount(m member) request {
	return request{method: "DELETE", path: "/v1/users/me", token: m.token}
}

func role(r string) map[string]string { return map[string]string{"role": r} }

// newQuietServer is newTestServer without senders: mails wait in the outbox for sendDue. quietReplica adds one beside it.
func newQuietServer(t testing.TB, options ...func(*config)) *testServer {
	t.Helper()
	cfg := testConfig(newTestDatabase(t))
	for _, option := range options {
		option(&cfg)
	}
	s, _ := startMailServer(t, cfg, nil)
	return s
}

func (s *testServer) quietReplica() *testServer {
	s.t.Helper()
	other, _ := startMailServer(s.t, s.cfg, nil)
	return other
}

// startMailServer is startTestServer with a delivery of the test's own. Without one nothing is sent until the test
// calls sendDue or sendNext. stop ends the replica early.
func startMailServer(t testing.TB, cfg config, deliver func(context.Context, message) error) (s *testServer, stop func()) {
	t.Helper()
	pool, err := openPool(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	logs := &lockedBuffer{}
	replica, err := newServer(cfg, pool, slog.New(slog.NewJSONHandler(logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if _, benchmark := t.(*testing.B); !benchmark {
		replica.passwords = newPasswords(cfg.PasswordMinLength, testCost)
	}
	replica.deliver, replica.sends = deliver, deliver != nil
	listener, err := net.Listen("tcp", cfg.ListenAddr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- replica.listenAndServe(ctx, listener) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("shutting down:", err)
		}
	})
	t.Cleanup(func() {
		stop()
		if strings.Contains(logs.String(), `"code":"internal"`) && !t.Failed() {
			t.Errorf("a defect was logged:\n%s", logs)
		}
	})
	return &testServer{server: replica, t: t, url: "http://" + listener.Addr().String(), logs: logs,
		mail: newMailbox()}, stop
}

// sendDue sends everything that is due into the mailbox, one mail after the other.
func (s *testServer) sendDue() {
	s.t.Helper()
	for {
		switch err := s.sendNext(s.mail.deliver); {
		case errors.Is(err, pgx.ErrNoRows):
			return
		case err != nil:
			s.t.Fatal(err)
		}
	}
}

// mailed returns what was delivered to an address, oldest first.
func (s *testServer) mailed(to string) []message {
	s.mail.mu.Lock()
	defer s.mail.mu.Unlock()
	var found []message
	for _, m := range s.mail.sent {
		if m.To == to {
			found = append(found, m)
		}
	}
	return found
}

func (s *testServer) forgot(email string) answer {
	s.t.Helper()
	return s.post("/v1/auth/forgot-password", "", map[string]string{"email": email})
}

// holdLock runs a statement in a transaction that stays open until the test ends it.
func (s *testServer) holdLock(sql string, args ...any) pgx.Tx {
	s.t.Helper()
	tx, err := s.pool.Begin(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	if _, err := tx.Exec(s.t.Context(), sql, args...); err != nil {
		s.t.Fatal(err)
	}
	return tx
}

// waitBlocked returns when n statements on this database wait for a lock.
func (s *testServer) waitBlocked(n int) {
	s.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		blocked := scalar[int](s, `
			select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`)
		if blocked >= n {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%d statements wait for a lock, want %d", blocked, n)
		}
	}
}

// allowNextMail lets another mail of a kind go out before the minute is over.
func (s *testServer) allowNextMail() {
	s.t.Helper()
	s.exec("update throttles set ends_at = now() where key like 'mails_minute %'")
}

func jsonBody(pairs ...string) map[string]string {
	body := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		body[pairs[i]] = pairs[i+1]
	}
	return body
}

var update = flag.Bool("update", false, "write the golden files anew")

// flipLastBits returns another last character that a lax base64 decoder takes for the same: the low bits are unused.
func flipLastBits(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, token[len(token)-1])^1])
}

// dump is every row of every table, as text.
func (s *testServer) dump() string {
	s.t.Helper()
	var all strings.Builder
	tables := scalar[[]string](s, "select array_agg(table_name::text) from information_schema.tables where table_schema = 'public'")
	for _, table := range tables {
		all.WriteString(scalar[string](s, "select coalesce(string_agg(t::text, E'\\n'), '') from "+pgx.Identifier{table}.Sanitize()+" t"))
	}
	return all.String()
}
