// room:mail

package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/mail"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// lostVerdict hands a mail over to a server that says nothing about it.
func (b *mailbox) lostVerdict(ctx context.Context, m message) error {
	return errors.Join(errUnknown, b.deliver(ctx, m))
}

// mailTokenAddresses are where newMailTokens mails to, in the order of mailTokenUses.
var mailTokenAddresses = []string{"registering@example.com", "resetting@example.com", "moved@example.com", "invited@example.com"}

// askForMailTokens is newMailTokens but for the sending.
func (s *testServer) askForMailTokens() (owner member, organization string) {
	s.t.Helper()
	owner = s.newUser("moving@example.com", "user")
	s.newUser("resetting@example.com", "user")
	organization = s.post("/v1/organizations", owner.token, map[string]string{"name": "Acme"}).want(201, "").str("id")
	s.startRegistration("registering@example.com", testPassword)
	s.forgot("resetting@example.com").want(202, "")
	s.move(owner.token, "moved@example.com", testPassword).want(202, "")
	s.inviteTo(owner, organization, "invited@example.com")
	return owner, organization
}

// sendAll makes every mail that waits due and gives it to deliver, once.
func (s *testServer) sendAll(deliver func(context.Context, message) error) {
	s.t.Helper()
	s.dueNow()
	for {
		switch err := s.sendNext(deliver); {
		case errors.Is(err, pgx.ErrNoRows):
			return
		case err != nil:
			s.t.Fatal(err)
		}
	}
}

// R68, R114: whatever becomes of a conversation after the final dot, the mail may have arrived. It is sent again, by any
// replica, as a mail of its own with the same link, so that whichever copy is read works, once.
func TestMailUnknownOutcome(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	s.askForMailTokens()
	s.sendAll(s.mail.lostVerdict)
	other := s.quietReplica()
	other.sendAll(other.mail.deliver)
	for i, to := range mailTokenAddresses {
		first, second := s.mailed(to), other.mailed(to)
		if len(first) != 1 || len(second) != 1 || first[0].Token != second[0].Token || first[0].ID == second[0].ID {
			t.Fatalf("%s: %+v, then %+v", to, first, second)
		}
		s.useMailToken(i, first[0].Token).want(mailTokenUses[i].status, "")
		s.useMailToken(i, second[0].Token).want(422, "invalid_token")
	}
	other.sendAll(func(_ context.Context, m message) error {
		if m.Token != "" { // a new password is told about
			t.Errorf("%s: a third copy", m.To)
		}
		return nil
	})
}

// R60: a link that was used shows that the mail has arrived: it is not sent again, which would make the link good anew.
func TestMailUsedLinkIsNotSentAgain(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	s.askForMailTokens()
	s.sendAll(s.mail.lostVerdict)
	for i, to := range mailTokenAddresses {
		s.useMailToken(i, s.mailed(to)[0].Token).want(mailTokenUses[i].status, "")
	}
	s.sendAll(s.mail.deliver)
	for i, to := range mailTokenAddresses {
		for _, m := range s.mailed(to)[1:] {
			if m.Token != "" { // a new password is told about
				t.Errorf("%s: sent again", to)
			}
		}
		s.useMailToken(i, s.mailed(to)[0].Token).want(422, "invalid_token")
	}
}

