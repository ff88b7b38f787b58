package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	stdjson "encoding/json"
	"io"
	"math/big"
	"net/http"
	"net/mail"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	"golang.org/x/text/unicode/norm"
)

// Native fuzz targets for everything that reads bytes a stranger chose: go test -fuzz '^FuzzEmail$'. Each
// states what must hold of whatever is accepted, not only that nothing panics. None of them asks the database.

// fuzzServer is a replica without a database, with two keys that every run has.
func fuzzServer(f *testing.F) *server {
	cfg := testConfig("postgres://127.0.0.1/none")
	first, second := sha256.Sum256([]byte("first")), sha256.Sum256([]byte("second"))
	cfg.secrets = [][]byte{first[:], second[:]}
	keys, err := newKeyRing(cfg)
	if err != nil {
		f.Fatal(err)
	}
	s := &server{cfg: cfg, log: newLogger(cfg, io.Discard), keys: keys, passwords: newPasswords(cfg.PasswordMinLength, currentParams)}
	s.rules = newRules(s.passwords)
	return s
}

// splice replaces size bytes of text from at on by insert, wherever at points.
func splice(text string, at, size uint16, insert string) string {
	from := int(at) % (len(text) + 1)
	to := min(len(text), from+int(size))
	return text[:from] + insert + text[to:]
}

const (
	fuzzUser    = "0192a000-0000-7000-8000-000000000001"
	fuzzSession = "0192a000-0000-7000-8000-000000000002"
)

// R44, R47: of everything made out of a genuine access token, only the token itself is accepted. ECDSA alone gives
// every signature a twin, (r, n−s), over the same header and claims: it is known, and names the same session.
func FuzzAccessToken(f *testing.F) {
	s := fuzzServer(f)
	genuine, err := s.keys.signAccess(newSession{user: user{ID: fuzzUser, Role: "admin"}, SessionID: fuzzSession, Generation: 3})
	if err != nil {
		f.Fatal(err)
	}
	signed, signature, _ := strings.Cut(genuine[len(strings.Split(genuine, ".")[0])+1:], ".")
	signed = strings.Split(genuine, ".")[0] + "." + signed
	raw, err := base64.RawURLEncoding.DecodeString(signature)
	if err != nil {
		f.Fatal(err)
	}
	order := s.keys.signing.private.Params().N
	negated := new(big.Int).Sub(order, new(big.Int).SetBytes(raw[32:]))
	twin := signed + "." + base64.RawURLEncoding.EncodeToString(append(slices.Clone(raw[:32]), negated.FillBytes(make([]byte, 32))...))
	f.Add("", uint16(0), uint16(0), "")
	f.Add("x", uint16(0), uint16(65535), "..")
	f.Add("eyJhbGciOiJub25lIn0.e30.", uint16(10), uint16(0), "\n")
	f.Add("eyJhbGciOiJIUzI1NiJ9.e30.AA", uint16(65535), uint16(1), "B")
	f.Fuzz(func(t *testing.T, token string, at, size uint16, insert string) {
		for _, candidate := range []string{token, splice(genuine, at, size, insert), splice(genuine, at, size, token), signed + "." + token, token + "." + signature,
			genuine[:len(genuine)-1] + flipLastBits(genuine)} {
			if claims, err := s.keys.parseAccess(candidate); err == nil && (candidate != genuine && candidate != twin || claims.SessionID != fuzzSession || claims.Subject != fuzzUser || claims.Generation != 3) {
				t.Fatalf("accepted %q beside %q", candidate, genuine)
			}
			if claims, err := s.keys.verifyAccess(candidate); err == nil && (candidate != genuine && candidate != twin || claims.SessionID != fuzzSession) {
				t.Fatalf("the cache knows %q beside %q", candidate, genuine)
			}
		}
		if _, err := s.keys.verifyAccess(genuine); err != nil {
			t.Fatal(err)
		}
	})
}

