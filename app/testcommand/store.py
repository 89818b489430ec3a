"""Writes of the application's own tables: test commands and the stored configuration.

Every function takes a connection and never commits, so that a test command and its command can be
written in one transaction (`CommandBus.send(conn=…)`). Sets go in as one jsonb parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row
from psycopg.types.json import Jsonb

from commandbus.errors import translate_errors

Connection = AsyncConnection[TupleRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class TestCommandRow:
    """A test command as it is stored; *behavior* is what was written, not yet validated."""

    __test__ = False  # its name would make pytest collect it

    command_id: UUID
    payload: Any
    behavior: Any
    created_at: datetime
    processed_at: datetime | None
    attempts: int
    result: Any


@dataclass(frozen=True, slots=True)
class BegunAttempt:
    """What an attempt has to do: the stored behaviour, and its number counted from 1."""

    behavior: Any
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredConfiguration:
    """The configuration row: only values that somebody set, by name."""

    worker: dict[str, Any]
    retry: dict[str, Any]
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationChange:
    """One version of the configuration: what was stored from then on, and by whom."""

    version: int
    changed_at: datetime
    changed_by: str
    worker: dict[str, Any]
    retry: dict[str, Any]


# Test commands
#
# Statements that join a set with test_command are planned again each time (prepare=False): a plan
# kept from when the table was empty would scan it after a bulk load.


async def create_test_command(
    conn: Connection, command_id: UUID, behavior: Mapping[str, Any], payload: Mapping[str, Any]
) -> bool:
    """Insert a test command; False where the id is known, whose row stays as it is."""
    with translate_errors():
        cur = await conn.execute(
            """
            insert into public.test_command (command_id, payload, behavior)
            values (%s, %s, %s)
            on conflict (command_id) do nothing
            """,
            (command_id, Jsonb(payload), Jsonb(behavior)),
        )
        return cur.rowcount == 1


async def update_test_commands(conn: Connection, rows: Iterable[Mapping[str, Any]]) -> int:
    """Change what {command_id, behavior?, payload?} name; returns how many of them exist."""
    with translate_errors():
        cur = await conn.execute(
            """
            update public.test_command as test
            set behavior = coalesce(given.behavior, test.behavior),
                payload = coalesce(given.payload, test.payload)
            from jsonb_to_recordset(%s) as given (command_id uuid, payload jsonb, behavior jsonb)
            where test.command_id = given.command_id
            """,
            (_rows_json(rows),),
            prepare=False,
        )
        return cur.rowcount


async def delete_test_commands(conn: Connection, command_ids: Iterable[UUID]) -> int:
    """Delete test commands; returns how many there were."""
    cur = await conn.execute(
        "delete from public.test_command where command_id = any(%s)",
        (list(command_ids),),
        prepare=False,
    )
    return cur.rowcount


async def delete_orphaned_test_commands(conn: Connection, command_ids: Iterable[UUID]) -> int:
    """Delete those of the test commands whose command is gone; returns how many there were."""
    cur = await conn.execute(
        """
        delete from public.test_command as test
        where test.command_id = any(%s) and not exists (
            select from public.command_bus_command as command
            where command.command_id = test.command_id
        )
        """,
        (list(command_ids),),
        prepare=False,
    )
    return cur.rowcount


async def get_test_commands(
    conn: Connection, command_ids: Iterable[UUID]
) -> dict[UUID, TestCommandRow]:
    """The test commands that exist, by id."""
    async with conn.cursor(row_factory=class_row(TestCommandRow)) as cur:
        await cur.execute(
            """
            select command_id, payload, behavior, created_at, processed_at, attempts, result
            from public.test_command
            where command_id = any(%s)
            """,
            (list(command_ids),),
            prepare=False,
        )
        return {row.command_id: row for row in await cur.fetchall()}


async def begin_attempts(conn: Connection, command_ids: Iterable[UUID]) -> dict[UUID, BegunAttempt]:
    """Count one more attempt of each command; what it has to do, for those that exist.

    Rows are locked in the order of their ids, so that overlapping sets cannot deadlock.
    """
    cur = await conn.execute(
        """
        update public.test_command as test
        set attempts = coalesce(test.attempts, 0) + 1
        from (
            select command_id
            from public.test_command
            where command_id = any(%s)
            order by command_id
            for no key update
        ) as given
        where test.command_id = given.command_id
        returning test.command_id, test.behavior, test.attempts
        """,
        (list(command_ids),),
        prepare=False,
    )
    return {
        command_id: BegunAttempt(behavior, attempts)
        for command_id, behavior, attempts in await cur.fetchall()
    }


async def finish_test_commands(conn: Connection, results: Mapping[UUID, Any]) -> int:
    """Record that test commands were processed, each with its result; returns how many exist."""
    ordered = sorted(results)
    cur = await conn.execute(
        """
        update public.test_command as test
        set processed_at = clock_timestamp(), result = given.result
        from jsonb_to_recordset(%s) as given (command_id uuid, result jsonb)
        where test.command_id = given.command_id
        """,
        (Jsonb([{"command_id": str(key), "result": results[key]} for key in ordered]),),
        prepare=False,
    )
    return cur.rowcount


async def create_and_send_test_commands(
    conn: Connection, domain: str, rows: str, batch_id: UUID | None
) -> int:
    """Insert new test commands and send their commands in one round trip; returns how many.

    *rows* is JSON text: an array of {command_id, command_type, data, behavior, max_attempts?}; the
    data becomes the test command's payload. The ids must be new: a known one raises
    psycopg's UniqueViolation.
    """
    with translate_errors():
        cur = await conn.execute(
            """
            with chunk as materialized (select %(rows)s::jsonb as rows),
            tested as (
                insert into public.test_command (command_id, payload, behavior)
                select given.command_id, given.data, given.behavior
                from chunk, jsonb_to_recordset(chunk.rows)
                    as given (command_id uuid, data jsonb, behavior jsonb)
            )
            select count(*)
            from chunk, command_bus.send_commands(%(domain)s, chunk.rows, %(batch_id)s) as sent
            where sent.created
            """,
            {"rows": rows, "domain": domain, "batch_id": batch_id},
        )
        row = await cur.fetchone()
        return int(row[0]) if row else 0


async def create_and_send_test_command(
    conn: Connection, domain: str, row: str, batch_id: UUID | None
) -> None:
    """The same for one new test command, in half the time; *row* is JSON text: an object."""
    with translate_errors():
        await conn.execute(
            """
            with given as materialized (select %(row)s::jsonb as row),
            tested as (
                insert into public.test_command (command_id, payload, behavior)
                select (given.row ->> 'command_id')::uuid, given.row -> 'data',
                    given.row -> 'behavior'
                from given
            )
            select sent.created
            from given, command_bus.send_command(%(domain)s, given.row, %(batch_id)s) as sent
            """,
            {"row": row, "domain": domain, "batch_id": batch_id},
        )


def _rows_json(rows: Iterable[Mapping[str, Any]]) -> Jsonb:
    return Jsonb([{**row, "command_id": str(row["command_id"])} for row in rows])


# Configuration


async def read_configuration(conn: Connection) -> StoredConfiguration:
    """The configuration as it is stored."""
    async with conn.cursor(row_factory=class_row(StoredConfiguration)) as cur:
        await cur.execute("select worker, retry, version from public.app_config")
        [row] = await cur.fetchall()  # V003 inserts the one row, and nothing deletes it
    return row


async def lock_configuration(conn: Connection) -> StoredConfiguration:
    """The same, locked until the caller's transaction ends."""
    await conn.execute("select from public.app_config for update")
    return await read_configuration(conn)


async def write_configuration(
    conn: Connection, *, worker: Mapping[str, Any], retry: Mapping[str, Any], changed_by: str
) -> StoredConfiguration:
    """Store a new version of the whole configuration and remember it in the history."""
    async with conn.cursor(row_factory=class_row(StoredConfiguration)) as cur:
        await cur.execute(
            """
            with stored as (
                update public.app_config
                set worker = %(worker)s, retry = %(retry)s, version = version + 1
                returning worker, retry, version
            ),
            remembered as (
                insert into public.app_config_history (version, changed_by, worker, retry)
                select version, %(changed_by)s, worker, retry from stored
            )
            select worker, retry, version from stored
            """,
            {"worker": Jsonb(worker), "retry": Jsonb(retry), "changed_by": changed_by},
        )
        [row] = await cur.fetchall()
    return row


async def read_configuration_history(conn: Connection, limit: int) -> Sequence[ConfigurationChange]:
    """The latest versions of the configuration, newest first."""
    async with conn.cursor(row_factory=class_row(ConfigurationChange)) as cur:
        await cur.execute(
            """
            select version, changed_at, changed_by, worker, retry
            from public.app_config_history
            order by version desc
            limit %s
            """,
            (limit,),
        )
        return await cur.fetchall()
