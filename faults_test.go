package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// What PostgreSQL and the network to it can do to a replica. It answers 503 with Retry-After, in time, never 500, and is
// itself again when they are, without a restart.

// proxy stands between replicas and PostgreSQL, and does to their connections what networks do.
type proxy struct {
	listener net.Listener
	mu       sync.Mutex
	target   string
	links    map[*link]bool
	mode     proxyMode
	onCommit proxyMode
}

type proxyMode int

const (
	pass    proxyMode = iota
	refuse            // new connections are closed at once
	swallow           // what is sent disappears; connections that lost something never recover
	stall             // what is sent arrives when the mode ends
	// What becomes of the next COMMIT, and of its connection.
	cutBefore
	cutAfter
)

// link is one connection of a client with the one to the server.
type link struct {
	client, server net.Conn
	dead           atomic.Bool
	cut            atomic.Bool // the next answer is lost, and the connection with it
}

func newProxy(t testing.TB, databaseURL string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: listener, links: map[*link]bool{}}
	p.aim(t, databaseURL)
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go p.serve(client)
		}
	}()
	t.Cleanup(func() { listener.Close(); p.set(pass); p.cut() })
	return p
}

// aim changes the server that new connections go to.
func (p *proxy) aim(t testing.TB, databaseURL string) {
	t.Helper()
	c, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, p.target = pgconn.NetworkAddress(c.Host, c.Port)
}

// url leads through the proxy.
func (p *proxy) url(databaseURL string) string {
	u, err := url.Parse(databaseURL)
	if err != nil {
		panic(err)
	}
	u.Host = p.listener.Addr().String()
	q := u.Query()
	q.Del("host") // of a socket
	q.Set("sslmode", "disable")
	u.RawQuery = q.Encode()
	return u.String()
}

func (p *proxy) set(mode proxyMode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode = mode
}

// nextCommit says what becomes of the next COMMIT.
func (p *proxy) nextCommit(mode proxyMode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onCommit = mode
}

// cut ends every connection.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.close()
	}
}

func (l *link) close() { l.client.Close(); l.server.Close() }

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	p.mu.Lock()
	target, refused := p.target, p.mode == refuse
	p.mu.Unlock()
	if refused {
		return
	}
	network := "tcp"
	if strings.HasPrefix(target, "/") {
		network = "unix"
	}
	server, err := net.Dial(network, target)
	if err != nil {
		return
	}
	l := &link{client: client, server: server}
	p.mu.Lock()
	p.links[l] = true
	p.mu.Unlock()
	go p.copy(l, server, client, true)
	p.copy(l, client, server, false)
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

