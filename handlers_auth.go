package main

import (
	"cmp"
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
)

type registerInput struct {
	Email    string `json:"email" is:"email"`
	Password string `json:"password" is:"new_password"`
	Name     string `json:"name" is:"name"`
}

// register starts an account, or starts it again while its address is unconfirmed: the latest registration wins. The
// answer and the work are the same for an address that has an account; its owner gets a mail instead (R37).
func (s *server) register(ctx context.Context, c caller, in registerInput) (accepted, error) {
	hash, err := s.hashForRegistration(ctx, in)
	if err != nil {
		return accepted{}, err
	}
	err = s.db.inTx(ctx, func(tx db) error {
		id, err := tx.insertOrReplaceUnverified(ctx, newID(), in.Email, in.Name, hash, false)
		if err != nil {
			return err
		}
		kind, action := mailVerifyEmail, "user.registered"
		if id == "" {
			kind, action = mailAccountExists, "user.registered_again"
		}
		return inOrder(tx.audit(ctx, c, action, nil, nonEmpty(id), nil), tx.insertMail(ctx, newMail{kind: kind, owner: in.Email}))
	})
	s.wakeSender()
	return accepted{"We have sent a mail to this address. The link in it completes the registration."}, err
}

// registerUnverified is register without EMAIL_VERIFICATION: the account is usable at once.
func (s *server) registerUnverified(ctx context.Context, c caller, in registerInput) (u user, err error) {
	hash, err := s.hashForRegistration(ctx, in)
	if err != nil {
		return u, err
	}
	err = s.db.inTx(ctx, func(tx db) error {
		if u, err = tx.insertUser(ctx, newID(), in.Email, in.Name, "user", hash, false); err != nil {
			return err
		}
		return tx.audit(ctx, c, "user.registered", nil, &u.ID, nil)
	})
	return u, err
}

func (s *server) hashForRegistration(ctx context.Context, in registerInput) (string, error) {
	if !s.cfg.SignupEnabled {
		return "", errSignupDisabled
	}
	if err := s.passwords.refuse("/password", in.Password, in.Email); err != nil {
		return "", err
	}
	return s.passwords.hash(ctx, in.Password)
}

type issueTokenInput struct {
	GrantType    string  `form:"grant_type" is:"grant_type"`
	Username     *string `form:"username" is:"username"`
	Password     *string `form:"password" is:"credential"`
	RefreshToken *string `form:"refresh_token" is:"credential"`
}

// issueToken is the token endpoint of RFC 6749: the password grant (section 4.3) and the refresh grant (section 6).
func (s *server) issueToken(ctx context.Context, c caller, in issueTokenInput) (tokens, error) {
	switch in.GrantType {
	case "password":
		if in.Username == nil || in.Password == nil {
			return tokens{}, invalidRequest("username and password are required for this grant_type.")
		}
		if err := s.limitCalls(ctx, c, credentialCalls); err != nil {
			return tokens{}, err
		}
		return s.signIn(ctx, c, *in.Username, *in.Password)
	default: // refresh_token
		if in.RefreshToken == nil {
			return tokens{}, invalidRequest("refresh_token is required for this grant_type.")
		}
		if err := s.limitCalls(ctx, c, refreshCalls); err != nil {
			return tokens{}, err
		}
		return s.refresh(ctx, c, *in.RefreshToken)
	}
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
	case !account.EmailVerified && s.cfg.EmailVerification:
		refusal = errEmailNotVerified
	}
	if refusal != nil {
		s.metrics.signIns.WithLabelValues(refusal.Code).Inc()
		// Written for unknown addresses too: the same work, and a trail of whoever tries them all.
		err := s.db.audit(ctx, c, "sign_in.refused", nil, nonEmpty(account.ID), map[string]any{"code": refusal.Code})
		return tokens{}, cmp.Or(err, error(refusal))
	}
	if weak {
		if account.PasswordHash, err = s.rehash(ctx, account, password); err != nil {
			return tokens{}, err
		}
	}
	var session newSession
	err = s.db.inTx(ctx, func(tx db) (err error) {
		session, err = s.startSession(ctx, tx, c, account.ID, account.PasswordHash)
		return err
	})
	if err != nil {
		return tokens{}, err
	}
	s.metrics.signIns.WithLabelValues("ok").Inc()
	return s.issue(session)
}

