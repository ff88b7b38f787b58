// room:mail

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"github.com/jackc/pgx/v5"
	"github.com/sethvargo/go-envconfig"
)

// smtpd is a real SMTP server inside the test. Its hooks decide how it behaves; without them it takes everything.
type smtpd struct {
	t         testing.TB
	addr      string
	authority *testCA
	implicit  bool // TLS from the first byte
	plain     bool // no STARTTLS
	password  string
	from      func(from string) error
	rcpt      func(to string) error
	data      func(c *smtp.Conn, r io.Reader) error // in place of taking the mail

	mu    sync.Mutex
	mails []receivedMail
	trace lockedBuffer // every command that it understood, and every answer
}

// receivedMail is one that the server said yes to.
type receivedMail struct {
	from, user string
	to         []string
	ehlo       string
	tls, utf8  bool
	raw        []byte
}

// testCA signs the certificates of the servers in a test.
type testCA struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pool        *x509.CertPool
	pem         []byte
}

func newTestCA(t testing.TB) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ca := &testCA{key: key, pool: x509.NewCertPool(), pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	if ca.certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	ca.pool.AddCert(ca.certificate)
	return ca
}

// issue makes the certificate of a server: of this machine unless names say otherwise.
func (ca *testCA) issue(t testing.TB, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if names == nil {
		template.DNSNames, template.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.certificate, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// startSMTP starts a server with a certificate for names, or for this machine.
func startSMTP(t testing.TB, d *smtpd, names ...string) *smtpd {
	t.Helper()
	d.t = t
	if d.authority == nil {
		d.authority = newTestCA(t)
	}
	listener, err := net.Listen("tcp", cmp.Or(d.addr, "127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	d.addr = listener.Addr().String()
	server := smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) { return &smtpSession{d: d, conn: c}, nil }))
	server.Domain, server.Debug, server.EnableSMTPUTF8 = "smtpd.test", &d.trace, true
	server.ErrorLog = discardLog{} // refused handshakes are what the tests are about
	if !d.plain {
		server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{d.authority.issue(t, names...)}}
	}
	if d.implicit {
		listener = tls.NewListener(listener, server.TLSConfig)
	}
	server.AllowInsecureAuth = d.plain // it would take credentials in the clear, if somebody sent them
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close() })
	return d
}

type discardLog struct{}

func (discardLog) Printf(string, ...any) {}
func (discardLog) Println(...any)        {}

// sender is the one under test, pointed at d.
func (d *smtpd) sender() *smtpSender {
	d.t.Helper()
	u := url.URL{Scheme: "smtp", Host: d.addr}
	if d.implicit {
		u.Scheme = "smtps"
	}
	if d.password != "" {
		u.User = url.UserPassword("roster", d.password)
	}
	sender, err := newSMTPSender(&config{SMTPURL: u.String(), PublicURL: "https://api.example"}, &mail.Address{Name: "Röster", Address: "no-reply@roster.example"})
	if err != nil {
		d.t.Fatal(err)
	}
	sender.tls.RootCAs = d.authority.pool
	return sender
}

// received returns the mails that the server took, once there are n; more than n is a failure.
func (d *smtpd) received(n int) []receivedMail {
	d.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		d.mu.Lock()
		mails := slices.Clone(d.mails)
		d.mu.Unlock()
		if len(mails) >= n || time.Now().After(deadline) {
			if len(mails) != n {
				d.t.Fatalf("the server took %d mails, want %d", len(mails), n)
			}
			return mails
		}
	}
}

// smtpSession is one conversation.
type smtpSession struct {
	d    *smtpd
	conn *smtp.Conn
	receivedMail
}

func (c *smtpSession) AuthMechanisms() []string {
	if c.d.password == "" && !c.d.plain {
		return nil
	}
	return []string{sasl.Plain}
}

func (c *smtpSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, username, password string) error {
		if username != "roster" || password != c.d.password {
			return smtp.ErrAuthFailed
		}
		c.user = username
		return nil
	}), nil
}

func (c *smtpSession) Mail(from string, options *smtp.MailOptions) error {
	if c.d.password != "" && c.user == "" {
		return smtp.ErrAuthRequired
	}
	if c.d.from != nil {
		return c.d.from(from)
	}
	c.from, c.ehlo, c.utf8 = from, c.conn.Hostname(), options.UTF8
	_, c.tls = c.conn.TLSConnectionState()
	return nil
}

func (c *smtpSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	c.to = append(c.to, to)
	if c.d.rcpt != nil {
		return c.d.rcpt(to)
	}
	return nil
}

func (c *smtpSession) Data(r io.Reader) (err error) {
	if c.d.data != nil {
		if err := c.d.data(c.conn, r); err != nil {
			return err
		}
	}
	if c.raw, err = io.ReadAll(r); err != nil {
		return err
	}
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	c.d.mails = append(c.d.mails, c.receivedMail)
	return nil
}

func (c *smtpSession) Reset()        { c.to, c.raw = nil, nil }
func (c *smtpSession) Logout() error { return nil }

// rawSMTP is a server that only a script can be: it gets each connection.
func rawSMTP(t testing.TB, script func(net.Conn)) (addr string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { defer conn.Close(); script(conn) })
		}
	})
	t.Cleanup(func() { listener.Close(); conns.Wait() })
	return listener.Addr().String()
}

// mailContent is what a reader of a mail sees.
type mailContent struct {
	header     mail.Header
	text, html string
}

