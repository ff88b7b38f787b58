package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// startMailServer is startTestServer with a delivery of the test's own. Without one nothing is sent until the test
// calls sendDue or sendNext. stop ends the replica early.
func startMailServer(t testing.TB, cfg config, deliver func(context.Context, message) error) (s *testServer, stop func()) {
	t.Helper()
	pool, err := openPool(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	logs := &lockedBuffer{}
	replica, err := newServer(cfg, pool, slog.New(slog.NewJSONHandler(logs, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if _, benchmark := t.(*testing.B); !benchmark {
		replica.passwords = newPasswords(cfg.PasswordMinLength, testCost)
	}
	replica.deliver = deliver
	listener, err := net.Listen("tcp", cfg.ListenAddr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- replica.listenAndServe(ctx, listener) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("shutting down:", err)
		}
	})
	t.Cleanup(func() {
		stop()
		if strings.Contains(logs.String(), `"code":"internal"`) && !t.Failed() {
			t.Errorf("a defect was logged:\n%s", logs)
		}
	})
	return &testServer{server: replica, t: t, url: "http://" + listener.Addr().String(), logs: logs,
		mail: newMailbox()}, stop
}

// newQuietServer is newTestServer without senders: mails wait in the outbox for sendDue. quietReplica adds one beside it.
func newQuietServer(t testing.TB, options ...func(*config)) *testServer {
	t.Helper()
	cfg := testConfig(newTestDatabase(t))
	for _, option := range options {
		option(&cfg)
	}
	s, _ := startMailServer(t, cfg, nil)
	return s
}

func (s *testServer) quietReplica() *testServer {
	s.t.Helper()
	other, _ := startMailServer(s.t, s.cfg, nil)
	return other
}

// sendNext is one round of a sender: the mail that is due longest goes to deliver. pgx.ErrNoRows when none is due.
func (s *testServer) sendNext(deliver func(context.Context, message) error) error {
	s.deliver = deliver // a quiet server has no sender that would read it
	return s.sendNextMail(s.t.Context())
}

// sendDue sends everything that is due into the mailbox, one mail after the other.
func (s *testServer) sendDue() {
	s.t.Helper()
	for {
		switch err := s.sendNext(s.mail.deliver); {
		case errors.Is(err, pgx.ErrNoRows):
			return
		case err != nil:
			s.t.Fatal(err)
		}
	}
}

// mailed returns what was delivered to an address, oldest first.
func (s *testServer) mailed(to string) []message {
	s.mail.mu.Lock()
	defer s.mail.mu.Unlock()
	var found []message
	for _, m := range s.mail.sent {
		if m.To == to {
			found = append(found, m)
		}
	}
	return found
}

// newestToken sends what is due and returns the newest token that was mailed to an address.
func (s *testServer) newestToken(to string) string {
	s.t.Helper()
	s.sendDue()
	var token string
	for _, m := range s.mailed(to) {
		if m.Token != "" {
			token = m.Token
		}
	}
	if token == "" {
		s.t.Fatalf("no token was mailed to %s", to)
	}
	return token
}

// startRegistration registers without waiting for the mail.
func (s *testServer) startRegistration(email, password string) {
	s.t.Helper()
	s.post("/v1/auth/register", "", map[string]string{"email": email, "password": password, "name": "Ada"}).want(202, "")
}

func (s *testServer) forgot(email string) answer {
	s.t.Helper()
	return s.post("/v1/auth/forgot-password", "", map[string]string{"email": email})
}

func (s *testServer) reset(token, password string) answer {
	s.t.Helper()
	return s.post("/v1/auth/reset-password", "", map[string]string{"token": token, "password": password})
}

// move asks for a change of address; confirm completes it.
func (s *testServer) move(access, email, password string) answer {
	s.t.Helper()
	return s.post("/v1/users/me/email", access, map[string]string{"email": email, "password": password})
}

func (s *testServer) confirm(token string) answer {
	s.t.Helper()
	return s.post("/v1/auth/confirm-email", "", map[string]string{"token": token})
}

// postLater posts beside the test, which goes on.
func (s *testServer) postLater(path string, body any) <-chan answer {
	answered := make(chan answer, 1)
	go func() {
		a, err := s.try(request{method: "POST", path: path, body: body})
		if err != nil {
			s.t.Error(err)
			a = answer{t: s.t}
		}
		answered <- a
	}()
	return answered
}

// waitBlocked returns when n statements on this database wait for a lock.
func (s *testServer) waitBlocked(n int) {
	s.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		blocked := scalar[int](s, `
			select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`)
		if blocked >= n {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%d statements wait for a lock, want %d", blocked, n)
		}
	}
}

// holdLock runs a statement in a transaction that stays open until the test ends it.
func (s *testServer) holdLock(sql string, args ...any) pgx.Tx {
	s.t.Helper()
	tx, err := s.pool.Begin(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	if _, err := tx.Exec(s.t.Context(), sql, args...); err != nil {
		s.t.Fatal(err)
	}
	return tx
}

// R37: who asks about whom makes no difference that anybody can see; R67: a disabled account gets no mail.
func TestForgotPasswordTellsNothing(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	for _, email := range []string{"known@example.com", "unverified@example.com", "disabled@example.com"} {
		s.newUser(email, "user")
	}
	s.exec("update users set email_verified = false where email = 'unverified@example.com'")
	s.exec("update users set disabled = true where email = 'disabled@example.com'")
	bodies := map[string]bool{}
	for email, gets := range map[string]bool{
		"known@example.com": true, "unverified@example.com": true, "disabled@example.com": false, "nobody@example.com": false,
	} {
		bodies[string(s.forgot(email).want(202, "").body)] = true
		s.sendDue()
		mails := s.mailed(email)
		if (len(mails) == 1) != gets || gets && len(mails[0].Token) != 43 {
			t.Errorf("%s got %d mails", email, len(mails))
		}
		if n := scalar[int](s, "select count(*) from mails where recipient = $1 and (sent_at is not null or failed_at is not null)", email); n != 1 {
			t.Errorf("%s: %d rows, want as many as for anybody", email, n)
		}
	}
	if len(bodies) != 1 {
		t.Errorf("the answers differ: %v", bodies)
	}
	// R65: one address, as text.
	for _, body := range []string{`{"email":["known@example.com","eve@example.com"]}`, `{"email":{"a":"known@example.com"}}`,
		`{"email":null}`, `{"email":"known@example.com","email":"eve@example.com"}`} {
		s.post("/v1/auth/forgot-password", "", body).want(400, "malformed_request")
	}
	s.forgot("known@example.com,eve@example.com").want(422, "invalid_fields")
	if scalar[bool](s, "select exists (select from mails where recipient like '%eve%')") {
		t.Error("mail to an address that the request chose")
	}
}

// mailAsks is every call that mails, by the kind of mail, with the address that its cap counts.
func mailAsks(s *testServer, known member) map[string]func(to string) request {
	post := func(path, token string, body map[string]string) request {
		return request{method: "POST", path: path, token: token, body: body}
	}
	return map[string]func(to string) request{
		mailVerifyEmail: func(to string) request {
			return post("/v1/auth/register", "", map[string]string{"email": to, "password": testPassword, "name": "X"})
		},
		mailResetPassword: func(to string) request {
			return post("/v1/auth/forgot-password", "", map[string]string{"email": to})
		},
		mailChangeEmail: func(to string) request {
			return post("/v1/users/me/email", known.token, map[string]string{"email": to, "password": testPassword})
		},
	}
}

// R42: one mail a minute and five an hour of a kind and address, silently, whoever the address belongs to.
func TestMailCaps(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, kind, ask, to string }{
		{"reset, known", mailResetPassword, mailResetPassword, "known@example.com"},
		{"reset, unknown", mailResetPassword, mailResetPassword, "nobody@example.com"},
		{"reset, disabled", mailResetPassword, mailResetPassword, "disabled@example.com"},
		{"register, known", mailAccountExists, mailVerifyEmail, "known@example.com"},
		{"register, unknown", mailVerifyEmail, mailVerifyEmail, "new@example.com"},
		{"change, free", mailChangeEmail, mailChangeEmail, "new@example.com"},
		{"change, taken", mailAccountExists, mailChangeEmail, "disabled@example.com"},
		{"change, notice", mailChangeEmailNotice, mailChangeEmail, "known@example.com"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newQuietServer(t, throttled)
			known := s.newUser("known@example.com", "user")
			s.newUser("disabled@example.com", "user")
			s.exec("update users set disabled = true where email = 'disabled@example.com'")
			ask := func() { t.Helper(); s.do(mailAsks(s, known)[tc.ask](tc.to)).want(202, "") }
			rows := func() int {
				t.Helper()
				return scalar[int](s, "select count(*) from mails where kind = $1 and recipient = $2", tc.kind, tc.to)
			}
			ask()
			s.exec("update mails set created_at = created_at - interval '40 seconds'")
			ask()
			if n := rows(); n != 1 {
				t.Errorf("%d mails in a minute", n)
			}
			s.sendDue() // counts as before when it was sent
			for range 5 {
				s.allowNextMail()
				ask()
			}
			s.exec("update mails set created_at = created_at - interval '50 minutes'")
			ask()
			if n := rows(); n != 5 {
				t.Errorf("%d mails in an hour", n)
			}
			s.exec("update mails set created_at = created_at - interval '10 minutes'")
			ask()
			if n := rows(); n != 6 {
				t.Errorf("%d mails after an hour", n)
			}
		})
	}
}

