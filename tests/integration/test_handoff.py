"""What a handler sends and publishes counts exactly when its outcome counts."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID, uuid4, uuid5

import pytest

from commandbus import (
    BusinessRuleError,
    CommandStatus,
    NewCommand,
    PermanentCommandError,
    TransientCommandError,
    store,
)
from commandbus.errors import InvalidCommandError, InvalidDomainError
from commandbus.models import ClaimedCommand, Settlement, Verdict
from tests.facts import (
    DOMAIN,
    Pool,
    assert_books_balance,
    claim,
    claim_one,
    completed,
    register,
    rows,
    send,
    status,
    value,
)
from tests.waiting import eventually, until

OTHER = "other"


@pytest.fixture(autouse=True)
async def other_domain(bus) -> None:
    await bus.create_domain(OTHER)


def follow_up(domain: str = OTHER, **fields: Any) -> dict[str, Any]:
    """A command as an outcome carries it."""
    command = {"command_id": str(uuid4()), "command_type": "Next", "data": {}, **fields}
    return {"domain": domain, "batch_id": None, "command": command}


def handed(
    claimed: ClaimedCommand, *sends: dict[str, Any], published: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    return {**completed(claimed), "sends": list(sends), "events": published or []}


async def hand_off(
    pool: Pool, worker_id: int, *outcomes: dict[str, Any], apart: bool = False
) -> list[Settlement]:
    async with store.autocommit(pool) as conn:
        return await store.settle_and_hand_off(
            conn, DOMAIN, worker_id, json.dumps(outcomes), apart=apart
        )


async def ended(bus, command_id: UUID) -> CommandStatus:
    async def look() -> CommandStatus:
        status: CommandStatus = (await bus.get_command(DOMAIN, command_id)).status
        return status

    return await eventually(
        look, lambda seen: seen not in (CommandStatus.PENDING, CommandStatus.IN_PROGRESS)
    )


async def sent_to_other(pool: Pool) -> list[Any]:
    return await rows(
        pool,
        "select command_id, command_type, data, correlation_id, headers, causation_id"
        " from command_bus_command where domain = 'other' order by command_type",
    )


async def test_what_a_handler_sends_is_there_when_its_command_is_completed(
    pool, bus, start_worker, registry
):
    correlation_id, trace = uuid4(), {"traceparent": "00-1"}
    own = uuid4()

    @registry.handler(DOMAIN, "DoIt")
    async def do_it(command, context):
        first = context.send(OTHER, "First", data={"n": 1})
        second = await context.send(
            OTHER, "Second", own, {"n": 2}, correlation_id=own, headers={"tenant": 7}
        )
        third = context.send(OTHER, "Third", headers={})
        return [str(first), str(second), str(third)]

    await start_worker()
    command_id = uuid4()
    await bus.send(DOMAIN, "DoIt", command_id, {}, correlation_id=correlation_id, headers=trace)

    assert await ended(bus, command_id) is CommandStatus.COMPLETED
    first, third = uuid5(command_id, "0"), uuid5(command_id, "2")
    assert await sent_to_other(pool) == [
        (first, "First", {"n": 1}, correlation_id, trace, command_id),
        (own, "Second", {"n": 2}, own, {"tenant": 7}, command_id),
        (third, "Third", {}, correlation_id, None, command_id),
    ]
    record = await bus.get_command(DOMAIN, command_id)
    assert record.result == [str(first), str(own), str(third)]
    caused = await bus.get_command(OTHER, first)
    assert caused.causation_id == command_id
    [sent] = await bus.get_audit_trail(first)
    assert sent.details["causation_id"] == str(command_id)
    await assert_books_balance(pool)


async def test_what_is_published_waits_in_the_outbox(bus, start_worker, registry):
    @registry.handler(DOMAIN, "DoIt")
    async def do_it(command, context):
        context.publish("Done", {"n": 1}, key="order-1")
        await context.publish("Told", [2], headers={"a": 1})

    await start_worker()
    command_id = uuid4()
    await bus.send(DOMAIN, "DoIt", command_id, {}, headers={"traceparent": "00-1"})
    await ended(bus, command_id)
    elsewhere = await bus.publish("Elsewhere", None, "order-1")

    waiting = await bus.read_outbox()

    assert [(e.event_type, e.key, e.data, e.headers, e.command_id) for e in waiting] == [
        ("Done", "order-1", {"n": 1}, {"traceparent": "00-1"}, command_id),
        ("Told", None, [2], {"a": 1}, command_id),
        ("Elsewhere", "order-1", None, {}, None),
    ]
    assert waiting[0].event_id == uuid5(command_id, "event 0")
    assert waiting[2].event_id == elsewhere
    assert await bus.delete_events(waiting[:2]) == 2
    assert await bus.delete_events(waiting[:2]) == 0
    assert await bus.read_outbox() == waiting[2:]


@pytest.mark.parametrize(
    "error",
    [
        TransientCommandError("T", "again"),
        PermanentCommandError("P", "never"),
        BusinessRuleError("B", "no"),
        ValueError("unexpected"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_failure_sends_nothing(pool, bus, start_worker, registry, error):
    @registry.handler(DOMAIN, "DoIt")
    async def do_it(command, context):
        context.send(OTHER, "Next")
        context.publish("Done", {})
        raise error

    await start_worker()
    command_id = uuid4()
    await bus.send(DOMAIN, "DoIt", command_id, {}, max_attempts=1)
    await ended(bus, command_id)

    assert await sent_to_other(pool) == []
    assert await bus.read_outbox() == []


async def test_a_late_result_sends_nothing(pool, bus):
    await send(pool)
    worker_id, other = await register(pool), await register(pool)
    late = await claim_one(pool, worker_id, seconds=0)
    await rows(pool, "update command_bus_worker set heartbeat_at = heartbeat_at + interval '1 h'")
    claimed = await claim_one(pool, other)

    [answer] = await hand_off(pool, worker_id, handed(late, follow_up()))
    assert answer.verdict is Verdict.LATE
    assert await sent_to_other(pool) == []

    assert await hand_off(pool, other, handed(claimed, follow_up())) == []
    assert len(await sent_to_other(pool)) == 1


async def test_an_outcome_that_is_recorded_twice_sends_once(pool, bus):
    await send(pool)
    worker_id = await register(pool)
    claimed = await claim_one(pool, worker_id)
    event = {"event_id": str(uuid4()), "event_type": "Done", "data": {}}
    outcome = handed(claimed, follow_up(), published=[event])
    assert await hand_off(pool, worker_id, outcome) == []

    [answer] = await hand_off(pool, worker_id, outcome)

    assert answer.verdict is Verdict.RECORDED
    assert len(await sent_to_other(pool)) == 1
    assert len(await bus.read_outbox()) == 1


async def test_a_second_run_sends_the_same_commands(pool, bus, start_worker, registry, tsq):
    """The derived ids are known then, where somebody has completed the first run's work."""
    runs = 0

    @registry.handler(DOMAIN, "DoIt")
    async def do_it(command, context):
        nonlocal runs
        runs += 1
        context.send(OTHER, "Next", data={"n": 1})
        if runs == 1:
            await bus.send(OTHER, "Next", uuid5(command.command_id, "0"), {"n": 1})
            raise TransientCommandError("T", "after the fact")

    await start_worker()
    command_id = uuid4()
    await bus.send(DOMAIN, "DoIt", command_id, {})

    assert await ended(bus, command_id) is CommandStatus.COMPLETED
    assert runs == 2
    assert len(await sent_to_other(pool)) == 1


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    "refused",
    [
        follow_up(command_id="00000000-0000-0000-0000-000000000001", data={"other": "content"}),
        follow_up(domain="nowhere"),
        follow_up(domain="dropped"),
        follow_up(reply_to="nowhere"),
    ],
    ids=["other content", "unknown domain", "dropped queue", "unknown reply queue"],
)
async def test_a_refused_follow_up_fails_only_its_own_command(pool, bus, refused, apart):
    await bus.create_domain("dropped")
    await rows(pool, "select pgmq.drop_queue('dropped__commands')")
    await bus.send(OTHER, "Next", UUID(int=1), {})
    ids = sorted(await send(pool, 3))
    worker_id = await register(pool)
    claimed = sorted(await claim(pool, worker_id), key=lambda each: each.command.command_id)
    event = {"event_id": str(uuid4()), "event_type": "Done", "data": {}, "key": "k"}

    answers = await hand_off(
        pool,
        worker_id,
        handed(claimed[0], follow_up(command_type="A")),
        handed(claimed[1], follow_up(command_type="B"), refused, published=[event]),
        handed(claimed[2], follow_up(command_type="C")),
        apart=apart,
    )

    assert [(a.command_id, a.verdict, a.status) for a in answers] == [
        (ids[1], Verdict.APPLIED, CommandStatus.IN_TSQ)
    ]
    assert [await status(pool, each) for each in ids] == ["COMPLETED", "IN_TSQ", "COMPLETED"]
    record = await bus.get_command(DOMAIN, ids[1])
    assert record.last_error_code == "FOLLOW_UP_REFUSED"
    assert record.last_error_message.startswith("The handler has run, but what it sends is refused")
    sent = [kind for _, kind, *_ in await sent_to_other(pool) if kind != "Next"]
    assert sent == ["A", "C"]
    assert await bus.read_outbox() == []


