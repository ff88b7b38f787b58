-- Accounts, sessions, one-time tokens and the outbox. Every constraint is named: errors.go turns names into answers.

-- The ETag of a row is its updated_at, so it must move on every change, even twice within a microsecond.
create function touch_updated_at() returns trigger language plpgsql as $$
begin
    new.updated_at := greatest(clock_timestamp(), old.updated_at + interval '1 microsecond');
    return new;
end $$;

create table users (
    id             uuid        constraint users_pkey primary key,
    email          text        not null
        constraint users_email_key unique
        constraint users_email_check check (email = lower(email) and length(email) between 3 and 254),
    name           text        not null constraint users_name_check check (char_length(name) between 1 and 100),
    role           text        not null default 'user' constraint users_role_check check (role in ('user', 'admin')),
    password_hash  text,
    email_verified boolean     not null default false,
    disabled       boolean     not null default false,
    created_at     timestamptz not null default now(),
    updated_at     timestamptz not null default now()
);

create trigger users_touch before update on users
    for each row execute function touch_updated_at();

-- A session is one row. A refresh adds one to generation; nothing is stored per refresh. Ending a session deletes it.
-- confirmed: the newest generation has been used, so its predecessor is no longer a lost reply but a copy.
-- No index holds a column that a refresh changes, which lets PostgreSQL update the row in place (HOT).
create table sessions (
    id           uuid        constraint sessions_pkey primary key,
    user_id      uuid        not null constraint sessions_user_id_fkey references users on delete cascade,
    generation   integer     not null default 1 constraint sessions_generation_check check (generation > 0),
    confirmed    boolean     not null default false,
    ip           inet,
    user_agent   text        not null default '',
    created_at   timestamptz not null default now(),
    rotated_at   timestamptz not null default now(),
    last_seen_at timestamptz not null default now(),
    expires_at   timestamptz not null
) with (fillfactor = 80);

create index sessions_user_id_idx on sessions (user_id, id);

-- Single-use tokens that travel by mail: only the SHA-256 is here, one live token per user and purpose.
create table mail_tokens (
    token_hash bytea       constraint mail_tokens_pkey primary key,
    user_id    uuid        not null constraint mail_tokens_user_id_fkey references users on delete cascade,
    purpose    text        not null,
    email      text        not null, -- where it was mailed: for a change of address, the new one
    session_id uuid,                 -- that asked for it; no foreign key, it may have ended
    expires_at timestamptz not null,
    constraint mail_tokens_user_id_purpose_key unique (user_id, purpose)
);

-- The outbox: written in the transaction that causes the mail, read by the senders of every replica.
-- next_attempt_at is also the lease: a sender that takes a row moves it into the future.
create table mails (
    id              uuid        constraint mails_pkey primary key,
    user_id         uuid        constraint mails_user_id_fkey references users on delete cascade, -- null: nobody's, never sent
    kind            text        not null,
    recipient       text        not null,
    session_id      uuid,
    attempts        integer     not null default 0,
    created_at      timestamptz not null default now(),
    next_attempt_at timestamptz not null default now(),
    sent_at         timestamptz,
    failed_at       timestamptz
);

create index mails_due_idx on mails (next_attempt_at) where sent_at is null and failed_at is null;
create index mails_recipient_idx on mails (recipient, kind, created_at);
create index mails_user_id_idx on mails (user_id);

---- create above / drop below ----

drop table mails;
drop table mail_tokens;
drop table sessions;
drop table users;
drop function touch_updated_at();
