package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is roster as a process of its own: this test binary, run again as the program.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *lockedBuffer
	url  string
	done chan struct{}
	err  error // of Wait, once done is closed
}

// startProcess runs a command with exactly this environment; match finds the base URL in what it prints.
func startProcess(t *testing.T, dir string, env map[string]string, match string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(os.Args[0], args...), out: &lockedBuffer{}, done: make(chan struct{})}
	p.cmd.Dir = dir
	p.cmd.Env = []string{"ROSTER_TEST_AS_PROGRAM=1", "PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	for name, value := range env {
		p.cmd.Env = append(p.cmd.Env, name+"="+value)
	}
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.err = p.cmd.Wait(); close(p.done) }()
	t.Cleanup(func() { p.kill(); <-p.done })
	for deadline := time.Now().Add(30 * time.Second); match != ""; time.Sleep(5 * time.Millisecond) {
		if found := regexp.MustCompile(match).FindStringSubmatch(p.out.String()); found != nil {
			p.url = found[1]
			break
		}
		select {
		case <-p.done:
			t.Fatalf("%v ended: %v\n%s", args, p.err, p.out)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v does not start\n%s", args, p.out)
		}
	}
	return p
}

func (p *process) kill()                   { _ = p.cmd.Process.Kill() }
func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// wait returns how the process ended, which it must do in time.
func (p *process) wait(d time.Duration) error {
	p.t.Helper()
	select {
	case <-p.done:
		return p.err
	case <-time.After(d):
		p.t.Fatalf("still running after %v\n%s", d, p.out)
		return nil
	}
}

const servingAddr = `"msg":"serving","addr":"([^"]+)"`

// startServe runs serve on a database; two with the same environment are two replicas.
func startServe(t *testing.T, env map[string]string) *process {
	t.Helper()
	p := startProcess(t, t.TempDir(), env, servingAddr, "serve")
	p.url = "http://" + p.url
	return p
}

func serveEnv(databaseURL string) map[string]string {
	env := good()
	env["DATABASE_URL"], env["LISTEN_ADDR"], env["DRAIN_DELAY"] = databaseURL, "127.0.0.1:0", "0s"
	env["OPS_ADDR"] = "127.0.0.1:0"
	env["DB_MAX_CONNS"], env["THROTTLE"] = "8", "off" // every test calls from one network
	return env
}

// postForm and getJSON are the client of these tests: plain, as a shell script would be.
func postForm(base, path string, form url.Values) (int, map[string]any, error) {
	response, err := testClient.PostForm(base+path, form)
	return readAnswer(response, err)
}

func getJSON(base, path, token string) (int, map[string]any, error) {
	r, err := http.NewRequestWithContext(context.Background(), "GET", base+path, nil)
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	response, err := testClient.Do(r)
	return readAnswer(response, err)
}

func readAnswer(response *http.Response, err error) (int, map[string]any, error) {
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	var body map[string]any
	content, err := io.ReadAll(response.Body)
	if len(content) > 0 && err == nil {
		err = json.Unmarshal(content, &body)
	}
	return response.StatusCode, body, err
}

// The promises of a stateless replica, with real processes: what one does, the other knows on the next request.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	env := serveEnv(newTestDatabase(t))
	a, b := startServe(t, env), startServe(t, env)
	response, err := testClient.Post(a.url+"/v1/auth/register", "application/json",
		strings.NewReader(`{"email":"ada@example.com","password":"correct horse battery","name":"Ada"}`))
	if status, _, err := readAnswer(response, err); err != nil || status != 201 {
		t.Fatal(status, err, a.out)
	}
	status, tokens, err := postForm(b.url, "/v1/auth/token", url.Values{"grant_type": {"password"}, "username": {"ada@example.com"}, "password": {"correct horse battery"}})
	if err != nil || status != 200 {
		t.Fatal(status, tokens, err)
	}
	// R53: fifty refreshes with one token, through both.
	var mu sync.Mutex
	successors := map[any]bool{}
	won := together(50, func(i int) bool {
		status, answer, err := postForm([]string{a.url, b.url}[i%2], "/v1/auth/token",
			url.Values{"grant_type": {"refresh_token"}, "refresh_token": {tokens["refresh_token"].(string)}})
		mu.Lock()
		defer mu.Unlock()
		successors[answer["refresh_token"]] = true
		return err == nil && status == 200
	})
	if won != 50 || len(successors) != 1 {
		t.Fatalf("%d of 50 succeeded, with %d different successors", won, len(successors))
	}
	// R50: signed out at one, refused at the other.
	access := tokens["access_token"].(string)
	if status, _, err := getJSON(b.url, "/v1/users/me", access); err != nil || status != 200 {
		t.Fatal(status, err)
	}
	if status, _, err := postForm(a.url, "/v1/auth/revoke", url.Values{"token": {access}}); err != nil || status != 200 {
		t.Fatal(status, err)
	}
	if status, _, err := getJSON(b.url, "/v1/users/me", access); err != nil || status != 401 {
		t.Fatal(status, err)
	}
	// R91: SIGTERM ends it cleanly.
	a.signal(syscall.SIGTERM)
	if err := a.wait(20 * time.Second); err != nil {
		t.Errorf("%v\n%s", err, a.out)
	}
}

