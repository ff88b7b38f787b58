package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// raw sends bytes over a connection of its own and reads one response.
func (s *testServer) raw(text string) (status int, header http.Header, body string) {
	s.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	go func() { _, _ = io.WriteString(conn, text) }() // a server that refuses early does not read it all
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	content, _ := io.ReadAll(response.Body)
	return response.StatusCode, response.Header, string(content)
}

// R05, R08: nothing redirects, and what is not there is a problem.
func TestUnknownPaths(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for _, tc := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"GET", "/", 404, ""},
		{"GET", "/v1/nothing", 404, ""},
		{"GET", "//v1/users/me", 404, ""},
		{"GET", "/v1/users/me/", 404, ""},
		{"GET", "/v1/../v1/users/me", 404, ""},
		{"GET", "/v1/./users/me", 404, ""},
		{"GET", "/v1/users//me", 404, ""},
		{"GET", "/docs/", 404, ""},
		{"GET", "/docs/%2e%2e%2fmain.go", 404, ""},
		{"GET", "/docs/embed.go", 404, ""},
		{"GET", "/v1/nothing/%00", 404, ""},
		{"GET", "http://evil.example//v1/users/me", 404, ""},
		{"POST", "/v1/users/me", 405, "DELETE, GET, HEAD, PATCH"},
		{"TRACE", "/v1/users/me", 405, "DELETE, GET, HEAD, PATCH"},
		{"BREW", "/v1/users/me", 405, "DELETE, GET, HEAD, PATCH"},
		{"OPTIONS", "/v1/users/me", 405, "DELETE, GET, HEAD, PATCH"},
		{"OPTIONS", "*", 404, ""},
		{"CONNECT", "evil.example:443", 405, ""},
		{"CONNECT", "/v1/users/me", 405, ""},
	} {
		status, header, body := s.raw(tc.method + " " + tc.path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if status != tc.status || header.Get("Location") != "" || header.Get("Allow") != tc.allow ||
			(header["Allow"] == nil) != (tc.status == 404) {
			t.Errorf("%s %s: %d %v", tc.method, tc.path, status, header)
		}
		if !strings.Contains(body, `"request_id"`) || header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %s: not a problem: %s", tc.method, tc.path, body)
		}
	}
}

// R06, R12
func TestResponseHeaders(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for _, path := range []string{"/healthz", "/v1/users/me", "/nothing"} {
		h := s.get(path, "").header
		for name, want := range map[string]string{
			"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
			"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Server": "",
		} {
			if h.Get(name) != want {
				t.Errorf("%s: %s is %q", path, name, h.Get(name))
			}
		}
	}
	long := strings.Repeat("a", 64)
	for id, kept := range map[string]bool{"abc.DEF_1-2": true, long: true, long + "a": false, "": false, "a b": false, "ä": false, "a\"b": false} {
		a := s.do(request{path: "/healthz", header: http.Header{"X-Request-Id": {id}}})
		if got := a.header.Get("X-Request-Id"); got == "" || (got == id) != kept {
			t.Errorf("id %q became %q", id, got)
		}
	}
}

// R02, R11: limits and framing that net/http answers itself.
func TestHeaderLimits(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	get := "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
	for _, tc := range []struct {
		name, text string
		want       []int
	}{
		{"15 KiB of headers", get + "X: " + strings.Repeat("a", 15<<10) + "\r\n\r\n", []int{200}},
		{"17 KiB of headers", get + "X: " + strings.Repeat("a", 17<<10) + "\r\n\r\n", []int{431}},
		{"1 MiB of headers", get + "X: " + strings.Repeat("a", 1<<20) + "\r\n\r\n", []int{431}},
		{"two lengths", "POST /v1/auth/register HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", []int{400}},
		{"unknown coding", "POST /v1/auth/register HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", []int{501}},
		{"space before colon", "GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n", []int{400}},
		{"no host", "GET /healthz HTTP/1.1\r\n\r\n", []int{400}},
		{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{400, 404, 405, 505}}, // R01: no h2c
		{"chunked too large", "POST /v1/auth/register HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" +
			strings.Repeat("8000\r\n"+strings.Repeat("a", 0x8000)+"\r\n", 3) + "0\r\n\r\n", []int{413}},
		{"bare LF in a chunk line", "POST /v1/auth/register HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n", []int{400}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if status, _, body := s.in(t).raw(tc.text); !slices.Contains(tc.want, status) {
				t.Errorf("%d %s", status, body)
			}
		})
	}
}