// R61: a link that somebody may have keeps its time; one that nobody has gets all of it, however late the mail is.
func TestMailRetryAndExpiry(t *testing.T) {
	t.Parallel()
	down := func(context.Context, message) error { return errors.New("450 try again later") }
	for _, tc := range []struct {
		name     string
		attempts func(s *testServer) []func(context.Context, message) error
		want     bool // the time is that of the first attempt
	}{
		{"refused", func(*testServer) []func(context.Context, message) error {
			return []func(context.Context, message) error{down}
		}, false},
		{"unknown", func(s *testServer) []func(context.Context, message) error {
			return []func(context.Context, message) error{s.mail.lostVerdict}
		}, true},
		{"unknown, then refused", func(s *testServer) []func(context.Context, message) error {
			return []func(context.Context, message) error{s.mail.lostVerdict, down}
		}, true},
		{"refused, then unknown", func(s *testServer) []func(context.Context, message) error {
			return []func(context.Context, message) error{down, s.mail.lostVerdict}
		}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newQuietServer(t)
			m := s.newUser("ada@example.com", "user")
			s.forgot(m.email).want(202, "")
			for _, deliver := range tc.attempts(s) {
				s.sendAll(deliver)
				// Half of the hour goes by.
				s.exec("update mail_tokens set expires_at = expires_at - interval '30 minutes'")
				s.exec("update mails set link_expires_at = link_expires_at - interval '30 minutes'")
			}
			s.sendAll(s.mail.deliver)
			if half := scalar[bool](s, "select expires_at < now() + interval '31 minutes' from mail_tokens"); half != tc.want {
				t.Errorf("the link has the time that was left: %v", half)
			}
			if tokens := s.mailed(m.email); tokens[0].Token != tokens[len(tokens)-1].Token {
				t.Error("two links")
			}
		})
	}
	s := newQuietServer(t)
	m := s.newUser("ada@example.com", "user")
	s.forgot(m.email).want(202, "")
	s.sendAll(s.mail.lostVerdict)
	s.exec("update mail_tokens set expires_at = now() - interval '1 second'")
	s.exec("update mails set link_expires_at = now() - interval '1 second'")
	s.sendAll(s.mail.deliver)
	if copies := s.mailed(m.email); len(copies) != 1 {
		t.Error("a link was mailed that had expired")
	}
}

// R48, R62: the secret was rotated between two attempts. The link of the second replaces that of the first; a token
// that was made under the old secret and mailed once stays good.
func TestMailSecretRotated(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	m, eve := s.newUser("ada@example.com", "user"), s.newUser("eve@example.com", "user")
	s.forgot(eve.email).want(202, "")
	s.sendDue()
	s.forgot(m.email).want(202, "")
	s.sendAll(s.mail.lostVerdict)
	cfg := s.cfg
	cfg.SecretKeys = newSecret() + "," + cfg.SecretKeys
	cfg.secrets, _ = decodeSecrets(cfg.SecretKeys)
	other, _ := startMailServer(t, cfg, nil)
	other.sendAll(other.mail.deliver)
	other.useMailToken(1, s.mailed(m.email)[0].Token).want(422, "invalid_token")
	other.useMailToken(1, other.mailed(m.email)[0].Token).want(204, "")
	other.useMailToken(1, s.mailed(eve.email)[0].Token).want(204, "")
}

// R62: an invitation was sent again while the first mail's outcome was unknown: the late retry of the first voids nothing.
func TestInvitationRetryDoesNotVoidNewer(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	owner, organization := s.askForMailTokens()
	s.sendAll(s.mail.lostVerdict)
	s.inviteTo(owner, organization, "invited@example.com")
	s.sendDue()
	s.sendAll(s.mail.deliver)
	got := s.mailed("invited@example.com")
	if len(got) != 2 || got[0].Token == got[1].Token {
		t.Fatalf("%+v", got)
	}
	s.useMailToken(3, got[0].Token).want(422, "invalid_token")
	s.useMailToken(3, got[1].Token).want(201, "")
}

// R106: a mail that was written by a transaction that began before the account's address changed: its token would open the
// account to whoever has the old mailbox. A change of address is what goes elsewhere.
func TestMailToAddressThatWasLeft(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	m := s.newUser("old@example.com", "user")
	s.forgot(m.email).want(202, "")
	s.exec("insert into mails (id, kind, user_id, recipient) select $1, 'set_password', id, email from users", newID())
	s.exec("update users set email = 'new@example.com'")
	s.move(m.token, "elsewhere@example.com", testPassword).want(202, "")
	s.sendAll(s.mail.deliver)
	if got := s.mailed("old@example.com"); len(got) != 0 {
		t.Errorf("mailed to an address that the account has left: %+v", got)
	}
	s.confirm(s.mailed("elsewhere@example.com")[0].Token).want(204, "")
}

