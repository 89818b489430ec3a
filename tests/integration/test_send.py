"""Sending: idempotent, all or nothing, and in the caller's transaction where that is wanted."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from commandbus import CommandBus, CommandStatus, NewCommand, SendResult
from commandbus.errors import (
    DuplicateCommandError,
    InvalidCommandError,
)
from tests.facts import (
    QUEUE,
    REPLIES,
    Pool,
    assert_books_balance,
    claim_one,
    completed,
    count,
    events,
    queued,
    register,
    rows,
    settle,
    value,
)

CONTENT: dict[str, Any] = {
    "command_type": "DoIt",
    "data": {"a": [1, None]},
    "correlation_id": UUID(int=5),
    "reply_to": REPLIES,
    "max_attempts": 4,
}


async def test_a_sent_command_stands_with_all_that_was_given(bus: CommandBus, pool: Pool):
    command_id, batch_id = uuid4(), uuid4()

    sent = await bus.send("test", command_id=command_id, batch_id=batch_id, **CONTENT)

    command = await bus.get_command("test", command_id)
    assert command is not None
    assert sent == SendResult(command_id, command.msg_id, True, CommandStatus.PENDING)
    assert {name: getattr(command, name) for name in CONTENT} == CONTENT
    assert (command.status, command.attempts, command.batch_id) == ("PENDING", 0, batch_id)
    assert await rows(pool, f"select msg_id, message from pgmq.q_{QUEUE}") == [
        (sent.msg_id, {"command_id": str(command_id)})
    ]
    assert await events(pool, command_id) == ["SENT"]


@pytest.mark.parametrize("correlation_id", [None, UUID(int=5)])
@pytest.mark.parametrize("delay", [None, 60])
async def test_the_trail_begins_with_what_was_sent(bus, correlation_id, delay):
    ids = [uuid4(), uuid4()]
    command = NewCommand(
        command_type="DoIt", command_id=ids[1], correlation_id=correlation_id, delay=delay
    )
    await bus.send("test", "DoIt", ids[0], {}, correlation_id, delay=delay)
    await bus.send_many("test", [command])

    for command_id in ids:
        [sent] = await bus.get_audit_trail(command_id)
        sent.details.pop("msg_id", None)
        expected = {"command_type": "DoIt", "correlation_id": correlation_id and str(UUID(int=5))}
        assert sent.details == {name: text for name, text in expected.items() if text}


async def test_a_known_id_with_the_same_content_is_answered_and_not_sent_again(bus, pool):
    command_id = uuid4()
    first = await bus.send("test", command_id=command_id, **CONTENT)

    again = await bus.send("test", command_id=command_id, **CONTENT)
    without_correlation = {**CONTENT, "correlation_id": None}
    once_more = await bus.send("test", command_id=command_id, **without_correlation)

    assert again == once_more == SendResult(command_id, first.msg_id, False, CommandStatus.PENDING)
    assert await queued(pool) == 1
    assert await events(pool, command_id) == ["SENT"]
    await assert_books_balance(pool)


@pytest.mark.parametrize(
    "change",
    [
        {"command_type": "DoOther"},
        {"data": {"a": [1, 0]}},
        {"data": {}},
        {"correlation_id": UUID(int=6)},
        {"reply_to": None},
        {"max_attempts": None},
        {"max_attempts": 5},
    ],
    ids=str,
)
async def test_a_known_id_with_other_content_is_refused(bus, pool, change):
    command_id = uuid4()
    await bus.send("test", command_id=command_id, **CONTENT)

    with pytest.raises(DuplicateCommandError, match=str(command_id)):
        await bus.send("test", command_id=command_id, **{**CONTENT, **change})

    assert await queued(pool) == 1
    assert await events(pool, command_id) == ["SENT"]


async def test_no_data_is_an_empty_object_sent_alone_or_in_a_set(bus, pool):
    command_id = uuid4()
    await bus.send("test", "DoIt", command_id, None)
    [again] = await bus.send_many(
        "test", [NewCommand(command_type="DoIt", command_id=command_id, data=None)]
    )

    assert not again.created
    command = await bus.get_command("test", command_id)
    assert command is not None
    assert command.data == {}


async def test_equal_json_is_the_same_content(bus, pool):
    command_id = uuid4()
    await bus.send("test", "DoIt", command_id, {"a": 1, "b": 1.0, "c": None})

    again = await bus.send("test", "DoIt", command_id, {"c": None, "b": 1, "a": 1.00})

    assert not again.created


async def test_a_known_id_is_answered_with_its_present_status(bus, pool):
    command_id = uuid4()
    await bus.send("test", "DoIt", command_id, {})
    worker_id = await register(pool)
    await settle(pool, worker_id, completed(await claim_one(pool, worker_id)))

    again = await bus.send("test", "DoIt", command_id, {})

    assert (again.created, again.status) == (False, CommandStatus.COMPLETED)
    assert await queued(pool) == 0


async def test_domains_do_not_share_ids(bus, pool):
    command_id = uuid4()
    await bus.create_domain("other")

    await bus.send("test", "DoIt", command_id, {})
    other = await bus.send("other", "DoOther", command_id, {"x": 1})

    assert other.created
    assert len(await bus.get_audit_trail(command_id)) == 2
    assert len(await bus.get_audit_trail(command_id, "other")) == 1


async def test_answers_are_in_the_order_of_the_set(bus, pool):
    ids = [uuid4() for _ in range(50)]
    await bus.send("test", "DoIt", ids[7], {})

    answers = await bus.send_many(
        "test", [NewCommand(command_type="DoIt", command_id=each) for each in ids]
    )

    assert [answer.command_id for answer in answers] == ids
    assert [answer.created for answer in answers] == [each != ids[7] for each in ids]
    assert await queued(pool) == 50


async def test_an_id_twice_in_one_set_is_sent_once(bus, pool):
    command = NewCommand(command_type="DoIt", command_id=uuid4(), data={"a": 1})

    first, second = await bus.send_many("test", [command, command])

    assert first.command_id == second.command_id == command.command_id
    assert first.msg_id == second.msg_id
    assert await queued(pool) == 1
    assert await events(pool, command.command_id) == ["SENT"]
    await assert_books_balance(pool)


async def test_an_id_twice_in_one_set_with_other_content_refuses_the_whole_set(bus, pool):
    command_id = uuid4()
    different = [
        NewCommand(command_type="DoIt", command_id=command_id, data={"a": each}) for each in (1, 2)
    ]

    with pytest.raises(DuplicateCommandError):
        await bus.send_many(
            "test", [NewCommand(command_type="DoIt", command_id=uuid4()), *different]
        )

    assert await value(pool, "select count(*) from command_bus_command") == 0
    assert await queued(pool) == 0
    await assert_books_balance(pool)


async def test_an_empty_set_is_no_error(bus):
    assert await bus.send_many("test", []) == []


async def test_a_large_set_is_sent_in_chunks_of_one_transaction(bus, pool):
    ids = [uuid4() for _ in range(2500)]
    commands = [NewCommand(command_type="DoIt", command_id=each) for each in ids]

    answers = await bus.send_many("test", commands)
    again = await bus.send_many("test", commands)

    assert [answer.command_id for answer in answers] == ids
    assert all(answer.created for answer in answers)
    assert [answer.msg_id for answer in again] == [answer.msg_id for answer in answers]
    assert not any(answer.created for answer in again)
    assert await queued(pool) == 2500
    await assert_books_balance(pool)


async def test_a_large_set_with_one_refusal_sends_nothing(bus, pool):
    known = uuid4()
    await bus.send("test", "DoIt", known, {"other": 1})
    commands = [NewCommand(command_type="DoIt", command_id=uuid4()) for _ in range(1500)]

    with pytest.raises(DuplicateCommandError):
        await bus.send_many("test", [*commands, NewCommand(command_type="DoIt", command_id=known)])

    assert await queued(pool) == 1
    await assert_books_balance(pool)


async def test_large_sets_in_opposite_orders_do_not_deadlock(bus, pool):
    commands = [NewCommand(command_type="DoIt", command_id=uuid4()) for _ in range(2200)]

    await asyncio.gather(
        *(bus.send_many("test", commands if turn % 2 else commands[::-1]) for turn in range(4))
    )

    assert await queued(pool) == 2200
    await assert_books_balance(pool)


async def test_of_many_who_send_the_same_ids_at_once_one_creates_each(bus, pool):
    ids = [uuid4() for _ in range(20)]

    async def send_all(turn: int):
        order = ids[turn % 20 :] + ids[: turn % 20]
        if turn % 2:
            return [await bus.send("test", "DoIt", each, {}) for each in order]
        return await bus.send_many(
            "test", [NewCommand(command_type="DoIt", command_id=each) for each in order]
        )

    answers = [
        answer for part in await asyncio.gather(*map(send_all, range(64))) for answer in part
    ]

    assert sorted(answer.command_id for answer in answers if answer.created) == sorted(ids)
    assert len({(answer.command_id, answer.msg_id) for answer in answers}) == 20
    assert await queued(pool) == 20
    assert await value(pool, "select count(*) from command_bus_audit") == 20
    await assert_books_balance(pool)


async def test_of_many_who_send_different_content_at_once_one_wins(bus, pool):
    command_id = uuid4()

    answers = await asyncio.gather(
        *(bus.send("test", "DoIt", command_id, {"who": each}) for each in range(32)),
        return_exceptions=True,
    )

    assert sum(isinstance(answer, SendResult) for answer in answers) == 1
    assert sum(isinstance(answer, DuplicateCommandError) for answer in answers) == 31
    assert await queued(pool) == 1


# The caller's transaction


async def test_a_send_commits_with_the_callers_transaction(bus, pool):
    command_id = uuid4()
    async with bus.transaction() as conn:
        sent = await bus.send("test", "DoIt", command_id, {}, conn=conn)
        assert sent.created
        assert await bus.get_command("test", command_id) is None
        assert await queued(pool) == 0

    assert (await bus.get_command("test", command_id)) is not None
    assert await queued(pool) == 1


async def test_a_send_is_gone_with_the_callers_rollback(bus, pool):
    command_id = uuid4()
    async with pool.connection() as conn:
        await bus.send("test", "DoIt", command_id, {}, conn=conn)
        await conn.rollback()

    assert await bus.get_command("test", command_id) is None
    assert await queued(pool) == 0
    assert await events(pool, command_id) == []
    await assert_books_balance(pool)


async def test_a_refused_send_can_be_undone_to_a_savepoint(bus, pool):
    known, new = uuid4(), uuid4()
    await bus.send("test", "DoIt", known, {"a": 1})

    async with bus.transaction() as conn:
        with pytest.raises(DuplicateCommandError):
            async with conn.transaction():
                await bus.send("test", "DoIt", known, {"a": 2}, conn=conn)
        await bus.send("test", "DoIt", new, {}, conn=conn)

    assert (await bus.get_command("test", new)) is not None


async def test_an_open_transaction_of_a_sender_delays_no_other_command(bus, pool):
    async with bus.transaction() as conn:
        await bus.send("test", "DoIt", uuid4(), {}, conn=conn)
        async with asyncio.timeout(5):
            await bus.send("test", "DoIt", uuid4(), {})
            worker_id = await register(pool)
            claimed = await claim_one(pool, worker_id)
            await settle(pool, worker_id, completed(claimed))
            assert (await bus.count_by_status())[CommandStatus.COMPLETED] == 1
            assert await value(pool, "select command_bus.fold_deltas()") > 0

    assert (await bus.count_by_status())[CommandStatus.PENDING] == 1
    await assert_books_balance(pool)


# Delays


@pytest.mark.parametrize("delay", [60, 60.0, timedelta(minutes=1)])
async def test_a_delayed_command_waits_beside_the_queue(bus, pool, delay):
    command_id = uuid4()

    sent = await bus.send("test", "DoIt", command_id, {}, delay=delay)

    assert (sent.msg_id, sent.created, sent.status) == (None, True, CommandStatus.PENDING)
    assert await queued(pool) == 0
    assert await count(pool, "command_bus_waiting", command_id) == 1
    seconds = await value(
        pool, "select extract(epoch from due_at - now()) from command_bus_waiting"
    )
    assert 30 < seconds <= 60


async def test_no_delay_goes_straight_to_the_queue(bus, pool):
    assert (await bus.send("test", "DoIt", uuid4(), {}, delay=0)).msg_id is not None


async def test_a_delayed_command_sent_again_keeps_its_time(bus, pool):
    command_id = uuid4()
    await bus.send("test", "DoIt", command_id, {}, delay=60)

    again = await bus.send("test", "DoIt", command_id, {})

    assert (again.created, again.msg_id) == (False, None)
    assert await queued(pool) == 0
    await assert_books_balance(pool)


async def test_a_set_may_mix_now_and_later(bus, pool):
    commands = [
        NewCommand(command_type="DoIt", command_id=uuid4(), delay=60 * (turn % 2))
        for turn in range(20)
    ]

    answers = await bus.send_many("test", commands)

    assert [answer.msg_id is None for answer in answers] == [False, True] * 10
    assert await queued(pool) == 10
    await assert_books_balance(pool)


@pytest.mark.parametrize("delay", [-1, math.nan, math.inf, 1e12, timedelta(days=-1)], ids=str)
async def test_a_delay_that_makes_no_sense_is_refused(bus, delay):
    with pytest.raises(InvalidCommandError, match="delay"):
        await bus.send("test", "DoIt", uuid4(), {}, delay=delay)
