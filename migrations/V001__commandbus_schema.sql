-- The tables of the command bus.
--
-- Every change of state goes through one function of schema command_bus (the R__ files), so the
-- tables hold no triggers. What decides their shape:
--
-- * No index on command_bus_command touches a column that changes, so that each update stays a
--   heap-only update. What is rare and worth listing (troubleshooting queue, failed, cancelled)
--   has a small table of its own; counts live in counters.
-- * What waits for its time (retry backoff, scheduled sends, an undo window) stands in
--   command_bus_waiting and not in the queue, because pgmq.read walks past every message whose
--   time has not come.
-- * Counters and histograms are appended as deltas in the transaction that causes them and folded
--   later, so that no transaction ever waits for a counter, and every count is exact at any moment
--   (folded + not yet folded).
-- * There are no foreign keys between the large tables: the functions are the only writers, and a
--   check for each row would cost more than the row.

create schema command_bus;

create type command_bus.command_status as enum (
    'PENDING', 'IN_PROGRESS', 'COMPLETED', 'FAILED', 'IN_TSQ', 'CANCELLED'
);

create type command_bus.audit_event as enum (
    'SENT', 'RECEIVED', 'COMPLETED', 'FAILED', 'RETRY_SCHEDULED', 'RETRY_EXHAUSTED', 'MOVED_TO_TSQ',
    'OPERATOR_RETRY', 'OPERATOR_RETRY_UNDONE', 'OPERATOR_CANCEL', 'OPERATOR_COMPLETE',
    'LEASE_EXPIRED', 'LATE_RESULT', 'RELEASED', 'REPLY_FAILED'
);

create table command_bus_domain (
    domain text primary key
        constraint domain_name_is_plain check (domain ~ '^[a-z][a-z0-9_]{0,39}$'),
    command_queue text not null unique,
    reply_queue text not null unique,
    created_at timestamptz not null default now()
);

-- One row for each command, for ever (until it is pruned).
-- (msg_id, claim_no) is the token of an attempt: claim_no counts claims and never decreases, while
-- attempts is what is shown and compared with the budget, and is lowered again by a release.
-- settled_claim is the claim whose outcome was recorded last: a worker that settles again because
-- the connection broke before the answer is told "recorded" instead of "late".
-- lease_until only serves display and suspicion; the lease itself is the message's visibility time.
create table command_bus_command (
    command_id uuid not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    started_at timestamptz,
    finished_at timestamptz,
    lease_until timestamptz,
    msg_id bigint,
    worker_id bigint,
    claim_no integer not null default 0,
    settled_claim integer not null default 0,
    attempts integer not null default 0,
    max_attempts integer constraint max_attempts_is_positive check (max_attempts >= 1),
    status command_bus.command_status not null default 'PENDING',
    batch_id uuid,
    correlation_id uuid,
    domain text not null,
    command_type text not null
        constraint command_type_is_named check (length(command_type) between 1 and 200),
    reply_to text,
    data jsonb not null,
    result jsonb,
    last_error_type text,
    last_error_code text,
    last_error_message text,
    primary key (command_id, domain)
) with (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 10000,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_insert_scale_factor = 0.05
);

create index command_newest_first on command_bus_command (created_at desc, command_id desc);
create index command_of_conversation on command_bus_command (correlation_id)
    where correlation_id is not null;

create table command_bus_audit (
    audit_id bigint generated always as identity primary key,
    command_id uuid not null,
    created_at timestamptz not null,
    msg_id bigint,
    worker_id bigint,
    attempt integer,
    event_type command_bus.audit_event not null,
    domain text not null,
    details jsonb
) with (
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05
);

create index audit_of_command on command_bus_audit (command_id);
create index audit_by_time on command_bus_audit using brin (created_at) with (pages_per_range = 32);

-- What is not due yet. The claim function moves what is due into the queue.
create table command_bus_waiting (
    command_id uuid not null,
    domain text not null,
    due_at timestamptz not null,
    kind text not null
        constraint waiting_kind_is_known check (kind in ('SCHEDULED', 'RETRY', 'OPERATOR_RETRY')),
    before_retry jsonb,  -- for OPERATOR_RETRY: the row of command_bus_tsq and the attempts, for undo
    primary key (command_id, domain)
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000);

create index waiting_by_due_time on command_bus_waiting (domain, due_at);

-- What an operator has to look at.
create table command_bus_tsq (
    command_id uuid not null,
    entered_at timestamptz not null,
    created_at timestamptz not null,
    first_failed_at timestamptz not null,
    last_failed_at timestamptz not null,
    group_id uuid not null,
    batch_id uuid,
    correlation_id uuid,
    attempts integer not null,
    domain text not null,
    command_type text not null,
    error_type text not null,
    error_code text not null,
    error_message text not null,
    primary key (command_id, domain)
);

