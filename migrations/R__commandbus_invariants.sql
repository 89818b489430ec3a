-- What must hold at every moment, checked over the rows themselves.
--
-- Call these inside a REPEATABLE READ transaction on a live system, so that all their statements
-- see the same moment. They read everything, so their cost grows with the tables.

-- Functions of other files are named here, which may be created after this one.
set local check_function_bodies = off;

-- Every violation of what must hold: its name, the command or thing concerned, and what is wrong.
create or replace function command_bus.find_violations()
returns table (invariant text, domain text, command_id uuid, detail text)
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
begin
    return query select * from command_bus.find_miscounts();
    return query select * from command_bus.find_unlisted();
    return query select * from command_bus.find_illegal_trails();
    return query select * from command_bus.find_lost_messages();
    return query select * from command_bus.find_lane_violations();
    return query
    select 'every domain has its queues', m.domain, null::uuid, format('%s is missing', m.missing)
    from command_bus.missing_queues() as m;
end;
$$;

-- Counters, batches, histograms and worker totals that differ from a recount.
create or replace function command_bus.find_miscounts()
returns table (invariant text, domain text, command_id uuid, detail text)
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    with recount as (
        select c.domain, c.status, count(*) as n from command_bus_command as c group by 1, 2
    ),
    counted as (
        select d.domain, s.status, sum(s.n) as n
        from (
            select domain, pending, in_progress, completed, failed, in_tsq, cancelled
            from command_bus_counter
            union all
            select domain, pending, in_progress, completed, failed, in_tsq, cancelled
            from command_bus_delta
        ) as d
        cross join lateral (
            values ('PENDING'::command_bus.command_status, d.pending),
                ('IN_PROGRESS', d.in_progress), ('COMPLETED', d.completed), ('FAILED', d.failed),
                ('IN_TSQ', d.in_tsq), ('CANCELLED', d.cancelled)
        ) as s (status, n)
        group by 1, 2
    )
    select 'counters equal a recount', coalesce(r.domain, c.domain), null::uuid,
        format('%s: counted %s, there are %s', coalesce(r.status, c.status), coalesce(c.n, 0),
               coalesce(r.n, 0))
    from recount as r
    full join counted as c on c.domain = r.domain and c.status = r.status
    where coalesce(r.n, 0) <> coalesce(c.n, 0)

    union all
    select 'batch counters equal a recount', b.domain, b.batch_id,
        format('%s finished and %s in all by the counters, %s and %s by the rows',
               coalesce(p.completed + p.failed + p.in_tsq + p.cancelled, 0), coalesce(p.sent, 0),
               b.ended, b.n)
    from (
        select c.batch_id, min(c.domain) as domain, count(*) as n,
            count(*) filter (where c.status not in ('PENDING', 'IN_PROGRESS')) as ended
        from command_bus_command as c
        where c.batch_id is not null
        group by 1
    ) as b
    left join lateral command_bus.batch_progress(b.batch_id) as p on true
    cross join lateral (
        -- Pruned ones are still in the counters, and no longer among the rows.
        select coalesce(sum(g.pruned), 0) as n
        from (
            select pruned from command_bus_batch where batch_id = b.batch_id
            union all
            select pruned from command_bus_delta where batch_id = b.batch_id
        ) as g
    ) as gone
    where coalesce(p.sent, 0) - gone.n <> b.n
        or coalesce(p.completed + p.failed + p.in_tsq + p.cancelled, 0) - gone.n <> b.ended

    union all
    select 'histograms hold each processed command once', s.domain, null,
        format('second %s: %s processed, %s in the histogram', s.at, s.processed, h.n)
    from command_bus_second as s
    cross join lateral (
        select coalesce(sum(n), 0) as n
        from unnest(s.hist_bucket, s.hist_count) as x (b, n)
        where b >= 2000
    ) as h
    where h.n <> s.processed

    union all
    select 'worker totals equal a recount', w.domain, null,
        format('worker %s: completed, failed, retried, moved to the TSQ are %s by its row, %s by'
               ' the trails', w.worker_id, kept.totals, coalesce(a.totals, '{0,0,0,0}'))
    from command_bus_worker as w
    cross join lateral (
        select array[
            w.completed + coalesce(sum(d.completed), 0), w.failed + coalesce(sum(d.failed), 0),
            w.retried + coalesce(sum(d.retried), 0),
            w.moved_to_tsq + coalesce(sum(d.moved_to_tsq), 0)
        ]::bigint[] as totals
        from command_bus_worker_delta as d
        where d.worker_id = w.worker_id
    ) as kept
    left join (
        select s.worker_id,
            array[sum(s.effect[1]), sum(s.effect[2]), sum(s.effect[3]), sum(s.effect[4])] as totals
        from (
            select worker_id, command_bus.effect_on_worker(event_type, details) as effect
            from command_bus_audit
            union all
            select worker_id, array[completed, failed, retried, moved_to_tsq]
            from command_bus_pruned
        ) as s
        where s.effect is not null
        group by s.worker_id
    ) as a on a.worker_id = w.worker_id
    where kept.totals::numeric[] <> coalesce(a.totals, '{0,0,0,0}');