// R03: after a 413 the connection is closed: what is left of the body is not read as a next request.
func TestTooLargeCloses(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	h := s.attack("POST /v1/auth/register HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 70000\r\n\r\n" +
		strings.Repeat("a", 66000) + strings.Repeat("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 150))
	content, err := io.ReadAll(h)
	if !strings.HasPrefix(string(content), "HTTP/1.1 413 ") || !strings.Contains(string(content), "Connection: close") ||
		strings.Count(string(content), "HTTP/1.1 ") != 1 || err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("%s %v", content, err)
	}
}

// R07
func TestCORS(t *testing.T) {
	t.Parallel()
	off := newTestServer(t)
	on := off.newReplica(func(c *config) { c.CORSOrigins = []string{"https://app.example"} })
	for _, tc := range []struct {
		s      *testServer
		origin string
		want   string
	}{
		{off, "https://app.example", ""}, {on, "https://app.example", "https://app.example"}, {on, "https://evil.example", ""},
		{on, "https://app.example.evil.example", ""}, {on, "null", ""},
	} {
		a := tc.s.do(request{path: "/healthz", header: http.Header{"Origin": {tc.origin}}})
		if got := a.header.Get("Access-Control-Allow-Origin"); got != tc.want || a.header.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("%s: %q", tc.origin, got)
		}
		preflight := tc.s.do(request{method: "OPTIONS", path: "/v1/users/me", header: http.Header{"Origin": {tc.origin},
			"Access-Control-Request-Method": {"PATCH"}, "Access-Control-Request-Headers": {"authorization,content-type"}}})
		if got := preflight.header.Get("Access-Control-Allow-Origin"); got != tc.want {
			t.Errorf("preflight of %s: %q", tc.origin, got)
		}
	}
	if vary := on.get("/healthz", "").header.Get("Vary"); !strings.Contains(vary, "Origin") {
		t.Errorf("Vary: %q", vary)
	}
}

// R09: nothing that a client says about the host gets into an address.
func TestHostIsIgnored(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	evil := http.Header{"X-Forwarded-Host": {"evil.example"}, "X-Forwarded-Proto": {"gopher"}, "Forwarded": {"host=evil.example"}, "X-Forwarded-Prefix": {"/evil"}}
	s.do(request{method: "POST", path: "/v1/auth/register", header: evil,
		body: map[string]string{"email": "ada@example.com", "password": testPassword, "name": "Ada"}}).want(202, "")
	if m := s.waitMail("ada@example.com", 1); !strings.Contains(m.Text, "https://app.example/#/verify-email?token=") || strings.Contains(m.Text+m.HTML, "evil") {
		t.Errorf("%s", m.Text)
	}
}

