"""Hours of steady work with a fault now and then: nothing grows, and nothing is lost.

Workers work, a web server is looked at all the time, and now a worker is killed, now all
connections are cut, now PostgreSQL is killed. The long form does the work and has the faults of
CHAOS_SOAK_HOURS (8), CHAOS_SOAK_PACE (1) times as fast. The work comes in cycles: at the end of
each the bus is empty, the checker compares it with the record, and what has ended is pruned. The
samples are in test-results/soak.csv.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from itertools import cycle

import psycopg
from psycopg.rows import TupleRow

from tests.chaos import samples
from tests.chaos.checker import assert_clean
from tests.chaos.conftest import LONG, scaled
from tests.chaos.faults import Faults, Fleet, OwnServer, running
from tests.chaos.history import History
from tests.chaos.samples import Sample, assert_flat
from tests.chaos.scenes import all_ended, mixture, send_on_record
from tests.e2e.served import Served, served
from tests.facts import Pool
from tests.programs import ROOT
from tests.waiting import eventually

PACE = float(os.environ.get("CHAOS_SOAK_PACE", "1")) if LONG else 1.0
HOURS = float(os.environ.get("CHAOS_SOAK_HOURS", "8"))
RATE = round(200 * PACE)  # commands a second
CHUNK = RATE // 5
LEASE_SECONDS = 2
FAULT_SECONDS = scaled(4, 30) / PACE
CYCLE_SECONDS = scaled(14, 120)
CYCLES = max(round(HOURS / PACE * 3600 / CYCLE_SECONDS), 1) if LONG else 2
SAMPLE_SECONDS = scaled(1, 10)
LOOK_SECONDS = 0.5
PAGES = ("/", "/commands", "/troubleshooting", "/workers", "/audit", "/api/v1/stats")


async def test_nothing_grows_and_nothing_is_lost_in_steady_work_with_faults(
    server, own_url, own_pool, history, log
):
    chance = random.Random(15)
    began = time.monotonic()
    taken: list[Sample] = []
    answers: Counter[int] = Counter()
    fleet = Fleet(own_url, history, log, size=4, concurrency=8, visibility_timeout=LEASE_SECONDS)
    kinds: list[Callable[[Faults], None]] = [
        lambda faults: fleet.kill_one(chance, faults),
        lambda faults: cut_all_connections(own_url, faults),
        lambda faults: kill_and_start(server, faults),
    ]
    next_kind = cycle(kinds)

    with running(fleet):
        async with served(own_url) as web:
            for _ in range(CYCLES):
                faults = Faults(int(CYCLE_SECONDS // FAULT_SECONDS))
                beside = [
                    asyncio.create_task(keep_sampling(own_url, fleet, web, began, taken)),
                    asyncio.create_task(keep_looking(web, answers)),
                ]
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(fault_now_and_then(faults, next_kind))
                    tasks.create_task(send_steadily(own_pool, history, chance))
                await all_ended(own_url, seconds=120)
                await ended(beside)
                samples.write(taken, ROOT / "test-results" / "soak.csv")
                faults.require()
                with psycopg.connect(own_url, autocommit=True) as conn:
                    assert_clean(history.read(), conn)
                    start_anew(conn, history)
            # The web server has outlived everything, and has got over it.
            for page in PAGES:
                await eventually(is_shown(web, page))

    assert set(answers) <= {200, 503, 504}, answers
    assert answers[200] > answers[503], answers
    assert_flat(taken, "memory_mb", more=scaled(30, 20))
    assert_flat(taken, "web_memory_mb", more=scaled(30, 20))
    for name in ("descriptors", "web_descriptors", "connections", "web_connections"):
        assert_flat(taken, name, more=10)
    assert_flat(taken, "queued", more=RATE * 2)
    assert_flat(taken, "small_tables_kb", more=scaled(20_000, 5_000))
    assert_flat(taken, "database_mb", more=60 * PACE)


async def fault_now_and_then(faults: Faults, kinds: Iterator[Callable[[Faults], None]]) -> None:
    """The faults of one cycle, of each kind in turn."""
    for _ in range(faults.planned):
        await asyncio.sleep(FAULT_SECONDS * 0.9)
        await asyncio.to_thread(next(kinds), faults)


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


async def keep_looking(web: Served, answers: Counter[int]) -> None:
    """Somebody looks at one page after the other, for ever."""
    for page in cycle(PAGES):
        status, _ = await web.request("GET", page)
        answers[status] += 1
        await asyncio.sleep(LOOK_SECONDS)


def is_shown(web: Served, page: str) -> Callable[[], Awaitable[bool]]:
    """Whether the page is there."""

    async def look() -> bool:
        status, _ = await web.request("GET", page)
        return status == 200

    return look


async def keep_sampling(
    url: str, fleet: Fleet, web: Served, began: float, taken: list[Sample]
) -> None:
    """A sample now and then, for ever."""
    while True:
        await asyncio.sleep(SAMPLE_SECONDS)
        workers = [process.pid for process in fleet.processes]
        sample = await asyncio.to_thread(samples.take, url, workers, web.running.pid, began)
        if sample is not None:
            taken.append(sample)


async def ended(beside: list[asyncio.Task[None]]) -> None:
    """What went on beside the work is over; raises what ended it before."""
    for task in beside:
        task.cancel()
    await asyncio.wait(beside)
    for task in beside:
        if not task.cancelled():
            task.result()


def cut_all_connections(url: str, faults: Faults) -> None:
    """The server ends every session of workers and web."""
    with psycopg.connect(url, autocommit=True) as conn:
        row = conn.execute(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
            " and (application_name like 'chaos worker%' or application_name = 'commandbus-web')"
        ).fetchone()
    if row is not None and row[0]:
        faults.happened()


def kill_and_start(server: OwnServer, faults: Faults) -> None:
    """The server is killed with all its processes, and is there again."""
    server.kill()
    faults.happened()
    server.start()


def start_anew(conn: psycopg.Connection[TupleRow], history: History) -> None:
    """Forget what has been checked: the record and what has ended, replies included.

    The space is free for the next cycle, and stays so: which pages of its indexes are free the
    server forgets at a crash, back to the last checkpoint. Elsewhere a checkpoint lies between any
    two crashes; here they come faster.
    """
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
    conn.execute(
        "select from command_bus.prune_history(clock_timestamp() - interval '5 minutes', 10000)"
    )
    left = conn.execute("select count(*) from command_bus_command").fetchone()
    assert left == (0,), f"pruning left {left}"
    conn.execute("vacuum")
    conn.execute("checkpoint")
