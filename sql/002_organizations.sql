-- Organizations, memberships, invitations, and the audit trail of all of them.

-- The row is the mutex of everything inside: whoever changes a role locks it first.
create table organizations (
    id         uuid        constraint organizations_pkey primary key,
    name       text        not null constraint organizations_name_check check (char_length(name) between 1 and 100),
    slug       text        not null
        constraint organizations_slug_key unique
        constraint organizations_slug_check check (slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$' and length(slug) between 2 and 40),
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create trigger organizations_touch before update on organizations
    for each row execute function touch_updated_at();

create table memberships (
    id              uuid        constraint memberships_pkey primary key, -- for the order of lists
    organization_id uuid        not null constraint memberships_organization_id_fkey references organizations on delete cascade,
    user_id         uuid        not null constraint memberships_user_id_fkey references users on delete cascade,
    role            text        not null constraint memberships_role_check check (role in ('member', 'admin', 'owner')),
    created_at      timestamptz not null default now(),
    updated_at      timestamptz not null default now(),
    constraint memberships_organization_id_user_id_key unique (organization_id, user_id)
);

create index memberships_organization_id_idx on memberships (organization_id, id);
create index memberships_user_id_idx on memberships (user_id, id);

create trigger memberships_touch before update on memberships
    for each row execute function touch_updated_at();

-- One pending invitation per organization and address. The token's hash arrives when the mail is sent.
create table invitations (
    id              uuid        constraint invitations_pkey primary key,
    organization_id uuid        not null constraint invitations_organization_id_fkey references organizations on delete cascade,
    email           text        not null
        constraint invitations_email_check check (email = lower(email) and length(email) between 3 and 254),
    role            text        not null constraint invitations_role_check check (role in ('member', 'admin', 'owner')),
    invited_by      uuid        not null constraint invitations_invited_by_fkey references users on delete cascade,
    token_hash      bytea       constraint invitations_token_hash_key unique,
    created_at      timestamptz not null default now(),
    expires_at      timestamptz not null,
    constraint invitations_organization_id_email_key unique (organization_id, email)
);

create index invitations_organization_id_idx on invitations (organization_id, id);
create index invitations_invited_by_idx on invitations (invited_by);

alter table mails add column invitation_id uuid
    constraint mails_invitation_id_fkey references invitations on delete set null; -- withdrawn, it still counts for the caps
create index mails_invitation_id_idx on mails (invitation_id);

-- Who did what to whom, from where. No foreign keys: the trail outlives what it tells of, and holds ids, not names.
create table audit_events (
    id              uuid        constraint audit_events_pkey primary key,
    action          text        not null,
    actor_id        uuid,
    organization_id uuid,
    subject_id      uuid,
    ip              inet,
    detail          jsonb       not null default '{}',
    created_at      timestamptz not null default now()
);

create index audit_events_actor_id_idx on audit_events (actor_id, id);
create index audit_events_organization_id_idx on audit_events (organization_id, id);

---- create above / drop below ----

drop table audit_events;
alter table mails drop column invitation_id;
drop table invitations;
drop table memberships;
drop table organizations;
