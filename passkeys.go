// room:passkeys
//
// Passkeys: signing in without a password, by a key that stays in the user's device (WebAuthn level 3). The device has
// verified its user, so a passkey is two factors at once. Nothing is stored while a ceremony is under way. As no
// attestation is asked for, nobody vouches for a new key, and all there is to check fits into this file: no CBOR, no
// certificates. `grep -n room:passkeys *.go` shows what ties this to the house. To take it out delete the files that
// begin with that line, and those lines; the table stays.

package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"math/big"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	challengeTTL    = 10 * time.Minute // W3C recommends 5 to 10
	maxPasskeys     = 20               // of a user
	maxCredentialID = 1023             // bytes, section 5.8.3
)

// passkeyAlgorithms are what options ask for, best first, in the numbers of COSE: EdDSA, ES256, RS256.
var passkeyAlgorithms = []int{-8, -7, -257}

// Flags of authenticator data, section 6.1.
const (
	flagUserPresent    = 1 << 0
	flagUserVerified   = 1 << 2
	flagBackupEligible = 1 << 3
	flagBackedUp       = 1 << 4
	flagCredential     = 1 << 6
	flagExtensions     = 1 << 7
)

// errInvalidPasskey is the answer to whatever is wrong with a credential: a stranger learns nothing from it.
var errInvalidPasskey = &apiError{Status: 400, Code: "invalid_passkey", Detail: "This passkey is not known here, or its answer is not valid any more."}

var errPasskeyTaken = &apiError{Status: 409, Code: "passkey_taken", Detail: "This passkey was added already."}

var errTooManyPasskeys = &apiError{Status: 409, Code: "too_many_passkeys", Detail: "An account has at most 20 passkeys: remove one first."}

// checkPasskeys finds out where passkeys are used: on the pages of APP_URL. Browsers make none for an IP address, and
// none over plain HTTP but on localhost; then there are none.
func (cfg *config) checkPasskeys(p *problems) {
	u, err := url.Parse(strings.ToLower(cfg.AppURL))
	if err != nil {
		return // APP_URL was complained about
	}
	host, port := u.Hostname(), u.Port()
	cfg.passkeyOrigin = u.Scheme + "://" + u.Host
	if u.Scheme == "https" && port == "443" || u.Scheme == "http" && port == "80" {
		cfg.passkeyOrigin = strings.TrimSuffix(cfg.passkeyOrigin, ":"+port)
	}
	parent := strings.ToLower(cfg.PasskeyRPID)
	if parent != "" && host != parent && (!strings.HasSuffix(host, "."+parent) || !strings.Contains(parent, ".")) {
		p.add("PASSKEY_RP_ID", "must be the host of APP_URL or a domain above it, such as example.com for app.example.com")
	}
	local := host == "localhost" || strings.HasSuffix(host, ".localhost")
	if _, err := netip.ParseAddr(host); err != nil && (u.Scheme == "https" || local) {
		cfg.passkeyRPID = cmp.Or(parent, host)
	}
}

// checkPasskeys says at the start what an operator would else hear from users.
func (s *server) checkPasskeys(ctx context.Context) error {
	if s.cfg.passkeyRPID == "" {
		s.log.Warn("no passkeys: APP_URL is not a name that browsers make them for", "app_url", s.cfg.AppURL)
	}
	if n, err := s.db.countPasskeysElsewhere(ctx, s.cfg.passkeyRPID); err == nil && n > 0 {
		s.log.Warn("passkeys of another domain than APP_URL or PASSKEY_RP_ID have now sign nobody in", "passkeys", n)
	}
	return nil // a reason to look, not to stop
}

// A challenge is expiry 8, nonce 16 and HMAC-SHA-256 32 bytes over them and what it is for, so that nothing is kept until
// it comes back.
const challengeBytes = 56

const forSignIn = "sign-in"

func forRegistration(c caller) string { return "registration " + c.user.ID + " " + c.session }

func (k *keyRing) signChallenge(purpose string) []byte {
	b := binary.BigEndian.AppendUint64(nil, uint64(time.Now().Add(challengeTTL).Unix())) // #nosec G115 -- after 1970
	nonce := make([]byte, 16)
	rand.Read(nonce)
	b = append(b, nonce...)
	return append(b, sum(k.signing.passkey, []byte(purpose), b)...)
}

// checkChallenge returns when a genuine challenge ends that has not ended yet.
func (k *keyRing) checkChallenge(challenge []byte, purpose string) (ends time.Time, ok bool) {
	if len(challenge) != challengeBytes {
		return ends, false
	}
	for _, key := range k.byID {
		ok = ok || hmac.Equal(challenge[24:], sum(key.passkey, []byte(purpose), challenge[:24]))
	}
	ends = time.Unix(int64(binary.BigEndian.Uint64(challenge)), 0) // #nosec G115 -- from signChallenge
	return ends, ok && time.Now().Before(ends)
}

// ceremony is a browser's answer to options of ours, checked but for what the database knows: key, user and counter.
type ceremony struct {
	credentialID []byte
	challenge    []byte
	ends         time.Time // of the challenge
	flags        byte
	signCount    uint32
	attested     []byte // what registration adds: authenticator model, id, key
	signed       []byte
	signature    []byte
	userHandle   []byte
}

// methods are those of RFC 8176: a key in hardware, or one that is synced between devices; the user was verified.
func (c ceremony) methods() []string {
	if c.flags&flagBackupEligible != 0 {
		return []string{"swk", "user", "mfa"}
	}
	return []string{"hwk", "user", "mfa"}
}

