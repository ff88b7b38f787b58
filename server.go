package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"path"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// server is one replica. It holds no state that matters: everything is in PostgreSQL.
type server struct {
	cfg       config
	log       *slog.Logger
	pool      *pgxpool.Pool
	db        db
	keys      *keyRing
	passwords *passwords
	metrics   *metrics // room:metrics
	ready     readiness
	rules     map[string]rule
	deliver   func(context.Context, message) error // room:mail
	newMail   chan struct{}                        // wakes this replica's sender // room:mail
	sends     bool                                 // with deliver, from the start // room:mail
	inFlight  *places                              // one for each request that is worked on
	largeBody *places                              // one for each large body that is being read
	answers   *places                              // one for each byte of a large answer that is being written
	exporting gate                                 // one place for each export that is being made // room:audit
	mux       *http.ServeMux
	draining  atomic.Bool

	warnForwarded, warnHop sync.Once // about X-Forwarded-For
}

// Limits of one replica (R14), of which a client has four fifths at most. What is above them is refused at once.
const (
	maxInFlight    = 640      // requests that it works on
	smallBody      = 4 << 10  // every honest body is smaller
	maxLargeBodies = 80       // larger ones that are on their way; all small ones are read
	smallAnswer    = 16 << 10 // most are smaller
	maxAnswers     = 16 << 20 // bytes of larger ones that wait for their readers (R101)
	maxExports     = 1        // that it makes at once: each takes megabytes
)

// newServer wires a replica; it opens no connection.
func newServer(cfg config, pool *pgxpool.Pool, log *slog.Logger) (*server, error) {
	keys, err := newKeyRing(cfg)
	if err != nil {
		return nil, err
	}
	s := &server{
		cfg: cfg, log: log, pool: pool, db: db{q: pool}, keys: keys, passwords: newPasswords(cfg.PasswordMinLength, currentParams, cfg.words()...),
		newMail:   make(chan struct{}, 1),   // room:mail
		exporting: gate{places: maxExports}, // room:audit
		inFlight:  newPlaces(maxInFlight), largeBody: newPlaces(maxLargeBodies), answers: newPlaces(maxAnswers), mux: http.NewServeMux(),
	}
	s.rules = newRules(s.passwords)
	s.metrics = newMetrics(s) // room:metrics
	if cfg.smtp != nil {      // room:mail
		s.deliver, s.sends = cfg.smtp.deliver, true
	}
	for _, rt := range s.routes() {
		s.mux.HandleFunc(rt.pattern, s.serve(rt))
	}
	return s, nil
}

// handler is the middleware chain, innermost first. Whatever refuses stands behind cors: a page can read every refusal.
func (s *server) handler() http.Handler {
	h := s.route()
	h = s.shed(h)
	h = s.limitBody(h)
	h = s.cors(h) // room:cors
	h = s.recoverPanics(h)
	return s.observe(h)
}

// response notes what the access log needs and carries the request id.
type response struct {
	http.ResponseWriter
	requestID string
	userID    string
	status    int
	bytes     int
	origin    origin
	inFlight  *places // where the request holds a place; nil when it holds none
}

func (w *response) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.leave()
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	w.leave()
	w.bytes += len(b)
	return w.ResponseWriter.Write(b)
}

// leave gives the place back.
func (w *response) leave() {
	if w.inFlight != nil {
		w.inFlight.leave(w.origin, 1)
		w.inFlight = nil
	}
}

func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// observe gives every response its id and security headers (R06, R12) and writes one access line: the route pattern,
// never the path, query or a header (R96).
func (s *server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		start := time.Now()
		w := &response{ResponseWriter: rw, requestID: r.Header.Get("X-Request-Id")}
		if !validRequestID(w.requestID) {
			w.requestID = newID()
		}
		header := w.Header()
		header["X-Request-Id"] = []string{w.requestID}
		header["Cache-Control"] = []string{"no-store"}
		header["X-Content-Type-Options"] = []string{"nosniff"}
		header["Referrer-Policy"] = []string{"no-referrer"}
		header["Content-Security-Policy"] = []string{"default-src 'none'; frame-ancestors 'none'"}
		// A chunked body may have had a Content-Length too: net/http hides it, and a proxy may have believed it (R11).
		if s.draining.Load() || r.TransferEncoding != nil {
			header["Connection"] = []string{"close"}
		}
		next.ServeHTTP(w, r)
		took := time.Since(start)
		s.metrics.observe(r, w.status, took) // room:metrics
		s.log.LogAttrs(r.Context(), slog.LevelInfo, "request",
			slog.String("method", r.Method), slog.String("route", r.Pattern), slog.Int("status", w.status),
			slog.Float64("ms", float64(took.Microseconds())/1000), slog.Int("bytes", w.bytes),
			slog.String("request_id", w.requestID), slog.String("user_id", w.userID))
	})
}

