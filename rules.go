package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// rule is what one `is` tag promises of a string: the JSON Schema that the OpenAPI document shows, and the check
// behind it, which returns the value as it is stored, or a code and a sentence that says what is wrong.
type rule struct {
	schema map[string]any
	check  func(string) (value, code, detail string)
}

// newRules returns every rule by name. Both the decoder and the OpenAPI document read this table.
func newRules(p *passwords) map[string]rule {
	// The shortest address is a@b.c; that a local part ends after 64 characters is part of the format.
	name := map[string]any{"minLength": 1, "maxLength": maxName, "pattern": namePattern,
		"description": "Trimmed and composed (Unicode NFC) before it is measured; with something to see among its characters."}
	return map[string]rule{
		"email": {map[string]any{"format": "email", "minLength": 5, "maxLength": maxEmail, "pattern": emailPattern.String()}, checkEmail},
		"name":  {name, checkName},
		"new_password": {map[string]any{"format": "password", "minLength": p.minLength, "maxLength": maxPasswordPoints, "pattern": noNUL},
			func(s string) (string, string, string) {
				code, detail := p.problem(s, "")
				return s, code, detail
			}},
		"password": {map[string]any{"format": "password", "minLength": 1, "maxLength": maxPasswordBytes, "pattern": noNUL}, length(1, maxPasswordBytes)},
		// What is no address is of nobody; an address has one spelling, whose attempts are counted (R38).
		"username": {map[string]any{"minLength": 1, "pattern": noNUL}, func(s string) (string, string, string) {
			if email, code, _ := checkEmail(s); code == "" {
				return email, "", ""
			}
			return length(1, maxBody)(s)
		}},
		// Whatever fits into a body is a wrong one, not a bad request.
		"credential": {map[string]any{"minLength": 1, "pattern": noNUL}, length(1, maxBody)},
		"text":       {map[string]any{"maxLength": maxAccessBytes, "pattern": noNUL}, length(0, maxAccessBytes)},
		"grant_type": enum("password", "refresh_token"),
		"uuid":       {map[string]any{"format": "uuid", "pattern": uuidPattern}, checkUUID},
		"role":       enum("user", "admin"),
		"search":     {name, checkName},
		"action":     {map[string]any{"pattern": actionPattern.String()}, checkAction},
		"slug":       {map[string]any{"minLength": 2, "maxLength": 40, "pattern": slugPattern.String()}, checkSlug},

		"organization_role": enum("member", "admin", "owner"),
	}
}

const (
	maxEmail = 254
	maxName  = 100
)

