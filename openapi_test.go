// room:documents

package main

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// TestOpenAPI keeps openapi.json equal to the route table and the types.
func TestOpenAPI(t *testing.T) {
	document, err := json.Marshal(newDocument(), json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		t.Fatal(err)
	}
	document = append(document, '\n')
	if *update {
		if err := os.WriteFile("openapi.json", document, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(document, openapiJSON) {
		t.Error("openapi.json is not what the code says: go test -run TestOpenAPI -update")
	}
}

func TestOpenAPIDocumentIsValid(t *testing.T) {
	if err := apiDocument().Validate(t.Context()); err != nil {
		t.Error(err)
	}
}

// apiDocument is the embedded document, as a validator of OpenAPI 3.1 reads it.
var apiDocument = sync.OnceValue(func() *openapi3.T {
	openapi3.DefineStringFormatValidator("uuid", openapi3.NewCallbackValidator(func(s string) error {
		if !isUUID(s) {
			return errors.New("is not a UUID in lower case")
		}
		return nil
	}))
	document, err := openapi3.NewLoader().LoadFromData(openapiJSON)
	if err != nil {
		panic(err)
	}
	return document
})

// documentedRoutes finds the path of the document that a request is for.
var documentedRoutes = sync.OnceValue(func() *http.ServeMux {
	mux := http.NewServeMux()
	for path, item := range apiDocument().Paths.Map() {
		for method := range item.Operations() {
			mux.Handle(method+" "+path, http.NotFoundHandler())
		}
	}
	return mux
})

// checkAgainstDocument fails the test when a response is not what the document promises. Answers to paths and
// methods that it does not know must be problems.
func checkAgainstDocument(t testing.TB, r *http.Request, response *http.Response, body []byte) {
	t.Helper()
	for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"} {
		if response.Header.Get(name) != want {
			t.Errorf("%s %s: no %s", r.Method, r.URL.Path, name)
		}
	}
	if response.Header.Get("X-Request-Id") == "" || response.Header.Get("Cache-Control") == "" ||
		response.Header.Get("Content-Security-Policy") == "" {
		t.Errorf("%s %s: a header of every response is missing: %v", r.Method, r.URL.Path, response.Header)
	}
	if response.StatusCode >= 500 && response.StatusCode != 503 {
		t.Errorf("%s %s: %d is always a defect: %s", r.Method, r.URL.Path, response.StatusCode, body)
	}
	if response.StatusCode == 404 || response.StatusCode == 405 {
		var p problem
		if err := json.Unmarshal(body, &p, json.RejectUnknownMembers(true)); err != nil && !isOAuth(r.URL.Path) && r.Method != "HEAD" {
			t.Errorf("%s %s: %d is not a problem: %s", r.Method, r.URL.Path, response.StatusCode, body)
		}
		return
	}
	if r.Method == "HEAD" || r.Method == "OPTIONS" {
		return
	}
	_, pattern := documentedRoutes().Handler(r)
	_, path, _ := strings.Cut(pattern, " ")
	if path == "" {
		t.Errorf("%s %s is not in openapi.json", r.Method, r.URL.Path)
		return
	}
	item := apiDocument().Paths.Find(path)
	if s := response.StatusCode; s > 400 && s < 500 && s != 413 && !strings.Contains(item.GetOperation(r.Method).Description, strconv.Itoa(s)) {
		t.Errorf("%s %s: openapi.json does not say %d", r.Method, path, s)
	}
	route := &routers.Route{Spec: apiDocument(), Path: path, PathItem: item, Method: r.Method, Operation: item.GetOperation(r.Method)}
	err := openapi3filter.ValidateResponse(r.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: r, Route: route},
		Status:                 response.StatusCode, Header: response.Header, Body: io.NopCloser(bytes.NewReader(body)),
		Options: &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true},
	})
	if err != nil {
		t.Errorf("%s %s: the response is not what openapi.json says: %v\n%s", r.Method, r.URL.Path, err, body)
	}
}

// object is a JSON object in the making.
type object = map[string]any

// generator makes the document; schemas collects the named types it meets.
type generator struct {
	rules   map[string]rule
	schemas object
}

// stateRefusals are the statuses of a call that its columns and its input do not imply. Every refusal that any test
// receives is checked against the description that they end in.
var stateRefusals = map[string][]string{
	"register": {"403", "409"}, "acceptInvitationAsNewUser": {"409", "429"}, "issueToken": {"429"}, "verifyEmail": {"429"},
	"resetPassword": {"429"}, "confirmEmail": {"429"}, "acceptInvitation": {"403"}, "deleteMe": {"409"},
	"createUser": {"409"}, "updateUser": {"409"}, "deleteUser": {"409"}, "listOrganizations": {"403"}, "createOrganization": {"403", "409"},
	"updateOrganization": {"409"}, "createMembership": {"409"}, "updateMembership": {"409"}, "deleteMembership": {"409"}, "createInvitation": {"409"},
}

