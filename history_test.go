package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// client is one user who works on and on, writing down what was acknowledged and what was refused.
type client struct {
	member
	s        *testServer
	replicas []*atomic.Pointer[string] // their addresses; a new process has a new one
	n        int
	ok       [2]atomic.Int64 // answers below 300, by replica

	created, refused []string // slugs of organizations
	disabled         []string // ids of users
	names            []string // since the last one that was acknowledged
}

// call sends a request to the next replica. A connection that breaks is answer 0: nobody knows what became of it.
func (c *client) call(q request) answer {
	replica := c.n % len(c.replicas)
	c.n++
	s := *c.s
	s.url = *c.replicas[replica].Load()
	a, err := s.try(q)
	switch {
	case err != nil:
		return answer{}
	case a.status < 300:
		c.ok[replica].Add(1)
	case a.status == 503 && a.header.Get("Retry-After") != "":
	case a.status >= 500:
		c.s.t.Errorf("%s %s: %d %s", q.method, q.path, a.status, a.body)
	}
	return a
}

// insist repeats a request until its outcome is known.
func (c *client) insist(q request) answer {
	for range 200 {
		if a := c.call(q); a.status != 0 && a.status != 503 {
			return a
		}
		time.Sleep(20 * time.Millisecond)
	}
	c.s.t.Errorf("%s %s is never answered", q.method, q.path)
	return answer{}
}

// work makes one change of each kind.
func (c *client) work(i int, victim string, admin string) {
	slug := fmt.Sprint(c.id[24:], "-", i)
	organization := request{method: "POST", path: "/v1/organizations", token: c.token, body: jsonBody("name", "X", "slug", slug)}
	switch a := c.call(organization); a.status {
	case 201:
		c.created = append(c.created, slug)
	case 0, 503: // whole or absent: made again, it is there either way
		if a := c.insist(organization); a.status == 201 || a.code() == "slug_taken" {
			c.created = append(c.created, slug)
		}
	}
	organization.body = map[string]any{"name": "", "slug": "refused-" + slug}
	if a := c.call(organization); a.status == 422 {
		c.refused = append(c.refused, "refused-"+slug)
	}
	c.names = append(c.names, slug)
	if a := c.call(request{method: "PATCH", path: "/v1/users/me", token: c.token, body: jsonBody("name", slug)}); a.status == 200 {
		c.names = c.names[len(c.names)-1:]
	}
	if a := c.call(request{method: "PATCH", path: "/v1/users/" + victim, token: admin, body: map[string]any{"disabled": true}}); a.status == 200 {
		c.disabled = append(c.disabled, victim)
	}
	// R54: however often the answer is lost, nobody is signed out.
	a := c.insist(request{method: "POST", path: "/v1/auth/token", body: url.Values{"grant_type": {"refresh_token"}, "refresh_token": {c.refresh}}})
	if a.status == 200 {
		c.token, c.refresh = a.str("access_token"), a.str("refresh_token")
	} else {
		c.s.t.Errorf("a refresh got %d %s", a.status, a.body)
	}
}

// startPrimary runs a PostgreSQL of the test's own that keeps what it has acknowledged when it is killed, and waits for
// its standby.
func startPrimary(t *testing.T) (pg *postgres, home *os.Root) {
	t.Helper()
	binDir, err := testPostgres()
	if err != nil {
		t.Fatal(err)
	}
	if home, err = makeHome(""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = home.Close(); os.RemoveAll(home.Name()) })
	if pg, err = startPostgres(t.Context(), binDir, home, "primary", "test", "fsync=off"); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceValue(pg.stop) // the test stops it too
	pg.stop = stop
	t.Cleanup(func() { _ = stop() })
	return pg, home
}