var linkPattern = regexp.MustCompile(`https://app\.example/#/[a-z-]+\?token=([A-Za-z0-9_-]{43})\b`)

// token is the one in the link; both parts carry the same.
func (m mailContent) token(t testing.TB) string {
	t.Helper()
	text, html := linkPattern.FindStringSubmatch(m.text), linkPattern.FindStringSubmatch(m.html)
	if text == nil || html == nil || text[1] != html[1] {
		t.Fatalf("no link in\n%s\n%s", m.text, m.html)
	}
	return text[1]
}

// parseMail reads a mail as strictly as a reader could: two alternatives, text first.
func parseMail(t testing.TB, raw []byte) mailContent {
	t.Helper()
	parsed, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("%v\n%s", err, raw)
	}
	kind, parameters, err := mime.ParseMediaType(parsed.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/alternative" {
		t.Fatalf("%s: %v", kind, err)
	}
	var parts []string
	reader := multipart.NewReader(parsed.Body, parameters["boundary"])
	for _, want := range []string{"text/plain", "text/html"} {
		part, err := reader.NextRawPart()
		if err != nil {
			t.Fatal(err)
		}
		kind, parameters, err := mime.ParseMediaType(part.Header.Get("Content-Type"))
		if err != nil || kind != want || !strings.EqualFold(parameters["charset"], "utf-8") || part.Header.Get("Content-Transfer-Encoding") != "quoted-printable" {
			t.Errorf("part %v: %v", part.Header, err)
		}
		content, err := io.ReadAll(quotedprintable.NewReader(part))
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, strings.ReplaceAll(string(content), "\r\n", "\n"))
	}
	if _, err := reader.NextRawPart(); err != io.EOF {
		t.Errorf("a third part: %v", err)
	}
	return mailContent{parsed.Header, parts[0], parts[1]}
}

// dueNow makes every mail that waits for its next attempt due.
func (s *testServer) dueNow() {
	s.t.Helper()
	s.exec("update mails set next_attempt_at = now() where sent_at is null")
}

// mailState is "sent", "failed" or "waiting" with the number of attempts, of the only mail there is.
func (s *testServer) mailState() string {
	s.t.Helper()
	return scalar[string](s, `
		select case when sent_at is not null then 'sent' when failed_at is not null then 'failed'
			when next_attempt_at > now() + interval '30 seconds' then 'waiting' else 'due' end || ' ' || attempts from mails`)
}

// The whole way: registered over HTTP, sent by the replica's own senders over STARTTLS with a password, opened.
func TestSMTPDelivers(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		d    *smtpd
	}{
		{"STARTTLS", &smtpd{}}, {"STARTTLS and AUTH", &smtpd{password: "s3cret:/@"}}, {"implicit TLS and AUTH", &smtpd{implicit: true, password: "hunter2"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := startSMTP(t, tc.d)
			sender := d.sender()
			s, _ := startMailServer(t, testConfig(newTestDatabase(t)), sender.deliver)
			s.startRegistration("ada@example.com", testPassword)
			got := d.received(1)[0]
			if got.from != "no-reply@roster.example" || !slices.Equal(got.to, []string{"ada@example.com"}) || !got.tls || got.utf8 || (got.user != "") != (d.password != "") || !fullName.MatchString(got.ehlo) {
				t.Errorf("envelope: %+v", got)
			}
			if bytes.Contains(bytes.ToLower(got.raw), []byte("go-mail")) {
				t.Errorf("the mail names the library:\n%s", got.raw)
			}
			m := parseMail(t, got.raw)
			id := scalar[string](s, "select id::text from mails")
			for name, want := range map[string]string{
				"Subject": "Confirm your address", "To": "<ada@example.com>", "Message-Id": "<" + id + ".1@roster.example>", "User-Agent": "", "X-Mailer": "",
				"Auto-Submitted": "auto-generated", "Mime-Version": "1.0", "Bcc": "", "Cc": "", "Reply-To": "",
			} {
				if got := m.header.Get(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			if from, err := m.header.AddressList("From"); err != nil || len(from) != 1 || from[0].Name != "Röster" || from[0].Address != "no-reply@roster.example" {
				t.Errorf("From: %v %v", from, err)
			}
			if date, err := m.header.Date(); err != nil || date.IsZero() {
				t.Error("Date:", err)
			}
			for deadline := time.Now().Add(10 * time.Second); s.mailState() != "sent 1" && time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
			}
			if got := s.mailState(); got != "sent 1" {
				t.Error(got)
			}
			s.verify(m.token(t), testPassword).want(200, "")
		})
	}
}

// RFC 5321 section 4.1.1.1: a replica introduces itself by a full name or an address literal.
func TestEHLOName(t *testing.T) {
	t.Parallel()
	for _, tc := range [][3]string{
		{"mail.example.com", "https://api.example", "mail.example.com"}, {"mail.example.com.", "https://api.example", "mail.example.com"},
		{"3f2a9c1b7d5e", "https://api.example:8443", "api.example"}, {"", "https://api.example", "api.example"},
		{"my_host.example", "https://api.example", "api.example"}, {"a..b", "https://api.example", "api.example"},
		{"vm", "http://127.0.0.1:8080", "[127.0.0.1]"}, {"vm", "http://[::1]:8080", "[IPv6:::1]"},
		{"vm", "http://[::ffff:192.0.2.7]", "[192.0.2.7]"}, {"vm", "http://[fe80::1%25eth0]", "[IPv6:fe80::1]"},
		{"192.0.2.7", "https://api.example", "[192.0.2.7]"}, {"vm", "http://localhost:8080", "localhost"},
	} {
		if got := ehloName(tc[0], tc[1]); got != tc[2] {
			t.Errorf("%s at %s: %s, want %s", tc[0], tc[1], got, tc[2])
		}
	}
}