const exampleID = "01a20f0d-80c2-717f-882a-45ec3fd351dd"

func newDocument() object {
	g := &generator{rules: newRules(newPasswords(12, currentParams)), schemas: object{}}
	paths := object{}
	// Registration answers differently by configuration; the document shows both.
	for _, verification := range []bool{true, false} {
		s := &server{cfg: config{EmailVerification: verification}, log: slog.Default()}
		for _, rt := range s.routes() {
			method, path, _ := strings.Cut(rt.pattern, " ")
			item, _ := paths[path].(object)
			if item == nil {
				item = object{}
				paths[path] = item
			}
			operation := g.operation(rt, path)
			if known, ok := item[strings.ToLower(method)].(object); ok {
				for status, r := range operation["responses"].(object) {
					known["responses"].(object)[status] = r
				}
				continue
			}
			item[strings.ToLower(method)] = operation
		}
	}
	problemRef := object{"$ref": "#/components/schemas/Problem"}
	g.schemas["ErrorCode"] = object{"type": "string", "enum": errorCodes()}
	for _, failure := range []reflect.Type{reflect.TypeFor[problem](), reflect.TypeFor[oauthError]()} {
		g.schema(failure)
		g.schemas[exported(failure.Name())].(object)["properties"].(object)["code"] = object{"$ref": "#/components/schemas/ErrorCode"}
	}
	return object{
		"openapi": "3.1.0",
		"info": object{
			"title": "roster", "version": "1",
			"description": "Accounts, sign-in and team memberships. Errors are RFC 9457 problems with a stable `code`; " +
				"the OAuth endpoints answer in the shape of RFC 6749 instead. Besides what it says itself, every call refuses " +
				"what it cannot read (400), what is too large (413), and what comes while it is overloaded (503).",
			"license": object{"name": "MIT", "identifier": "MIT"},
		},
		"servers": []any{object{"url": "/"}},
		"tags":    []any{object{"name": "Sign-in"}, object{"name": "The caller"}, object{"name": "Users"}, object{"name": "Organizations"}, object{"name": "Around the API"}},
		"paths":   paths,
		"components": object{
			"schemas": g.schemas,
			"responses": object{
				"Problem": object{"description": "A refusal: RFC 9457.", "content": object{"application/problem+json": object{"schema": problemRef,
					"example": object{"title": "Not Found", "status": 404, "detail": errNotFound.Detail, "code": errNotFound.Code, "request_id": exampleID}}}},
				"OAuthError": object{"description": "A refusal: RFC 6749 section 5.2.", "content": object{"application/json": object{"schema": object{"$ref": "#/components/schemas/OauthError"},
					"example": object{"error": errInvalidGrant.OAuth, "error_description": errInvalidGrant.Detail, "code": errInvalidGrant.Code, "request_id": exampleID}}}},
			},
			"securitySchemes": object{"signIn": object{
				"type": "oauth2", "description": "The access token of POST /v1/auth/token.",
				"flows": object{"password": object{"tokenUrl": "/v1/auth/token", "refreshUrl": "/v1/auth/token", "scopes": object{}}},
			}},
		},
	}
}

// errorCodes reads the code of every apiError in the program, sorted.
var errorCodes = sync.OnceValue(func() (codes []string) {
	names, err := filepath.Glob("*.go")
	if err != nil {
		panic(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			panic(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			literal, _ := n.(*ast.CompositeLit)
			if literal == nil || fmt.Sprint(literal.Type) != "apiError" {
				return true
			}
			for _, e := range literal.Elts {
				if field := e.(*ast.KeyValueExpr); fmt.Sprint(field.Key) == "Code" {
					codes = append(codes, strings.Trim(field.Value.(*ast.BasicLit).Value, `"`))
				}
			}
			return false
		})
	}
	slices.Sort(codes)
	return codes
})

// A code tells one meaning, for good: clients switch on it.
func TestErrorCodes(t *testing.T) {
	t.Parallel()
	codes := errorCodes()
	if len(codes) < 20 || len(slices.Compact(slices.Clone(codes))) != len(codes) {
		t.Errorf("some code stands for two meanings: %v", codes)
	}
	for _, code := range codes {
		if strings.Trim(code, "abcdefghijklmnopqrstuvwxyz_") != "" {
			t.Errorf("%s is not snake_case", code)
		}
	}
}

