package main

import (
	"cmp"
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

type registerInput struct {
	Email    string `json:"email" is:"email"`
	Password string `json:"password" is:"new_password"`
	Name     string `json:"name" is:"name"`
}

// registerUnverified makes an account that is usable at once: EMAIL_VERIFICATION=false.
func (s *server) registerUnverified(ctx context.Context, c caller, in registerInput) (u user, err error) {
	hash, err := s.hashForRegistration(ctx, c, in)
	if err != nil {
		return u, err
	}
	err = s.db.inTx(ctx, func(tx db) error {
		if u, err = tx.insertUser(ctx, newUser{newID(), in.Email, in.Name, "user", hash, false}); err != nil {
			return err
		}
		tx.audit(c, auditEntry{action: "user.registered", subject: u.ID}) // room:audit
		return nil
	})
	return u, err
}

func (s *server) hashForRegistration(ctx context.Context, c caller, in registerInput) (string, error) {
	if !s.cfg.SignupEnabled {
		return "", errSignupDisabled
	}
	if err := s.passwords.refuse("/password", in.Password, in.Email); err != nil {
		return "", err
	}
	return s.passwords.hash(ctx, c.ip, in.Password)
}

type issueTokenInput struct {
	GrantType    string  `form:"grant_type" is:"grant_type"`
	Username     *string `form:"username" is:"credential"`
	Password     *string `form:"password" is:"credential"`
	RefreshToken *string `form:"refresh_token" is:"credential"`
	// RFC 6749 clients may send these; there is one first-party client and one scope a role.
	Scope        *string `form:"scope" is:"text"`
	ClientID     *string `form:"client_id" is:"text"`
	ClientSecret *string `form:"client_secret" is:"text"`
	Audience     *string `form:"audience" is:"text"`
	Resource     *string `form:"resource" is:"text"`
}

// issueToken is the token endpoint of RFC 6749: the password grant (section 4.3) and the refresh grant (section 6).
func (s *server) issueToken(ctx context.Context, c caller, in issueTokenInput) (tokens, error) {
	switch in.GrantType {
	case "password":
		if in.Username == nil || in.Password == nil {
			return tokens{}, invalidRequest("username and password are required for this grant_type.")
		}
		return s.signIn(ctx, c, *in.Username, *in.Password)
	case "refresh_token":
		if in.RefreshToken == nil {
			return tokens{}, invalidRequest("refresh_token is required for this grant_type.")
		}
		return s.refresh(ctx, c, *in.RefreshToken)
	}
	return tokens{}, errGrantType
}

// signIn checks a password. What it answers to a wrong one does not depend on whether the account exists, is
// confirmed or disabled, and costs the same (R35); the right one is told why it does not help (R36).
func (s *server) signIn(ctx context.Context, c caller, username, password string) (tokens, error) {
	var account account
	if email, code, _ := checkEmail(username); code == "" {
		var err error
		account, err = s.db.accountByEmail(ctx, email)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return tokens{}, err
		}
	}
	ok, weak, err := s.checkPassword(ctx, c, username, account.PasswordHash, password)
	if err != nil {
		return tokens{}, err
	}
	var refusal *apiError
	switch {
	case !ok:
		refusal = errInvalidGrant
	case account.Disabled:
		refusal = errAccountDisabled
	case account.Pending || !account.EmailVerified && s.cfg.EmailVerification:
		refusal = errEmailNotVerified
	}
	if refusal != nil {
		s.metrics.signIns.WithLabelValues(refusal.Code).Inc() // room:metrics
		// Written for unknown addresses too: the same work, and a trail of whoever tries them all.
		err := error(refusal)
		err = s.db.record(ctx, c, auditEntry{action: "sign_in.refused", subject: account.ID, detail: map[string]any{"code": refusal.Code}}, err) // room:audit
		return tokens{}, err
	}
	if weak {
		hash, err := s.rehash(ctx, c, account, password)
		if errors.Is(err, pgx.ErrNoRows) {
			return s.signIn(ctx, c, username, password) // what is stored now decides
		}
		if err != nil {
			return tokens{}, err
		}
		account.PasswordHash = hash
	}
	var session newSession
	err = s.db.inTx(ctx, func(tx db) (err error) {
		session, err = s.startSession(ctx, tx, c, account.ID, account.PasswordHash)
		return err
	})
	if err != nil {
		return tokens{}, err
	}
	s.metrics.signIns.WithLabelValues("ok").Inc() // room:metrics
	return s.issue(session)
}

// rehash upgrades a hash that is weaker than today's (R31); pgx.ErrNoRows when it is not the stored one any more, because
// another sign-in was first or the password changed.
func (s *server) rehash(ctx context.Context, c caller, account account, password string) (string, error) {
	hash, err := s.passwords.hash(ctx, c.ip, password)
	if err != nil {
		return "", err
	}
	return hash, s.db.updatePasswordHash(ctx, account.ID, account.PasswordHash, hash)
}

// maxSessions is how many devices a user can be signed in on; the oldest makes room (R56).
const maxSessions = 50

