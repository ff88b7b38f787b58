package main

import (
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

// querier is a pool or a transaction.
type querier interface {
	Begin(context.Context) (pgx.Tx, error)
	Exec(context.Context, string, ...any) (pgconn.CommandTag, error)
	Query(context.Context, string, ...any) (pgx.Rows, error)
	QueryRow(context.Context, string, ...any) pgx.Row
}

// db is where the SQL lives: one method a statement, in the files db_*.go.
type db struct {
	q     querier
	trail *trail // of a transaction // room:audit
}

// inTx runs fn in a transaction, which commits when fn returns nil. What must survive a refusal is committed before
// the refusal is returned, never inside fn. fn runs up to three times when PostgreSQL broke a deadlock or what it read
// has moved: PostgreSQL itself says then that nothing of the run before is left. A COMMIT whose answer is lost may have
// worked, so it is never tried again (R82).
func (d db) inTx(ctx context.Context, fn func(tx db) error) error {
	for attempt := 1; ; attempt++ {
		err := pgx.BeginFunc(ctx, d.q, func(tx pgx.Tx) error {
			run := db{q: tx}
			run.trail = &trail{} // room:audit
			err := fn(run)
			err = run.writeTrail(ctx, err) // room:audit
			return err
		})
		if stale := d.stalePlan(err); attempt == 3 || !stale && !retryable(err) {
			return err
		}
		time.Sleep(rand.N(time.Duration(attempt) * 20 * time.Millisecond)) // #nosec G404 -- no secret
	}
}

// firstError is for steps of a transaction that all run, one after the other: what ran after the first error is rolled
// back with it.
func firstError(errs ...error) error { return cmp.Or(errs...) }

// errMoved asks inTx for another run: what was locked first is not all that had to be.
var errMoved = &pgconn.PgError{Code: "40001", Message: "locked too little"}

func retryable(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code == "40001" || pg.Code == "40P01")
}

// stalePlan says whether a statement failed only because a migration changed a type under its prepared form: then it
// works on new connections, which is what the pool has from now on. It has new ones too when this server turned out to
// be read-only, after a failover: what the others would read here may be old. Transactions leave both to inTx (R85).
func (d db) stalePlan(err error) bool {
	pool, ok := d.q.(*pgxpool.Pool)
	var pg *pgconn.PgError
	if !ok || !errors.As(err, &pg) || pg.Code != "0A000" && pg.Code != "25006" {
		return false
	}
	pool.Reset()
	return pg.Code == "0A000"
}

// exec runs a statement.
func (d db) exec(ctx context.Context, sql string, args ...any) error {
	_, err := d.execTag(ctx, sql, args...)
	return err
}

func (d db) execTag(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	tag, err := d.q.Exec(ctx, sql, args...)
	if d.stalePlan(err) {
		tag, err = d.q.Exec(ctx, sql, args...)
	}
	return tag, err
}

// execOne is exec for a statement that must find its row; pgx.ErrNoRows when it does not.
func (d db) execOne(ctx context.Context, sql string, args ...any) error {
	tag, err := d.execTag(ctx, sql, args...)
	if err == nil && tag.RowsAffected() == 0 {
		err = pgx.ErrNoRows
	}
	return err
}

// one scans the single row of a statement into T by column name; pgx.ErrNoRows when there is none.
func one[T any](ctx context.Context, d db, sql string, args ...any) (T, error) {
	return oneBy(ctx, d, pgx.RowToStructByName[T], sql, args...)
}

// many scans all rows of a statement into T by column name.
func many[T any](ctx context.Context, d db, sql string, args ...any) ([]T, error) {
	return manyBy(ctx, d, pgx.RowToStructByName[T], sql, args...)
}

func oneBy[T any](ctx context.Context, d db, scan pgx.RowToFunc[T], sql string, args ...any) (T, error) {
	return collect(ctx, d, pgx.CollectExactlyOneRow, scan, sql, args)
}

func manyBy[T any](ctx context.Context, d db, scan pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	return collect(ctx, d, pgx.CollectRows, scan, sql, args)
}

func collect[T, V any](ctx context.Context, d db, read func(pgx.Rows, pgx.RowToFunc[T]) (V, error), scan pgx.RowToFunc[T],
	sql string, args []any) (V, error) {
	rows, _ := d.q.Query(ctx, sql, args...) // its error is in rows too
	v, err := read(rows, scan)
	if d.stalePlan(err) {
		rows, _ = d.q.Query(ctx, sql, args...)
		v, err = read(rows, scan)
	}
	return v, err
}

