package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Servers, databases and roles come with settings that other programs chose. Connections state every one on which a
// statement of roster depends (R111), in the start-up message: what is set later stays behind in a pooler (R88). A pooler
// takes few of them; checkDatabase compares what holds in the end.

// stated are the settings that change what statements mean, or how values are written and read. Others change only how
// long something takes, or are the operator's to choose, such as synchronous_commit.
var stated = map[string]string{
	"client_encoding": "UTF8", "DateStyle": "ISO, MDY", "TimeZone": "UTC", "standard_conforming_strings": "on",
	"IntervalStyle": "postgres", "bytea_output": "hex", "array_nulls": "on", "transform_null_equals": "off",
	"default_transaction_isolation": "read committed", "default_transaction_read_only": "off",
	"exit_on_error": "off", "gin_fuzzy_search_limit": "0",
}

// passedOn are those that every pooler knows.
var passedOn = []string{"client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings", "application_name"}

// serveLimits are the limits of sql/009_runtime.sql (R84), and none of those that a server may have for idle sessions and
// whole transactions. Like search_path they give way to the URL: ?statement_timeout=10s
var serveLimits = map[string]string{
	"statement_timeout": "5s", "lock_timeout": "2s", "idle_in_transaction_session_timeout": "10s",
	"idle_session_timeout": "0", "transaction_timeout": "0",
}

// commandLimits are those of commands whose statements may take their time; lock_timeout keeps a migration from queueing
// behind a long transaction with everybody else behind it (R94).
var commandLimits = map[string]string{
	"statement_timeout": "0", "lock_timeout": "5s", "idle_in_transaction_session_timeout": "0",
	"idle_session_timeout": "0", "transaction_timeout": "0",
}

// unfit says in one sentence why a database cannot serve, or why a URL leads to none, and what to type. It holds no value
// of the URL (R112).
type unfit string

func (e unfit) Error() string { return string(e) }

const (
	errNoDatabaseURL = unfit("is not a PostgreSQL connection URL: postgres://user:password@host:5432/name")
	errOtherScheme   = unfit("must begin with postgres:// or postgresql://, without a driver such as SQLAlchemy's +asyncpg")
	errNotEncoded    = unfit("is not a PostgreSQL connection URL: encode special characters of the user and the password, " +
		"# is %23, % is %25, / is %2F, ? is %3F, @ is %40")
	errSimpleProtocol = unfit("must not ask for the simple protocol: default_query_exec_mode=cache_describe is for poolers")
	errSchemaName     = unfit("names a schema of other characters than a to z, 0 to 9 and _")
	errParameter      = unfit("DATABASE_URL has a parameter that the server does not know, or a value that it does not take")
	errPooler         = unfit("DATABASE_URL leads to a pooler: this command needs PostgreSQL itself")
)

var (
	// cutShort: an @ after what ends the host, or a fragment, means that the password had one of / ? # in it.
	cutShort      = regexp.MustCompile(`#|[/?].*@`)
	otherScheme   = regexp.MustCompile(`^[^=]*://`)
	schemaName    = regexp.MustCompile(`^[a-z_][a-z0-9_]*$`)
	parameterName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)
)

// parseDatabaseURL reads DATABASE_URL, with the settings and limits that connections state. Its errors are unfit, about
// the variable; those of pgx quote what they were given. What a password that is not encoded would leak into, the host,
// the database or a parameter, is refused here, so that the errors of connecting may name these.
func parseDatabaseURL(url string, limits map[string]string) (*pgxpool.Config, error) {
	scheme, rest, isURL := strings.Cut(url, "://")
	isURL = isURL && (scheme == "postgres" || scheme == "postgresql")
	if !isURL && otherScheme.MatchString(url) {
		return nil, errOtherScheme
	}
	if isURL && cutShort.MatchString(rest) {
		return nil, errNotEncoded
	}
	pc, err := pgxpool.ParseConfig(url)
	if err != nil && isURL && strings.Contains(rest, "%") {
		return nil, errNotEncoded
	} else if err != nil {
		return nil, errNoDatabaseURL
	}
	cc := pc.ConnConfig
	if cc.DefaultQueryExecMode == pgx.QueryExecModeSimpleProtocol { // R23
		return nil, errSimpleProtocol
	}
	for name := range cc.RuntimeParams {
		if !parameterName.MatchString(name) {
			return nil, errNoDatabaseURL
		}
	}
	return pc, state(cc.RuntimeParams, limits)
}