// R68: a sender takes the mail that is due longest, past those that others have in hand, are sent or given up, and what
// becomes of it touches no other.
func TestOutboxStatements(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	m := s.newUser("ada@example.com", "user")
	ids := map[string]string{}
	for name, column := range map[string]string{"first": "null, null, now() - interval '3 minutes'", "second": "null, null, now() - interval '2 minutes'",
		"sent": "now(), null, now() - interval '5 minutes'", "given up": "null, now(), now() - interval '4 minutes'", "later": "null, null, now() + interval '1 hour'"} {
		ids[name] = newID()
		s.exec("insert into mails (id, user_id, kind, recipient, sent_at, failed_at, next_attempt_at) values ($1, $2, 'reset_password', 'ada@example.com', "+column+")", ids[name], m.id)
	}
	lease := func(d db, want string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if got, err := d.leaseMail(ctx, time.Minute); got.ID != ids[want] || (want == "") != errors.Is(err, pgx.ErrNoRows) {
			t.Errorf("leased %v %v, want the %s", got, err, want)
		}
	}
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lease(db{q: tx}, "first")
	lease(s.db, "second")
	lease(s.db, "")
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.db.updateMailRetry(t.Context(), ids["first"], time.Hour), s.db.updateMailFailed(t.Context(), ids["second"]), s.db.updateMailSent(t.Context(), ids["later"])); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"first": "in 60 min", "second": "failed", "sent": "sent", "given up": "failed", "later": "sent"} {
		if got := scalar[string](s, `select concat_ws(' ', case when sent_at is not null then 'sent' end, case when failed_at is not null then 'failed' end,
			case when sent_at is null and failed_at is null then 'in ' || round(extract(epoch from next_attempt_at - now()) / 60) || ' min' end)
			from mails where id = $1`, ids[name]); got != want {
			t.Errorf("the %s is %s, want %s", name, got, want)
		}
	}
	err = s.db.upsertMailToken(t.Context(), hashMailToken("x"), mailRow{ID: ids["given up"]}, purposeResetPassword, time.Hour, nil)
	if !errors.Is(err, pgx.ErrNoRows) {
		t.Error("a token for a mail that was given up:", err)
	}
}

// R42: another kind, and another address, count apart.
func TestMailCapsCountApart(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t, throttled)
	known := s.newUser("known@example.com", "user")
	// An address that has had its five of each kind, and five of a kind that nobody asks for to each other one.
	s.exec(`insert into mails (id, kind, recipient, sent_at, created_at)
		select gen_random_uuid(), kind, 'full@example.com', now(), now() - i * interval '1 minute' from unnest($1::text[]) kind, generate_series(0, 4) i
		union all select gen_random_uuid(), 'other', name || '@example.com', now(), now() - i * interval '1 minute'
		from unnest('{known,new,other}'::text[]) name, generate_series(0, 4) i`,
		[]string{mailVerifyEmail, mailAccountExists, mailResetPassword, mailChangeEmail, mailChangeEmailNotice})
	for _, kind := range []string{mailChangeEmail, mailVerifyEmail, mailResetPassword} {
		for _, to := range []string{"known@example.com", "new@example.com", "other@example.com"} {
			s.do(mailAsks(s, known)[kind](to)).want(202, "")
		}
	}
	// The notice of a change is another kind, to one address; an address that is taken is told so, once for both calls.
	if got := scalar[string](s, "select string_agg(kind || ' ' || n, ', ' order by kind) from (select kind, count(*) n from mails where recipient <> 'full@example.com' and kind <> 'other' group by 1) k"); got !=
		"account_exists 1, change_email 2, change_email_notice 1, reset_password 3, verify_email 2" {
		t.Error(got)
	}
}

