-- Retention: finished commands with everything that hangs on them are deleted, and what the bus
-- remembers besides them.
--
-- A finished command changes no more, so pruning waits for nobody: it locks what it deletes and
-- skips what another transaction holds. Lock order: command, then the rows that only pruning
-- touches once the command is finished. Counters are corrected by appended deltas, as everywhere.
--
-- Two writers could add to what is being pruned: a late result writes into the trail of a command
-- that it does not lock, and a failure counts into a group of failures. Both are rare; they hold an
-- advisory lock (shared) while they do, which pruning takes alone for the moment of one batch.
--
-- These functions run with the rights of their owner and are nobody else's to call until they are
-- granted: a role that may prune needs no right to delete from any table, and cannot delete what
-- has not ended.

-- Functions of other files are named here, which may be created after this one.
set local check_function_bodies = off;

-- The keys of the advisory locks.
create or replace function command_bus.prune_lock(p_what text)
returns bigint
language sql immutable
as $$
    select hashtextextended('command_bus.prune_' || p_what, 0);
$$;

-- Delete up to p_limit commands that ended with p_status before p_before, oldest created first,
-- each with its trail and its place in lists. Looks at up to p_examine commands after the key
-- (p_after_created_at, p_after_id), and tells how far it came: the key to go on from, and whether
-- anything is left to look at. With p_dry_run it only tells what it would delete.
-- Raises 22023 for a status that is not final.
create or replace function command_bus.prune_commands(
    p_status command_bus.command_status, p_before timestamptz, p_limit integer,
    p_domain text default null, p_after_created_at timestamptz default null,
    p_after_id uuid default null, p_examine integer default 10000, p_dry_run boolean default false
)
returns table (
    command_ids uuid[], events bigint, last_created_at timestamptz, last_id uuid, more boolean
)
language plpgsql
security definer
set search_path = public, pg_temp
set row_security = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
    v_after_created_at timestamptz := coalesce(p_after_created_at, '-infinity');
    v_after_id uuid := coalesce(p_after_id, '00000000-0000-0000-0000-000000000000');
    v_candidates refcursor;
    v_seen record;
    v_examined integer := 0;
    v_ids uuid[] := '{}';
    v_domains text[] := '{}';
begin
    if p_status is null or p_status not in ('COMPLETED', 'FAILED', 'CANCELLED') then
        raise exception 'status % is not final, so its commands are not pruned',
            coalesce(p_status::text, 'null')
            using errcode = 'invalid_parameter_value';
    end if;
    if not p_dry_run then
        perform pg_advisory_xact_lock(command_bus.prune_lock('commands'));
    end if;

    -- The rare ends have a list of their own, so that nobody walks past all others to find them.
    -- What ended before p_before was created before it.
    if p_status = 'COMPLETED' then
        open v_candidates for
            select c.created_at, c.command_id, c.domain,
                c.status = p_status and c.finished_at < p_before as due
            from command_bus_command as c
            where c.created_at < p_before
                and (c.created_at, c.command_id) > (v_after_created_at, v_after_id)
            order by c.created_at, c.command_id;
    else
        open v_candidates for
            select u.created_at, u.command_id, u.domain, u.ended_at < p_before as due
            from command_bus_unsuccessful as u
            where u.status = p_status and u.created_at < p_before
                and (u.created_at, u.command_id) > (v_after_created_at, v_after_id)
            order by u.created_at, u.command_id;
    end if;
    while v_examined < p_examine and cardinality(v_ids) < p_limit loop
        fetch v_candidates into v_seen;
        exit when not found;
        v_examined := v_examined + 1;
        last_created_at := v_seen.created_at;
        last_id := v_seen.command_id;
        if v_seen.due and (p_domain is null or v_seen.domain = p_domain) then
            v_ids := v_ids || v_seen.command_id;
            v_domains := v_domains || v_seen.domain;
        end if;
    end loop;
    close v_candidates;

    more := cardinality(v_ids) >= p_limit or v_examined >= p_examine;
    command_ids := v_ids;
    events := 0;
    if cardinality(v_ids) > 0 and not p_dry_run then
        select d.command_ids, d.events into command_ids, events
        from command_bus.delete_finished(p_status, p_before, v_ids, v_domains) as d;
    end if;
    return next;
end;
$$;

-- Delete those of a set that still are finished and that nobody holds. For prune_commands and
-- delete_batch, which hold the advisory lock.
create or replace function command_bus.delete_finished(
    p_status command_bus.command_status, p_before timestamptz, p_ids uuid[], p_domains text[]
)
returns table (command_ids uuid[], events bigint)
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
    v_domains text[];
