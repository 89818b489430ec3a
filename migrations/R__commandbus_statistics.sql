-- Counters, rates and latencies.
--
-- Every change appends a delta in its own transaction; folding moves deltas into the counters, the
-- per-second statistics and the batches. Whoever reads adds what is not folded yet, in the same
-- statement, so that a count is exact whether or not anybody folds.

-- Fold up to p_limit deltas; returns how many there were. Only one session folds at a time, the
-- others return at once.
create or replace function command_bus.fold_deltas(p_limit integer default 20000)
returns integer
language plpgsql
set search_path = public, pg_temp
set row_security = off
set lock_timeout = '500ms'
as $$
declare
    v_deltas command_bus_delta[];
begin
    if not pg_try_advisory_xact_lock(hashtextextended('command_bus.fold_deltas', 0)) then
        return 0;
    end if;
    perform command_bus.fold_tsq_deltas(p_limit);
    perform command_bus.fold_worker_deltas();
    perform command_bus.fold_lane_deltas(p_limit);
    with gone as (
        delete from command_bus_delta
        where ctid = any (array(select ctid from command_bus_delta limit p_limit))
        returning *
    )
    select array_agg(g) into v_deltas from gone as g;
    if v_deltas is null then
        return 0;
    end if;

    insert into command_bus_counter as c (
        domain, pending, in_progress, completed, failed, in_tsq, cancelled
    )
    select domain, sum(pending), sum(in_progress), sum(completed), sum(failed), sum(in_tsq),
        sum(cancelled)
    from unnest(v_deltas)
    group by domain
    on conflict (domain) do update set
        pending = c.pending + excluded.pending,
        in_progress = c.in_progress + excluded.in_progress,
        completed = c.completed + excluded.completed,
        failed = c.failed + excluded.failed,
        in_tsq = c.in_tsq + excluded.in_tsq,
        cancelled = c.cancelled + excluded.cancelled;

    with histogram as (
        select h.at, h.domain, array_agg(h.b) as buckets, array_agg(h.n) as counts
        from (
            select d.at, d.domain, x.b, sum(x.n)::integer as n
            from unnest(v_deltas) as d, unnest(d.hist_bucket, d.hist_count) as x (b, n)
            group by 1, 2, 3
        ) as h
        group by 1, 2
    )
    insert into command_bus_second as s (
        at, domain, sent, processed, completed, retried, wait_us, run_us, hist_bucket, hist_count
    )
    select d.at, d.domain, sum(d.sent), sum(d.processed),
        coalesce(sum(d.completed) filter (where d.processed > 0), 0), sum(d.retried), sum(d.wait_us),
        sum(d.run_us), coalesce(h.buckets, '{}'), coalesce(h.counts, '{}')
    from unnest(v_deltas) as d
    left join histogram as h on h.at = d.at and h.domain = d.domain
    where d.sent > 0 or d.processed > 0 or d.retried > 0
    group by d.at, d.domain, h.buckets, h.counts
    on conflict (at, domain) do update set
        sent = s.sent + excluded.sent,
        processed = s.processed + excluded.processed,
        completed = s.completed + excluded.completed,
        retried = s.retried + excluded.retried,
        wait_us = s.wait_us + excluded.wait_us,
        run_us = s.run_us + excluded.run_us,
        hist_bucket = s.hist_bucket || excluded.hist_bucket,
        hist_count = s.hist_count || excluded.hist_count;

    with histogram as (
        select h.batch_id, array_agg(h.b) as buckets, array_agg(h.n) as counts
        from (
            select d.batch_id, x.b, sum(x.n)::integer as n
            from unnest(v_deltas) as d, unnest(d.hist_bucket, d.hist_count) as x (b, n)
            where d.batch_id is not null
            group by 1, 2
        ) as h
        group by 1
    )
    insert into command_bus_batch as b (
        batch_id, domain, created_at, updated_at, first_processed_at, last_processed_at, pending,
        in_progress, completed, failed, in_tsq, cancelled, sent, processed, retried, pruned,
        wait_us, run_us, hist_bucket, hist_count
    )
    select d.batch_id, min(d.domain), min(d.at), max(d.at),
        min(d.at) filter (where d.processed > 0), max(d.at) filter (where d.processed > 0),
        sum(d.pending), sum(d.in_progress), sum(d.completed), sum(d.failed), sum(d.in_tsq),
        sum(d.cancelled), sum(d.sent), sum(d.processed), sum(d.retried), sum(d.pruned),
        sum(d.wait_us), sum(d.run_us), coalesce(h.buckets, '{}'), coalesce(h.counts, '{}')
    from unnest(v_deltas) as d
    left join histogram as h on h.batch_id = d.batch_id
    where d.batch_id is not null
    group by d.batch_id, h.buckets, h.counts
    on conflict (batch_id) do update set
        created_at = least(b.created_at, excluded.created_at),
        updated_at = greatest(b.updated_at, excluded.updated_at),
        first_processed_at = least(b.first_processed_at, excluded.first_processed_at),
        last_processed_at = greatest(b.last_processed_at, excluded.last_processed_at),
        pending = b.pending + excluded.pending,
        in_progress = b.in_progress + excluded.in_progress,
        completed = b.completed + excluded.completed,
        failed = b.failed + excluded.failed,
        in_tsq = b.in_tsq + excluded.in_tsq,
        cancelled = b.cancelled + excluded.cancelled,
        sent = b.sent + excluded.sent,
        processed = b.processed + excluded.processed,
        retried = b.retried + excluded.retried,
        pruned = b.pruned + excluded.pruned,
        wait_us = b.wait_us + excluded.wait_us,
        run_us = b.run_us + excluded.run_us,
        (hist_bucket, hist_count) = (
            select coalesce(array_agg(m.b), '{}'), coalesce(array_agg(m.n), '{}')
            from (
                select x.b, sum(x.n)::integer as n
                from unnest(
                    b.hist_bucket || excluded.hist_bucket, b.hist_count || excluded.hist_count
                ) as x (b, n)
                group by x.b
            ) as m
        );
    return cardinality(v_deltas);
