// room:mail

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	netmail "net/mail"
	"net/netip"
	"net/textproto"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/wneessen/go-mail"
	"github.com/wneessen/go-mail/smtp"
)

// How long a mail server may take (R69): to be reached, for each command, for its verdict after the final dot, when it
// may be scanning the mail (RFC 5321 section 4.5.3.2.6), and for its goodbye.
const (
	smtpDialTimeout    = 5 * time.Second
	smtpCommandTimeout = 30 * time.Second
	smtpVerdictTimeout = 10 * time.Minute
	smtpQuitTimeout    = 2 * time.Second
)

var (
	// errRefused is a mail that the server will never take: it says that there is no such mailbox.
	errRefused = errors.New("recipient refused")
	// errUnknown is a mail that may have arrived: the server had all of it, and its verdict was not heard.
	errUnknown = errors.New("outcome unknown")
)

// smtpSender delivers through one mail server.
type smtpSender struct {
	from     *netmail.Address
	ehlo     string
	host     string
	port     string
	user     *url.Userinfo
	implicit bool // smtps: TLS from the first byte; smtp: STARTTLS, without which nothing is said
	plain    bool // smtp+plain, in dev only
	tls      *tls.Config
	command  time.Duration // smtpCommandTimeout
	verdict  time.Duration // smtpVerdictTimeout
}

// newSMTPSender reads SMTP_URL: smtp://user:password@host:587, smtps://…, and in dev smtp+plain://…. Its error says
// what is wrong and repeats no value.
func newSMTPSender(cfg *config, from *netmail.Address) (*smtpSender, error) {
	u, err := url.Parse(cfg.SMTPURL)
	if err != nil || u.Hostname() == "" || strings.TrimSuffix(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("is not smtp://user:password@host:587 or smtps://user:password@host:465; " +
			"encode special characters of user and password: / is %2F, # is %23, ? is %3F, % is %25")
	}
	usual, known := map[string]string{"smtp": "587", "smtps": "465", "smtp+plain": "25"}[u.Scheme]
	switch {
	case !known:
		return nil, errors.New("must begin with smtp:// or smtps://")
	case u.Scheme == "smtp+plain" && !cfg.dev:
		return nil, errors.New("must not be smtp+plain outside dev: mails carry secrets")
	}
	port := cmp.Or(u.Port(), usual)
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return nil, errors.New("has no such port")
	}
	hostname, _ := os.Hostname() // without one it is PUBLIC_URL's
	return &smtpSender{
		from: from, ehlo: ehloName(hostname, cfg.PublicURL), host: u.Hostname(), port: port, user: u.User,
		implicit: u.Scheme == "smtps", plain: u.Scheme == "smtp+plain",
		tls:     &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12},
		command: smtpCommandTimeout, verdict: smtpVerdictTimeout,
	}, nil
}

