package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
)

// story is what roster is for, from the first call to the last.
func (s *testServer) story() {
	s.t.Helper()
	name := strings.Repeat("日本語", 20)
	s.post("/v1/auth/register", "", jsonBody("email", "ada@example.com", "password", testPassword, "name", name)).want(202, "")
	signin := s.post("/v1/auth/verify-email", "", jsonBody("token", s.waitMail("ada@example.com", 1).Token, "password", testPassword)).want(200, "")
	access := s.refreshWith(signin.str("refresh_token")).want(200, "").str("access_token")
	if me := s.get("/v1/users/me", access).want(200, ""); me.str("name") != name || !strings.HasSuffix(me.str("created_at"), "Z") {
		s.t.Errorf("%s", me.body)
	}
	before := s.get("/v1/users/me", access).header.Get("ETag")
	s.do(request{method: "PATCH", path: "/v1/users/me", token: access, body: jsonBody("name", "Ada é"), header: map[string][]string{"If-Match": {before}}}).want(200, "")
	organization := "/v1/organizations/" + s.post("/v1/organizations", access, jsonBody("name", "Analytical Engines")).want(201, "").str("id")
	s.post(organization+"/invitations", access, jsonBody("email", "bob@example.com", "role", "member")).want(201, "")
	s.post("/v1/auth/accept-invitation", "", jsonBody("token", s.waitMail("bob@example.com", 1).Token, "password", testPassword, "name", "Bob")).want(201, "")
	for _, list := range []string{organization + "/memberships", organization + "/invitations", organization + "/audit-events", "/v1/users/me/sessions", "/v1/users/me/export"} {
		if a := s.get(list, access).want(200, ""); len(a.body) < 100 && !strings.Contains(list, "invitations") {
			s.t.Errorf("%s: %s", list, a.body)
		}
	}
	root := s.newUser("root@example.com", "admin")
	if found := s.get("/v1/users?q=ada", root.token).want(200, ""); !strings.Contains(string(found.body), "ada@example.com") {
		s.t.Errorf("%s", found.body)
	}
	s.get("/v1/audit-events", root.token).want(200, "")
	if _, err := s.db.prune(s.t.Context(), s.cfg); err != nil {
		s.t.Error(err)
	}
	s.get("/readyz", "").want(200, "")
	s.post("/v1/auth/revoke", "", url.Values{"token": {access}}).want(200, "")
	s.get("/v1/users/me", access).want(401, "invalid_access_token")
}

// unusual is what a session may have been given instead of what roster needs; of switches and choices of pg_settings any
// other than what holds. The rest is named in the log, so that a setting of a new version is decided about.
var unusual = map[string]string{
	"DateStyle": "German, DMY", "TimeZone": "Asia/Kolkata", "client_encoding": "LATIN1", "search_path": "pg_catalog",
	"statement_timeout": "1ms", "lock_timeout": "1ms", "idle_in_transaction_session_timeout": "1ms", "idle_session_timeout": "1ms",
	"transaction_timeout": "1ms", "gin_fuzzy_search_limit": "1", "extra_float_digits": "-15", "default_text_search_config": "simple",
	"timezone_abbreviations": "India", "restrict_nonsystem_relation_kind": "view,foreign-table", "default_transaction_isolation": "serializable",
	"work_mem": "64kB", "geqo_threshold": "2", "join_collapse_limit": "1", "from_collapse_limit": "1", "deadlock_timeout": "100ms",
	"client_min_messages": "debug1", "log_error_verbosity": "verbose",
}

// decided are switches and choices that stay: session_replication_role is refused, the others write files or logs of the
// server, or try the server itself.
var decided = []string{"session_replication_role", "jit_dump_bitcode", "log_min_messages", "log_min_error_statement", "log_statement",
	"log_executor_stats", "log_parser_stats", "log_planner_stats", "log_statement_stats", "transaction_isolation",
	"transaction_read_only", "transaction_deferrable", "stats_fetch_consistency", "allow_system_table_mods", "trace_sort", "trace_notify",
	"debug_print_parse", "debug_print_plan", "debug_print_rewritten"}

