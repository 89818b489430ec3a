"""What operators do: one winner for each command, an answer for each id, a trail with a name."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import pytest

from commandbus import CommandStatus, OperatorVerdict
from commandbus.errors import (
    CommandNotFoundError,
    InvalidCommandError,
    InvalidStateError,
    UnknownDomainError,
)
from commandbus.ops import TroubleshootingQueue
from tests.facts import (
    REPLIES,
    Pool,
    assert_books_balance,
    claim,
    claim_one,
    completed,
    count,
    events,
    expire_leases,
    failed,
    make_due,
    queued,
    register,
    replies,
    rows,
    send,
    settle,
    status,
)


async def trouble(pool: Pool, number: int = 1, **fields: Any) -> list[UUID]:
    """Commands in the troubleshooting queue."""
    error = {name: fields.pop(name) for name in [*fields] if name.startswith("error_")}
    ids = await send(pool, number, **fields)
    worker_id = await register(pool)
    claimed = await claim(pool, worker_id, limit=number)
    await settle(pool, worker_id, *(failed(each, "permanent", **error) for each in claimed))
    return ids


async def test_an_operators_retry_starts_with_fresh_attempts(
    bus, tsq: TroubleshootingQueue, pool: Pool
):
    [command_id] = await trouble(pool, max_attempts=1)

    answer = await tsq.operator_retry("test", command_id, operator="olga")

    assert (answer.verdict, answer.status) == (OperatorVerdict.DONE, CommandStatus.PENDING)
    [*_, event] = await bus.get_audit_trail(command_id)
    assert (event.event_type, event.details["operator"]) == ("OPERATOR_RETRY", "olga")
    worker_id = await register(pool)
    claimed = await claim_one(pool, worker_id)
    assert (claimed.attempt, claimed.claim_no) == (1, 2)
    await settle(pool, worker_id, completed(claimed))
    assert await status(pool, command_id) == CommandStatus.COMPLETED
    assert await tsq.count() == 0
    await assert_books_balance(pool)


async def test_a_cancelled_command_ends_with_the_reason_in_its_trail(bus, tsq, pool):
    [command_id] = await trouble(pool)

    await tsq.operator_cancel("test", command_id, operator="olga", reason="no longer wanted")

    assert await status(pool, command_id) == CommandStatus.CANCELLED
    [*_, event] = await bus.get_audit_trail(command_id)
    assert event.event_type == "OPERATOR_CANCEL"
    assert (event.details["operator"], event.details["reason"]) == ("olga", "no longer wanted")


async def test_a_command_completed_by_hand_keeps_result_and_notes(bus, tsq, pool):
    [command_id] = await trouble(pool)

    await tsq.operator_complete(
        "test", command_id, operator="olga", result_data={"fixed": True}, notes="by phone"
    )

    command = await bus.get_command("test", command_id)
    assert command is not None
    assert (command.status, command.result) == (CommandStatus.COMPLETED, {"fixed": True})
    [*_, event] = await bus.get_audit_trail(command_id)
    assert event.event_type == "OPERATOR_COMPLETE"
    assert event.details["operator"] == "olga"
    assert event.details["notes"] == "by phone"
    assert event.details["result_data"] == {"fixed": True}


@pytest.mark.parametrize(
    "action", ["operator_retry", "operator_cancel", "operator_complete", "undo_retry"]
)
async def test_a_refused_action_names_the_status_of_the_command(tsq, pool, action):
    [command_id] = await send(pool)

    with pytest.raises(InvalidStateError) as refused:
        await getattr(tsq, action)("test", command_id)
    with pytest.raises(CommandNotFoundError):
        await getattr(tsq, action)("test", uuid4())
    with pytest.raises(UnknownDomainError):
        await getattr(tsq, action)("nowhere", command_id)

    assert refused.value.current_status == CommandStatus.PENDING
    assert await events(pool, command_id) == ["SENT"]


@pytest.mark.parametrize("result", ["\0", float("nan"), {"a": "\ud800"}, {1, 2}], ids=ascii)
async def test_a_result_that_cannot_be_stored_is_refused_and_changes_nothing(tsq, pool, result):
    [command_id] = await trouble(pool)

    with pytest.raises(InvalidCommandError):
        await tsq.operator_complete("test", command_id, result_data=result)

    assert await status(pool, command_id) == CommandStatus.IN_TSQ


async def test_a_set_is_answered_id_by_id_in_its_order(tsq, pool):
    in_tsq = await trouble(pool, 3)
    [pending] = await send(pool)
    unknown = uuid4()
    asked = [in_tsq[2], unknown, pending, in_tsq[0], in_tsq[2]]

    answers = await tsq.operator_retry_many("test", asked)

    assert [(each.command_id, each.verdict.value) for each in answers] == [
        (in_tsq[2], "done"),
        (unknown, "not_found"),
        (pending, "conflict"),
        (in_tsq[0], "done"),
    ]
    assert await status(pool, in_tsq[1]) == CommandStatus.IN_TSQ
    assert await queued(pool) == 3
    await assert_books_balance(pool)


async def test_sets_are_cancelled_and_completed(tsq, pool):
    ids = await trouble(pool, 6, reply_to=REPLIES)

    await tsq.operator_cancel_many("test", ids[:3], "olga", "all of them")
    await tsq.operator_complete_many("test", ids[3:], "olga", {"ok": 1})

    assert [await status(pool, each) for each in ids] == ["CANCELLED"] * 3 + ["COMPLETED"] * 3
    assert len(await replies(pool)) == 6
    assert await tsq.count() == 0
    assert await tsq.operator_retry_many("test", []) == []
    await assert_books_balance(pool)


# A delayed retry and its undo


async def test_a_delayed_retry_can_be_taken_back(bus, tsq, pool):
    [command_id] = await trouble(pool, error_code="E_ONE")
    [before] = await tsq.list()

    await tsq.operator_retry("test", command_id, "olga", delay_seconds=60)
    assert await tsq.count() == 0
    assert await claim(pool, await register(pool)) == []
    await tsq.undo_retry("test", command_id, "olga")

    assert await tsq.list() == [before]
    command = await bus.get_command("test", command_id)
    assert command is not None
    assert (command.status, command.attempts) == (CommandStatus.IN_TSQ, 1)
    assert (await events(pool, command_id))[-2:] == ["OPERATOR_RETRY", "OPERATOR_RETRY_UNDONE"]
    await assert_books_balance(pool)


async def test_a_delayed_retry_runs_when_its_time_has_come(tsq, pool):
    [command_id] = await trouble(pool)
    await tsq.operator_retry("test", command_id, delay_seconds=60)
    await make_due(pool, command_id)

    claimed = await claim_one(pool, await register(pool))

    assert claimed.attempt == 1
    with pytest.raises(InvalidStateError):
        await tsq.undo_retry("test", command_id)


async def test_an_undo_and_a_claim_at_once_have_one_winner(tsq, pool):
    ids = await trouble(pool, 30)
    await tsq.operator_retry_many("test", ids, delay_seconds=60)
    await make_due(pool, *ids)
    worker_id = await register(pool)

    undone, *claims = await asyncio.gather(
        asyncio.gather(*(tsq.undo_retry_many("test", [each]) for each in ids)),
        *(claim(pool, worker_id, limit=6) for _ in range(6)),
    )

    back = {answer.command_id for [answer] in undone if answer.verdict == "done"}
    taken = {each.command.command_id for part in claims for each in part}
    assert back.isdisjoint(taken)
    for command_id in ids:
        assert (await status(pool, command_id) == "IN_TSQ") == (command_id in back)
    await assert_books_balance(pool)


# Before a worker takes it


@pytest.mark.parametrize("delay", [0, 60])
async def test_a_pending_command_is_cancelled_wherever_it_waits(tsq, pool, delay):
    [command_id] = await send(pool, delay=delay)

    await tsq.cancel_pending("test", command_id, "olga", "not needed")

    assert await status(pool, command_id) == CommandStatus.CANCELLED
    assert await queued(pool) == 0
    assert await count(pool, "command_bus_waiting", command_id) == 0
    assert await claim(pool, await register(pool)) == []
    await assert_books_balance(pool)


async def test_a_cancellation_and_a_claim_at_once_have_one_winner(tsq, pool):
    ids = await send(pool, 40)
    late = await send(pool, 10, delay=60)
    await make_due(pool, *late)
    worker_id = await register(pool)

    async def cancel(command_id: UUID) -> UUID | None:
        try:
            await tsq.cancel_pending("test", command_id)
        except InvalidStateError:
            return None
        return command_id

    cancelled, claims = await asyncio.gather(
        asyncio.gather(*map(cancel, [*ids, *late])),
        asyncio.gather(*(claim(pool, worker_id, limit=8) for _ in range(8))),
    )

    gone = {each for each in cancelled if each}
    taken = {each.command.command_id for part in claims for each in part}
    assert gone.isdisjoint(taken)
    assert len(gone) + len(taken) + len(await claim(pool, worker_id)) == 50
    await assert_books_balance(pool)


# Races of operators

ACTIONS = ("operator_retry", "operator_cancel", "operator_complete")


async def act(tsq: TroubleshootingQueue, action: str, command_id: UUID) -> str:
    try:
        await getattr(tsq, action)("test", command_id, operator=action)
    except InvalidStateError as exc:
        return "refused" if exc.current_status is not CommandStatus.IN_TSQ else "lied to"
    return action


@pytest.mark.parametrize("action", ACTIONS)
async def test_of_many_identical_actions_at_once_one_wins(tsq, pool, action):
    [command_id] = await trouble(pool, reply_to=REPLIES)

    answers = await asyncio.gather(*(act(tsq, action, command_id) for _ in range(32)))

    assert Counter(answers) == {action: 1, "refused": 31}
    assert len([each for each in await events(pool, command_id) if "OPERATOR" in each]) == 1
    assert await queued(pool) == (action == "operator_retry")
    assert len(await replies(pool)) == (action != "operator_retry")
    await assert_books_balance(pool)


async def test_of_many_different_actions_at_once_one_wins(tsq, pool):
    for _ in range(5):
        [command_id] = await trouble(pool, reply_to=REPLIES)

        answers = await asyncio.gather(*(act(tsq, ACTIONS[n % 3], command_id) for n in range(32)))

        [winner] = set(answers) - {"refused"}
        assert Counter(answers) == {winner: 1, "refused": 31}
        [event] = [each for each in await events(pool, command_id) if "OPERATOR" in each]
        assert event == winner.upper()
        await rows(pool, "select pgmq.purge_queue('test__commands')")


async def test_overlapping_sets_in_any_order_do_not_deadlock(tsq, pool):
    ids = await trouble(pool, 60)

    answers = await asyncio.gather(
        *(
            getattr(tsq, f"{ACTIONS[turn % 3]}_many")("test", ids[:: 1 if turn % 2 else -1])
            for turn in range(12)
        )
    )

    done = [each.command_id for part in answers for each in part if each.verdict == "done"]
    assert sorted(done) == sorted(ids)
    await assert_books_balance(pool)


# The list


async def test_the_list_shows_the_latest_first_and_pages_by_key(tsq, pool):
    ids = [command_id for _ in range(5) for command_id in await trouble(pool)]

    first = await tsq.list(limit=3)
    rest = await tsq.list(limit=3, cursor=first[-1].cursor)

    assert [each.command_id for each in (*first, *rest)] == ids[::-1]
    assert await tsq.count() == 5


async def test_the_list_is_filtered(bus, tsq, pool):
    [one] = await trouble(pool, error_code="E_ONE", command_type="A")
    [two] = await trouble(pool, error_code="E_TWO", command_type="B")

    async def listed(*args: Any, **filters: Any) -> list[UUID]:
        found = await tsq.list(*args, **filters)
        assert await tsq.count(*args, **filters) == len(found)
        return [each.command_id for each in found]

    assert await listed("test") == [two, one]
    assert await listed("other") == []
    assert await listed(error_code="E_ONE") == [one]
    assert await listed(command_type="B") == [two]
    assert await listed(command_type="B", error_code="E_ONE") == []


async def test_failures_that_look_alike_share_a_group(tsq, pool):
    await trouble(pool, error_message="Account 5 of 'Anna' does not exist")
    await trouble(pool, error_message="Account 123 of 'Bert' does not exist")
    await trouble(pool, error_message="Another sentence")

    groups = Counter(each.group_id for each in await tsq.list())

    assert sorted(groups.values()) == [1, 2]
    [largest] = [group for group, number in groups.items() if number == 2]
    assert len(await tsq.list(group_id=largest)) == 2


async def test_the_list_knows_the_first_and_the_last_failure(tsq, pool):
    [command_id] = await send(pool, max_attempts=2)
    worker_id = await register(pool)
    await settle(pool, worker_id, failed(await claim_one(pool, worker_id)))
    await settle(pool, worker_id, failed(await claim_one(pool, worker_id)))

    [troubled] = await tsq.list()

    assert troubled.command_id == command_id
    assert troubled.created_at < troubled.first_failed_at < troubled.last_failed_at
    assert troubled.attempts == 2


# A row of the queue's list is gone, by somebody else's hand


async def lost(pool: Pool, **fields: Any) -> UUID:
    [command_id] = await trouble(pool, **fields)
    await rows(pool, "delete from command_bus_tsq")
    return command_id


@pytest.mark.parametrize("seconds", [0, 3600])
async def test_a_command_missing_in_the_list_is_retried_and_carried(tsq, pool, seconds):
    command_id = await lost(pool)

    await tsq.operator_retry("test", command_id, delay_seconds=seconds)

    assert await status(pool, command_id) is CommandStatus.PENDING
    await assert_books_balance(pool)


async def test_the_delayed_retry_of_a_command_missing_in_the_list_can_be_undone(tsq, pool):
    command_id = await lost(pool)
    await tsq.operator_retry("test", command_id, delay_seconds=3600)

    await tsq.undo_retry("test", command_id)

    [troubled] = await tsq.list()
    assert (troubled.command_id, troubled.error_code) == (command_id, "E_CODE")
    await assert_books_balance(pool)


async def test_an_undone_retry_needs_nothing_that_was_remembered_for_it(tsq, pool):
    [command_id] = await trouble(pool)
    await tsq.operator_retry("test", command_id, delay_seconds=3600)
    await rows(pool, "update command_bus_waiting set before_retry = null")

    await tsq.undo_retry("test", command_id)

    assert [each.command_id for each in await tsq.list()] == [command_id]
    await assert_books_balance(pool)


@pytest.mark.parametrize("action", ["operator_cancel", "operator_complete"])
async def test_a_command_missing_in_the_list_can_be_ended(tsq, pool, action):
    command_id = await lost(pool, reply_to=REPLIES)

    await getattr(tsq, action)("test", command_id)

    assert (await status(pool, command_id)).is_final
    assert len(await replies(pool)) == 1
    await assert_books_balance(pool)


async def test_a_single_failure_is_the_first_and_the_last_at_one_moment(tsq, pool):
    ids = await send(pool, 2, max_attempts=1)
    worker_id = await register(pool)
    fails, lasts = await claim(pool, worker_id)
    await settle(pool, worker_id, failed(fails, "permanent"))
    await expire_leases(pool, lasts.command.command_id)
    assert await claim(pool, worker_id) == []

    listed = {each.command_id: each for each in await tsq.list()}

    assert listed.keys() == set(ids)
    for each in listed.values():
        assert each.first_failed_at == each.last_failed_at <= each.entered_at
    assert await rows(
        pool,
        "select distinct g.first_seen_at = greatest(g.last_seen_at, d.at)"
        " from command_bus_tsq_group as g join command_bus_tsq_delta as d using (group_id)",
    ) == [(True,)]