// R42: asking at once, at two replicas, gets no more mails through. The outbox is closed until all have come that far,
// and slow then, so that none has committed when the next one counts.
func TestMailCapsTogether(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, kind, to string }{
		{"reset, known", mailResetPassword, "known@example.com"},
		{"reset, unknown", mailResetPassword, "nobody@example.com"},
		{"register", mailVerifyEmail, "new@example.com"},
		{"change, from several accounts", mailChangeEmail, "shared@example.com"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newQuietServer(t, throttled)
			replicas := []*testServer{s, s.quietReplica()}
			const asks = 6
			var users []member
			for i := range asks {
				users = append(users, s.newUser(fmt.Sprintf("user%d@example.com", i), "user"))
			}
			s.exec("update users set email = 'known@example.com' where email = 'user0@example.com'")
			s.exec(`create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(0.1); return null; end'`)
			s.exec("create trigger slow after insert on mails for each row execute function slow()")
			for _, want := range []int{1, 5} {
				tx := s.holdLock("lock table mails in share mode")
				answered := make(chan int)
				go func() {
					answered <- together(asks, func(i int) bool {
						a, err := replicas[i%2].try(mailAsks(s, users[i])[tc.kind](tc.to))
						return err == nil && a.status == 202
					})
				}()
				s.waitBlocked(asks)
				if err := tx.Rollback(t.Context()); err != nil {
					t.Fatal(err)
				}
				if n := <-answered; n != asks {
					t.Errorf("%d of %d were accepted", n, asks)
				}
				if n := scalar[int](s, "select count(*) from mails where kind = $1 and recipient = $2", tc.kind, tc.to); n != want {
					t.Errorf("%d mails, want %d", n, want)
				}
				// Four in this hour, none in this minute: there is room for one.
				s.exec("delete from mails")
				for range 4 {
					s.exec(`insert into mails (id, kind, recipient, sent_at, created_at)
						values ($1, $2, $3, now(), now() - interval '2 minutes')`, newID(), tc.kind, tc.to)
				}
			}
		})
	}
}

// R33, R62, R67: a reset ends every session and voids every other token, also of mails that are still on their way. It
// does not sign in.
func TestResetPassword(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	m := s.newUser("ada@example.com", "user")
	s.signInAs(m.email, testPassword).want(200, "")
	s.forgot(m.email).want(202, "")
	s.move(m.token, "new@example.com", testPassword).want(202, "")
	token, changing := s.newestToken(m.email), s.newestToken("new@example.com")

	// Two more are on their way: the one is at the mail server, the other waits.
	s.allowNextMail()
	s.move(m.token, "newer@example.com", testPassword).want(202, "")
	inHand, release, sent := make(chan message), make(chan struct{}), make(chan error, 1)
	go func() {
		sent <- s.sendNext(func(_ context.Context, m message) error { inHand <- m; <-release; return nil })
	}()
	held := <-inHand
	s.forgot(m.email).want(202, "")
	if got := scalar[string](s, "select string_agg(kind, ' ' order by kind) from mails where sent_at is null"); got !=
		"change_email change_email_notice reset_password" || held.To != "newer@example.com" {
		t.Fatal(got, held)
	}

	if a := s.reset(token, "a new password 1").want(204, ""); len(a.body) != 0 {
		t.Errorf("%s", a.body)
	}
	for table, want := range map[string]int{"sessions": 0, "mail_tokens": 0, "mails where sent_at is null and kind <> all ('{change_email_notice,password_changed}')": 0} {
		if n := scalar[int](s, "select count(*) from "+table); n != want {
			t.Errorf("%s: %d are left", table, n)
		}
	}
	close(release)
	if err := <-sent; err != nil {
		t.Error(err)
	}
	s.sendDue()
	for _, void := range []string{changing, held.Token} {
		s.confirm(void).want(422, "invalid_token")
	}
	s.reset(token, "a new password 2").want(422, "invalid_token") // R60: once
	if mails := s.mailed(m.email); len(mails) != 4 || mails[3].Token != "" || !strings.Contains(mails[3].Subject, "password was changed") {
		t.Errorf("notice: %+v", mails)
	}
	s.get("/v1/users/me", m.token).want(401, "invalid_access_token")
	s.refreshWith(m.refresh).want(400, "invalid_grant")
	s.signInAs(m.email, testPassword).want(400, "invalid_grant")
	s.signInAs(m.email, "a new password 1").want(200, "")
}

// A password that is refused consumes nothing, and neither does an account that was disabled in between.
func TestResetPasswordRefused(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	m := s.newUser("ada.lovelace@example.com", "user")
	s.forgot(m.email).want(202, "")
	token := s.newestToken(m.email)
	before := scalar[string](s, "select password_hash from users")
	for _, tc := range []struct{ name, password, code string }{
		{"short", "eleven char", "password_too_short"},
		{"long", strings.Repeat("x", 257), "password_too_long"},
		{"address", m.email, "password_too_common"},
		{"local part", "Ada.Lovelace2026!", "password_too_common"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if a := s.in(t).reset(token, tc.password).want(422, "invalid_fields"); a.fields()["/password"] != tc.code {
				t.Errorf("fields: %s", a.body)
			}
		})
	}
	s.exec("update users set disabled = true")
	s.reset(token, "a new password 1").want(422, "invalid_token") // R67
	s.exec("update users set disabled = false")
	s.reset(token+"x", "a new password 1").want(422, "invalid_token")
	s.reset(token[:42]+flipLastBits(token), "a new password 1").want(422, "invalid_token")
	if scalar[string](s, "select password_hash from users") != before || scalar[int](s, "select count(*) from mail_tokens") != 1 ||
		scalar[int](s, "select count(*) from sessions") != 1 {
		t.Error("a refused reset changed something")
	}
	s.reset(token, "a new password 1").want(204, "")
}

// R67: disabled while the reset waits for the account, it is refused.
func TestResetPasswordDisabledMeanwhile(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	m := s.newUser("ada@example.com", "user")
	s.forgot(m.email).want(202, "")
	token := s.newestToken(m.email)
	tx := s.holdLock("update users set disabled = true")
	answered := s.postLater("/v1/auth/reset-password", map[string]string{"token": token, "password": "a new password 1"})
	s.waitBlocked(1)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	(<-answered).want(422, "invalid_token")
	s.exec("update users set disabled = false")
	s.signInAs(m.email, testPassword).want(200, "")
}

