package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
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
// Both run in this process, with the client, in alternating rounds; ratio is roster's throughput over the other's, the
// median of the rounds. On a shared machine only the ratio means anything.

const (
	benchRounds = 15
	benchRound  = 300 * time.Millisecond
	// benchHeaders is what every client sends.
	benchHeaders = "Host: 127.0.0.1\r\nAccept: application/json\r\n" +
		"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36\r\n"
)

// BenchmarkReadMe compares GET /v1/users/me, with all that a request passes through, to its one SELECT.
func BenchmarkReadMe(b *testing.B) {
	for _, connections := range []int{1, 32} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			s := newBenchServer(b)
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
// handler that signs too, unsigned-ratio to one that does not.
func BenchmarkRefresh(b *testing.B) {
	for _, connections := range []int{1, 32} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			s := newBenchServer(b)
			bare := startBare(b, s)
			roster, signed, unsigned := make(load, connections), make(load, connections), make(load, connections)
			for i := range connections {
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
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // as openServer does
	rates, ratios, p99s := make([][]float64, len(others)+1), make([][]float64, len(others)), []float64{}
	for b.Loop() {
		for round := range benchRounds + 1 {
			d := benchRound
			rate, p99 := roster.run(b, d)
			if round > 0 { // the first warms up
				rates[0], p99s = append(rates[0], rate), append(p99s, p99)
			}
			for i, other := range others {
				otherRate, _ := other.load.run(b, d)
				if round > 0 {
					rates[i+1], ratios[i] = append(rates[i+1], otherRate), append(ratios[i], rate/otherRate)
				}
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(rates[0]), "roster-req/s")
	b.ReportMetric(median(p99s), "p99-ms")
	for i, other := range others {
		b.ReportMetric(median(rates[i+1]), other.prefix+"bare-req/s")
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
			for at := time.Now(); at.Sub(start) < d; {
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
		if err == nil {
			token, err = textIn(body, "refresh_token")
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

func tokenRequest(form string) []byte {
	return fmt.Appendf(nil, "POST /v1/auth/token HTTP/1.1\r\n"+benchHeaders+
		"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s", len(form), form)
}

// textIn finds a string without escapes in a JSON object, without the cost of a decoder.
func textIn(body []byte, name string) (string, error) {
	_, rest, _ := bytes.Cut(body, []byte(`"`+name+`":"`))
	text, _, found := bytes.Cut(rest, []byte(`"`))
	if !found {
		return "", fmt.Errorf("no %s in %s", name, body)
	}
	return string(text), nil
}

// newBenchServer starts a replica with the defaults of production, whose log is a file.
func newBenchServer(b *testing.B) *testServer {
	cfg := testConfig(newTestDatabase(b))
	cfg.DBMaxConns = 0
	cfg.check(new(problems))
	log, err := os.Create(filepath.Join(b.TempDir(), "log"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { log.Close() })
	pc, err := poolConfig(cfg)
	if err != nil {
		b.Fatal(err)
	}
	pool, err := pgxpool.NewWithConfig(b.Context(), pc)
	if err != nil {
		b.Fatal(err)
	}
	s, err := newServer(cfg, pool, newLogger(cfg, log))
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
	m := member{email: fmt.Sprintf("bench%d@example.com", n)}
	u, err := s.db.insertUser(b.Context(), newID(), m.email, "Grace Hopper", "user", testPasswordHash(), true)
	if err != nil {
		b.Fatal(err)
	}
	form := url.Values{"grant_type": {"password"}, "username": {m.email}, "password": {testPassword}}
	body, err := dial(b, s.url).ask(tokenRequest(form.Encode()))
	if err != nil {
		b.Fatal(err)
	}
	m.id = u.ID
	m.token, err = textIn(body, "access_token")
	if err != nil {
		b.Fatal(err)
	}
	m.refresh, err = textIn(body, "refresh_token")
	if err != nil {
		b.Fatal(err)
	}
	return m
}

// insertBareSession makes a session that only the bare server knows.
func insertBareSession(s *testServer, userID string) string {
	return scalar[string](s, `
		insert into sessions (id, user_id, expires_at) values ($1, $2, now() + interval '1 day') returning id`, newID(), userID)
}

// startBare serves what roster is compared to, on a pool of the same size: the statements of callerBySession and
// rotateSession, scanned by position, and JSON as long as roster's. Nobody is authenticated and nothing is logged.
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
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	answer := func(w http.ResponseWriter, body any, err error) {
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.MarshalWrite(w, body)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /me/{session}/{user}", func(w http.ResponseWriter, r *http.Request) {
		var u user
		var session struct {
			generation int32
			confirmed  bool
			createdAt  time.Time
		}
		err := pool.QueryRow(r.Context(), `
			select u.id, u.email, u.name, u.role, u.email_verified, u.disabled, u.created_at, u.updated_at,
				s.generation, s.confirmed, s.created_at
			from sessions s join users u on u.id = s.user_id
			where s.id = $1 and s.user_id = $2 and s.expires_at > now() and not u.disabled`,
			r.PathValue("session"), r.PathValue("user")).
			Scan(&u.ID, &u.Email, &u.Name, &u.Role, &u.EmailVerified, &u.Disabled, &u.CreatedAt, &u.UpdatedAt,
				&session.generation, &session.confirmed, &session.createdAt)
		answer(w, u, err)
	})
	const day = 24 * time.Hour
	ip := netip.MustParseAddr("127.0.0.1")
	refresh := func(accessToken func(u user, session string) (string, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			var u user
			err := pool.QueryRow(r.Context(), `
				update sessions s set generation = s.generation + 1, confirmed = false, rotated_at = now(), last_seen_at = now(),
					expires_at = least(now() + $3::interval, s.created_at + $4::interval), ip = $5, user_agent = $6
				from users u
				where s.id = $1 and s.generation = $2 and s.expires_at > now() and u.id = s.user_id and not u.disabled
				returning u.id, u.email, u.name, u.role, u.email_verified, u.disabled, u.created_at, u.updated_at`,
				r.PathValue("session"), r.PathValue("generation"), 30*day, 90*day, ip, "").
				Scan(&u.ID, &u.Email, &u.Name, &u.Role, &u.EmailVerified, &u.Disabled, &u.CreatedAt, &u.UpdatedAt)
			if err != nil {
				answer(w, nil, err)
				return
			}
			access, err := accessToken(u, r.PathValue("session"))
			answer(w, tokens{access, "Bearer", 900, strings.Repeat("r", len("rt_")+76), "account"}, err)
		}
	}
	sign := func(u user, session string) (string, error) {
		now := time.Now()
		token := jwt.NewWithClaims(jwt.SigningMethodES256, accessClaims{
			RegisteredClaims: jwt.RegisteredClaims{
				Issuer: s.cfg.PublicURL, Audience: jwt.ClaimStrings{s.cfg.PublicURL}, Subject: u.ID, ID: rand.Text(),
				IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(15 * time.Minute)),
			},
			ClientID: "roster", SessionID: session, Generation: 1, Roles: []string{u.Role}, Scope: "account",
		})
		token.Header["typ"], token.Header["kid"] = "at+jwt", strings.Repeat("k", 43)
		return token.SignedString(key)
	}
	sample, err := sign(user{ID: newID(), Role: "user"}, newID())
	if err != nil {
		b.Fatal(err)
	}
	mux.HandleFunc("POST /refresh/signed/{session}/{generation}", refresh(sign))
	mux.HandleFunc("POST /refresh/unsigned/{session}/{generation}", refresh(func(user, string) (string, error) { return sample, nil }))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	hs := &http.Server{Handler: mux}
	go hs.Serve(listener)
	b.Cleanup(func() { hs.Close(); pool.Close() })
	return "http://" + listener.Addr().String()
}
