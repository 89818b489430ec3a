"""Sizes of tables and queue while commands come at a steady rate and are pruned on schedule.

Real worker processes process test commands at the given rate and prune by the RETENTION_ settings.
The values of each figure are its course over time. Exits with an error where a table did not stay
bounded or a command was lost. `--no-pruning` and `--default-vacuum` show what pruning and the
vacuum settings of the migrations are good for.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
import time
from typing import Any

import psycopg
from psycopg import AsyncConnection

from app.processes import WorkerProcesses
from app.settings.configuration import Settings
from app.testcommand import store
from benchmarks.harness import Bench, console, run
from commandbus import uuid7

TABLES = {
    "commands": "command_bus_command",
    "audit": "command_bus_audit",
    "test commands": "test_command",
    "queue": "pgmq.q_test__commands",
    "deltas": "command_bus_delta",
    "statistics": "command_bus_second",
}
TICK_SECONDS = 0.05
DRAIN_SECONDS = 60
# A table is bounded when its largest size in the last third of the run is at most so many times
# the largest one in the second third; one that grows without end comes to 1.5.
BOUND = 1.2
# Tables below this size, in MB, are not judged: they are vacuumed too seldom to tell.
SMALL = 5.0

problems: list[str] = []


async def send_steadily(url: str, options: argparse.Namespace, sent: list[int]) -> None:
    """Send *rate* test commands a second, evenly; what cannot be sent in time is sent late."""
    async with await AsyncConnection.connect(url, autocommit=True) as conn:
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < options.seconds:
            due = int(elapsed * options.rate) - sent[0]
            if due > 0:
                rows = [
                    {
                        "command_id": str(uuid7()),
                        "command_type": "TestCommand",
                        "data": {"n": n},
                        "behavior": {"type": "success"},
                    }
                    for n in range(min(due, 1_000))
                ]
                sent[0] += await store.create_and_send_test_commands(
                    conn, "test", json.dumps(rows), None
                )
            await asyncio.sleep(TICK_SECONDS)


async def sample(conn: AsyncConnection[Any]) -> dict[str, Any]:
    """Sizes with indexes and TOAST, counts, and the latencies of the last seconds."""
    sizes = {}
    for name, table in TABLES.items():
        cur = await conn.execute(
            "select pg_total_relation_size(%(table)s::regclass), autovacuum_count"
            " from pg_stat_all_tables where relid = %(table)s::regclass",
            {"table": table},
        )
        size, vacuums = await cur.fetchone() or (0, 0)
        sizes[name] = {"bytes": size, "vacuums": vacuums}
    cur = await conn.execute("select * from command_bus.count_by_status()")
    pending, in_progress, completed, *_ = await cur.fetchone() or ()
    cur = await conn.execute("select total_ms from command_bus.throughput(null, 5)")
    [total_ms] = await cur.fetchone() or ([None] * 3,)
    return {
        "open": pending + in_progress,
        "completed": completed,
        "total_p50_ms": total_ms[0],
        "total_p99_ms": total_ms[2],
        "tables": sizes,
    }


async def load(url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Send, process and prune; returns the samples and what is left at the end."""
    if options.default_vacuum:
        await reset_vacuum(url)
    days = str(options.keep_seconds / 86_400 if options.pruning else 0)
    os.environ.update(
        RETENTION_COMPLETED_DAYS=days,
        RETENTION_HISTORY_DAYS=days,
        RETENTION_INTERVAL_SECONDS=str(options.prune_every),
    )
    settings = dataclasses.replace(Settings.from_env(), database_url=url, log_level="WARNING")
    processes = WorkerProcesses(settings)
    for _ in range(options.workers):
        processes.start(flags={"concurrency": 100, "batch-size": 100})
    samples: list[dict[str, Any]] = []
    sent = [0]
    try:
        async with await AsyncConnection.connect(url, autocommit=True) as conn:
            sending = asyncio.create_task(send_steadily(url, options, sent))
            began = time.monotonic()
            while not sending.done():
                await asyncio.wait([sending], timeout=options.seconds / options.samples)
                samples.append(
                    {"seconds": round(time.monotonic() - began, 1), **await sample(conn)}
                )
                console.print(_line(samples[-1]), soft_wrap=True)
            sending.result()
            for _ in range(DRAIN_SECONDS * 5):
                last = await sample(conn)
                if not last["open"]:
                    break
                await asyncio.sleep(0.2)
            cur = await conn.execute("select count(*) from command_bus.find_violations()")
            [violations] = await cur.fetchone() or (None,)
    finally:
        processes.stop()
    return {"sent": sent[0], "lost": last["open"], "violations": violations, "samples": samples}


