-- Worker processes: who runs, what it holds, and who shall stop.
--
-- A worker is alive as long as its heartbeat says so; nobody asks the operating system. A stop is
-- a request in its row that it finds with its next heartbeat, on whichever host it runs.

-- Register a worker; its id names it from now on. Elements of p_worker: domain, host, pid, version,
-- concurrency, settings, heartbeat_seconds, app_version?, command_types? (what it has handlers for;
-- null: it does not say). Raises QB001 for an unknown domain.
create or replace function command_bus.register_worker(p_worker jsonb)
returns bigint
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
declare
    v_worker_id bigint;
begin
    perform command_bus.require_domain(p_worker ->> 'domain');
    insert into command_bus_worker (
        domain, host, pid, version, concurrency, settings, started_at, heartbeat_at,
        heartbeat_seconds, app_version, command_types
    )
    select w.domain, w.host, w.pid, w.version, w.concurrency, coalesce(w.settings, '{}'),
        clock_timestamp(), clock_timestamp(), w.heartbeat_seconds, w.app_version, w.command_types
    from jsonb_to_record(p_worker) as w (
        domain text, host text, pid integer, version text, concurrency integer, settings jsonb,
        heartbeat_seconds real, app_version text, command_types text[]
    )
    returning worker_id into v_worker_id;
    return v_worker_id;
end;
$$;

-- Record that a worker lives and what it runs; says whether it shall stop. No row: nobody knows the
-- worker any more, and it has to register again. A heartbeat that a slow server carries out after
-- the worker's end wakes nobody up. Raises 55P03 where somebody has locked the row.
create or replace function command_bus.heartbeat(
    p_worker_id bigint, p_running jsonb, p_running_count integer, p_rate float8,
    p_concurrency integer, p_settings jsonb
)
returns table (stop_requested boolean)
language sql
set search_path = public, pg_temp
set row_security = off
set lock_timeout = '500ms'
as $$
    update command_bus_worker
    set heartbeat_at = clock_timestamp(), running = p_running, running_count = p_running_count,
        rate_per_second = p_rate, concurrency = p_concurrency, settings = p_settings
    where worker_id = p_worker_id and stopped_at is null
    returning stop_requested_at is not null;
$$;

-- Record which types a worker has handlers for, where that changed since it registered.
create or replace function command_bus.set_command_types(p_worker_id bigint, p_types text[])
returns void
language sql
set search_path = public, pg_temp
set row_security = off
set lock_timeout = '500ms'
as $$
    update command_bus_worker set command_types = p_types where worker_id = p_worker_id;
$$;

-- Record that a worker was started in place of another whose process has ended (p_reason: how)
-- without having stopped.
create or replace function command_bus.record_replacement(
    p_worker_id bigint, p_replaced_id bigint, p_reason text
)
returns void
language sql
set search_path = public, pg_temp
set row_security = off
as $$
    update command_bus_worker
    set replaced_by = p_worker_id, end_reason = p_reason, running = '[]', running_count = 0,
        rate_per_second = 0
    where worker_id = p_replaced_id and stopped_at is null;
$$;

-- Ask workers to stop: one, or with null all of them that have not stopped. Returns how many of
-- them live: one that is gone (no heartbeat for ten times as long as one takes) stops should it
-- ever come back.
create or replace function command_bus.request_stop(p_worker_id bigint, p_by text)
returns integer
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
declare
    v_count integer;
begin
    with asked as (
        update command_bus_worker
        set stop_requested_at = coalesce(stop_requested_at, clock_timestamp()),
            stop_requested_by = coalesce(stop_requested_by, p_by)
        where stopped_at is null and (p_worker_id is null or worker_id = p_worker_id)
        returning heartbeat_at, heartbeat_seconds, replaced_by
    )
    select count(*) into v_count
    from asked
    where replaced_by is null
        and clock_timestamp() - heartbeat_at <= make_interval(secs => 10 * heartbeat_seconds);
    perform command_bus.wake_workers(domain) from command_bus_domain;
    return v_count;
end;
$$;

-- Record that a worker has stopped of its own will.
create or replace function command_bus.worker_stopped(p_worker_id bigint)
returns void
language sql
set search_path = public, pg_temp
set row_security = off
as $$
    update command_bus_worker
    set stopped_at = clock_timestamp(), heartbeat_at = clock_timestamp(), running = '[]',
        running_count = 0, rate_per_second = 0
    where worker_id = p_worker_id;
$$;

-- Add what was counted for workers while their rows were locked (command_bus_worker_delta).
create or replace function command_bus.fold_worker_deltas()
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
begin
    if not exists (select from command_bus_worker_delta) then
        return;
    end if;
    with free as materialized (
        select w.worker_id
        from command_bus_worker as w
        where w.worker_id in (select d.worker_id from command_bus_worker_delta as d)
        order by w.worker_id
        for no key update skip locked
    ),
    gone as (
        delete from command_bus_worker_delta as d
        where d.worker_id in (select f.worker_id from free as f)
            or d.worker_id not in (select w.worker_id from command_bus_worker as w)
        returning *
    ),
    total as (
        select worker_id, sum(completed) as completed, sum(failed) as failed,
            sum(retried) as retried, sum(moved_to_tsq) as moved_to_tsq
        from gone
        group by worker_id
    )
    update command_bus_worker as w
    set completed = w.completed + t.completed, failed = w.failed + t.failed,
        retried = w.retried + t.retried, moved_to_tsq = w.moved_to_tsq + t.moved_to_tsq
    from total as t
    where w.worker_id = t.worker_id;
end;
$$;
