-- Roles with the least rights that each part needs. Run by the owner of the database's objects
-- (who migrates), after the migrations and again after each upgrade; running it twice is harmless.
--
--   commandbus_app          web processes, workers, senders: everything the bus does, but from the
--                           audit trail they only read, and to it they only add
--   commandbus_maintenance  python -m app.prune: deletes what has ended, by the functions that can
--                           delete nothing else
--
-- Both are groups. People and programs log in by roles of their own:
--   create role bus_worker login password '...' in role commandbus_app;
--   create role bus_pruner login password '...' in role commandbus_maintenance;
--
-- Creating the roles needs CREATEROLE; where an administrator has created them, the owner needs
-- nothing more. Migrating and creating domains stays with the owner: both make tables.

do $$
begin
    if to_regrole('commandbus_app') is null then
        create role commandbus_app nologin;
    end if;
    if to_regrole('commandbus_maintenance') is null then
        create role commandbus_maintenance nologin;
    end if;
end
$$;

grant usage on schema public, command_bus, pgmq to commandbus_app, commandbus_maintenance;
-- The default since PostgreSQL 15; an older database that was upgraded still lets everybody create.
revoke create on schema public from public;

-- The application

grant select, insert, update, delete on all tables in schema public to commandbus_app;
grant usage on all sequences in schema public to commandbus_app;
grant select, insert, update, delete on all tables in schema pgmq to commandbus_app;
grant usage on all sequences in schema pgmq to commandbus_app;
-- The queues of domains that are created later.
alter default privileges in schema pgmq
    grant select, insert, update, delete on tables to commandbus_app;
alter default privileges in schema pgmq grant usage on sequences to commandbus_app;

-- The trail is written once. Commands are deleted by pruning only. The rest is not its business.
revoke update, delete, truncate on command_bus_audit from commandbus_app;
revoke delete on command_bus_command from commandbus_app;
revoke insert, update, delete on command_bus_domain, command_bus_pruned, flyway_schema_history
    from commandbus_app;

-- Maintenance
--
-- prune_commands and prune_history run with their owner's rights and refuse what has not ended, so
-- no right to delete from the bus's own tables is needed. The application's rows go with them.

grant execute on function
    command_bus.prune_commands(
        command_bus.command_status, timestamptz, integer, text, timestamptz, uuid, integer, boolean
    ),
    command_bus.prune_history(timestamptz, integer)
    to commandbus_maintenance;
-- To count, to find what is left without a command, and to see that the migrations are applied.
grant select on command_bus_counter, command_bus_delta, command_bus_domain, flyway_schema_history
    to commandbus_maintenance;
grant select (command_id, domain) on command_bus_command to commandbus_maintenance;
grant select (command_id), delete on test_command to commandbus_maintenance;
grant select (job_id, state, created_at, finished_at), delete on operator_job
    to commandbus_maintenance;
