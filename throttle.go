// room:throttling

// Throttling: how often something may happen. A team without it needs a proxy that limits calls, and trusts that nobody
// guesses passwords or mails strangers without end.
//
// What ties it to the house is what `grep -n room:throttling *.go` finds: a check before each call and before a password
// is verified, a count of what was wrong, and the caps of mails. To take it out, delete this file and those lines.

package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// limit is how often something may happen in a window of time.
type limit struct {
	name   string
	count  int
	window time.Duration
	of     func(caller) string // whom it counts against; nil: the code that counts says
	calls  []string            // operations that count, whatever comes of them
}

// The names of the limits, as LIMITS, the metrics and the audit trail have them.
const (
	failures           = "failures"
	failuresNetwork    = "failures_network"
	credentials        = "credentials"
	credentialsSite    = "credentials_site"
	strangers          = "strangers"
	strangersSite      = "strangers_site"
	mailsHour          = "mails"
	mailsMinute        = "mails_minute"
	invitationMails    = "invitation_mails"
	invitationsAddress = "invitations_address"
	invitationsOrg     = "invitations_organization"
	invitationsUser    = "invitations"
	changes            = "changes"
	foundings          = "organizations"
	emailChanges       = "email_changes"
	exports            = "exports"
)

const (
	limitsForm  = "name=count/window, as in credentials=300/5m,mails=20/1h"
	maxWindow   = 366 * 24 * time.Hour
	pendingTime = 15 * time.Second // longer than a request may take
	crowdPoll   = 25 * time.Millisecond
)

// limitTable is every limit there is (R38 to R42, R102 to R104, R108). What is right costs nobody anything: passwords,
// refreshes and tokens are counted when they are wrong. Live sessions, refresh and reset go on for an account whose
// password somebody else is guessing (R41).
var limitTable = []limit{
	{failures, 100, time.Hour, nil, nil},                 // wrong passwords of an account, from everywhere
	{failuresNetwork, 10, 15 * time.Minute, nil, nil},    // wrong passwords of an account, from one network
	{credentials, 30, 5 * time.Minute, eachNetwork, nil}, // wrong passwords, forged refresh tokens, dead links of one network
	{credentialsSite, 120, 5 * time.Minute, eachSite, nil},
	{strangers, 100, 5 * time.Minute, eachNetwork, []string{"register", "registerUnverified", "forgotPassword"}}, // calls that mail strangers, or hash for them
	{strangersSite, 400, 5 * time.Minute, eachSite, []string{"register", "registerUnverified", "forgotPassword"}},
	{mailsMinute, 1, time.Minute, nil, nil},         // mails of a kind to an address, left out silently
	{mailsHour, 5, time.Hour, nil, nil},             // the same
	{invitationMails, 5, time.Hour, nil, nil},       // of an organization to an address
	{invitationsAddress, 20, time.Hour, nil, nil},   // of all organizations to an address
	{invitationsOrg, 200, 24 * time.Hour, nil, nil}, // of an organization
	{invitationsUser, 200, 24 * time.Hour, eachUser, []string{"createInvitation"}},
	{otpHour, 10, time.Hour, nil, nil},                                           // wrong codes of an account; no password and no reset gives one back // room:second-factor
	{otpDay, 30, 24 * time.Hour, nil, nil},                                       // the same // room:second-factor
	{passkeyOffers, 150, 5 * time.Minute, eachNetwork, []string{"offerPasskey"}}, // questions how to sign in by passkey // room:passkeys
	{changes, 1000, time.Hour, eachUser, nil},                                    // whatever a signed-in user writes: each is a line of the audit trail
	{foundings, 500, 24 * time.Hour, eachUser, []string{"createOrganization"}},
	{emailChanges, 10, time.Hour, eachUser, []string{"changeEmail"}},
	{exports, 10, time.Hour, eachUser, []string{"exportMe"}},
}

