package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5/pgconn"
)

// apiError is an answer other than success. Everything but cause goes to the client.
type apiError struct {
	Status        int
	Code          string // stable, snake_case, unique to one meaning
	Detail        string
	Fields        []fieldError
	Organizations []organization // that stand in the way // room:organizations
	// OAuth is the RFC 6749 error code on the two OAuth endpoints; empty stands for invalid_request.
	OAuth string
	// Challenge is what WWW-Authenticate says of a refusal that signing in again ends (RFC 9470 section 3).
	Challenge  string
	RetryAfter time.Duration
	cause      error
}

// fieldError is one bad field: a JSON pointer (RFC 6901) or the name of a parameter, a stable code and a sentence.
type fieldError struct {
	Pointer string `json:"pointer"`
	Code    string `json:"code"`
	Detail  string `json:"detail"`
}

func (e *apiError) Error() string { return e.Code + ": " + e.Detail }
func (e *apiError) Unwrap() error { return e.cause }

// because returns a copy of e with the cause that the log shows and the client does not.
func (e *apiError) because(cause error) *apiError {
	c := *e
	c.cause = cause
	return &c
}

// Every refusal the API knows that needs no details of the request.
var (
	errMalformed        = &apiError{Status: 400, Code: "malformed_request", Detail: "The request cannot be read."}
	errBadCursor        = &apiError{Status: 400, Code: "invalid_cursor", Detail: "This cursor does not belong to this list."}
	errInvalidGrant     = &apiError{Status: 400, Code: "invalid_grant", OAuth: "invalid_grant", Detail: "The credentials are not valid."}
	errEmailNotVerified = &apiError{Status: 400, Code: "email_not_verified", OAuth: "invalid_grant", Detail: "Confirm your address first: the link is in your mail."}
	errAccountDisabled  = &apiError{Status: 400, Code: "account_disabled", OAuth: "invalid_grant", Detail: "This account is disabled."}
	errGrantType        = &apiError{Status: 400, Code: "unsupported_grant_type", OAuth: "unsupported_grant_type", Detail: "grant_type must be password or refresh_token."}
	errNoToken          = &apiError{Status: 401, Code: "unauthorized", Detail: "This call needs an access token."}
	errInvalidToken     = &apiError{Status: 401, Code: "invalid_access_token", Detail: "The access token is not valid, or its session has ended."}
	errForbidden        = &apiError{Status: 403, Code: "forbidden", Detail: "Your role does not allow this."}
	errSignupDisabled   = &apiError{Status: 403, Code: "signup_disabled", Detail: "Registration is closed."}
	errNotFound         = &apiError{Status: 404, Code: "not_found", Detail: "There is nothing here, or nothing you can see."}
	errMethod           = &apiError{Status: 405, Code: "method_not_allowed", Detail: "The Allow header lists the methods of this address."}
	errRecentSignIn     = &apiError{Status: 403, Code: "recent_sign_in_required", Detail: "Sign in again first: this needs a session younger than 15 minutes.", Challenge: `error="insufficient_user_authentication", max_age=900`}
	errSecondFactor     = &apiError{Status: 403, Code: "second_factor_required", Detail: "This needs a second factor: add one, or sign in with it.", Challenge: `error="insufficient_user_authentication", acr_values="aal2"`}
	errOwnAccount       = &apiError{Status: 409, Code: "own_account", Detail: "Nobody takes their own rights away: another admin can."}
	errLastAdmin        = &apiError{Status: 409, Code: "last_admin", Detail: "The platform needs an active admin."}
	errTooManyAttempts  = &apiError{Status: 429, Code: "too_many_attempts", OAuth: "temporarily_unavailable", Detail: "Too many attempts; wait and try again."}
	errEmailTaken       = &apiError{Status: 409, Code: "email_taken", Detail: "This address has an account already."}
	errStale            = &apiError{Status: 412, Code: "precondition_failed", Detail: "The resource has changed since you read it."}
	errTooLarge         = &apiError{Status: 413, Code: "body_too_large", Detail: "The body is larger than 64 KiB."}
	errMediaType        = &apiError{Status: 415, Code: "unsupported_media_type"}
	errBadMailToken     = &apiError{Status: 422, Code: "invalid_token", Detail: "This link was used, replaced by a newer one, or has expired.",
		Fields: []fieldError{{"/token", "invalid_token", "is not valid any more"}}}
	errInternal   = &apiError{Status: 500, Code: "internal", Detail: "This is a defect on our side; the request_id finds it in the log.", OAuth: "server_error"}
	errOverloaded = &apiError{Status: 503, Code: "overloaded", Detail: "Too much is going on; try again shortly.", OAuth: "temporarily_unavailable", RetryAfter: time.Second}
	errDatabase   = &apiError{Status: 503, Code: "database_unavailable", Detail: "The database does not answer; try again shortly.", OAuth: "temporarily_unavailable", RetryAfter: time.Second}
	errNotReady   = &apiError{Status: 503, Code: "not_ready", Detail: "This replica takes no requests now.", RetryAfter: time.Second}
)

// invalid is the answer to a well-formed request with bad fields.
func invalid(fields ...fieldError) *apiError {
	return &apiError{Status: 422, Code: "invalid_fields", Detail: "Some fields are not valid.", Fields: fields}
}

// malformed is the answer to a request whose shape is wrong.
func malformed(fields ...fieldError) *apiError {
	e := *errMalformed
	e.Fields = fields
	return &e
}

// wrongPassword is the answer to a signed-in or token-holding caller whose password does not match.
func wrongPassword(pointer string) *apiError {
	return invalid(fieldError{pointer, "wrong_password", "is not the password of this account"})
}