func (p *proxy) copy(l *link, to, from net.Conn, fromClient bool) {
	defer l.close()
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		p.mu.Lock()
		for p.mode == stall {
			p.mu.Unlock()
			time.Sleep(5 * time.Millisecond)
			p.mu.Lock()
		}
		if p.mode == swallow {
			l.dead.Store(true)
		}
		if fromClient && p.onCommit != pass && bytes.Contains(b[:n], []byte("commit\x00")) {
			if p.onCommit == cutBefore {
				l.close()
			}
			p.onCommit = pass
			l.cut.Store(true)
		}
		p.mu.Unlock()
		if l.cut.Load() && !fromClient {
			return
		}
		if l.dead.Load() {
			continue
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

// behindNetwork is a replica whose way to PostgreSQL is a proxy; side is the way that is not.
func behindNetwork(t *testing.T, options ...func(*config)) (*testServer, *proxy) {
	t.Helper()
	direct := newTestServer(t)
	p := newProxy(t, direct.cfg.DatabaseURL)
	s := direct.newReplica(func(c *config) {
		c.DatabaseURL = p.url(c.DatabaseURL)
		for _, option := range options {
			option(c)
		}
	})
	s.side = direct.side
	return s, p
}

// unavailable is the one answer of a replica without its database.
func (a answer) unavailable() {
	a.t.Helper()
	if a.want(503, "database_unavailable"); a.header.Get("Retry-After") == "" {
		a.t.Error("no Retry-After")
	}
}

// recovers waits until a request succeeds; meanwhile it may only be refused for the database.
func (s *testServer) recovers(q request) {
	s.t.Helper()
	s.until(func() bool {
		a := s.do(q)
		if a.status >= 300 {
			a.unavailable()
		}
		return a.status < 300
	})
}

// R85: connections that are cut, refused, or cut by PostgreSQL itself.
func TestDatabaseConnectionsBreak(t *testing.T) {
	t.Parallel()
	s, p := behindNetwork(t)
	m := s.newUser("ada@example.com", "user")
	me := request{path: "/v1/users/me", token: m.token}
	write := request{method: "POST", path: "/v1/organizations", token: m.token, body: jsonBody("name", "X")}
	kill := func() {
		s.exec("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
	}
	for _, end := range []func(){p.cut, kill} {
		together(8, func(int) bool { a, err := s.try(me); return err == nil && a.status == 200 }) // the pool is full
		end()
		s.recovers(me)
		s.recovers(write)
	}
	p.set(refuse)
	p.cut()
	s.until(func() bool { return s.do(me).status == 503 })
	s.do(me).unavailable()
	s.do(write).unavailable()
	s.signInAs(m.email, testPassword).unavailable()
	s.get("/readyz", "").want(503, "not_ready")
	s.get("/healthz", "").want(200, "") // R92
	p.set(pass)
	s.recovers(me)
	s.recovers(write)
	s.until(func() bool { return s.get("/readyz", "").status == 200 })
}

// R14, R85: a network that swallows everything. Nobody waits for good, and connections that lost something are replaced.
func TestDatabaseSwallowed(t *testing.T) {
	t.Parallel()
	s, p := behindNetwork(t, func(c *config) { c.DBMaxConns = 2 })
	m := s.newUser("ada@example.com", "user")
	p.set(swallow)
	time.Sleep(1100 * time.Millisecond) // pgxpool asks connections that were idle for a second whether they live
	s.get("/readyz", "").want(503, "not_ready")
	s.get("/v1/users/me", m.token).unavailable()
	s.get("/healthz", "").want(200, "")
	p.set(pass)
	refused := 0 // each after two seconds
	for ; s.get("/v1/users/me", m.token).status != 200; refused++ {
		if refused == 2 {
			t.Fatal("connections that nobody hears keep their places in the pool")
		}
	}
}

// What runs beside the requests has no deadline of its own; a statement that is never answered would end it for good.
func TestStatementsAreLimited(t *testing.T) {
	t.Parallel()
	deadline, limited := limits{}.TraceQueryStart(context.Background(), nil, pgx.TraceQueryStartData{}).Deadline()
	if !limited || time.Until(deadline) > requestTimeout {
		t.Error(deadline, limited)
	}
	s := newTestServer(t)
	if _, ok := s.pool.Config().ConnConfig.Tracer.(limits); !ok {
		t.Error("the pool does not ask for them")
	}
}

// R82, R90: a COMMIT that is lost on its way, or whose answer is: 503, and tried once, so that what it tells of happened
// once or not at all.
func TestLostCommit(t *testing.T) {
	t.Parallel()
	s, p := behindNetwork(t)
	m := s.newUser("ada@example.com", "user")
	s.get("/v1/users/me", m.token).want(200, "")
	for _, tc := range []struct {
		slug string
		mode proxyMode
		want string
	}{
		{"lost-before", cutBefore, "0 0 0"},
		{"lost-after", cutAfter, "1 1 1"},
	} {
		p.nextCommit(tc.mode)
		s.post("/v1/organizations", m.token, jsonBody("name", tc.slug, "slug", tc.slug)).unavailable()
		if got := scalar[string](s, `
			select concat(count(distinct o.id), ' ', count(distinct m.id), ' ', count(distinct e.id)) from organizations o
				left join memberships m on m.organization_id = o.id left join audit_events e on e.organization_id = o.id
			where slug = $1`, tc.slug); got != tc.want {
			t.Errorf("%s: organizations, memberships and events are %s, want %s", tc.slug, got, tc.want)
		}
	}
	if n := scalar[int](s, "select count(*) from audit_events where action = 'organization.created'"); n != 1 {
		t.Errorf("%d events", n)
	}
	s.recovers(request{method: "POST", path: "/v1/organizations", token: m.token, body: jsonBody("name", "X")})
}

// R82, R85: what PostgreSQL refuses for reasons of its own is a 503, and leaves nothing. What it says it has undone is
// tried three times, what a migration has changed under us as well, everything else once.
func TestDatabaseRefuses(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	s.get("/v1/users/me", m.token).want(200, "")
	s.exec("create sequence attempts minvalue 0 start 0")
	for code, attempts := range map[string]int{
		"40001": 3, "40P01": 3, "0A000": 3, // serialization failure, deadlock, stale plan
		"53100": 1, "53200": 1, "53300": 1, "53400": 1, // disk full, out of memory, connections, a limit
		"57014": 1, "57P01": 1, "57P02": 1, "57P03": 1, "25P03": 1, "55P03": 1, // cancelled, shut down, idle, lock timeout
		"08006": 1, "25006": 1, "58030": 1, // connection, read-only, input and output
	} {
		s.exec("alter sequence attempts restart")
		s.exec("create or replace function refuse() returns trigger language plpgsql as $$ begin perform nextval('attempts'); raise exception using errcode = '" + code + "'; end $$")
		s.exec("create or replace trigger refuse before insert on audit_events for each row execute function refuse()")
		s.post("/v1/organizations", m.token, jsonBody("name", "X")).unavailable()
		if n := scalar[int](s, "select last_value + is_called::int from attempts"); n != attempts {
			t.Errorf("%s: %d attempts, want %d", code, n, attempts)
		}
		if n := scalar[int](s, "select count(*) from organizations"); n != 0 {
			t.Fatalf("%s: something is left", code)
		}
		s.exec("drop trigger refuse on audit_events")
	}
	s.post("/v1/organizations", m.token, jsonBody("name", "X")).want(201, "")
}

// R85: a primary that became read-only. Reads go on, writes are refused until there is a primary again. The first
// refusal gives up every connection: what they read may be old, and they would never write again.
func TestReadOnlyPrimary(t *testing.T) {
	t.Parallel()
	direct := newTestServer(t)
	s := direct.newReplica(func(c *config) { c.DatabaseURL = withParameter(c.DatabaseURL, "application_name", "read-only") })
	m := s.newUser("ada@example.com", "user")
	me := request{path: "/v1/users/me", token: m.token}
	write := request{method: "PATCH", path: "/v1/users/me", token: m.token, body: jsonBody("name", "X")}
	s.do(me).want(200, "")
	direct.exec(`create function refuse() returns trigger language plpgsql as $$ begin
		raise 'read-only' using errcode = 'read_only_sql_transaction';
	end $$`)
	direct.exec("create trigger refuse before update on users execute function refuse()")
	together(8, func(int) bool { a, err := s.try(me); return err == nil && a.status == 200 })
	last := scalar[time.Time](direct, "select clock_timestamp()")
	s.do(write).unavailable()
	s.do(me).want(200, "")
	s.until(func() bool {
		return scalar[int](direct, "select count(*) from pg_stat_activity where application_name = 'read-only' and datname = current_database() and backend_start < $1", last) == 0
	})
	direct.exec("drop trigger refuse on users")
	s.recovers(write)
}

// R85: a migration changes types under prepared statements: nobody notices.
func TestStalePlans(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(c *config) { c.DBMaxConns, c.RefreshGrace = 4, 5*time.Minute })
	m := s.newUser("ada@example.com", "user")
	organization := s.post("/v1/organizations", m.token, jsonBody("name", "X")).want(201, "").str("id")
	requests := []request{
		{path: "/v1/users/me", token: m.token},                                                                                    // one row
		{path: "/v1/users/me/sessions", token: m.token},                                                                           // many
		{path: "/v1/organizations/" + organization, token: m.token},                                                               // the role in an organization
		{method: "PATCH", path: "/v1/organizations/" + organization, token: m.token, body: jsonBody("name", "Y")},                 // a transaction
		{method: "PATCH", path: "/v1/users/me", token: m.token, body: jsonBody("name", "Y")},                                      // returning
		{method: "POST", path: "/v1/auth/token", body: url.Values{"grant_type": {"refresh_token"}, "refresh_token": {m.refresh}}}, // replayed
	}
	everything := func() {
		t.Helper()
		for i, q := range requests {
			if won := together(12, func(int) bool { a, err := s.try(q); return err == nil && a.status == 200 }); won != 12 {
				t.Errorf("request %d: %d of 12 succeeded\n%s", i, won, s.logs)
			}
		}
	}
	everything()
	for _, change := range []string{"users alter column role type varchar(20)", "organizations alter column slug type varchar(50)", "sessions alter column user_agent type varchar(300)"} {
		s.exec("alter table " + change)
	}
	everything()
}

// R87: clients that hang up cost PostgreSQL nothing: their queries are finished on the connections that there are.
func TestClientsHangUp(t *testing.T) {
	t.Parallel()
	direct := newTestServer(t)
	s := direct.newReplica(func(c *config) {
		c.DBMaxConns, c.DatabaseURL = 4, withParameter(c.DatabaseURL, "application_name", "hang-up")
	})
	m := s.newUser("ada@example.com", "user")
	me := request{path: "/v1/users/me", token: m.token}
	busy := func() bool { return s.pool.Stat().AcquiredConns() == 4 }
	var before int64
	for round := range 4 {
		release := direct.inTransaction("lock table users in access exclusive mode")
		var clients []net.Conn
		for range 40 {
			client, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(client, "GET /v1/users/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", m.token)
			clients = append(clients, client)
		}
		s.until(busy)
		if round == 0 {
			before = s.pool.Stat().NewConnsCount()
		}
		for _, client := range clients {
			client.Close()
		}
		connections := scalar[int](direct, "select count(*) from pg_stat_activity where application_name = 'hang-up' and datname = current_database()")
		if connections > 4+2 || !busy() {
			t.Errorf("%d connections", connections)
		}
		release()
		s.until(func() bool { return s.inFlight.taken() == 0 })
	}
	if after := s.pool.Stat().NewConnsCount(); after != before {
		t.Errorf("%d connections were made anew", after-before)
	}
	s.do(me).want(200, "")
}

func withParameter(databaseURL, name, value string) string {
	u, err := url.Parse(databaseURL)
	if err != nil {
		panic(err)
	}
	q := u.Query()
	q.Set(name, value)
	u.RawQuery = q.Encode()
	return u.String()
}

// A URL of two servers: when the first is gone the second takes over, and the other way round.
func TestTwoDatabaseHosts(t *testing.T) {
	t.Parallel()
	direct := newTestServer(t)
	a, b := newProxy(t, direct.cfg.DatabaseURL), newProxy(t, direct.cfg.DatabaseURL)
	s := direct.newReplica(func(c *config) {
		both := a.listener.Addr().String() + "," + b.listener.Addr().String()
		c.DatabaseURL = withParameter(strings.Replace(a.url(c.DatabaseURL), a.listener.Addr().String(), both, 1), "target_session_attrs", "read-write")
	})
	m := s.newUser("ada@example.com", "user")
	for _, gone := range []*proxy{a, b} {
		a.set(pass)
		b.set(pass)
		gone.set(refuse)
		gone.cut()
		s.recovers(request{method: "PATCH", path: "/v1/users/me", token: m.token, body: jsonBody("name", "X")})
	}
}
