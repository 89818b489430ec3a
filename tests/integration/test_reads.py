"""Asking the bus: lists by filter and page, and the trail of one command."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from commandbus import AuditEventType, CommandBus, CommandStatus
from tests.facts import Pool, claim, completed, failed, register, rows, send, settle


async def ids_of(bus: CommandBus, **filters) -> list[UUID]:
    return [each.command_id for each in (await bus.query_commands(**filters)).commands]


async def test_an_unknown_command_is_none_and_has_no_trail(bus: CommandBus):
    assert await bus.get_command("test", uuid4()) is None
    assert await bus.get_command("nowhere", uuid4()) is None
    assert await bus.get_audit_trail(uuid4()) == []


async def test_commands_are_listed_newest_first(bus, pool):
    ids = [command_id for _ in range(5) for command_id in await send(pool)]

    page = await bus.query_commands()

    assert [each.command_id for each in page.commands] == ids[::-1]
    assert page.next_cursor is None
    assert page.commands[0] == await bus.get_command("test", ids[-1])


async def test_a_page_reads_like_a_list_of_its_commands(bus, pool):
    ids = [command_id for _ in range(3) for command_id in await send(pool)]

    page = await bus.query_commands()

    assert len(page) == 3
    assert [command.command_id for command in page] == ids[::-1]
    assert page[0] == page.commands[0]
    assert len(await bus.query_commands(status="FAILED")) == 0


async def test_pages_hold_every_command_once_even_of_one_moment(bus, pool):
    one_moment = await send(pool, 25)
    later = [command_id for _ in range(3) for command_id in await send(pool)]

    seen, cursor, pages = [], None, 0
    while True:
        page = await bus.query_commands(limit=7, cursor=cursor)
        seen += [each.command_id for each in page.commands]
        pages += 1
        cursor = page.next_cursor
        if cursor is None:
            break

    assert pages == 4
    assert seen[:3] == later[::-1]
    assert seen[3:] == sorted(one_moment, reverse=True)


async def test_a_page_that_ends_exactly_is_the_last(bus, pool):
    await send(pool, 6)
    first = await bus.query_commands(limit=3)

    assert (await bus.query_commands(limit=3, cursor=first.next_cursor)).next_cursor is None


async def test_commands_sent_meanwhile_do_not_shift_the_pages(bus, pool):
    ids = [command_id for _ in range(4) for command_id in await send(pool)]
    first = await bus.query_commands(limit=2)
    await send(pool, 3)

    second = await bus.query_commands(limit=2, cursor=first.next_cursor)

    assert [each.command_id for each in second.commands] == [ids[1], ids[0]]


async def test_every_filter_narrows_the_list(bus, pool):
    correlation_id, batch_id = uuid4(), uuid4()
    await bus.create_domain("other")
    [plain] = await send(pool)
    [typed] = await send(pool, command_type="Other")
    [talking] = await send(pool, correlation_id=correlation_id)
    elsewhere, batched = uuid4(), uuid4()
    await bus.send("other", "DoIt", elsewhere, {})
    await bus.send("test", "DoIt", batched, {}, batch_id=batch_id)

    assert await ids_of(bus, domain="other") == [elsewhere]
    assert await ids_of(bus, domain="nowhere") == []
    assert await ids_of(bus, command_type="Other") == [typed]
    assert await ids_of(bus, correlation_id=correlation_id) == [talking]
    assert await ids_of(bus, batch_id=batch_id) == [batched]
    assert await ids_of(bus, domain="test", command_type="DoIt") == [batched, talking, plain]
    assert await ids_of(bus, domain="other", batch_id=batch_id) == []


async def test_commands_are_found_by_status(bus, pool):
    ids = await send(pool, 5)
    worker_id = await register(pool)
    by_id = {each.command.command_id: each for each in await claim(pool, worker_id, limit=4)}
    held = [each for each in ids if each in by_id]
    await settle(
        pool,
        worker_id,
        completed(by_id[held[0]]),
        failed(by_id[held[1]], "business"),
        failed(by_id[held[2]], "permanent"),
    )

    found = {
        status: await ids_of(bus, status=status)
        for status in CommandStatus
        if status is not CommandStatus.PENDING
    }

    assert found == {
        CommandStatus.IN_PROGRESS: [held[3]],
        CommandStatus.COMPLETED: [held[0]],
        CommandStatus.FAILED: [held[1]],
        CommandStatus.IN_TSQ: [held[2]],
        CommandStatus.CANCELLED: [],
    }
    assert len(await ids_of(bus, status="PENDING")) == 1


async def test_the_beginning_of_a_time_range_belongs_to_it_and_the_end_does_not(bus, pool):
    ids = [command_id for _ in range(3) for command_id in await send(pool)]
    middle = await bus.get_command("test", ids[1])
    assert middle is not None

    assert await ids_of(bus, created_after=middle.created_at) == [ids[2], ids[1]]
    assert await ids_of(bus, created_before=middle.created_at) == [ids[0]]
    assert await ids_of(bus, created_after=datetime.now(UTC) + timedelta(hours=1)) == []


@pytest.mark.parametrize(
    "bad", [{"limit": 0}, {"limit": 1001}, {"cursor": "x"}, {"status": "NEW"}], ids=str
)
async def test_questions_that_make_no_sense_are_refused(bus, bad):
    with pytest.raises(ValueError, match=r"limit|cursor|NEW"):
        await bus.query_commands(**bad)


async def test_a_trail_tells_each_step_with_its_attempt(bus, pool):
    [command_id] = await send(pool)
    worker_id = await register(pool)
    [first] = await claim(pool, worker_id)
    await settle(pool, worker_id, failed(first))
    [second] = await claim(pool, worker_id)
    await settle(pool, worker_id, completed(second))

    trail = await bus.get_audit_trail(command_id, "test")

    assert [(each.event_type.value, each.details.get("attempt")) for each in trail] == [
        ("SENT", None),
        ("RECEIVED", 1),
        ("FAILED", 1),
        ("RETRY_SCHEDULED", 1),
        ("RECEIVED", 2),
        ("COMPLETED", 2),
    ]
    assert [each.audit_id for each in trail] == sorted(each.audit_id for each in trail)
    assert [each.created_at for each in trail] == sorted(each.created_at for each in trail)
    assert {each.command_id for each in trail} == {command_id}
    assert trail[1].details["worker_id"] == worker_id
    assert trail[1].details["msg_id"] == first.msg_id
    assert isinstance(trail[0].event_type, AuditEventType)


async def test_a_trail_may_be_asked_for_one_domain(bus, pool: Pool):
    [command_id] = await send(pool)
    await bus.create_domain("other")
    await bus.send("other", "DoIt", command_id, {})

    assert {each.domain for each in await bus.get_audit_trail(command_id)} == {"test", "other"}
    assert {each.domain for each in await bus.get_audit_trail(command_id, "other")} == {"other"}
    assert await bus.get_audit_trail(command_id, "nowhere") == []


async def test_reads_leave_a_connection_as_they_found_it(bus, pool):
    await bus.query_commands()

    async with pool.connection() as conn:
        assert not conn.autocommit
    assert await rows(pool, "select 1") == [(1,)]
