package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// newProcess is a replica as a process, and a signed-in user of it; requests of the test server go to the process.
func newProcess(t *testing.T, change func(env map[string]string, p *proxy)) (*process, *testServer, member, *proxy) {
	t.Helper()
	env := serveEnv(newTestDatabase(t))
	cfg := testConfig(env["DATABASE_URL"])
	cfg.SecretKeys = env["SECRET_KEYS"]
	cfg.secrets, _ = decodeSecrets(cfg.SecretKeys)
	s := startTestServer(t, cfg, newMailbox())
	m := s.newUser("ada@example.com", "user")
	network := newProxy(t, env["DATABASE_URL"])
	change(env, network)
	p := startServe(t, env)
	s.url = p.url
	s.get("/v1/users/me", m.token).want(200, "")
	return p, s, m, network
}

// keepAlive is a connection that is used for one request after the other.
type keepAlive struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

func (s *testServer) keepAlive() *keepAlive {
	s.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		s.t.Fatal(err)
	}
	return &keepAlive{conn, s.t, bufio.NewReader(conn)}
}

func (k *keepAlive) send(method, path, token, body string) {
	fmt.Fprintf(k, "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		method, path, token, len(body), body)
}

// status reads an answer; last says that the server closes the connection after it.
func (k *keepAlive) status() (status int, last bool) {
	k.t.Helper()
	response, err := http.ReadResponse(k.r, nil)
	if err != nil {
		k.t.Fatal(err)
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		k.t.Fatal(err)
	}
	return response.StatusCode, response.Close
}

// R91: SIGTERM. Not ready at once, normal service for DRAIN_DELAY on connections that close, what is under way gets its
// answer, idle connections do not hold it up, exit 0.
func TestShutdown(t *testing.T) {
	t.Parallel()
	p, s, m, _ := newProcess(t, func(env map[string]string, _ *proxy) { env["DRAIN_DELAY"] = "1500ms" })
	idle, silent, busy, drained := s.keepAlive(), s.keepAlive(), s.keepAlive(), s.keepAlive()
	idle.send("GET", "/v1/users/me", m.token, "")
	if status, last := idle.status(); status != 200 || last {
		t.Fatal(status, last)
	}
	release := s.inTransaction("select from users for update")
	busy.send("PATCH", "/v1/users/me", m.token, `{"name": "Late"}`)
	s.until(func() bool { return s.waiting() == 1 })

	p.signal(syscall.SIGTERM)
	s.until(func() bool { return strings.Contains(p.out.String(), "draining") })
	s.get("/readyz", "").want(503, "not_ready")
	drained.send("GET", "/v1/users/me", m.token, "")
	if status, last := drained.status(); status != 200 || !last {
		t.Errorf("while draining: %d, last %t", status, last)
	}
	s.until(func() bool {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	if _, err := idle.r.ReadByte(); err != io.EOF {
		t.Errorf("an idle connection is not closed: %v", err)
	}
	select {
	case <-p.done:
		t.Fatal("stopped with a request under way")
	default:
	}
	release()
	if status, last := busy.status(); status != 200 || !last {
		t.Errorf("what was under way: %d, last %t", status, last)
	}
	silent.Close()
	if err := p.wait(10 * time.Second); err != nil {
		t.Errorf("%v\n%s", err, p.out)
	}
	if name := scalar[string](s, "select name from users"); name != "Late" {
		t.Error("what was answered is not there")
	}
}

// R91: a second signal ends it at once, whatever it waits for.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, delay string }{{"in DRAIN_DELAY", "1m"}, {"with a request under way", "0s"}} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p, s, m, _ := newProcess(t, func(env map[string]string, _ *proxy) { env["DRAIN_DELAY"] = tc.delay })
			release := s.inTransaction("select from users for update")
			defer release()
			busy := s.keepAlive()
			busy.send("PATCH", "/v1/users/me", m.token, `{"name": "Late"}`)
			s.until(func() bool { return s.waiting() == 1 })
			p.signal(syscall.SIGTERM)
			s.until(func() bool { return strings.Contains(p.out.String(), "draining") })
			s.until(func() bool {
				p.signal(syscall.SIGINT)
				select {
				case <-p.done:
					return true
				default:
					return false
				}
			})
			var exit *exec.ExitError
			if !errors.As(p.err, &exit) || !exit.Sys().(syscall.WaitStatus).Signaled() {
				t.Errorf("ended with %v", p.err)
			}
			if s.waiting() == 0 && tc.delay == "0s" {
				t.Error("the request was not under way any more")
			}
		})
	}
}

// R91: a database that hangs does not keep a replica from stopping: pgx would wait 15 s for connections to close.
func TestShutdownWithoutDatabase(t *testing.T) {
	t.Parallel()
	p, s, m, network := newProcess(t, func(env map[string]string, p *proxy) { env["DATABASE_URL"] = p.url(env["DATABASE_URL"]) })
	s.get("/v1/users/me", m.token).want(200, "")
	network.set(stall)
	defer network.set(pass)
	s.get("/readyz", "").want(503, "not_ready")
	p.signal(syscall.SIGTERM)
	if err := p.wait(10 * time.Second); err != nil {
		t.Errorf("%v\n%s", err, p.out)
	}
}

// R94: a migration that meets a long transaction gives up before everybody queues behind it, leaves nothing half done,
// and is repeated.
func TestMigrateBehindLongTransaction(t *testing.T) {
	t.Parallel()
	env := map[string]string{"DATABASE_URL": withParameter(newTestDatabase(t), "lock_timeout", "50ms")}
	run := func(want string, args ...string) {
		t.Helper()
		p := startProcess(t, t.TempDir(), env, "", append([]string{"migrate"}, args...)...)
		if err := p.wait(20 * time.Second); (err == nil) != (want == "") || !strings.Contains(p.out.String(), want) {
			t.Fatal(err, p.out)
		}
	}
	conn, err := pgx.Connect(t.Context(), env["DATABASE_URL"])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	state := func() (state string) {
		t.Helper()
		if err := conn.QueryRow(t.Context(), "select concat(version, ' ', to_regclass('organizations'), ' ', to_regclass('invitations')) from schema_version").Scan(&state); err != nil {
			t.Fatal(err)
		}
		return state
	}
	run("", "to", "1")
	if got := state(); got != "1  " {
		t.Fatalf("%q", got)
	}
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "select from mails"); err != nil { // 002 alters it, after it has made tables
		t.Fatal(err)
	}
	run("55P03")
	if got := state(); got != "1  " {
		t.Errorf("half done: %q", got)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	run("")
	if got, want := state(), fmt.Sprint(requiredVersion(), " organizations invitations"); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
