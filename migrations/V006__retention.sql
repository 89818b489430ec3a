-- What pruning needs to keep the books exact, and the vacuum settings of tables that rows leave.

-- A table that somebody holds for long shall fail this migration, not stop the bus behind it.
set local lock_timeout = '10s';

-- The counters of a batch tell what happened, for as long as its row lives; how many of its
-- commands are gone is counted beside them.
alter table command_bus_batch add column pruned bigint not null default 0;
alter table command_bus_delta add column pruned integer not null default 0;

-- What the pruned trails said about each worker, so that its totals can still be recounted. Only
-- pruning writes here: the worker's own row is busy.
create table command_bus_pruned (
    worker_id bigint primary key,
    completed bigint not null default 0,
    failed bigint not null default 0,
    retried bigint not null default 0,
    moved_to_tsq bigint not null default 0
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Vacuum
--
-- The defaults wait until a fifth of a table is dead. In a table of 100 million rows those are 20
-- million, which the table never gives back and one vacuum then reads for long. With 2 % it comes
-- often and stays short. A vacuum that sleeps 2 ms after each small portion cannot keep up with
-- the deletion of thousands of rows a second, so its portions are larger (the default is 200).

alter table command_bus_command set (
    autovacuum_vacuum_cost_limit = 2000,
    toast.autovacuum_vacuum_scale_factor = 0.02,
    toast.autovacuum_vacuum_threshold = 10000,
    toast.autovacuum_vacuum_cost_limit = 2000
);
alter table command_bus_audit set (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 30000,
    autovacuum_vacuum_cost_limit = 2000,
    toast.autovacuum_vacuum_scale_factor = 0.02,
    toast.autovacuum_vacuum_threshold = 10000
);
alter table test_command set (autovacuum_vacuum_cost_limit = 2000);

alter table command_bus_unsuccessful set (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000
);
alter table command_bus_tsq set (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000
);

-- Small tables whose few rows change all the time are read often; they stay small only if they are
-- vacuumed long before a default would look.
alter table command_bus_second set (
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000
);
alter table command_bus_batch set (
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500
);
alter table command_bus_counter set (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500
);
alter table command_bus_suspect set (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500
);
alter table command_bus_tsq_group set (
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500
);

-- Each message is inserted, updated by the claim, and deleted: dead rows gather at the head, where
-- every claim looks. V002 and create_domain did this for the queues of commands; the queues of
-- replies are read in the same way.
do $$
declare
    v_queue text;
begin
    for v_queue in
        select unnest(array[command_queue, reply_queue]) from command_bus_domain
    loop
        execute format(
            'alter table pgmq.%I set (autovacuum_vacuum_scale_factor = 0,'
            ' autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0)',
            'q_' || v_queue
        );
    end loop;
end
$$;
