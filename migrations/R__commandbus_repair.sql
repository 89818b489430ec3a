-- Mending what others did: messages deleted, archived, popped or purged, a queue dropped and
-- created again, counters or lists truncated; and taking a domain away. Nothing here is called by a
-- worker; an operator calls it when command_bus.find_violations() reports something.
--
-- A command and what carries it change in one transaction, so a command that one statement sees
-- without a carrier has lost it. It is locked, and left alone if it has moved on since.

-- Give up to p_limit commands that nothing carries a new message: PENDING ones, and those
-- IN_PROGRESS whose lease is over, which get LEASE_EXPIRED. Returns them with the status that they
-- had; call it until it returns none. Reads all commands of the domain, so its cost grows with
-- them. Raises QB001 for an unknown domain.
create or replace function command_bus.requeue_lost_commands(
    p_domain text, p_limit integer default 10000
)
returns table (command_id uuid, status command_bus.command_status)
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_queue text := command_bus.command_queue(p_domain);
    v_ids uuid[];
    v_msg_ids bigint[];
    v_claims integer[];
    v_msg_id bigint;
    r record;
begin
    execute format(
        $query$
        select array_agg(l.command_id), array_agg(l.msg_id), array_agg(l.claim_no)
        from (
            select c.command_id, c.msg_id, c.claim_no
            from command_bus_command as c
            where c.domain = $1
                and (c.status = 'PENDING' or c.status = 'IN_PROGRESS' and c.lease_until < $2)
                and not exists (
                    select from pgmq.%I as m
                    where m.msg_id = c.msg_id and m.message ->> 'command_id' = c.command_id::text
                )
                and not exists (
                    select from command_bus_waiting as w
                    where w.command_id = c.command_id and w.domain = c.domain
                )
                and not exists (
                    select from command_bus_suspect as s
                    where s.command_id = c.command_id and s.domain = c.domain
                )
                and not exists (
                    select from command_bus_parked as p
                    where p.command_id = c.command_id and p.domain = c.domain
                )
                and not exists (
                    select from command_bus_lane as e
                    where e.domain = c.domain and e.lane_group = command_bus.lane_group(c.lane)
                        and e.lane = c.lane and e.seq = c.lane_seq
                )
            limit $3
        ) as l
        $query$, 'q_' || v_queue
    ) into v_ids, v_msg_ids, v_claims using p_domain, v_now, p_limit;

    for r in
        select c.command_id, c.status, c.msg_id, c.worker_id, c.attempts, c.batch_id, c.lane
        from unnest(v_ids, v_msg_ids, v_claims) as l (command_id, msg_id, claim_no)
        join command_bus_command as c on c.command_id = l.command_id and c.domain = p_domain
        where c.msg_id is not distinct from l.msg_id and c.claim_no = l.claim_no
            and (c.status = 'PENDING' or c.status = 'IN_PROGRESS' and c.lease_until < v_now)
        order by c.command_id
        for no key update of c skip locked
    loop
        if r.status = 'IN_PROGRESS' then
            insert into command_bus_audit (
                command_id, created_at, msg_id, worker_id, attempt, event_type, domain
            )
            values (r.command_id, v_now, r.msg_id, r.worker_id, r.attempts, 'LEASE_EXPIRED', p_domain);
            perform command_bus.count_moved(p_domain, r.batch_id, 'IN_PROGRESS', 'PENDING', 1);
        end if;
        -- One that lost its place in its lane gets it back.
        v_msg_id := null;
        if r.lane is null
            or cardinality(command_bus.enter_lanes(p_domain, array[r.command_id])) = 0
        then
            v_msg_id := pgmq.send(v_queue, jsonb_build_object('command_id', r.command_id));
        end if;
        update command_bus_command as c
        set status = 'PENDING', msg_id = v_msg_id, lease_until = null, updated_at = v_now
        where c.command_id = r.command_id and c.domain = p_domain;
        command_id := r.command_id;
        status := r.status;
        return next;
    end loop;
    if v_ids is not null then
        perform command_bus.wake_workers(p_domain);
    end if;
end;
$$;

