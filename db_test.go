package main

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// R23: no statement is put together from anything but constants; R89: every column is named.
func TestStatementsAreConstant(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	// Which argument is the statement.
	position := map[string]int{"Query": 1, "QueryRow": 1, "Exec": 1, "exec": 1, "execOne": 1, "one": 2, "many": 2, "oneBy": 3, "manyBy": 3}
	found := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") || name == "db.go" { // db.go hands statements on
			continue
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			fun := call.Fun
			if index, ok := fun.(*ast.IndexExpr); ok { // one[user](…)
				fun = index.X
			}
			called := ""
			switch f := fun.(type) {
			case *ast.SelectorExpr:
				called = f.Sel.Name
			case *ast.Ident:
				called = f.Name
			}
			i, ok := position[called]
			if !ok || len(call.Args) <= i {
				return true
			}
			found++
			if !constantText(call.Args[i]) {
				t.Errorf("%s: the statement is not a constant", fset.Position(call.Pos()))
			}
			return true
		})
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(strings.ToLower(string(content)), "select *") || strings.Contains(strings.ToLower(string(content)), "returning *") {
			t.Errorf("%s: a statement asks for all columns", name)
		}
	}
	if found < 60 {
		t.Errorf("only %d statements were looked at", found)
	}
}

func constantText(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.BasicLit:
		return e.Kind == token.STRING
	case *ast.BinaryExpr:
		return e.Op == token.ADD && constantText(e.X) && constantText(e.Y)
	case *ast.Ident:
		return e.Name == "userMemberships" || e.Name == "secondFactorStep" || strings.HasSuffix(e.Name, "Columns") || e.Name == "query" // constants too, the last one of import.go
	case *ast.SelectorExpr: // a row of the table of statements in prune.go
		x, ok := e.X.(*ast.Ident)
		return ok && (x.Name == "q" && e.Sel.Name == "sql" || x.Name == "migration" && e.Sel.Name == "UpSQL") // a file of sql/
	}
	return false
}

// Every unique and foreign-key constraint is answered by name, or listed here with the reason why input cannot break it.
func TestEveryConstraintIsAnswered(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	unbreakable := map[string]string{
		"_pkey":                                 "ids and hashes are made here, from 80 random bits or more",
		"_fkey":                                 "404: what was pointed to is gone",
		"mail_tokens_user_id_purpose_key":       "on conflict do update",
		"invitations_organization_id_email_key": "on conflict do update",
		"invitations_token_hash_key":            "256 random bits",
		"registrations_email_key":               "on conflict do update",
		"registrations_token_hash_key":          "256 random bits",
		"passkeys_credential_id_key":            "a room's, which answers it itself",
	}
	rows, err := s.pool.Query(t.Context(), `select conname from pg_constraint where connamespace = 'public'::regnamespace and contype in ('u', 'f', 'p')`)
	if err != nil {
		t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		answered := constraintErrors[name] != nil
		for suffix := range unbreakable {
			answered = answered || strings.HasSuffix(name, suffix)
		}
		if !answered {
			t.Errorf("%s has no answer in errors.go", name)
		}
	}
	for name := range constraintErrors {
		if !slices.Contains(names, name) {
			t.Errorf("errors.go answers %s, which is no constraint", name)
		}
	}
}

// R84, R89: the role of serve reads and writes rows, and that is all; PostgreSQL ends what takes it too long. Where there
// is no such role, the owner has the same limits. The role is made in a transaction that is rolled back: the server
// may be somebody else's.
func TestRuntimeRole(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	up, _, _ := strings.Cut(string(migrationFile(t, "005_runtime.sql")), "---- create above / drop below ----")
	for _, role := range []string{"", "roster_app"} {
		t.Run("role "+role, func(t *testing.T) {
			tx, err := s.side.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(context.Background()) }()
			exec := func(sql string) error {
				_, err := tx.Exec(t.Context(), sql)
				return err
			}
			if role != "" {
				err = exec("create role " + role)
			}
			if err := firstError(err, exec(up)); err != nil {
				t.Fatal(err)
			}
			var limits string
			err = tx.QueryRow(t.Context(), `
				select array_to_string(setconfig, ' ') from pg_db_role_setting s join pg_roles r on r.oid = s.setrole
				where s.setdatabase = (select oid from pg_database where datname = current_database())
					and r.rolname = coalesce(nullif($1, ''), current_user)`, role).Scan(&limits)
			if want := "statement_timeout=5s lock_timeout=2s idle_in_transaction_session_timeout=10s"; err != nil || limits != want {
				t.Errorf("the limits are %q, %v", limits, err)
			}
			if role == "" {
				return
			}
			if err := exec("set local role " + role); err != nil {
				t.Fatal(err)
			}
			for statement, allowed := range map[string]bool{
				"insert into organizations (id, name, slug) values (gen_random_uuid(), 'Test', 'test')": true,
				"update users set name = name": true, "delete from mails": true, "select version from schema_version": true,
				"create temporary table t (n integer)":  true, // import
				"update schema_version set version = 0": false, "create table public.t (n integer)": false, "drop table users": false,
				"alter table users add column n integer": false, "truncate users": false, "create role somebody": false,
			} {
				err := pgx.BeginFunc(t.Context(), tx, func(tx pgx.Tx) error {
					_, err := tx.Exec(t.Context(), statement)
					return err
				})
				if (err == nil) != allowed {
					t.Errorf("%s: %v", statement, err)
				}
			}
		})
	}
}