func tagOf(path string) string {
	for prefix, tag := range map[string]string{"/v1/auth/": "Sign-in", "/v1/users/me": "The caller", "/v1/invitations": "The caller", "/v1/organizations": "Organizations"} {
		if strings.HasPrefix(path, prefix) {
			return tag
		}
	}
	if strings.HasPrefix(path, "/v1/") {
		return "Users"
	}
	return "Around the API"
}

func (g *generator) operation(rt route, path string) object {
	failure := object{"$ref": "#/components/responses/Problem"}
	if isOAuth(path) {
		failure = object{"$ref": "#/components/responses/OAuthError"}
	}
	responses := object{"default": failure}
	op := object{"operationId": rt.operation, "summary": rt.summary, "tags": []any{tagOf(path)}, "responses": responses}
	description, refusals := "", []string{}
	if rt.access != public {
		op["security"] = []any{object{"signIn": []any{}}}
		description = "Who may call: " + whoMayCall(rt.access) + ". "
		refusals = append(refusals, "401")
		if rt.access != signedIn {
			refusals = append(refusals, "403")
		}
	} else {
		op["security"] = []any{}
	}
	if rt.recent {
		refusals = append(refusals, "403")
	}
	if len(limitsOf(rt.operation, rt.access != public && !strings.HasPrefix(rt.pattern, "GET "))) > 0 { // room:throttling
		refusals = append(refusals, "429")
	}
	for _, f := range inputFields(rt.in) {
		refusals = append(refusals, map[string][]string{"path": {"404"}, "form": {"415"}, "json": {"415", "422"}}[f.source]...)
	}
	if refusals = append(refusals, stateRefusals[rt.operation]...); !strings.HasPrefix(rt.pattern, "GET ") && !strings.HasPrefix(rt.pattern, "POST ") {
		refusals = append(refusals, "412")
	}
	if slices.Sort(refusals); len(refusals) > 0 {
		op["description"] = description + "Refuses with " + strings.Join(slices.Compact(refusals), ", ") + "."
	}
	status := http.StatusText(rt.status)
	code := strconv.Itoa(rt.status)
	var parameters []any
	switch {
	case rt.out == reflect.TypeFor[file]():
		responses[code] = object{"description": status, "content": object{"*/*": object{}}}
	case rt.out == reflect.TypeFor[none]() || rt.out == reflect.TypeFor[revoked]():
		responses[code] = object{"description": status}
		if rt.out == reflect.TypeFor[revoked]() {
			responses[code] = object{"description": status, "content": object{"application/json": object{"schema": g.schema(rt.out)}}}
		}
	default:
		success := object{"description": status, "content": object{"application/json": object{"schema": g.schema(rt.out)}}}
		if _, ok := reflect.Zero(rt.out).Interface().(interface{ etag() string }); ok {
			success["headers"] = object{"ETag": object{"schema": object{"type": "string"}}}
			if strings.HasPrefix(rt.pattern, "GET ") {
				responses["304"] = object{"description": "Not Modified: your If-None-Match is current."}
				parameters = append(parameters, object{"name": "If-None-Match", "in": "header", "schema": object{"type": "string"}})
			}
		}
		responses[code] = success
	}
	more, body := g.input(inputFields(rt.in), rt.in)
	parameters = append(parameters, more...)
	if body != nil {
		op["requestBody"] = body
	}
	if parameters != nil {
		op["parameters"] = parameters
	}
	return op
}

// whoMayCall names the roles that have a permission of an organization, from the one table.
func whoMayCall(need access) string {
	var roles []string
	for _, role := range []string{"member", "admin", "owner"} {
		if allow(role, need) == nil {
			roles = append(roles, role)
		}
	}
	if roles == nil {
		return string(need)
	}
	return string(need) + " (" + strings.Join(roles, ", ") + ")"
}

// The README shows the table of permissions, each role with what it has beyond the one before it.
func TestPermissionsAreDocumented(t *testing.T) {
	t.Parallel()
	var before []access
	for _, role := range []string{"member", "admin", "owner"} {
		row := "| `" + role + "` |"
		if before != nil {
			row += " and"
		}
		for _, permission := range permissions[role] {
			if !slices.Contains(before, permission) {
				row += " `" + string(permission) + "`"
			}
		}
		if !strings.Contains(readText(t, "README.md"), row+" |\n") {
			t.Errorf("README.md has no %s", row)
		}
		before = permissions[role]
	}
}

