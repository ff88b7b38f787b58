-- Who has not proved an address is no account. A registration reserves nothing: one row for each address, the latest
-- wins, and the token's hash arrives when the mail is sent. Constraints are named like those of users.
create table registrations (
    id            uuid        constraint registrations_pkey primary key, -- becomes the account's
    email         text        not null
        constraint registrations_email_key unique
        constraint registrations_email_check check (email = lower(email) and length(email) between 3 and 254),
    name          text        not null constraint registrations_name_check check (char_length(name) between 1 and 100),
    password_hash text        not null,
    token_hash    bytea       constraint registrations_token_hash_key unique,
    created_at    timestamptz not null default now(),
    expires_at    timestamptz not null
);

create index registrations_expires_at_idx on registrations (expires_at);

alter table mails add column registration_id uuid
    constraint mails_registration_id_fkey references registrations on delete cascade;
create index mails_registration_id_idx on mails (registration_id) where registration_id is not null;

-- Whoever waits to confirm moves, with the link that was mailed and the mails that were not sent yet. An unconfirmed
-- account without a live link stays: it may have been imported, or made without EMAIL_VERIFICATION.
create temporary table pending on commit drop as
    select u.id, u.email, u.name, u.password_hash, t.token_hash, u.created_at,
        coalesce(t.expires_at, now() + interval '24 hours') as expires_at
    from users u
        left join mail_tokens t on t.user_id = u.id and t.purpose = 'verify-email' and t.expires_at > now()
    where not u.email_verified and not u.disabled and u.role = 'user' and u.password_hash is not null
        and not exists (select from sessions s where s.user_id = u.id)
        and not exists (select from memberships m where m.user_id = u.id)
        and (t.token_hash is not null or exists (select from mails m
            where m.user_id = u.id and m.kind = 'verify_email' and m.sent_at is null and m.failed_at is null));
insert into registrations (id, email, name, password_hash, token_hash, created_at, expires_at)
    select id, email, name, password_hash, token_hash, created_at, expires_at from pending;
-- The kind has a new name: a replica of the version before does not know it, and leaves it to the others.
update mails m set kind = 'registration', user_id = null, registration_id = p.id
    from pending p where m.user_id = p.id and m.kind = 'verify_email' and m.sent_at is null and m.failed_at is null;
delete from users u using pending p where u.id = p.id;
-- Whoever uses an account unconfirmed is not asked any more; a new password by mail confirms the address, too.
delete from mails where kind = 'verify_email' and sent_at is null and failed_at is null;

-- Attempts that wait for their verdict, beside those that were wrong, and until when that is to be believed.
alter table throttles add column pending integer not null default 0;
alter table throttles add column pending_until timestamptz not null default now();

-- Deleted users whose client addresses are still to be taken out of the audit trail.
create table erasures (
    user_id    uuid        constraint erasures_pkey primary key,
    created_at timestamptz not null default now()
);

-- A change that changes nothing is no new version.
drop trigger users_touch on users;
create trigger users_touch before update on users
    for each row when (old.* is distinct from new.*) execute function touch_updated_at();
drop trigger organizations_touch on organizations;
create trigger organizations_touch before update on organizations
    for each row when (old.* is distinct from new.*) execute function touch_updated_at();
drop trigger memberships_touch on memberships;
create trigger memberships_touch before update on memberships
    for each row when (old.* is distinct from new.*) execute function touch_updated_at();

---- create above / drop below ----

drop trigger memberships_touch on memberships;
create trigger memberships_touch before update on memberships
    for each row execute function touch_updated_at();
drop trigger organizations_touch on organizations;
create trigger organizations_touch before update on organizations
    for each row execute function touch_updated_at();
drop trigger users_touch on users;
create trigger users_touch before update on users
    for each row execute function touch_updated_at();
drop table erasures;
alter table throttles drop column pending_until;
alter table throttles drop column pending;
-- Back to unconfirmed accounts, but for addresses that somebody has by now.
insert into users (id, email, name, password_hash, created_at)
    select id, email, name, password_hash, created_at from registrations where expires_at > now()
    on conflict (email) do nothing;
insert into mail_tokens (token_hash, user_id, purpose, email, expires_at)
    select r.token_hash, r.id, 'verify-email', r.email, r.expires_at
    from registrations r join users u on u.id = r.id where r.token_hash is not null;
update mails m set kind = 'verify_email', user_id = u.id, registration_id = null
    from users u where u.id = m.registration_id and m.kind = 'registration';
alter table mails drop column registration_id;
drop table registrations;