// state adds to the parameters of a URL what it does not say.
func state(params, limits map[string]string) error {
	for name := range params { // one spelling of each
		for known := range stated {
			if strings.EqualFold(name, known) {
				delete(params, name)
			}
		}
	}
	maps.Copy(params, stated)
	for name, limit := range limits {
		if !strings.Contains(params["options"], name) {
			params[name] = cmp.Or(params[name], limit)
		}
	}
	if path := regexp.MustCompile(`search_path\s*=\s*([^\s]+)`).FindStringSubmatch(params["options"]); path != nil {
		params["search_path"] = cmp.Or(params["search_path"], path[1])
	}
	params["search_path"] = cmp.Or(params["search_path"], "public")
	if !schemaName.MatchString(schemaOf(params)) {
		return errSchemaName
	}
	return nil
}

// schemaOf is where roster's tables are: the first schema of the search path.
func schemaOf(params map[string]string) string {
	first, _, _ := strings.Cut(params["search_path"], ",")
	return strings.Trim(strings.TrimSpace(first), `"`)
}

// startup finds out once what start-up messages the other side takes: the settings that PostgreSQL of its version does
// not know, or that a pooler does not pass on, are left out of all later ones.
type startup struct{ refused atomic.Pointer[[]string] }

// prepare is for pgxpool's BeforeConnect.
func (s *startup) prepare(ctx context.Context, cc *pgx.ConnConfig) error {
	refused := s.refused.Load()
	if refused == nil {
		names, err := refusedSettings(ctx, cc)
		if err != nil {
			return err
		}
		refused = &names
		s.refused.Store(refused)
	}
	for _, name := range *refused {
		delete(cc.RuntimeParams, name)
	}
	return nil
}

func (s *startup) pooled() bool {
	refused := s.refused.Load()
	return refused != nil && len(*refused) > 1
}

func refusedSettings(ctx context.Context, cc *pgx.ConnConfig) ([]string, error) {
	const newest = "transaction_timeout" // PostgreSQL 17
	first := cc.Copy()
	delete(first.RuntimeParams, newest)
	conn, err := pgx.ConnectConfig(ctx, first)
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "08P01": // what PgBouncer says of a parameter that it does not know
		return slices.DeleteFunc(slices.Collect(maps.Keys(cc.RuntimeParams)), func(name string) bool {
			return slices.Contains(passedOn, name)
		}), nil
	case errors.As(err, &pg) && (pg.Code == "42704" || strings.HasPrefix(pg.Code, "22")):
		return nil, errParameter // the server's own message quotes the parameter, which may be a part of a password
	case err != nil:
		return nil, err
	}
	defer conn.Close(ctx)
	var major int
	if _, err := fmt.Sscanf(conn.PgConn().ParameterStatus("server_version"), "%d", &major); err != nil || major < 17 {
		return []string{newest}, nil
	}
	return []string{}, nil
}

// connectDirectly opens a connection for a command whose statements may take their time, and prints what they raise.
func connectDirectly(ctx context.Context, databaseURL string, out io.Writer) (*pgx.Conn, error) {
	pc, err := parseDatabaseURL(databaseURL, commandLimits)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL %w", err)
	}
	cc := pc.ConnConfig
	cc.ConnectTimeout = cmp.Or(cc.ConnectTimeout, connectTimeout)
	cc.OnNotice = func(_ *pgconn.PgConn, notice *pgconn.Notice) {
		if notice.Code == "00000" { // of RAISE; the others are PostgreSQL's own
			fmt.Fprintln(out, notice.Message)
		}
	}
	var s startup
	if err := s.prepare(ctx, cc); err != nil {
		return nil, fmt.Errorf("connecting to the database: %w", err)
	}
	if s.pooled() {
		return nil, errPooler
	}
	conn, err := pgx.ConnectConfig(ctx, cc)
	if err != nil {
		return nil, fmt.Errorf("connecting to the database: %w", err)
	}
	return conn, nil
}

// connectionLimit is how many connections this role may have at once.
func connectionLimit(ctx context.Context, cc *pgx.ConnConfig) (limit int32, err error) {
	cc = cc.Copy()
	var s startup
	if err := s.prepare(ctx, cc); err != nil {
		return 0, err
	}
	if s.pooled() { // it waits for one itself
		return math.MaxInt32, nil
	}
	conn, err := pgx.ConnectConfig(ctx, cc)
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx)
	return limit, conn.QueryRow(ctx, `
		select least(current_setting('max_connections')::int, case when not rolsuper then
			least(nullif(rolconnlimit, -1), nullif(datconnlimit, -1), current_setting('max_connections')::int
				- current_setting('superuser_reserved_connections')::int - coalesce(current_setting('reserved_connections', true)::int, 0)) end)
		from pg_roles, pg_database where rolname = session_user and datname = current_database()`).Scan(&limit)
}
