-- Counters of attempts, shared by all replicas. A row is a fixed window; keys hold no address in clear.
create table throttles (
    key     text        constraint throttles_pkey primary key,
    count   integer     not null,
    ends_at timestamptz not null
) with (fillfactor = 50);

---- create above / drop below ----

drop table throttles;
