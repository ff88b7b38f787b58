package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// mint signs an access token for m with the server's own key, after edit has had its way with it.
func (s *testServer) mint(m member, edit func(*accessClaims, map[string]any)) string {
	s.t.Helper()
	now := time.Now()
	claims := accessClaims{
		RegisteredClaims: jwt.RegisteredClaims{Issuer: s.cfg.PublicURL, Audience: jwt.ClaimStrings{s.cfg.PublicURL}, Subject: m.id,
			ID: "x", IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(time.Minute))},
		ClientID: clientID, Generation: 1, Roles: []string{"user"}, Scope: "account",
	}
	if err := s.pool.QueryRow(s.t.Context(), "select id from sessions where user_id = $1", m.id).Scan(&claims.SessionID); err != nil {
		s.t.Fatal(err)
	}
	token := jwt.NewWithClaims(jwt.SigningMethodES256, &claims)
	token.Header["typ"], token.Header["kid"] = accessType, s.keys.signing.kid
	edit(&claims, token.Header)
	signed, err := token.SignedString(s.keys.signing.private)
	if err != nil {
		s.t.Fatal(err)
	}
	return signed
}

// R44, R45, R46, R47, R48: a genuine signature is not enough.
func TestAccessTokenRules(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	in := func(d time.Duration) *jwt.NumericDate { return jwt.NewNumericDate(time.Now().Add(d)) }
	for _, tc := range []struct {
		name string
		edit func(*accessClaims, map[string]any)
		ok   bool
	}{
		{"as issued", func(*accessClaims, map[string]any) {}, true},
		{"expired within leeway", func(c *accessClaims, _ map[string]any) {
			c.IssuedAt, c.ExpiresAt = in(-time.Minute), in(-10*time.Second)
		}, true},
		{"expired", func(c *accessClaims, _ map[string]any) { c.IssuedAt, c.ExpiresAt = in(-time.Hour), in(-40*time.Second) }, false},
		{"no exp", func(c *accessClaims, _ map[string]any) { c.ExpiresAt = nil }, false},
		{"no iat", func(c *accessClaims, _ map[string]any) { c.IssuedAt = nil }, false},
		{"issued in the future", func(c *accessClaims, _ map[string]any) { c.IssuedAt, c.ExpiresAt = in(time.Hour), in(2*time.Hour) }, false},
		{"lives too long", func(c *accessClaims, _ map[string]any) { c.ExpiresAt = in(17 * time.Minute) }, false},
		{"lives as long as may be", func(c *accessClaims, _ map[string]any) {
			c.ExpiresAt = jwt.NewNumericDate(c.IssuedAt.Add(16 * time.Minute))
		}, true},
		{"a second longer", func(c *accessClaims, _ map[string]any) {
			c.ExpiresAt = jwt.NewNumericDate(c.IssuedAt.Add(16*time.Minute + time.Second))
		}, false},
		{"longer than 4 KiB", func(c *accessClaims, _ map[string]any) { c.Scope = strings.Repeat("account ", 400) }, false},
		{"no jti", func(c *accessClaims, _ map[string]any) { c.ID = "" }, false},
		{"no sub", func(c *accessClaims, _ map[string]any) { c.Subject = "" }, false},
		{"sub is no id", func(c *accessClaims, _ map[string]any) { c.Subject = "x" }, false},
		{"another sub", func(c *accessClaims, _ map[string]any) { c.Subject = newID() }, false},
		{"no sid", func(c *accessClaims, _ map[string]any) { c.SessionID = "" }, false},
		{"no gen", func(c *accessClaims, _ map[string]any) { c.Generation = 0 }, false},
		{"no roles", func(c *accessClaims, _ map[string]any) { c.Roles = nil }, false},
		{"no scope", func(c *accessClaims, _ map[string]any) { c.Scope = "" }, false},
		{"another client", func(c *accessClaims, _ map[string]any) { c.ClientID = "other" }, false},
		{"another issuer", func(c *accessClaims, _ map[string]any) { c.Issuer += "/" }, false},
		{"another audience", func(c *accessClaims, _ map[string]any) { c.Audience = jwt.ClaimStrings{"https://other.example"} }, false},
		{"two audiences", func(c *accessClaims, _ map[string]any) { c.Audience = append(c.Audience, "https://other.example") }, false},
		{"typ JWT", func(_ *accessClaims, h map[string]any) { h["typ"] = "JWT" }, false},
		{"no typ", func(_ *accessClaims, h map[string]any) { delete(h, "typ") }, false},
		{"crit", func(_ *accessClaims, h map[string]any) { h["crit"] = []string{"exp"} }, false},
		{"jwk", func(_ *accessClaims, h map[string]any) { h["jwk"] = map[string]string{"kty": "EC"} }, false},
		{"jku", func(_ *accessClaims, h map[string]any) { h["jku"] = "https://evil.example" }, false},
		{"x5c", func(_ *accessClaims, h map[string]any) { h["x5c"] = []string{"x"} }, false},
		{"x5u", func(_ *accessClaims, h map[string]any) { h["x5u"] = "https://evil.example" }, false},
		{"b64", func(_ *accessClaims, h map[string]any) { h["b64"] = false }, false},
		{"zip", func(_ *accessClaims, h map[string]any) { h["zip"] = "DEF" }, false},
		{"cty", func(_ *accessClaims, h map[string]any) { h["cty"] = "JWT" }, false},
		{"unknown kid", func(_ *accessClaims, h map[string]any) { h["kid"] = "other" }, false},
		{"kid is a path", func(_ *accessClaims, h map[string]any) { h["kid"] = "../../dev/null" }, false},
		{"no kid", func(_ *accessClaims, h map[string]any) { delete(h, "kid") }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := s.in(t)
			token := s.mint(m, tc.edit)
			for range 2 { // the second time the token may be remembered
				if a := s.get("/v1/users/me", token); (a.status == 200) != tc.ok {
					t.Errorf("%d %s", a.status, a.body)
				}
			}
		})
	}
}