// R93: serve never migrates; it says what to run.
func TestServeChecksTheSchema(t *testing.T) {
	t.Parallel()
	database := newTestDatabase(t)
	env := serveEnv(database)
	status := startProcess(t, t.TempDir(), env, "", "migrate", "to", "0")
	if err := status.wait(20 * time.Second); err != nil || !strings.Contains(status.out.String(), "down ") {
		t.Fatal(err, status.out)
	}
	serve := startProcess(t, t.TempDir(), env, "", "serve")
	if err := serve.wait(20 * time.Second); err == nil || !strings.Contains(serve.out.String(), "migrate`") {
		t.Fatal(err, serve.out)
	}
	for _, args := range [][]string{{"migrate"}, {"migrate", "status"}, {"migrate", "down"}, {"migrate", "up"}} {
		p := startProcess(t, t.TempDir(), env, "", args...)
		if err := p.wait(20 * time.Second); err != nil || !strings.Contains(p.out.String(), "schema version ") {
			t.Fatal(args, err, p.out)
		}
	}
	startServe(t, env)
}

func TestCommands(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		args  []string
		ok    bool
		print string
	}{
		{nil, false, "usage: roster"},
		{[]string{"nonsense"}, false, "usage: roster"},
		{[]string{"serve"}, false, "DATABASE_URL is required"},
		{[]string{"serve", "now"}, false, "takes no arguments"},
		{[]string{"migrate"}, false, "DATABASE_URL is required"},
		{[]string{"migrate", "sideways"}, false, "usage: roster migrate"},
		{[]string{"migrate", "to", "-1"}, false, ""},
		{[]string{"healthcheck"}, false, "connect"},
		{[]string{"version"}, true, "roster "},
		{[]string{"openapi"}, true, `"openapi": "3.1.0"`},
		{[]string{"keygen"}, true, "="},
	} {
		env := map[string]string{"LISTEN_ADDR": "127.0.0.1:1"}
		if len(tc.args) > 2 {
			env["DATABASE_URL"] = "postgres://127.0.0.1:1/x"
		}
		p := startProcess(t, t.TempDir(), env, "", tc.args...)
		if err := p.wait(20 * time.Second); (err == nil) != tc.ok || !strings.Contains(p.out.String(), tc.print) {
			t.Errorf("%v: %v\n%s", tc.args, err, p.out)
		}
	}
}

// The first minute of every user: dev, and the lines that it prints, pasted into a shell.
func TestDev(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"LISTEN_ADDR": fmt.Sprint("127.0.0.1:", port)}
	start := func() *process {
		return startProcess(t, dir, env, `API +(http://[^/]+)/v1[\s\S]*Ctrl-C`, "dev")
	}
	paste := func(p *process) string {
		t.Helper()
		var script bytes.Buffer
		for lines := bufio.NewScanner(strings.NewReader(p.out.String())); lines.Scan(); {
			if line := lines.Text(); strings.HasPrefix(line, "TOKEN=") || strings.HasPrefix(line, "curl ") {
				script.WriteString(line + "\n")
			}
		}
		out, err := exec.Command("/bin/sh", "-ec", script.String()).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s\n%s", err, script.String(), out)
		}
		return string(out)
	}
	p := start()
	if out := paste(p); !strings.Contains(out, `"email":"admin@example.com"`) || !strings.Contains(out, `"role":"admin"`) || !strings.Contains(out, "We have sent a mail") {
		t.Fatal(out)
	}
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(p.out.String(), "token: "); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no mail\n%s", p.out)
		}
	}
	second := startProcess(t, dir, env, "", "dev")
	if err := second.wait(20 * time.Second); err == nil || !strings.Contains(second.out.String(), "another `roster dev`") {
		t.Errorf("a second dev in one directory: %v\n%s", err, second.out)
	}
	// Killed without a chance to clean up, its database is stopped or taken over by the next start.
	p.kill()
	<-p.done
	p = start()
	if out := paste(p); !strings.Contains(out, `"email":"admin@example.com"`) {
		t.Fatal(out)
	}
	p.signal(syscall.SIGINT)
	if err := p.wait(20 * time.Second); err != nil {
		t.Errorf("%v\n%s", err, p.out)
	}
	if _, err := os.Stat(filepath.Join(dir, devDir, "postgres", "postmaster.pid")); err == nil {
		t.Error("PostgreSQL was left behind")
	}
	if target, err := os.Readlink(filepath.Join(dir, devDir)); err == nil {
		os.RemoveAll(target)
	}
}
