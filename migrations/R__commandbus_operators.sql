-- What operators do: retry, cancel and complete, for sets, with an answer for each command.
--
-- Each function locks the commands in the order of their ids, decides by what it sees after that,
-- and answers each id with done, not_found or conflict (and the status that was in the way), so
-- that of two operators who do the same at once one is told that it was done already.

-- Raises QB001 for an unknown domain. It stands in this file, not in the shared one, which is applied
-- later: an operator who acts during an upgrade would miss it.
create or replace function command_bus.require_domain(p_domain text)
returns void
language plpgsql stable
set search_path = public, pg_temp
set row_security = off
as $$
begin
    if not exists (select from command_bus_domain where domain = p_domain) then
        perform command_bus.raise_refusal(command_bus.unknown_domain(p_domain));
    end if;
end;
$$;

-- The answer for each id of a set of which v_done was acted upon.
create or replace function command_bus.operator_answers(
    p_domain text, p_ids uuid[], p_done uuid[]
)
returns table (command_id uuid, verdict text, status command_bus.command_status)
language sql stable
set search_path = public, pg_temp
set row_security = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
    select wanted.id,
        case when wanted.id = any (p_done) then 'done'
             when c.command_id is null then 'not_found'
             else 'conflict' end,
        c.status
    from (select id, min(position) as position
          from unnest(p_ids) with ordinality as i (id, position) group by id) as wanted
    left join command_bus_command as c
        on command_bus.has_key(c.command_id, c.domain, wanted.id, p_domain)
    order by wanted.position;
$$;

-- Lock those of a set that are in the troubleshooting queue; the others are not waited for. One
-- that is missing in the list of the queue, which somebody else's hand did, is listed again: what
-- is done with it needs its row.
create or replace function command_bus.lock_tsq_commands(p_domain text, p_ids uuid[])
returns uuid[]
language plpgsql
set search_path = public, pg_temp
set row_security = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
    v_ids uuid[];
begin
    with held as (
        select c.command_id
        from command_bus_command as c
        where c.command_id = any (p_ids) and c.domain = p_domain and c.status = 'IN_TSQ'
        order by c.command_id
        for no key update
    )
    select coalesce(array_agg(h.command_id order by h.command_id), '{}') into v_ids
    from held as h;
    perform command_bus.list_again(p_domain, v_ids);
    return v_ids;
end;
$$;

-- Put commands from the troubleshooting queue back to work, with their attempts counted anew: at
-- once, or after p_delay_seconds, during which it can be undone. Raises QB001 unknown domain.
create or replace function command_bus.operator_retry(
    p_domain text, p_ids uuid[], p_operator text, p_delay_seconds float8 default 0
)
returns table (command_id uuid, verdict text, status command_bus.command_status)
language plpgsql
set search_path = public, pg_temp
set row_security = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_queue text := command_bus.command_queue(p_domain);
    v_ids uuid[] := command_bus.lock_tsq_commands(p_domain, p_ids);
    v_msg_ids bigint[] := '{}';
    v_laned uuid[] := '{}';
begin
    if cardinality(v_ids) > 0 then
        if p_delay_seconds > 0 then
            insert into command_bus_waiting (command_id, domain, due_at, kind, before_retry)
            select t.command_id, p_domain, v_now + make_interval(secs => p_delay_seconds),
                'OPERATOR_RETRY', to_jsonb(t)
            from command_bus_tsq as t
            where t.command_id = any (v_ids) and t.domain = p_domain;
        else
            v_laned := command_bus.enter_lanes(p_domain, v_ids);
            if cardinality(v_laned) > 0 then  -- those come last, and without a message
                v_ids := array(select unnest(v_ids) except select unnest(v_laned)) || v_laned;
            end if;
            if cardinality(v_laned) < cardinality(v_ids) then
                v_msg_ids := array(
                    select m.msg_id
                    from pgmq.send_batch(v_queue, array(
                        select jsonb_build_object('command_id', id)
                        from unnest(v_ids) with ordinality as i (id, position)
                        where position <= cardinality(v_ids) - cardinality(v_laned)
                        order by position
                    )) with ordinality as m (msg_id, position)
                    order by m.position
                );
            end if;
        end if;
        update command_bus_command as c
        set status = 'PENDING', attempts = 0, msg_id = i.msg_id, updated_at = v_now,
            finished_at = null
        from unnest(v_ids, v_msg_ids) as i (command_id, msg_id)
        where command_bus.has_key(c.command_id, c.domain, i.command_id, p_domain);
        perform command_bus.leave_tsq(p_domain, v_ids);
        perform command_bus.record_operator(
            p_domain, v_ids, 'OPERATOR_RETRY', 'IN_TSQ', 'PENDING',
            jsonb_strip_nulls(jsonb_build_object(
                'operator', p_operator,
                'delay_seconds', case when p_delay_seconds > 0 then p_delay_seconds end))
        );
        perform command_bus.wake_workers(p_domain);
    end if;
    return query select * from command_bus.operator_answers(p_domain, p_ids, v_ids);
