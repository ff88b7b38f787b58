package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/sethvargo/go-envconfig"
)

// config is everything an operator can set, one environment variable a field (CONTRACT section 4, README).
// A variable whose name ends in _FILE holds the path of a file with the value, for every variable here.
type config struct {
	DatabaseURL       string         `env:"DATABASE_URL"`
	SecretKeys        string         `env:"SECRET_KEYS"`
	PublicURL         string         `env:"PUBLIC_URL"`
	AppURL            string         `env:"APP_URL"`
	ListenAddr        string         `env:"LISTEN_ADDR, default=:8080"`
	OpsAddr           string         `env:"OPS_ADDR, default=127.0.0.1:9090"`
	DBMaxConns        int32          `env:"DB_MAX_CONNS, default=16"`
	AccessTokenTTL    time.Duration  `env:"ACCESS_TOKEN_TTL, default=15m"`
	RefreshIdleTTL    time.Duration  `env:"REFRESH_IDLE_TTL, default=720h"`
	RefreshMaxTTL     time.Duration  `env:"REFRESH_MAX_TTL, default=2160h"`
	RefreshGrace      time.Duration  `env:"REFRESH_GRACE, default=30s"`
	SignupEnabled     bool           `env:"SIGNUP_ENABLED, default=true"`
	EmailVerification bool           `env:"EMAIL_VERIFICATION, default=true"`
	CORSOrigins       []string       `env:"CORS_ORIGINS"`
	TrustedProxies    []netip.Prefix `env:"TRUSTED_PROXIES"`
	PasswordMinLength int            `env:"PASSWORD_MIN_LENGTH, default=12"`
	VerifyTTL         time.Duration  `env:"VERIFY_TTL, default=24h"`
	ResetTTL          time.Duration  `env:"RESET_TTL, default=1h"`
	InvitationTTL     time.Duration  `env:"INVITATION_TTL, default=168h"`
	AuditRetention    time.Duration  `env:"AUDIT_RETENTION, default=8760h"`
	MailFrom          string         `env:"MAIL_FROM"`
	SMTPURL           string         `env:"SMTP_URL"`
	Throttle          string         `env:"THROTTLE, default=on"`
	DrainDelay        time.Duration  `env:"DRAIN_DELAY, default=5s"`
	LogLevel          slog.Level     `env:"LOG_LEVEL, default=INFO"`
	LogFormat         string         `env:"LOG_FORMAT, default=json"`

	// secrets is SECRET_KEYS decoded; the first signs.
	secrets [][]byte
	// smtp is SMTP_URL; nil when it is not set.
	smtp *smtpSender
	// dev is set by the command, never by the environment: it allows plain HTTP and plain SMTP.
	dev bool
}

// problems collects what is wrong with the configuration, the first complaint of each variable, never a value (R98).
type problems struct {
	needs []string // the variables that matter; nil for all
	named []string
	lines []string
}

func (p *problems) add(name, format string, args ...any) {
	if slices.Contains(p.named, name) || p.needs != nil && !slices.Contains(p.needs, name) {
		return
	}
	p.named = append(p.named, name)
	p.lines = append(p.lines, name+" "+fmt.Sprintf(format, args...))
}

func (p *problems) err() error {
	if len(p.lines) == 0 {
		return nil
	}
	return fmt.Errorf("the configuration does not fit:\n  %s", strings.Join(p.lines, "\n  "))
}

// loadConfig reads and checks the whole configuration. Its error names every variable that is wrong, one a line; a
// command that needs only some names those.
func loadConfig(ctx context.Context, lookup envconfig.Lookuper, dev bool, needs ...string) (config, error) {
	cfg := config{dev: dev}
	p := problems{needs: needs}
	readEnvironment(ctx, &cfg, &fileLookuper{next: lookup, problems: &p}, &p)
	cfg.check(&p)
	return cfg, p.err()
}

// readEnvironment fills cfg field by field, so that one variable of the wrong form does not hide the next.
func readEnvironment(ctx context.Context, cfg *config, lookup envconfig.Lookuper, p *problems) {
	value := reflect.ValueOf(cfg).Elem()
	for _, field := range reflect.VisibleFields(value.Type()) {
		if !field.IsExported() {
			continue
		}
		one := reflect.New(reflect.StructOf([]reflect.StructField{field}))
		if err := envconfig.ProcessWith(ctx, &envconfig.Config{Target: one.Interface(), Lookuper: lookup}); err != nil {
			name, _, _ := strings.Cut(field.Tag.Get("env"), ",")
			p.add(name, "is not a %s", formOf(field.Type))
			continue
		}
		value.FieldByIndex(field.Index).Set(one.Elem().Field(0))
	}
}

