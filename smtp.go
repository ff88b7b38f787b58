// room:mail

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/wneessen/go-mail"
)

const (
	smtpDialTimeout = 5 * time.Second
	smtpTimeout     = 30 * time.Second // for the whole conversation (R69)
)

// errRefused is a mail that the server will never take for its recipient: a 5xx to RCPT TO.
var errRefused = errors.New("recipient refused")

// smtpSender delivers through one mail server.
type smtpSender struct {
	from     string
	host     string
	port     int
	user     *url.Userinfo
	implicit bool // smtps: TLS from the first byte; smtp: STARTTLS, without which nothing is said
	plain    bool // smtp+plain, in dev only
	tls      *tls.Config
}

// newSMTPSender reads SMTP_URL: smtp://user:password@host:587, smtps://…, and in dev smtp+plain://….
func newSMTPSender(smtpURL, from string, dev bool) (*smtpSender, error) {
	u, err := url.Parse(smtpURL)
	if err != nil || u.Hostname() == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("is not smtp://user:password@host:587 or smtps://user:password@host:465")
	}
	usual, known := map[string]string{"smtp": "587", "smtps": "465", "smtp+plain": "25"}[u.Scheme]
	switch {
	case !known:
		return nil, errors.New("must begin with smtp:// or smtps://")
	case u.Scheme == "smtp+plain" && !dev:
		return nil, errors.New("must not be smtp+plain outside dev: mails carry secrets")
	}
	port, err := strconv.ParseUint(cmp.Or(u.Port(), usual), 10, 16)
	if err != nil {
		return nil, errors.New("has no such port")
	}
	return &smtpSender{
		from: from, host: u.Hostname(), port: int(port), user: u.User,
		implicit: u.Scheme == "smtps", plain: u.Scheme == "smtp+plain",
		tls: &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12},
	}, nil
}

// deliver holds one SMTP conversation. Any error but errRefused is worth another attempt.
func (s *smtpSender) deliver(ctx context.Context, m message) error {
	ctx, cancel := context.WithTimeout(ctx, smtpTimeout)
	defer cancel()
	msg, err := s.compose(m)
	if err != nil {
		return err
	}
	policy := mail.TLSMandatory
	if s.plain || s.implicit {
		policy = mail.TLSOpportunistic // on an implicit connection only to notice that it is encrypted
	}
	options := []mail.Option{mail.WithPort(s.port), mail.WithTLSPolicy(policy), mail.WithTLSConfig(s.tls), mail.WithTimeout(smtpTimeout),
		mail.WithDialContextFunc(func(dialing context.Context, network, addr string) (net.Conn, error) {
			conn, err := (&net.Dialer{Timeout: smtpDialTimeout}).DialContext(dialing, network, addr)
			if err != nil {
				return nil, err
			}
			context.AfterFunc(ctx, func() { _ = conn.Close() }) // go-mail extends its deadlines; this one holds
			if s.implicit {
				return tls.Client(conn, s.tls), nil
			}
			return conn, nil
		})}
	if s.user != nil {
		password, _ := s.user.Password()
		options = append(options, mail.WithSMTPAuth(mail.SMTPAuthAutoDiscover), mail.WithUsername(s.user.Username()), mail.WithPassword(password))
	}
	client, err := mail.NewClient(s.host, options...)
	if err != nil {
		return err
	}
	err = client.DialAndSendWithContext(ctx, msg)
	var refused *mail.SendError
	switch {
	case msg.IsDelivered():
		return nil // what went wrong after the server took it would only send it twice
	case errors.As(err, &refused) && refused.Reason == mail.ErrSMTPRcptTo && refused.ErrorCode() >= 500:
		return errors.Join(errRefused, err)
	}
	return err
}

// compose builds the MIME message; the library encodes every header, so none can be broken out of (R26).
func (s *smtpSender) compose(m message) (*mail.Msg, error) {
	msg := mail.NewMsg()
	if err := errors.Join(msg.From(s.from), msg.To(m.To)); err != nil {
		return nil, err
	}
	msg.Subject(m.Subject)
	msg.SetDate()
	msg.SetMessageIDWithValue(m.ID + "@" + s.host)
	msg.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: no out-of-office replies
	msg.SetBodyString(mail.TypeTextPlain, m.Text)
	msg.AddAlternativeString(mail.TypeTextHTML, m.HTML)
	return msg, nil
}