end;
$$;

-- The part of folding that concerns the groups of the troubleshooting queue.
create or replace function command_bus.fold_tsq_deltas(p_limit integer)
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
declare
    v_deltas command_bus_tsq_delta[];
begin
    with gone as (
        delete from command_bus_tsq_delta
        where ctid = any (array(select ctid from command_bus_tsq_delta limit p_limit))
        returning *
    )
    select array_agg(g) into v_deltas from gone as g;
    if v_deltas is null then
        return;
    end if;
    update command_bus_tsq_group as g
    set in_tsq = g.in_tsq + d.in_tsq, entered = g.entered + d.entered,
        last_seen_at = greatest(g.last_seen_at, d.last_entered_at)
    from (
        select group_id, sum(in_tsq) as in_tsq, sum(entered) as entered,
            max(at) filter (where entered > 0) as last_entered_at
        from unnest(v_deltas)
        group by group_id
    ) as d
    where g.group_id = d.group_id;
    insert into command_bus_tsq_trend as t (group_id, hour, entered)
    select group_id, date_trunc('hour', at, 'UTC'), sum(entered)
    from unnest(v_deltas)
    where entered > 0
    group by 1, 2
    on conflict (group_id, hour) do update set entered = t.entered + excluded.entered;
end;
$$;

-- Exact counts by status, for one domain or (null) for all.
create or replace function command_bus.count_by_status(p_domain text default null)
returns table (
    pending bigint, in_progress bigint, completed bigint, failed bigint, in_tsq bigint,
    cancelled bigint
)
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    select coalesce(sum(pending), 0)::bigint, coalesce(sum(in_progress), 0)::bigint,
        coalesce(sum(completed), 0)::bigint, coalesce(sum(failed), 0)::bigint,
        coalesce(sum(in_tsq), 0)::bigint, coalesce(sum(cancelled), 0)::bigint
    from (
        select domain, pending, in_progress, completed, failed, in_tsq, cancelled
        from command_bus_counter
        union all
        select domain, pending, in_progress, completed, failed, in_tsq, cancelled
        from command_bus_delta
    ) as both_halves
    where p_domain is null or domain = p_domain;