// Only what is said about the mailbox ends a mail. Servers refuse at RCPT TO what they have against the greeting, the
// relay or the sender too, and operators put that right.
func TestSMTPRefusals(t *testing.T) {
	t.Parallel()
	at := func(command, state string, code int, enhanced smtp.EnhancedCode) (string, string, *smtp.SMTPError) {
		return command, state, &smtp.SMTPError{Code: code, EnhancedCode: enhanced, Message: "no, 5.1.1 is not the code"}
	}
	none := smtp.NoEnhancedCode
	type refusal struct {
		command, state string
		reply          *smtp.SMTPError
	}
	var refusals []refusal
	add := func(command, state string, reply *smtp.SMTPError) {
		refusals = append(refusals, refusal{command, state, reply})
	}
	for _, reply := range []struct {
		code     int
		enhanced smtp.EnhancedCode
	}{{550, none}, {551, none}, {553, none}, {550, smtp.EnhancedCode{5, 1, 1}}, {554, smtp.EnhancedCode{5, 1, 1}}, {553, smtp.EnhancedCode{5, 1, 3}},
		{556, smtp.EnhancedCode{5, 1, 10}}, {550, smtp.EnhancedCode{5, 2, 1}}, {552, smtp.EnhancedCode{5, 2, 2}}} {
		add(at("RCPT", "failed 1", reply.code, reply.enhanced))
	}
	for _, reply := range []struct {
		code     int
		enhanced smtp.EnhancedCode
	}{{500, none}, {501, none}, {503, none}, {504, none}, {521, none}, {530, none}, {535, none}, {552, none}, {554, none},
		{504, smtp.EnhancedCode{5, 5, 2}}, {503, smtp.EnhancedCode{5, 5, 1}}, {550, smtp.EnhancedCode{5, 5, 0}}, {550, smtp.EnhancedCode{5, 7, 1}},
		{554, smtp.EnhancedCode{5, 7, 1}}, {530, smtp.EnhancedCode{5, 7, 0}}, {550, smtp.EnhancedCode{5, 1, 7}}, {550, smtp.EnhancedCode{5, 1, 8}},
		{550, smtp.EnhancedCode{5, 4, 1}}, {550, smtp.EnhancedCode{5, 3, 2}}, {550, smtp.EnhancedCode{5, 17, 1}}, {550, smtp.EnhancedCode{4, 1, 1}},
		{421, none}, {450, smtp.EnhancedCode{4, 2, 0}}, {452, smtp.EnhancedCode{4, 2, 2}}} {
		add(at("RCPT", "waiting 1", reply.code, reply.enhanced))
	}
	for _, command := range []string{"MAIL", "DATA"} {
		add(at(command, "waiting 1", 550, none))
		add(at(command, "waiting 1", 550, smtp.EnhancedCode{5, 1, 1}))
		add(at(command, "waiting 1", 554, smtp.EnhancedCode{5, 7, 1}))
	}
	s := newQuietServer(t)
	for i, tc := range refusals {
		d := &smtpd{}
		switch tc.command {
		case "MAIL":
			d.from = func(string) error { return tc.reply }
		case "RCPT":
			d.rcpt = func(string) error { return tc.reply }
		case "DATA":
			d.data = func(*smtp.Conn, io.Reader) error { return tc.reply }
		}
		s.exec("delete from mails")
		s.startRegistration(fmt.Sprintf("user%d@example.com", i), testPassword)
		if err := s.sendNext(startSMTP(t, d).sender().deliver); err != nil {
			t.Fatal(err)
		}
		if got := s.mailState(); got != tc.state {
			t.Errorf("%d %v to %s: the mail is %s, want %s", tc.reply.Code, tc.reply.EnhancedCode, tc.command, got, tc.state)
		}
	}
}

// An IPv6 address in SMTP_URL, as a relay beside a container has it.
func TestSMTPOverIPv6(t *testing.T) {
	t.Parallel()
	m := message{ID: newID(), To: "ada@example.com", Subject: "x", Text: "x", HTML: "x"}
	if listener, err := net.Listen("tcp", "[::1]:0"); err == nil {
		listener.Close()
		for _, implicit := range []bool{false, true} {
			d := startSMTP(t, &smtpd{addr: "[::1]:0", implicit: implicit})
			if err := d.sender().deliver(t.Context(), m); err != nil {
				t.Error(err)
			}
			d.received(1)
		}
		return
	}
	// A machine without IPv6 can still tell an address that cannot be reached from one that is none.
	sender, err := newSMTPSender(&config{SMTPURL: "smtps://[::1]:465", PublicURL: "https://api.example"}, &mail.Address{Address: "a@roster.example"})
	if err != nil {
		t.Fatal(err)
	}
	err = sender.deliver(t.Context(), m)
	if _, dialed := errors.AsType[*net.OpError](err); !dialed || strings.Contains(err.Error(), "too many colons") {
		t.Error(err)
	}
}

