package main

import (
	"cmp"
	"context"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
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

// caller is who makes a request and from where; the user is empty on public routes.
type caller struct {
	user      user
	session   string    // id of the session behind the access token
	signedIn  time.Time // when that session began
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
	c.user, c.session, c.signedIn = found.user, claims.SessionID, found.session.CreatedAt
	switch need {
	case signedIn:
		return c, nil
	case platformAdmin:
		if c.user.Role == "admin" {
			return c, nil
		}
		if r.PathValue("organization_id") != "" {
			return c, cmp.Or(allow(found.role, orgRead), error(errForbidden)) // 404 for outsiders
		}
		return c, errForbidden
	case "":
		return c, errForbidden
	}
	return c, allow(found.role, need)
}

// bearerToken reads the one Authorization header (RFC 6750 section 2.1, R22).
func bearerToken(header http.Header) (string, error) {
	values := header["Authorization"]
	if len(values) == 0 {
		return "", errNoToken
	}
	scheme, token := values[0], ""
	if i := strings.IndexAny(scheme, " \t"); i >= 0 {
		scheme, token = scheme[:i], strings.Trim(scheme[i:], " \t") // several are one: RFC 9110 section 11.4
	}
	switch {
	case len(values) != 1:
		return "", errInvalidToken
	case !strings.EqualFold(scheme, "Bearer"):
		return "", errNoToken // section 3.1: whoever tries another scheme is told of this one
	}
	return token, nil
}

// clientIP is the peer, unless the peer is a trusted proxy: then the nearest address of X-Forwarded-For, from the
// right, that is not one. What cannot be read ends the walk at the hop before it (R10).
func (s *server) clientIP(r *http.Request) netip.Addr {
	peer, _ := netip.ParseAddrPort(r.RemoteAddr)
	ip := peer.Addr().Unmap().WithZone("")
	lines := r.Header["X-Forwarded-For"]
	if len(lines) == 0 {
		return ip
	}
	if !s.trusted(ip) {
		s.warnForwarded.Do(func() {
			s.log.Warn("X-Forwarded-For is ignored: it came from outside TRUSTED_PROXIES (said once)", "peer", ip.String())
		})
		return ip
	}
	hops := strings.Split(strings.Join(lines, ","), ",")
	for i := len(hops) - 1; i >= 0 && s.trusted(ip); i-- {
		text := strings.Trim(hops[i], " \t\"")
		if text == "" {
			continue
		}
		hop, err := parseHop(text)
		if err != nil {
			s.warnHop.Do(func() {
				s.log.Warn("X-Forwarded-For cannot be read: whoever is behind it counts as one client (said once)", "hop", ip.String())
			})
			return ip
		}
		ip = hop.Unmap().WithZone("")
	}
	return ip
}

// parseHop reads an address as balancers write it (R113): 192.0.2.1, 192.0.2.1:80, 2001:db8::1, [2001:db8::1],
// [2001:db8::1]:80, each perhaps with a zone.
func parseHop(hop string) (netip.Addr, error) {
	if ip, err := netip.ParseAddr(hop); err == nil {
		return ip, nil
	}
	if i := strings.LastIndexByte(hop, ':'); i >= 0 {
		if _, err := strconv.ParseUint(hop[i+1:], 10, 16); err == nil {
			hop = hop[:i]
		}
	}
	if inner, bracketed := strings.CutPrefix(hop, "["); bracketed && strings.HasSuffix(inner, "]") {
		hop = inner[:len(inner)-1]
	}
	return netip.ParseAddr(hop)
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