// R44, R45, R46, R47, R48: a genuine signature under any header and any claims; NOW and SOON stand for times. What is accepted has
// every property that the contract asks of an access token.
func FuzzAccessClaims(f *testing.F) {
	s := fuzzServer(f)
	kid, host := s.keys.signing.kid, s.cfg.PublicURL
	header := `{"alg":"ES256","typ":"at+jwt","kid":"KID"}`
	claims := `{"iss":"ISS","aud":["ISS"],"sub":"` + fuzzUser + `","client_id":"roster","exp":SOON,"iat":NOW,"jti":"x","sid":"` +
		fuzzSession + `","gen":1,"roles":["user"],"scope":"account"}`
	f.Add(header, claims)
	f.Add(header, strings.Replace(claims, "SOON", "1e308", 1))
	f.Add(header, strings.Replace(claims, "SOON", "null", 1))
	f.Add(header, strings.Replace(claims, `["ISS"]`, `"ISS"`, 1))
	f.Add(header, strings.Replace(claims, "NOW", "-9223372036854775808", 1))
	f.Add(strings.Replace(header, "}", `,"crit":["exp"]}`, 1), claims)
	f.Add(strings.Replace(header, `"alg"`, `"alg":"none","alg"`, 1), claims)
	f.Add(header, strings.Replace(claims, `"exp"`, `"exp":1,"exp"`, 1))
	f.Add(header, strings.Replace(claims, "SOON", `"SOON"`, 1))
	f.Add(header, strings.Replace(claims, `"exp"`, `"Exp":1,"exp"`, 1))
	f.Fuzz(func(t *testing.T, header, claims string) {
		now := time.Now().Unix()
		fill := strings.NewReplacer("NOW", strconv.FormatInt(now, 10), "SOON", strconv.FormatInt(now+900, 10), "KID", kid, "ISS", host)
		header, claims = fill.Replace(header), fill.Replace(claims)
		signed := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
		signature, err := jwt.SigningMethodES256.Sign(signed, s.keys.signing.private)
		if err != nil {
			t.Fatal(err)
		}
		token := signed + "." + base64.RawURLEncoding.EncodeToString(signature)
		c, err := s.keys.parseAccess(token)
		if err != nil {
			return
		}
		var members map[string]any
		if err := stdjson.Unmarshal([]byte(header), &members); err != nil || len(members) != 3 || members["alg"] != "ES256" ||
			members["typ"] != "at+jwt" || members["kid"] != kid {
			t.Errorf("header %s", header)
		}
		left, age := time.Until(c.ExpiresAt.Time), time.Since(c.IssuedAt.Time)
		switch {
		case len(token) > 4096, c.Issuer != host, len(c.Audience) != 1, c.Audience[0] != host, c.ClientID != "roster", c.ID == "",
			!isUUID(c.Subject), !isUUID(c.SessionID), c.Generation < 1, len(c.Roles) == 0, c.Scope == "",
			left < -31*time.Second, age < -31*time.Second, left+age <= 0, left+age > 16*time.Minute+time.Second, !strictDates([]byte(claims)):
			t.Errorf("accepted %s: %+v", claims, c)
		}
	})
}

// strictDates says whether claims are strict JSON whose dates are numbers (R116).
func strictDates(claims []byte) bool {
	var dates struct {
		Expires   float64  `json:"exp"`
		Issued    float64  `json:"iat"`
		NotBefore *float64 `json:"nbf"`
	}
	return json.Unmarshal(claims, &dates) == nil
}

// R52, R55: what a refresh token says comes back as it was, under either key; whatever is accepted is, byte for byte,
// what one of the keys would issue.
func FuzzRefreshToken(f *testing.F) {
	s := fuzzServer(f)
	var rings []*keyRing // each of the keys signs in one of them
	for _, k := range s.keys.byID {
		rings = append(rings, &keyRing{signing: k})
	}
	f.Add([]byte("0123456789abcdef"), uint32(1), "", uint16(0), uint16(0))
	f.Add([]byte{255}, uint32(1<<31), "\n", uint16(40), uint16(0))
	f.Add([]byte("x"), uint32(7), "=", uint16(79), uint16(0))
	f.Add([]byte("x"), uint32(7), "rt_", uint16(0), uint16(0))
	f.Add([]byte("x"), uint32(7), "AQ", uint16(3), uint16(2))
	f.Fuzz(func(t *testing.T, session []byte, generation uint32, insert string, at, size uint16) {
		var id uuid.UUID
		copy(id[:], session)
		accepted := func(token string) bool {
			session, generation, err := s.keys.parseRefresh(token)
			if err == nil && !slices.ContainsFunc(rings, func(k *keyRing) bool { return k.signRefresh(session, generation) == token }) {
				t.Errorf("%q is another spelling of %s %d", token, session, generation)
			}
			return err == nil
		}
		for _, k := range rings {
			token := k.signRefresh(id.String(), int32(generation))
			if session, g, err := s.keys.parseRefresh(token); err != nil || session != id.String() || g != int32(generation) || len(token) != 79 {
				t.Errorf("%s %d came back as %s %d %v", id, generation, session, g, err)
			}
			if other := splice(token, at, size, insert); other != token && accepted(other) {
				t.Errorf("%q was made out of %q", other, token)
			}
			// A genuine MAC over anything: of another version it is no token.
			body := append(slices.Clone(k.signing.id[:]), session...)
			if len(session) > 0 {
				body = append([]byte{session[0]}, body...)
			}
			accepted(refreshPrefix + base64.RawURLEncoding.EncodeToString(append(body, sum(k.signing.refresh, body)...)))
		}
		accepted(insert)
		accepted(refreshPrefix + base64.RawURLEncoding.EncodeToString(session))
	})
}