// emailPattern is an ASCII addr-spec without quotes, comments or literals: a dot-atom at a domain name of two or
// more labels (RFC 5321 section 2.3.5), the last one starting with a letter. A client may type capitals.
var emailPattern = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*" +
	`@([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

// checkEmail returns the canonical form: lower case, without the white space that keyboards and tables leave around an
// address, and nothing else folded (R18).
func checkEmail(s string) (value, code, detail string) {
	s = strings.TrimFunc(s, whiteSpace)
	// The length comes first: nothing parses what is too long.
	if len(s) > maxEmail || strings.IndexByte(s, '@') > 64 || !emailPattern.MatchString(s) {
		return "", "invalid_email", "must be an address such as ada@example.com"
	}
	return strings.ToLower(s), "", ""
}

// namePattern says of a name what checkName does, in ECMA-262 as JSON Schema wants it: between the white space around it
// nothing that is forbidden, and something besides white space. Which characters can be seen no portable pattern says.
const (
	namePattern    = `^\s*[^\s` + forbiddenClass + `]([^` + forbiddenClass + `]*[^\s` + forbiddenClass + `])?\s*$`
	forbiddenClass = `\x00-\x1F\x7F-\x9F\u2028-\u202E\u2066-\u2069`
	noNUL          = `^[^\x00]*$`
	uuidPattern    = `^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`
)

// checkName trims and composes (NFC), and refuses what must not be stored or shown (R17).
func checkName(s string) (value, code, detail string) {
	s = norm.NFC.String(strings.TrimFunc(s, whiteSpace))
	switch n := utf8.RuneCountInString(s); {
	case n > maxName:
		return "", "too_long", fmt.Sprintf("must have at most %d characters", maxName)
	case strings.ContainsFunc(s, forbidden):
		return "", "forbidden_character", "must not contain control or direction-changing characters"
	case !strings.ContainsFunc(s, visible):
		return "", "required", "must have a character that can be seen"
	}
	return s, "", ""
}

// visible says whether a character shows by itself: a letter, digit, mark of punctuation or symbol. White space, format
// and private characters, combining marks and what is not assigned do not, nor do the fillers among the letters and
// symbols: the default ignorable ones (Hangul), blank Braille, a note without a head, Egyptian blanks.
func visible(c rune) bool {
	switch c {
	case '\u2800', '\U0001D159', '\U00013441', '\U00013442':
		return false
	}
	return unicode.In(c, unicode.L, unicode.N, unicode.P, unicode.S) && !unicode.Is(unicode.Other_Default_Ignorable_Code_Point, c)
}

// forbidden are NUL and the other controls, line and paragraph separators, and bidirectional overrides.
func forbidden(c rune) bool {
	return unicode.IsControl(c) || c == '\u2028' || c == '\u2029' ||
		c >= '\u202A' && c <= '\u202E' || c >= '\u2066' && c <= '\u2069'
}

// whiteSpace is \s of ECMA-262, which a browser trims too: it has the byte order mark, and not the control U+0085.
func whiteSpace(c rune) bool { return c == '\uFEFF' || c != '\u0085' && unicode.IsSpace(c) }

var slugPattern = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

func checkSlug(s string) (value, code, detail string) {
	if len(s) < 2 || len(s) > 40 || !slugPattern.MatchString(s) {
		return "", "invalid_slug", "must be 2 to 40 lower-case letters and digits, with single dashes between"
	}
	return s, "", ""
}

var actionPattern = regexp.MustCompile(`^[a-z_]{1,32}\.[a-z_]{1,32}$`)

func checkAction(s string) (value, code, detail string) {
	if !actionPattern.MatchString(s) {
		return "", "invalid_action", "must be an action such as session.started"
	}
	return s, "", ""
}

func checkUUID(s string) (value, code, detail string) {
	if !isUUID(s) {
		return "", "invalid_id", "must be a UUID in lower case"
	}
	return s, "", ""
}

// length counts characters, as JSON Schema does; no text has NUL in it, which PostgreSQL and forms cannot carry.
func length(least, most int) func(string) (string, string, string) {
	return func(s string) (value, code, detail string) {
		switch n := utf8.RuneCountInString(s); {
		case n < least:
			return "", "required", "must not be empty"
		case n > most:
			return "", "too_long", fmt.Sprintf("must have at most %d characters", most)
		case strings.Contains(s, "\x00"):
			return "", "forbidden_character", "must be text that a form can carry"
		}
		return s, "", ""
	}
}

func enum(values ...string) rule {
	return rule{map[string]any{"enum": values}, func(s string) (string, string, string) {
		if !slices.Contains(values, s) {
			return "", "invalid_value", "must be one of " + strings.Join(values, ", ")
		}
		return s, "", ""
	}}
}

// pageInput is part of every list's input. After is the id behind a cursor that was checked.
type pageInput struct {
	Limit int    `query:"limit"`
	After string `query:"after"`
}

// before is the id that the rows of the page sort before.
func (p pageInput) before() string {
	if p.After == "" {
		return "ffffffff-ffff-ffff-ffff-ffffffffffff"
	}
	return p.After
}

const (
	defaultLimit = 50
	maxLimit     = 100
)

func parseLimit(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > maxLimit || strconv.Itoa(n) != s {
		return 0, fmt.Errorf("must be a number from 1 to %d", maxLimit)
	}
	return n, nil
}
