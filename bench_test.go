package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/golang-jwt/jwt/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// The benchmarks set roster beside the least that Go can do for the same request: net/http, pgx, one statement, JSON.
// Both run in this process, with the client, over loopback, in alternating rounds; ratio is roster's throughput over
// the other's, the median of the rounds. Client and PostgreSQL share the cores, so only the ratio means anything.
// Commits are durable, and refreshes as slow as they are in life, where TEST_DATABASE_URL names a server with fsync.

const (
	benchRounds = 11
	benchRound  = 300 * time.Millisecond
	// benchHeaders is what every client sends.
	benchHeaders = "Host: 127.0.0.1\r\nAccept: application/json\r\n" +
		"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n"
)

// BenchmarkReadMe compares GET /v1/users/me, with all that a request passes through, to its one SELECT.
func BenchmarkReadMe(b *testing.B) {
	for _, connections := range []int{1, 32} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			s := newBenchServer(b, "on")
			bare := startBare(b, s)
			roster, direct := make(load, connections), make(load, connections)
			for i := range connections {
				m := signInOver(b, s, i)
				roster[i] = repeat(dial(b, s.url), "GET /v1/users/me HTTP/1.1\r\n"+benchHeaders+"Authorization: Bearer "+m.token+"\r\n\r\n")
				direct[i] = repeat(dial(b, bare), "GET /me/"+insertBareSession(s, m.id)+"/"+m.id+" HTTP/1.1\r\n"+benchHeaders+"\r\n")
			}
			compare(b, roster, against{"", direct})
		})
	}
}

// BenchmarkRefresh compares the refresh grant to its one UPDATE, where every connection follows a chain of its own.
// The token that roster returns is signed with ES256, which no implementation can leave out: ratio is to a bare
// handler that signs too, unsigned-ratio to one that does not. With THROTTLE=on, its default, roster counts in a
// second statement, which is no part of either.
func BenchmarkRefresh(b *testing.B) {
	for _, c := range []struct {
		connections int
		throttle    string
	}{{1, "off"}, {1, "on"}, {32, "off"}, {32, "on"}} {
		b.Run(fmt.Sprintf("connections=%d/throttle=%s", c.connections, c.throttle), func(b *testing.B) {
			s := newBenchServer(b, c.throttle)
			bare := startBare(b, s)
			roster, signed, unsigned := make(load, c.connections), make(load, c.connections), make(load, c.connections)
			for i := range c.connections {
				m := signInOver(b, s, i)
				roster[i] = refreshChain(dial(b, s.url), m.refresh)
				signed[i] = bareChain(dial(b, bare), "signed", insertBareSession(s, m.id))
				unsigned[i] = bareChain(dial(b, bare), "unsigned", insertBareSession(s, m.id))
			}
			compare(b, roster, against{"", signed}, against{"unsigned-", unsigned})
		})
	}
}

// load is what each connection of a client does over and over; it returns once the response was read.
type load []func() error

// against is what roster is compared to; its metrics are named with the prefix.
type against struct {
	prefix string
	load   load
}

