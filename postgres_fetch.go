// room:dev

package main

import (
	"archive/tar"
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/ulikunitz/xz"
)

// mavenCentral has the binaries of github.com/zonkyio/embedded-postgres-binaries; POSTGRES_REPOSITORY names a mirror.
const mavenCentral = "https://repo1.maven.org/maven2"

const (
	fetchedVersion = "18.3.0"
	maxArchive     = 256 << 20 // bytes; they have about 20 MB
	maxUnpacked    = 2 << 30
)

// cacheDir makes the directory that fetched binaries stay in. Root's home is closed to the user that runs PostgreSQL for
// root, so that root's are elsewhere.
func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if os.Geteuid() == 0 {
		base, err = "/var/cache", nil
	}
	if err != nil {
		return "", err
	}
	dir := filepath.Join(base, "roster")
	if err := os.MkdirAll(dir, 0o755); err != nil { // #nosec G301 -- binaries that anybody can fetch
		return "", err
	}
	return dir, os.Chmod(dir, 0o755) // #nosec G302
}

// fetchPostgres returns the directory of binaries that it fetches from a Maven repository and keeps in cache.
func fetchPostgres(ctx context.Context, repository, cache string, out io.Writer) (string, error) {
	artifact, err := postgresArtifact()
	if err != nil {
		return "", err
	}
	dir, err := os.OpenRoot(cache)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	lock, err := dir.OpenFile("lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil { // dev and the tests may come at once
		return "", err
	}
	name, partial := artifact+"-"+fetchedVersion, "partial"
	binDir := filepath.Join(cache, name, "bin")
	if _, err := dir.Stat(name); err == nil {
		return binDir, nil
	}
	defer func() { _ = dir.RemoveAll(partial) }()
	if err := errors.Join(dir.RemoveAll(partial), dir.Mkdir(partial, 0o755)); err != nil {
		return "", err
	}
	into, err := dir.OpenRoot(partial)
	if err != nil {
		return "", err
	}
	defer into.Close()
	url := fmt.Sprintf("%s/io/zonky/test/postgres/%[2]s/%[3]s/%[2]s-%[3]s.jar", strings.TrimRight(repository, "/"), artifact, fetchedVersion)
	jar, err := download(ctx, url, into, out)
	if err != nil {
		return "", err
	}
	defer jar.Close()
	if err := unpackJar(jar, into); err != nil {
		return "", fmt.Errorf("unpacking %s: %w", filepath.Base(url), err)
	}
	return binDir, dir.Rename(partial, name)
}

// postgresArtifact names the archive for this machine.
func postgresArtifact() (string, error) {
	platform, known := map[string]string{"linux/amd64": "linux-amd64", "linux/arm64": "linux-arm64v8",
		"darwin/amd64": "darwin-amd64", "darwin/arm64": "darwin-arm64v8"}[runtime.GOOS+"/"+runtime.GOARCH]
	if !known {
		return "", fmt.Errorf("there is none for %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	if _, err := os.Stat("/etc/alpine-release"); err == nil {
		platform += "-alpine" // musl, not glibc
	}
	return "embedded-postgres-binaries-" + platform, nil
}

// download writes what url answers into a file without a name, and compares it with the checksum beside it.
func download(ctx context.Context, url string, dir *os.Root, out io.Writer) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	defer cancel()
	checksum, err := get(ctx, url+".sha256")
	if err != nil {
		return nil, err
	}
	defer checksum.Body.Close()
	want, err := io.ReadAll(io.LimitReader(checksum.Body, sha256.Size*2)) // a name may follow it
	if err != nil {
		return nil, err
	}
	answer, err := get(ctx, url)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	size := "of unknown size"
	if answer.ContentLength >= 0 {
		size = fmt.Sprintf("%.1f MB", float64(answer.ContentLength)/1e6)
	}
	fmt.Fprintf(out, "No PostgreSQL on this machine: fetching %s, %s, from %s, to keep in %s\n", fetchedVersion, size,
		answer.Request.URL.Host, filepath.Dir(dir.Name()))
	jar, err := dir.Create("jar")
	if err != nil {
		return nil, err
	}
	progress, sum := newProgress(out, "fetching", answer.ContentLength), sha256.New()
	_, err = io.Copy(io.MultiWriter(jar, sum, progress), io.LimitReader(answer.Body, maxArchive))
	_ = progress.Finish()
	if err == nil && hex.EncodeToString(sum.Sum(nil)) != strings.ToLower(string(want)) {
		err = fmt.Errorf("%s has another checksum than %[1]s.sha256 says", filepath.Base(url))
	}
	if err = errors.Join(err, dir.Remove("jar")); err != nil {
		_ = jar.Close()
		return nil, err
	}
	return jar, nil
}

func get(ctx context.Context, url string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(r) // #nosec G704 -- the operator's own repository
	if err == nil && answer.StatusCode != http.StatusOK {
		_ = answer.Body.Close()
		err = fmt.Errorf("%s answers %s", r.URL.Redacted(), answer.Status)
	}
	return answer, err
}

// unpackJar unpacks the .txz in a jar.
func unpackJar(jar *os.File, into *os.Root) error {
	info, err := jar.Stat()
	if err != nil {
		return err
	}
	files, err := zip.NewReader(jar, info.Size())
	if err != nil {
		return err
	}
	for _, file := range files.File {
		if !strings.HasSuffix(file.Name, ".txz") {
			continue
		}
		packed, err := file.Open()
		if err != nil {
			return err
		}
		defer packed.Close()
		archive, err := xz.NewReader(packed)
		if err != nil {
			return err
		}
		if err := unpack(tar.NewReader(io.LimitReader(archive, maxUnpacked)), into); err != nil {
			return err
		}
		// Whatever umask is: root fetches for another user.
		return fs.WalkDir(into.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
			if err != nil || entry.Type() == fs.ModeSymlink {
				return err
			}
			return into.Chmod(name, 0o755)
		})
	}
	return errors.New("there is no .txz in it")
}

// unpack writes files, directories and links, and nothing outside of into.
func unpack(archive *tar.Reader, into *os.Root) error {
	for {
		entry, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Clean(entry.Name)
		switch entry.Typeflag {
		case tar.TypeDir:
			err = into.MkdirAll(name, 0o755)
		case tar.TypeReg:
			err = unpackFile(archive, into, name)
		case tar.TypeSymlink:
			if filepath.IsAbs(entry.Linkname) || !filepath.IsLocal(filepath.Join(filepath.Dir(name), entry.Linkname)) { // #nosec G305 -- checked to stay inside
				return fmt.Errorf("%s links to the outside", entry.Name)
			}
			err = into.Symlink(entry.Linkname, name)
		default:
			err = fmt.Errorf("%s is of an unknown kind", entry.Name)
		}
		if err != nil {
			return err
		}
	}
}

func unpackFile(content io.Reader, into *os.Root, name string) error {
	if err := into.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	file, err := into.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	return errors.Join(err, file.Close())
}