-- The queues of all domains that are not there: dropped or renamed by somebody, or their extension
-- was. Each with its domain and the table that is missing.
create or replace function command_bus.missing_queues()
returns table (domain text, missing text)
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    select d.domain, format('pgmq.%s', t.name)
    from command_bus_domain as d
    cross join lateral (
        values ('q_' || d.command_queue), ('a_' || d.command_queue), ('q_' || d.reply_queue),
            ('a_' || d.reply_queue)
    ) as t (name)
    where to_regclass(format('pgmq.%I', t.name)) is null
    order by d.domain, t.name;
$$;

-- Delete a domain with its queues. Its commands that have ended stay, with their trails, until they
-- are pruned. Raises QB001 for an unknown domain, and QB009 while work is open: commands that have
-- not ended, messages in its command queue, replies that nobody has read (which go where
-- p_with_replies), or open commands of other domains that will reply to it. Waits 5 s at most for
-- transactions that are about to send; who sends later finds no such domain.
create or replace function command_bus.delete_domain(
    p_domain text, p_with_replies boolean default false
)
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
set lock_timeout = '5s'
as $$
declare
    d command_bus_domain;
    v_queue text;
    v_open bigint;
    v_messages bigint := 0;
    v_replies bigint := 0;
    v_awaited bigint;
begin
    perform pg_advisory_xact_lock(hashtextextended('command_bus.create_domain', 0));
    select * into d from command_bus_domain where domain = p_domain for update;
    if d.domain is null then
        raise exception 'domain "%" does not exist', p_domain using errcode = 'QB001';
    end if;
    -- Senders write a message or what waits. From here on they wait, and then find no domain.
    lock table command_bus_waiting, command_bus_lane in share mode;
    if to_regclass(format('pgmq.%I', 'q_' || d.command_queue)) is not null then
        execute format('lock table pgmq.%I in access exclusive mode', 'q_' || d.command_queue);
        execute format('select count(*) from pgmq.%I', 'q_' || d.command_queue) into v_messages;
    end if;
    if to_regclass(format('pgmq.%I', 'q_' || d.reply_queue)) is not null then
        execute format('lock table pgmq.%I in access exclusive mode', 'q_' || d.reply_queue);
        execute format('select count(*) from pgmq.%I', 'q_' || d.reply_queue) into v_replies;
    end if;
    select count(*) filter (where c.domain = p_domain),
        count(*) filter (where c.domain <> p_domain and c.reply_to = d.reply_queue)
    into v_open, v_awaited
    from command_bus_command as c
    where c.status in ('PENDING', 'IN_PROGRESS', 'IN_TSQ')
        and (c.domain = p_domain or c.reply_to = d.reply_queue);
    if v_open > 0 or v_messages > 0 or v_awaited > 0 or (v_replies > 0 and not p_with_replies) then
        raise exception 'domain "%" is in use: it has % open commands, % messages, % unread replies,'
            ' and % open commands of other domains reply to it',
            p_domain, v_open, v_messages, v_replies, v_awaited
            using errcode = 'QB009';
    end if;
    for v_queue in values (d.command_queue), (d.reply_queue) loop
        if to_regclass('pgmq.meta') is not null
            and exists (select from pgmq.meta where queue_name = v_queue)
        then
            if to_regclass(format('pgmq.%I', 'q_' || v_queue)) is null
                or to_regclass(format('pgmq.%I', 'a_' || v_queue)) is null
            then
                perform pgmq.create(v_queue);  -- what is half there cannot be dropped
            end if;
            perform pgmq.drop_queue(v_queue);
        end if;
    end loop;
    delete from command_bus_lane_ready where domain = p_domain;
    delete from command_bus_lane_group where domain = p_domain;
    delete from command_bus_lane_turn where domain = p_domain;
    delete from command_bus_lane_clock where domain = p_domain;
    delete from command_bus_pause where domain = p_domain;
    delete from command_bus_domain where domain = p_domain;
end;
$$;

-- Make counters, lists and groups say again what the rows say, where somebody truncated or changed
-- them; returns what was corrected, in the words of command_bus.find_violations(). Safe while
-- workers run: what is added is the difference between the rows and the counters at one moment,
-- which no transaction changes that changes both. Reads all commands and the whole trail.
-- Latencies that are lost cannot be counted again. One at a time; others wait.
create or replace function command_bus.recount()
returns table (what text, subject text, detail text)
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
#variable_conflict use_column
declare
    r record;
