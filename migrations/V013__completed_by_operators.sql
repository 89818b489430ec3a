-- The commands that operators completed last, a few of them: their seconds are not counted as
-- processing, so the latest completions could not be found again behind many later events.
create table command_bus_completed_by_operator (
    command_id uuid not null,
    domain text not null,
    completed_at timestamptz not null,
    primary key (command_id, domain)
);