// R60, R61: the statement that consumes a token decides, not the look before it: what the token has become while the
// reset waits for the account counts.
func TestResetPasswordTokenMeanwhile(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	m := s.newUser("ada@example.com", "user")
	s.forgot(m.email).want(202, "")
	token := s.newestToken(m.email)
	for _, change := range []string{"expires_at = now() - interval '1 minute'", "purpose = 'confirm-email'", "token_hash = '\\x00'"} {
		row := scalar[string](s, "select to_jsonb(t)::text from mail_tokens t")
		tx := s.holdLock("select from users for no key update")
		answered := s.postLater("/v1/auth/reset-password", map[string]string{"token": token, "password": "a new password 1"})
		s.waitBlocked(1)
		s.exec("update mail_tokens set " + change)
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if a := <-answered; a.status != 422 || scalar[int](s, "select count(*) from mail_tokens") != 1 {
			t.Errorf("%s: %d %s", change, a.status, a.body)
		}
		s.exec("delete from mail_tokens")
		s.exec("insert into mail_tokens select * from jsonb_populate_record(null::mail_tokens, $1::jsonb)", row)
	}
	s.signInAs(m.email, testPassword).want(200, "")
	s.reset(token, "a new password 1").want(204, "")
}

// R60: of many uses at once, over two replicas, one wins.
func TestResetPasswordHasOneWinner(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	other := s.quietReplica()
	m := s.newUser("ada@example.com", "user")
	s.forgot(m.email).want(202, "")
	token := s.newestToken(m.email)
	password := func(i int) string { return fmt.Sprint("a new password ", i) }
	winner := -1
	won := together(12, func(i int) bool {
		a, err := []*testServer{s, other}[i%2].try(request{method: "POST", path: "/v1/auth/reset-password",
			body: map[string]string{"token": token, "password": password(i)}})
		if err != nil || a.status != 204 {
			if err != nil || a.status != 422 && a.status != 503 { // 503: the hashing gate was full for two seconds
				t.Errorf("%v %d %s", err, a.status, a.body)
			}
			return false
		}
		winner = i
		return true
	})
	if won != 1 {
		t.Fatalf("%d uses of one token won", won)
	}
	if n := scalar[int](s, "select count(*) from mails where kind = 'password_changed'"); n != 1 {
		t.Errorf("%d notices", n)
	}
	s.signInAs(m.email, password((winner+1)%12)).want(400, "invalid_grant")
	s.signInAs(m.email, password(winner)).want(200, "")
}

// R66: the new address confirms, the old one is told, nothing changes before, everything at once then.
func TestChangeEmail(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	m := s.newUser("old@example.com", "user")
	elsewhere := s.signInAs(m.email, testPassword).want(200, "")
	if a := s.move(m.token, "new@example.com", "not my password").want(422, "invalid_fields"); a.fields()["/password"] != "wrong_password" {
		t.Errorf("fields: %s", a.body)
	}
	s.post("/v1/users/me/email", "", map[string]string{"email": "new@example.com", "password": testPassword}).want(401, "unauthorized")
	if scalar[int](s, "select count(*) from mails") != 0 {
		t.Fatal("a refused change mailed")
	}
	s.move(m.token, "New@Example.com", testPassword).want(202, "")
	s.forgot(m.email).want(202, "")
	token, resetting := s.newestToken("new@example.com"), s.newestToken(m.email)
	notice := s.mailed(m.email)[0]
	if !strings.Contains(notice.Subject, "address") || notice.Token != "" || strings.Contains(notice.Text+notice.HTML, "token=") {
		t.Errorf("notice: %+v", notice)
	}
	if len(s.mailed("new@example.com")) != 1 || len(s.mailed(m.email)) != 2 {
		t.Errorf("mails: %+v", s.mail.sent)
	}
	if a := s.get("/v1/users/me", m.token).want(200, ""); a.str("email") != "old@example.com" {
		t.Errorf("changed before it was confirmed: %s", a.body)
	}

	s.exec("update users set email_verified = false where id = $1", m.id) // as it may be without EMAIL_VERIFICATION
	if a := s.confirm(token).want(204, ""); len(a.body) != 0 {
		t.Errorf("%s", a.body)
	}
	if a := s.get("/v1/users/me", m.token).want(200, ""); a.str("email") != "new@example.com" || a.json()["email_verified"] != true {
		t.Errorf("%s", a.body)
	}
	s.get("/v1/users/me", elsewhere.str("access_token")).want(401, "invalid_access_token")
	s.refreshWith(elsewhere.str("refresh_token")).want(400, "invalid_grant")
	s.refreshWith(m.refresh).want(200, "")
	s.confirm(token).want(422, "invalid_token")
	s.reset(resetting, "a new password 1").want(422, "invalid_token") // R62: it was mailed to the old address
	if scalar[int](s, "select count(*) from mail_tokens") != 0 {
		t.Error("a mail token survived")
	}
	s.signInAs("old@example.com", testPassword).want(400, "invalid_grant")
	s.signInAs("new@example.com", testPassword).want(200, "")
	// The old address is free again.
	s.startRegistration("old@example.com", "another password")
	s.verify(s.newestToken("old@example.com"), "another password").want(200, "")
}

// R37, R66: whether an address is taken cannot be learned by asking to move there; whoever has it is told.
func TestChangeEmailTellsNothing(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	m := s.newUser("ada@example.com", "user")
	s.newUser("taken@example.com", "user")
	s.newUser("disabled@example.com", "user")
	s.exec("update users set disabled = true where email = 'disabled@example.com'")
	bodies := map[string]bool{}
	for _, to := range []string{"free@example.com", "taken@example.com", "disabled@example.com", "ada@example.com"} {
		bodies[string(s.move(m.token, to, testPassword).want(202, "").body)] = true
		s.sendDue()
		if n := len(s.mailed(to)); to != m.email && n != 1 || to == m.email && n != 5 { // the caller gets the notices
			t.Errorf("%s got %d mails", to, n)
		}
		if n := scalar[int](s, "select count(*) from mails where kind in ('change_email', 'account_exists') and recipient = $1 and sent_at is not null", to); n != 1 {
			t.Errorf("%s: %d rows, want as many as for any address", to, n)
		}
		s.allowNextMail()
	}
	if len(bodies) != 1 {
		t.Errorf("the answers differ: %v", bodies)
	}
	if n := scalar[int](s, "select count(*) from mail_tokens where email <> 'free@example.com'"); n != 0 {
		t.Errorf("%d tokens for addresses that are taken", n)
	}
}