begin
    with held as materialized (
        select c.command_id, c.domain
        from unnest(p_ids, p_domains) as k (command_id, domain)
        join command_bus_command as c
            on command_bus.has_key(c.command_id, c.domain, k.command_id, k.domain)
        where c.status = p_status and c.finished_at < p_before
        order by k.command_id
        for update of c skip locked
    ),
    gone as (
        delete from command_bus_command as c
        using held as h
        where command_bus.has_key(c.command_id, c.domain, h.command_id, h.domain)
        returning c.command_id, c.domain, c.batch_id
    ),
    counted as (
        insert into command_bus_delta (at, domain, completed, failed, cancelled)
        select date_trunc('second', v_now), domain,
            -count(*) filter (where p_status = 'COMPLETED'),
            -count(*) filter (where p_status = 'FAILED'),
            -count(*) filter (where p_status = 'CANCELLED')
        from gone
        group by domain
    ),
    counted_in_batch as (
        insert into command_bus_delta (at, domain, batch_id, pruned)
        select date_trunc('second', v_now), domain, batch_id, count(*)
        from gone
        where batch_id is not null
        group by domain, batch_id
    )
    select array_agg(g.command_id), array_agg(g.domain) into v_ids, v_domains from gone as g;

    if p_status <> 'COMPLETED' then
        delete from command_bus_unsuccessful as u
        using unnest(v_ids, v_domains) as k (command_id, domain)
        where command_bus.has_key(u.command_id, u.domain, k.command_id, k.domain);
    end if;

    -- Worker totals are recounted from the trails, so what a trail said of its worker is kept.
    with gone as (
        delete from command_bus_audit as a
        using unnest(v_ids, v_domains) as k (command_id, domain)
        where command_bus.has_key(a.command_id, a.domain, k.command_id, k.domain)
        returning a.worker_id, a.event_type, a.details
    ),
    kept as (
        insert into command_bus_pruned as p (
            worker_id, completed, failed, retried, moved_to_tsq
        )
        select g.worker_id, sum(e.effect[1]), sum(e.effect[2]), sum(e.effect[3]), sum(e.effect[4])
        from gone as g
        join command_bus_worker as w on w.worker_id = g.worker_id
        cross join lateral command_bus.effect_on_worker(g.event_type, g.details) as e (effect)
        where e.effect is not null
        group by g.worker_id
        order by g.worker_id
        on conflict (worker_id) do update set
            completed = p.completed + excluded.completed,
            failed = p.failed + excluded.failed,
            retried = p.retried + excluded.retried,
            moved_to_tsq = p.moved_to_tsq + excluded.moved_to_tsq
    )
    select count(*) into events from gone;

    command_ids := coalesce(v_ids, '{}');
    return next;
end;
$$;

-- Delete up to p_limit commands of a batch that have ended, each with its trail and its place in
-- lists; the batch's own counters stay. Called until it deletes none. A batch is found by when its
-- commands were created, since no index knows it.
create or replace function command_bus.delete_batch(p_batch_id uuid, p_limit integer)
returns table (command_ids uuid[], events bigint)
language plpgsql
security definer
set search_path = public, pg_temp
set row_security = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
    v_began timestamptz := (select b.created_at from command_bus.batch_progress(p_batch_id) as b);
    v_status command_bus.command_status;
    v_ids uuid[];
    v_domains text[];
begin
    perform pg_advisory_xact_lock(command_bus.prune_lock('commands'));
    -- The rare ones first, which a small table lists: whoever looks for one more of them among all
    -- commands reads to the newest, at each call.
    foreach v_status in array '{FAILED,CANCELLED,COMPLETED}'::command_bus.command_status[] loop
        if v_status = 'COMPLETED' then
            select array_agg(c.command_id), array_agg(c.domain) into v_ids, v_domains
            from (
                select k.command_id, k.domain
                from command_bus_command as k
                where k.created_at >= v_began - interval '1 minute'
                    and k.batch_id = p_batch_id and k.status = v_status
                order by k.created_at, k.command_id
                limit p_limit
            ) as c;
        else
            select array_agg(c.command_id), array_agg(c.domain) into v_ids, v_domains
            from (
                select u.command_id, u.domain
                from command_bus_unsuccessful as u
                join command_bus_command as k
                    on command_bus.has_key(k.command_id, k.domain, u.command_id, u.domain)
                where u.status = v_status and u.created_at >= v_began - interval '1 minute'
                    and k.batch_id = p_batch_id and k.status = v_status
                limit p_limit
            ) as c;
        end if;
        if v_ids is not null then
            return query
            select d.command_ids, d.events
            from command_bus.delete_finished(v_status, 'infinity', v_ids, v_domains) as d;
            return;
        end if;
    end loop;
end;
$$;

-- What the bus remembers besides commands: delete what is older than p_before, up to p_limit rows
-- of each kind. Kinds: seconds of the statistics, workers that stopped (or fell silent) and at
-- least a day ago, batches whose commands are all pruned, rejected messages and PGMQ's archive of
-- them, hours in the history of failure groups, groups of which nothing is left, keys of events that
-- were used last before (whoever holds one keeps it).
create or replace function command_bus.prune_history(p_before timestamptz, p_limit integer)
returns table (kind text, deleted bigint)
language plpgsql
security definer
set search_path = public, pg_temp
set row_security = off
as $$
#variable_conflict use_column
declare
    v_queue text;
