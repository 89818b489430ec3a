-- What a domain did during a load-test run, as columns for a chart, in at most p_points steps (and a
-- begun one) of whole seconds. Latencies are in milliseconds, null where nothing was processed.
create or replace function load_test_series(
    p_domain text, p_from timestamptz, p_to timestamptz, p_points integer
)
returns jsonb
language sql stable
set search_path = public, pg_temp
set row_security = off
as $$
    select jsonb_build_object(
        'step_seconds', step.seconds,
        'at', jsonb_agg(round(extract(epoch from h.at))),
        'sent_per_second', jsonb_agg(round(h.sent::numeric / step.seconds, 1)),
        'processed_per_second', jsonb_agg(round(h.processed::numeric / step.seconds, 1)),
        'retried_per_second', jsonb_agg(round(h.retried::numeric / step.seconds, 1)),
        'run_p50_ms', jsonb_agg(h.run_ms[1]),
        'run_p95_ms', jsonb_agg(h.run_ms[2]),
        'total_p50_ms', jsonb_agg(h.total_ms[1]),
        'total_p95_ms', jsonb_agg(h.total_ms[2])
    )
    from (
        select greatest(ceil(extract(epoch from p_to - p_from) / p_points), 1)::integer as seconds
    ) as step,
    lateral command_bus.history(p_domain, p_from, p_to, step.seconds) as h
    group by step.seconds;
$$;
