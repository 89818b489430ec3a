-- What goes along with a command and is no part of its content (a trace, a tenant), and the command
-- whose handler sent it. Null, as most are, costs nothing.

-- A table that somebody holds for long shall fail this migration, not stop the bus behind it.
set local lock_timeout = '5s';

alter table command_bus_command
    add column headers jsonb,
    add column causation_id uuid;

-- What a command has caused. It holds nothing while it is built.
create index command_by_cause on command_bus_command (causation_id, created_at)
    where causation_id is not null;
