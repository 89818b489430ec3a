-- How many attempts a command could have when it was last claimed: its own max_attempts, or those
-- of the policy of the worker that claimed it. The configured budget may change afterwards, and what
-- pages say of the past must not change with it. The claim writes the row anyway.

-- A table that somebody holds for long shall fail this migration, not stop the bus behind it.
set local lock_timeout = '5s';

alter table command_bus_command add column claimed_budget integer;
