// room:import

// `roster import`: users from another system, with the password hashes that they have there, which are replaced at the next
// sign-in. A team without it has its users choose new passwords.
//
// Its files are import.go and passwords_imported.go. What ties it to the house is what `grep -n room:import *.go` finds: a
// command, and the kinds of hashes that are not our own. To take it out, delete the files and those lines.

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"
	"github.com/sethvargo/go-envconfig"
)

// importedUser is one line of the file: what another system knows of a user. All but the address may be missing or null.
type importedUser struct {
	ID            string `json:"id"` // of the account from now on; a new one without
	Email         string `json:"email"`
	Name          string `json:"name"`          // the local part of the address without
	PasswordHash  string `json:"password_hash"` // Argon2, bcrypt, scrypt or Django PBKDF2
	Role          string `json:"role"`          // user, unless it says admin
	EmailVerified bool   `json:"email_verified"`
	Disabled      bool   `json:"disabled"`
	CreatedAt     string `json:"created_at"` // a time; now without
}

const importBatch = 10_000 // lines in one transaction

// importer reads lines, keeps the good ones of a batch, and counts.
type importer struct {
	// q is the connection, where a batch is a transaction, or the one transaction of --atomic and --dry-run, where it is
	// a savepoint.
	q interface {
		Begin(context.Context) (pgx.Tx, error)
	}
	rules  map[string]rule
	out    io.Writer
	atomic bool
	dry    bool

	line, added, known, bad int
	batch                   [][]any
}

var errImportUsage = usageError("import [--atomic] [--dry-run] FILE.ndjson, or - for standard input")

// errBadLines ends the command when not every line went in; each was named.
var errBadLines = errors.New("some lines were not imported")

// errNotLines ends the command at a first line that is not an object, as of a JSON array or a table: the rest is no better.
var errNotLines = errors.New("the file must hold one JSON object a line; `jq -c '.[]'` makes that of a JSON array, " +
	"`jq -c .` of objects that span lines, and a CSV file needs an export as JSON")

// runImport is the command: import [--atomic] [--dry-run] FILE, or - for standard input. Addresses that have an account
// are left alone, so that an import that was cut short is finished by running it again. Bad lines are named and left
// out; with --atomic nothing goes in unless all do.
func runImport(ctx context.Context, args []string, lookup envconfig.Lookuper, out io.Writer) error {
	im := &importer{rules: newRules(newPasswords(8, currentParams)), out: out}
	var file string
	for _, arg := range args {
		switch {
		case arg == "--atomic":
			im.atomic = true
		case arg == "--dry-run":
			im.dry = true
		case file == "" && (arg == "-" || !strings.HasPrefix(arg, "-")):
			file = arg
		default:
			return errImportUsage
		}
	}
	if file == "" {
		return errImportUsage
	}
	cfg, err := loadConfig(ctx, lookup, true, "DATABASE_URL")
	if err != nil {
		return err
	}
	in := os.Stdin
	if file != "-" {
		if in, err = os.Open(file); err != nil { // #nosec G304 G703 -- the operator's own file
			return err
		}
		defer in.Close()
	}
	conn, err := connectDirectly(ctx, cfg.DatabaseURL, out)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	state, err := readState(ctx, conn, conn.Config().RuntimeParams)
	if err = cmp.Or(err, state.serves()); err != nil {
		return err
	}
	err = im.run(ctx, conn, in)
	if errors.Is(err, errNotLines) || errors.Is(err, errNotText) {
		return err
	}
	did := "imported"
	if im.dry || im.atomic && err != nil {
		did = "could be imported"
	}
	fmt.Fprintf(out, "%d lines: %d %s, %d known already, %d bad\n", im.line, im.added, did, im.known, im.bad)
	return err
}

