"""Workers are killed at every point of handlers whose effects count exactly once."""

from __future__ import annotations

import random

from commandbus import CommandBus, NewCommand, uuid7
from tests.chaos.checker import assert_clean
from tests.chaos.conftest import scaled
from tests.chaos.faults import Faults, Fleet, running
from tests.chaos.scenes import send_on_record
from tests.chaos.worker_program import HANDED_TYPE, NEXT_DOMAIN
from tests.facts import rows
from tests.waiting import eventually

LEASE_SECONDS = 1
# From before the transaction begins until after it is committed.
LATEST_CUT_MS = 14.0
SET = 10
OPEN = """
    select count(*) from command_bus_command
    where domain = 'test' and status in ('PENDING', 'IN_PROGRESS')
"""


async def test_effects_of_killed_handlers_count_exactly_once(
    database_url, pool, conn, history, log, seed
):
    chance = random.Random(seed)
    cuts = scaled(10, 200)
    commands = [
        NewCommand(
            command_type=HANDED_TYPE,
            command_id=uuid7(),
            data={"ms": chance.choice((0, 2, 5)), "key": number % 7}
            # One in each set that is sent, so that each finds a process that lives.
            | ({"cut_ms": LATEST_CUT_MS * number / (cuts * SET)} if number % SET == 0 else {}),
            max_attempts=10,
        )
        for number in range(cuts * SET)
    ]
    await CommandBus(pool).create_domain(NEXT_DOMAIN)
    await rows(pool, "create table business (command_id uuid)")
    fleet = Fleet(
        database_url, history, log, size=4, concurrency=1, visibility_timeout=LEASE_SECONDS
    )

    with running(fleet):
        await send_on_record(pool, history, commands, chunk=SET, pause=0.25)
        await eventually(
            lambda: rows(pool, OPEN), lambda left: left == [(0,)], seconds=scaled(60, 1200)
        )
    kills = Faults(cuts * 3 // 5)  # one process may meet several
    kills.done = len([code for code in fleet.deaths if code != 0])

    kills.require()
    assert_clean(history.read(), conn, budget=10)
    [counts] = await rows(
        pool,
        """
        select count(*) filter (where status = 'COMPLETED'),
            (select count(*) from business), (select count(distinct command_id) from business),
            (select count(*) from command_bus_command where domain = 'next'),
            (select count(*) from command_bus_command as f join command_bus_command as c
                 on c.command_id = f.causation_id
             where f.domain = 'next' and c.domain = 'test' and c.status = 'COMPLETED'),
            (select count(*) from command_bus_outbox),
            (select count(distinct command_id) from command_bus_outbox)
        from command_bus_command where domain = 'test'
        """,
    )
    completed = counts[0]
    assert completed == len(commands)
    assert counts == (
        completed, completed, completed, 2 * completed, 2 * completed, completed, completed
    )  # fmt: skip
