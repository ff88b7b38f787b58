-- Searching a million users, and reading the audit trail by action.

create extension if not exists pg_trgm;

create index users_name_idx on users using gin (name gin_trgm_ops);
create index users_email_idx on users (email text_pattern_ops);
create index users_admin_idx on users (id) where role = 'admin';
create index users_disabled_idx on users (id) where disabled;
create index audit_events_action_idx on audit_events (action, id);
create index audit_events_subject_id_idx on audit_events (subject_id, id);
create index invitations_email_idx on invitations (email);

---- create above / drop below ----

drop index invitations_email_idx;
drop index audit_events_subject_id_idx;
drop index audit_events_action_idx;
drop index users_disabled_idx;
drop index users_admin_idx;
drop index users_email_idx;
drop index users_name_idx;
