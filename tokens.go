package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

// The three kinds of token: the access token, a JWT that other services can verify; the refresh token, an HMAC over
// a session and its generation; and the mail token, an HMAC over a mail and stored as a hash. CONTRACT section 3.

const (
	clientID       = "roster" // RFC 9068 section 2.2 requires the claim; there is one first-party client
	accessType     = "at+jwt" // RFC 9068 section 2.1
	accessLeeway   = 30 * time.Second
	maxAccessBytes = 4 << 10
)

var errBadToken = errors.New("token is not valid")

// key is everything derived from one secret of SECRET_KEYS.
type key struct {
	kid     string  // RFC 7638 thumbprint of the public key
	id      [4]byte // names the key inside a refresh token
	private *ecdsa.PrivateKey
	refresh []byte // HMAC key of refresh tokens
	cursor  []byte // HMAC key of list cursors
	mail    []byte // HMAC key of mail tokens
	passkey []byte // HMAC key of challenges // room:passkeys
	seal    []byte // AES-256 key of what is sealed // room:second-factor
}

// keyRing holds the derived keys. The first secret signs, all verify, so a rotation signs nobody out (R48).
type keyRing struct {
	signing *key
	byKid   map[string]*key
	byID    map[[4]byte]*key
	jwks    jwkSet
	cfg     config
	known   *tokenCache

	validator *jwt.Validator // of the claims of RFC 7519 section 4.1
}

// jwkSet is RFC 7517 section 5.
type jwkSet struct {
	Keys []jwk `json:"keys"`
}

// jwk is the public half of a signing key, RFC 7518 section 6.2.1.
type jwk struct {
	Kty string `json:"kty"`
	Crv string `json:"crv"`
	Kid string `json:"kid"`
	Use string `json:"use"`
	Alg string `json:"alg"`
	X   string `json:"x"`
	Y   string `json:"y"`
}

func (jwkSet) cacheControl() string { return "public, max-age=300" }

// newKeyRing derives the keys of cfg.secrets.
func newKeyRing(cfg config) (*keyRing, error) {
	ring := &keyRing{cfg: cfg, byKid: map[string]*key{}, byID: map[[4]byte]*key{}, known: &tokenCache{}}
	for _, secret := range cfg.secrets {
		k, public, err := deriveKey(secret)
		if err != nil {
			return nil, err
		}
		if ring.signing == nil {
			ring.signing = k
		}
		ring.byKid[k.kid], ring.byID[k.id] = k, k
		ring.jwks.Keys = append(ring.jwks.Keys, public)
	}
	ring.validator = jwt.NewValidator(jwt.WithIssuer(cfg.PublicURL), jwt.WithAudience(cfg.PublicURL),
		jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(accessLeeway))
	return ring, nil
}

// deriveKey makes the key pair and the HMAC keys of one secret, by HKDF-SHA-256 without salt (RFC 5869).
func deriveKey(secret []byte) (*key, jwk, error) {
	derive := func(info string, size int) []byte {
		out, err := hkdf.Key(sha256.New, secret, nil, info, size)
		if err != nil {
			panic(err) // only for sizes above 8160 bytes
		}
		return out
	}
	// FIPS 186-5 A.2.1: 128 extra bits make the reduction's bias negligible.
	n := new(big.Int).Sub(elliptic.P256().Params().N, big.NewInt(1))
	d := new(big.Int).SetBytes(derive("roster/jwt/es256", 48))
	d.Mod(d, n).Add(d, big.NewInt(1))
	private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d.FillBytes(make([]byte, 32)))
	if err != nil {
		return nil, jwk{}, fmt.Errorf("deriving a signing key: %w", err)
	}
	point, err := private.PublicKey.Bytes() // 0x04 || X || Y
	if err != nil {
		return nil, jwk{}, fmt.Errorf("encoding a public key: %w", err)
	}
	x, y := base64.RawURLEncoding.EncodeToString(point[1:33]), base64.RawURLEncoding.EncodeToString(point[33:])
	thumbprint := sha256.Sum256(fmt.Appendf(nil, `{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}`, x, y))
	kid := base64.RawURLEncoding.EncodeToString(thumbprint[:])
	k := &key{
		kid: kid, id: [4]byte(thumbprint[:4]), private: private,
		passkey: derive("roster/passkey/hmac", 32), // room:passkeys
		seal:    derive("roster/seal/aes-gcm", 32), // room:second-factor
		refresh: derive("roster/refresh/hmac", 32), cursor: derive("roster/cursor/hmac", 32), mail: derive("roster/mail/hmac", 32),
	}
	return k, jwk{Kty: "EC", Crv: "P-256", Kid: kid, Use: "sig", Alg: "ES256", X: x, Y: y}, nil
}