// R20: a cursor opens its own list only, and has one spelling.
func FuzzCursor(f *testing.F) {
	s := fuzzServer(f)
	f.Add([]byte("0123456789abcdef"), "u /v1/users?", "u /v1/users?q=a", "", uint16(0), uint16(0))
	f.Add([]byte("x"), "", "\x00", "\n", uint16(20), uint16(0))
	f.Add([]byte("x"), "a", "b", "=", uint16(43), uint16(0))
	f.Add([]byte("x"), "a", "b", "B", uint16(42), uint16(1))
	f.Fuzz(func(t *testing.T, row []byte, scope, otherScope, insert string, at, size uint16) {
		var id uuid.UUID
		copy(id[:], row)
		cursor := s.keys.signCursor(scope, id.String())
		if got, err := s.keys.parseCursor(scope, cursor); err != nil || got != id.String() {
			t.Errorf("%s came back as %s %v", id, got, err)
		}
		if got, err := s.keys.parseCursor(otherScope, cursor); err == nil && otherScope != scope {
			t.Errorf("a cursor of %q opens %q at %s", scope, otherScope, got)
		}
		for _, other := range []string{splice(cursor, at, size, insert), insert} {
			if got, err := s.keys.parseCursor(scope, other); err == nil && other != cursor {
				t.Errorf("%q is another spelling of %q: %s", other, cursor, got)
			}
		}
	})
}

// R15, R16: what parseObject accepts is one object that every reader understands alike, with nothing replaced and
// nothing there twice, and written anew it stays what it was.
func FuzzStrictJSON(f *testing.F) {
	for _, seed := range []string{`{"a":[1,-0.5e3,true,null,"\u00e9\ud83d\ude00"]}`, `{"a":1,"\u0061":2}`, `{"a":1,"A":2}`, "\"\xff\"", `"\ud800"`, `"\\ud800\ufffd"`,
		"[1] [2]", "\ufeff{}", strings.Repeat("[", 33) + strings.Repeat("]", 33), strings.Repeat("[", 32) + strings.Repeat("]", 32), "1e999", "-0", " {} \n", "{}\x00", `"\u0000"`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		strictJSON(t, body)
		strictJSON(t, slices.Concat([]byte(`{"":`), body, []byte("}")))
	})
}

func strictJSON(t *testing.T, body []byte) {
	_, err := parseObject(body)
	value := jsontext.Value(body)
	if strict := value.IsValid() && value.Kind() == '{' && deepest(body) <= maxDepth; strict != (err == nil) {
		t.Fatalf("strict %v, but %v", strict, err)
	}
	if err != nil {
		if text := err.Error(); !regexp.MustCompile(`^[a-zA-Z0-9 -]+$`).MatchString(text) {
			t.Errorf("the refusal repeats the body: %q", text)
		}
		return
	}
	if !utf8.Valid(body) || !stdjson.Valid(body) {
		t.Fatalf("accepted %q", body)
	}
	var lax, ours any
	laxErr, oursErr := stdjson.Unmarshal(body, &lax), json.Unmarshal(body, &ours)
	if laxErr != nil || oursErr != nil {
		if laxErr == nil || oursErr == nil { // both refuse a number that no float holds
			t.Fatalf("encoding/json %v, json/v2 %v", laxErr, oursErr)
		}
		return
	}
	if !reflect.DeepEqual(lax, ours) {
		t.Fatalf("two readings of %q: %v, %v", body, lax, ours)
	}
	written, err := json.Marshal(ours, json.Deterministic(true))
	if err == nil {
		_, err = parseObject(written)
	}
	if err != nil {
		t.Fatalf("%q written anew is %q: %v", body, written, err)
	}
	var again any
	if err := json.Unmarshal(written, &again); err != nil || !reflect.DeepEqual(again, ours) {
		t.Fatalf("%q became %q: %v", body, written, err)
	}
	if bytes.Contains(written, []byte("\ufffd")) && !bytes.Contains(body, []byte("\ufffd")) && !bytes.Contains(bytes.ToLower(body), []byte(`\ufffd`)) {
		t.Fatalf("something was replaced in %q", body)
	}
}

