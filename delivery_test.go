package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

func readText(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// R99: the image runs a static binary as nobody, without a shell, asks itself whether it is alive, and is run on a
// read-only file system without capabilities.
func TestImage(t *testing.T) {
	t.Parallel()
	dockerfile := readText(t, "Dockerfile")
	_, last, _ := strings.Cut(dockerfile, "\nFROM gcr.io/distroless/static-debian12:nonroot\n")
	for _, line := range []string{"USER 65532", `CMD ["/roster", "healthcheck"]`, `ENTRYPOINT ["/roster"]`} {
		if !strings.Contains(last, line) {
			t.Errorf("the last stage has no %s", line)
		}
	}
	if !strings.Contains(dockerfile, "CGO_ENABLED=0 go build") || strings.Contains(last, "RUN ") {
		t.Error("not a static binary, or something runs in an image without a shell")
	}
	for _, name := range []string{"compose.yaml", "compose.scale.yaml"} {
		_, app, found := strings.Cut(readText(t, name), "\n  app")
		for _, line := range []string{"read_only: true", "cap_drop: [ALL]", "no-new-privileges:true"} {
			if !found || !strings.Contains(app, line) {
				t.Errorf("%s: the app lacks %s", name, line)
			}
		}
	}
}

// R100: no toolchain or module of a version with a known hole; CI looks for races, known vulnerabilities and, by the
// seeds, for what fuzzing found.
func TestVersions(t *testing.T) {
	t.Parallel()
	gomod := readText(t, "go.mod")
	for module, least := range map[string]string{"toolchain go": "1.26.6", "github.com/jackc/pgx/v5 v": "5.9.2", "github.com/golang-jwt/jwt/v5 v": "5.2.2"} {
		found := regexp.MustCompile(regexp.QuoteMeta(module) + `(\d+)\.(\d+)\.(\d+)`).FindStringSubmatch(gomod)
		if found == nil || compareVersions(found[1:], strings.Split(least, ".")) < 0 {
			t.Errorf("%s: %v, want %s or newer", module, found, least)
		}
	}
	ran := regexp.MustCompile(`\d+`).FindAllString(runtime.Version(), 3)
	if len(ran) == 3 && compareVersions(ran, []string{"1", "26", "6"}) < 0 {
		t.Errorf("tested with %s", runtime.Version())
	}
	if !strings.Contains(readText(t, ".ci/run"), "go test -race") || !strings.Contains(readText(t, ".github/workflows/ci.yml"), "govulncheck") {
		t.Error("CI looks for no races, or for no vulnerabilities")
	}
	if seeds, err := filepath.Glob("testdata/fuzz/Fuzz*/*"); err != nil || len(seeds) < 50 {
		t.Errorf("%d seeds, %v", len(seeds), err)
	}
}

func compareVersions(a, b []string) int {
	for i := range a {
		if len(a[i]) != len(b[i]) {
			return len(a[i]) - len(b[i])
		}
		if c := strings.Compare(a[i], b[i]); c != 0 {
			return c
		}
	}
	return 0
}

// The scripts are ones that a shell understands.
func TestScripts(t *testing.T) {
	t.Parallel()
	for _, name := range []string{".ci/run", ".ci/previous", ".ci/postgres.sh", ".ci/rooms"} {
		if out, err := exec.CommandContext(t.Context(), "bash", "-n", name).CombinedOutput(); err != nil {
			t.Errorf("%s: %v %s", name, err, out)
		}
	}
}
