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
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
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
  import       [--atomic] [--dry-run] FILE.ndjson  users with their password hashes, from another system
  prune        delete what has expired; serve does it too
  keygen       a new secret for SECRET_KEYS
  openapi      the OpenAPI document
  healthcheck  ask a running serve on LISTEN_ADDR whether it is alive
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
	case "admin":
		return runAdmin(ctx, args, lookup, os.Stdin, stdout)
	case "import":
		return runImport(ctx, args, lookup, stdout)
	}
	if len(args) > 0 {
		return usageError(command + " takes no arguments")
	}
	switch command {
	case "dev":
		return runDev(ctx, lookup, stdout)
	case "serve":
		return runServe(ctx, lookup, stdout)
	case "prune":
		return runPrune(ctx, lookup, stdout)
	case "keygen":
		_, err := fmt.Fprintln(stdout, newSecret())
		return err
	case "openapi":
		_, err := io.Copy(stdout, bytes.NewReader(openapiJSON))
		return err
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
	log := newLogBuffer(stdout)
	defer log.flush()
	s, err := openServer(ctx, cfg, log)
	if err != nil {
		return err
	}
	if err := checkSchema(ctx, s); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", cfg.ListenAddr)
	if err != nil {
		return fmt.Errorf("LISTEN_ADDR: %w", err)
	}
	if s.deliver == nil {
		s.log.Warn("SMTP_URL is not set: mails wait in the outbox")
	}
	defer s.serveOps().Close()
	s.log.Info("serving", "addr", listener.Addr().String(), "version", buildVersion())
	return s.listenAndServe(ctx, listener)
}

// openServer makes the pool and the server; both connect when they are first used.
func openServer(ctx context.Context, cfg config, stdout io.Writer) (*server, error) {
	// Memory is dominated by Argon2, garbage by small requests: collecting less often is worth a few megabytes.
	debug.SetGCPercent(400)
	pool, err := openPool(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return newServer(cfg, pool, newLogger(cfg, stdout))
}

func openPool(ctx context.Context, cfg config) (*pgxpool.Pool, error) {
	pc, err := poolConfig(cfg)
	if err != nil {
		return nil, err
	}
	return pgxpool.NewWithConfig(ctx, pc)
}

// runHealthcheck is for container health checks, where there is no curl.
func runHealthcheck(ctx context.Context, lookup envconfig.Lookuper) error {
	cfg, err := loadConfig(ctx, lookup, true, "LISTEN_ADDR")
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
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("/healthz answers %d", answer.StatusCode)
	}
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
