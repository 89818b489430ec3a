-- The application's own tables: what a test command shall do, and the stored configuration.

create table test_command (
    id serial primary key,
    command_id uuid not null constraint idx_test_command_command_id unique,
    payload jsonb not null default '{}',
    behavior jsonb not null,
    created_at timestamptz default now(),
    processed_at timestamptz,
    attempts integer default 0,
    result jsonb
) with (
    fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 10000
);
-- The specification's index idx_test_command_command_id is the one of the unique constraint.

-- One row holds the whole configuration; the version guards against lost updates.
create table app_config (
    only_row boolean primary key default true constraint there_is_one_configuration check (only_row),
    worker jsonb not null default '{}',
    retry jsonb not null default '{}',
    version integer not null default 1
);

insert into app_config default values;

create table app_config_history (
    version integer primary key,
    changed_at timestamptz not null default now(),
    changed_by text not null,
    worker jsonb not null,
    retry jsonb not null
);
