-- Leases between claim and settle: making them longer, and giving commands back unused.
--
-- Both name the token of the attempt, and lock the command before its message. That is safe because
-- the claim, which comes the other way round, never waits for a command that is IN_PROGRESS. Neither
-- waits for a row that somebody has locked while there are others.

-- Make the leases of a worker's attempts longer; returns the tokens that are still its own.
-- Elements: {command_id, msg_id, claim_no}. Where all that could be renewed is locked, 55P03 is
-- raised: it is not known whose it will be.
create or replace function command_bus.renew_leases(
    p_domain text, p_worker_id bigint, p_tokens jsonb, p_lease_seconds integer
)
returns table (command_id uuid, claim_no integer)
language plpgsql
set search_path = public, pg_temp
set row_security = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set lock_timeout = '250ms'
as $$
#variable_conflict use_column
declare
    v_until timestamptz := clock_timestamp() + make_interval(secs => p_lease_seconds);
    v_queue text := command_bus.command_queue(p_domain);
    v_held uuid[];
    v_ids uuid[];
    v_msg_ids bigint[];
    v_renewed bigint[];
begin
    with token as materialized (
        select * from jsonb_to_recordset(p_tokens)
            as t (command_id uuid, msg_id bigint, claim_no integer)
        order by t.command_id
    ),
    renewed as (
        update command_bus_command as c
        set lease_until = v_until
        from token as t
        where command_bus.has_key(c.command_id, c.domain, t.command_id, p_domain)
            and c.msg_id = t.msg_id
            and c.claim_no = t.claim_no and c.status = 'IN_PROGRESS'
            and c.xmax = 0  -- see settle
        returning c.command_id
    )
    select coalesce(array_agg(r.command_id), '{}') into v_held from renewed as r;
    if cardinality(v_held) < jsonb_array_length(p_tokens) then
        update command_bus_command as c
        set lease_until = v_until
        from unnest(command_bus.hold_attempts(p_domain, p_tokens)) as h (command_id)
        where command_bus.has_key(c.command_id, c.domain, h.command_id, p_domain);

        -- The message is the lease. Where a command is locked by somebody else, its message is
        -- locked first: nobody can claim it then, so what is read after that stays true.
        perform command_bus.hold_messages(v_queue, array(
            select t.msg_id
            from jsonb_to_recordset(p_tokens) as t (command_id uuid, msg_id bigint)
            where t.command_id <> all (v_held)
        ));
    end if;
    with token as materialized (
        select * from jsonb_to_recordset(p_tokens)
            as t (command_id uuid, msg_id bigint, claim_no integer)
    )
    select array_agg(c.command_id), array_agg(c.msg_id) into v_ids, v_msg_ids
    from token as t
    join command_bus_command as c
        on command_bus.has_key(c.command_id, c.domain, t.command_id, p_domain)
    where c.msg_id = t.msg_id and c.claim_no = t.claim_no and c.status = 'IN_PROGRESS';
    if v_ids is null then
        return;
    end if;
    v_renewed := array(select command_bus.show_messages(v_queue, v_msg_ids, v_until));
    if cardinality(v_renewed) = 0 then
        raise exception 'the messages of these commands are locked' using errcode = '55P03';
    end if;
    return query
    select t.command_id, t.claim_no
    from jsonb_to_recordset(p_tokens) as t (command_id uuid, msg_id bigint, claim_no integer)
    where t.command_id = any (v_ids) and t.msg_id = any (v_renewed);
end;
$$;

-- End the leases of attempts that outlasted them and are over, by the word of their worker. It lives,
-- so the next claim need not wait for its heartbeat. Elements: {command_id, msg_id, claim_no}.
-- Returns how many: those that somebody has locked, or has begun again, are left out. Raises 55P03
-- where all of them, or the worker's row, are locked.
create or replace function command_bus.end_leases(
    p_domain text, p_worker_id bigint, p_tokens jsonb
)
returns integer
language plpgsql
set search_path = public, pg_temp
set row_security = off
set lock_timeout = '250ms'
as $$
declare
    v_count integer;
begin
    select count(*) into v_count
    from command_bus.renew_leases(p_domain, p_worker_id, p_tokens, 0);
    update command_bus_worker set heartbeat_at = clock_timestamp()
    where worker_id = p_worker_id and stopped_at is null;
    perform command_bus.wake_workers(p_domain);
    return v_count;
end;
$$;

