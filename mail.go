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
	"strings"
	"sync"
	"text/template"
	"time"

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

// tokenKinds are the mails that carry a token of their owner.
var tokenKinds = []string{mailResetPassword, mailSetPassword, mailChangeEmail}

const changeEmailTTL = time.Hour

// mailKind is what sets one kind of mail apart.
type mailKind struct {
	purpose string // of the token that the mail carries; empty for none
	ttl     time.Duration
}

func (s *server) mailKinds() map[string]mailKind {
	return map[string]mailKind{
		mailRegistration:      {purposeVerifyEmail, s.cfg.VerifyTTL},
		mailAccountExists:     {},
		mailResetPassword:     {purposeResetPassword, s.cfg.ResetTTL},
		mailSetPassword:       {purposeResetPassword, s.cfg.VerifyTTL},
		mailChangeEmail:       {purposeConfirmEmail, changeEmailTTL},
		mailChangeEmailNotice: {},
		mailPasswordChanged:   {},
		mailSecurityNotice:    {},
		mailInvitation:        {purposeInvitation, s.cfg.InvitationTTL},
	}
}

// kindsFor returns the kinds of mail that carry tokens of a purpose.
func (s *server) kindsFor(purpose string) (kinds []string) {
	for name, kind := range s.mailKinds() {
		if kind.purpose == purpose {
			kinds = append(kinds, name)
		}
	}
	return kinds
}

// message is a mail ready to be sent.
type message struct {
	ID      string // stable over attempts: the Message-ID is made of it
	To      string
	Subject string
	Text    string
	HTML    string
	Token   string // for dev, which prints it
}

// hide takes the address and the token out of what a server says: it may repeat what it refuses (R96).
func (m message) hide(text string) string {
	return strings.NewReplacer(m.To, "(recipient)", cmp.Or(m.Token, m.To), "(token)").Replace(text)
}

//go:embed mails
var mailFiles embed.FS

var (
	mailTexts  = template.Must(template.ParseFS(mailFiles, "mails/*.txt"))
	mailLayout = htmltemplate.Must(htmltemplate.ParseFS(mailFiles, "mails/layout.html"))
)

// render makes the text and the HTML of a mail from its one file: two header lines, then paragraphs, of which the
// link becomes a button. Only invitations hold words that somebody chose: names, which no mail program makes links of.
func (s *server) render(m mailRow, token string, invited invitationMail) (message, error) {
	kind := s.mailKinds()[m.Kind]
	data := map[string]any{"Product": productName, "Link": s.cfg.AppURL + "/", "TTL": humanDuration(kind.ttl),
		"Organization": unlinked.Replace(invited.Organization), "Inviter": unlinked.Replace(invited.Inviter)}
	if m.Notice != nil {
		data["Event"], data["Number"], _ = strings.Cut(*m.Notice, " ")
	}
	if token != "" {
		data["Link"] = s.link(kind.purpose, token)
	}
	var text, html strings.Builder
	if err := mailTexts.ExecuteTemplate(&text, m.Kind+".txt", data); err != nil {
		return message{}, fmt.Errorf("mail %s: %w", m.Kind, err)
	}
	head, body, _ := strings.Cut(text.String(), "\n\n")
	for line := range strings.Lines(head) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		data[name] = value
	}
	data["Paragraphs"] = strings.Split(strings.TrimSpace(body), "\n\n")
	if err := mailLayout.Execute(&html, data); err != nil {
		return message{}, fmt.Errorf("mail %s: %w", m.Kind, err)
	}
	return message{ID: m.ID, To: m.Recipient, Subject: data["Subject"].(string), Text: body, HTML: html.String(), Token: token}, nil
}

// link leads to the page of a purpose. In the fragment the token reaches no server log, no Referer and no scanner that
// follows links (R63).
func (s *server) link(purpose, token string) string {
	return s.cfg.AppURL + "/#/" + purpose + "?token=" + url.QueryEscape(token)
}

