// Roster is user accounts, sign-in, organizations and memberships over REST, on PostgreSQL.
//
// Read it in this order: routes.go (what it does), models.go (the nouns), handlers_*.go beside db_*.go (how),
// auth.go, tokens.go and passwords.go (who is calling), handle.go, decode.go and errors.go (the border),
// server.go and this file (the process).
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/schollz/progressbar/v3"
	"github.com/sethvargo/go-envconfig"
	"golang.org/x/term"
)

// version is set by the linker in releases: -ldflags "-X main.version=v1.2.3".
var version = ""

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := run(ctx, os.Args[1:], envconfig.OsLookuper(), os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "roster:", err)
		os.Exit(1)
	}
}

// usageError is an error in how the program was called.
type usageError string

func (e usageError) Error() string { return "usage: roster " + string(e) }

const usage = `COMMAND

  dev          everything on an embedded default: PostgreSQL, secrets, an admin, mails on the terminal
  serve        the API
  migrate      [up|down|status|to N]  the schema, apart from serve
  admin        EMAIL [--password-stdin]  make or recover a platform admin
  sessions     --end-all  sign everybody out
  import       [--atomic] [--dry-run] FILE.ndjson  users with their password hashes, from another system
  prune        delete what has expired; serve does it too
  keygen       a new secret for SECRET_KEYS
  openapi      the OpenAPI document
  healthcheck  ask a running serve on LISTEN_ADDR or PORT whether it is alive
  version`

// run is the program: args without its name, the environment, and where it prints.
func run(ctx context.Context, args []string, lookup envconfig.Lookuper, stdout io.Writer) error {
	if len(args) == 0 {
		return usageError(usage)
	}
	command, args := args[0], args[1:]
	switch command {
	case "migrate":
		return runMigrate(ctx, args, lookup, stdout)
	case "admin": // room:administration
		return runAdmin(ctx, args, lookup, os.Stdin, stdout) // room:administration
	case "sessions":
		return runSessions(ctx, args, lookup, stdout)
	case "import": // room:import
		return runImport(ctx, args, lookup, stdout) // room:import
	}
	if len(args) > 0 {
		return usageError(command + " takes no arguments")
	}
	switch command {
	case "dev": // room:dev
		return runDev(ctx, lookup, stdout) // room:dev
	case "serve":
		return runServe(ctx, lookup, stdout)
	case "prune": // room:prune
		return runPrune(ctx, lookup, stdout) // room:prune
	case "keygen":
		_, err := fmt.Fprintln(stdout, newSecret())
		return err
	case "openapi": // room:documents
		_, err := io.Copy(stdout, bytes.NewReader(openapiJSON)) // room:documents
		return err                                              // room:documents
	case "help", "-h", "--help":
		_, err := fmt.Fprintln(stdout, usageError(usage))
		return err
	case "healthcheck":
		return runHealthcheck(ctx, lookup)
	case "version":
		_, err := fmt.Fprintln(stdout, "roster", buildVersion())
		return err
	}
	return usageError(usage)
}

// runServe serves until ctx ends.
func runServe(ctx context.Context, lookup envconfig.Lookuper, stdout io.Writer) error {
	cfg, err := loadConfig(ctx, lookup, false)
	if err != nil {
		return err
	}
	log := newLogBuffer(cfg, stdout)
	defer log.flush()
	s, err := openServer(ctx, cfg, log)
	if err != nil {
		return err
	}
	if err := firstError(
		checkSchema(ctx, s),
		s.checkSealed(ctx),   // room:second-factor
		s.checkPasskeys(ctx), // room:passkeys
	); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", cfg.ListenAddr)
	if err != nil {
		return fmt.Errorf("LISTEN_ADDR: %w", err)
	}
	if s.deliver == nil { // room:mail
		s.log.Warn("SMTP_URL is not set: mails wait in the outbox")
	}
	defer s.serveOps().Close() // room:metrics
	s.log.Info("serving", "addr", listener.Addr().String(), "version", buildVersion())
	return s.listenAndServe(ctx, listener)
}

