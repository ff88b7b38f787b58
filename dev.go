// room:dev

// `roster dev`: the whole product on an embedded default, a private PostgreSQL included, which the tests use too. A team
// without it sets DATABASE_URL, and TEST_DATABASE_URL for the tests.
//
// Its files are dev.go and postgres.go. What ties it to the house is what `grep -n room:dev *.go` finds: a command, and what
// the configuration allows in it. To take it out, delete the files and those lines.

package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/joho/godotenv"
	"github.com/sethvargo/go-envconfig"
)

// devDir is where dev keeps its database and its secrets between runs.
const devDir = ".roster"

// devAdmin is the address of the admin that dev makes; its password is random.
const devAdmin = "admin@example.com"

// runDev is the whole product on an embedded default: a private PostgreSQL unless DATABASE_URL is set, migrated;
// secrets and an admin, made once; mails on the terminal. It ends, with everything it started, when ctx does.
func runDev(ctx context.Context, lookup envconfig.Lookuper, stdout io.Writer) error {
	dir, unlock, err := openDevDir()
	if err != nil {
		return err
	}
	defer unlock()
	secrets, err := devSecrets(dir)
	if err != nil {
		return err
	}
	dotenv, err := godotenv.Read(".env")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf(".env: %w", err)
	}
	lookup = envconfig.MultiLookuper(lookup, envconfig.MapLookuper(dotenv))
	defaults := map[string]string{"SECRET_KEYS": secrets["SECRET_KEYS"], "LOG_FORMAT": "text", "DRAIN_DELAY": "0s", "MAIL_FROM": "roster <roster@localhost>"}
	// With a port of one's own the links and the issuer must follow it.
	addr, _ := lookup.Lookup("LISTEN_ADDR")
	if addr == "" {
		addr = "127.0.0.1:8080"
		defaults["LISTEN_ADDR"] = addr
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return errors.New("LISTEN_ADDR is not host:port")
	}
	defaults["PUBLIC_URL"] = "http://localhost:" + port

	database := "your DATABASE_URL"
	if !given(lookup, "DATABASE_URL") {
		pg, err := startDevPostgres(ctx, dir, secrets["POSTGRES_PASSWORD"], stdout)
		if err != nil {
			return err
		}
		defer func() { _ = pg.stop() }()
		defaults["DATABASE_URL"] = pg.url
		database = pg.url
	}
	maps.DeleteFunc(defaults, func(name, _ string) bool { return given(lookup, name) })
	cfg, err := loadConfig(ctx, envconfig.MultiLookuper(lookup, envconfig.MapLookuper(defaults)), true)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", cfg.ListenAddr)
	if err != nil {
		return fmt.Errorf("%w; LISTEN_ADDR=127.0.0.1:8081 takes another port", err)
	}
	if err := migrateTo(ctx, cfg.DatabaseURL, io.Discard, func(int32) int32 { return requiredVersion() }); err != nil {
		return err
	}
	s, err := openServer(ctx, cfg, stdout)
	if err != nil {
		return err
	}
	if s.deliver == nil { // room:mail
		s.deliver = printMail(stdout)
	}
	password, err := ensureDevAdmin(ctx, s, secrets["ADMIN_PASSWORD"])
	if err != nil {
		return err
	}
	printWelcome(stdout, cfg, database, password)
	defer s.serveOps().Close() // room:metrics
	return s.listenAndServe(ctx, listener)
}

// given says whether the environment sets a variable, itself or by file.
func given(lookup envconfig.Lookuper, name string) bool {
	value, _ := lookup.Lookup(name)
	path, _ := lookup.Lookup(name + "_FILE")
	return value != "" || path != ""
}

// openDevDir makes .roster and locks it against a second dev. Where root's clone is closed to the user that
// PostgreSQL runs as, .roster is a link to a directory that is not.
func openDevDir() (dir string, unlock func(), err error) {
	path, err := filepath.Abs(devDir)
	if err != nil {
		return "", nil, err
	}
	credential, err := runAs()
	if err != nil {
		return "", nil, err
	}
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
		if err := makeDevDir(path, credential); err != nil {
			return "", nil, err
		}
	}
	if dir, err = filepath.EvalSymlinks(path); err != nil {
		return "", nil, fmt.Errorf("%s: %w; remove it to start anew", devDir, err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return "", nil, errors.New("another `roster dev` is running in this directory")
	}
	return dir, func() { _ = lock.Close() }, nil
}