$$;

-- Commands that a small table should list and does not, or the other way round.
create or replace function command_bus.find_unlisted()
returns table (invariant text, domain text, command_id uuid, detail text)
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    select 'the troubleshooting queue lists what is IN_TSQ',
        coalesce(c.domain, t.domain), coalesce(c.command_id, t.command_id),
        case when t.command_id is null then 'IN_TSQ and not listed' else 'listed and not IN_TSQ' end
    from (select * from command_bus_command where status = 'IN_TSQ') as c
    full join command_bus_tsq as t on t.command_id = c.command_id and t.domain = c.domain
    where c.command_id is null or t.command_id is null

    union all
    select 'failed and cancelled commands are listed',
        coalesce(c.domain, u.domain), coalesce(c.command_id, u.command_id),
        case when u.command_id is null then 'ended and not listed'
             when c.command_id is null then 'listed and not ended so'
             else format('%s, listed as %s', c.status, u.status) end
    from (select * from command_bus_command where status in ('FAILED', 'CANCELLED')) as c
    full join command_bus_unsuccessful as u on u.command_id = c.command_id and u.domain = c.domain
    where c.status is distinct from u.status

    union all
    select 'groups of failures count what is in the queue', coalesce(g.domain, t.domain), null,
        format('group %s (%s): counted %s, there are %s', group_id,
               coalesce(g.error_code, 'which is not there'),
               coalesce(g.in_tsq, 0) + coalesce(d.n, 0), coalesce(t.n, 0))
    from command_bus_tsq_group as g
    left join (
        select group_id, sum(in_tsq) as n from command_bus_tsq_delta group by 1
    ) as d using (group_id)
    full join (
        select group_id, min(domain) as domain, count(*) as n from command_bus_tsq group by 1
    ) as t using (group_id)
    where coalesce(g.in_tsq, 0) + coalesce(d.n, 0) <> coalesce(t.n, 0);
$$;