func formOf(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "duration such as 15m or 720h"
	case reflect.TypeFor[bool]():
		return "boolean: true or false"
	case reflect.TypeFor[slog.Level]():
		return "log level: debug, info, warn or error"
	case reflect.TypeFor[[]netip.Prefix]():
		return "list of networks such as 10.0.0.0/8,fd00::/8"
	}
	return "number"
}

// check validates what the types cannot and fills in what depends on other variables.
func (cfg *config) check(p *problems) {
	if cfg.DatabaseURL == "" {
		p.add("DATABASE_URL", "is required: postgres://user@host:5432/name")
	} else if _, err := poolConfig(config{DatabaseURL: cfg.DatabaseURL, DBMaxConns: 1}); err != nil {
		p.add("DATABASE_URL", "is not a PostgreSQL connection URL: postgres://user@host:5432/name")
	}
	var err error
	if cfg.secrets, err = decodeSecrets(cfg.SecretKeys); err != nil {
		p.add("SECRET_KEYS", "%v", err)
	}
	if err := checkOrigin(cfg.PublicURL, cfg.dev); err != nil {
		p.add("PUBLIC_URL", "%v", err)
	}
	if cfg.AppURL == "" {
		cfg.AppURL = cfg.PublicURL
	} else if err := checkOrigin(cfg.AppURL, cfg.dev); err != nil {
		p.add("APP_URL", "%v", err)
	}
	for name, addr := range map[string]string{"LISTEN_ADDR": cfg.ListenAddr, "OPS_ADDR": cfg.OpsAddr} {
		_, port, err := net.SplitHostPort(addr)
		if err == nil {
			_, err = net.LookupPort("tcp", port)
		}
		if err != nil {
			p.add(name, "is not host:port")
		}
	}
	if cfg.DBMaxConns < 1 || cfg.DBMaxConns > 1000 {
		p.add("DB_MAX_CONNS", "must be between 1 and 1000")
	}
	const year = 365 * 24 * time.Hour
	for _, d := range []struct {
		name            string
		value, min, max time.Duration
	}{
		{"ACCESS_TOKEN_TTL", cfg.AccessTokenTTL, time.Second, time.Hour},
		{"REFRESH_IDLE_TTL", cfg.RefreshIdleTTL, time.Second, 10 * year},
		{"REFRESH_MAX_TTL", cfg.RefreshMaxTTL, time.Second, 10 * year},
		{"REFRESH_GRACE", cfg.RefreshGrace, 0, 5 * time.Minute},
		{"VERIFY_TTL", cfg.VerifyTTL, time.Second, 30 * 24 * time.Hour},
		{"RESET_TTL", cfg.ResetTTL, time.Second, 7 * 24 * time.Hour},
		{"INVITATION_TTL", cfg.InvitationTTL, time.Second, 90 * 24 * time.Hour},
		{"AUDIT_RETENTION", cfg.AuditRetention, 24 * time.Hour, 100 * year},
		{"DRAIN_DELAY", cfg.DrainDelay, 0, time.Minute},
	} {
		if d.value < d.min || d.value > d.max {
			p.add(d.name, "must be between %v and %v", d.min, d.max)
		}
	}
	if _, err := newCORS(cfg.CORSOrigins); err != nil || strings.Contains(strings.Join(cfg.CORSOrigins, ""), "*") {
		p.add("CORS_ORIGINS", "is not a list of origins such as https://app.example.com")
	}
	if slices.ContainsFunc(cfg.TrustedProxies, func(n netip.Prefix) bool { return n.Bits() == 0 }) {
		p.add("TRUSTED_PROXIES", "must not be everybody: clients would choose their own address")
	}
	if cfg.PasswordMinLength < 8 || cfg.PasswordMinLength > 64 {
		p.add("PASSWORD_MIN_LENGTH", "must be between 8 and 64")
	}
	if cfg.Throttle != "on" && cfg.Throttle != "off" {
		p.add("THROTTLE", "must be on or off")
	}
	if cfg.LogFormat != "json" && cfg.LogFormat != "text" {
		p.add("LOG_FORMAT", "must be json or text")
	}
	cfg.checkMail(p)
}