async def test_a_locked_reply_queue_holds_up_only_who_needs_it(pool, bus):
    reply_to = await bus.get_reply_queue(DOMAIN)
    [with_reply] = await send(pool, reply_to=reply_to)
    [without] = await send(pool)
    worker_id = await register(pool)
    claimed = [await claim_one(pool, worker_id, limit=1) for _ in range(2)]
    outcomes = [handed(each, follow_up()) for each in claimed]
    async with pool.connection() as conn:
        await conn.execute(f"lock table pgmq.q_{reply_to} in access exclusive mode".encode())

        [answer] = await hand_off(pool, worker_id, *outcomes, apart=True)

        assert (answer.command_id, answer.verdict) == (with_reply, Verdict.LOCKED)
        assert len(await sent_to_other(pool)) == 1
    assert await status(pool, without) == "COMPLETED"
    await hand_off(pool, worker_id, *outcomes, apart=True)
    assert await status(pool, with_reply) == "COMPLETED"
    assert len(await sent_to_other(pool)) == 2


async def test_a_key_that_somebody_holds_delays_its_own_event_only(
    pool, bus, start_worker, registry
):
    @registry.handler(DOMAIN, "DoIt")
    async def do_it(command, context):
        context.publish("Done", command.data, key=command.data)

    held, free = uuid4(), uuid4()
    async with bus.transaction() as conn:
        await bus.publish("Before", {}, "held", conn=conn)
        await start_worker()
        await bus.send(DOMAIN, "DoIt", held, "held")
        await bus.send(DOMAIN, "DoIt", free, "free")

        assert await ended(bus, free) is CommandStatus.COMPLETED
        assert (await bus.get_command(DOMAIN, held)).status is CommandStatus.IN_PROGRESS
        assert [event.event_type for event in await bus.read_outbox()] == ["Done"]
    assert await ended(bus, held) is CommandStatus.COMPLETED

    waiting = await bus.read_outbox()
    assert [e.event_type for e in waiting if e.key == "held"] == ["Before", "Done"]


