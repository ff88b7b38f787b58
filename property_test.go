package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"reflect"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"golang.org/x/text/unicode/norm"
)

// The OpenAPI document is a promise in both directions: what it allows is never refused for its form, what it forbids
// is always refused, by name. These tests make their requests out of the document, and know nothing else of the rules.

// propertySeed makes every run the same; another one tries other requests.
const propertySeed = 20261124

// apiOperation is one operation of openapi.json, as far as it takes input.
type apiOperation struct {
	id, method, path string
	media            string
	body             object // its schema
	parameters       []apiParameter
}

type apiParameter struct {
	Name   string `json:"name"`
	In     string `json:"in"`
	Schema object `json:"schema"`
}

func (o apiOperation) oauth() bool { return isOAuth(o.path) }

// apiOperations reads those that take a body, a query or a path.
func apiOperations(t *testing.T) (operations []apiOperation) {
	var document struct {
		Paths map[string]map[string]struct {
			OperationID string         `json:"operationId"`
			Parameters  []apiParameter `json:"parameters"`
			RequestBody struct {
				Content map[string]struct {
					Schema struct {
						Ref string `json:"$ref"`
					} `json:"schema"`
				} `json:"content"`
			} `json:"requestBody"`
		} `json:"paths"`
		Components struct {
			Schemas map[string]object `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal(openapiJSON, &document); err != nil {
		t.Fatal(err)
	}
	for _, path := range slices.Sorted(maps.Keys(document.Paths)) {
		for _, method := range slices.Sorted(maps.Keys(document.Paths[path])) {
			described := document.Paths[path][method]
			o := apiOperation{id: described.OperationID, method: strings.ToUpper(method), path: path}
			for _, p := range described.Parameters {
				if p.In != "header" {
					o.parameters = append(o.parameters, p)
				}
			}
			for media, content := range described.RequestBody.Content {
				o.media, o.body = media, document.Components.Schemas[strings.TrimPrefix(content.Schema.Ref, "#/components/schemas/")]
			}
			if o.body != nil || o.parameters != nil {
				operations = append(operations, o)
			}
		}
	}
	return operations
}

// ecmaSpace is \s of ECMA-262, which JSON Schema's patterns are written in, in the syntax of Go.
const ecmaSpace = `\t-\r \x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}`

// goPattern translates as much of ECMA-262 as the document uses.
func goPattern(pattern string) string {
	pattern = regexp.MustCompile(`\\u([0-9A-F]{4})`).ReplaceAllString(pattern, `\x{$1}`)
	return strings.NewReplacer(`[^\s`, `[^`+ecmaSpace, `\s`, `[`+ecmaSpace+`]`).Replace(pattern)
}

// allows says whether a schema allows a value: the small part of JSON Schema that inputs use.
func allows(schema object, value any) bool {
	switch v := value.(type) {
	case map[string]any:
		if condition, ok := schema["if"].(object); ok {
			branch := "else"
			if allows(condition, v) {
				branch = "then"
			}
			if !allows(schema[branch].(object), v) {
				return false
			}
		}
		for _, name := range names(schema["required"]) {
			if _, there := v[name]; !there {
				return false
			}
		}
		properties, _ := schema["properties"].(object)
		for name, value := range v {
			property, known := properties[name].(object)
			if !known && schema["additionalProperties"] == false || known && !allows(property, value) {
				return false
			}
		}
		return schema["type"] == nil || schema["type"] == "object"
	case string:
		n := float64(utf8.RuneCountInString(v))
		least, bounded := schema["minLength"].(float64)
		most, bounded2 := schema["maxLength"].(float64)
		pattern, patterned := schema["pattern"].(string)
		enum, listed := schema["enum"].([]any)
		constant, fixed := schema["const"]
		return (schema["type"] == nil || schema["type"] == "string") && (!bounded || n >= least) && (!bounded2 || n <= most) &&
			(!patterned || regexp.MustCompile(goPattern(pattern)).MatchString(v)) && (!listed || slices.Contains(enum, any(v))) && (!fixed || constant == v) &&
			(schema["format"] != "email" || strings.IndexByte(v, '@') <= 64) // RFC 5321 section 4.5.3.1.1
	case bool:
		return schema["type"] == "boolean"
	}
	return false
}

func names(list any) (all []string) {
	items, _ := list.([]any)
	for _, item := range items {
		all = append(all, item.(string))
	}
	return all
}

// chance makes values. known are those that exist in the test's database, by the name of the field.
type chance struct {
	*rand.Rand
	known map[string]string
}

// text makes a string that a schema allows, often of the least or greatest length.
func (r chance) text(schema object) string {
	if enum, ok := schema["enum"].([]any); ok {
		return enum[r.IntN(len(enum))].(string)
	}
	pattern, ok := schema["pattern"].(string)
	if !ok {
		pattern = `^[^\x00]*$`
	}
	parsed, err := syntax.Parse(goPattern(pattern), syntax.Perl)
	if err != nil {
		panic(err)
	}
	most, ok := schema["maxLength"].(float64)
	if !ok {
		most = 64
	}
	for range 1000 {
		wanted := []int{0, 1, 8, int(most) / 2, int(most)}[r.IntN(5)]
		var b strings.Builder
		r.matching(&b, parsed, max(1, wanted))
		s := b.String()
		if extra := utf8.RuneCountInString(s) - int(most); extra > 0 {
			s = string([]rune(s)[:int(most)])
		}
		// A few code points become more by composing: the description says that a name is measured afterwards.
		// That something can be seen no pattern says.
		if allows(schema, s) && norm.NFC.IsNormalString(s) && (pattern != namePattern || strings.ContainsFunc(s, visible)) {
			return s
		}
	}
	panic(fmt.Sprintf("no text for %v", schema))
}

// matching writes a string that an expression matches; what it repeats without end is there about n times.
func (r chance) matching(b *strings.Builder, e *syntax.Regexp, n int) {
	times := func(least, most int) {
		if most < 0 || most > least+n {
			most = least + n
		}
		for range least + r.IntN(most-least+1) {
			r.matching(b, e.Sub[0], n)
		}
	}
	switch e.Op {
	case syntax.OpLiteral:
		b.WriteString(string(e.Rune))
	case syntax.OpCharClass:
		b.WriteRune(r.oneOf(e.Rune))
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		b.WriteRune(r.oneOf([]rune{' ', unicode.MaxRune}))
	case syntax.OpCapture, syntax.OpConcat:
		for _, sub := range e.Sub {
			r.matching(b, sub, n)
		}
	case syntax.OpAlternate:
		r.matching(b, e.Sub[r.IntN(len(e.Sub))], n)
	case syntax.OpStar:
		if e.Sub[0].Op == syntax.OpCharClass && r.IntN(2) == 0 {
			for range n { // as long as wanted, not only up to it
				r.matching(b, e.Sub[0], n)
			}
			return
		}
		times(0, -1)
	case syntax.OpPlus:
		times(1, -1)
	case syntax.OpQuest:
		times(0, 1)
	case syntax.OpRepeat:
		times(e.Min, e.Max)
	}
}

// oneOf picks of the ranges of a character class, every third time from the whole of it.
func (r chance) oneOf(ranges []rune) rune {
	for {
		i := 2 * r.IntN(len(ranges)/2)
		c := ranges[i] + r.Int32N(min(ranges[i+1]-ranges[i], 0x5f)+1)
		if r.IntN(3) == 0 {
			c = ranges[i] + r.Int32N(ranges[i+1]-ranges[i]+1)
		}
		if utf8.ValidRune(c) {
			return c
		}
	}
}

// value makes what a schema allows for a field; known says to take what exists, if something does.
func (r chance) value(name string, schema object, known bool) any {
	if v, ok := r.known[name]; ok && known && allows(schema, v) {
		return v
	}
	switch schema["type"] {
	case "boolean":
		return r.IntN(2) == 0
	case "object":
		return map[string]any{"id": r.text(object{})}
	}
	return r.text(schema)
}

// object makes a body that a schema allows.
func (r chance) object(schema object, known bool) map[string]any {
	required := names(schema["required"])
	for {
		body := map[string]any{}
		properties := schema["properties"].(object)
		for _, name := range slices.Sorted(maps.Keys(properties)) {
			if slices.Contains(required, name) || known && r.known[name] != "" || r.IntN(2) == 0 {
				body[name] = r.value(name, properties[name].(object), known || r.IntN(2) == 0)
			}
		}
		if allows(schema, body) {
			return body
		}
	}
}

// parameter makes what a parameter's schema allows, as text.
func (r chance) parameter(p apiParameter, known bool) string {
	switch p.Schema["type"] {
	case "integer":
		least, most := int(p.Schema["minimum"].(float64)), int(p.Schema["maximum"].(float64))
		return fmt.Sprint([]int{least, most, least + r.IntN(most-least+1)}[r.IntN(3)])
	case "boolean":
		return fmt.Sprint(r.IntN(2) == 0)
	}
	return r.value(p.Name, p.Schema, known).(string)
}

// forbidden returns values that a schema forbids for a field, each with what is wrong with it.
func (r chance) forbidden(schema object, form bool) map[string]any {
	bad := map[string]any{}
	if !form {
		bad = map[string]any{"null": nil, "a number": 1, "a list": []any{"x"}, "an object": map[string]any{}, "true": true, "text": "true"}
	}
	if schema["type"] == "boolean" {
		delete(bad, "true")
		return bad
	}
	if schema["type"] == "object" {
		delete(bad, "an object")
		return bad
	}
	delete(bad, "text")
	for what, text := range map[string]string{
		"empty": "", "NUL": "\x00", "blank": " ", "upper case": strings.ToUpper(r.text(schema)), "a letter more": r.text(schema) + "ä",
		"NUL inside": r.text(schema) + "\x00", "an override": "a\u202eb", "a separator": "a\u2029b", "a control": "\u0085a", "a mark": "\ufeff", "of no list": "root",
	} {
		bad[what] = text
	}
	if most, ok := schema["maxLength"].(float64); ok {
		bad["one too many"] = strings.Repeat("é", int(most)+1)
		bad["too long"] = strings.Repeat("a", int(most)-20) + "@" + strings.Repeat("b.", 20) + "example"
	}
	if least, ok := schema["minLength"].(float64); ok && least > 0 {
		bad["one too few"] = strings.Repeat("a", int(least)-1)
	}
	if schema["format"] == "email" {
		bad["a long local part"] = strings.Repeat("a", 65) + "@example.com"
	}
	maps.DeleteFunc(bad, func(_ string, v any) bool {
		text, ok := v.(string)
		trimmed := schema["description"] != nil && allows(schema, strings.TrimFunc(text, whiteSpace)) // as a name is
		return ok && (allows(schema, text) || trimmed || form && text == "")                          // of a form, what is empty is not there: RFC 6749 section 3.2
	})
	return bad
}

// send makes the request of an operation as somebody who may call it.
func (o apiOperation) send(s *testServer, as map[string]string, path map[string]string, query url.Values, body any) answer {
	s.t.Helper()
	q := request{method: o.method, path: o.path}
	for name, value := range path {
		q.path = strings.ReplaceAll(q.path, "{"+name+"}", url.PathEscape(value))
	}
	if len(query) > 0 {
		q.path += "?" + query.Encode()
	}
	switch {
	case strings.HasPrefix(o.path, "/v1/users/me"), strings.HasPrefix(o.path, "/v1/invitations"):
		q.token = as["member"]
	case o.id == "createMembership", strings.HasPrefix(o.path, "/v1/users"), o.path == "/v1/audit-events":
		q.token = as["admin"]
	case strings.HasPrefix(o.path, "/v1/organizations"):
		q.token = as["owner"]
	}
	if members, ok := body.(map[string]any); ok && o.media != "application/json" {
		form := url.Values{}
		for name, value := range members {
			form.Set(name, value.(string))
		}
		body = form
	}
	q.body = body
	return s.do(q)
}

// semantic lists, for each operation, the only codes that may refuse what the document allows: they depend on what is
// in the database, not on the form.
var semantic = map[string][]string{
	"register": {"password_too_common"}, "createUser": {"password_too_common"},
	"changePassword": {"wrong_password", "password_too_common"}, "changeEmail": {"wrong_password"},
	"verifyEmail": {"invalid_token"}, "resetPassword": {"invalid_token"}, "confirmEmail": {"invalid_token"},
	"acceptInvitation": {"invalid_token"}, "acceptInvitationAsNewUser": {"invalid_token"},
	"issueToken": {"invalid_grant"}, "createMembership": {"unknown_user"}, "updateMembership": {"disabled_user"},
	"listUsers": {"invalid_cursor"}, "listAuditEvents": {"invalid_cursor"}, "listOrganizations": {"invalid_cursor"}, "listOrganizationAuditEvents": {"invalid_cursor"},
	"listMemberships": {"invalid_cursor"}, "listInvitations": {"invalid_cursor"}, "listMyMemberships": {"invalid_cursor"}, "listSessions": {"invalid_cursor"},
}

// withoutSuccess are operations that need a token out of a mail, or whose success would end what the test works with.
var withoutSuccess = []string{"verifyEmail", "resetPassword", "confirmEmail", "acceptInvitation", "acceptInvitationAsNewUser",
	"deleteSession", "deleteUser", "deleteUserSessions", "deleteOrganization", "deleteMembership", "deleteInvitation"}

// propertyServer is a server with somebody for every operation.
func propertyServer(t *testing.T) (s *testServer, as map[string]string, r chance) {
	s = newTestServer(t)
	t.Logf("seed %d", propertySeed)
	member, admin, owner, subject := s.newUser("member@example.com", "user"), s.newUser("admin@example.com", "admin"), s.newUser("owner@example.com", "user"), s.newUser("subject@example.com", "user")
	organization := s.post("/v1/organizations", owner.token, map[string]string{"name": "Acme", "slug": "acme"}).want(201, "").str("id")
	return s, map[string]string{"member": member.token, "admin": admin.token, "owner": owner.token}, chance{rand.New(rand.NewPCG(propertySeed, 0)), map[string]string{
		"organization_id": organization, "user_id": subject.id, "actor_id": owner.id, "file": "docs.js", "username": "member@example.com",
		"password": testPassword, "current_password": testPassword, "new_password": testPassword, "grant_type": "password",
	}}
}

// paths makes the path parameters of an operation.
func (r chance) paths(o apiOperation, known bool) map[string]string {
	path := map[string]string{}
	for _, p := range o.parameters {
		if p.In == "path" {
			path[p.Name] = r.parameter(p, known)
		}
	}
	return path
}

// R13, R19, R20, R21: nothing that the document allows is refused for its form, and nothing at all is a defect.
func TestAllowedInput(t *testing.T) {
	t.Parallel()
	s, as, r := propertyServer(t)
	for _, o := range apiOperations(t) {
		succeeded := false
		for i := range 10 {
			known := i == 0 || r.IntN(3) == 0
			path, query := r.paths(o, known && o.method != "DELETE"), url.Values{} // what it works with stays
			for _, p := range o.parameters {
				if p.In == "query" && p.Name != "after" && r.IntN(2) == 0 || p.Name == "after" && i == 9 {
					query.Set(p.Name, r.parameter(p, known))
				}
			}
			if o.id == "listOrganizations" {
				query.Del("all") // of the owner, who is no admin
			}
			var body any
			if o.body != nil {
				body = r.object(o.body, known)
			}
			a := o.send(s, as, path, query, body)
			succeeded = succeeded || a.status < 300
			codes := []string{a.code()}
			if a.status == 422 {
				codes = slices.Sorted(maps.Values(a.fields()))
			}
			refused := a.status == 400 || a.status == 401 || a.status == 405 || a.status == 413 || a.status == 415 || a.status == 422 || a.status >= 500
			if refused && slices.ContainsFunc(codes, func(code string) bool { return !slices.Contains(semantic[o.id], code) }) {
				t.Errorf("%s %v ?%s %q: %d %s", o.id, path, query.Encode(), body, a.status, a.body)
			}
		}
		if !succeeded && !slices.Contains(withoutSuccess, o.id) {
			t.Errorf("%s never succeeded: its requests prove nothing", o.id)
		}
	}
}

// R13, R15, R19, R20, R21, R25: whatever the document forbids is refused, and the refusal names the very field.
func TestForbiddenInput(t *testing.T) {
	t.Parallel()
	s, as, r := propertyServer(t)
	before := scalar[int](s, "select count(*) from users")
	for _, o := range apiOperations(t) {
		// refused wants one bad field, of this name.
		refused := func(a answer, what, name string) {
			t.Helper()
			if o.oauth() {
				if a.status != 400 || !strings.Contains(a.str("error_description"), name) {
					t.Errorf("%s with %s: %d %s", o.id, what, a.status, a.body)
				}
				return
			}
			if fields := slices.Collect(maps.Keys(a.fields())); a.status != 400 && a.status != 422 || !reflect.DeepEqual(fields, []string{name}) {
				t.Errorf("%s with %s: %d %s", o.id, what, a.status, a.body)
			}
		}
		path := r.paths(o, true)
		for _, p := range o.parameters {
			if p.In == "path" && p.Schema["format"] == "uuid" {
				for _, bad := range []string{"x", "%", strings.ToUpper(newID()), newID() + "0", "{" + newID() + "}", "\x00"} {
					wrong := maps.Clone(path)
					wrong[p.Name] = bad
					var body any
					if o.body != nil {
						body = r.object(o.body, true)
					}
					o.send(s, as, wrong, nil, body).want(404, "not_found")
				}
			}
			if p.In != "query" {
				continue
			}
			bad := map[string]any{}
			for _, text := range []string{"", "0", "101", "-1", "+1", "1.5", "1e1", " 1", "0x1", "99999999999999999999", "ten", "TRUE"} {
				bad[text] = text
			}
			if p.Schema["type"] == "string" {
				bad = r.forbidden(p.Schema, true)
			}
			for what, value := range bad {
				if p.Name != "after" { // any text may be a cursor
					refused(o.send(s, as, path, url.Values{p.Name: {value.(string)}}, nil), p.Name+" "+what, p.Name)
				}
			}
			value := r.parameter(p, true)
			refused(o.send(s, as, path, url.Values{p.Name: {value, value}}, nil), "two of "+p.Name, p.Name)
		}
		unknown := url.Values{"admin": {"1"}}
		if o.media == "" && !o.oauth() && o.id != "readDocsFile" {
			refused(o.send(s, as, path, unknown, nil), "an unknown parameter", `"admin"`)
		}
		if o.body == nil {
			continue
		}
		form, pointer := o.media != "application/json", func(name string) string { return "/" + name }
		if form {
			pointer = func(name string) string { return name }
		}
		properties := o.body["properties"].(object)
		for _, grant := range []string{"password", "refresh_token"} { // two kinds of body for issueToken, once again for others
			if o.id != "issueToken" && grant != "password" {
				continue
			}
			r.known["grant_type"] = grant
			whole := r.object(o.body, true)
			alter := func(what, name string, change func(body map[string]any)) {
				t.Helper()
				body := maps.Clone(whole)
				change(body)
				if allows(o.body, body) {
					t.Errorf("%s with %s is allowed: %q", o.id, what, body)
				}
				refused(o.send(s, as, path, nil, body), what, pointer(name))
			}
			if !form { // which may hold whatever else: RFC 6749 section 3.2
				alter("an unknown field", "admin", func(body map[string]any) { body["admin"] = "true" })
			}
			for _, name := range slices.Sorted(maps.Keys(properties)) {
				property := properties[name].(object)
				if _, there := whole[name]; !there {
					whole[name] = r.value(name, property, true)
				}
				if !form {
					alter(name+" in capitals", strings.ToUpper(name), func(body map[string]any) { body[strings.ToUpper(name)] = whole[name] })
				}
				without := maps.Clone(whole)
				if delete(without, name); !allows(o.body, without) {
					alter("no "+name, name, func(body map[string]any) { delete(body, name) })
				}
				bad := r.forbidden(property, form)
				for _, what := range slices.Sorted(maps.Keys(bad)) {
					alter(fmt.Sprintf("%s %s %q", name, what, bad[what]), name, func(body map[string]any) { body[name] = bad[what] })
				}
			}
		}
	}
	if after := scalar[int](s, "select count(*) from users"); after != before {
		t.Errorf("%d users, there were %d", after, before)
	}
}
