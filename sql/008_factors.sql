-- How a session was signed in to, in the words of RFC 8176, and what an organization asks of the sessions of its members.
alter table sessions add column amr text[] not null default '{pwd}';
alter table organizations add column second_factor_required boolean not null default false;

-- What a security notice tells: the name of the event, and a number where its line has one.
alter table mails add column notice text;

-- A row is always confirmed: enrolment keeps its state with the client. The secret is sealed under a key of SECRET_KEYS;
-- last_step is the newest step of 30 seconds whose code was used.
create table second_factors (
    user_id    uuid        constraint second_factors_pkey primary key
        constraint second_factors_user_id_fkey references users on delete cascade,
    secret     bytea       not null,
    last_step  bigint      not null,
    created_at timestamptz not null default now()
);

create table recovery_codes (
    code_hash bytea constraint recovery_codes_pkey primary key,
    user_id   uuid  not null constraint recovery_codes_user_id_fkey references users on delete cascade
);
create index recovery_codes_user_id_idx on recovery_codes (user_id);

-- public_key is a SubjectPublicKeyInfo; sign_count is 0 for ever where a passkey is synced between devices.
create table passkeys (
    id               uuid        constraint passkeys_pkey primary key,
    user_id          uuid        not null constraint passkeys_user_id_fkey references users on delete cascade,
    rp_id            text        not null,
    credential_id    bytea       not null constraint passkeys_credential_id_key unique,
    public_key       bytea       not null,
    backup_eligible  boolean     not null,
    backed_up        boolean     not null,
    sign_count       bigint      not null,
    name             text        not null constraint passkeys_name_check check (char_length(name) between 1 and 100),
    created_at       timestamptz not null default now(),
    last_used_at     timestamptz
);
create index passkeys_user_id_idx on passkeys (user_id, id);

---- create above / drop below ----

drop table passkeys;
drop table recovery_codes;
drop table second_factors;
alter table mails drop column notice;
alter table organizations drop column second_factor_required;
alter table sessions drop column amr;
