-- Sending: commands come into being here, and what waited for its time enters the queue.
--
-- The messages are written first, so that each command row is inserted once, with its msg_id. A
-- command that exists already takes no new row; its spare message is deleted again before anybody
-- can see it, and its content is compared in a later statement than the insert, so that the row of
-- a concurrent winner is seen.
--
-- offer_command and offer_commands answer what they refuse, in a column of its own, and raise no
-- error for it: an error would abort the transaction of the caller, who may have rows of his own in
-- it. What send_command and send_commands refuse they raise.

-- Send a set of commands: all of them or none. Elements: {command_id, command_type, data,
-- correlation_id?, reply_to?, max_attempts?, delay_seconds?, headers?, causation_id?, lane?,
-- lane_position?, lane_seq?}. Headers and causation_id are not compared with those of a known id. A
-- known command_id with the same content is answered (created = false) and not sent again. A pruned
-- one is not known any more. Places in a lane are taken in the order of lane_position; lane_seq is the
-- place itself, for a set that is sent in several calls (next_lane_places).
-- Raises QB001 unknown domain, QB003 known id with other content, QB004 unknown reply queue.
create or replace function command_bus.send_commands(
    p_domain text, p_commands jsonb, p_batch_id uuid default null
)
returns table (
    command_id uuid, msg_id bigint, created boolean, status command_bus.command_status
)
language plpgsql
set search_path = public, pg_temp
set row_security = off
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
    v_lanes boolean := p_commands @? '$[*].lane';
    v_places bigint[];
