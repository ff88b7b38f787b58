package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sethvargo/go-envconfig"
)

// good is the smallest environment that serve accepts.
func good() map[string]string {
	return map[string]string{"DATABASE_URL": "postgres://db", "SECRET_KEYS": newSecret(), "PUBLIC_URL": "https://roster.example", "EMAIL_VERIFICATION": "false"}
}

// R98: every wrong variable is named, on the first run, and no value is repeated.
func TestConfigNamesEveryProblem(t *testing.T) {
	t.Parallel()
	bad := map[string]string{
		"DATABASE_URL": "mysql://user:hunter2@host", "SECRET_KEYS": "hunter2", "PUBLIC_URL": "http://hunter2.example", "APP_URL": "https://a/?hunter2",
		"LISTEN_ADDR": "hunter2", "OPS_ADDR": "127.0.0.1:99999", "DB_MAX_CONNS": "hunter2", "ACCESS_TOKEN_TTL": "hunter2", "REFRESH_IDLE_TTL": "-1h", "REFRESH_MAX_TTL": "hunter2",
		"REFRESH_GRACE": "1000h", "SIGNUP_ENABLED": "hunter2", "EMAIL_VERIFICATION": "hunter2", "TRUSTED_PROXIES": "hunter2",
		"PASSWORD_MIN_LENGTH": "7", "VERIFY_TTL": "0s", "MAIL_FROM": "hunter2", "DRAIN_DELAY": "hunter2", "IDLE_TIMEOUT": "25h", "PORT": "hunter2", "LOG_LEVEL": "hunter2", "LOG_FORMAT": "hunter2",
		"CORS_ORIGINS": "hunter2", "THROTTLE": "hunter2",
	}
	_, err := loadConfig(t.Context(), envconfig.MapLookuper(bad), false)
	if err == nil {
		t.Fatal("accepted")
	}
	for name := range bad {
		if strings.Count(err.Error(), "\n  "+name+" ") != 1 {
			t.Errorf("%s is not named once in\n%s", name, err)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a value is repeated:\n%s", err)
	}
	_, err = loadConfig(t.Context(), envconfig.MapLookuper(nil), false)
	for _, name := range []string{"DATABASE_URL", "SECRET_KEYS", "PUBLIC_URL"} {
		if err == nil || !strings.Contains(err.Error(), name+" is required") {
			t.Errorf("%s is not asked for: %v", name, err)
		}
	}
}

// R44: short, placeholder and repeated secrets refuse to start.
func TestWeakSecrets(t *testing.T) {
	t.Parallel()
	b64 := base64.StdEncoding.EncodeToString
	secret := newSecret()
	for name, ring := range map[string]string{
		"short": b64([]byte("0123456789abcdefghijklmnopqrstu")), "text": b64([]byte("change-me-change-me-change-me-please")),
		"zeros": b64(make([]byte, 32)), "counting": b64([]byte("\x01\x04\x07\x0a\x0d\x10\x13\x16\x19\x1c\x1f\x22\x25\x28\x2b\x2e\x31\x34\x37\x3a\x3d\x40\x43\x46\x49\x4c\x4f\x52\x55\x58\x5b\x5e")), "not base64": "????", "twice": secret + "," + secret, "an empty entry": secret + ",",
		"second is short": secret + "," + b64([]byte{1, 2, 3}), "no padding": strings.TrimRight(secret, "="),
	} {
		env := good()
		env["SECRET_KEYS"] = ring
		if _, err := loadConfig(t.Context(), envconfig.MapLookuper(env), false); err == nil || !strings.Contains(err.Error(), "SECRET_KEYS") {
			t.Errorf("%s: %v", name, err)
		}
	}
	env := good()
	env["SECRET_KEYS"] = secret + ", " + newSecret()
	if cfg, err := loadConfig(t.Context(), envconfig.MapLookuper(env), false); err != nil || len(cfg.secrets) != 2 {
		t.Error(err)
	}
}

// R07, R10, R27, R49: what is safe by default, and cannot be made unsafe.
func TestBoundsOfConfig(t *testing.T) {
	t.Parallel()
	cfg, err := loadConfig(t.Context(), envconfig.MapLookuper(good()), false)
	if err != nil || cfg.PasswordMinLength != 12 || cfg.AccessTokenTTL != 15*time.Minute {
		t.Errorf("%v %+v", err, cfg)
	}
	for _, tc := range []struct {
		name, value string
		ok          bool
	}{
		{"PASSWORD_MIN_LENGTH", "8", true}, {"PASSWORD_MIN_LENGTH", "7", false}, {"PASSWORD_MIN_LENGTH", "0", false},
		{"DB_MAX_CONNS", "1", true}, {"DB_MAX_CONNS", "0", false}, {"DB_MAX_CONNS", "1001", false}, {"LISTEN_ADDR", ":65535", true}, {"LISTEN_ADDR", ":65536", false},
		{"CORS_ORIGINS", "https://app.example.com,http://localhost:3000", true}, {"CORS_ORIGINS", "*", false}, {"CORS_ORIGINS", "https://*.example.com", false},
		{"TRUSTED_PROXIES", "10.0.0.0/8,::1/128", true}, {"TRUSTED_PROXIES", "10.0.0.0/8,0.0.0.0/0", false}, {"TRUSTED_PROXIES", "::/0", false},
		{"TRUSTED_PROXIES", "::ffff:0.0.0.0/96", false}, {"TRUSTED_PROXIES", "::ffff:0.0.0.0/80", false}, {"TRUSTED_PROXIES", "10.0.0.1, fd00::1", true}, {"TRUSTED_PROXIES", "10.0.0.0/33", false},
		{"TRUSTED_PROXIES", "10.0.0.1:80", false}, {"TRUSTED_PROXIES", "10.0.0.0/8,", false}, {"IDLE_TIMEOUT", "1s", true}, {"IDLE_TIMEOUT", "0s", false}, {"IDLE_TIMEOUT", "24h", true},
		{"PORT", "3000", true}, {"PORT", "65536", false}, {"PORT", "-1", false}, {"PORT", "http", false},
		{"ACCESS_TOKEN_TTL", "1h", true}, {"ACCESS_TOKEN_TTL", "1h1s", false}, {"ACCESS_TOKEN_TTL", "-15m", false},
	} {
		env := good()
		env[tc.name] = tc.value
		if _, err := loadConfig(t.Context(), envconfig.MapLookuper(env), false); (err == nil) != tc.ok || err != nil && !strings.Contains(err.Error(), tc.name) {
			t.Errorf("%s=%s: %v", tc.name, tc.value, err)
		}
	}
}

func TestConfigFromFiles(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "secret")
	env := good()
	if err := os.WriteFile(path, []byte(env["SECRET_KEYS"]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	want := env["SECRET_KEYS"]
	delete(env, "SECRET_KEYS")
	env["SECRET_KEYS_FILE"] = path
	if cfg, err := loadConfig(t.Context(), envconfig.MapLookuper(env), false); err != nil || cfg.SecretKeys != want {
		t.Error(err)
	}
	env["SECRET_KEYS"] = want
	if _, err := loadConfig(t.Context(), envconfig.MapLookuper(env), false); err == nil || !strings.Contains(err.Error(), "both set") {
		t.Error(err)
	}
	delete(env, "SECRET_KEYS")
	env["SECRET_KEYS_FILE"] = path + ".missing"
	if _, err := loadConfig(t.Context(), envconfig.MapLookuper(env), false); err == nil || strings.Count(err.Error(), "SECRET_KEYS ") != 1 {
		t.Error(err)
	}
}

// An empty value is none: it neither switches something off nor stands beside a file.
func TestEmptyVariables(t *testing.T) {
	t.Parallel()
	env := good()
	for _, name := range []string{"APP_URL", "LISTEN_ADDR", "DB_MAX_CONNS", "ACCESS_TOKEN_TTL", "SIGNUP_ENABLED", "SMTP_URL", "MAIL_FROM", "CORS_ORIGINS", "TRUSTED_PROXIES", "LOG_LEVEL", "LOG_FORMAT"} {
		env[name] = ""
	}
	cfg, err := loadConfig(t.Context(), envconfig.MapLookuper(env), false)
	if err != nil || !cfg.SignupEnabled || cfg.ListenAddr != ":8080" || cfg.AppURL != cfg.PublicURL || cfg.CORSOrigins != nil {
		t.Errorf("%v %+v", err, cfg)
	}
}

func TestPublicURL(t *testing.T) {
	t.Parallel()
	for url, want := range map[string][2]bool{ // serve, dev
		"https://roster.example": {true, true}, "https://roster.example:8443": {true, true}, "http://localhost:8080": {true, true},
		"http://127.0.0.1:8080": {true, true}, "http://[::1]:8080": {true, true}, "http://roster.example": {false, true},
		"https://roster.example/": {false, false}, "https://roster.example/x": {false, false}, "https://roster.example?x": {false, false},
		"https://user@roster.example": {false, false}, "roster.example": {false, false}, "ftp://roster.example": {false, false}, "https://": {false, false},
	} {
		for i, dev := range []bool{false, true} {
			if err := checkOrigin(url, dev); (err == nil) != want[i] {
				t.Errorf("%s, dev %v: %v", url, dev, err)
			}
		}
	}
}

// R10, R113: networks are compared with addresses that are unmapped, so they are, too.
func TestTrustedNetworks(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"10.0.0.0/8": "10.0.0.0/8", "::ffff:10.0.0.0/104": "10.0.0.0/8", "::ffff:10.0.0.1/128": "10.0.0.1/32", "::ffff:10.0.0.1": "10.0.0.1/32",
		"10.0.0.1": "10.0.0.1/32", " fd00::1 , 10.0.0.0/8 ": "fd00::1/128 10.0.0.0/8", "fe80::1": "fe80::1/128",
	} {
		env := good()
		env["TRUSTED_PROXIES"] = value
		cfg, err := loadConfig(t.Context(), envconfig.MapLookuper(env), false)
		if got := strings.Trim(fmt.Sprint(cfg.TrustedProxies), "[]"); err != nil || got != want {
			t.Errorf("%s: %s %v", value, got, err)
		}
	}
}

// Platforms that choose a port say so by PORT; who sets LISTEN_ADDR too has chosen.
func TestPort(t *testing.T) {
	t.Parallel()
	for _, tc := range [][3]string{{"", "", ":8080"}, {"", "3000", ":3000"}, {"127.0.0.1:80", "3000", "127.0.0.1:80"}, {"127.0.0.1:80", "", "127.0.0.1:80"}} {
		env := good()
		env["LISTEN_ADDR"], env["PORT"] = tc[0], tc[1]
		if cfg, err := loadConfig(t.Context(), envconfig.MapLookuper(env), false); err != nil || cfg.ListenAddr != tc[2] {
			t.Errorf("%v: %s %v", tc, cfg.ListenAddr, err)
		}
	}
}

// The pages that mails lead to may be below a path.
func TestAppURL(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"https://app.example": "https://app.example", "https://app.example/": "https://app.example", "https://app.example/a/b": "https://app.example/a/b",
		"https://app.example/a/": "https://app.example/a", "https://app.example:8443/a%20b": "https://app.example:8443/a%20b", "http://localhost:3000/app/": "http://localhost:3000/app",
		"https://app.example/a//": "", "https://app.example//": "", "https://app.example/../a": "", "https://app.example/a?b": "", "https://app.example/a#b": "", "https://app.example/#": "",
		"https://app.example?": "", "https://u@app.example/a": "", "http://app.example/a": "", "app.example/a": "", "/a": "", "https:///a": "", "https://app.example/a b": "", "https://app.example/a\nb": "", "https:app": "",
	} {
		env := good()
		env["APP_URL"] = url
		cfg, err := loadConfig(t.Context(), envconfig.MapLookuper(env), false)
		if (err == nil) != (want != "") || err == nil && cfg.AppURL != want || err != nil && !strings.Contains(err.Error(), "APP_URL") {
			t.Errorf("%q: %q %v", url, cfg.AppURL, err)
		}
	}
}