// constraintErrors says what breaking a constraint of sql/ means to a client. A constraint that is not here cannot be
// broken by input: the handlers have checked before, and breaking it is a defect.
var constraintErrors = map[string]*apiError{
	"users_email_key":                         errEmailTaken,
	"passkeys_credential_id_key":              errPasskeyTaken,  // room:passkeys
	"organizations_slug_key":                  errSlugTaken,     // room:organizations
	"memberships_organization_id_user_id_key": errAlreadyMember, // room:organizations
}

// toAPIError is the one place that decides what an error means to a client.
func toAPIError(err error) *apiError {
	if known, ok := errors.AsType[*apiError](err); ok {
		return known
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return errTooLarge
	}
	if _, ok := errors.AsType[unfit](err); ok {
		return errDatabase.because(err)
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok { // whatever the reason: refused, no such role, wrong password
		return errDatabase.because(err)
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		if known := constraintErrors[pg.ConstraintName]; known != nil {
			return known.because(err)
		}
		if pg.Code == "23503" { // foreign_key_violation: what was pointed to is gone since it was read
			return errNotFound.because(err)
		}
		// 08 connection, 0A000 a plan that a migration made stale, 25006 read-only after a failover, 25P03 idle in a
		// transaction for too long, 40 conflict after retries, 53 resources, 55P03 and 57 timeouts and shutdown, 58 disks.
		for _, class := range []string{"08", "0A000", "25006", "25P03", "40", "53", "55P03", "57", "58"} {
			if strings.HasPrefix(pg.Code, class) {
				return errDatabase.because(err)
			}
		}
		return errInternal.because(err)
	}
	_, network := errors.AsType[net.Error](err)
	if network || pgconn.Timeout(err) || errors.Is(err, context.DeadlineExceeded) || connectionLost(err) {
		return errDatabase.because(err)
	}
	return errInternal.because(err)
}

// problem is application/problem+json, RFC 9457.
type problem struct {
	Title         string         `json:"title"`
	Status        int            `json:"status"`
	Detail        string         `json:"detail"`
	Code          string         `json:"code"`
	RequestID     string         `json:"request_id"`
	Errors        []fieldError   `json:"errors,omitzero"`
	Organizations []organization `json:"organizations,omitzero"` // that stand in the way: last_owner // room:organizations
}

// oauthError is the error of RFC 6749 section 5.2, with our code and request id.
type oauthError struct {
	Error       string `json:"error"`
	Description string `json:"error_description"`
	Code        string `json:"code"`
	RequestID   string `json:"request_id"`
}

// isOAuth says whether a path answers in the shape of RFC 6749.
func isOAuth(path string) bool { return path == "/v1/auth/token" || path == "/v1/auth/revoke" }

// writeError answers with err and logs what an operator must know: defects and dependencies that are down.
func (s *server) writeError(w *response, r *http.Request, err error) {
	e := toAPIError(err)
	if e.Status >= 500 && e.cause != nil {
		s.log.LogAttrs(r.Context(), slog.LevelError, "request failed", slog.String("code", e.Code),
			slog.String("request_id", w.requestID), slog.String("route", r.Pattern), slog.String("cause", e.cause.Error()))
	}
	header := w.Header()
	if e.Challenge != "" {
		header.Set("WWW-Authenticate", "Bearer "+e.Challenge)
	}
	switch e.Status {
	case 401:
		challenge := `Bearer realm="roster"`
		if e != errNoToken {
			challenge += `, error="invalid_token"` // RFC 6750 section 3.1: only when a token was sent
		}
		header.Set("WWW-Authenticate", challenge)
	case 413:
		header.Set("Connection", "close")
	}
	if e.RetryAfter > 0 {
		header.Set("Retry-After", strconv.Itoa(int((e.RetryAfter+time.Second-1)/time.Second)))
	}
	header.Del("ETag") // of the answer that there was no room for, as all that follows
	header.Del("Link")
	header.Set("Cache-Control", "no-store")
	if isOAuth(r.URL.Path) {
		status := e.Status
		if status == 422 {
			status = 400 // RFC 6749 knows one status for requests that miss something
		}
		s.writeJSON(w, r, status, "application/json", oauthError{cmp.Or(e.OAuth, "invalid_request"), describe(e), e.Code, w.requestID})
		return
	}
	s.writeJSON(w, r, e.Status, "application/problem+json", problem{
		Title: http.StatusText(e.Status), Status: e.Status, Detail: e.Detail, Code: e.Code,
		RequestID: w.requestID, Errors: e.Fields,
		Organizations: e.Organizations, // room:organizations
	})
}

// describe puts the bad fields into the one sentence that RFC 6749 allows: printable ASCII without quotes.
func describe(e *apiError) string {
	text := e.Detail
	for _, f := range e.Fields {
		text += " " + strings.TrimPrefix(f.Pointer, "/") + " " + f.Detail + "."
	}
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return '\''
		}
		return c
	}, text)
}

// writeJSON answers with body, unless there are maxAnswers of others that nobody reads.
func (s *server) writeJSON(w *response, r *http.Request, status int, contentType string, body any) {
	b, err := json.Marshal(body)
	if err != nil {
		panic(err) // our own types always marshal
	}
	if len(b) > smallAnswer {
		if !s.answers.take(w.origin, len(b)) {
			s.writeError(w, r, errOverloaded)
			return
		}
		defer s.answers.leave(w.origin, len(b))
	}
	write(w, status, contentType, b)
}

func write(w http.ResponseWriter, status int, contentType string, body []byte) {
	header := w.Header()
	header.Set("Content-Type", contentType)
	header.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that has gone misses it
}