// A form that was sent twice gets one mail (R42), and the link in it works.
func TestChangeEmailAskedTwice(t *testing.T) {
	t.Parallel()
	for _, sent := range []bool{true, false} {
		s := newQuietServer(t, throttled)
		m := s.newUser("old@example.com", "user")
		s.move(m.token, "new@example.com", testPassword).want(202, "")
		if sent {
			s.sendDue()
		}
		s.move(m.token, "new@example.com", testPassword).want(202, "")
		s.confirm(s.newestToken("new@example.com")).want(204, "")
	}
	// R66: of two sessions that asked, the one whose mail is confirmed stays.
	s := newQuietServer(t)
	m := s.newUser("old@example.com", "user")
	elsewhere := s.signInAs(m.email, testPassword).want(200, "").str("access_token")
	s.move(elsewhere, "first@example.com", testPassword).want(202, "")
	s.sendDue()
	s.allowNextMail()
	s.move(m.token, "second@example.com", testPassword).want(202, "")
	s.confirm(s.newestToken("second@example.com")).want(204, "")
	if got := s.get("/v1/users/me", m.token).want(200, "").str("email"); got != "second@example.com" {
		t.Errorf("moved to %s", got)
	}
	s.get("/v1/users/me", elsewhere).want(401, "invalid_access_token")
}

// R66: somebody registers the new address before it is confirmed. The loser gets what any dead link gets, and keeps
// everything.
func TestChangeEmailCollision(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	m := s.newUser("old@example.com", "user")
	elsewhere := s.signInAs(m.email, testPassword).want(200, "")
	s.move(m.token, "new@example.com", testPassword).want(202, "")
	s.forgot(m.email).want(202, "")
	token, resetting := s.newestToken("new@example.com"), s.newestToken(m.email)
	s.startRegistration("new@example.com", "another password")
	before := scalar[string](s, "select string_agg(u::text, ' ' order by id) from users u")
	s.confirm(token).want(422, "invalid_token")
	if after := scalar[string](s, "select string_agg(u::text, ' ' order by id) from users u"); after != before {
		t.Errorf("changed from\n%s\nto\n%s", before, after)
	}
	s.get("/v1/users/me", elsewhere.str("access_token")).want(200, "")
	if n := scalar[int](s, "select count(*) from mail_tokens where user_id = $1", m.id); n != 2 {
		t.Errorf("%d tokens are left of 2", n)
	}
	s.reset(resetting, "a new password 1").want(204, "")
	s.signInAs("old@example.com", "a new password 1").want(200, "")
}

// R66: of two who move to one address at once, and many who use one link at once, one wins.
func TestChangeEmailRace(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	other := s.quietReplica()
	a, b := s.newUser("a@example.com", "user"), s.newUser("b@example.com", "user")
	s.move(a.token, "new@example.com", testPassword).want(202, "")
	tokens := []string{s.newestToken("new@example.com")}
	s.allowNextMail()
	s.move(b.token, "new@example.com", testPassword).want(202, "")
	tokens = append(tokens, s.newestToken("new@example.com"))
	won := together(12, func(i int) bool {
		a, err := []*testServer{s, other}[i%2].try(request{method: "POST", path: "/v1/auth/confirm-email", body: map[string]string{"token": tokens[i/2%2]}})
		if err != nil || a.status != 204 && a.code() != "invalid_token" {
			t.Errorf("%v %d %s", err, a.status, a.body)
		}
		return err == nil && a.status == 204
	})
	if got := scalar[string](s, "select string_agg(email, ' ' order by email = 'new@example.com') from users"); won != 1 ||
		got != "a@example.com new@example.com" && got != "b@example.com new@example.com" {
		t.Errorf("%d won: %s", won, got)
	}
}

// A change of address of an account that was disabled in between is refused and consumes nothing.
func TestChangeEmailDisabledMeanwhile(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	m := s.newUser("old@example.com", "user")
	s.move(m.token, "new@example.com", testPassword).want(202, "")
	token := s.newestToken("new@example.com")
	s.exec("update users set disabled = true")
	s.confirm(token).want(422, "invalid_token")
	s.exec("update users set disabled = false")
	s.confirm(token).want(204, "")
}

// mailTokenUses is what every purpose's endpoint is sent, and what it says to a token of its own.
var mailTokenUses = []struct {
	purpose string
	body    map[string]string
	status  int
}{
	{purposeVerifyEmail, map[string]string{"password": testPassword}, 200},
	{purposeResetPassword, map[string]string{"password": "a new password 1"}, 204},
	{purposeConfirmEmail, map[string]string{}, 204},
	{purposeInvitation, map[string]string{"password": testPassword, "name": "Ada"}, 201},
}

func (s *testServer) useMailToken(i int, token string) answer {
	s.t.Helper()
	body := map[string]string{"token": token}
	for k, v := range mailTokenUses[i].body {
		body[k] = v
	}
	return s.post("/v1/auth/"+mailTokenUses[i].purpose, "", body)
}

// newMailTokens mails a token of every purpose, each to an address of its own, in the order of mailTokenUses. owner is
// who moves and invites.
func (s *testServer) newMailTokens() (tokens []string, owner member, organization string) {
	s.t.Helper()
	owner = s.newUser("moving@example.com", "user")
	s.newUser("resetting@example.com", "user")
	organization = s.post("/v1/organizations", owner.token, map[string]string{"name": "Acme"}).want(201, "").str("id")
	s.startRegistration("registering@example.com", testPassword)
	s.forgot("resetting@example.com").want(202, "")
	s.move(owner.token, "moved@example.com", testPassword).want(202, "")
	s.inviteTo(owner, organization, "invited@example.com")
	return []string{s.newestToken("registering@example.com"), s.newestToken("resetting@example.com"),
		s.newestToken("moved@example.com"), s.newestToken("invited@example.com")}, owner, organization
}

func (s *testServer) inviteTo(by member, organization, email string) {
	s.t.Helper()
	s.post("/v1/organizations/"+organization+"/invitations", by.token, map[string]string{"email": email, "role": "member"}).want(201, "")
}

// R60: what a token of one purpose does, one of another cannot, nor is it a credential anywhere else.
func TestMailPurposesNeverCross(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	tokens, owner, _ := s.newMailTokens()
	for i, token := range tokens {
		for other := range mailTokenUses {
			if other != i {
				s.useMailToken(other, token).want(422, "invalid_token")
			}
		}
		if mailTokenUses[i].purpose != purposeInvitation {
			s.post("/v1/invitations/accept", owner.token, map[string]string{"token": token}).want(422, "invalid_token")
		}
		s.get("/v1/users/me", token).want(401, "invalid_access_token")
		s.refreshWith(token).want(400, "invalid_grant")
		s.refreshWith("rt_"+token).want(400, "invalid_grant")
		s.useMailToken(i, token).want(mailTokenUses[i].status, "")
	}
}

// R60, R61: a token that is void, of another purpose or of a disabled account is no way to try passwords.
func TestVoidTokenTriesNoPassword(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	s.startRegistration("ada@example.com", testPassword)
	token := s.newestToken("ada@example.com")
	s.forgot("ada@example.com").want(202, "")
	s.verify(s.newestToken("ada@example.com"), "wrong password").want(422, "invalid_token")
	s.verify(token, "wrong password").want(422, "invalid_fields")
	s.exec("update users set disabled = true")
	s.verify(token, "wrong password").want(422, "invalid_token")
	s.exec("update users set disabled = false")
	s.exec("update mail_tokens set expires_at = now() - interval '1 second'")
	s.verify(token, "wrong password").want(422, "invalid_token")
}