begin
    perform pg_advisory_xact_lock(hashtextextended('command_bus.recount', 0));

    -- What is listed, first: it has counters of its own.
    for r in
        select c.domain, array_agg(c.command_id order by c.command_id) as ids
        from command_bus_command as c
        where c.status = 'IN_TSQ' and not exists (
            select from command_bus_tsq as t
            where t.command_id = c.command_id and t.domain = c.domain
        )
        group by c.domain
    loop
        perform from command_bus_command as c
        where c.domain = r.domain and c.command_id = any (r.ids)
        order by c.command_id
        for no key update;
        r.ids := array(
            select c.command_id from command_bus_command as c
            where c.domain = r.domain and c.command_id = any (r.ids) and c.status = 'IN_TSQ'
                and not exists (
                    select from command_bus_tsq as t
                    where t.command_id = c.command_id and t.domain = c.domain
                )
        );
        perform command_bus.enter_tsq(r.domain, r.ids);
        return query select 'the troubleshooting queue lists what is IN_TSQ'::text, r.domain,
            format('%s listed', cardinality(r.ids));
    end loop;
    for r in
        select t.domain, array_agg(t.command_id) as ids
        from command_bus_tsq as t
        where not exists (
            select from command_bus_command as c
            where c.command_id = t.command_id and c.domain = t.domain and c.status = 'IN_TSQ'
        )
        group by t.domain
    loop
        perform command_bus.leave_tsq(r.domain, r.ids);
        return query select 'the troubleshooting queue lists what is IN_TSQ'::text, r.domain,
            format('%s taken out', cardinality(r.ids));
    end loop;
    return query
    with listed as (
        insert into command_bus_unsuccessful as u (
            command_id, created_at, ended_at, status, domain, command_type, error_code
        )
        select c.command_id, c.created_at, coalesce(c.finished_at, c.updated_at), c.status,
            c.domain, c.command_type, c.last_error_code
        from command_bus_command as c
        where c.status in ('FAILED', 'CANCELLED')
        on conflict (command_id, domain) do update set status = excluded.status
            where u.status <> excluded.status
        returning u.domain
    )
    select 'failed and cancelled commands are listed'::text, l.domain, format('%s listed', count(*))
    from listed as l
    group by l.domain;
    return query
    with gone as (
        delete from command_bus_unsuccessful as u
        where not exists (
            select from command_bus_command as c
            where c.command_id = u.command_id and c.domain = u.domain
                and c.status in ('FAILED', 'CANCELLED')
        )
        returning u.domain
    )
    select 'failed and cancelled commands are listed'::text, g.domain,
        format('%s taken out', count(*))
    from gone as g
    group by g.domain;

    -- Groups that are gone, then how many each holds.
    perform pg_advisory_xact_lock_shared(command_bus.prune_lock('groups'));
    insert into command_bus_tsq_group (
        group_id, domain, error_type, error_code, message, first_seen_at, last_seen_at
    )
    select distinct on (t.group_id) t.group_id, t.domain, t.error_type, t.error_code,
        command_bus.normal_message(t.error_message),
        min(t.first_failed_at) over (partition by t.group_id),
        max(t.entered_at) over (partition by t.group_id)
    from command_bus_tsq as t
    order by t.group_id
    on conflict do nothing;
    return query
    with difference as (
        select g.group_id, coalesce(t.n, 0) - g.in_tsq - coalesce(d.n, 0) as n,
            greatest(coalesce(t.n, 0) - g.entered - coalesce(d.entered, 0), 0) as entered
        from command_bus_tsq_group as g
        left join (
            select group_id, sum(in_tsq) as n, sum(entered) as entered
            from command_bus_tsq_delta group by 1
        ) as d using (group_id)
        left join (
            select group_id, count(*) as n from command_bus_tsq group by 1
        ) as t using (group_id)
    ),
    corrected as (
        update command_bus_tsq_group as g
        set in_tsq = g.in_tsq + d.n, entered = g.entered + d.entered
        from difference as d
        where d.group_id = g.group_id and (d.n <> 0 or d.entered > 0)
        returning g.group_id, g.domain, d.n
    )
    select 'groups of failures count what is in the queue'::text, c.domain,
        format('group %s: %s', c.group_id, to_char(c.n, 'SG999999999999990'))
    from corrected as c;

    return query
    with counted as (
        select s.domain, sum(s.pending) as pending, sum(s.in_progress) as in_progress,
            sum(s.completed) as completed, sum(s.failed) as failed, sum(s.in_tsq) as in_tsq,
            sum(s.cancelled) as cancelled
        from (
            select domain, count(*) filter (where status = 'PENDING') as pending,
                count(*) filter (where status = 'IN_PROGRESS') as in_progress,
                count(*) filter (where status = 'COMPLETED') as completed,
                count(*) filter (where status = 'FAILED') as failed,
                count(*) filter (where status = 'IN_TSQ') as in_tsq,
                count(*) filter (where status = 'CANCELLED') as cancelled
            from command_bus_command
            group by domain
            union all
            select domain, -pending, -in_progress, -completed, -failed, -in_tsq, -cancelled
            from command_bus_counter
            union all
            select domain, -pending, -in_progress, -completed, -failed, -in_tsq, -cancelled
            from command_bus_delta
        ) as s
        group by s.domain
    ),
    corrected as (
        insert into command_bus_counter as k (
            domain, pending, in_progress, completed, failed, in_tsq, cancelled
        )
        select domain, pending, in_progress, completed, failed, in_tsq, cancelled
        from counted
        where (pending, in_progress, completed, failed, in_tsq, cancelled) <> (0, 0, 0, 0, 0, 0)
        order by domain
        on conflict (domain) do update set
            pending = k.pending + excluded.pending,
            in_progress = k.in_progress + excluded.in_progress,
            completed = k.completed + excluded.completed,
            failed = k.failed + excluded.failed,
            in_tsq = k.in_tsq + excluded.in_tsq,
            cancelled = k.cancelled + excluded.cancelled
        returning k.domain
    )
    select 'counters equal a recount'::text, c.domain,
        format('pending %s, in progress %s, completed %s, failed %s, in the TSQ %s, cancelled %s',
               d.pending, d.in_progress, d.completed, d.failed, d.in_tsq, d.cancelled)
    from corrected as c
    join counted as d on d.domain = c.domain;

    -- Of what was pruned, the batch's counters still hold that it ended, and no row says how.
    return query
    with part as (
        select batch_id, domain, created_at, pending, in_progress, completed, failed, in_tsq,
            cancelled, sent, pruned
        from command_bus_batch
        union all
        select batch_id, domain, at, pending, in_progress, completed, failed, in_tsq, cancelled,
            sent, pruned
        from command_bus_delta
        where batch_id is not null
    ),
    counted as (
        select batch_id, sum(pending) as pending, sum(in_progress) as in_progress,
            sum(completed) as completed, sum(failed) as failed, sum(in_tsq) as in_tsq,
            sum(cancelled) as cancelled, sum(sent) as sent, sum(pruned) as pruned
        from part
        group by batch_id
    ),
    there as (
        select batch_id, min(domain) as domain, min(created_at) as created_at,
            max(updated_at) as updated_at,
            count(*) filter (where status = 'PENDING') as pending,
            count(*) filter (where status = 'IN_PROGRESS') as in_progress,
            count(*) filter (where status = 'COMPLETED') as completed,
            count(*) filter (where status = 'FAILED') as failed,
            count(*) filter (where status = 'IN_TSQ') as in_tsq,
            count(*) filter (where status = 'CANCELLED') as cancelled,
            count(*) as n
        from command_bus_command
        where batch_id is not null
        group by batch_id
    ),
    wanted as (
        select t.batch_id, t.domain, t.created_at, t.updated_at,
            t.pending - coalesce(k.pending, 0) as pending,
            t.in_progress - coalesce(k.in_progress, 0) as in_progress,
            t.in_tsq - coalesce(k.in_tsq, 0) as in_tsq,
            -- Those that were pruned may have ended so.
            case when k.pruned > 0 then greatest(t.failed - k.failed, 0)
                 else t.failed - coalesce(k.failed, 0) end as failed,
            case when k.pruned > 0 then greatest(t.cancelled - k.cancelled, 0)
                 else t.cancelled - coalesce(k.cancelled, 0) end as cancelled,
            t.n + coalesce(k.pruned, 0) - coalesce(k.sent, 0) as sent,
            t.completed + t.failed + t.cancelled + coalesce(k.pruned, 0)
                - coalesce(k.completed + k.failed + k.cancelled, 0) as ended
        from there as t
        left join counted as k using (batch_id)
    ),
    corrected as (
        insert into command_bus_batch as b (
            batch_id, domain, created_at, updated_at, pending, in_progress, completed, failed,
            in_tsq, cancelled, sent
        )
        select batch_id, domain, created_at, updated_at, pending, in_progress,
            ended - failed - cancelled, failed, in_tsq, cancelled, sent
        from wanted
        where (pending, in_progress, ended, failed, in_tsq, cancelled, sent)
            <> (0, 0, 0, 0, 0, 0, 0)
        order by batch_id
        on conflict (batch_id) do update set
            created_at = least(b.created_at, excluded.created_at),
            pending = b.pending + excluded.pending,
            in_progress = b.in_progress + excluded.in_progress,
            completed = b.completed + excluded.completed,
            failed = b.failed + excluded.failed,
            in_tsq = b.in_tsq + excluded.in_tsq,
            cancelled = b.cancelled + excluded.cancelled,
            sent = b.sent + excluded.sent
        returning b.batch_id, b.domain
    )
    select 'batch counters equal a recount'::text, c.domain, format('batch %s', c.batch_id)
    from corrected as c;

    return query
    with made as (
        select s.worker_id, sum(s.effect[1]) as completed, sum(s.effect[2]) as failed,
            sum(s.effect[3]) as retried, sum(s.effect[4]) as moved_to_tsq
        from (
            select worker_id, command_bus.effect_on_worker(event_type, details) as effect
            from command_bus_audit
            union all
            select worker_id, array[completed, failed, retried, moved_to_tsq]
            from command_bus_pruned
        ) as s
        where s.effect is not null
        group by s.worker_id
    ),
    difference as (
        select w.worker_id, coalesce(m.completed, 0) - w.completed as completed,
            coalesce(m.failed, 0) - w.failed as failed,
            coalesce(m.retried, 0) - w.retried as retried,
            coalesce(m.moved_to_tsq, 0) - w.moved_to_tsq as moved_to_tsq
        from command_bus_worker as w
        left join made as m on m.worker_id = w.worker_id
    ),
    corrected as (
        update command_bus_worker as w
        set completed = w.completed + d.completed, failed = w.failed + d.failed,
            retried = w.retried + d.retried, moved_to_tsq = w.moved_to_tsq + d.moved_to_tsq
        from difference as d
        where d.worker_id = w.worker_id
            and (d.completed, d.failed, d.retried, d.moved_to_tsq) <> (0, 0, 0, 0)
        returning w.worker_id, w.domain
    )
    select 'worker totals equal a recount'::text, c.domain, format('worker %s', c.worker_id)
    from corrected as c;

    return query select * from command_bus.recount_lanes();
