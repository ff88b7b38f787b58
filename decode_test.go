package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// goldenFile compares a value with testdata/name; -update writes it.
func goldenFile(t *testing.T, name string, value any) {
	t.Helper()
	got, err := json.Marshal(value, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.WriteFile("testdata/"+name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("testdata/%s is not\n%s", name, got)
	}
}

// R03, R04, R15, R16: each a clear 4xx, nothing changed.
func TestBadBodies(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ok := `{"email":"ada@example.com","password":"correct horse battery","name":"Ada"}`
	for _, tc := range []struct {
		name   string
		body   string
		header http.Header
		status int
		code   string
	}{
		{"empty", "", nil, 400, "malformed_request"},
		{"spaces", "  \n", nil, 400, "malformed_request"},
		{"cut off", ok[:30], nil, 400, "malformed_request"},
		{"two values", ok + ok, nil, 400, "malformed_request"},
		{"trailing comma", `{"email":"a@example.com",}`, nil, 400, "malformed_request"},
		{"array", `[` + ok + `]`, nil, 400, "malformed_request"},
		{"text", `"x"`, nil, 400, "malformed_request"},
		{"null", `null`, nil, 400, "malformed_request"},
		{"duplicate member", `{"name":"a","name":"b"}`, nil, 400, "malformed_request"},
		{"duplicate by escape", `{"name":"a","\u006eame":"b"}`, nil, 400, "malformed_request"},
		{"duplicate inside", `{"x":{"a":1,"a":2}}`, nil, 400, "malformed_request"},
		{"wrong case", strings.Replace(ok, "email", "Email", 1), nil, 400, "malformed_request"},
		{"unknown member", `{"admin":true,` + ok[1:], nil, 400, "malformed_request"},
		{"array for text", strings.Replace(ok, `"ada@example.com"`, `["ada@example.com","eve@example.com"]`, 1), nil, 400, "malformed_request"}, // R65
		{"object for text", strings.Replace(ok, `"Ada"`, `{}`, 1), nil, 400, "malformed_request"},
		{"number for text", strings.Replace(ok, `"Ada"`, `1`, 1), nil, 400, "malformed_request"},
		{"invalid UTF-8", strings.Replace(ok, "Ada", "A\xffa", 1), nil, 400, "malformed_request"},
		{"overlong UTF-8", strings.Replace(ok, "Ada", "A\xc0\x80a", 1), nil, 400, "malformed_request"},
		{"lone surrogate", strings.Replace(ok, "Ada", `A\ud800a`, 1), nil, 400, "malformed_request"},
		{"byte order mark", "\xef\xbb\xbf" + ok, nil, 400, "malformed_request"},
		{"too deep", strings.Repeat("[", 40) + strings.Repeat("]", 40), nil, 400, "malformed_request"},
		{"far too deep", strings.Repeat(`{"a":`, 5000), nil, 400, "malformed_request"},
		{"too large", `{"name":"` + strings.Repeat("a", maxBody) + `"}`, nil, 413, "body_too_large"},
		{"text/plain", ok, http.Header{"Content-Type": {"text/plain"}}, 415, "unsupported_media_type"},
		{"no type", ok, http.Header{"Content-Type": nil}, 415, "unsupported_media_type"},
		{"form", ok, http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, 415, "unsupported_media_type"},
		{"latin1", ok, http.Header{"Content-Type": {"application/json; charset=iso-8859-1"}}, 415, "unsupported_media_type"},
		{"utf-16", ok, http.Header{"Content-Type": {`application/json; charset="utf-16"`}}, 415, "unsupported_media_type"},
		{"no charset", ok, http.Header{"Content-Type": {"application/json; charset="}}, 415, "unsupported_media_type"},
		{"two types", ok, http.Header{"Content-Type": {"application/json", "application/json"}}, 415, "unsupported_media_type"},
		{"gzip", ok, http.Header{"Content-Encoding": {"gzip"}}, 415, "unsupported_media_type"},
		{"NUL in text", strings.Replace(ok, "Ada", `A\u0000a`, 1), nil, 422, "invalid_fields"},
		{"everything wrong", `{"email":"x","password":"short","name":""}`, nil, 422, "invalid_fields"},
		{"nothing there", `{}`, nil, 422, "invalid_fields"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := s.in(t).do(request{method: "POST", path: "/v1/auth/register", body: tc.body, header: tc.header}).want(tc.status, tc.code)
			if a.header.Get("Content-Type") != "application/problem+json" || a.str("title") == "" || a.str("detail") == "" || a.str("request_id") == "" {
				t.Errorf("not a whole problem: %s", a.body)
			}
			if strings.Contains(tc.name, "everything") || strings.Contains(tc.name, "nothing") {
				if len(a.fields()) != 3 {
					t.Errorf("all bad fields are reported at once: %s", a.body)
				}
			}
		})
	}
	s.do(request{method: "POST", path: "/v1/auth/register", body: ok, header: http.Header{"Content-Type": {"Application/JSON; Charset=UTF-8"}, "Content-Encoding": {"Identity"}}}).want(202, "")
	for _, charset := range []string{"utf8", "UTF8", `"utf-8"`, `"Utf8"`} {
		s.do(request{method: "POST", path: "/v1/auth/register", body: ok, header: http.Header{"Content-Type": {"application/json;charset=" + charset}}}).want(202, "")
	}
	// Each unknown member costs the client a few bytes, and an answer many.
	var many strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&many, `"%d":1,`, i)
	}
	if a := s.post("/v1/auth/register", "", "{"+many.String()+ok[1:]).want(400, "malformed_request"); len(a.fields()) != maxParameters {
		t.Errorf("%d members are named", len(a.fields()))
	}
	if n := scalar[int](s, "select count(*) from registrations"); n != 1 {
		t.Errorf("%d registrations", n)
	}
}