// accessClaims are the claims of RFC 9068 plus the session and its generation. They say who is calling; what the
// caller may do is read from the database on every request (R50). roles and scope are for other services.
type accessClaims struct {
	jwt.RegisteredClaims
	ClientID   string   `json:"client_id"`
	SessionID  string   `json:"sid"`
	Generation int32    `json:"gen"`
	Roles      []string `json:"roles"`
	Scope      string   `json:"scope"`
	// How and when the session was signed in to (RFC 9068 section 2.2.1), for other services too. Tokens of the version
	// before have none of these.
	AMR      []string         `json:"amr"` // RFC 8176
	ACR      string           `json:"acr"`
	AuthTime *jwt.NumericDate `json:"auth_time"`
}

// signAccess issues an access token for a session.
func (k *keyRing) signAccess(n newSession) (string, error) {
	now := time.Now()
	claims := accessClaims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: k.cfg.PublicURL, Audience: jwt.ClaimStrings{k.cfg.PublicURL}, Subject: n.ID, ID: rand.Text(),
			IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(k.cfg.AccessTokenTTL)),
		},
		ClientID: clientID, SessionID: n.SessionID, Generation: n.Generation,
		Roles: []string{n.Role}, Scope: scopeOf(n.Role),
		AMR: n.AMR, ACR: acrOf(n.AMR), AuthTime: jwt.NewNumericDate(n.StartedAt),
	}
	token := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
	token.Header["typ"], token.Header["kid"] = accessType, k.signing.kid
	return token.SignedString(k.signing.private)
}

// verifyAccess checks an access token by RFC 8725 and RFC 9068 section 4. A token whose signature was verified once
// is remembered until it expires: the signature is half of the cost of a request.
func (k *keyRing) verifyAccess(token string) (*accessClaims, error) {
	if claims := k.known.get(token); claims != nil {
		if time.Now().Before(claims.ExpiresAt.Add(accessLeeway)) {
			return claims, nil
		}
		return nil, errBadToken
	}
	claims, err := k.parseAccess(token)
	if err == nil {
		k.known.put(token, claims)
	}
	return claims, err
}

// accessPattern is the one spelling of a JWT (R47): decoders of base64 skip line breaks.
var accessPattern = regexp.MustCompile(`^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$`)

// accessHeader is all that the header may hold: no crit, jwk, x5c and the like (R45).
type accessHeader struct {
	Algorithm string `json:"alg"`
	Type      string `json:"typ"`
	KeyID     string `json:"kid"`
}

// parseAccess reads header and claims as strictly as a body (R116). Claims that it does not know are those of a later
// version, whose replicas may run beside this one.
func (k *keyRing) parseAccess(token string) (*accessClaims, error) {
	if len(token) > maxAccessBytes || !accessPattern.MatchString(token) {
		return nil, errBadToken
	}
	parts := strings.Split(token, ".")
	var header accessHeader
	if _, err := unmarshalPart(parts[0], &header, json.RejectUnknownMembers(true)); err != nil {
		return nil, err
	}
	key := k.byKid[header.KeyID]
	if key == nil || header.Algorithm != jwt.SigningMethodES256.Alg() || header.Type != accessType {
		return nil, errBadToken
	}
	signature, err := base64.RawURLEncoding.Strict().DecodeString(parts[2])
	if err != nil {
		return nil, err
	}
	if err := jwt.SigningMethodES256.Verify(parts[0]+"."+parts[1], signature, &key.private.PublicKey); err != nil {
		return nil, err
	}
	var claims accessClaims
	members, err := unmarshalPart(parts[1], &claims)
	if err != nil {
		return nil, err
	}
	for name, value := range members {
		date := name == "exp" || name == "iat" || name == "nbf"
		if name != strings.ToLower(name) || date && value.Kind() != '0' { // jwt.NumericDate takes numbers as text
			return nil, errBadToken
		}
	}
	if err := k.validator.Validate(&claims); err != nil {
		return nil, err
	}
	if claims.IssuedAt == nil || claims.ID == "" || claims.ClientID != clientID || claims.Generation < 1 ||
		len(claims.Roles) == 0 || claims.Scope == "" || len(claims.Audience) != 1 ||
		!isUUID(claims.Subject) || !isUUID(claims.SessionID) {
		return nil, errBadToken
	}
	if life := claims.ExpiresAt.Sub(claims.IssuedAt.Time); life <= 0 || life > k.cfg.AccessTokenTTL+time.Minute {
		return nil, errBadToken
	}
	return &claims, nil
}

// unmarshalPart reads one part of a token into target, and returns its members.
func unmarshalPart(part string, target any, options ...json.Options) (map[string]jsontext.Value, error) {
	text, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return nil, err
	}
	members, err := parseObject(text)
	if err != nil {
		return nil, err
	}
	return members, json.Unmarshal(text, target, options...)
}

// tokenCache remembers verified tokens, at most 2 × tokenCacheSize of them: when the young generation is full it
// becomes the old one, and what is used again moves back to the young.
type tokenCache struct {
	mu         sync.RWMutex
	young, old map[string]*accessClaims
}

