-- Pauses: while a domain or a command type is paused, nothing of it starts. What runs goes on, and no
-- attempt is spent.
--
-- The messages of a paused domain stay in the queue. Commands of a paused type are parked by the claims
-- that read them; after the end the claims bring them back, a part each.

-- Pause a domain, or with p_command_type one type of it; for p_seconds, or with null until it is
-- resumed. A pause of the same that is in force ends. Raises QB001 for an unknown domain.
create or replace function command_bus.pause(
    p_domain text, p_command_type text, p_reason text, p_by text, p_seconds float8
)
returns bigint
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_pause_id bigint;
begin
    perform command_bus.require_domain(p_domain);
    perform from command_bus_domain as d where d.domain = p_domain for no key update;
    update command_bus_pause as p
    set ended_at = v_now, ended_by = p_by
    where p.domain = p_domain and p.command_type is not distinct from p_command_type
        and p.ended_at is null;
    insert into command_bus_pause (domain, command_type, reason, paused_by, paused_at, ends_at)
    values (p_domain, p_command_type, p_reason, p_by, v_now, v_now + make_interval(secs => p_seconds))
    returning pause_id into v_pause_id;
    perform command_bus.refresh_pauses(p_domain);
    return v_pause_id;
end;
$$;

-- End a pause that is in force; false: there is none of this id.
create or replace function command_bus.resume(p_pause_id bigint, p_by text)
returns boolean
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
declare
    v_domain text := (select p.domain from command_bus_pause as p where p.pause_id = p_pause_id);
begin
    perform from command_bus_domain as d where d.domain = v_domain for no key update;
    update command_bus_pause as p
    set ended_at = clock_timestamp(), ended_by = p_by
    where p.pause_id = p_pause_id and p.ended_at is null;
    if not found then
        return false;
    end if;
    perform command_bus.refresh_pauses(v_domain);
    return true;
end;
$$;

-- End the pauses whose time is over, let the domain's row say what is paused now, and tell the workers.
create or replace function command_bus.refresh_pauses(p_domain text)
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
begin
    perform from command_bus_domain as d where d.domain = p_domain for no key update;
    update command_bus_pause as p
    set ended_at = p.ends_at
    where p.domain = p_domain and p.ended_at is null and p.ends_at <= clock_timestamp();
    update command_bus_domain as d
    set paused_until = f.until, paused_types = f.types, pause_ends_at = f.next_end,
        is_resuming = d.is_resuming
            or coalesce(not (d.paused_types <@ coalesce(f.types, '{}')), false)
    from (
        select max(coalesce(p.ends_at, 'infinity')) filter (where p.command_type is null) as until,
            array_agg(p.command_type) filter (where p.command_type is not null) as types,
            min(p.ends_at) as next_end
        from command_bus_pause as p
        where p.domain = p_domain and p.ended_at is null
    ) as f
    where d.domain = p_domain;
    perform pg_notify('command_bus_' || p_domain, 'look');
end;
$$;

-- Put commands that were parked for a pause which is over back into the queue, up to p_limit of them.
create or replace function command_bus.bring_back(p_domain text, p_limit integer)
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
declare
    v_types text[] := array(
        select unnest(command_bus.parked_types(p_domain, 'PAUSED'))
        except
        select unnest(d.paused_types) from command_bus_domain as d where d.domain = p_domain
    );
begin
    if v_types = '{}' then
        update command_bus_domain set is_resuming = false where domain = p_domain and is_resuming;
    else
        perform command_bus.unpark(p_domain, 'PAUSED', v_types, clock_timestamp(), p_limit);
    end if;
end;
$$;
