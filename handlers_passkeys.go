// room:passkeys

package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// passkeyOffers is the limit of asking how to sign in: pages do so whenever they are shown.
const passkeyOffers = "passkey_options"

// requestOptions is PublicKeyCredentialRequestOptionsJSON, WebAuthn level 3 section 5.1.10.
type requestOptions struct {
	Challenge        string `json:"challenge"`
	Timeout          int    `json:"timeout"` // milliseconds
	RPID             string `json:"rpId"`
	UserVerification string `json:"userVerification"`
}

// creationOptions is PublicKeyCredentialCreationOptionsJSON, section 5.1.9.
type creationOptions struct {
	RP                     relyingParty           `json:"rp"`
	User                   passkeyUser            `json:"user"`
	Challenge              string                 `json:"challenge"`
	PubKeyCredParams       []credentialParameter  `json:"pubKeyCredParams"`
	Timeout                int                    `json:"timeout"` // milliseconds
	ExcludeCredentials     []credentialDescriptor `json:"excludeCredentials"`
	AuthenticatorSelection authenticatorSelection `json:"authenticatorSelection"`
	Attestation            string                 `json:"attestation"`
}

type relyingParty struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

type passkeyUser struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	DisplayName string `json:"displayName"`
}

type credentialParameter struct {
	Type string `json:"type"`
	Alg  int    `json:"alg"`
}

type credentialDescriptor struct {
	Type string `json:"type"`
	ID   string `json:"id"`
}

type authenticatorSelection struct {
	ResidentKey        string `json:"residentKey"`
	RequireResidentKey bool   `json:"requireResidentKey"`
	UserVerification   string `json:"userVerification"`
}

const publicKeyType = "public-key"

// offerPasskey names no credential, so it tells nothing about who has one, and stores nothing.
func (s *server) offerPasskey(context.Context, caller, none) (requestOptions, error) {
	if s.cfg.passkeyRPID == "" {
		return requestOptions{}, errNotFound
	}
	challenge := base64.RawURLEncoding.EncodeToString(s.keys.signChallenge(forSignIn))
	return requestOptions{challenge, int(challengeTTL.Milliseconds()), s.cfg.passkeyRPID, "required"}, nil
}

type credentialInput struct {
	Credential jsontext.Value `json:"credential"`
}

// signInWithPasskey answers everything that is wrong alike. Whoever has the passkey of a disabled account is told so.
func (s *server) signInWithPasskey(ctx context.Context, c caller, in credentialInput) (tokens, error) {
	var p storedPasskey
	used, ok := s.readCeremony(in.Credential, "webauthn.get", forSignIn)
	if ok {
		var err error
		if p, err = s.db.passkeyByCredential(ctx, s.cfg.passkeyRPID, used.credentialID); err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return tokens{}, err
		}
		handle, err := uuid.FromBytes(used.userHandle)
		ok = err == nil && handle.String() == p.UserID && used.signedBy(p.PublicKey)
	}
	var refusal error
	switch {
	case !ok:
		refusal = s.wrong(ctx, c, errInvalidPasskey)
	case p.Disabled:
		refusal = errAccountDisabled
	case !p.EmailVerified && s.cfg.EmailVerification:
		refusal = errEmailNotVerified
	}
	if refusal != nil {
		return tokens{}, s.refuseSignIn(ctx, c, p.UserID, refusal)
	}
	var session newSession
	err := s.db.inTx(ctx, func(tx db) (err error) {
		if session, err = s.startSession(ctx, tx, c, p.UserID, proof{amr: used.methods()}); err != nil {
			return err
		}
		return s.usePasskey(ctx, tx, session.user, p.ID, used)
	})
	if err != nil {
		if errors.Is(err, errInvalidGrant) { // it was disabled just now
			err = errInvalidPasskey
		}
		return tokens{}, s.refuseSignIn(ctx, c, p.UserID, err)
	}
	s.wakeSender() // room:mail
	s.metrics.signIns.WithLabelValues("ok").Inc()
	return s.issue(session)
}