async def test_events_of_a_key_are_read_in_the_order_of_their_commits(pool, bus):
    """Who comes second waits, and takes a later place."""
    async with bus.transaction() as conn:
        await bus.publish("First", {}, "k", conn=conn)
        second = asyncio.create_task(bus.publish("Second", {}, "k"))
        await bus.publish("Another key", {}, "l")
        await eventually(
            lambda: value(
                pool,
                "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
                " and strpos(query, 'publish_events') > 0",
            )
        )
        assert [event.event_type for event in await bus.read_outbox()] == ["Another key"]
    await second

    assert [e.event_type for e in await bus.read_outbox() if e.key == "k"] == ["First", "Second"]


async def test_what_is_sent_after_the_handler_has_ended_is_refused(bus, start_worker, registry):
    kept: list[Any] = []

    @registry.handler(DOMAIN, "DoIt")
    async def do_it(command, context):
        kept.append(context)

    await start_worker()
    command_id = uuid4()
    await bus.send(DOMAIN, "DoIt", command_id, {})
    await ended(bus, command_id)

    with pytest.raises(RuntimeError, match="ended"):
        kept[0].send(OTHER, "Next")
    with pytest.raises(RuntimeError, match="ended"):
        kept[0].publish("Done", {})


async def test_what_can_never_be_sent_is_refused_where_it_is_given(bus, start_worker, registry):
    seen: list[str] = []

    @registry.handler(DOMAIN, "DoIt")
    async def do_it(command, context):
        given: list[tuple[str, str, dict[str, Any]]] = [
            ("Not A Domain", "Next", {}),
            (OTHER, "", {}),
            (OTHER, "Next", {"data": {"nul": "\0"}}),
            (OTHER, "Next", {"max_attempts": 0}),
            (OTHER, "Next", {"delay": -1}),
            (OTHER, "Next", {"batch_id": "x"}),
            (OTHER, "Next", {"headers": 1}),
        ]
        for domain, kind, options in given:
            with pytest.raises((InvalidCommandError, InvalidDomainError)) as caught:
                context.send(domain, kind, **options)
            seen.append(str(caught.value))
        for kind, data, key in [("", {}, None), ("E", object(), None), ("E", {}, ""), ("E", {}, 1)]:
            with pytest.raises(InvalidCommandError) as caught:
                context.publish(kind, data, key)
            seen.append(str(caught.value))

    await start_worker()
    command_id = uuid4()
    await bus.send(DOMAIN, "DoIt", command_id, {})

    assert await ended(bus, command_id) is CommandStatus.COMPLETED
    assert len(seen) == 11


