-- What 005 does, for whatever schema roster lives in, and more: every right on roster's tables is taken from everybody but
-- their owner and roster_app, because databases come with default privileges that give new tables away. Other programs
-- read through views of the owner's. `roster migrate` runs the newest *_runtime.sql again each time: a dump has no
-- settings of roles, and may have been restored without grants. tern's own command runs it once. A migration that adds a
-- table repeats this file with the table's name in the list.
do $$
declare
    app text := coalesce((select rolname from pg_roles where rolname = 'roster_app'), current_user);
    db text := current_database();
    home text := current_schema();
    parameter text;
    value text;
    object text;
    kind text;
    stranger text;
    strangers text := $strangers$
        with tables as (
            select oid, 'table ' || oid::regclass as name, relowner, relacl from pg_class
            where relnamespace = current_schema()::regnamespace and relkind = 'r' and relname in ('users', 'sessions', 'mail_tokens',
                'mails', 'organizations', 'memberships', 'invitations', 'audit_events', 'throttles', 'registrations', 'erasures',
                'second_factors', 'recovery_codes', 'passkeys', 'schema_version')
        ), rights as (
            select name, relowner as owner, acl.grantee from tables, aclexplode(relacl) acl
            union
            select name, relowner, acl.grantee from tables join pg_attribute on attrelid = tables.oid, aclexplode(attacl) acl
            union
            select 'function ' || p.oid::regprocedure, proowner, acl.grantee
            from pg_proc p, aclexplode(proacl) acl
            where pronamespace = current_schema()::regnamespace and proname = 'touch_updated_at'
        )
        select name, coalesce(quote_ident(rolname), 'public') as grantee from rights left join pg_roles r on r.oid = grantee
        where grantee <> owner and rolname is distinct from 'roster_app'$strangers$;
begin
    perform pg_advisory_xact_lock(hashtext('roster/runtime'));
    for parameter, value in values ('statement_timeout', '5s'), ('lock_timeout', '2s'), ('idle_in_transaction_session_timeout', '10s') loop
        begin
            execute format('alter role %I in database %I set %I = %L', app, db, parameter, value);
        exception when insufficient_privilege then
            execute format('alter database %I set %I = %L', db, parameter, value);
            execute format('alter role %I in database %I set %I = 0', current_user, db, parameter);
        end;
    end loop;

    execute format('revoke create on schema %I from public', home);
    revoke all on function touch_updated_at() from public; -- PostgreSQL's own default
    for object, stranger in execute strangers loop
        execute format('revoke all on %s from %s cascade', object, stranger);
        raise notice 'every right on % is taken from %', object, stranger;
    end loop;
    execute strangers into object, stranger;
    if object is not null then
        raise exception '% has rights on %: migrate as the owner of the tables', stranger, object;
    end if;
    for kind, stranger in
        select distinct case defaclobjtype when 'r' then 'tables' when 'S' then 'sequences' else 'functions' end,
            coalesce(quote_ident(rolname), 'public')
        from pg_default_acl, aclexplode(defaclacl) acl left join pg_roles r on r.oid = grantee
        where defaclrole = current_user::regrole and defaclnamespace = home::regnamespace and defaclobjtype in ('r', 'S', 'f')
            and grantee <> defaclrole and rolname is distinct from 'roster_app' loop
        execute format('alter default privileges in schema %I revoke all on %s from %s', home, kind, stranger);
        raise notice 'new % in schema % are not given to % any more', kind, home, stranger;
    end loop;

    if app <> current_user then
        execute format('grant usage on schema %I to %I', home, app);
        execute format('grant select, insert, update, delete on users, sessions, mail_tokens, mails, organizations, '
            'memberships, invitations, audit_events, throttles, registrations, erasures, second_factors, recovery_codes, '
            'passkeys to %I', app);
        execute format('revoke all on schema_version from %I', app);
        execute format('grant select on schema_version to %I', app);
    end if;
end $$;

---- create above / drop below ----

-- What was taken from others is not given back.
