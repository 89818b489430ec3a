-- Claiming: the lease of a command is the visibility time of its current message, so a visible
-- current message means that nobody holds the command any more.
--
-- The fast path is one update of PENDING commands whose current message was just read. Whatever
-- was read and not claimed by it is rare and goes through claim_exceptions, row by row: messages
-- that are old or belong to nothing, spent budgets, leases that ran out.
--
-- The claim waits for nobody's row lock. It holds message rows when it comes to command rows, as the
-- lock order wants for PENDING ones; those IN_PROGRESS may be held by a settle, a renewal or a
-- release that is about to touch the message; and anybody may hold any row for long. So it takes
-- the rows without an xmax first (nearly all: nobody ever locked this version), then those of the
-- others that it can lock, and shows the messages of the rest again.

-- Claim up to p_limit commands for a worker, each until p_lease_seconds from now; promote what is
-- due first. p_max_attempts is the budget of commands that have none of their own.
-- A row without a claim_no is a message that was rejected: its id, the id it names, and the reason
-- as data. One without a msg_id, too, says how many messages were left for later, as its attempt,
-- since somebody has locked what they need, and how many commands were parked, as its max_attempts:
-- those of the types p_leave (null: none), which the worker does not know (R__commandbus_parking.sql),
-- and of types that are paused. While the domain is paused it claims nothing (R__commandbus_pauses.sql).
-- Raises QB001 for an unknown domain, 55P03 where the queue itself is locked, or the table of
-- commands. A form without p_leave was there before.
drop function if exists command_bus.claim_commands_v3(text, bigint, integer, integer, integer);
drop function if exists command_bus.claim_commands_v3(
    text, bigint, integer, integer, integer, text[]
);
create function command_bus.claim_commands_v3(
    p_domain text, p_worker_id bigint, p_limit integer, p_lease_seconds integer,
    p_max_attempts integer, p_leave text[] default null
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
set plan_cache_mode = force_generic_plan
set lock_timeout = '500ms'
as $$
#variable_conflict use_column
declare
    v_now timestamptz;
    v_queue text;
    v_hook text;
    v_paused_until timestamptz;
    v_pause_ends_at timestamptz;
    v_paused_types text[];
    v_is_resuming boolean;
    v_leave text[];
    v_msg_ids bigint[];
    v_texts text[];
    v_ids uuid[];
    v_held uuid[] := '{}';
    v_parked bigint[];
    v_parked_count integer;
    v_read integer;
    v_claimed integer := 0;
    v_rows integer;
begin
    loop
        select d.command_queue, d.transition_hook, d.paused_until, d.paused_types, d.pause_ends_at,
            d.is_resuming
        into v_queue, v_hook, v_paused_until, v_paused_types, v_pause_ends_at, v_is_resuming
        from command_bus_domain as d
        where d.domain = p_domain;
        if v_queue is null then
            perform command_bus.require_domain(p_domain);
        end if;
        exit when v_pause_ends_at is null or v_pause_ends_at > clock_timestamp();
        perform command_bus.refresh_pauses(p_domain);
    end loop;
    if v_paused_until is not null then
        return;
    end if;
    v_leave := p_leave;
    if v_paused_types is not null then
        v_leave := v_paused_types || coalesce(p_leave, '{}');
    end if;
    begin
        if v_is_resuming then
            perform command_bus.bring_back(p_domain, greatest(p_limit * 2, 100));
        end if;
        if command_bus.promote_due(p_domain, v_queue, greatest(p_limit * 4, 1000)) > p_limit then
            perform command_bus.wake_workers(p_domain);  -- there is something for others
        end if;
    exception when lock_not_available then
        null;  -- what waits is locked as a whole; what is in the queue can be claimed
    end;
    begin
        if exists (select from command_bus_lane_ready as m where m.domain = p_domain) then
            perform command_bus.promote_for_claim(p_domain, v_queue, p_limit);
        end if;
    exception when lock_not_available then
        null;  -- and so are the marks of lanes
    end;

    select array_agg(r.msg_id), array_agg(r.message ->> 'command_id')
    into v_msg_ids, v_texts
    from (
        select * from pgmq.read(v_queue, p_lease_seconds, p_limit) order by msg_id
    ) as r;
    if v_msg_ids is null then
        return;
    end if;
    begin
        v_ids := v_texts::uuid[];
    exception when invalid_text_representation then
        -- Somebody else's message; seldom enough that to look at each first would cost more.
        v_ids := array(
            select case when id ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
                        then id::uuid end
            from unnest(v_texts) with ordinality as t (id, position)
            order by position
        );
    end;

    v_read := cardinality(v_msg_ids);
    if v_leave is not null then
        v_parked := command_bus.park_messages(p_domain, v_queue, v_msg_ids, v_ids, v_leave);
        if cardinality(v_parked) > 0 then
            v_parked_count := cardinality(v_parked);
            if v_parked_count * 2 >= v_read then
                v_parked_count := v_parked_count
                    + command_bus.park_ahead(p_domain, v_queue, v_leave, 1000);
            end if;
            return query
            select null::uuid, null::text, null::text, null::uuid, null::text, null::uuid,
                null::timestamptz, 0, v_parked_count, null::bigint, null::integer, null::text,
                null::text;
            select array_agg(m.msg_id order by m.position), array_agg(m.id order by m.position)
            into v_msg_ids, v_ids
            from unnest(v_msg_ids, v_ids) with ordinality as m (msg_id, id, position)
            where m.msg_id <> all (v_parked);
            if v_msg_ids is null then
                return;
            end if;
        end if;
    end if;

    v_now := clock_timestamp();
    loop
        return query
        with claimed as (
            update command_bus_command as c
            set status = 'IN_PROGRESS', attempts = c.attempts + 1, claim_no = c.claim_no + 1,
                worker_id = p_worker_id, started_at = v_now, updated_at = v_now,
                claimed_budget = coalesce(c.max_attempts, p_max_attempts),
                lease_until = v_now + make_interval(secs => p_lease_seconds)
            from unnest(v_ids, v_msg_ids) as m (command_id, msg_id)
            where command_bus.has_key(c.command_id, c.domain, m.command_id, p_domain)
                and c.msg_id = m.msg_id
                and c.status = 'PENDING' and c.attempts < coalesce(c.max_attempts, p_max_attempts)
                and (c.xmax = 0 or c.command_id = any (v_held))
                and (v_leave is null or c.command_type <> all (v_leave))
            returning c.*
        ),
        audited as (
            insert into command_bus_audit (
                command_id, created_at, msg_id, worker_id, attempt, event_type, domain
            )
            select command_id, v_now, msg_id, p_worker_id, attempts, 'RECEIVED', p_domain
            from claimed
        ),
        counted as (
            insert into command_bus_delta (at, domain, batch_id, pending, in_progress)
            select date_trunc('second', v_now), p_domain, batch_id, -count(*), count(*)
            from claimed
            group by batch_id
        )
        select c.command_id, c.command_type, c.data::text, c.correlation_id, c.reply_to, c.batch_id,
            c.created_at, c.attempts, coalesce(c.max_attempts, p_max_attempts), c.msg_id, c.claim_no,
            c.headers::text, c.lane
        from claimed as c
        order by c.msg_id;

        get diagnostics v_rows = row_count;
        v_claimed := v_claimed + v_rows;
        exit when v_claimed = cardinality(v_msg_ids) or cardinality(v_held) > 0;
        v_held := array(
            -- Laterally: else a plan may read the commands first, and compare each with each.
            select held.command_id
            from (
                select * from unnest(v_ids, v_msg_ids) as u (command_id, msg_id) order by command_id
            ) as m
            cross join lateral (
                select c.command_id
                from command_bus_command as c
                where c.command_id = m.command_id and c.domain = p_domain
                    and c.msg_id = m.msg_id and c.status = 'PENDING'
                for no key update skip locked
            ) as held
        );
        exit when cardinality(v_held) = 0;
    end loop;

    if v_hook is not null and v_claimed > 0 then
        perform command_bus.tell_hook(p_domain, array(
            select c.command_id
            from unnest(v_ids, v_msg_ids) as m (command_id, msg_id)
            join command_bus_command as c
                on command_bus.has_key(c.command_id, c.domain, m.command_id, p_domain)
            where c.msg_id = m.msg_id and c.worker_id = p_worker_id and c.started_at = v_now
        ), 'RECEIVED', 'PENDING');
    end if;
    if v_claimed < cardinality(v_msg_ids) then
        return query
        select *
        from command_bus.claim_exceptions(
            p_domain, v_queue, p_worker_id, p_lease_seconds, p_max_attempts, v_msg_ids, v_ids, v_now,
            v_read = p_limit, v_leave
        );
    end if;
end;
$$;

-- What workers of releases before call: the first expect claimed commands only, the second no
-- headers.
create or replace function command_bus.claim_commands_v2(
    p_domain text, p_worker_id bigint, p_limit integer, p_lease_seconds integer,
    p_max_attempts integer
)
returns table (
    command_id uuid, command_type text, data text, correlation_id uuid, reply_to text,
    batch_id uuid, created_at timestamptz, attempt integer, max_attempts integer, msg_id bigint,
    claim_no integer
)
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
#variable_conflict use_column
begin
    if exists (select from command_bus_parked as p where p.domain = p_domain) then
        perform command_bus.unpark_for_earlier(p_domain, p_limit);
    end if;
    return query
    select c.command_id, c.command_type, c.data, c.correlation_id, c.reply_to, c.batch_id,
        c.created_at, c.attempt, c.max_attempts, c.msg_id, c.claim_no
    from command_bus.claim_commands_v3(
        p_domain, p_worker_id, p_limit, p_lease_seconds, p_max_attempts
    ) as c;
end;
$$;

create or replace function command_bus.claim_commands(
    p_domain text, p_worker_id bigint, p_limit integer, p_lease_seconds integer,
    p_max_attempts integer
)
returns table (
    command_id uuid, command_type text, data text, correlation_id uuid, reply_to text,
    batch_id uuid, created_at timestamptz, attempt integer, max_attempts integer, msg_id bigint,
    claim_no integer
)
language sql
set search_path = public, pg_temp
set row_security = off
as $$
    select *
    from command_bus.claim_commands_v2(
        p_domain, p_worker_id, p_limit, p_lease_seconds, p_max_attempts
    ) as c
    where c.claim_no is not null;
$$;

-- Deal with messages that the fast path left: reject what belongs to no command, drop what is old,
-- end what has no budget left, park suspects, claim again what is only late. What needs a table that
-- somebody has locked is left for later, and so is what is locked itself; a row without a msg_id says
-- how many (as its attempt). p_more says whether there may be messages behind these. What is of a type
-- of p_leave is parked instead of claimed again. Other forms were there before.
drop function if exists command_bus.claim_exceptions(
    text, text, bigint, integer, integer, bigint[], uuid[], timestamptz
);
drop function if exists command_bus.claim_exceptions(
    text, text, bigint, integer, integer, bigint[], uuid[], timestamptz, boolean
);
drop function if exists command_bus.claim_exceptions(
    text, text, bigint, integer, integer, bigint[], uuid[], timestamptz, boolean, text[]
);
create function command_bus.claim_exceptions(
    p_domain text, p_queue text, p_worker_id bigint, p_lease_seconds integer,
    p_max_attempts integer, p_msg_ids bigint[], p_ids uuid[], p_claimed_at timestamptz,
    p_more boolean, p_leave text[]
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
as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_seen bigint[] := '{}';
    v_drop bigint[] := '{}';
    v_again bigint[];
    v_lease_end timestamptz;
    v_decidable_at timestamptz;
    v_parked boolean := false;
    v_is_spent boolean;
    v_is_suspect boolean;
    v_is_locked boolean := false;  -- a table that more of the rows will need
    r record;
begin
    begin
        v_seen := command_bus.reject_messages(p_domain, p_queue, p_msg_ids, p_ids);
    exception when lock_not_available then
        v_seen := '{}';
    end;
    return query
    select m.command_id, null::text, command_bus.rejection(m.command_id), null::uuid, null::text,
        null::uuid, null::timestamptz, null::integer, null::integer, m.msg_id, null::integer,
        null::text, null::text
    from unnest(p_ids, p_msg_ids) as m (command_id, msg_id)
    where m.msg_id = any (v_seen);

    for r in
        select c.*, m.msg_id as seen_msg_id,
            coalesce(c.max_attempts, p_max_attempts) as budget,
            w.heartbeat_at, w.heartbeat_seconds, w.stopped_at
        from unnest(p_ids, p_msg_ids) as m (command_id, msg_id)
        join command_bus_command as c
            on command_bus.has_key(c.command_id, c.domain, m.command_id, p_domain)
        left join command_bus_worker as w on w.worker_id = c.worker_id
        order by m.command_id
        for no key update of c skip locked
    loop
        v_seen := v_seen || r.seen_msg_id;
        if r.started_at = p_claimed_at and r.worker_id is not distinct from p_worker_id
            and r.msg_id = r.seen_msg_id
        then
            continue;  -- claimed by the fast path a moment ago
        elsif r.msg_id is distinct from r.seen_msg_id
            or r.status not in ('PENDING', 'IN_PROGRESS')
        then
            v_drop := v_drop || r.seen_msg_id;
            continue;
        end if;
        v_is_spent := r.attempts >= r.budget;
        v_is_suspect := false;
        if r.status = 'PENDING' and not v_is_spent then
            perform command_bus.show_messages(p_queue, array[r.seen_msg_id], clock_timestamp());
            continue;
        elsif r.status = 'IN_PROGRESS' then
            v_lease_end := least(r.lease_until, v_now);
            v_is_suspect := r.heartbeat_at < v_lease_end and r.stopped_at is null;
            v_decidable_at := v_lease_end + make_interval(secs => r.heartbeat_seconds);
            if v_is_suspect and v_now < v_decidable_at then
                -- Its worker may be dead or about to send its next heartbeat: ask again then.
                update command_bus_command as c set lease_until = v_lease_end
                where c.command_id = r.command_id and c.domain = p_domain;
                perform command_bus.show_messages(
                    p_queue, array[r.seen_msg_id], v_decidable_at
                );
                continue;
            end if;
        end if;
        if v_is_locked and (v_is_spent or v_is_suspect) then
            v_seen := trim_array(v_seen, 1);
            continue;
        end if;
        begin
            if r.status = 'IN_PROGRESS' then
                insert into command_bus_audit (
                    command_id, created_at, msg_id, worker_id, attempt, event_type, domain
                )
                values (
                    r.command_id, v_now, r.msg_id, r.worker_id, r.attempts, 'LEASE_EXPIRED', p_domain
                );
            end if;
            if r.status = 'IN_PROGRESS' and exists (
                select from command_bus_cancel_request as q
                where q.command_id = r.command_id and q.domain = p_domain
            ) then
                perform command_bus.end_requested(p_domain, r.command_id);
                v_drop := v_drop || r.seen_msg_id;
            elsif v_is_spent then
                perform command_bus.exhaust(p_domain, r.command_id, r.budget);
                v_drop := v_drop || r.seen_msg_id;
            elsif v_is_suspect then
                insert into command_bus_suspect (command_id, domain, parked_at, from_worker_id)
                values (r.command_id, p_domain, v_now, r.worker_id);
                update command_bus_command as c
                set status = 'PENDING', msg_id = null, lease_until = null, updated_at = v_now
                where c.command_id = r.command_id and c.domain = p_domain;
                perform command_bus.count_moved(p_domain, r.batch_id, 'IN_PROGRESS', 'PENDING', 1);
                perform command_bus.tell_hook(
                    p_domain, array[r.command_id], 'LEASE_EXPIRED', 'IN_PROGRESS'
                );
                v_drop := v_drop || r.seen_msg_id;
                v_parked := true;
            elsif r.command_type = any (p_leave) then
                insert into command_bus_parked (command_id, domain, command_type, kind, parked_at)
                values (
                    r.command_id, p_domain, r.command_type,
                    command_bus.parked_kind(p_domain, r.command_type), v_now
                );
                update command_bus_command as c
                set status = 'PENDING', msg_id = null, lease_until = null, updated_at = v_now
                where c.command_id = r.command_id and c.domain = p_domain;
                perform command_bus.count_moved(p_domain, r.batch_id, 'IN_PROGRESS', 'PENDING', 1);
                perform command_bus.tell_hook(
                    p_domain, array[r.command_id], 'LEASE_EXPIRED', 'IN_PROGRESS'
                );
                v_drop := v_drop || r.seen_msg_id;
                v_parked := true;
            else
                return query
                select *
                from command_bus.begin_attempt(
                    p_domain, p_worker_id, p_lease_seconds, p_max_attempts, r.command_id, r.msg_id
                );
                perform command_bus.tell_hook(
                    p_domain, array[r.command_id], 'RECEIVED', 'IN_PROGRESS'
                );
            end if;
        exception when lock_not_available then
            v_is_locked := true;
            v_seen := trim_array(v_seen, 1);
        end;
    end loop;

    if cardinality(v_drop) > 0 then
        perform pgmq.delete(p_queue, v_drop);
    end if;
    v_again := array(select unnest(p_msg_ids) except select unnest(v_seen));
    if cardinality(v_again) > 0 then
        -- A claim reads the oldest first, and would find nothing but these where they are many. So
        -- they are away for longer each time, for long enough that those behind them come first.
        execute format(
            $query$
            update pgmq.%1$I
            set vt = $2 + least(interval '100 ms' * 4 ^ least(read_ct - 1, 5),
                case when $3 and exists (select from pgmq.%1$I where vt <= $2)
                    then interval '2 s' else interval '500 ms' end)
            where msg_id = any ($1)
            $query$, 'q_' || p_queue
        ) using v_again, v_now, p_more;
        if p_more and cardinality(v_again) = cardinality(p_msg_ids) then
            perform command_bus.put_off_locked(p_domain, p_queue, v_now);
        end if;
        return query
        select null::uuid, null::text, null::text, null::uuid, null::text, null::uuid,
            null::timestamptz, cardinality(v_again), null::integer, null::bigint, null::integer,
            null::text, null::text;
    end if;
    if v_parked then
        perform command_bus.wake_workers(p_domain);
    end if;
end;
$$;

-- Put off the next thousand messages as far as somebody has locked their commands: one claim after
-- another would read them all, and find nothing else where they are many.
create or replace function command_bus.put_off_locked(
    p_domain text, p_queue text, p_now timestamptz
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
    execute format(
        $query$
        with next as materialized (
            select q.msg_id, case
                    when q.message ->> 'command_id' ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
                        then (q.message ->> 'command_id')::uuid
                end as command_id
            from pgmq.%1$I as q
            where q.vt <= $2
            order by q.msg_id
            limit 1000
            for update skip locked
        ),
        free as materialized (
            -- Laterally: else a plan may read the commands first, and compare each with each.
            select held.command_id
            from (select * from next order by command_id) as n
            cross join lateral (
                select c.command_id
                from command_bus_command as c
                where c.command_id = n.command_id and c.domain = $1
                for no key update skip locked
            ) as held
        )
        update pgmq.%1$I as q
        set vt = $2 + least(interval '100 ms' * 4 ^ least(q.read_ct, 5), interval '2 s'),
            read_ct = q.read_ct + 1
        where q.msg_id = any (array(
            select n.msg_id
            from next as n
            cross join lateral (
                select from command_bus_command as c
                where c.command_id = n.command_id and c.domain = $1
                limit 1
            ) as known
            where n.command_id not in (select f.command_id from free as f)
        ))
        $query$, 'q_' || p_queue
    ) using p_domain, p_now;
end;
$$;

-- Begin the next attempt of one locked command under the message that the caller holds for it. A form
-- without headers was there before.
drop function if exists command_bus.begin_attempt(text, bigint, integer, integer, uuid, bigint);
create function command_bus.begin_attempt(
    p_domain text, p_worker_id bigint, p_lease_seconds integer, p_max_attempts integer,
    p_command_id uuid, p_msg_id bigint
)
returns table (
    command_id uuid, command_type text, data text, correlation_id uuid, reply_to text,
    batch_id uuid, created_at timestamptz, attempt integer, max_attempts integer, msg_id bigint,
    claim_no integer, headers text, lane text
)
language sql
set search_path = public, pg_temp
set row_security = off
as $$
    with claimed as (
        update command_bus_command as c
        set status = 'IN_PROGRESS', attempts = c.attempts + 1, claim_no = c.claim_no + 1,
            worker_id = p_worker_id, started_at = clock_timestamp(),
            updated_at = clock_timestamp(), msg_id = p_msg_id,
            claimed_budget = coalesce(c.max_attempts, p_max_attempts),
            lease_until = clock_timestamp() + make_interval(secs => p_lease_seconds)
        where c.command_id = p_command_id and c.domain = p_domain
            and c.status in ('PENDING', 'IN_PROGRESS')
        returning c.*
    ),
    audited as (
        insert into command_bus_audit (
            command_id, created_at, msg_id, worker_id, attempt, event_type, domain
        )
        select c.command_id, c.started_at, c.msg_id, p_worker_id, c.attempts, 'RECEIVED', p_domain
        from claimed as c
    )
    select c.command_id, c.command_type, c.data::text, c.correlation_id, c.reply_to, c.batch_id,
        c.created_at, c.attempts, coalesce(c.max_attempts, p_max_attempts), c.msg_id, c.claim_no,
        c.headers::text, c.lane
    from claimed as c;
$$;

-- Archive and record the messages that no command explains; return their ids.
create or replace function command_bus.reject_messages(
    p_domain text, p_queue text, p_msg_ids bigint[], p_ids uuid[]
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
    v_rejected bigint[];
begin
    select array_agg(m.msg_id) into v_rejected
    from unnest(p_ids, p_msg_ids) as m (command_id, msg_id)
    where m.command_id is null or not exists (
        select from command_bus_command as c
        where command_bus.has_key(c.command_id, c.domain, m.command_id, p_domain)
    );
    if v_rejected is null then
        return '{}';
    end if;
    perform pgmq.archive(p_queue, v_rejected);
    execute format(
        $query$
        insert into command_bus_rejected (
            domain, queue, msg_id, command_id, reason, message, rejected_at
        )
        select $1, $2, m.msg_id, m.command_id,
            command_bus.rejection(m.command_id), left(a.message::text, 10000), clock_timestamp()
        from unnest($3, $4) as m (command_id, msg_id)
        join pgmq.%I as a on a.msg_id = m.msg_id
        where m.msg_id = any ($5)
        $query$, 'a_' || p_queue
    ) using p_domain, p_queue, p_ids, p_msg_ids, v_rejected;
    return v_rejected;
end;
$$;

-- Why a message is rejected that names this id.
create or replace function command_bus.rejection(p_command_id uuid)
returns text
language sql immutable parallel safe
as $$
    select case when p_command_id is null then 'The message names no command_id'
                else 'No such command' end;
$$;

-- Move one locked command whose budget is spent to the troubleshooting queue; its message is the
-- caller's to delete.
create or replace function command_bus.exhaust(p_domain text, p_command_id uuid, p_budget integer)
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_message text;
    v_moved jsonb;
    c command_bus_command;
begin
    select * into strict c from command_bus_command
    where command_id = p_command_id and domain = p_domain;
    -- The attempt began under another budget where the configured one was changed meanwhile.
    v_message := format('Attempt %s of %s did not end within its lease', c.attempts,
        coalesce(c.claimed_budget, p_budget));
    update command_bus_command
    set status = 'IN_TSQ', updated_at = v_now, lease_until = null,
        last_error_type = case when c.status = 'IN_PROGRESS' then 'TIMEOUT'
                               else coalesce(last_error_type, 'TRANSIENT') end,
        last_error_code = case when c.status = 'IN_PROGRESS' then 'LEASE_EXPIRED'
                               else coalesce(last_error_code, 'RETRY_EXHAUSTED') end,
        last_error_message = case when c.status = 'IN_PROGRESS' then v_message
                                  else coalesce(last_error_message, 'No attempt is left') end
    where command_id = p_command_id and domain = p_domain
    returning jsonb_build_object(
        'reason', 'RETRY_EXHAUSTED', 'found_by', 'claim',
        'error_type', last_error_type, 'error_code', last_error_code,
        'error_message', last_error_message,
        'error_details', case when c.status = 'PENDING' then (
            select a.details -> 'error_details'
            from command_bus_audit as a
            where a.command_id = p_command_id and a.domain = p_domain and a.event_type = 'FAILED'
            order by a.audit_id desc
            limit 1
        ) end)
    into v_moved;
    insert into command_bus_audit (
        command_id, created_at, msg_id, worker_id, attempt, event_type, domain, details
    )
    select p_command_id, v_now, c.msg_id, c.worker_id, c.attempts, event, p_domain,
        jsonb_build_object('max_attempts', p_budget)
        || case when event = 'MOVED_TO_TSQ' then v_moved else '{}' end
    from unnest(array['RETRY_EXHAUSTED', 'MOVED_TO_TSQ']::command_bus.audit_event[]) as event;
    perform command_bus.count_moved(p_domain, c.batch_id, c.status, 'IN_TSQ', 1);
    perform command_bus.enter_tsq(p_domain, array[p_command_id]);
    perform command_bus.tell_hook(p_domain, array[p_command_id], 'MOVED_TO_TSQ', c.status);
end;
$$;

-- Claim one suspect, which the worker will run alone; its message says what it is, for a release
-- to park it again. One that somebody has locked is left for later. Returns no row when there is none
-- to take, or when its budget turns out to be spent; those of the types p_leave, which the worker does
-- not know, are left to others, and those of paused types are left alone. Raises QB001 for an unknown
-- domain. Other forms were there before.
drop function if exists command_bus.claim_suspect_v2(text, bigint, integer, integer);
drop function if exists command_bus.claim_suspect_v2(text, bigint, integer, integer, text[]);
create function command_bus.claim_suspect_v2(
    p_domain text, p_worker_id bigint, p_lease_seconds integer, p_max_attempts integer,
    p_leave text[] default null
)
returns table (
    command_id uuid, command_type text, data text, correlation_id uuid, reply_to text,
    batch_id uuid, created_at timestamptz, attempt integer, max_attempts integer, msg_id bigint,
    claim_no integer, headers text, lane text
)
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
#variable_conflict use_column
declare
    v_queue text := command_bus.command_queue(p_domain);
    v_command_id uuid;
    v_msg_id bigint;
    v_budget integer;
    v_leave text[];
    k command_bus_command;
begin
    select case when d.paused_types is null then p_leave
                else d.paused_types || coalesce(p_leave, '{}') end
    into v_leave
    from command_bus_domain as d
    where d.domain = p_domain and d.paused_until is null;
    if not found then
        return;
    end if;
    select s.command_id into v_command_id
    from command_bus_suspect as s
    join command_bus_command as c
        on command_bus.has_key(c.command_id, c.domain, s.command_id, p_domain)
    where s.domain = p_domain and c.status = 'PENDING'
        and (v_leave is null or c.command_type <> all (v_leave))
    order by s.parked_at
    limit 1
    for update of s skip locked
    for no key update of c skip locked;
    if v_command_id is null then
        return;
    end if;
    select c.* into k
    from command_bus_command as c
    where c.command_id = v_command_id and c.domain = p_domain;
    delete from command_bus_suspect as s
    where s.command_id = v_command_id and s.domain = p_domain;
    v_budget := coalesce(k.max_attempts, p_max_attempts);
    if k.attempts >= v_budget then
        -- The configured budget was lowered while the command was parked.
        perform command_bus.exhaust(p_domain, v_command_id, v_budget);
        return;
    end if;
    v_msg_id := (
        select * from pgmq.send(
            v_queue, jsonb_build_object('command_id', v_command_id, 'suspect', true),
            p_lease_seconds
        )
    );
    perform command_bus.count_moved(p_domain, k.batch_id, 'PENDING', 'IN_PROGRESS', 1);
    return query
    select *
    from command_bus.begin_attempt(
        p_domain, p_worker_id, p_lease_seconds, p_max_attempts, v_command_id, v_msg_id
    );
    perform command_bus.tell_hook(p_domain, array[v_command_id], 'RECEIVED', 'PENDING');
end;
$$;

-- What workers of the release before call.
create or replace function command_bus.claim_suspect(
    p_domain text, p_worker_id bigint, p_lease_seconds integer, p_max_attempts integer
)
returns table (
    command_id uuid, command_type text, data text, correlation_id uuid, reply_to text,
    batch_id uuid, created_at timestamptz, attempt integer, max_attempts integer, msg_id bigint,
    claim_no integer
)
language sql
set search_path = public, pg_temp
set row_security = off
as $$
    select c.command_id, c.command_type, c.data, c.correlation_id, c.reply_to, c.batch_id,
        c.created_at, c.attempt, c.max_attempts, c.msg_id, c.claim_no
    from command_bus.claim_suspect_v2(
        p_domain, p_worker_id, p_lease_seconds, p_max_attempts
    ) as c;
$$;

-- What an idle worker wants to know: in how many seconds something is due (null: nothing is), whether
-- suspects wait that are of no type of p_leave (null: of any type), of which types commands are
-- parked, what is paused, and whether the cancellation of anything was asked for. Due is the next waiting command and, with p_messages, the next message
-- that becomes visible: where a lease ends, or where one that is visible waits (0 or less); or the end
-- of a pause, before which nothing of it is due.
-- Raises QB001 for an unknown domain. A form that told less was there before.
drop function if exists command_bus.look_ahead_v3(text, boolean, text[]);
create function command_bus.look_ahead_v3(
    p_domain text, p_messages boolean, p_leave text[]
)
returns table (
    next_due_seconds float8, suspects boolean, parked_types text[], is_paused boolean,
    paused_types text[], cancel_requests boolean
)
language plpgsql
set search_path = public, pg_temp
set row_security = off
set lock_timeout = '250ms'
as $$
declare
    v_visible_at timestamptz;
    v_parked_types text[] := '{}';
    v_leave text[] := p_leave;
    v_cancel_requests boolean := exists (
        select from command_bus_cancel_request as q where q.domain = p_domain
    );
    d command_bus_domain;
begin
    select k.* into d from command_bus_domain as k where k.domain = p_domain;
    if d.paused_until is not null then
        return query
        select extract(epoch from nullif(d.pause_ends_at, 'infinity') - clock_timestamp())::float8,
            false, '{}'::text[], true, d.paused_types, v_cancel_requests;
        return;
    end if;
    if p_messages then
        execute format(
            'select vt from pgmq.%I order by vt limit 1', 'q_' || command_bus.command_queue(p_domain)
        ) into v_visible_at;
    end if;
    if d.paused_types is not null then
        v_leave := d.paused_types || coalesce(p_leave, '{}');
    end if;
    -- Functions of later files are named only where something is parked: during an upgrade they may
    -- not be there yet.
    if exists (select from command_bus_parked as p where p.domain = p_domain) then
        v_parked_types := command_bus.not_paused(
            p_domain, command_bus.parked_types(p_domain, 'NO_HANDLER')
        );
        if not d.is_resuming
            and not command_bus.parked_types(p_domain, 'PAUSED') <@ coalesce(d.paused_types, '{}')
        then
            -- A claim that had begun before the end of a pause has parked something after it.
            update command_bus_domain as k set is_resuming = true where k.domain = p_domain;
            d.is_resuming := true;
        end if;
    end if;
    return query
    select extract(epoch from least(
            (select w.due_at from command_bus_waiting as w
             where w.domain = p_domain order by w.due_at limit 1),
            v_visible_at,
            -- Somebody else may have promoted while this one claimed.
            (select clock_timestamp() + interval '200 ms'
             where exists (select from command_bus_lane_ready as m where m.domain = p_domain)),
            d.pause_ends_at, case when d.is_resuming then clock_timestamp() end
        ) - clock_timestamp())::float8,
        exists (
            select from command_bus_suspect as s
            where s.domain = p_domain and (v_leave is null or not exists (
                select from command_bus_command as c
                where command_bus.has_key(c.command_id, c.domain, s.command_id, p_domain)
                    and c.command_type = any (v_leave)
            ))
        ),
        v_parked_types, false, d.paused_types, v_cancel_requests;
end;
$$;

-- What workers of the releases before call.
create or replace function command_bus.look_ahead_v2(p_domain text, p_messages boolean)
returns table (next_due_seconds float8, suspects boolean)
language sql
set search_path = public, pg_temp
set row_security = off
as $$
    select l.next_due_seconds, l.suspects
    from command_bus.look_ahead_v3(p_domain, p_messages, null) as l;
$$;

create or replace function command_bus.look_ahead(p_domain text)
returns table (next_due_seconds float8, suspects boolean)
language sql
set search_path = public, pg_temp
set row_security = off
as $$
    select * from command_bus.look_ahead_v2(p_domain, false);
$$;
