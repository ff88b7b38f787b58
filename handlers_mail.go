// room:mailflows made of mail

// The flows that pass through a mailbox: registering with confirmation, a forgotten password, a change of address. A team
// without them has EMAIL_VERIFICATION=false, and an operator who sets passwords.
//
// Its files are handlers_mail.go and db_registrations.go. What ties it to the house is what
// `grep -n room:mailflows *.go` finds: rows of the route table, kinds of mail, and where every mail token of a user is
// void. To take it out, delete the files and those lines.

package main

import (
	"context"
	"net/netip"
)

// A token is consumed in the transaction that it authorises, and only there: a password that is refused consumes nothing.

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

// register asks the address to confirm. Until then there is no account, only a registration, of which an address has one:
// the latest. The answer and the work are the same for an address that has an account; its owner gets a mail instead
// (R37).
func (s *server) register(ctx context.Context, c caller, in registerInput) (accepted, error) {
	hash, err := s.hashForRegistration(ctx, c, in)
	if err != nil {
		return accepted{}, err
	}
	err = s.db.inTx(ctx, func(tx db) error {
		taken, err := tx.emailTaken(ctx, in.Email)
		if err != nil {
			return err
		}
		id, err := tx.upsertRegistration(ctx, in.Email, in.Name, hash, s.cfg.VerifyTTL)
		if err != nil {
			return err
		}
		m := newMail{kind: mailRegistration, to: in.Email, registration: &id}
		entry := auditEntry{action: "user.registered", subject: id} // room:audit
		if taken {
			m = newMail{kind: mailAccountExists, owner: in.Email}
			entry = auditEntry{action: "user.registered_again"} // room:audit
		}
		tx.audit(c, entry) // room:audit
		return s.mail(ctx, tx, m)
	})
	s.wakeSender()
	return accepted{"We have sent a mail to this address. The link in it completes the registration."}, err
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
		tx.audit(c, auditEntry{action: "email.verified", subject: r.ID}) // room:audit
		return nil
	})
	if violates(err, "users_email_key") {
		err = errBadMailToken // the address got an account in another way meanwhile
	}
	if err != nil {
		return tokens{}, err
	}
	return s.issue(session)
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
		tx.audit(c, auditEntry{action: "password.reset_requested", subject: deref(owner)}) // room:audit
		return nil
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
	hash, err := s.passwords.hash(ctx, c.ip, in.Password)
	if err != nil {
		return none{}, err
	}
	err = s.consume(ctx, account, in.Token, purposeResetPassword, func(tx db, _ mailToken) error {
		tx.audit(c, auditEntry{action: "password.reset", subject: account.ID}) // room:audit
		return firstError(
			s.proveAddress(ctx, tx, account.ID, nil),
			tx.updatePasswordByMail(ctx, account.ID, hash),
			s.tellKeptPasskeys(ctx, tx, account),  // room:passkeys
			tx.deleteFailures(ctx, account.Email), // room:throttling
			s.endAccess(ctx, tx, account.Email, account.ID, nil),
		)
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
		tx.audit(c, auditEntry{action: "email.change_requested", subject: account.ID}) // room:audit
		return firstError(s.mail(ctx, tx, change), s.mail(ctx, tx, newMail{kind: mailChangeEmailNotice, owner: account.Email}))
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
		tx.audit(c, auditEntry{action: "email.changed", subject: account.ID}) // room:audit
		return firstError(s.proveAddress(ctx, tx, t.UserID, t.SessionID), tx.updateEmail(ctx, t.UserID, t.Email),
			tx.deleteSessions(ctx, t.UserID, t.SessionID), tx.voidMailTokens(ctx, t.UserID))
	})
	if violates(err, "users_email_key") {
		err = errBadMailToken
	}
	return none{}, err
}
