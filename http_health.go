package main

import (
	"context"
	"sync"
	"time"
)

// health is the answer of both probes.
type health struct {
	Status string `json:"status"`
}

// readHealth touches nothing: a replica that answers is alive (R92).
func (s *server) readHealth(context.Context, caller, none) (health, error) {
	return health{"ok"}, nil
}

// readyTimeout is how long the database may take to answer a probe.
const readyTimeout = 500 * time.Millisecond

// readiness remembers for a second that the database answered, so that probes from everywhere cost nothing (R92), and
// that it did not for less than any prober's interval: two probes in a row must not fail by one slow answer.
type readiness struct {
	mu    sync.Mutex
	until time.Time
	err   error
}

// readReadiness says whether to send requests here: not draining, the database answers in time, and they would not fail there.
func (s *server) readReadiness(ctx context.Context, _ caller, _ none) (health, error) {
	if s.draining.Load() {
		return health{}, errNotReady
	}
	s.ready.mu.Lock()
	defer s.ready.mu.Unlock()
	if time.Now().After(s.ready.until) {
		ctx, cancel := context.WithTimeout(ctx, readyTimeout)
		defer cancel()
		err := s.checkDatabase(ctx)
		s.ready.until, s.ready.err = time.Now().Add(time.Second), err
		if err != nil {
			s.ready.until = time.Now().Add(100 * time.Millisecond)
		}
	}
	if s.ready.err != nil {
		return health{}, errNotReady.because(s.ready.err)
	}
	return health{"ready"}, nil
}
