"""Hours of steady work with a fault now and then: nothing grows, and nothing is lost.

The long form takes CHAOS_SOAK_HOURS (8). The work comes in cycles: at the end of each the bus is
empty, the checker compares it with the record, and what has ended is pruned. The samples are in
test-results/soak.csv.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable

import psycopg
from psycopg.rows import TupleRow

from tests.chaos import samples
from tests.chaos.checker import assert_clean
from tests.chaos.conftest import LONG, scaled
from tests.chaos.faults import Faults, Fleet, running
from tests.chaos.history import History
from tests.chaos.samples import Sample, assert_flat
from tests.chaos.scenes import Pool, all_ended, mixture, send_on_record
from tests.programs import ROOT

RATE = 200  # commands a second
CHUNK = 40
LEASE_SECONDS = 2
FAULT_SECONDS = scaled(6, 30)
CYCLE_SECONDS = scaled(20, 600)
CYCLES = int(float(os.environ.get("CHAOS_SOAK_HOURS", "8")) * 6) if LONG else 2
SAMPLE_SECONDS = scaled(1, 15)


async def test_nothing_grows_and_nothing_is_lost_in_steady_work_with_faults(
    database_url, pool, conn, history, log
):
    chance = random.Random(15)
    began = time.monotonic()
    taken: list[Sample] = []
    fleet = Fleet(
        database_url, history, log, size=4, concurrency=8, visibility_timeout=LEASE_SECONDS
    )
    kinds: list[Callable[[Faults], None]] = [
        lambda faults: fleet.kill_one(chance, faults),
        lambda faults: cut_all_connections(database_url, faults),
    ]

    with running(fleet):
        for cycle in range(CYCLES):
            faults = Faults(CYCLE_SECONDS // FAULT_SECONDS)

            async def fault_now_and_then(faults: Faults = faults, cycle: int = cycle) -> None:
                for number in range(faults.planned):
                    await asyncio.sleep(FAULT_SECONDS * 0.9)
                    await asyncio.to_thread(kinds[(cycle + number) % len(kinds)], faults)

            sampling = asyncio.create_task(keep_sampling(database_url, fleet, began, taken))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(fault_now_and_then())
                tasks.create_task(send_steadily(pool, history, chance))
            await all_ended(database_url, seconds=120)
            sampling.cancel()
            await asyncio.wait([sampling])
            samples.write(taken, ROOT / "test-results" / "soak.csv")
            faults.require()
            assert_clean(history.read(), conn)
            start_anew(conn, history)

    assert_flat(taken, "memory_mb", more=scaled(30, 20))
    assert_flat(taken, "descriptors", more=scaled(10, 10))
    assert_flat(taken, "connections", more=scaled(10, 10))
    assert_flat(taken, "queued", more=RATE * 2)
    assert_flat(taken, "small_tables_kb", more=scaled(20_000, 5_000))


async def send_steadily(pool: Pool, history: History, chance: random.Random) -> None:
    """A cycle's commands, at RATE; none that kill their process, the faults do that."""
    commands = [
        each
        for each in mixture(RATE * CYCLE_SECONDS, chance, lease_seconds=LEASE_SECONDS)
        if each.data["do"] in ("success", "transient", "permanent", "business")
    ]
    due = time.monotonic()
    for start in range(0, len(commands), CHUNK):
        await send_on_record(pool, history, commands[start : start + CHUNK], chunk=CHUNK)
        due += CHUNK / RATE
        await asyncio.sleep(max(due - time.monotonic(), 0))


async def keep_sampling(url: str, fleet: Fleet, began: float, taken: list[Sample]) -> None:
    """A sample now and then, for ever."""
    while True:
        await asyncio.sleep(SAMPLE_SECONDS)
        pids = [process.pid for process in fleet.processes]
        sample = await asyncio.to_thread(samples.take, url, pids, began)
        if sample is not None:
            taken.append(sample)


def cut_all_connections(url: str, faults: Faults) -> None:
    """The server ends every session of the database."""
    with psycopg.connect(url, autocommit=True) as conn:
        row = conn.execute(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
            " and application_name like 'chaos worker%'"
        ).fetchone()
    if row is not None and row[0]:
        faults.happened()


def start_anew(conn: psycopg.Connection[TupleRow], history: History) -> None:
    """Forget what has been checked: the record and what has ended, replies included."""
    os.truncate(history.path, 0)
    conn.execute(
        "select command_bus.operator_cancel('test', array_agg(command_id), 'soak', 'checked')"
        " from command_bus_tsq where domain = 'test'"
    )
    for status in ("FAILED", "CANCELLED", "COMPLETED"):
        more, created_at, command_id = True, None, None
        while more:
            row = conn.execute(
                "select more, last_created_at, last_id from command_bus.prune_commands("
                "%s, clock_timestamp() + interval '1 hour', 1000, 'test', %s, %s)",
                (status, created_at, command_id),
            ).fetchone()
            assert row is not None
            more, created_at, command_id = row
    conn.execute("select pgmq.purge_queue('test__replies')")
    left = conn.execute("select count(*) from command_bus_command").fetchone()
    assert left == (0,), f"pruning left {left}"
