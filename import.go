// room:import

// `roster import`: users from another system, with the password hashes that they have there, which are replaced at the next
// sign-in. A team without it has its users choose new passwords.
//
// Its files are import.go and passwords_imported.go. What ties it to the house is what `grep -n room:import *.go` finds: a
// command, and the kinds of hashes that are not our own. To take it out, delete the files and those lines.

package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/jackc/pgx/v5"
	"github.com/schollz/progressbar/v3"
	"github.com/sethvargo/go-envconfig"
	"golang.org/x/term"
)

// importedUser is one line of the file: what another system knows of a user.
type importedUser struct {
	Email         string     `json:"email"`
	Name          string     `json:"name"`
	PasswordHash  string     `json:"password_hash"` // Argon2, bcrypt, scrypt or Django PBKDF2; may be missing
	Role          string     `json:"role"`          // user, unless it says admin
	EmailVerified bool       `json:"email_verified"`
	Disabled      bool       `json:"disabled"`
	CreatedAt     *time.Time `json:"created_at"`
}

const (
	importBatch   = 10_000 // lines in one transaction
	maxImportLine = 64 << 10
)

// importer reads lines, keeps the good ones of a batch, and counts.
type importer struct {
	q      copier // the connection, or the one transaction of --atomic and --dry-run
	rules  map[string]rule
	out    io.Writer
	atomic bool
	dry    bool

	line, added, known, bad int
	batch                   [][]any
}

// copier is a connection, where a batch is a transaction, or a transaction, where it is a savepoint.
type copier interface {
	querier
	CopyFrom(context.Context, pgx.Identifier, []string, pgx.CopyFromSource) (int64, error)
}

var errLongLine = fmt.Errorf("is longer than %d bytes", maxImportLine)

var errImportUsage = usageError("import [--atomic] [--dry-run] FILE.ndjson, or - for standard input")

// errBadLines ends the command when not every line went in; each was named.
var errBadLines = errors.New("some lines were not imported")

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
	im.q = conn
	err = im.run(ctx, in)
	did := "imported"
	if im.dry || im.atomic && err != nil {
		did = "could be imported" // nothing was
	}
	fmt.Fprintf(out, "%d lines: %d %s, %d known already, %d bad\n", im.line, im.added, did, im.known, im.bad)
	return err
}

// run reads the file line by line; memory holds one batch, whatever its size.
func (im *importer) run(ctx context.Context, in *os.File) error {
	size := int64(-1)
	if info, err := in.Stat(); err == nil && info.Mode().IsRegular() {
		size = info.Size()
	}
	progress := newProgress(im.out, size)
	defer func() { _ = progress.Finish() }()
	_, err := im.q.Exec(ctx, `
		create temporary table imported (id uuid, email text, name text, role text, password_hash text,
			email_verified boolean, disabled boolean, created_at timestamptz)`)
	if err != nil {
		return err
	}
	var tx pgx.Tx
	if im.atomic || im.dry {
		if tx, err = im.q.Begin(ctx); err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
		im.q = tx
	}
	if err := im.readLines(ctx, bufio.NewReaderSize(io.TeeReader(in, progress), 1<<20)); err != nil {
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
	for {
		line, err := readLine(in)
		if err == io.EOF {
			return im.flush(ctx)
		}
		if err != nil && !errors.Is(err, errLongLine) {
			return err
		}
		im.line++
		if err == nil && len(strings.TrimSpace(string(line))) == 0 {
			continue
		}
		var row []any
		if err == nil {
			row, err = im.parse(line)
		}
		if err != nil {
			im.bad++
			fmt.Fprintf(im.out, "line %d: %v\n", im.line, err)
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

// readLine returns the next line, or an error for one that is too long, which it skips. Only such a line outgrows the
// buffer of in.
func readLine(in *bufio.Reader) ([]byte, error) {
	line, more, err := in.ReadLine()
	long := len(line) > maxImportLine
	for more && err == nil {
		_, more, err = in.ReadLine()
	}
	if long && (err == nil || err == io.EOF) {
		err = errLongLine
	}
	return line, err
}

// parse checks a line by the rules of the API and returns it as a row.
func (im *importer) parse(line []byte) ([]any, error) {
	u := importedUser{Role: "user"}
	if err := json.Unmarshal(line, &u, json.RejectUnknownMembers(true)); err != nil {
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
	email, name := check("email", "email", u.Email), check("name", "name", u.Name)
	check("role", "role", u.Role)
	if u.PasswordHash != "" {
		if _, err := parseHash(u.PasswordHash); err != nil {
			bad = append(bad, "password_hash "+err.Error())
		}
	}
	created := time.Now()
	if u.CreatedAt != nil {
		if created = *u.CreatedAt; created.Year() < 1970 || created.After(time.Now()) {
			bad = append(bad, "created_at must be between 1970 and now")
		}
	}
	if bad != nil {
		return nil, errors.New(strings.Join(bad, "; "))
	}
	return []any{newID(), email, name, u.Role, u.PasswordHash, u.EmailVerified, u.Disabled, created}, nil
}

// flush moves the batch into a temporary table by COPY, and from there into users, in one transaction.
func (im *importer) flush(ctx context.Context) error {
	if len(im.batch) == 0 {
		return nil
	}
	err := pgx.BeginFunc(ctx, im.q, func(tx pgx.Tx) error {
		columns := []string{"id", "email", "name", "role", "password_hash", "email_verified", "disabled", "created_at"}
		if _, err := tx.CopyFrom(ctx, pgx.Identifier{"imported"}, columns, pgx.CopyFromRows(im.batch)); err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `
			insert into users (id, email, name, role, password_hash, email_verified, disabled, created_at)
			select id, email, name, role, nullif(password_hash, ''), email_verified, disabled, created_at from imported
			on conflict (email) do nothing`)
		if err != nil {
			return err
		}
		im.added += int(tag.RowsAffected())
		im.known += len(im.batch) - int(tag.RowsAffected())
		_, err = tx.Exec(ctx, `truncate imported`)
		return err
	})
	im.batch = im.batch[:0]
	return err
}

// newProgress is a bar with rate and remaining time on a terminal, and a plain line now and then elsewhere.
func newProgress(out io.Writer, size int64) *progressbar.ProgressBar {
	if !onTerminal(out) {
		out = io.Discard
	}
	return progressbar.NewOptions64(size, progressbar.OptionSetWriter(out), progressbar.OptionShowBytes(true),
		progressbar.OptionSetDescription("importing"), progressbar.OptionSetPredictTime(true),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
}

func onTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