// validRequestID accepts ^[A-Za-z0-9._-]{1,64}$.
func validRequestID(s string) bool {
	if len(s) < 1 || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// recoverPanics turns a defect into a 500 with its stack in the log (R95).
func (s *server) recoverPanics(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			w := rw.(*response)
			if w.status != 0 { // half an answer is out: only cutting the connection tells the client
				s.log.LogAttrs(r.Context(), slog.LevelError, "panic", slog.Any("value", v), slog.String("request_id", w.requestID))
				panic(http.ErrAbortHandler)
			}
			s.writeError(w, r, errInternal.because(fmt.Errorf("panic: %v\n%s", v, debug.Stack())))
		}()
		next.ServeHTTP(rw, r)
	})
}

// limitBody refuses a body that is announced too large before it is sent (RFC 9110 section 10.1.1, R117).
func (s *server) limitBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w := rw.(*response)
		if r.ContentLength > maxBody {
			s.writeError(w, r, errTooLarge)
		} else {
			next.ServeHTTP(w, r)
		}
		if w.status >= 400 && r.ContentLength != 0 && w.Header().Get("Connection") == "close" {
			linger(w)
		}
	})
}

// What is read of a body after its refusal: as much as a client may send before it looks for an answer.
const (
	maxUnread  = 16 << 20
	lingerTime = 5 * time.Second
)

// linger closes a connection on which a body may be on its way: the sending half first, the rest when the client has
// closed too. To close both at once resets the connection, and the client may lose the answer (RFC 9112 section 9.6).
func linger(w *response) {
	controller := http.NewResponseController(w)
	if controller.Flush() != nil {
		return // the client has gone
	}
	conn, _, err := controller.Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	_ = conn.SetDeadline(time.Now().Add(lingerTime))
	_, _ = io.CopyN(io.Discard, conn, maxUnread)
}

// shed refuses what is above maxInFlight or an origin's share of it, before it costs anything; health checks always pass.
// The body is read first, and the place given back when the answer begins, so that clients who send or read slowly hold
// none.
func (s *server) shed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w := rw.(*response)
		if r.URL.Path == "/healthz" || r.URL.Path == "/readyz" {
			next.ServeHTTP(w, r)
			return
		}
		w.origin = originOf(s.clientIP(r))
		if err := s.readAhead(w.origin, r); err != nil {
			w.Header().Set("Connection", "close") // or the answer would wait for the rest of the body
			s.writeError(w, r, err)
			return
		}
		if !s.inFlight.take(w.origin, 1) {
			s.writeError(w, r, errOverloaded)
			return
		}
		w.inFlight = s.inFlight
		defer w.leave()
		next.ServeHTTP(w, r)
	})
}

// readAhead replaces the body by what was sent, at most maxBody bytes (R03). Only maxLargeBodies can fill the memory
// with more than smallBody each.
func (s *server) readAhead(o origin, r *http.Request) error {
	if r.Body == http.NoBody {
		return nil
	}
	limited := http.MaxBytesReader(nil, r.Body, maxBody)
	body, err := io.ReadAll(io.LimitReader(limited, smallBody))
	if err == nil && len(body) == smallBody {
		if !s.largeBody.take(o, 1) {
			return errOverloaded
		}
		defer s.largeBody.leave(o, 1)
		var rest []byte
		rest, err = io.ReadAll(limited)
		body = append(body, rest...)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); err != nil && !tooLarge {
		return errMalformed.because(err) // the client went away, was too slow, or broke its framing
	}
	return err
}