func (cfg *config) checkMail(p *problems) {
	needed := cfg.SMTPURL != "" || cfg.EmailVerification && !cfg.dev
	if needed && cfg.SMTPURL == "" {
		p.add("SMTP_URL", "is required: smtp://user:password@host:587 (or EMAIL_VERIFICATION=false)")
	}
	_, err := mail.ParseAddress(cfg.MailFrom)
	if err != nil && (needed || cfg.MailFrom != "") {
		p.add("MAIL_FROM", "must be an address such as Roster <no-reply@example.com>")
	}
	if cfg.SMTPURL != "" {
		if cfg.smtp, err = newSMTPSender(cfg.SMTPURL, cfg.MailFrom, cfg.dev); err != nil {
			p.add("SMTP_URL", "%v", err)
		}
	}
}

// checkOrigin accepts https://host[:port], and http on the loopback or in dev.
func checkOrigin(s string, dev bool) error {
	if s == "" {
		return errors.New("is required: https://host, as clients reach it")
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || s != u.Scheme+"://"+u.Host {
		return errors.New("must be an origin: https://host or https://host:port, nothing after it")
	}
	ip, _ := netip.ParseAddr(u.Hostname())
	loopback := u.Hostname() == "localhost" || ip.IsLoopback()
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback && !dev) {
		return errors.New("must be https: tokens travel over it")
	}
	return nil
}

// decodeSecrets reads the ring of SECRET_KEYS: base64, at least 32 bytes each, none a placeholder (R44). White
// space separates like a comma, so that a file may hold one a line.
func decodeSecrets(ring string) ([][]byte, error) {
	if strings.TrimSpace(ring) == "" {
		return nil, errors.New("is required: one line of `roster keygen`")
	}
	var entries []string
	for entry := range strings.SplitSeq(ring, ",") {
		lines := strings.Fields(entry)
		// base64 wraps what is long: a second line that is too short for 32 bytes is the end of the first.
		if len(lines) == 0 || len(lines) == 2 && len(lines[1]) < 44 {
			lines = []string{strings.Join(lines, "")}
		}
		entries = append(entries, lines...)
	}
	var secrets [][]byte
	for i, s := range entries {
		secret, err := base64.StdEncoding.Strict().DecodeString(s)
		switch {
		case err != nil:
			return nil, fmt.Errorf("entry %d is not base64: make one with `roster keygen`", i+1)
		case len(secret) < 32:
			return nil, fmt.Errorf("entry %d is shorter than 32 bytes: make one with `roster keygen`, and put commas between secrets", i+1)
		case weakSecret(secret):
			return nil, fmt.Errorf("entry %d is a placeholder, not a random secret: make one with `roster keygen`", i+1)
		case slices.ContainsFunc(secrets, func(other []byte) bool { return bytes.Equal(other, secret) }):
			return nil, fmt.Errorf("entry %d is there twice", i+1)
		}
		secrets = append(secrets, secret)
	}
	return secrets, nil
}

// weakSecret tells text, repetition and counting from random bytes. 32 random bytes hold fewer than 16 distinct values or
// steps, or printable characters only, about once in 10^13 times.
func weakSecret(secret []byte) bool {
	distinct, steps := map[byte]bool{}, map[byte]bool{}
	text := true
	for i, b := range secret {
		distinct[b] = true
		steps[b-secret[max(i-1, 0)]] = true
		text = text && b >= ' ' && b <= '~'
	}
	return text || len(distinct) < 16 || len(steps) < 16
}

// fileLookuper answers NAME from the file that NAME_FILE names, the way container secrets are mounted.
type fileLookuper struct {
	next     envconfig.Lookuper
	problems *problems
}

// Lookup takes an empty value for none: that is how compose files and shells write it.
func (f *fileLookuper) Lookup(name string) (string, bool) {
	value, found := f.next.Lookup(name)
	found = found && value != ""
	path, _ := f.next.Lookup(name + "_FILE")
	if path == "" {
		return value, found
	}
	if found {
		f.problems.add(name, "and %s_FILE are both set", name)
		return value, true
	}
	value, err := readTextFile(path)
	if pathError, ok := errors.AsType[*os.PathError](err); ok {
		err = pathError.Err // without the path, which is a value
	}
	value = strings.TrimRight(value, "\r\n")
	switch {
	case err != nil:
		f.problems.add(name, "cannot be read from the file that %s_FILE names: %v", name, err)
	case strings.TrimSpace(value) == "":
		f.problems.add(name, "cannot be read from the file that %s_FILE names: it is empty", name)
	case name != "SECRET_KEYS" && strings.ContainsAny(value, "\r\n"):
		f.problems.add(name, "must be one line, and the file that %s_FILE names has several", name)
	default:
		return value, true
	}
	return "", false
}