// R111: whatever a database and a role have set, roster works the same.
func TestUnusualSettings(t *testing.T) {
	t.Parallel()
	pg, _ := startPrimary(t)
	pg.sql(t, "create database strange")
	pg.url = strings.TrimSuffix(pg.url, "/postgres") + "/strange"
	conn, err := pgx.Connect(t.Context(), pg.url)
	if err != nil {
		t.Fatal(err)
	}
	rows, _ := conn.Query(t.Context(), `
		select name, case vartype when 'bool' then case setting when 'on' then 'off' else 'on' end
			when 'enum' then (select v from unnest(enumvals) v where v <> setting order by v limit 1) end as other
		from pg_settings where context in ('user', 'superuser')`)
	settings, err := pgx.CollectRows(rows, pgx.RowToStructByName[struct {
		Name  string
		Other *string
	}])
	if err != nil {
		t.Fatal(err)
	}
	var alter, untried []string
	for _, setting := range settings {
		value, ok := unusual[setting.Name]
		if !ok && setting.Other != nil && !slices.Contains(decided, setting.Name) {
			value, ok = *setting.Other, true
		}
		if !ok {
			untried = append(untried, setting.Name)
			continue
		}
		to := setting.Name + " = '" + value + "'"
		if setting.Name == "search_path" {
			to = setting.Name + " = " + value
		}
		alter = append(alter, "alter database strange set "+to, "alter role roster in database strange set "+to)
	}
	t.Logf("%d settings, not these: %s", len(alter)/2, strings.Join(untried, " "))
	for name := range stated {
		if !slices.ContainsFunc(alter, func(sql string) bool { return strings.Contains(sql, "set "+name+" = ") }) {
			t.Errorf("%s is stated and not tried", name)
		}
	}
	for _, sql := range alter {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(sql, err)
		}
	}
	_ = conn.Close(t.Context())

	if err := migrateTo(t.Context(), pg.url, io.Discard, func(int32) int32 { return requiredVersion() }); err != nil {
		t.Fatal(err)
	}
	s := startTestServer(t, testConfig(pg.url), newMailbox())
	s.story()
	for name, want := range map[string]string{"search_path": "public", "statement_timeout": "5s", "lock_timeout": "2s", "idle_session_timeout": "0"} {
		var got string
		if err := s.pool.QueryRow(t.Context(), "select current_setting($1)", name).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %s, want %s; %v", name, got, want, err)
		}
	}
}

// R23: every way to run a statement works but the simple protocol, which is refused.
func TestQueryModes(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"cache_statement", "cache_describe", "describe_exec", "exec"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			newTestServer(t, throttled, func(c *config) { c.DatabaseURL = withParameter(c.DatabaseURL, "default_query_exec_mode", mode) }).story()
		})
	}
}

