package main

// route is one row of the API: everything that is not the handler's own business.
type route struct {
	pattern string // of net/http.ServeMux
	access  access
	status  int // of a success
	endpoint
	summary string
}

// routes is THE table. The mux, the OpenAPI document, the metrics labels and the authorization tests range over it;
// nothing else registers a route.
func (s *server) routes() []route {
	register := route{"POST /v1/auth/register", public, 202, handle(s.register), "Register; the address is confirmed by mail"}
	if !s.cfg.EmailVerification {
		register = route{"POST /v1/auth/register", public, 201, handle(s.registerUnverified), "Register; usable at once"}
	}
	return []route{
		// Sign-in
		register,
		{"POST /v1/auth/verify-email", public, 200, handle(s.verifyEmail), "Confirm the address and sign in"},
		{"POST /v1/auth/token", public, 200, handle(s.issueToken), "Sign in, or refresh (RFC 6749)"},
		{"POST /v1/auth/revoke", public, 200, handle(s.revokeToken), "Sign out (RFC 7009)"},
		{"POST /v1/auth/forgot-password", public, 202, handle(s.forgotPassword), "Ask for a link to choose a new password"},
		{"POST /v1/auth/reset-password", public, 204, handle(s.resetPassword), "Choose a new password by link"},
		{"POST /v1/auth/confirm-email", public, 204, handle(s.confirmEmail), "Confirm a new address"},

		// The caller
		{"GET /v1/users/me", signedIn, 200, handle(s.readMe), "Read yourself"},
		{"PATCH /v1/users/me", signedIn, 200, handle(s.updateMe), "Change your name"},
		{"PUT /v1/users/me/password", signedIn, 204, handle(s.changePassword), "Change your password"},
		{"POST /v1/users/me/email", signedIn, 202, handle(s.changeEmail), "Change your address"},
		{"GET /v1/users/me/sessions", signedIn, 200, handle(s.listSessions), "List where you are signed in"},
		{"DELETE /v1/users/me/sessions", signedIn, 204, handle(s.deleteOtherSessions), "Sign out everywhere else"},
		{"DELETE /v1/users/me/sessions/{session_id}", signedIn, 204, handle(s.deleteSession), "Sign out one session"},

		// Around the API
		{"GET /.well-known/jwks.json", public, 200, handle(s.readJWKS), "The public keys of access tokens (RFC 7517)"},
		{"GET /.well-known/oauth-authorization-server", public, 200, handle(s.readMetadata), "Authorization server metadata (RFC 8414)"},
		{"GET /openapi.json", public, 200, raw(s.readOpenAPI), "This document"},
		{"GET /docs", public, 200, raw(s.readDocs), "This document, to read and try"},
		{"GET /docs/{file}", public, 200, raw(s.readDocsFile), "What the docs page is made of"},
		{"GET /healthz", public, 200, handle(s.readHealth), "Whether the process is alive"},
		{"GET /readyz", public, 200, handle(s.readReadiness), "Whether this replica takes requests"},
	}
}
