package main

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

// What clients do who want to hurt: each test attacks a listening server, and then somebody else is served.

// hostile is a connection that is not in a hurry.
type hostile struct {
	net.Conn
	r *bufio.Reader
}

// attack opens a connection and sends text over it.
func (s *testServer) attack(text string) hostile {
	s.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(conn, text); err != nil {
		s.t.Fatal(err)
	}
	return hostile{conn, bufio.NewReader(conn)}
}

// line returns the next line of the answer without its end.
func (h hostile) line() string {
	line, err := h.r.ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimRight(line, "\r\n")
}

// slowBody opens a request whose body the server is reading when it returns: net/http says 100 when it begins to.
func (s *testServer) slowBody(length int, sent string) hostile {
	s.t.Helper()
	h := s.attack(fmt.Sprintf("POST /v1/auth/register HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"+
		"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n%s", length, sent))
	if line := h.line(); line != "HTTP/1.1 100 Continue" || h.line() != "" {
		s.t.Fatal("the body is not read: ", line)
	}
	return h
}

// served fails unless somebody who behaves is served: a read, and a sign-in with its body.
func (s *testServer) served(m member) {
	s.t.Helper()
	s.get("/v1/users/me", m.token).want(200, "")
	s.refreshWith(m.refresh).want(200, "")
}

// R01, R14: headers that do not come to their end are cut by ReadHeaderTimeout, and sooner than a body that began before
// them. Meanwhile everybody else is served.
func TestSlowHeaders(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	ended := make(chan string, 2)
	wait := func(name string, h hostile) {
		content, err := io.ReadAll(h)
		ended <- fmt.Sprintf("%s %s %v", name, content, err)
	}
	go wait("body", s.slowBody(100, "{"))
	unfinished := "GET /v1/users/me HTTP/1.1\r\nHost: x\r\nX-Slow: a"
	dripping := s.attack(unfinished)
	go wait("headers", dripping)
	go func() {
		drop := time.NewTicker(100 * time.Millisecond)
		defer drop.Stop()
		for range drop.C {
			if _, err := io.WriteString(dripping, "a"); err != nil {
				return
			}
		}
	}()
	for range maxInFlight + maxInFlight/2 {
		s.attack(unfinished)
	}
	s.served(m)
	if first := <-ended; !strings.HasPrefix(first, "headers  ") { // with no answer
		t.Error("first ended ", first)
	}
}

// R14: bodies that do not come to their end take no place from anybody.
func TestSlowBodies(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	for range maxInFlight + maxInFlight/2 {
		s.slowBody(100, "{")
	}
	s.served(m)
}

// R14, R104: large bodies that do not come to their end fill up no memory, and take nothing from those who send small
// ones, nor everything from others who send large ones.
func TestSlowLargeBodies(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy)
	m := s.newUser("ada@example.com", "user")
	large := strings.Repeat("a", smallBody)
	for range maxLargeBodies * 4 / 5 {
		s.slowBody(maxBody, large)
	}
	s.until(func() bool { return s.largeBody.taken() == maxLargeBodies*4/5 })
	send := func(ip, rest string) (int, http.Header, string) {
		return s.raw(fmt.Sprintf("POST /v1/auth/register HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: %s\r\nContent-Length: %d\r\n\r\n%s%s", ip, maxBody, large, rest))
	}
	if status, header, _ := send("", ""); status != 503 || header.Get("Retry-After") != "1" {
		t.Error(status, header)
	}
	for _, ip := range []string{"127.0.0.2", "2001:db8::1"} {
		if status, _, body := send(ip, strings.Repeat("a", maxBody-smallBody)); status != 415 {
			t.Error(ip, status, body)
		}
	}
	s.served(m)
}

// R14: connections that say nothing, and those that have said something and keep open, cost nobody else anything.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	for i := range min(2000, int(limit.Cur)/4) { // each has two ends here, and other tests need some
		if i%2 == 0 {
			s.attack("")
			continue
		}
		h := s.attack("HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		if line := h.line(); line != "HTTP/1.1 200 OK" {
			t.Fatal(line)
		}
	}
	s.served(m)
}

// slowReader is a client that reads nothing of its answer.
type slowReader struct {
	header                http.Header
	waiting, disconnected chan struct{}
}

func (w *slowReader) Header() http.Header { return w.header }
func (w *slowReader) WriteHeader(int)     {}
func (w *slowReader) Write(b []byte) (int, error) {
	close(w.waiting)
	<-w.disconnected
	return len(b), nil
}

