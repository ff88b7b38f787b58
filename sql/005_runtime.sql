-- The role that serve connects as reads and writes rows, owns nothing and changes no table (R89). Whoever runs the
-- database makes it before, as compose.yaml does; where there is no roster_app, the owner of the tables serves.
-- Whatever serves, PostgreSQL itself ends what takes too long (R84): as settings of the role, because PgBouncer passes
-- no others on. Only a superuser may set those of another role: an owner who is none sets the database's, for everybody
-- but themselves. `roster migrate` and `roster import` connect with limits of their own.
revoke create on schema public from public; -- the default before PostgreSQL 15

do $$
declare
    app text := coalesce((select rolname from pg_roles where rolname = 'roster_app'), current_user);
    db text := current_database();
    parameter text;
    value text;
begin
    for parameter, value in values ('statement_timeout', '5s'), ('lock_timeout', '2s'), ('idle_in_transaction_session_timeout', '10s') loop
        begin
            execute format('alter role %I in database %I set %I = %L', app, db, parameter, value);
        exception when insufficient_privilege then
            execute format('alter database %I set %I = %L', db, parameter, value);
            execute format('alter role %I in database %I set %I = 0', current_user, db, parameter);
        end;
    end loop;
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
    db text := current_database();
begin
    begin
        execute format('alter role %I in database %I reset all', app, db);
    exception when insufficient_privilege then
        execute format('alter database %I reset all', db);
    end;
    execute format('alter role %I in database %I reset all', current_user, db);
    if app <> current_user then
        execute format('alter default privileges in schema public revoke all on tables from %I', app);
        execute format('revoke all on all tables in schema public from %I', app);
        execute format('revoke usage on schema public from %I', app);
    end if;
end $$;
