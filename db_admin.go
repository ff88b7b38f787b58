// room:administration

package main

import (
	"context"
	"strings"

	"github.com/jackc/pgx/v5"
)

// users lists accounts, newest first, one more than the page holds. Which index serves depends on what is searched
// for, so the plan is made for each call.
func (d db) users(ctx context.Context, in listUsersInput) ([]user, error) {
	var prefix, part *string
	if in.Q != nil {
		escaped := likeEscaper.Replace(*in.Q)
		p, n := strings.ToLower(escaped)+"%", "%"+escaped+"%"
		prefix, part = &p, &n
	}
	return many[user](ctx, d, `
		select `+userColumns+` from users u
		where id < $1 and ($2::text is null or email like $2 or name ilike $3)
			and ($4::text is null or role = $4) and ($5::boolean is null or disabled = $5)
		order by id desc limit $6`,
		pgx.QueryExecModeExec, in.before(), prefix, part, in.Role, in.Disabled, in.Limit+1)
}

// likeEscaper makes a pattern that matches only itself (R21).
var likeEscaper = strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)

// lockPlatform takes the lock of everything that decides who is a platform admin, before any row.
func (d db) lockPlatform(ctx context.Context) error {
	return d.exec(ctx, `select pg_advisory_xact_lock(hashtext('roster/admins'))`)
}

// activeAdmin is pgx.ErrNoRows unless a user is a platform admin at this moment.
func (d db) activeAdmin(ctx context.Context, id string) error {
	return d.execOne(ctx, `select id from users where id = $1 and role = 'admin' and not disabled`, id)
}

// anyAdmin is pgx.ErrNoRows when there is no active platform admin.
func (d db) anyAdmin(ctx context.Context) error {
	return d.execOne(ctx, `select id from users where role = 'admin' and not disabled limit 1`)
}
