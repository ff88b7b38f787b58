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
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sethvargo/go-envconfig"
)

// config is everything an operator can set, one environment variable a field (CONTRACT section 4, README).
// A variable whose name ends in _FILE holds the path of a file with the value, for every variable here.
type config struct {
	DatabaseURL       string        `env:"DATABASE_URL"`
	SecretKeys        string        `env:"SECRET_KEYS"`
	PublicURL         string        `env:"PUBLIC_URL"`
	AppURL            string        `env:"APP_URL"`
	ListenAddr        string        `env:"LISTEN_ADDR"`
	Port              uint16        `env:"PORT, default=8080"`               // when LISTEN_ADDR is not set
	OpsAddr           string        `env:"OPS_ADDR, default=127.0.0.1:9090"` // room:metrics
	DBMaxConns        int32         `env:"DB_MAX_CONNS, default=16" range:"1..1000"`
	AccessTokenTTL    time.Duration `env:"ACCESS_TOKEN_TTL, default=15m" range:"1s..1h"`
	RefreshIdleTTL    time.Duration `env:"REFRESH_IDLE_TTL, default=720h" range:"1s..87600h"`
	RefreshMaxTTL     time.Duration `env:"REFRESH_MAX_TTL, default=2160h" range:"1s..87600h"`
	RefreshGrace      time.Duration `env:"REFRESH_GRACE, default=30s" range:"0s..5m"`
	SecondFactor      string        `env:"SECOND_FACTOR, default=optional"`
	PasskeyRPID       string        `env:"PASSKEY_RP_ID"` // room:passkeys
	SignupEnabled     bool          `env:"SIGNUP_ENABLED, default=true"`
	EmailVerification bool          `env:"EMAIL_VERIFICATION, default=true"`
	CORSOrigins       []string      `env:"CORS_ORIGINS"` // room:cors
	TrustedProxies    networks      `env:"TRUSTED_PROXIES"`
	PasswordMinLength int           `env:"PASSWORD_MIN_LENGTH, default=12" range:"8..64"`
	VerifyTTL         time.Duration `env:"VERIFY_TTL, default=24h" range:"1s..720h"`            // room:mailflows
	ResetTTL          time.Duration `env:"RESET_TTL, default=1h" range:"1s..168h"`              // room:mailflows
	InvitationTTL     time.Duration `env:"INVITATION_TTL, default=168h" range:"1s..2160h"`      // room:invitations
	AuditRetention    time.Duration `env:"AUDIT_RETENTION, default=8760h" range:"24h..876000h"` // room:audit
	MailFrom          string        `env:"MAIL_FROM"`                                           // room:mail
	SMTPURL           string        `env:"SMTP_URL"`                                            // room:mail
	Throttle          string        `env:"THROTTLE, default=on"`                                // room:throttling
	Limits            string        `env:"LIMITS"`                                              // room:throttling
	IdleTimeout       time.Duration `env:"IDLE_TIMEOUT, default=620s" range:"1s..24h"`          // Google's balancers keep connections for 600 s
	DrainDelay        time.Duration `env:"DRAIN_DELAY, default=5s" range:"0s..1m"`
	LogLevel          slog.Level    `env:"LOG_LEVEL, default=INFO"`
	LogFormat         string        `env:"LOG_FORMAT, default=json"`

	// secrets is SECRET_KEYS decoded; the first signs.
	secrets [][]byte
	// limits is limitTable with the numbers of LIMITS. // room:throttling
	limits map[string]limit // room:throttling
	// smtp is SMTP_URL; nil when it is not set. // room:mail
	smtp          *smtpSender // room:mail
	passkeyRPID   string      // the domain of passkeys; empty: there are none // room:passkeys
	passkeyOrigin string      // of the pages that use them // room:passkeys
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

// checkRanges reads the range tags: least..most, of a duration or a number.
func (cfg *config) checkRanges(p *problems) {
	value := reflect.ValueOf(cfg).Elem()
	for _, field := range reflect.VisibleFields(value.Type()) {
		least, most, bounded := strings.Cut(field.Tag.Get("range"), "..")
		if !bounded {
			continue
		}
		if n := value.FieldByIndex(field.Index).Int(); n < boundOf(least) || n > boundOf(most) {
			name, _, _ := strings.Cut(field.Tag.Get("env"), ",")
			p.add(name, "must be between %s and %s", least, most)
		}
	}
}

func boundOf(s string) int64 {
	if d, err := time.ParseDuration(s); err == nil {
		return int64(d)
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		panic(err) // a tag above
	}
	return n
}

func formOf(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "duration such as 15m or 720h"
	case reflect.TypeFor[bool]():
		return "boolean: true or false"
	case reflect.TypeFor[slog.Level]():
		return "log level: debug, info, warn or error"
	case reflect.TypeFor[networks]():
		return "list of networks such as 10.0.0.0/8,fd00::/8,192.0.2.1"
	}
	return "number"
}