// R18
func TestEmailRule(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 64) + "@" + strings.Repeat("b", 63) + "." + strings.Repeat("c", 63) + "." + strings.Repeat("d", 58) + ".io"
	for in, want := range map[string]string{
		"Ada@Example.COM": "ada@example.com", "a.b+c@x-y.example": "a.b+c@x-y.example", "o'neil@example.com": "o'neil@example.com",
		"g.m.a.i.l+x@gmail.com": "g.m.a.i.l+x@gmail.com", "1@example.c0m": "1@example.c0m", long: long,
		"": "", "@example.com": "", "a@": "", "a@b": "", "a b@example.com": "", "a@example.com.": "",
		" a@example.com": "a@example.com", "a@example.com ": "a@example.com", "\t\r\na@example.com\r\n": "a@example.com", "\u00a0\ufeffA@example.com\u3000\u2003": "a@example.com",
		" " + long + " ": long, "a@ example.com": "", "a@example.com\u200b": "", "\u0085a@example.com": "",
		"a@@example.com": "", "a@b@example.com": "", ".a@example.com": "", "a.@example.com": "", "a..b@example.com": "",
		"a@-example.com": "", "a@example-.com": "", "a@exa_mple.com": "", "a@[127.0.0.1]": "", "a@127.0.0.1": "", `"a"@example.com`: "",
		"Ada <ada@example.com>": "", "a(c)@example.com": "", "ä@example.com": "", "a@exämple.com": "", "a@example.com\r\nBcc: x@example.com": "",
		"a\x00@example.com": "", strings.Repeat("a", 65) + "@example.com": "", long + "x": "", "a,b@example.com": "",
		"\u212Aa@example.com": "", // the Kelvin sign lowers to k
	} {
		if got, code, _ := checkEmail(in); got != want || (code == "") != (want != "") {
			t.Errorf("%q: %q %s, want %q", in, got, code, want)
		}
	}
}

// White space around an address is no part of it, wherever one is read.
func TestSpaceAroundEmail(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, throttled, func(c *config) { c.EmailVerification = false })
	s.post("/v1/auth/register", "", map[string]string{"email": " Ada@example.com\n", "password": testPassword, "name": "Ada"}).want(201, "")
	if got := scalar[string](s, "select email from users"); got != "ada@example.com" {
		t.Errorf("stored as %q", got)
	}
	for _, username := range []string{"ada@example.com ", "\u00a0ada@example.com", "ADA@example.com\r\n", "\ufeffada@example.com\t"} {
		s.signInAs(username, testPassword).want(200, "")
	}
	// R38: one account has one counter, however its address is spelled.
	for i := range 10 {
		s.signInAs(strings.Repeat(" ", i)+"ada@example.com", "wrong").want(400, "invalid_grant")
	}
	s.signInAs("\tada@example.com\t", "wrong").want(429, "too_many_attempts")
}