-- Trails that are no path of the state table, or do not end where the command is.
create or replace function command_bus.find_illegal_trails()
returns table (invariant text, domain text, command_id uuid, detail text)
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    with step as (
        select a.domain, a.command_id, a.event_type, a.attempt,
            lag(a.event_type) over trail as previous,
            lead(a.event_type) over trail as next
        from command_bus_audit as a
        where a.event_type not in ('LATE_RESULT', 'REPLY_FAILED')
        window trail as (partition by a.domain, a.command_id order by a.audit_id)
    )
    select 'the trail is a path of the state table', s.domain, s.command_id,
        format('%s after %s', s.event_type, coalesce(s.previous::text, 'nothing'))
    from step as s
    where not exists (
        select from command_bus.legal_steps() as l
        where l.previous is not distinct from s.previous and l.next = s.event_type
    )

    union all
    select 'each event belongs to a command', a.domain, a.command_id,
        format('%s of a command that is not there', a.event_type)
    from command_bus_audit as a
    where not exists (
        select from command_bus_command as c
        where c.command_id = a.command_id and c.domain = a.domain
    )

    union all
    select 'the trail ends where the command is', c.domain, c.command_id,
        format('%s after %s', c.status, coalesce(s.event_type::text, 'nothing'))
    from command_bus_command as c
    left join (select * from step where next is null) as s
        on s.command_id = c.command_id and s.domain = c.domain
    where c.status is distinct from command_bus.status_after(s.event_type)

    union all
    select 'what a handler sent, it sent with its success', c.domain, c.command_id,
        format('sent by %s, which is %s', c.causation_id, (
            select string_agg(distinct p.status::text, ', ') from command_bus_command as p
            where p.command_id = c.causation_id))
    from command_bus_command as c
    where c.causation_id is not null
        and exists (select from command_bus_command as p where p.command_id = c.causation_id)
        and not exists (
            select from command_bus_command as p
            where p.command_id = c.causation_id and p.status = 'COMPLETED'
        )

    union all
    select 'attempts stay within the budget', c.domain, c.command_id,
        format('%s attempts of %s', c.attempts, c.max_attempts)
    from command_bus_command as c
    where c.attempts < 0 or c.attempts > c.max_attempts;
$$;

-- Commands without the one thing that carries them on, and things that carry what has ended.
-- A queue that is missing holds no message.
create or replace function command_bus.find_lost_messages()
returns table (invariant text, domain text, command_id uuid, detail text)
language plpgsql stable
set search_path = public, pg_temp
set row_security = off
as $$
declare
    d command_bus_domain;
    v_messages text;
begin
    for d in select * from command_bus_domain loop
        v_messages := case
            when to_regclass(format('pgmq.%I', 'q_' || d.command_queue)) is null
                then '(select null::bigint as msg_id, null::jsonb as message where false)'
            else format('pgmq.%I', 'q_' || d.command_queue)
        end;
        return query execute format(
            $query$
            with message as (
                select m.msg_id, m.message ->> 'command_id' as command_id from %s as m
            ),
            carrier as (
                select c.command_id, c.status,
                    (select count(*) from message as m
                     where m.msg_id = c.msg_id and m.command_id = c.command_id::text) as messages,
                    (select count(*) from command_bus_waiting as w
                     where w.command_id = c.command_id and w.domain = c.domain) as waiting,
                    (select count(*) from command_bus_suspect as s
                     where s.command_id = c.command_id and s.domain = c.domain) +
                    (select count(*) from command_bus_parked as p
                     where p.command_id = c.command_id and p.domain = c.domain) as parked,
                    (select count(*) from command_bus_lane as e
                     where e.domain = c.domain and e.lane_group = command_bus.lane_group(c.lane)
                         and e.lane = c.lane and e.command_id = c.command_id
                         and e.seq = c.lane_seq) as laned
                from command_bus_command as c
                where c.domain = $1 and c.status in ('PENDING', 'IN_PROGRESS')
            )
            select 'what is open is carried by exactly one message or waiting row', $1,
                c.command_id,
                format('%%s with %%s current messages, %%s waiting rows, parked %%s times,'
                       ' %%s places in lanes', c.status, c.messages, c.waiting, c.parked, c.laned)
            from carrier as c
            where c.messages + c.waiting + c.parked + c.laned <> 1
                or (c.status = 'IN_PROGRESS' and c.messages = 0)
            union all
            select 'nothing waits for a command that is not PENDING', $1, w.command_id,
                'a waiting or parked row without a PENDING command'
            from (
                select command_id from command_bus_waiting where domain = $1
                union all
                select command_id from command_bus_suspect where domain = $1
                union all
                select command_id from command_bus_parked where domain = $1
            ) as w
            left join command_bus_command as c on c.command_id = w.command_id and c.domain = $1
            where c.status is distinct from 'PENDING'
            $query$, v_messages
        ) using d.domain;
    end loop;
end;
$$;