// readCeremony checks a credential, and that it answers a challenge of ours for this purpose.
func (s *server) readCeremony(credential jsontext.Value, kind, purpose string) (c ceremony, ok bool) {
	if c, ok = s.cfg.readCredential(credential, kind); ok {
		c.ends, ok = s.keys.checkChallenge(c.challenge, purpose)
	}
	return c, ok
}

// readCredential checks a PublicKeyCredential as toJSON writes it (sections 7.1 and 7.2), but for challenge and
// signature: that it is of this type, from the pages of APP_URL, for our domain, with the user present and verified. There
// is one id, rawId, and the other must be equal.
func (cfg *config) readCredential(credential jsontext.Value, kind string) (c ceremony, ok bool) {
	var in struct {
		ID       string `json:"id"`
		RawID    string `json:"rawId"`
		Type     string `json:"type"`
		Response struct {
			ClientDataJSON    string `json:"clientDataJSON"`
			AuthenticatorData string `json:"authenticatorData"`
			Signature         string `json:"signature"`
			UserHandle        string `json:"userHandle"`
		} `json:"response"`
	}
	var client struct {
		Type        string `json:"type"`
		Challenge   string `json:"challenge"`
		Origin      string `json:"origin"`
		TopOrigin   string `json:"topOrigin"`
		CrossOrigin bool   `json:"crossOrigin"`
	}
	if json.Unmarshal(credential, &in) != nil || in.Type != "public-key" || in.ID != in.RawID || cfg.passkeyRPID == "" {
		return c, false
	}
	var clientData, data []byte
	for _, part := range []struct {
		to   *[]byte
		text string
	}{{&c.credentialID, in.RawID}, {&clientData, in.Response.ClientDataJSON}, {&data, in.Response.AuthenticatorData},
		{&c.signature, in.Response.Signature}, {&c.userHandle, in.Response.UserHandle}} {
		var err error
		if *part.to, err = decodeBase64(part.text); err != nil {
			return c, false
		}
	}
	if json.Unmarshal(clientData, &client) != nil || client.Type != kind || client.Origin != cfg.passkeyOrigin ||
		client.CrossOrigin || client.TopOrigin != "" {
		return c, false
	}
	var err error
	if c.challenge, err = decodeBase64(client.Challenge); err != nil {
		return c, false
	}
	rpIDHash, clientHash := sha256.Sum256([]byte(cfg.passkeyRPID)), sha256.Sum256(clientData)
	if len(data) < 37 || !bytes.Equal(data[:32], rpIDHash[:]) || len(c.credentialID) < 1 || len(c.credentialID) > maxCredentialID {
		return c, false
	}
	c.flags, c.signCount, c.attested, c.signed = data[32], binary.BigEndian.Uint32(data[33:]), data[37:], append(data, clientHash[:]...)
	const both = flagUserPresent | flagUserVerified
	return c, c.flags&both == both && (c.flags&flagBackedUp == 0 || c.flags&flagBackupEligible != 0)
}

// publicKey returns the key that a registration made, as a SubjectPublicKeyInfo. What follows it is nothing, unless it is
// announced: extensions, which nothing here depends on.
func (c ceremony) publicKey() (der []byte, ok bool) {
	if c.flags&flagCredential == 0 || len(c.attested) < 18 {
		return nil, false
	}
	n := int(binary.BigEndian.Uint16(c.attested[16:]))
	if len(c.attested) < 18+n || !bytes.Equal(c.attested[18:18+n], c.credentialID) {
		return nil, false
	}
	key, rest := cutKey(c.attested[18+n:])
	if key == nil || (len(rest) > 0) != (c.flags&flagExtensions != 0) {
		return nil, false
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	return der, err == nil
}

// cutKey reads a COSE key (RFC 9053) of an algorithm that we ask for off the front of b; nil if it is another. The
// canonical form that CTAP2 demands has one spelling of each, so no reader of CBOR is needed.
func cutKey(b []byte) (key crypto.PublicKey, rest []byte) {
	// cut takes a prefix and then n bytes off b.
	cut := func(prefix string, n int) []byte {
		if rest, found := bytes.CutPrefix(b, []byte(prefix)); found && len(rest) >= n {
			b = rest[n:]
			return rest[:n:n]
		}
		return nil
	}
	if x := cut("\xa5\x01\x02\x03\x26\x20\x01\x21\x58\x20", 32); x != nil { // EC2, ES256, P-256
		if y := cut("\x22\x58\x20", 32); y != nil {
			if key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...)); err == nil {
				return key, b
			}
		}
		return nil, nil
	}
	if x := cut("\xa4\x01\x01\x03\x27\x20\x06\x21\x58\x20", ed25519.PublicKeySize); x != nil { // OKP, EdDSA, Ed25519
		return ed25519.PublicKey(x), b
	}
	for _, size := range []int{256, 384, 512} { // RSA, RS256, of 2048 to 4096 bits
		prefix := string(binary.BigEndian.AppendUint16([]byte("\xa4\x01\x03\x03\x39\x01\x00\x20\x59"), uint16(size))) // #nosec G115
		if n := cut(prefix, size); n != nil {
			if n[0] < 0x80 || cut("\x21\x43\x01\x00\x01", 0) == nil {
				return nil, nil
			}
			return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}, b
		}
	}
	return nil, nil
}

// signedBy says whether a key, as publicKey returned it, has signed an assertion.
func (c ceremony) signedBy(der []byte) bool {
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return false
	}
	digest := sha256.Sum256(c.signed)
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, digest[:], c.signature)
	case ed25519.PublicKey:
		return ed25519.Verify(key, c.signed, c.signature)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], c.signature) == nil
	}
	return false
}