// run reads the file line by line; memory holds one batch, whatever its size.
func (im *importer) run(ctx context.Context, conn *pgx.Conn, in *os.File) error {
	size := int64(-1)
	if info, err := in.Stat(); err == nil && info.Mode().IsRegular() {
		size = info.Size()
	}
	progress := newProgress(im.out, "importing", size)
	defer func() { _ = progress.Finish() }()
	text, err := newTextReader(io.TeeReader(in, progress))
	if err != nil {
		return err
	}
	// imported holds one batch; seen holds the address and the id of every line before, so that PostgreSQL finds who is
	// in the file twice.
	_, err = conn.Exec(ctx, `
		create temporary table imported (line integer, id uuid, new_id uuid, email text, name text, role text,
			password_hash text, email_verified boolean, disabled boolean, created_at timestamptz);
		create temporary table seen (line integer, email text primary key, id uuid);
		create unique index on seen (id) where id is not null`)
	if err != nil {
		return err
	}
	im.q = conn
	var tx pgx.Tx
	if im.atomic || im.dry {
		if tx, err = conn.Begin(ctx); err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
		im.q = tx
	}
	if err := im.readLines(ctx, bufio.NewReaderSize(text, 1<<20)); err != nil {
		return err
	}
	if im.bad > 0 {
		return errBadLines
	}
	if im.atomic && !im.dry {
		return tx.Commit(ctx)
	}
	return nil
}

func (im *importer) readLines(ctx context.Context, in *bufio.Reader) error {
	var line []byte
	for first := true; ; {
		var err error
		line, err = readLine(in, line)
		if err == io.EOF {
			return im.flush(ctx)
		}
		if err != nil && !errors.Is(err, errLongLine) {
			return err
		}
		im.line++
		trimmed := bytes.TrimSpace(line)
		if err == nil && len(trimmed) == 0 {
			continue
		}
		if err == nil && first && (trimmed[0] != '{' || len(trimmed) == 1) {
			return errNotLines
		}
		first = false
		var row []any
		if err == nil {
			row, err = im.parse(trimmed)
		}
		if err != nil {
			im.refuse(im.line, err.Error())
			continue
		}
		if im.batch = append(im.batch, row); len(im.batch) == importBatch {
			if err := im.flush(ctx); err != nil {
				return err
			}
			if !onTerminal(im.out) {
				fmt.Fprintf(im.out, "%d lines read\n", im.line)
			}
		}
	}
}

// refuse names a line that does not go in.
func (im *importer) refuse(line int, reason string) {
	im.bad++
	fmt.Fprintf(im.out, "line %d: %s\n", line, reason)
}

// parse checks a line by the rules of the API and returns it as a row.
func (im *importer) parse(line []byte) ([]any, error) {
	var u importedUser
	err := json.Unmarshal(line, &u, json.RejectUnknownMembers(true))
	if wrong, ok := errors.AsType[*json.SemanticError](err); ok && wrong.JSONPointer == "/created_at" {
		return nil, fmt.Errorf("created_at %w", errNotTime)
	}
	if err != nil {
		reason := []rune(strings.ReplaceAll(err.Error(), "\n", " "))
		return nil, errors.New("is not a JSON object of known fields: " + string(reason[:min(len(reason), 200)]))
	}
	var bad []string
	check := func(field, rule, value string) string {
		checked, code, detail := im.rules[rule].check(value)
		if code != "" {
			bad = append(bad, field+" "+detail)
		}
		return checked
	}
	email := check("email", "email", u.Email)
	name, _, _ := strings.Cut(email, "@")
	if strings.TrimFunc(u.Name, whiteSpace) != "" {
		name = check("name", "name", u.Name)
	}
	role := check("role", "role", cmp.Or(u.Role, "user"))
	var id any // null: any will do
	if u.ID != "" {
		id = check("id", "uuid", u.ID)
	}
	if u.PasswordHash != "" {
		if _, err := parseHash(u.PasswordHash); err != nil {
			bad = append(bad, "password_hash "+err.Error())
		}
	}
	created := time.Now()
	if u.CreatedAt != "" {
		if created, err = parseTime(u.CreatedAt); err != nil {
			bad = append(bad, "created_at "+err.Error())
		} else if created.Before(time.Unix(0, 0)) || created.After(time.Now()) {
			bad = append(bad, "created_at must be between 1970 and now")
		}
	}
	if bad != nil {
		return nil, errors.New(strings.Join(bad, "; "))
	}
	return []any{im.line, id, newID(), email, name, role, u.PasswordHash, u.EmailVerified, u.Disabled, created}, nil
}

