// room:metrics

package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// scrape returns what Prometheus would read of a replica.
func (s *testServer) scrape() string {
	s.t.Helper()
	w := httptest.NewRecorder()
	promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != http.StatusOK {
		s.t.Fatalf("%d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// Every event that an alert is built on is counted, once.
func TestMetrics(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, throttled)
	ada := s.newUser("ada@example.com", "user")
	s.get("/v1/users/me", ada.token).want(200, "")
	s.get("/v1/users/me", "").want(401, "unauthorized")
	s.get("/v1/nothing/"+ada.id, "").want(404, "not_found")
	s.do(request{method: "BREW", path: "/v1/users/me"}).want(405, "method_not_allowed")
	s.signInAs("ada@example.com", "not the password").want(400, "invalid_grant")
	s.refreshWith(s.refreshWith(ada.refresh).want(200, "").str("refresh_token")).want(200, "")
	s.refreshWith(ada.refresh).want(400, "invalid_grant") // reuse
	s.post("/v1/auth/forgot-password", "", map[string]string{"email": "ada@example.com"}).want(202, "")
	s.waitMail("ada@example.com", 1)
	s.exec("update throttles set count = 1000")
	s.signInAs("ada@example.com", testPassword).want(429, "too_many_attempts")
	s.exec("insert into mails (id, kind, recipient, next_attempt_at) values ($1, 'invitation', 'x@example.com', now() + interval '1 hour')", newID())
	s.exec("insert into mails (id, kind, recipient, failed_at) values ($1, 'invitation', 'x@example.com', now())", newID())

	text := s.scrape()
	for _, line := range []string{
		`roster_http_requests_total{method="GET",route="/v1/users/me",status="200"} 1`,
		`roster_http_requests_total{method="GET",route="/v1/users/me",status="401"} 1`,
		`roster_http_requests_total{method="other",route="",status="404"} 1`,
		`roster_http_requests_total{method="other",route="",status="405"} 1`,
		`roster_http_request_duration_seconds_count{method="GET",route="/v1/users/me"} 2`,
		`roster_sign_ins_total{result="invalid_grant"} 1`,
		`roster_refresh_token_reuses_total 1`,
		`roster_throttle_refusals_total{limit="credentials"} 1`,
		`roster_mails_total{result="sent"} 1`,
		`roster_mails_pending 1`,
		`roster_http_in_flight_requests 0`,
		`roster_db_connections_max 6`,
		`roster_password_hashes_refused_total 0`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("missing: %s", line)
		}
	}
	for _, name := range []string{"roster_db_connections{state=\"idle\"}", "roster_mails_oldest_seconds", "roster_build_info{", "go_goroutines", "process_resident_memory_bytes", "roster_db_acquires_total", "roster_db_acquire_seconds_total"} {
		if !strings.Contains(text, "\n"+name) {
			t.Errorf("missing: %s", name)
		}
	}
	problems, err := testutil.GatherAndLint(s.metrics.registry)
	if err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}

// R97: no label holds anything that a client sent.
func TestMetricLabels(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada := s.newUser("ada@example.com", "user")
	s.do(request{method: "SECRET", path: "/v1/users/me", token: ada.token})
	s.get("/v1/organizations/"+ada.id+"?q=secret", ada.token)
	s.get("/secret/"+ada.id, ada.token)
	var routes []string
	for _, rt := range s.routes() {
		_, path, _ := strings.Cut(rt.pattern, " ")
		routes = append(routes, path)
	}
	for _, found := range regexp.MustCompile(`method="([^"]*)",route="([^"]*)"`).FindAllStringSubmatch(s.scrape(), -1) {
		known := slices.Contains([]string{"GET", "POST", "PUT", "PATCH", "DELETE"}, found[1]) && slices.Contains(routes, found[2])
		if !known && found[0] != `method="other",route=""` {
			t.Error(found[0])
		}
	}
}

// Metrics and profiles are on OPS_ADDR and not on the API; a replica whose OPS_ADDR is taken serves without them.
func TestOpsListener(t *testing.T) {
	t.Parallel()
	env := serveEnv(newTestDatabase(t))
	p := startServe(t, env)
	found := regexp.MustCompile(`"msg":"metrics","addr":"([^"]+)"`).FindStringSubmatch(p.out.String())
	if found == nil {
		t.Fatalf("no address in\n%s", p.out)
	}
	fetch := func(address string) (int, string) {
		response, err := testClient.Get(address)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(body)
	}
	for path, want := range map[string]string{"/metrics": "roster_build_info", "/debug/pprof/": "goroutine", "/debug/pprof/cmdline": "serve"} {
		if status, body := fetch("http://" + found[1] + path); status != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %.200s", path, status, body)
		}
		if status, _ := fetch(p.url + path); status != 404 {
			t.Errorf("%s on the API: %d", path, status)
		}
	}
	env["OPS_ADDR"] = found[1]
	second := startServe(t, env)
	if !strings.Contains(second.out.String(), "no metrics: OPS_ADDR") {
		t.Errorf("%s", second.out)
	}
	if status, _ := fetch(second.url + "/healthz"); status != 200 {
		t.Error(status)
	}
}
