package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"sync"

	"github.com/jackc/pgx/v5"
)

// databaseState is what decides whether a database can serve.
type databaseState struct {
	Encoding, Database, Role string
	Schema                   string // where new tables go; empty when there is none
	Standby                  bool
	Setting, Wanted          string // one that holds another value than roster's connections state
	HasVersion               bool   // there is a table schema_version
	TernVersion              bool   // and it is tern's, and may be read
	Tables                   int    // of the names of roster's
	MailTokens               bool   // the one whose name nobody else has
	Unusable                 string // a table that may not be read or written
	Hidden                   string // a table whose rows row security hides

	version int32  // of the schema; 0 before the first migration
	home    string // the schema that the URL means
}

var errStandby = errors.New("this server is a standby, or not promoted yet: it takes no writes")

// rosterTables are the tables that the migrations make.
var rosterTables = sync.OnceValue(func() (names []string) {
	files, err := fs.Glob(sqlFiles, "sql/*.sql")
	if err != nil {
		panic(err) // only for a malformed pattern
	}
	for _, file := range files {
		content, err := fs.ReadFile(sqlFiles, file)
		if err != nil {
			panic(err) // it is embedded
		}
		for _, match := range regexp.MustCompile(`(?m)^create table (\w+)`).FindAllStringSubmatch(string(content), -1) {
			names = append(names, match[1])
		}
	}
	return names
})

// readState asks what a database is like; params are those that its connections state.
func readState(ctx context.Context, q querier, params map[string]string) (databaseState, error) {
	names, values := []string{"session_replication_role"}, []string{"origin"} // only a superuser may state it
	for name, value := range stated {
		names, values = append(names, name), append(values, value)
	}
	rows, _ := q.Query(ctx, `
		with roster as (
			select name, to_regclass(quote_ident(current_schema()) || '.' || name) as id from unnest($3::text[]) as t (name)
		), version as (
			select to_regclass(quote_ident(current_schema()) || '.schema_version') as id
		), other as (
			select name, value from unnest($1::text[], $2::text[]) as s (name, value) where current_setting(name) <> value order by name limit 1
		)
		select current_setting('server_encoding') as encoding, current_database()::text as database, session_user::text as role,
			coalesce(current_schema()::text, '') as schema, pg_is_in_recovery() as standby,
			coalesce((select name from other), '') as setting, coalesce((select value from other), '') as wanted,
			version.id is not null as has_version,
			exists (select from pg_attribute where attrelid = version.id and attname = 'version' and atttypid = 'int4'::regtype)
				and has_table_privilege(version.id, 'select') as tern_version,
			(select count(id) from roster) as tables, exists (select from roster where name = 'mail_tokens' and id is not null) as mail_tokens,
			coalesce((select min(name) from roster where not coalesce(has_table_privilege(id, 'select') and has_table_privilege(id, 'insert')
				and has_table_privilege(id, 'update') and has_table_privilege(id, 'delete'), false)), '') as unusable,
			coalesce((select min(name) from roster where row_security_active(id)), '') as hidden
		from version`, names, values, rosterTables())
	state, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[databaseState])
	state.home = schemaOf(params)
	if err != nil || !state.TernVersion {
		return state, err
	}
	return state, q.QueryRow(ctx, `select coalesce(max(version), 0) from schema_version`).Scan(&state.version)
}

// fits says why roster cannot be in this database, or nil.
func (s databaseState) fits() error {
	quote := func(name string) string { return pgx.Identifier{name}.Sanitize() }
	switch {
	case s.Standby:
		return errStandby
	case s.Encoding != "UTF8":
		return unfit(fmt.Sprintf("the database is in %s and roster needs one in UTF8: create database %s encoding 'UTF8' template template0 lc_collate 'C' lc_ctype 'C'",
			s.Encoding, quote(s.Database+"_utf8")))
	case s.Setting != "":
		return unfit(fmt.Sprintf("%s is not what roster needs: alter role %s in database %s set %[1]s = '%[4]s'",
			s.Setting, quote(s.Role), quote(s.Database), s.Wanted))
	case s.Schema == "":
		return unfit(fmt.Sprintf("there is no schema %s that this role may use: create schema %[1]s", s.home))
	case s.Schema != s.home: // a pooler passes no search_path on
		return unfit(fmt.Sprintf("tables are looked for in schema %s and roster's are in %s: alter role %s in database %s set search_path = %[2]s",
			s.Schema, s.home, quote(s.Role), quote(s.Database)))
	case s.MailTokens && !s.HasVersion:
		return unfit(fmt.Sprintf("schema %s has roster's tables without their schema_version: alter table public.schema_version set schema %[1]s", s.home))
	case s.version > 0 && !s.MailTokens || s.HasVersion && !s.TernVersion && s.Tables == 0:
		return unfit(fmt.Sprintf("%s.schema_version is another program's: create schema roster, and add ?search_path=roster to DATABASE_URL", s.home))
	case s.version == 0 && s.Tables > 0 && !s.MailTokens:
		return unfit(fmt.Sprintf("schema %s has another program's tables of the names of roster's: create schema roster, and add ?search_path=roster to DATABASE_URL", s.home))
	}
	return nil
}

// serves says why requests would fail here, or nil.
func (s databaseState) serves() error {
	if err := s.fits(); err != nil {
		return err
	}
	switch {
	case s.MailTokens && !s.TernVersion:
		return unfit(fmt.Sprintf("role %s may not read schema_version: run `%s migrate` as the owner of the tables", s.Role, os.Args[0]))
	case s.version < requiredVersion():
		return unfit(fmt.Sprintf("the schema has version %d and this program needs %d: run `%s migrate`", s.version, requiredVersion(), os.Args[0]))
	case s.Unusable != "":
		return unfit(fmt.Sprintf("role %s may not read and write %s: make it roster_app, and run `%s migrate` as the owner of the tables", s.Role, s.Unusable, os.Args[0]))
	case s.Hidden != "":
		return unfit(fmt.Sprintf("row security hides rows from role %s: alter table %s disable row level security", s.Role, s.Hidden))
	}
	return nil
}

// checkDatabase says why requests would fail, and what to type.
func (s *server) checkDatabase(ctx context.Context) error {
	state, err := readState(ctx, s.pool, s.pool.Config().ConnConfig.RuntimeParams)
	if err != nil {
		return err
	}
	return state.serves()
}

// checkSchema refuses to start where requests would fail. A newer schema fits: migrations only add until every replica is
// new. A database that does not answer yet, or is still a standby, is no reason to stop: /readyz waits for it.
func checkSchema(ctx context.Context, s *server) error {
	err := s.checkDatabase(ctx)
	if _, is := errors.AsType[unfit](err); is {
		return err
	}
	if err != nil {
		s.log.Warn("the database does not serve yet; not ready until it does", "cause", err.Error())
	}
	return nil
}
