-- Cancelling what runs: an operator asks, the worker is told with its heartbeat and cancels the handler.
-- The attempt's token decides between that and a result: whichever is recorded first counts.
--
-- A request stands until its command has ended. Where the attempt ends in another way than by a result
-- (a failure that is retried, a lease that runs out), the command is cancelled before the next one.

-- Ask for the cancellation of a command. One that is PENDING is cancelled at once; of one that is
-- IN_PROGRESS the answer "done" says that its worker will be told. Raises QB001 for an unknown domain.
create or replace function command_bus.request_cancel(
    p_domain text, p_command_id uuid, p_operator text, p_reason text
)
returns table (command_id uuid, verdict text, status command_bus.command_status)
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
#variable_conflict use_column
declare
    v_status command_bus.command_status;
    v_done uuid[] := '{}';
begin
    perform command_bus.require_domain(p_domain);
    select c.status into v_status
    from command_bus_command as c
    where c.command_id = p_command_id and c.domain = p_domain;
    if v_status = 'PENDING' then
        return query
        select * from command_bus.cancel_pending(p_domain, p_command_id, p_operator, p_reason) as a
        where a.verdict = 'done';
        if found then
            return;
        end if;
        select c.status into v_status
        from command_bus_command as c
        where c.command_id = p_command_id and c.domain = p_domain;
    end if;
    if v_status = 'IN_PROGRESS' then
        insert into command_bus_cancel_request (
            command_id, domain, requested_at, requested_by, reason
        )
        values (p_command_id, p_domain, clock_timestamp(), p_operator, p_reason)
        on conflict do nothing;
        v_done := array[p_command_id];
        perform pg_notify('command_bus_' || p_domain, 'look');
    end if;
    return query
    select * from command_bus.operator_answers(p_domain, array[p_command_id], v_done);
end;
$$;

-- The tokens of a worker's attempts that shall be cancelled.
create or replace function command_bus.attempts_to_cancel(p_domain text, p_worker_id bigint)
returns table (msg_id bigint, claim_no integer)
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    select c.msg_id, c.claim_no
    from command_bus_cancel_request as q
    join command_bus_command as c
        on command_bus.has_key(c.command_id, c.domain, q.command_id, p_domain)
    where q.domain = p_domain and c.worker_id = p_worker_id and c.status = 'IN_PROGRESS';
$$;

-- Record that attempts were cancelled as asked. Elements: {command_id, msg_id, claim_no}. Those whose
-- token is not the current one any more are left out; returns how many ended.
create or replace function command_bus.settle_cancelled(
    p_domain text, p_worker_id bigint, p_tokens jsonb
)
returns integer
language plpgsql
set search_path = public, pg_temp
set row_security = off
set lock_timeout = '1s'
as $$
declare
    v_queue text := command_bus.command_queue(p_domain);
    v_held uuid[] := command_bus.hold_attempts(p_domain, p_tokens);
    v_msg_ids bigint[] := array(
        select c.msg_id from command_bus_command as c
        where c.command_id = any (v_held) and c.domain = p_domain
    );
    v_id uuid;
begin
    foreach v_id in array v_held loop
        perform command_bus.end_requested(p_domain, v_id);
    end loop;
    perform command_bus.drop_messages(v_queue, v_msg_ids, true);
    return cardinality(v_held);
end;
$$;

-- End one locked command that is IN_PROGRESS as CANCELLED, as it was asked for; its message is the
-- caller's to delete.
create or replace function command_bus.end_requested(p_domain text, p_command_id uuid)
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
declare
    q command_bus_cancel_request;
begin
    delete from command_bus_cancel_request as r
    where r.command_id = p_command_id and r.domain = p_domain
    returning * into q;
    update command_bus_command as c
    set lease_until = null, settled_claim = c.claim_no
    where c.command_id = p_command_id and c.domain = p_domain;
    perform command_bus.end_cancelled(
        p_domain, array[p_command_id], 'IN_PROGRESS', coalesce(q.requested_by, 'unknown'), q.reason
    );
end;
$$;

-- Carry out the requests whose commands run no more: cancel what waits or is in the troubleshooting
-- queue, and forget what has ended.
create or replace function command_bus.carry_out_cancels(p_domain text)
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
set lock_timeout = '250ms'
as $$
declare
    r record;
begin
    for r in
        select q.*,
            (select c.status from command_bus_command as c
             where c.command_id = q.command_id and c.domain = q.domain) as status
        from command_bus_cancel_request as q
        where q.domain = p_domain
        order by q.command_id
        for update of q skip locked
    loop
        continue when r.status = 'IN_PROGRESS';
        if r.status = 'PENDING' then
            perform command_bus.cancel_pending(
                p_domain, r.command_id, r.requested_by, r.reason
            );
        elsif r.status = 'IN_TSQ' then
            perform command_bus.operator_cancel(
                p_domain, array[r.command_id], r.requested_by, r.reason
            );
        end if;
        delete from command_bus_cancel_request as q
        where q.command_id = r.command_id and q.domain = p_domain and not exists (
            select from command_bus_command as c
            where c.command_id = q.command_id and c.domain = q.domain and c.status = 'IN_PROGRESS'
        );
    end loop;
end;
$$;