// R63: links are opened by scanners, so opening one does nothing.
func TestMailTokensArePosted(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	tokens, _, _ := s.newMailTokens()
	for i, token := range tokens {
		path := "/v1/auth/" + mailTokenUses[i].purpose
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE"} {
			if a := s.do(request{method: method, path: path + "?token=" + token}); a.status != 405 {
				t.Errorf("%s %s: %d", method, path, a.status)
			}
		}
		s.post(path+"?token="+token, "", mailTokenUses[i].body).want(400, "malformed_request")
		s.useMailToken(i, token).want(mailTokenUses[i].status, "")
	}
}

// R62: a new token voids the older one of its purpose, and of no other.
func TestMailTokenVoidsOlder(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	older, owner, organization := s.newMailTokens()
	s.exec("update mail_tokens set expires_at = now() + interval '1 minute'")
	s.allowNextMail()
	s.startRegistration("registering@example.com", testPassword)
	s.forgot("resetting@example.com").want(202, "")
	s.move(owner.token, "elsewhere@example.com", testPassword).want(202, "")
	s.inviteTo(owner, organization, "invited@example.com")
	newer := []string{s.newestToken("registering@example.com"), s.newestToken("resetting@example.com"),
		s.newestToken("elsewhere@example.com"), s.newestToken("invited@example.com")}
	if scalar[int](s, "select count(*) from mail_tokens") != 3 || scalar[int](s, "select count(*) from invitations") != 1 {
		t.Error("not one token a user and purpose")
	}
	if scalar[int](s, "select count(*) from mail_tokens where expires_at < now() + interval '10 minutes'") != 0 {
		t.Error("a newer token ends with the older")
	}
	for i := range mailTokenUses {
		s.useMailToken(i, older[i]).want(422, "invalid_token")
		s.useMailToken(i, newer[i]).want(mailTokenUses[i].status, "")
	}
}

// R62: "newer" is what was asked for later. An older mail that had to be tried again must not void it, least of all
// when it goes to an address that the owner has thought better of.
func TestMailRetryDoesNotVoidNewer(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	m, eve := s.newUser("old@example.com", "user"), s.newUser("eve@example.com", "user")
	s.move(m.token, "mistyped@example.com", testPassword).want(202, "")
	if err := s.sendNext(func(context.Context, message) error { return errors.New("450 try again later") }); err != nil {
		t.Fatal(err)
	}
	s.sendDue()
	s.allowNextMail()
	s.move(m.token, "right@example.com", testPassword).want(202, "")
	s.move(eve.token, "eves@example.com", testPassword).want(202, "") // later, and somebody else's
	right := s.newestToken("right@example.com")
	s.exec("update mails set next_attempt_at = now() where sent_at is null")
	s.sendDue()
	for _, late := range s.mailed("mistyped@example.com") {
		s.confirm(late.Token).want(422, "invalid_token")
	}
	s.confirm(right).want(204, "")
}

// R61: each purpose has its time, and expiry is in the statement.
func TestMailTokenLifetimes(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t, func(c *config) {
		c.VerifyTTL, c.ResetTTL, c.InvitationTTL = 23*time.Hour, 50*time.Minute, 160*time.Hour
	})
	tokens, _, _ := s.newMailTokens()
	for i, want := range []string{"23:00:00", "00:50:00", "01:00:00", "160:00:00"} {
		if !scalar[bool](s, `
			select expires_at between now() + $2::interval - interval '1 minute' and now() + $2::interval
			from (select purpose, expires_at from mail_tokens union all select 'accept-invitation', expires_at from invitations) all_tokens
			where purpose = $1`, mailTokenUses[i].purpose, want) {
			t.Errorf("%s does not end in %s", mailTokenUses[i].purpose, want)
		}
	}
	s.exec("update mail_tokens set expires_at = now() - interval '1 second'")
	s.exec("update invitations set expires_at = now() - interval '1 second'")
	for i, token := range tokens {
		s.useMailToken(i, token).want(422, "invalid_token")
	}
	if got := scalar[string](s, "select string_agg(email, ' ' order by email) from users where email_verified"); got != "moving@example.com resetting@example.com" {
		t.Error(got)
	}
}

// R60, R63, R96: the token is in the mail, in the fragment of its link, and nowhere else: no answer, no log, no row.
func TestMailTokenIsNowhere(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	tokens, _, _ := s.newMailTokens()
	for i, to := range []string{"registering@example.com", "resetting@example.com", "moved@example.com", "invited@example.com"} {
		m := s.mailed(to)[0]
		want := "https://app.example/#/" + mailTokenUses[i].purpose + "?token=" + m.Token
		if strings.Count(m.Text, m.Token) != 1 || !strings.Contains(m.Text, "\n"+want+"\n") || !strings.Contains(m.HTML, `href="`+want+`"`) || strings.Contains(m.Subject, m.Token) {
			t.Errorf("no link %s in\n%s\n%s", want, m.Text, m.HTML)
		}
		if u, err := url.Parse(want); err != nil || strings.Contains(u.RequestURI(), m.Token) {
			t.Error("a browser sends the token to the server of", want)
		}
	}
	places := map[string]string{"the database, while it lives": s.dump()}
	for i, token := range tokens {
		hash := sha256.Sum256([]byte(token))
		if n := scalar[int](s, `
			select count(*) from (select token_hash from mail_tokens union all select token_hash from invitations) all_tokens
			where token_hash = $1`, hash[:]); n != 1 {
			t.Errorf("%s: %d tokens with this SHA-256", mailTokenUses[i].purpose, n)
		}
		for _, a := range []answer{s.useMailToken((i+1)%len(tokens), token), s.useMailToken(i, token), s.useMailToken(i, token)} {
			places["an answer"] += fmt.Sprint(a.header) + string(a.body)
		}
	}
	places["the database, after"], places["the log"] = s.dump(), s.logs.String()
	for place, content := range places {
		for _, token := range tokens {
			raw, err := base64.RawURLEncoding.DecodeString(token)
			if err != nil || len(raw) != 32 {
				t.Fatalf("%q is not 32 bytes: %v", token, err)
			}
			for _, spelling := range []string{token, hex.EncodeToString([]byte(token)), hex.EncodeToString(raw), base64.StdEncoding.EncodeToString(raw)} {
				if strings.Contains(content, spelling) {
					t.Errorf("%s holds a token:\n%s", place, content)
				}
			}
		}
	}
}