func migrationFile(t *testing.T, name string) []byte {
	content, err := sqlFiles.ReadFile("sql/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// R81: what must always hold, holds in the database, whoever writes to it.
func TestInvariantsAreConstraints(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada, bob, acme, gone := newID(), newID(), newID(), newID()
	s.exec("insert into users (id, email, name) values ($1, 'ada@example.com', 'Ada'), ($2, 'bob@example.com', 'Bob')", ada, bob)
	s.exec("insert into organizations (id, name, slug) values ($1, 'Acme', 'acme')", acme)
	s.exec("insert into memberships (id, organization_id, user_id, role) values ($1, $1, $2, 'owner')", acme, ada)
	s.exec("insert into invitations (id, organization_id, email, role, invited_by, expires_at) values ($1, $1, 'eve@example.com', 'member', $2, now())", acme, ada)
	s.exec("insert into sessions (id, user_id, expires_at) values ($1, $1, now())", ada)
	s.exec("insert into mail_tokens (token_hash, user_id, purpose, email, expires_at) values ('x', $1, 'reset-password', 'ada@example.com', now())", ada)
	const (
		insertUser       = "insert into users (id, email, name, role) values (gen_random_uuid(), $1, $2, $3)"
		insertMembership = "insert into memberships (id, organization_id, user_id, role) values (gen_random_uuid(), $1, $2, $3)"
		insertInvitation = "insert into invitations (id, organization_id, email, role, invited_by, expires_at) values (gen_random_uuid(), $1, $2, $3, $4, now())"
	)
	for _, tc := range []struct {
		constraint, sql string
		args            []any
	}{
		{"users_email_key", insertUser, []any{"ada@example.com", "Ada", "user"}},
		{"users_email_check", insertUser, []any{"Ada@example.com", "Ada", "user"}},
		{"users_email_check", insertUser, []any{strings.Repeat("a", 255), "Ada", "user"}},
		{"users_name_check", insertUser, []any{"eve@example.com", "", "user"}},
		{"users_name_check", insertUser, []any{"eve@example.com", strings.Repeat("a", 101), "user"}},
		{"users_role_check", insertUser, []any{"eve@example.com", "Eve", "owner"}},
		{"organizations_slug_key", "insert into organizations (id, name, slug) values ($1, 'Other', 'acme')", []any{gone}},
		{"organizations_slug_check", "insert into organizations (id, name, slug) values ($1, 'Other', 'Acme')", []any{gone}},
		{"organizations_name_check", "insert into organizations (id, name, slug) values ($1, '', 'other')", []any{gone}},
		{"memberships_organization_id_user_id_key", insertMembership, []any{acme, ada, "member"}},
		{"memberships_role_check", insertMembership, []any{acme, bob, "user"}},
		{"memberships_organization_id_fkey", insertMembership, []any{gone, bob, "member"}},
		{"memberships_user_id_fkey", insertMembership, []any{acme, gone, "member"}},
		{"invitations_organization_id_email_key", insertInvitation, []any{acme, "eve@example.com", "member", ada}},
		{"invitations_email_check", insertInvitation, []any{acme, "Mallory@example.com", "member", ada}},
		{"invitations_role_check", insertInvitation, []any{acme, "mallory@example.com", "root", ada}},
		{"invitations_organization_id_fkey", insertInvitation, []any{gone, "mallory@example.com", "member", ada}},
		{"invitations_invited_by_fkey", insertInvitation, []any{acme, "mallory@example.com", "member", gone}},
		{"sessions_generation_check", "update sessions set generation = $1", []any{0}},
		{"sessions_user_id_fkey", "insert into sessions (id, user_id, expires_at) values ($1, $1, now())", []any{gone}},
		{"mail_tokens_user_id_fkey", "insert into mail_tokens (token_hash, user_id, purpose, email, expires_at) values ('y', $1, 'reset-password', 'x', now())", []any{gone}},
		{"mail_tokens_user_id_purpose_key", "insert into mail_tokens (token_hash, user_id, purpose, email, expires_at) values ('y', $1, 'reset-password', 'x', now())", []any{ada}},
	} {
		if _, err := s.behind().Exec(t.Context(), tc.sql, tc.args...); !violates(err, tc.constraint) {
			t.Errorf("%s %v: %v, want %s", tc.sql, tc.args, err, tc.constraint)
		}
	}
}

// R83: every figure of the pool is ours, none is a default of pgx.
func TestPoolConfig(t *testing.T) {
	t.Parallel()
	pc, err := poolConfig(config{DatabaseURL: "postgres://u@h/d?pool_max_conns=3", DBMaxConns: 7})
	if err != nil {
		t.Fatal(err)
	}
	got := []any{pc.MaxConns, pc.MaxConnLifetime, pc.MaxConnLifetimeJitter, pc.MaxConnIdleTime, pc.HealthCheckPeriod, pc.PingTimeout, pc.ConnConfig.ConnectTimeout}
	want := []any{int32(7), 30 * time.Minute, 5 * time.Minute, 5 * time.Minute, 15 * time.Second, time.Second, 3 * time.Second}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// R88: nothing of a request stays behind in its connection, so that a pooler may give each transaction another one.
func TestNoSessionState(t *testing.T) {
	t.Parallel()
	s := newTestServer(t, behindProxy)
	_, token := everythingPersonal(s, browser{"203.0.113.7", "A/1"}, browser{"198.51.100.9", "B/1"})
	s.get("/v1/users/me/export", token).want(200, "")
	if _, err := s.db.prune(t.Context(), s.cfg); err != nil {
		t.Fatal(err)
	}
	conns := s.pool.AcquireAllIdle(t.Context())
	if len(conns) == 0 {
		t.Fatal("no connection was used")
	}
	for _, conn := range conns {
		var left string
		if err := conn.QueryRow(t.Context(), `
			select concat_ws(' ', (select string_agg(name, ' ') from pg_settings where source = 'session' and name not like 'transaction\_%'),
				(select string_agg(locktype, ' ') from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'),
				(select string_agg(c, ' ') from pg_listening_channels() c),
				(select string_agg(relname, ' ') from pg_class where relnamespace = pg_my_temp_schema()),
				(select string_agg(name, ' ') from pg_cursors where is_holdable))`).Scan(&left); err != nil || left != "" {
			t.Errorf("left behind: %q, %v", left, err)
		}
		conn.Release()
	}
}

// The version of a row, its ETag, moves forward on every change, even when the clock does not.
func TestVersionsMoveForward(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	ada := s.newUser("ada@example.com", "user")
	s.exec("alter table users disable trigger users_touch")
	s.exec("update users set updated_at = now() + interval '1 day'") // a clock that was set back since
	s.exec("alter table users enable trigger users_touch")
	patch := func(name string) string {
		return s.do(request{method: "PATCH", path: "/v1/users/me", token: ada.token, body: jsonBody("name", name)}).want(200, "").header.Get("ETag")
	}
	for _, name := range []string{"Ada", "Grace", "Ada"} {
		before := s.get("/v1/users/me", ada.token).header.Get("ETag")
		after := patch(name)
		if after <= before || len(after) != len(before) { // base 36: longer is later
			t.Errorf("%s after %s", after, before)
		}
		if same := patch(name); same != after {
			t.Errorf("what changes nothing is version %s after %s", same, after)
		}
	}
}

// R84, R89: an owner who is no superuser may not set the limits of another role: they are the database's then, without
// the owner. Everything is rolled back.
func TestRuntimeRoleOfPlainOwner(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	up, _, _ := strings.Cut(string(migrationFile(t, "005_runtime.sql")), "---- create above / drop below ----")
	tx, err := s.side.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	for _, sql := range []string{
		"create role roster_app", "create role roster_plain_owner",
		`do $$ declare name text; begin
			execute format('alter database %I owner to roster_plain_owner', current_database());
			for name in select tablename from pg_tables where schemaname = 'public' loop
				execute format('alter table %I owner to roster_plain_owner', name);
			end loop;
		end $$`,
		"alter schema public owner to roster_plain_owner", "set local role roster_plain_owner", up,
	} {
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(sql, err)
		}
	}
	var limits string
	if err := tx.QueryRow(t.Context(), `
		select string_agg(coalesce(r.rolname, 'everybody') || ' ' || array_to_string(setconfig, ' '), ', ' order by r.rolname nulls first)
		from pg_db_role_setting s left join pg_roles r on r.oid = s.setrole
		where s.setdatabase = (select oid from pg_database where datname = current_database())`).Scan(&limits); err != nil {
		t.Fatal(err)
	}
	if want := "everybody statement_timeout=5s lock_timeout=2s idle_in_transaction_session_timeout=10s, " +
		"roster_plain_owner statement_timeout=0 lock_timeout=0 idle_in_transaction_session_timeout=0"; limits != want {
		t.Errorf("%s\nwant %s", limits, want)
	}
	var granted bool
	if err := tx.QueryRow(t.Context(), "select has_table_privilege('roster_app', 'users', 'insert')").Scan(&granted); err != nil || !granted {
		t.Error("roster_app may not write", err)
	}
}