// R10
func TestClientIP(t *testing.T) {
	t.Parallel()
	var logged lockedBuffer
	s := &server{log: newLogger(config{LogFormat: "json"}, &logged), cfg: config{TrustedProxies: networks{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}}}
	for _, tc := range []struct {
		peer      string
		forwarded []string
		want      string
	}{
		{"192.0.2.1:1", nil, "192.0.2.1"},
		{"192.0.2.1:1", []string{"203.0.113.9"}, "192.0.2.1"},
		{"10.0.0.1:1", nil, "10.0.0.1"},
		{"10.0.0.1:1", []string{"203.0.113.9"}, "203.0.113.9"},
		{"10.0.0.1:1", []string{"6.6.6.6, 203.0.113.9, 10.0.0.2"}, "203.0.113.9"},
		{"10.0.0.1:1", []string{"6.6.6.6", "203.0.113.9"}, "203.0.113.9"},
		{"10.0.0.1:1", []string{"203.0.113.9, nonsense"}, "10.0.0.1"},
		{"10.0.0.1:1", []string{"203.0.113.9, nonsense, 10.0.0.3"}, "10.0.0.3"},
		{"[fd00::1]:1", []string{"2001:db8::5"}, "2001:db8::5"},
		{"[::ffff:10.0.0.1]:1", []string{"::ffff:203.0.113.9"}, "203.0.113.9"},
		{"10.0.0.1:1", []string{"10.0.0.5, 10.0.0.6"}, "10.0.0.5"},
		{"10.0.0.1:1", []string{"203.0.113.9:51234"}, "203.0.113.9"},
		{"10.0.0.1:1", []string{"203.0.113.9:51234, 10.0.0.2:80"}, "203.0.113.9"},
		{"10.0.0.1:1", []string{"2001:db8::9"}, "2001:db8::9"},
		{"10.0.0.1:1", []string{"[2001:db8::9]"}, "2001:db8::9"},
		{"10.0.0.1:1", []string{"[2001:db8::9]:443"}, "2001:db8::9"},
		{"10.0.0.1:1", []string{`"[2001:db8::9]:443"`}, "2001:db8::9"},
		{"10.0.0.1:1", []string{"2001:db8:0:0:0:0:0:9:443"}, "2001:db8::9"},
		{"10.0.0.1:1", []string{"[fe80::1%eth0]:80"}, "fe80::1"},
		{"10.0.0.1:1", []string{"fe80::1%eth0"}, "fe80::1"},
		{"10.0.0.1:1", []string{"[::ffff:203.0.113.9]:80"}, "203.0.113.9"},
		{"10.0.0.1:1", []string{"::ffff:203.0.113.9:80"}, "203.0.113.9"},
		{"10.0.0.1:1", []string{"203.0.113.9,"}, "203.0.113.9"},
		{"10.0.0.1:1", []string{"203.0.113.9, , ,"}, "203.0.113.9"},
		{"10.0.0.1:1", []string{"", "203.0.113.9", ""}, "203.0.113.9"},
		{"10.0.0.1:1", []string{"\t203.0.113.9\t ,10.0.0.2"}, "203.0.113.9"},
		{"10.0.0.1:1", []string{", ,"}, "10.0.0.1"},
		{"10.0.0.1:1", []string{"203.0.113.9, unknown"}, "10.0.0.1"},
		{"10.0.0.1:1", []string{"203.0.113.9, [10.0.0.3"}, "10.0.0.1"},
		{"10.0.0.1:1", []string{"203.0.113.9, 10.0.0.3:port"}, "10.0.0.1"},
		{"10.0.0.1:1", []string{"203.0.113.9, 10.0.0.3:70000"}, "10.0.0.1"},
		{"nonsense", nil, "invalid IP"},
	} {
		r := &http.Request{RemoteAddr: tc.peer, Header: http.Header{"X-Forwarded-For": tc.forwarded}}
		if got := s.clientIP(r).String(); got != tc.want {
			t.Errorf("%s %v: %s, want %s", tc.peer, tc.forwarded, got, tc.want)
		}
	}
	// Two lines say that all clients may look like one, however often it happens; none repeats the header.
	if log := logged.String(); strings.Count(log, "\n") != 2 || strings.Count(log, "outside TRUSTED_PROXIES") != 1 ||
		strings.Count(log, "cannot be read") != 1 || strings.Contains(log, "unknown") || strings.Contains(log, "203.0.113.9") {
		t.Errorf("logged\n%s", log)
	}
}

