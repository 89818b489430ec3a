-- Mending what others did to the queue: messages deleted, archived, popped or purged, or the queue
-- dropped and created again. Nothing here is called by a worker; an operator calls it when
-- command_bus.find_violations() reports commands that no message carries.
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
            limit $3
        ) as l
        $query$, 'q_' || v_queue
    ) into v_ids, v_msg_ids, v_claims using p_domain, v_now, p_limit;

    for r in
        select c.command_id, c.status, c.msg_id, c.worker_id, c.attempts, c.batch_id
        from unnest(v_ids, v_msg_ids, v_claims) as l (command_id, msg_id, claim_no)
        join command_bus_command as c on c.command_id = l.command_id and c.domain = p_domain
        where c.msg_id is not distinct from l.msg_id and c.claim_no = l.claim_no
            and (c.status = 'PENDING' or c.status = 'IN_PROGRESS' and c.lease_until < v_now)
        order by c.command_id
        for update of c skip locked
    loop
        if r.status = 'IN_PROGRESS' then
            insert into command_bus_audit (
                command_id, created_at, msg_id, worker_id, attempt, event_type, domain
            )
            values (r.command_id, v_now, r.msg_id, r.worker_id, r.attempts, 'LEASE_EXPIRED', p_domain);
            perform command_bus.count_moved(p_domain, r.batch_id, 'IN_PROGRESS', 'PENDING', 1);
        end if;
        v_msg_id := pgmq.send(v_queue, jsonb_build_object('command_id', r.command_id));
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