end;
$$;

-- Take back delayed retries whose time has not come: the commands stand in the troubleshooting
-- queue as before.
create or replace function command_bus.undo_operator_retry(
    p_domain text, p_ids uuid[], p_operator text
)
returns table (command_id uuid, verdict text, status command_bus.command_status)
language plpgsql
set search_path = public, pg_temp
set row_security = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_ids uuid[];
    v_before jsonb[];
begin
    perform command_bus.require_domain(p_domain);
    with gone as (
        delete from command_bus_waiting as w
        where (w.command_id, w.domain) in (
            select l.command_id, l.domain
            from command_bus_waiting as l
            where l.command_id = any (p_ids) and l.domain = p_domain and l.kind = 'OPERATOR_RETRY'
            order by l.command_id
            for update
        )
        returning w.command_id, w.before_retry
    )
    select coalesce(array_agg(g.command_id order by g.command_id), '{}'),
        coalesce(array_agg(g.before_retry order by g.command_id), '{}')
    into v_ids, v_before
    from gone as g;
    if cardinality(v_ids) > 0 then
        update command_bus_command as c
        set status = 'IN_TSQ', updated_at = v_now,
            attempts = coalesce((b.before ->> 'attempts')::integer, c.attempts)
        from unnest(v_ids, v_before) as b (command_id, before)
        where command_bus.has_key(c.command_id, c.domain, b.command_id, p_domain);
        insert into command_bus_tsq
        select t.* from unnest(v_before) as before,
            jsonb_populate_record(null::command_bus_tsq, before) as t
        where before is not null
        on conflict do nothing;
        perform command_bus.list_again(p_domain, v_ids);
        insert into command_bus_tsq_delta (group_id, at, in_tsq, entered)
        select t.group_id, v_now, count(*), 0
        from unnest(v_ids) as id
        join command_bus_tsq as t on t.command_id = id and t.domain = p_domain
        group by t.group_id;
        perform command_bus.record_operator(
            p_domain, v_ids, 'OPERATOR_RETRY_UNDONE', 'PENDING', 'IN_TSQ',
            jsonb_build_object('operator', p_operator)
        );
    end if;
    return query select * from command_bus.operator_answers(p_domain, p_ids, v_ids);
end;
$$;

-- Cancel commands in the troubleshooting queue: they end CANCELLED, and their reply is sent.
create or replace function command_bus.operator_cancel(
    p_domain text, p_ids uuid[], p_operator text, p_reason text
)
returns table (command_id uuid, verdict text, status command_bus.command_status)
language plpgsql
set search_path = public, pg_temp
set row_security = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_ids uuid[];
begin
    perform command_bus.require_domain(p_domain);
    v_ids := command_bus.lock_tsq_commands(p_domain, p_ids);
    if cardinality(v_ids) > 0 then
        perform command_bus.end_cancelled(p_domain, v_ids, 'IN_TSQ', p_operator, p_reason);
    end if;
    return query select * from command_bus.operator_answers(p_domain, p_ids, v_ids);
end;
$$;

-- Cancel one command that is PENDING, wherever it waits: in the queue, for its time, or parked.
create or replace function command_bus.cancel_pending(
    p_domain text, p_command_id uuid, p_operator text, p_reason text
)
returns table (command_id uuid, verdict text, status command_bus.command_status)
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
#variable_conflict use_column
declare
    v_queue text := command_bus.command_queue(p_domain);
    v_msg_id bigint;
    v_locked_msg_id bigint;
    v_done uuid[] := '{}';
    c command_bus_command;
