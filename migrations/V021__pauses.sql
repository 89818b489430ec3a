-- Pauses: of a whole domain, or of one command type of it (command_type not null). The rows are the
-- record; what a claim has to know stands in the domain's row, which it reads anyway.

-- A table that somebody holds for long shall fail this migration, not stop the bus behind it.
set local lock_timeout = '5s';

create table command_bus_pause (
    pause_id bigint generated always as identity primary key,
    domain text not null,
    command_type text,
    reason text not null,
    paused_by text not null,
    paused_at timestamptz not null,
    ends_at timestamptz,  -- null: until somebody resumes it
    ended_at timestamptz,
    ended_by text  -- null: its time was over
);

create unique index pause_in_force on command_bus_pause (domain, coalesce(command_type, ''))
    where ended_at is null;

-- paused_until: of the whole domain, infinity without an end; pause_ends_at: when the next pause of any
-- kind ends; is_resuming: commands may be parked as PAUSED whose type is paused no more.
alter table command_bus_domain
    add column paused_until timestamptz,
    add column paused_types text[],
    add column pause_ends_at timestamptz,
    add column is_resuming boolean not null default false;