// startStandby copies a primary, which from then on acknowledges nothing that the copy does not have. It copies the
// files itself, because not every package of PostgreSQL has pg_basebackup.
func startStandby(t *testing.T, primary *postgres, home *os.Root) *postgres {
	t.Helper()
	binDir, err := testPostgres()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), primary.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	start, stop := "pg_backup_start('standby', true)", "pg_backup_stop(false)"
	if conn.PgConn().ParameterStatus("server_version") < "15" {
		start, stop = "pg_start_backup('standby', true, false)", "pg_stop_backup(false, false)"
	}
	if _, err := conn.Exec(t.Context(), "select "+start); err != nil {
		t.Fatal(err)
	}
	copying := exec.Command("cp", "-a", filepath.Join(home.Name(), "primary"), filepath.Join(home.Name(), "standby"))
	if out, err := copying.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var label string
	if err := conn.QueryRow(t.Context(), "select labelfile from "+stop).Scan(&label); err != nil {
		t.Fatal(err)
	}
	settings, err := home.OpenFile("standby/postgresql.auto.conf", os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = fmt.Fprintf(settings, "primary_conninfo = '%s'\n", primary.url)
	if err := errors.Join(err, settings.Close(), home.Remove("standby/postmaster.pid"), home.WriteFile("standby/standby.signal", nil, 0o644),
		home.WriteFile("standby/backup_label", []byte(label), 0o644)); err != nil {
		t.Fatal(err)
	}
	if credential, err := runAs(); err != nil {
		t.Fatal(err)
	} else if credential != nil {
		for _, name := range []string{"standby/standby.signal", "standby/backup_label"} {
			if err := home.Lchown(name, int(credential.Uid), int(credential.Gid)); err != nil {
				t.Fatal(err)
			}
		}
	}
	pg, err := startPostgres(t.Context(), binDir, home, "standby", "test", "fsync=off", "wal_retrieve_retry_interval=50ms")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pg.stop() })
	return pg
}

// sql runs statements on a server, each on its own.
func (pg *postgres) sql(t *testing.T, statements ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), pg.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for _, statement := range statements {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(statement, err)
		}
	}
}

// backends are the processes of a server that serve clients.
func (pg *postgres) backends(t *testing.T) (pids []int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), pg.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	rows, _ := conn.Query(t.Context(), "select pid from pg_stat_activity where pid <> pg_backend_pid() and backend_type = 'client backend'")
	if pids, err = pgx.CollectRows(rows, pgx.RowTo[int]); err != nil || len(pids) == 0 {
		t.Fatal(pids, err)
	}
	return pids
}

func signalAll(pids []int, signal syscall.Signal) {
	for _, pid := range pids {
		_ = syscall.Kill(pid, signal) // it may have ended by itself
	}
}

