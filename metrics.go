// room:metrics

// Metrics for Prometheus, and profiles, on OPS_ADDR. A team without them reads the log.
//
// What ties it to the house is what `grep -n room:metrics *.go` finds: a field of the server, a listener, and a line wherever
// something is counted. To take it out, delete this file and those lines.

package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics is what one replica counts, for Prometheus on OPS_ADDR. Labels come from the route table and from our own
// constants, never from a request (R97).
type metrics struct {
	registry  *prometheus.Registry
	requests  *prometheus.CounterVec
	durations *prometheus.HistogramVec
	throttled *prometheus.CounterVec
	signIns   *prometheus.CounterVec
	reuses    prometheus.Counter
	mails     *prometheus.CounterVec
}

func newMetrics(s *server) *metrics {
	registry := prometheus.NewRegistry()
	factory := promauto.With(registry)
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return factory.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauge := func(name, help string, read func() float64) {
		factory.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read)
	}
	total := func(name, help string, read func() float64) {
		factory.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, read)
	}
	m := &metrics{
		registry: registry,
		requests: counter("roster_http_requests_total", "Requests answered.", "route", "method", "status"),
		durations: factory.NewHistogramVec(prometheus.HistogramOpts{Name: "roster_http_request_duration_seconds", Help: "Time to answer a request.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}}, []string{"route", "method"}),
		throttled: counter("roster_throttle_refusals_total", "Attempts refused, by the limit that was reached.", "limit"),
		signIns:   counter("roster_sign_ins_total", "Sign-ins by password, by result.", "result"),
		reuses:    factory.NewCounter(prometheus.CounterOpts{Name: "roster_refresh_token_reuses_total", Help: "Sessions ended because an old refresh token was shown."}),
		mails:     counter("roster_mails_total", "Attempts to send a mail, by result.", "result"),
	}
	gauge("roster_http_in_flight_requests", "Requests under way.", func() float64 { return float64(s.inFlight.taken()) })
	for state, read := range map[string]func() int32{
		"acquired":     func() int32 { return s.pool.Stat().AcquiredConns() },
		"idle":         func() int32 { return s.pool.Stat().IdleConns() },
		"constructing": func() int32 { return s.pool.Stat().ConstructingConns() },
	} {
		factory.NewGaugeFunc(prometheus.GaugeOpts{Name: "roster_db_connections", Help: "Connections of the pool, by state.",
			ConstLabels: prometheus.Labels{"state": state}}, func() float64 { return float64(read()) })
	}
	gauge("roster_db_connections_max", "DB_MAX_CONNS.", func() float64 { return float64(s.pool.Stat().MaxConns()) })
	total("roster_db_acquires_total", "Connections taken from the pool.", func() float64 { return float64(s.pool.Stat().AcquireCount()) })
	total("roster_db_acquires_canceled_total", "Waits for a connection that were given up.", func() float64 { return float64(s.pool.Stat().CanceledAcquireCount()) })
	total("roster_db_acquire_seconds_total", "Time spent waiting for connections.", func() float64 { return s.pool.Stat().AcquireDuration().Seconds() })
	gauge("roster_password_hashes_running", "Password hashes being computed.", func() float64 { running, _, _ := s.passwords.gate.figures(); return float64(running) })
	gauge("roster_password_hashes_waiting", "Password hashes that wait for a place.", func() float64 { _, waiting, _ := s.passwords.gate.figures(); return float64(waiting) })
	total("roster_password_hashes_refused_total", "Password hashes that waited in vain.", func() float64 { _, _, refused := s.passwords.gate.figures(); return float64(refused) })
	factory.NewGaugeFunc(prometheus.GaugeOpts{Name: "roster_build_info", Help: "1, with the version as labels.",
		ConstLabels: prometheus.Labels{"version": buildVersion(), "goversion": runtime.Version()}}, func() float64 { return 1 })
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	registry.MustRegister(outboxCollector{s}) // room:mail
	return m
}

// observe counts an answered request. What no route matched has no route; a method that no route has is "other".
func (m *metrics) observe(r *http.Request, status int, took time.Duration) {
	method, route, found := strings.Cut(r.Pattern, " ")
	if !found {
		method, route = "other", ""
	}
	m.requests.WithLabelValues(route, method, strconv.Itoa(status)).Inc()
	m.durations.WithLabelValues(route, method).Observe(took.Seconds())
}

// outboxCollector asks the database, once a scrape: the outbox belongs to all replicas.
type outboxCollector struct{ s *server } // room:mail

var ( // room:mail
	mailsPending = prometheus.NewDesc("roster_mails_pending", "Mails in the outbox that are not sent yet, of all replicas.", nil, nil)
	mailsOldest  = prometheus.NewDesc("roster_mails_oldest_seconds", "Age of the oldest of them.", nil, nil)
)

func (outboxCollector) Describe(descriptions chan<- *prometheus.Desc) { // room:mail
	descriptions <- mailsPending
	descriptions <- mailsOldest
}

func (c outboxCollector) Collect(values chan<- prometheus.Metric) { // room:mail
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	pending, oldest, err := c.s.db.pendingMails(ctx)
	if err != nil {
		return // no value: roster_db_* tell why
	}
	values <- prometheus.MustNewConstMetric(mailsPending, prometheus.GaugeValue, float64(pending))
	values <- prometheus.MustNewConstMetric(mailsOldest, prometheus.GaugeValue, oldest.Seconds())
}

// serveOps serves metrics and profiles on OPS_ADDR until the server that it returns is closed. Where it cannot listen,
// this replica runs without them: they are not what it is there for.
func (s *server) serveOps() *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	ops := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ErrorLog: s.errorLog()}
	listener, err := net.Listen("tcp", s.cfg.OpsAddr)
	if err != nil {
		s.log.Error("no metrics: OPS_ADDR cannot be listened on", "cause", err.Error())
		return ops
	}
	s.log.Info("metrics", "addr", listener.Addr().String())
	go func() {
		if err := ops.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("no more metrics", "cause", err.Error())
		}
	}()
	return ops
}
