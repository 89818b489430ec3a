-- Parking: commands whose type the workers that met them do not know wait beside the queue, PENDING and
-- with no attempt spent, until a worker that knows the type takes them. After no_handler_after seconds
-- without any such worker they go to the troubleshooting queue. What is of a paused type is parked as
-- well, until the pause ends (R__commandbus_pauses.sql).

-- Give back what a worker claimed and has no handler for: parked, no attempt spent. Returns how many
-- it still held; those that somebody has locked are left out. A suspect stays one.
-- Elements: {command_id, msg_id, claim_no}.
create or replace function command_bus.park_unhandled(
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
    v_suspects uuid[];
begin
    if cardinality(v_held) = 0 then
        return 0;
    end if;
    v_msg_ids := array(
        select c.msg_id
        from unnest(v_held) as h (command_id)
        join command_bus_command as c
            on command_bus.has_key(c.command_id, c.domain, h.command_id, p_domain)
    );
    execute format(
        $query$
        select array(
            select (q.message ->> 'command_id')::uuid
            from pgmq.%I as q
            where q.msg_id = any ($1) and q.message ? 'suspect'
        )
        $query$, 'q_' || v_queue
    ) into v_suspects using v_msg_ids;
    with given_back as (
        update command_bus_command as c
        set status = 'PENDING', attempts = c.attempts - 1, lease_until = null, updated_at = v_now,
            msg_id = null
        from unnest(v_held) as h (command_id)
        where command_bus.has_key(c.command_id, c.domain, h.command_id, p_domain)
        returning c.command_id, c.command_type, c.attempts, c.batch_id
    ),
    audited as (
        insert into command_bus_audit (
            command_id, created_at, worker_id, attempt, event_type, domain, details
        )
        select command_id, v_now, p_worker_id, attempts + 1, 'RELEASED', p_domain,
            jsonb_build_object('reason', 'NO_HANDLER', 'command_type', command_type)
        from given_back
    ),
    counted as (
        insert into command_bus_delta (at, domain, batch_id, pending, in_progress)
        select date_trunc('second', v_now), p_domain, batch_id, count(*), -count(*)
        from given_back
        group by batch_id
    ),
    suspected as (
        insert into command_bus_suspect (command_id, domain, parked_at, from_worker_id)
        select command_id, p_domain, v_now, p_worker_id
        from given_back
        where command_id = any (v_suspects)
    )
    insert into command_bus_parked (command_id, domain, command_type, kind, parked_at)
    select command_id, p_domain, command_type, 'NO_HANDLER', v_now
    from given_back
    where command_id <> all (v_suspects);
    perform command_bus.drop_messages(v_queue, v_msg_ids, true);
    perform command_bus.tell_hook(p_domain, v_held, 'RELEASED', 'IN_PROGRESS');
    perform command_bus.wake_workers(p_domain);
    return cardinality(v_held);
end;
$$;

-- Why a claim parks commands of a type that it shall leave.
create or replace function command_bus.parked_kind(p_domain text, p_command_type text)
returns text
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    select case when p_command_type = any (d.paused_types) then 'PAUSED' else 'NO_HANDLER' end
    from command_bus_domain as d
    where d.domain = p_domain;
$$;

-- Park what is PENDING of the types p_leave among messages that the caller has locked; returns the
-- messages, which are deleted. What somebody has locked is left out.
create or replace function command_bus.park_messages(
    p_domain text, p_queue text, p_msg_ids bigint[], p_ids uuid[], p_leave text[]
)
returns bigint[]
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
    v_ids uuid[];
    v_msg_ids bigint[];
    v_paused text[] := (
        select d.paused_types from command_bus_domain as d where d.domain = p_domain
    );
begin
    with held as (
        -- Laterally: else a plan may read the commands first, and compare each with each.
        select locked.command_id, locked.msg_id
        from (
            select * from unnest(p_ids, p_msg_ids) as u (command_id, msg_id) order by command_id
        ) as m
        cross join lateral (
            select c.command_id, c.msg_id
            from command_bus_command as c
            where c.command_id = m.command_id and c.domain = p_domain
                and c.msg_id = m.msg_id and c.status = 'PENDING'
                and c.command_type = any (p_leave)
            for no key update skip locked
        ) as locked
    )
    select array_agg(h.command_id), array_agg(h.msg_id) into v_ids, v_msg_ids from held as h;
    if v_ids is null then
        return '{}';
    end if;
    with parked as (
        update command_bus_command as c
        set msg_id = null, updated_at = v_now
        from unnest(v_ids) as h (command_id)
        where command_bus.has_key(c.command_id, c.domain, h.command_id, p_domain)
        returning c.command_id, c.command_type
    )
    insert into command_bus_parked (command_id, domain, command_type, kind, parked_at)
    select p.command_id, p_domain, p.command_type,
        case when p.command_type = any (v_paused) then 'PAUSED' else 'NO_HANDLER' end, v_now
    from parked as p;
    perform pgmq.delete(p_queue, v_msg_ids);
    perform command_bus.wake_workers(p_domain);
    return v_msg_ids;
end;
$$;

-- Park what is of the types p_leave among the next messages that are due: a claim that reads a few at
-- a time would come to what is behind them late. Returns how many.
create or replace function command_bus.park_ahead(
    p_domain text, p_queue text, p_leave text[], p_limit integer
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
as $$
declare
    v_msg_ids bigint[];
    v_ids uuid[];
begin
    execute format(
        $query$
        select array_agg(n.msg_id), array_agg(n.command_id)
        from (
            select q.msg_id, case
                    when q.message ->> 'command_id' ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
                        then (q.message ->> 'command_id')::uuid
                end as command_id
            from pgmq.%I as q
            where q.vt <= clock_timestamp()
            order by q.msg_id
            limit $1
            for update skip locked
        ) as n
        $query$, 'q_' || p_queue
    ) into v_msg_ids, v_ids using p_limit;
    if v_msg_ids is null then
        return 0;
    end if;
    return cardinality(command_bus.park_messages(p_domain, p_queue, v_msg_ids, v_ids, p_leave));
end;
$$;

-- The types of which commands are parked; a few index look-ups for each, however many there are.
create or replace function command_bus.parked_types(p_domain text, p_kind text)
returns text[]
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    with recursive type as (
        (
            select p.command_type from command_bus_parked as p
            where p.domain = p_domain and p.kind = p_kind
            order by p.command_type
            limit 1
        )
        union all
        select (
            select p.command_type from command_bus_parked as p
            where p.domain = p_domain and p.kind = p_kind and p.command_type > t.command_type
            order by p.command_type
            limit 1
        )
        from type as t
        where t.command_type is not null
    )
    select coalesce(array_agg(t.command_type), '{}') from type as t where t.command_type is not null;
$$;

-- Those of the types that are not paused; none while the whole domain is.
create or replace function command_bus.not_paused(p_domain text, p_types text[])
returns text[]
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    select coalesce(array_agg(t.command_type order by t.position), '{}')
    from command_bus_domain as d
    cross join unnest(p_types) with ordinality as t (command_type, position)
    where d.domain = p_domain and d.paused_until is null
        and (d.paused_types is null or t.command_type <> all (d.paused_types));
$$;

-- Those of the types that no running worker has a handler for. With p_told, workers that do not say
-- what they have handlers for (those of earlier releases) count as having none.
create or replace function command_bus.unknown_types(p_domain text, p_types text[], p_told boolean)
returns text[]
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    select array(
        select t.command_type
        from unnest(p_types) as t (command_type)
        where not exists (
            select from command_bus_worker as w
            where w.domain = p_domain and w.stopped_at is null and w.replaced_by is null
                and abs(extract(epoch from clock_timestamp() - w.heartbeat_at))
                    <= 10 * w.heartbeat_seconds
                and (t.command_type = any (w.command_types)
                    or w.command_types is null and not p_told)
        )
    );
$$;

-- Lock up to p_limit parked commands of these types that can be locked, the longest parked of each type
-- first: their rows here, then themselves.
create or replace function command_bus.hold_parked(
    p_domain text, p_kind text, p_types text[], p_before timestamptz, p_limit integer
)
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
    v_type text;
    v_of_type uuid[];
    v_rows uuid[] := '{}';
begin
    foreach v_type in array p_types loop
        exit when cardinality(v_rows) >= p_limit;
        v_of_type := array(
            select p.command_id
            from command_bus_parked as p
            where p.domain = p_domain and p.kind = p_kind and p.command_type = v_type
                and p.parked_at <= p_before
            order by p.parked_at, p.command_id
            limit p_limit - cardinality(v_rows)
            for update skip locked
        );
        v_rows := v_rows || v_of_type;
    end loop;
    if cardinality(v_rows) = 0 then
        return v_rows;
    end if;
    return array(
        select held.command_id
        from (select command_id from unnest(v_rows) as u (command_id) order by command_id) as r
        cross join lateral (
            select c.command_id
            from command_bus_command as c
            where c.command_id = r.command_id and c.domain = p_domain
                and c.status = 'PENDING' and c.msg_id is null
            for no key update skip locked
        ) as held
    );
end;
$$;

-- Claim up to p_limit parked commands of the types that a worker knows, each until p_lease_seconds from
-- now. They do not go through the queue, where a worker that does not know them might read them first.
-- Returns what a claim returns. Raises QB001 for an unknown domain.
drop function if exists command_bus.claim_parked(text, bigint, integer, integer, integer, text[]);
create function command_bus.claim_parked(
    p_domain text, p_worker_id bigint, p_limit integer, p_lease_seconds integer,
    p_max_attempts integer, p_types text[]
)
returns table (
    command_id uuid, command_type text, data text, correlation_id uuid, reply_to text,
    batch_id uuid, created_at timestamptz, attempt integer, max_attempts integer, msg_id bigint,
    claim_no integer, headers text, lane text
)
language plpgsql
set search_path = public, pg_temp
set row_security = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set lock_timeout = '500ms'
as $$
#variable_conflict use_column
declare
    v_now timestamptz;
    v_queue text := command_bus.command_queue(p_domain);
    v_ids uuid[];
    v_msg_ids bigint[];
    r record;
begin
    v_ids := command_bus.hold_parked(
        p_domain, 'NO_HANDLER', command_bus.not_paused(p_domain, p_types), clock_timestamp(), p_limit
    );
    if cardinality(v_ids) = 0 then
        return;
    end if;
    for r in
        select c.command_id, coalesce(c.max_attempts, p_max_attempts) as budget
        from unnest(v_ids) as i (command_id)
        join command_bus_command as c
            on command_bus.has_key(c.command_id, c.domain, i.command_id, p_domain)
        where c.attempts >= coalesce(c.max_attempts, p_max_attempts)
    loop
        -- The configured budget was lowered while the command was parked.
        delete from command_bus_parked as p
        where p.command_id = r.command_id and p.domain = p_domain;
        perform command_bus.exhaust(p_domain, r.command_id, r.budget);
        v_ids := array_remove(v_ids, r.command_id);
    end loop;
    if cardinality(v_ids) = 0 then
        return;
    end if;
    v_msg_ids := array(
        select m.msg_id
        from pgmq.send_batch(v_queue, array(
            select jsonb_build_object('command_id', i.command_id)
            from unnest(v_ids) with ordinality as i (command_id, position)
            order by i.position
        ), p_lease_seconds) with ordinality as m (msg_id, position)
        order by m.position
    );
    v_now := clock_timestamp();
    return query
    with freed as (
        delete from command_bus_parked as p
        using unnest(v_ids) as i (command_id)
        where p.command_id = i.command_id and p.domain = p_domain
        returning p.command_id, p.kind, p.parked_at
    ),
    claimed as (
        update command_bus_command as c
        set status = 'IN_PROGRESS', attempts = c.attempts + 1, claim_no = c.claim_no + 1,
            worker_id = p_worker_id, started_at = v_now, updated_at = v_now, msg_id = m.msg_id,
            claimed_budget = coalesce(c.max_attempts, p_max_attempts),
            lease_until = v_now + make_interval(secs => p_lease_seconds)
        from unnest(v_ids, v_msg_ids) as m (command_id, msg_id)
        where command_bus.has_key(c.command_id, c.domain, m.command_id, p_domain)
        returning c.*
    ),
    audited as (
        insert into command_bus_audit (
            command_id, created_at, msg_id, worker_id, attempt, event_type, domain, details
        )
        select c.command_id, v_now, c.msg_id, p_worker_id, c.attempts, 'RECEIVED', p_domain,
            jsonb_build_object('waited_for', f.kind, 'parked_at', f.parked_at)
        from claimed as c
        join freed as f on f.command_id = c.command_id
    ),
    counted as (
        insert into command_bus_delta (at, domain, batch_id, pending, in_progress)
        select date_trunc('second', v_now), p_domain, c.batch_id, -count(*), count(*)
        from claimed as c
        group by c.batch_id
    )
    select c.command_id, c.command_type, c.data::text, c.correlation_id, c.reply_to, c.batch_id,
        c.created_at, c.attempts, coalesce(c.max_attempts, p_max_attempts), c.msg_id, c.claim_no,
        c.headers::text, c.lane
    from claimed as c
    order by c.msg_id;
    perform command_bus.tell_hook(p_domain, v_ids, 'RECEIVED', 'PENDING');
end;
$$;

-- Put up to p_limit parked commands of these types, parked before p_before, back into the queue, each
-- under a new message. Returns how many.
create or replace function command_bus.unpark(
    p_domain text, p_kind text, p_types text[], p_before timestamptz, p_limit integer
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
as $$
declare
    v_ids uuid[] := command_bus.hold_parked(p_domain, p_kind, p_types, p_before, p_limit);
    v_msg_ids bigint[];
begin
    if cardinality(v_ids) = 0 then
        return 0;
    end if;
    v_msg_ids := array(
        select m.msg_id
        from pgmq.send_batch(command_bus.command_queue(p_domain), array(
            select jsonb_build_object('command_id', i.command_id)
            from unnest(v_ids) with ordinality as i (command_id, position)
            order by i.position
        )) with ordinality as m (msg_id, position)
        order by m.position
    );
    delete from command_bus_parked as p
    using unnest(v_ids) as i (command_id)
    where p.command_id = i.command_id and p.domain = p_domain;
    update command_bus_command as c
    set msg_id = m.msg_id, updated_at = clock_timestamp()
    from unnest(v_ids, v_msg_ids) as m (command_id, msg_id)
    where command_bus.has_key(c.command_id, c.domain, m.command_id, p_domain);
    return cardinality(v_ids);
end;
$$;

-- Let workers of an earlier release have what others have parked, a second later: they cannot take
-- parked commands, and do not say which types they know. What a running worker knows stays parked for it.
create or replace function command_bus.unpark_for_earlier(p_domain text, p_limit integer)
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
begin
    perform command_bus.unpark(
        p_domain, 'NO_HANDLER',
        command_bus.not_paused(p_domain, command_bus.unknown_types(
            p_domain, command_bus.parked_types(p_domain, 'NO_HANDLER'), true
        )),
        clock_timestamp() - interval '1 second', p_limit
    );
end;
$$;

-- Move up to a thousand commands to the troubleshooting queue that were parked p_seconds ago or before,
-- and whose type no running worker knows; suspects as well. Returns how many.
create or replace function command_bus.expire_parked(p_domain text, p_seconds float8)
returns integer
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
declare
    v_now timestamptz := clock_timestamp();
    v_before timestamptz := v_now - make_interval(secs => p_seconds);
    v_types text[] := command_bus.not_paused(p_domain, command_bus.unknown_types(
        p_domain, command_bus.parked_types(p_domain, 'NO_HANDLER'), false
    ));
    v_ids uuid[] := command_bus.hold_parked(p_domain, 'NO_HANDLER', v_types, v_before, 1000);
begin
    v_ids := v_ids || array(
        select c.command_id
        from command_bus_suspect as s
        join command_bus_command as c
            on command_bus.has_key(c.command_id, c.domain, s.command_id, p_domain)
        where s.domain = p_domain and s.parked_at <= v_before and c.status = 'PENDING'
            and command_bus.not_paused(
                p_domain, command_bus.unknown_types(p_domain, array[c.command_type], false)
            ) <> '{}'
        order by s.command_id
        limit 100
        for update of s skip locked
        for no key update of c skip locked
    );
    if cardinality(v_ids) = 0 then
        return 0;
    end if;
    delete from command_bus_parked as p
    where p.command_id = any (v_ids) and p.domain = p_domain;
    delete from command_bus_suspect as s
    where s.command_id = any (v_ids) and s.domain = p_domain;
    with moved as (
        update command_bus_command as c
        set status = 'IN_TSQ', updated_at = v_now, last_error_type = 'PERMANENT',
            last_error_code = 'NO_HANDLER',
            last_error_message = format(
                'No running worker has had a handler for "%s" in domain "%s" for %s s',
                c.command_type, p_domain, p_seconds)
        from unnest(v_ids) as i (command_id)
        where command_bus.has_key(c.command_id, c.domain, i.command_id, p_domain)
        returning c.*
    ),
    audited as (
        insert into command_bus_audit (
            command_id, created_at, attempt, event_type, domain, details
        )
        select m.command_id, v_now, m.attempts, 'MOVED_TO_TSQ', p_domain,
            jsonb_build_object(
                'reason', 'NO_HANDLER', 'found_by', 'heartbeat', 'no_handler_after', p_seconds,
                'error_type', m.last_error_type, 'error_code', m.last_error_code,
                'error_message', m.last_error_message)
        from moved as m
    )
    insert into command_bus_delta (at, domain, batch_id, pending, in_tsq)
    select date_trunc('second', v_now), p_domain, m.batch_id, -count(*), count(*)
    from moved as m
    group by m.batch_id;
    perform command_bus.enter_tsq(p_domain, v_ids);
    perform command_bus.tell_hook(p_domain, v_ids, 'MOVED_TO_TSQ', 'PENDING');
    return cardinality(v_ids);
end;
$$;

-- What waits because no running worker knows its type, counted up to p_limit for each type.
create or replace function command_bus.waiting_for_a_handler(p_domain text, p_limit integer)
returns table (domain text, command_type text, waiting bigint, since timestamptz)
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    select d.domain, t.command_type,
        (select count(*) from (
            select from command_bus_parked as p
            where p.domain = d.domain and p.kind = 'NO_HANDLER' and p.command_type = t.command_type
            limit p_limit) as n),
        (select p.parked_at from command_bus_parked as p
         where p.domain = d.domain and p.kind = 'NO_HANDLER' and p.command_type = t.command_type
         order by p.parked_at limit 1)
    from command_bus_domain as d
    cross join lateral unnest(command_bus.unknown_types(
        d.domain, command_bus.parked_types(d.domain, 'NO_HANDLER'), false
    )) as t (command_type)
    where p_domain is null or d.domain = p_domain
    order by 1, 2;
$$;
