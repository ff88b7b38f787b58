// room:mail

// Mails: the outbox, and SMTP. A mail is a row until a sender has delivered it. A team without mails has neither the flows
// nor the invitations that are made of them, and nobody is told of a new password.
//
// Its files are mail.go, smtp.go and db_mails.go, and assets in mails/. What ties it to the house is what
// `grep -n room:mail *.go` finds: a worker, variables of the configuration, and a line wherever a mail is caused. To take
// it out, delete the files and those lines.

package main

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	htmltemplate "html/template"
	"io"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"text/template"
	"time"
	"unicode"

	"github.com/jackc/pgx/v5"
)

// Mails are rows of the outbox until a sender has delivered them; db_mails.go has their SQL, mails/ their texts.

// The kinds of mail: each is a file in mails/.
const (
	mailRegistration      = "registration"
	mailAccountExists     = "account_exists"
	mailResetPassword     = "reset_password"
	mailSetPassword       = "set_password"
	mailChangeEmail       = "change_email"
	mailChangeEmailNotice = "change_email_notice"
	mailPasswordChanged   = "password_changed"
	mailSecurityNotice    = "security_notice"
	mailInvitation        = "invitation"
)

// The purposes of mail tokens: what a token of one purpose does, one of another cannot (R60).
// They are also the paths of the links.
const (
	purposeVerifyEmail   = "verify-email"
	purposeResetPassword = "reset-password"
	purposeConfirmEmail  = "confirm-email"
	purposeInvitation    = "accept-invitation"
)

const changeEmailTTL = time.Hour

// mailKind is what sets one kind of mail apart.
type mailKind struct {
	purpose string // of the token that the mail carries; empty for none
	ttl     time.Duration
}

// mailKinds is the table of all kinds of mail.
func mailKinds(cfg config) map[string]mailKind {
	return map[string]mailKind{
		mailRegistration:      {purposeVerifyEmail, cfg.VerifyTTL}, // room:mailflows
		mailAccountExists:     {},
		mailResetPassword:     {purposeResetPassword, cfg.ResetTTL},  // room:mailflows
		mailSetPassword:       {purposeResetPassword, cfg.VerifyTTL}, // room:mailflows
		mailChangeEmail:       {purposeConfirmEmail, changeEmailTTL},
		mailChangeEmailNotice: {},
		mailPasswordChanged:   {},
		mailSecurityNotice:    {},
		mailInvitation:        {purposeInvitation, cfg.InvitationTTL}, // room:invitations
	}
}

// kindsFor returns the kinds of mail that carry tokens of these purposes.
func kindsFor(purposes ...string) (kinds []string) {
	for name, kind := range mailKinds(config{}) {
		if slices.Contains(purposes, kind.purpose) {
			kinds = append(kinds, name)
		}
	}
	return kinds
}

// tokenKinds are the mails that carry a token of their owner.
var tokenKinds = kindsFor(purposeVerifyEmail, purposeResetPassword, purposeConfirmEmail)

// message is a mail ready to be sent.
type message struct {
	ID      string // of this attempt, for the Message-ID: what looks like a copy may be thrown away
	To      string
	Subject string
	Text    string
	HTML    string
	Token   string // for dev, which prints it
}

// hide takes the address and the token of a mail out of what a server says: it may repeat what it refuses (R96).
func hide(text, address, token string) string {
	return strings.NewReplacer(address, "(recipient)", cmp.Or(token, address), "(token)").Replace(text)
}

//go:embed mails
var mailFiles embed.FS

var (
	mailTexts  = template.Must(template.ParseFS(mailFiles, "mails/*.txt"))
	mailLayout = htmltemplate.Must(htmltemplate.ParseFS(mailFiles, "mails/layout.html"))
)

// render makes the text and the HTML of a mail from its one file: two header lines, then paragraphs, of which the
// link becomes a button. Only invitations hold words that somebody chose: names, which are quoted.
func render(m mailRow, token string, data map[string]any) (message, error) {
	var text, html strings.Builder
	if err := mailTexts.ExecuteTemplate(&text, m.Kind+".txt", data); err != nil {
		return message{}, err
	}
	head, body, _ := strings.Cut(text.String(), "\n\n")
	for line := range strings.Lines(head) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		data[name] = value
	}
	data["Paragraphs"] = strings.Split(strings.TrimSpace(body), "\n\n")
	if err := mailLayout.Execute(&html, data); err != nil {
		return message{}, err
	}
	return message{ID: fmt.Sprintf("%s.%d", m.ID, m.Attempts), To: m.Recipient, Subject: data["Subject"].(string), Text: body,
		HTML: html.String(), Token: token}, nil
}