// RFC 5321 section 4.5.3.2: a server has minutes for its verdict, more than for a command, and the lease outlasts the
// longest conversation.
func TestSMTPSlowVerdict(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	s.startRegistration("ada@example.com", testPassword)
	d := startSMTP(t, &smtpd{})
	sender := d.sender()
	sender.command = 2 * time.Second
	d.data = func(*smtp.Conn, io.Reader) error { time.Sleep(sender.command + 500*time.Millisecond); return nil }
	if err := s.sendNext(sender.deliver); err != nil || s.mailState() != "sent 1" {
		t.Error(err, s.mailState())
	}
	d.received(1)
	if sender.verdict < 10*time.Minute || mailLease < smtpDialTimeout+5*smtpCommandTimeout+sender.verdict+smtpQuitTimeout {
		t.Errorf("a verdict may take %v, and the lease lasts %v", sender.verdict, mailLease)
	}
}

// R68, R69: what a server can do to a mail, and what becomes of it. Whatever it is, once the server has recovered the
// mail arrives, unless the recipient was refused for good.
func TestSMTPModes(t *testing.T) {
	t.Parallel()
	refuse := func(code int) error {
		return &smtp.SMTPError{Code: code, EnhancedCode: smtp.EnhancedCode{code / 100, 1, 1}, Message: "no"}
	}
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	ca := newTestCA(t)
	for _, tc := range []struct {
		name  string
		d     *smtpd
		names []string       // of its certificate
		raw   func(net.Conn) // in place of d
		slow  bool           // the conversation is cut short by its time limit
		want  string
		mute  bool // nothing but greetings may be said
	}{
		{name: "4xx to RCPT", d: &smtpd{rcpt: func(string) error { return refuse(451) }}, want: "waiting 1"},
		{name: "421 to RCPT", d: &smtpd{rcpt: func(string) error { return refuse(421) }}, want: "waiting 1"},
		{name: "5xx to RCPT", d: &smtpd{rcpt: func(string) error { return refuse(550) }}, want: "failed 1"},
		{name: "4xx after DATA", d: &smtpd{data: func(*smtp.Conn, io.Reader) error { return refuse(452) }}, want: "waiting 1"},
		{name: "5xx after DATA", d: &smtpd{data: func(*smtp.Conn, io.Reader) error { return refuse(554) }}, want: "waiting 1"},
		{name: "drops in the middle of DATA", d: &smtpd{data: func(c *smtp.Conn, r io.Reader) error {
			_, _ = io.CopyN(io.Discard, r, 100)
			c.Conn().Close()
			return errors.New("dropped")
		}}, want: "waiting 1"},
		{name: "drops instead of the answer to DATA", d: &smtpd{data: func(c *smtp.Conn, r io.Reader) error {
			_, _ = io.Copy(io.Discard, r)
			c.Conn().Close()
			return errors.New("dropped")
		}}, want: "waiting 1"},
		{name: "hangs after DATA", d: &smtpd{data: func(_ *smtp.Conn, r io.Reader) error {
			_, _ = io.Copy(io.Discard, r)
			<-hang
			return errors.New("too late")
		}}, slow: true, want: "waiting 1"},
		{name: "hangs in the middle of DATA", d: &smtpd{data: func(_ *smtp.Conn, r io.Reader) error {
			_, _ = io.CopyN(io.Discard, r, 100)
			<-hang
			return errors.New("too late")
		}}, slow: true, want: "waiting 1"},
		{name: "hangs before the banner", raw: func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, slow: true, want: "waiting 1"},
		{name: "hangs after the banner", raw: func(c net.Conn) {
			_, _ = io.WriteString(c, "220 smtpd.test\r\n")
			_, _ = io.Copy(io.Discard, c)
		}, slow: true, want: "waiting 1"},
		{name: "drips", raw: func(c net.Conn) {
			// A line now and then: each within any time limit of a single read.
			for _, err := io.WriteString(c, "220-wait\r\n"); err == nil; _, err = io.WriteString(c, "220-wait\r\n") {
				time.Sleep(10 * time.Millisecond)
			}
		}, slow: true, want: "waiting 1"},
		{name: "says goodbye at once", raw: func(c net.Conn) { _, _ = io.WriteString(c, "421 busy\r\n") }, want: "waiting 1"},
		{name: "speaks something else", raw: func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") }, want: "waiting 1"},
		{name: "has no STARTTLS", d: &smtpd{plain: true, password: "s3cret"}, want: "waiting 1", mute: true},
		{name: "refuses STARTTLS", raw: func(c net.Conn) { serveLines(t, c, "454 4.7.0 TLS not available") }, want: "waiting 1"},
		{name: "speaks on in the clear after STARTTLS", raw: func(c net.Conn) { serveLines(t, c, "220 go ahead") }, want: "waiting 1"},
		{name: "is somebody else", d: &smtpd{authority: ca, password: "s3cret"}, names: []string{"other.example"}, want: "waiting 1", mute: true},
		{name: "is somebody else, implicit TLS", d: &smtpd{authority: ca, implicit: true, password: "s3cret"}, names: []string{"other.example"}, want: "waiting 1", mute: true},
		{name: "is certified by a stranger", d: &smtpd{password: "s3cret"}, want: "waiting 1", mute: true},
		{name: "knows another password", d: &smtpd{authority: ca, password: "another"}, want: "waiting 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newQuietServer(t)
			s.startRegistration("ada@example.com", testPassword)
			good := startSMTP(t, &smtpd{authority: ca, password: "s3cret"})
			bad := good.sender()
			if tc.d != nil {
				d := startSMTP(t, tc.d, tc.names...)
				bad = d.sender()
				if d.password != "" {
					bad = good.sender()
					bad.implicit = d.implicit
					_, bad.port, _ = net.SplitHostPort(d.addr)
				}
			} else {
				_, bad.port, _ = net.SplitHostPort(rawSMTP(t, tc.raw))
			}
			if err := s.sendNext(func(ctx context.Context, m message) error {
				if tc.slow {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
					defer cancel()
				}
				err := bad.deliver(ctx, m)
				if err == nil {
					t.Error("delivered")
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if got := s.mailState(); got != tc.want {
				t.Errorf("the mail is %s, want %s", got, tc.want)
			}
			if logged := s.logs.String(); !strings.Contains(logged, "mail not delivered") || strings.Contains(logged, "s3cret") || strings.Contains(logged, "ada@example") {
				t.Errorf("log: %s", logged) // R96
			}
			if tc.mute { // R69: neither the mail nor the credentials
				said := tc.d.trace.String()
				if strings.Contains(said, "AUTH PLAIN ") || strings.Contains(said, "MAIL FROM") || strings.Contains(said, "ada") ||
					strings.Contains(said, "EHLO") == tc.d.implicit {
					t.Errorf("said to a server that proved nothing:\n%s", said)
				}
			}
			if err := s.sendNext(good.sender().deliver); !errors.Is(err, pgx.ErrNoRows) {
				t.Errorf("tried again at once: %v", err)
			}
			s.dueNow()
			err := s.sendNext(good.sender().deliver)
			if tc.want == "failed 1" {
				if !errors.Is(err, pgx.ErrNoRows) || s.mailState() != "failed 1" {
					t.Errorf("a refused recipient was tried again: %v, %s", err, s.mailState())
				}
				return
			}
			if err != nil || s.mailState() != "sent 2" {
				t.Fatal(err, s.mailState())
			}
			s.verify(parseMail(t, good.received(1)[0].raw).token(t), testPassword).want(200, "")
		})
	}
}

// serveLines offers STARTTLS, answers it as told, and goes on in the clear; nothing worth hearing may be said then.
func serveLines(t testing.TB, c net.Conn, toStartTLS string) {
	_, _ = io.WriteString(c, "220 smtpd.test\r\n")
	for lines := bufio.NewScanner(c); lines.Scan(); {
		switch verb, _, _ := strings.Cut(strings.ToUpper(lines.Text()), " "); verb {
		case "EHLO":
			_, _ = io.WriteString(c, "250-smtpd.test\r\n250-AUTH PLAIN LOGIN\r\n250 STARTTLS\r\n")
		case "STARTTLS":
			_, _ = io.WriteString(c, toStartTLS+"\r\n")
		case "AUTH", "MAIL", "RCPT", "DATA":
			t.Errorf("said in the clear: %s", lines.Text())
			_, _ = io.WriteString(c, "250 ok\r\n")
		default:
			_, _ = io.WriteString(c, "250 ok\r\n")
		}
	}
}

// R96: what a server says about a mail it refuses may repeat the mail.
func TestSMTPErrorsHideSecrets(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	s.startRegistration("ada.lovelace@example.com", testPassword)
	var token string
	d := startSMTP(t, &smtpd{data: func(_ *smtp.Conn, r io.Reader) error {
		raw, _ := io.ReadAll(r)
		token = parseMail(t, raw).token(t)
		return &smtp.SMTPError{Code: 554, Message: "<ada.lovelace@example.com>: spam: https://app.example/#/verify-email?token=" + token}
	}})
	if err := s.sendNext(d.sender().deliver); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{token, "ada.lovelace@example.com", "lovelace"} {
		if strings.Contains(s.logs.String(), secret) {
			t.Errorf("the log holds %q:\n%s", secret, s.logs)
		}
	}
	if !strings.Contains(s.logs.String(), "554") {
		t.Errorf("the log does not say why:\n%s", s.logs)
	}
}

// The pauses between attempts double from a minute to a day, and are never the same.
func TestMailBackoff(t *testing.T) {
	t.Parallel()
	for attempts, want := range map[int]time.Duration{1: time.Minute, 2: 2 * time.Minute, 6: 32 * time.Minute, 11: 1024 * time.Minute, 12: 24 * time.Hour, 40: 24 * time.Hour, 1 << 30: 24 * time.Hour} {
		for range 20 {
			if d := backoff(attempts); d > want || d < want*4/5 {
				t.Errorf("attempt %d waits %v", attempts, d)
			}
		}
	}
}

// A mail is tried for three days and then given up.
func TestMailGivesUp(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	s.startRegistration("ada@example.com", testPassword)
	down := func(context.Context, message) error { return errors.New("down") }
	for i, tc := range []struct{ age, want string }{{"0", "waiting"}, {"71 hours", "waiting"}, {"73 hours", "failed"}} {
		s.exec("update mails set next_attempt_at = now(), created_at = now() - $1::interval", tc.age)
		if err := s.sendNext(down); err != nil {
			t.Fatal(err)
		}
		if got, want := s.mailState(), fmt.Sprint(tc.want, " ", i+1); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	s.dueNow()
	if err := s.sendNext(down); !errors.Is(err, pgx.ErrNoRows) {
		t.Error("tried after it was given up:", err)
	}
	if n := scalar[int](s, `select count(*) from audit_events a join registrations r on r.id = a.subject_id
		where a.action = 'mail.failed' and a.detail = '{"kind": "registration", "attempts": 3}'`); n != 1 {
		t.Errorf("the trail has %d events of it", n)
	}
}

// While every sender hangs, requests go on as if nothing was: none waits for a mail, and no sender keeps a connection
// to the database. Nothing is lost, and nothing is sent twice.
func TestSMTPHangsNobodyWaits(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}, 100), make(chan struct{})
	d := startSMTP(t, &smtpd{data: func(*smtp.Conn, io.Reader) error { entered <- struct{}{}; <-release; return nil }})
	cfg := testConfig(newTestDatabase(t))
	cfg.DBMaxConns = 1
	s, _ := startMailServer(t, cfg, d.sender().deliver)
	answer := sync.OnceFunc(func() { close(release) })
	t.Cleanup(answer)
	m := s.newUser("ada@example.com", "user")
	for i := range mailSenders {
		s.startRegistration(fmt.Sprintf("user%d@example.com", i), testPassword)
	}
	for range mailSenders {
		<-entered
	}
	for i := range 5 {
		s.startRegistration(fmt.Sprintf("late%d@example.com", i), testPassword)
		s.forgot(fmt.Sprintf("nobody%d@example.com", i)).want(202, "")
		s.signInAs(m.email, testPassword).want(200, "")
		s.get("/v1/users/me", m.token).want(200, "")
	}
	if n := scalar[int](s, "select count(*) from mails where registration_id is not null and sent_at is null"); n != mailSenders+5 {
		t.Errorf("%d mails wait", n)
	}
	d.received(0)
	answer()
	d.received(mailSenders + 5)
}

// Two replicas send each mail once.
func TestSMTPReplicasShare(t *testing.T) {
	t.Parallel()
	d := startSMTP(t, &smtpd{})
	s := newQuietServer(t)
	var want []string
	for i := range 40 {
		email := fmt.Sprintf("user%d@example.com", i)
		s.exec("insert into users (id, email, name) values ($1, $2, 'X')", newID(), email)
		s.exec("insert into mails (id, user_id, kind, recipient) select $1, id, $3, email from users where email = $2", newID(), email, mailSetPassword)
		want = append(want, email)
	}
	for range 2 {
		startMailServer(t, s.cfg, d.sender().deliver)
	}
	var got []string
	for _, m := range d.received(40) {
		got = append(got, m.to...)
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("mails to %v", got)
	}
}

// R68: a transaction that rolls back sends nothing, not even when it fails at its very end.
func TestSMTPRollbackSendsNothing(t *testing.T) {
	t.Parallel()
	d := startSMTP(t, &smtpd{})
	s, _ := startMailServer(t, testConfig(newTestDatabase(t)), d.sender().deliver)
	s.newUser("known@example.com", "user")
	s.exec(`create function refuse() returns trigger language plpgsql as
		$$ begin raise exception 'at commit' using errcode = '57014'; end $$`)
	s.exec(`create constraint trigger refuse after insert on mails deferrable initially deferred for each row
		when (new.recipient in ('ada@example.com', 'known@example.com')) execute function refuse()`)
	s.post("/v1/auth/register", "", map[string]string{"email": "ada@example.com", "password": testPassword, "name": "Ada"}).want(503, "database_unavailable")
	s.forgot("known@example.com").want(503, "database_unavailable")
	s.startRegistration("eve@example.com", testPassword)
	if got := d.received(1)[0]; got.to[0] != "eve@example.com" {
		t.Errorf("mail to %v", got.to)
	}
	if n := scalar[int](s, "select count(*) from registrations r full join mails m on m.registration_id = r.id where coalesce(email, recipient) = 'ada@example.com'"); n != 0 {
		t.Errorf("%d rows are left of what was rolled back", n)
	}
}

// R91: a replica that stops finishes the mail in hand.
func TestSMTPStopFinishesMail(t *testing.T) {
	t.Parallel()
	entered, release := make(chan struct{}, 10), make(chan struct{})
	d := startSMTP(t, &smtpd{data: func(*smtp.Conn, io.Reader) error { entered <- struct{}{}; <-release; return nil }})
	s := newQuietServer(t) // reads the database when the other one is gone
	stopping, stop := startMailServer(t, s.cfg, d.sender().deliver)
	stopping.startRegistration("ada@example.com", testPassword)
	<-entered
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(stopping.url, "http://"))
		if err != nil {
			break // it takes no more requests
		}
		conn.Close()
	}
	select {
	case <-stopped:
		t.Error("stopped with a mail in hand")
	default:
	}
	close(release)
	<-stopped
	d.received(1)
	if got := s.mailState(); got != "sent 1" {
		t.Error(got)
	}
}

