// room:dev

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	osuser "os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// A private PostgreSQL for dev and for the tests: an ordinary server of the binaries on this machine, on a free port
// of the loopback, owned by the process that started it. serve never uses this.

// providePostgres returns the directory of PostgreSQL's binaries: of this machine, else of repository, which are kept.
func providePostgres(ctx context.Context, repository string, out io.Writer) (string, error) {
	if binDir := findPostgres(); binDir != "" {
		return binDir, nil
	}
	cache, err := cacheDir()
	if err == nil {
		var binDir string
		if binDir, err = fetchPostgres(ctx, repository, cache, out); err == nil {
			return binDir, nil
		}
	}
	return "", fmt.Errorf("this machine has no PostgreSQL, and none could be fetched (%w): install one (Debian, Ubuntu: "+
		"apt-get install postgresql; macOS: brew install postgresql), or set DATABASE_URL to a running server", err)
}

// findPostgres returns the directory of the newest PostgreSQL binaries on this machine, or nothing.
func findPostgres() string {
	if initdb, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(initdb)
	}
	var found []string
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin",
		"/opt/homebrew/opt/postgresql*/bin", "/usr/local/opt/postgresql*/bin",
		"/Applications/Postgres.app/Contents/Versions/*/bin"} {
		dirs, _ := filepath.Glob(filepath.Join(pattern, "initdb"))
		found = append(found, dirs...)
	}
	if len(found) == 0 {
		return ""
	}
	newest := slices.MaxFunc(found, func(a, b string) int { return versionIn(a) - versionIn(b) })
	return filepath.Dir(newest)
}

// versionIn returns the first number in a path, which is where every packager puts the major version.
func versionIn(path string) int {
	n, _ := strconv.Atoi(regexp.MustCompile(`[0-9]+`).FindString(path))
	return n
}

// postgres is a running private server.
type postgres struct {
	url  string
	stop func() error
}

// runAs returns the credential to run PostgreSQL with: nil for the current user, but PostgreSQL refuses to run as
// root, so root drops to another user.
func runAs() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := osuser.Lookup(name); err == nil {
			uid, _ := strconv.ParseUint(u.Uid, 10, 32)
			gid, _ := strconv.ParseUint(u.Gid, 10, 32)
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("PostgreSQL does not run as root, and this machine has no user postgres or nobody to run it")
}

// watchdog runs PostgreSQL as its child and stops it when standard input ends: also when the process that holds the
// other end was killed. It has a process group of its own, so Ctrl-C reaches the owner first.
const watchdog = `exec 3<&0; "$0" "$@" 3<&- & pid=$!; (cat <&3 >/dev/null; kill -INT $pid) 2>/dev/null & wait $pid`

// makeHome makes a directory, of a name that nobody can foresee, for the data of PostgreSQL. Whoever runs PostgreSQL may
// pass through it, and change nothing in it: what this process writes there follows no link of theirs (R109).
func makeHome(parent string) (*os.Root, error) {
	dir, err := os.MkdirTemp(parent, "roster-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil { // #nosec G302 -- what is in it is closed
		return nil, err
	}
	return os.OpenRoot(dir)
}

// startPostgres runs a server on the data directory of this name in home, which it makes when it is not there, and
// returns when it answers. Beside it is the log of the server. Settings are name=value.
func startPostgres(ctx context.Context, binDir string, home *os.Root, name, password string, settings ...string) (*postgres, error) {
	credential, err := runAs()
	if err != nil {
		return nil, err
	}
	command := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(name, args...) // #nosec G204 -- the machine's own PostgreSQL
		cmd.Dir = "/"                      // the caller's may be closed to that user
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential, Setpgid: true}
		return cmd
	}
	dataDir := filepath.Join(home.Name(), name)
	if _, err := home.Stat(filepath.Join(name, "PG_VERSION")); err != nil {
		if err := initPostgres(command, binDir, home, name, password, credential); err != nil {
			return nil, err
		}
	} else if _, err := home.Stat(filepath.Join(name, "postmaster.pid")); err == nil {
		// A predecessor was killed, or is still going down: finish it. It fails when there is nobody, which is fine.
		_ = command(filepath.Join(binDir, "pg_ctl"), "-D", dataDir, "-m", "fast", "-w", "stop").Run()
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	log, err := home.OpenFile(name+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	args := []string{"-c", watchdog, filepath.Join(binDir, "postgres"), "-D", dataDir, "-p", strconv.Itoa(int(port))}
	for _, s := range append(settings, "listen_addresses=127.0.0.1", "unix_socket_directories=") {
		args = append(args, "-c", s)
	}
	server := command("/bin/sh", args...)
	server.Stdout, server.Stderr = log, log
	alive, err := server.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := server.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	pg := &postgres{
		url: (&url.URL{Scheme: "postgres", User: url.UserPassword("roster", password),
			Host: fmt.Sprintf("127.0.0.1:%d", port), Path: "/postgres"}).String(),
		stop: func() error { _ = alive.Close(); return <-ended },
	}
	for {
		conn, err := pgx.Connect(ctx, pg.url)
		if err == nil {
			return pg, conn.Close(ctx)
		}
		select {
		case err := <-ended:
			return nil, fmt.Errorf("PostgreSQL did not start: %v; see %s.log", err, dataDir)
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), pg.stop())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// initPostgres makes a data directory under another name first, so that an interrupted one is never taken for whole.
func initPostgres(command func(string, ...string) *exec.Cmd, binDir string, home *os.Root, name, password string, owner *syscall.Credential) error {
	unfinished, passwordFile := name+".new", name+".password"
	defer func() { _ = home.Remove(passwordFile) }()
	if err := errors.Join(home.RemoveAll(unfinished), home.RemoveAll(passwordFile), home.Mkdir(unfinished, 0o700),
		home.WriteFile(passwordFile, []byte(password), 0o600)); err != nil {
		return err
	}
	if owner != nil {
		uid, gid := int(owner.Uid), int(owner.Gid)
		if err := errors.Join(home.Lchown(unfinished, uid, gid), home.Lchown(passwordFile, uid, gid)); err != nil {
			return err
		}
	}
	var err error
	for _, ctype := range []string{"C.UTF-8", "C"} { // the first knows capitals beyond ASCII; not every system has it
		initdb := command(filepath.Join(binDir, "initdb"), "-D", filepath.Join(home.Name(), unfinished), "-U", "roster", "-A", "scram-sha-256",
			"--pwfile="+filepath.Join(home.Name(), passwordFile), "-E", "UTF8", "--locale=C", "--lc-ctype="+ctype, "--no-sync")
		var out []byte
		if out, err = initdb.CombinedOutput(); err == nil {
			return home.Rename(unfinished, name)
		}
		err = fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return err
}

func freePort() (uint16, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).AddrPort().Port(), l.Close()
}
