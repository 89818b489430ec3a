-- Functions that the other files of the command bus share, and what holds for all of them.
--
-- One file for each thing that happens:
--   send             a command is sent; a delayed one enters the queue when it is due
--   claim            a worker claims commands
--   cancelling       an operator asks to cancel what runs
--   parking          commands of types that a worker does not know wait for one that does
--   lanes            commands wait for their turn in a lane, and get it
--   pauses           a domain or a command type is paused and resumed
--   leases           a worker renews its leases, or gives commands back unused
--   settle           a worker records how attempts ended; replies are sent
--   handoff          what a handler sent and published goes with its success; the outbox
--   hooks            a domain's own function is told of changes
--   troubleshooting  a command enters or leaves the troubleshooting queue; groups of failures
--   operators        an operator retries, cancels or completes commands; require_domain
--   workers          a worker registers, sends heartbeats, is asked to stop
--   statistics       changes are counted; counts, rates and latencies are read
--   retention        finished commands are pruned
--   repair           an operator mends what others damaged; a domain is removed
--   states           the state table: legal steps, and the status after each event
--   invariants       everything is checked against the state table and a recount
--   shared           this file: domains, waking workers, histograms, counting a change of status
--
-- Conventions of all R__commandbus files:
-- * They are applied in the order of their names, each in a transaction of its own. PostgreSQL looks
--   up what a function of language sql calls when it creates it, what one of plpgsql calls only when
--   it runs. A file whose sql functions call later files sets check_function_bodies = off.
-- * Every function runs in the caller's transaction, takes a set, and decides by the rows it sees
--   after it locked them. Under READ COMMITTED each statement of a function sees what was
--   committed before that statement.
-- * One jsonb parameter carries a set; jsonb_to_recordset reads it.
-- * Lock order: message, waiting row or place in a lane, command, troubleshooting row, for commands
--   that are PENDING; of those IN_PROGRESS the command comes before its message, and the claim, which has the message
--   first, never waits for them (skip locked). Sets are sorted by command_id.
-- * Functions that join a set with the command table pin nested loops, and join by
--   command_bus.has_key (V009): the planner estimates a set-returning function at 100 or 1,000 rows
--   and would scan the whole table.
-- * row_security = off: where a policy would hide rows from the role, PostgreSQL refuses the statement
--   instead, since a row that is only hidden must not count as one that is not there.
-- * Of PGMQ only functions that 1.5.1 has are called; commandbus/obstacles.py names them all.
-- * SQLSTATEs of class QB are ours; commandbus/errors.py turns each into an exception.

-- 0, for the offset of a query that the library reads a table with, or PostgreSQL's own refusal where
-- row-level security would hide rows of it from the role. Null, for a table that is not there, is 0.
-- Raises 42501.
create or replace function command_bus.none_hidden(p_table regclass)
returns bigint
language plpgsql stable
set search_path = public, pg_temp
set row_security = off
as $$
begin
    if row_security_active(p_table) then
        raise insufficient_privilege using message = format(
            'query would be affected by row-level security policy for table "%s"', p_table);
    end if;
    return 0;
end;
$$;

-- The command queue of a domain. Raises QB001 for an unknown domain.
create or replace function command_bus.command_queue(p_domain text)
returns text
language plpgsql stable
set search_path = public, pg_temp
set row_security = off
as $$
declare
    v_queue text;
begin
    select command_queue into v_queue from command_bus_domain where domain = p_domain;
    if v_queue is null then
        perform command_bus.raise_refusal(command_bus.unknown_domain(p_domain));
    end if;
    return v_queue;
end;
$$;

-- The refusal of an unknown domain (R__commandbus_send.sql says what a refusal is).
create or replace function command_bus.unknown_domain(p_domain text)
returns jsonb
language sql immutable parallel safe
as $$
    select command_bus.refusal(
        'QB001', format('domain "%s" does not exist', p_domain),
        'Create it with CommandBus.create_domain.');
$$;

-- Create a domain with its two queues; a known one is left as it is.
-- Raises QB002 for a name that does not match ^[a-z][a-z0-9_]{0,39}$.
create or replace function command_bus.create_domain(p_domain text)
returns void
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
declare
    v_stem text := p_domain;
    v_queue text;
begin
    if p_domain is null or p_domain !~ '^[a-z][a-z0-9_]{0,39}$' then
        raise exception 'domain name % is not allowed: it must match ^[a-z][a-z0-9_]{0,39}$',
            coalesce(quote_literal(left(p_domain, 100)), 'null')
            using errcode = 'QB002';
    end if;
    perform pg_advisory_xact_lock(hashtextextended('command_bus.create_domain', 0));
    if exists (select from command_bus_domain where domain = p_domain) then
        return;
    end if;
    -- PGMQ allows 47 characters for a queue name; a longer one keeps its head and a checksum.
    if length(v_stem) > 37 then
        v_stem := left(v_stem, 28) || '_' || left(md5(p_domain), 8);
    end if;
    perform pgmq.create(v_stem || '__commands');
    perform pgmq.create(v_stem || '__replies');
    -- Dead rows gather at the head of a queue, where every read looks.
    for v_queue in values (v_stem || '__commands'), (v_stem || '__replies') loop
        execute format(
            'alter table pgmq.%I set (autovacuum_vacuum_scale_factor = 0,'
            ' autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0)',
            'q_' || v_queue
        );
    end loop;
    insert into command_bus_domain (domain, command_queue, reply_queue)
    values (p_domain, v_stem || '__commands', v_stem || '__replies');