// open begins an answer that its client does not read until read is called.
func (s *testServer) open(method, path, token string) (w *slowReader, read func()) {
	w = &slowReader{http.Header{}, make(chan struct{}), make(chan struct{})}
	r := httptest.NewRequest(method, path, nil)
	r.Header.Set("Authorization", "Bearer "+token)
	var done sync.WaitGroup
	done.Go(func() { s.handler().ServeHTTP(w, r) })
	<-w.waiting
	return w, func() { close(w.disconnected); done.Wait() }
}

// R14: who does not read the answer holds no place while it waits to be sent.
func TestSlowReaders(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	var reads []func()
	for range maxInFlight + 1 {
		_, read := s.open("GET", "/openapi.json", "")
		reads = append(reads, read)
	}
	if n := s.inFlight.taken(); n != 0 {
		t.Errorf("%d places are taken", n)
	}
	s.served(m)
	for _, read := range reads {
		read()
	}
	if n := s.inFlight.taken(); n != 0 {
		t.Errorf("%d places are taken", n)
	}
}

// R101: what is the same for all is in memory once, however many read it, and nobody adds to it.
func TestFilesAreShared(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	names := len(docsFiles())
	for _, name := range []string{"swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png", "docs.js"} {
		first, err := s.readDocsFile(t.Context(), caller{}, readDocsFileInput{name})
		second, again := s.readDocsFile(t.Context(), caller{}, readDocsFileInput{name})
		if err != nil || again != nil || &first.content[0] != &second.content[0] {
			t.Errorf("%s is unpacked for each: %v %v", name, err, again)
		}
	}
	for _, name := range []string{"nothing.js", "swagger-ui.css.gz", "embed.go", ".", "%2e%2e"} {
		s.get("/docs/"+name, "").want(404, "not_found")
	}
	if n := len(docsFiles()); n != names {
		t.Errorf("%d files, were %d", n, names)
	}
}

// R101: large answers that nobody reads are bounded, whatever endpoint gives them, and a client leaves room for others.
func TestLargeAnswers(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy)
	m := s.newUser("ada@example.com", "admin")
	s.exec("insert into users (id, email, name) select gen_random_uuid(), i || '@example.com', repeat('a', 100) from generate_series(1, 150) i")
	s.exec(`insert into audit_events (id, action, actor_id) select gen_random_uuid(), 'user.updated', $1 from generate_series(1, 1000)`, m.id)
	for _, path := range []string{"/v1/users?limit=100", "/v1/audit-events?limit=100", "/v1/users/me/export"} {
		size := len(s.get(path, m.token).want(200, "").body)
		_, read := s.open("GET", path, m.token)
		if n := s.answers.taken(); n < size*9/10 || n <= smallAnswer {
			t.Errorf("%s: %d bytes are held of %d", path, n, size)
		}
		read()
		s.do(request{method: "HEAD", path: path, token: m.token}).want(200, "")
		s.until(func() bool { return s.answers.taken() == 0 })

		hog := originOf(netip.MustParseAddr("127.0.0.1"))
		for s.answers.take(hog, 4096) {
		}
		a := s.get(path, m.token).want(503, "overloaded")
		if a.header.Get("Retry-After") != "1" || a.header.Get("Link") != "" || a.header.Get("ETag") != "" || a.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v", path, a.header)
		}
		s.served(m)
		for _, ip := range []string{"127.0.0.2", "198.51.100.7"} {
			browser{ip: ip}.do(s, "GET", path, m.token, nil).want(200, "")
		}
		s.answers.leave(hog, s.answers.taken())
	}
	// R101: one export is made at a time.
	leave := s.exporting.fill()
	s.get("/v1/users/me/export", m.token).want(503, "overloaded")
	leave()
	s.get("/v1/users/me/export", m.token).want(200, "")
}