// input returns the parameters and the request body of an input type.
func (g *generator) input(fields []inputField, t reflect.Type) (parameters []any, body object) {
	properties, required := object{}, []string{}
	media := "application/json"
	for _, f := range fields {
		schema := g.text(t.FieldByIndex(f.index).Type, f.rule)
		switch f.source {
		case "path":
			parameters = append(parameters, object{"name": f.name, "in": "path", "required": true, "schema": schema})
		case "header":
			parameters = append(parameters, object{"name": f.name, "in": "header", "schema": object{"type": "string"}})
		case "query":
			switch f.name {
			case "limit":
				schema = object{"type": "integer", "minimum": 1, "maximum": maxLimit, "default": defaultLimit}
			case "after":
				schema = object{"type": "string", "description": "next of the previous page"}
			}
			parameters = append(parameters, object{"name": f.name, "in": "query", "schema": schema})
		default:
			if f.source == "form" {
				media = "application/x-www-form-urlencoded"
			}
			properties[f.name] = schema
			if !f.optional {
				required = append(required, f.name)
			}
		}
	}
	if len(properties) == 0 {
		return parameters, nil
	}
	schema := object{"type": "object", "properties": properties}
	if media == "application/json" {
		schema["additionalProperties"] = false
	} else {
		schema["description"] = "Other parameters are ignored (RFC 6749 section 3.2)."
	}
	if len(required) > 0 {
		schema["required"] = required
	}
	if t == reflect.TypeFor[issueTokenInput]() { // RFC 6749 sections 4.3.2 and 6
		schema["if"] = object{"properties": object{"grant_type": object{"const": "password"}}}
		schema["then"] = object{"required": []string{"username", "password"}}
		schema["else"] = object{"required": []string{"refresh_token"}}
	}
	name := exported(t.Name())
	g.schemas[name] = schema
	return parameters, object{"required": true, "content": object{media: object{"schema": object{"$ref": "#/components/schemas/" + name}}}}
}

// text is the schema of an input field: its type, and what its rule promises.
func (g *generator) text(t reflect.Type, name string) object {
	pointers := 0
	for ; t.Kind() == reflect.Pointer; t = t.Elem() {
		pointers++
	}
	schema := object{"type": "string"}
	switch t.Kind() {
	case reflect.Bool:
		schema["type"] = "boolean"
	case reflect.Slice: // JSON of somebody else's making
		schema["type"] = "object"
	}
	if pointers == 2 {
		schema["type"] = []any{schema["type"], "null"}
	}
	for k, v := range g.rules[name].schema {
		schema[k] = v
	}
	return schema
}

// schema is the schema of an output type: every field present, null where there is no value.
func (g *generator) schema(t reflect.Type) object {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case t.Kind() == reflect.Pointer:
		inner := g.schema(t.Elem())
		if inner["$ref"] != nil {
			return object{"oneOf": []any{inner, object{"type": "null"}}}
		}
		inner["type"] = []any{inner["type"], "null"}
		return inner
	case t.Kind() == reflect.Slice:
		return object{"type": "array", "items": g.schema(t.Elem())}
	case t.Kind() == reflect.Map:
		return object{"type": "object"}
	case t.Kind() == reflect.String:
		return object{"type": "string"}
	case t.Kind() == reflect.Bool:
		return object{"type": "boolean"}
	case t.Kind() == reflect.Int || t.Kind() == reflect.Int32:
		return object{"type": "integer"}
	}
	name := exported(t.Name())
	if _, known := g.schemas[name]; !known {
		properties, required := object{}, []string{}
		g.schemas[name] = nil // a type that holds itself finds its name here
		for _, f := range reflect.VisibleFields(t) {
			tag, ok := f.Tag.Lookup("json")
			if !ok || tag == "-" {
				continue
			}
			tag, options, _ := strings.Cut(tag, ",")
			property := g.schema(f.Type)
			for k, v := range g.rules[f.Tag.Get("is")].schema {
				property[k] = v
			}
			properties[tag] = property
			if !strings.Contains(options, "omit") {
				required = append(required, tag)
			}
		}
		schema := object{"type": "object", "additionalProperties": false, "properties": properties}
		if len(required) > 0 {
			slices.Sort(required)
			schema["required"] = required
		}
		g.schemas[name] = schema
	}
	return object{"$ref": "#/components/schemas/" + name}
}

// exported returns SessionPage for page[main.session] and User for user.
func exported(name string) string {
	if inner, ok := strings.CutPrefix(name, "page["); ok {
		return exported(strings.TrimSuffix(inner[strings.LastIndexByte(inner, '.')+1:], "]")) + "Page"
	}
	runes := []rune(name)
	runes[0] = unicode.ToUpper(runes[0])
	return string(runes)
}
