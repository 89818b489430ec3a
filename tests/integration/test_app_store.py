"""Writes of the application's own tables."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest
from psycopg.errors import UniqueViolation

from app.testcommand import store
from commandbus import CommandBus, uuid7
from commandbus.errors import UnknownDomainError

SUCCESS = {"type": "success"}


@pytest.fixture
async def conn(pool):
    async with pool.connection() as connection:
        yield connection


async def test_a_test_command_is_created_changed_and_deleted(conn):
    command_id = uuid4()
    assert await store.create_test_command(conn, command_id, SUCCESS, {"a": 1})
    assert (
        await store.update_test_commands(
            conn, [{"command_id": command_id, "behavior": {"type": "timeout"}}]
        )
        == 1
    )
    found = (await store.get_test_commands(conn, [command_id]))[command_id]
    assert (found.behavior, found.payload) == ({"type": "timeout"}, {"a": 1})
    assert (found.attempts, found.processed_at, found.result) == (0, None, None)
    assert await store.delete_test_commands(conn, [command_id, uuid4()]) == 1
    assert await store.get_test_commands(conn, [command_id]) == {}


async def test_a_test_command_is_created_once_and_keeps_its_row(conn):
    command_id = uuid4()
    assert await store.create_test_command(conn, command_id, SUCCESS, {"a": 1})
    assert not await store.create_test_command(conn, command_id, {"type": "timeout"}, {})
    found = (await store.get_test_commands(conn, [command_id]))[command_id]
    assert (found.behavior, found.payload) == (SUCCESS, {"a": 1})


async def test_attempts_are_counted_for_those_that_exist(conn):
    first, second, unknown = uuid4(), uuid4(), uuid4()
    for each in (first, second):
        await store.create_test_command(conn, each, SUCCESS, {})
    await store.begin_attempts(conn, [first])
    begun = await store.begin_attempts(conn, [first, second, unknown])
    assert begun == {
        first: store.BegunAttempt(SUCCESS, 2),
        second: store.BegunAttempt(SUCCESS, 1),
    }


async def test_results_are_written_with_the_time(conn):
    first, second = uuid4(), uuid4()
    for each in (first, second):
        await store.create_test_command(conn, each, SUCCESS, {})
    assert await store.finish_test_commands(conn, {first: {"status": "success"}}) == 1
    rows = await store.get_test_commands(conn, [first, second])
    assert rows[first].result == {"status": "success"}
    assert rows[first].processed_at is not None
    assert rows[second].processed_at is None


def rows_json(*command_ids, **members):
    return json.dumps(
        [
            {
                "command_id": str(each),
                "command_type": "TestCommand",
                "data": {"n": 1},
                "behavior": SUCCESS,
                **members,
            }
            for each in command_ids
        ]
    )


async def test_test_commands_and_their_commands_are_written_together(pool, conn):
    command_ids, batch_id = [uuid7() for _ in range(3)], uuid7()
    sent = await store.create_and_send_test_commands(
        conn, "test", rows_json(*command_ids, max_attempts=2), batch_id
    )
    await conn.commit()

    assert sent == 3
    bus = CommandBus(pool)
    command = await bus.get_command("test", command_ids[0])
    assert command is not None
    assert (command.data, command.max_attempts, command.batch_id) == ({"n": 1}, 2, batch_id)
    progress = await bus.get_batch(batch_id)
    assert progress is not None
    assert progress.sent == progress.open == 3
    assert len(await store.get_test_commands(conn, command_ids)) == 3


async def test_a_known_id_or_domain_writes_nothing(pool, conn):
    known, new = uuid7(), uuid7()
    await store.create_and_send_test_commands(conn, "test", rows_json(known), None)
    await conn.commit()
    with pytest.raises(UniqueViolation):
        await store.create_and_send_test_commands(conn, "test", rows_json(known, new), None)
    await conn.rollback()
    with pytest.raises(UnknownDomainError):
        await store.create_and_send_test_commands(conn, "nowhere", rows_json(new), None)
    await conn.rollback()
    assert await store.get_test_commands(conn, [new]) == {}


async def test_one_test_command_and_its_command_are_written_together(pool, conn):
    command_id, batch_id = uuid7(), uuid7()
    [row] = json.loads(rows_json(command_id, max_attempts=2))
    await store.create_and_send_test_command(conn, "test", json.dumps(row), batch_id)
    await conn.commit()

    command = await CommandBus(pool).get_command("test", command_id)
    assert command is not None
    assert (command.data, command.max_attempts, command.batch_id) == ({"n": 1}, 2, batch_id)
    stored = (await store.get_test_commands(conn, [command_id]))[command_id]
    assert (stored.behavior, stored.payload) == (SUCCESS, {"n": 1})


async def test_one_known_id_or_unknown_domain_writes_nothing(conn):
    command_id, other = uuid7(), uuid7()
    [row, unsent] = json.loads(rows_json(command_id, other))
    await store.create_and_send_test_command(conn, "test", json.dumps(row), None)
    await conn.commit()
    with pytest.raises(UniqueViolation):
        await store.create_and_send_test_command(conn, "test", json.dumps(row), None)
    await conn.rollback()
    with pytest.raises(UnknownDomainError):
        await store.create_and_send_test_command(conn, "nowhere", json.dumps(unsent), None)
    await conn.rollback()
    assert await store.get_test_commands(conn, [other]) == {}