// R17: a name has something to see.
func TestInvisibleNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", " ", "\u00a0", "\u3000", "\ufeff", "\u200b", "\u200b\u200c\u200d", "\u00ad", "\u2060", "\u180e", "\u061c", "\u200e", "\u034f", "\u0301", "\u0301\u0302", "\u20e3",
		"\ufe0f", "\U000e0100", "\u3164", "\u115f", "\u1160", "\uffa0", "\u2800", "\u2800\u2800", "\U000e0041", "\U000e0001", "\ufff9", "\u17b4", "\u180b", "\ue000", "\U000f0000",
		"\u0378", "\uffff", "\U0010ffff", "\U0001d159", "\U0001d173", "\U00013441", "\U00016fe4", "\u2065", "\u200b \u3164"} {
		if value, code, _ := checkName(name); code != "required" {
			t.Errorf("%+q: %q %q", name, value, code)
		}
	}
	for _, name := range []string{"A", "7", "李", "ا", "한", "\u1100\u1161", "\U0001f469\u200d\U0001f680", "❤\ufe0f", "e\u0301", "?", "-", "²", "\u200bA", "ก", "क्षि", "\u3164x", "\U00013000"} {
		if _, code, _ := checkName(name); code != "" {
			t.Errorf("%+q: %q", name, code)
		}
	}
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	s.post("/v1/organizations", m.token, map[string]string{"name": "\u3164", "slug": "acme"}).want(422, "invalid_fields")
}

// A field of a PATCH is absent, null or a value. Where null clears nothing, it is of the wrong type.
func TestPatchFields(t *testing.T) {
	t.Parallel()
	type patchInput struct {
		Name  *string  `json:"name" is:"name"`
		Phone **string `json:"phone" is:"name"`
		On    **bool   `json:"on"`
	}
	s := newTestServer(t)
	for body, want := range map[string]string{
		`{}`: "absent absent", `{"phone":null}`: "null absent", `{"phone":" 1 "}`: "1 absent", `{"on":null}`: "absent null", `{"on":false,"phone":"2"}`: "2 false",
		`{"name":null}`: "wrong_type", `{"phone":1}`: "wrong_type", `{"on":"true"}`: "wrong_type", `{"phone":""}`: "required",
	} {
		in, err := decodeFuzz[patchInput](s.server, "", body, "application/json")
		got := patched(in.Phone) + " " + patched(in.On)
		if refusal, ok := errors.AsType[*apiError](err); ok {
			got = refusal.Fields[0].Code
		}
		if got != want {
			t.Errorf("%s: %s, want %s", body, got, want)
		}
	}
	g := &generator{rules: s.rules}
	if schema := g.text(reflect.TypeFor[**string](), "slug"); fmt.Sprint(schema["type"]) != "[string null]" {
		t.Errorf("documented as %v", schema)
	}
}

func patched[T any](v **T) string {
	switch {
	case v == nil:
		return "absent"
	case *v == nil:
		return "null"
	}
	return fmt.Sprint(**v)
}

// An empty PATCH is an answer, and neither a change nor a line in the audit trail.
func TestEmptyPatch(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	o := s.newTeam("acme")
	admin := s.newUser("root@example.com", "admin")
	for path, token := range map[string]string{
		"/v1/users/me": o.owner.token, "/v1/users/" + o.member.id: admin.token, o.path: o.owner.token, o.path + "/memberships/" + o.member.id: o.owner.token,
	} {
		patch := func(ifMatch string) answer {
			t.Helper()
			q := request{method: "PATCH", path: path, token: token, body: `{}`}
			if ifMatch != "" {
				q.header = http.Header{"If-Match": {ifMatch}}
			}
			return s.do(q)
		}
		before := scalar[int](s, "select count(*) from audit_events")
		first := patch("").want(200, "")
		again := patch(first.header.Get("ETag")).want(200, "")
		if again.header.Get("ETag") != first.header.Get("ETag") || string(again.body) != string(first.body) {
			t.Errorf("%s: %s %s", path, first.body, again.body)
		}
		patch(`"1"`).want(412, "precondition_failed")
		if n := scalar[int](s, "select count(*) from audit_events") - before; n != 0 {
			t.Errorf("%s: %d events", path, n)
		}
	}
}

