package main

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/tern/v2/migrate"
	"github.com/sethvargo/go-envconfig"
)

// Migrations are the files of sql/, applied by tern: by this command, or by tern's own with the same files. They are
// a deployment step of their own; serve only checks that the version fits.

//go:embed sql/*.sql
var sqlFiles embed.FS

const (
	versionTable = "public.schema_version"
	// lockTimeout keeps a migration from queueing behind a long transaction with everybody else behind it (R94).
	lockTimeout = "5s"
)

// requiredVersion is the schema this program needs: the number of migrations it knows.
func requiredVersion() int32 {
	files, err := fs.Glob(sqlFiles, "sql/*.sql")
	if err != nil {
		panic(err) // only for a malformed pattern
	}
	return int32(len(files)) // #nosec G115 -- a few files
}

// schemaVersion is 0 before the first migration.
func (d db) schemaVersion(ctx context.Context) (version int32, err error) {
	err = d.q.QueryRow(ctx, `select version from public.schema_version`).Scan(&version)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42P01" { // undefined_table
		return 0, nil
	}
	return version, err
}

// runMigrate is the command: migrate [up|down|status|to N].
func runMigrate(ctx context.Context, args []string, lookup envconfig.Lookuper, out io.Writer) error {
	var target func(current int32) int32
	switch verb := strings.Join(args, " "); {
	case verb == "" || verb == "up":
		// A schema that is newer already fits: after a roll-back the old program's migrate must not stand in the way.
		target = func(current int32) int32 { return max(current, requiredVersion()) }
	case verb == "down":
		target = func(current int32) int32 { return max(current-1, 0) }
	case verb == "status":
		target = func(current int32) int32 { return current }
	case args[0] == "to" && len(args) == 2:
		n, err := strconv.ParseInt(args[1], 10, 32)
		if err != nil || n < 0 {
			return usageError("migrate to N: the number of a migration, 0 for none")
		}
		version := int32(n)
		target = func(int32) int32 { return version }
	default:
		return usageError("migrate [up|down|status|to N]")
	}
	cfg, err := loadConfig(ctx, lookup, true, "DATABASE_URL")
	if err != nil {
		return err
	}
	return migrateTo(ctx, cfg.DatabaseURL, out, target)
}

// connectDirectly opens a connection for a command whose statements may take their time. Its limits replace those of the
// role (sql/005); they are in the start-up message, because tern resets what was set later. The URL may say others:
// ?lock_timeout=1min
func connectDirectly(ctx context.Context, databaseURL string) (*pgx.Conn, error) {
	cc, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return nil, errors.New("DATABASE_URL is not a PostgreSQL connection URL")
	}
	for name, limit := range map[string]string{
		"lock_timeout": lockTimeout, "statement_timeout": "0", "idle_in_transaction_session_timeout": "0"} {
		cc.RuntimeParams[name] = cmp.Or(cc.RuntimeParams[name], limit)
	}
	conn, err := pgx.ConnectConfig(ctx, cc)
	if err != nil {
		return nil, fmt.Errorf("connecting to the database: %w", err)
	}
	return conn, nil
}

// migrateTo brings the schema from its current version to the one that target chooses, printing each step, then says
// where it is. Each migration commits together with its version.
func migrateTo(ctx context.Context, databaseURL string, out io.Writer, target func(current int32) int32) error {
	conn, err := connectDirectly(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	m, err := migrate.NewMigrator(ctx, conn, versionTable)
	if err != nil {
		return fmt.Errorf("reading the schema version: %w", err)
	}
	files, err := fs.Sub(sqlFiles, "sql")
	if err != nil {
		return err
	}
	if err := m.LoadMigrations(files); err != nil {
		return fmt.Errorf("loading migrations: %w", err)
	}
	m.OnStart = func(_ int32, name, direction, _ string) { fmt.Fprintf(out, "%-4s %s\n", direction, name) }
	current, err := m.GetCurrentVersion(ctx)
	if err != nil {
		return fmt.Errorf("reading the schema version: %w", err)
	}
	wanted := target(current)
	if wanted != current {
		if err := m.MigrateTo(ctx, wanted); err != nil {
			return fmt.Errorf("migrating from version %d to %d: %w", current, wanted, err)
		}
	}
	pending := ""
	if wanted < requiredVersion() {
		pending = ", this program needs " + strconv.Itoa(int(requiredVersion()))
	}
	fmt.Fprintf(out, "schema version %d%s\n", wanted, pending)
	return nil
}

// checkSchema refuses to serve on a schema that is too old, and says what to run. A newer one fits: migrations only
// add until every replica is new. A database that does not answer yet is no reason to stop: /readyz waits for it.
func checkSchema(ctx context.Context, s *server) error {
	version, err := s.db.schemaVersion(ctx)
	if err != nil {
		s.log.Warn("the database does not answer yet; not ready until it does", "cause", err.Error())
		return nil
	}
	if version < requiredVersion() {
		return fmt.Errorf("the schema has version %d and this program needs %d: run `%s migrate`", version, requiredVersion(), os.Args[0])
	}
	return nil
}