$$;

-- What was sent and processed in each second of a window; seconds in which nothing happened are left
-- out, and one that is not folded yet comes in several rows. Histograms as in command_bus_delta.
create or replace function command_bus.seconds_between(
    p_domain text, p_from timestamptz, p_to timestamptz
)
returns table (
    at timestamptz, sent bigint, processed bigint, completed bigint, retried bigint,
    wait_us bigint, run_us bigint, hist_bucket integer[], hist_count integer[]
)
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    select s.at, s.sent, s.processed, s.completed, s.retried, s.wait_us, s.run_us,
        s.hist_bucket, s.hist_count
    from command_bus_second as s
    where s.at >= date_trunc('second', p_from) and s.at <= p_to
        and (p_domain is null or s.domain = p_domain)
    union all
    select d.at, d.sent, d.processed, case when d.processed > 0 then d.completed else 0 end,
        d.retried, d.wait_us, d.run_us, coalesce(d.hist_bucket, '{}'),
        coalesce(d.hist_count, '{}')
    from command_bus_delta as d
    where d.at >= date_trunc('second', p_from) and d.at <= p_to
        and (p_domain is null or d.domain = p_domain)
        and (d.sent > 0 or d.processed > 0 or d.retried > 0);
$$;

-- One batch with what is not folded yet; no row where no command was ever sent in it.
create or replace function command_bus.batch_progress(p_batch_id uuid)
returns table (
    domain text, created_at timestamptz, updated_at timestamptz, first_processed_at timestamptz,
    last_processed_at timestamptz, pending bigint, in_progress bigint, completed bigint,
    failed bigint, in_tsq bigint, cancelled bigint, sent bigint, processed bigint, retried bigint,
    wait_us bigint, run_us bigint, wait_ms float8[], run_ms float8[], total_ms float8[]
)
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    with part as (
        select b.domain, b.created_at, b.updated_at, b.first_processed_at, b.last_processed_at,
            b.pending, b.in_progress, b.completed, b.failed, b.in_tsq, b.cancelled, b.sent,
            b.processed, b.retried, b.wait_us, b.run_us, b.hist_bucket, b.hist_count
        from command_bus_batch as b
        where b.batch_id = p_batch_id
        union all
        select d.domain, d.at, d.at, case when d.processed > 0 then d.at end,
            case when d.processed > 0 then d.at end, d.pending, d.in_progress, d.completed,
            d.failed, d.in_tsq, d.cancelled, d.sent, d.processed, d.retried, d.wait_us, d.run_us,
            coalesce(d.hist_bucket, '{}'), coalesce(d.hist_count, '{}')
        from command_bus_delta as d
        where d.batch_id = p_batch_id
    ),
    histogram as (
        select coalesce(array_agg(x.b), '{}') as buckets, coalesce(array_agg(x.n), '{}') as counts
        from part as p, unnest(p.hist_bucket, p.hist_count) as x (b, n)
    )
    select min(p.domain), min(p.created_at), max(p.updated_at), min(p.first_processed_at),
        max(p.last_processed_at), sum(p.pending)::bigint, sum(p.in_progress)::bigint,
        sum(p.completed)::bigint, sum(p.failed)::bigint, sum(p.in_tsq)::bigint,
        sum(p.cancelled)::bigint, sum(p.sent)::bigint, sum(p.processed)::bigint,
        sum(p.retried)::bigint, sum(p.wait_us)::bigint, sum(p.run_us)::bigint,
        command_bus.quantiles_ms(h.buckets, h.counts, 0, '{0.5,0.95,0.99}'),
        command_bus.quantiles_ms(h.buckets, h.counts, 1, '{0.5,0.95,0.99}'),
        command_bus.quantiles_ms(h.buckets, h.counts, 2, '{0.5,0.95,0.99}')
    from part as p, histogram as h
    group by h.buckets, h.counts
    having count(*) > 0;
$$;