// rehash upgrades a hash that is weaker than today's, unless the password changed meanwhile (R31).
func (s *server) rehash(ctx context.Context, account account, password string) (string, error) {
	hash, err := s.passwords.hash(ctx, password)
	if err != nil {
		return "", err
	}
	err = s.db.updatePasswordHash(ctx, account.ID, account.PasswordHash, hash)
	if !errors.Is(err, pgx.ErrNoRows) {
		return hash, err
	}
	// Another sign-in was first, or the password changed: what is stored now decides.
	now, err := s.db.accountByEmail(ctx, account.Email)
	if err != nil {
		return "", orElse(err, errInvalidGrant)
	}
	ok, _, err := s.passwords.verify(ctx, now.PasswordHash, password)
	if err == nil && (!ok || now.ID != account.ID) {
		err = errInvalidGrant
	}
	return now.PasswordHash, err
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
	return n, inOrder(tx.deleteOldestSessions(ctx, userID, maxSessions-1),
		tx.insertSession(ctx, n.id, userID, c, min(s.cfg.RefreshIdleTTL, s.cfg.RefreshMaxTTL)),
		tx.audit(ctx, c, "session.started", nil, &n.id, nil))
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

// refresh rotates a refresh token by one compare-and-set (R53). The immediate predecessor gets the identical successor
// while that may be a lost reply; any older genuine token is a copy, and ends the session.
func (s *server) refresh(ctx context.Context, c caller, token string) (tokens, error) {
	sessionID, generation, err := s.keys.parseRefresh(token)
	if err != nil {
		return tokens{}, errInvalidGrant
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
	if found.Replayable {
		return s.issue(newSession{found.user, sessionID, generation + 1})
	}
	s.metrics.reuses.Inc()
	s.log.WarnContext(ctx, "refresh token reused: session ended", "session_id", sessionID, "user_id", found.ID)
	err = s.db.inTx(ctx, func(tx db) error { // committed before the refusal
		c.user = found.user
		return inOrder(tx.deleteReusedSession(ctx, sessionID, generation),
			tx.audit(ctx, c, "session.reuse_detected", nil, &sessionID, nil))
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
		return tx.audit(ctx, c, "session.ended", nil, &sessionID, nil)
	})
}

// invalidRequest is RFC 6749's answer to a form that misses something.
func invalidRequest(detail string) error {
	return &apiError{Status: 400, Code: "invalid_request", Detail: detail}
}

func (s *server) readJWKS(context.Context, caller, none) (jwkSet, error) { return s.keys.jwks, nil }

// serverMetadata is RFC 8414 section 2.
type serverMetadata struct {
	Issuer                            string   `json:"issuer"`
	TokenEndpoint                     string   `json:"token_endpoint"`
	RevocationEndpoint                string   `json:"revocation_endpoint"`
	JWKSURI                           string   `json:"jwks_uri"`
	GrantTypesSupported               []string `json:"grant_types_supported"`
	ResponseTypesSupported            []string `json:"response_types_supported"`
	ScopesSupported                   []string `json:"scopes_supported"`
	TokenEndpointAuthMethodsSupported []string `json:"token_endpoint_auth_methods_supported"`
	RevocationAuthMethodsSupported    []string `json:"revocation_endpoint_auth_methods_supported"`
	ServiceDocumentation              string   `json:"service_documentation"`
}

func (s *server) readMetadata(context.Context, caller, none) (serverMetadata, error) {
	return serverMetadata{
		Issuer:                            s.cfg.PublicURL,
		TokenEndpoint:                     s.cfg.PublicURL + "/v1/auth/token",
		RevocationEndpoint:                s.cfg.PublicURL + "/v1/auth/revoke",
		JWKSURI:                           s.cfg.PublicURL + "/.well-known/jwks.json",
		GrantTypesSupported:               []string{"password", "refresh_token"},
		ResponseTypesSupported:            []string{},
		ScopesSupported:                   strings.Fields(platformScopes["admin"]),
		TokenEndpointAuthMethodsSupported: []string{"none"},
		RevocationAuthMethodsSupported:    []string{"none"},
		ServiceDocumentation:              s.cfg.PublicURL + "/docs",
	}, nil
}