async def reset_vacuum(url: str) -> None:
    """Take the vacuum settings away that the migrations set."""
    async with await AsyncConnection.connect(url, autocommit=True) as conn:
        cur = await conn.execute(
            "select c.oid::regclass::text, split_part(o, '=', 1) from pg_class as c,"
            " unnest(c.reloptions) as o where c.relkind = 'r' and o like 'autovacuum%'"
        )
        for table, name in await cur.fetchall():
            await conn.execute(f"alter table {table} reset ({name})".encode())


def growth(sizes: list[float]) -> float:
    """The largest size in the last third, in times the largest one in the second third."""
    third = len(sizes) // 3
    return max(sizes[2 * third :]) / max(sizes[third : 2 * third])


def measure(bench: Bench) -> None:
    """Load the bus for a while, and record what became of the tables."""
    url = bench.database()
    with psycopg.connect(url) as conn:
        [naptime] = conn.execute("select current_setting('autovacuum_naptime')").fetchone() or ("",)
    result = asyncio.run(load(url, bench.options))
    samples = result["samples"]
    bench.record("sampled after", "s", [each["seconds"] for each in samples])
    bench.record("commands sent", "1/s", [result["sent"] / samples[-1]["seconds"]])
    for name in ("open", "completed", "total_p50_ms", "total_p99_ms"):
        unit = "ms" if name.endswith("ms") else "commands"
        bench.record(name.replace("_", " "), unit, [each[name] or 0 for each in samples])
    unbounded = []
    for name in TABLES:
        sizes = [each["tables"][name]["bytes"] / 1e6 for each in samples]
        bench.record(name, "MB", sizes, f"{samples[-1]['tables'][name]['vacuums']} vacuums")
        bench.record(f"{name}, last third", "of second third", [growth(sizes)])
        if growth(sizes) > BOUND and sizes[-1] > SMALL:
            unbounded.append(name)
    bench.record("left open", "commands", [result["lost"]])
    bench.record("violations of invariants", "", [result["violations"]], f"naptime {naptime}")
    if unbounded and bench.options.pruning:
        problems.append(f"did not stay bounded: {', '.join(unbounded)}")
    if result["lost"] or result["violations"]:
        problems.append("commands were lost, or the books do not balance")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be chosen."""
    parser.add_argument("--seconds", type=int, default=60, help="how long to send (default: 60)")
    parser.add_argument("--rate", type=int, default=2_000, help="commands a second (default: 2000)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default: 2)")
    parser.add_argument(
        "--keep-seconds", type=float, default=10, help="age at which commands go (default: 10)"
    )
    parser.add_argument(
        "--prune-every", type=float, default=2, help="seconds between looks (default: 2)"
    )
    parser.add_argument("--samples", type=int, default=24, help="over the run (default: 24)")
    parser.add_argument("--no-pruning", dest="pruning", action="store_false", help="keep all")
    parser.add_argument(
        "--default-vacuum", action="store_true", help="without the migrations' vacuum settings"
    )


def _line(sample: dict[str, Any]) -> str:
    sizes = "  ".join(f"{name} {sample['tables'][name]['bytes'] / 1e6:.1f}" for name in TABLES)
    return (
        f"{sample['seconds']:6.1f} s  open {sample['open']:5d}"
        f"  completed {sample['completed']:7d}  MB: {sizes}"
    )


if __name__ == "__main__":
    run("retention", __doc__ or "", measure, add_options, runs=1)
    for problem in problems:
        console.print(problem)
    sys.exit(1 if problems else 0)