// dump is every row of every table, as text.
func (s *testServer) dump() string {
	s.t.Helper()
	var all strings.Builder
	tables := scalar[[]string](s, "select array_agg(table_name::text) from information_schema.tables where table_schema = 'public'")
	for _, table := range tables {
		all.WriteString(scalar[string](s, "select coalesce(string_agg(t::text, E'\\n'), '') from "+pgx.Identifier{table}.Sanitize()+" t"))
	}
	return all.String()
}

// R82: the use of a token and a sender that is making another one for the same account take their locks in one order.
// The use is held between consuming its token and voiding the others; the sender comes then.
func TestMailTokenUsedWhileSending(t *testing.T) {
	t.Parallel()
	for _, purpose := range []string{purposeResetPassword, purposeConfirmEmail} {
		t.Run(purpose, func(t *testing.T) {
			t.Parallel()
			s := newQuietServer(t)
			m := s.newUser("ada@example.com", "user")
			elsewhere := s.signInAs(m.email, testPassword).want(200, "").str("access_token")
			body := map[string]string{}
			if purpose == purposeResetPassword {
				s.forgot(m.email).want(202, "")
				body["token"], body["password"] = s.newestToken(m.email), "a new password 1"
			} else {
				s.move(m.token, "new@example.com", testPassword).want(202, "")
				body["token"] = s.newestToken("new@example.com")
			}
			s.allowNextMail()
			s.forgot(m.email).want(202, "")
			tx := s.holdLock("select from sessions for update")
			answered := s.postLater("/v1/auth/"+purpose, body)
			s.waitBlocked(1)
			sent := make(chan error, 1)
			go func() { sent <- s.sendNext(s.mail.deliver) }()
			s.waitBlocked(2)
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			(<-answered).want(204, "")
			if err := <-sent; err != nil {
				t.Error("the sender:", err)
			}
			if n := scalar[int](s, "select count(*) from mail_tokens"); n != 0 {
				t.Errorf("%d tokens outlived the use of another", n)
			}
			s.get("/v1/users/me", elsewhere).want(401, "invalid_access_token")
		})
	}
}

// The pre-hijack cases (R64): an attacker prepares an account on the victim's address, or a way back into it, and
// waits for the victim to come.

const attackerPassword, victimPassword = "attacker password", "victim password 12"

// The attacker registers first and waits for the victim to confirm. The victim's own registration replaces it.
func TestPreHijackRegisterRegister(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	s.startRegistration("victim@example.com", attackerPassword)
	// The second mail is left out, it is the same minute: the link of the first works, with the latest password only.
	s.startRegistration("victim@example.com", victimPassword)
	token := s.newestToken("victim@example.com")
	s.verify(token, attackerPassword).want(422, "invalid_fields")
	s.verify(token, victimPassword).want(200, "")
	s.signInAs("victim@example.com", attackerPassword).want(400, "invalid_grant")
	// Once confirmed, a registration changes nothing.
	s.startRegistration("victim@example.com", attackerPassword)
	s.signInAs("victim@example.com", attackerPassword).want(400, "invalid_grant")
	s.signInAs("victim@example.com", victimPassword).want(200, "")
}

// The attacker registers again at the very moment when the victim's password has been checked.
func TestPreHijackRegisterDuringVerify(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	s.startRegistration("victim@example.com", victimPassword)
	token := s.newestToken("victim@example.com")
	attackers, err := s.passwords.hash(t.Context(), attackerPassword)
	if err != nil {
		t.Fatal(err)
	}
	tx := s.holdLock("update users set password_hash = $1", attackers)
	answered := s.postLater("/v1/auth/verify-email", map[string]string{"token": token, "password": victimPassword})
	s.waitBlocked(1)
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	(<-answered).want(422, "invalid_token")
	if scalar[bool](s, "select email_verified from users") || scalar[int](s, "select count(*) from sessions") != 0 {
		t.Error("the attacker's password was confirmed")
	}
	s.signInAs("victim@example.com", attackerPassword).want(400, "email_not_verified")
}

// The attacker registers first; the victim, told that there is an account, asks for a new password.
func TestPreHijackRegisterReset(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	s.startRegistration("victim@example.com", attackerPassword)
	verifying := s.newestToken("victim@example.com")
	s.allowNextMail()
	s.startRegistration("victim@example.com", attackerPassword) // this mail is still on its way
	s.forgot("victim@example.com").want(202, "")
	s.exec("update mails set next_attempt_at = now() + interval '1 minute' where sent_at is null and kind = 'verify_email'")
	s.reset(s.newestToken("victim@example.com"), victimPassword).want(204, "")
	s.exec("update mails set next_attempt_at = now() where sent_at is null")
	s.sendDue()
	s.verify(verifying, attackerPassword).want(422, "invalid_token")
	for _, m := range s.mailed("victim@example.com") {
		if m.Token != "" {
			s.verify(m.Token, attackerPassword).want(422, "invalid_token")
		}
	}
	if !scalar[bool](s, "select email_verified from users") || scalar[int](s, "select count(*) from mail_tokens") != 0 {
		t.Error("not the victim's alone")
	}
	s.signInAs("victim@example.com", attackerPassword).want(400, "invalid_grant")
	s.signInAs("victim@example.com", victimPassword).want(200, "")
}

// The victim has asked for a new password; the attacker registers before it is chosen.
func TestPreHijackResetRegister(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	// While there is no account, no mail goes out that could become a way into the attacker's.
	s.forgot("victim@example.com").want(202, "")
	s.sendDue()
	s.startRegistration("victim@example.com", attackerPassword)
	s.sendDue()
	if mails := s.mailed("victim@example.com"); len(mails) != 1 || !strings.Contains(mails[0].Text, "/#/verify-email?") {
		t.Fatalf("%+v", mails)
	}
	s.allowNextMail()
	s.forgot("victim@example.com").want(202, "")
	resetting := s.newestToken("victim@example.com")
	s.startRegistration("victim@example.com", attackerPassword)
	verifying := s.newestToken("victim@example.com")
	s.reset(resetting, victimPassword).want(204, "")
	s.verify(verifying, attackerPassword).want(422, "invalid_token")
	s.verify(verifying, victimPassword).want(422, "invalid_token")
	s.signInAs("victim@example.com", attackerPassword).want(400, "invalid_grant")
	s.signInAs("victim@example.com", victimPassword).want(200, "")
}

