-- Who took the place of a worker whose process ended unasked, and how that ended.
--
-- Whoever looks after worker processes sees at once that one has ended; its heartbeats say so only
-- by being missing.

alter table command_bus_worker
    add column replaced_by bigint,
    add column end_reason text;
