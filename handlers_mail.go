package main

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"strings"

	"github.com/jackc/pgx/v5"
)

// The flows that pass through a mailbox. A token is consumed in the transaction that it authorises, and only there: a
// password that is refused consumes nothing.

// consume runs fn in the transaction that consumes a token of account. It locks the owner first, as every change of an
// account does, so that two flows of one user wait for each other instead of deadlocking (R82).
func (s *server) consume(ctx context.Context, account account, token, purpose string, fn func(tx db, t mailToken) error) error {
	return s.db.inTx(ctx, func(tx db) error {
		if err := tx.lockActiveUser(ctx, account.ID); err != nil {
			return orElse(err, errBadMailToken)
		}
		t, err := tx.deleteMailToken(ctx, hashMailToken(token), purpose)
		if err != nil {
			return orElse(err, errBadMailToken)
		}
		return fn(tx, t)
	})
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
	event, _, _ := strings.Cut(m.notice, " ")
	kind := strings.TrimSpace(m.kind + " " + event) // one notice keeps none of another event back
	above, err := s.count(ctx, tx, []counter{s.counter(mailsMinute, kind, hashed(m.to)), s.counter(mailsHour, kind, hashed(m.to))})
	if err != nil || len(above) > 0 {
		return nil, false, err
	}
	owner, err = tx.insertMail(ctx, m)
	return owner, err == nil, err
}

// notify tells the owner of an account, by mail, what has changed about how they sign in or what they may do: event is a
// line of mails/security_notice.txt.
func (s *server) notify(ctx context.Context, tx db, email, event string) error {
	return s.mail(ctx, tx, newMail{kind: mailSecurityNotice, owner: email, notice: event})
}

// proveAddress comes before an address is proved: who was there until then may have been somebody else. Where it was not
// proved, every credential but the password, which the callers see to, is void, and every session but one.
func (s *server) proveAddress(ctx context.Context, tx db, userID string, except *string) error {
	u, err := tx.userByID(ctx, userID)
	if err != nil || u.EmailVerified {
		return orElse(err, nil)
	}
	return inOrder(
		s.deleteSecondFactor(ctx, tx, u, "second_factor_void"), // room:second-factor
		s.deletePasskeys(ctx, tx, u, "passkeys_void"),          // room:passkeys
		tx.deleteSessions(ctx, userID, except))
}

// endAccess is what a new password means: every session but one ends, every mail token is void, the owner is told.
func (s *server) endAccess(ctx context.Context, tx db, email, userID string, except *string) error {
	return inOrder(tx.deleteSessions(ctx, userID, except), tx.voidMailTokens(ctx, userID),
		s.mail(ctx, tx, newMail{kind: mailPasswordChanged, owner: email}))
}

type verifyEmailInput struct {
	Token    string `json:"token" is:"credential"`
	Password string `json:"password" is:"password"`
}

// verifyEmail makes the account of a registration, and signs in. The token proves the mailbox, the password proves that
// whoever registered is at the keyboard: either alone opens nothing (R64). A wrong password leaves the token alive.
func (s *server) verifyEmail(ctx context.Context, c caller, in verifyEmailInput) (tokens, error) {
	r, err := s.db.registrationByToken(ctx, hashMailToken(in.Token))
	if err != nil {
		return tokens{}, s.deadLink(ctx, c, err)
	}
	if err := s.requirePassword(ctx, c, account{ID: r.ID, Email: r.Email, PasswordHash: r.PasswordHash}, "/password", in.Password); err != nil {
		return tokens{}, err
	}
	var session newSession
	err = s.db.inTx(ctx, func(tx db) error {
		r, err := tx.deleteRegistration(ctx, hashMailToken(in.Token), r.PasswordHash)
		if err != nil {
			return orElse(err, errBadMailToken)
		}
		if _, err := tx.insertUser(ctx, newUser{r.ID, r.Email, r.Name, "user", r.PasswordHash, true}); err != nil {
			return err
		}
		if session, err = s.startSession(ctx, tx, c, r.ID, passwordProof(r.PasswordHash)); err != nil {
			return err
		}
		return tx.audit(ctx, c, "email.verified", nil, &r.ID, nil)
	})
	if violates(err, "users_email_key") {
		err = errBadMailToken // the address got an account in another way meanwhile
	}
	if err != nil {
		return tokens{}, err
	}
	return s.issue(session)
}

// deadLink is the answer to a mail token that was not found.
func (s *server) deadLink(ctx context.Context, c caller, err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return s.wrong(ctx, c, errBadMailToken)
	}
	return err
}

type forgotPasswordInput struct {
	Email string `json:"email" is:"email"`
}