-- The rate and the latencies of a window that ends now: quantiles 0.5, 0.95 and 0.99 in
-- milliseconds of waiting, running and both.
create or replace function command_bus.throughput(p_domain text, p_window_seconds integer)
returns table (
    processed bigint, completed bigint, retried bigint, sent bigint, wait_us bigint,
    run_us bigint, wait_ms float8[], run_ms float8[], total_ms float8[]
)
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    with part as materialized (
        select * from command_bus.seconds_between(
            p_domain, now() - make_interval(secs => p_window_seconds), now()
        )
    ),
    histogram as (
        select coalesce(array_agg(h.b), '{}') as buckets, coalesce(array_agg(h.n), '{}') as counts
        from (
            select x.b, sum(x.n)::integer as n
            from part as p, unnest(p.hist_bucket, p.hist_count) as x (b, n)
            group by x.b
        ) as h
    ),
    sums as (
        select coalesce(sum(processed), 0)::bigint as processed,
            coalesce(sum(completed), 0)::bigint as completed,
            coalesce(sum(retried), 0)::bigint as retried, coalesce(sum(sent), 0)::bigint as sent,
            coalesce(sum(wait_us), 0)::bigint as wait_us, coalesce(sum(run_us), 0)::bigint as run_us
        from part
    )
    select s.*,
        command_bus.quantiles_ms(h.buckets, h.counts, 0, '{0.5,0.95,0.99}'),
        command_bus.quantiles_ms(h.buckets, h.counts, 1, '{0.5,0.95,0.99}'),
        command_bus.quantiles_ms(h.buckets, h.counts, 2, '{0.5,0.95,0.99}')
    from sums as s, histogram as h;
$$;

-- What happened in each step of a window, oldest first, empty steps included: the series of a
-- chart. Quantiles 0.5, 0.95 and 0.99 in milliseconds of running and of waiting and running; those
-- of a step come from the histograms of its seconds, added up. Steps start at whole multiples of
-- p_step_seconds since the epoch.
create or replace function command_bus.history(
    p_domain text, p_from timestamptz, p_to timestamptz, p_step_seconds integer
)
returns table (
    at timestamptz, sent bigint, processed bigint, completed bigint, retried bigint,
    run_ms float8[], total_ms float8[]
)
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    with part as materialized (
        select to_timestamp(floor(extract(epoch from s.at) / p_step_seconds) * p_step_seconds)
            as step, s.*
        from command_bus.seconds_between(p_domain, p_from, p_to) as s
    ),
    cumulated as (
        select h.step, h.b / 1000 as series, h.b % 1000 as b,
            sum(h.n) over (partition by h.step, h.b / 1000 order by h.b) as upto,
            sum(h.n) over (partition by h.step, h.b / 1000) as total
        from (
            select p.step, x.b, sum(x.n) as n
            from part as p, unnest(p.hist_bucket, p.hist_count) as x (b, n)
            where x.b >= 1000
            group by 1, 2
        ) as h
    ),
    -- As command_bus.quantiles_ms finds them, for all steps at once.
    quantile as (
        select c.step, c.series, f.position,
            min(c.b) filter (where c.upto >= greatest(ceil(f.fraction * c.total), 1)) as b
        from cumulated as c
        cross join unnest('{0.5,0.95,0.99}'::float8[]) with ordinality as f (fraction, position)
        group by 1, 2, 3
    ),
    latency as (
        select q.step, q.series,
            array_agg(command_bus.bucket_ms(q.b) order by q.position) as quantiles
        from quantile as q
        group by 1, 2
    ),
    summed as (
        select p.step, sum(p.sent)::bigint as sent, sum(p.processed)::bigint as processed,
            sum(p.completed)::bigint as completed, sum(p.retried)::bigint as retried
        from part as p
        group by p.step
    )
    select axis.at, coalesce(s.sent, 0), coalesce(s.processed, 0), coalesce(s.completed, 0),
        coalesce(s.retried, 0),
        coalesce(r.quantiles, '{null,null,null}'), coalesce(t.quantiles, '{null,null,null}')
    from generate_series(
        to_timestamp(floor(extract(epoch from p_from) / p_step_seconds) * p_step_seconds),
        p_to,
        make_interval(secs => p_step_seconds)
    ) as axis (at)
    left join summed as s on s.step = axis.at
    left join latency as r on r.step = axis.at and r.series = 1
    left join latency as t on t.step = axis.at and t.series = 2
    order by axis.at;
