-- Lanes: commands with one key run in the order of sending, and groups of keys share what is free.
--
-- What waits in a lane stands in command_bus_lane and not in the queue; R__commandbus_lanes.sql says
-- how it gets there. A command without a lane touches none of these tables.

-- A table that somebody holds for long shall fail this migration, not stop the bus behind it.
set local lock_timeout = '5s';

alter table command_bus_command
    add column lane text collate "C",
    add column lane_seq bigint;
-- Not valid: what is there has no lane, and reading it all would hold up everybody.
alter table command_bus_command
    add constraint lane_is_named check (length(lane) between 1 and 200) not valid;

-- What places in lanes are made of.
create sequence command_bus_lane_number;

-- All texts here have the collation "C": a function that is called with one of them looks everything up
-- by it, and would not find its way through an index of another.

-- The commands that wait in their lanes.
create table command_bus_lane (
    domain text collate "C" not null,
    lane_group text collate "C" not null,
    lane text collate "C" not null,
    seq bigint not null,
    command_id uuid not null,
    entered_at timestamptz not null,
    primary key (domain, lane_group, lane, seq)
) with (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0
);

-- The commands that a lane has let go and that have not ended: in the queue, running, waiting for a
-- retry, parked, or (held) in the troubleshooting queue.
create table command_bus_lane_slot (
    domain text collate "C" not null,
    lane_group text collate "C" not null,
    held boolean not null default false,
    lane text collate "C" not null,
    seq bigint not null,
    command_id uuid not null,
    taken_at timestamptz not null,
    primary key (domain, lane_group, held, lane, seq)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- Lanes that may be able to go on. Only appended, so that nobody ever waits for anybody here.
create table command_bus_lane_ready (
    domain text collate "C" not null,
    lane_group text collate "C" not null,
    mark_id bigint generated always as identity,
    lane text collate "C" not null,
    primary key (domain, lane_group, mark_id)
) with (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0
);

-- Settings of a group of lanes. The group '*' stands for all that have none of their own.
create table command_bus_lane_group (
    domain text collate "C" not null,
    lane_group text collate "C" not null,
    max_in_flight integer
        constraint max_in_flight_is_not_negative check (max_in_flight >= 0),
    weight float8 not null
        constraint weight_is_in_range check (weight between 0.001 and 1000),
    lane_limit integer not null
        constraint lane_limit_is_in_range check (lane_limit between 1 and 10000),
    on_trouble text not null
        constraint on_trouble_is_known check (on_trouble in ('hold', 'skip')),
    changed_at timestamptz not null,
    changed_by text not null,
    primary key (domain, lane_group)
);

-- One row for each domain that ever had lanes, locked by whoever promotes: the virtual time, the
-- group that the last look ended at, and the messages promoted last that nobody had claimed.
create table command_bus_lane_clock (
    domain text collate "C" primary key,
    virtual_time float8 not null default 0,
    last_group text collate "C" not null default '',
    ahead bigint[] not null default '{}'
) with (
    fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500
);

-- The virtual time (served / weight) of groups that are ahead of the clock.
create table command_bus_lane_turn (
    domain text collate "C" not null,
    lane_group text collate "C" not null,
    virtual_time float8 not null,
    primary key (domain, lane_group)
) with (
    fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500
);

-- Appended by every change, folded into the two tables below it.
create table command_bus_lane_delta (
    at timestamptz not null,
    domain text collate "C" not null,
    lane_group text collate "C" not null,
    waiting integer not null,
    ended integer not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

-- Why: V010.
alter table command_bus_lane_delta replica identity full;

create table command_bus_lane_counter (
    domain text collate "C" not null,
    lane_group text collate "C" not null,
    waiting bigint not null,
    primary key (domain, lane_group)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);

-- How many slots became free in each ten seconds, for the last ten minutes.
create table command_bus_lane_rate (
    at timestamptz not null,
    domain text collate "C" not null,
    lane_group text collate "C" not null,
    ended bigint not null,
    primary key (at, domain, lane_group)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);

-- For lists of one lane. It holds nothing while it is built.
create index command_of_lane on command_bus_command (lane, created_at desc, command_id desc)
    where lane is not null;