// R113: 33 sign-ins of 33 networks behind a proxy that writes ports are not one client's.
func TestPortsOfForwarded(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, throttled, func(c *config) { c.TrustedProxies = networks{netip.MustParsePrefix("127.0.0.0/8")} })
	for i := range 33 {
		s.do(request{method: "POST", path: "/v1/auth/token", header: http.Header{"X-Forwarded-For": {fmt.Sprintf("198.51.%d.7:5000", i)}},
			body: url.Values{"grant_type": {"password"}, "username": {fmt.Sprintf("nobody%d@example.com", i)}, "password": {"x"}}}).want(400, "invalid_grant")
	}
}

// The answer to a refusal before the route is one that a page can read: its headers are those of every other answer.
func TestCORSOfRefusals(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(c *config) { c.CORSOrigins = []string{"https://app.example"} })
	wanted := func(what string, status int, header http.Header, want int) {
		t.Helper()
		if status != want || header.Get("Access-Control-Allow-Origin") != "https://app.example" || !strings.Contains(header.Get("Vary"), "Origin") ||
			!strings.Contains(strings.ToLower(header.Get("Access-Control-Expose-Headers")), "retry-after") {
			t.Errorf("%s: %d %v", what, status, header)
		}
	}
	send := func(q request) answer {
		t.Helper()
		q.header = http.Header{"Origin": {"https://app.example"}}
		return s.do(q)
	}
	a := send(request{method: "POST", path: "/v1/auth/register", body: strings.Repeat("x", maxBody+1)})
	wanted("announced too large", a.status, a.header, 413)
	status, header, _ := s.raw("POST /v1/auth/register HTTP/1.1\r\nHost: x\r\nOrigin: https://app.example\r\nTransfer-Encoding: chunked\r\n\r\n" +
		strings.Repeat("8000\r\n"+strings.Repeat("a", 0x8000)+"\r\n", 3) + "0\r\n\r\n")
	wanted("chunked too large", status, header, 413)
	a = send(request{path: "/v1/nothing"})
	wanted("unknown", a.status, a.header, 404)
	a = send(request{path: "//v1/users/me"})
	wanted("unclean", a.status, a.header, 404)
	a = send(request{method: "PUT", path: "/v1/users/me"})
	wanted("method", a.status, a.header, 405)
	a = send(request{path: "/v1/users/me"})
	wanted("no token", a.status, a.header, 401)
	leave := s.inFlight.fill()
	a = send(request{path: "/v1/users/me"})
	wanted("overloaded", a.status, a.header, 503)
	preflight := s.do(request{method: "OPTIONS", path: "/v1/users/me", header: http.Header{"Origin": {"https://app.example"}, "Access-Control-Request-Method": {"GET"}}})
	if preflight.status != 204 {
		t.Error("a preflight takes a place: ", preflight.status)
	}
	leave()
	s.mux.HandleFunc("GET /panic", func(http.ResponseWriter, *http.Request) { panic("boom") })
	status, header, _ = s.raw("GET /panic HTTP/1.1\r\nHost: x\r\nOrigin: https://app.example\r\nConnection: close\r\n\r\n")
	wanted("a defect", status, header, 500)
	s.logs.mu.Lock()
	s.logs.b.Reset() // the defect was ours
	s.logs.mu.Unlock()
}

// Tracing may add its headers to the calls of a page; what is for proxies to say, a page may not.
func TestCORSHeaders(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(c *config) { c.CORSOrigins = []string{"https://app.example"} })
	for headers, allowed := range map[string]bool{
		"authorization,baggage,content-type,sentry-trace,traceparent,tracestate": true, "authorization,x-requested-with": true, "b3": true,
		"authorization,if-match,x-datadog-origin,x-datadog-parent-id,x-datadog-sampling-priority,x-datadog-trace-id": true,
		"x-forwarded-for": false, "x-http-method-override": false, "authorization,cookie": false,
	} {
		a := s.do(request{method: "OPTIONS", path: "/v1/users/me", header: http.Header{"Origin": {"https://app.example"},
			"Access-Control-Request-Method": {"GET"}, "Access-Control-Request-Headers": {headers}}})
		if ok := a.status == 204 && a.header.Get("Access-Control-Allow-Headers") == headers; ok != allowed {
			t.Errorf("%s: %d %v", headers, a.status, a.header)
		}
	}
}