$$;

-- The first event at or after a moment, found by halving: ids and times grow together. One past the
-- last event where there is none.
create or replace function command_bus.first_event_at(p_moment timestamptz)
returns bigint
language plpgsql stable
set search_path = public, pg_temp
set row_security = off
as $$
declare
    v_low bigint := (select min(audit_id) from command_bus_audit);
    v_high bigint := (select max(audit_id) from command_bus_audit) + 1;
    v_middle bigint;
    v_at timestamptz;
begin
    while v_low < v_high loop
        v_middle := (v_low + v_high) / 2;
        select a.created_at into v_at
        from command_bus_audit as a where a.audit_id >= v_middle order by a.audit_id limit 1;
        if v_at < p_moment then
            v_low := v_middle + 1;
        else
            v_high := v_middle;
        end if;
    end loop;
    return v_low;
end;
$$;

-- The commands that were completed last, the latest first. They are mostly among the latest 20,000
-- events. Where those are of other kinds, the seconds in which something was completed lead to
-- older ones, and a small table to those that operators completed; no further than 200,000 events
-- are read for each such second, and seconds that were pruned lead nowhere.
create or replace function command_bus.last_completed(p_limit integer)
returns table (command_id uuid, domain text, completed_at timestamptz)
language plpgsql stable
set search_path = public, pg_temp
set row_security = off
as $$
#variable_conflict use_column
declare
    v_ids uuid[];
    v_domains text[];
    v_times timestamptz[];
    v_second timestamptz;
    v_before bigint;
    r record;
begin
    select array_agg(l.command_id), array_agg(l.domain), array_agg(l.created_at)
    into v_ids, v_domains, v_times
    from (
        select e.command_id, e.domain, e.created_at
        from (
            select a.audit_id, a.command_id, a.domain, a.created_at, a.event_type
            from command_bus_audit as a
            order by a.audit_id desc
            limit 20000
        ) as e
        where e.event_type in ('COMPLETED', 'OPERATOR_COMPLETE')
        order by e.audit_id desc
        limit p_limit
    ) as l;
    if coalesce(cardinality(v_ids), 0) < p_limit then
        for v_second in
            select distinct s.at
            from (
                (
                    select at from command_bus_second where completed > 0
                    order by at desc limit p_limit * 2
                )
                union all
                (
                    select at from command_bus_delta where completed > 0 and processed > 0
                    order by at desc limit p_limit * 2
                )
            ) as s
            order by s.at desc
            limit p_limit
        loop
            v_before := command_bus.first_event_at(v_second + interval '3 seconds');
            for r in
                select e.command_id, e.domain, e.created_at
                from (
                    select a.audit_id, a.command_id, a.domain, a.created_at, a.event_type
                    from command_bus_audit as a
                    where a.audit_id < v_before
                    order by a.audit_id desc
                    limit 200000
                ) as e
                where e.event_type = 'COMPLETED' and e.created_at >= v_second
                    and e.created_at < v_second + interval '1 second'
                order by e.audit_id desc
                limit p_limit
            loop
                v_ids := v_ids || r.command_id;
                v_domains := v_domains || r.domain;
                v_times := v_times || r.created_at;
            end loop;
            exit when cardinality(v_ids) >= p_limit * 2;
        end loop;
    end if;
    return query
    select f.command_id, f.domain, f.completed_at
    from (
        select l.command_id, l.domain, l.completed_at
        from unnest(v_ids, v_domains, v_times) as l (command_id, domain, completed_at)
        union
        select o.command_id, o.domain, o.completed_at
        from command_bus_completed_by_operator as o
    ) as f
    where exists (
        select from command_bus_command as c
        where c.command_id = f.command_id and c.domain = f.domain and c.status = 'COMPLETED'
    )
    order by f.completed_at desc, f.command_id desc
    limit p_limit;
end;
$$;
