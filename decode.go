package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	maxBody       = 64 << 10
	maxDepth      = 32
	maxParameters = 20
)

// inputField is one field of an input struct and where it comes from.
type inputField struct {
	index    []int
	source   string // json, form, query, path or header
	name     string
	rule     string
	optional bool // a pointer, or a query parameter; what a pointer to a pointer is for may also be null
}

// inputFields reads the tags of an input type, once, when the route table is made.
func inputFields(t reflect.Type) (fields []inputField) {
	for _, f := range reflect.VisibleFields(t) {
		for _, source := range []string{"json", "form", "query", "path", "header"} {
			if name, ok := f.Tag.Lookup(source); ok {
				fields = append(fields, inputField{f.Index, source, name, f.Tag.Get("is"),
					f.Type.Kind() == reflect.Pointer || source == "query" || source == "header"})
			}
		}
	}
	return fields
}

// bodyKind returns json, form or "" for an input without a body.
func bodyKind(fields []inputField) string {
	for _, f := range fields {
		if f.source == "json" || f.source == "form" {
			return f.source
		}
	}
	return ""
}

// decode fills input from the request and reports every bad field at once: 400 when the shape is wrong (not readable,
// unknown, repeated or of the wrong type), else 422 when a value is.
func (s *server) decode(r *http.Request, c caller, fields []inputField, input reflect.Value) error {
	query, err := parseQuery(r.URL.RawQuery, fields)
	if err != nil {
		return err
	}
	ifMatch := parseIfMatch(strings.Join(r.Header.Values("If-Match"), ","))
	versioned := slices.ContainsFunc(fields, func(f inputField) bool { return f.source == "header" })
	if ifMatch != nil && !versioned && slices.Contains([]string{"PUT", "PATCH", "DELETE"}, r.Method) {
		return errStale // what has no versions has none of these (RFC 9110 section 13.1.1)
	}
	var shape, values []fieldError
	var members map[string]jsontext.Value
	var form url.Values
	switch bodyKind(fields) {
	case "json":
		members, shape, err = readJSON(r, fields)
	case "form":
		form, err = readForm(r)
	}
	if err != nil {
		return err
	}
	for _, f := range fields {
		target := input.FieldByIndex(f.index)
		var text string
		var present bool
		switch f.source {
		case "path":
			value, code, _ := s.rules[f.rule].check(r.PathValue(f.name))
			if code != "" {
				return errNotFound
			}
			target.SetString(value)
			continue
		case "header":
			target.Set(reflect.ValueOf(ifMatch))
			continue
		case "query":
			text, present = query.Get(f.name), query.Has(f.name)
			if err := s.setParameter(r, c, f, target, text, present); err != nil {
				return err
			}
			continue
		case "form":
			// RFC 6749 section 3.2: without a value is omitted, repeated is wrong, and unknown is nobody's business.
			text, present = form.Get(f.name), form.Get(f.name) != ""
			if bad := badParameter(f.name, form[f.name]); bad != nil {
				shape = append(shape, *bad)
				continue
			}
		case "json":
			var raw jsontext.Value
			if raw, present = members[f.name]; present {
				if target = allocate(target); target.Kind() == reflect.Pointer {
					if raw.Kind() == 'n' {
						continue // there, and null: cleared
					}
					target = allocate(target)
				}
				if err := json.Unmarshal(raw, target.Addr().Interface()); err != nil || raw.Kind() == 'n' || target.Kind() == reflect.Slice && raw.Kind() != '{' {
					shape = append(shape, fieldError{"/" + f.name, "wrong_type", "must be a " + kindOf(target)})
					continue
				}
				if target.Kind() != reflect.String {
					continue // what it is has no more rules
				}
				text = target.String()
			}
		}
		if !present {
			if !f.optional {
				values = append(values, fieldError{"/" + f.name, "required", "is required"})
			}
			continue
		}
		value, code, detail := s.rules[f.rule].check(text)
		switch {
		case code == "":
			allocate(target).SetString(value)
		case f.rule == "grant_type":
			return errGrantType // whatever comes with it: RFC 6749 section 5.2
		default:
			values = append(values, fieldError{"/" + f.name, code, detail})
		}
	}
	switch {
	case len(shape) > 0:
		return malformed(append(shape, values...)...)
	case len(values) > 0:
		return invalid(values...)
	}
	return nil
}

// kindOf is what a client calls the type of a field; JSON of somebody else's making is an object.
func kindOf(v reflect.Value) string {
	if v.Kind() == reflect.Slice {
		return "JSON object"
	}
	return v.Kind().String()
}

// allocate returns the value behind an optional field, making it when it is nil.
func allocate(v reflect.Value) reflect.Value {
	if v.Kind() != reflect.Pointer {
		return v
	}
	if v.IsNil() {
		v.Set(reflect.New(v.Type().Elem()))
	}
	return v.Elem()
}

// setParameter reads one query parameter.
func (s *server) setParameter(r *http.Request, c caller, f inputField, target reflect.Value, text string, present bool) error {
	if !present {
		if f.name == "limit" {
			target.SetInt(defaultLimit)
		}
		return nil
	}
	bad := func(detail string) error { return malformed(fieldError{f.name, "invalid_parameter", detail}) }
	switch f.name {
	case "limit":
		limit, err := parseLimit(text)
		if err != nil {
			return bad(err.Error())
		}
		target.SetInt(int64(limit))
	case "after":
		id, err := s.keys.parseCursor(cursorScope(r, c), text)
		if err != nil {
			return errBadCursor
		}
		target.SetString(id)
	default:
		if target = allocate(target); target.Kind() == reflect.Bool {
			if text != "true" && text != "false" {
				return bad("must be true or false")
			}
			target.SetBool(text == "true")
			return nil
		}
		value, code, detail := s.rules[f.rule].check(text)
		if code != "" {
			return bad(detail)
		}
		target.SetString(value)
	}
	return nil
}