// R112, R98: what is no URL of PostgreSQL is refused with what to do about it, and no part of it is repeated.
func TestDatabaseURL(t *testing.T) {
	t.Parallel()
	for value, hint := range map[string]string{
		"postgresql+asyncpg://u:s3cretpw@127.0.0.1:1/r?ssl=require": "asyncpg", "postgresql+psycopg2://u:s3cretpw@127.0.0.1:1/r": "asyncpg",
		"POSTGRES://u:s3cretpw@127.0.0.1:1/r": "must begin", "jdbc:postgresql://127.0.0.1:1/r?user=u&password=s3cretpw": "must begin",
		"'postgres://u:s3cretpw@127.0.0.1:1/r'": "must begin", "psql postgres://u:s3cretpw@127.0.0.1:1/r": "must begin",
		"mysql2://u:s3cretpw@127.0.0.1:1/r": "must begin", "sqlite:///s3cretpw.db": "must begin",
		"postgres://u:12#s3cretpw@127.0.0.1:1/r": "%23", "postgres://u:12/s3cretpw@127.0.0.1:1/r": "%2F", "postgres://u:12?s3cretpw@127.0.0.1:1/r": "%3F",
		"postgres://u:12?s3cretpw=x@127.0.0.1:1/r": "%3F", "postgres://u:a@b/s3cretpw@127.0.0.1:1/r": "%40", "postgres://u:s3cretpw%@127.0.0.1:1/r": "%25",
		"postgres://u:s3cretpw%zz@127.0.0.1:1/r": "%25", "postgres://u:s3cretpw@127.0.0.1:port/r": "is not a PostgreSQL", "s3cretpw": "is not",
		"postgres://u:s3cretpw@127.0.0.1:1/r?sslmode=s3cretpw": "is not", "host=127.0.0.1 port=1 password=s3cretpw x=": "",
		"host=127.0.0.1 port=1 password=my s3cretpw user=u": "is not", "host=127.0.0.1 port=1 pasword=s3cretpw": "",
		"postgres://u:s3cretpw@127.0.0.1:1/r?default_query_exec_mode=simple_protocol": "cache_describe", "postgres://u:s3cretpw@127.0.0.1:1/r?search_path=s3cretpw%20x": "schema",
		"postgres://u:s3cretpw@127.0.0.1:1,127.0.0.1:2/r": "", "postgres://u:s3cretpw@127.0.0.1:1/r?connect_timeout=s3cretpw": "is not",
	} {
		for _, args := range [][]string{{"migrate"}, {"admin", "ada@example.com"}, {"import", "-"}, {"prune"}} {
			p := startProcess(t, t.TempDir(), map[string]string{"DATABASE_URL": value, "PUBLIC_URL": "https://roster.example"}, "", args...)
			if err := p.wait(20 * time.Second); err == nil || strings.Contains(p.out.String(), "s3cretpw") || !strings.Contains(p.out.String(), hint) {
				t.Errorf("%s, %v: %v\n%s", value, args, err, p.out)
			}
		}
	}
}

// R112: what the server says of a parameter that it does not know may be a part of a password.
func TestUnknownParameter(t *testing.T) {
	t.Parallel()
	for _, parameter := range []string{"s3cretpw", "schema", "work_mem"} {
		database := withParameter(newTestDatabase(t), parameter, "s3cretpw")
		err := migrateTo(t.Context(), database, io.Discard, nil)
		s := startTestServer(t, testConfig(database), newMailbox())
		s.get("/readyz", "").want(503, "not_ready")
		s.post("/v1/auth/register", "", jsonBody("email", "ada@example.com", "password", testPassword, "name", "Ada")).unavailable()
		if said := s.logs.String() + err.Error(); strings.Contains(said, "s3cretpw") || !strings.Contains(said, "parameter") {
			t.Error(said)
		}
	}
}

// The limits of the URL hold for every command, and what is pgxpool's own is no start-up parameter.
func TestURLParameters(t *testing.T) {
	t.Parallel()
	database := withParameter(withParameter(withParameter(newTestDatabase(t), "pool_max_conns", "99"), "connect_timeout", "15"), "statement_timeout", "7s")
	if err := migrateTo(t.Context(), database, io.Discard, nil); err != nil {
		t.Error(err)
	}
	pc, err := poolConfig(testConfig(database))
	if err != nil || pc.MaxConns != 6 || pc.ConnConfig.ConnectTimeout != 15*time.Second || pc.ConnConfig.RuntimeParams["statement_timeout"] != "7s" {
		t.Error(pc, err)
	}
	options := withParameter(databaseURL("x"), "options", "-c search_path=own -c lock_timeout=9s")
	if pc, err = poolConfig(testConfig(options)); err != nil || schemaOf(pc.ConnConfig.RuntimeParams) != "own" || pc.ConnConfig.RuntimeParams["lock_timeout"] != "" {
		t.Error(pc, err)
	}
}

