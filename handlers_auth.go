package main

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"time"

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
	Username     *string `form:"username" is:"username"`
	Password     *string `form:"password" is:"credential"`
	OTP          *string `form:"otp" is:"credential"` // room:second-factor
	RefreshToken *string `form:"refresh_token" is:"credential"`
}

// issueToken is the token endpoint of RFC 6749: the password grant (section 4.3) and the refresh grant (section 6). A
// refresh token beside a password is that of the session which the new one replaces.
func (s *server) issueToken(ctx context.Context, c caller, in issueTokenInput) (tokens, error) {
	switch in.GrantType {
	case "password":
		if in.Username == nil || in.Password == nil {
			return tokens{}, invalidRequest("username and password are required for this grant_type.")
		}
		return s.signIn(ctx, c, in)
	default: // refresh_token
		if in.RefreshToken == nil {
			return tokens{}, invalidRequest("refresh_token is required for this grant_type.")
		}
		return s.refresh(ctx, c, *in.RefreshToken)
	}
}

// signIn checks a password. What it answers to a wrong one does not depend on whether the account exists, is
// confirmed or disabled, and costs the same (R35); the right one is told why it does not help (R36).
func (s *server) signIn(ctx context.Context, c caller, in issueTokenInput) (tokens, error) {
	var account account
	if email, code, _ := checkEmail(*in.Username); code == "" {
		var err error
		account, err = s.db.accountByEmail(ctx, email)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return tokens{}, err
		}
	}
	ok, weak, err := s.checkPassword(ctx, c, *in.Username, account.PasswordHash, *in.Password)
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
		return tokens{}, s.refuseSignIn(ctx, c, account.ID, refusal)
	}
	if weak {
		hash, err := s.rehash(ctx, c, account, *in.Password)
		if errors.Is(err, pgx.ErrNoRows) {
			return s.signIn(ctx, c, in) // what is stored now decides
		}
		if err != nil {
			return tokens{}, err
		}
		account.PasswordHash = hash
	}
	p := passwordProof(account.PasswordHash)
	p.otp = in.OTP // room:second-factor
	var session newSession
	start := func() error {
		return s.db.inTx(ctx, func(tx db) (err error) {
			if session, err = s.startSession(ctx, tx, c, account.ID, p); err != nil || in.RefreshToken == nil {
				return err
			}
			return s.replaceSession(ctx, tx, session, *in.RefreshToken)
		})
	}
	start = s.countingCodes(ctx, c, account, p, start) // room:second-factor
	if err := start(); err != nil {
		return tokens{}, s.refuseSignIn(ctx, c, account.ID, err)
	}
	s.metrics.signIns.WithLabelValues("ok").Inc() // room:metrics
	return s.issue(session)
}

// refuseSignIn notes that a credential was not enough, for unknown addresses too: the same work, and a trail of whoever
// tries them all. It returns what to answer.
func (s *server) refuseSignIn(ctx context.Context, c caller, userID string, refusal error) error {
	e, known := errors.AsType[*apiError](refusal)
	if !known || e.Status != http.StatusBadRequest {
		return refusal
	}
	s.metrics.signIns.WithLabelValues(e.Code).Inc()                                                                                        // room:metrics
	refusal = s.db.record(ctx, c, auditEntry{action: "sign_in.refused", subject: userID, detail: map[string]any{"code": e.Code}}, refusal) // room:audit
	return refusal
}

// replaceSession ends the session that somebody who has signed in again leaves behind, if the refresh token is genuine
// and theirs.
func (s *server) replaceSession(ctx context.Context, tx db, n newSession, refreshToken string) error {
	old, _, err := s.keys.parseRefresh(refreshToken)
	if err != nil {
		return nil // there is nothing to end
	}
	if err := tx.deleteSession(ctx, n.ID, old); err != nil {
		return orElse(err, nil)
	}
	tx.audit(caller{user: n.user}, auditEntry{action: "session.ended", subject: old}) // room:audit
	return nil
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

// proof is what somebody who signs in has shown.
type proof struct {
	passwordHash *string // that of the right password; nil: another credential than a password
	otp          *string // room:second-factor
	amr          []string
}

func passwordProof(hash string) proof { return proof{passwordHash: &hash, amr: []string{"pwd"}} }

// startSession is the one way to sign in. It locks the user's row first, so that a change of credentials or a second
// sign-in waits: no session survives the one, none is too many for the other. The password must still be theirs, and
// somebody who has a second factor must have passed it.
func (s *server) startSession(ctx context.Context, tx db, c caller, userID string, p proof) (n newSession, err error) {
	u, err := tx.lockUserWithPassword(ctx, userID, p.passwordHash)
	if err != nil {
		return n, orElse(err, errInvalidGrant)
	}
	n = newSession{user: u, SessionID: newID(), Generation: 1, AMR: p.amr}
	c.user = u
	tx.audit(c, auditEntry{action: "session.started", subject: n.SessionID}) // room:audit
	return n, firstError(
		s.passSecondFactor(ctx, tx, c, &n, p), // room:second-factor
		tx.deleteOldestSessions(ctx, userID, maxSessions-1),
		tx.insertSession(ctx, &n, c, min(s.cfg.RefreshIdleTTL, s.cfg.RefreshMaxTTL)),
	)
}

// newSession is what tokens are made from.
type newSession struct {
	user
	SessionID  string
	Generation int32
	AMR        []string // RFC 8176
	StartedAt  time.Time
}

// issue makes the tokens of a session's generation.
func (s *server) issue(n newSession) (tokens, error) {
	access, err := s.keys.signAccess(n)
	return tokens{
		AccessToken: access, TokenType: "Bearer", ExpiresIn: int(s.cfg.AccessTokenTTL.Seconds()),
		RefreshToken: s.keys.signRefresh(n.SessionID, n.Generation), Scope: scopeOf(n.Role),
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
	rotated, err := s.db.rotateSession(ctx, sessionID, generation, c, s.cfg)
	if err == nil {
		return s.issue(rotated)
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
		return s.issue(found.newSession)
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
	Token string `form:"token" is:"credential"`
}

// revoked is the empty success of RFC 7009 section 2.2.
type revoked struct{}

// revokeToken ends the session of a valid token, of either kind; anything else is over already.
func (s *server) revokeToken(ctx context.Context, c caller, in revokeTokenInput) (revoked, error) {
	sessionID, _, err := s.keys.parseRefresh(in.Token)
	if err != nil {
		claims, err := s.keys.verifyAccess(in.Token)
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