// usePasskey spends the challenge, since a synced passkey never counts, and notes what is odd: a counter that did not
// rise may mean a copy, and whether a passkey is synced should not change. Neither is a reason to refuse: authenticators
// get both wrong (section 6.1.1; section 7.2 step 18, which is not followed).
func (s *server) usePasskey(ctx context.Context, tx db, u user, id string, used ceremony) error {
	use, err := tx.updatePasskeyUse(ctx, id, used)
	if err := firstError(err, tx.insertSpentChallenge(ctx, used)); err != nil {
		return orElse(err, errInvalidPasskey)
	}
	if use.BackupChanged {
		tx.audit(caller{user: u}, auditEntry{action: "passkey.backup_changed", subject: id}) // room:audit
	}
	if use.CounterRegressed {
		tx.audit(caller{user: u}, auditEntry{action: "passkey.counter_regressed", subject: id}) // room:audit
		err = s.notify(ctx, tx, u.Email, "passkey_copied")                                      // room:mail
	}
	return err
}

// offerNewPasskey begins a passkey for the caller's account; the answer is good in this session alone.
func (s *server) offerNewPasskey(ctx context.Context, c caller, _ none) (creationOptions, error) {
	if s.cfg.passkeyRPID == "" {
		return creationOptions{}, errNotFound
	}
	known, err := s.db.credentialIDsByUser(ctx, c.user.ID)
	if err != nil {
		return creationOptions{}, err
	}
	handle := uuid.MustParse(c.user.ID) // no personal data: section 14.6.1
	o := creationOptions{
		RP:                 relyingParty{s.cfg.passkeyRPID, productName},
		User:               passkeyUser{base64.RawURLEncoding.EncodeToString(handle[:]), c.user.Email, c.user.Name},
		Challenge:          base64.RawURLEncoding.EncodeToString(s.keys.signChallenge(forRegistration(c))),
		Timeout:            int(challengeTTL.Milliseconds()),
		ExcludeCredentials: []credentialDescriptor{}, Attestation: "none",
		AuthenticatorSelection: authenticatorSelection{"required", true, "required"},
	}
	for _, alg := range passkeyAlgorithms {
		o.PubKeyCredParams = append(o.PubKeyCredParams, credentialParameter{publicKeyType, alg})
	}
	for _, id := range known {
		o.ExcludeCredentials = append(o.ExcludeCredentials, credentialDescriptor{publicKeyType, base64.RawURLEncoding.EncodeToString(id)})
	}
	return o, nil
}

type createPasskeyInput struct {
	Name       string         `json:"name" is:"name"`
	Credential jsontext.Value `json:"credential"`
}

// createPasskey adds a passkey. Its device has verified the user just now, so the session has passed two factors.
func (s *server) createPasskey(ctx context.Context, c caller, in createPasskeyInput) (p passkey, err error) {
	made, ok := s.readCeremony(in.Credential, "webauthn.create", forRegistration(c))
	var publicKey []byte
	if ok {
		publicKey, ok = made.publicKey()
	}
	if !ok {
		return p, errInvalidPasskey
	}
	err = s.db.inTx(ctx, func(tx db) error {
		if err := tx.lockActiveUser(ctx, c.user.ID); err != nil {
			return orElse(err, errInvalidToken)
		}
		if n, err := tx.countPasskeys(ctx, c.user.ID); err != nil || n >= maxPasskeys {
			return firstError(
				err,
				errTooManyPasskeys,
			)
		}
		if err := tx.insertSpentChallenge(ctx, made); err != nil {
			return orElse(err, errInvalidPasskey)
		}
		if p, err = tx.insertPasskey(ctx, c.user.ID, s.cfg.passkeyRPID, in.Name, publicKey, made); err != nil {
			return err
		}
		tx.audit(c, auditEntry{action: "passkey.created", subject: p.ID}) // room:audit
		return firstError(
			orElse(tx.raiseSession(ctx, c, made.methods()...), errInvalidToken),
			s.notify(ctx, tx, c.user.Email, "passkey_added"), // room:mail
		)
	})
	s.wakeSender() // room:mail
	return p, err
}