// route hands the request to its row of the route table. ServeMux would redirect unclean paths; an API never
// redirects, so they are unknown here (R08). Its plain-text 404 and 405 become problems.
func (s *server) route() http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w := rw.(*response)
		if r.Method == http.MethodConnect { // nothing here is a proxy, and no method makes it one (RFC 9110 section 10.2.1)
			w.Header().Set("Allow", "")
			s.writeError(w, r, errMethod)
			return
		}
		if p := r.URL.Path; p == "" || p[0] != '/' || path.Clean(p) != p {
			s.writeError(w, r, errNotFound)
			return
		}
		mw := &muxWriter{response: w, header: http.Header{}}
		s.mux.ServeHTTP(mw, r)
		switch mw.refusal {
		case 0: // a row has answered
		case http.StatusMethodNotAllowed:
			w.Header().Set("Allow", mw.header.Get("Allow"))
			s.writeError(w, r, errMethod)
		default:
			s.writeError(w, r, errNotFound)
		}
	})
}

// muxWriter carries the response through ServeMux to the row of the route table. What ServeMux itself writes is a
// refusal, and goes no further.
type muxWriter struct {
	response *response
	header   http.Header
	refusal  int
}

func (w *muxWriter) Header() http.Header         { return w.header }
func (w *muxWriter) WriteHeader(status int)      { w.refusal = status }
func (w *muxWriter) Write(b []byte) (int, error) { return len(b), nil }

const (
	shutdownTimeout = 20 * time.Second // for the requests under way
	stopTimeout     = 23 * time.Second // for them and the senders of mails
	closeTimeout    = time.Second      // for goodbyes to a database that may not listen
	// netHTTPSlop is what net/http reads of a header beyond MaxHeaderBytes.
	netHTTPSlop    = 4 << 10
	maxHeaderBytes = 16 << 10
)

// errorLog is where net/http says what it could not answer.
func (s *server) errorLog() *log.Logger { return slog.NewLogLogger(s.log.Handler(), slog.LevelWarn) }

// listenAndServe serves until ctx ends, then drains: not ready at once, still serving for DRAIN_DELAY while load
// balancers notice, then no new connections and up to shutdownTimeout for what is under way. With the default
// DRAIN_DELAY all of it ends before the 30 s after which a process is killed, whatever hangs (R91).
func (s *server) listenAndServe(ctx context.Context, listener net.Listener) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	hs := &http.Server{
		Handler: s.handler(), Protocols: protocols, DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: s.cfg.IdleTimeout, MaxHeaderBytes: maxHeaderBytes - netHTTPSlop,
		ErrorLog: s.errorLog(),
	}
	work, stopWork := context.WithCancel(context.Background())
	workers := s.startWorkers(work)
	failed := make(chan error, 1)
	go func() { failed <- hs.Serve(listener) }()
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
		s.draining.Store(true)
		s.log.Info("draining", "delay", s.cfg.DrainDelay.String())
		time.Sleep(s.cfg.DrainDelay)
	}
	end := time.Now().Add(stopTimeout)
	deadline, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	if late := hs.Shutdown(deadline); late != nil {
		err = cmp.Or(err, fmt.Errorf("requests under way were cut off: %w", errors.Join(late, hs.Close())))
	}
	stopWork()
	if !within(time.Until(end), workers.Wait) || !within(closeTimeout, s.pool.Close) {
		s.log.Warn("stopping although not everything has ended")
	}
	return err
}

// startWorkers starts what runs beside the requests; the group is done when ctx has ended and they have stopped.
func (s *server) startWorkers(ctx context.Context) *sync.WaitGroup {
	var workers sync.WaitGroup
	s.startSenders(ctx, &workers)                // room:mail
	workers.Go(func() { s.pruneRegularly(ctx) }) // room:prune
	return &workers
}

// within waits for f, but no longer than d; it says whether f has returned.
func within(d time.Duration, f func()) bool {
	done := make(chan struct{})
	go func() { f(); close(done) }()
	select {
	case <-done:
		return true
	case <-time.After(d):
		return false
	}
}
