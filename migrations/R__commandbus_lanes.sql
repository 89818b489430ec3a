-- Lanes: commands with one key in order, limits for keys and groups, and fair shares for groups.
--
-- A lane is a text; what stands before its first "/" is its group (a lane without one is in the group
-- ""). A command with a lane waits in command_bus_lane. Promotion, which is a part of the claim, gives
-- it a slot (command_bus_lane_slot) and a message; from then on it is a command like any other. It
-- keeps its slot until it ends, through retries, releases and crashes. At most lane_limit commands of
-- a lane have slots, and they are taken in the order of their places (seq).
--
-- * A place is given when a command is sent, so order in a lane is the order of sending for whoever
--   sends one after the other; of senders at the same time, what is committed and seen comes first.
-- * Nobody looks through lanes for something to do. Whatever may let a lane go on (a send, an end, a
--   setting) appends a mark (command_bus_lane_ready), which waits for nobody; promotion reads marks
--   and deletes them. A lane that is held has no mark, so it costs a claim nothing. A mark is kept
--   where something was skipped because somebody has locked it.
-- * One promotion of a domain at a time: it holds the row of the clock, and others go on without.
--   So it may count slots and take places without any other lock. It promotes twice as much as the
--   claim may take, at most, and nothing while as much is in the queue as the claim may take: the
--   queue holds a short window, and who comes late needs not wait for what others sent before.
-- * Groups share by virtual time (start-time fair queueing): a group's time goes on by 1/weight for
--   each command; the one that is behind comes first; one that had nothing to do begins at the
--   clock. Where more than 64 groups have marks, each promotion looks at the next few.
-- * A command in the troubleshooting queue keeps its slot (held) or frees it, as its group's
--   on_trouble says. An operator's retry gives it back its old place, which is the first.

-- Functions are named here that stand further below, or in a file that is applied later.
set local check_function_bodies = off;

-- The group of a lane.
create or replace function command_bus.lane_group(p_lane text)
returns text
language sql immutable parallel safe
as $$
    select case when strpos(p_lane, '/') > 0 then split_part(p_lane, '/', 1) else '' end;
$$;

-- So many places, in order; later calls give later ones. Between two of them is room for follow-ups
-- (place_of_follow_up).
create or replace function command_bus.next_lane_places(p_count bigint)
returns setof bigint
language sql
set search_path = public, pg_temp
set row_security = off
as $$
    select nextval('command_bus_lane_number') * 65536 from generate_series(1, p_count);
$$;

create or replace function command_bus.next_lane_place()
returns bigint
language sql
set search_path = public, pg_temp
set row_security = off
as $$
    select nextval('command_bus_lane_number') * 65536;
$$;

-- The place of the p_number-th of p_count commands that the handler of a command, which has just ended,
-- sends in its own lane: the first takes its place, the others stand directly behind. Null: it has none
-- to give (another lane, or more than there is room for: 32,768, or 15 generations of two each).
-- A place is the middle of the room that belongs to it, and its lowest bit says how wide that is. Who
-- sends several divides its own room among them. So no place is ever given twice, however many commands
-- of the lane are on their way or in the troubleshooting queue, and nobody has to look.
create or replace function command_bus.place_of_follow_up(
    p_domain text, p_cause_id uuid, p_lane text, p_number bigint, p_count bigint
)
returns bigint
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    select case when p_count = 1 then c.lane_seq
                else room.first + (2 * p_number - 1) * (room.width / share.n / 2) end
    from command_bus_command as c
    -- What was sent has the room from its place up to the next one.
    cross join lateral (
        select case when c.lane_seq % 65536 = 0 then c.lane_seq
                    else c.lane_seq - (c.lane_seq & -c.lane_seq) end as first,
            least(65536, 2 * (c.lane_seq & -c.lane_seq)) as width
    ) as room
    cross join lateral (
        select (2 ^ ceil(log(2, p_count)))::bigint as n  -- halves, quarters, ...
    ) as share
    where c.command_id = p_cause_id and c.domain = p_domain and c.lane = p_lane
        and (p_count = 1 or room.width / share.n >= 2);
$$;

-- The settings that hold for a group: its own, those of '*', or the built-in ones.
create or replace function command_bus.lane_settings(p_domain text, p_group text)
returns table (
    max_in_flight integer, weight float8, lane_limit integer, on_trouble text, is_own boolean,
    changed_at timestamptz, changed_by text
)
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    select s.max_in_flight, s.weight, s.lane_limit, s.on_trouble, s.is_own, s.changed_at, s.changed_by
    from (
        select g.max_in_flight, g.weight, g.lane_limit, g.on_trouble, g.lane_group = p_group as is_own,
            g.changed_at, g.changed_by, case when g.lane_group = p_group then 1 else 2 end as rank
        from command_bus_lane_group as g
        where g.domain = p_domain and g.lane_group in (p_group, '*')
        union all
        select null, 1, 1, 'hold', false, null, null, 3
    ) as s
    order by s.rank
    limit 1;
$$;