// forgotPassword mails a link to choose a new password. Answer and work are the same whoever asks about whomever (R37).
func (s *server) forgotPassword(ctx context.Context, c caller, in forgotPasswordInput) (accepted, error) {
	err := s.db.inTx(ctx, func(tx db) error {
		owner, sent, err := s.mailOf(ctx, tx, newMail{kind: mailResetPassword, owner: in.Email, active: true})
		if err != nil || !sent {
			return err // without a mail there is nothing to tell: anybody could fill the owner's trail
		}
		if owner == nil {
			c.ip = netip.Addr{} // it would outlive an account that this address gets later
		}
		return tx.audit(ctx, c, "password.reset_requested", nil, owner, nil)
	})
	s.wakeSender()
	return accepted{"If this address has an account, we have sent it a mail with a link to choose a new password."}, err
}

type resetPasswordInput struct {
	Token    string `json:"token" is:"credential"`
	Password string `json:"password" is:"new_password"`
}

// resetPassword sets a password for whoever holds the mailbox: it ends every session, voids every other token, and
// confirms the address, because the token proves it. It does not sign in (R67).
func (s *server) resetPassword(ctx context.Context, c caller, in resetPasswordInput) (none, error) {
	account, err := s.db.accountByMailToken(ctx, hashMailToken(in.Token), purposeResetPassword)
	if err != nil {
		return none{}, s.deadLink(ctx, c, err)
	}
	if err := s.passwords.refuse("/password", in.Password, account.Email); err != nil {
		return none{}, err
	}
	hash, err := s.passwords.hash(ctx, in.Password)
	if err != nil {
		return none{}, err
	}
	err = s.consume(ctx, account, in.Token, purposeResetPassword, func(tx db, _ mailToken) error {
		return inOrder(s.proveAddress(ctx, tx, account.ID, nil), tx.updatePasswordByMail(ctx, account.ID, hash),
			s.tellKeptPasskeys(ctx, tx, account), // room:passkeys
			tx.audit(ctx, c, "password.reset", nil, &account.ID, nil), tx.deleteFailures(ctx, account.Email),
			s.endAccess(ctx, tx, account.Email, account.ID, nil))
	})
	s.wakeSender()
	return none{}, err
}

type changeEmailInput struct {
	Email    string `json:"email" is:"email"`
	Password string `json:"password" is:"password"`
}

// changeEmail asks the new address to confirm, and tells the old one. Whoever has the new address already is told so;
// the caller gets the same answer (R37, R66).
func (s *server) changeEmail(ctx context.Context, c caller, in changeEmailInput) (accepted, error) {
	account, err := s.db.accountByID(ctx, c.user.ID)
	if err != nil {
		return accepted{}, orElse(err, errInvalidToken)
	}
	if err := s.requirePassword(ctx, c, account, "/password", in.Password); err != nil {
		return accepted{}, err
	}
	err = s.db.inTx(ctx, func(tx db) error {
		if _, err := tx.lockUserWithPassword(ctx, c.user.ID, &account.PasswordHash); err != nil {
			return orElse(err, wrongPassword("/password"))
		}
		taken, err := tx.emailTaken(ctx, in.Email)
		if err != nil {
			return err
		}
		change := newMail{kind: mailChangeEmail, owner: account.Email, to: in.Email, session: &c.session}
		if taken {
			change = newMail{kind: mailAccountExists, owner: in.Email}
		}
		return inOrder(s.mail(ctx, tx, change), tx.audit(ctx, c, "email.change_requested", nil, &account.ID, nil),
			s.mail(ctx, tx, newMail{kind: mailChangeEmailNotice, owner: account.Email}))
	})
	s.wakeSender()
	return accepted{"We have sent a mail to the new address. The link in it completes the change."}, err
}

type confirmEmailInput struct {
	Token string `json:"token" is:"credential"`
}

// confirmEmail makes the address that the token was mailed to the user's, ends the sessions other than the one that
// asked, and voids every other token. Whoever loses a race for an address gets what any dead link gets (R66).
func (s *server) confirmEmail(ctx context.Context, c caller, in confirmEmailInput) (none, error) {
	account, err := s.db.accountByMailToken(ctx, hashMailToken(in.Token), purposeConfirmEmail)
	if err != nil {
		return none{}, s.deadLink(ctx, c, err)
	}
	err = s.consume(ctx, account, in.Token, purposeConfirmEmail, func(tx db, t mailToken) error {
		return inOrder(s.proveAddress(ctx, tx, t.UserID, t.SessionID), tx.updateEmail(ctx, t.UserID, t.Email), tx.deleteSessions(ctx, t.UserID, t.SessionID),
			tx.audit(ctx, c, "email.changed", nil, &account.ID, nil), tx.voidMailTokens(ctx, t.UserID))
	})
	if violates(err, "users_email_key") {
		err = errBadMailToken
	}
	return none{}, err
}