func makeDevDir(path string, credential *syscall.Credential) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	if credential == nil {
		return nil
	}
	if err := os.Chown(path, int(credential.Uid), int(credential.Gid)); err != nil {
		return err
	}
	try := exec.Command("/bin/sh", "-c", `cd "$0"`, path) // #nosec G204 -- the directory that dev was started in
	try.Dir = "/"
	try.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	if try.Run() == nil {
		return nil
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	open := filepath.Join("/var/tmp", fmt.Sprintf("roster-%x", sha256.Sum256([]byte(path)))[:24])
	info, err := os.Lstat(open)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.Mkdir(open, 0o700); err != nil {
			return err
		}
		err = os.Chown(open, int(credential.Uid), int(credential.Gid))
	} else if err == nil && (!info.IsDir() || info.Sys().(*syscall.Stat_t).Uid != credential.Uid) {
		err = errors.New(open + " belongs to somebody else")
	}
	if err != nil {
		return err
	}
	return os.Symlink(open, path)
}

// devSecrets reads the secrets of dev, making them on the first run.
func devSecrets(dir string) (map[string]string, error) {
	path := filepath.Join(dir, "secrets.env")
	secrets, err := godotenv.Read(path)
	if !errors.Is(err, os.ErrNotExist) {
		return secrets, err
	}
	secrets = map[string]string{
		"SECRET_KEYS": newSecret(), "POSTGRES_PASSWORD": rand.Text(),
		"ADMIN_PASSWORD": strings.ToLower(rand.Text()[:20]),
	}
	content, err := godotenv.Marshal(secrets)
	if err != nil {
		return nil, err
	}
	return secrets, os.WriteFile(path, []byte(content+"\n"), 0o600)
}

// startDevPostgres runs the private server with a database for roster.
func startDevPostgres(ctx context.Context, dir, password string, stdout io.Writer) (*postgres, error) {
	binDir, err := findPostgres()
	if errors.Is(err, errNoPostgres) {
		binDir, err = downloadPostgres(dir, stdout)
	}
	if err != nil {
		return nil, err
	}
	pg, err := startPostgres(ctx, binDir, filepath.Join(dir, "postgres"), filepath.Join(dir, "postgres.log"), password)
	if err != nil {
		return nil, err
	}
	if err := makeDevDatabase(ctx, pg.url); err != nil {
		return nil, errors.Join(err, pg.stop())
	}
	pg.url = strings.TrimSuffix(pg.url, "postgres") + "roster"
	return pg, nil
}

func makeDevDatabase(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var exists bool
	err = conn.QueryRow(ctx, `select exists (select from pg_database where datname = 'roster')`).Scan(&exists)
	if err == nil && !exists {
		_, err = conn.Exec(ctx, `create database roster`)
	}
	return err
}

// ensureDevAdmin makes the admin on the first run. It returns the password to print: empty when it was changed since.
func ensureDevAdmin(ctx context.Context, s *server, password string) (string, error) {
	account, err := s.db.accountByEmail(ctx, devAdmin)
	if errors.Is(err, pgx.ErrNoRows) {
		hash, err := s.passwords.hash(ctx, netip.Addr{}, password)
		if err != nil {
			return "", err
		}
		_, err = s.db.insertUser(ctx, newUser{newID(), devAdmin, "Dev Admin", "admin", hash, true})
		return password, err
	}
	if err != nil {
		return "", err
	}
	ok, _, err := s.passwords.verify(ctx, netip.Addr{}, account.PasswordHash, password)
	if !ok {
		password = ""
	}
	return password, err
}

func printWelcome(out io.Writer, cfg config, database, password string) {
	shown := password
	if password == "" {
		shown, password = "(you changed it)", "YOUR-PASSWORD"
	}
	fmt.Fprintf(out, `
  roster is ready.

  API       %[1]s/v1
  Docs      %[1]s/docs
  Database  %[2]s
  Admin     %[3]s
  Password  %[4]s

  Sign in, read yourself, register somebody (the mail appears here):

TOKEN=$(curl -s %[1]s/v1/auth/token -d grant_type=password -d username=%[3]s -d password=%[5]s | sed 's/.*"access_token":"\([^"]*\)".*/\1/')
curl -s %[1]s/v1/users/me -H "Authorization: Bearer $TOKEN"
curl -s %[1]s/v1/auth/register -H 'Content-Type: application/json' -d '{"email":"ada@example.com","password":"correct horse battery","name":"Ada"}'

  Ctrl-C stops everything.

`, cfg.PublicURL, database, devAdmin, shown, password)
}
