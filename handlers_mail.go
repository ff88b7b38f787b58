package main

import (
	"context"
	"net/netip"
)

// The flows that pass through a mailbox. A token is consumed in the transaction that it authorises, and only there: a
// password that is refused consumes nothing.

// consume runs fn in the transaction that consumes a token of account. It locks the owner first, as every change of an
// account does, so that two flows of one user wait for each other instead of deadlocking (R82).
func (s *server) consume(ctx context.Context, account account, token, purpose string, fn func(tx db, t mailToken) error) error {
	return s.db.inTx(ctx, func(tx db) error {
		if _, err := tx.lockActiveUserByEmail(ctx, account.Email); err != nil {
			return orElse(err, errBadMailToken)
		}
		t, err := tx.deleteMailToken(ctx, hashMailToken(token), purpose)
		if err != nil {
			return orElse(err, errBadMailToken)
		}
		return fn(tx, t)
	})
}

type verifyEmailInput struct {
	Token    string `json:"token" is:"credential"`
	Password string `json:"password" is:"password"`
}

// verifyEmail confirms an address and signs in. The token proves the mailbox, the password proves that whoever
// registered is at the keyboard: either alone opens nothing (R64). A wrong password leaves the token alive.
func (s *server) verifyEmail(ctx context.Context, c caller, in verifyEmailInput) (tokens, error) {
	account, err := s.db.accountByMailToken(ctx, hashMailToken(in.Token), purposeVerifyEmail)
	if err != nil {
		return tokens{}, orElse(err, errBadMailToken)
	}
	if err := s.requirePassword(ctx, c, account, "/password", in.Password); err != nil {
		return tokens{}, err
	}
	var session newSession
	err = s.consume(ctx, account, in.Token, purposeVerifyEmail, func(tx db, _ mailToken) error {
		// Only with the very hash that was verified: a registration in between has replaced it, and counts.
		if err := tx.updateEmailVerified(ctx, account.ID, account.PasswordHash); err != nil {
			return orElse(err, errBadMailToken)
		}
		if err := tx.deleteSessions(ctx, account.ID, nil); err != nil {
			return err
		}
		if session, err = s.startSession(ctx, tx, c, account.ID, account.PasswordHash); err != nil {
			return err
		}
		return tx.audit(ctx, c, "email.verified", nil, &account.ID, nil)
	})
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
		owner, err := tx.insertMailOf(ctx, newMail{kind: mailResetPassword, owner: in.Email, active: true})
		if owner == nil {
			c.ip = netip.Addr{} // it would outlive an account that this address gets later
		}
		return inOrder(err, tx.audit(ctx, c, "password.reset_requested", nil, owner, nil))
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
		return none{}, orElse(err, errBadMailToken)
	}
	if err := s.passwords.refuse("/password", in.Password, account.Email); err != nil {
		return none{}, err
	}
	hash, err := s.passwords.hash(ctx, c.ip, in.Password)
	if err != nil {
		return none{}, err
	}
	err = s.consume(ctx, account, in.Token, purposeResetPassword, func(tx db, _ mailToken) error {
		return inOrder(tx.updatePasswordByMail(ctx, account.ID, hash),
			tx.audit(ctx, c, "password.reset", nil, &account.ID, nil), tx.deleteThrottles(ctx, account.Email),
			tx.endAccess(ctx, account.Email, account.ID, nil))
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
	account, err := s.db.accountByEmail(ctx, c.user.Email)
	if err != nil {
		return accepted{}, orElse(err, errInvalidToken)
	}
	if err := s.requirePassword(ctx, c, account, "/password", in.Password); err != nil {
		return accepted{}, err
	}
	err = s.db.inTx(ctx, func(tx db) error {
		if _, err := tx.lockUserWithPassword(ctx, c.user.ID, account.PasswordHash); err != nil {
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
		return inOrder(tx.insertMail(ctx, change), tx.audit(ctx, c, "email.change_requested", nil, &account.ID, nil),
			tx.insertMail(ctx, newMail{kind: mailChangeEmailNotice, owner: account.Email}))
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
		return none{}, orElse(err, errBadMailToken)
	}
	err = s.consume(ctx, account, in.Token, purposeConfirmEmail, func(tx db, t mailToken) error {
		return inOrder(tx.updateEmail(ctx, t.UserID, t.Email), tx.deleteSessions(ctx, t.UserID, t.SessionID),
			tx.audit(ctx, c, "email.changed", nil, &account.ID, nil), tx.voidMailTokens(ctx, t.UserID))
	})
	if violates(err, "users_email_key") {
		err = errBadMailToken
	}
	return none{}, err
}
