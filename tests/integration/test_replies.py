"""Exactly one reply for each command that ends and asked for one."""

from __future__ import annotations

import json
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from psycopg.errors import LockNotAvailable

from commandbus import CommandBus, CommandStatus, Reply, store
from commandbus.errors import UnknownReplyQueueError
from commandbus.ops import TroubleshootingQueue
from tests.facts import (
    REPLIES,
    Pool,
    assert_books_balance,
    claim_one,
    completed,
    events,
    failed,
    register,
    replies,
    rows,
    send,
    settle,
    status,
)


async def end(pool: Pool, command_id: UUID, how: str) -> None:
    worker_id = await register(pool)
    tsq = TroubleshootingQueue(pool)
    match how:
        case "success":
            await settle(pool, worker_id, completed(await claim_one(pool, worker_id), {"ok": 1}))
        case "business":
            await settle(pool, worker_id, failed(await claim_one(pool, worker_id), "business"))
        case "cancelled while pending":
            await tsq.cancel_pending("test", command_id, "olga")
        case "cancelled in the tsq" | "completed by hand":
            await settle(pool, worker_id, failed(await claim_one(pool, worker_id), "permanent"))
            assert await replies(pool) == []
            if how == "completed by hand":
                await tsq.operator_complete("test", command_id, result_data={"by": "hand"})
            else:
                await tsq.operator_cancel("test", command_id, "olga", "not needed")


ERROR = {"type": "BUSINESS", "code": "E_CODE", "message": "It did not work"}
CANCELLED = {"status": "CANCELLED", "result": None, "error": None}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("success", {"status": "COMPLETED", "result": {"ok": 1}, "error": None}),
        ("business", {"status": "FAILED", "result": None, "error": ERROR}),
        ("cancelled while pending", {**CANCELLED, "operator": "olga", "reason": None}),
        ("cancelled in the tsq", {**CANCELLED, "operator": "olga", "reason": "not needed"}),
        ("completed by hand", {"status": "COMPLETED", "result": {"by": "hand"}, "error": None}),
    ],
)
async def test_a_command_that_ends_sends_one_reply(pool, how, said):
    correlation_id = uuid4()
    [command_id] = await send(pool, reply_to=REPLIES, correlation_id=correlation_id)

    await end(pool, command_id, how)

    assert await replies(pool) == [
        {
            "command_id": str(command_id),
            "correlation_id": str(correlation_id),
            "domain": "test",
            "command_type": "DoIt",
            **said,
        }
    ]


async def test_a_command_without_reply_queue_sends_no_reply(pool):
    [command_id] = await send(pool)
    await end(pool, command_id, "success")

    assert await replies(pool) == []


async def test_no_reply_is_sent_while_a_command_waits_for_its_retry(pool):
    [command_id] = await send(pool, reply_to=REPLIES)
    worker_id = await register(pool)
    claimed = await claim_one(pool, worker_id)
    await settle(pool, worker_id, failed(claimed))
    await settle(pool, worker_id, failed(claimed))
    assert await replies(pool) == []

    await end(pool, command_id, "success")

    assert len(await replies(pool)) == 1


async def test_an_outcome_recorded_twice_sends_one_reply(pool):
    await send(pool, reply_to=REPLIES)
    worker_id = await register(pool)
    outcome = completed(await claim_one(pool, worker_id))
    await settle(pool, worker_id, outcome)
    await settle(pool, worker_id, outcome)

    assert len(await replies(pool)) == 1


@pytest.mark.parametrize("how", ["success", "business", "completed by hand"])
async def test_a_reply_queue_that_vanished_undoes_nothing(pool, how):
    await rows(pool, "select pgmq.create('mine')")
    [lost] = await send(pool, reply_to="mine")
    await rows(pool, "select pgmq.drop_queue('mine')")

    await end(pool, lost, how)

    assert (await status(pool, lost)).is_final
    assert (await events(pool, lost)).count("REPLY_FAILED") == 1
    await assert_books_balance(pool)


@pytest.mark.parametrize("how", ["success", "business", "completed by hand"])
async def test_a_reply_queue_that_takes_no_reply_undoes_nothing(pool, how):
    await rows(pool, "select pgmq.create('mine')")
    await rows(pool, "alter table pgmq.q_mine add constraint takes_nothing check (false)")
    [unheard] = await send(pool, reply_to="mine")

    await end(pool, unheard, how)

    assert (await status(pool, unheard)).is_final
    [failure] = await rows(
        pool, "select details from command_bus_audit where event_type = 'REPLY_FAILED'"
    )
    assert "takes_nothing" in failure[0]["reason"]
    await assert_books_balance(pool)


async def test_a_reply_queue_that_is_held_for_a_moment_is_tried_again(pool):
    await rows(pool, "select pgmq.create('mine')")
    [command_id] = await send(pool, reply_to="mine")
    worker_id = await register(pool)
    outcome = completed(await claim_one(pool, worker_id))
    async with pool.connection() as holder, pool.connection() as conn:
        await holder.execute("lock table pgmq.q_mine")
        await conn.execute("set local lock_timeout = '10ms'")
        with pytest.raises(LockNotAvailable):
            await store.settle_commands(conn, "test", worker_id, json.dumps([outcome]), "[]")
        await conn.rollback()

    await settle(pool, worker_id, outcome)

    assert len(await replies(pool, queue="mine")) == 1
    assert await events(pool, command_id) == ["SENT", "RECEIVED", "COMPLETED"]