end;
$$;

-- What does not come for longer than anybody would have it wait, because the clock of the server
-- went back (what was written before seems to be of the future) or somebody else has read the
-- message: how many, of 1,000 at most for each domain and kind, and until when. A message is held
-- where its command runs on a lease that lasts as long; a minute is waited for in any case.
create or replace function command_bus.find_ahead_of_time()
returns table (domain text, kind text, n bigint, until timestamptz)
language plpgsql stable
set search_path = public, pg_temp
set row_security = off
as $$
declare
    v_from timestamptz := clock_timestamp() + interval '1 minute';
    d command_bus_domain;
begin
    for d in select * from command_bus_domain loop
        if to_regclass(format('pgmq.%I', 'q_' || d.command_queue)) is not null then
            return query execute format(
                $query$
                select $1, 'messages', count(*), max(m.vt)
                from (
                    select q.msg_id, q.vt, q.message ->> 'command_id' as command_id
                    from pgmq.%I as q
                    where q.vt > $2
                    order by q.vt desc
                    limit 1000
                ) as m
                where not exists (
                    select from command_bus_command as c
                    where c.command_id = case
                            when m.command_id ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
                                then m.command_id::uuid
                        end
                        and c.domain = $1 and c.msg_id = m.msg_id and c.status = 'IN_PROGRESS'
                        and c.started_at < $2 and c.lease_until >= m.vt - interval '1 minute'
                )
                having count(*) > 0
                $query$, 'q_' || d.command_queue
            ) using d.domain, v_from;
        end if;
    end loop;
    return query
    select w.domain, 'waiting', count(*), max(w.due_at)
    from (
        select w.command_id, w.domain, w.due_at
        from command_bus_waiting as w
        where w.due_at > v_from
        order by w.due_at desc
        limit 1000
    ) as w
    join command_bus_command as c on c.command_id = w.command_id and c.domain = w.domain
    where c.updated_at > v_from
    group by w.domain;
