// room:passkeys

package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"maps"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
)

func init() {
	maps.Copy(matrixRequests, map[string]func(c cell) request{
		"POST /v1/auth/passkey/options": func(cell) request { return request{} },
		"POST /v1/auth/passkey": func(c cell) request {
			a := newAuthenticator()
			c.s.insertPasskey(c.subject.id, a)
			c.s.exec("update users set email_verified = true where id = $1", c.subject.id)
			return request{body: object{"credential": a.get(c.s.challenge(forSignIn))}}
		},
		"POST /v1/users/me/passkeys/options": func(cell) request { return request{} },
		"GET /v1/users/me/passkeys":          func(c cell) request { c.s.insertPasskey(c.me.id, newAuthenticator()); return request{} },
		"POST /v1/users/me/passkeys": func(c cell) request {
			return request{body: object{"name": "X", "credential": newAuthenticator().create(c.s.challenge(c.registration()))}}
		},
		"PATCH /v1/users/me/passkeys/{passkey_id}": func(c cell) request {
			return request{path: "/v1/users/me/passkeys/" + c.s.insertPasskey(c.me.id, newAuthenticator()), body: jsonBody("name", "Y")}
		},
		"DELETE /v1/users/me/passkeys/{passkey_id}": func(c cell) request {
			return request{path: "/v1/users/me/passkeys/" + c.s.insertPasskey(c.me.id, newAuthenticator())}
		},
		"DELETE /v1/users/{user_id}/passkeys": func(c cell) request { return request{path: "/v1/users/" + c.other + "/passkeys"} },
	})
	maps.Copy(auditActions, map[string]string{
		"POST /v1/auth/passkey/options":             "",
		"POST /v1/auth/passkey":                     "session.started",
		"POST /v1/users/me/passkeys/options":        "",
		"POST /v1/users/me/passkeys":                "passkey.created",
		"PATCH /v1/users/me/passkeys/{passkey_id}":  "passkey.updated",
		"DELETE /v1/users/me/passkeys/{passkey_id}": "passkey.deleted",
		"DELETE /v1/users/{user_id}/passkeys":       "passkeys.reset",
	})
	maps.Copy(stateRefusals, map[string][]string{"signInWithPasskey": {"429"}, "createPasskey": {"409"}, "resetPasskeys": {"409"},
		"offerPasskey": {"404"}, "offerNewPasskey": {"404"}})
	maps.Copy(semantic, map[string][]string{"signInWithPasskey": {"invalid_passkey"}, "createPasskey": {"invalid_passkey"}, "listPasskeys": {"invalid_cursor"}})
	withoutSuccess = append(withoutSuccess, "signInWithPasskey", "createPasskey", "updatePasskey", "deletePasskey", "resetPasskeys")
}

// registration is what a challenge for a new passkey of the cell's caller is for.
func (c cell) registration() string {
	claims, err := c.s.keys.verifyAccess(c.me.token)
	if err != nil {
		return "nobody's"
	}
	return forRegistration(caller{user: user{ID: c.me.id}, session: claims.SessionID})
}

func (s *testServer) challenge(purpose string) string {
	return base64.RawURLEncoding.EncodeToString(s.keys.signChallenge(purpose))
}

// authenticator is a device with one passkey. What is public here tests change.
type authenticator struct {
	key       crypto.Signer
	id, user  []byte
	rpID      string
	flags     byte
	count     uint32
	client    object // members of clientDataJSON
	noExtra   bool   // no extensions
	cose      []byte // instead of the key's own
	signature []byte // instead of a genuine one
}

func newAuthenticator() *authenticator {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return &authenticator{key: key, id: []byte(rand.Text()), rpID: "app.example", flags: flagUserPresent | flagUserVerified,
		client: object{"origin": "https://app.example", "crossOrigin": false}}
}

// insertPasskey gives a user the passkey of a device behind the server's back.
func (s *testServer) insertPasskey(userID string, a *authenticator) (id string) {
	s.t.Helper()
	handle := uuid.MustParse(userID)
	a.user = handle[:]
	der, ok := a.ceremony().publicKey()
	if !ok {
		s.t.Fatal("no key")
	}
	p, err := s.db.insertPasskey(s.t.Context(), userID, s.cfg.passkeyRPID, "X", der, a.ceremony())
	if err != nil {
		s.t.Fatal(err)
	}
	return p.ID
}

func (a *authenticator) ceremony() ceremony {
	data := a.data(true)
	return ceremony{credentialID: a.id, flags: data[32], signCount: a.count, attested: data[37:]}
}

// coseKey is RFC 9053 in canonical CBOR.
func (a *authenticator) coseKey() []byte {
	switch key := a.key.Public().(type) {
	case *ecdsa.PublicKey:
		point, err := key.Bytes()
		if err != nil {
			panic(err)
		}
		size := len(point) / 2
		crv := map[int]string{32: "\x26\x20\x01", 48: "\x38\x22\x20\x02"}[size]
		return slices.Concat([]byte("\xa5\x01\x02\x03"+crv+"\x21\x58"), []byte{byte(size)}, point[1:1+size], []byte("\x22\x58"), []byte{byte(size)}, point[1+size:])
	case ed25519.PublicKey:
		return append([]byte("\xa4\x01\x01\x03\x27\x20\x06\x21\x58\x20"), key...)
	case *rsa.PublicKey:
		n := key.N.Bytes()
		return slices.Concat(binary.BigEndian.AppendUint16([]byte("\xa4\x01\x03\x03\x39\x01\x00\x20\x59"), uint16(len(n))), n, []byte("\x21\x43\x01\x00\x01"))
	}
	panic("no such key")
}