create index tsq_newest_first on command_bus_tsq (entered_at desc, command_id desc);
create index tsq_by_creation on command_bus_tsq (created_at desc, command_id desc);
create index tsq_by_group on command_bus_tsq (group_id, entered_at desc);
create index tsq_by_error_code on command_bus_tsq (error_code, entered_at desc);

-- Failures that look alike: same domain, error code and message without its variable parts.
create table command_bus_tsq_group (
    group_id uuid primary key,
    domain text not null,
    error_type text not null,
    error_code text not null,
    message text not null,
    in_tsq bigint not null default 0,
    entered bigint not null default 0,
    first_seen_at timestamptz not null,
    last_seen_at timestamptz not null
);

create table command_bus_tsq_trend (
    group_id uuid not null,
    hour timestamptz not null,
    entered bigint not null,
    primary key (group_id, hour)
);

create table command_bus_tsq_delta (
    group_id uuid not null,
    at timestamptz not null,
    in_tsq integer not null,
    entered integer not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- Ends that are neither success nor open, so that lists of them need no index on the status.
create table command_bus_unsuccessful (
    command_id uuid not null,
    created_at timestamptz not null,
    ended_at timestamptz not null,
    status command_bus.command_status not null
        constraint unsuccessful_is_final check (status in ('FAILED', 'CANCELLED')),
    domain text not null,
    command_type text not null,
    error_code text,
    primary key (command_id, domain)
);

create index unsuccessful_newest_first
    on command_bus_unsuccessful (status, created_at desc, command_id desc);
create index unsuccessful_by_error_code on command_bus_unsuccessful (error_code, created_at desc);

-- Commands that may have killed their worker: each is run alone before anything else claims it.
create table command_bus_suspect (
    command_id uuid not null,
    domain text not null,
    parked_at timestamptz not null,
    from_worker_id bigint,
    reserved_by bigint,
    primary key (command_id, domain)
);

-- Messages that no command explains.
create table command_bus_rejected (
    rejected_id bigint generated always as identity primary key,
    domain text not null,
    queue text not null,
    msg_id bigint not null,
    command_id uuid,
    reason text not null,
    message text,
    rejected_at timestamptz not null
);

create table command_bus_worker (
    worker_id bigint generated always as identity primary key,
    domain text not null,
    host text not null,
    pid integer not null,
    version text not null,
    concurrency integer not null,
    settings jsonb not null default '{}',
    running jsonb not null default '[]',
    running_count integer not null default 0,
    rate_per_second real not null default 0,
    started_at timestamptz not null,
    heartbeat_at timestamptz not null,
    heartbeat_seconds real not null,
    stop_requested_at timestamptz,
    stop_requested_by text,
    stopped_at timestamptz,
    completed bigint not null default 0,
    failed bigint not null default 0,
    retried bigint not null default 0,
    moved_to_tsq bigint not null default 0
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Appended by every change, folded into the three tables below it.
-- hist_bucket holds series * 1000 + bucket (series 0 waiting, 1 running, 2 total); bucket b stands
-- for durations in microseconds of (1.03^(b-1), 1.03^b].
create table command_bus_delta (
    at timestamptz not null,
    domain text not null,
    batch_id uuid,
    pending integer not null default 0,
    in_progress integer not null default 0,
    completed integer not null default 0,
    failed integer not null default 0,
    in_tsq integer not null default 0,
    cancelled integer not null default 0,
    sent integer not null default 0,
    processed integer not null default 0,
    retried integer not null default 0,
    wait_us bigint not null default 0,
    run_us bigint not null default 0,
    hist_bucket integer[],
    hist_count integer[]
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

create table command_bus_counter (
    domain text primary key,
    pending bigint not null default 0,
    in_progress bigint not null default 0,
    completed bigint not null default 0,
    failed bigint not null default 0,
    in_tsq bigint not null default 0,
    cancelled bigint not null default 0
) with (fillfactor = 50);

create table command_bus_second (
    at timestamptz not null,
    domain text not null,
    sent bigint not null default 0,
    processed bigint not null default 0,
    completed bigint not null default 0,
    retried bigint not null default 0,
    wait_us bigint not null default 0,
    run_us bigint not null default 0,
    hist_bucket integer[] not null default '{}',
    hist_count integer[] not null default '{}',
    primary key (at, domain)
) with (fillfactor = 50);

create table command_bus_batch (
    batch_id uuid primary key,
    domain text not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    first_processed_at timestamptz,
    last_processed_at timestamptz,
    pending bigint not null default 0,
    in_progress bigint not null default 0,
    completed bigint not null default 0,
    failed bigint not null default 0,
    in_tsq bigint not null default 0,
    cancelled bigint not null default 0,
    sent bigint not null default 0,
    processed bigint not null default 0,
    retried bigint not null default 0,
    wait_us bigint not null default 0,
    run_us bigint not null default 0,
    hist_bucket integer[] not null default '{}',
    hist_count integer[] not null default '{}'
) with (fillfactor = 50);