-- Let those of a set that have just been sent, at p_sent_at, and need not wait for their time, wait in
-- their lanes. Raises QB001 where the domain was deleted meanwhile.
create or replace function command_bus.fill_lanes(
    p_domain text, p_commands jsonb, p_sent_at timestamptz
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
    with placed as (
        insert into command_bus_lane (domain, lane_group, lane, seq, command_id, entered_at)
        select p_domain, command_bus.lane_group(c.lane), c.lane, c.lane_seq, c.command_id, c.created_at
        from jsonb_to_recordset(p_commands) as i (command_id uuid, lane text)
        -- Laterally: else a plan may read all that were created then, and compare each with each.
        cross join lateral (
            select k.* from command_bus_command as k
            where k.command_id = i.command_id and k.domain = p_domain
            limit 1
        ) as c
        where i.lane is not null and c.created_at = p_sent_at and c.status = 'PENDING'
            and c.claim_no = 0 and c.msg_id is null and c.lane is not null
            and not exists (
                select from command_bus_waiting as w
                where command_bus.has_key(w.command_id, w.domain, i.command_id, p_domain)
            )
        on conflict do nothing  -- an id may stand in the set twice
        returning lane_group, lane
    ),
    marked as (
        insert into command_bus_lane_ready (domain, lane_group, lane)
        select distinct p_domain, lane_group, lane from placed
    )
    insert into command_bus_lane_delta (at, domain, lane_group, waiting, ended)
    select clock_timestamp(), p_domain, lane_group, count(*), 0 from placed group by lane_group;
    -- delete_domain, for which this may have waited, took the domain away.
    if not exists (select from command_bus_domain where domain = p_domain) then
        perform command_bus.raise_refusal(command_bus.unknown_domain(p_domain));
    end if;
end;
$$;

-- Let locked commands that are PENDING again, or whose time has come, wait in their lanes; returns
-- those that do. One that has kept its slot for a retry needs no place, and neither does one without
-- a lane. A delayed send takes its place now; what had one gets it back.
create or replace function command_bus.enter_lanes(p_domain text, p_ids uuid[])
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
    v_ids uuid[];
    v_lanes text[];
    v_seqs bigint[];
begin
    select array_agg(p.command_id order by p.position), array_agg(p.lane order by p.position),
        array_agg(p.seq order by p.position)
    into v_ids, v_lanes, v_seqs
    from (
        select o.command_id, o.lane, o.position,
            case when o.is_new then command_bus.next_lane_place() else o.lane_seq end as seq
        from (
            select c.command_id, c.lane, c.lane_seq, coalesce(w.kind = 'SCHEDULED', false) as is_new,
                row_number() over (order by w.due_at, c.lane_seq) as position
            from unnest(p_ids) as i (id)
            join command_bus_command as c on command_bus.has_key(c.command_id, c.domain, i.id, p_domain)
            left join command_bus_waiting as w
                on command_bus.has_key(w.command_id, w.domain, i.id, p_domain)
            where c.lane is not null and not exists (
                select from command_bus_lane_slot as s
                where s.domain = p_domain and s.lane_group = command_bus.lane_group(c.lane)
                    and not s.held and s.lane = c.lane and s.seq = c.lane_seq
            )
            order by position
        ) as o
    ) as p;
    if v_ids is null then
        return '{}';
    end if;
    delete from command_bus_lane_slot where ctid = any (array(
        select h.ctid
        from unnest(v_lanes, v_seqs) as p (lane, seq)
        cross join lateral (
            select s.ctid from command_bus_lane_slot as s
            where s.domain = p_domain and s.lane_group = command_bus.lane_group(p.lane)
                and s.held and s.lane = p.lane and s.seq = p.seq
            limit 1
        ) as h
    ));
    update command_bus_command as c
    set lane_seq = p.seq, msg_id = null
    from unnest(v_ids, v_seqs) as p (command_id, seq)
    where command_bus.has_key(c.command_id, c.domain, p.command_id, p_domain);
    insert into command_bus_lane (domain, lane_group, lane, seq, command_id, entered_at)
    select p_domain, command_bus.lane_group(p.lane), p.lane, p.seq, p.command_id, clock_timestamp()
    from unnest(v_ids, v_lanes, v_seqs) as p (command_id, lane, seq)
    on conflict do nothing;
    perform command_bus.mark_lanes(p_domain, v_lanes);
    insert into command_bus_lane_delta (at, domain, lane_group, waiting, ended)
    select clock_timestamp(), p_domain, command_bus.lane_group(lane), count(*), 0
    from unnest(v_lanes) as l (lane)
    group by 3;
    return v_ids;
end;
$$;

-- Say of lanes that they may be able to go on.
create or replace function command_bus.mark_lanes(p_domain text, p_lanes text[])
returns void
language sql
set search_path = public, pg_temp
set row_security = off
as $$
    insert into command_bus_lane_ready (domain, lane_group, lane)
    select distinct p_domain, command_bus.lane_group(lane), lane from unnest(p_lanes) as l (lane);
$$;

-- Free the slots of commands that have ended, named by lane and place, and wake the workers where
-- something waits in their groups, whose limits have room now.
create or replace function command_bus.leave_lanes(p_domain text, p_lanes text[], p_seqs bigint[])
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
begin
    delete from command_bus_lane_slot where ctid = any (array(
        select h.ctid
        from unnest(p_lanes, p_seqs) as p (lane, seq)
        cross join lateral (
            select s.ctid from command_bus_lane_slot as s
            where s.domain = p_domain and s.lane_group = command_bus.lane_group(p.lane)
                and s.held = any ('{f,t}') and s.lane = p.lane and s.seq = p.seq
            limit 1
        ) as h
    ));
    perform command_bus.mark_lanes(p_domain, p_lanes);
    insert into command_bus_lane_delta (at, domain, lane_group, waiting, ended)
    select clock_timestamp(), p_domain, command_bus.lane_group(lane), 0, count(*)
    from unnest(p_lanes) as l (lane)
    group by 3;
    if exists (
        select from unnest(p_lanes) as p (lane)
        cross join lateral (
            select from command_bus_lane as e
            where e.domain = p_domain and e.lane_group = command_bus.lane_group(p.lane)
            limit 1
        ) as behind
    ) then
        perform command_bus.wake_workers(p_domain);
    end if;
end;
$$;

-- Take commands that have ended by an operator's hand out of their lanes, wherever they stood there;
-- those without a lane are left out.
create or replace function command_bus.quit_lanes(p_domain text, p_ids uuid[])
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
    v_lanes text[];
    v_seqs bigint[];
begin
    select array_agg(c.lane order by c.lane, c.lane_seq),
        array_agg(c.lane_seq order by c.lane, c.lane_seq)
    into v_lanes, v_seqs
    from unnest(p_ids) as i (id)
    join command_bus_command as c on command_bus.has_key(c.command_id, c.domain, i.id, p_domain)
    where c.lane is not null;
    if v_lanes is null then
        return;
    end if;
    with gone as (
        delete from command_bus_lane where ctid = any (array(
            select h.ctid
            from unnest(v_lanes, v_seqs) as p (lane, seq)
            cross join lateral (
                select e.ctid from command_bus_lane as e
                where e.domain = p_domain and e.lane_group = command_bus.lane_group(p.lane)
                    and e.lane = p.lane and e.seq = p.seq
                limit 1
            ) as h
        ))
        returning lane_group
    )
    insert into command_bus_lane_delta (at, domain, lane_group, waiting, ended)
    select clock_timestamp(), p_domain, lane_group, -count(*), 0 from gone group by lane_group;
    perform command_bus.leave_lanes(p_domain, v_lanes, v_seqs);
end;
$$;

-- What becomes of the slots of commands that entered the troubleshooting queue: held, or free.
create or replace function command_bus.trouble_lanes(p_domain text, p_ids uuid[])
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
    v_lanes text[];
    v_seqs bigint[];
    r record;
begin
    for r in
        select array_agg(c.lane) as lanes, array_agg(c.lane_seq) as seqs, setting.on_trouble
        from unnest(p_ids) as i (id)
        join command_bus_command as c on command_bus.has_key(c.command_id, c.domain, i.id, p_domain)
        cross join lateral command_bus.lane_settings(
            p_domain, command_bus.lane_group(c.lane)) as setting
        where c.lane is not null
        group by setting.on_trouble
    loop
        if r.on_trouble = 'skip' then
            perform command_bus.leave_lanes(p_domain, r.lanes, r.seqs);
            continue;
        end if;
        update command_bus_lane_slot set held = true where ctid = any (array(
            select h.ctid
            from unnest(r.lanes, r.seqs) as p (lane, seq)
            cross join lateral (
                select s.ctid from command_bus_lane_slot as s
                where s.domain = p_domain and s.lane_group = command_bus.lane_group(p.lane)
                    and not s.held and s.lane = p.lane and s.seq = p.seq
                limit 1
            ) as h
        ));
        -- The limit of the group has room for others.
        perform command_bus.wake_workers(p_domain)
        where exists (
            select from command_bus_lane_ready as m
            where m.domain = p_domain
                and m.lane_group = any (array(
                    select command_bus.lane_group(lane) from unnest(r.lanes) as l (lane)))
        );
    end loop;
end;
$$;

-- Groups with marks, in the order of their names: up to p_limit, beginning after p_after.
create or replace function command_bus.ready_lane_groups(
    p_domain text, p_after text, p_limit integer
)
returns text[]
language plpgsql
set search_path = public, pg_temp
set row_security = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
begin
    return array(
        with recursive next as (
            select p_after collate "C" as lane_group, 0 as n
            union all
            select (
                select m.lane_group from command_bus_lane_ready as m
                where m.domain = p_domain and m.lane_group > g.lane_group
                order by m.lane_group
                limit 1
            ), g.n + 1
            from next as g
            where g.lane_group is not null and g.n < p_limit
        )
        select g.lane_group from next as g where g.n > 0 and g.lane_group is not null order by g.n
    );
end;
$$;

-- Let commands go on to the queue, in the order of their lanes and as the limits allow: as many as a
-- claim of p_limit may want. Returns how many. Does nothing while somebody else promotes.
create or replace function command_bus.promote_lanes(p_domain text, p_queue text, p_limit integer)
returns integer
language plpgsql
set search_path = public, pg_temp
set row_security = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_clock command_bus_lane_clock;
    v_ahead bigint[];
    v_groups text[];
    v_need integer;
    v_most integer;       -- marks of a group that are looked at
    v_promoted integer := 0;
    v_more boolean;
    v_done tid[];
    v_again text[];
    v_time float8;
    v_ids uuid[];
    v_lanes text[];
    v_seqs bigint[];
    v_held uuid[];
    v_locked uuid[];
    v_taken uuid[];
    v_msg_ids bigint[];
begin
    select * into v_clock from command_bus_lane_clock where domain = p_domain
    for no key update skip locked;
    if not found then
        if exists (select from command_bus_lane_clock where domain = p_domain) then
            return 0;
        end if;
        insert into command_bus_lane_clock (domain) values (p_domain) on conflict do nothing
        returning * into v_clock;
        if v_clock.domain is null then
            return 0;
        end if;
    end if;
    execute format(
        'select coalesce(array_agg(q.msg_id), ''{}'') from pgmq.%I as q'
        ' where q.msg_id = any ($1) and q.vt <= $2', 'q_' || p_queue
    ) into v_ahead using v_clock.ahead, v_now;
    if cardinality(v_ahead) >= p_limit then
        return 0;
    end if;
    v_need := 2 * p_limit - cardinality(v_ahead);
    v_time := v_clock.virtual_time;

    for round in 1 .. 5 loop
        v_groups := command_bus.ready_lane_groups(p_domain, v_clock.last_group, 64);
        if cardinality(v_groups) < 64 and v_clock.last_group <> '' then
            -- From the beginning, as far as those that were just found.
            v_groups := v_groups || array(
                select g from unnest(
                    command_bus.ready_lane_groups(p_domain, '', 64 - cardinality(v_groups))) as g
                where g <= v_clock.last_group
            );
        end if;
        v_clock.last_group := '';
        if cardinality(v_groups) = 64 then
            v_groups := v_groups[:greatest(v_need, 16)];  -- each of them gets its turn
            v_clock.last_group := v_groups[cardinality(v_groups)];
        end if;
        if exists (
            select from command_bus_lane_ready as m where m.domain = p_domain and m.lane_group = ''
        ) then
            v_groups := array_prepend('', v_groups);
        end if;
        exit when cardinality(v_groups) = 0;
        -- Where marks let nothing go on (many of one lane, or of lanes at their limits), more are read.
        v_most := case when round > 1 then 500
                       when cardinality(v_groups) <= 4 then v_need
                       else greatest(50, 4 * v_need / cardinality(v_groups)) end;

        with candidate as materialized (
            select g.lane_group, s.weight, s.lane_limit,
                greatest(coalesce(t.virtual_time, 0), v_time) as start,
                v_need - case when s.max_in_flight is null then 0 else greatest(
                    v_need - s.max_in_flight + (
                        select count(*) from (
                            select from command_bus_lane_slot as f
                            where f.domain = p_domain and f.lane_group = g.lane_group and not f.held
                            limit s.max_in_flight
                        ) as in_flight
                    ), 0) end as room
            from unnest(v_groups) as g (lane_group)
            -- What lane_settings says, where most groups have none of their own.
            cross join lateral (
                select coalesce(k.weight, 1) as weight, coalesce(k.lane_limit, 1) as lane_limit,
                    k.max_in_flight
                from (select) as always
                left join lateral (
                    select * from command_bus_lane_group as c
                    where c.domain = p_domain and c.lane_group in (g.lane_group, '*')
                    order by c.lane_group = '*'
                    limit 1
                ) as k on true
            ) as s
            left join lateral (
                select k.virtual_time from command_bus_lane_turn as k
                where k.domain = p_domain and k.lane_group = g.lane_group
                limit 1
            ) as t on true
        ),
        mark as materialized (
            -- As if each mark let one command go.
            select k.*, m.mark_id, m.lane, m.tid
            from candidate as k
            cross join lateral (
                select r.mark_id, r.lane, r.ctid as tid,
                    row_number() over (order by r.mark_id) as number
                from (
                    select g.mark_id, g.lane, g.ctid
                    from command_bus_lane_ready as g
                    where g.domain = p_domain and g.lane_group = k.lane_group
                    order by g.mark_id
                    limit case when round > 1 then v_most else least(v_most, k.room) end
                ) as r
            ) as m
            where k.room > 0
            order by k.start + (m.number - 1) / k.weight, m.mark_id
            limit greatest(v_need, case when round > 1 then v_most end)
        ),
        lane as materialized (
            select l.*, greatest(l.lane_limit - (
                    select count(*) from (
                        select from command_bus_lane_slot as f
                        where f.domain = p_domain and f.lane_group = l.lane_group
                            and f.held = any ('{f,t}') and f.lane = l.lane
                        limit l.lane_limit
                    ) as in_flight
                ), 0) as free
            from (
                select m.lane_group, m.lane, min(m.mark_id) as first_mark, array_agg(m.tid) as tids,
                    min(m.weight) as weight, min(m.lane_limit) as lane_limit,
                    min(m.start) as start, min(m.room) as room
                from mark as m
                group by m.lane_group, m.lane
            ) as l
        ),
        unit as (
            select l.lane_group, l.lane, l.tids, l.free, l.first_mark, l.start, l.weight, l.room,
                e.seq, e.command_id,
                row_number() over (partition by l.lane_group order by e.seq is null, l.first_mark, e.seq)
                    as n
            from lane as l
            left join lateral (
                select p.seq, p.command_id
                from command_bus_lane as p
                where p.domain = p_domain and p.lane_group = l.lane_group and p.lane = l.lane
                order by p.seq
                limit least(l.free, v_need)
            ) as e on true
        ),
        ranked as materialized (
            select r.*, r.position <= v_need and not r.is_left as is_chosen
            from (
                select u.*, u.start + (u.n - 1) / u.weight as tag,
                    u.seq is null or u.n > u.room as is_left,
                    row_number() over (
                        order by u.seq is null or u.n > u.room, u.start + (u.n - 1) / u.weight,
                            u.first_mark, u.seq
                    ) as position
                from unit as u
            ) as r
        )
        -- A lane of which not all was chosen that may go on keeps its marks.
        select array_agg(r.command_id order by r.position) filter (where r.is_chosen),
            array_agg(r.lane order by r.position) filter (where r.is_chosen),
            array_agg(r.seq order by r.position) filter (where r.is_chosen),
            max(r.tag) filter (where r.is_chosen),
            (
                select array_agg(t.tid)
                from (
                    select o.tids
                    from ranked as o
                    group by o.lane_group, o.lane, o.tids, o.free
                    having bool_and(o.is_chosen or o.seq is null)
                        and (count(o.seq) < v_need or o.free <= v_need)
                ) as over
                cross join lateral unnest(over.tids) as t (tid)
            ),
            (select count(*) >= v_need from mark)
        into v_ids, v_lanes, v_seqs, v_clock.virtual_time, v_done, v_more
        from ranked as r;
        v_clock.virtual_time := greatest(coalesce(v_clock.virtual_time, v_time), v_time);

        v_again := '{}';
        if v_ids is not null then
            -- Locks in the common order: places, then commands. What somebody holds is left out, and
            -- what stands behind it in its lane.
            with gone as (
                delete from command_bus_lane where ctid = any (array(
                    select e.ctid
                    from (
                        select * from unnest(v_ids, v_lanes, v_seqs) as p (command_id, lane, seq)
                        order by p.command_id
                    ) as p
                    cross join lateral (
                        select w.ctid from command_bus_lane as w
                        where w.domain = p_domain and w.lane_group = command_bus.lane_group(p.lane)
                            and w.lane = p.lane and w.seq = p.seq
                        for update skip locked
                    ) as e
                ))
                returning command_id
            )
            select coalesce(array_agg(g.command_id), '{}') into v_held from gone as g;
            v_taken := v_held;
            -- Nobody ends a command whose place is locked, so one that nobody ever locked is free.
            select coalesce(array_agg(c.command_id) filter (where c.is_free), '{}'),
                coalesce(array_agg(c.command_id) filter (where not c.is_free), '{}')
            into v_held, v_locked
            from unnest(v_held) as h (command_id)
            cross join lateral (
                select k.command_id, k.xmax = 0 as is_free from command_bus_command as k
                where k.command_id = h.command_id and k.domain = p_domain and k.status = 'PENDING'
                limit 1
            ) as c;
            if cardinality(v_locked) > 0 then
                v_held := v_held || array(
                    select k.command_id
                    from unnest(v_locked) as h (command_id)
                    cross join lateral (
                        select c.command_id from command_bus_command as c
                        where c.command_id = h.command_id and c.domain = p_domain
                            and c.status = 'PENDING'
                        for no key update skip locked
                    ) as k
                );
            end if;
            if cardinality(v_held) < cardinality(v_ids) then
                v_again := array(
                    select distinct p.lane
                    from unnest(v_ids, v_lanes) as p (command_id, lane)
                    where p.command_id <> all (v_held)
                );
                select array_agg(p.command_id order by p.position),
                    array_agg(p.lane order by p.position), array_agg(p.seq order by p.position)
                into v_ids, v_lanes, v_seqs
                from unnest(v_ids, v_lanes, v_seqs) with ordinality
                    as p (command_id, lane, seq, position)
                where p.command_id = any (v_held) and not exists (
                    select from unnest(v_ids, v_lanes, v_seqs) as m (command_id, lane, seq)
                    where m.lane = p.lane and m.seq < p.seq and m.command_id <> all (v_held)
                );
                perform command_bus.give_places_back(
                    p_domain, array(select unnest(v_taken) except select unnest(v_ids)));
            end if;
        end if;

        if v_ids is not null then
            v_msg_ids := array(
                select m.msg_id
                from pgmq.send_batch(p_queue, array(
                    select jsonb_build_object('command_id', id)
                    from unnest(v_ids) with ordinality as i (id, position) order by position
                )) with ordinality as m (msg_id, position)
                order by m.position
            );
            v_ahead := v_ahead || v_msg_ids;
            update command_bus_command as c
            set msg_id = i.msg_id
            from unnest(v_ids, v_msg_ids) as i (command_id, msg_id)
            where command_bus.has_key(c.command_id, c.domain, i.command_id, p_domain);
            insert into command_bus_lane_slot (domain, lane_group, lane, seq, command_id, taken_at)
            select p_domain, command_bus.lane_group(p.lane), p.lane, p.seq, p.command_id, v_now
            from unnest(v_ids, v_lanes, v_seqs) as p (command_id, lane, seq);
            insert into command_bus_lane_delta (at, domain, lane_group, waiting, ended)
            select v_now, p_domain, command_bus.lane_group(lane), -count(*), 0
            from unnest(v_lanes) as l (lane)
            group by 3;
            insert into command_bus_lane_turn as t (domain, lane_group, virtual_time)
            select p_domain, s.lane_group, v_time + s.n / coalesce((
                    select c.weight from command_bus_lane_group as c
                    where c.domain = p_domain and c.lane_group in (s.lane_group, '*')
                    order by c.lane_group = '*'
                    limit 1
                ), 1)
            from (
                select command_bus.lane_group(lane) as lane_group, count(*) as n
                from unnest(v_lanes) as l (lane)
                group by 1
            ) as s
            on conflict (domain, lane_group) do update
            set virtual_time = greatest(t.virtual_time, v_time) + excluded.virtual_time - v_time;
            v_promoted := v_promoted + cardinality(v_ids);
            v_need := v_need - cardinality(v_ids);
        end if;
        v_time := v_clock.virtual_time;

        -- Somebody may have locked a mark; it is found to be done once more, later.
        delete from command_bus_lane_ready where ctid = any (array(
            select m.ctid from command_bus_lane_ready as m where m.ctid = any (v_done)
            for update skip locked
        ));
        if cardinality(v_again) > 0 then
            perform command_bus.mark_lanes(p_domain, v_again);
        end if;
        exit when v_need <= 0 or not v_more or v_done is null;
    end loop;

    update command_bus_lane_clock
    set virtual_time = v_time, last_group = v_clock.last_group, ahead = v_ahead
    where domain = p_domain;
    return v_promoted;
end;
$$;

-- promote_lanes as a claim calls it: with a word to other workers where there is something for them,
-- and without waiting for tables that somebody has locked. Where it is refused, as others have promoted
-- since a claim at a higher level of isolation began, the claim goes on without it.
create or replace function command_bus.promote_for_claim(
    p_domain text, p_queue text, p_limit integer
)
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
begin
    if command_bus.promote_lanes(p_domain, p_queue, p_limit) > p_limit then
        perform command_bus.wake_workers(p_domain);
    end if;
exception when lock_not_available or serialization_failure then
    null;
end;
$$;

-- Put back places that a promotion took, of commands that somebody has locked. Those of commands that
-- are not PENDING any more, which nothing of the bus leaves behind, are gone for good.
create or replace function command_bus.give_places_back(p_domain text, p_ids uuid[])
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
    with held as (
        select i.id, c.status, c.lane, c.lane_seq, c.updated_at
        from unnest(p_ids) as i (id)
        left join command_bus_command as c on command_bus.has_key(c.command_id, c.domain, i.id, p_domain)
    ),
    back as (
        insert into command_bus_lane (domain, lane_group, lane, seq, command_id, entered_at)
        select p_domain, command_bus.lane_group(h.lane), h.lane, h.lane_seq, h.id, h.updated_at
        from held as h
        where h.status = 'PENDING'
    )
    insert into command_bus_lane_delta (at, domain, lane_group, waiting, ended)
    select clock_timestamp(), p_domain, command_bus.lane_group(h.lane), -count(*), 0
    from held as h
    where h.status <> 'PENDING'
    group by 3;
end;
$$;

-- Change settings of a group while everything runs; those that p_settings does not name stay as they
-- were. Keys: max_in_flight (null: no limit), weight, lane_limit, on_trouble. Returns what holds now.
-- Raises QB001 for an unknown domain, 23514 for a value out of its range.
create or replace function command_bus.set_lane_group(
    p_domain text, p_group text, p_settings jsonb, p_operator text
)
returns table (max_in_flight integer, weight float8, lane_limit integer, on_trouble text)
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
#variable_conflict use_column
declare
    v_before record;
begin
    perform command_bus.require_domain(p_domain);
    perform pg_advisory_xact_lock(hashtextextended('command_bus.set_lane_group', 0));
    select * into v_before from command_bus.lane_settings(p_domain, p_group);
    insert into command_bus_lane_group as g (
        domain, lane_group, max_in_flight, weight, lane_limit, on_trouble, changed_at, changed_by
    )
    values (
        p_domain, p_group,
        case when p_settings ? 'max_in_flight' then (p_settings ->> 'max_in_flight')::integer
             else v_before.max_in_flight end,
        coalesce((p_settings ->> 'weight')::float8, v_before.weight),
        coalesce((p_settings ->> 'lane_limit')::integer, v_before.lane_limit),
        coalesce(p_settings ->> 'on_trouble', v_before.on_trouble),
        clock_timestamp(), p_operator
    )
    on conflict (domain, lane_group) do update set
        max_in_flight = excluded.max_in_flight, weight = excluded.weight,
        lane_limit = excluded.lane_limit, on_trouble = excluded.on_trouble,
        changed_at = excluded.changed_at, changed_by = excluded.changed_by;
    perform command_bus.apply_lane_settings(p_domain, p_group);
    return query
    select s.max_in_flight, s.weight, s.lane_limit, s.on_trouble
    from command_bus.lane_settings(p_domain, p_group) as s;
end;
$$;

-- Take the settings of a group back: those of '*' hold again. Returns whether there were any.
create or replace function command_bus.reset_lane_group(p_domain text, p_group text)
returns boolean
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
begin
    perform command_bus.require_domain(p_domain);
    delete from command_bus_lane_group where domain = p_domain and lane_group = p_group;
    if not found then
        return false;
    end if;
    perform command_bus.apply_lane_settings(p_domain, p_group);
    return true;
end;
$$;

-- What changed settings ('*': of all groups) mean for what is there: slots that are held by the
-- troubleshooting queue become free where on_trouble says skip now, and lanes may go on.
create or replace function command_bus.apply_lane_settings(p_domain text, p_group text)
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
begin
    with free as (
        delete from command_bus_lane_slot where ctid = any (array(
            select s.ctid
            from command_bus_lane_slot as s
            where s.domain = p_domain and (p_group = '*' or s.lane_group = p_group) and s.held
                and (select k.on_trouble from command_bus.lane_settings(p_domain, s.lane_group) as k)
                    = 'skip'
            for update skip locked
        ))
        returning lane_group, lane
    )
    insert into command_bus_lane_ready (domain, lane_group, lane)
    select distinct p_domain, lane_group, lane from free;
    insert into command_bus_lane_ready (domain, lane_group, lane)
    select distinct p_domain, s.lane_group, s.lane
    from command_bus_lane_slot as s
    where s.domain = p_domain and (p_group = '*' or s.lane_group = p_group)
        and exists (
            select from command_bus_lane as e
            where e.domain = p_domain and e.lane_group = s.lane_group and e.lane = s.lane
        );
    perform command_bus.wake_workers(p_domain);
end;
$$;

-- The part of folding that concerns lanes.
create or replace function command_bus.fold_lane_deltas(p_limit integer)
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
declare
    v_deltas command_bus_lane_delta[];
begin
    with gone as (
        delete from command_bus_lane_delta
        where ctid = any (array(select ctid from command_bus_lane_delta limit p_limit))
        returning *
    )
    select array_agg(g) into v_deltas from gone as g;
    if v_deltas is null then
        return;
    end if;
    insert into command_bus_lane_counter as c (domain, lane_group, waiting)
    select domain, lane_group, sum(waiting) from unnest(v_deltas) group by 1, 2 order by 1, 2
    on conflict (domain, lane_group) do update set waiting = c.waiting + excluded.waiting;
    insert into command_bus_lane_rate as r (at, domain, lane_group, ended)
    select date_bin('10 s', at, '2000-01-01'), domain, lane_group, sum(ended)
    from unnest(v_deltas)
    where ended > 0
    group by 1, 2, 3
    order by 1, 2, 3
    on conflict (at, domain, lane_group) do update set ended = r.ended + excluded.ended;
    delete from command_bus_lane_rate where at < clock_timestamp() - interval '10 minutes';
    -- Groups come and go; one in which nothing waits needs no row.
    delete from command_bus_lane_counter as c
    using (select distinct domain, lane_group from unnest(v_deltas)) as d
    where c.domain = d.domain and c.lane_group = d.lane_group and c.waiting = 0;
    delete from command_bus_lane_turn as t
    using command_bus_lane_clock as k
    where k.domain = t.domain and t.virtual_time <= k.virtual_time
        and t.ctid = any (array(
            select ctid from command_bus_lane_turn for update skip locked limit 1000));
end;
$$;

-- Every group of lanes that has something to do, had a short time ago, or has settings: how many wait
-- and since when (the oldest of the first 1,000 lanes), in flight, held by commands in the
-- troubleshooting queue, how many slots a second became free in the last minute, and its settings.
create or replace function command_bus.lane_groups(p_domain text default null)
returns table (
    domain text, lane_group text, waiting bigint, in_flight bigint, held bigint,
    oldest_at timestamptz, oldest_is_exact boolean, rate_per_second float8, max_in_flight integer,
    weight float8, lane_limit integer, on_trouble text, is_own boolean, changed_at timestamptz,
    changed_by text
)
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    with counted as (
        select w.domain, w.lane_group, sum(w.waiting) as waiting, sum(w.ended) as ended
        from (
            select domain, lane_group, waiting, 0 as ended from command_bus_lane_counter
            union all
            select domain, lane_group, waiting,
                case when at >= clock_timestamp() - interval '1 minute' then ended else 0 end
            from command_bus_lane_delta
            union all
            select domain, lane_group, 0, ended from command_bus_lane_rate
            where at >= clock_timestamp() - interval '1 minute'
        ) as w
        where p_domain is null or w.domain = p_domain
        group by 1, 2
    ),
    slot as (
        select domain, lane_group, count(*) filter (where not held) as in_flight,
            count(*) filter (where held) as held
        from command_bus_lane_slot
        where p_domain is null or domain = p_domain
        group by 1, 2
    ),
    named as (
        select domain, lane_group from counted where waiting <> 0 or ended <> 0
        union
        select domain, lane_group from slot
        union
        select g.domain, g.lane_group from command_bus_lane_group as g
        where p_domain is null or g.domain = p_domain
    )
    select n.domain, n.lane_group, coalesce(c.waiting, 0)::bigint, coalesce(s.in_flight, 0),
        coalesce(s.held, 0), o.oldest_at, o.is_exact, coalesce(c.ended, 0)::float8 / 60,
        setting.max_in_flight, setting.weight, setting.lane_limit, setting.on_trouble,
        setting.is_own, setting.changed_at, setting.changed_by
    from named as n
    left join counted as c using (domain, lane_group)
    left join slot as s using (domain, lane_group)
    cross join lateral command_bus.lane_settings(n.domain, n.lane_group) as setting
    cross join lateral command_bus.oldest_in_group(n.domain, n.lane_group) as o
    order by n.domain, n.lane_group;
$$;

-- Since when the first of a group waits, among its first 1,000 lanes; is_exact: it has no more.
create or replace function command_bus.oldest_in_group(p_domain text, p_group text)
returns table (oldest_at timestamptz, is_exact boolean)
language sql stable
set search_path = public, pg_temp
set row_security = off
set enable_seqscan = off
set enable_bitmapscan = off
as $$
    with recursive head as (
        (
            select e.lane, e.entered_at, 1 as n from command_bus_lane as e
            where e.domain = p_domain and e.lane_group = p_group
            order by e.lane, e.seq
            limit 1
        )
        union all
        select f.lane, f.entered_at, h.n + 1
        from head as h
        cross join lateral (
            select e.lane, e.entered_at from command_bus_lane as e
            where e.domain = p_domain and e.lane_group = p_group and e.lane > h.lane
            order by e.lane, e.seq
            limit 1
        ) as f
        where h.n < 1000
    )
    select min(entered_at), count(*) < 1000 from head;
$$;

-- Where a command stands in its lane: how many are before it (of 10,000 looked at, at most), the first
-- of them, and how that one stands. No row for a command that does not wait in a lane.
create or replace function command_bus.lane_place(p_domain text, p_command_id uuid)
returns table (
    lane text, waiting_before bigint, taken bigint, lane_limit integer, behind uuid,
    behind_status command_bus.command_status, group_in_flight bigint, max_in_flight integer
)
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    select c.lane,
        (select count(*) from (
            select from command_bus_lane as b
            where b.domain = p_domain and b.lane_group = e.lane_group and b.lane = e.lane
                and b.seq < e.seq
            limit 10000) as before),
        (select count(*) from command_bus_lane_slot as s
         where s.domain = p_domain and s.lane_group = e.lane_group and s.held = any ('{f,t}')
             and s.lane = e.lane),
        setting.lane_limit, first.command_id, k.status,
        (select count(*) from (
            select from command_bus_lane_slot as s
            where s.domain = p_domain and s.lane_group = e.lane_group and not s.held
            limit coalesce(setting.max_in_flight, 0)) as in_flight),
        setting.max_in_flight
    from command_bus_command as c
    join command_bus_lane as e
        on e.domain = p_domain and e.lane_group = command_bus.lane_group(c.lane) and e.lane = c.lane
        and e.seq = c.lane_seq
    cross join lateral command_bus.lane_settings(p_domain, e.lane_group) as setting
    left join lateral (
        select b.command_id from (
            (select s.command_id, 1 as rank, s.seq from command_bus_lane_slot as s
             where s.domain = p_domain and s.lane_group = e.lane_group
                 and s.held = any ('{f,t}') and s.lane = e.lane
             order by s.held desc, s.seq limit 1)
            union all
            (select w.command_id, 2, w.seq from command_bus_lane as w
             where w.domain = p_domain and w.lane_group = e.lane_group and w.lane = e.lane
                 and w.seq < e.seq
             order by w.seq limit 1)
        ) as b
        order by b.rank
        limit 1
    ) as first on true
    left join command_bus_command as k on k.command_id = first.command_id and k.domain = p_domain
    where c.command_id = p_command_id and c.domain = p_domain;
$$;

-- Lanes that commands in the troubleshooting queue hold, the longest held first, and how many wait in
-- each: of 1,000 counted, at most.
create or replace function command_bus.held_lanes(p_domain text, p_limit bigint)
returns table (
    domain text, lane_group text, lane text, command_id uuid, taken_at timestamptz, waiting bigint
)
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    select s.domain, s.lane_group, s.lane, s.command_id, s.taken_at,
        (select count(*) from (
            select from command_bus_lane as e
            where e.domain = s.domain and e.lane_group = s.lane_group and e.lane = s.lane
            limit 1000) as waits)
    from (
        select * from command_bus_lane_slot as h
        where h.held and (p_domain is null or h.domain = p_domain)
        order by h.taken_at
        limit p_limit
    ) as s
    order by s.taken_at;
$$;

-- How many wait in the lane of each of a set of commands in the troubleshooting queue that hold their
-- lanes: of 1,000 counted, at most.
create or replace function command_bus.waiting_behind(p_domains text[], p_ids uuid[])
returns table (domain text, command_id uuid, lane text, is_held boolean, n bigint)
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    select c.domain, c.command_id, c.lane,
        exists (
            select from command_bus_lane_slot as s
            where s.domain = c.domain and s.lane_group = command_bus.lane_group(c.lane)
                and s.held and s.lane = c.lane and s.seq = c.lane_seq
        ),
        (select count(*) from (
            select from command_bus_lane as e
            where e.domain = c.domain and e.lane_group = command_bus.lane_group(c.lane)
                and e.lane = c.lane
            limit 1000) as waits)
    from unnest(p_domains, p_ids) as i (domain, id)
    join command_bus_command as c on c.command_id = i.id and c.domain = i.domain
    where c.lane is not null;
$$;

-- What must hold of lanes; a part of command_bus.find_violations().
create or replace function command_bus.find_lane_violations()
returns table (invariant text, domain text, command_id uuid, detail text)
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    select 'a place in a lane is that of a PENDING command', e.domain, e.command_id,
        format('lane %s, command %s', e.lane, coalesce(c.status::text, 'is not there'))
    from command_bus_lane as e
    left join command_bus_command as c on c.command_id = e.command_id and c.domain = e.domain
    where (c.status, c.lane, c.lane_seq) is distinct from
        ('PENDING'::command_bus.command_status, e.lane, e.seq)
        or e.lane_group <> command_bus.lane_group(e.lane)

    union all
    select 'a slot of a lane is that of an open command', s.domain, s.command_id,
        format('lane %s, %s, command %s', s.lane, case when s.held then 'held' else 'in flight' end,
               coalesce(c.status::text, 'is not there'))
    from command_bus_lane_slot as s
    left join command_bus_command as c on c.command_id = s.command_id and c.domain = s.domain
    left join command_bus_waiting as w on w.command_id = s.command_id and w.domain = s.domain
    where (c.lane, c.lane_seq) is distinct from (s.lane, s.seq)
        or s.lane_group <> command_bus.lane_group(s.lane)
        or case when s.held
            then c.status <> 'IN_TSQ' and w.kind is distinct from 'OPERATOR_RETRY'
            else c.status not in ('PENDING', 'IN_PROGRESS') end

    union all
    select 'what a lane has let go holds a slot', c.domain, c.command_id,
        format('lane %s, %s, no slot', c.lane, c.status)
    from command_bus_command as c
    where c.lane is not null and c.status in ('PENDING', 'IN_PROGRESS')
        and not exists (
            select from command_bus_lane_slot as s
            where s.domain = c.domain and s.lane_group = command_bus.lane_group(c.lane)
                and s.held = any ('{f,t}') and s.lane = c.lane and s.seq = c.lane_seq
        )
        and not exists (
            select from command_bus_lane as e
            where e.domain = c.domain and e.lane_group = command_bus.lane_group(c.lane)
                and e.lane = c.lane and e.seq = c.lane_seq
        )
        and not exists (
            select from command_bus_waiting as w
            where w.command_id = c.command_id and w.domain = c.domain
                and w.kind in ('SCHEDULED', 'OPERATOR_RETRY')
        )

    union all
    select 'a lane that can go on is marked', l.domain, null, format('lane %s: %s wait', l.lane, l.n)
    from (
        select e.domain, e.lane_group, e.lane, count(*) as n
        from command_bus_lane as e
        group by 1, 2, 3
    ) as l
    where not exists (
            select from command_bus_lane_ready as m
            where m.domain = l.domain and m.lane_group = l.lane_group and m.lane = l.lane
        )
        and (
            select count(*) from command_bus_lane_slot as s
            where s.domain = l.domain and s.lane_group = l.lane_group and s.held = any ('{f,t}')
                and s.lane = l.lane
        ) < (select k.lane_limit from command_bus.lane_settings(l.domain, l.lane_group) as k)

    union all
    select 'counters of lanes equal a recount', coalesce(k.domain, r.domain), null,
        format('group %s: %s wait by the counter, %s by the rows',
               coalesce(k.lane_group, r.lane_group), coalesce(k.n, 0), coalesce(r.n, 0))
    from (
        select w.domain, w.lane_group, sum(w.waiting) as n
        from (
            select domain, lane_group, waiting from command_bus_lane_counter
            union all
            select domain, lane_group, waiting from command_bus_lane_delta
        ) as w
        group by 1, 2
    ) as k
    full join (
        select e.domain, e.lane_group, count(*) as n from command_bus_lane as e group by 1, 2
    ) as r on r.domain = k.domain and r.lane_group = k.lane_group
    where coalesce(k.n, 0) <> coalesce(r.n, 0);
$$;

-- Give lanes back what somebody took from their tables: slots, marks and counters; a part of
-- command_bus.recount(). Lost places are for command_bus.requeue_lost_commands().
create or replace function command_bus.recount_lanes()
returns table (what text, subject text, detail text)
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
#variable_conflict use_column
begin
    -- Nobody promotes meanwhile.
    perform from command_bus_lane_clock order by domain for no key update;
    return query
    with gone as (
        delete from command_bus_lane_slot as s
        where not exists (
            select from command_bus_command as c
            where c.command_id = s.command_id and c.domain = s.domain and c.lane = s.lane
                and c.status in ('PENDING', 'IN_PROGRESS', 'IN_TSQ')
        )
        returning s.domain, s.lane_group, s.lane
    ),
    marked as (
        insert into command_bus_lane_ready (domain, lane_group, lane)
        select distinct domain, lane_group, lane from gone
    )
    select 'a slot of a lane is that of an open command', g.domain,
        format('%s taken out', count(*))
    from gone as g
    group by g.domain;
    return query
    with given as (
        insert into command_bus_lane_slot (domain, lane_group, held, lane, seq, command_id, taken_at)
        select c.domain, command_bus.lane_group(c.lane), false, c.lane, c.lane_seq, c.command_id,
            c.updated_at
        from command_bus_command as c
        where c.lane is not null
            and (c.status = 'IN_PROGRESS' or c.status = 'PENDING' and (
                c.msg_id is not null
                or exists (
                    select from command_bus_waiting as w
                    where w.command_id = c.command_id and w.domain = c.domain and w.kind = 'RETRY')
                or exists (
                    select from command_bus_suspect as p
                    where p.command_id = c.command_id and p.domain = c.domain)
                or exists (
                    select from command_bus_parked as p
                    where p.command_id = c.command_id and p.domain = c.domain)))
            and not exists (
                select from command_bus_lane_slot as s
                where s.domain = c.domain and s.lane_group = command_bus.lane_group(c.lane)
                    and s.held = any ('{f,t}') and s.lane = c.lane and s.seq = c.lane_seq
            )
        for no key update of c skip locked
        returning domain
    )
    select 'what a lane has let go holds a slot', g.domain, format('%s given one', count(*))
    from given as g
    group by g.domain;
    return query
    with marked as (
        insert into command_bus_lane_ready (domain, lane_group, lane)
        select distinct e.domain, e.lane_group, e.lane
        from command_bus_lane as e
        where not exists (
                select from command_bus_lane_ready as m
                where m.domain = e.domain and m.lane_group = e.lane_group and m.lane = e.lane
            )
            and (
                select count(*) from command_bus_lane_slot as s
                where s.domain = e.domain and s.lane_group = e.lane_group and s.held = any ('{f,t}')
                and s.lane = e.lane
            ) < (select k.lane_limit from command_bus.lane_settings(e.domain, e.lane_group) as k)
        returning domain
    )
    select 'a lane that can go on is marked', m.domain, format('%s marked', count(*))
    from marked as m
    group by m.domain;
    return query
    with corrected as (
        insert into command_bus_lane_delta (at, domain, lane_group, waiting, ended)
        select clock_timestamp(), s.domain, s.lane_group, sum(s.n), 0
        from (
            select domain, lane_group, count(*) as n from command_bus_lane group by 1, 2
            union all
            select domain, lane_group, -waiting from command_bus_lane_counter
            union all
            select domain, lane_group, -waiting from command_bus_lane_delta
        ) as s
        group by 2, 3
        having sum(s.n) <> 0
        returning domain, lane_group, waiting
    )
    select 'counters of lanes equal a recount', c.domain,
        format('group %s: %s', c.lane_group, to_char(c.waiting, 'SG999999999999990'))
    from corrected as c;
end;
$$;
