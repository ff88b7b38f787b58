// room:second-factor
//
// A second factor beside the password: codes of an authenticator app (TOTP, RFC 6238), and ten recovery codes for the
// day when the app is lost. There is no half-way session: the code comes with the password, in the one call that signs
// in, and as long as an account has a second factor every session of it passed one. `grep -n room:second-factor *.go`
// shows what ties this to the house. To take it out delete the files that begin with that line, and those lines; the
// tables stay.

package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" // #nosec G505 -- HMAC-SHA-1 is what every authenticator app has
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// The set that every authenticator app understands.
const (
	totpSecret = 20 // bytes
	totpDigits = 6
	totpPeriod = 30 // seconds of a step
	totpDrift  = 1  // steps that a clock may be off, either way
)

const (
	recoveryCodes = 10
	enrolmentTTL  = 10 * time.Minute
	otpWarning    = 5 // wrong codes in an hour that the owner is told of
)

// The names of the limits of wrong codes: whoever makes an attempt knows the password (RFC 6238 section 5.1).
const (
	otpHour = "otp"
	otpDay  = "otp_day"
)

var (
	errOTPRequired = &apiError{Status: 400, Code: "otp_required", OAuth: "invalid_grant", Detail: "This account has a second factor: send its code as otp."}
	errOTPInvalid  = &apiError{Status: 400, Code: "otp_invalid", OAuth: "invalid_grant", Detail: "This is not a code of the second factor, or it was used: each works once, so wait for the next."}
	errNoFactor    = &apiError{Status: 409, Code: "no_second_factor", Detail: "This account has no second factor."}
)

// totp is the code of a step of time, RFC 6238 over RFC 4226 section 5.3.
func totp(secret []byte, step int64) string {
	mac := hmac.New(sha1.New, secret)
	_ = binary.Write(mac, binary.BigEndian, step) // a hash takes everything
	sum := mac.Sum(nil)
	offset := sum[len(sum)-1] & 15
	return fmt.Sprintf("%06d", binary.BigEndian.Uint32(sum[offset:])&0x7fffffff%1_000_000)
}

// totpStep returns the step around now that code is of, 0 for none. What it takes tells nothing about how much of the
// code is right.
func totpStep(secret []byte, now int64, code string) (step int64) {
	for t := now - totpDrift; t <= now+totpDrift; t++ {
		if subtle.ConstantTimeCompare([]byte(totp(secret, t)), []byte(code)) == 1 {
			step = t
		}
	}
	return step
}

// totpURI is what an app reads out of a QR code: github.com/google/google-authenticator/wiki/Key-Uri-Format.
func totpURI(secret []byte, issuer, account string) string {
	query := url.Values{"secret": {base32NoPad.EncodeToString(secret)}, "issuer": {issuer}, "algorithm": {"SHA1"},
		"digits": {fmt.Sprint(totpDigits)}, "period": {fmt.Sprint(totpPeriod)}}
	return "otpauth://totp/" + url.PathEscape(issuer+":"+account) + "?" + query.Encode()
}

var base32NoPad = base32.StdEncoding.WithPadding(base32.NoPadding)

// newRecoveryCodes returns codes of 130 random bits as people read them, and what is stored of them: so much chance
// needs no slow hash (NIST SP 800-63B-4 section 3.1.2.2).
func newRecoveryCodes() (codes []string, hashes [][]byte) {
	for range recoveryCodes {
		code := rand.Text()
		hash := sha256.Sum256([]byte(code))
		hashes = append(hashes, hash[:])
		codes = append(codes, strings.Trim(groupsOfFour.ReplaceAllString(code, "$0-"), "-"))
	}
	return codes, hashes
}

var groupsOfFour = regexp.MustCompile(`.{4}`)

// The two shapes of a code, spaces and hyphens apart.
var (
	totpShape     = regexp.MustCompile(`^[0-9]{6}$`)
	recoveryShape = regexp.MustCompile(`^[A-Z2-7]{26}$`)
	codeSpacing   = strings.NewReplacer(" ", "", "-", "")
)

// seal encrypts what the database and clients keep for roster, for one place alone: what is sealed for another one does
// not open. Key id 4, nonce 12, and AES-256-GCM under the first secret of the ring.
func (k *keyRing) seal(plain []byte, place string) []byte {
	b := append(make([]byte, 0, 64), k.signing.id[:]...)
	nonce := make([]byte, 12)
	rand.Read(nonce)
	return aead(k.signing).Seal(append(b, nonce...), nonce, plain, []byte(place))
}

// open is the way back; errBadToken when anything but what seal made for this place is given.
func (k *keyRing) open(sealed []byte, place string) ([]byte, error) {
	if len(sealed) < 16 {
		return nil, errBadToken
	}
	key := k.byID[[4]byte(sealed)]
	if key == nil {
		return nil, errBadToken
	}
	plain, err := aead(key).Open(nil, sealed[4:16], sealed[16:], []byte(place))
	if err != nil {
		return nil, errBadToken
	}
	return plain, nil
}