func (s *server) listPasskeys(ctx context.Context, c caller, in pageInput) (page[passkey], error) {
	rows, err := s.db.passkeysByUser(ctx, c.user.ID, in)
	return newPage(rows, in.Limit, func(p passkey) string { return p.ID }), err
}

type passkeyInput struct {
	PasskeyID string `path:"passkey_id" is:"uuid"`
}

type updatePasskeyInput struct {
	passkeyInput
	Name *string `json:"name" is:"name"`
}

func (s *server) updatePasskey(ctx context.Context, c caller, in updatePasskeyInput) (p passkey, err error) {
	err = s.db.inTx(ctx, func(tx db) error {
		if p, err = tx.updatePasskeyName(ctx, c.user.ID, in.PasskeyID, in.Name); err != nil {
			return orElse(err, errNotFound)
		}
		tx.audit(c, auditEntry{action: "passkey.updated", subject: p.ID}) // room:audit
		return nil
	})
	return p, err
}

// deletePasskey ends the other sessions: one of them may be the lost device's. The last one may go too: there is a
// password, or a link by mail to choose one.
func (s *server) deletePasskey(ctx context.Context, c caller, in passkeyInput) (none, error) {
	err := s.db.inTx(ctx, func(tx db) error {
		if err := tx.lockActiveUser(ctx, c.user.ID); err != nil {
			return orElse(err, errInvalidToken)
		}
		if err := tx.deletePasskey(ctx, c.user.ID, in.PasskeyID); err != nil {
			return orElse(err, errNotFound)
		}
		left, err := tx.countPasskeys(ctx, c.user.ID)
		if err == nil && left == 0 {
			err = tx.lowerSessions(ctx, c.user.ID, "hwk", "swk")
		}
		tx.audit(c, auditEntry{action: "passkey.deleted", subject: in.PasskeyID}) // room:audit
		return firstError(
			err,
			tx.deleteSessions(ctx, c.user.ID, &c.session),
			s.notify(ctx, tx, c.user.Email, "passkey_deleted"), // room:mail
		)
	})
	s.wakeSender() // room:mail
	return none{}, err
}

// deletePasskeys takes all of them off an account, whose row is locked: what its sessions passed is gone. The owner is
// told, if there were any.
func (s *server) deletePasskeys(ctx context.Context, tx db, u user, event string) error {
	err := tx.deletePasskeys(ctx, u.ID)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	return firstError(
		err,
		tx.lowerSessions(ctx, u.ID, "hwk", "swk"),
		s.notify(ctx, tx, u.Email, event), // room:mail
	)
}

// resetPasskeys is for somebody who has lost a device and cannot sign in: an admin takes the passkeys off, never their
// own, and it ends every session.
func (s *server) resetPasskeys(ctx context.Context, c caller, in userInput) (none, error) {
	err := s.asAdmin(ctx, c, func(tx db) error {
		u, err := tx.lockUser(ctx, in.UserID)
		switch {
		case err != nil:
			return orElse(err, errNotFound)
		case u.ID == c.user.ID:
			return errOwnAccount
		}
		tx.audit(c, auditEntry{action: "passkeys.reset", subject: u.ID}) // room:audit
		return firstError(
			s.deletePasskeys(ctx, tx, u, "passkeys_reset"),
			tx.deleteSessions(ctx, u.ID, nil),
		)
	})
	s.wakeSender() // room:mail
	return none{}, err
}

// tellKeptPasskeys reminds somebody who chose a new password by mail that other ways to sign in are as they were.
func (s *server) tellKeptPasskeys(ctx context.Context, tx db, account account) error {
	n, err := tx.countPasskeys(ctx, account.ID)
	if err != nil || n == 0 {
		return err
	}
	return s.notify(ctx, tx, account.Email, fmt.Sprintf("passkeys_kept %d", n))
}

// exportPasskeys are all of a user's, without their keys.
func (d db) exportPasskeys(ctx context.Context, userID string) ([]passkey, error) {
	return d.passkeysByUser(ctx, userID, pageInput{Limit: math.MaxInt32})
}
