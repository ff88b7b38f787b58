package main

import (
	"regexp"
	"strconv"
	"strings"
	"time"
)

// The nouns as the API shows them. A field is never absent: what has no value is null.

// user is an account as its owner and platform admins see it.
type user struct {
	ID            string    `json:"id" is:"uuid"`
	Email         string    `json:"email"`
	Name          string    `json:"name"`
	Role          string    `json:"role" is:"role"`
	EmailVerified bool      `json:"email_verified"`
	Disabled      bool      `json:"disabled"`
	CreatedAt     time.Time `json:"created_at"`
	UpdatedAt     time.Time `json:"updated_at"`
}

func (u user) etag() string { return etag(u.UpdatedAt) }

// session is one signed-in device.
type session struct {
	ID         string    `json:"id" is:"uuid"`
	Current    bool      `json:"current"`
	IP         *string   `json:"ip"`
	UserAgent  *string   `json:"user_agent"`
	CreatedAt  time.Time `json:"created_at"`
	LastSeenAt time.Time `json:"last_seen_at"`
}

// tokens is the successful answer of the token endpoint, RFC 6749 section 5.1.
type tokens struct {
	AccessToken  string `json:"access_token"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int    `json:"expires_in"` // seconds
	RefreshToken string `json:"refresh_token"`
	Scope        string `json:"scope"`
}

// accepted is the answer that is the same whether or not an account exists.
type accepted struct {
	Detail string `json:"detail"`
}

// page is one page of a list, newest first. Next is the cursor of the following page, null on the last.
type page[T any] struct {
	Items []T     `json:"items"`
	Next  *string `json:"next"`
}

// newPage cuts rows, fetched with one more than limit, to a page; id names the row a cursor points at.
func newPage[T any](rows []T, limit int, id func(T) string) page[T] {
	if len(rows) <= limit {
		return page[T]{Items: rows}
	}
	last := id(rows[limit-1])
	return page[T]{Items: rows[:limit], Next: &last}
}

// pager is a page of any type, to whoever writes the response.
type pager interface {
	sign(func(id string) string) (signed any, cursor string)
}

// sign replaces the id behind Next, if there is one, by the cursor that clients see.
func (p page[T]) sign(cursor func(id string) string) (any, string) {
	if p.Next == nil {
		return p, ""
	}
	next := cursor(*p.Next)
	return page[T]{Items: p.Items, Next: &next}, next
}

// etag is the strong validator of a row: its updated_at, which every change moves (sql/001).
func etag(updatedAt time.Time) string {
	return `"` + strconv.FormatInt(updatedAt.UnixMicro(), 36) + `"`
}

// versions are the updated_at values that an If-Match header allows; nil allows any.
type versions []time.Time

// missing is what it means that no row of these versions was found: with If-Match another version is there, without
// it the row has gone meanwhile.
func (v versions) missing() error {
	if v == nil {
		return errNotFound
	}
	return errStale
}

// compressed is a tag after a proxy has compressed the answer: W/"x", "x-gzip", "x;br", "x--gzip".
var compressed = regexp.MustCompile(`^(?:W/)?"([0-9a-z]+)(?:[-;:+./_]{1,2}[a-z0-9]+)?"$`)

// plainTag undoes that: the tag is a version of the row, not of the bytes that a client got.
func plainTag(tag string) string { return compressed.ReplaceAllString(tag, `"$1"`) }

// parseIfMatch reads RFC 9110 section 13.1.1: "*" or a list of tags. Foreign tags match nothing.
func parseIfMatch(header string) versions {
	if header == "" || strings.TrimSpace(header) == "*" {
		return nil
	}
	allowed := versions{}
	for _, tag := range strings.Split(header, ",") {
		tag = plainTag(strings.TrimSpace(tag))
		micros, err := strconv.ParseInt(strings.Trim(tag, `"`), 36, 64)
		if t := time.UnixMicro(micros); err == nil && micros >= 0 && micros < maxMicros && etag(t) == tag {
			allowed = append(allowed, t)
		}
	}
	return allowed
}

// maxMicros keeps forged tags within what PostgreSQL can compare: they end in the year 2255.
const maxMicros = 1 << 53