begin
    -- Locks in the common order: whatever carries the command first, then the command. When it
    -- moved on meanwhile (a claim, a promotion), look again.
    for attempt in 1 .. 20 loop
        select k.* into c from command_bus_command as k
        where k.command_id = p_command_id and k.domain = p_domain;
        exit when c.status is distinct from 'PENDING';
        v_msg_id := c.msg_id;
        if v_msg_id is null then
            perform from command_bus_waiting as w
            where w.command_id = p_command_id and w.domain = p_domain for update;
            perform from command_bus_suspect as s
            where s.command_id = p_command_id and s.domain = p_domain for update;
            perform from command_bus_parked as p
            where p.command_id = p_command_id and p.domain = p_domain for update;
            perform from command_bus_lane as e
            where e.domain = p_domain and e.lane_group = command_bus.lane_group(c.lane)
                and e.lane = c.lane and e.seq = c.lane_seq
            for update;
        else
            execute format('select msg_id from pgmq.%I where msg_id = $1 for update', 'q_' || v_queue)
            into v_locked_msg_id using v_msg_id;
        end if;
        -- Not locked yet: who waits for a message while holding its command would stop a claim.
        select k.* into c from command_bus_command as k
        where k.command_id = p_command_id and k.domain = p_domain;
        continue when c.status = 'PENDING' and c.msg_id is distinct from v_msg_id;
        select k.* into c from command_bus_command as k
        where k.command_id = p_command_id and k.domain = p_domain for no key update;
        if c.status = 'PENDING' and c.msg_id is not distinct from v_msg_id then
            delete from command_bus_waiting as w
            where w.command_id = p_command_id and w.domain = p_domain;
            delete from command_bus_suspect as s
            where s.command_id = p_command_id and s.domain = p_domain;
            delete from command_bus_parked as p
            where p.command_id = p_command_id and p.domain = p_domain;
            if v_msg_id is not null then
                perform pgmq.delete(v_queue, v_msg_id);
            end if;
            perform command_bus.end_cancelled(
                p_domain, array[p_command_id], 'PENDING', p_operator, p_reason
            );
            v_done := array[p_command_id];
            exit;
        end if;
        exit when c.status is distinct from 'PENDING';
    end loop;
    return query
    select * from command_bus.operator_answers(p_domain, array[p_command_id], v_done);
end;
$$;

-- Cancel those of a set that wait in the queue or in a lane and which nobody holds now; returns them.
-- It waits for no lock, so what is left (claimed, waiting for its time, parked, or locked at this
-- moment) is for cancel_pending. Raises QB001 unknown domain.
create or replace function command_bus.cancel_queued(
    p_domain text, p_ids uuid[], p_operator text, p_reason text
)
returns setof uuid
language plpgsql
set search_path = public, pg_temp
set row_security = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
    v_queue text := command_bus.command_queue(p_domain);
    v_msg_ids bigint[];
    v_laned uuid[];
    v_ids uuid[];
begin
    -- Locks in the common order: messages and places in lanes first, then the commands.
    v_msg_ids := array(
        select c.msg_id from command_bus_command as c
        where c.command_id = any (p_ids) and c.domain = p_domain and c.status = 'PENDING'
            and c.msg_id is not null
    );
    execute format(
        'select array(select msg_id from pgmq.%I where msg_id = any ($1)'
        ' order by msg_id for update skip locked)',
        'q_' || v_queue
    ) into v_msg_ids using v_msg_ids;
    v_laned := array(
        select e.command_id
        from (
            select c.lane, c.lane_seq from command_bus_command as c
            where c.command_id = any (p_ids) and c.domain = p_domain and c.status = 'PENDING'
                and c.msg_id is null and c.lane is not null
            order by c.command_id
        ) as c
        cross join lateral (
            select w.command_id from command_bus_lane as w
            where w.domain = p_domain and w.lane_group = command_bus.lane_group(c.lane)
                and w.lane = c.lane and w.seq = c.lane_seq
            for update skip locked
        ) as e
    );
    v_ids := array(
        select c.command_id from command_bus_command as c
        where c.command_id = any (p_ids) and c.domain = p_domain and c.status = 'PENDING'
            and (c.msg_id = any (v_msg_ids) or c.msg_id is null and c.command_id = any (v_laned))
        order by c.command_id
        for no key update skip locked
    );
    if cardinality(v_ids) > 0 then
        perform pgmq.delete(v_queue, array(
            select c.msg_id from command_bus_command as c
            where c.command_id = any (v_ids) and c.domain = p_domain and c.msg_id is not null
        ));
        perform command_bus.end_cancelled(p_domain, v_ids, 'PENDING', p_operator, p_reason);
    end if;
    return query select unnest(v_ids);
