package main

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// The tests speak HTTP to the real server on a real PostgreSQL: TEST_DATABASE_URL, else DATABASE_URL, else a private
// cluster that lives as long as the tests. Each test has a database of its own, cloned from a migrated template.

// adminURL is the server that the tests create their databases on; templateDB is the migrated one, and cloneOptions
// how it is copied.
var adminURL, templateDB, cloneOptions string

// privateCluster: the server is the tests' own, and is removed after them.
var privateCluster bool

func TestMain(m *testing.M) {
	if os.Getenv("ROSTER_TEST_AS_PROGRAM") != "" {
		main() // a test started this binary as a replica of its own: see startProcess
		return
	}
	os.Exit(runTests(m))
}

// testsAtOnce is for machines of few cores: most of a test is waiting, for PostgreSQL or for a limit.
const testsAtOnce = "8"

func runTests(m *testing.M) int {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", testsAtOnce); err != nil {
			panic(err)
		}
	}
	ctx := context.Background()
	stop, err := openTestServer(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "the tests need PostgreSQL:", err)
		return 1
	}
	defer stop()
	templateDB = "roster_test_" + strings.ToLower(newID()[24:])
	if err := adminExec(ctx, "create database "+templateDB); err != nil {
		fmt.Fprintln(os.Stderr, "the tests need a PostgreSQL where they may create databases:", err)
		return 1
	}
	defer func() { _ = adminExec(ctx, "drop database "+templateDB+" with (force)") }()
	if err := migrateTo(ctx, databaseURL(templateDB), io.Discard, func(int32) int32 { return requiredVersion() }); err != nil {
		fmt.Fprintln(os.Stderr, "migrating the template:", err)
		return 1
	}
	// The option came with PostgreSQL 15, whose default writes the whole copy to its log: two thirds of a test's cost.
	if adminExec(ctx, "do $$ begin assert current_setting('server_version_num')::int >= 150000; end $$") == nil {
		cloneOptions = " strategy file_copy"
	}
	return m.Run()
}

func openTestServer(ctx context.Context) (stop func(), err error) {
	for _, name := range []string{"TEST_DATABASE_URL", "DATABASE_URL"} {
		if adminURL = os.Getenv(name); adminURL != "" {
			return func() {}, nil
		}
	}
	binDir, err := testPostgres()
	if err != nil {
		return nil, err
	}
	home, err := makeHome("")
	if err != nil {
		return nil, err
	}
	pg, err := startPostgres(ctx, binDir, home, "data", "test",
		"fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200")
	if err != nil {
		return nil, err
	}
	adminURL, privateCluster = pg.url, true
	return func() { _ = pg.stop(); os.RemoveAll(home.Name()) }, nil
}

// testPostgres is where the binaries are; a machine that has none fetches them once.
var testPostgres = sync.OnceValues(func() (string, error) {
	return providePostgres(context.Background(), cmp.Or(os.Getenv("POSTGRES_REPOSITORY"), mavenCentral), os.Stderr)
})

func adminExec(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, adminURL)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}

func databaseURL(name string) string {
	u, err := url.Parse(adminURL)
	if err != nil {
		panic(err)
	}
	u.Path = "/" + name
	return u.String()
}

// cloneLock: PostgreSQL refuses to copy a template that another copy is reading.
var cloneLock sync.Mutex

// newTestDatabase returns the URL of a migrated database of the test's own.
func newTestDatabase(t testing.TB) string {
	t.Helper()
	name := templateDB + "_" + strings.ToLower(newID()[24:])
	cloneLock.Lock()
	err := adminExec(context.Background(), "create database "+name+" template "+templateDB+cloneOptions)
	cloneLock.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if privateCluster {
			return // goes as a whole; ext4 is slow to make files where many were just removed
		}
		if err := adminExec(context.Background(), "drop database "+name+" with (force)"); err != nil {
			t.Error(err)
		}
	})
	return databaseURL(name)
}

// testServer is one replica, listening, with what it logged and the mails it sent.
type testServer struct {
	*server
	t    testing.TB
	url  string
	logs *lockedBuffer
	mail *mailbox
	side *pgxpool.Pool // for looking behind the server's back, without its limits
}