// deepest counts how deeply a valid JSON value is nested.
func deepest(body []byte) (most int) {
	d, depth := stdjson.NewDecoder(bytes.NewReader(body)), 0
	for {
		token, err := d.Token()
		if err != nil {
			return most
		}
		switch token {
		case stdjson.Delim('['), stdjson.Delim('{'):
			depth++
			most = max(most, depth)
		case stdjson.Delim(']'), stdjson.Delim('}'):
			depth--
		}
	}
}

// fuzzInput has a field of every kind that the API takes.
type fuzzInput struct {
	pageInput
	Q        *string `query:"q" is:"search"`
	Disabled *bool   `query:"disabled"`
	Email    string  `json:"email" is:"email"`
	Name     *string `json:"name" is:"name"`
	Password *string `json:"password" is:"new_password"`
	Role     *string `json:"role" is:"role"`
	Slug     *string `json:"slug" is:"slug"`
	UserID   *string `json:"user_id" is:"uuid"`
	Active   *bool   `json:"active"`
}

// decodeFuzz decodes a request with a body and a query into an input of type In.
func decodeFuzz[In any](s *server, query, body, contentType string) (in In, err error) {
	r := &http.Request{Method: "POST", URL: &url.URL{Path: "/x", RawQuery: query}, Header: http.Header{"Content-Type": {contentType}},
		Body: io.NopCloser(strings.NewReader(body))}
	return in, s.decode(r, caller{}, inputFields(reflect.TypeFor[In]()), reflect.ValueOf(&in).Elem())
}

// checkRefusal wants a refusal to be a 4xx that names what is wrong by pointer, in valid UTF-8.
func checkRefusal(t *testing.T, err error) {
	t.Helper()
	e := toAPIError(err)
	if e.Status != 400 && e.Status != 413 && e.Status != 415 && e.Status != 422 || e.Status == 422 && len(e.Fields) == 0 {
		t.Errorf("%d %v", e.Status, err)
	}
	for _, f := range e.Fields {
		if f.Pointer == "" || f.Code == "" || f.Detail == "" || !utf8.ValidString(f.Pointer+f.Detail) {
			t.Errorf("a field without a name: %+v", f)
		}
	}
	if _, err := json.Marshal(problem{Errors: e.Fields, Detail: describe(e)}); err != nil {
		t.Error(err)
	}
}

