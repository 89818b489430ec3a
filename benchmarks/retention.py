"""Sizes of tables and queue while commands come at a steady rate and are pruned on schedule.

`python -m benchmarks.retention --seconds 120`: real worker processes process test commands at the
given rate and prune by the RETENTION_ settings, in a database of its own on the server of
DATABASE_URL (else the embedded one). Prints the sizes over time and whether they stayed bounded,
and writes JSON. `--no-pruning` and `--default-vacuum` show what pruning and the migrations' vacuum
settings are good for.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import AsyncConnection, sql
from rich.console import Console
from rich.table import Table

from app import store
from app.config import PROJECT_ROOT, Settings
from app.database import Database, open_database
from app.database.urls import with_database
from app.logs import configure_logging
from app.processes import WorkerProcesses
from app.retention import APPLICATION_NAME
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


@dataclasses.dataclass(frozen=True)
class Options:
    """What is measured."""

    seconds: int
    rate: int
    workers: int
    keep_seconds: float
    prune_every: float
    sample_every: float
    pruning: bool
    default_vacuum: bool


async def send_steadily(url: str, options: Options, sent: list[int]) -> None:
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
    """Sizes in bytes with indexes and TOAST, dead rows, counts, and the last seconds' rate."""
    sizes = {}
    for name, table in TABLES.items():
        cur = await conn.execute(
            "select pg_total_relation_size(%(table)s::regclass), n_dead_tup, autovacuum_count"
            " from pg_stat_all_tables where relid = %(table)s::regclass",
            {"table": table},
        )
        size, dead, vacuums = await cur.fetchone() or (0, 0, 0)
        sizes[name] = {"bytes": size, "dead_rows": dead, "vacuums": vacuums}
    cur = await conn.execute("select * from command_bus.count_by_status()")
    pending, in_progress, completed, *_ = await cur.fetchone() or ()
    cur = await conn.execute(
        "select processed / 5.0, total_ms from command_bus.throughput(null, 5)"
    )
    rate, total_ms = await cur.fetchone() or (0, [None] * 3)
    return {
        "pending": pending,
        "in_progress": in_progress,
        "completed": completed,
        "processed_per_second": float(rate),
        "total_p50_ms": total_ms[0],
        "total_p99_ms": total_ms[2],
        "tables": sizes,
    }


async def measure(database: Database, options: Options, console: Console) -> dict[str, Any]:
    """Run the load; returns the samples and what is left at the end."""
    if options.default_vacuum:
        await reset_vacuum(database.url)
    os.environ.update(
        RETENTION_COMPLETED_DAYS=str(options.keep_seconds / 86_400 if options.pruning else 0),
        RETENTION_HISTORY_DAYS=str(options.keep_seconds / 86_400 if options.pruning else 0),
        RETENTION_INTERVAL_SECONDS=str(options.prune_every),
    )
    settings = dataclasses.replace(
        Settings.from_env(), database_url=database.url, log_level="WARNING"
    )
    processes = WorkerProcesses(settings)
    for _ in range(options.workers):
        processes.start(flags={"concurrency": 100, "batch-size": 100})
    samples: list[dict[str, Any]] = []
    sent = [0]
    try:
        async with await AsyncConnection.connect(database.url, autocommit=True) as conn:
            sending = asyncio.create_task(send_steadily(database.url, options, sent))
            began = time.monotonic()
            while not sending.done():
                await asyncio.wait([sending], timeout=options.sample_every)
                samples.append(
                    {"seconds": round(time.monotonic() - began, 1), **await sample(conn)}
                )
                console.print(_line(samples[-1]))
            sending.result()
            drained_by = time.monotonic() + DRAIN_SECONDS
            while (last := await sample(conn))["pending"] + last["in_progress"]:
                if time.monotonic() > drained_by:
                    break
                await asyncio.sleep(0.2)
            cur = await conn.execute("select count(*) from command_bus.find_violations()")
            [violations] = await cur.fetchone() or (None,)
            cur = await conn.execute(
                "select count(*) from pg_stat_activity where application_name = %s"
                " and datname = current_database()",
                (APPLICATION_NAME,),
            )
            [pruners] = await cur.fetchone() or (0,)
    finally:
        processes.stop()
    return {
        "sent": sent[0],
        "left_open": last["pending"] + last["in_progress"],
        "violations": violations,
        "pruning_sessions": pruners,
        "samples": samples,
    }


