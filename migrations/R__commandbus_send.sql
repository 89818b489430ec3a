-- Sending: commands come into being here, and what waited for its time enters the queue.
--
-- The messages are written first, so that each command row is inserted once, with its msg_id. A
-- command that exists already takes no new row; its spare message is deleted again before anybody
-- can see it, and its content is compared in a later statement than the insert, so that the row of
-- a concurrent winner is seen.

-- Send a set of commands: all of them or none. Elements: {command_id, command_type, data,
-- correlation_id?, reply_to?, max_attempts?, delay_seconds?}. A known command_id with the same
-- content is answered (created = false) and not sent again. A pruned one is not known any more.
-- Raises QB001 unknown domain, QB003 known id with other content, QB004 unknown reply queue.
create or replace function command_bus.send_commands(
    p_domain text, p_commands jsonb, p_batch_id uuid default null
)
returns table (
    command_id uuid, msg_id bigint, created boolean, status command_bus.command_status
)
language plpgsql
set search_path = public, pg_temp
as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_queue text := command_bus.command_queue(p_domain);
    v_total integer := jsonb_array_length(p_commands);
    v_messages jsonb[];
    v_msg_ids bigint[] := '{}';
    v_created integer;
    v_known record;
    v_pruned uuid[] := '{}';
begin
    perform command_bus.require_reply_queues(p_commands);

    select array_agg(
        jsonb_build_object('command_id', c.command_id) order by c.command_id, c.ordinality
    )
    into v_messages
    from rows from (
        jsonb_to_recordset(p_commands) as (command_id uuid, delay_seconds float8)
    ) with ordinality as c (command_id, delay_seconds, ordinality)
    where coalesce(c.delay_seconds, 0) <= 0;

    if v_messages is not null then
        v_msg_ids := array(
            select m.msg_id
            from pgmq.send_batch(v_queue, v_messages) with ordinality as m (msg_id, position)
            order by m.position
        );
    end if;

    return query
    with input as materialized (
        select c.*, coalesce(c.delay_seconds, 0) > 0 as waits,
            row_number() over (
                partition by coalesce(c.delay_seconds, 0) > 0 order by c.command_id, c.ordinality
            ) as position
        from rows from (
            jsonb_to_recordset(p_commands) as (
                command_id uuid, command_type text, data jsonb, correlation_id uuid,
                reply_to text, max_attempts integer, delay_seconds float8
            )
        ) with ordinality as c (
            command_id, command_type, data, correlation_id, reply_to, max_attempts,
            delay_seconds, ordinality
        )
    ),
    sent as (
        insert into command_bus_command (
            command_id, created_at, updated_at, msg_id, max_attempts, batch_id, correlation_id,
            domain, command_type, reply_to, data
        )
        select i.command_id, v_now, v_now, case when not i.waits then v_msg_ids[i.position] end,
            i.max_attempts, p_batch_id, i.correlation_id, p_domain, i.command_type, i.reply_to,
            coalesce(i.data, '{}')
        from input as i
        order by i.command_id, i.ordinality
        on conflict do nothing
        returning command_id, msg_id
    ),
    audited as (
        insert into command_bus_audit (command_id, created_at, msg_id, event_type, domain)
        select command_id, v_now, msg_id, 'SENT', p_domain
        from sent
    ),
    put_to_wait as (
        insert into command_bus_waiting (command_id, domain, due_at, kind)
        select i.command_id, p_domain, v_now + make_interval(secs => min(i.delay_seconds)),
            'SCHEDULED'
        from sent as s
        join input as i on i.command_id = s.command_id
        where s.msg_id is null
        group by i.command_id
    ),
    counted as (
        insert into command_bus_delta (at, domain, batch_id, pending, sent)
        select date_trunc('second', v_now), p_domain, p_batch_id, count(*), count(*)
        from sent
        having count(*) > 0
    )
    select s.command_id, s.msg_id, true, 'PENDING'::command_bus.command_status
    from sent as s;

    get diagnostics v_created = row_count;
    if v_created < v_total then
        for v_known in
            select *
            from command_bus.answer_known_commands(p_domain, v_queue, p_commands, v_msg_ids, v_now)
        loop
            if v_known.created is null then
                v_pruned := v_pruned || v_known.command_id;
            else
                command_id := v_known.command_id;
                msg_id := v_known.msg_id;
                created := v_known.created;
                status := v_known.status;
                return next;
            end if;
        end loop;
        if cardinality(v_pruned) > 0 then
            return query
            select *
            from command_bus.send_commands(
                p_domain,
                (select jsonb_agg(c) from jsonb_array_elements(p_commands) as c
                 where (c ->> 'command_id')::uuid = any (v_pruned)),
                p_batch_id
            );
        end if;
    end if;
    if v_created > 0 then
        perform command_bus.wake_workers(p_domain);
    end if;
