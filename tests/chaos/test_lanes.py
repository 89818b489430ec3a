"""Lanes under kills and retries: in each, commands run in the order of sending, one at a time."""

from __future__ import annotations

import asyncio
import random

from commandbus import CommandBus
from tests.chaos.checker import assert_clean
from tests.chaos.conftest import scaled
from tests.chaos.faults import Faults, Fleet, every, running
from tests.chaos.scenes import all_ended, command, send_on_record
from tests.facts import DOMAIN

LEASE_SECONDS = 2


async def test_lanes_keep_their_order_while_workers_are_killed(
    database_url, pool, conn, history, log, seed
):
    chance = random.Random(seed)
    keys, depth = scaled(30, 200), scaled(12, 100)
    commands = []
    for _ in range(depth):
        for key in range(keys):
            do = chance.choice(("success",) * 8 + ("transient", "permanent", "business"))
            more = {"failures": chance.choice((1, 2))} if do == "transient" else {}
            commands.append(
                command(do, lane=f"group-{key % 5}/{key}", ms=chance.choice((0, 1, 5)), **more)
            )
    await CommandBus(pool).set_lane_group(DOMAIN, "*", on_trouble="skip")
    faults = Faults(scaled(6, 120))
    fleet = Fleet(
        database_url,
        history,
        log,
        size=scaled(4, 8),
        concurrency=4,
        visibility_timeout=LEASE_SECONDS,
    )

    with running(fleet):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send_on_record(pool, history, commands, chunk=90, pause=0.2))
            tasks.create_task(every(0.5, faults.planned, lambda: fleet.kill_one(chance, faults)))
        await all_ended(database_url, seconds=scaled(90, 900))

    faults.require()
    assert_clean(history.read(), conn)
    assert conn.execute("select count(*) from command_bus_lane_slot").fetchone() == (0,)
