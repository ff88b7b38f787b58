package main

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
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
type db struct{ q querier }

// inTx runs fn in a transaction, which commits when fn returns nil. What must survive a refusal is committed before
// the refusal is returned, never inside fn. fn runs again, at most three times, when PostgreSQL broke a deadlock or
// what it read has moved: nothing of the first run is left then (R82).
func (d db) inTx(ctx context.Context, fn func(tx db) error) error {
	for attempt := 1; ; attempt++ {
		err := pgx.BeginFunc(ctx, d.q, func(tx pgx.Tx) error { return fn(db{tx}) })
		if attempt == 3 || !retryable(err) {
			return err
		}
		time.Sleep(rand.N(time.Duration(attempt) * 20 * time.Millisecond))
	}
}

// inOrder returns the first error of steps that ran one after the other in a transaction. What ran after it is rolled
// back with it.
func inOrder(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// errMoved asks inTx for another run: what was locked first is not all that had to be.
var errMoved = &pgconn.PgError{Code: "40001", Message: "locked too little"}

func retryable(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01")
}

// exec runs a statement.
func (d db) exec(ctx context.Context, sql string, args ...any) error {
	_, err := d.q.Exec(ctx, sql, args...)
	return err
}

// execOne is exec for a statement that must find its row; pgx.ErrNoRows when it does not.
func (d db) execOne(ctx context.Context, sql string, args ...any) error {
	tag, err := d.q.Exec(ctx, sql, args...)
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
	rows, _ := d.q.Query(ctx, sql, args...) // its error is in rows too
	return pgx.CollectExactlyOneRow(rows, scan)
}

func manyBy[T any](ctx context.Context, d db, scan pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	rows, _ := d.q.Query(ctx, sql, args...)
	return pgx.CollectRows(rows, scan)
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
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.ConstraintName == constraint
}

// connectionLost recognises a connection that ended under a query.
func connectionLost(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || pgconn.SafeToRetry(err)
}

// acquireTimeout is how long a request waits for a connection before it is shed (R14).
const acquireTimeout = 2 * time.Second

// poolConfig sets every figure of the pool explicitly (R83).
func poolConfig(cfg config) (*pgxpool.Config, error) {
	pc, err := pgxpool.ParseConfig(cfg.DatabaseURL)
	if err != nil {
		return nil, err
	}
	pc.MaxConns = cfg.DBMaxConns
	pc.MinIdleConns = min(2, cfg.DBMaxConns)
	pc.MaxConnLifetime = 30 * time.Minute
	pc.MaxConnLifetimeJitter = 5 * time.Minute
	pc.MaxConnIdleTime = 5 * time.Minute
	pc.HealthCheckPeriod = 15 * time.Second
	pc.PingTimeout = time.Second
	pc.ConnConfig.ConnectTimeout = 3 * time.Second
	pc.ConnConfig.OnPgError = func(_ *pgconn.PgConn, e *pgconn.PgError) bool {
		return e.SeverityUnlocalized != "FATAL" && e.Code != "25006"
	}
	pc.ConnConfig.Tracer = acquireLimit{}
	pc.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
		// Times are UTC in the API, whatever the zone of this machine.
		conn.TypeMap().RegisterType(&pgtype.Type{Name: "timestamptz", OID: pgtype.TimestamptzOID,
			Codec: &pgtype.TimestamptzCodec{ScanLocation: time.UTC}})
		return nil
	}
	return pc, nil
}

// acquireLimit puts acquireTimeout on waiting for a connection, which pgxpool has no setting for: the context that
// TraceAcquireStart returns is the one it waits with.
type acquireLimit struct{}

type cancelAcquire struct{}

func (acquireLimit) TraceAcquireStart(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireStartData) context.Context {
	ctx, cancel := context.WithTimeout(ctx, acquireTimeout)
	return context.WithValue(ctx, cancelAcquire{}, cancel)
}

func (acquireLimit) TraceAcquireEnd(ctx context.Context, _ *pgxpool.Pool, _ pgxpool.TraceAcquireEndData) {
	ctx.Value(cancelAcquire{}).(context.CancelFunc)()
}

// The tracer interface of pgx that carries acquireLimit also asks for these; they do nothing.
func (acquireLimit) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (acquireLimit) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