// compare runs the loads in turn and reports the medians.
func compare(b *testing.B, roster load, others ...against) {
	boundGarbage() // as openServer does
	var rates, p99s []float64
	otherRates, ratios := make([][]float64, len(others)), make([][]float64, len(others))
	for b.Loop() {
		for _, l := range append([]against{{"", roster}}, others...) {
			l.load.run(b, benchRound) // warms up
		}
		for range benchRounds {
			rate, p99 := roster.run(b, benchRound)
			rates, p99s = append(rates, rate), append(p99s, p99)
			for i, other := range others {
				otherRate, _ := other.load.run(b, benchRound)
				otherRates[i], ratios[i] = append(otherRates[i], otherRate), append(ratios[i], rate/otherRate)
			}
		}
	}
	b.ReportMetric(0, "ns/op") // hides it
	b.ReportMetric(median(rates), "roster-req/s")
	b.ReportMetric(median(p99s), "p99-ms")
	for i, other := range others {
		b.ReportMetric(median(otherRates[i]), other.prefix+"bare-req/s")
		b.ReportMetric(median(ratios[i]), other.prefix+"ratio")
	}
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// run drives all connections at once for d and returns requests per second and the 99th percentile in milliseconds.
func (l load) run(b *testing.B, d time.Duration) (rate, p99 float64) {
	runtime.GC() // what the others left behind is not this one's
	took := make([][]time.Duration, len(l))
	start := time.Now()
	var connections sync.WaitGroup
	for i, exchange := range l {
		connections.Go(func() {
			for at := start; at.Sub(start) < d; {
				if err := exchange(); err != nil {
					b.Error(err)
					return
				}
				now := time.Now()
				took[i], at = append(took[i], now.Sub(at)), now
			}
		})
	}
	connections.Wait()
	elapsed := time.Since(start)
	if b.Failed() {
		b.FailNow()
	}
	all := slices.Concat(took...)
	slices.Sort(all)
	return float64(len(all)) / elapsed.Seconds(), float64(all[len(all)*99/100].Microseconds()) / 1000
}

// wire is a client of one connection that costs next to nothing beside the server, whose cores it shares.
type wire struct {
	conn net.Conn
	r    *bufio.Reader
	body []byte
}

func dial(b *testing.B, baseURL string) *wire {
	conn, err := net.Dial("tcp", strings.TrimPrefix(baseURL, "http://"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	return &wire{conn: conn, r: bufio.NewReader(conn)}
}

// ask sends a request and returns the body of its 200, which the next call overwrites.
func (w *wire) ask(request []byte) ([]byte, error) {
	if _, err := w.conn.Write(request); err != nil {
		return nil, err
	}
	status, length := "", 0
	for {
		line, err := w.r.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		if status == "" {
			status = string(line)
		} else if value, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return nil, err
			}
		} else if len(line) == 2 {
			break
		}
	}
	w.body = slices.Grow(w.body[:0], length)[:length]
	if _, err := io.ReadFull(w.r, w.body); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(status, "HTTP/1.1 200 ") || length == 0 {
		return nil, fmt.Errorf("%s%s", status, w.body)
	}
	return w.body, nil
}

// repeat sends the same request every time.
func repeat(w *wire, request string) func() error {
	sent := []byte(request)
	return func() error {
		_, err := w.ask(sent)
		return err
	}
}

// refreshChain shows each refresh token once and goes on with its successor.
func refreshChain(w *wire, token string) func() error {
	return func() error {
		body, err := w.ask(tokenRequest("grant_type=refresh_token&refresh_token=" + token))
		_, rest, _ := bytes.Cut(body, []byte(`"refresh_token":"`)) // a decoder would cost as much as the server's
		next, _, found := bytes.Cut(rest, []byte(`"`))
		if token = string(next); err == nil && !found {
			err = fmt.Errorf("no refresh token in %s", body)
		}
		return err
	}
}

// bareChain does the same at the bare server, whose token is a session and its generation in the path.
func bareChain(w *wire, variant, session string) func() error {
	generation := 0
	return func() error {
		generation++
		_, err := w.ask(fmt.Appendf(nil, "POST /refresh/%s/%s/%d HTTP/1.1\r\n"+benchHeaders+"Content-Length: 0\r\n\r\n", variant, session, generation))
		return err
	}
}

// tokenRequest comes from another network each time, so that no limit is reached.
func tokenRequest(form string) []byte {
	n := rand.Uint32()
	return fmt.Appendf(nil, "POST /v1/auth/token HTTP/1.1\r\n"+benchHeaders+"X-Forwarded-For: %d.%d.%d.1\r\n"+
		"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s",
		byte(n), byte(n>>8), byte(n>>16), len(form), form)
}

// newBenchServer starts a replica with the pool of production, whose log is a file, behind a proxy: the client.
func newBenchServer(b *testing.B, throttle string) *testServer {
	cfg := testConfig(newTestDatabase(b))
	cfg.Throttle, cfg.TrustedProxies = throttle, []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	cfg.DBMaxConns = 16
	log, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { log.Close() })
	pool, err := openPool(b.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	s, err := newServer(cfg, pool, newLogger(cfg, newLogBuffer(cfg, log)))
	if err != nil {
		b.Fatal(err)
	}
	listener, err := net.Listen("tcp", cfg.ListenAddr)
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.listenAndServe(ctx, listener) }()
	b.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			b.Error("shutting down:", err)
		}
	})
	return &testServer{server: s, t: b, url: "http://" + listener.Addr().String()}
}

// signInOver makes the user of a connection and signs it in. It leaves out what do would check: the OpenAPI document
// in memory would make garbage collection rarer than in production.
func signInOver(b *testing.B, s *testServer, n int) member {
	email := fmt.Sprintf("bench%d@example.com", n)
	u, err := s.db.insertUser(b.Context(), newUser{newID(), email, "Grace Hopper", "user", testPasswordHash(), true})
	if err != nil {
		b.Fatal(err)
	}
	form := url.Values{"grant_type": {"password"}, "username": {email}, "password": {testPassword}}
	body, err := dial(b, s.url).ask(tokenRequest(form.Encode()))
	if err != nil {
		b.Fatal(err)
	}
	var t tokens
	if err := json.Unmarshal(body, &t); err != nil {
		b.Fatal(err)
	}
	return member{u.ID, email, t.AccessToken, t.RefreshToken}
}

