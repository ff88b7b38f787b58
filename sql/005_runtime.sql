-- The role that serve connects as reads and writes rows, owns nothing and changes no table (R89). Whoever runs the
-- database makes it before, as compose.yaml does; where there is no roster_app, the owner of the tables serves.
-- Whatever serves, PostgreSQL itself ends what takes too long (R84): as settings of the role, because PgBouncer passes
-- no others on. `roster migrate` and `roster import` connect with limits of their own.
revoke create on schema public from public; -- the default before PostgreSQL 15

do $$
declare
    app text := coalesce((select rolname from pg_roles where rolname = 'roster_app'), current_user);
begin
    execute format('alter role %I in database %I set statement_timeout = ''5s''', app, current_database());
    execute format('alter role %I in database %I set lock_timeout = ''2s''', app, current_database());
    execute format('alter role %I in database %I set idle_in_transaction_session_timeout = ''10s''', app, current_database());
    if app <> current_user then
        execute format('grant usage on schema public to %I', app);
        execute format('grant select, insert, update, delete on all tables in schema public to %I', app);
        execute format('revoke insert, update, delete on public.schema_version from %I', app);
        execute format('alter default privileges in schema public grant select, insert, update, delete on tables to %I', app);
    end if;
end $$;

---- create above / drop below ----

do $$
declare
    app text := coalesce((select rolname from pg_roles where rolname = 'roster_app'), current_user);
begin
    execute format('alter role %I in database %I reset all', app, current_database());
    if app <> current_user then
        execute format('alter default privileges in schema public revoke all on tables from %I', app);
        execute format('revoke all on all tables in schema public from %I', app);
        execute format('revoke usage on schema public from %I', app);
    end if;
end $$;
