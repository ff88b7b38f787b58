package main

import (
	"cmp"
	"context"
	"embed"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/tern/v2/migrate"
	"github.com/sethvargo/go-envconfig"
)

// Migrations are the files of sql/, applied by tern: by this command, or by tern's own with the same files. They are
// a deployment step of their own; serve only checks that the version fits.

//go:embed sql/*.sql
var sqlFiles embed.FS

// requiredVersion is the schema this program needs: the number of migrations it knows.
func requiredVersion() int32 {
	files, err := fs.Glob(sqlFiles, "sql/*.sql")
	if err != nil {
		panic(err) // only for a malformed pattern
	}
	return int32(len(files)) // #nosec G115 -- a few files
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
		target = nil
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

// migrateTo brings the schema from its current version to the one that target chooses, printing each step, then puts the
// rights and limits of the newest *_runtime.sql right and says where it is; without a target only the last. Each migration
// commits together with its version.
func migrateTo(ctx context.Context, databaseURL string, out io.Writer, target func(current int32) int32) error {
	conn, err := connectDirectly(ctx, databaseURL, out)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	state, err := readState(ctx, conn, conn.Config().RuntimeParams)
	if err = cmp.Or(err, state.fits()); err != nil {
		return err
	}
	wanted := state.version
	if target != nil {
		if wanted, err = applyMigrations(ctx, conn, out, target); err != nil {
			return err
		}
	}
	pending := ""
	if wanted < requiredVersion() {
		pending = ", this program needs " + strconv.Itoa(int(requiredVersion()))
	}
	fmt.Fprintf(out, "schema version %d%s\n", wanted, pending)
	return nil
}

func applyMigrations(ctx context.Context, conn *pgx.Conn, out io.Writer, target func(current int32) int32) (int32, error) {
	m, err := loadMigrations(ctx, conn)
	if err != nil {
		return 0, err
	}
	m.OnStart = func(_ int32, name, direction, _ string) { fmt.Fprintf(out, "%-4s %s\n", direction, name) }
	current, err := m.GetCurrentVersion(ctx)
	if err != nil {
		return 0, fmt.Errorf("reading the schema version: %w", err)
	}
	wanted := target(current)
	if wanted != current {
		if err := m.MigrateTo(ctx, wanted); err != nil {
			return 0, fmt.Errorf("migrating from version %d to %d: %w", current, wanted, err)
		}
	}
	for _, migration := range slices.Backward(m.Migrations[:min(int(wanted), len(m.Migrations))]) {
		if strings.HasSuffix(migration.Name, "_runtime.sql") {
			if _, err := conn.Exec(ctx, migration.UpSQL); err != nil {
				return 0, fmt.Errorf("%s: %w", migration.Name, err)
			}
			break
		}
	}
	return wanted, nil
}

// loadMigrations reads sql/ for the schema that the URL names. Where pg_trgm is in a schema of its own, as managed
// services have it, its operators are found there.
func loadMigrations(ctx context.Context, conn *pgx.Conn) (*migrate.Migrator, error) {
	path := conn.Config().RuntimeParams["search_path"]
	schema := schemaOf(conn.Config().RuntimeParams)
	var elsewhere string
	err := conn.QueryRow(ctx, `
		select coalesce((select extnamespace::regnamespace::text from pg_extension where extname = 'pg_trgm'), '')`).Scan(&elsewhere)
	if err != nil {
		return nil, err
	}
	if elsewhere != "" {
		path += ", " + elsewhere
	}
	m, err := migrate.NewMigrator(ctx, conn, schema+".schema_version")
	if err != nil {
		return nil, fmt.Errorf("reading the schema version: %w", err)
	}
	files, err := fs.Sub(sqlFiles, "sql")
	if err != nil {
		return nil, err
	}
	if err := m.LoadMigrations(files); err != nil {
		return nil, fmt.Errorf("loading migrations: %w", err)
	}
	home := strings.NewReplacer("schema public", "schema "+schema, "public.schema_version", schema+".schema_version")
	for _, migration := range m.Migrations {
		migration.UpSQL = "set local search_path = " + path + ";\n" + home.Replace(migration.UpSQL)
		migration.DownSQL = home.Replace(migration.DownSQL)
	}
	return m, nil
}
