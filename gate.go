package main

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// origin is where a request comes from, for what is shared fairly (R104): the client, an address of IPv4 or a /64 of
// IPv6, and its network, the /24 or the /48 that one customer can have to themselves.
type origin struct{ client, network netip.Prefix }

func originOf(ip netip.Addr) origin {
	client, network := 32, 24
	if ip.Is6() {
		client, network = 64, 48
	}
	var o origin
	o.client, _ = ip.Prefix(client) // the zero Prefix when ip is not valid
	o.network, _ = ip.Prefix(network)
	return o
}

// gateWait is how long a call waits at most.
const gateWait = 2 * time.Second

// gate has a few places, for which calls wait. They are admitted in turn: the network that was admitted longest ago, in
// it the client that was, of its calls the oldest. So a client waits for one round of the networks, and for one more for
// each other client of its own, however many calls all of these have waiting.
type gate struct {
	mu      sync.Mutex
	places  int
	running int
	refused int // since the start, because no place became free in time
	turn    int // the last admission
	queue   []*waiting
}

// waiting is a call in the queue, with the turns in which its client and network were admitted last.
type waiting struct {
	origin
	clientTurn, networkTurn int
	admitted                chan struct{}
}

// enter takes a place, which leave gives back; after gateWait, or when ctx ends, it returns errOverloaded.
func (g *gate) enter(ctx context.Context, o origin) error {
	w := g.join(o)
	if w == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, gateWait)
	defer cancel()
	select {
	case <-w.admitted:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.queue, w)
	if i < 0 { // admitted at the same moment
		return nil
	}
	g.queue = slices.Delete(g.queue, i, i+1)
	g.refused++
	return errOverloaded
}

// join returns nil when a place was free. A newcomer counts as admitted last, as they would in a round of all.
func (g *gate) join(o origin) *waiting {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running < g.places {
		g.running++
		return nil
	}
	w := &waiting{o, g.turn, g.turn, make(chan struct{})}
	for _, other := range g.queue {
		if other.network == o.network {
			w.networkTurn = other.networkTurn
		}
		if other.client == o.client {
			w.clientTurn = other.clientTurn
		}
	}
	g.queue = append(g.queue, w)
	return w
}

// leave hands the place to whose turn it is.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.queue) == 0 {
		g.running--
		return
	}
	next := slices.MinFunc(g.queue, func(a, b *waiting) int {
		return cmp.Or(a.networkTurn-b.networkTurn, a.clientTurn-b.clientTurn)
	})
	g.turn++
	for _, w := range g.queue {
		if w.network == next.network {
			w.networkTurn = g.turn
		}
		if w.client == next.client {
			w.clientTurn = g.turn
		}
	}
	i := slices.Index(g.queue, next)
	g.queue = slices.Delete(g.queue, i, i+1)
	close(next.admitted)
}

func (g *gate) figures() (running, waiting, refused int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.running, len(g.queue), g.refused
}

// places are many, and nobody waits for one. What an origin may have depends on what is left: a client four times that,
// a network eight times. So a client alone has four fifths, and whoever comes finds some free, however much the others
// want (the dynamic thresholds of Choudhury and Hahne, 1998).
type places struct {
	mu         sync.Mutex
	size, free int
	held       map[netip.Prefix]int
}

func newPlaces(size int) *places {
	return &places{size: size, free: size, held: map[netip.Prefix]int{}}
}

// take takes n places, which leave gives back, or none.
func (p *places) take(o origin, n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	free := p.free - n
	if p.held[o.client]+n > 4*free || p.held[o.network]+n > 8*free {
		return false
	}
	p.add(o, n)
	return true
}

func (p *places) leave(o origin, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.add(o, -n)
}

func (p *places) taken() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.size - p.free
}

func (p *places) add(o origin, n int) {
	p.free -= n
	for _, prefix := range []netip.Prefix{o.client, o.network} {
		if p.held[prefix] += n; p.held[prefix] == 0 {
			delete(p.held, prefix)
		}
	}
}
