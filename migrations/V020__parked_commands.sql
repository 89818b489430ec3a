-- Commands that no worker can take now, although they are due: no running worker has a handler for
-- their type. They wait here and not in the queue, where every claim would read them again.

-- A table that somebody holds for long shall fail this migration, not stop the bus behind it.
set local lock_timeout = '5s';

create table command_bus_parked (
    command_id uuid not null,
    parked_at timestamptz not null,
    domain text not null,
    command_type text not null,
    kind text not null
        constraint parked_kind_is_known check (kind in ('NO_HANDLER', 'PAUSED')),
    primary key (command_id, domain)
) with (
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0
);

create index parked_by_type
    on command_bus_parked (domain, kind, command_type, parked_at, command_id);

-- The version of the application that a worker runs, and the types that it has handlers for; null:
-- it does not say, as workers of earlier releases.
alter table command_bus_worker
    add column app_version text,
    add column command_types text[];