// What is public may be read by a page of any origin, without credentials; nothing else becomes readable.
func TestPublicDocuments(t *testing.T) {
	t.Parallel()
	off := newTestServer(t)
	on := off.newReplica(func(c *config) { c.CORSOrigins = []string{"https://app.example"} })
	for _, s := range []*testServer{off, on} {
		for path, want := range map[string]string{
			"/openapi.json": "*", "/.well-known/jwks.json": "*", "/.well-known/oauth-authorization-server": "*", "/.well-known/nothing": "*",
			"/v1/users/me": "", "/docs": "", "/healthz": "", "/.well-known": "",
		} {
			for _, origin := range []string{"https://other.example", "null"} {
				a := s.do(request{path: path, header: http.Header{"Origin": {origin}}})
				if a.header.Get("Access-Control-Allow-Origin") != want || a.header.Get("Access-Control-Allow-Credentials") != "" {
					t.Errorf("%s from %s: %v", path, origin, a.header)
				}
				if listed := len(s.cfg.CORSOrigins) > 0 && want == ""; strings.Contains(a.header.Get("Vary"), "Origin") != listed {
					t.Errorf("%s varies by %q", path, a.header.Get("Vary"))
				}
			}
		}
		if a := s.get("/openapi.json", ""); a.header.Get("Access-Control-Allow-Origin") != "*" { // a cache may give it to a page
			t.Error(a.header)
		}
	}
}

