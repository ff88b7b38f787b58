package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// signedInUser is the row behind an access token.
type signedInUser struct {
	user    user
	role    string // in the organization of the path; empty for outsiders
	session struct {
		Generation int32
		Confirmed  bool
		CreatedAt  time.Time
		AMR        []string
	}
	secondFactorRequired bool // by that organization; false for outsiders
}

// callerColumns are what a signedInUser is read from, before the role.
const callerColumns = userColumns + ", s.generation, s.confirmed, s.created_at, s.amr, "

// callerBySession loads user and session in one query; errInvalidToken when either has ended. It runs on every
// request, and scans by position.
func (d db) callerBySession(ctx context.Context, sessionID, userID string) (r signedInUser, err error) {
	r, err = oneBy(ctx, d, scanSignedIn, `
		select `+callerColumns+`'', false
		from sessions s join users u on u.id = s.user_id
		where s.id = $1 and s.user_id = $2 and s.expires_at > now() and not u.disabled`, sessionID, userID)
	return r, orElse(err, errInvalidToken)
}

func scanSignedIn(row pgx.CollectableRow) (r signedInUser, err error) {
	u := &r.user
	err = row.Scan(&u.ID, &u.Email, &u.Name, &u.Role, &u.EmailVerified, &u.Disabled, &u.CreatedAt, &u.UpdatedAt,
		&r.session.Generation, &r.session.Confirmed, &r.session.CreatedAt, &r.session.AMR, &r.role, &r.secondFactorRequired)
	return r, err
}

// confirmSession notes that the tokens of a generation have arrived.
func (d db) confirmSession(ctx context.Context, id string, generation int32) error {
	return d.exec(ctx, `
		update sessions set confirmed = true, last_seen_at = now()
		where id = $1 and generation = $2 and not confirmed`, id, generation)
}

// insertSession fills in when the session started.
func (d db) insertSession(ctx context.Context, n *newSession, c caller, ttl time.Duration) error {
	return d.q.QueryRow(ctx, `
		insert into sessions (id, user_id, amr, ip, user_agent, expires_at)
		values ($1, $2, $3, $4, $5, now() + $6::interval)
		returning created_at`, n.SessionID, n.ID, n.AMR, c.ip, c.userAgent, ttl).Scan(&n.StartedAt)
}

// raiseSession notes that somebody who is signed in has passed a second factor since; pgx.ErrNoRows when the session has
// ended.
func (d db) raiseSession(ctx context.Context, c caller, amr ...string) error {
	return d.execOne(ctx, `
		update sessions set amr = case when 'mfa' = any(amr) then amr else amr || $3::text[] end where id = $1 and user_id = $2`,
		c.session, c.user.ID, amr)
}

// lowerSessions leaves the sessions of a user that were signed in to by one of these methods with one factor, because
// what they passed is gone.
func (d db) lowerSessions(ctx context.Context, userID string, amr ...string) error {
	return d.exec(ctx, `update sessions set amr = '{pwd}' where user_id = $1 and amr && $2::text[]`, userID, amr)
}

// deleteOldestSessions leaves the keep newest sessions of a user whose row is locked.
func (d db) deleteOldestSessions(ctx context.Context, userID string, keep int) error {
	return d.exec(ctx, `
		delete from sessions where id in (
			select id from sessions where user_id = $1 order by id desc offset $2)`, userID, keep)
}

// rotateSession moves a live session of an active user from a generation to the next, and returns it; pgx.ErrNoRows when
// any of that does not hold. Idle time starts anew, the absolute end never moves (R56).
func (d db) rotateSession(ctx context.Context, id string, generation int32, c caller, cfg config) (newSession, error) {
	return one[newSession](ctx, d, `
		update sessions s set generation = s.generation + 1, confirmed = false, rotated_at = now(), last_seen_at = now(),
			expires_at = least(now() + $3::interval, s.created_at + $4::interval), ip = $5, user_agent = $6
		from users u
		where s.id = $1 and s.generation = $2 and s.expires_at > now() and u.id = s.user_id and not u.disabled
		returning `+userColumns+`, s.id as session_id, s.generation, s.amr, s.created_at as started_at`,
		id, generation, cfg.RefreshIdleTTL, cfg.RefreshMaxTTL, c.ip, c.userAgent)
}

// replayedSession is a live session that a token of an earlier generation was shown for.
type replayedSession struct {
	newSession // of the user id and role alone
	Replayable bool
	Late       bool // after the grace
}

// sessionForReplay returns the session of a genuine token that is not the newest; pgx.ErrNoRows when it has ended.
// Replayable: the token is the immediate predecessor, and its successor is younger than grace or was never used (R54).
func (d db) sessionForReplay(ctx context.Context, id string, generation int32, grace time.Duration) (replayedSession, error) {
	return oneBy(ctx, d, pgx.RowToStructByNameLax[replayedSession], `
		select u.id, u.role, s.id as session_id, s.generation, s.amr, s.created_at as started_at, s.generation = $2 + 1 and (not s.confirmed or s.rotated_at > now() - $3::interval) as replayable,
			s.rotated_at <= now() - $3::interval as late
		from sessions s join users u on u.id = s.user_id
		where s.id = $1 and s.expires_at > now() and not u.disabled`, id, generation, grace)
}

// deleteReusedSession ends a session that is past the generation of a token shown for it.
func (d db) deleteReusedSession(ctx context.Context, id string, generation int32) error {
	return d.exec(ctx, `delete from sessions where id = $1 and generation > $2`, id, generation)
}

// deleteSessionByID returns whose session it was.
func (d db) deleteSessionByID(ctx context.Context, id string) (userID string, err error) {
	err = d.q.QueryRow(ctx, `delete from sessions where id = $1 returning user_id`, id).Scan(&userID)
	return userID, err
}

// deleteSession ends one session of a user; pgx.ErrNoRows when it is not theirs.
func (d db) deleteSession(ctx context.Context, userID, id string) error {
	return d.execOne(ctx, `delete from sessions where user_id = $1 and id = $2`, userID, id)
}

// deleteSessions ends every session of a user, except one when it is given.
func (d db) deleteSessions(ctx context.Context, userID string, except *string) error {
	return d.exec(ctx, `delete from sessions where user_id = $1 and id is distinct from $2::uuid`, userID, except)
}

// sessionsByUser lists live sessions, newest first, one more than the page holds.
func (d db) sessionsByUser(ctx context.Context, userID, current string, p pageInput) ([]session, error) {
	return many[session](ctx, d, `
		select id, id = $2 as current, host(ip) as ip, nullif(user_agent, '') as user_agent, created_at, last_seen_at
		from sessions
		where user_id = $1 and expires_at > now() and id < $3 order by id desc limit $4`,
		userID, current, p.before(), p.Limit+1)
}