// parseLimits returns the table by name, changed by LIMITS: name=count/window, comma-separated.
func parseLimits(text string) (map[string]limit, error) {
	limits := map[string]limit{}
	for _, l := range limitTable {
		limits[l.name] = l
	}
	if strings.TrimSpace(text) == "" {
		return limits, nil
	}
	for _, entry := range strings.Split(text, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(entry), "=")
		l, known := limits[name]
		if !known {
			return nil, fmt.Errorf("has an entry that is no limit: %s", limitsForm)
		}
		count, window, _ := strings.Cut(value, "/")
		var bad [2]error
		l.count, bad[0] = strconv.Atoi(count)
		l.window, bad[1] = time.ParseDuration(window)
		if errors.Join(bad[:]...) != nil || l.count < 1 || l.count > 1_000_000_000 || l.window < time.Second || l.window > maxWindow {
			return nil, fmt.Errorf("must give %s a number from 1 and a window from 1s: %s", name, limitsForm)
		}
		limits[name] = l
	}
	return limits, nil
}

func eachUser(c caller) string    { return c.user.ID }
func eachNetwork(c caller) string { return networkOf(c.ip) }
func eachSite(c caller) string    { return siteOf(c.ip) }

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

// siteOf is the /48 of an IPv6 address, which is what one customer is given; empty for others (R104).
func siteOf(ip netip.Addr) string {
	if !ip.Is6() {
		return ""
	}
	site, _ := ip.Prefix(48)
	return site.String()
}

// counter is one row to raise.
type counter struct {
	limit limit
	key   string
}

func (s *server) counter(name string, parts ...string) counter {
	return counter{s.cfg.limits[name], name + " " + strings.Join(parts, " ")}
}

// countersOf are the rows that a call of this caller counts against.
func (s *server) countersOf(c caller, names ...string) (counters []counter) {
	for _, name := range names {
		if key := s.cfg.limits[name].of(c); key != "" {
			counters = append(counters, s.counter(name, key))
		}
	}
	return counters
}