// R116: header and claims are strict JSON, as bodies are, with dates that are numbers in order.
func TestStrictTokens(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	now := time.Now().Unix()
	header := fmt.Sprintf(`{"alg":"ES256","typ":"at+jwt","kid":"%s"}`, s.keys.signing.kid)
	claims := fmt.Sprintf(`{"iss":"%s","aud":["%[1]s"],"sub":"%s","client_id":"roster","exp":%d,"iat":%d,"jti":"x","sid":"%s","gen":1,"roles":["user"],"scope":"account"}`,
		s.cfg.PublicURL, m.id, now+60, now, scalar[string](s, "select id::text from sessions"))
	in := func(text, old, new string) string {
		if !strings.Contains(text, old) {
			t.Fatalf("no %s in %s", old, text)
		}
		return strings.Replace(text, old, new, 1)
	}
	exp := fmt.Sprintf(`"exp":%d`, now+60)
	for _, tc := range []struct {
		name, header, claims string
		ok                   bool
	}{
		{"as issued", header, claims, true},
		{"white space", " " + in(header, `,`, " ,\n"), in(claims, `:`, " : "), true},
		{"a claim of a later version", header, in(claims, `{`, `{"acr":"aal1",`), true},
		{"one audience as text", header, in(claims, `["`+s.cfg.PublicURL+`"]`, `"`+s.cfg.PublicURL+`"`), true},
		{"a fraction", header, in(claims, exp, exp+".5"), true},
		{"nbf", header, in(claims, `{`, fmt.Sprintf(`{"nbf":%d,`, now)), true},
		{"nbf to come", header, in(claims, `{`, fmt.Sprintf(`{"nbf":%d,`, now+50)), false},
		{"nbf as text", header, in(claims, `{`, fmt.Sprintf(`{"nbf":"%d",`, now)), false},
		{"nbf null", header, in(claims, `{`, `{"nbf":null,`), false},
		{"nbf a list", header, in(claims, `{`, `{"nbf":[],`), false},
		{"exp as text", header, in(claims, exp, fmt.Sprintf(`"exp":"%d"`, now+60)), false},
		{"iat as text", header, in(claims, fmt.Sprintf(`"iat":%d`, now), fmt.Sprintf(`"iat":"%d"`, now)), false},
		{"exp at iat", header, in(claims, exp, fmt.Sprintf(`"exp":%d`, now)), false},
		{"exp before iat", header, in(claims, exp, fmt.Sprintf(`"exp":%d`, now-10)), false},
		{"gen as text", header, in(claims, `"gen":1`, `"gen":"1"`), false},
		{"gen a fraction", header, in(claims, `"gen":1`, `"gen":1.5`), false},
		{"jti a number", header, in(claims, `"jti":"x"`, `"jti":1`), false},
		{"roles as text", header, in(claims, `["user"]`, `"user"`), false},
		{"exp twice", header, in(claims, `{`, `{"exp":1,`), false},
		{"sub twice by escape", header, in(claims, `{`, `{"\u0073ub":"x",`), false},
		{"a duplicate inside", header, in(claims, `{`, `{"x":{"a":1,"a":2},`), false},
		{"Exp", header, in(claims, `"exp"`, `"Exp"`), false},
		{"SUB beside sub", header, in(claims, `{`, `{"SUB":"x",`), false},
		{"long s", header, in(claims, `"sub"`, `"\u017fub"`), false},
		{"invalid UTF-8", header, in(claims, `"x"`, "\"\xff\""), false},
		{"a lone surrogate", header, in(claims, `"x"`, `"\ud800"`), false},
		{"too deep", header, in(claims, `{`, `{"x":`+strings.Repeat("[", maxDepth)+strings.Repeat("]", maxDepth)+`,`), false},
		{"trailing bytes", header, claims + "x", false},
		{"two values", header, claims + claims, false},
		{"a list of claims", header, "[" + claims + "]", false},
		{"no claims", header, "null", false},
		{"alg twice", in(header, `{`, `{"alg":"ES256",`), claims, false},
		{"Alg", in(header, `"alg"`, `"Alg"`), claims, false},
		{"Kid beside kid", in(header, `{`, `{"Kid":"x",`), claims, false},
		{"typ as a list", in(header, `"at+jwt"`, `["at+jwt"]`), claims, false},
		{"trailing bytes of the header", header + "{}", claims, false},
		{"header of another value", `"` + s.keys.signing.kid + `"`, claims, false},
	} {
		signed := base64.RawURLEncoding.EncodeToString([]byte(tc.header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(tc.claims))
		signature, err := jwt.SigningMethodES256.Sign(signed, s.keys.signing.private)
		if err != nil {
			t.Fatal(err)
		}
		a := s.get("/v1/users/me", signed+"."+base64.RawURLEncoding.EncodeToString(signature))
		if (a.status == 200) != tc.ok || !tc.ok && a.code() != "invalid_access_token" {
			t.Errorf("%s: %d %s", tc.name, a.status, a.body)
		}
	}
}

// R44, R47: tokens of every wrong kind.
func TestForeignTokens(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	parts := strings.Split(m.token, ".")
	b64 := base64.RawURLEncoding.EncodeToString
	kid := s.keys.signing.kid
	hmacToken := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{"sub": m.id})
	hmacToken.Header["typ"], hmacToken.Header["kid"] = accessType, kid
	point, _ := s.keys.signing.private.PublicKey.Bytes()
	confused, _ := hmacToken.SignedString(point) // the public key as an HMAC secret
	stranger, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	claims := accessClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(m.token, &claims); err != nil {
		t.Fatal(err)
	}
	forgedToken := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
	forgedToken.Header["typ"], forgedToken.Header["kid"] = accessType, kid
	forged, _ := forgedToken.SignedString(stranger)
	for name, token := range map[string]string{
		"none":              b64([]byte(`{"alg":"none","typ":"at+jwt","kid":"`+kid+`"}`)) + "." + parts[1] + ".",
		"key confusion":     confused,
		"another key":       forged,
		"no signature":      parts[0] + "." + parts[1] + ".",
		"altered claims":    parts[0] + "." + b64([]byte(`{"sub":"x"}`)) + "." + parts[2],
		"padded signature":  m.token + "==",
		"trailing bits":     m.token[:len(m.token)-1] + flipLastBits(m.token),
		"line break inside": m.token[:20] + "%0a" + m.token[20:],
		"refresh token":     m.refresh,
		"two dots too many": m.token + ".x.y",
		"15,000 dots":       strings.Repeat(".", 15000),
		"too long":          m.token + strings.Repeat("A", maxAccessBytes),
		"not a token":       "x",
	} {
		t.Run(name, func(t *testing.T) {
			if a := s.in(t).get("/v1/users/me", token); a.status != 401 {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
}

// R22, RFC 6750: one Authorization header, of one scheme, and nowhere else.
func TestAuthorizationHeader(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	for _, tc := range []struct {
		name      string
		path      string
		values    []string
		status    int
		challenge string
	}{
		{"none", "", nil, 401, `Bearer realm="roster"`},
		{"lower case scheme", "", []string{"bearer " + m.token}, 200, ""},
		{"two", "", []string{"Bearer " + m.token, "Bearer " + m.token}, 401, `Bearer realm="roster", error="invalid_token"`},
		{"basic", "", []string{"Basic YTpi"}, 401, `Bearer realm="roster"`},
		{"another scheme", "", []string{"Token " + m.token}, 401, `Bearer realm="roster"`},
		{"no scheme", "", []string{m.token}, 401, `Bearer realm="roster"`},
		{"empty token", "", []string{"Bearer "}, 401, `Bearer realm="roster", error="invalid_token"`},
		{"two spaces", "", []string{"Bearer  " + m.token}, 200, ""},
		{"tabs", "", []string{"Bearer\t \t" + m.token}, 200, ""},
		{"a space behind", "", []string{"BEARER " + m.token + " "}, 200, ""},
		{"two tokens", "", []string{"Bearer " + m.token + " " + m.token}, 401, `Bearer realm="roster", error="invalid_token"`},
		{"a list", "", []string{"Bearer " + m.token + ", Basic YTpi"}, 401, `Bearer realm="roster", error="invalid_token"`},
		{"no space", "", []string{"Bearer" + m.token}, 401, `Bearer realm="roster"`},
		{"another space", "", []string{"Bearer\u00a0" + m.token}, 401, `Bearer realm="roster"`},
		{"in the query", "?access_token=" + m.token, nil, 401, `Bearer realm="roster"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := s.in(t).do(request{path: "/v1/users/me" + tc.path, header: http.Header{"Authorization": tc.values}})
			if a.status != tc.status || a.header.Get("WWW-Authenticate") != tc.challenge {
				t.Errorf("%d %q %s", a.status, a.header.Get("WWW-Authenticate"), a.body)
			}
		})
	}
}

// R52: every refresh token has one spelling, and a forged one changes nothing.
func TestRefreshTokenForms(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	if len(m.refresh) != 79 {
		t.Errorf("a refresh token has %d characters", len(m.refresh))
	}
	for i := 3; i < len(m.refresh); i += 5 {
		other := byte('A')
		if m.refresh[i] == other {
			other = 'B'
		}
		s.refreshWith(m.refresh[:i]+string(other)+m.refresh[i+1:]).want(400, "invalid_grant")
	}
	for _, bad := range []string{m.refresh + "A", m.refresh[:78], m.refresh[3:], "rt_", m.refresh + "=", m.refresh[:40] + "\r\n" + m.refresh[40:],
		"\n" + m.refresh, strings.ToUpper(m.refresh), "RT_" + m.refresh[3:], m.token,
		"rt_!" + m.refresh[4:], m.refresh[:40] + "+" + m.refresh[41:], m.refresh[:78] + "/"} {
		s.refreshWith(bad).want(400, "invalid_grant")
	}
	// Whoever has a token of their own makes none for another session, generation or version.
	eve := s.newUser("eve@example.com", "user")
	genuine, err := base64.RawURLEncoding.DecodeString(m.refresh[3:])
	if err != nil {
		t.Fatal(err)
	}
	own, _ := base64.RawURLEncoding.DecodeString(eve.refresh[3:])
	for name, forge := range map[string]func() []byte{
		"session":    func() []byte { return append(slices.Clone(genuine[:refreshMAC]), own[refreshMAC:]...) },
		"generation": func() []byte { b := slices.Clone(own); b[refreshMAC-1]++; return b },
		"key":        func() []byte { b := slices.Clone(own); b[1]++; return b },
		"version": func() []byte {
			b := slices.Clone(own)
			b[0]++
			return append(b[:refreshMAC], sum(s.keys.signing.refresh, b[:refreshMAC])...)
		},
	} {
		if a := s.refreshWith(refreshPrefix + base64.RawURLEncoding.EncodeToString(forge())); a.status != 400 {
			t.Errorf("forged %s: %d %s", name, a.status, a.body)
		}
	}
	if got := scalar[int](s, "select sum(generation) from sessions"); got != 2 {
		t.Errorf("a forged token moved a session: generations add up to %d", got)
	}
	s.refreshWith(m.refresh).want(200, "")
}

// The derivation is a promise to other services and to the next version: pinned by vectors.
func TestKeyDerivation(t *testing.T) {
	t.Parallel()
	secret := make([]byte, 32)
	for i := range secret {
		secret[i] = byte(i)
	}
	k, public, err := deriveKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	again, _, _ := deriveKey(secret)
	if k.kid != again.kid || len(k.kid) != 43 || public.Kid != k.kid || len(k.refresh) != 32 {
		t.Errorf("%+v", public)
	}
	goldenFile(t, "derivation.json", public)
	// Refresh tokens and cursors outlive an upgrade, too. The texts were computed by Python's hmac and hashlib.
	ring, err := newKeyRing(config{secrets: [][]byte{secret}})
	if err != nil {
		t.Fatal(err)
	}
	const id = "01890a5d-ac96-774b-bcce-b302099a8057"
	if got := ring.signRefresh(id, 7); got != "rt_AQGUewcBiQpdrJZ3S7zOswIJmoBXAAAAB4zVY1i9MVYBVJfhlA7C7ih7AOdRbtm65Ir-OH-Acull" {
		t.Error("refresh token", got)
	}
	if got := ring.signCursor("scope", id); got != "AYkKXayWd0u8zrMCCZqAV6KSI-c36m9GCqx5pAv8ofs" {
		t.Error("cursor", got)
	}
}

// The cache of verified tokens is bounded, and forgets what has expired.
func TestTokenCache(t *testing.T) {
	t.Parallel()
	c := &tokenCache{}
	claims := &accessClaims{}
	for i := range 3 * tokenCacheSize {
		c.put(string(rune(i+0x10000)), claims)
		if len(c.young)+len(c.old) > 2*tokenCacheSize {
			t.Fatalf("%d tokens are remembered", len(c.young)+len(c.old))
		}
	}
	if c.get(string(rune(0x10000))) != nil || c.get(string(rune(3*tokenCacheSize-1+0x10000))) == nil {
		t.Error("the cache keeps the oldest or loses the newest")
	}
	before := len(c.young)
	if c.get("unknown") != nil || len(c.young) != before {
		t.Error("a token that was never verified is remembered")
	}
	// What is used stays, however many come after it.
	for i := range 3 * tokenCacheSize {
		c.put(string(rune(i+0x10000)), claims)
		if i == 0 || i%(tokenCacheSize/2) == 0 {
			if c.get(string(rune(0x10000))) == nil {
				t.Fatalf("a token that is in use was forgotten after %d others", i)
			}
		}
	}
}

// A token that is remembered expires like any other, when its leeway is over.
func TestRememberedTokenExpires(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	s.get("/v1/users/me", m.token).want(200, "")
	claims := s.keys.known.get(m.token)
	if claims == nil {
		t.Fatal("the token is not remembered")
	}
	claims.ExpiresAt = jwt.NewNumericDate(time.Now().Add(-accessLeeway / 2))
	s.get("/v1/users/me", m.token).want(200, "")
	claims.ExpiresAt = jwt.NewNumericDate(time.Now().Add(-accessLeeway))
	s.get("/v1/users/me", m.token).want(401, "invalid_access_token")
}
