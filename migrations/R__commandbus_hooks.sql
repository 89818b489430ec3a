-- Transition hooks: a domain may name a function that is called for each set of commands whose status
-- has changed, in the same transaction: by claim, settle, release, and what operators do. What it
-- raises undoes the change, and is told apart from what the bus itself raises. It may send and publish; it locks rows of its own after the commands,
-- and in the order of command_id, in which it gets them. Sending a command is no change of one.

-- Let a function be told the changes of a domain's commands; null: none. It takes (text,
-- command_bus.transition[]): the domain, and the commands with event, statuses and result.
-- Raises QB001 for an unknown domain, 22023 where there is no such function.
create or replace function command_bus.set_transition_hook(p_domain text, p_function text)
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
declare
    v_function regprocedure;
begin
    perform command_bus.require_domain(p_domain);
    begin
        v_function := to_regprocedure(p_function || '(text, command_bus.transition[])');
    exception when syntax_error or invalid_name or undefined_object or name_too_long then
        null;  -- it is no name
    end;
    if p_function is not null and v_function is null then
        raise invalid_parameter_value using message = format(
            'there is no function %s(text, command_bus.transition[])', p_function);
    end if;
    update command_bus_domain
    set transition_hook = (
        select format('%I.%I', n.nspname, p.proname)
        from pg_proc as p join pg_namespace as n on n.oid = p.pronamespace
        where p.oid = v_function
    )
    where domain = p_domain;
end;
$$;

-- Tell the hook of a domain, where it has one, of locked commands that have just changed. Without
-- p_event it is what their new status says of an attempt that failed. Raises QH001 for whatever the
-- hook raises, also where it is not there any more; faults that pass are raised as they are.
create or replace function command_bus.tell_hook(
    p_domain text, p_ids uuid[], p_event command_bus.audit_event,
    p_from command_bus.command_status
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
declare
    v_hook text;
    v_transitions command_bus.transition[];
begin
    select d.transition_hook into v_hook from command_bus_domain as d where d.domain = p_domain;
    if v_hook is null then
        return;
    end if;
    select array_agg(
        row(c.command_id, coalesce(p_event, case c.status
                when 'PENDING' then 'RETRY_SCHEDULED'
                when 'IN_TSQ' then 'MOVED_TO_TSQ'
                else 'FAILED' end::command_bus.audit_event),
            p_from, c.status, c.result)::command_bus.transition
        order by c.command_id)
    into v_transitions
    from unnest(p_ids) as id
    join command_bus_command as c on command_bus.has_key(c.command_id, c.domain, id, p_domain);
    if v_transitions is not null then
        begin
            execute format('select %s($1, $2)', v_hook) using p_domain, v_transitions;
        exception when others then
            if left(sqlstate, 2) in ('08', '25', '40', '53', '55', '57', '58', 'XX') then
                raise;
            end if;
            -- Else an unknown domain or a bad value would seem to be the command's. It is none of the
            -- class QB, which stands for what the bus refuses.
            raise exception 'the transition hook % of domain "%" has failed: %', v_hook, p_domain, sqlerrm
                using errcode = 'QH001', detail = 'SQLSTATE ' || sqlstate;
        end;
    end if;
end;
$$;
