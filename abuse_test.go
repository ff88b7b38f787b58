package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
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
	conn.SetDeadline(time.Now().Add(time.Minute))
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

// R01, R14: headers that do not come to their end are cut by ReadHeaderTimeout, which is the shorter one: a body that
// began before them is still waited for. Meanwhile everybody else is served.
func TestSlowHeaders(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	body := s.slowBody(100, "{")
	answered := make(chan string, 1)
	go func() { answered <- body.line() }()
	var slow []hostile
	for range 2 * maxInFlight {
		slow = append(slow, s.attack("GET /v1/users/me HTTP/1.1\r\nHost: x\r\nX-Slow: a"))
	}
	go func() {
		dripping := time.NewTicker(100 * time.Millisecond)
		defer dripping.Stop()
		for range dripping.C {
			if _, err := io.WriteString(slow[0], "a"); err != nil {
				return
			}
		}
	}()
	s.served(m)
	for _, h := range slow {
		if content, err := io.ReadAll(h); len(content) > 0 || err != nil && !strings.Contains(err.Error(), "reset") {
			t.Fatalf("%s %v", content, err)
		}
	}
	select {
	case line := <-answered:
		t.Error("headers are given as long as a body:", line)
	default:
	}
	body.Close()
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

// R14: large bodies that do not come to their end fill up no memory, and take nothing from those who send small ones.
func TestSlowLargeBodies(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	large := strings.Repeat("a", smallBody)
	for range maxLargeBodies {
		s.slowBody(maxBody, large)
	}
	s.until(func() bool { return len(s.largeBody) == maxLargeBodies })
	status, header, _ := s.raw(fmt.Sprintf("POST /v1/auth/register HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", maxBody, large))
	if status != 503 || header.Get("Retry-After") != "1" {
		t.Error(status, header)
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

// R14: who does not read the answer holds no place while it waits to be sent.
func TestSlowReaders(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	for range maxInFlight - 1 {
		s.inFlight <- struct{}{}
	}
	w := &slowReader{http.Header{}, make(chan struct{}), make(chan struct{})}
	r, err := http.NewRequest("GET", "/openapi.json", nil)
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() { s.handler().ServeHTTP(w, r) })
	<-w.waiting
	s.served(m)
	close(w.disconnected)
	done.Wait()
	if n := len(s.inFlight); n != maxInFlight-1 {
		t.Errorf("%d places are taken", n)
	}
}