end;
$$;

-- Send one command: what send_commands does with a set of one, in half the time, since nothing has
-- to be sorted, joined or counted. What is rare is left to send_commands. Raises what that raises.
create or replace function command_bus.send_command(
    p_domain text, p_command jsonb, p_batch_id uuid default null
)
returns table (
    command_id uuid, msg_id bigint, created boolean, status command_bus.command_status
)
language plpgsql
set search_path = public, pg_temp
as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_queue text := command_bus.command_queue(p_domain);
    v_command_id uuid := p_command ->> 'command_id';
    v_msg_id bigint;
begin
    if (p_command ->> 'delay_seconds')::float8 > 0 then
        return query
        select *
        from command_bus.send_commands(p_domain, jsonb_build_array(p_command), p_batch_id);
        return;
    end if;
    if p_command ->> 'reply_to' is not null then
        perform command_bus.require_reply_queues(jsonb_build_array(p_command));
    end if;

    v_msg_id := pgmq.send(v_queue, jsonb_build_object('command_id', v_command_id));
    insert into command_bus_command (
        command_id, created_at, updated_at, msg_id, max_attempts, batch_id, correlation_id,
        domain, command_type, reply_to, data
    )
    values (
        v_command_id, v_now, v_now, v_msg_id, (p_command ->> 'max_attempts')::integer, p_batch_id,
        (p_command ->> 'correlation_id')::uuid, p_domain, p_command ->> 'command_type',
        p_command ->> 'reply_to', coalesce(nullif(p_command -> 'data', 'null'), '{}')
    )
    on conflict do nothing;
    if not found then
        perform pgmq.delete(v_queue, v_msg_id);
        return query
        select *
        from command_bus.send_commands(p_domain, jsonb_build_array(p_command), p_batch_id);
        return;
    end if;
    insert into command_bus_audit (command_id, created_at, msg_id, event_type, domain)
    values (v_command_id, v_now, v_msg_id, 'SENT', p_domain);
    insert into command_bus_delta (at, domain, batch_id, pending, sent)
    values (date_trunc('second', v_now), p_domain, p_batch_id, 1, 1);
    perform command_bus.wake_workers(p_domain);
    return query select v_command_id, v_msg_id, true, 'PENDING'::command_bus.command_status;
end;
$$;

-- The second half of sending a set in which some ids were known: delete the spare messages and
-- answer with the commands that were there; created is null for one that was pruned meanwhile.
-- Raises QB003 where the content differs.
create or replace function command_bus.answer_known_commands(
    p_domain text, p_queue text, p_commands jsonb, p_msg_ids bigint[], p_sent_at timestamptz
)
returns table (
    command_id uuid, msg_id bigint, created boolean, status command_bus.command_status
)
language plpgsql
set search_path = public, pg_temp
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_conflicts uuid[];
    v_spare bigint[];