// R11: a request that two readers could divide differently is the last of its connection: nothing after it is read as a
// next one.
func TestAmbiguousFraming(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	chunked := "Transfer-Encoding: chunked\r\n\r\n"
	for _, tc := range []struct {
		name, headers string // from Content-Type on, to the end of the body
		want          string
	}{
		{"two lengths", "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", "400"},
		{"a list of lengths", "Content-Length: 2, 3\r\n\r\n{}", "400"},
		{"signed length", "Content-Length: +2\r\n\r\n{}", "400"},
		{"negative length", "Content-Length: -2\r\n\r\n{}", "400"},
		{"hexadecimal length", "Content-Length: 0x2\r\n\r\n{}", "400"},
		{"huge length", "Content-Length: 99999999999999999999\r\n\r\n{}", "400"},
		{"no length", "Content-Length: \r\n\r\n{}", "400"},
		{"gzip", "Transfer-Encoding: gzip\r\n\r\n", "501"},
		{"identity", "Transfer-Encoding: identity\r\n\r\n", "501"},
		{"chunked twice", "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", "501"},
		{"two codings", "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n", "400 501"},
		{"a coding that looks like chunked", "Transfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n", "400 501"},
		{"space before colon", "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "400"},
		{"header without colon", "X\r\n\r\n", "400"},
		{"NUL in a header", "X: a\x00b\r\n\r\n", "400"},
		{"bare LF in a chunk line", chunked + "2\n{}\r\n0\r\n\r\n", "400"},
		{"bare LF after a chunk", chunked + "2\r\n{}\n0\r\n\r\n", "400"},
		{"bare LF in a chunk extension", chunked + "2;a\n\r\n{}\r\n0\r\n\r\n", "400"},
		{"signed chunk size", chunked + "+2\r\n{}\r\n0\r\n\r\n", "400"},
		{"hexadecimal chunk size with its prefix", chunked + "0x2\r\n{}\r\n0\r\n\r\n", "400"},
		{"huge chunk size", chunked + "fffffffffffffffff\r\n{}\r\n0\r\n\r\n", "400"},
		{"a length beside chunks", "Content-Length: 4\r\n" + chunked + "2\r\n{}\r\n0\r\n\r\n", "422"}, // RFC 9112 section 6.1: the chunks count
		{"negative chunk size", chunked + "-2\r\n{}\r\n0\r\n\r\n", "400"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := s.in(t).attack("POST /v1/auth/forgot-password HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + tc.headers +
				"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
			content, err := io.ReadAll(h)
			status, _, _ := strings.Cut(strings.TrimPrefix(string(content), "HTTP/1.1 "), " ")
			if !strings.Contains(tc.want, status) || strings.Count(string(content), "HTTP/1.1 ") != 1 || err != nil && !strings.Contains(err.Error(), "reset") {
				t.Errorf("%s %v", content, err)
			}
		})
	}
	s.served(m)
}

// R13: whatever stands in a body, a path, a query or a header, the answer is no defect. Each request is a good one in
// which one field is wrong, from a caller who may do everything, so that it gets as far as it can.
func TestNoInputIsADefect(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	texts := []string{"", " ", "%00", "\x00", "\u202e", "\U0001f600", "'; drop table users; --", "{{.}}", "../..", "-1", "1e400",
		strings.Repeat("9", 40), strings.Repeat("%", 300), "a\r\nX: y", newID()}
	values := []any{nil, true, -1.5, 1e300, []any{"a"}, map[string]any{"a": nil}, strings.Repeat("a", 60000)}
	for _, text := range texts {
		values = append(values, text)
	}
	for _, rt := range s.routes() {
		c := s.newCell("owner", "")
		s.exec("update users set role = 'admin' where id = $1", c.me.id)
		whole := matrixRequest(rt, c)
		try := func(q request, what ...any) {
			t.Helper()
			if a := s.do(q); a.status >= 500 {
				t.Errorf("%s %q: %d %s", rt.pattern, what, a.status, a.body)
			}
		}
		for _, text := range texts {
			q, line := whole, strings.NewReplacer("\x00", "", "\r\n", "").Replace(text) // what our own client would not send
			if q.method != "GET" {
				break
			}
			q.header = http.Header{}
			for _, name := range []string{"If-None-Match", "X-Forwarded-For", "X-Request-Id", "Accept", "Range", "If-Match", "Cookie", "User-Agent", "Origin"} {
				q.header.Set(name, line)
			}
			try(q, "headers", text)
		}
		for _, f := range inputFields(rt.in) {
			for _, value := range values {
				q, text := whole, fmt.Sprint(value)
				switch f.source {
				case "json":
					body := map[string]any{}
					if err := json.Unmarshal(mustJSON(whole.body), &body); err != nil {
						t.Fatal(err)
					}
					body[f.name] = value
					q.body = body
				case "form":
					body := maps.Clone(whole.body.(url.Values))
					body.Set(f.name, text)
					q.body = body
				case "query":
					q.path += "?" + url.Values{f.name: {text[:min(len(text), 4000)]}}.Encode()
				case "path":
					parts := strings.Split(whole.path, "/")
					parts[slices.Index(strings.Split(rt.pattern, "/"), "{"+f.name+"}")] = url.PathEscape(text[:min(len(text), 4000)])
					q.path = strings.Join(parts, "/")
				case "header":
					continue
				}
				try(q, f.source, f.name, value)
			}
		}
	}
}
