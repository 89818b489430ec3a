-- Folding deletes from these two tables, which have no key. Where somebody publishes all tables of
-- the database (logical replication, change data capture), the server refuses that unless the rows
-- can be named; they are named by all that they hold. It costs nothing where nothing is published.

-- A table that somebody holds for long shall fail this migration, not stop the bus behind it.
set local lock_timeout = '5s';

alter table command_bus_delta replica identity full;
alter table command_bus_tsq_delta replica identity full;
