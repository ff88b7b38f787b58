package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
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
	pc, err := poolConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL %w", err)
	}
	pc.ConnConfig.Tracer = limits{2 * pc.ConnConfig.ConnectTimeout} // nobody else waits
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, err
	}
	s := &server{cfg: cfg, pool: pool, db: db{q: pool}, passwords: newPasswords(cfg.PasswordMinLength, currentParams)}
	if err := s.checkDatabase(ctx); err != nil {
		pool.Close()
		return nil, err
	}
	return s, nil
}

// runAdmin is the command: admin EMAIL [--password-stdin]. It makes a platform admin of the account, which it makes or
// enables as needed, and prints a one-time link to choose a password, unless one comes by standard input.
func runAdmin(ctx context.Context, args []string, lookup envconfig.Lookuper, stdin io.Reader, stdout io.Writer) error {
	fromStdin := len(args) == 2 && args[1] == "--password-stdin"
	if len(args) != 1 && !fromStdin {
		return usageError("admin EMAIL [--password-stdin]")
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
		id, err := tx.upsertAdmin(ctx, newID(), email, hash)
		if err != nil {
			return err
		}
		if err := inOrder(tx.deleteSessions(ctx, id, nil), tx.voidMailTokens(ctx, id)); err != nil {
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

// runPrune is the command that does what serve does now and then.
func runPrune(ctx context.Context, lookup envconfig.Lookuper, stdout io.Writer) error {
	s, err := openCommand(ctx, lookup, "DATABASE_URL", "AUDIT_RETENTION")
	if err != nil {
		return err
	}
	defer s.pool.Close()
	deleted, err := s.db.prune(ctx, s.cfg.AuditRetention)
	fmt.Fprintf(stdout, "%d rows deleted\n", deleted)
	return err
}