// Where registrations are usable at once: the attacker registers, stays signed in, and has asked to move the account
// to an address of their own. The victim's reset ends all three.
func TestPreHijackRegisterChangeReset(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t, func(c *config) { c.EmailVerification = false })
	s.post("/v1/auth/register", "", map[string]string{"email": "victim@example.com", "password": attackerPassword, "name": "X"}).want(201, "")
	attacker := s.signInAs("victim@example.com", attackerPassword).want(200, "")
	s.move(attacker.str("access_token"), "attacker@example.com", attackerPassword).want(202, "")
	changing := s.newestToken("attacker@example.com")
	s.allowNextMail()
	s.move(attacker.str("access_token"), "attacker2@example.com", attackerPassword).want(202, "") // not sent yet
	s.exec("update mails set next_attempt_at = now() + interval '1 minute' where sent_at is null")
	s.forgot("victim@example.com").want(202, "")
	s.reset(s.newestToken("victim@example.com"), victimPassword).want(204, "")
	s.exec("update mails set next_attempt_at = now() where sent_at is null")
	s.sendDue()
	if len(s.mailed("attacker2@example.com")) != 0 {
		t.Error("a mail that the reset voided was sent")
	}
	s.confirm(changing).want(422, "invalid_token")
	s.get("/v1/users/me", attacker.str("access_token")).want(401, "invalid_access_token")
	s.refreshWith(attacker.str("refresh_token")).want(400, "invalid_grant")
	s.signInAs("victim@example.com", attackerPassword).want(400, "invalid_grant")
	s.signInAs("victim@example.com", victimPassword).want(200, "")
}

// The attacker asks to move an account of their own to the victim's address; the victim registers, and opens the link
// in the attacker's mail as well.
func TestPreHijackChangeRegister(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	attacker := s.newUser("attacker@example.com", "user")
	s.move(attacker.token, "victim@example.com", testPassword).want(202, "")
	changing := s.newestToken("victim@example.com")
	s.startRegistration("victim@example.com", victimPassword)
	verifying := s.newestToken("victim@example.com")
	s.confirm(changing).want(422, "invalid_token")
	s.verify(verifying, victimPassword).want(200, "")
	s.confirm(changing).want(422, "invalid_token")
	s.signInAs("victim@example.com", testPassword).want(400, "invalid_grant")
	if a := s.get("/v1/users/me", attacker.token).want(200, ""); a.str("email") != "attacker@example.com" {
		t.Errorf("%s", a.body)
	}
}

// The attacker's account moves to the victim's address, because the victim opened the link. It is the victim's as soon
// as they ask for a password, whatever the attacker has kept.
func TestPreHijackChangeReset(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	attacker := s.newUser("attacker@example.com", "user")
	s.move(attacker.token, "victim@example.com", testPassword).want(202, "")
	s.confirm(s.newestToken("victim@example.com")).want(204, "")
	s.get("/v1/users/me", attacker.token).want(200, "")
	s.allowNextMail()
	s.move(attacker.token, "attacker@example.com", testPassword).want(202, "")
	back := s.newestToken("attacker@example.com")
	s.forgot("victim@example.com").want(202, "")
	s.reset(s.newestToken("victim@example.com"), victimPassword).want(204, "")
	s.confirm(back).want(422, "invalid_token")
	s.get("/v1/users/me", attacker.token).want(401, "invalid_access_token")
	s.signInAs("victim@example.com", testPassword).want(400, "invalid_grant")
	s.signInAs("victim@example.com", victimPassword).want(200, "")
}

// The attacker holds a password, the victim the mailbox: neither alone opens the account, in any call.
func TestPreHijackNeitherAlone(t *testing.T) {
	t.Parallel()
	s := newQuietServer(t)
	s.startRegistration("victim@example.com", attackerPassword)
	s.signInAs("victim@example.com", attackerPassword).want(400, "email_not_verified")
	token := s.newestToken("victim@example.com")
	for _, guess := range []string{victimPassword, "", " ", attackerPassword + " ", strings.ToUpper(attackerPassword)} {
		if a := s.verify(token, guess); a.status != 422 || a.code() != "invalid_fields" {
			t.Errorf("%q: %d %s", guess, a.status, a.body)
		}
	}
	if n := scalar[int](s, "select count(*) from sessions"); n != 0 || scalar[bool](s, "select email_verified from users") {
		t.Errorf("%d sessions", n)
	}
	s.post("/v1/auth/verify-email", "", map[string]string{"token": token}).want(422, "invalid_fields")
}

// R37: not even the export of what was asked for tells which addresses have an account.
func TestExportTellsNobodyElsesAddress(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	eve, _ := s.newUser("eve@example.com", "user"), s.newUser("victim@example.com", "user")
	for _, email := range []string{"victim@example.com", "free@example.com"} {
		s.post("/v1/users/me/email", eve.token, jsonBody("email", email, "password", testPassword)).want(202, "")
	}
	s.waitMail("free@example.com", 1)
	if a := s.get("/v1/users/me/export", eve.token).want(200, ""); strings.Contains(string(a.body), "free@") || strings.Contains(string(a.body), "victim@") {
		t.Errorf("%s", a.body)
	}
}

// R64: an account that is used although its address is unconfirmed, because EMAIL_VERIFICATION was off when it was made,
// is not taken over by whoever registers its address later.
func TestRegisterLeavesUsedAccounts(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for name, use := range map[string]string{
		"session":    "insert into sessions (id, user_id, expires_at) values ($1, $1, now() + interval '1 hour')",
		"membership": "with o as (insert into organizations (id, name, slug) values ($1, 'X', $1::uuid::text) returning id) insert into memberships (id, organization_id, user_id, role) select id, id, id, 'owner' from o",
		"admin":      "update users set role = 'admin' where id = $1",
		"proof":      "update users set email_verified = true where id = $1",
	} {
		u, email := newID(), name+"@example.com"
		s.exec("insert into users (id, email, name, password_hash) values ($1, $2, 'Ada', $3)", u, email, testPasswordHash())
		before := scalar[string](s, "select name || password_hash from users where id = $1", u)
		s.exec(strings.ReplaceAll(use, "$1", "'"+u+"'"))
		s.post("/v1/auth/register", "", jsonBody("email", email, "password", "another password", "name", "Eve")).want(202, "")
		if scalar[string](s, "select name || password_hash from users where id = $1", u) != before {
			t.Errorf("%s: replaced", name)
		}
		if m := s.waitMail(email, 1); m.Token != "" {
			t.Errorf("%s: mailed %s", name, m.Subject)
		}
	}
	// One that nobody uses is, whatever others do with theirs.
	s.exec("insert into users (id, email, name, password_hash) values ($1, 'unused@example.com', 'Ada', $2)", newID(), testPasswordHash())
	s.register("unused@example.com", "another password", 1)
	if scalar[bool](s, "select password_hash = $1 from users where email = 'unused@example.com'", testPasswordHash()) {
		t.Error("an unused account is not replaced")
	}
}
