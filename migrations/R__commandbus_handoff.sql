-- Hand-off: what a handler sends and publishes counts exactly when its success counts. Both are
-- written in the transaction that settles the command, and only where the outcome is applied: not
-- for a failure, a late result, or one that is there already.

-- Record successes that have follow-ups. Elements: those of settle_commands_v2, and sends: [{domain,
-- batch_id, command}], where command is an element of send_commands; events: elements of
-- publish_events.
-- A command of which a follow-up is refused (a known id with other content, an unknown domain, a
-- queue that is gone) ends as a permanent failure with the code FOLLOW_UP_REFUSED, and nothing else
-- with it. With p_apart each is recorded by itself, and what is locked is answered "locked".
-- Returns what settle_commands_v2 returns. Raises QB001 for an unknown domain, 55P03 where something
-- is locked that all of them need, or any of them without p_apart.
create or replace function command_bus.settle_commands_v3(
    p_domain text, p_worker_id bigint, p_handed jsonb, p_apart boolean default false
)
returns table (
    command_id uuid, claim_no integer, verdict text, status command_bus.command_status
)
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
#variable_conflict use_column
declare
    v_refusal text;
    v_detail jsonb;
    one record;
begin
    perform command_bus.command_queue(p_domain);  -- what is refused below is a follow-up's
    if not p_apart then
        begin
            return query
            select * from command_bus.settle_and_hand_off(p_domain, p_worker_id, p_handed, false);
            return;
        exception when sqlstate 'QB000' then
            null;  -- which one it is shows by itself
        end;
    end if;

    for one in
        select h.outcome, (h.outcome ->> 'command_id')::uuid as id
        from jsonb_array_elements(p_handed) as h (outcome)
        order by 2
    loop
        v_refusal := null;
        begin
            begin
                return query
                select *
                from command_bus.settle_and_hand_off(
                    p_domain, p_worker_id, jsonb_build_array(one.outcome), true
                );
            exception when sqlstate 'QB000' then
                get stacked diagnostics v_refusal = message_text;
                v_detail := jsonb_build_object('refused', v_refusal, 'sqlstate', sqlstate);
            end;
            if v_refusal is not null then
                return query
                select *
                from command_bus.settle_commands_apart(
                    p_domain, p_worker_id, '[]', jsonb_build_array(
                        (one.outcome - '{sends,events,result}'::text[]) || jsonb_build_object(
                            'kind', 'permanent', 'error_type', 'PERMANENT',
                            'error_code', 'FOLLOW_UP_REFUSED',
                            'error_message', 'The handler has run, but what it sends is refused: '
                                || v_refusal,
                            'error_details', v_detail))
                );
            end if;
        exception when lock_not_available then
            if not p_apart then
                raise;
            end if;
            return query
            select one.id, (one.outcome ->> 'claim_no')::integer, 'locked',
                null::command_bus.command_status;
        end;
    end loop;
end;
$$;

-- Settle a set of successes, and write the follow-ups of those that this call has settled.
-- Raises what send_commands raises for a follow-up, and QB004 also where its queue is gone.
create or replace function command_bus.settle_and_hand_off(
    p_domain text, p_worker_id bigint, p_handed jsonb, p_apart boolean
)
returns table (
    command_id uuid, claim_no integer, verdict text, status command_bus.command_status
)
language plpgsql
set search_path = public, pg_temp
set row_security = off
set lock_timeout = '250ms'
as $$
#variable_conflict use_column
declare
    v_unsettled uuid[] := '{}';
    v_events jsonb;
    one record;