// parseQuery refuses unknown and repeated parameters (R21).
func parseQuery(raw string, fields []inputField) (url.Values, error) {
	if raw == "" {
		return nil, nil
	}
	if strings.Count(raw, "&") >= maxParameters {
		return nil, errMalformed
	}
	query, err := url.ParseQuery(raw)
	if err != nil {
		return nil, errMalformed.because(err)
	}
	if bodyKind(fields) == "form" {
		return nil, nil // whatever stands there is unknown: RFC 6749 section 3.2
	}
	var bad []fieldError
	for name, values := range query {
		if !slices.ContainsFunc(fields, func(f inputField) bool { return f.source == "query" && f.name == name }) {
			bad = append(bad, fieldError{strconv.QuoteToASCII(name), "unknown_parameter", "is not a parameter of this call"})
		} else if wrong := badParameter(name, values); wrong != nil {
			bad = append(bad, *wrong)
		}
	}
	if bad == nil {
		return query, nil
	}
	slices.SortFunc(bad, func(a, b fieldError) int { return strings.Compare(a.Pointer, b.Pointer) })
	return nil, malformed(bad...)
}

// badParameter says what is wrong with a parameter that comes twice or is not text.
func badParameter(name string, values []string) *fieldError {
	switch {
	case len(values) > 1:
		return &fieldError{name, "repeated_parameter", "may be given once"}
	case len(values) == 1 && (!utf8.ValidString(values[0]) || strings.ContainsRune(values[0], 0)):
		return &fieldError{name, "invalid_parameter", "must be UTF-8 text"}
	}
	return nil
}

const formType = "application/x-www-form-urlencoded"

// readBody returns the body, which shed has read and limited, if it is of the given media type; never decompressed.
// The parameters of a form's media type mean nothing.
func readBody(r *http.Request, mediaType string) ([]byte, error) {
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset, hasCharset := params["charset"]
	charset = strings.ToLower(charset)
	readable := err == nil && (!hasCharset || charset == "utf-8" || charset == "utf8")
	e := *errMediaType
	switch encoding := r.Header.Get("Content-Encoding"); {
	case kind != mediaType, len(r.Header["Content-Type"]) != 1, !readable && mediaType != formType:
		e.Detail = "The body must be " + mediaType + " in UTF-8."
	case encoding != "" && !strings.EqualFold(encoding, "identity"):
		e.Detail = "The body must not be compressed."
	default:
		return io.ReadAll(r.Body)
	}
	return nil, &e
}

// readJSON reads one strict JSON object (R15, R16) into its members. Unknown members are returned as shape errors.
func readJSON(r *http.Request, fields []inputField) (map[string]jsontext.Value, []fieldError, error) {
	body, err := readBody(r, "application/json")
	if err != nil {
		return nil, nil, err
	}
	members, err := parseObject(body)
	if err != nil {
		e := *errMalformed
		e.Detail = "The body is not one strict JSON object: " + err.Error()
		return nil, nil, &e
	}
	var unknown []fieldError
	for name := range members {
		if !slices.ContainsFunc(fields, func(f inputField) bool { return f.source == "json" && f.name == name }) {
			pointer := string(jsontext.Pointer("").AppendToken(name))
			unknown = append(unknown, fieldError{pointer, "unknown_field", "is not a field of this call"})
		}
	}
	slices.SortFunc(unknown, func(a, b fieldError) int { return strings.Compare(a.Pointer, b.Pointer) })
	return members, unknown[:min(len(unknown), maxParameters)], nil // the answer must not outgrow the request
}

// parseObject reads one JSON object: no duplicate members at any level, valid UTF-8, no lone surrogates, nothing behind
// it, which are the defaults of jsontext, and no deeper than maxDepth. An error says where and what, without repeating
// the client's bytes.
func parseObject(body []byte) (members map[string]jsontext.Value, err error) {
	// The depth comes first: tokens are read without the recursion that a whole value costs.
	for d := jsontext.NewDecoder(bytes.NewReader(body)); err == nil; _, err = d.ReadToken() {
		if d.StackDepth() > maxDepth {
			return nil, errors.New("it is nested too deeply")
		}
	}
	err = json.Unmarshal(body, &members)
	syntax, ok := errors.AsType[*jsontext.SyntacticError](err)
	switch {
	case err == nil && members != nil:
		return members, nil
	case !ok:
		return nil, errors.New("it is another value")
	case errors.Is(err, jsontext.ErrDuplicateName):
		err = errors.New("a member is there twice")
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = errors.New("it ends early")
	default:
		err = errors.New("it is not valid JSON in UTF-8")
	}
	return nil, fmt.Errorf("%w at byte %d", err, syntax.ByteOffset)
}

func readForm(r *http.Request) (url.Values, error) {
	body, err := readBody(r, formType)
	if err != nil {
		return nil, err
	}
	if bytes.Count(body, []byte("&")) >= maxParameters {
		return nil, errMalformed
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, errMalformed.because(err)
	}
	return form, nil
}
