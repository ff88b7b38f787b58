// room:dev

// `roster dev`: the whole product on an embedded default, a private PostgreSQL included, which the tests use too. A team
// without it sets DATABASE_URL, and TEST_DATABASE_URL for the tests.
//
// Its files are dev.go and postgres.go. What ties it to the house is what `grep -n room:dev *.go` finds: a command, and what
// the configuration allows in it. To take it out, delete the files and those lines.

package main

import (
	"cmp"
	"context"
	"crypto/rand"
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
	dir, unlock, err := openDevDir(devDir)
	if err != nil {
		return err
	}
	defer unlock()
	secrets, err := devSecrets(dir)
	if err != nil {
		return err
	}
	dotenv, err := readDotenv(".env")
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
		repository, _ := lookup.Lookup("POSTGRES_REPOSITORY")
		pg, err := startDevPostgres(ctx, dir, cmp.Or(repository, mavenCentral), secrets["POSTGRES_PASSWORD"], stdout)
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
	if err := checkDevDatabase(ctx, cfg.DatabaseURL, secrets["ADMIN_ID"]); err != nil {
		return err
	}
	if err := migrateTo(ctx, cfg.DatabaseURL, io.Discard, func(int32) int32 { return requiredVersion() }); err != nil {
		return err
	}
	s, err := openServer(ctx, cfg, stdout)
	if err != nil {
		return err
	}
	if s.deliver == nil { // room:mail
		s.deliver, s.sends = printMail(stdout), true
	}
	password, err := ensureDevAdmin(ctx, s, secrets)
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

// openDevDir makes .roster and locks it against a second dev.
func openDevDir(path string) (dir *os.Root, unlock func(), err error) {
	if path, err = filepath.Abs(path); err != nil {
		return nil, nil, err
	}
	// Whoever runs PostgreSQL for root may pass through.
	if err := os.Mkdir(path, 0o711); err != nil && !errors.Is(err, os.ErrExist) { // #nosec G301 -- what is in it is closed
		return nil, nil, err
	}
	if dir, err = openOwn(path); err != nil {
		return nil, nil, err
	}
	lock, err := dir.OpenFile("lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, nil, errors.New("another `roster dev` is running in this directory")
	}
	return dir, func() { _ = lock.Close(); _ = dir.Close() }, nil
}

// openOwn opens a directory that belongs to the current user, and no link to one (R109).
func openOwn(path string) (*os.Root, error) {
	found, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	dir, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("%w; remove it to start anew", err)
	}
	opened, err := dir.Stat(".")
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	if !os.SameFile(found, opened) || int(opened.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
		return nil, errors.Join(fmt.Errorf("%s is a link or belongs to somebody else; remove it to start anew", path), dir.Close())
	}
	return dir, nil
}

// openHome returns where the data of dev's PostgreSQL lies: in dir, or, where the way there is closed to the user that
// PostgreSQL runs as, in a directory of /var/tmp, which a link in dir remembers.
func openHome(dir *os.Root) (*os.Root, error) {
	target, err := dir.Readlink("postgres")
	if err == nil {
		home, err := openOwn(filepath.Dir(target))
		if !errors.Is(err, os.ErrNotExist) {
			return home, err
		}
	} else if mayEnter(dir.Name()) {
		return dir.OpenRoot(".")
	}
	home, err := makeHome("/var/tmp")
	if err != nil {
		return nil, err
	}
	return home, errors.Join(dir.RemoveAll("postgres"), dir.Symlink(filepath.Join(home.Name(), "postgres"), "postgres"))
}

// mayEnter says whether the user that PostgreSQL runs as can reach a directory.
func mayEnter(path string) bool {
	credential, err := runAs()
	if err != nil || credential == nil {
		return true
	}
	try := exec.Command("/bin/sh", "-c", `cd "$0"`, path) // #nosec G204 -- the directory that dev was started in
	try.Dir = "/"
	try.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	return try.Run() == nil
}

// devSecrets reads the secrets of dev, making those that are missing.
func devSecrets(dir *os.Root) (map[string]string, error) {
	secrets := map[string]string{
		"SECRET_KEYS": newSecret(), "POSTGRES_PASSWORD": rand.Text(),
		"ADMIN_ID": newID(), "ADMIN_PASSWORD": strings.ToLower(rand.Text()[:20]),
	}
	content, err := dir.ReadFile("secrets.env")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	kept, err := parseDotenv(string(content))
	if err != nil {
		return nil, fmt.Errorf("secrets.env: %w", err)
	}
	if maps.Copy(secrets, kept); len(kept) == len(secrets) {
		return secrets, nil
	}
	text, err := godotenv.Marshal(secrets)
	if err != nil {
		return nil, err
	}
	return secrets, dir.WriteFile("secrets.env", []byte(text+"\n"), 0o600)
}

// startDevPostgres runs the private server with a database for roster.
func startDevPostgres(ctx context.Context, dir *os.Root, repository, password string, stdout io.Writer) (*postgres, error) {
	binDir, err := providePostgres(ctx, repository, stdout)
	if err != nil {
		return nil, err
	}
	home, err := openHome(dir)
	if err != nil {
		return nil, err
	}
	defer home.Close()
	pg, err := startPostgres(ctx, binDir, home, "postgres", password)
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

// checkDevDatabase refuses a database whose users are not dev's: it would get an admin with a known address, and the
// mails that wait in it would be printed (R109).
func checkDevDatabase(ctx context.Context, url, adminID string) error {
	conn, err := connectDirectly(ctx, url, io.Discard)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var table, foreign bool
	if err := conn.QueryRow(ctx, `select to_regclass('users') is not null`).Scan(&table); err != nil || !table {
		return err
	}
	err = conn.QueryRow(ctx, `
		select exists (select from users) and not exists (select from users where id::text = $1)`, adminID).Scan(&foreign)
	if err == nil && foreign {
		err = errors.New("DATABASE_URL is a database with users that this `roster dev` did not make: give it an empty one, or run `roster serve`")
	}
	return err
}

// ensureDevAdmin makes the admin on the first run. It returns the password to print: empty when it was changed since.
func ensureDevAdmin(ctx context.Context, s *server, secrets map[string]string) (string, error) {
	password := secrets["ADMIN_PASSWORD"]
	account, err := s.db.accountByEmail(ctx, devAdmin)
	if errors.Is(err, pgx.ErrNoRows) {
		hash, err := s.passwords.hash(ctx, netip.Addr{}, password)
		if err != nil {
			return "", err
		}
		_, err = s.db.insertUser(ctx, newUser{secrets["ADMIN_ID"], devAdmin, "Dev Admin", "admin", hash, true})
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