end;
$$;

-- Let come what find_ahead_of_time() finds: messages of commands that nobody holds at once; what
-- waits after as long as it was to wait; what runs when its lease, counted from now, is over.
-- Returns how many of each kind; safe while workers run, and done again it changes nothing more.
create or replace function command_bus.mend_clock()
returns table (domain text, kind text, n bigint)
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_from timestamptz := v_now + interval '1 minute';
    d command_bus_domain;
begin
    for d in select * from command_bus_domain loop
        continue when to_regclass(format('pgmq.%I', 'q_' || d.command_queue)) is null;
        return query execute format(
            $query$
            with shortened as (
                update command_bus_command as c
                set started_at = $3, updated_at = $3,
                    lease_until = $3 + (c.lease_until - c.started_at)
                from (
                    select q.command_id, q.domain
                    from command_bus_command as q
                    join pgmq.%1$I as m on m.msg_id = q.msg_id
                        and m.message ->> 'command_id' = q.command_id::text
                    where q.domain = $1 and q.status = 'IN_PROGRESS' and q.started_at > $2
                        and m.vt > $2
                    order by q.command_id
                    for no key update of q skip locked
                ) as held
                where c.command_id = held.command_id and c.domain = held.domain
                returning c.msg_id, c.lease_until
            ),
            moved as (
                update pgmq.%1$I as m
                set vt = s.lease_until
                from shortened as s
                where m.msg_id = s.msg_id
                returning m.msg_id
            )
            select $1, 'leases', count(*) from moved having count(*) > 0
            $query$, 'q_' || d.command_queue
        ) using d.domain, v_from, v_now;
        return query execute format(
            $query$
            with moved as (
                update pgmq.%1$I as m
                set vt = $3
                from (
                    select q.msg_id
                    from pgmq.%1$I as q
                    where q.vt > $2 and not exists (
                        select from command_bus_command as c
                        where c.command_id = case
                                when q.message ->> 'command_id' ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
                                    then (q.message ->> 'command_id')::uuid
                            end
                            and c.domain = $1 and c.msg_id = q.msg_id and c.status = 'IN_PROGRESS'
                    )
                    order by q.msg_id
                    for update of q skip locked
                ) as free
                where m.msg_id = free.msg_id
                returning m.msg_id
            )
            select $1, 'messages', count(*) from moved having count(*) > 0
            $query$, 'q_' || d.command_queue
        ) using d.domain, v_from, v_now;
    end loop;
    return query
    with late as materialized (
        select q.command_id, q.domain, c.updated_at
        from command_bus_waiting as q
        join command_bus_command as c on c.command_id = q.command_id and c.domain = q.domain
        where q.due_at > v_from and c.updated_at > v_from
        order by q.command_id
        for no key update skip locked
    ),
    -- Else it would look late once more, and be shifted again.
    entered as (
        update command_bus_command as c
        set updated_at = v_now
        from late
        where c.command_id = late.command_id and c.domain = late.domain
    ),
    moved as (
        update command_bus_waiting as w
        set due_at = v_now + (w.due_at - late.updated_at)
        from late
        where w.command_id = late.command_id and w.domain = late.domain
        returning w.domain
    ),
    stamped as (
        select domain, count(*) as n from moved group by domain
    )
    select domain, 'waiting', n from stamped;
    perform command_bus.wake_workers(k.domain) from command_bus_domain as k;
end;
$$;
