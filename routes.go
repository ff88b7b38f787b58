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
	register := route{"POST /v1/auth/register", public, 201, handle(s.registerUnverified), "Register; usable at once"}
	if s.cfg.EmailVerification { // room:mailflows
		register = route{"POST /v1/auth/register", public, 202, handle(s.register), "Register; the address is confirmed by mail"}
	}
	return []route{
		// Sign-in
		register,
		{"POST /v1/auth/verify-email", public, 200, handle(s.verifyEmail), "Confirm the address and sign in"}, // room:mailflows
		{"POST /v1/auth/token", public, 200, handle(s.issueToken), "Sign in, or refresh (RFC 6749)"},
		{"POST /v1/auth/passkey/options", public, 200, handle(s.offerPasskey), "Ask how to sign in by passkey (WebAuthn)"}, // room:passkeys
		{"POST /v1/auth/passkey", public, 200, handle(s.signInWithPasskey), "Sign in by passkey"},                          // room:passkeys
		{"POST /v1/auth/revoke", public, 200, handle(s.revokeToken), "Sign out (RFC 7009)"},
		{"POST /v1/auth/forgot-password", public, 202, handle(s.forgotPassword), "Ask for a link to choose a new password"},              // room:mailflows
		{"POST /v1/auth/reset-password", public, 204, handle(s.resetPassword), "Choose a new password by link"},                          // room:mailflows
		{"POST /v1/auth/confirm-email", public, 204, handle(s.confirmEmail), "Confirm a new address"},                                    // room:mailflows
		{"POST /v1/auth/accept-invitation", public, 201, handle(s.acceptInvitationAsNewUser), "Accept an invitation with a new account"}, // room:invitations

		// The caller
		{"GET /v1/users/me", signedIn, 200, handle(s.readMe), "Read yourself"},
		{"PATCH /v1/users/me", signedIn, 200, handle(s.updateMe), "Change your name"},
		{"PUT /v1/users/me/password", signedIn, 204, handle(s.changePassword), "Change your password"},
		{"POST /v1/users/me/email", signedIn, 202, recently(handle(s.changeEmail)), "Change your address"}, // room:mailflows
		{"GET /v1/users/me/sessions", signedIn, 200, handle(s.listSessions), "List where you are signed in"},
		{"DELETE /v1/users/me/sessions", signedIn, 204, handle(s.deleteOtherSessions), "Sign out everywhere else"},
		{"DELETE /v1/users/me/sessions/{session_id}", signedIn, 204, handle(s.deleteSession), "Sign out one session"},
		{"DELETE /v1/users/me", signedIn, 204, recently(handle(s.deleteMe)), "Delete your account"},
		{"GET /v1/users/me/second-factor", signedIn, 200, handle(s.readSecondFactor), "Read whether you have a second factor"},                                // room:second-factor
		{"POST /v1/users/me/second-factor", signedIn, 201, recently(handle(s.startSecondFactor)), "Begin a second factor: a secret for an authenticator app"}, // room:second-factor
		{"PUT /v1/users/me/second-factor", signedIn, 200, recently(handle(s.enableSecondFactor)), "Add or replace your second factor, by its first code"},     // room:second-factor
		{"DELETE /v1/users/me/second-factor", signedIn, 204, recently(handle(s.disableSecondFactor)), "Remove your second factor"},                            // room:second-factor
		{"POST /v1/users/me/recovery-codes", signedIn, 200, recently(handle(s.replaceRecoveryCodes)), "Make new recovery codes"},                              // room:second-factor
		{"POST /v1/users/me/passkeys/options", signedIn, 200, recently(handle(s.offerNewPasskey)), "Begin a passkey (WebAuthn)"},                              // room:passkeys
		{"GET /v1/users/me/passkeys", signedIn, 200, handle(s.listPasskeys), "List your passkeys"},                                                            // room:passkeys
		{"POST /v1/users/me/passkeys", signedIn, 201, recently(handle(s.createPasskey)), "Add a passkey"},                                                     // room:passkeys
		{"PATCH /v1/users/me/passkeys/{passkey_id}", signedIn, 200, handle(s.updatePasskey), "Rename a passkey"},                                              // room:passkeys
		{"DELETE /v1/users/me/passkeys/{passkey_id}", signedIn, 204, recently(handle(s.deletePasskey)), "Remove a passkey"},                                   // room:passkeys
		{"GET /v1/users/me/memberships", signedIn, 200, handle(s.listMyMemberships), "List where you are a member"},                                           // room:organizations
		{"POST /v1/invitations/accept", signedIn, 200, handle(s.acceptInvitation), "Accept an invitation"},                                                    // room:invitations
		{"GET /v1/users/me/export", signedIn, 200, handle(s.exportMe), "Everything stored about you"},                                                         // room:audit

		// Users
		{"GET /v1/users", platformAdmin, 200, handle(s.listUsers), "List or search the users"},                                                     // room:administration
		{"POST /v1/users", platformAdmin, 201, handle(s.createUser), "Make an account for somebody"},                                               // room:administration
		{"GET /v1/users/{user_id}", platformAdmin, 200, handle(s.readUser), "Read a user"},                                                         // room:administration
		{"PATCH /v1/users/{user_id}", platformAdmin, 200, handle(s.updateUser), "Change name or role, disable or enable"},                          // room:administration
		{"DELETE /v1/users/{user_id}", platformAdmin, 204, handle(s.deleteUser), "Delete a user"},                                                  // room:administration
		{"DELETE /v1/users/{user_id}/sessions", platformAdmin, 204, handle(s.deleteUserSessions), "Sign a user out everywhere"},                    // room:administration
		{"DELETE /v1/users/{user_id}/second-factor", platformAdmin, 204, recently(handle(s.resetSecondFactor)), "Take a user's second factor off"}, // room:second-factor
		{"DELETE /v1/users/{user_id}/passkeys", platformAdmin, 204, recently(handle(s.resetPasskeys)), "Take a user's passkeys off"},               // room:passkeys
		{"GET /v1/audit-events", platformAdmin, 200, handle(s.listAuditEvents), "List the audit trail"},                                            // room:audit

		// Organizations
		{"POST /v1/organizations", signedIn, 201, handle(s.createOrganization), "Found an organization, as its owner"},                                         // room:organizations
		{"GET /v1/organizations", signedIn, 200, handle(s.listOrganizations), "List your organizations; all=true: all, for platform admins"},                   // room:organizations
		{"GET /v1/organizations/{organization_id}", orgRead, 200, handle(s.readOrganization), "Read an organization"},                                          // room:organizations
		{"PATCH /v1/organizations/{organization_id}", orgUpdate, 200, handle(s.updateOrganization), "Change name or slug"},                                     // room:organizations
		{"DELETE /v1/organizations/{organization_id}", orgDelete, 204, handle(s.deleteOrganization), "Delete an organization and everything in it"},            // room:organizations
		{"GET /v1/organizations/{organization_id}/memberships", membershipsRead, 200, handle(s.listMemberships), "List the members"},                           // room:organizations
		{"POST /v1/organizations/{organization_id}/memberships", platformAdmin, 201, handle(s.createMembership), "Make a user a member"},                       // room:organizations room:administration
		{"PATCH /v1/organizations/{organization_id}/memberships/{user_id}", membershipsWrite, 200, handle(s.updateMembership), "Change a role below your own"}, // room:organizations
		// Leaving needs no more than being a member; to remove somebody else, memberships:write is checked by the handler. // room:organizations
		{"DELETE /v1/organizations/{organization_id}/memberships/{user_id}", membershipsRead, 204, handle(s.deleteMembership), "Remove a member below you, or leave"}, // room:organizations
		{"GET /v1/organizations/{organization_id}/invitations", invitationsWrite, 200, handle(s.listInvitations), "List the pending invitations"},                     // room:invitations
		{"POST /v1/organizations/{organization_id}/invitations", invitationsWrite, 201, handle(s.createInvitation), "Invite an address, or renew its invitation"},     // room:invitations
		{"DELETE /v1/organizations/{organization_id}/invitations/{invitation_id}", invitationsWrite, 204, handle(s.deleteInvitation), "Withdraw an invitation"},       // room:invitations
		{"GET /v1/organizations/{organization_id}/audit-events", auditRead, 200, handle(s.listOrganizationAuditEvents), "List the organization's audit trail"},        // room:audit room:organizations

		// Around the API
		{"GET /.well-known/jwks.json", public, 200, handle(s.readJWKS), "The public keys of access tokens (RFC 7517)"},
		{"GET /.well-known/oauth-authorization-server", public, 200, handle(s.readMetadata), "Authorization server metadata (RFC 8414)"}, // room:documents
		{"GET /openapi.json", public, 200, handle(s.readOpenAPI), "This document"},                                                       // room:documents
		{"GET /docs", public, 200, handle(s.readDocs), "This document, to read and try"},                                                 // room:documents
		{"GET /docs/{file}", public, 200, handle(s.readDocsFile), "What the docs page is made of"},                                       // room:documents
		{"GET /healthz", public, 200, handle(s.readHealth), "Whether the process is alive"},
		{"GET /readyz", public, 200, handle(s.readReadiness), "Whether this replica takes requests"},
	}
}