// refused runs migrate, serve and /readyz on a database that is none for roster: each says this.
func refused(t *testing.T, database, migrate, serve string) {
	t.Helper()
	if err := migrateTo(t.Context(), database, io.Discard, func(int32) int32 { return requiredVersion() }); migrate != "" && (err == nil || !strings.Contains(err.Error(), migrate)) {
		t.Errorf("migrate: %v", err)
	}
	s := startTestServer(t, testConfig(database), newMailbox())
	if err := checkSchema(t.Context(), s.server); err == nil || !strings.Contains(err.Error(), serve) {
		t.Errorf("serve: %v", err)
	}
	s.get("/readyz", "").want(503, "not_ready")
	if logs := s.logs.String(); !strings.Contains(strings.ReplaceAll(logs, `\"`, `"`), serve) {
		t.Errorf("/readyz: %s", logs)
	}
}

// R111: databases of other people, on a server of their own.
func TestOtherDatabases(t *testing.T) {
	t.Parallel()
	pg, dir := startPrimary(t)
	pg.sql(t, "create role plain login password 'test'", "create role anon", "create role roster_app login password 'test'", "create role few login password 'test' connection limit 3")
	at := func(role, name string) string {
		u, err := url.Parse(pg.url)
		if err != nil {
			t.Fatal(err)
		}
		u.User, u.Path = url.UserPassword(role, "test"), "/"+name
		return u.String()
	}
	// with makes a database and runs statements in it.
	with := func(t *testing.T, name, options string, statements ...string) (database string) {
		t.Helper()
		pg.sql(t, "create database "+name+" owner plain "+options)
		inside := &postgres{url: at("roster", name)}
		inside.sql(t, statements...)
		return at("plain", name)
	}
	migrated := func(t *testing.T, database string) string {
		t.Helper()
		var out bytes.Buffer
		if err := migrateTo(t.Context(), database, &out, func(int32) int32 { return requiredVersion() }); err != nil {
			t.Fatal(err, out.String())
		}
		return out.String()
	}
	as := func(role, database string) string { return strings.Replace(database, "//plain", "//"+role, 1) }
	value := func(t *testing.T, database, sql string) (v string) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), as("roster", database))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		if err := conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
			t.Fatal(sql, err)
		}
		return v
	}

	t.Run("encodings", func(t *testing.T) {
		for _, encoding := range []string{"SQL_ASCII", "LATIN1"} {
			database := with(t, strings.ToLower(encoding), "encoding '"+encoding+"' lc_collate 'C' lc_ctype 'C' template template0")
			refused(t, database, "create database", "create database")
		}
	})
	t.Run("triggers are off", func(t *testing.T) {
		database := with(t, "replica", "", "alter role plain in database replica set session_replication_role = replica")
		refused(t, database, "set session_replication_role = 'origin'", "set session_replication_role = 'origin'")
	})
	t.Run("another program's schema_version", func(t *testing.T) {
		for name, statements := range map[string][]string{
			"tern12": {"create table schema_version (version int4 not null)", "insert into schema_version values (12)"},
			"tern2":  {"create table schema_version (version int4 not null)", "insert into schema_version values (2)", "create table users (id int)"},
			"flyway": {"create table schema_version (installed_rank int, version varchar(50))"},
		} {
			database := with(t, name, "", append(statements, "grant all on schema_version to plain")...)
			refused(t, database, "another program's", "another program's")
			if found := value(t, database, "select string_agg(relname, ' ') from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'i')"); strings.Contains(found, "mail") || strings.Contains(found, "pkey") {
				t.Errorf("%s was changed: %s", name, found)
			}
		}
		database := with(t, "theirs", "", "create table users (id int)")
		refused(t, database, "another program's tables", "another program's tables")
	})
	t.Run("a schema named as the user", func(t *testing.T) {
		database := with(t, "named", "", "create schema plain authorization plain", "alter database named set search_path = plain, public")
		migrated(t, database)
		startTestServer(t, testConfig(as("roster_app", database)), newMailbox()).story()
		if found := value(t, database, "select concat(to_regclass('public.users'), ' ', to_regclass('public.schema_version'), to_regclass('plain.users'))"); found != "users schema_version" {
			t.Error(found)
		}
	})
	t.Run("a schema of the URL", func(t *testing.T) {
		database := withParameter(with(t, "elsewhere", ""), "search_path", "own")
		refused(t, database, "create schema own", "create schema own")
		(&postgres{url: as("roster", database)}).sql(t, "create schema own authorization plain")
		migrated(t, database)
		startTestServer(t, testConfig(as("roster_app", database)), newMailbox()).story()
		if found := value(t, database, "select concat(to_regclass('own.users'), to_regclass('own.schema_version'), to_regclass('public.schema_version'))"); found != "usersschema_version" {
			t.Error(found)
		}
		(&postgres{url: as("roster", database)}).sql(t, "alter table own.schema_version set schema public")
		refused(t, database, "alter table public.schema_version set schema own", "alter table public.schema_version set schema own")
	})
	t.Run("pg_trgm is elsewhere", func(t *testing.T) {
		database := with(t, "trgm", "", "create schema extensions", "create extension pg_trgm schema extensions", "grant usage on schema extensions to plain")
		migrated(t, database)
		startTestServer(t, testConfig(as("roster_app", database)), newMailbox()).story()
	})
	// R89: default privileges, grants by hand and on columns: nobody but the owner and roster_app may do anything.
	strangers := `select concat((select string_agg(relname || ' ' || grantee::regrole, ', ') from pg_class, aclexplode(relacl) where relnamespace = 'public'::regnamespace
		and relkind = 'r' and grantee not in (relowner, 'roster_app'::regrole)), (select string_agg(attname, ' ') from pg_attribute where attacl is not null and attrelid = 'users'::regclass),
		case when has_function_privilege('anon', 'touch_updated_at()', 'execute') then 'function' end)`
	given := []string{"alter default privileges for role plain in schema public grant all on tables to anon, public", "alter default privileges for role plain grant all on tables to anon",
		"alter default privileges for role plain in schema public grant all on functions to anon"}
	t.Run("default privileges", func(t *testing.T) {
		database := with(t, "supabase", "", given...)
		if out := migrated(t, database); !strings.Contains(out, "users is taken from anon") {
			t.Error(out)
		}
		if found := value(t, database, strangers); found != "" {
			t.Error(found)
		}
		(&postgres{url: database}).sql(t, "grant select on sessions to anon with grant option", "grant select (password_hash) on users to anon", "grant insert on users to public")
		migrated(t, database)
		if found := value(t, database, strangers); found != "" {
			t.Error("granted later:", found)
		}
	})
	// R84: a dump has no settings of roles.
	t.Run("a restore", func(t *testing.T) {
		database := with(t, "dumped", "")
		migrated(t, database)
		binDir := findPostgres()
		if initdb, err := filepath.EvalSymlinks(filepath.Join(binDir, "initdb")); err == nil {
			binDir = filepath.Dir(initdb) // a link may be there for initdb alone
		}
		dump, err := exec.Command(filepath.Join(binDir, "pg_dump"), "-Fc", "-d", as("roster", database)).Output()
		if err != nil {
			t.Fatal(err)
		}
		restored := with(t, "restored", "", given...)
		restore := exec.Command(filepath.Join(binDir, "pg_restore"), "-d", as("roster", restored), "--no-privileges")
		restore.Stdin = bytes.NewReader(dump)
		if out, err := restore.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		refused(t, as("roster_app", restored), "", "migrate` as the owner")
		migrated(t, restored)
		if found := value(t, restored, strangers); found != "" {
			t.Error(found)
		}
		limits := `select string_agg(array_to_string(setconfig, ' '), '; ' order by setrole) from pg_db_role_setting where setdatabase = (select oid from pg_database where datname = current_database())`
		if before, after := value(t, database, limits), value(t, restored, limits); before != after {
			t.Errorf("%s, before %s", after, before)
		}
		startTestServer(t, testConfig(as("roster_app", restored)), newMailbox()).story()
	})
	t.Run("row security", func(t *testing.T) {
		database := with(t, "hidden", "")
		migrated(t, database)
		(&postgres{url: database}).sql(t, "alter table sessions enable row level security")
		refused(t, as("roster_app", database), "", "alter table sessions disable row level security")
	})
	t.Run("a table may not be written", func(t *testing.T) {
		database := with(t, "readonly", "")
		migrated(t, database)
		(&postgres{url: database}).sql(t, "revoke delete on throttles from roster_app")
		refused(t, as("roster_app", database), "", "may not read and write throttles")
	})
	t.Run("few connections", func(t *testing.T) {
		database := with(t, "few", "")
		migrated(t, database)
		(&postgres{url: database}).sql(t, "grant select, insert, update, delete on all tables in schema public to few")
		s := startServe(t, serveEnv(as("few", database)))
		if logs := s.out.String(); strings.Count(logs, `"connections":3,"DB_MAX_CONNS":8`) != 1 {
			t.Error(logs)
		}
		failed := together(60, func(int) bool {
			status, _, err := getJSON(s.url, "/v1/users/me", "x")
			return err != nil || status != 401
		})
		if failed > 0 {
			t.Errorf("%d of 60 did not wait", failed)
		}
	})
	t.Run("a standby", func(t *testing.T) { // R111: not ready, and no reason to stop
		database := with(t, "copied", "")
		migrated(t, database)
		standby := startStandby(t, pg, dir)
		primary, err := url.Parse(pg.url)
		copied, err2 := url.Parse(standby.url)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		s := startTestServer(t, testConfig(strings.Replace(as("roster_app", database), primary.Host, copied.Host, 1)), newMailbox())
		s.get("/readyz", "").want(503, "not_ready")
		if err := checkSchema(t.Context(), s.server); err != nil {
			t.Error(err)
		}
		standby.sql(t, "select pg_promote()")
		s.until(func() bool { return s.get("/readyz", "").status == 200 })
	})
}