var errNotTime = errors.New("must be a time such as 2021-03-04T05:06:07Z")

// parseTime reads RFC 3339 and what PostgreSQL, Python and JavaScript print: a blank for the T, a zone of hours only,
// or none, which is UTC.
func parseTime(s string) (time.Time, error) {
	s = strings.ToUpper(strings.TrimSpace(s))
	if date, clock, ok := strings.Cut(s, "T"); ok && len(date) == len(time.DateOnly) {
		s = date + " " + clock
	}
	for _, zone := range []string{"", "Z07:00", "Z0700", "Z07", " Z07:00", " Z0700", " UTC"} {
		if t, err := time.Parse(time.DateTime+zone, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errNotTime
}

// flush moves the batch into a temporary table by COPY, and from there into users, in one transaction.
func (im *importer) flush(ctx context.Context) error {
	if len(im.batch) == 0 {
		return nil
	}
	err := pgx.BeginFunc(ctx, im.q, func(tx pgx.Tx) error {
		columns := []string{"line", "id", "new_id", "email", "name", "role", "password_hash", "email_verified", "disabled", "created_at"}
		if _, err := tx.CopyFrom(ctx, pgx.Identifier{"imported"}, columns, pgx.CopyFromRows(im.batch)); err != nil {
			return err
		}
		// Both statements leave out what conflicts; only then is it worth asking why.
		tag, err := tx.Exec(ctx, `insert into seen select line, email, id from imported order by line on conflict do nothing`)
		if err != nil {
			return err
		}
		rows := len(im.batch)
		if int(tag.RowsAffected()) < rows {
			if rows, err = im.refuseRows(ctx, tx, rows, sameAddress, sameID); err != nil {
				return err
			}
		}
		tag, err = tx.Exec(ctx, `
			insert into users (id, email, name, role, password_hash, email_verified, disabled, created_at)
			select coalesce(id, new_id), email, name, role, nullif(password_hash, ''), email_verified, disabled, created_at
			from imported on conflict do nothing`)
		if err != nil {
			return err
		}
		withID := slices.ContainsFunc(im.batch, func(row []any) bool { return row[1] != nil })
		if int(tag.RowsAffected()) < rows && withID {
			if rows, err = im.refuseRows(ctx, tx, rows, takenID, otherID); err != nil {
				return err
			}
		}
		im.added += int(tag.RowsAffected())
		im.known += rows - int(tag.RowsAffected())
		_, err = tx.Exec(ctx, `truncate imported`)
		return err
	})
	im.batch = im.batch[:0]
	return err
}

// Rows that an earlier line of the file has already, and rows that disagree with an account about its id.
const (
	sameAddress = `delete from imported i using seen s where s.email = i.email and s.line < i.line
		returning i.line, 'this address is in line ' || s.line || ' already'`
	sameID = `delete from imported i using seen s where s.id = i.id and s.line < i.line
		returning i.line, 'this id is in line ' || s.line || ' already'`
	takenID = `delete from imported i using users u where u.id = i.id and u.email <> i.email
		returning i.line, 'this id belongs to an account with another address'`
	otherID = `delete from imported i using users u where u.email = i.email and u.id <> i.id
		returning i.line, 'this address has an account with another id'`
)

// refuseRows names the rows that the queries delete from the batch, and returns how many are left of it.
func (im *importer) refuseRows(ctx context.Context, tx pgx.Tx, left int, queries ...string) (int, error) {
	for _, query := range queries {
		rows, err := tx.Query(ctx, `with refused (line, reason) as (`+query+`) select line, reason from refused order by line`)
		if err != nil {
			return 0, err
		}
		var line int
		var reason string
		tag, err := pgx.ForEachRow(rows, []any{&line, &reason}, func() error {
			im.refuse(line, reason)
			return nil
		})
		if err != nil {
			return 0, err
		}
		left -= int(tag.RowsAffected())
	}
	return left, nil
}
