-- A function of the user's that is told each change of a domain's commands, in its transaction.

-- A table that somebody holds for long shall fail this migration, not stop the bus behind it.
set local lock_timeout = '5s';

alter table command_bus_domain add column transition_hook text;

create type command_bus.transition as (
    command_id uuid,
    event command_bus.audit_event,
    from_status command_bus.command_status,
    to_status command_bus.command_status,
    result jsonb
);
