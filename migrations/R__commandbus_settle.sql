-- Settling: recording how attempts ended.
--
-- The token (msg_id, claim_no) fences: an outcome counts only while its attempt is the command's
-- current one, whatever the clock says. Everything else only leaves LATE_RESULT in the trail.
-- Successes and failures come as two sets, because nearly all work is the first, which needs no
-- more than one update, one insert into the trail, one delta, and the deletion of the messages.

-- Nothing here waits long for a lock, since whatever waits behind it pays with its lease:
-- * Command rows that somebody has locked are left out and answered "locked". Nearly no row has an
--   xmax (it was locked once, perhaps still is); those that have one are looked at apart.
-- * The row of the worker is left alone while it is locked (count_for_worker).
-- * What else is locked (a message, a reply queue, a table) ends the call after lock_timeout, and the
--   worker calls settle_commands_apart.

-- Record a set of outcomes. Elements of both: {command_id, msg_id, claim_no, run_us}; p_completed
-- adds {result}, p_failed adds {kind: business|permanent|transient, error_type, error_code,
-- error_message, error_details, max_attempts, retry_delay_ms}. Messages that somebody has locked
-- are left to the claim that meets them, where p_leave_messages says so.
-- Returns what did not simply complete: verdict applied (a failure recorded, with the new status),
-- recorded (this very outcome is there already), late, unknown (no such command), or locked
-- (nothing was changed: call again).
-- Raises QB001 for an unknown domain, 55P03 where something else is locked.
create or replace function command_bus.settle_commands_v2(
    p_domain text, p_worker_id bigint, p_completed jsonb, p_failed jsonb,
    p_leave_messages boolean default false
)
returns table (
    command_id uuid, claim_no integer, verdict text, status command_bus.command_status
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
set lock_timeout = '250ms'
as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_queue text;
    v_hook text;
    v_total integer := jsonb_array_length(p_completed);
    v_held uuid[] := '{}';
    v_msg_ids bigint[];
    v_reply_ids uuid[];
    v_lanes text[];
    v_places bigint[];
    v_settled integer := 0;
begin
    select d.command_queue, d.transition_hook into v_queue, v_hook
    from command_bus_domain as d
    where d.domain = p_domain;
    if v_queue is null then
        perform command_bus.require_domain(p_domain);
    end if;
    while v_settled < v_total loop
        with outcome as materialized (
            select * from jsonb_to_recordset(p_completed) as o (
                command_id uuid, msg_id bigint, claim_no integer, run_us bigint, result jsonb
            )
            order by o.command_id
        ),
        settled as (
            update command_bus_command as c
            set status = 'COMPLETED', result = o.result, settled_claim = o.claim_no,
                lease_until = null, finished_at = v_now, updated_at = v_now
            from outcome as o
            where command_bus.has_key(c.command_id, c.domain, o.command_id, p_domain)
                and c.msg_id = o.msg_id
                and c.claim_no = o.claim_no and c.status = 'IN_PROGRESS'
                and (c.xmax = 0 or c.command_id = any (v_held))
            returning c.command_id, c.msg_id, c.attempts, c.batch_id, c.reply_to, c.worker_id,
                c.lane, c.lane_seq, o.run_us,
                (date_part('epoch', v_now - c.created_at) * 1000000)::bigint as total_us
        ),
        audited as (
            insert into command_bus_audit (
                command_id, created_at, msg_id, worker_id, attempt, event_type, domain
            )
            select command_id, v_now, msg_id, worker_id, attempts, 'COMPLETED', p_domain
            from settled
        ),
        histogram as (
            select h.batch_id, array_agg(h.b) as buckets, array_agg(h.n) as counts
            from (
                select s.batch_id, series.first + command_bus.bucket(series.us) as b,
                    count(*)::integer as n
                from settled as s
                cross join lateral (
                    values (0, s.total_us - s.run_us), (1000, s.run_us), (2000, s.total_us)
                ) as series (first, us)
                group by 1, 2
            ) as h
            group by h.batch_id
        ),
        counted as (
            insert into command_bus_delta (
                at, domain, batch_id, in_progress, completed, processed, wait_us, run_us,
                hist_bucket, hist_count
            )
            select date_trunc('second', v_now), p_domain, s.batch_id, -s.n, s.n, s.n,
                s.total_us - s.run_us, s.run_us, h.buckets, h.counts
            from (
                select batch_id, count(*) as n, sum(total_us) as total_us, sum(run_us) as run_us
                from settled
                group by batch_id
            ) as s
            join histogram as h on h.batch_id is not distinct from s.batch_id
        )
        select array_agg(s.msg_id), array_agg(s.command_id) filter (where s.reply_to is not null),
            array_agg(s.lane) filter (where s.lane is not null),
            array_agg(s.lane_seq) filter (where s.lane is not null)
        into v_msg_ids, v_reply_ids, v_lanes, v_places
        from settled as s;

        if v_msg_ids is not null then
            v_settled := v_settled + cardinality(v_msg_ids);
            perform command_bus.drop_messages(v_queue, v_msg_ids, p_leave_messages);
            perform command_bus.count_for_worker(p_worker_id, cardinality(v_msg_ids), 0, 0, 0);
        end if;
        if v_reply_ids is not null then
            perform command_bus.send_replies(p_domain, v_reply_ids);
        end if;
        if v_lanes is not null then
            perform command_bus.leave_lanes(p_domain, v_lanes, v_places);
        end if;
        exit when v_settled = v_total or cardinality(v_held) > 0;
        v_held := command_bus.hold_attempts(p_domain, p_completed);
        exit when cardinality(v_held) = 0;
    end loop;
    if v_hook is not null and v_settled > 0 then
        perform command_bus.tell_hook(p_domain, array(
            select c.command_id
            from jsonb_to_recordset(p_completed) as o (command_id uuid, claim_no integer)
            join command_bus_command as c
                on command_bus.has_key(c.command_id, c.domain, o.command_id, p_domain)
            where c.settled_claim = o.claim_no and c.updated_at = v_now
        ), 'COMPLETED', 'IN_PROGRESS');
    end if;

    if jsonb_array_length(p_failed) > 0 then
        return query
        select *
        from command_bus.settle_failures(
            p_domain, v_queue, p_worker_id, p_failed, v_now, p_leave_messages
        );
    end if;

    -- After the failures: of pruning's two locks, that of the groups comes first.
    if v_settled < v_total then
        return query
        select * from command_bus.explain_unsettled(p_domain, p_worker_id, p_completed, v_now);
    end if;
end;
$$;

-- What workers of the release before call: they know no verdict "locked", and try again what is
-- raised. Raises 55P03 where a command is locked.
create or replace function command_bus.settle_commands(
    p_domain text, p_worker_id bigint, p_completed jsonb, p_failed jsonb
)
returns table (
    command_id uuid, claim_no integer, verdict text, status command_bus.command_status
)
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
declare
    r record;
begin
    for r in
        select * from command_bus.settle_commands_v2(p_domain, p_worker_id, p_completed, p_failed)
    loop
        if r.verdict = 'locked' then
            raise exception 'command % is locked', r.command_id using errcode = '55P03';
        end if;
        command_id := r.command_id;
        claim_no := r.claim_no;
        verdict := r.verdict;
        status := r.status;
        return next;
    end loop;
end;
$$;

-- The same as settle_commands_v2 for what met a lock in it: every part that can be recorded without
-- the others is tried by itself, so that a locked reply queue or table holds up only those that need
-- it. These are answered "locked". Tables are asked for first and not waited for: while this waited
-- with rows in its hands, their leases could not be renewed.
-- Raises 55P03 where a table is locked that all of them need.
create or replace function command_bus.settle_commands_apart(
    p_domain text, p_worker_id bigint, p_completed jsonb, p_failed jsonb
)
returns table (
    command_id uuid, claim_no integer, verdict text, status command_bus.command_status
)
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
    v_locked_replies text[] := '{}';
    v_reply_table text;
    part record;
begin
    execute format(
        'lock table command_bus_command, command_bus_audit, command_bus_delta, pgmq.%I'
        ' in row exclusive mode nowait', 'q_' || command_bus.command_queue(p_domain)
    );
    for part in
        select o.kind, case when o.kind in ('success', 'business') then c.reply_to end as reply_to,
            jsonb_agg(o.outcome) as outcomes
        from (
            select coalesce(e ->> 'kind', 'success') as kind, (e ->> 'command_id')::uuid as id,
                e as outcome
            from jsonb_array_elements(p_completed || p_failed) as e
        ) as o
        left join command_bus_command as c
            on command_bus.has_key(c.command_id, c.domain, o.id, p_domain)
        group by 1, 2
        order by 2 nulls first, 1
    loop
        begin
            if part.reply_to = any (v_locked_replies) then
                raise lock_not_available;
            end if;
            v_reply_table := 'pgmq.' || quote_ident('q_' || lower(part.reply_to));
            if to_regclass(v_reply_table) is not null then
                execute format('lock table %s in row exclusive mode nowait', v_reply_table);
            end if;
            if part.kind = 'business' then
                lock table command_bus_unsuccessful in row exclusive mode nowait;
            elsif part.kind <> 'success' then
                lock table command_bus_waiting, command_bus_rejected, command_bus_tsq,
                    command_bus_tsq_delta, command_bus_tsq_group in row exclusive mode nowait;
            end if;
            return query
            select *
            from command_bus.settle_commands_v2(
                p_domain, p_worker_id,
                case when part.kind = 'success' then part.outcomes else '[]' end,
                case when part.kind = 'success' then '[]' else part.outcomes end, true
            );
        exception when lock_not_available then
            v_locked_replies := v_locked_replies || part.reply_to;
            return query
            select o.command_id, o.claim_no, 'locked', null::command_bus.command_status
            from jsonb_to_recordset(part.outcomes) as o (command_id uuid, claim_no integer);
        end;
    end loop;
end;
$$;

-- Lock the commands of outcomes whose attempt is the current one, as far as nobody else has.
create or replace function command_bus.hold_attempts(p_domain text, p_outcomes jsonb)
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
#variable_conflict use_column
declare
    v_ids uuid[];
begin
    with outcome as materialized (
        select * from jsonb_to_recordset(p_outcomes)
            as o (command_id uuid, msg_id bigint, claim_no integer)
        order by o.command_id
    ),
    held as (
        select c.command_id
        from outcome as o
        join command_bus_command as c
            on command_bus.has_key(c.command_id, c.domain, o.command_id, p_domain)
        where c.msg_id = o.msg_id and c.claim_no = o.claim_no and c.status = 'IN_PROGRESS'
        for no key update of c skip locked
    )
    select coalesce(array_agg(h.command_id), '{}') into v_ids from held as h;
    return v_ids;
end;
$$;

-- Delete messages of attempts that have ended. One that stays, since somebody has locked it, is no
-- command's current message any more: the claim that reads it drops it.
create or replace function command_bus.drop_messages(
    p_queue text, p_msg_ids bigint[], p_leave_locked boolean
)
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
begin
    if not p_leave_locked then
        perform pgmq.delete(p_queue, p_msg_ids);
        return;
    end if;
    execute format(
        $query$
        delete from pgmq.%1$I where msg_id = any (array(
            select msg_id from pgmq.%1$I where msg_id = any ($1) order by msg_id
            for update skip locked
        ))
        $query$, 'q_' || p_queue
    ) using p_msg_ids;
end;
$$;

-- Add to the totals of a worker.
create or replace function command_bus.count_for_worker(
    p_worker_id bigint, p_completed integer, p_failed integer, p_retried integer,
    p_moved_to_tsq integer
)
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
begin
    update command_bus_worker
    set completed = completed + p_completed, failed = failed + p_failed,
        retried = retried + p_retried, moved_to_tsq = moved_to_tsq + p_moved_to_tsq
    where worker_id = (
        select worker_id from command_bus_worker where worker_id = p_worker_id
        for no key update skip locked
    );
    if not found then
        perform command_bus.count_for_locked_worker(
            p_worker_id, p_completed, p_failed, p_retried, p_moved_to_tsq
        );
    end if;
end;
$$;

-- The same where the row of the worker is locked: a heartbeat is waited for, and nothing longer; it
-- is left to fold_deltas then. Does nothing for a worker that was pruned.
create or replace function command_bus.count_for_locked_worker(
    p_worker_id bigint, p_completed integer, p_failed integer, p_retried integer,
    p_moved_to_tsq integer
)
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
set lock_timeout = '50ms'
as $$
begin
    update command_bus_worker
    set completed = completed + p_completed, failed = failed + p_failed,
        retried = retried + p_retried, moved_to_tsq = moved_to_tsq + p_moved_to_tsq
    where worker_id = p_worker_id;
exception when lock_not_available then
    insert into command_bus_worker_delta (worker_id, completed, failed, retried, moved_to_tsq)
    values (p_worker_id, p_completed, p_failed, p_retried, p_moved_to_tsq);
end;
$$;

-- The failing part of settle_commands_v2. The form with five parameters was there before.
drop function if exists command_bus.settle_failures(text, text, bigint, jsonb, timestamptz);
create or replace function command_bus.settle_failures(
    p_domain text, p_queue text, p_worker_id bigint, p_failed jsonb, p_now timestamptz,
    p_leave_messages boolean
)
returns table (
    command_id uuid, claim_no integer, verdict text, status command_bus.command_status
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
    v_total integer := jsonb_array_length(p_failed);
    v_settled integer := 0;
    v_held uuid[] := '{}';
    v_ids uuid[];
    v_msg_ids bigint[];
    v_tsq_ids uuid[];
    v_failed_ids uuid[];
    v_lanes text[];
    v_places bigint[];
    v_rejected bigint[];
    v_retried integer;
    v_retry_ms bigint;
begin
    loop
        with outcome as materialized (
            select * from jsonb_to_recordset(p_failed) as o (
                command_id uuid, msg_id bigint, claim_no integer, run_us bigint, kind text,
                error_type text, error_code text, error_message text, error_details jsonb,
                max_attempts integer, retry_delay_ms bigint
            )
            order by o.command_id
        ),
        settled as (
            update command_bus_command as c
            set status = case
                    when o.kind = 'business' then 'FAILED'
                    when o.kind = 'transient' and c.attempts < coalesce(c.max_attempts, o.max_attempts)
                        then 'PENDING'
                    else 'IN_TSQ'
                end::command_bus.command_status,
                settled_claim = o.claim_no, lease_until = null, updated_at = p_now,
                finished_at = case when o.kind = 'business' then p_now end,
                -- A command that waits or stands in the TSQ has no current message.
                msg_id = case when o.kind = 'business' then c.msg_id end,
                last_error_type = o.error_type, last_error_code = o.error_code,
                last_error_message = o.error_message
            from outcome as o
            where command_bus.has_key(c.command_id, c.domain, o.command_id, p_domain)
                and c.msg_id = o.msg_id
                and c.claim_no = o.claim_no and c.status = 'IN_PROGRESS'
                and (c.xmax = 0 or c.command_id = any (v_held))
            returning c.command_id, o.msg_id, c.claim_no, c.status, c.attempts, c.batch_id,
                c.worker_id, c.created_at, c.command_type, c.data, c.lane, c.lane_seq,
                coalesce(c.max_attempts, o.max_attempts) as budget,
                o.kind, o.run_us, o.error_type, o.error_code, o.error_message, o.error_details,
                greatest(o.retry_delay_ms, 0) as retry_delay_ms,
                (date_part('epoch', p_now - c.created_at) * 1000000)::bigint as total_us
        ),
        audited as (
            insert into command_bus_audit (
                command_id, created_at, msg_id, worker_id, attempt, event_type, domain, details
            )
            select s.command_id, p_now, s.msg_id, s.worker_id, s.attempts, e.event, p_domain, e.details
            from settled as s
            cross join lateral (
                select 1, 'FAILED'::command_bus.audit_event, jsonb_strip_nulls(jsonb_build_object(
                    'error_type', s.error_type, 'error_code', s.error_code,
                    'error_message', s.error_message, 'max_attempts', s.budget))
                    -- Nulls in them are the handler's.
                    || case when s.error_details is null then '{}'
                            else jsonb_build_object('error_details', s.error_details) end
                union all
                select 2, 'RETRY_SCHEDULED', jsonb_build_object(
                    'delay_ms', s.retry_delay_ms,
                    'due_at', p_now + make_interval(secs => s.retry_delay_ms / 1000.0))
                where s.status = 'PENDING'
                union all
                select 2, 'RETRY_EXHAUSTED', jsonb_build_object('max_attempts', s.budget)
                where s.status = 'IN_TSQ' and s.kind = 'transient'
                union all
                select 3, 'MOVED_TO_TSQ', jsonb_build_object(
                    'reason',
                    case s.kind when 'transient' then 'RETRY_EXHAUSTED' else 'PERMANENT_ERROR' end,
                    'error_type', s.error_type, 'error_code', s.error_code,
                    'error_message', s.error_message, 'error_details', s.error_details)
                where s.status = 'IN_TSQ'
            ) as e (position, event, details)
            order by s.command_id, e.position
        ),
        put_to_wait as (
            insert into command_bus_waiting (command_id, domain, due_at, kind)
            select s.command_id, p_domain,
                p_now + make_interval(secs => s.retry_delay_ms / 1000.0), 'RETRY'
            from settled as s
            where s.status = 'PENDING'
        ),
        rejected as (
            insert into command_bus_rejected (
                domain, queue, msg_id, command_id, reason, message, rejected_at
            )
            select p_domain, p_queue, s.msg_id, s.command_id, s.error_message,
                left(s.data::text, 10000), p_now
            from settled as s
            where s.error_code = 'UNDECODABLE_PAYLOAD' and s.kind = 'permanent'
            returning msg_id
        ),
        listed as (
            insert into command_bus_unsuccessful (
                command_id, created_at, ended_at, status, domain, command_type, error_code
            )
            select s.command_id, s.created_at, p_now, 'FAILED', p_domain, s.command_type, s.error_code
            from settled as s
            where s.status = 'FAILED'
        ),
        histogram as (
            select h.batch_id, array_agg(h.b) as buckets, array_agg(h.n) as counts
            from (
                select s.batch_id, series.first + command_bus.bucket(series.us) as b,
                    count(*)::integer as n
                from settled as s
                cross join lateral (
                    values (0, s.total_us - s.run_us), (1000, s.run_us), (2000, s.total_us)
                ) as series (first, us)
                where s.status <> 'PENDING'
                group by 1, 2
            ) as h
            group by h.batch_id
        ),
        counted as (
            insert into command_bus_delta (
                at, domain, batch_id, in_progress, pending, failed, in_tsq, processed, retried,
                wait_us, run_us, hist_bucket, hist_count
            )
            select date_trunc('second', p_now), p_domain, s.batch_id, -s.n, s.retried, s.failed,
                s.in_tsq, s.failed + s.in_tsq, s.retried, s.wait_us, s.run_us, h.buckets, h.counts
            from (
                select batch_id, count(*) as n,
                    count(*) filter (where status = 'PENDING') as retried,
                    count(*) filter (where status = 'FAILED') as failed,
                    count(*) filter (where status = 'IN_TSQ') as in_tsq,
                    coalesce(sum(total_us - run_us) filter (where status <> 'PENDING'), 0) as wait_us,
                    coalesce(sum(run_us) filter (where status <> 'PENDING'), 0) as run_us
                from settled
                group by batch_id
            ) as s
            left join histogram as h on h.batch_id is not distinct from s.batch_id
        )
        select array_agg(s.command_id), array_agg(s.msg_id),
            array_agg(s.command_id) filter (where s.status = 'IN_TSQ'),
            array_agg(s.command_id) filter (where s.status = 'FAILED'),
            array_agg(s.lane) filter (where s.status = 'FAILED' and s.lane is not null),
            array_agg(s.lane_seq) filter (where s.status = 'FAILED' and s.lane is not null),
            count(*) filter (where s.status = 'PENDING'),
            coalesce(min(s.retry_delay_ms) filter (where s.status = 'PENDING'), 0),
            (select array_agg(msg_id) from rejected)
        into v_ids, v_msg_ids, v_tsq_ids, v_failed_ids, v_lanes, v_places, v_retried, v_retry_ms,
            v_rejected
        from settled as s;

        if v_ids is not null then
            v_settled := v_settled + cardinality(v_ids);
            if v_rejected is not null then
                perform pgmq.archive(p_queue, v_rejected);
            end if;
            perform command_bus.drop_messages(p_queue, v_msg_ids, p_leave_messages);
            perform command_bus.count_for_worker(
                p_worker_id, 0, coalesce(cardinality(v_failed_ids), 0), v_retried,
                coalesce(cardinality(v_tsq_ids), 0)
            );
        end if;
        if v_tsq_ids is not null then
            perform command_bus.enter_tsq(p_domain, v_tsq_ids);
        end if;
        if v_failed_ids is not null then
            perform command_bus.send_replies(p_domain, v_failed_ids);
        end if;
        if v_lanes is not null then
            perform command_bus.leave_lanes(p_domain, v_lanes, v_places);
        end if;
        if v_ids is not null then
            perform command_bus.tell_hook(p_domain, v_ids, null, 'IN_PROGRESS');
        end if;
        if v_retried > 0 then
            perform command_bus.tell_due(p_domain, v_retry_ms / 1000.0);
        end if;
        exit when v_settled = v_total or cardinality(v_held) > 0;
        v_held := command_bus.hold_attempts(p_domain, p_failed);
        exit when cardinality(v_held) = 0;
    end loop;
    return query
    select * from command_bus.explain_unsettled(p_domain, p_worker_id, p_failed, p_now);
end;
$$;

-- The verdict on each outcome of a set that was just settled; completed ones are left out, since
-- nobody asks. Writes LATE_RESULT for each outcome whose attempt is over.
create or replace function command_bus.explain_unsettled(
    p_domain text, p_worker_id bigint, p_outcomes jsonb, p_now timestamptz
)
returns table (
    command_id uuid, claim_no integer, verdict text, status command_bus.command_status
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
    v_verdicts jsonb;
begin
    select jsonb_agg(to_jsonb(v)) into v_verdicts
    from (
        select o.command_id, o.msg_id, o.claim_no, o.kind, o.error_code, c.status,
            case
                when c.command_id is null then 'unknown'
                when c.settled_claim = o.claim_no and c.updated_at = p_now then 'applied'
                when c.settled_claim = o.claim_no then 'recorded'
                when c.status = 'IN_PROGRESS' and c.msg_id = o.msg_id
                    and c.claim_no = o.claim_no then 'locked'
                else 'late'
            end as verdict
        from jsonb_to_recordset(p_outcomes) as o (
            command_id uuid, msg_id bigint, claim_no integer, kind text, error_code text
        )
        left join command_bus_command as c
            on command_bus.has_key(c.command_id, c.domain, o.command_id, p_domain)
    ) as v;
    if v_verdicts @> '[{"verdict": "late"}]' then
        perform command_bus.record_late_results(p_domain, p_worker_id, v_verdicts, p_now);
    end if;
    return query
    select v.command_id, v.claim_no, v.verdict, v.status
    from jsonb_to_recordset(v_verdicts) as v (
        command_id uuid, claim_no integer, verdict text, status command_bus.command_status
    )
    where not (v.verdict = 'applied' and v.status = 'COMPLETED');
end;
$$;

-- Write LATE_RESULT for each outcome that came too late, unless its command was pruned meanwhile:
-- these commands are not locked, so pruning is held off instead.
create or replace function command_bus.record_late_results(
    p_domain text, p_worker_id bigint, p_verdicts jsonb, p_now timestamptz
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
    perform pg_advisory_xact_lock_shared(command_bus.prune_lock('commands'));
    insert into command_bus_audit (
        command_id, created_at, msg_id, worker_id, event_type, domain, details
    )
    select v.command_id, p_now, v.msg_id, p_worker_id, 'LATE_RESULT', p_domain,
        jsonb_strip_nulls(jsonb_build_object(
            'outcome', coalesce(v.kind, 'success'), 'error_code', v.error_code,
            'claim_no', v.claim_no))
    from jsonb_to_recordset(p_verdicts) as v (
        command_id uuid, msg_id bigint, claim_no integer, kind text, error_code text, verdict text
    )
    join command_bus_command as c
        on command_bus.has_key(c.command_id, c.domain, v.command_id, p_domain)
    where v.verdict = 'late'
    -- In a snapshot older than the pruning that was waited for, the command still seems to be
    -- there. This is refused then, and hinders only who would delete the command.
    for key share of c;
end;
$$;

-- Send the one reply of each command that has just ended and asked for one. The error is that of a
-- command that FAILED: one that was cancelled has an operator and a reason instead. A reply queue that
-- vanished meanwhile, has become one of commands, or does not take the reply, leaves REPLY_FAILED in the trail and undoes
-- nothing. Faults that pass (a deadlock, a timeout) are raised: the whole call is tried again.
create or replace function command_bus.send_replies(p_domain text, p_ids uuid[])
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
    r record;
begin
    for r in
        select c.reply_to, array_agg(c.command_id order by c.command_id) as ids,
            array_agg(jsonb_build_object(
                'command_id', c.command_id, 'correlation_id', c.correlation_id,
                'domain', c.domain, 'command_type', c.command_type, 'status', c.status,
                'result', case when c.status = 'COMPLETED' then c.result end,
                'error', case when c.status = 'FAILED' then jsonb_build_object(
                    'type', c.last_error_type, 'code', c.last_error_code,
                    'message', c.last_error_message) end
            ) || coalesce(cancelled.by_whom, '{}')
            || case when c.headers is null then '{}'
                    else jsonb_build_object('headers', c.headers) end
            order by c.command_id) as replies
        from command_bus_command as c
        left join lateral (
            select jsonb_build_object(
                'operator', a.details -> 'operator', 'reason', a.details -> 'reason') as by_whom
            from command_bus_audit as a
            where command_bus.has_key(a.command_id, a.domain, c.command_id, p_domain)
                and a.event_type = 'OPERATOR_CANCEL'
            limit 1
        ) as cancelled on c.status = 'CANCELLED'
        where c.command_id = any (p_ids) and c.domain = p_domain and c.reply_to is not null
        group by c.reply_to
        order by c.reply_to
    loop
        begin
            if exists (
                select from command_bus_domain as d
                where lower(d.command_queue) = lower(r.reply_to)
            ) then
                raise exception 'The queue takes the commands of a domain' using errcode = 'QB004';
            end if;
            perform pgmq.send_batch(r.reply_to, r.replies);
        exception when others then
            if left(sqlstate, 2) in ('08', '25', '40', '53', '55', '57', '58', 'XX') then
                raise;
            end if;
            insert into command_bus_audit (command_id, created_at, event_type, domain, details)
            select id, clock_timestamp(), 'REPLY_FAILED', p_domain, jsonb_build_object(
                'reply_to', r.reply_to, 'reason',
                case when sqlstate in ('42P01', '3F000') then 'The queue does not exist'
                     else left(sqlerrm, 500) end)
            from unnest(r.ids) as id;
        end;
    end loop;
end;
$$;