// R117: who announces too much is refused before sending it, and who sends it anyway can read the refusal, however
// much comes before they look, as long as the connection can take.
func TestTooLargeIsReadable(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	const large = 5 << 20
	for _, head := range []string{
		"Content-Length: 5242880\r\n", "Content-Length: 5242880\r\nConnection: close\r\n",
		"Content-Length: 5242880\r\nExpect: 100-continue\r\n", "Transfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nConnection: close\r\n",
	} {
		body := strings.Repeat("a", large)
		if strings.Contains(head, "chunked") {
			body = "500000\r\n" + body + "\r\n0\r\n\r\n"
		}
		h := s.attack("POST /v1/auth/register HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + head + "\r\n" + body) // fails when it cannot send all
		response, err := http.ReadResponse(h.r, nil)
		if err != nil {
			t.Errorf("%q: %v", head, err)
			continue
		}
		content, err := io.ReadAll(response.Body)
		if _, end := h.r.ReadByte(); response.StatusCode != 413 || !strings.Contains(string(content), "body_too_large") || err != nil || end != io.EOF {
			t.Errorf("%q: %d %s %v %v", head, response.StatusCode, content, err, end)
		}
	}
	// Nothing is sent, and nothing is waited for.
	for _, expect := range []string{"", "Expect: 100-continue\r\n"} {
		h := s.attack("POST /v1/auth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n" + expect + "\r\n")
		content, err := io.ReadAll(h)
		if !strings.HasPrefix(string(content), "HTTP/1.1 413 ") || !strings.Contains(string(content), `"error":"invalid_request"`) || err != nil {
			t.Errorf("%q: %s %v", expect, content, err)
		}
	}
}

// A connection may be idle for as long as it is configured to, and a request that has begun for ReadHeaderTimeout only.
func TestIdleTimeout(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(c *config) { c.IdleTimeout = time.Second })
	h := s.attack("HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
	content, err := io.ReadAll(h) // ends when the server closes
	if !strings.HasPrefix(string(content), "HTTP/1.1 200 ") || err != nil {
		t.Errorf("%s %v", content, err)
	}
	patient := newTestServer(t)
	h = patient.attack("HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost")
	if content, err = io.ReadAll(h); !strings.HasPrefix(string(content), "HTTP/1.1 200 ") || err != nil {
		t.Errorf("%s %v", content, err)
	}
}

// R17: what is stored of a User-Agent can be stored and shown: no control or override characters, no broken UTF-8, and
// a length that ends between two characters.
func TestUserAgent(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", maxUserAgent-1)
	for sent, want := range map[string]string{
		"curl/8": "curl/8", "": "", "a\tb\x00c\u202ed\u2028e": "abcde", "Käse \xff\xc3(": "Käse (", "\ufffd": "",
		long + "b": long + "b", long + "bc": long + "b", long + "ä": long, long[1:] + "ä": long[1:] + "ä", strings.Repeat("\x07", 300) + "x": "x",
	} {
		if got := cleanUserAgent(sent); got != want {
			t.Errorf("%q became %q", sent, got)
		}
	}
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	s.do(request{method: "POST", path: "/v1/auth/token", header: http.Header{"User-Agent": {"Käse \xff " + long}},
		body: url.Values{"grant_type": {"refresh_token"}, "refresh_token": {m.refresh}}}).want(200, "")
	if got := scalar[string](s, "select user_agent from sessions"); got != ("Käse  " + long)[:maxUserAgent] {
		t.Errorf("stored %q", got)
	}
	s.exec("update sessions set user_agent = ''")
	if got := s.get("/v1/users/me/sessions", m.token).want(200, "").json()["items"].([]any)[0].(map[string]any)["user_agent"]; got != nil {
		t.Errorf("nothing sent, and shown as %v", got)
	}
}

// The docs page and everything it loads; its policy allows nothing from elsewhere.
func TestDocs(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	if a := s.get("/openapi.json", "").want(200, ""); string(a.body) != string(openapiJSON) {
		t.Error("not the embedded document")
	}
	pageBody := string(s.get("/docs", "").want(200, "").body)
	for _, file := range []string{"/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", "/docs/docs.js", "/docs/favicon-32x32.png"} {
		if !strings.Contains(pageBody, file) {
			t.Errorf("the page does not load %s", file)
		}
		if a := s.get(file, "").want(200, ""); len(a.body) < 100 || a.header.Get("Content-Type") == "" {
			t.Errorf("%s: %v", file, a.header)
		}
	}
	if policy := s.get("/docs", "").header.Get("Content-Security-Policy"); !strings.HasPrefix(policy, "default-src 'none'; script-src 'self';") {
		t.Error(policy)
	}
}

// R92: alive whatever happens; ready while the database answers with a schema that fits, asked once a second.
func TestProbes(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	remember := func(until time.Time) {
		s.ready.mu.Lock()
		defer s.ready.mu.Unlock()
		s.ready.until = until
	}
	s.get("/readyz", "").want(200, "")
	s.exec("update schema_version set version = 0")
	remember(time.Now().Add(time.Hour))
	s.get("/readyz", "").want(200, "") // what it said then
	remember(time.Time{})
	s.get("/readyz", "").want(503, "not_ready")
	s.get("/healthz", "").want(200, "")
	s.exec("update schema_version set version = 1000") // a newer schema fits an older program
	remember(time.Time{})
	s.get("/readyz", "").want(200, "")
	s.draining.Store(true)
	if a := s.get("/readyz", "").want(503, "not_ready"); a.header.Get("Retry-After") == "" || a.header.Get("Connection") == "keep-alive" {
		t.Error(a.header)
	}
	s.draining.Store(false)
}

// R95: a defect is a whole problem, and its stack is in the log.
func TestPanic(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	broken := s.observe(s.recoverPanics(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom") })))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hs := &http.Server{Handler: broken}
	go func() { _ = hs.Serve(listener) }()
	defer hs.Close()
	response, err := http.Get("http://" + listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	if response.StatusCode != 500 || !strings.Contains(string(body), `"code":"internal"`) || strings.Contains(string(body), "boom") {
		t.Errorf("%d %s", response.StatusCode, body)
	}
	s.logs.mu.Lock()
	defer s.logs.mu.Unlock()
	if logged := s.logs.b.String(); !strings.Contains(logged, "boom") || !strings.Contains(logged, "server_test.go") {
		t.Error("no stack in the log")
	}
	s.logs.b.Reset() // the defect was ours
}

// R14, R32: a full gate refuses after its wait, and everybody else is served. Who was refused has guessed nothing (R39).
func TestHashingGate(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy, throttled)
	m := s.newUser("ada@example.com", "user")
	leave := s.passwords.gate.fill()
	if a := s.signInAs(m.email, testPassword).want(503, "overloaded"); a.header.Get("Retry-After") != "1" {
		t.Error(a.header)
	}
	if n := scalar[int](s, "select sum(count) from throttles where key like 'failures%'"); n != 0 {
		t.Errorf("%d failures were counted", n)
	}
	s.get("/v1/users/me", m.token).want(200, "")
	leave()
	s.signInAs(m.email, testPassword).want(200, "")
}

// R14: above the cap a request is refused before it costs anything.
func TestInFlightCap(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	leave := s.inFlight.fill()
	if a := s.get("/v1/users/me", "").want(503, "overloaded"); a.header.Get("Retry-After") != "1" {
		t.Error(a.header)
	}
	s.get("/healthz", "").want(200, "")
	s.get("/readyz", "").want(200, "")
	leave()
	s.get("/v1/users/me", "").want(401, "unauthorized")
}

// R14, R86: when every connection is taken, a request waits two seconds and is told to come back.
func TestPoolExhausted(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, func(c *config) { c.DBMaxConns = 1 })
	m := s.newUser("ada@example.com", "user")
	s.refreshWith(m.refresh).want(200, "")
	conn, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if a := s.get("/v1/users/me", m.token).want(503, "database_unavailable"); a.header.Get("Retry-After") != "1" {
		t.Error(a.header)
	}
	conn.Release()
	s.get("/v1/users/me", m.token).want(200, "")
}

// R96: secrets do not get into the log.
func TestLogHoldsNoSecret(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	token := s.register("ada@example.com", testPassword, 1)
	tokens := s.verify(token, testPassword).want(200, "")
	s.refreshWith(tokens.str("refresh_token")).want(200, "")
	s.get("/v1/users/me?secret=in-the-query", tokens.str("access_token")).want(400, "malformed_request")
	s.post("/v1/auth/revoke", "", url.Values{"token": {tokens.str("refresh_token")}}).want(200, "")
	logged := s.logs.String()
	for _, secret := range []string{testPassword, token, tokens.str("access_token")[60:120], tokens.str("refresh_token")[3:], "in-the-query", "Authorization", "ada@example.com"} {
		if strings.Contains(logged, secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
	if !strings.Contains(logged, `"route":"POST /v1/auth/token"`) || !strings.Contains(logged, `"status":400`) {
		t.Errorf("no access log: %s", logged)
	}
}

// R70: a route that declares nothing lets nobody in, and every route declares something.
func TestEveryRouteDeclaresAccess(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("admin@example.com", "admin")
	for _, rt := range s.routes() {
		if rt.access == "" || rt.summary == "" || rt.status == 0 {
			t.Errorf("%s is not whole", rt.pattern)
		}
	}
	r, err := http.NewRequestWithContext(context.Background(), "GET", "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+m.token)
	if _, err := s.authenticate(t.Context(), r, access("")); err != errForbidden {
		t.Error("the zero value of access lets an admin in:", err)
	}
}

// R05: one code, one meaning.
func TestProblemCodesAreUnique(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, e := range []*apiError{errMalformed, errBadCursor, errInvalidGrant, errEmailNotVerified, errAccountDisabled, errGrantType, errNoToken,
		errInvalidToken, errForbidden, errSignupDisabled, errNotFound, errMethod, errEmailTaken, errStale, errTooLarge, errMediaType,
		errBadMailToken, errInternal, errOverloaded, errDatabase, errNotReady, invalid()} {
		if what := fmt.Sprint(e.Status, e.Detail); seen[e.Code] != "" {
			t.Errorf("%s means %s and %s", e.Code, seen[e.Code], what)
		} else {
			seen[e.Code] = what
		}
	}
}