// testConfig is a configuration that serve would accept, with real costs and real limits.
func testConfig(databaseURL string) config {
	cfg := config{
		DatabaseURL: databaseURL, SecretKeys: newSecret(), PublicURL: "https://roster.example", AppURL: "https://app.example",
		OpsAddr:        "127.0.0.1:0",    // room:metrics
		VerifyTTL:      24 * time.Hour,   // room:mailflows
		ResetTTL:       time.Hour,        // room:mailflows
		InvitationTTL:  168 * time.Hour,  // room:invitations
		AuditRetention: 8760 * time.Hour, // room:audit
		Throttle:       "off",            // room:throttling
		ListenAddr:     "127.0.0.1:0", DBMaxConns: 6, AccessTokenTTL: 15 * time.Minute, RefreshIdleTTL: 720 * time.Hour,
		RefreshMaxTTL: 2160 * time.Hour, RefreshGrace: 30 * time.Second, SignupEnabled: true, EmailVerification: true,
		PasswordMinLength: 12, IdleTimeout: 620 * time.Second, LogFormat: "json", SecondFactor: "optional",
	}
	cfg.dev = true // without SMTP_URL: mails go to a mailbox of the test
	var p problems
	cfg.check(&p)
	cfg.dev = false
	if err := p.err(); err != nil {
		panic(err)
	}
	return cfg
}

// throttled is an option of newTestServer: as in production, calls and mails are limited.
func throttled(c *config) {
	c.Throttle = "on" // room:throttling
}

// newTestServer starts a replica on a database of its own; newReplica adds one beside it.
func newTestServer(t testing.TB, options ...func(*config)) *testServer {
	t.Helper()
	cfg := testConfig(newTestDatabase(t))
	for _, option := range options {
		option(&cfg)
	}
	return startTestServer(t, cfg, newMailbox())
}

func (s *testServer) newReplica(options ...func(*config)) *testServer {
	s.t.Helper()
	cfg := s.cfg
	for _, option := range options {
		option(&cfg)
	}
	return startTestServer(s.t, cfg, s.mail) // whichever replica sends it
}

