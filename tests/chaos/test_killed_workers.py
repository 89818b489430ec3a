"""Workers are killed, from outside and by what they run."""

from __future__ import annotations

import asyncio
import random

from tests.chaos.checker import assert_clean
from tests.chaos.conftest import scaled
from tests.chaos.faults import Faults, Fleet, every, running
from tests.chaos.scenes import all_ended, command, ids, mixture, send_on_record

LEASE_SECONDS = 2


async def test_workers_killed_at_random_lose_nothing_and_do_nothing_twice(
    database_url, pool, conn, history, log, seed
):
    chance = random.Random(seed)
    commands = mixture(scaled(600, 20_000), chance, lease_seconds=LEASE_SECONDS)
    faults = Faults(scaled(9, 120))
    fleet = Fleet(
        database_url, history, log, size=4, concurrency=4, visibility_timeout=LEASE_SECONDS
    )

    with running(fleet):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                send_on_record(pool, history, commands, chunk=40, pause=scaled(250, 80) / 1000)
            )
            tasks.create_task(every(0.5, faults.planned, lambda: fleet.kill_one(chance, faults)))
        await all_ended(database_url, seconds=scaled(60, 600))

    faults.require()
    assert_clean(history.read(), conn)


async def test_commands_that_kill_their_process_spend_only_their_own_budget(
    database_url, pool, conn, history, log
):
    deadly = [command(do) for do in ("exit", "segv", "memory", "kill")]
    once = [command("success", ms=5, max_attempts=1) for _ in range(scaled(10, 100))]
    innocent = [command("success", ms=5) for _ in range(scaled(385, 1_900))]
    commands = [*deadly, *once, *innocent]
    random.Random(5).shuffle(commands)
    faults = Faults(len(deadly))

    await send_on_record(pool, history, commands)
    fleet = Fleet(
        database_url, history, log, size=4, concurrency=4, visibility_timeout=LEASE_SECONDS
    )
    with running(fleet):
        await all_ended(database_url, seconds=scaled(60, 300))
    faults.done = len([code for code in fleet.deaths if code != 0])

    faults.require()
    database = assert_clean(history.read(), conn)
    starts = history.read().starts_of
    for command_id in ids(deadly, "exit", "segv", "memory", "kill"):
        events = [event["event"] for event in database.trails[command_id]]
        assert database.commands[command_id]["status"] == "IN_TSQ"
        assert events.count("RECEIVED") - events.count("RELEASED") == 3
        assert 1 <= starts(command_id) <= 3
    for command_id in ids(innocent, "success"):
        assert database.commands[command_id]["status"] == "COMPLETED"
    for command_id in ids(once, "success"):
        assert starts(command_id) <= 1  # never started again after a crash