// R82, R85, R90: clients work on two replicas while the network, the replicas and PostgreSQL fail under them. All that
// was acknowledged is there, nothing that was refused is, and what nobody knows is there whole or not at all. After
// each fault both replicas serve again by themselves.
func TestFaultsLoseNothing(t *testing.T) {
	t.Parallel()
	primary, dir := startPrimary(t)
	if err := migrateTo(t.Context(), primary.url, io.Discard, func(int32) int32 { return requiredVersion() }); err != nil {
		t.Fatal(err)
	}
	standby := startStandby(t, primary, dir)
	primary.sql(t, "alter system set synchronous_standby_names = '*'", "select pg_reload_conf()")
	network := newProxy(t, primary.url)
	env := serveEnv(network.url(primary.url))
	cfg := testConfig(env["DATABASE_URL"])
	cfg.SecretKeys = env["SECRET_KEYS"]
	cfg.secrets, _ = decodeSecrets(cfg.SecretKeys)
	s, _ := startMailServer(t, cfg, nil) // signs tokens, and looks behind the replicas
	root := s.insertMember("root", "admin")
	s.exec("insert into users (id, email, name) select gen_random_uuid(), 'victim' || n || '@example.com', 'X' from generate_series(1, 2000) n")
	s.exec("insert into sessions (id, user_id, expires_at) select gen_random_uuid(), id, now() + interval '1 day' from users where email like 'victim%'")
	rows, _ := s.pool.Query(t.Context(), "select id from users where email like 'victim%'")
	victims, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	processes := [2]*process{startServe(t, env), startServe(t, env)}
	replicas := []*atomic.Pointer[string]{{}, {}}
	for i, p := range processes {
		replicas[i].Store(&p.url)
	}
	var clients []*client
	for i := range 4 {
		m := s.insertMember(fmt.Sprint("client", i), "user")
		clients = append(clients, &client{member: m, s: s, replicas: replicas, n: i})
	}
	stop := make(chan struct{})
	var working sync.WaitGroup
	for k, c := range clients {
		working.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					time.Sleep(2 * time.Millisecond)
					c.work(i, victims[(4*i+k)%len(victims)], root.token)
				}
			}
		})
	}
	served := func() { // both replicas serve everybody again
		t.Helper()
		before := make([][2]int64, len(clients))
		for i, c := range clients {
			before[i] = [2]int64{c.ok[0].Load(), c.ok[1].Load()}
		}
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
			done := true
			for i, c := range clients {
				done = done && c.ok[0].Load() > before[i][0]+1 && c.ok[1].Load() > before[i][1]+1
			}
			if done {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("it does not recover\n%s", processes[0].out)
			}
		}
	}
	for _, fault := range []struct {
		name   string
		inject func()
	}{
		{"nothing", func() {}},
		{"connections are cut", network.cut},
		{"PostgreSQL ends them", func() {
			primary.sql(t, "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()")
		}},
		{"a replica is killed", func() {
			processes[0].kill()
			<-processes[0].done
			processes[0] = startServe(t, env)
			replicas[0].Store(&processes[0].url)
		}},
		{"the network is slow", func() { network.set(stall); time.Sleep(200 * time.Millisecond); network.set(pass) }},
		{"the network refuses", func() { network.set(refuse); network.cut(); time.Sleep(200 * time.Millisecond); network.set(pass) }},
		{"PostgreSQL freezes", func() {
			pids := primary.backends(t)
			signalAll(pids, syscall.SIGSTOP)
			time.Sleep(200 * time.Millisecond)
			signalAll(pids, syscall.SIGCONT)
		}},
		{"PostgreSQL crashes", func() { signalAll(primary.backends(t), syscall.SIGKILL) }},
		{"the standby takes over", func() {
			network.aim(t, standby.url) // where writes meet a read-only server at first
			network.cut()
			_ = primary.stop()
			standby.sql(t, "select pg_promote()")
		}},
	} {
		begin := time.Now()
		fault.inject()
		served()
		t.Log(fault.name, time.Since(begin).Round(time.Millisecond))
		if t.Failed() {
			t.Fatal(fault.name)
		}
	}
	close(stop)
	working.Wait()
	s.pool.Reset()

	count := func(what, sql string, want int, args ...any) {
		t.Helper()
		if got := scalar[int](s, sql, args...); got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
	acknowledged := 0
	for _, c := range clients {
		acknowledged += len(c.created) + len(c.disabled)
		if len(c.created) == 0 || len(c.disabled) == 0 || len(c.refused) == 0 {
			t.Errorf("the history proves nothing: %d, %d, %d", len(c.created), len(c.disabled), len(c.refused))
		}
		count("acknowledged organizations", "select count(*) from organizations where slug = any($1)", len(c.created), c.created)
		count("refused organizations", "select count(*) from organizations where slug = any($1)", 0, c.refused)
		count("acknowledged disabling", "select count(*) from users where disabled and id = any($1)", len(c.disabled), c.disabled)
		count("the name is the last that was acknowledged, or one of those after it",
			"select count(*) from users where id = $1 and name = any($2)", 1, c.id, c.names)
	}
	t.Logf("%d acknowledged changes", acknowledged)
	// Whole: what one transaction writes is all there, once.
	count("organizations without their event", `select count(*) from organizations o where 1 <>
		(select count(*) from audit_events e where e.organization_id = o.id and e.action = 'organization.created')`, 0)
	count("events without their organization", `select count(*) from audit_events e where action = 'organization.created'
		and not exists (select from organizations o where o.id = e.organization_id)`, 0)
	count("live sessions of disabled users", "select count(*) from sessions s join users u on u.id = s.user_id where u.disabled", 0)
	count("addresses twice", "select count(*) - count(distinct lower(email)) from users", 0)
	if left := s.ownerless(); len(left) > 0 {
		t.Errorf("without an active owner: %s", strings.Join(left, " "))
	}
}