// deref is empty for NULL.
func deref(id *string) string {
	if id == nil {
		return ""
	}
	return *id
}

// nonEmpty is NULL for an id that is not known.
func nonEmpty(id string) *string {
	if id == "" {
		return nil
	}
	return &id
}

// orElse replaces pgx.ErrNoRows by what it means here.
func orElse(err, missing error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return missing
	}
	return err
}

// violates says whether a statement broke this constraint.
func violates(err error, constraint string) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.ConstraintName == constraint
}

// connectionLost recognises a connection that ended under a query.
func connectionLost(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || pgconn.SafeToRetry(err)
}

const (
	acquireTimeout = 2 * time.Second // how long a request waits for a connection before it is shed (R14)
	connectTimeout = 3 * time.Second // unless the URL says another
	cancelTimeout  = time.Second     // for asking the server to end what a broken connection was doing
)

// poolConfig sets every figure of the pool explicitly (R83).
func poolConfig(cfg config) (*pgxpool.Config, error) {
	pc, err := parseDatabaseURL(cfg.DatabaseURL, serveLimits)
	if err != nil {
		return nil, err
	}
	pc.MaxConns = cfg.DBMaxConns
	pc.MinConns = 0
	pc.MinIdleConns = min(2, cfg.DBMaxConns)
	pc.MaxConnLifetime = 30 * time.Minute
	pc.MaxConnLifetimeJitter = 5 * time.Minute
	pc.MaxConnIdleTime = 5 * time.Minute
	pc.HealthCheckPeriod = 15 * time.Second
	pc.PingTimeout = time.Second
	pc.ConnConfig.ConnectTimeout = cmp.Or(pc.ConnConfig.ConnectTimeout, connectTimeout)
	pc.ConnConfig.DialFunc = hurryCancel(pc.ConnConfig.DialFunc, pc.ConnConfig.ConnectTimeout)
	pc.ConnConfig.OnPgError = func(_ *pgconn.PgConn, e *pgconn.PgError) bool {
		return e.SeverityUnlocalized != "FATAL" && e.Code != "25006"
	}
	pc.ConnConfig.Tracer = limits{acquireTimeout}
	pc.BeforeConnect = new(startup).prepare
	pc.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
		// Times are UTC in the API, whatever the zone of this machine.
		conn.TypeMap().RegisterType(&pgtype.Type{Name: "timestamptz", OID: pgtype.TimestamptzOID,
			Codec: &pgtype.TimestamptzCodec{ScanLocation: time.UTC}})
		conn.TypeMap().RegisterDefaultPgType(versions{}, "_timestamptz") // default_query_exec_mode=exec asks no server
		return nil
	}
	return pc, nil
}

// hurryCancel bounds the dials of pgx that are not to connect but to cancel, which it gives 15 s. Until then the broken
// connection keeps its place in the pool: after a failover from a host that is gone nobody would get one (R85).
func hurryCancel(dial pgconn.DialFunc, connectTimeout time.Duration) pgconn.DialFunc {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) <= connectTimeout {
			return dial(ctx, network, addr)
		}
		ctx, cancel := context.WithTimeout(ctx, cancelTimeout)
		defer cancel()
		conn, err := dial(ctx, network, addr)
		if err == nil {
			err = conn.SetDeadline(time.Now().Add(cancelTimeout))
		}
		return conn, err
	}
}

// limits bounds what pgxpool has no setting for: the wait for a connection, and a statement of somebody who has no
// deadline, such as a sender of mails, by requestTimeout. A network that swallows everything would hold them for good.
// pgx goes on with the contexts that the start methods return.
type limits struct{ acquire time.Duration }

type cancelLimit struct{}

func limited(ctx context.Context, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(ctx, d)
	return context.WithValue(ctx, cancelLimit{}, cancel)
}

func unlimit(ctx context.Context) {
	if cancel, ok := ctx.Value(cancelLimit{}).(context.CancelFunc); ok {
		cancel()
	}
}

func (l limits) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireStartData) context.Context {
	return limited(ctx, l.acquire)
}

func (limits) TraceAcquireEnd(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireEndData) {
	unlimit(ctx)
}

func (limits) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	if _, has := ctx.Deadline(); has {
		return ctx
	}
	return limited(ctx, requestTimeout)
}

func (limits) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) { unlimit(ctx) }