func (a *authenticator) data(create bool) []byte {
	hash := sha256.Sum256([]byte(a.rpID))
	flags := a.flags
	if create {
		flags |= flagCredential
	}
	b := binary.BigEndian.AppendUint32(append(hash[:], flags), a.count)
	if create {
		b = binary.BigEndian.AppendUint16(append(b, make([]byte, 16)...), uint16(len(a.id)))
		b = slices.Concat(b, a.id, a.coseKey(), a.cose)
	}
	if flags&flagExtensions != 0 && !a.noExtra {
		b = append(b, "\xa1\x6bcredProtect\x02"...)
	}
	return b
}

// answer is what toJSON of a browser's PublicKeyCredential gives.
func (a *authenticator) answer(kind, challenge string, create bool) object {
	client := maps.Clone(a.client)
	if client["type"] == nil {
		client["type"] = kind
	}
	client["challenge"] = challenge
	clientData, err := json.Marshal(client, json.Deterministic(true))
	if err != nil {
		panic(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	response := object{"clientDataJSON": b64(clientData), "authenticatorData": b64(a.data(create))}
	if create {
		data := a.data(true)
		response["attestationObject"] = b64(slices.Concat([]byte("\xa3cfmtdnonegattStmt\xa0hauthData\x59"), binary.BigEndian.AppendUint16(nil, uint16(len(data))), data))
		response["transports"] = []string{"internal"}
	} else {
		response["signature"], response["userHandle"] = b64(a.sign(a.data(false), clientData)), b64(a.user)
	}
	return object{"id": b64(a.id), "rawId": b64(a.id), "type": "public-key", "response": response,
		"authenticatorAttachment": "platform", "clientExtensionResults": object{}}
}

func (a *authenticator) sign(data, clientData []byte) []byte {
	if a.signature != nil {
		return a.signature
	}
	hash := sha256.Sum256(clientData)
	signed, options := append(data, hash[:]...), crypto.SignerOpts(crypto.SHA256)
	if _, plain := a.key.(ed25519.PrivateKey); plain {
		options = crypto.Hash(0)
	} else {
		digest := sha256.Sum256(signed)
		signed = digest[:]
	}
	signature, err := a.key.Sign(rand.Reader, signed, options)
	if err != nil {
		panic(err)
	}
	return signature
}

func (a *authenticator) create(challenge string) object {
	return a.answer("webauthn.create", challenge, true)
}
func (a *authenticator) get(challenge string) object {
	return a.answer("webauthn.get", challenge, false)
}

// addPasskey registers a device by the calls that a page makes.
func (s *testServer) addPasskey(token string, a *authenticator) answer {
	s.t.Helper()
	options := s.post("/v1/users/me/passkeys/options", token, nil).want(200, "").json()
	handle, err := base64.RawURLEncoding.DecodeString(options["user"].(map[string]any)["id"].(string))
	if err != nil {
		s.t.Fatal(err)
	}
	a.user = handle
	return s.post("/v1/users/me/passkeys", token, object{"name": "Phone", "credential": a.create(options["challenge"].(string))})
}

// usePasskey signs in by the calls that a page makes.
func (s *testServer) usePasskeyOf(a *authenticator) answer {
	s.t.Helper()
	options := s.post("/v1/auth/passkey/options", "", nil).want(200, "")
	return s.post("/v1/auth/passkey", "", object{"credential": a.get(options.str("challenge"))})
}

// WebAuthn level 3, sections 7.1 and 7.2, with each kind of key that the options ask for.
func TestPasskeySignIn(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keyOf := func(bits int) *rsa.PrivateKey {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"ES256": p256, "EdDSA": ed, "RS256": keyOf(2048), "RS256 of 3072 bits": keyOf(3072)} {
		m := s.newUser(strings.ToLower(strings.ReplaceAll(name, " ", ""))+"@example.com", "user")
		a := newAuthenticator()
		a.key = key
		added := s.addPasskey(m.token, a).want(201, "")
		tokens := s.usePasskeyOf(a).want(200, "")
		if c := s.claimsOf(tokens); !slices.Equal(c.AMR, []string{"hwk", "user", "mfa"}) || c.ACR != aal2 || c.Subject != m.id {
			t.Error(name, c)
		}
		if c := s.claimsOf(s.refreshWith(tokens.str("refresh_token")).want(200, "")); c.ACR != aal2 || c.AuthTime.Unix() != s.claimsOf(tokens).AuthTime.Unix() {
			t.Error(name, c)
		}
		if added.json()["backed_up"] != false || added.json()["last_used_at"] != nil {
			t.Errorf("%s", added.body)
		}
		list := s.get("/v1/users/me/passkeys", m.token).want(200, "").json()["items"].([]any)
		if len(list) != 1 || list[0].(map[string]any)["last_used_at"] == nil {
			t.Error(list)
		}
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m := s.newUser("refused@example.com", "user")
	weak := keyOf(2048)
	weak.N = new(big.Int).Rsh(weak.N, 1024) // as one of 1024 bits is
	for name, key := range map[string]crypto.Signer{"P-384": p384, "RSA of 1024 bits": weak} {
		a := newAuthenticator()
		a.key = key
		if got := s.addPasskey(m.token, a); got.code() != "invalid_passkey" {
			t.Error(name, got.status, got.code())
		}
	}
}

// Whatever is wrong with an assertion or a registration, the answer is one, and nothing changes.
func TestPasskeyRefusals(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada, bob := s.newUser("ada@example.com", "user"), s.newUser("bob@example.com", "user")
	other := s.newReplica(func(c *config) { c.SecretKeys = newSecret(); c.secrets = mustSecrets(t, c.SecretKeys) })
	genuine, theirs := newAuthenticator(), newAuthenticator()
	s.addPasskey(ada.token, genuine).want(201, "")
	s.addPasskey(bob.token, theirs).want(201, "")
	again := s.signInAs(ada.email, testPassword).want(200, "").str("access_token")
	_, foreign, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	mine, elsewhere := cell{s: s, me: ada}.registration(), cell{s: s, me: member{id: ada.id, token: again}}.registration()
	expired := s.keys.signChallenge(forSignIn)
	binary.BigEndian.PutUint64(expired, uint64(time.Now().Add(-time.Second).Unix()))
	expired = append(expired[:24], sum(s.keys.signing.passkey, []byte(forSignIn), expired[:24])...)
	b64 := base64.RawURLEncoding.EncodeToString
	before := s.dump()
	for name, change := range map[string]func(a *authenticator, challenge *string) func(object){
		"challenge of another purpose": func(_ *authenticator, c *string) func(object) { *c = s.challenge("registration"); return nil },
		"challenge of another user": func(_ *authenticator, c *string) func(object) {
			*c = s.challenge(cell{s: s, me: bob}.registration())
			return nil
		},
		"challenge of another session":  func(_ *authenticator, c *string) func(object) { *c = s.challenge(elsewhere); return nil },
		"challenge of another key ring": func(_ *authenticator, c *string) func(object) { *c = other.challenge(forSignIn); return nil },
		"challenge that expired":        func(_ *authenticator, c *string) func(object) { *c = b64(expired); return nil },
		"challenge with a bit flipped":  func(_ *authenticator, c *string) func(object) { *c = flipped(*c); return nil },
		"challenge cut":                 func(_ *authenticator, c *string) func(object) { *c = (*c)[:72]; return nil },
		"no challenge":                  func(_ *authenticator, c *string) func(object) { *c = ""; return nil },
		"another origin": func(a *authenticator, _ *string) func(object) {
			a.client["origin"] = "https://evil.example"
			return nil
		},
		"a subdomain": func(a *authenticator, _ *string) func(object) {
			a.client["origin"] = "https://a.app.example"
			return nil
		},
		"a longer domain": func(a *authenticator, _ *string) func(object) {
			a.client["origin"] = "https://app.example.evil"
			return nil
		},
		"a path": func(a *authenticator, _ *string) func(object) {
			a.client["origin"] = "https://app.example/"
			return nil
		},
		"another port": func(a *authenticator, _ *string) func(object) {
			a.client["origin"] = "https://app.example:8443"
			return nil
		},
		"http":      func(a *authenticator, _ *string) func(object) { a.client["origin"] = "http://app.example"; return nil },
		"no origin": func(a *authenticator, _ *string) func(object) { delete(a.client, "origin"); return nil },
		"a frame":   func(a *authenticator, _ *string) func(object) { a.client["crossOrigin"] = true; return nil },
		"a frame above": func(a *authenticator, _ *string) func(object) {
			a.client["topOrigin"] = "https://evil.example"
			return nil
		},
		"the other type":          func(a *authenticator, _ *string) func(object) { a.client["type"] = "webauthn.other"; return nil },
		"the API's domain":        func(a *authenticator, _ *string) func(object) { a.rpID = "roster.example"; return nil },
		"nobody present":          func(a *authenticator, _ *string) func(object) { a.flags &^= flagUserPresent; return nil },
		"nobody verified":         func(a *authenticator, _ *string) func(object) { a.flags &^= flagUserVerified; return nil },
		"backed up, not eligible": func(a *authenticator, _ *string) func(object) { a.flags |= flagBackedUp; return nil },
		"another id":              func(a *authenticator, _ *string) func(object) { return func(o object) { o["id"] = b64([]byte("x")) } },
		"padding": func(a *authenticator, _ *string) func(object) {
			return func(o object) { o["id"] = b64(a.id) + "="; o["rawId"] = o["id"] }
		},
		"another type of credential": func(a *authenticator, _ *string) func(object) { return func(o object) { o["type"] = "password" } },
		"no type of credential":      func(a *authenticator, _ *string) func(object) { return func(o object) { delete(o, "type") } },
		"no response":                func(a *authenticator, _ *string) func(object) { return func(o object) { delete(o, "response") } },
		"a response of text":         func(a *authenticator, _ *string) func(object) { return func(o object) { o["response"] = "x" } },
		"a long id": func(a *authenticator, _ *string) func(object) {
			a.id = bytes.Repeat([]byte("x"), maxCredentialID+1)
			return nil
		},
	} {
		for _, create := range []bool{false, true} {
			a := *genuine
			a.client = maps.Clone(genuine.client)
			path, token, kind, challenge := "/v1/auth/passkey", "", "webauthn.get", s.challenge(forSignIn)
			if create {
				path, token, kind, challenge = "/v1/users/me/passkeys", ada.token, "webauthn.create", s.challenge(mine)
				a.id = []byte(rand.Text())
			}
			more := change(&a, &challenge)
			credential := a.answer(kind, challenge, create)
			if more != nil {
				more(credential)
			}
			body := object{"credential": credential}
			if create {
				body["name"] = "X"
			}
			if got := s.post(path, token, body); got.status != 400 || got.code() != "invalid_passkey" {
				t.Errorf("%s, %s: %d %s", name, kind, got.status, got.code())
			}
		}
	}
	for name, change := range map[string]func(a *authenticator){
		"another key":         func(a *authenticator) { a.key = foreign },
		"no signature":        func(a *authenticator) { a.signature = []byte{} },
		"noise":               func(a *authenticator) { a.signature = []byte("0123456789") },
		"handle of another":   func(a *authenticator) { a.user = theirs.user },
		"no handle":           func(a *authenticator) { a.user = nil },
		"half a handle":       func(a *authenticator) { a.user = a.user[:8] },
		"unknown credential":  func(a *authenticator) { a.id = []byte("x") },
		"credential of other": func(a *authenticator) { a.id = theirs.id },
	} {
		a := *genuine
		change(&a)
		if got := s.post("/v1/auth/passkey", "", object{"credential": a.get(s.challenge(forSignIn))}); got.status != 400 || got.code() != "invalid_passkey" {
			t.Errorf("%s: %d %s", name, got.status, got.code())
		}
	}
	for name, change := range map[string]func(a *authenticator){
		"something behind the key":           func(a *authenticator) { a.cose = []byte{0} },
		"extensions announced and not there": func(a *authenticator) { a.flags, a.noExtra = a.flags|flagExtensions, true },
	} {
		a := newAuthenticator()
		change(a)
		if got := s.post("/v1/users/me/passkeys", ada.token, object{"name": "X", "credential": a.create(s.challenge(mine))}); got.code() != "invalid_passkey" {
			t.Errorf("%s: %d %s", name, got.status, got.code())
		}
	}
	s.post("/v1/auth/passkey", "", object{"credential": object{}}).want(400, "invalid_passkey")
	for _, credential := range []any{5, "x", []any{}, true, nil} {
		s.post("/v1/auth/passkey", "", object{"credential": credential}).want(400, "malformed_request")
	}
	s.post("/v1/auth/passkey", "", object{}).want(422, "invalid_fields")
	s.exec("delete from audit_events where action = 'sign_in.refused'")
	if after := s.dump(); after != before {
		t.Error("something changed")
	}
	s.usePasskeyOf(genuine).want(200, "")
	extended := newAuthenticator()
	extended.flags |= flagExtensions
	s.addPasskey(ada.token, extended).want(201, "")
}

func mustSecrets(t *testing.T, keys string) [][]byte {
	secrets, err := decodeSecrets(keys)
	if err != nil {
		t.Fatal(err)
	}
	return secrets
}

// flipped is base64url with one bit of the tenth byte changed.
func flipped(text string) string {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		panic(err)
	}
	b[9] ^= 1
	return base64.RawURLEncoding.EncodeToString(b)
}

// Every bit of what is signed counts, and every byte of what is not: an assertion or a registration that was cut anywhere
// is refused. What no attestation vouches for may be anything: the model of a new authenticator, and its counter.
func TestPasskeyCutOrAltered(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	a := newAuthenticator()
	s.addPasskey(m.token, a).want(201, "")
	mine := cell{s: s, me: m}.registration()
	fresh := newAuthenticator()
	signIn, register := a.get(s.challenge(forSignIn)), fresh.create(s.challenge(mine))
	try := func(credential object, kind, purpose string) bool {
		raw, err := json.Marshal(credential)
		if err != nil {
			t.Fatal(err)
		}
		c, ok := s.readCeremony(raw, kind, purpose)
		if !ok {
			return false
		}
		if kind == "webauthn.create" {
			_, ok = c.publicKey()
			return ok
		}
		p, err := s.db.passkeyByCredential(t.Context(), s.cfg.passkeyRPID, c.credentialID)
		return err == nil && bytes.Equal(c.userHandle, a.user) && c.signedBy(p.PublicKey)
	}
	if !try(signIn, "webauthn.get", forSignIn) || !try(register, "webauthn.create", mine) {
		t.Fatal("the genuine ones are refused: the rest proves nothing")
	}
	for kind, credential := range map[string]object{"webauthn.get": signIn, "webauthn.create": register} {
		purpose := map[string]string{"webauthn.get": forSignIn, "webauthn.create": mine}[kind]
		for _, member := range []string{"clientDataJSON", "authenticatorData", "signature", "userHandle"} {
			text, there := credential["response"].(object)[member].(string)
			if !there {
				continue
			}
			raw, err := base64.RawURLEncoding.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			altered := func(b []byte) bool {
				c := maps.Clone(credential)
				c["response"] = maps.Clone(credential["response"].(object))
				c["response"].(object)[member] = base64.RawURLEncoding.EncodeToString(b)
				return try(c, kind, purpose)
			}
			for i := range raw {
				if altered(raw[:i]) {
					t.Errorf("%s: %s cut to %d bytes is accepted", kind, member, i)
				}
				free := kind == "webauthn.create" && (member == "authenticatorData" && i >= 32 && i < 53)
				for bit := range 8 {
					b := slices.Clone(raw)
					b[i] ^= 1 << bit
					if !free && altered(b) && !harmless(raw, b) {
						t.Errorf("%s: %s with bit %d of byte %d flipped is accepted", kind, member, bit, i)
					}
				}
			}
		}
	}
}

// harmless says whether two clientDataJSON say the same: a change of a member that is none of ours.
func harmless(before, after []byte) bool {
	var a, b map[string]jsontext.Value
	if json.Unmarshal(before, &a) != nil || json.Unmarshal(after, &b) != nil {
		return false
	}
	for _, name := range []string{"type", "challenge", "origin"} {
		if !bytes.Equal(a[name], b[name]) {
			return false
		}
	}
	return true
}

// A challenge is spent by success, even where a passkey does not count, on every replica and without THROTTLE.
func TestPasskeyChallengeOnce(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	replicas := []*testServer{s, s.newReplica()}
	m, a := s.newUser("ada@example.com", "user"), newAuthenticator()
	s.addPasskey(m.token, a).want(201, "")
	credential := a.get(s.challenge(forSignIn))
	var all sync.WaitGroup
	var mu sync.Mutex
	counts := map[string]int{}
	for i := range 50 {
		all.Go(func() {
			got, err := replicas[i%2].try(request{method: "POST", path: "/v1/auth/passkey", body: object{"credential": credential}})
			mu.Lock()
			defer mu.Unlock()
			if err == nil && got.status == 400 {
				counts[got.code()]++
			} else {
				counts[fmt.Sprint(got.status, err)]++
			}
		})
	}
	all.Wait()
	if counts["200 <nil>"] != 1 || counts["invalid_passkey"] != 49 {
		t.Error(counts)
	}
	// Nor does a registration come twice, even after its passkey is gone.
	made := newAuthenticator().create(s.challenge(cell{s: s, me: m}.registration()))
	body := object{"name": "X", "credential": made}
	id := s.post("/v1/users/me/passkeys", m.token, body).want(201, "").str("id")
	s.deleteAs("/v1/users/me/passkeys/"+id, m.token).want(204, "")
	s.post("/v1/users/me/passkeys", m.token, body).want(400, "invalid_passkey")
}

// Section 6.1.1 and 6.1.3: a counter that falls and a flag that turns are noted and told, not refused; the stored counter
// never falls, so the next one is noticed too.
func TestPasskeyOddities(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m, a := s.newUser("ada@example.com", "user"), newAuthenticator()
	a.flags |= flagBackupEligible
	s.addPasskey(m.token, a).want(201, "")
	audited := func(action string) int {
		return scalar[int](s, "select count(*) from audit_events where action = $1", action)
	}
	backedUp := func() bool {
		return s.get("/v1/users/me/passkeys", m.token).json()["items"].([]any)[0].(map[string]any)["backed_up"].(bool)
	}
	for range 2 { // does not count: never a sign of a copy
		if c := s.claimsOf(s.usePasskeyOf(a).want(200, "")); !slices.Equal(c.AMR, []string{"swk", "user", "mfa"}) {
			t.Error(c.AMR)
		}
	}
	a.flags |= flagBackedUp
	s.usePasskeyOf(a).want(200, "")
	if !backedUp() {
		t.Error("backed_up does not follow")
	}
	if audited("passkey.backup_changed")+audited("passkey.counter_regressed") != 0 {
		t.Error("noted without a reason")
	}
	a.flags &^= flagBackedUp | flagBackupEligible
	s.usePasskeyOf(a).want(200, "")
	if audited("passkey.backup_changed") != 1 || backedUp() {
		t.Error("not noted")
	}
	a.count = 7
	s.usePasskeyOf(a).want(200, "")
	for i, count := range []uint32{3, 7, 0} {
		a.count = count
		s.usePasskeyOf(a).want(200, "")
		if audited("passkey.counter_regressed") != i+1 || scalar[int](s, "select sign_count from passkeys") != 7 {
			t.Errorf("%d: not noted, or the counter fell", count)
		}
	}
	a.count = 8
	s.usePasskeyOf(a).want(200, "")
	if n := scalar[int](s, "select count(*) from mails where notice = 'passkey_copied'"); n != 3 || audited("passkey.counter_regressed") != 3 {
		t.Errorf("%d notices", n)
	}
}

// What an account may do with its passkeys, and what becomes of them: names, at most twenty, nobody else's, deletion.
func TestPasskeyManagement(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada, bob := s.newUser("ada@example.com", "user"), s.newUser("bob@example.com", "user")
	a := newAuthenticator()
	id := s.addPasskey(ada.token, a).want(201, "").str("id")
	path := "/v1/users/me/passkeys/" + id
	copied := *a
	s.addPasskey(bob.token, &copied).want(409, "passkey_taken")
	options := s.post("/v1/users/me/passkeys/options", ada.token, nil).want(200, "").json()
	if known := options["excludeCredentials"].([]any); len(known) != 1 || options["attestation"] != "none" {
		t.Error(options)
	}
	if a := s.patchAs(path, ada.token, jsonBody("name", "  Laptop ")).want(200, ""); a.str("name") != "Laptop" {
		t.Errorf("%s", a.body)
	}
	s.patchAs(path, ada.token, jsonBody()).want(200, "")
	s.patchAs(path, bob.token, jsonBody("name", "X")).want(404, "not_found")
	s.deleteAs(path, bob.token).want(404, "not_found")
	other := s.usePasskeyOf(a).want(200, "").str("access_token")
	for range maxPasskeys - 1 {
		s.insertPasskey(ada.id, newAuthenticator())
	}
	s.addPasskey(ada.token, newAuthenticator()).want(409, "too_many_passkeys")
	s.deleteAs(path, ada.token).want(204, "")
	s.get("/v1/users/me", other).want(401, "invalid_access_token")
	s.get("/v1/users/me", ada.token).want(200, "")
	s.usePasskeyOf(a).want(400, "invalid_passkey")
	if n := len(s.get("/v1/users/me/export", ada.token).want(200, "").json()["passkeys"].([]any)); n != maxPasskeys-1 {
		t.Errorf("%d exported", n)
	}
	for range 2 {
		if m := s.waitMail(ada.email, 2); !strings.Contains(m.Text, "passkey was") {
			t.Error(m.Text)
		}
	}
	s.exec("update sessions set created_at = now() - interval '16 minutes'")
	for _, q := range []request{{method: "POST", path: "/v1/users/me/passkeys/options"}, {method: "POST", path: "/v1/users/me/passkeys", body: object{}},
		{method: "DELETE", path: path}, {method: "DELETE", path: "/v1/users/" + ada.id + "/passkeys"}} {
		q.token = ada.token
		if got := s.do(q); got.code() != "recent_sign_in_required" && got.code() != "forbidden" {
			t.Error(q.path, got.status, got.code())
		}
	}
	s.get("/v1/users/me/passkeys", ada.token).want(200, "")
}

// A passkey is two factors: it opens what asks for two, and no code is asked for on top; with the last one that is over.
func TestPasskeyIsTwoFactors(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o := s.newTeam("guarded")
	s.exec("update organizations set second_factor_required = true where id = $1", o.id)
	s.get(o.path, o.member.token).want(403, "second_factor_required")
	a := newAuthenticator()
	id := s.addPasskey(o.member.token, a).want(201, "").str("id")
	s.get(o.path, o.member.token).want(200, "") // the device has verified them just now
	s.get(o.path, s.usePasskeyOf(a).want(200, "").str("access_token")).want(200, "")
	s.get(o.path, s.signInAs(o.member.email, testPassword).want(200, "").str("access_token")).want(403, "second_factor_required")
	s.deleteAs("/v1/users/me/passkeys/"+id, o.member.token).want(204, "")
	s.get(o.path, o.member.token).want(403, "second_factor_required")
}

// Disabled and unproved accounts are told why; an admin takes the passkeys of others off, never their own.
func TestPasskeyOfClosedAccounts(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	root, ada := s.newUser("root@example.com", "admin"), s.newUser("ada@example.com", "user")
	a, own := newAuthenticator(), newAuthenticator()
	s.addPasskey(ada.token, a).want(201, "")
	s.addPasskey(root.token, own).want(201, "")
	s.exec("update users set disabled = true where id = $1", ada.id)
	s.usePasskeyOf(a).want(400, "account_disabled")
	s.exec("update users set disabled = false, email_verified = false where id = $1", ada.id)
	s.usePasskeyOf(a).want(400, "email_not_verified")
	s.exec("update users set email_verified = true where id = $1", ada.id)
	session := s.usePasskeyOf(a).want(200, "").str("access_token")
	s.deleteAs("/v1/users/"+root.id+"/passkeys", root.token).want(409, "own_account")
	s.deleteAs("/v1/users/"+newID()+"/passkeys", root.token).want(404, "not_found")
	s.deleteAs("/v1/users/"+ada.id+"/passkeys", root.token).want(204, "")
	s.get("/v1/users/me", session).want(401, "invalid_access_token")
	s.usePasskeyOf(a).want(400, "invalid_passkey")
	if m := s.waitMail(ada.email, 2); !strings.Contains(m.Text, "administrator") {
		t.Error(m.Text)
	}
}

// A passkey that was made before the address was proved is void; a new password for a proved account keeps passkeys, and
// says how many.
func TestPasskeysOfUnprovedAccounts(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t, func(c *config) { c.EmailVerification = false })
	for name, prove := range provings {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			email := strings.ReplaceAll(name, " ", "-") + "@example.com"
			token := s.registerUnproved(email)
			a, b := newAuthenticator(), newAuthenticator()
			s.addPasskey(token, a).want(201, "")
			email, password := prove(s, email, token)
			s.usePasskeyOf(a).want(400, "invalid_passkey")
			if n := scalar[int](s, "select count(*) from mails where notice = 'passkeys_void'"); n != 1 {
				t.Errorf("%d notices", n)
			}
			if n := scalar[int](s, "select count(*) from sessions where 'mfa' = any(amr)"); n != 0 {
				t.Error("a session still counts what is void")
			}
			s.exec("delete from mails")
			s.addPasskey(s.signInAs(email, password).want(200, "").str("access_token"), b).want(201, "")
			s.resetPassword(email, "yet another battery")
			s.usePasskeyOf(b).want(200, "")
			if n := scalar[int](s, "select count(*) from mails where notice = 'passkeys_kept 1'"); n != 1 {
				t.Errorf("%d notices", n)
			}
			s.exec("delete from mails")
			s.exec("delete from users where email = $1", email)
		})
	}
}