begin
    with input as materialized (
        select * from jsonb_to_recordset(p_commands) as i (
            command_id uuid, command_type text, data jsonb, correlation_id uuid,
            reply_to text, max_attempts integer
        )
    )
    select array_agg(distinct i.command_id)
    into v_conflicts
    from input as i
    join command_bus_command as c
        on command_bus.has_key(c.command_id, c.domain, i.command_id, p_domain)
    where (c.command_type, c.data) is distinct from (i.command_type, coalesce(i.data, '{}'))
        or c.reply_to is distinct from i.reply_to
        or c.max_attempts is distinct from i.max_attempts
        or (i.correlation_id is not null and c.correlation_id is distinct from i.correlation_id);
    if v_conflicts is not null then
        raise exception 'command % of domain "%" was sent before with other content',
            v_conflicts[1], p_domain
            using errcode = 'QB003', detail = to_jsonb(v_conflicts)::text;
    end if;

    -- The insert kept the first message of each id it created; every other one is spare.
    select array_agg(m) into v_spare
    from unnest(p_msg_ids) as m
    where not exists (
        select
        from jsonb_to_recordset(p_commands) as i (command_id uuid)
        join command_bus_command as c
            on command_bus.has_key(c.command_id, c.domain, i.command_id, p_domain)
        where c.msg_id = m and c.created_at = p_sent_at
    );
    if v_spare is not null then
        perform pgmq.delete(p_queue, v_spare);
    end if;

    return query
    select distinct i.command_id, c.msg_id, case when c.command_id is not null then false end,
        c.status
    from jsonb_to_recordset(p_commands) as i (command_id uuid)
    left join command_bus_command as c
        on command_bus.has_key(c.command_id, c.domain, i.command_id, p_domain)
    -- Not those just created; two senders may meet in one microsecond, but never in a message.
    where c.command_id is null
        or c.created_at <> p_sent_at or coalesce(c.msg_id <> all (p_msg_ids), false);
end;
$$;

-- Check that each reply_to of a set names an existing queue. Raises QB004 for the first that does not.
create or replace function command_bus.require_reply_queues(p_commands jsonb)
returns void
language plpgsql stable
set search_path = public, pg_temp
as $$
declare
    v_missing text;
begin
    select wanted.reply_to into v_missing
    from (
        select distinct i.reply_to
        from jsonb_to_recordset(p_commands) as i (reply_to text)
        where i.reply_to is not null
    ) as wanted
    where not exists (select from pgmq.meta where queue_name = wanted.reply_to)
    limit 1;
    if v_missing is not null then
        raise exception 'reply queue "%" does not exist', left(v_missing, 100)
            using errcode = 'QB004',
            hint = 'Create it with pgmq.create, or use the reply queue of a domain.';
    end if;
end;
$$;

-- Move up to p_limit commands whose time has come into the queue, each with a new message.
-- What somebody else holds, the waiting row or the command, is left for the next call.
create or replace function command_bus.promote_due(p_domain text, p_queue text, p_limit integer)
returns integer
language plpgsql
set search_path = public, pg_temp
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
    -- A variable: what clock_timestamp() itself is compared with can't end the look at an index,
    -- and a million that wait would be read by each claim.
    v_now timestamptz := clock_timestamp();
    v_due uuid[];
    v_ids uuid[];
    v_msg_ids bigint[];
begin
    select array_agg(d.command_id order by d.command_id) into v_due
    from (
        select w.command_id
        from command_bus_waiting as w
        where w.domain = p_domain and w.due_at <= v_now
        order by w.due_at
        limit p_limit
        for update skip locked
    ) as d;
    if v_due is null then
        return 0;
    end if;

    select array_agg(h.command_id order by h.command_id) into v_ids
    from (
        select c.command_id
        from unnest(v_due) as d (command_id)
        join command_bus_command as c
            on command_bus.has_key(c.command_id, c.domain, d.command_id, p_domain)
        where c.status = 'PENDING'
        order by d.command_id
        for update of c skip locked
    ) as h;
    delete from command_bus_waiting as w
    using unnest(v_due) as d (command_id)
    where command_bus.has_key(w.command_id, w.domain, d.command_id, p_domain)
        and (d.command_id = any (v_ids) or not exists (
            select from command_bus_command as c
            where command_bus.has_key(c.command_id, c.domain, d.command_id, p_domain)
                and c.status = 'PENDING'
        ));
    if v_ids is null then
        return 0;
    end if;

    v_msg_ids := array(
        select m.msg_id
        from pgmq.send_batch(p_queue, array(
            select jsonb_build_object('command_id', id)
            from unnest(v_ids) with ordinality as i (id, position) order by position
        )) with ordinality as m (msg_id, position)
        order by m.position
    );
    update command_bus_command as c
    set msg_id = i.msg_id
    from unnest(v_ids, v_msg_ids) as i (command_id, msg_id)
    where command_bus.has_key(c.command_id, c.domain, i.command_id, p_domain);
    return cardinality(v_ids);
end;
$$;
