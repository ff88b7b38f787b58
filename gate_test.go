package main

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"testing"
)

// fill takes all places of an idle gate until leave is called.
func (g *gate) fill() (leave func()) {
	for range g.places {
		if err := g.enter(context.Background(), origin{}); err != nil {
			panic(err)
		}
	}
	return func() {
		for range g.places {
			g.leave()
		}
	}
}

// fill takes all places but the one that nobody can have, a network each, until leave is called.
func (p *places) fill() (leave func()) {
	var taken []origin
	for {
		o := originOf(netip.AddrFrom4([4]byte{11, byte(len(taken) >> 8), byte(len(taken)), 1}))
		if !p.take(o, 1) {
			break
		}
		taken = append(taken, o)
	}
	return func() {
		for _, o := range taken {
			p.leave(o, 1)
		}
	}
}

// crowds are calls of many addresses that must not stand in the way of everybody else.
var crowds = map[string]struct {
	address   func(i int) string
	neighbour string // shares their network, or is of another one where they are but one client
}{
	"one address":               {func(int) string { return "192.0.2.1" }, "192.0.2.200"},
	"a /64":                     {func(i int) string { return fmt.Sprintf("2001:db8:7:1::%x", i) }, "2001:db8:7:2::1"},
	"a /24":                     {func(i int) string { return fmt.Sprint("192.0.2.", i%256) }, "192.0.3.1"},
	"a /48 with a /64 for each": {func(i int) string { return fmt.Sprintf("2001:db8:7:%x::1", i) }, "2001:db8:8::1"},
}

// R104: who comes behind hundreds of calls of one client or network is admitted after one of them.
func TestGateIsFair(t *testing.T) {
	t.Parallel()
	at := func(ip string) origin { return originOf(netip.MustParseAddr(ip)) }
	for name, crowd := range crowds {
		for _, honest := range []string{"198.51.100.7", "2001:db8:ffff::1", crowd.neighbour} {
			g := gate{places: 1}
			g.fill()
			for i := range 300 {
				g.join(at(crowd.address(i)))
			}
			for round := range 5 { // the first is no exception
				w := g.join(at(honest))
				for range 2 {
					g.leave()
				}
				if slices.Contains(g.queue, w) {
					t.Errorf("%s, round %d: %s still waits", name, round, honest)
				}
			}
		}
	}
	// Networks take turns, whatever each of them wants; and in a network its clients.
	g := gate{places: 1}
	g.fill()
	for i := range 60 {
		g.join(at(fmt.Sprintf("192.0.%d.%d", min(i, 2), i%2)))
	}
	last := g.join(at("192.0.3.1"))
	for range 4 {
		g.leave()
	}
	if slices.Contains(g.queue, last) {
		t.Error("the fourth network had no turn among four")
	}
	for len(g.queue) > 0 {
		g.leave()
	}
	// Who has waited is not overtaken by networks that come new.
	g.join(at("192.0.2.1"))
	second := g.join(at("192.0.2.1"))
	for i := range 2 {
		g.join(at(fmt.Sprint("198.51.", i, ".1")))
		g.leave()
	}
	g.join(at("198.51.100.7"))
	if g.leave(); slices.Contains(g.queue, second) {
		t.Error("newcomers are admitted first")
	}
	for len(g.queue) > 0 {
		g.leave()
	}
	if g.leave(); g.running != 0 {
		t.Errorf("%d places are taken", g.running)
	}
}

// R104: one client has at most 512 places, and neither it nor a network takes all of them.
func TestPlacesAreShared(t *testing.T) {
	t.Parallel()
	for name, crowd := range crowds {
		s := newTestServer(t, behindProxy)
		m := s.newUser("ada@example.com", "user")
		var held []origin
		for i := range 2000 {
			if o := originOf(netip.MustParseAddr(crowd.address(i))); s.inFlight.take(o, 1) {
				held = append(held, o)
			}
		}
		if len(held) < 512 || held[0].client == held[1].client && len(held) != 512 {
			t.Errorf("%s: %d places", name, len(held))
		}
		browser{ip: crowd.address(0)}.do(s, "GET", "/v1/users/me", m.token, nil).want(503, "overloaded")
		for _, ip := range []string{"198.51.100.7", "2001:db8:ffff::1", crowd.neighbour} {
			browser{ip: ip}.do(s, "GET", "/v1/users/me", m.token, nil).want(200, "")
		}
		s.get("/healthz", "").want(200, "")
		for _, o := range held {
			s.inFlight.leave(o, 1)
		}
		if s.until(func() bool { return s.inFlight.taken() == 0 }); len(s.inFlight.held) != 0 {
			t.Errorf("%s: %v", name, s.inFlight.held)
		}
		browser{ip: crowd.address(0)}.do(s, "GET", "/v1/users/me", m.token, nil).want(200, "")
	}
	// Many who want all of them leave some.
	p := newPlaces(maxInFlight)
	for range maxInFlight {
		for i := range 40 {
			p.take(originOf(netip.AddrFrom4([4]byte{11, 0, byte(i), 1})), 1)
		}
	}
	if !p.take(originOf(netip.MustParseAddr("192.0.2.1")), 1) {
		t.Errorf("40 networks have taken %d", p.taken())
	}
}

// R104: whatever endpoint hashes, the gate knows who calls.
func TestGateKnowsWhoCalls(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy)
	m := s.newUser("ada@example.com", "admin")
	s.post("/v1/auth/forgot-password", "", jsonBody("email", m.email)).want(202, "")
	reset := s.waitMail(m.email, 1).Token
	s.passwords.gate.fill()
	var clients []string
	for i, q := range []struct {
		method, path, token string
		body                any
	}{
		{"POST", "/v1/auth/token", "", url.Values{"grant_type": {"password"}, "username": {m.email}, "password": {testPassword}}},
		{"POST", "/v1/auth/token", "", url.Values{"grant_type": {"password"}, "username": {"nobody"}, "password": {testPassword}}},
		{"POST", "/v1/auth/register", "", jsonBody("email", "eve@example.com", "name", "Eve", "password", testPassword)},
		{"POST", "/v1/auth/reset-password", "", jsonBody("token", reset, "password", "a new password 1")},
		{"PUT", "/v1/users/me/password", m.token, jsonBody("current_password", testPassword, "new_password", "a new password 1")},
		{"POST", "/v1/users", m.token, jsonBody("email", "bob@example.com", "name", "Bob", "role", "user", "password", testPassword)},
	} {
		b := browser{ip: fmt.Sprint("192.0.2.", i)}
		clients = append(clients, b.ip+"/32")
		go func() {
			_, _ = s.try(request{method: q.method, path: q.path, token: q.token, body: q.body, header: map[string][]string{"X-Forwarded-For": {b.ip}}})
		}()
	}
	seen := map[string]bool{}
	s.until(func() bool {
		s.passwords.gate.mu.Lock()
		defer s.passwords.gate.mu.Unlock()
		for _, w := range s.passwords.gate.queue {
			seen[w.client.String()] = true
		}
		return len(seen) == len(clients)
	})
	for _, client := range clients {
		if !seen[client] {
			t.Errorf("%s is not in %v", client, seen)
		}
	}
}
