package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// limit is how often something may happen in a window of time; of names whose calls are counted together.
type limit struct {
	name   string
	count  int
	window time.Duration
	of     func(caller) string
}

func eachNetwork(c caller) string { return networkOf(c.ip) }
func eachUser(c caller) string    { return c.user.ID }

// The limits of CONTRACT section 3. Live sessions, refresh and reset go on for an account whose password somebody
// else is guessing (R41).
var (
	failuresHere       = limit{"failures/network", 10, 15 * time.Minute, nil} // of an account, from one network
	failuresEverywhere = limit{"failures", 100, time.Hour, nil}               // of an account
	credentialCalls    = limit{"credentials", 30, 5 * time.Minute, eachNetwork}
	refreshCalls       = limit{"refresh", 150, 5 * time.Minute, eachNetwork}

	// What a signed-in user could use to mail strangers, or to fill the database or this replica's memory.
	foundings    = limit{"organizations", 500, 24 * time.Hour, eachUser}
	emailChanges = limit{"email_changes", 10, time.Hour, eachUser}
	invitations  = limit{"invitations", 200, 24 * time.Hour, eachUser}
	exports      = limit{"exports", 10, time.Hour, eachUser}
)

// attempt is one counter to raise.
type attempt struct {
	limit limit
	key   string
}

// networkOf is what counts as one origin: a /24 of IPv4, a /64 of IPv6, and all who cannot be told together (R40).
func networkOf(ip netip.Addr) string {
	bits := 24
	if ip.Is6() {
		bits = 64
	}
	network, err := ip.Prefix(bits)
	if err != nil || !ip.IsValid() {
		return "unknown"
	}
	return network.String()
}

// limitCalls counts a call against each of limits.
func (s *server) limitCalls(ctx context.Context, c caller, limits ...limit) error {
	attempts := make([]attempt, len(limits))
	for i, l := range limits {
		attempts[i] = attempt{l, l.of(c)}
	}
	return s.count(ctx, c, attempts)
}

// passwordAttempts are the counters of one account, which need not exist (R38).
func passwordAttempts(c caller, email string) []attempt {
	sum := sha256.Sum256([]byte(strings.ToLower(email)))
	account := base64.RawURLEncoding.EncodeToString(sum[:])
	return []attempt{{failuresEverywhere, account}, {failuresHere, account + " " + networkOf(c.ip)}}
}

// checkPassword verifies a password and counts a failure. Counting comes first, in a statement of its own: of many
// attempts at once none slips through, and a refusal takes nothing back (R39). A right password does.
func (s *server) checkPassword(ctx context.Context, c caller, email, hash, password string) (ok, weak bool, err error) {
	attempts := passwordAttempts(c, email)
	if err := s.count(ctx, c, attempts); err != nil {
		return false, false, err
	}
	ok, weak, err = s.passwords.verify(ctx, c.ip, hash, password)
	if (ok || err != nil) && s.cfg.Throttle != "off" { // without a verdict nothing was guessed
		err = cmp.Or(err, s.db.decrementThrottles(context.WithoutCancel(ctx), keysOf(attempts)))
	}
	return ok, weak, err
}

// count raises counters and refuses when one is above its limit. The first refusal of a window is audited: there may be
// many, and they change nothing.
func (s *server) count(ctx context.Context, c caller, attempts []attempt) error {
	if s.cfg.Throttle == "off" || len(attempts) == 0 {
		return nil
	}
	windows := make([]time.Duration, len(attempts))
	for i, a := range attempts {
		windows[i] = a.limit.window
	}
	counts, err := s.db.upsertThrottles(ctx, keysOf(attempts), windows)
	if err != nil {
		return err
	}
	var wait time.Duration
	for _, now := range counts {
		l := attempts[slices.Index(keysOf(attempts), now.Key)].limit
		if now.Count > l.count {
			wait = max(wait, now.Left)
			s.metrics.throttled.WithLabelValues(l.name).Inc()
		}
		if now.Count == l.count+1 {
			if err := s.db.audit(ctx, c, "limit.reached", nil, nil, map[string]any{"limit": l.name}); err != nil {
				return err
			}
		}
	}
	if wait > 0 {
		e := *errTooManyAttempts
		e.RetryAfter = wait
		return &e
	}
	return nil
}

func keysOf(attempts []attempt) []string {
	keys := make([]string, len(attempts))
	for i, a := range attempts {
		keys[i] = a.limit.name + " " + a.key
	}
	return keys
}

// throttleCount is a counter after it was raised.
type throttleCount struct {
	Key   string
	Count int
	Left  time.Duration // until the window ends
}

// upsertThrottles adds one to each counter, or begins its next window. Rows are taken in the order of their keys.
func (d db) upsertThrottles(ctx context.Context, keys []string, windows []time.Duration) ([]throttleCount, error) {
	return many[throttleCount](ctx, d, `
		insert into throttles as t (key, count, ends_at)
		select key, 1, now() + window_length from unnest($1::text[], $2::interval[]) as k (key, window_length) order by key
		on conflict (key) do update set
			count = case when t.ends_at > now() then t.count + 1 else 1 end,
			ends_at = case when t.ends_at > now() then t.ends_at else excluded.ends_at end
		returning key, count, ends_at - now() as left`, keys, windows)
}

func (d db) decrementThrottles(ctx context.Context, keys []string) error {
	return d.exec(ctx, `
		update throttles set count = count - 1
		where key in (select key from throttles where key = any($1) order by key for no key update) and count > 0`, keys)
}

// deleteThrottles forgets the failures of an account, from everywhere.
func (d db) deleteThrottles(ctx context.Context, email string) error {
	account := passwordAttempts(caller{}, email)[0]
	return d.exec(ctx, `delete from throttles where key = $1 or key like $2`,
		keysOf([]attempt{account})[0], failuresHere.name+" "+account.key+" %")
}