func aead(k *key) cipher.AEAD {
	block, err := aes.NewCipher(k.seal)
	if err != nil {
		panic(err) // only for other sizes than that of the key
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return gcm
}

// countingCodes is start, which signs in, with the code as an attempt of its own: a right password gives it no room, and
// only a right code costs nothing. At the fifth wrong one the owner learns that somebody has their password.
func (s *server) countingCodes(ctx context.Context, c caller, account account, p proof, start func() error) func() error {
	if p.otp == nil {
		return start
	}
	return func() error {
		counters := []counter{s.counter(otpHour, account.ID), s.counter(otpDay, account.ID)}
		if _, err := s.attempt(ctx, c, counters); err != nil {
			return err
		}
		err := start()
		counts, failed := s.settle(context.WithoutCancel(ctx), c, counters, errors.Is(err, errOTPInvalid))
		if failed == nil && slices.ContainsFunc(counts, func(n throttleCount) bool { return n.limit.name == otpHour && n.Count == otpWarning }) && errors.Is(err, errOTPInvalid) {
			failed = s.notify(ctx, s.db, account.Email, fmt.Sprintf("second_factor_guessed %d", otpWarning))
			s.wakeSender() // room:mail
		}
		return firstError(
			failed,
			err,
		)
	}
}

// passSecondFactor asks whoever signs in to an account that has a second factor for it, unless what they have shown is
// two factors already. The row of the user is locked.
func (s *server) passSecondFactor(ctx context.Context, tx db, c caller, n *newSession, p proof) error {
	if acrOf(n.AMR) == aal2 {
		return nil
	}
	f, err := tx.secondFactor(ctx, n.ID)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return err
	case p.otp == nil:
		return errOTPRequired
	}
	n.AMR = append(n.AMR, "otp", "mfa")
	code := strings.ToUpper(codeSpacing.Replace(*p.otp))
	switch {
	case totpShape.MatchString(code):
		return s.useTOTP(ctx, tx, n.ID, f, code)
	case recoveryShape.MatchString(code):
		return s.useRecoveryCode(ctx, tx, c, n.user, code)
	}
	return errOTPInvalid
}

// useTOTP accepts a code once, and none that is older than one that was (RFC 6238 section 5.2). What an older secret of
// the ring sealed is sealed anew by the way.
func (s *server) useTOTP(ctx context.Context, tx db, userID string, f secondFactor, code string) error {
	secret, err := s.keys.open(f.Secret, userID)
	if err != nil {
		return fmt.Errorf("opening the second factor of %s: %w", userID, err)
	}
	step := totpStep(secret, f.Step, code)
	return orElse(tx.updateSecondFactorStep(ctx, userID, step, s.keys.seal(secret, userID)), errOTPInvalid)
}

// useRecoveryCode spends a code, and tells the owner how many are left.
func (s *server) useRecoveryCode(ctx context.Context, tx db, c caller, u user, code string) error {
	hash := sha256.Sum256([]byte(code))
	left, err := tx.deleteRecoveryCode(ctx, u.ID, hash[:])
	if err != nil {
		return orElse(err, errOTPInvalid)
	}
	tx.audit(c, auditEntry{action: "recovery_code.used", subject: u.ID}) // room:audit
	return firstError(
		s.notify(ctx, tx, u.Email, fmt.Sprintf("recovery_code_used %d", left)), // room:mail
	)
}

// checkSealed refuses to serve when second factors are sealed under a secret that SECRET_KEYS no longer has: their owners
// would be locked out. A database that does not answer yet is no reason to stop.
func (s *server) checkSealed(ctx context.Context) error {
	n, err := s.db.countSealedByOthers(ctx, s.keys.ids())
	if err == nil && n > 0 {
		return fmt.Errorf("%d second factors are sealed with a secret that SECRET_KEYS no longer has: put it back at the end, "+
			"and drop it when `roster prune`, with SECRET_KEYS set, has sealed them anew", n)
	}
	if err != nil {
		s.log.Warn("cannot tell yet whether every second factor can be opened", "cause", err.Error())
	}
	return nil
}

// ids are the names of the keys of the ring, the first one first.
func (k *keyRing) ids() (ids [][]byte) {
	ids = append(ids, k.signing.id[:])
	for id := range k.byID {
		if id != k.signing.id {
			ids = append(ids, id[:])
		}
	}
	return ids
}

// resealSecondFactors seals under the first secret what an older one of the ring has sealed, in small batches.
func (s *server) resealSecondFactors(ctx context.Context) error {
	if s.keys == nil || len(s.keys.byID) < 2 {
		return nil
	}
	return s.db.inBatches(ctx, func(tx db) (more bool, err error) {
		old, err := tx.lockOldSecondFactors(ctx, s.keys.ids()[1:], pruneBatch)
		for _, f := range old {
			secret, err := s.keys.open(f.Secret, f.UserID)
			if err != nil {
				return false, fmt.Errorf("opening the second factor of %s: %w", f.UserID, err)
			}
			if err := tx.updateSecondFactorSecret(ctx, f.UserID, s.keys.seal(secret, f.UserID)); err != nil {
				return false, err
			}
		}
		return len(old) == pruneBatch, err
	})
}