async def test_follow_ups_go_with_a_batch_and_a_delay(bus, start_worker, registry):
    batch_id = uuid4()

    @registry.handler(DOMAIN, "DoIt")
    async def do_it(command, context):
        context.send(OTHER, "Next", UUID(int=7), batch_id=batch_id, delay=3600, max_attempts=9)

    await start_worker()
    command_id = uuid4()
    await bus.send(DOMAIN, "DoIt", command_id, {})
    await ended(bus, command_id)

    record = await bus.get_command(OTHER, UUID(int=7))
    assert (record.batch_id, record.msg_id, record.max_attempts) == (batch_id, None, 9)


async def test_many_follow_ups_of_many_commands_arrive(pool, bus, start_worker, registry):
    @registry.handler(DOMAIN, "DoIt")
    async def do_it(command, context):
        for n in range(3):
            context.send(OTHER, "Next", data={"n": n})
        if command.data["n"] % 2:
            context.publish("Done", command.data, key=str(command.data["n"] % 5))

    await bus.send_many(
        DOMAIN,
        [NewCommand(command_type="DoIt", command_id=uuid4(), data={"n": n}) for n in range(300)],
    )
    worker = await start_worker(concurrency=20, batch_size=50)
    await until(lambda: worker.outcomes_recorded == 300)

    assert (
        await value(pool, "select count(*) from command_bus_command where domain = 'other'") == 900
    )
    assert len(await bus.read_outbox(limit=1000)) == 150
    await assert_books_balance(pool)