// startSession signs a user in, if the password hash that was verified is still theirs. It locks the user's row first,
// so that a change of password or a second sign-in waits: no session survives the one, none is too many for the other.
func (s *server) startSession(ctx context.Context, tx db, c caller, userID, passwordHash string) (newSession, error) {
	u, err := tx.lockUserWithPassword(ctx, userID, passwordHash)
	if err != nil {
		return newSession{}, orElse(err, errInvalidGrant)
	}
	n := newSession{user: u, id: newID(), generation: 1}
	c.user = u
	tx.audit(c, auditEntry{action: "session.started", subject: n.id}) // room:audit
	return n, firstError(tx.deleteOldestSessions(ctx, userID, maxSessions-1),
		tx.insertSession(ctx, n.id, userID, c, min(s.cfg.RefreshIdleTTL, s.cfg.RefreshMaxTTL)))
}

// newSession is what tokens are made from.
type newSession struct {
	user       user
	id         string
	generation int32
}

// issue makes the tokens of a session's generation.
func (s *server) issue(n newSession) (tokens, error) {
	access, err := s.keys.signAccess(n.user, n.id, n.generation)
	return tokens{
		AccessToken: access, TokenType: "Bearer", ExpiresIn: int(s.cfg.AccessTokenTTL.Seconds()),
		RefreshToken: s.keys.signRefresh(n.id, n.generation), Scope: scopeOf(n.user.Role),
	}, err
}

// refresh rotates a refresh token (R53, R54). A token is an HMAC over a session and a generation (tokens.go), so it can be
// made again at any time, byte for byte, and nothing of it is stored: the session's row knows the newest generation, n,
// and whether an access token of n was shown (confirmed, set by authenticate).
//
//	shown  state of the session               answer
//	n                                         n + 1, by one compare-and-set: of many at once one wins, the others show
//	                                          the predecessor of what it got
//	n - 1  n is younger than REFRESH_GRACE,   n again, the identical token: the reply was lost, or a second tab asked.
//	       or has never been used             Later than the grace it is in the audit trail
//	n - 1  n has been used, after the grace   a copy: the session ends, committed before the refusal
//	older                                     the same
//
// So a lost reply signs nobody out, and whoever stole a token ends the session as soon as thief and owner are out of step.
func (s *server) refresh(ctx context.Context, c caller, token string) (tokens, error) {
	sessionID, generation, err := s.keys.parseRefresh(token)
	if err != nil {
		err = errInvalidGrant
		err = s.wrong(ctx, c, err) // room:throttling
		return tokens{}, err
	}
	u, err := s.db.rotateSession(ctx, sessionID, generation, c, s.cfg)
	if err == nil {
		return s.issue(newSession{u, sessionID, generation + 1})
	}
	if !errors.Is(err, pgx.ErrNoRows) {
		return tokens{}, err
	}
	found, err := s.db.sessionForReplay(ctx, sessionID, generation, s.cfg.RefreshGrace)
	if err != nil {
		return tokens{}, orElse(err, errInvalidGrant)
	}
	c.user = found.user
	if found.Replayable {
		if found.Late { // room:audit
			// A lost reply, or somebody who keeps in step with the owner.
			if err := s.db.record(ctx, c, auditEntry{action: "session.replayed", subject: sessionID}, nil); err != nil {
				return tokens{}, err
			}
		}
		return s.issue(newSession{found.user, sessionID, generation + 1})
	}
	s.metrics.reuses.Inc() // room:metrics
	s.log.WarnContext(ctx, "refresh token reused: session ended", "session_id", sessionID, "user_id", found.ID)
	err = s.db.inTx(ctx, func(tx db) error { // committed before the refusal
		tx.audit(c, auditEntry{action: "session.reuse_detected", subject: sessionID}) // room:audit
		return tx.deleteReusedSession(ctx, sessionID, generation)
	})
	return tokens{}, cmp.Or(err, error(errInvalidGrant))
}

type revokeTokenInput struct {
	Token         string  `form:"token" is:"credential"`
	TokenTypeHint *string `form:"token_type_hint" is:"text"`
	ClientID      *string `form:"client_id" is:"text"`
	ClientSecret  *string `form:"client_secret" is:"text"`
}

// revoked is the empty success of RFC 7009 section 2.2.
type revoked struct{}

// revokeToken ends the session of a genuine token, of either kind, expired or not; anything else is over already.
func (s *server) revokeToken(ctx context.Context, c caller, in revokeTokenInput) (revoked, error) {
	sessionID, _, err := s.keys.parseRefresh(in.Token)
	if err != nil {
		claims, err := s.keys.parseAccess(s.keys.expired, in.Token)
		if err != nil {
			return revoked{}, nil
		}
		sessionID = claims.SessionID
	}
	return revoked{}, s.db.inTx(ctx, func(tx db) error {
		userID, err := tx.deleteSessionByID(ctx, sessionID)
		if err != nil {
			return orElse(err, nil) // it has ended already
		}
		c.user.ID = userID
		tx.audit(c, auditEntry{action: "session.ended", subject: sessionID}) // room:audit
		return nil
	})
}

// invalidRequest is RFC 6749's answer to a form that misses something.
func invalidRequest(detail string) error {
	return &apiError{Status: 400, Code: "invalid_request", Detail: detail}
}

func (s *server) readJWKS(context.Context, caller, none) (jwkSet, error) { return s.keys.jwks, nil }
