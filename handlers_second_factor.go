// room:second-factor

package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5"
)

// factorState is what a user may know of their second factor.
type factorState struct {
	Enabled           bool       `json:"enabled"`
	CreatedAt         *time.Time `json:"created_at"`
	RecoveryCodesLeft int        `json:"recovery_codes_left"`
}

func (s *server) readSecondFactor(ctx context.Context, c caller, _ none) (factorState, error) {
	f, err := s.db.secondFactor(ctx, c.user.ID)
	if err != nil {
		return factorState{}, orElse(err, nil)
	}
	return factorState{true, &f.CreatedAt, f.CodesLeft}, nil
}

// enrolment is a secret for an authenticator app, and the same sealed, for the call that proves that the app has it.
type enrolment struct {
	Secret string `json:"secret"`
	URI    string `json:"uri"`
	Token  string `json:"token"`
}

// startSecondFactor writes nothing: what it begins is in the token, for this user, this session and ten minutes.
func (s *server) startSecondFactor(_ context.Context, c caller, _ none) (enrolment, error) {
	secret := make([]byte, totpSecret)
	rand.Read(secret)
	issuer := productName
	if u, err := url.Parse(s.cfg.AppURL); err == nil {
		issuer = u.Hostname()
	}
	plain := binary.BigEndian.AppendUint64(nil, uint64(time.Now().Add(enrolmentTTL).Unix())) // #nosec G115 -- after 1970
	sealed := s.keys.seal(append(plain, secret...), enrolmentPlace(c))
	return enrolment{base32NoPad.EncodeToString(secret), totpURI(secret, issuer, c.user.Email), base64.RawURLEncoding.EncodeToString(sealed)}, nil
}

func enrolmentPlace(c caller) string { return "enrolment " + c.user.ID + " " + c.session }

// openEnrolment returns the secret of a token that startSecondFactor gave to this session.
func (s *server) openEnrolment(c caller, token string) ([]byte, error) {
	sealed, err := decodeBase64(token)
	if err != nil {
		return nil, errBadToken
	}
	plain, err := s.keys.open(sealed, enrolmentPlace(c))
	if err != nil || len(plain) != 8+totpSecret || time.Now().Unix() > int64(binary.BigEndian.Uint64(plain)) { // #nosec G115 -- from startSecondFactor
		return nil, errBadToken
	}
	return plain[8:], nil
}

type enableSecondFactorInput struct {
	Token string `json:"token" is:"credential"`
	OTP   string `json:"otp" is:"credential"`
}

// recoveryCodeList is shown once.
type recoveryCodeList struct {
	RecoveryCodes []string `json:"recovery_codes"`
}

// enableSecondFactor adds the factor, or replaces it, once a code shows that the app has its secret. Every other session
// ends, since none of them passed it, and this one has now.
func (s *server) enableSecondFactor(ctx context.Context, c caller, in enableSecondFactorInput) (recoveryCodeList, error) {
	secret, err := s.openEnrolment(c, in.Token)
	if err != nil {
		return recoveryCodeList{}, invalid(fieldError{"/token", "invalid_token", "is not one of this session, or has expired"})
	}
	codes, hashes := newRecoveryCodes()
	err = s.db.inTx(ctx, func(tx db) error {
		if err := tx.lockActiveUser(ctx, c.user.ID); err != nil {
			return orElse(err, errInvalidToken)
		}
		now, err := tx.currentStep(ctx)
		if err != nil {
			return err
		}
		step := totpStep(secret, now, codeSpacing.Replace(in.OTP))
		if step == 0 {
			return invalid(fieldError{"/otp", "otp_invalid", "is not the code that the app shows now"})
		}
		tx.audit(c, auditEntry{action: "second_factor.enabled", subject: c.user.ID}) // room:audit
		return firstError(
			tx.upsertSecondFactor(ctx, c.user.ID, s.keys.seal(secret, c.user.ID), step),
			tx.replaceRecoveryCodes(ctx, c.user.ID, hashes),
			tx.deleteCodeFailures(ctx, c.user.ID), // room:throttling
			orElse(tx.raiseSession(ctx, c, "otp", "mfa"), errInvalidToken),
			tx.deleteSessions(ctx, c.user.ID, &c.session),
			tx.voidMailTokens(ctx, c.user.ID),                        // room:mailflows
			s.notify(ctx, tx, c.user.Email, "second_factor_enabled"), // room:mail
		)
	})
	s.wakeSender() // room:mail
	if err != nil {
		return recoveryCodeList{}, err
	}
	return recoveryCodeList{codes}, nil
}

