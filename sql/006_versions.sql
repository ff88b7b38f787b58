-- A change that changes nothing, such as an empty PATCH, leaves the version of the row as it is.
create or replace function touch_updated_at() returns trigger language plpgsql as $$
begin
    if new is distinct from old then
        new.updated_at := greatest(clock_timestamp(), old.updated_at + interval '1 microsecond');
    end if;
    return new;
end $$;

---- create above / drop below ----

create or replace function touch_updated_at() returns trigger language plpgsql as $$
begin
    new.updated_at := greatest(clock_timestamp(), old.updated_at + interval '1 microsecond');
    return new;
end $$;
