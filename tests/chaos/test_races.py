"""Many do the same at the same time, and exactly one of them does it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from commandbus import CommandBus, DuplicateCommandError, NewCommand, uuid7
from tests.chaos.conftest import scaled
from tests.facts import claim, failed, register, send, settle, value

SENDERS = 64
OPERATORS = 32

# Operators may also act in the short while in which another's retry has made the command PENDING,
# so only what needs the troubleshooting queue is mixed here.
ACTIONS = (
    "operator_retry('test', %s, 'op', 0)",
    "operator_retry('test', %s, 'op', 600)",
    "operator_cancel('test', %s, 'op', 'why')",
    "operator_complete('test', %s, 'op', '{}')",
)


def at_once(how_many: int, act: Callable[[int, Barrier], Any]) -> list[Any]:
    """What *act* returns in so many threads, which may wait for each other at the barrier."""
    barrier = Barrier(how_many, timeout=60)
    with ThreadPoolExecutor(how_many) as threads:
        return [
            done.result() for done in [threads.submit(act, n, barrier) for n in range(how_many)]
        ]


def as_sender(url: str, act) -> object:
    """Run *act* with a bus on a loop and a connection of this thread's own."""

    async def main() -> object:
        async with AsyncConnectionPool(
            url,
            connection_class=AsyncConnection[TupleRow],
            min_size=1,
            max_size=1,
            timeout=60,
            open=False,
        ) as pool:
            await pool.wait(timeout=60)
            return await act(CommandBus(pool))

    return asyncio.run(main())


async def test_the_same_ids_sent_at_once_in_sets_are_sent_once(database_url, pool):
    ids = [uuid7() for _ in range(500)]

    def send_all(number: int, barrier: Barrier) -> object:
        commands = [NewCommand(command_type="Same", command_id=each, data={"a": 1}) for each in ids]
        random.Random(number).shuffle(commands)

        async def act(bus: CommandBus) -> int:
            barrier.wait()
            return sum(result.created for result in await bus.send_many("test", commands))

        return as_sender(database_url, act)

    created = await asyncio.to_thread(at_once, SENDERS, send_all)

    assert sum(created) == 500
    assert await counts(pool) == (500, 500, 500)


async def test_of_two_contents_with_the_same_id_one_wins_and_the_other_is_refused(
    database_url, pool
):
    ids = [uuid7() for _ in range(scaled(60, 500))]

    def send_each(number: int, barrier: Barrier) -> object:
        content = {"content": number % 2}
        answers: dict[UUID, bool | None] = {}
        order = random.Random(number).sample(ids, len(ids))

        async def act(bus: CommandBus) -> dict[UUID, bool | None]:
            barrier.wait()
            for each in order:
                try:
                    answers[each] = (await bus.send("test", "Same", each, content)).created
                except DuplicateCommandError:
                    answers[each] = None
            return answers

        return as_sender(database_url, act)

    answers = await asyncio.to_thread(at_once, SENDERS, send_each)

    assert await counts(pool) == (len(ids),) * 3
    for each in ids:
        won = await value(
            pool, "select data ->> 'content' from command_bus_command where command_id = %s", each
        )
        for number, answered in enumerate(answers):
            assert (answered[each] is not None) == (number % 2 == int(won))
        said = Counter(answered[each] for answered in answers)
        assert said == {True: 1, False: SENDERS // 2 - 1, None: SENDERS // 2}


async def counts(pool) -> tuple[int, int, int]:
    """How many commands, messages and SENT events there are."""
    return (
        await value(pool, "select count(*) from command_bus_command"),
        await value(pool, "select count(distinct message) from pgmq.q_test__commands"),
        await value(pool, "select count(*) from command_bus_audit where event_type = 'SENT'"),
    )


@pytest.mark.parametrize("mixed", [False, True], ids=["identical", "mixed"])
async def test_of_many_operators_who_act_on_one_command_exactly_one_wins(database_url, pool, mixed):
    ids = await send(pool, scaled(40, 500), reply_to="test__replies")
    worker_id = await register(pool)
    claimed = await claim(pool, worker_id, limit=1000)
    await settle(pool, worker_id, *(failed(each, "permanent") for each in claimed))

    def operate(number: int, barrier: Barrier) -> list[str]:
        said = []
        with psycopg.connect(database_url, autocommit=True) as conn:
            for turn, each in enumerate(ids):
                action = ACTIONS[(number + turn if mixed else turn) % len(ACTIONS)]
                barrier.wait()
                query = f"select verdict from command_bus.{action}".encode()
                [verdict] = conn.execute(query, ([each],)).fetchone() or ("nothing",)
                said.append(verdict)
        return said

    said = await asyncio.to_thread(at_once, OPERATORS, operate)

    for turn in range(len(ids)):
        verdicts = Counter(each[turn] for each in said)
        assert verdicts == {"done": 1, "conflict": OPERATORS - 1}
    assert await value(pool, "select count(*) from command_bus.find_violations()") == 0
    assert await value(
        pool, "select count(*) from command_bus_audit where event_type::text like 'OPERATOR%%'"
    ) == len(ids)
    ended = await value(
        pool,
        "select count(*) from command_bus_command where status in ('COMPLETED', 'CANCELLED')",
    )
    assert await value(pool, "select count(*) from pgmq.q_test__replies") == ended