const tokenCacheSize = 8192

func (c *tokenCache) get(token string) *accessClaims {
	c.mu.RLock()
	claims, young := c.young[token]
	if !young {
		claims = c.old[token]
	}
	c.mu.RUnlock()
	if claims != nil && !young {
		c.put(token, claims)
	}
	return claims
}

func (c *tokenCache) put(token string, claims *accessClaims) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.young == nil || len(c.young) >= tokenCacheSize {
		c.young, c.old = make(map[string]*accessClaims, tokenCacheSize), c.young
	}
	c.young[strings.Clone(token)] = claims
}

// A refresh token is "rt_" and 76 characters of base64url: version 1, key id 4, session id 16, generation 4 and
// HMAC-SHA-256 32 bytes. 57 bytes need no padding, so every token has exactly one spelling (R52).
const (
	refreshPrefix  = "rt_"
	refreshVersion = 1
	refreshBytes   = 57
	refreshMAC     = 25 // where the HMAC starts
)

// signRefresh is deterministic: the same session and generation always give the same token, which is how the
// predecessor of a session's newest token gets the identical successor back with nothing stored.
func (k *keyRing) signRefresh(sessionID string, generation int32) string {
	session := uuid.MustParse(sessionID)
	b := make([]byte, 0, refreshBytes)
	b = append(b, refreshVersion)
	b = append(b, k.signing.id[:]...)
	b = append(b, session[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(generation)) // #nosec G115 -- and back in parseRefresh
	b = append(b, sum(k.signing.refresh, b)...)
	return refreshPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// parseRefresh returns what a genuine refresh token names.
func (k *keyRing) parseRefresh(token string) (sessionID string, generation int32, err error) {
	encoded, ok := strings.CutPrefix(token, refreshPrefix)
	b, err := decodeBase64(encoded)
	if !ok || err != nil || len(b) != refreshBytes || b[0] != refreshVersion {
		return "", 0, errBadToken
	}
	key := k.byID[[4]byte(b[1:5])]
	if key == nil || !hmac.Equal(b[refreshMAC:], sum(key.refresh, b[:refreshMAC])) {
		return "", 0, errBadToken
	}
	return uuid.UUID(b[5:21]).String(), int32(binary.BigEndian.Uint32(b[21:refreshMAC])), nil // #nosec G115 -- from signRefresh
}

// signCursor and parseCursor carry the id after which a list goes on. The MAC covers the list it belongs to, so a
// cursor of another list, filter or caller is refused (R20).
func (k *keyRing) signCursor(scope, id string) string {
	u := uuid.MustParse(id)
	return base64.RawURLEncoding.EncodeToString(append(u[:], sum(k.signing.cursor, []byte(scope), u[:])[:16]...))
}

func (k *keyRing) parseCursor(scope, cursor string) (id string, err error) {
	b, err := decodeBase64(cursor)
	if err != nil || len(b) != 32 {
		return "", errBadToken
	}
	for _, key := range k.byID {
		if hmac.Equal(b[16:], sum(key.cursor, []byte(scope), b[:16])[:16]) {
			return uuid.UUID(b[:16]).String(), nil
		}
	}
	return "", errBadToken
}

// decodeBase64 reads the one spelling of base64url without padding: the decoder alone skips line breaks.
func decodeBase64(text string) ([]byte, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(text) != base64.RawURLEncoding.EncodedLen(len(b)) {
		return nil, errBadToken
	}
	return b, nil
}

func sum(key []byte, parts ...[]byte) []byte {
	mac := hmac.New(sha256.New, key)
	for _, p := range parts {
		mac.Write(p)
	}
	return mac.Sum(nil)
}

// mailToken returns the single-use token of a mail, 43 characters, and the hash that is stored of it (R60). It is
// deterministic: every attempt to send a mail sends the same link, with nothing stored that opens it.
func (k *keyRing) mailToken(purpose, mailID string) (token string, hash []byte) {
	id := uuid.MustParse(mailID)
	token = base64.RawURLEncoding.EncodeToString(sum(k.signing.mail, []byte(purpose), id[:]))
	return token, hashMailToken(token)
}

// newMailToken is mailToken for a link that no mail carries: random.
func newMailToken() (token string, hash []byte) {
	b := make([]byte, 32)
	rand.Read(b) // never fails: crypto/rand aborts the program instead
	token = base64.RawURLEncoding.EncodeToString(b)
	return token, hashMailToken(token)
}

func hashMailToken(token string) []byte {
	hash := sha256.Sum256([]byte(token))
	return hash[:]
}

// newID returns a UUIDv7: it sorts by the time it was made.
func newID() string { return uuid.Must(uuid.NewV7()).String() }

// isUUID accepts the one canonical spelling, 36 characters in lower case (R19).
func isUUID(s string) bool {
	u, err := uuid.Parse(s)
	return err == nil && len(s) == 36 && u.String() == s
}