// check validates what the types cannot and fills in what depends on other variables.
func (cfg *config) check(p *problems) {
	if cfg.DatabaseURL == "" {
		p.add("DATABASE_URL", "is required: postgres://user@host:5432/name")
	} else if _, err := poolConfig(config{DatabaseURL: cfg.DatabaseURL, DBMaxConns: 1}); err != nil {
		p.add("DATABASE_URL", "%v", err)
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
	} else if cfg.AppURL, err = cleanAppURL(cfg.AppURL, cfg.dev); err != nil {
		p.add("APP_URL", "%v", err)
	}
	if cfg.ListenAddr == "" {
		cfg.ListenAddr = fmt.Sprintf(":%d", cfg.Port)
	}
	checkAddr(p, "LISTEN_ADDR", cfg.ListenAddr)
	checkAddr(p, "OPS_ADDR", cfg.OpsAddr) // room:metrics
	cfg.checkRanges(p)
	if _, err := newCORS(cfg.CORSOrigins); err != nil || strings.Contains(strings.Join(cfg.CORSOrigins, ""), "*") { // room:cors
		p.add("CORS_ORIGINS", "is not a list of origins such as https://app.example.com")
	}
	if slices.ContainsFunc(cfg.TrustedProxies, func(n netip.Prefix) bool { return n.Bits() == 0 }) {
		p.add("TRUSTED_PROXIES", "must not be everybody: clients would choose their own address")
	}
	if cfg.Throttle != "on" && cfg.Throttle != "off" { // room:throttling
		p.add("THROTTLE", "must be on or off")
	}
	if cfg.limits, err = parseLimits(cfg.Limits); err != nil { // room:throttling
		p.add("LIMITS", "%v", err)
	}
	if !slices.Contains([]string{"optional", "admins", "all"}, cfg.SecondFactor) {
		p.add("SECOND_FACTOR", "must be optional, admins or all")
	}
	if cfg.LogFormat != "json" && cfg.LogFormat != "text" {
		p.add("LOG_FORMAT", "must be json or text")
	}
	cfg.checkPasskeys(p) // room:passkeys
	cfg.checkMail(p)     // room:mail
}

func (cfg *config) checkMail(p *problems) { // room:mail
	needed := cfg.SMTPURL != "" || cfg.EmailVerification && !cfg.dev
	if needed && cfg.SMTPURL == "" {
		p.add("SMTP_URL", "is required: smtp://user:password@host:587 (or EMAIL_VERIFICATION=false)")
	}
	from, err := mail.ParseAddress(cfg.MailFrom)
	if (err != nil || !isASCII(from.Address)) && (needed || cfg.MailFrom != "") {
		p.add("MAIL_FROM", "must be an address in ASCII such as Roster <no-reply@example.com>")
	}
	if cfg.SMTPURL != "" {
		if cfg.smtp, err = newSMTPSender(cfg, from); err != nil {
			p.add("SMTP_URL", "%v", err)
		}
	}
}

// words are the names that this service goes by: its hosts, and the parts of them.
func (cfg *config) words() (words []string) {
	for _, origin := range []string{cfg.AppURL, cfg.PublicURL} {
		if u, err := url.Parse(origin); err == nil {
			host := strings.ToLower(u.Hostname())
			words = append(append(words, host), strings.Split(host, ".")...)
		}
	}
	return words
}

func checkAddr(p *problems, name, addr string) {
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		p.add(name, "is not host:port")
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

// cleanAppURL accepts an origin with or without a path, and takes the slash at its end away.
func cleanAppURL(s string, dev bool) (string, error) {
	s = strings.TrimSuffix(s, "/")
	u, err := url.Parse(s)
	if err != nil || s != u.Scheme+"://"+u.Host+u.EscapedPath() || u.Path != strings.TrimSuffix(path.Clean("/"+u.Path), "/") {
		return "", errors.New("must be https://host or https://host/path, nothing after it")
	}
	return s, checkOrigin(u.Scheme+"://"+u.Host, dev)
}

// networks are a list of networks; one of a single address may go without /32 or /128.
type networks []netip.Prefix

// UnmarshalText takes networks of IPv4 in IPv6 for those of IPv4, which is how peers are compared.
func (n *networks) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	for s := range strings.SplitSeq(string(text), ",") {
		s = strings.TrimSpace(s)
		network, err := netip.ParsePrefix(s)
		if ip, bare := netip.ParseAddr(s); bare == nil {
			network, err = netip.PrefixFrom(ip, ip.BitLen()), nil
		}
		if err != nil {
			return err
		}
		if network.Addr().Is4In6() {
			network = netip.PrefixFrom(network.Addr().Unmap(), max(network.Bits()-96, 0))
		}
		*n = append(*n, network)
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
