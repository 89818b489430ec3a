"""Settling: an outcome counts once, and only while its attempt is the command's current one."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from commandbus import CommandBus, CommandStatus, store
from commandbus.models import Verdict
from tests.facts import (
    Pool,
    assert_books_balance,
    claim,
    claim_one,
    completed,
    events,
    expire_leases,
    failed,
    queued,
    register,
    rows,
    send,
    settle,
    status,
    value,
)


async def test_a_success_ends_the_command_with_its_result(bus: CommandBus, pool: Pool):
    [command_id] = await send(pool)
    worker_id = await register(pool)

    settled = await settle(
        pool, worker_id, completed(await claim_one(pool, worker_id), {"a": [1, None]})
    )

    assert settled == []
    command = await bus.get_command("test", command_id)
    assert command is not None
    assert (command.status, command.result) == (CommandStatus.COMPLETED, {"a": [1, None]})
    assert (command.attempts, command.lease_until) == (1, None)
    assert command.finished_at is not None
    assert await queued(pool) == 0
    assert await events(pool, command_id) == ["SENT", "RECEIVED", "COMPLETED"]


@pytest.mark.parametrize("result", [None, 0, "", [], False, "text", {"😀": "ä"}], ids=ascii)
async def test_any_json_is_a_result(bus, pool, result):
    [command_id] = await send(pool)
    worker_id = await register(pool)
    await settle(pool, worker_id, completed(await claim_one(pool, worker_id), result))

    command = await bus.get_command("test", command_id)
    assert command is not None
    assert command.result == result


async def test_the_same_outcome_said_twice_counts_once_and_is_known(pool):
    ids = await send(pool, 3)
    worker_id = await register(pool)
    claimed = await claim(pool, worker_id)
    outcomes = [completed(claimed[0]), failed(claimed[1], "permanent"), failed(claimed[2])]
    await settle(pool, worker_id, *outcomes)
    trails = [await events(pool, each) for each in ids]

    again = await settle(pool, worker_id, *outcomes)

    assert {answer.verdict for answer in again} == {Verdict.RECORDED}
    assert [await events(pool, each) for each in ids] == trails
    await assert_books_balance(pool)


async def test_one_set_may_hold_every_kind_of_outcome(pool):
    ids = await send(pool, 6)
    worker_id = await register(pool)
    claimed = {each.command.command_id: each for each in await claim(pool, worker_id)}
    await expire_leases(pool, ids[5])
    await claim(pool, await register(pool))

    answers = await settle(
        pool,
        worker_id,
        completed(claimed[ids[0]]),
        failed(claimed[ids[1]], "business"),
        failed(claimed[ids[2]], "permanent"),
        failed(claimed[ids[3]], "transient"),
        completed(claimed[ids[4]]),
        completed(claimed[ids[5]]),
    )

    assert {answer.command_id: (answer.verdict, answer.status) for answer in answers} == {
        ids[1]: ("applied", "FAILED"),
        ids[2]: ("applied", "IN_TSQ"),
        ids[3]: ("applied", "PENDING"),
        ids[5]: ("late", "IN_PROGRESS"),
    }
    assert [await status(pool, each) for each in (ids[0], ids[4])] == ["COMPLETED", "COMPLETED"]
    assert await queued(pool) == 1
    await assert_books_balance(pool)


async def test_an_outcome_after_the_lease_still_counts_while_nobody_else_claimed(pool):
    [command_id] = await send(pool)
    worker_id = await register(pool)
    late = await claim_one(pool, worker_id)
    await expire_leases(pool, command_id)

    assert await settle(pool, worker_id, completed(late)) == []
    assert await claim(pool, worker_id) == []
    assert await status(pool, command_id) == CommandStatus.COMPLETED


async def test_a_late_result_leaves_only_a_note(pool):
    [command_id] = await send(pool)
    worker_id, other = await register(pool), await register(pool)
    late = await claim_one(pool, worker_id)
    await expire_leases(pool, command_id)
    await claim_one(pool, other)

    await settle(pool, worker_id, failed(late, "permanent", error_code="TOO_LATE"))

    assert await status(pool, command_id) == CommandStatus.IN_PROGRESS
    trail = await CommandBus(pool).get_audit_trail(command_id)
    assert trail[-1].event_type == "LATE_RESULT"
    assert trail[-1].details == {
        "outcome": "permanent",
        "error_code": "TOO_LATE",
        "claim_no": 1,
        "msg_id": late.msg_id,
        "worker_id": worker_id,
    }
    await assert_books_balance(pool)


async def test_of_many_who_settle_one_attempt_at_once_one_counts(pool):
    [command_id] = await send(pool)
    worker_id = await register(pool)
    claimed = await claim_one(pool, worker_id)
    outcomes = [
        completed(claimed, "won") if turn % 2 else failed(claimed, "permanent")
        for turn in range(32)
    ]

    answers = await asyncio.gather(*(settle(pool, worker_id, each) for each in outcomes))

    applied = [a for answer in answers for a in answer if a.verdict == "applied"]
    ended = await status(pool, command_id)
    assert ended in (CommandStatus.COMPLETED, CommandStatus.IN_TSQ)
    assert len(applied) == (ended == CommandStatus.IN_TSQ)
    assert sum(answer == [] for answer in answers) == (ended == CommandStatus.COMPLETED)
    assert len(await events(pool, command_id)) == (3 if ended == "COMPLETED" else 4)
    await assert_books_balance(pool)


async def test_settle_and_claim_of_the_same_command_agree_on_one_winner(pool):
    """A lease that is over: the late worker settles while another one claims."""
    ids = await send(pool, 30)
    worker_id, other = await register(pool), await register(pool)
    late = {each.command.command_id: each for each in await claim(pool, worker_id)}
    await expire_leases(pool, *ids)

    async def settle_late(command_id: UUID):
        return command_id, await settle(pool, worker_id, completed(late[command_id]))

    settled, *claims = await asyncio.gather(
        asyncio.gather(*map(settle_late, ids)),
        *(claim(pool, other, limit=7) for _ in range(6)),
    )

    won = {command_id for command_id, answers in settled if not answers}
    claimed = {each.command.command_id for part in claims for each in part}
    assert won.isdisjoint(claimed)
    for command_id in ids:
        expected = "COMPLETED" if command_id in won else "IN_PROGRESS"
        assert await status(pool, command_id) == expected
    await assert_books_balance(pool)


async def test_what_an_error_said_is_kept_in_row_trail_and_list(bus, tsq, pool):
    [command_id] = await send(pool)
    worker_id = await register(pool)
    claimed = await claim_one(pool, worker_id)

    await settle(
        pool,
        worker_id,
        failed(
            claimed,
            "permanent",
            error_code="INVALID_ACCOUNT",
            error_message="Account 5 does not exist",
            error_details={"account": 5, "limit": None},
        ),
    )

    command = await bus.get_command("test", command_id)
    assert command is not None
    assert command.last_error_type == "PERMANENT"
    assert command.last_error_code == "INVALID_ACCOUNT"
    assert command.last_error_message == "Account 5 does not exist"
    by_type = {each.event_type: each.details for each in await bus.get_audit_trail(command_id)}
    assert by_type["FAILED"]["error_details"] == {"account": 5, "limit": None}
    moved = by_type["MOVED_TO_TSQ"]
    assert {name: value for name, value in moved.items() if name.startswith("error_")} == {
        "error_type": "PERMANENT",
        "error_code": "INVALID_ACCOUNT",
        "error_message": "Account 5 does not exist",
        "error_details": {"account": 5, "limit": None},
    }
    [troubled] = await tsq.list("test")
    assert (troubled.error_code, troubled.attempts) == ("INVALID_ACCOUNT", 1)


async def test_a_worker_is_credited_with_what_it_did(pool):
    await send(pool, 5)
    worker_id = await register(pool)
    claimed = await claim(pool, worker_id)
    await settle(
        pool,
        worker_id,
        completed(claimed[0]),
        completed(claimed[1]),
        failed(claimed[2], "business"),
        failed(claimed[3], "permanent"),
        failed(claimed[4]),
    )

    [done] = await rows(
        pool, "select completed, failed, moved_to_tsq, retried from command_bus_worker"
    )
    assert done == (2, 1, 1, 1)


async def test_an_outcome_for_a_command_that_is_not_there_is_unknown(pool):
    await send(pool)
    worker_id = await register(pool)
    claimed = await claim_one(pool, worker_id)
    await rows(pool, "delete from command_bus_command")

    [answer] = await settle(pool, worker_id, completed(claimed))

    assert (answer.verdict, answer.status) == (Verdict.UNKNOWN, None)
    assert await value(pool, "select count(*) from command_bus_audit") == 2


async def test_nothing_to_settle_is_no_error(pool):
    async with store.autocommit(pool) as conn:
        assert await store.settle_commands(conn, "test", 1, "[]", "[]") == []