// R110: mails that cannot be made, as those of a newer version during a rollout, hold up no other, are tried again and
// given up in the end.
func TestMailUnknownKind(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	m := s.newUser("ada@example.com", "user")
	for range 3 * mailSenders {
		s.exec("insert into mails (id, kind, user_id, recipient, next_attempt_at) values ($1, 'of_tomorrow', $2, 'ada@example.com', '2020-01-01')", newID(), m.id)
	}
	s.forgot(m.email).want(202, "")
	s.waitMail(m.email, 1)
	for deadline := time.Now().Add(10 * time.Second); scalar[int](s, "select count(*) from mails where kind = 'of_tomorrow' and attempts = 0") > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not all were tried")
		}
	}
	other := s.quietReplica()
	if err := other.sendNext(other.mail.deliver); !errors.Is(err, pgx.ErrNoRows) {
		t.Error("tried again at once:", err)
	}
	if n := scalar[int](s, "select count(*) from mails where kind = 'of_tomorrow' and attempts = 1 and next_attempt_at < now() + interval '1 minute'"); n != 3*mailSenders {
		t.Errorf("%d of %d wait for their next attempt", n, 3*mailSenders)
	}
	if !strings.Contains(s.logs.String(), "no such kind") {
		t.Error("nothing in the log")
	}
	s.exec("update mails set created_at = now() - interval '4 days', next_attempt_at = now() where kind = 'of_tomorrow'")
	for deadline := time.Now().Add(10 * time.Second); scalar[int](s, "select count(*) from mails where failed_at is null and sent_at is null") > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not given up")
		}
		s.wakeSender()
	}
	if n := scalar[int](s, "select count(*) from audit_events where action = 'mail.failed'"); n != 3*mailSenders {
		t.Errorf("%d in the trail", n)
	}
}

// The database fails for a moment between the server's yes and the note of it: no copy follows.
func TestMailSentIsNoted(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	s.exec("create sequence failures")
	s.exec(`create function fail() returns trigger language plpgsql as
		$$ begin if nextval('failures') < 3 then raise exception 'for a moment' using errcode = '57P03'; end if; return new; end $$`)
	s.exec("create trigger fail before update on mails for each row when (new.sent_at is not null) execute function fail()")
	s.startRegistration("ada@example.com", testPassword)
	if err := s.sendNext(s.mail.deliver); err != nil || s.mailState() != "sent 1" {
		t.Error(err, s.mailState())
	}
}

// smtpSink speaks just enough SMTP, in the clear, and leaves to verdict what follows the final dot.
func smtpSink(t testing.TB, verdict func(net.Conn, string)) *smtpSender {
	t.Helper()
	addr := rawSMTP(t, func(c net.Conn) {
		_, _ = io.WriteString(c, "220 sink.test\r\n")
		var body strings.Builder
		data := false
		for lines := bufio.NewScanner(c); lines.Scan(); {
			switch line := lines.Text(); {
			case data && line == ".":
				data = false
				verdict(c, body.String())
			case data:
				body.WriteString(line + "\r\n")
			case line == "DATA":
				data = true
				_, _ = io.WriteString(c, "354 go ahead\r\n")
			case line == "QUIT":
				return
			default:
				_, _ = io.WriteString(c, "250 ok\r\n")
			}
		}
	})
	sender, err := newSMTPSender(&config{SMTPURL: "smtp+plain://" + addr, PublicURL: "https://api.example", dev: true}, &mail.Address{Address: "no-reply@roster.example"})
	if err != nil {
		t.Fatal(err)
	}
	return sender
}

// R68: after the final dot only a reply says what became of a mail: a yes, whatever follows it, is one; anything but a
// reply leaves it open.
func TestSMTPVerdicts(t *testing.T) {
	t.Parallel()
	say := func(text string) func(net.Conn) {
		return func(c net.Conn) { _, _ = io.WriteString(c, text) }
	}
	yes := say("250 2.0.0 kept\r\n")
	for _, tc := range []struct {
		name    string
		verdict func(net.Conn)
		unknown bool
		want    string
	}{
		{"yes, and hangs at QUIT", func(c net.Conn) { yes(c); _, _ = io.Copy(io.Discard, c) }, false, "sent 1"},
		{"yes, and drops", func(c net.Conn) { yes(c); c.Close() }, false, "sent 1"},
		{"yes, and an error to QUIT", say("250 kept\r\n500 what?\r\n"), false, "sent 1"},
		{"yes, in lines", say("250-2.0.0 kept\r\n250 2.0.0 for now\r\n"), false, "sent 1"},
		{"another yes", say("252 kept, I think\r\n"), false, "sent 1"},
		{"later", say("451 4.7.1 greylisted\r\n"), false, "waiting 1"},
		{"no", say("554 5.7.1 spam\r\n"), false, "waiting 1"},
		{"drops", func(c net.Conn) { c.Close() }, true, "waiting 1"},
		{"drops within the reply", func(c net.Conn) { say("25")(c); c.Close() }, true, "waiting 1"},
		{"says something else", say("OK\r\n"), true, "waiting 1"},
		{"says nothing", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, true, "waiting 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newQuietServer(t)
			s.startRegistration("ada@example.com", testPassword)
			var taken atomic.Value
			sender := smtpSink(t, func(c net.Conn, body string) { taken.Store(body); tc.verdict(c) })
			sender.verdict = time.Second
			var verdict error
			if err := s.sendNext(func(ctx context.Context, m message) error { verdict = sender.deliver(ctx, m); return verdict }); err != nil {
				t.Fatal(err)
			}
			if got := s.mailState(); got != tc.want || errors.Is(verdict, errUnknown) != tc.unknown {
				t.Errorf("the mail is %s, want %s: %v", got, tc.want, verdict)
			}
			s.sendAll(s.mail.deliver)
			if copies := s.mailed("ada@example.com"); len(copies) != strings.Count(tc.want, "waiting") {
				t.Errorf("%d copies", len(copies))
			}
			s.verify(parseMail(t, []byte(taken.Load().(string))).token(t), testPassword).want(200, "")
		})
	}
}