func startTestServer(t testing.TB, cfg config, mail *mailbox) *testServer {
	t.Helper()
	side, err := pgxpool.New(t.Context(), cfg.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(side.Close)
	s, _ := startMailServer(t, cfg, mail.deliver)
	s.mail, s.side = mail, side
	return s
}

// in returns the server for a subtest, whose failures are its own.
func (s *testServer) in(t testing.TB) *testServer {
	c := *s
	c.t = t
	return &c
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// mailbox keeps what a replica delivers.
type mailbox struct {
	mu      sync.Mutex
	sent    []message
	arrived chan struct{}
}

func newMailbox() *mailbox { return &mailbox{arrived: make(chan struct{}, 1000)} }

func (m *mailbox) deliver(_ context.Context, msg message) error {
	m.mu.Lock()
	m.sent = append(m.sent, msg)
	m.mu.Unlock()
	m.arrived <- struct{}{}
	return nil
}

// waitMail returns the newest mail to an address of which there are n.
func (s *testServer) waitMail(to string, n int) message {
	s.t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		s.mail.mu.Lock()
		var found []message
		for _, m := range s.mail.sent {
			if m.To == to {
				found = append(found, m)
			}
		}
		s.mail.mu.Unlock()
		if len(found) >= n {
			return found[len(found)-1]
		}
		select {
		case <-s.mail.arrived:
		case <-deadline:
			s.t.Fatalf("no mail %d to %s", n, to)
		}
	}
}

// answer is a response that was read and checked against the OpenAPI document.
type answer struct {
	t      testing.TB
	status int
	header http.Header
	body   []byte
}

// json returns the body as an object.
func (a answer) json() map[string]any {
	a.t.Helper()
	var v map[string]any
	if err := json.Unmarshal(a.body, &v); err != nil {
		a.t.Fatalf("not a JSON object: %v\n%s", err, a.body)
	}
	return v
}

// str returns a member of the body that must be text.
func (a answer) str(name string) string {
	a.t.Helper()
	s, ok := a.json()[name].(string)
	if !ok {
		a.t.Fatalf("%s is not text in %s", name, a.body)
	}
	return s
}

// code returns the stable code of an error, or empty for a success.
func (a answer) code() string {
	if a.status < 400 {
		return ""
	}
	return a.str("code")
}

// fields returns the pointers and codes of the bad fields.
func (a answer) fields() map[string]string {
	a.t.Helper()
	var p problem
	if err := json.Unmarshal(a.body, &p); err != nil {
		a.t.Fatal(err)
	}
	fields := map[string]string{}
	for _, f := range p.Errors {
		fields[f.Pointer] = f.Code
	}
	return fields
}

// request is what tests vary: the zero value is a plain GET.
type request struct {
	method, path, token string
	body                any // a string is sent as it is, url.Values as a form, anything else as JSON
	header              http.Header
}

// testClient follows no redirect and keeps connections.
var testClient = &http.Client{
	Timeout:       30 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport:     &http.Transport{MaxIdleConnsPerHost: 64},
}

// do sends a request and checks the response against the OpenAPI document.
func (s *testServer) do(q request) answer {
	s.t.Helper()
	a, err := s.try(q)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

// try is do for goroutines, which must not end the test.
func (s *testServer) try(q request) (answer, error) {
	var body io.Reader
	contentType := "application/json"
	switch b := q.body.(type) {
	case nil:
		contentType = ""
	case string:
		body = strings.NewReader(b)
	case url.Values:
		body, contentType = strings.NewReader(b.Encode()), "application/x-www-form-urlencoded"
	default:
		encoded, err := json.Marshal(b)
		if err != nil {
			return answer{}, err
		}
		body = bytes.NewReader(encoded)
	}
	if q.method == "" {
		q.method = "GET"
	}
	r, err := http.NewRequest(q.method, s.url+q.path, body)
	if err != nil {
		return answer{}, err
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	if q.token != "" {
		r.Header.Set("Authorization", "Bearer "+q.token)
	}
	for name, values := range q.header {
		r.Header[name] = values
	}
	response, err := testClient.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return answer{}, err
	}
	checkAgainstDocument(s.t, r, response, content)
	return answer{s.t, response.StatusCode, response.Header, content}, nil
}

// want fails the test unless an answer has this status and code.
func (a answer) want(status int, code string) answer {
	a.t.Helper()
	if a.status != status || a.code() != code {
		a.t.Fatalf("got %d %s, want %d %s\n%s", a.status, a.code(), status, code, a.body)
	}
	return a
}

func (s *testServer) get(path, token string) answer {
	s.t.Helper()
	return s.do(request{path: path, token: token})
}

func (s *testServer) post(path, token string, body any) answer {
	s.t.Helper()
	return s.do(request{method: "POST", path: path, token: token, body: body})
}

const testPassword = "correct horse battery"

// testPasswordHash is testPassword hashed once: tests that need many users do not pay for each.
var testPasswordHash = sync.OnceValue(func() string {
	hash, err := newPasswords(12, testCost).hash(context.Background(), netip.Addr{}, testPassword)
	if err != nil {
		panic(err)
	}
	return hash
})

// testCost makes a hash cost a thousandth: what is tested, but where fullCost says so, is what happens around it.
var testCost = argon2Params{memory: 64, time: 1, threads: 1}

// fullCost hashes as in production from now on.
func (s *testServer) fullCost() *testServer {
	s.passwords = newPasswords(s.cfg.PasswordMinLength, currentParams)
	return s
}

// weakHash is a hash of less than testCost.
func weakHash(password string) string {
	weak, salt := argon2Params{memory: 32, time: 1, threads: 1}, make([]byte, 16)
	return encodePHC(weak, salt, weak.key(password, salt, 32))
}

// member is a signed-in user of a test.
type member struct {
	id, email, token, refresh string
}

// newUser makes a confirmed account with testPassword and signs it in over HTTP.
func (s *testServer) newUser(email, role string) member {
	s.t.Helper()
	u, err := s.db.insertUser(s.t.Context(), newUser{newID(), email, "Test " + role, role, testPasswordHash(), true})
	if err != nil {
		s.t.Fatal(err)
	}
	a := s.signInAs(email, testPassword).want(200, "")
	return member{u.ID, email, a.str("access_token"), a.str("refresh_token")}
}

func (s *testServer) signInAs(email, password string) answer {
	s.t.Helper()
	return s.post("/v1/auth/token", "", url.Values{"grant_type": {"password"}, "username": {email}, "password": {password}})
}

func (s *testServer) refreshWith(token string) answer {
	s.t.Helper()
	return s.post("/v1/auth/token", "", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}})
}

// behind is the way to the database that the server's limits do not touch.
func (s *testServer) behind() *pgxpool.Pool {
	if s.side != nil {
		return s.side
	}
	return s.pool
}

// scalar reads one value from the database.
func scalar[T any](s *testServer, sql string, args ...any) T {
	s.t.Helper()
	var v T
	if err := s.behind().QueryRow(s.t.Context(), sql, args...).Scan(&v); err != nil {
		s.t.Fatal(err)
	}
	return v
}

// exec changes the database behind the server's back.
func (s *testServer) exec(sql string, args ...any) {
	s.t.Helper()
	if _, err := s.behind().Exec(s.t.Context(), sql, args...); err != nil {
		s.t.Fatal(err)
	}
}