begin
    -- The locks in the order in which settling takes them.
    perform pg_advisory_xact_lock(command_bus.prune_lock('groups'));
    return query
    with gone as (
        delete from command_bus_tsq_group where group_id in (
            select g.group_id from command_bus_tsq_group as g
            where g.last_seen_at < p_before
                and not exists (
                    select from command_bus_tsq as t where t.group_id = g.group_id
                )
                and not exists (
                    select from command_bus_tsq_delta as d where d.group_id = g.group_id
                )
                and not exists (
                    -- An operator's delayed retry keeps its place in the group.
                    select from command_bus_waiting as w
                    where w.before_retry ->> 'group_id' = g.group_id::text
                )
            limit p_limit
        )
        returning 1
    )
    select 'failure groups', count(*) from gone;

    perform pg_advisory_xact_lock(command_bus.prune_lock('commands'));
    return query
    with gone as (
        delete from command_bus_second where (at, domain) in (
            select s.at, s.domain from command_bus_second as s where s.at < p_before
            order by s.at limit p_limit
        )
        returning 1
    )
    select 'statistics', count(*) from gone;

    return query
    with gone as (
        delete from command_bus_worker where worker_id in (
            select w.worker_id from command_bus_worker as w
            where coalesce(w.stopped_at, w.heartbeat_at) < p_before
                and w.heartbeat_at < clock_timestamp() - interval '24 hours'
            order by w.worker_id limit p_limit for update skip locked
        )
        returning worker_id
    ),
    unneeded as (
        delete from command_bus_pruned where worker_id in (select worker_id from gone)
    )
    select 'workers', count(*) from gone;

    return query
    with gone as (
        delete from command_bus_batch where batch_id in (
            select b.batch_id from command_bus_batch as b
            where b.updated_at < p_before and b.pruned >= b.sent
                and not exists (
                    select from command_bus_delta as d where d.batch_id = b.batch_id
                )
            limit p_limit for update skip locked
        )
        returning 1
    )
    select 'batches', count(*) from gone;

    -- Rejected messages are numbered as they come, so the first ones are the oldest.
    return query
    with gone as (
        delete from command_bus_rejected where rejected_at < p_before and rejected_id in (
            select r.rejected_id from command_bus_rejected as r
            order by r.rejected_id limit p_limit
        )
        returning 1
    )
    select 'rejected messages', count(*) from gone;

    for v_queue in
        select command_queue from command_bus_domain
        where to_regclass(format('pgmq.%I', 'a_' || command_queue)) is not null
        order by command_queue
    loop
        return query execute format(
            $query$
            with gone as (
                delete from pgmq.%1$I where msg_id in (
                    select a.msg_id from pgmq.%1$I as a where a.archived_at < $1
                    order by a.archived_at limit $2
                )
                returning 1
            )
            select 'archived messages', count(*) from gone
            $query$, 'a_' || v_queue
        ) using p_before, p_limit;
    end loop;

    return query
    with gone as (
        delete from command_bus_tsq_trend where (group_id, hour) in (
            select t.group_id, t.hour from command_bus_tsq_trend as t
            where t.hour < p_before - interval '1 hour' limit p_limit
        )
        returning 1
    )
    select 'hours of failure groups', count(*) from gone;

    return query
    with gone as (
        delete from command_bus_outbox_key where key in (
            select k.key from command_bus_outbox_key as k
            where k.used_at < p_before limit p_limit for update skip locked
        )
        returning 1
    )
    select 'keys of events', count(*) from gone;
end;
$$;

-- What an event of a trail adds to its worker's totals of completed, failed, retried and moved to
-- the TSQ; null: nothing. What a claim finds to be exhausted is nobody's outcome; it says that a
-- claim found it, or, of an earlier release, names no error_code.
create or replace function command_bus.effect_on_worker(
    p_event command_bus.audit_event, p_details jsonb
)
returns integer[]
language sql immutable parallel safe
as $$
    select case
        when p_event = 'COMPLETED' then '{1,0,0,0}'::integer[]
        when p_event = 'FAILED' then '{0,1,0,0}'::integer[]
        when p_event = 'RETRY_SCHEDULED' then '{0,-1,1,0}'::integer[]
        when p_event = 'MOVED_TO_TSQ' and p_details ? 'error_code' and not p_details ? 'found_by'
            then '{0,-1,0,1}'::integer[]
    end;
$$;

revoke execute on function command_bus.prune_commands(
    command_bus.command_status, timestamptz, integer, text, timestamptz, uuid, integer, boolean
) from public;
revoke execute on function command_bus.prune_history(timestamptz, integer) from public;
revoke execute on function command_bus.delete_batch(uuid, integer) from public;
