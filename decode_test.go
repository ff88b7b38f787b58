package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
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
		"": "", "@example.com": "", "a@": "", "a@b": "", "a b@example.com": "", " a@example.com": "", "a@example.com ": "", "a@example.com.": "",
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