begin
    if p_apart then
        perform set_config('lock_timeout', '50ms', true);  -- others wait with rows in their hands
    end if;
    for one in
        select *
        from command_bus.settle_commands_v2(p_domain, p_worker_id, p_handed, '[]')
        where not p_apart
        union all
        select *
        from command_bus.settle_commands_apart(p_domain, p_worker_id, p_handed, '[]')
        where p_apart
    loop
        v_unsettled := v_unsettled || one.command_id;
        command_id := one.command_id;
        claim_no := one.claim_no;
        verdict := one.verdict;
        status := one.status;
        return next;
    end loop;

    for one in
        select f.send ->> 'domain' as domain, (f.send ->> 'batch_id')::uuid as batch_id,
            jsonb_agg(
                f.send -> 'command' || jsonb_build_object('causation_id', f.cause_id)
                || case when f.lane is not null and f.send ->> 'domain' = p_domain then
                    jsonb_strip_nulls(jsonb_build_object('lane_seq', command_bus.place_of_follow_up(
                        p_domain, f.cause_id, f.lane, f.number, f.count))) else '{}' end
                order by f.cause_id, f.position
            ) as commands
        from (
            select (h.outcome ->> 'command_id')::uuid as cause_id, s.send, s.position,
                s.send #>> '{command,lane}' as lane, row_number() over own_lane as number,
                count(*) over (
                    partition by h.outcome ->> 'command_id', s.send ->> 'domain',
                        s.send #>> '{command,lane}') as count
            from jsonb_array_elements(p_handed) as h (outcome)
            cross join lateral jsonb_array_elements(h.outcome -> 'sends')
                with ordinality as s (send, position)
            window own_lane as (
                partition by h.outcome ->> 'command_id', s.send ->> 'domain',
                    s.send #>> '{command,lane}'
                order by s.position)
        ) as f
        where f.cause_id <> all (v_unsettled)
        group by 1, 2
        order by 1, 2
    loop
        perform command_bus.require_command_queue(one.domain);
        perform command_bus.send_commands(one.domain, one.commands, one.batch_id);
    end loop;

    select jsonb_agg(
        e.event || jsonb_build_object('domain', p_domain, 'command_id', h.outcome -> 'command_id')
        order by h.outcome ->> 'command_id', e.position
    )
    into v_events
    from jsonb_array_elements(p_handed) as h (outcome)
    cross join lateral jsonb_array_elements(h.outcome -> 'events')
        with ordinality as e (event, position)
    where (h.outcome ->> 'command_id')::uuid <> all (v_unsettled);
    if v_events is not null then
        perform command_bus.publish_events(v_events);
    end if;
end;
$$;

-- Raises QB001 for an unknown domain, QB004 where its command queue is gone.
create or replace function command_bus.require_command_queue(p_domain text)
returns void
language plpgsql stable
set search_path = public, pg_temp
set row_security = off
as $$
declare
    v_queue text := command_bus.command_queue(p_domain);
begin
    if to_regclass(format('pgmq.%I', 'q_' || v_queue)) is null then
        raise exception 'the queue "%" of domain "%" does not exist', v_queue, p_domain
            using errcode = 'QB004';
    end if;
end;
$$;

-- Write events into the outbox, all or none. Elements: {event_id, event_type, data, key?, headers?,
-- domain?, command_id?}. Who has written an event with a key and not committed is waited for.
create or replace function command_bus.publish_events(p_events jsonb)
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
declare
    v_now timestamptz := clock_timestamp();
begin
    -- In a statement of its own: positions are taken after it.
    insert into command_bus_outbox_key as k (key, used_at)
    select distinct e.key, v_now
    from jsonb_to_recordset(p_events) as e (key text)
    where e.key is not null
    order by e.key
    on conflict (key) do update set used_at = excluded.used_at;

    insert into command_bus_outbox (
        event_id, created_at, event_type, key, data, headers, domain, command_id
    )
    select e.event_id, v_now, e.event_type, e.key, coalesce(e.data, 'null'), e.headers, e.domain,
        e.command_id
    from rows from (
        jsonb_to_recordset(p_events) as (
            event_id uuid, event_type text, key text, data jsonb, headers jsonb, domain text,
            command_id uuid
        )
    ) with ordinality as e (
        event_id, event_type, key, data, headers, domain, command_id, ordinality
    )
    order by e.ordinality;
    perform pg_notify('command_bus_outbox', '');
end;
$$;

-- Delete events that were handed on; returns how many were still there.
create or replace function command_bus.delete_events(p_positions bigint[])
returns bigint
language sql
set search_path = public, pg_temp
set row_security = off
as $$
    with deleted as (
        delete from command_bus_outbox as o
        where o.position = any (p_positions)
        returning 1
    )
    select count(*) from deleted;
$$;