// Asking how to sign in is limited by network; credentials that are wrong count like wrong passwords.
func TestPasskeyLimits(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, throttled)
	m, a := s.newUser("ada@example.com", "user"), newAuthenticator()
	s.addPasskey(m.token, a).want(201, "")
	for range 30 {
		s.post("/v1/auth/passkey", "", object{"credential": object{}}).want(400, "invalid_passkey")
	}
	s.post("/v1/auth/passkey", "", object{"credential": object{}}).want(429, "too_many_attempts")
	s.usePasskeyOf(a).want(200, "") // what is right costs nobody anything
	s.exec("update throttles set count = 150 where key like 'passkey_options%'")
	s.post("/v1/auth/passkey/options", "", nil).want(429, "too_many_attempts")
}

// Where passkeys are used follows from APP_URL; PASSKEY_RP_ID may name a domain above it.
func TestPasskeyDomain(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ app, rpID, wantID, wantOrigin string }{
		{"https://app.example.com", "", "app.example.com", "https://app.example.com"},
		{"https://App.Example.com:443", "", "app.example.com", "https://app.example.com"},
		{"https://app.example.com:8443", "example.com", "example.com", "https://app.example.com:8443"},
		{"http://localhost:8080", "", "localhost", "http://localhost:8080"},
		{"http://127.0.0.1:8080", "", "", "http://127.0.0.1:8080"},
		{"https://[2001:db8::1]", "", "", "https://[2001:db8::1]"},
		{"http://app.example.com", "", "", "http://app.example.com"},
		{"https://app.example.com", "com", "refused", ""},
		{"https://app.example.com", "ample.com", "refused", ""},
		{"https://app.example.com", "a.app.example.com", "refused", ""},
		{"https://app.example.com", "evil.example", "refused", ""},
	} {
		cfg, p := config{AppURL: tc.app, PasskeyRPID: tc.rpID}, problems{}
		cfg.checkPasskeys(&p)
		if tc.wantID == "refused" {
			if p.err() == nil {
				t.Errorf("%v is accepted", tc)
			}
		} else if p.err() != nil || cfg.passkeyRPID != tc.wantID || cfg.passkeyOrigin != tc.wantOrigin {
			t.Errorf("%v: %v %s %s", tc, p.err(), cfg.passkeyRPID, cfg.passkeyOrigin)
		}
	}
	s := newTestServer(t)
	m, a := s.newUser("ada@example.com", "user"), newAuthenticator()
	s.addPasskey(m.token, a).want(201, "")
	none := s.newReplica(func(c *config) { c.passkeyRPID = "" })
	none.post("/v1/auth/passkey/options", "", nil).want(404, "not_found")
	none.post("/v1/users/me/passkeys/options", m.token, nil).want(404, "not_found")
	none.post("/v1/auth/passkey", "", object{"credential": a.get(s.challenge(forSignIn))}).want(400, "invalid_passkey")
	moved := s.newReplica(func(c *config) { c.passkeyRPID = "moved.example" })
	if err := moved.checkPasskeys(t.Context()); err != nil || !strings.Contains(moved.logs.String(), "another domain") {
		t.Error(err, moved.logs.String())
	}
}

