-- The queues of the domain "test": test__commands and test__replies.
--
-- The extension is created only where schema pgmq is absent. A server without the extension gets
-- PGMQ's SQL first (python -m app.database install-pgmq; the built-in runner does it by itself).

do $$
begin
    if to_regnamespace('pgmq') is null then
        create extension pgmq;
    end if;
end
$$;

select pgmq.create('test__commands');
select pgmq.create('test__replies');

-- The queue table is where dead rows hurt most: every claim walks its head.
alter table pgmq.q_test__commands set (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0
);

insert into command_bus_domain (domain, command_queue, reply_queue)
values ('test', 'test__commands', 'test__replies');