// A replica that is killed between handing a mail over and hearing of its arrival: when the lease is over, another
// replica sends it again, and what the first one sent works as well (R68).
func TestSMTPSenderIsKilled(t *testing.T) {
	t.Parallel()
	inHand, release := make(chan []byte, 1), make(chan struct{})
	d := startSMTP(t, &smtpd{data: func(_ *smtp.Conn, r io.Reader) error {
		if raw, _ := io.ReadAll(r); bytes.Contains(raw, []byte("ada@example.com")) {
			inHand <- raw
			<-release
		}
		return errors.New("not yet")
	}})
	t.Cleanup(func() { close(release) })
	trust := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(trust, d.authority.pem, 0o600); err != nil {
		t.Fatal(err)
	}
	database := newTestDatabase(t)
	env := serveEnv(database)
	env["EMAIL_VERIFICATION"], env["APP_URL"], env["SSL_CERT_FILE"] = "true", "https://app.example", trust
	env["SMTP_URL"], env["MAIL_FROM"] = "smtp://"+strings.Replace(d.addr, "127.0.0.1", "localhost", 1), "roster <no-reply@roster.example>"
	first := startServe(t, env)
	s, _ := startMailServer(t, testConfig(database), nil) // for SQL; its requests go to the processes
	s.url = first.url
	s.startRegistration("ada@example.com", testPassword)
	sent := <-inHand
	first.kill()
	<-first.done
	if got := s.mailState(); got != "waiting 1" {
		t.Fatalf("after the kill the mail is %s", got)
	}

	// The second replica leaves it alone while the lease lasts: it has a mail of its own to send meanwhile.
	healthy := startSMTP(t, &smtpd{authority: d.authority})
	env["SMTP_URL"] = "smtp://" + healthy.addr
	s.url = startServe(t, env).url
	s.startRegistration("eve@example.com", testPassword)
	if got := healthy.received(1)[0]; got.to[0] != "eve@example.com" {
		t.Errorf("sent to %v while it was leased", got.to)
	}
	s.exec("update mails set next_attempt_at = now() where recipient = 'ada@example.com'")
	again := healthy.received(2)[1]
	older, newer := parseMail(t, sent), parseMail(t, again.raw)
	if again.to[0] != "ada@example.com" || older.token(t) != newer.token(t) || older.header.Get("To") != newer.header.Get("To") {
		t.Errorf("sent again to %v", again.to)
	}
	s.verify(older.token(t), testPassword).want(200, "")
}