// unlinked puts a zero-width space where an address would need none, so that a name cannot pass for a link (R26).
var unlinked = strings.NewReplacer(".", ".\u200b", ":", ":\u200b", "/", "/\u200b", "@", "@\u200b")

const productName = "roster"

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
	mailSenders = 4               // a replica; a server that hangs holds up one of them
	mailLease   = 2 * time.Minute // longer than a conversation may take
	mailPoll    = time.Second
	mailGrace   = 5 * time.Second    // for the mail in hand when the replica stops
	mailMaxAge  = 3 * 24 * time.Hour // then a mail is given up
)

// startWorkers starts what runs beside the requests; the group is done when ctx has ended and they have stopped.
func (s *server) startWorkers(ctx context.Context) *sync.WaitGroup {
	var workers sync.WaitGroup
	if s.deliver != nil {
		for range mailSenders {
			workers.Go(func() { s.sendMails(ctx) })
		}
	}
	workers.Go(func() { s.pruneRegularly(ctx) })
	return &workers
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

// sendNextMail leases a mail, makes its token, and sends it with no transaction open; pgx.ErrNoRows when none is due.
func (s *server) sendNextMail(stopping context.Context) error {
	ctx, cancel := context.WithCancel(context.WithoutCancel(stopping))
	defer cancel()
	defer context.AfterFunc(stopping, func() { time.AfterFunc(mailGrace, cancel) })()
	m, err := s.db.leaseMail(ctx, mailLease)
	if err != nil {
		return err
	}
	if m.Age > mailMaxAge && m.Attempts == 1 {
		return s.giveUp(ctx, m)
	}
	kind, known := s.mailKinds()[m.Kind]
	if !known {
		return fmt.Errorf("mail %s is of the unknown kind %q", m.ID, m.Kind)
	}
	var token string
	var invited invitationMail
	if kind.purpose != "" {
		var hash []byte
		token, hash = newMailToken()
		switch kind.purpose {
		case purposeInvitation:
			invited, err = s.db.updateInvitationToken(ctx, hash, m.ID)
		case purposeVerifyEmail:
			err = s.db.updateRegistrationToken(ctx, hash, m.ID, kind.ttl)
		default:
			err = s.db.inTx(ctx, func(tx db) error {
				// The owner first, as in every flow of theirs: a reset at this moment waits, or is waited for (R82).
				if err := tx.lockMailOwner(ctx, m.ID); err != nil {
					return err
				}
				return tx.upsertMailToken(ctx, hash, m, kind.purpose, kind.ttl, s.kindsFor(kind.purpose))
			})
		}
		if errors.Is(err, pgx.ErrNoRows) { // the mail was voided meanwhile, or a newer one has taken its place
			return s.db.updateMailFailed(ctx, m.ID)
		}
		if err != nil {
			return err
		}
	}
	msg, err := s.render(m, token, invited)
	if err != nil {
		return err
	}
	if err = s.deliver(ctx, msg); err == nil {
		s.metrics.mails.WithLabelValues("sent").Inc()
		return s.db.updateMailSent(ctx, m.ID)
	}
	retry := !errors.Is(err, errRefused) && m.Age < mailMaxAge
	s.log.Warn("mail not delivered", "mail_id", m.ID, "kind", m.Kind, "attempts", m.Attempts, "retry", retry, "cause", msg.hide(err.Error()))
	if !retry {
		return s.giveUp(ctx, m)
	}
	s.metrics.mails.WithLabelValues("retried").Inc()
	return s.db.updateMailRetry(ctx, m.ID, backoff(m.Attempts))
}

// giveUp ends a mail that will never arrive: it is counted, and in the trail of whom it was for.
func (s *server) giveUp(ctx context.Context, m mailRow) error {
	s.metrics.mails.WithLabelValues("failed").Inc()
	return s.db.inTx(ctx, func(tx db) error {
		return inOrder(tx.updateMailFailed(ctx, m.ID),
			tx.audit(ctx, caller{}, "mail.failed", nil, m.UserID, map[string]any{"kind": m.Kind, "attempts": m.Attempts}))
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