// R115: what the OAuth endpoints do not know is nobody's business (RFC 6749 section 3.2); what they know comes once.
func TestOAuthParameters(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	signIn := "grant_type=password&username=ada%40example.com&password=" + url.QueryEscape(testPassword)
	form := func(path, body string) answer {
		t.Helper()
		return s.do(request{method: "POST", path: path, body: body, header: http.Header{"Content-Type": {"application/x-www-form-urlencoded; charset=ISO-8859-1"}}})
	}
	for _, more := range []string{"scope=openid", "foo=1", "foo=1&foo=2", "foo", "foo=", "=", "redirect_uri=x&response_type=code&device_id=1", "client_id=a&client_id=b",
		"refresh_token=", "x=%00", "x=%ff", "USERNAME=x", "username[]=x"} {
		form("/v1/auth/token", signIn+"&"+more).want(200, "")
	}
	form("/v1/auth/token?username=x&foo=1&foo=2", signIn).want(200, "")
	for body, code := range map[string]string{
		signIn + "&username=x": "malformed_request", signIn + "&username=": "malformed_request", signIn + "&grant_type=password": "malformed_request",
		signIn + "&refresh_token=%00": "malformed_request", signIn + strings.Repeat("&x=1", maxParameters): "malformed_request", signIn + "&x=%zz": "malformed_request",
		"grant_type=password&username=x": "invalid_request", "grant_type=&username=x": "invalid_fields", "username=x": "invalid_fields", "": "invalid_fields",
		"grant_type=authorization_code&code=x&code=y":                "unsupported_grant_type",
		"code=x&grant_type=urn%3Aietf%3Aparams%3Aoauth%3Adevice":     "unsupported_grant_type",
		"grant_type=client_credentials&username=a&username=b":        "unsupported_grant_type",
		"grant_type=Password&username=%00&refresh_token=%ff&foo=bar": "unsupported_grant_type",
		"grant_type=x&grant_type=y":                                  "malformed_request",
	} {
		wanted := "invalid_request"
		if code == "unsupported_grant_type" {
			wanted = code
		}
		if a := form("/v1/auth/token", body).want(400, code); a.str("error") != wanted {
			t.Errorf("%s: %s", body, a.body)
		}
	}
	form("/v1/auth/revoke", "token="+m.refresh+"&token_type_hint=x&token_type_hint=y&foo=").want(200, "")
	s.get("/v1/users/me", m.token).want(401, "invalid_access_token")
}

// Compressing proxies change a tag; it is a version of the row still.
func TestTagsOfProxies(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	for _, form := range []string{`"x"`, `W/"x"`, `"x-gzip"`, `W/"x-gzip"`, `"x;gzip"`, `"x--gzip"`, `"x-br"`, `"x:zstd"`, ` "x" `, `"other", W/"x"`} {
		tag := strings.Trim(s.get("/v1/users/me", m.token).header.Get("ETag"), `"`)
		sent := http.Header{"If-None-Match": {strings.Replace(form, "x", tag, 1)}}
		if a := s.do(request{path: "/v1/users/me", token: m.token, header: sent}); a.status != 304 {
			t.Errorf("%s: %d", form, a.status)
		}
		sent = http.Header{"If-Match": sent["If-None-Match"]}
		s.do(request{method: "PATCH", path: "/v1/users/me", token: m.token, body: map[string]string{"name": form}, header: sent}).want(200, "")
		s.do(request{method: "PATCH", path: "/v1/users/me", token: m.token, body: map[string]string{"name": form}, header: sent}).want(412, "precondition_failed")
	}
	tag := strings.Trim(s.get("/v1/users/me", m.token).header.Get("ETag"), `"`)
	for _, form := range []string{"x", `"x`, `"xx"`, `"x-"`, `"-gzip"`, `w/"x"`, `"x" gzip`} {
		sent := strings.Replace(form, "x", tag, 1)
		if form == `"xx"` {
			sent = `"` + tag + tag + `"`
		}
		s.do(request{method: "PATCH", path: "/v1/users/me", token: m.token, body: `{}`, header: http.Header{"If-Match": {sent}}}).want(412, "precondition_failed")
	}
}