// link leads to the page of a purpose. In the fragment the token reaches no server log, no Referer and no scanner that
// follows links (R63).
func (s *server) link(purpose, token string) string {
	return s.cfg.AppURL + "/#/" + purpose + "?token=" + url.QueryEscape(token)
}

// lookalikes are the characters outside Unicode's punctuation that pass for a dot, colon, slash or @.
const lookalikes = "\u0660\u06f0\ua4f8\U0001d16d" + "\u0903\u0a83\u02d0\u02f8\ua789\ua4fd\u2236" +
	"\u2044\u2215\u2571\u27cb\u29f8\u3033\u30ce\u31d3\u4e36\u4e3f\u2f02\u2f03"

// quoted is a name as a mail shows it: in quotation marks that it cannot end, and with a zero-width space behind whatever
// could make a link or an address of it (R26).
func quoted(name string) string {
	b := []rune{'“'}
	for _, r := range name {
		if unicode.Is(unicode.Quotation_Mark, r) || unicode.Is(unicode.Pi, r) || unicode.Is(unicode.Pf, r) {
			r = '\''
		}
		b = append(b, r)
		if strings.ContainsRune(`.:/@\`+lookalikes, r) || r > unicode.MaxASCII && unicode.Is(unicode.Po, r) {
			b = append(b, '\u200b')
		}
	}
	return string(append(b, '”'))
}

// humanDuration says 24 hours, 30 minutes or 7 days.
func humanDuration(d time.Duration) string {
	for _, unit := range []struct {
		name string
		size time.Duration
	}{{"day", 24 * time.Hour}, {"hour", time.Hour}, {"minute", time.Minute}, {"second", time.Second}} {
		switch n := d / unit.size; {
		case d == unit.size:
			return "1 " + unit.name
		case n > 0 && d%unit.size == 0:
			return fmt.Sprintf("%d %ss", n, unit.name)
		}
	}
	return d.String()
}

const (
	mailSenders = 4                // a replica; a server that hangs holds up one of them
	mailLease   = 15 * time.Minute // longer than a conversation may take
	mailPoll    = time.Second
	mailGrace   = 5 * time.Second    // for the mail in hand when the replica stops
	mailMaxAge  = 3 * 24 * time.Hour // then a mail is given up
)

// notify tells the owner of an account, by mail, what has changed about how they sign in or what they may do: event is a
// line of mails/security_notice.txt.
func (s *server) notify(ctx context.Context, tx db, email, event string) error {
	return s.mail(ctx, tx, newMail{kind: mailSecurityNotice, owner: email, notice: event})
}

// deadLink is the answer to a mail token that was not found.
func (s *server) deadLink(ctx context.Context, c caller, err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		err = errBadMailToken
		err = s.wrong(ctx, c, err) // room:throttling
	}
	return err
}

// mail puts a mail into the outbox, in the transaction that causes it, unless the address has had enough of its kind: then
// it is left out silently (R42).
func (s *server) mail(ctx context.Context, tx db, m newMail) error {
	_, _, err := s.mailOf(ctx, tx, m)
	return err
}

// mailOf is mail; it returns whose the mail is, nil for nobody's, and whether it was not left out.
func (s *server) mailOf(ctx context.Context, tx db, m newMail) (owner *string, sent bool, err error) {
	m.to = cmp.Or(m.to, m.owner)
	if full, err := s.mailboxFull(ctx, tx, m); err != nil || full { // room:throttling
		return nil, false, err
	}
	owner, err = tx.insertMail(ctx, m)
	return owner, err == nil, err
}

// startSenders starts the senders of this replica.
func (s *server) startSenders(ctx context.Context, workers *sync.WaitGroup) {
	if !s.sends {
		return
	}
	for range mailSenders {
		workers.Go(func() { s.sendMails(ctx) })
	}
}

// wakeSender tells this replica's senders that a mail may be due, so that they need not wait for the next poll.
func (s *server) wakeSender() {
	select {
	case s.newMail <- struct{}{}:
	default:
	}
}

// sendMails sends what is due until ctx ends; the mail in hand is finished.
func (s *server) sendMails(ctx context.Context) {
	poll := time.NewTicker(mailPoll)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
		case <-s.newMail:
		}
		var err error
		for err == nil && ctx.Err() == nil {
			err = s.sendNextMail(ctx)
		}
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			s.log.Error("sending mail", "cause", err.Error())
		}
	}
}

// sendNextMail leases a mail and sends it, with no transaction open; pgx.ErrNoRows when none is due. What is wrong with
// the one mail is written into its row and stops none after it (R110); an error is the database's.
func (s *server) sendNextMail(stopping context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(stopping), mailLease)
	defer cancel()
	m, err := s.db.leaseMail(ctx, mailLease)
	if err != nil {
		return err
	}
	if m.Age > mailMaxAge && m.Attempts == 1 {
		return s.giveUp(ctx, m)
	}
	msg, err := s.prepare(ctx, m)
	if errors.Is(err, pgx.ErrNoRows) {
		return s.db.updateMailFailed(ctx, m.ID)
	}
	sending, hangUp := context.WithCancel(ctx)
	defer hangUp()
	defer context.AfterFunc(stopping, func() { time.AfterFunc(mailGrace, hangUp) })()
	if err == nil {
		err = s.deliver(sending, msg)
	}
	if err == nil {
		s.metrics.mails.WithLabelValues("sent").Inc() // room:metrics
		return s.noteSent(ctx, sending, m.ID)
	}
	uncertain := m.Uncertain || errors.Is(err, errUnknown)
	retry := !errors.Is(err, errRefused) && m.Age < mailMaxAge
	s.log.Warn("mail not delivered", "mail_id", m.ID, "kind", m.Kind, "attempts", m.Attempts, "retry", retry,
		"cause", hide(err.Error(), m.Recipient, msg.Token))
	if !retry {
		return s.giveUp(ctx, m)
	}
	s.metrics.mails.WithLabelValues("retried").Inc() // room:metrics
	return s.db.updateMailRetry(ctx, m.ID, backoff(m.Attempts), uncertain)
}

// prepare makes the message of a leased mail, and its token the one that is live; pgx.ErrNoRows when the mail must not
// be sent any more.
func (s *server) prepare(ctx context.Context, m mailRow) (message, error) {
	kind, known := mailKinds(s.cfg)[m.Kind]
	if !known {
		return message{}, errors.New("this version knows no such kind of mail")
	}
	data := map[string]any{"Product": productName, "Link": s.cfg.AppURL + "/", "TTL": humanDuration(kind.ttl)}
	if m.Notice != nil {
		data["Event"], data["Number"], _ = strings.Cut(*m.Notice, " ")
	}
	if kind.purpose == "" {
		return render(m, "", data)
	}
	token, hash := s.keys.mailToken(kind.purpose, m.ID)
	data["Link"] = s.link(kind.purpose, token)
	var err error
	switch kind.purpose {
	case purposeInvitation: // room:invitations
		err = s.db.updateInvitationToken(ctx, hash, m.ID, data) // room:invitations
	case purposeVerifyEmail: // room:mailflows
		err = s.db.updateRegistrationToken(ctx, hash, m.ID, kind.ttl) // room:mailflows
	default: // room:mailflows
		err = s.db.renewMailToken(ctx, hash, m, kind) // room:mailflows
	}
	if err != nil {
		return message{}, err
	}
	return render(m, token, data)
}

// noteSent notes that a mail was delivered, until it succeeds or sending has ended: a note that is lost means a copy.
func (s *server) noteSent(ctx, sending context.Context, id string) error {
	for {
		err := s.db.updateMailSent(ctx, id)
		if err == nil || sending.Err() != nil {
			return err
		}
		s.log.Warn("noting that a mail was sent", "mail_id", id, "cause", err.Error())
		select {
		case <-sending.Done():
		case <-time.After(mailPoll):
		}
	}
}

// giveUp ends a mail that will never arrive: it is counted, and in the trail of whom it was for.
func (s *server) giveUp(ctx context.Context, m mailRow) error {
	s.metrics.mails.WithLabelValues("failed").Inc() // room:metrics
	return s.db.inTx(ctx, func(tx db) error {
		tx.audit(caller{}, auditEntry{action: "mail.failed", subject: deref(m.Subject), detail: map[string]any{"kind": m.Kind, "attempts": m.Attempts}}) // room:audit
		return tx.updateMailFailed(ctx, m.ID)
	})
}

// backoff doubles from one minute to a day, less up to a fifth, so that retries spread.
func backoff(attempts int) time.Duration {
	d := min(time.Minute<<min(attempts-1, 11), 24*time.Hour)
	return d - rand.N(d/5) // #nosec G404 -- no secret
}

// printMail delivers to a terminal: what dev does when SMTP_URL is not set.
func printMail(w io.Writer) func(context.Context, message) error {
	return func(_ context.Context, m message) error {
		text := strings.ReplaceAll(strings.TrimSuffix(m.Text, "\n"), "\n", "\n│  ")
		if m.Token != "" {
			text += "\n│\n│  token: " + m.Token
		}
		_, err := fmt.Fprintf(w, "\n┌─ mail to %s\n│  %s\n│\n│  %s\n└─\n\n", m.To, m.Subject, text)
		return err
	}
}