// fullName is a host name of two labels or more, as RFC 5321 section 2.3.5 wants it; an IPv4 address looks the same.
var fullName = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$`)

// ehloName is how a replica introduces itself: by the machine's name if that is a full one, which a container's is not,
// else by the host of PUBLIC_URL. An address becomes the literal of RFC 5321 section 4.1.3.
func ehloName(hostname, publicURL string) string {
	name := strings.TrimSuffix(hostname, ".")
	if u, err := url.Parse(publicURL); err == nil && !fullName.MatchString(name) {
		name = strings.TrimSuffix(u.Hostname(), ".")
	}
	switch ip, err := netip.ParseAddr(name); {
	case err != nil:
		return name
	case ip.Unmap().Is4():
		return "[" + ip.Unmap().String() + "]"
	default:
		return "[IPv6:" + ip.WithZone("").String() + "]"
	}
}

// isASCII: without SMTPUTF8 (RFC 6531) an address has to be.
func isASCII(address string) bool {
	return !strings.ContainsFunc(address, func(r rune) bool { return r > unicode.MaxASCII })
}

// deliver holds one SMTP conversation; the end of ctx ends it at once. A mail that met errRefused is worth no other
// attempt. One that met errUnknown may have arrived; after any other error it has not.
func (s *smtpSender) deliver(ctx context.Context, m message) error {
	ctx, hangUp := context.WithCancel(ctx)
	defer hangUp()
	msg, err := s.compose(m)
	if err != nil {
		return err
	}
	c, err := s.connect(ctx)
	if err != nil {
		return err
	}
	err = s.transact(c, m.To, msg)
	if _, replied := errors.AsType[*textproto.Error](err); err == nil || replied {
		_ = inTime(c, smtpQuitTimeout, c.Quit) // whatever it says to that, the mail is where it is
	}
	return err
}

// transact hands one mail over: RFC 5321 section 3.3.
func (s *smtpSender) transact(c *smtp.Client, to string, msg *mail.Msg) error {
	from := netmail.Address{Address: s.from.Address}
	if err := inTime(c, s.command, func() error { return c.Mail(from.String()) }); err != nil {
		return fmt.Errorf("MAIL FROM: %w", err)
	}
	if err := inTime(c, s.command, func() error { return c.Rcpt("<" + to + ">") }); err != nil {
		if mailboxRefused(err) {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
		return fmt.Errorf("RCPT TO: %w", err)
	}
	var body io.WriteCloser
	err := inTime(c, s.command, func() (err error) {
		if body, err = c.Data(); err == nil {
			_, err = msg.WriteTo(body)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("DATA: %w", err)
	}
	err = inTime(c, s.verdict, body.Close)
	switch reply, replied := errors.AsType[*textproto.Error](err); {
	case replied && reply.Code/100 == 2: // not the 250 that the library waits for, but a yes
		return nil
	case err != nil && !replied:
		return fmt.Errorf("%w: %w", errUnknown, err)
	}
	return err
}

// inTime gives one step of a conversation its time as a whole, however slowly the answer drips.
func inTime(c *smtp.Client, limit time.Duration, step func() error) error {
	if err := c.UpdateDeadline(limit); err != nil {
		return err
	}
	return step()
}

// enhancedCode is the code of RFC 3463 with which a reply may begin.
var enhancedCode = regexp.MustCompile(`^[245]\.\d{1,3}\.\d{1,3}\b`)

// mailboxRefused says whether a reply to RCPT TO is about the mailbox, for good. Servers also refuse there what they
// have against the sender, the relay or the greeting, and that may be put right. 5.1.7 and 5.1.8 are about the sender's
// address.
func mailboxRefused(err error) bool {
	reply, replied := errors.AsType[*textproto.Error](err)
	if !replied || reply.Code/100 != 5 {
		return false
	}
	switch code := enhancedCode.FindString(reply.Msg); code {
	case "":
		return slices.Contains([]int{550, 551, 553}, reply.Code)
	case "5.1.7", "5.1.8":
		return false
	default:
		return strings.HasPrefix(code, "5.1.") || strings.HasPrefix(code, "5.2.")
	}
}

// connect dials, introduces itself, starts TLS and signs in; it says nothing else before that. The connection ends
// with ctx.
func (s *smtpSender) connect(ctx context.Context) (*smtp.Client, error) {
	policy := mail.TLSMandatory
	if s.plain || s.implicit {
		policy = mail.TLSOpportunistic // on an implicit connection only to notice that it is encrypted
	}
	dial := func(dialing context.Context, network, _ string) (net.Conn, error) {
		conn, err := (&net.Dialer{Timeout: smtpDialTimeout}).DialContext(dialing, network, net.JoinHostPort(s.host, s.port))
		if err != nil {
			return nil, err
		}
		context.AfterFunc(ctx, func() { _ = conn.Close() })
		if s.implicit {
			return tls.Client(conn, s.tls), nil
		}
		return conn, nil
	}
	// Addresses are ASCII and headers encoded, so SMTPUTF8 would only keep relays from handing mails on.
	options := []mail.Option{mail.WithTLSPolicy(policy), mail.WithTLSConfig(s.tls), mail.WithTimeout(s.command),
		mail.WithDialContextFunc(dial), mail.WithHELO(s.ehlo), mail.WithoutSMTPUTF8()}
	if s.user != nil {
		password, _ := s.user.Password()
		options = append(options, mail.WithSMTPAuth(mail.SMTPAuthAutoDiscover), mail.WithUsername(s.user.Username()), mail.WithPassword(password))
	}
	client, err := mail.NewClient(s.host, options...)
	if err != nil {
		return nil, err
	}
	return client.DialToSMTPClientWithContext(ctx)
}

// compose builds the MIME message; the library encodes every header, so none can be broken out of (R26).
func (s *smtpSender) compose(m message) (*mail.Msg, error) {
	msg := mail.NewMsg(mail.WithNoDefaultUserAgent())
	if err := errors.Join(msg.From(s.from.String()), msg.To(m.To)); err != nil {
		return nil, err
	}
	msg.Subject(m.Subject)
	msg.SetDate()
	msg.SetMessageIDWithValue(m.ID + s.from.Address[strings.LastIndexByte(s.from.Address, '@'):])
	msg.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: no out-of-office replies
	msg.SetBodyString(mail.TypeTextPlain, m.Text)
	msg.AddAlternativeString(mail.TypeTextHTML, m.HTML)
	return msg, nil
}
