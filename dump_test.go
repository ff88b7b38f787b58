package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"maps"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// everyValue is what each column of each row of each table holds, as text, and binary columns in every usual spelling.
func (s *testServer) everyValue() []string {
	s.t.Helper()
	columns, err := many[struct{ TableName, ColumnName, DataType string }](s.t.Context(), s.db, `
		select table_name::text, column_name::text, data_type::text from information_schema.columns where table_schema = 'public'`)
	if err != nil {
		s.t.Fatal(err)
	}
	values := map[string]bool{}
	for _, c := range columns {
		column := pgx.Identifier{c.ColumnName}.Sanitize()
		rows, _ := s.pool.Query(s.t.Context(), "select distinct "+column+"::text from "+pgx.Identifier{c.TableName}.Sanitize()+" where "+column+" is not null")
		texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			s.t.Fatal(err)
		}
		for _, text := range texts {
			values[text] = true
			if c.DataType != "bytea" {
				continue
			}
			raw, err := hex.DecodeString(text[2:]) // after \x
			if err != nil {
				s.t.Fatal(err)
			}
			for _, spelling := range []string{text[2:], base64.StdEncoding.EncodeToString(raw), base64.RawURLEncoding.EncodeToString(raw)} {
				values[spelling] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(values))
}

// opens lists what a value is good for. Revoking says nothing: what it does is seen in the database.
func (s *testServer) opens(value string, accounts []string) (opened []string) {
	s.t.Helper()
	for what, a := range map[string]answer{
		"access token":                 s.get("/v1/users/me", value),
		"refresh token":                s.refreshWith(value),
		"refresh token without prefix": s.refreshWith(refreshPrefix + value),
		"revocation":                   s.post("/v1/auth/revoke", "", url.Values{"token": {value}}),
	} {
		if a.status < 400 && what != "revocation" {
			opened = append(opened, what)
		}
	}
	for i, use := range mailTokenUses {
		if s.useMailToken(i, value).status < 400 {
			opened = append(opened, use.purpose)
		}
	}
	for _, email := range accounts {
		if s.signInAs(email, value).status < 400 {
			opened = append(opened, "password of "+email)
		}
	}
	return opened
}

// R52, R60, R68: who has read the whole database has no credential: no value in it is an access or refresh token, a
// mail token of any purpose, or the password of any account, and trying changes nothing. The same attempts with real
// ones succeed.
func TestDatabaseDumpOpensNothing(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	tokens, owner, organization := s.newMailTokens()
	ada := s.newUser("ada@example.com", "admin")
	s.refreshWith(ada.refresh).want(200, "")
	s.exec("update users set password_hash = $1 where password_hash is not null", weakHash(testPassword))
	s.allowNextMail()
	s.forgot(ada.email).want(202, "")
	s.startRegistration("unsent@example.com", testPassword)
	s.inviteTo(owner, organization, "uninvited@example.com")
	if n := scalar[int](s, "select count(distinct kind) from mails where sent_at is null"); n < 3 {
		t.Fatalf("%d kinds of mail are waiting", n)
	}
	values := s.everyValue()
	for _, token := range tokens {
		if hash := sha256.Sum256([]byte(token)); !slices.Contains(values, base64.RawURLEncoding.EncodeToString(hash[:])) {
			t.Error("a token is not in the dump, even as its hash")
		}
	}
	accounts := []string{ada.email, "moving@example.com", "registering@example.com"}
	s.exec("delete from audit_events") // refusals are noted there
	before := s.dump()
	for _, value := range values {
		if strings.ContainsAny(value, "\r\n") {
			t.Fatalf("%q does not fit into a header", value)
		}
		if opened := s.opens(value, accounts); opened != nil {
			t.Errorf("%q is a %s", value, opened)
		}
	}
	s.exec("delete from audit_events")
	if after := s.dump(); after != before {
		t.Errorf("changed from\n%s\nto\n%s", before, after)
	}
	for _, real := range append([]string{ada.token, s.signInAs(owner.email, testPassword).str("refresh_token"), testPassword}, tokens...) {
		if s.opens(real, accounts) == nil {
			t.Error("the attempts prove nothing: a real credential opens nothing")
		}
	}
}