// R88: a pooler refuses the start-up parameters that it does not know. Its connections are checked all the same.
func TestPooler(t *testing.T) {
	t.Parallel()
	database := newTestDatabase(t)
	s := startTestServer(t, testConfig(database), newMailbox())
	pooler := newPooler(t, database)
	cfg := s.cfg
	cfg.DatabaseURL = pooler
	pooled := startTestServer(t, cfg, s.mail)
	pooled.side = s.side
	pooled.story()
	if err := migrateTo(t.Context(), pooler, io.Discard, nil); !errors.Is(err, errPooler) {
		t.Error(err)
	}
	for name, value := range map[string]string{"default_transaction_read_only": "on", "default_transaction_isolation": "serializable", "search_path": "pg_catalog"} {
		alter := "alter database " + scalar[string](s, "select current_database()")
		if err := adminExec(t.Context(), alter+" set "+name+" = "+value); err != nil {
			t.Fatal(err)
		}
		one := startTestServer(t, cfg, newMailbox())
		if err := checkSchema(t.Context(), one.server); err == nil || !strings.Contains(err.Error(), "set "+name+" = ") {
			t.Error(name, err)
		}
		one.get("/readyz", "").want(503, "not_ready")
		if err := adminExec(t.Context(), alter+" reset "+name); err != nil {
			t.Fatal(err)
		}
	}
}

// newPooler refuses what PgBouncer refuses, and passes on the rest.
func newPooler(t *testing.T, databaseURL string) string {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	server := u.Host
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go pool(client, server)
		}
	}()
	u.Host = listener.Addr().String()
	return withParameter(u.String(), "sslmode", "disable")
}

func pool(client net.Conn, server string) {
	defer client.Close()
	backend := pgproto3.NewBackend(client, client)
	first, err := backend.ReceiveStartupMessage()
	if err != nil {
		return
	}
	startup, ok := first.(*pgproto3.StartupMessage)
	if ok {
		for name := range startup.Parameters {
			if !slices.Contains(append([]string{"user", "database"}, passedOn...), name) {
				backend.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "08P01", Message: "unsupported startup parameter: " + name})
				_ = backend.Flush()
				return
			}
		}
	}
	upstream, err := net.Dial("tcp", server)
	if err != nil {
		return
	}
	defer upstream.Close()
	message, err := first.Encode(nil)
	if err != nil {
		return
	}
	if _, err := upstream.Write(message); err != nil {
		return
	}
	go func() { _, _ = io.Copy(upstream, client); upstream.Close() }()
	_, _ = io.Copy(client, upstream)
}
