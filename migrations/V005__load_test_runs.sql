-- Load-test runs: what was ordered, how far its generation is, and what came of it.
--
-- The run's id is the batch_id of its commands, so progress and latencies come from the bus's own
-- counters. Only what those do not know is kept here; and the outcome, once the last command has
-- ended, so that runs can be compared for as long as anybody likes.

create table load_test_run (
    run_id uuid primary key,
    name text constraint run_name_is_short check (length(name) between 1 and 200),
    origin text not null constraint run_origin_is_known check (origin in ('cli', 'api', 'page')),
    started_by text not null default '',
    settings jsonb not null,
    versions jsonb not null,
    state text not null default 'generating' constraint run_state_is_known
        check (state in ('generating', 'running', 'finished', 'cancelled', 'failed')),
    created_at timestamptz not null default clock_timestamp(),
    -- The generator's sign of life; one that is silent for long has died.
    heartbeat_at timestamptz not null default clock_timestamp(),
    cancel_requested_at timestamptz,
    cancel_requested_by text,
    generated_count integer not null default 0,
    generation_ms integer not null default 0,
    queue_ms integer not null default 0,
    generated_at timestamptz,
    finished_at timestamptz,
    outcome jsonb,
    -- What its domain did while it ran, as columns: the bus keeps seconds only for a time.
    series jsonb
);

create index run_newest_first on load_test_run (created_at desc, run_id desc);
create index run_not_finished on load_test_run (created_at desc) where finished_at is null;