async def reset_vacuum(url: str) -> None:
    """Take the vacuum settings away that the migrations set."""
    async with await AsyncConnection.connect(url, autocommit=True) as conn:
        cur = await conn.execute(
            "select c.oid::regclass::text, split_part(o, '=', 1) from pg_class as c,"
            " unnest(c.reloptions) as o where c.relkind = 'r' and o like 'autovacuum%'"
        )
        for table, name in await cur.fetchall():
            await conn.execute(f"alter table {table} reset ({name})".encode())


def growth(samples: list[dict[str, Any]]) -> dict[str, float]:
    """For each table its largest size in the last third, in times that of the second third."""
    third = len(samples) // 3
    ratios = {}
    for name in TABLES:
        sizes = [each["tables"][name]["bytes"] for each in samples]
        ratios[name] = round(max(sizes[2 * third :]) / max(sizes[third : 2 * third]), 2)
    return ratios


def _line(sample: dict[str, Any]) -> str:
    sizes = "  ".join(f"{name} {sample['tables'][name]['bytes'] / 1e6:.1f}" for name in TABLES)
    return (
        f"{sample['seconds']:6.1f} s  {sample['processed_per_second']:6.0f}/s"
        f"  open {sample['pending'] + sample['in_progress']:5d}  completed {sample['completed']:7d}"
        f"  MB: {sizes}"
    )


def _report(result: dict[str, Any], console: Console) -> None:
    table = Table("Table", "Largest, MB", "At the end, MB", "Vacuums", "Last third / second third")
    for name, ratio in result["growth"].items():
        seen = [each["tables"][name] for each in result["samples"]]
        table.add_row(
            name,
            f"{max(each['bytes'] for each in seen) / 1e6:.1f}",
            f"{seen[-1]['bytes'] / 1e6:.1f}",
            str(seen[-1]["vacuums"]),
            str(ratio),
        )
    console.print(table)
    console.print(
        f"{result['sent']:,} commands sent, {result['left_open']:,} left open,"
        f" {result['violations']} violations; bounded: {'yes' if result['bounded'] else 'NO'}"
    )


def _git_revision() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _server(url: str) -> dict[str, str]:
    names = (
        "server_version", "shared_buffers", "fsync", "synchronous_commit", "autovacuum_naptime",
        "autovacuum_max_workers",
    )  # fmt: skip
    with psycopg.connect(url) as conn:
        return {
            name: str((conn.execute("select current_setting(%s)", (name,)).fetchone() or "?")[0])
            for name in names
        }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retention", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="how long to send (default: 60)")
    parser.add_argument("--rate", type=int, default=2_000, help="commands a second (default: 2000)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default: 2)")
    parser.add_argument(
        "--keep-seconds", type=float, default=10, help="age at which commands go (default: 10)"
    )
    parser.add_argument(
        "--prune-every", type=float, default=2, help="seconds between looks (default: 2)"
    )
    parser.add_argument(
        "--sample-every", type=float, default=5, help="seconds between samples (default: 5)"
    )
    parser.add_argument("--no-pruning", dest="pruning", action="store_false", help="keep all")
    parser.add_argument(
        "--default-vacuum", action="store_true", help="without the migrations' vacuum settings"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    return parser


def main() -> int:
    """Measure, print and write; 1 where a table did not stay bounded or a command was lost."""
    given = vars(_parser().parse_args())
    file: Path | None = given.pop("json")
    options = Options(**given)
    console = Console(highlight=False, soft_wrap=True)
    settings = Settings.from_env()
    configure_logging(settings.log_format, "WARNING")
    with open_database(settings) as server:
        name = f"bench_retention_{uuid4().hex[:8]}"
        url = with_database(server.url, name)
        try:
            with open_database(dataclasses.replace(settings, database_url=url)) as database:
                about = {
                    "benchmark": "retention",
                    "at": datetime.now(UTC).isoformat(timespec="seconds"),
                    "revision": _git_revision(),
                    "settings": dataclasses.asdict(options),
                    "server": _server(database.url),
                    "python": platform.python_version(),
                    "cpus": os.cpu_count(),
                }
                console.print_json(data=about)
                result = {**about, **asyncio.run(measure(database, options, console))}
        finally:
            with psycopg.connect(server.url, autocommit=True) as conn:
                conn.execute(
                    sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
                )
    result["growth"] = growth(result["samples"])
    result["bounded"] = all(ratio <= BOUND for ratio in result["growth"].values())
    _report(result, console)
    if file is not None:
        file.write_text(json.dumps(result, indent=2) + "\n")
    lost = result["left_open"] or result["violations"]
    return 1 if lost or (options.pruning and not result["bounded"]) else 0


if __name__ == "__main__":
    sys.exit(main())
