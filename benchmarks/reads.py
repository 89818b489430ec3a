"""How long each page and each endpoint takes at the server, with many commands in the database."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import psycopg
from flask import Flask
from flask.testing import FlaskClient

from app import create_app, models
from benchmarks import filling, harness

BUDGET_MS = 50
WARM_UP = 2


def measure(bench: harness.Bench) -> None:
    """The 95th percentile of each address, and how many are within the budget."""
    url, options = bench.database(), bench.options
    began = time.monotonic()
    filling.finish(url, options.commands, tests=True)
    filling.send_tests(url, options.troubled)
    filling.work_off(url, "permanent")
    filling.send_tests(url, options.pending)
    filling.fold(url)
    harness.console.print(f"filled in {time.monotonic() - began:.0f} s")
    # Rate limits and the like are for people; what is measured is what a request costs.
    app = create_app({"database_url": url, "secret_key": "benchmark", "log_level": "ERROR"})
    over = []
    try:
        client = app.test_client()
        for path in addresses(app, url):
            figure = bench.record(
                path, "ms p95", time_requests(client, path, options.requests, bench.runs)
            )
            if figure.median > BUDGET_MS:
                over.append(path)
    finally:
        with app.app_context():
            models.db.engine.dispose()
        app.extensions["portal"].close()
    within = len(bench.figures) - len(over)
    bench.record(
        f"addresses within {BUDGET_MS} ms", f"of {len(bench.figures)}", [within], "; ".join(over)
    )


def time_requests(client: FlaskClient, path: str, requests: int, runs: int) -> list[float]:
    """The 95th percentile in milliseconds of each run of so many requests."""
    for _ in range(WARM_UP):
        answer = client.get(path)
        assert answer.status_code == 200, (path, answer.status_code)
    percentiles = []
    for _ in range(runs):
        times = []
        for _ in range(requests):
            began = time.perf_counter()
            client.get(path)
            times.append((time.perf_counter() - began) * 1000)
        percentiles.append(sorted(times)[int(0.95 * (len(times) - 1))])
    return percentiles


def addresses(app: Flask, url: str) -> Iterator[str]:
    """Every page and endpoint that only reads, with ids that exist, and the filters people use."""
    with psycopg.connect(url) as conn:
        troubled, group = conn.execute(
            "select command_id, group_id from command_bus_tsq order by entered_at limit 1"
        ).fetchone()
        [old] = conn.execute(
            "select command_id from command_bus_command order by created_at limit 1"
        ).fetchone()
        [run_id] = conn.execute("select run_id from load_test_run limit 1").fetchone()
        [between] = conn.execute(
            "select to_timestamp(avg(extract(epoch from e))) from"
            " (select min(created_at), max(created_at) from command_bus_command) as ends,"
            " unnest(array[min, max]) as e"
        ).fetchone()
    half = between.isoformat().replace("+00:00", "Z")
    skipped = (
        "/api/v1/tsq/jobs/",
        "/troubleshooting/actions/",
        "/api/v1/workers/",
    )
    for rule in sorted(app.url_map.iter_rules(), key=str):
        if "GET" not in rule.methods or rule.endpoint.startswith(("static", "web.login")):
            continue
        path = str(rule.rule)
        if (
            path.startswith(skipped)
            or "<text>" in path
            or "filename" in path
            or path in SLOW_ON_PURPOSE
        ):
            continue
        for kind in ("uuid", "command_id"):
            path = path.replace(f"<{kind}:command_id>", str(troubled))
            path = path.replace(f"<{kind}:run_id>", str(run_id))
        if "<" not in path and app.test_client().get(path).status_code == 200:
            yield path
    yield from (
        f"/commands/{old}",
        f"/audit/{old}",
        "/commands?status=COMPLETED",
        "/commands?status=PENDING",
        "/commands?status=IN_TSQ",
        "/commands?status=FAILED",
        "/commands?q=CODE_3",
        f"/commands?q={str(old)[:8]}",
        "/troubleshooting?view=groups",
        "/troubleshooting?view=actions",
        "/troubleshooting?view=rejected",
        "/troubleshooting?error_code=CODE_3",
        f"/troubleshooting?group_id={group}",
        "/troubleshooting?q=system",
        "/audit?event_type=MOVED_TO_TSQ",
        "/audit?event_type=OPERATOR_RETRY",
        "/?partial=dashboard_counts",
        "/?partial=dashboard_activity",
        "/api/v1/commands?status=COMPLETED&limit=100",
        "/api/v1/commands?status=FAILED",
        f"/api/v1/commands?created_before={half}&limit=100",
        "/api/v1/commands?offset=9000&limit=100",
        "/api/v1/tsq?limit=100",
        "/api/v1/tsq?q=system",
        "/api/v1/tsq?error_code=CODE_3&offset=9000",
        "/api/v1/audit?event_type=COMPLETED&limit=100",
        "/api/v1/audit?event_type=OPERATOR_CANCEL",
        "/api/v1/stats/throughput?window_seconds=3600",
        "/api/v1/stats/history?window_seconds=3600&step_seconds=5",
    )


# A recount of every row, which says so and is asked for by hand.
SLOW_ON_PURPOSE = {"/api/v1/invariants"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """How large the database is."""
    parser.add_argument(
        "--commands", type=int, default=1_000_000, help="finished (default: 1,000,000)"
    )
    parser.add_argument(
        "--troubled", type=int, default=100_000, help="in the TSQ (default: 100,000)"
    )
    parser.add_argument("--pending", type=int, default=10_000, help="default: 10,000")
    parser.add_argument(
        "--requests", type=int, default=40, help="to each address in a run (default: 40)"
    )


if __name__ == "__main__":
    harness.run("reads", __doc__, measure, add_options)