async def test_one_vanished_queue_of_a_set_spoils_no_other_reply(pool):
    await rows(pool, "select pgmq.create('mine')")
    [lost] = await send(pool, reply_to="mine")
    [heard] = await send(pool, reply_to=REPLIES)
    await rows(pool, "select pgmq.drop_queue('mine')")
    worker_id = await register(pool)
    both = [await claim_one(pool, worker_id, limit=1) for _ in range(2)]

    await settle(pool, worker_id, *map(completed, both))

    assert [reply["command_id"] for reply in await replies(pool)] == [str(heard)]
    assert "REPLY_FAILED" in await events(pool, lost)
    assert await status(pool, lost) == CommandStatus.COMPLETED


async def test_replies_are_read_and_acknowledged(bus: CommandBus, pool):
    correlation_id = uuid4()
    [command_id] = await send(pool, reply_to=REPLIES, correlation_id=correlation_id)
    await end(pool, command_id, "success")

    [reply] = await bus.read_replies(REPLIES)
    assert await bus.read_replies(REPLIES) == []

    assert (reply.command_id, reply.correlation_id) == (command_id, correlation_id)
    assert (reply.status, reply.result, reply.error) == (CommandStatus.COMPLETED, {"ok": 1}, None)
    assert await bus.acknowledge_replies(REPLIES, [reply]) == 1
    assert await bus.acknowledge_replies(REPLIES, [reply]) == 0
    assert await replies(pool) == []


async def test_each_reply_of_a_cancelled_set_says_who_cancelled_it_and_why(bus, pool, tsq):
    ids = await send(pool, 3, reply_to=REPLIES)
    worker_id = await register(pool)
    for _ in ids:
        claimed = await claim_one(pool, worker_id, limit=1)
        await settle(pool, worker_id, failed(claimed, "permanent"))

    await tsq.operator_cancel_many("test", ids, "olga", "sold out")

    found = await bus.read_replies(REPLIES)
    assert {reply.command_id for reply in found} == set(ids)
    assert {(reply.status, reply.operator, reply.reason, reply.error) for reply in found} == {
        (CommandStatus.CANCELLED, "olga", "sold out", None)
    }


async def test_a_reply_queue_that_became_one_of_commands_gets_no_reply(bus, pool):
    await rows(pool, "select pgmq.create('late__commands')")
    [command_id] = await send(pool, reply_to="late__commands")
    await bus.create_domain("late")

    await end(pool, command_id, "success")

    assert await replies(pool, queue="late__commands") == []
    assert (await events(pool, command_id))[-1] == "REPLY_FAILED"


async def test_a_reply_with_a_number_of_many_digits_is_read_digit_by_digit(bus, pool):
    [command_id] = await send(pool, reply_to=REPLIES)
    await end(pool, command_id, "success")
    await rows(
        pool,
        f"update pgmq.q_{REPLIES} set message = message || '"
        '{"result": [12345678901234567.89, 0.5]}\'',
    )

    [reply] = await bus.read_replies(REPLIES)

    assert reply.result == [Decimal("12345678901234567.89"), 0.5]


async def test_a_reply_that_is_not_acknowledged_comes_again(bus, pool):
    [command_id] = await send(pool, reply_to=REPLIES)
    await end(pool, command_id, "success")
    [reply] = await bus.read_replies(REPLIES)
    await rows(pool, f"select pgmq.set_vt('{REPLIES}', {reply.msg_id}, 0)")

    assert await bus.read_replies(REPLIES) == [reply]


async def test_replies_of_an_unknown_queue_are_an_error(bus):
    with pytest.raises(UnknownReplyQueueError):
        await bus.read_replies("nowhere")
    with pytest.raises(UnknownReplyQueueError):
        await bus.acknowledge_replies("nowhere", [])


async def test_a_message_that_is_no_reply_is_left_there_and_spoils_no_other(bus, pool, caplog):
    await rows(pool, "select pgmq.send(%s, '[1]')", REPLIES)
    [command_id] = await send(pool, reply_to=REPLIES)
    await end(pool, command_id, "success")

    found = await bus.read_replies(REPLIES, visibility_timeout=0)

    assert [reply.command_id for reply in found] == [command_id]
    [line] = [vars(record) for record in caplog.records if record.msg == "message_is_no_reply"]
    [[foreign]] = await rows(
        pool, f"select msg_id from pgmq.q_{REPLIES} where message = '[1]'::jsonb"
    )
    assert (line["queue"], line["msg_id"]) == (REPLIES, foreign)


@pytest.mark.parametrize("queue", ["test__commands", "TEST__Commands"])
async def test_a_queue_of_commands_is_no_queue_of_replies(bus, pool, queue):
    [command_id] = await send(pool)
    reply = Reply(
        msg_id=1,
        command_id=command_id,
        correlation_id=None,
        domain="test",
        command_type="DoIt",
        status=CommandStatus.COMPLETED,
        result=None,
        error=None,
    )

    for call in (
        bus.read_replies(queue, visibility_timeout=0),
        bus.acknowledge_replies(queue, [reply]),
    ):
        with pytest.raises(UnknownReplyQueueError, match='takes the commands of domain "test"'):
            await call

    assert [await claim_one(pool, await register(pool))]
    assert await status(pool, command_id) is CommandStatus.IN_PROGRESS