// hashed stands for an address in a key: counters hold none in clear, and outlive the account (R105).
func hashed(address string) string {
	sum := sha256.Sum256([]byte(strings.ToLower(address)))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// limitCall counts a call of an operation against the limits that name it, and what a signed-in user writes against
// theirs (R102).
func (s *server) limitCall(ctx context.Context, c caller, r *http.Request, operation string) error {
	return s.limitCalls(ctx, c, limitsOf(operation, c.user.ID != "" && r.Method != http.MethodGet && r.Method != http.MethodHead)...)
}

// limitsOf names the limits that a call of an operation counts against.
func limitsOf(operation string, writesSignedIn bool) (names []string) {
	for _, l := range limitTable {
		if slices.Contains(l.calls, operation) || l.name == changes && writesSignedIn {
			names = append(names, l.name)
		}
	}
	return names
}

// limitCalls counts a call against each of the named limits, and refuses it when one is above.
func (s *server) limitCalls(ctx context.Context, c caller, names ...string) error {
	above, err := s.count(ctx, s.db, s.countersOf(c, names...))
	if err != nil {
		return err
	}
	var refusal error
	for _, now := range above {
		refusal = s.tooMany(refusal, now)
		if now.Count == now.limit.count+1 {
			if err := s.auditLimit(ctx, c, now.limit); err != nil { // room:audit
				return err
			}
		}
	}
	return refusal
}

// wrong counts a credential that is not genuine, and returns what to answer: refusal, unless the network has shown too
// many of them. It is for those that nobody can guess; a password is an attempt.
func (s *server) wrong(ctx context.Context, c caller, refusal error) error {
	return cmp.Or(s.limitCalls(ctx, c, credentials, credentialsSite), refusal)
}

// count raises counters, in tx, and returns those that are above their limit.
func (s *server) count(ctx context.Context, tx db, counters []counter) (above []throttleCount, err error) {
	if s.cfg.Throttle == "off" || len(counters) == 0 {
		return nil, nil
	}
	counts, err := tx.upsertThrottles(ctx, counters)
	return slices.DeleteFunc(counts, func(now throttleCount) bool { return now.Count <= now.limit.count }), err
}

// auditLimit notes once a window that a limit was reached: there may be many refusals, and they change nothing.
func (s *server) auditLimit(ctx context.Context, c caller, l limit) error { // room:audit
	return s.db.record(ctx, c, auditEntry{action: "limit.reached", detail: map[string]any{"limit": l.name}}, nil)
}

// tooMany is the refusal of a counter, or the one before if that takes longer.
func (s *server) tooMany(before error, now throttleCount) error {
	s.metrics.throttled.WithLabelValues(now.limit.name).Inc() // room:metrics
	if known, ok := errors.AsType[*apiError](before); ok && known.RetryAfter > now.Rest {
		return before
	}
	e := *errTooManyAttempts
	e.RetryAfter = now.Rest
	return &e
}

// mailboxFull counts a mail, and says whether the address has had enough of its kind.
func (s *server) mailboxFull(ctx context.Context, tx db, m newMail) (bool, error) { // room:mail
	event, _, _ := strings.Cut(m.notice, " ")
	kind := strings.TrimSpace(m.kind + " " + event) // one notice keeps none of another event back
	// One after the other: what the minute leaves out takes nothing from the hour.
	for _, name := range []string{mailsMinute, mailsHour} {
		above, err := s.count(ctx, tx, []counter{s.counter(name, kind, hashed(m.to))})
		if err != nil || len(above) > 0 {
			return true, err
		}
	}
	return false, nil
}

// attempt reserves a place under every counter for a guess that is about to be made, and returns verdict, which must
// be told whether it was wrong: a wrong one stays counted, a right one costs nothing. Of many attempts at once none
// slips past a limit (R39): where others are under way that could use it up, it waits for their verdicts, so many right
// ones at once refuse nobody (R103). What is refused counts nowhere.
func (s *server) attempt(ctx context.Context, c caller, counters []counter) (verdict func(wrong bool) error, err error) {
	if s.cfg.Throttle == "off" {
		return func(bool) error { return nil }, nil
	}
	verdict = func(wrong bool) error {
		_, err := s.settle(context.WithoutCancel(ctx), c, counters, wrong)
		return err
	}
	for deadline := time.Now().Add(gateWait); ; time.Sleep(crowdPoll) {
		now, err := s.db.reserveThrottles(ctx, counters)
		if err != nil {
			return nil, err
		}
		var refusal error
		crowded, reserved := false, true
		for _, n := range now {
			reserved = reserved && n.Reserved
			if n.Count >= n.limit.count {
				refusal = s.tooMany(refusal, n)
			} else if n.Count+n.Pending > n.limit.count {
				crowded = true
			}
		}
		if refusal == nil && !crowded {
			return verdict, nil
		}
		if reserved { // and another was faster
			if err := verdict(false); err != nil {
				return nil, err
			}
		}
		if refusal == nil && time.Now().After(deadline) {
			refusal = errOverloaded
		}
		if refusal != nil {
			return nil, refusal
		}
	}
}

// settle gives reserved places back, and counts what was wrong.
func (s *server) settle(ctx context.Context, c caller, counters []counter, wrong bool) ([]throttleCount, error) {
	counts, err := s.db.settleThrottles(ctx, counters, wrong)
	for _, now := range counts {
		if wrong && now.Count == now.limit.count {
			err = cmp.Or(err, s.auditLimit(ctx, c, now.limit)) // room:audit
		}
	}
	return counts, err
}

// guess is an attempt at the password of an account, which need not exist (R38).
func (s *server) guess(ctx context.Context, c caller, email string) (verdict func(wrong bool) error, err error) {
	account := hashed(email)
	return s.attempt(ctx, c, append(s.countersOf(c, credentials, credentialsSite),
		s.counter(failures, account), s.counter(failuresNetwork, account, networkOf(c.ip))))
}

// throttleCount is a counter after it was raised.
type throttleCount struct {
	Key      string
	Count    int
	Pending  int
	Rest     time.Duration // until the window ends
	Reserved bool
	limit    limit
}

// columnsOf are the parameters of the statements below, which take the rows in the order of their keys.
func columnsOf(counters []counter) (keys []string, windows []time.Duration, most []int) {
	for _, c := range counters {
		keys, windows, most = append(keys, c.key), append(windows, c.limit.window), append(most, c.limit.count)
	}
	return keys, windows, most
}

// withLimits gives each row of an answer its limit back.
func withLimits(rows []throttleCount, counters []counter) []throttleCount {
	for i := range rows {
		rows[i].limit = counters[slices.IndexFunc(counters, func(c counter) bool { return c.key == rows[i].Key })].limit
	}
	return rows
}

// upsertThrottles adds one to each counter, or begins its next window.
func (d db) upsertThrottles(ctx context.Context, counters []counter) ([]throttleCount, error) {
	keys, windows, _ := columnsOf(counters)
	rows, err := many[throttleCount](ctx, d, `
		insert into throttles as t (key, count, ends_at)
		select key, 1, now() + length from unnest($1::text[], $2::interval[]) as k (key, length) order by key
		on conflict (key) do update set
			count = case when t.ends_at > now() then t.count + 1 else 1 end,
			ends_at = case when t.ends_at > now() then t.ends_at else excluded.ends_at end
		returning key, count, pending, ends_at - now() as rest, true as reserved`, keys, windows)
	return withLimits(rows, counters), err
}

// reserveThrottles takes a place under each counter, unless one has none left: then it writes nothing, and returns
// those. Places that were not given back, because their replica died, are free again after pendingTime.
func (d db) reserveThrottles(ctx context.Context, counters []counter) ([]throttleCount, error) {
	keys, windows, most := columnsOf(counters)
	rows, err := many[throttleCount](ctx, d, `
		with k as (select key, length, most from unnest($1::text[], $2::interval[], $3::integer[]) as k (key, length, most)),
		crowded as (
			select key, count, case when pending_until > now() then pending else 0 end + 1 as pending, ends_at - now() as rest
			from throttles join k using (key)
			where ends_at > now() and count + case when pending_until > now() then pending else 0 end >= most),
		reserved as (
			insert into throttles as t (key, count, pending, pending_until, ends_at)
			select key, 0, 1, now() + $4::interval, now() + length from k where not exists (select from crowded) order by key
			on conflict (key) do update set
				count = case when t.ends_at > now() then t.count else 0 end,
				pending = case when t.pending_until > now() then t.pending else 0 end + 1,
				pending_until = excluded.pending_until,
				ends_at = case when t.ends_at > now() then t.ends_at else excluded.ends_at end
			returning key, count, pending, ends_at - now() as rest)
		select key, count, pending, rest, false as reserved from crowded
		union all select key, count, pending, rest, true from reserved`, keys, windows, most, pendingTime)
	return withLimits(rows, counters), err
}

// settleThrottles gives the places back, and raises the counters when the attempt was wrong.
func (d db) settleThrottles(ctx context.Context, counters []counter, wrong bool) ([]throttleCount, error) {
	keys, _, _ := columnsOf(counters)
	rows, err := many[throttleCount](ctx, d, `
		update throttles t set pending = greatest(pending - 1, 0), count = count + $2::boolean::integer
		from (select key from throttles where key = any($1) order by key for no key update) as mine
		where t.key = mine.key
		returning t.key, count, pending, ends_at - now() as rest, false as reserved`, keys, wrong)
	return withLimits(rows, counters), err
}

// deleteFailures forgets the wrong passwords of an account, from everywhere.
func (d db) deleteFailures(ctx context.Context, email string) error {
	return d.exec(ctx, `delete from throttles where key = $1 or starts_with(key, $2)`,
		failures+" "+hashed(email), failuresNetwork+" "+hashed(email)+" ")
}
