package main

import (
	"context"
	"errors"
	"io"
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
// the refusal is returned, never inside fn.
func (d db) inTx(ctx context.Context, fn func(tx db) error) error {
	return pgx.BeginFunc(ctx, d.q, func(tx pgx.Tx) error { return fn(db{tx}) })
}

// one scans the single row of a statement into T by column name; pgx.ErrNoRows when there is none.
func one[T any](ctx context.Context, d db, sql string, args ...any) (T, error) {
	rows, err := d.q.Query(ctx, sql, args...)
	if err != nil {
		var zero T
		return zero, err
	}
	return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[T])
}

// many scans all rows of a statement into T by column name.
func many[T any](ctx context.Context, d db, sql string, args ...any) ([]T, error) {
	rows, err := d.q.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[T])
}

// affected runs a statement and says whether it changed a row.
func affected(ctx context.Context, d db, sql string, args ...any) (bool, error) {
	tag, err := d.q.Exec(ctx, sql, args...)
	return tag.RowsAffected() > 0, err
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