end;
$$;

-- The common end of both cancellations, for locked commands.
create or replace function command_bus.end_cancelled(
    p_domain text, p_ids uuid[], p_from command_bus.command_status, p_operator text, p_reason text
)
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
    v_now timestamptz := clock_timestamp();
begin
    update command_bus_command
    set status = 'CANCELLED', finished_at = v_now, updated_at = v_now
    where command_id = any (p_ids) and domain = p_domain;
    insert into command_bus_unsuccessful (
        command_id, created_at, ended_at, status, domain, command_type, error_code
    )
    select command_id, created_at, v_now, 'CANCELLED', domain, command_type, last_error_code
    from command_bus_command
    where command_id = any (p_ids) and domain = p_domain;
    if p_from = 'IN_TSQ' then
        perform command_bus.leave_tsq(p_domain, p_ids);
    end if;
    perform command_bus.quit_lanes(p_domain, p_ids);
    perform command_bus.record_operator(
        p_domain, p_ids, 'OPERATOR_CANCEL', p_from, 'CANCELLED',
        jsonb_strip_nulls(jsonb_build_object('operator', p_operator, 'reason', p_reason))
    );
    perform command_bus.send_replies(p_domain, p_ids);
end;
$$;

-- Complete commands in the troubleshooting queue by hand, with a result; their reply is sent.
create or replace function command_bus.operator_complete(
    p_domain text, p_ids uuid[], p_operator text, p_result jsonb, p_notes text default null
)
returns table (command_id uuid, verdict text, status command_bus.command_status)
language plpgsql
set search_path = public, pg_temp
set row_security = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_ids uuid[];
begin
    perform command_bus.require_domain(p_domain);
    v_ids := command_bus.lock_tsq_commands(p_domain, p_ids);
    if cardinality(v_ids) > 0 then
        update command_bus_command as c
        set status = 'COMPLETED', result = p_result, finished_at = v_now, updated_at = v_now
        where c.command_id = any (v_ids) and c.domain = p_domain;
        perform command_bus.leave_tsq(p_domain, v_ids);
        perform command_bus.quit_lanes(p_domain, v_ids);
        perform command_bus.record_operator(
            p_domain, v_ids, 'OPERATOR_COMPLETE', 'IN_TSQ', 'COMPLETED',
            jsonb_strip_nulls(jsonb_build_object(
                'operator', p_operator, 'notes', p_notes, 'result_data', p_result))
        );
        perform command_bus.remember_completed(p_domain, v_ids);
        perform command_bus.send_replies(p_domain, v_ids);
    end if;
    return query select * from command_bus.operator_answers(p_domain, p_ids, v_ids);
end;
$$;

-- Keep the commands that operators completed last, twenty of them.
create or replace function command_bus.remember_completed(p_domain text, p_ids uuid[])
returns void
language sql
set search_path = public, pg_temp
set row_security = off
as $$
    insert into command_bus_completed_by_operator (command_id, domain, completed_at)
    select id, p_domain, clock_timestamp() from unnest(p_ids) as id order by id limit 20
    on conflict do nothing;
    delete from command_bus_completed_by_operator as o
    using (
        select k.command_id, k.domain
        from command_bus_completed_by_operator as k
        order by k.completed_at desc
        offset 20
        for update skip locked
    ) as old
    where o.command_id = old.command_id and o.domain = old.domain;
$$;

-- Write an operator's event for each command of a set, and count the move.
create or replace function command_bus.record_operator(
    p_domain text, p_ids uuid[], p_event command_bus.audit_event,
    p_from command_bus.command_status, p_to command_bus.command_status, p_details jsonb
)
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
begin
    insert into command_bus_audit (command_id, created_at, msg_id, event_type, domain, details)
    select c.command_id, clock_timestamp(), c.msg_id, p_event, p_domain, p_details
    from command_bus_command as c
    where c.command_id = any (p_ids) and c.domain = p_domain
    order by c.command_id;
    perform command_bus.count_moved(p_domain, moved.batch_id, p_from, p_to, moved.n::integer)
    from (
        select c.batch_id, count(*) as n
        from command_bus_command as c
        where c.command_id = any (p_ids) and c.domain = p_domain
        group by c.batch_id
    ) as moved;
    perform command_bus.tell_hook(p_domain, p_ids, p_event, p_from);
end;
$$;