// replaceRecoveryCodes voids the codes there are.
func (s *server) replaceRecoveryCodes(ctx context.Context, c caller, _ none) (recoveryCodeList, error) {
	codes, hashes := newRecoveryCodes()
	err := s.db.inTx(ctx, func(tx db) error {
		if err := tx.lockActiveUser(ctx, c.user.ID); err != nil {
			return orElse(err, errInvalidToken)
		}
		if _, err := tx.secondFactor(ctx, c.user.ID); err != nil {
			return orElse(err, errNoFactor)
		}
		tx.audit(c, auditEntry{action: "recovery_codes.replaced", subject: c.user.ID}) // room:audit
		return firstError(
			tx.replaceRecoveryCodes(ctx, c.user.ID, hashes),
			s.notify(ctx, tx, c.user.Email, "recovery_codes_replaced"), // room:mail
		)
	})
	s.wakeSender() // room:mail
	if err != nil {
		return recoveryCodeList{}, err
	}
	return recoveryCodeList{codes}, nil
}

// disableSecondFactor ends the other sessions; this one stays, as one of a password alone.
func (s *server) disableSecondFactor(ctx context.Context, c caller, _ none) (none, error) {
	err := s.db.inTx(ctx, func(tx db) error {
		if err := tx.lockActiveUser(ctx, c.user.ID); err != nil {
			return orElse(err, errInvalidToken)
		}
		if _, err := tx.secondFactor(ctx, c.user.ID); err != nil {
			return orElse(err, errNotFound)
		}
		tx.audit(c, auditEntry{action: "second_factor.disabled", subject: c.user.ID}) // room:audit
		return firstError(
			s.deleteSecondFactor(ctx, tx, c.user, "second_factor_disabled"),
			tx.deleteSessions(ctx, c.user.ID, &c.session),
		)
	})
	s.wakeSender() // room:mail
	return none{}, err
}

// deleteSecondFactor takes the factor off an account, whose row is locked: what its sessions passed is gone. The owner is
// told, if there was one.
func (s *server) deleteSecondFactor(ctx context.Context, tx db, u user, event string) error {
	err := tx.deleteSecondFactor(ctx, u.ID)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	return firstError(
		err,
		tx.lowerSessions(ctx, u.ID, "otp"),
		tx.deleteCodeFailures(ctx, u.ID),  // room:throttling
		s.notify(ctx, tx, u.Email, event), // room:mail
	)
}

// resetSecondFactor is for somebody who has lost app and recovery codes: an admin takes the factor off, never their own,
// and it ends every session.
func (s *server) resetSecondFactor(ctx context.Context, c caller, in userInput) (none, error) {
	err := s.asAdmin(ctx, c, func(tx db) error {
		u, err := tx.lockUser(ctx, in.UserID)
		switch {
		case err != nil:
			return orElse(err, errNotFound)
		case u.ID == c.user.ID:
			return errOwnAccount
		}
		tx.audit(c, auditEntry{action: "second_factor.reset", subject: u.ID}) // room:audit
		return firstError(
			s.deleteSecondFactor(ctx, tx, u, "second_factor_reset"),
			tx.deleteSessions(ctx, u.ID, nil),
		)
	})
	s.wakeSender() // room:mail
	return none{}, err
}

// resetByCommand is what admin EMAIL --reset-second-factor does besides.
func (s *server) resetByCommand(ctx context.Context, tx db, u user, asked bool) error {
	if !asked {
		return nil
	}
	tx.audit(caller{}, auditEntry{action: "second_factor.reset", subject: u.ID}) // room:audit
	return firstError(
		s.deleteSecondFactor(ctx, tx, u, "second_factor_reset"),
	)
}
