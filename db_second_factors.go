// room:second-factor

package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// secondFactor is the factor of a user, and the step of time that it is by PostgreSQL's clock, on which all replicas
// agree.
type secondFactor struct {
	UserID    string
	Secret    []byte // sealed for the user's id
	Step      int64
	CreatedAt time.Time
	CodesLeft int
}

const secondFactorStep = "floor(extract(epoch from clock_timestamp()) / 30)::bigint"

// secondFactor is pgx.ErrNoRows for a user without one.
func (d db) secondFactor(ctx context.Context, userID string) (secondFactor, error) {
	return one[secondFactor](ctx, d, `
		select user_id, secret, `+secondFactorStep+` as step, created_at,
			(select count(*) from recovery_codes r where r.user_id = f.user_id)::integer as codes_left
		from second_factors f where user_id = $1`, userID)
}

// currentStep is the step of time by PostgreSQL's clock.
func (d db) currentStep(ctx context.Context) (step int64, err error) {
	err = d.q.QueryRow(ctx, `select `+secondFactorStep).Scan(&step)
	return step, err
}

// upsertSecondFactor gives a user, whose row is locked, a factor of which the code of a step was used already.
func (d db) upsertSecondFactor(ctx context.Context, userID string, secret []byte, step int64) error {
	return d.exec(ctx, `
		insert into second_factors (user_id, secret, last_step) values ($1, $2, $3)
		on conflict (user_id) do update set secret = excluded.secret, last_step = excluded.last_step, created_at = now()`,
		userID, secret, step)
}

// updateSecondFactorStep claims a step: of any number of uses of its code one gets it, the others, and all older codes,
// pgx.ErrNoRows.
func (d db) updateSecondFactorStep(ctx context.Context, userID string, step int64, secret []byte) error {
	return d.execOne(ctx, `
		update second_factors set last_step = $2, secret = $3 where user_id = $1 and last_step < $2`, userID, step, secret)
}

func (d db) updateSecondFactorSecret(ctx context.Context, userID string, secret []byte) error {
	return d.exec(ctx, `update second_factors set secret = $2 where user_id = $1`, userID, secret)
}

// deleteSecondFactor takes the recovery codes along; pgx.ErrNoRows when there is no factor.
func (d db) deleteSecondFactor(ctx context.Context, userID string) error {
	return d.execOne(ctx, `
		with codes as (delete from recovery_codes where user_id = $1)
		delete from second_factors where user_id = $1`, userID)
}

// replaceRecoveryCodes voids the codes of a user, whose row is locked, and stores new ones.
func (d db) replaceRecoveryCodes(ctx context.Context, userID string, hashes [][]byte) error {
	return firstError(d.exec(ctx, `delete from recovery_codes where user_id = $1`, userID),
		d.exec(ctx, `insert into recovery_codes (code_hash, user_id) select unnest($2::bytea[]), $1`, userID, hashes))
}

// deleteRecoveryCode spends a code and returns how many are left; pgx.ErrNoRows when the user has no such code.
func (d db) deleteRecoveryCode(ctx context.Context, userID string, hash []byte) (left int, err error) {
	err = d.q.QueryRow(ctx, `
		with spent as (delete from recovery_codes where user_id = $1 and code_hash = $2 returning user_id)
		select (select count(*) from recovery_codes r where r.user_id = spent.user_id)::integer - 1 from spent`,
		userID, hash).Scan(&left)
	return left, err
}

// deleteCodeFailures forgets the wrong codes of an account, whose factor is another one now, or gone.
func (d db) deleteCodeFailures(ctx context.Context, userID string) error {
	return d.exec(ctx, `delete from throttles where key = any($1)`, []string{otpHour + " " + userID, otpDay + " " + userID})
}

// countSealedByOthers counts the factors that none of these keys has sealed.
func (d db) countSealedByOthers(ctx context.Context, ids [][]byte) (n int, err error) {
	err = d.q.QueryRow(ctx, `select count(*) from second_factors where substr(secret, 1, 4) <> all($1)`, ids).Scan(&n)
	return n, err
}

// lockOldSecondFactors locks factors that one of these keys has sealed.
func (d db) lockOldSecondFactors(ctx context.Context, ids [][]byte, most int) ([]secondFactor, error) {
	return manyBy(ctx, d, pgx.RowToStructByNameLax[secondFactor], `
		select user_id, secret from second_factors where substr(secret, 1, 4) = any($1) limit $2 for update skip locked`, ids, most)
}

// exportedFactor says that there is a second factor, without its secret.
type exportedFactor struct {
	CreatedAt time.Time `json:"created_at"`
}

// exportSecondFactor is nil for a user without one.
func (d db) exportSecondFactor(ctx context.Context, userID string) (*exportedFactor, error) {
	f, err := d.secondFactor(ctx, userID)
	if err != nil {
		return nil, orElse(err, nil)
	}
	return &exportedFactor{f.CreatedAt}, nil
}
