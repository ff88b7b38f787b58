// room:import

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"
	"github.com/sethvargo/go-envconfig"
	"golang.org/x/text/encoding/unicode"
)

// importInto runs the command in this process on a file with this content.
func (s *testServer) importInto(content string, options ...string) (out string, err error) {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "users.ndjson")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return s.runImport(append(options, file)...)
}

func (s *testServer) runImport(args ...string) (string, error) {
	var out bytes.Buffer
	err := runImport(s.t.Context(), args, envconfig.MapLookuper(map[string]string{"DATABASE_URL": s.cfg.DatabaseURL}), &out)
	return out.String(), err
}

// importLine is a good line; edit changes it.
func importLine(email string, edit ...func(u map[string]any)) string {
	u := map[string]any{"email": email, "name": "Ada Lovelace", "password_hash": testPasswordHash(), "email_verified": true}
	for _, e := range edit {
		e(u)
	}
	b, err := json.Marshal(u, json.Deterministic(true))
	if err != nil {
		panic(err)
	}
	return string(b) + "\n"
}

func withField(field string, value any) func(map[string]any) {
	return func(u map[string]any) { u[field] = value }
}

// What a file may look like, and that every field arrives; then the same file again.
func TestImport(t *testing.T) {
	t.Parallel()
	s := newTestServer(t).fullCost()
	known := s.newUser("known@example.com", "user")
	before := scalar[string](s, "select users::text from users")
	content := importLine("Ada@Example.com", withField("name", "  Ame\u0301lie "), withField("created_at", "2001-02-03T04:05:06+02:00"), withField("password_hash", foreignHashes["Django"])) +
		"\n   \r\n" + strings.TrimSuffix(importLine("admin@example.com", withField("role", "admin")), "\n") + "\r\n" +
		importLine("disabled@example.com", withField("disabled", true)) + importLine("unverified@example.com", withField("email_verified", false)) +
		importLine("known@example.com", withField("name", "Somebody Else"), withField("role", "admin"), withField("password_hash", foreignHashes["htpasswd"])) +
		`{"id":null,"email":"bare@example.com","name":null,"role":null,"password_hash":null,"email_verified":null,"disabled":null,"created_at":null}`
	out, err := s.importInto(content)
	if want := "8 lines: 5 imported, 1 known already, 0 bad\n"; err != nil || !strings.HasSuffix(out, want) {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := scalar[string](s, "select users::text from users where id = $1", known.id); got != before {
		t.Errorf("an account that was there is now %s", got)
	}
	for email, want := range map[string]string{
		"ada@example.com":        "Am\u00e9lie user true false 981165906 " + foreignHashes["Django"],
		"admin@example.com":      "Ada Lovelace admin true false now " + testPasswordHash(),
		"disabled@example.com":   "Ada Lovelace user true true now " + testPasswordHash(),
		"unverified@example.com": "Ada Lovelace user false false now " + testPasswordHash(),
		"bare@example.com":       "bare user false false now -",
	} {
		if got := scalar[string](s, `select concat_ws(' ', name, role, email_verified::text, disabled::text, case when created_at > now() - interval '1 hour'
			then 'now' else extract(epoch from created_at)::int::text end, coalesce(password_hash, '-')) from users where email = $1`, email); got != want {
			t.Errorf("%s is\n%s, want\n%s", email, got, want)
		}
	}
	// Sign-in works, upgrades the hash, and knows who is what.
	s.signInAs("ada@example.com", testPassword).want(200, "")
	if got := scalar[string](s, "select password_hash from users where email = 'ada@example.com'"); !strings.HasPrefix(got, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Error(got)
	}
	s.get("/v1/users", s.signInAs("admin@example.com", testPassword).want(200, "").str("access_token")).want(200, "")
	s.signInAs("disabled@example.com", testPassword).want(400, "account_disabled")
	s.signInAs("unverified@example.com", testPassword).want(400, "email_not_verified")
	s.signInAs("bare@example.com", testPassword).want(400, "invalid_grant")

	after := scalar[string](s, "select string_agg(users::text, ';' order by id) from users")
	if out, err := s.importInto(content); err != nil || !strings.HasSuffix(out, "8 lines: 0 imported, 6 known already, 0 bad\n") {
		t.Errorf("again: %v\n%s", err, out)
	}
	if scalar[string](s, "select string_agg(users::text, ';' order by id) from users") != after {
		t.Error("the second run changed something")
	}
}

// badLines are lines that must not go in, and what must be said of each.
var badLines = []struct{ line, reason string }{
	{`nonsense`, "is not a JSON object"},
	{`[]`, "is not a JSON object"},
	{`"ada@example.com"`, "is not a JSON object"},
	{`{"email":"ada@example.com","name":"Ada"`, "is not a JSON object"},
	{`{"email":"ada@example.com","name":"Ada"} {}`, "is not a JSON object"},
	{`{}`, "email must be an address such as ada@example.com"},
	{`null`, "email must"},
	{`{"email":"ada@example.com","name":"Ada","password":"in clear"}`, "is not a JSON object of known fields"},
	{`{"Email":"ada@example.com","name":"Ada"}`, "is not a JSON object of known fields"},
	{`{"email":"ada@example.com","email":"eve@example.com","name":"Ada"}`, "duplicate"},
	{`{"email":5,"name":"Ada"}`, "/email"},
	{`{"email":["ada@example.com"],"name":"Ada"}`, "/email"},
	{`{"email":"ada@example.com","name":"Ada","email_verified":"true"}`, "/email_verified"},
	{`{"email":"ada@example.com","name":"Ada","disabled":1}`, "/disabled"},
	{"{\"email\":\"ada@example.com\",\"name\":\"Ad\xe4\"}", "UTF-8"},
	{`{"email":"ada@example.com","name":"\ud800"}`, "is not a JSON object"},
	{`{"email":"Ada <ada@example.com>","name":"Ada"}`, "email must be an address"},
	{`{"email":"ada@localhost","name":"Ada"}`, "email must be an address"},
	{`{"email":"` + strings.Repeat("a", 250) + `@example.com","name":"Ada"}`, "email must be an address"},
	{`{"email":"ada@example.com","id":"0195F1E2-7B5C-7AAA-8AAA-0123456789AB"}`, "id must be a UUID in lower case"},
	{`{"email":"ada@example.com","id":"42"}`, "id must be a UUID in lower case"},
	{"{\"email\":\"ada@example.com\",\"name\":\"a\x00b\"}", "is not a JSON object"},
	{`{"email":"ada@example.com","name":"` + strings.Repeat("a", 101) + `"}`, "name must have at most 100 characters"},
	{`{"email":"ada@example.com","name":"a\u0000b"}`, "name must not contain"},
	{`{"email":"ada@example.com","name":"a\u202eb"}`, "name must not contain"},
	{`{"email":"ada@example.com","name":"Ada","role":"root"}`, "role must be one of user, admin"},
	{`{"email":"ada@example.com","name":"Ada","created_at":"yesterday"}`, "created_at must be a time such as 2021-03-04T05:06:07Z"},
	{`{"email":"ada@example.com","created_at":1614834307}`, "created_at must be a time such as 2021-03-04T05:06:07Z"},
	{`{"email":"ada@example.com","created_at":"infinity"}`, "created_at must be a time such as"},
	{`{"email":"ada@example.com","created_at":"2021-02-30 00:00:00"}`, "created_at must be a time such as"},
	{`{"email":"ada@example.com","name":"Ada","created_at":"1969-12-31T23:59:59Z"}`, "created_at must be"},
	{`{"email":"ada@example.com","name":"Ada","created_at":"2999-01-01T00:00:00Z"}`, "created_at must be"},
	{`{"email":"ada@example.com","name":"Ada","password_hash":"5f4dcc3b5aa765d61d8327deb882cf99"}`, "password_hash is of an unknown kind"},
	{`{"email":"ada@example.com","name":"Ada","password_hash":"$2b$31$piCR3bddlSmg2NJng2mHEuRpsXtU6BVFw.hetRe94d6FAUjSNDgJe"}`, "password_hash has a bcrypt cost above 14"},
	{`{"email":"ada@example.com","name":"Ada","password_hash":"$2b$05$` + strings.Repeat(`\u0000`, 53) + `"}`, "password_hash "},
	{`{"email":"ada@example.com","name":"Ada","password_hash":"pbkdf2_sha256$1$\u0000$DrdiWD40lyBuydnjvZiDrdQMx1S1mOA9O0QYex0R6ww="}`, "password_hash "},
	{`{"email":"x","name":"","role":"root","password_hash":"x","created_at":"1900-01-01T00:00:00Z"}`, "email must be an address such as ada@example.com; " +
		"role must be one of user, admin; password_hash is of an unknown kind: Argon2, bcrypt, scrypt (PHC) or Django pbkdf2_sha256; created_at must be between 1970 and now"},
	{`{"email":"ada@example.com","name":"` + strings.Repeat("a", 64<<10) + `"}`, "is longer than 65536 bytes"},
	{`{"email":"ada@example.com","name":"` + strings.Repeat("a", 3<<20) + `"}`, "is longer than 65536 bytes"},
	{strings.Repeat(`{"email":`, 5_000), "is not a JSON object"},
	{`{"email":"ada@example.com","name":"Ada","created_at":"` + strings.Repeat("a", 60_000) + `"}`, "created_at must be"},
	{`{"` + strings.Repeat("a", 60_000) + `":1}`, "is not a JSON object of known fields"},
}

// Every bad line is named with its number and reason, the rest goes in, and the exit code says that not all did;
// with --atomic and --dry-run nothing goes in.
func TestImportBadLines(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	var content strings.Builder
	for i, bad := range badLines {
		content.WriteString(importLine(fmt.Sprintf("good%d@example.com", i)) + bad.line + "\n")
	}
	for _, option := range []string{"--atomic", "--dry-run"} {
		out, err := s.importInto(content.String(), option)
		if n := scalar[int](s, "select count(*) from users"); err != errBadLines || n != 0 {
			t.Errorf("%s: %v, %d users\n%s", option, err, n, out)
		}
		if want := fmt.Sprintf("%d lines: %d could be imported, 0 known already, %d bad\n", 2*len(badLines), len(badLines), len(badLines)); !strings.HasSuffix(out, want) {
			t.Errorf("%s: %s", option, out)
		}
	}
	file := filepath.Join(t.TempDir(), "users.ndjson")
	if err := os.WriteFile(file, []byte(content.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	out, ok := runProgram(t, serveEnv(s.cfg.DatabaseURL), "", "import", file)
	if ok || !strings.Contains(out, fmt.Sprintf("\n%d lines: %d imported, 0 known already, %d bad\n", 2*len(badLines), len(badLines), len(badLines))) {
		t.Errorf("exit code 0 is %v\n%s", ok, out)
	}
	if n := scalar[int](s, "select count(*) from users where email like 'good%'"); n != len(badLines) || scalar[int](s, "select count(*) from users") != n {
		t.Errorf("%d good lines went in", n)
	}
	named := map[string]string{}
	for _, found := range regexp.MustCompile(`(?m)^line (\d+): (.*)$`).FindAllStringSubmatch(out, -1) {
		named[found[1]] = found[2]
	}
	for i, bad := range badLines {
		if reason := named[fmt.Sprint(2*i+2)]; !strings.Contains(reason, bad.reason) || reason == "" || len(reason) > 400 {
			t.Errorf("line %d: %q, want %q of %.100q", 2*i+2, reason, bad.reason, bad.line)
		}
	}
	if len(named) != len(badLines) || strings.Contains(out, "5f4dcc3b5aa765d61d8327deb882cf99") {
		t.Errorf("%d lines are named\n%s", len(named), out)
	}
}

func TestImportOptions(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	good := importLine("ada@example.com") + importLine("eve@example.com")
	count := func() int { return scalar[int](s, "select count(*) from users") }
	if out, err := s.importInto(good, "--dry-run"); err != nil || count() != 0 || out != "2 lines: 2 could be imported, 0 known already, 0 bad\n" {
		t.Errorf("--dry-run: %v, %d users\n%s", err, count(), out)
	}
	if out, err := s.importInto(good, "--dry-run", "--atomic"); err != nil || count() != 0 {
		t.Errorf("--dry-run --atomic: %v, %d users\n%s", err, count(), out)
	}
	if out, err := s.importInto(good, "--atomic"); err != nil || count() != 2 || out != "2 lines: 2 imported, 0 known already, 0 bad\n" {
		t.Errorf("--atomic: %v, %d users\n%s", err, count(), out)
	}
	if out, ok := runProgram(t, serveEnv(s.cfg.DatabaseURL), good+importLine("bob@example.com"), "import", "-"); !ok || count() != 3 || out != "3 lines: 1 imported, 2 known already, 0 bad\n" {
		t.Errorf("-: %v, %d users\n%s", ok, count(), out)
	}
	if out, err := s.importInto(""); err != nil || out != "0 lines: 0 imported, 0 known already, 0 bad\n" {
		t.Errorf("an empty file: %v\n%s", err, out)
	}
	file := filepath.Join(t.TempDir(), "users.ndjson")
	if err := os.WriteFile(file, []byte(importLine("new@example.com")), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{nil, {"--atomic"}, {"--dryrun", file}, {"--dry_run", file}, {file, "--nonsense"}, {file, file}, {file, file, file}, {"-x"}} {
		var usage usageError
		if _, err := s.runImport(args...); !errors.As(err, &usage) {
			t.Errorf("%q: %v", args, err)
		}
	}
	if count() != 3 {
		t.Error("a command line that cannot be read imported something")
	}
	if _, err := s.runImport(filepath.Join(t.TempDir(), "missing.ndjson")); !os.IsNotExist(err) {
		t.Error(err)
	}
}

// fewLines takes some output, then ends the goroutine that writes it: a command that never ends must not fill memory.
type fewLines struct{ left int }

func (w *fewLines) Write(p []byte) (int, error) {
	if w.left--; w.left < 0 {
		runtime.Goexit()
	}
	return len(p), nil
}

// What cannot be read ends the command with an error, once, and is not a bad line.
func TestImportUnreadable(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ended := make(chan error, 1)
	go func() {
		defer close(ended)
		ended <- runImport(context.Background(), []string{t.TempDir()}, envconfig.MapLookuper(map[string]string{"DATABASE_URL": s.cfg.DatabaseURL}), &fewLines{10})
	}()
	if err, returned := <-ended; !returned || err == nil || err == errBadLines {
		t.Errorf("importing a directory: returned %v, %v", returned, err)
	}
	for name, content := range map[string]string{
		"a JSON array": "[\n" + importLine("ada@example.com") + "]", "one on a line": "[" + strings.TrimSpace(importLine("ada@example.com")) + "]",
		"an object over lines": "{\n  \"email\": \"ada@example.com\"\n}\n", "CSV": "email,name\nada@example.com,Ada\n", "a spreadsheet": "PK\x03\x04\x14",
		"UTF-32": "\xff\xfe\x00\x00{\x00\x00\x00", "UTF-32, the other way": "\x00\x00\xfe\xff\x00\x00\x00{", "UTF-16 without a mark": "{\x00\"\x00e\x00",
	} {
		if out, err := s.importInto(content); err == nil || err == errBadLines || out != "" || strings.Contains(err.Error(), "\n") ||
			!errors.Is(err, errNotLines) && !errors.Is(err, errNotText) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	// A line of exactly the buffer's size without an end is too long, and not nothing.
	if out, err := s.importInto(strings.Repeat("x", 1<<20)); err != errBadLines || !strings.Contains(out, "1 bad") {
		t.Errorf("%v\n%s", err, out)
	}
}

// Memory holds one batch, however long the file; elsewhere than on a terminal, plain lines tell how far it is.
func TestImportBatches(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	conn, err := pgx.Connect(t.Context(), s.cfg.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	file, err := os.Create(filepath.Join(t.TempDir(), "users.ndjson"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	w := bufio.NewWriter(file)
	for range 2*importBatch + 5 {
		_, _ = w.WriteString(`{"email":"ada@example.com"}` + "\n") // one address: this is not about what PostgreSQL can do
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	im := &importer{rules: newRules(newPasswords(8, currentParams)), out: &out}
	if err := im.run(t.Context(), conn, file); err != errBadLines || im.added != 1 || im.bad != 2*importBatch+4 {
		t.Errorf("%v: %d added, %d bad", err, im.added, im.bad)
	}
	if cap(im.batch) > 2*importBatch {
		t.Errorf("the batch grew to %d", cap(im.batch))
	}
	if !strings.Contains(out.String(), "20000 lines read\n") {
		t.Error("nothing tells how far it is")
	}
	if want := fmt.Sprintf("line %d: this address is in line 1 already\n", 2*importBatch+5); !strings.HasSuffix(out.String(), want) {
		t.Error("what is in another batch already is not named")
	}
}

// What editors, spreadsheets and shells of other systems make of a file changes nothing.
func TestImportEncodings(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	utf16 := func(order unicode.Endianness, text string) string {
		encoded, err := unicode.UTF16(order, unicode.UseBOM).NewEncoder().String(text)
		if err != nil {
			t.Fatal(err)
		}
		return encoded
	}
	lines := []string{`{"email":"ada@example.com","name":"Am\u00e9lie"}`, `{"email":"eve@example.com","name":"Zoë"}`, ``, `{"email":"bad"}`, `{"email":"bob@example.com","name":"Bob"}`}
	unix := strings.Join(lines, "\n")
	for name, content := range map[string]string{
		"no last line end": unix, "UTF-8 with a mark": "\ufeff" + unix + "\n", "Windows": "\ufeff" + strings.Join(lines, "\r\n") + "\r\n",
		"Macintosh": strings.Join(lines, "\r") + "\r", "UTF-16LE": utf16(unicode.LittleEndian, strings.Join(lines, "\r\n")), "UTF-16BE": utf16(unicode.BigEndian, unix+"\n"),
	} {
		s.exec("delete from users")
		out, err := s.importInto(content)
		if err != errBadLines || out != "line 4: email must be an address such as ada@example.com\n5 lines: 3 imported, 0 known already, 1 bad\n" {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if got := scalar[string](s, "select string_agg(name, ' ' order by email) from users"); got != "Am\u00e9lie Bob Zo\u00eb" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// One address or id in several lines, and ids that an account disagrees with, are named; whatever way the file is read.
func TestImportTwice(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	known, free := s.newUser("known@example.com", "user"), newID()
	content := importLine("ada@example.com", withField("id", free), withField("name", "First")) + importLine("ADA@Example.com", withField("name", "Second")) +
		importLine("bob@example.com", withField("id", free)) + importLine("bob@example.com") + importLine("Known@example.com", withField("id", known.id)) +
		importLine("known@Example.com") + importLine("eve@example.com", withField("id", known.id)) + importLine("ada@example.com", withField("id", free))
	want := "line 2: this address is in line 1 already\nline 6: this address is in line 5 already\nline 8: this address is in line 1 already\n" +
		"line 3: this id is in line 1 already\nline 7: this id is in line 5 already\n"
	for _, option := range []string{"--dry-run", "--atomic"} {
		if out, err := s.importInto(content, option); err != errBadLines || out != want+"8 lines: 2 could be imported, 1 known already, 5 bad\n" {
			t.Errorf("%s: %v\n%s", option, err, out)
		}
	}
	if out, err := s.importInto(content); err != errBadLines || out != want+"8 lines: 2 imported, 1 known already, 5 bad\n" {
		t.Errorf("%v\n%s", err, out)
	}
	if got := scalar[string](s, "select string_agg(concat_ws(' ', email, name, id = $1, id = $2), ';' order by email) from users", free, known.id); got !=
		"ada@example.com First t f;bob@example.com Ada Lovelace f f;known@example.com Test user f t" {
		t.Error(got)
	}
	content = importLine("new@example.com", withField("id", free)) + importLine("known@example.com", withField("id", newID())) +
		importLine("bob@example.com") + importLine("eve@example.com", withField("id", newID()))
	want = "line 1: this id belongs to an account with another address\nline 2: this address has an account with another id\n4 lines: 1 imported, 1 known already, 2 bad\n"
	if out, err := s.importInto(content); err != errBadLines || out != want {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestImportTimes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"2021-03-04T05:06:07Z": "2021-03-04T05:06:07Z", "2021-03-04T05:06:07.123456": "2021-03-04T05:06:07.123456Z", // Python, isoformat
		"2021-03-04 05:06:07+00": "2021-03-04T05:06:07Z", "2021-03-04 05:06:07.5+05:30": "2021-03-03T23:36:07.5Z", // PostgreSQL
		"2021-03-04 05:06:07": "2021-03-04T05:06:07Z", "2021-03-04t05:06:07z": "2021-03-04T05:06:07Z", "2021-03-04T05:06:07.123-0800": "2021-03-04T13:06:07.123Z",
		"2021-03-04 05:06:07-08": "2021-03-04T13:06:07Z", " 2021-03-04 05:06:07 UTC ": "2021-03-04T05:06:07Z", "2021-03-04 05:06:07 +0000": "2021-03-04T05:06:07Z", // Ruby
		"04.03.2021": "", "2021-03-04": "", "1614834307": "", "2021-03-04 25:00:00": "", "2021-03-04 05:06:07 CET": "", "infinity": "", "T": "",
	} {
		got, err := parseTime(text)
		if err != nil && want != "" || err == nil && got.UTC().Format(time.RFC3339Nano) != want {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
}

// Killed in the middle of a batch and run again: complete, nothing twice.
func TestImportKilled(t *testing.T) {
	t.Parallel()
	const lines = 60_000
	s := newTestServer(t)
	s.exec("drop index users_name_idx") // half of the time goes there, and this is not about searching
	file := writeUsers(t, lines)
	// Somebody else is about to take the address of line 25,000: the third batch waits, with two committed.
	other, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Rollback(context.Background()) }()
	if _, err := (db{q: other}).insertUser(t.Context(), newUser{newID(), "user25000@example.com", "X", "user", "", false}); err != nil {
		t.Fatal(err)
	}
	p := startProcess(t, t.TempDir(), serveEnv(s.cfg.DatabaseURL), "", "import", file)
	s.waitForLock()
	p.kill()
	<-p.done
	if err := other.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := scalar[int](s, "select count(*) from users"); n != 2*importBatch {
		t.Errorf("%d users after the kill", n)
	}
	out, ok := runProgram(t, serveEnv(s.cfg.DatabaseURL), "", "import", file)
	if !ok || !strings.HasSuffix(out, "60000 lines: 40000 imported, 20000 known already, 0 bad\n") {
		t.Errorf("exit code 0 is %v\n%s", ok, out)
	}
	if got := scalar[string](s, "select count(*) || ' ' || count(distinct email) || ' ' || count(distinct name) from users"); got != "60000 60000 60000" {
		t.Error("users, addresses, names:", got)
	}
}

// writeUsers writes a file of n users.
func writeUsers(t testing.TB, n int) string {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "users.ndjson"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	w := bufio.NewWriter(file)
	hash := testPasswordHash()
	for i := range n {
		email, name := importedUserOf(i)
		fmt.Fprintf(w, `{"email":%q,"name":%q,"password_hash":%q,"email_verified":true}`+"\n", email, name, hash)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return file.Name()
}

// importedUserOf makes names as various as a company's.
func importedUserOf(i int) (email, name string) {
	first := []string{"Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Frances", "John", "Margaret", "Ken", "Radia", "Dennis"}
	last := []string{"Lovelace", "Hopper", "Turing", "Dijkstra", "Liskov", "Knuth", "Allen", "McCarthy", "Hamilton", "Thompson", "Perlman", "Ritchie", "Backus"}
	return fmt.Sprintf("user%d@example.com", i), fmt.Sprintf("%s %s %d", first[i%len(first)], last[i%len(last)], i)
}

// linkToken finds the one-time link that the admin command printed.
var linkToken = regexp.MustCompile(`(?m)^https://roster\.example/#/reset-password\?token=([A-Za-z0-9_-]{43})$`)

// R43: the admin command makes the first admin, and recovers one who was disabled, demoted or forgot.
func TestAdminCommand(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	env := serveEnv(s.cfg.DatabaseURL)
	events := func() int {
		return scalar[int](s, `select count(*) from audit_events where action = 'user.made_admin' and actor_id is null and ip is null
			and detail = '{"actor": "cli"}' and subject_id = (select id from users where email = 'root@example.com')`)
	}
	link := func() string {
		t.Helper()
		out, ok := runProgram(t, env, "", "admin", "Root@Example.com")
		found := linkToken.FindStringSubmatch(out)
		if !ok || found == nil || !strings.Contains(out, "root@example.com is a platform admin.") || !strings.Contains(out, "1 hour") {
			t.Fatalf("exit code 0 is %v\n%s", ok, out)
		}
		return found[1]
	}
	reset := func(token, password string) answer {
		t.Helper()
		return s.post("/v1/auth/reset-password", "", map[string]string{"token": token, "password": password})
	}
	first := link()
	if got := scalar[string](s, "select concat_ws(' ', email, name, role, disabled::text, password_hash is null) from users"); got != "root@example.com root admin false t" || events() != 1 {
		t.Errorf("%s, %d events", got, events())
	}
	second := link() // a newer link voids the older one
	reset(first, "a new password 1").want(422, "invalid_token")
	reset(second, "root12345678").want(422, "invalid_fields")
	reset(second, "a new password 1").want(204, "")
	reset(second, "a new password 2").want(422, "invalid_token")
	signedIn := s.signInAs("root@example.com", "a new password 1").want(200, "").str("access_token")
	s.get("/v1/users", signedIn).want(200, "")

	// Recovered: active and admin again; what may be in other hands, password and sessions, is void.
	s.exec("update users set role = 'user', disabled = true, name = 'Root', email_verified = false")
	third := link()
	if got := scalar[string](s, "select concat_ws(' ', name, role, disabled::text) from users"); got != "Root admin false" || events() != 3 {
		t.Errorf("%s, %d events", got, events())
	}
	s.get("/v1/users/me", signedIn).want(401, "invalid_access_token")
	s.signInAs("root@example.com", "a new password 1").want(400, "invalid_grant")
	s.exec("update mail_tokens set expires_at = now() - interval '1 second'")
	reset(third, "a new password 3").want(422, "invalid_token")

	// --password-stdin, for scripts: signs in at once, ends what was open.
	for password, reason := range map[string]string{
		"": "at least 12", "eleven char": "at least 12", "root@example.com": "address", "Root1234!!!!!": "address", strings.Repeat("x", 257): "at most 256", strings.Repeat("x", 5000): "at most 256",
	} {
		if out, ok := runProgram(t, env, password+"\n", "admin", "root@example.com", "--password-stdin"); ok || !strings.Contains(out, reason) || password != "" && password != "root@example.com" && strings.Contains(out, password) {
			t.Errorf("%.20s: exit code 0 is %v\n%s", password, ok, out)
		}
	}
	open := link()
	reset(open, "a new password 1").want(204, "")
	open = link()
	s.exec("update users set password_hash = $1", testPasswordHash())
	signedIn = s.signInAs("root@example.com", testPassword).want(200, "").str("access_token")
	out, ok := runProgram(t, env, " a password of a script \r\n", "admin", "root@example.com", "--password-stdin")
	if !ok || linkToken.MatchString(out) || strings.Contains(out, "password") || events() != 6 {
		t.Errorf("exit code 0 is %v, %d events\n%s", ok, events(), out)
	}
	s.get("/v1/users/me", signedIn).want(401, "invalid_access_token")
	reset(open, "a new password 4").want(422, "invalid_token")
	s.signInAs("root@example.com", testPassword).want(400, "invalid_grant")
	s.signInAs("root@example.com", " a password of a script ").want(200, "") // R29: not trimmed
	if scalar[int](s, "select count(*) from users") != 1 {
		t.Error("somebody else was made")
	}
}

func TestAdminCommandUsage(t *testing.T) {
	t.Parallel()
	run := func(env map[string]string, stdin string, args ...string) error {
		return runAdmin(t.Context(), args, envconfig.MapLookuper(env), strings.NewReader(stdin), io.Discard)
	}
	url := newTestDatabase(t)
	for _, args := range [][]string{nil, {"a@example.com", "b@example.com"}, {"--password-stdin"}, {"--password-stdin", "a@example.com", "x"}, {"a@example.com", "--nonsense"}, {"not an address"}} {
		if err := run(serveEnv(url), "correct horse battery\n", args...); err == nil {
			t.Errorf("%q was accepted", args)
		}
	}
	err := run(nil, "", "a@example.com")
	if err == nil || !strings.Contains(err.Error(), "DATABASE_URL is required") || !strings.Contains(err.Error(), "PUBLIC_URL is required") || strings.Contains(err.Error(), "SECRET_KEYS") {
		t.Error(err)
	}
	for name, stdin := range map[string]string{"two lines": "correct horse battery\nand another line\n", "not UTF-8": "correct horse \xff\xfe battery\n", "NUL": "correct horse\x00battery\n"} {
		if err := run(serveEnv(url), stdin, "a@example.com", "--password-stdin"); err == nil {
			t.Errorf("a password that nobody can type was accepted: %s", name)
		}
	}
}

var importRows = flag.Int("import-rows", 100_000, "how many users BenchmarkImport imports")

// BenchmarkImport states rows a second, and what a bare COPY of the same rows takes of that time in the same run: into
// a table without an index, and into users itself.
func BenchmarkImport(b *testing.B) {
	file := writeUsers(b, *importRows)
	var imported, bare, indexed time.Duration
	for b.Loop() {
		s := newTestServer(b)
		start := time.Now()
		if out, err := s.runImport(file); err != nil {
			b.Fatal(err, out)
		}
		imported += time.Since(start)
		if n := scalar[int](s, "select count(*) from users"); n != *importRows {
			b.Fatal(n, "users")
		}
		s.exec("create table bare (like users including defaults)")
		bare += s.copyUsers(b, "bare")
		s.exec("truncate users cascade")
		indexed += s.copyUsers(b, "users")
	}
	b.ReportMetric(float64(*importRows*b.N)/imported.Seconds(), "rows/s")
	b.ReportMetric(float64(bare)/float64(imported), "of-COPY")
	b.ReportMetric(float64(indexed)/float64(imported), "of-COPY-into-users")
	b.ReportMetric(0, "ns/op")
}

func (s *testServer) copyUsers(b *testing.B, table string) time.Duration {
	start, hash, i := time.Now(), testPasswordHash(), 0
	_, err := s.pool.CopyFrom(context.Background(), pgx.Identifier{table}, []string{"id", "email", "name", "role", "password_hash", "email_verified", "disabled", "created_at"},
		pgx.CopyFromFunc(func() ([]any, error) {
			if i == *importRows {
				return nil, nil
			}
			email, name := importedUserOf(i)
			i++
			return []any{newID(), email, name, "user", hash, true, false, start}, nil
		}))
	if err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}
