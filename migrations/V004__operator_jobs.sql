-- What operators did on the pages: one row for each action, on one command or on thousands.
--
-- A small set is done within the request. A large one goes on in chunks: each chunk's actions and
-- the progress written here are one transaction, so whoever takes the job over after a crash goes
-- on exactly where it stood, and no command is counted twice.

create table operator_job (
    job_id uuid primary key,
    action text not null constraint job_action_is_known
        check (action in ('retry', 'cancel', 'complete')),
    operator text not null,
    arguments jsonb not null default '{}',
    -- Either the commands themselves, [[domain, command_id], ...], or the filter that finds them.
    chosen jsonb,
    filter jsonb,
    delay_seconds double precision not null default 0,
    expected integer not null,
    state text not null default 'running' constraint job_state_is_known
        check (state in ('running', 'finished', 'stopped')),
    created_at timestamptz not null default clock_timestamp(),
    finished_at timestamptz,
    undone_at timestamptz,
    undone_by text,
    -- Who works on it, and its sign of life; one that is silent for long has died.
    runner uuid,
    heartbeat_at timestamptz not null default clock_timestamp(),
    cursor text,
    done integer not null default 0,
    -- How many had changed meanwhile, by the status they had; NOT_FOUND for those that are gone.
    changed jsonb not null default '{}',
    skipped jsonb not null default '[]',  -- the first hundred of those
    constraint job_has_one_choice check (num_nonnulls(chosen, filter) = 1)
);

create index job_newest_first on operator_job (created_at desc, job_id desc);
create index job_not_finished on operator_job (heartbeat_at) where state = 'running';
