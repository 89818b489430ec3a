"""Generating many test commands."""

from __future__ import annotations

import json
from uuid import UUID

import pytest

from app.loadtest.generating import BulkOrder, generate
from app.testcommand.behaviors import Behavior, BehaviorDistribution, BehaviorType
from commandbus import CommandBus
from commandbus.errors import UnknownDomainError

MIX = BehaviorDistribution.model_validate({"success": 90, "fail_permanent": 7.5, "timeout": 2.5})


async def test_commands_and_their_test_commands_are_created(pool):
    order = BulkOrder(
        count=2500,
        behavior=Behavior(type=BehaviorType.SUCCESS, execution_time_ms=5),
        payload={"rate": "100%", "text": '"quoted" %s'},
        max_attempts=7,
    )
    heard = []
    result = await generate(pool, order, on_progress=lambda so_far: heard.append(so_far.created))

    assert (result.created, result.cancelled, heard) == (2500, False, [1000, 2000, 2500])
    assert len(set(result.command_ids)) == 100
    bus = CommandBus(pool)
    command = await bus.get_command("test", result.command_ids[99])
    assert command is not None
    assert (command.data, command.max_attempts) == (order.payload, 7)
    assert command.batch_id == order.batch_id
    progress = await bus.get_batch(order.batch_id)
    assert progress is not None
    assert progress.sent == progress.open == 2500
    assert await rows(pool, "select count(*), count(distinct behavior) from test_command") == [
        (2500, 1)
    ]


async def test_a_distribution_is_met_exactly(pool):
    result = await generate(pool, BulkOrder(count=1111, distribution=MIX, delay_ms=3, seed=1))
    assert result.created == 1111
    found = await rows(pool, "select behavior, count(*) from test_command group by 1")
    assert {json.dumps(behavior, sort_keys=True): count for behavior, count in found} == {
        '{"execution_time_ms": 3, "type": "success"}': 1000,
        '{"execution_time_ms": 3, "type": "fail_permanent"}': 83,
        '{"execution_time_ms": 3, "type": "timeout"}': 28,
    }


async def test_what_was_sent_before_a_cancellation_stays(pool):
    asked = iter([False, True])
    order = BulkOrder(count=5000)
    result = await generate(pool, order, is_cancelled=lambda: next(asked))
    assert (result.created, result.cancelled) == (1000, True)
    progress = await CommandBus(pool).get_batch(order.batch_id)
    assert progress is not None
    assert progress.sent == 1000


async def test_an_unknown_domain_creates_nothing(pool):
    with pytest.raises(UnknownDomainError):
        await generate(pool, BulkOrder(count=10, domain="nowhere"))
    assert await rows(pool, "select 1 from test_command") == []


def test_orders_that_make_no_sense_are_refused():
    for count in (0, -1, 1_000_001):
        with pytest.raises(ValueError, match="count"):
            BulkOrder(count=count)
    with pytest.raises(ValueError, match="not both"):
        BulkOrder(count=1, behavior=Behavior(type=BehaviorType.SUCCESS), distribution=MIX)
    assert isinstance(BulkOrder(count=1).batch_id, UUID)


async def rows(pool, query):
    async with pool.connection() as conn:
        return await (await conn.execute(query)).fetchall()
