package main

import (
	"cmp"
	"context"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// access says who may call a route. The zero value lets nobody in, so a forgotten column locks (R70).
type access string

const (
	public        access = "public" // no token needed
	signedIn      access = "user"   // any signed-in user
	platformAdmin access = "admin"  // users whose role is admin

	// Members of the organization in the path whose role has this permission.
	orgRead          access = "org:read"
	orgUpdate        access = "org:update"
	orgDelete        access = "org:delete"
	membershipsRead  access = "memberships:read"
	membershipsWrite access = "memberships:write"
	invitationsWrite access = "invitations:write"
	auditRead        access = "audit:read"
)

// permissions is what each role may do in its organization.
var permissions = map[string][]access{
	"member": {orgRead, membershipsRead},
	"admin":  {orgRead, membershipsRead, orgUpdate, membershipsWrite, invitationsWrite, auditRead},
	"owner":  {orgRead, membershipsRead, orgUpdate, membershipsWrite, invitationsWrite, auditRead, orgDelete},
}

// ranks orders the roles; whoever has none ranks below all.
var ranks = map[string]int{"member": 1, "admin": 2, "owner": 3}

// allow says whether a role in an organization has a permission. To outsiders the organization does not exist.
func allow(role string, need access) error {
	switch {
	case role == "":
		return errNotFound
	case !slices.Contains(permissions[role], need):
		return errForbidden
	}
	return nil
}

// manages says whether an actor may give, change or take a role: it must be strictly below their own, except that
// owners manage owners (R72).
func manages(actor, role string) bool { return actor == "owner" || ranks[actor] > ranks[role] }

// grantable lists the roles that an actor manages, of those who may invite at all.
func grantable(actor string) []string {
	roles := []string{}
	for role := range ranks {
		if allow(actor, invitationsWrite) == nil && manages(actor, role) {
			roles = append(roles, role)
		}
	}
	return roles
}

// platformScopes is what each platform role may do, in the words of the access token's scope claim. It is there for
// other services; roster decides from the database.
var platformScopes = map[string]string{
	"user":  "account",
	"admin": "account users:read users:write audit:read organizations:read",
}

func scopeOf(role string) string { return platformScopes[role] }

// Levels of assurance as NIST SP 800-63B-4 has them: one factor, two factors.
const (
	aal1 = "aal1"
	aal2 = "aal2"
)

// acrOf is the level of a session that was signed in to by these methods.
func acrOf(amr []string) string {
	if slices.Contains(amr, "mfa") {
		return aal2
	}
	return aal1
}

// recentSignIn is how young a session must be for what changes how somebody signs in, or cannot be undone.
const recentSignIn = 15 * time.Minute

// recent says whether the caller has just signed in.
func (c caller) recent() bool { return time.Since(c.signedIn) < recentSignIn }

// caller is who makes a request and from where; the user is empty on public routes.
type caller struct {
	user      user
	session   string    // id of the session behind the access token
	signedIn  time.Time // when that session began
	amr       []string  // by what (RFC 8176)
	ip        netip.Addr
	userAgent string
}

// authenticate finds out who calls and whether the route is open to them. Rights never come from the token: one query
// loads the user and the session, so that sign-out, disabling and demotion act on the next request (R50).
func (s *server) authenticate(ctx context.Context, r *http.Request, need access) (caller, error) {
	c := caller{ip: s.clientIP(r), userAgent: cleanUserAgent(r.UserAgent())}
	if need == public {
		return c, nil
	}
	token, err := bearerToken(r.Header)
	if err != nil {
		return c, err
	}
	claims, err := s.keys.verifyAccess(token)
	if err != nil {
		return c, errInvalidToken
	}
	var found signedInUser
	if id := r.PathValue("organization_id"); isUUID(id) {
		found, err = s.db.callerInOrganization(ctx, claims.SessionID, claims.Subject, id)
	} else {
		found, err = s.db.callerBySession(ctx, claims.SessionID, claims.Subject)
	}
	if err != nil {
		return c, err
	}
	if found.session.Generation == claims.Generation && !found.session.Confirmed {
		// The client has the newest tokens: from now on their predecessor is a copy, not a lost reply (R54).
		if err := s.db.confirmSession(ctx, claims.SessionID, claims.Generation); err != nil {
			return c, err
		}
	}
	c.user, c.session, c.signedIn, c.amr = found.user, claims.SessionID, found.session.CreatedAt, found.session.AMR
	return c, s.authorize(r, c, found, need)
}

// authorize says whether a route is open to a caller: by their role, and by the factors that their session passed.
func (s *server) authorize(r *http.Request, c caller, found signedInUser, need access) error {
	weak := acrOf(c.amr) != aal2
	switch {
	case need == "":
		return errForbidden
	case weak && s.cfg.SecondFactor == "all" && !strings.HasPrefix(r.URL.Path, "/v1/users/me"): // where one is added
		return errSecondFactor
	case need == signedIn:
		return nil
	case need == platformAdmin && c.user.Role != "admin":
		if r.PathValue("organization_id") != "" {
			return cmp.Or(allow(found.role, orgRead), error(errForbidden)) // 404 for outsiders
		}
		return errForbidden
	case need == platformAdmin && weak && s.cfg.SecondFactor == "admins":
		return errSecondFactor
	case need == platformAdmin:
		return nil
	}
	leaving := r.Method == http.MethodDelete && r.PathValue("user_id") == c.user.ID
	if weak && found.secondFactorRequired && !leaving {
		return errSecondFactor
	}
	return allow(found.role, need)
}

// bearerToken reads the one Authorization header (RFC 6750 section 2.1, R22).
func bearerToken(header http.Header) (string, error) {
	values := header["Authorization"]
	if len(values) == 0 {
		return "", errNoToken
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	switch {
	case len(values) != 1:
		return "", errInvalidToken
	case !strings.EqualFold(scheme, "Bearer"):
		return "", errNoToken // section 3.1: whoever tries another scheme is told of this one
	}
	return token, nil
}

// clientIP is the peer, unless the peer is a trusted proxy: then the nearest address of X-Forwarded-For, from the
// right, that is not one. What cannot be parsed is never trusted (R10).
func (s *server) clientIP(r *http.Request) netip.Addr {
	peer, _ := netip.ParseAddrPort(r.RemoteAddr)
	ip := peer.Addr().Unmap().WithZone("")
	if !s.trusted(ip) {
		return ip
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			return ip
		}
		if ip = hop.Unmap().WithZone(""); !s.trusted(ip) {
			return ip
		}
	}
	return ip
}

func (s *server) trusted(ip netip.Addr) bool {
	return slices.ContainsFunc(s.cfg.TrustedProxies, func(n netip.Prefix) bool { return n.Contains(ip) })
}

// maxUserAgent is how many bytes of a User-Agent are stored.
const maxUserAgent = 256

// cleanUserAgent makes a header fit to store and show.
func cleanUserAgent(s string) string {
	clean := strings.Map(func(c rune) rune {
		if forbidden(c) || c == utf8.RuneError {
			return -1
		}
		return c
	}, s)
	for len(clean) > maxUserAgent {
		_, size := utf8.DecodeLastRuneInString(clean)
		clean = clean[:len(clean)-size]
	}
	return clean
}
