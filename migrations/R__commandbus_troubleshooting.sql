-- The list of the troubleshooting queue, and the groups of failures that look alike.
--
-- Whoever moves a command into or out of IN_TSQ calls these; they decide nothing.

-- List commands that just became IN_TSQ in the troubleshooting queue, each in the group of the
-- failures that look like it.
create or replace function command_bus.enter_tsq(p_domain text, p_ids uuid[])
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
    v_now timestamptz := clock_timestamp();
begin
    -- The group that is met here must still be there when this is committed.
    perform pg_advisory_xact_lock_shared(command_bus.prune_lock('groups'));
    with entered as (
        insert into command_bus_tsq (
            command_id, entered_at, created_at, first_failed_at, last_failed_at, group_id,
            batch_id, correlation_id, attempts, domain, command_type, error_type, error_code,
            error_message
        )
        select c.command_id, v_now, c.created_at,
            coalesce(failed.first_at, v_now), coalesce(failed.last_at, v_now),
            command_bus.error_group(p_domain, c.last_error_code, c.last_error_message),
            c.batch_id, c.correlation_id, c.attempts, p_domain, c.command_type,
            c.last_error_type, c.last_error_code, c.last_error_message
        from unnest(p_ids) as id
        join command_bus_command as c on command_bus.has_key(c.command_id, c.domain, id, p_domain)
        cross join lateral (
            select min(a.created_at) as first_at, max(a.created_at) as last_at
            from command_bus_audit as a
            where command_bus.has_key(a.command_id, a.domain, c.command_id, p_domain)
                and a.event_type in ('FAILED', 'LEASE_EXPIRED')
        ) as failed
        order by id
        returning group_id, error_type, error_code, error_message
    ),
    counted as (
        insert into command_bus_tsq_delta (group_id, at, in_tsq, entered)
        select group_id, v_now, count(*), count(*)
        from entered
        group by group_id
    )
    insert into command_bus_tsq_group as g (
        group_id, domain, error_type, error_code, message, first_seen_at, last_seen_at
    )
    select distinct on (e.group_id) e.group_id, p_domain, e.error_type, e.error_code,
        command_bus.normal_message(e.error_message), v_now, v_now
    from entered as e
    order by e.group_id
    on conflict do nothing;
    if exists (select from command_bus_lane_slot as s where s.domain = p_domain) then
        perform command_bus.trouble_lanes(p_domain, p_ids);
    end if;
end;
$$;

-- List those of a set of locked commands that are IN_TSQ and have lost their row in the list. Their
-- group has counted them all the time, so nothing is counted.
create or replace function command_bus.list_again(p_domain text, p_ids uuid[])
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
    with listed as (
        insert into command_bus_tsq (
            command_id, entered_at, created_at, first_failed_at, last_failed_at, group_id,
            batch_id, correlation_id, attempts, domain, command_type, error_type, error_code,
            error_message
        )
        select c.command_id, c.updated_at, c.created_at, c.updated_at, c.updated_at,
            command_bus.error_group(
                p_domain, coalesce(c.last_error_code, 'UNKNOWN'),
                coalesce(c.last_error_message, '')
            ),
            c.batch_id, c.correlation_id, c.attempts, p_domain, c.command_type,
            coalesce(c.last_error_type, 'UNKNOWN'), coalesce(c.last_error_code, 'UNKNOWN'),
            coalesce(c.last_error_message, '')
        from unnest(p_ids) as id
        join command_bus_command as c on command_bus.has_key(c.command_id, c.domain, id, p_domain)
        where c.status = 'IN_TSQ' and not exists (
            select from command_bus_tsq as t where t.command_id = id and t.domain = p_domain
        )
        order by id
        returning group_id, error_type, error_code, error_message
    )
    insert into command_bus_tsq_group as g (
        group_id, domain, error_type, error_code, message, first_seen_at, last_seen_at
    )
    select distinct on (l.group_id) l.group_id, p_domain, l.error_type, l.error_code,
        command_bus.normal_message(l.error_message), clock_timestamp(), clock_timestamp()
    from listed as l
    order by l.group_id
    on conflict do nothing;
end;
$$;

-- Take commands out of the list of the troubleshooting queue.
create or replace function command_bus.leave_tsq(p_domain text, p_ids uuid[])
returns void
language sql
set search_path = public, pg_temp
set row_security = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
    with gone as (
        delete from command_bus_tsq
        where command_id = any (p_ids) and domain = p_domain
        returning group_id
    )
    insert into command_bus_tsq_delta (group_id, at, in_tsq, entered)
    select group_id, clock_timestamp(), -count(*), 0
    from gone
    group by group_id;
$$;

-- An error message without its variable parts: ids, numbers, quoted words.
create or replace function command_bus.normal_message(p_message text)
returns text
language sql immutable parallel safe
as $$
    select regexp_replace(
        regexp_replace(
            regexp_replace(
                regexp_replace(
                    left(coalesce(p_message, ''), 300),
                    '[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}',
                    '<id>', 'g'),
                '0x[0-9a-fA-F]+', '<hex>', 'g'),
            '"[^"]*"|''[^'']*''', '<text>', 'g'),
        '[0-9]+([.,][0-9]+)*', '<n>', 'g');
$$;

create or replace function command_bus.error_group(p_domain text, p_code text, p_message text)
returns uuid
language sql immutable parallel safe
as $$
    select md5(jsonb_build_array(p_domain, p_code, command_bus.normal_message(p_message))::text)::uuid;
$$;
