-- What a settle adds to the totals of a worker whose row somebody else has locked: the settle does
-- not wait for the row, and fold_deltas adds it later. Nearly always empty.

create table command_bus_worker_delta (
    worker_id bigint not null,
    completed integer not null,
    failed integer not null,
    retried integer not null,
    moved_to_tsq integer not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50);

-- Why: V010.
alter table command_bus_worker_delta replica identity full;