// R15, R17, R18, R19: a body that is accepted holds what the other readers find in it, in the form that is stored, and
// sent anew in that form means the same.
func FuzzDecode(f *testing.F) {
	s := fuzzServer(f)
	f.Add([]byte(`{"email":"Ada@Example.com","name":" Ada ","password":"correct horse battery","role":"user","slug":"a-b","user_id":"` + fuzzUser + `","active":true}`))
	f.Add([]byte(`{"email":["a@example.com"],"active":"true","role":null,"Name":"x","~/":1}`))
	f.Add([]byte(`{"email":"a@example.com","name":"e\u0301","password":"\u0000\u0000\u0000\u0000\u0000\u0000\u0000\u0000\u0000\u0000\u0000\u0000"}`))
	f.Add([]byte(`{"email":"a@example.com","user_id":"0192A000-0000-7000-8000-000000000001"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		in, err := decodeFuzz[fuzzInput](s, "", string(body), "application/json")
		if err != nil {
			checkRefusal(t, err)
			return
		}
		var sent map[string]any
		if err := stdjson.Unmarshal(body, &sent); err != nil {
			t.Fatalf("%q: %v", body, err)
		}
		stored := map[string]any{"email": in.Email}
		for name, value := range map[string]*string{"name": in.Name, "password": in.Password, "role": in.Role, "slug": in.Slug, "user_id": in.UserID} {
			if value != nil {
				stored[name] = *value
			}
			if value != nil && name != "name" && *value != sent[name] {
				t.Errorf("%s is %q, but was sent as %q", name, *value, sent[name])
			}
		}
		if in.Active != nil {
			stored["active"] = *in.Active
		}
		if stored["active"] != sent["active"] {
			t.Errorf("%q became %v", body, stored)
		}
		if in.Email != strings.ToLower(strings.TrimFunc(sent["email"].(string), whiteSpace)) || len(stored) != len(sent) {
			t.Errorf("%q became %v", body, stored)
		}
		written, err := json.Marshal(stored)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := decodeFuzz[fuzzInput](s, "", string(written), "application/json"); err != nil || !reflect.DeepEqual(again, in) {
			t.Errorf("%q was accepted, but %q is %+v, %v", body, written, again, err)
		}
	})
}

// R20, R21: parameters of a query and of a form: at most twenty, known, once, text; and what is accepted says the same
// when it is written anew.
func FuzzParameters(f *testing.F) {
	s := fuzzServer(f)
	for _, seed := range []string{"limit=50&q=Ada&disabled=true", "limit=050", "limit=%31", "q=%00", "q=%ff", "q=a;b=c", "q=a&q=b", "limit", "after=AAAA", "%6cimit=1",
		"grant_type=password&username=a%40example.com&password=a+b%26", "grant_type=refresh_token&refresh_token=rt_x", "grant_type=&scope=", "=", "&", "q=%zz", strings.Repeat("a=&", 20)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		list, err := decodeFuzz[listUsersInput](s, raw, "", "")
		if err != nil {
			checkRefusal(t, err)
		} else {
			given, err := url.ParseQuery(raw)
			if err != nil || len(given) > 4 || strings.Count(raw, "&") >= 20 || list.Limit < 1 || list.Limit > 100 || list.After != "" {
				t.Errorf("%q: %+v %v", raw, list, err)
			}
			query := url.Values{"limit": {strconv.Itoa(list.Limit)}}
			if list.Q != nil {
				query.Set("q", *list.Q)
			}
			if list.Role != nil {
				query.Set("role", *list.Role)
			}
			if list.Disabled != nil {
				query.Set("disabled", strconv.FormatBool(*list.Disabled))
			}
			for name, values := range given {
				if len(values) != 1 || name != "q" && query.Get(name) != values[0] {
					t.Errorf("%q: %+v", raw, list)
				}
			}
			if again, err := decodeFuzz[listUsersInput](s, query.Encode(), "", ""); err != nil || !reflect.DeepEqual(again, list) {
				t.Errorf("%q is %+v, %q is %+v %v", raw, list, query.Encode(), again, err)
			}
		}
		form, err := decodeFuzz[issueTokenInput](s, "", raw, "application/x-www-form-urlencoded")
		if err != nil {
			checkRefusal(t, err)
			return
		}
		given, err := url.ParseQuery(raw)
		if err != nil {
			t.Fatal(err)
		}
		read := map[string]*string{"grant_type": &form.GrantType, "username": form.Username, "password": form.Password, "refresh_token": form.RefreshToken}
		for name, values := range given {
			value, known := read[name]
			if !known {
				continue // R115
			}
			if email, code, _ := checkEmail(values[0]); code == "" && name == "username" {
				values[0] = email
			}
			if len(values) != 1 || !utf8.ValidString(values[0]) || strings.Contains(values[0], "\x00") ||
				values[0] == "" && value != nil || values[0] != "" && (value == nil || *value != values[0]) {
				t.Errorf("%q: %s is %v", raw, name, value)
			}
		}
	})
}

// R18: an address that is accepted is plain ASCII in lower case, the same when it is checked again, what the standard
// library takes for that very address, and nothing that could begin another header.
func FuzzEmail(f *testing.F) {
	for _, seed := range []string{"Ada@Example.COM", "a.b+c@x-y.example", "o'neil@example.com", "\u212Aa@example.com", "a@[127.0.0.1]", `"a b"@example.com`, "Ada <ada@example.com>",
		"a@example.com\r\nBcc: b@example.com", "a@b.c", "a@@example.com", strings.Repeat("a", 64) + "@example.com", "a@" + strings.Repeat("b.", 130) + "io", "a@xn--exmple-cua.com", "a@example.com,b@example.com"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		out, code, detail := checkEmail(in)
		if code != "" {
			if out != "" || detail == "" {
				t.Errorf("%q: %q %q", in, out, detail)
			}
			return
		}
		again, code, _ := checkEmail(out)
		local, domain, _ := strings.Cut(out, "@")
		switch {
		case again != out || code != "":
			t.Errorf("%q is %q, and then %q", in, out, again)
		case !strings.EqualFold(strings.TrimFunc(in, whiteSpace), out):
			t.Errorf("%q became %q", in, out)
		case strings.ContainsFunc(out, func(c rune) bool { return c <= ' ' || c > '~' || unicode.IsUpper(c) }):
			t.Errorf("%q is not lower-case ASCII", out)
		case len(out) > 254 || len(local) > 64 || local == "" || len(domain) > 253 || strings.Count(out, "@") != 1 || !strings.Contains(domain, "."):
			t.Errorf("%q is out of bounds", out)
		}
		if parsed, err := mail.ParseAddress(out); err != nil || parsed.Address != out || parsed.Name != "" {
			t.Errorf("%q is %v for net/mail: %v", out, parsed, err)
		}
		if _, err := netip.ParseAddr(domain); err == nil {
			t.Errorf("%q is at an address of the network", out)
		}
	})
}

// R17: a name that is accepted is trimmed and composed, 1 to 100 code points without any that must not be shown, and
// the same when it is checked again. But for the length, the pattern in the OpenAPI document says the same.
func FuzzName(f *testing.F) {
	for _, seed := range []string{" Ada ", "Ame\u0301lie", "\u2028", "a\x00", "a\u202eb", "\u2066", "\ufb2c", strings.Repeat("\u0958", 60), strings.Repeat("e\u0301", 100), "a" + strings.Repeat("\u0301", 99),
		"\u0344", "\ufeffa", "a\n", "\u1fef", "\u2000a\u2001", "日本", "\U0001f469\u200d\U0001f680", "\u0085a", "\xff", "\u1100\u1161\u11a8"} {
		f.Add(seed)
	}
	pattern := regexp.MustCompile(goPattern(namePattern))
	f.Fuzz(func(t *testing.T, in string) {
		if !utf8.ValidString(in) {
			return // the decoder lets none come this far: FuzzStrictJSON, FuzzParameters
		}
		out, code, detail := checkName(in)
		if code != "too_long" && pattern.MatchString(in) != (code == "") && (code != "required" || strings.ContainsFunc(in, visible)) {
			t.Errorf("%q: the pattern says %v, the rule %q", in, pattern.MatchString(in), code)
		}
		if code != "" {
			if out != "" || detail == "" {
				t.Errorf("%q: %q %q", in, out, detail)
			}
			return
		}
		again, code, _ := checkName(out)
		switch n := utf8.RuneCountInString(out); {
		case again != out || code != "":
			t.Errorf("%q is %q, and then %q %s", in, out, again, code)
		case !utf8.ValidString(out) || n < 1 || n > 100 || strings.TrimSpace(out) != out || !norm.NFC.IsNormalString(out):
			t.Errorf("%q is stored as %q", in, out)
		case norm.NFD.String(out) != norm.NFD.String(strings.TrimFunc(in, whiteSpace)):
			t.Errorf("%q became something else: %q", in, out)
		}
		for _, c := range out {
			if c < ' ' || c >= 0x7f && c <= 0x9f || slices.Contains([]rune("\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"), c) {
				t.Errorf("%q holds %U", out, c)
			}
		}
	})
}

// fuzzHash are the forms of a stored hash, read here a second time and independently: kind, and what it costs.
var fuzzHash = regexp.MustCompile(`^\$(argon2id?)\$v=19\$m=(\d+),t=(\d+),p=(\d+)\$[^$]+\$[^$]+$|^\$(2[aby])\$(\d\d)\$.{53}$|` +
	`^\$(scrypt)\$ln=(\d+),r=(\d+),p=(\d+)\$[^$]+\$[^$]+$|^(pbkdf2_sha256)\$\+?(\d+)\$[^$]+\$[^$]+$`)

// R31: a stored hash is affordable or refused, whatever an import brought; one that costs little is tried, and does
// not panic.
func FuzzStoredHash(f *testing.F) {
	salted := "$MDEyMzQ1Njc4OWFiY2RlZg$MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"
	for _, seed := range []string{"$argon2id$v=19$m=19456,t=2,p=1" + salted, "$argon2i$v=19$m=8,t=1,p=1" + salted, "$argon2id$v=19$m=4294967295,t=1,p=1" + salted, "$argon2id$v=19$m=8,t=1,p=0" + salted,
		"$argon2id$v=19$m=8,t=1,p=256" + salted, "$argon2id$v=19$m=262144,t=10,p=16" + salted, "$2a$04$abcdefghijklmnopqrstuuWzZ8u1mVbCXIpkYxZlLkCqz3vUzvHRK", "$2y$31$abcdefghijklmnopqrstuuWzZ8u1mVbCXIpkYxZlLkCqz3vUzvHRK",
		"$scrypt$ln=4,r=8,p=1" + salted, "$scrypt$ln=20,r=32,p=4" + salted, "$scrypt$ln=63,r=1,p=1" + salted, "pbkdf2_sha256$1000$salt$MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
		"pbkdf2_sha256$9223372036854775807$salt$MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", "", "$", "$$$$$"} {
		f.Add(seed, "correct horse battery")
	}
	f.Fuzz(func(t *testing.T, hash, password string) {
		stored, err := parseHash(hash)
		if err != nil {
			if stored.matches != nil || strings.ContainsFunc(err.Error(), func(c rune) bool { return c < ' ' || c > '~' }) {
				t.Errorf("%q: %v", hash, err)
			}
			return
		}
		m := fuzzHash.FindStringSubmatch(hash)
		if m == nil {
			t.Fatalf("accepted %q", hash)
		}
		n := func(i int) int {
			v, err := strconv.Atoi(m[i])
			if err != nil {
				t.Fatalf("%q: %v", hash, err)
			}
			return v
		}
		affordable, cheap := false, false
		switch {
		case m[1] != "":
			memory, passes, lanes := n(2), n(3), n(4)
			affordable = memory <= 256<<10 && passes >= 1 && passes <= 10 && lanes >= 1 && lanes <= 16
			cheap = memory <= 64 && passes <= 2 && lanes <= 2
			cost := argon2Params{uint32(memory), uint32(passes), uint8(lanes)}
			if m[1] != "argon2id" {
				cost = argon2Params{}
			}
			if stored.cost != cost {
				t.Errorf("%q: its cost is %v", hash, stored.cost)
			}
		case m[5] != "":
			affordable, cheap = n(6) >= 4 && n(6) <= 14, n(6) <= 4
		case m[7] != "":
			ln, r, p := n(8), n(9), n(10)
			affordable = ln >= 1 && ln <= 20 && r >= 1 && p >= 1 && p <= 4 && r<<ln <= 2<<20
			cheap = ln <= 6 && p*r <= 16
		default:
			affordable, cheap = n(12) >= 1 && n(12) <= 2_000_000, n(12) <= 1000
		}
		if !affordable || len(hash) > 512 {
			t.Fatalf("accepted %q", hash)
		}
		if cheap && stored.matches(password) && stored.matches(password+"x") && len(password) < 72 {
			t.Errorf("%q matches everything", hash)
		}
	})
}

// The versions that an If-Match header allows are those written in it, each a whole tag, and all of them within
// what PostgreSQL can compare.
func FuzzIfMatch(f *testing.F) {
	for _, seed := range []string{"", "*", " * ", `"hq3b8b4ix3"`, `W/"hq3b8b4ix3"`, `"a", "b" ,"c"`, `"`, `""`, `"-1"`, `"+1"`, `"01"`, `"A"`, `"zzzzzzzzzzzzz"`, `*, "a"`, ",", `"1y2p0ij32e8e7"`} {
		f.Add(seed, int64(1_700_000_000_000_000))
	}
	f.Fuzz(func(t *testing.T, header string, micros int64) {
		got := parseIfMatch(header)
		if any := header == "" || strings.TrimSpace(header) == "*"; any != (got == nil) {
			t.Fatalf("%q: %v", header, got)
		}
		var tags []string
		for _, tag := range strings.Split(header, ",") {
			tags = append(tags, plainTag(strings.TrimSpace(tag)))
		}
		var written []string
		for _, v := range got {
			if tag := etag(v); !slices.Contains(tags, tag) || v.Year() < 1970 || v.Year() > 2255 {
				t.Errorf("%q allows %v", header, v)
			}
			written = append(written, etag(v))
		}
		if again := parseIfMatch(strings.Join(written, " , ")); len(got) > 0 && !reflect.DeepEqual(again, got) {
			t.Errorf("%q: %v, then %v", header, got, again)
		}
		if at := time.UnixMicro(micros); micros >= 0 && micros < maxMicros {
			if got := parseIfMatch(etag(at)); len(got) != 1 || !got[0].Equal(at) {
				t.Errorf("%v came back as %v", at, got)
			}
		}
	})
}

// R10: without a trusted peer the client is the peer. Behind trusted ones it is the nearest address that is not, so
// nothing that a client writes further left changes it.
func FuzzClientIP(f *testing.F) {
	s := fuzzServer(f)
	s.cfg.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, seed := range [][2]string{{"192.0.2.1:1", "203.0.113.9"}, {"10.0.0.1:1", "6.6.6.6, 203.0.113.9, 10.0.0.2"}, {"[::ffff:10.0.0.1]:1", "::ffff:203.0.113.9"}, {"[fe80::1%eth0]:1", "fe80::2%x"},
		{"10.0.0.1:1", "nonsense, 10.0.0.2"}, {"10.0.0.1:1", "\"[2001:db8::9]:443\", "}, {"10.0.0.1:1", "[2001:db8::9], 10.0.0.3:9"}, {"nonsense", "203.0.113.9"}, {"10.0.0.1:1", "203.0.113.9:80"}, {"10.0.0.1:1", "010.0.0.1"}, {"[fd00::1]:1", ",,"}, {"10.0.0.1:1", "::ffff:10.0.0.1"}} {
		f.Add(seed[0], seed[1], "6.6.6.6")
	}
	f.Fuzz(func(t *testing.T, peer, forwarded, forged string) {
		clientIP := func(lines ...string) netip.Addr {
			return s.clientIP(&http.Request{RemoteAddr: peer, Header: http.Header{"X-Forwarded-For": lines}})
		}
		ip := clientIP(forwarded)
		parsed, err := netip.ParseAddrPort(peer)
		switch {
		case err != nil:
			if ip.IsValid() {
				t.Errorf("%q is %v", peer, ip)
			}
			return
		case !ip.IsValid() || ip.Is4In6() || ip.Zone() != "":
			t.Errorf("%q %q: %v is not canonical", peer, forwarded, ip)
		}
		own := parsed.Addr().Unmap().WithZone("")
		if !s.trusted(own) && ip != own {
			t.Errorf("%q is nobody's proxy, but %q made it %v", peer, forwarded, ip)
		}
		named := slices.ContainsFunc(strings.Split(forwarded, ","), func(hop string) bool {
			hop = strings.Trim(hop, " \t\"[")
			for i := range len(hop) + 1 { // whatever follows it: a bracket, a port
				if a, err := netip.ParseAddr(hop[:i]); err == nil && a.Unmap().WithZone("") == ip {
					return true
				}
			}
			return false
		})
		if ip != own && !named {
			t.Errorf("%q %q: %v comes from nowhere", peer, forwarded, ip)
		}
		// Whatever stands further left, in the same line or in one before, is the client's own word.
		for _, lines := range [][]string{{forged + "," + forwarded}, {forged, forwarded}} {
			if got := clientIP(lines...); !s.trusted(ip) && got != ip {
				t.Errorf("%q %q: %v, but %v with %q in front", peer, forwarded, ip, got, forged)
			}
		}
		network, err := netip.ParsePrefix(networkOf(ip))
		if err != nil || !network.Contains(ip) || network.Bits() != 24 && network.Bits() != 64 {
			t.Errorf("%v is of the network %q: %v", ip, networkOf(ip), err)
		}
	})
}
