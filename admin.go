package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/sethvargo/go-envconfig"
)

// openCommand is the configuration and the database of a command that serves nothing; it asks for no more of the
// environment than it needs.
func openCommand(ctx context.Context, lookup envconfig.Lookuper, needs ...string) (*server, error) {
	cfg, err := loadConfig(ctx, lookup, true, needs...)
	if err != nil {
		return nil, err
	}
	cfg.DBMaxConns = 2
	pool, err := openPool(ctx, cfg)
	if err != nil {
		return nil, err
	}
	var keys *keyRing
	if len(cfg.secrets) > 0 { // no command needs them, and prune can do with them
		if keys, err = newKeyRing(cfg); err != nil {
			return nil, err
		}
	}
	return &server{cfg: cfg, keys: keys, pool: pool, db: db{pool}, passwords: newPasswords(cfg.PasswordMinLength, currentParams, cfg.words()...)}, nil
}

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
	token, tokenHash := newMailToken()
	err = s.db.inTx(ctx, func(tx db) error {
		before, err := tx.accountByEmail(ctx, email)
		if err := inOrder(orElse(err, nil), s.proveAddress(ctx, tx, cmp.Or(before.ID, newID()), nil)); err != nil {
			return err
		}
		id, err := tx.upsertAdmin(ctx, newID(), email, hash)
		if err != nil {
			return err
		}
		if err := inOrder(
			s.resetByCommand(ctx, tx, user{ID: id, Email: email}, resetFactor), // room:second-factor
			tx.deleteSessions(ctx, id, nil), tx.voidMailTokens(ctx, id)); err != nil {
			return err
		}
		if hash == "" {
			if err := tx.insertResetToken(ctx, tokenHash, id, email, s.cfg.ResetTTL); err != nil {
				return err
			}
		}
		return tx.audit(ctx, caller{}, "user.made_admin", nil, &id, map[string]any{"actor": "cli"})
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s is a platform admin.\n", email)
	if hash == "" {
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
	return s.passwords.hash(ctx, password)
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

// insertResetToken is upsertMailToken for a token that goes to the operator instead of a mailbox.
func (d db) insertResetToken(ctx context.Context, hash []byte, userID, email string, ttl time.Duration) error {
	return d.exec(ctx, `
		insert into mail_tokens (token_hash, user_id, purpose, email, expires_at)
		values ($1, $2, $3, $4, now() + $5::interval)
		on conflict (user_id, purpose) do update set token_hash = excluded.token_hash, expires_at = excluded.expires_at`,
		hash, userID, purposeResetPassword, email, ttl)
}

// runSessions is the command: sessions --end-all. It signs everybody out.
func runSessions(ctx context.Context, args []string, lookup envconfig.Lookuper, stdout io.Writer) error {
	if len(args) != 1 || args[0] != "--end-all" {
		return usageError("sessions --end-all")
	}
	cfg, err := loadConfig(ctx, lookup, true, "DATABASE_URL")
	if err != nil {
		return err
	}
	conn, err := connectDirectly(ctx, cfg.DatabaseURL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var ended int64
	err = db{conn}.inTx(ctx, func(tx db) error {
		tag, err := tx.execTag(ctx, `delete from sessions`)
		ended = tag.RowsAffected()
		return inOrder(err, tx.audit(ctx, caller{}, "session.all_ended", nil, nil, nil))
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%d sessions ended\n", ended)
	return nil
}

// runPrune is the command that does what serve does now and then.
func runPrune(ctx context.Context, lookup envconfig.Lookuper, stdout io.Writer) error {
	s, err := openCommand(ctx, lookup, "DATABASE_URL", "AUDIT_RETENTION")
	if err != nil {
		return err
	}
	defer s.pool.Close()
	deleted, err := s.db.prune(ctx, s.cfg.AuditRetention)
	err = errors.Join(err, s.resealSecondFactors(ctx)) // room:second-factor
	fmt.Fprintf(stdout, "%d rows deleted\n", deleted)
	return err
}