begin
    if p_commands @? '$[*].reply_to' then
        perform command_bus.require_reply_queues(p_commands);
    end if;
    if v_lanes then
        v_places := array(select command_bus.next_lane_places(v_total));
    end if;

    select array_agg(
        jsonb_build_object('command_id', c.command_id) order by c.command_id, c.ordinality
    )
    into v_messages
    from rows from (
        jsonb_to_recordset(p_commands) as (command_id uuid, delay_seconds float8, lane text)
    ) with ordinality as c (command_id, delay_seconds, lane, ordinality)
    where coalesce(c.delay_seconds, 0) <= 0 and c.lane is null;

    if v_messages is not null then
        v_msg_ids := array(
            select m.msg_id
            from pgmq.send_batch(v_queue, v_messages) with ordinality as m (msg_id, position)
            order by m.position
        );
    end if;

    return query
    with input as materialized (
        select c.*, coalesce(c.delay_seconds, 0) > 0 or c.lane is not null as waits,
            row_number() over (
                partition by coalesce(c.delay_seconds, 0) > 0 or c.lane is not null
                order by c.command_id, c.ordinality
            ) as position
        from rows from (
            jsonb_to_recordset(p_commands) as (
                command_id uuid, command_type text, data jsonb, correlation_id uuid,
                reply_to text, max_attempts integer, delay_seconds float8, headers jsonb,
                causation_id uuid, lane text, lane_position integer, lane_seq bigint
            )
        ) with ordinality as c (
            command_id, command_type, data, correlation_id, reply_to, max_attempts,
            delay_seconds, headers, causation_id, lane, lane_position, lane_seq, ordinality
        )
    ),
    sent as (
        insert into command_bus_command (
            command_id, created_at, updated_at, msg_id, max_attempts, batch_id, correlation_id,
            domain, command_type, reply_to, data, headers, causation_id, lane, lane_seq
        )
        select i.command_id, v_now, v_now, case when not i.waits then v_msg_ids[i.position] end,
            i.max_attempts, p_batch_id, i.correlation_id, p_domain, i.command_type, i.reply_to,
            coalesce(i.data, '{}'), i.headers, i.causation_id, i.lane,
            case when i.lane is not null then coalesce(
                i.lane_seq, v_places[i.lane_position + 1], v_places[i.ordinality]) end
        from input as i
        order by i.command_id, i.ordinality
        on conflict do nothing
        returning command_id, msg_id, command_type, correlation_id, causation_id
    ),
    audited as (
        insert into command_bus_audit (
            command_id, created_at, msg_id, event_type, domain, details
        )
        select command_id, v_now, msg_id, 'SENT', p_domain,
            command_bus.sent_details(command_type, correlation_id, causation_id)
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
        having min(i.delay_seconds) > 0
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
    if v_lanes then
        perform command_bus.fill_lanes(p_domain, p_commands, v_now);
    end if;
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
-- to be sorted, joined or counted. What is refused is answered as offer_commands answers it.
create or replace function command_bus.offer_command(
    p_domain text, p_command jsonb, p_batch_id uuid default null
)
returns table (
    command_id uuid, msg_id bigint, created boolean, status command_bus.command_status,
    refusal jsonb
)
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_queue text;
    v_command_id uuid := p_command ->> 'command_id';
    v_command_type text := p_command ->> 'command_type';
    v_correlation_id uuid := p_command ->> 'correlation_id';
    v_causation_id uuid := p_command ->> 'causation_id';
    v_delay_seconds float8 := p_command ->> 'delay_seconds';
    v_waits boolean := coalesce(v_delay_seconds > 0, false);
    v_lane text := p_command ->> 'lane';
    v_msg_id bigint;
    v_conflicts uuid[];
begin
    select d.command_queue into v_queue from command_bus_domain as d where d.domain = p_domain;
    if v_queue is null then
        refusal := command_bus.unknown_domain(p_domain);
    elsif to_regclass(format('pgmq.%I', 'q_' || v_queue)) is null then
        refusal := command_bus.missing_queue(v_queue);
    elsif p_command ->> 'reply_to' is not null then
        refusal := command_bus.refused_reply_queue(array[p_command ->> 'reply_to']);
    end if;
    if refusal is not null then
        return next;
        return;
    end if;

    loop
        -- One that waits gets its message when its time has come, or its turn in its lane.
        if not v_waits and v_lane is null then
            v_msg_id := pgmq.send(v_queue, jsonb_build_object('command_id', v_command_id));
        end if;
        insert into command_bus_command (
            command_id, created_at, updated_at, msg_id, max_attempts, batch_id, correlation_id,
            domain, command_type, reply_to, data, headers, causation_id, lane, lane_seq
        )
        values (
            v_command_id, v_now, v_now, v_msg_id, (p_command ->> 'max_attempts')::integer,
            p_batch_id, v_correlation_id, p_domain, v_command_type, p_command ->> 'reply_to',
            coalesce(nullif(p_command -> 'data', 'null'), '{}'), p_command -> 'headers',
            v_causation_id, v_lane,
            case when v_lane is not null then command_bus.next_lane_place() end
        )
        on conflict do nothing;
        exit when found;
        if v_msg_id is not null then
            perform pgmq.delete(v_queue, v_msg_id);
        end if;
        v_conflicts := command_bus.conflicting_commands(p_domain, jsonb_build_array(p_command));
        if v_conflicts is not null then
            refusal := command_bus.sent_with_other_content(p_domain, v_conflicts);
            return next;
            return;
        end if;
        return query
        select k.command_id, k.msg_id, k.created, k.status, null::jsonb
        from command_bus.answer_known_commands(
            p_domain, v_queue, jsonb_build_array(p_command), '{}', v_now
        ) as k
        where k.created is not null;
        if found then
            return;
        end if;
        -- It was pruned meanwhile, and with it the memory of its id.
    end loop;

    insert into command_bus_audit (command_id, created_at, msg_id, event_type, domain, details)
    values (
        v_command_id, v_now, v_msg_id, 'SENT', p_domain,
        command_bus.sent_details(v_command_type, v_correlation_id, v_causation_id)
    );
    if v_waits then
        insert into command_bus_waiting (command_id, domain, due_at, kind)
        values (
            v_command_id, p_domain, v_now + make_interval(secs => v_delay_seconds), 'SCHEDULED'
        );
    elsif v_lane is not null then
        perform command_bus.fill_lanes(p_domain, jsonb_build_array(p_command), v_now);
    end if;
    insert into command_bus_delta (at, domain, batch_id, pending, sent)
    values (date_trunc('second', v_now), p_domain, p_batch_id, 1, 1);
    perform command_bus.wake_workers(p_domain);
    return query
    select v_command_id, v_msg_id, true, 'PENDING'::command_bus.command_status, null::jsonb;
end;
$$;

-- Send a set of commands inside the transaction of somebody else: what send_commands does, but
-- a refusal is answered in one row (what is sent is undone to the last command), and the
-- transaction goes on.
-- The block costs a subtransaction: nothing for a set, but too much for each of many commands.
create or replace function command_bus.offer_commands(
    p_domain text, p_commands jsonb, p_batch_id uuid default null
)
returns table (
    command_id uuid, msg_id bigint, created boolean, status command_bus.command_status,
    refusal jsonb
)
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
#variable_conflict use_column
declare
    v_message text;
    v_detail text;
    v_hint text;
begin
    begin
        return query
        select s.command_id, s.msg_id, s.created, s.status, null::jsonb
        from command_bus.send_commands(p_domain, p_commands, p_batch_id) as s;
    exception when sqlstate 'QB000' then  -- all of ours
        get stacked diagnostics
            v_message = message_text, v_detail = pg_exception_detail, v_hint = pg_exception_hint;
        refusal := command_bus.refusal(sqlstate, v_message, v_hint, v_detail);
        return next;
    when undefined_table then
        select command_bus.missing_queue(d.command_queue) into refusal
        from command_bus_domain as d
        where d.domain = p_domain
            and to_regclass(format('pgmq.%I', 'q_' || d.command_queue)) is null;
        if refusal is null then
            raise;
        end if;
        return next;
    end;
end;
$$;

-- What offer_command does; what is refused is raised. Raises what send_commands raises.
create or replace function command_bus.send_command(
    p_domain text, p_command jsonb, p_batch_id uuid default null
)
returns table (
    command_id uuid, msg_id bigint, created boolean, status command_bus.command_status
)
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
declare
    r record;
begin
    select * into r from command_bus.offer_command(p_domain, p_command, p_batch_id);
    perform command_bus.raise_refusal(r.refusal);
    return query select r.command_id, r.msg_id, r.created, r.status;
end;
$$;

-- What the trail says of a command that was sent.
create or replace function command_bus.sent_details(
    p_command_type text, p_correlation_id uuid, p_causation_id uuid
)
returns jsonb
language sql stable parallel safe
as $$
    select case
        when p_correlation_id is null and p_causation_id is null
            then jsonb_build_object('command_type', p_command_type)
        else jsonb_strip_nulls(jsonb_build_object(
            'command_type', p_command_type, 'correlation_id', p_correlation_id,
            'causation_id', p_causation_id))
    end;
$$;

-- A refusal as offer_command answers it: the SQLSTATE, and what goes with it.
create or replace function command_bus.refusal(
    p_sqlstate text, p_message text, p_hint text default '', p_detail text default ''
)
returns jsonb
language sql immutable parallel safe
as $$
    select jsonb_build_object(
        'sqlstate', p_sqlstate, 'message', p_message, 'hint', p_hint, 'detail', p_detail);
$$;

-- Raise a refusal as the error that it stands for; nothing happens where there is none.
create or replace function command_bus.raise_refusal(p_refusal jsonb)
returns void
language plpgsql
as $$
begin
    if p_refusal is not null then
        raise exception '%', p_refusal ->> 'message'
            using errcode = p_refusal ->> 'sqlstate', hint = p_refusal ->> 'hint',
            detail = p_refusal ->> 'detail';
    end if;
end;
$$;

-- The refusals. A missing queue is told in the words in which PostgreSQL misses its table.
create or replace function command_bus.missing_queue(p_queue text)
returns jsonb
language sql immutable parallel safe
set search_path = public, pg_temp
set row_security = off
as $$
    select command_bus.refusal('42P01', format('relation "pgmq.q_%s" does not exist', p_queue));
$$;

create or replace function command_bus.sent_with_other_content(p_domain text, p_ids uuid[])
returns jsonb
language sql immutable parallel safe
as $$
    select command_bus.refusal(
        'QB003',
        format('command %s of domain "%s" was sent before with other content', p_ids[1], p_domain),
        p_detail => to_jsonb(p_ids)::text);
$$;

-- Of the names of a set the first that is no reply queue; null: all are. Any queue of PGMQ may take
-- replies, but for those in which workers look for commands: a reply there would be lost. PGMQ
-- folds case, so the name of one queue may be known in several spellings.
create or replace function command_bus.refused_reply_queue(p_names text[])
returns jsonb
language plpgsql stable
set search_path = public, pg_temp
set row_security = off
as $$
declare
    v_name text;
    v_domain text;
begin
    select n.name, d.domain into v_name, v_domain
    from unnest(p_names) as n (name)
    left join command_bus_domain as d on lower(d.command_queue) = lower(n.name)
    where d.domain is not null
        or not exists (select from pgmq.meta as m where m.queue_name = n.name)
    order by n.name
    limit 1;
    return case
        when v_domain is not null then command_bus.refusal(
            'QB004',
            format('queue "%s" takes the commands of domain "%s", not replies', v_name, v_domain),
            'CommandBus.get_reply_queue names the one that takes its replies.')
        when v_name is not null then command_bus.refusal(
            'QB004', format('reply queue "%s" does not exist', left(v_name, 100)),
            'Create it with pgmq.create, or use the reply queue of a domain.')
    end;
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
set row_security = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_conflicts uuid[] := command_bus.conflicting_commands(p_domain, p_commands);
    v_spare bigint[];
begin
    if v_conflicts is not null then
        perform command_bus.raise_refusal(
            command_bus.sent_with_other_content(p_domain, v_conflicts));
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

-- Those of a set that were sent before with other content; null: none.
create or replace function command_bus.conflicting_commands(p_domain text, p_commands jsonb)
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
    v_conflicts uuid[];
begin
    with input as materialized (
        select * from jsonb_to_recordset(p_commands) as i (
            command_id uuid, command_type text, data jsonb, correlation_id uuid,
            reply_to text, max_attempts integer, lane text
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
        or (i.correlation_id is not null and c.correlation_id is distinct from i.correlation_id)
        or (i.lane is not null and c.lane is distinct from i.lane);
    return v_conflicts;
end;
$$;

-- Check that each reply_to of a set names a reply queue. Raises QB004 for the first that does not.
create or replace function command_bus.require_reply_queues(p_commands jsonb)
returns void
language plpgsql stable
set search_path = public, pg_temp
set row_security = off
as $$
declare
    v_names text[] := array(
        select distinct i.reply_to
        from jsonb_to_recordset(p_commands) as i (reply_to text)
        where i.reply_to is not null
    );
begin
    if cardinality(v_names) > 0 then
        perform command_bus.raise_refusal(command_bus.refused_reply_queue(v_names));
    end if;
end;
$$;

-- Move up to p_limit commands whose time has come into the queue, each with a new message.
-- What somebody else holds, the waiting row or the command, is left for the next call.
create or replace function command_bus.promote_due(p_domain text, p_queue text, p_limit integer)
returns integer
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
    -- A variable: what clock_timestamp() itself is compared with can't end the look at an index,
    -- and a million that wait would be read by each claim.
    v_now timestamptz := clock_timestamp();
    v_due uuid[];
    v_ids uuid[];
    v_laned uuid[];
    v_entered uuid[] := '{}';
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

    select array_agg(h.command_id order by h.command_id),
        array_agg(h.command_id) filter (where h.lane is not null)
    into v_ids, v_laned
    from (
        select c.command_id, c.lane
        from unnest(v_due) as d (command_id)
        join command_bus_command as c
            on command_bus.has_key(c.command_id, c.domain, d.command_id, p_domain)
        where c.status = 'PENDING'
        order by d.command_id
        for no key update of c skip locked
    ) as h;
    if v_laned is not null then
        v_entered := command_bus.enter_lanes(p_domain, v_laned);
    end if;
    delete from command_bus_waiting as w
    using unnest(v_due) as d (command_id)
    where command_bus.has_key(w.command_id, w.domain, d.command_id, p_domain)
        and (d.command_id = any (v_ids) or not exists (
            select from command_bus_command as c
            where command_bus.has_key(c.command_id, c.domain, d.command_id, p_domain)
                and c.status = 'PENDING'
        ));
    if v_entered <> '{}' then
        v_ids := array(select unnest(v_ids) except select unnest(v_entered) order by 1);
    end if;
    if coalesce(v_ids, '{}') = '{}' then
        return cardinality(v_entered);
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
    return cardinality(v_ids) + cardinality(v_entered);
end;
$$;