-- Lock messages, as far as nobody else has.
create or replace function command_bus.hold_messages(p_queue text, p_msg_ids bigint[])
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
begin
    if cardinality(p_msg_ids) > 0 then
        execute format(
            'select from pgmq.%I where msg_id = any ($1) order by msg_id for update skip locked',
            'q_' || p_queue
        ) using p_msg_ids;
    end if;
end;
$$;

-- Everything that a worker holds, also what it was given and never heard of, because the connection
-- broke.
create or replace function command_bus.claimed_by_worker(p_domain text, p_worker_id bigint)
returns table (command_id uuid, msg_id bigint, claim_no integer)
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
    -- It is a part of what is invisible in the queue, which is short, and found by its time.
    return query execute format(
        $query$
        with invisible as materialized (
            select q.msg_id,
                case when q.message ->> 'command_id'
                    ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
                then (q.message ->> 'command_id')::uuid end as command_id
            from pgmq.%I as q
            where q.vt > $3
        )
        select c.command_id, c.msg_id, c.claim_no
        from invisible as i
        join command_bus_command as c
            on command_bus.has_key(c.command_id, c.domain, i.command_id, $1)
            and c.msg_id = i.msg_id
        where c.worker_id = $2 and c.status = 'IN_PROGRESS'
        $query$, 'q_' || command_bus.command_queue(p_domain)
    ) using p_domain, p_worker_id, clock_timestamp();
end;
$$;

-- Give back commands that the worker claimed and did not start: PENDING at once, no attempt spent.
-- Returns how many; those that somebody has locked are left out.
-- A suspect is parked again: in a claim with others it could take them with it.
-- Elements: {command_id, msg_id, claim_no}. The form with a fourth parameter was there before.
drop function if exists command_bus.release_commands(text, bigint, jsonb, boolean);
create or replace function command_bus.release_commands(
    p_domain text, p_worker_id bigint, p_tokens jsonb
)
returns integer
language plpgsql
set search_path = public, pg_temp
set row_security = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set lock_timeout = '1s'
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_queue text := command_bus.command_queue(p_domain);
    v_held uuid[] := command_bus.hold_attempts(p_domain, p_tokens);
    v_msg_ids bigint[];
    v_suspect_ids uuid[];
    v_suspect_msg_ids bigint[];
begin
    with released as (
        update command_bus_command as c
        set status = 'PENDING', attempts = c.attempts - 1, lease_until = null, updated_at = v_now
        from unnest(v_held) as h (command_id)
        where command_bus.has_key(c.command_id, c.domain, h.command_id, p_domain)
        returning c.command_id, c.msg_id, c.attempts, c.batch_id
    ),
    audited as (
        insert into command_bus_audit (
            command_id, created_at, msg_id, worker_id, attempt, event_type, domain
        )
        select command_id, v_now, msg_id, p_worker_id, attempts + 1, 'RELEASED', p_domain
        from released
    ),
    counted as (
        insert into command_bus_delta (at, domain, batch_id, pending, in_progress)
        select date_trunc('second', v_now), p_domain, batch_id, count(*), -count(*)
        from released
        group by batch_id
    )
    select array_agg(msg_id) into v_msg_ids from released;
    if v_msg_ids is null then
        return 0;
    end if;
    execute format(
        $query$
        select array_agg((q.message ->> 'command_id')::uuid), array_agg(q.msg_id)
        from pgmq.%I as q
        where q.msg_id = any ($1) and q.message ? 'suspect'
        $query$, 'q_' || v_queue
    ) into v_suspect_ids, v_suspect_msg_ids using v_msg_ids;
    if v_suspect_ids is not null then
        insert into command_bus_suspect (command_id, domain, parked_at, from_worker_id)
        select s.command_id, p_domain, v_now, p_worker_id from unnest(v_suspect_ids) as s (command_id);
        update command_bus_command as c
        set msg_id = null
        from unnest(v_suspect_ids) as s (command_id)
        where command_bus.has_key(c.command_id, c.domain, s.command_id, p_domain);
        perform pgmq.delete(v_queue, v_suspect_msg_ids);
    end if;
    perform command_bus.show_messages(v_queue, v_msg_ids, v_now);
    perform command_bus.tell_hook(p_domain, v_held, 'RELEASED', 'IN_PROGRESS');
    perform command_bus.wake_workers(p_domain);
    return cardinality(v_msg_ids);
end;
$$;