// openServer makes the pool and the server. They wait for a database that does not answer yet.
func openServer(ctx context.Context, cfg config, stdout io.Writer) (*server, error) {
	boundGarbage()
	log := newLogger(cfg, stdout)
	pool, err := openPool(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	return newServer(cfg, pool, log)
}

// openCommand is the configuration and the database of a command that serves nothing; it asks for no more of the
// environment than it needs.
func openCommand(ctx context.Context, lookup envconfig.Lookuper, needs ...string) (*server, error) {
	cfg, err := loadConfig(ctx, lookup, true, needs...)
	if err != nil {
		return nil, err
	}
	cfg.DBMaxConns = 2
	pc, err := poolConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL %w", err)
	}
	pc.ConnConfig.Tracer = limits{2 * pc.ConnConfig.ConnectTimeout} // nobody else waits
	var keys *keyRing
	if len(cfg.secrets) > 0 { // no command needs them, and prune can do with them
		if keys, err = newKeyRing(cfg); err != nil {
			return nil, err
		}
	}
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, err
	}
	s := &server{cfg: cfg, keys: keys, pool: pool, db: db{q: pool}, passwords: newPasswords(cfg.PasswordMinLength, currentParams, cfg.words()...)}
	if err := s.checkDatabase(ctx); err != nil {
		pool.Close()
		return nil, err
	}
	return s, nil
}

// maxGarbage is what may pile up in a small heap before it is collected, in bytes: less than a hash leaves.
const maxGarbage = 16 << 20

// boundGarbage lets garbage be maxGarbage, but at least half and at most four times of what lives: collecting a small heap
// seldom saves time, and a large one, full of hashes or of answers for slow readers, is not to grow to a multiple (R32,
// R101). After each collection it decides anew.
func boundGarbage() {
	live := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}}
	runtimemetrics.Read(live)
	percent := maxGarbage * 100 / max(live[0].Value.Uint64(), 1)
	debug.SetGCPercent(int(min(max(percent, 50), 400)))
	runtime.AddCleanup(new([64]byte), func(struct{}) { boundGarbage() }, struct{}{})
}

func openPool(ctx context.Context, cfg config, log *slog.Logger) (*pgxpool.Pool, error) {
	pc, err := poolConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL %w", err)
	}
	if limit, err := connectionLimit(ctx, pc.ConnConfig); err == nil && limit < pc.MaxConns { // an error will come again
		log.Warn("this role may have fewer connections than DB_MAX_CONNS", "connections", limit, "DB_MAX_CONNS", pc.MaxConns)
		pc.MaxConns = max(limit, 1)
		pc.MinIdleConns = min(pc.MaxConns, pc.MinIdleConns)
	}
	return pgxpool.NewWithConfig(ctx, pc)
}

// runHealthcheck is for container health checks, where there is no curl.
func runHealthcheck(ctx context.Context, lookup envconfig.Lookuper) error {
	cfg, err := loadConfig(ctx, lookup, true, "LISTEN_ADDR", "PORT")
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(cfg.ListenAddr)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/healthz", nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{Proxy: nil}} // a proxy of the environment does not reach us
	answer, err := client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("/healthz answers %d", answer.StatusCode)
	}
	return nil
}

// runSessions is the command: sessions --end-all. It signs everybody out.
func runSessions(ctx context.Context, args []string, lookup envconfig.Lookuper, stdout io.Writer) error {
	if len(args) != 1 || args[0] != "--end-all" {
		return usageError("sessions --end-all")
	}
	cfg, err := loadConfig(ctx, lookup, true, "DATABASE_URL")
	if err != nil {
		return err
	}
	conn, err := connectDirectly(ctx, cfg.DatabaseURL, stdout)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var ended int64
	err = db{q: conn}.inTx(ctx, func(tx db) error {
		tag, err := tx.execTag(ctx, `delete from sessions`)
		ended = tag.RowsAffected()
		tx.audit(caller{}, auditEntry{action: "session.all_ended"}) // room:audit
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%d sessions ended\n", ended)
	return nil
}

func newSecret() string {
	b := make([]byte, 32)
	rand.Read(b)
	return base64.StdEncoding.EncodeToString(b)
}

// buildVersion is the linker's version, or the commit that Go stamped, or "devel".
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, setting := range info.Settings {
			if setting.Key == "vcs.revision" {
				return setting.Value[:12]
			}
		}
	}
	return "devel"
}

// newProgress is a bar with rate and remaining time on a terminal, and nothing elsewhere.
func newProgress(out io.Writer, description string, size int64) *progressbar.ProgressBar {
	if !onTerminal(out) {
		out = io.Discard
	}
	return progressbar.NewOptions64(size, progressbar.OptionSetWriter(out), progressbar.OptionShowBytes(true),
		progressbar.OptionSetDescription(description), progressbar.OptionSetPredictTime(true),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
}

func onTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