// recording is a ceremony as .ci/passkeys gives it to go-webauthn too, and whether it is to be accepted.
type recording struct {
	Name      string `json:"name"`
	Accept    bool   `json:"accept"`
	Create    bool   `json:"create"`
	Challenge string `json:"challenge"`
	User      string `json:"user"`
	PublicKey string `json:"public_key"` // COSE, of an assertion
	Flags     int    `json:"flags"`      // known before
	Count     int    `json:"count"`
	Response  object `json:"response"`
}

// The recorded ceremonies of testdata/passkeys.json, on which another implementation has judged too, are judged the same
// here. -update records new ones.
func TestPasskeyRecordings(t *testing.T) {
	t.Parallel()
	const file = "testdata/passkeys.json"
	s := newTestServer(t)
	if *update {
		content, err := json.Marshal(record(s), jsontext.WithIndent("  "), json.Deterministic(true))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(content, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var recordings []recording
	if err := json.Unmarshal([]byte(readText(t, file)), &recordings); err != nil || len(recordings) < 20 {
		t.Fatal(len(recordings), err)
	}
	for _, r := range recordings {
		raw, err := json.Marshal(r.Response)
		if err != nil {
			t.Fatal(err)
		}
		kind := "webauthn.get"
		if r.Create {
			kind = "webauthn.create"
		}
		c, ok := s.cfg.readCredential(raw, kind)
		ok = ok && base64.RawURLEncoding.EncodeToString(c.challenge) == r.Challenge
		if ok && r.Create {
			_, ok = c.publicKey()
		} else if ok {
			cose, err := decodeBase64(r.PublicKey)
			if err != nil {
				t.Fatal(err)
			}
			key, _ := cutKey(cose)
			der, err := x509.MarshalPKIXPublicKey(key)
			ok = err == nil && c.signedBy(der) && base64.RawURLEncoding.EncodeToString(c.userHandle) == r.User
		}
		if ok != r.Accept {
			t.Errorf("%s: %v", r.Name, ok)
		}
	}
}

// record makes ceremonies of every kind of key, right and wrong. Where the other implementation is known to judge in
// another way, the name begins with a star.
func record(s *testServer) (recordings []recording) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		s.t.Fatal(err)
	}
	es := newAuthenticator().key
	add := func(name string, accept bool, key crypto.Signer, change func(a *authenticator), more func(o object)) {
		for _, create := range []bool{true, false} {
			a := newAuthenticator()
			a.key, a.user, a.count = key, []byte("0123456789abcdef"), 5
			r := recording{Name: name, Accept: accept, Create: create, Challenge: s.challenge(forSignIn), User: base64.RawURLEncoding.EncodeToString(a.user),
				PublicKey: base64.RawURLEncoding.EncodeToString(a.coseKey()), Flags: int(a.flags), Count: 4}
			if change != nil {
				change(a)
			}
			kind := map[bool]string{true: "webauthn.create", false: "webauthn.get"}[create]
			r.Response = a.answer(kind, r.Challenge, create)
			if more != nil {
				more(r.Response)
			}
			recordings = append(recordings, r)
		}
	}
	for name, key := range map[string]crypto.Signer{"ES256": es, "EdDSA": ed, "RS256": rs} {
		add(name, true, key, nil, nil)
	}
	add("extensions", true, es, func(a *authenticator) { a.flags |= flagExtensions }, nil)
	add("counter set back", true, es, func(a *authenticator) { a.count = 1 }, nil)
	add("*backup flag turned", true, es, func(a *authenticator) { a.flags |= flagBackupEligible | flagBackedUp }, nil)
	add("another origin", false, es, func(a *authenticator) { a.client["origin"] = "https://evil.example" }, nil)
	add("another port", false, es, func(a *authenticator) { a.client["origin"] = "https://app.example:8443" }, nil)
	add("http", false, es, func(a *authenticator) { a.client["origin"] = "http://app.example" }, nil)
	add("a frame", false, es, func(a *authenticator) { a.client["crossOrigin"] = true }, nil)
	add("the other type", false, es, func(a *authenticator) { a.client["type"] = "webauthn.other" }, nil)
	add("another domain", false, es, func(a *authenticator) { a.rpID = "evil.example" }, nil)
	add("nobody present", false, es, func(a *authenticator) { a.flags &^= flagUserPresent }, nil)
	add("nobody verified", false, es, func(a *authenticator) { a.flags &^= flagUserVerified }, nil)
	add("backed up, not eligible", false, es, func(a *authenticator) { a.flags |= flagBackedUp }, nil)
	add("another id", false, es, nil, func(o object) { o["id"] = "eA" })
	add("another type of credential", false, es, nil, func(o object) { o["type"] = "password" })
	for _, member := range []string{"clientDataJSON", "authenticatorData", "signature"} {
		cut := func(o object) {
			response := o["response"].(object)
			for _, name := range []string{member, map[string]string{"authenticatorData": "attestationObject"}[member]} {
				if text, there := response[name].(string); there {
					response[name] = text[:len(text)*2/3/4*4]
				}
			}
			if response["attestationObject"] != nil && member == "signature" {
				o["type"] = "none" // a registration has none
			}
		}
		add(member+" cut", false, es, nil, cut)
	}
	add("signature of another", false, es, func(a *authenticator) { a.signature = []byte("0123456789") }, func(o object) {
		if o["response"].(object)["attestationObject"] != nil {
			o["type"] = "none"
		}
	})
	return recordings
}
