// room:administration

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/sethvargo/go-envconfig"
)

const adminUsage = "admin EMAIL [--password-stdin]" +
	" [--reset-second-factor]" + // room:second-factor
	""

// cutFlag returns the arguments without a flag, and whether it was there.
func cutFlag(args []string, flag string) (rest []string, found bool) {
	i := slices.Index(args, flag)
	if i < 0 {
		return args, false
	}
	return slices.Concat(args[:i], args[i+1:]), true
}

// runAdmin is the command: admin EMAIL [--password-stdin]. It makes a platform admin of the account, which it makes or
// enables as needed, and prints a one-time link to choose a password, unless one comes by standard input.
func runAdmin(ctx context.Context, args []string, lookup envconfig.Lookuper, stdin io.Reader, stdout io.Writer) error {
	args, resetFactor := cutFlag(args, "--reset-second-factor") // room:second-factor
	args, fromStdin := cutFlag(args, "--password-stdin")
	if len(args) != 1 {
		return usageError(adminUsage)
	}
	email, code, detail := checkEmail(args[0])
	if code != "" {
		return errors.New("EMAIL " + detail)
	}
	s, err := openCommand(ctx, lookup, "DATABASE_URL", "PUBLIC_URL", "APP_URL", "PASSWORD_MIN_LENGTH", "RESET_TTL")
	if err != nil {
		return err
	}
	defer s.pool.Close()
	var hash string
	if fromStdin {
		if hash, err = s.passwordFrom(ctx, stdin, email); err != nil {
			return err
		}
	}
	token, tokenHash := newMailToken() // room:mailflows
	err = s.db.inTx(ctx, func(tx db) error {
		before, err := tx.accountByEmail(ctx, email)
		if err := firstError(orElse(err, nil), s.proveAddress(ctx, tx, cmp.Or(before.ID, newID()), nil)); err != nil {
			return err
		}
		id, err := tx.upsertAdmin(ctx, newID(), email, hash)
		if err != nil {
			return err
		}
		if err := firstError(
			tx.deleteSessions(ctx, id, nil),
			tx.voidMailTokens(ctx, id),                                         // room:mailflows
			s.resetByCommand(ctx, tx, user{ID: id, Email: email}, resetFactor), // room:second-factor
		); err != nil {
			return err
		}
		if hash == "" { // room:mailflows
			if err := tx.insertResetToken(ctx, tokenHash, id, email, s.cfg.ResetTTL); err != nil {
				return err
			}
		}
		tx.audit(caller{}, auditEntry{action: "user.made_admin", subject: id, detail: map[string]any{"actor": "cli"}}) // room:audit
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s is a platform admin.\n", email)
	if hash == "" { // room:mailflows
		fmt.Fprintf(stdout, "Choose a password within %s, once, at:\n%s\n", humanDuration(s.cfg.ResetTTL), s.link(purposeResetPassword, token))
	}
	return nil
}

// passwordFrom reads one line and applies the rules of the API.
func (s *server) passwordFrom(ctx context.Context, stdin io.Reader, email string) (hash string, err error) {
	content, err := io.ReadAll(io.LimitReader(stdin, 2*maxPasswordBytes))
	if err != nil {
		return "", err
	}
	password := strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
	if strings.ContainsAny(password, "\r\n") {
		return "", errors.New("the password must be one line")
	}
	if code, detail := s.passwords.problem(password, email); code != "" {
		return "", errors.New("the password " + detail)
	}
	return s.passwords.hash(ctx, netip.Addr{}, password)
}

// upsertAdmin makes an account a platform admin; an empty hash leaves the password as it is.
func (d db) upsertAdmin(ctx context.Context, id, email, hash string) (string, error) {
	err := d.q.QueryRow(ctx, `
		insert into users as u (id, email, name, role, password_hash, email_verified)
		values ($1, $2, split_part($2, '@', 1), 'admin', nullif($3, ''), $3 <> '')
		on conflict (email) do update set role = 'admin', disabled = false,
			password_hash = excluded.password_hash,
			email_verified = u.email_verified or excluded.email_verified
		returning u.id`, id, email, hash).Scan(&id)
	return id, err
}