// R26: no word that somebody chose breaks out of a header or becomes markup or a link; every address that the API
// accepts is mailed as it is.
func TestSMTPHostileInput(t *testing.T) {
	t.Parallel()
	d := startSMTP(t, &smtpd{})
	sender := d.sender()
	for _, to := range []string{"a@b.example\r\nBcc: eve@example.com", "a@b.example>\r\nRCPT TO:<eve@example.com", "a@b.example, eve@example.com", "a@b.example\x00"} {
		if err := sender.deliver(t.Context(), message{ID: newID(), To: to, Subject: "x", Text: "x", HTML: "x"}); err == nil {
			t.Errorf("delivered to %q", to)
		}
	}
	for i, subject := range []string{"x\r\nBcc: eve@example.com", "x\nBcc: eve@example.com", "x\rBcc: eve@example.com", "x\r\n\r\n<b>body</b>", "=?utf-8?q?x=0D=0ABcc:_eve@example.com?=", strings.Repeat("long ", 100), "Zoë 🦊"} {
		if err := sender.deliver(t.Context(), message{ID: newID(), To: "a@b.example", Subject: subject, Text: "From x\n.\n.\nQUIT\n", HTML: "<p>x</p>"}); err != nil {
			t.Errorf("%q: %v", subject, err)
			continue
		}
		got := d.received(i + 1)[i]
		m := parseMail(t, got.raw)
		if len(got.to) != 1 || m.header.Get("Bcc") != "" || m.text != "From x\n.\n.\nQUIT\n" {
			t.Errorf("%q: %+v\n%s", subject, got, got.raw)
		}
	}

	s := newQuietServer(t)
	accepted := []string{"!#$%&'*+/=?^_`{|}~-@example.com", strings.Repeat("a", 64) + "@" + strings.Repeat("b", 63) + ".example", "a.b+c@x-y.example.co"}
	d = startSMTP(t, &smtpd{})
	for i, email := range accepted {
		s.startRegistration(email, testPassword)
		if err := s.sendNext(d.sender().deliver); err != nil {
			t.Fatal(err)
		}
		if got := d.received(i + 1)[i]; !slices.Equal(got.to, []string{email}) {
			t.Errorf("%s: sent to %v", email, got.to)
		}
	}
	owner := s.newUser("owner@example.com", "user")
	s.exec("update users set name = $1 where id = $2", `<img src=x onerror=alert(1)> https://evil.example "{{.Link}}"`, owner.id)
	organization := s.post("/v1/organizations", owner.token, map[string]string{"name": `www.evil.example </title><script>&=?utf-8?q?x?=`}).want(201, "").str("id")
	s.inviteTo(owner, organization, "invited@example.com")
	if err := s.sendNext(d.sender().deliver); err != nil {
		t.Fatal(err)
	}
	m := parseMail(t, d.received(len(accepted) + 1)[len(accepted)].raw)
	if got := m.header.Get("Subject"); got != "You are invited to an organization" {
		t.Errorf("Subject: %q", got)
	}
	for _, bad := range []string{"<img", "<script", "</title><", "https://evil", "www.evil", "evil.example"} {
		if strings.Contains(m.html, bad) || strings.Contains(m.text, bad) && !strings.HasPrefix(bad, "<") {
			t.Errorf("%q is in\n%s\n%s", bad, m.text, m.html)
		}
	}
	m.token(t)
}