end;
$$;

-- Wake the workers of a domain; told when the transaction commits.
create or replace function command_bus.wake_workers(p_domain text)
returns void
language sql
as $$
    select pg_notify('command_bus_' || p_domain, '');
$$;

-- Tell the workers of a domain that something is due in p_seconds, when the transaction commits. They
-- look once a second anyway, so only what is due sooner is worth it.
create or replace function command_bus.tell_due(p_domain text, p_seconds float8)
returns void
language sql
set search_path = public, pg_temp
set row_security = off
as $$
    select pg_notify('command_bus_' || p_domain, p_seconds::text) where p_seconds < 2;
$$;

-- Let messages become visible at a time; those that somebody has locked stay as they are. Returns
-- the others. PGMQ's set_vt waits for locks, and takes a set, or a time, only since 1.8 and 1.10.
create or replace function command_bus.show_messages(
    p_queue text, p_msg_ids bigint[], p_at timestamptz
)
returns setof bigint
language plpgsql
set search_path = public, pg_temp
set row_security = off
as $$
begin
    return query execute format(
        $query$
        update pgmq.%1$I set vt = $2
        where msg_id = any (array(
            select msg_id from pgmq.%1$I where msg_id = any ($1) order by msg_id
            for update skip locked
        ))
        returning msg_id
        $query$, 'q_' || p_queue
    ) using p_msg_ids, p_at;
end;
$$;

-- The histogram bucket of a duration: b stands for (1.03^(b-1), 1.03^b] microseconds, so that the
-- middle of a bucket is never further than 1.5 % from the true value.
create or replace function command_bus.bucket(p_microseconds bigint)
returns integer
language sql immutable parallel safe
as $$
    select case
        when p_microseconds <= 1 then 0
        else least(ceil(ln(p_microseconds::float8) / 0.0295588022415444), 999)::integer
    end;
$$;

-- The middle of a histogram bucket in milliseconds.
create or replace function command_bus.bucket_ms(p_bucket integer)
returns float8
language sql immutable parallel safe
as $$
    select case when p_bucket = 0 then 0.001 else power(1.03::float8, p_bucket - 1) * 1.015 / 1000 end;
$$;

-- The quantiles of one series of a histogram, in milliseconds; nulls where it is empty.
create or replace function command_bus.quantiles_ms(
    p_buckets integer[], p_counts integer[], p_series integer, p_fractions float8[]
)
returns float8[]
language sql immutable parallel safe
as $$
    with bucket as (
        select b - p_series * 1000 as b, sum(sum(n)) over (order by b) as upto, sum(n) as n
        from unnest(p_buckets, p_counts) as h (b, n)
        where b >= p_series * 1000 and b < p_series * 1000 + 1000
        group by b
    ),
    whole as (select sum(n) as n from bucket)
    select array_agg(
        (select command_bus.bucket_ms(b)
         from bucket where upto >= greatest(ceil(f.fraction * whole.n), 1)
         order by b limit 1)
        order by f.position)
    from unnest(p_fractions) with ordinality as f (fraction, position), whole;
$$;

-- Append a change of counters: p_n commands went from one status to another (null: did not exist).
create or replace function command_bus.count_moved(
    p_domain text, p_batch_id uuid, p_from command_bus.command_status,
    p_to command_bus.command_status, p_n integer
)
returns void
language sql
set search_path = public, pg_temp
set row_security = off
as $$
    insert into command_bus_delta (
        at, domain, batch_id, pending, in_progress, completed, failed, in_tsq, cancelled
    )
    select date_trunc('second', clock_timestamp()), p_domain, p_batch_id,
        p_n * ((p_to = 'PENDING')::int - coalesce((p_from = 'PENDING')::int, 0)),
        p_n * ((p_to = 'IN_PROGRESS')::int - coalesce((p_from = 'IN_PROGRESS')::int, 0)),
        p_n * ((p_to = 'COMPLETED')::int - coalesce((p_from = 'COMPLETED')::int, 0)),
        p_n * ((p_to = 'FAILED')::int - coalesce((p_from = 'FAILED')::int, 0)),
        p_n * ((p_to = 'IN_TSQ')::int - coalesce((p_from = 'IN_TSQ')::int, 0)),
        p_n * ((p_to = 'CANCELLED')::int - coalesce((p_from = 'CANCELLED')::int, 0));
$$;