// R91: a replica that stops while a server thinks its verdict over stops in time. The mail may have arrived: it waits
// for the next replica, not for the end of the lease.
func TestSMTPStopsDuringVerdict(t *testing.T) {
	t.Parallel()
	taken := make(chan string, 1)
	sender := smtpSink(t, func(c net.Conn, body string) { taken <- body; _, _ = io.Copy(io.Discard, c) })
	s := newQuietServer(t) // reads the database when the other one is gone
	stopping, stop := startMailServer(t, s.cfg, sender.deliver)
	stopping.startRegistration("ada@example.com", testPassword)
	var first string
	select {
	case body := <-taken:
		first = parseMail(t, []byte(body)).token(t)
	case <-time.After(20 * time.Second):
		t.Fatalf("nothing was sent:\n%s", stopping.logs)
	}
	if !within(stopTimeout, stop) {
		t.Error("it does not stop")
	}
	if !scalar[bool](s, "select sent_at is null and failed_at is null and next_attempt_at < now() + interval '1 minute' from mails") {
		t.Error("the mail is", s.mailState())
	}
	s.sendAll(s.mail.deliver)
	if got := s.mailed("ada@example.com"); len(got) != 1 || got[0].Token != first {
		t.Errorf("%+v", got)
	}
	s.verify(first, testPassword).want(200, "")
}

// R26: a name stands in quotation marks that it cannot end, and no character of it that passes for a dot, a colon, a
// slash or an @ makes a link or an address of it.
func TestMailQuotesNames(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"Acme": "“Acme”", "O'Brien & Söhne, Ltd": "“O'Brien & Söhne, Ltd”", "日本 👩🏽‍💻": "“日本 👩🏽‍💻”",
		`a”. Pay “b" «c» 〝d„`: "“a'.\u200b Pay 'b' 'c' 'd'”",
	} {
		if got := quoted(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	dots, colons, slashes, ats := ".．。｡․﹒…·•܁܂꘎𐩐٠۰ꓸ", "::：﹕︓։܃܄׃∶ꓽː˸꞉︰", "/／⁄∕╱⟋⧸ノ丿〳\\＼﹨", "@＠﹫"
	for _, c := range slices.Concat([]rune(dots), []rune(colons), []rune(slashes), []rune(ats)) {
		if got := quoted("evil" + string(c) + "example"); strings.Contains(got, string(c)+"e") || !strings.Contains(got, string(c)) {
			t.Errorf("%q (%U) is left in %q", c, c, got)
		}
	}
	s := newQuietServer(t)
	owner := s.newUser("owner@example.com", "user")
	s.exec("update users set name = $1 where id = $2", "Call +1 555 0100", owner.id)
	organization := s.post("/v1/organizations", owner.token, map[string]string{"name": "evil．com/pay"}).want(201, "").str("id")
	s.inviteTo(owner, organization, "invited@example.com")
	s.sendDue()
	m := s.mailed("invited@example.com")[0]
	if m.Subject != "You are invited to an organization" || !strings.Contains(m.Text, "“Call +1 555 0100” invites you to join “evil．\u200bcom/\u200bpay” at") {
		t.Errorf("%s\n%s", m.Subject, m.Text)
	}
	if want := "“evil．\u200bcom/\u200bpay”"; !strings.Contains(m.HTML, want) {
		t.Errorf("no %s in %s", want, m.HTML)
	}
}
