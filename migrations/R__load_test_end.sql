-- When a load-test run was over, or would be if nothing more came: the moment at which the last of
-- its commands ended, and not before it was generated.
--
-- The counters know whole seconds. The rows of the commands know better, but there is no index on
-- the batch: they are found by when they were created, which is quick for runs that are not large
-- (p_exact_limit). What operators did with its commands later is no part of the run. A run that is
-- told of while it lasts, and when it has ended, is told of by this one clock.
create or replace function load_test_ended_at(
    p_run_id uuid, p_began_at timestamptz, p_generated_at timestamptz, p_sent bigint,
    p_last_processed_at timestamptz, p_exact_limit integer
)
returns timestamptz
language sql volatile
set search_path = public, pg_temp
set row_security = off
as $$
    select least(
        greatest(
            least(
                (
                    select max(c.updated_at)
                    from command_bus_command as c
                    where c.batch_id = p_run_id and p_sent <= p_exact_limit
                        and c.created_at between p_began_at
                            and coalesce(p_generated_at, clock_timestamp()) + interval '1 minute'
                ),
                p_last_processed_at + interval '1 second'
            ),
            p_generated_at
        ),
        clock_timestamp()
    );
$$;
