package main

import (
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

)

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
	need      access    // what the route asks for
	session   string    // id of the session behind the access token
	signedIn  time.Time // when that session began
	amr       []string  // by what (RFC 8176)
	ip        netip.Addr
	userAgent string
}

// authenticate finds out who calls and whether the route is open to them. Rights never come from the token: one query
// loads the user and the session, so that sign-out, disabling and demotion act on the next request (R50).
func (s *server) authenticate(ctx context.Context, r *http.Request, need access) (caller, error) {
	c := caller{need: need, ip: s.clientIP(r), userAgent: cleanUserAgent(r.UserAgent())}
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
	load := s.db.callerBySession
	if id := r.PathValue("organization_id"); isUUID(id) { // room:organizations
		load = s.db.callerIn(id)
	}
	found, err := load(ctx, claims.SessionID, claims.Subject)
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
	case need == platformAdmin && c.user.Role == "admin" && weak && s.cfg.SecondFactor == "admins":
		return errSecondFactor
	case need == platformAdmin && c.user.Role == "admin":
		return nil
	case r.PathValue("organization_id") != "": // room:organizations
		return s.allowMember(r, c, found, need) // room:organizations
	}
	return errForbidden
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