// R69, R98: plain SMTP in dev only; what a mail needs is asked for at once, and no value is repeated.
func TestSMTPConfig(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, verification, url, from string
		serve, dev                    []string // the variables that are complained about
	}{
		{"nothing is mailed", "false", "", "", nil, nil},
		{"verification needs mail", "true", "", "", []string{"SMTP_URL", "MAIL_FROM"}, nil},
		{"no server", "true", "", "a@example.com", []string{"SMTP_URL"}, nil},
		{"no sender", "true", "smtp://mail.example", "", []string{"MAIL_FROM"}, []string{"MAIL_FROM"}},
		{"no sender, no verification", "false", "smtp://mail.example", "", []string{"MAIL_FROM"}, []string{"MAIL_FROM"}},
		{"bad sender", "true", "smtp://mail.example", "hunter2", []string{"MAIL_FROM"}, []string{"MAIL_FROM"}},
		{"bad sender, no server", "true", "", "hunter2", []string{"SMTP_URL", "MAIL_FROM"}, []string{"MAIL_FROM"}},
		{"two senders", "true", "smtp://mail.example", "a@example.com, b@example.com", []string{"MAIL_FROM"}, []string{"MAIL_FROM"}},
		{"a header in the sender", "true", "smtp://mail.example", "a <a@example.com>\r\nBcc: b@example.com", []string{"MAIL_FROM"}, []string{"MAIL_FROM"}},
		{"STARTTLS", "true", "smtp://user:hunter2@mail.example:587", "Roster <a@example.com>", nil, nil},
		{"implicit TLS", "true", "smtps://user:hunter2@mail.example", "a@example.com", nil, nil},
		{"IPv6", "true", "smtp://[::1]:25", "a@example.com", nil, nil},
		{"plain", "true", "smtp+plain://localhost:1025", "a@example.com", []string{"SMTP_URL"}, nil},
		{"plain, no verification", "false", "smtp+plain://user:hunter2@localhost", "a@example.com", []string{"SMTP_URL"}, nil},
		{"another scheme", "true", "https://user:hunter2@mail.example", "a@example.com", []string{"SMTP_URL"}, []string{"SMTP_URL"}},
		{"no scheme", "true", "hunter2.example:587", "a@example.com", []string{"SMTP_URL"}, []string{"SMTP_URL"}},
		{"no host", "true", "smtp://:587", "a@example.com", []string{"SMTP_URL"}, []string{"SMTP_URL"}},
		{"a path", "true", "smtp://mail.example/hunter2", "a@example.com", []string{"SMTP_URL"}, []string{"SMTP_URL"}},
		{"a parameter", "true", "smtp://mail.example?insecure=hunter2", "a@example.com", []string{"SMTP_URL"}, []string{"SMTP_URL"}},
		{"not a URL", "true", "smtp://user:hunter2%zz@mail.example", "a@example.com", []string{"SMTP_URL"}, []string{"SMTP_URL"}},
		{"not a port", "true", "smtp://mail.example:hunter2", "a@example.com", []string{"SMTP_URL"}, []string{"SMTP_URL"}},
		{"no such port", "true", "smtp://mail.example:99999999999999999999", "a@example.com", []string{"SMTP_URL"}, []string{"SMTP_URL"}},
		{"port above all", "true", "smtp://mail.example:65536", "a@example.com", []string{"SMTP_URL"}, []string{"SMTP_URL"}},
		{"port nought", "true", "smtp://mail.example:0", "a@example.com", []string{"SMTP_URL"}, []string{"SMTP_URL"}},
		{"a slash at the end", "true", "smtp://user:hunter2@mail.example:587/", "a@example.com", nil, nil},
		{"a slash in the password", "true", "smtp://user:hunter2/3@mail.example:587", "a@example.com", []string{"SMTP_URL"}, []string{"SMTP_URL"}},
		{"a digit and a slash in the password", "true", "smtp://user:12/hunter2@mail.example:587", "a@example.com", []string{"SMTP_URL"}, []string{"SMTP_URL"}},
		{"# in the password", "true", "smtp://user:12#hunter2@mail.example:587", "a@example.com", []string{"SMTP_URL"}, []string{"SMTP_URL"}},
		{"? in the password", "true", "smtp://user:12?hunter2@mail.example:587", "a@example.com", []string{"SMTP_URL"}, []string{"SMTP_URL"}},
		{"^ in the password", "true", "smtp://user:hunter2^@mail.example:587", "a@example.com", []string{"SMTP_URL"}, []string{"SMTP_URL"}},
		{"a sender that takes SMTPUTF8", "true", "smtp://mail.example", "a@bücher.example", []string{"MAIL_FROM"}, []string{"MAIL_FROM"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			env := good()
			env["EMAIL_VERIFICATION"] = tc.verification
			for name, value := range map[string]string{"SMTP_URL": tc.url, "MAIL_FROM": tc.from} {
				if value != "" {
					env[name] = value
				}
			}
			for dev, want := range map[bool][]string{false: tc.serve, true: tc.dev} {
				cfg, err := loadConfig(t.Context(), envconfig.MapLookuper(env), dev)
				var named []string
				for _, name := range []string{"SMTP_URL", "MAIL_FROM"} {
					if err != nil && strings.Count(err.Error(), "\n  "+name+" ") == 1 {
						named = append(named, name)
					}
				}
				if !slices.Equal(named, want) || (err == nil) != (want == nil) {
					t.Errorf("dev %v: %v", dev, err)
				}
				if err != nil && (strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "99999")) {
					t.Errorf("a value is repeated: %v", err)
				}
				if strings.Contains(tc.name, "password") && !strings.Contains(fmt.Sprint(err), "/ is %2F") {
					t.Errorf("no hint: %v", err)
				}
				if err == nil && (cfg.smtp != nil) != (tc.url != "") {
					t.Errorf("dev %v: sender %v", dev, cfg.smtp)
				}
				if err == nil && cfg.smtp != nil && (cfg.smtp.tls.InsecureSkipVerify || cfg.smtp.tls.ServerName != cfg.smtp.host || cfg.smtp.tls.MinVersion < tls.VersionTLS12) {
					t.Error("certificates are not checked")
				}
			}
		})
	}
}