// insertBareSession makes a session that only the bare server knows.
func insertBareSession(s *testServer, userID string) string {
	return scalar[string](s, `
		insert into sessions (id, user_id, expires_at) values ($1, $2, now() + interval '1 day') returning id`, newID(), userID)
}

// startBare serves what roster is compared to: its statements on a pool of the same size, scanned by position, and JSON
// as long as roster's. Nobody is authenticated, nothing is limited and nothing is logged.
func startBare(b *testing.B, s *testServer) string {
	pc, err := pgxpool.ParseConfig(s.cfg.DatabaseURL)
	if err != nil {
		b.Fatal(err)
	}
	pc.MaxConns = s.cfg.DBMaxConns
	pool, err := pgxpool.NewWithConfig(b.Context(), pc)
	if err != nil {
		b.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	signed := func(u user, session string) (string, error) { return signBare(key, s.cfg, u, session) }
	sample, err := signed(user{ID: newID(), Role: "user"}, newID())
	if err != nil {
		b.Fatal(err)
	}
	unsigned := func(user, string) (string, error) { return sample, nil }
	mux := http.NewServeMux()
	mux.HandleFunc("GET /me/{session}/{user}", readMeBare(pool))
	mux.HandleFunc("POST /refresh/signed/{session}/{generation}", refreshBare(pool, s.cfg, signed))
	mux.HandleFunc("POST /refresh/unsigned/{session}/{generation}", refreshBare(pool, s.cfg, unsigned))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	hs := &http.Server{Handler: mux}
	go func() { _ = hs.Serve(listener) }()
	b.Cleanup(func() { hs.Close(); pool.Close() })
	return "http://" + listener.Addr().String()
}

// readMeBare is the statement of callerBySession.
func readMeBare(pool *pgxpool.Pool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var u user
		var generation int32
		var confirmed bool
		var signedIn time.Time
		err := pool.QueryRow(r.Context(), `
			select u.id, u.email, u.name, u.role, u.email_verified, u.disabled, u.created_at, u.updated_at,
				s.generation, s.confirmed, s.created_at
			from sessions s join users u on u.id = s.user_id
			where s.id = $1 and s.user_id = $2 and s.expires_at > now() and not u.disabled`,
			r.PathValue("session"), r.PathValue("user")).
			Scan(&u.ID, &u.Email, &u.Name, &u.Role, &u.EmailVerified, &u.Disabled, &u.CreatedAt, &u.UpdatedAt,
				&generation, &confirmed, &signedIn)
		answerBare(w, u, err)
	}
}

// refreshBare is the statement of rotateSession and the answer of issue.
func refreshBare(pool *pgxpool.Pool, cfg config, access func(u user, session string) (string, error)) http.HandlerFunc {
	ip, refresh := netip.MustParseAddr("127.0.0.1"), "rt_"+strings.Repeat("r", 76)
	return func(w http.ResponseWriter, r *http.Request) {
		var u user
		err := pool.QueryRow(r.Context(), `
			update sessions s set generation = s.generation + 1, confirmed = false, rotated_at = now(), last_seen_at = now(),
				expires_at = least(now() + $3::interval, s.created_at + $4::interval), ip = $5, user_agent = $6
			from users u
			where s.id = $1 and s.generation = $2 and s.expires_at > now() and u.id = s.user_id and not u.disabled
			returning u.id, u.email, u.name, u.role, u.email_verified, u.disabled, u.created_at, u.updated_at`,
			r.PathValue("session"), r.PathValue("generation"), cfg.RefreshIdleTTL, cfg.RefreshMaxTTL, ip, r.UserAgent()).
			Scan(&u.ID, &u.Email, &u.Name, &u.Role, &u.EmailVerified, &u.Disabled, &u.CreatedAt, &u.UpdatedAt)
		if err != nil {
			answerBare(w, nil, err)
			return
		}
		token, err := access(u, r.PathValue("session"))
		answerBare(w, tokens{token, "Bearer", 900, refresh, "account"}, err)
	}
}

// signBare makes an access token with the claims of roster's.
func signBare(key *ecdsa.PrivateKey, cfg config, u user, session string) (string, error) {
	now := time.Now()
	token := jwt.NewWithClaims(jwt.SigningMethodES256, accessClaims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: cfg.PublicURL, Audience: jwt.ClaimStrings{cfg.PublicURL}, Subject: u.ID, ID: crand.Text(),
			IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(cfg.AccessTokenTTL)),
		},
		ClientID: "roster", SessionID: session, Generation: 1, Roles: []string{u.Role}, Scope: "account",
	})
	token.Header["typ"], token.Header["kid"] = "at+jwt", "a thumbprint is 43 characters long, like it"
	return token.SignedString(key)
}

func answerBare(w http.ResponseWriter, body any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.MarshalWrite(w, body)
}
