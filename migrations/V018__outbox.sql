-- Events that were published and not handed on yet, in the order of position. Who writes one with a
-- key holds the row of that key before he takes the position, so that of one key what is seen first
-- has the lower position, and nothing is skipped by who reads what is there and deletes it.
create table command_bus_outbox (
    position bigint generated always as identity primary key,
    event_id uuid not null,
    created_at timestamptz not null,
    event_type text not null,
    key text,
    data jsonb not null,
    headers jsonb,
    -- The command whose handler published it.
    domain text,
    command_id uuid
) with (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0
);

-- A row for each key that was used; retention forgets those that were not used for long.
create table command_bus_outbox_key (
    key text primary key,
    used_at timestamptz not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000);
