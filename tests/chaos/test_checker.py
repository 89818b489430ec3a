"""The checker finds each kind of violation, and none where there is none.

A small clean run is made once. Each violation is then seeded into a copy of its record, or into
its database within a transaction that is rolled back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from copy import deepcopy

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from commandbus.ops import TroubleshootingQueue
from tests.chaos.checker import check, take_snapshot
from tests.chaos.faults import Faults, Fleet, running
from tests.chaos.history import History, Recorded
from tests.chaos.scenes import all_ended, command, send_on_record
from tests.conftest import databases

Run = tuple[Recorded, psycopg.Connection[TupleRow], dict[str, str]]


@pytest.fixture(scope="module")
def run(server_url, template_database, tmp_path_factory) -> Iterator[Run]:
    """A clean run: its record, its database, and a command of each kind."""
    folder = tmp_path_factory.mktemp("checker")
    history = History(folder / "history.jsonl")
    with databases(server_url) as make:
        url = make(template_database)
        kinds = asyncio.run(_small_run(url, history, folder / "log"))
        with psycopg.connect(url) as conn:
            yield history.read(), conn, kinds


async def _small_run(url, history, log) -> dict[str, str]:
    commands = [
        command(do, lane="group/1" if do == "success" else None)
        for do in ("success", "success", "transient", "permanent", "permanent", "business")
    ]
    commands.append(command("transient", failures=9))
    names = ("success", "other", "transient", "tsq", "cancelled", "business", "exhausted")
    kinds = {name: each.command_id for name, each in zip(names, commands, strict=True)}
    async with AsyncConnectionPool(
        url, connection_class=AsyncConnection[TupleRow], open=False
    ) as pool:
        await send_on_record(pool, history, commands)
        with running(Fleet(url, history, log, size=1)):
            await all_ended(url, seconds=30)
            tsq = TroubleshootingQueue(pool)
            await tsq.operator_cancel("test", kinds["cancelled"])
            await tsq.operator_retry("test", kinds["exhausted"], delay_seconds=60)
            await tsq.undo_retry("test", kinds["exhausted"])
            await tsq.operator_retry("test", kinds["exhausted"])
            await all_ended(url, seconds=30)
        async with pool.connection() as conn:
            await conn.execute("select command_bus.fold_deltas()")
    return {name: str(command_id) for name, command_id in kinds.items()}


def found(run: Run, record: Recorded | None = None, corruption: str | None = None) -> set[str]:
    """The rules that are broken once the database is corrupted."""
    recorded, conn, kinds = run
    try:
        if corruption is not None:
            changed = conn.execute(corruption.encode(), kinds).rowcount
            assert changed, "the corruption changed nothing"
        return {v.rule for v in check(record or recorded, take_snapshot(conn))}
    finally:
        conn.rollback()


def test_the_checker_accepts_a_run_without_faults(run):
    assert found(run) == set()


RECORDS: dict[str, tuple[str, Callable[[Recorded, dict[str, str]], object]]] = {
    "acknowledged and not stored": (
        "what was acknowledged is stored",
        lambda record, _: record.acknowledged.add("00000000-0000-0000-0000-000000000001"),
    ),
    "stored and never sent": (
        "what is stored was sent",
        lambda record, kinds: record.attempted.pop(kinds["success"]),
    ),
    "other data than was sent": (
        "what is stored equals what was sent",
        lambda record, kinds: record.attempted[kinds["tsq"]]["data"].update(text="other"),
    ),
    "an outcome without a start": (
        "an outcome has a start",
        lambda record, kinds: record.starts.pop((kinds["business"], 1)),
    ),
    "an outcome that no handler had": (
        "an outcome is its handler's",
        lambda record, kinds: record.ends[kinds["transient"], 1].remove("E_TRANSIENT"),
    ),
    "two of a lane in another order": (
        "a lane runs in order, one at a time",
        lambda record, kinds: record.started_at.update({(kinds["other"], 1): [1.0]}),
    ),
    "two of a lane at once": (
        "a lane runs in order, one at a time",
        lambda record, kinds: record.ended_at[kinds["success"]].append(9e9),
    ),
    "a handler that ran twice": (
        "a handler runs once for each claim",
        lambda record, kinds: record.starts.update([(kinds["success"], 1)]),
    ),
    "a handler of an attempt that nobody claimed": (
        "a handler runs once for each claim",
        lambda record, kinds: record.starts.update([(kinds["success"], 2)]),
    ),
}


@pytest.mark.parametrize("seeded", RECORDS)
def test_what_the_record_contradicts_is_found(run, seeded):
    rule, corrupt = RECORDS[seeded]
    record = deepcopy(run[0])

    corrupt(record, run[2])

    assert rule in found(run, record)


EVENT = (
    "insert into command_bus_audit (command_id, created_at, event_type, domain, attempt, details)"
)

ROWS: dict[str, tuple[str, str]] = {
    "a lost command": (
        "what was acknowledged is stored",
        "delete from command_bus_command where command_id = %(success)s",
    ),
    "a command that hangs": (
        "every command has ended",
        "update command_bus_command set status = 'PENDING' where command_id = %(success)s",
    ),
    "a message left in the queue": (
        "the queue is empty",
        "select pgmq.send('test__commands', '{}')",
    ),
    "a waiting row left": (
        "nothing waits for its time",
        "insert into command_bus_waiting (command_id, domain, due_at, kind)"
        " values (%(success)s, 'test', now(), 'RETRY')",
    ),
    "a parked command left": (
        "nothing is parked",
        "insert into command_bus_suspect (command_id, domain, parked_at)"
        " values (%(success)s, 'test', now())",
    ),
    "an illegal trail": (
        "the trail is a path of the state table",
        f"{EVENT} values (%(success)s, now(), 'RECEIVED', 'test', 2, null)",
    ),
    "a trail that ends elsewhere": (
        "the trail ends where the command is",
        "delete from command_bus_audit where command_id = %(success)s and event_type = 'COMPLETED'",
    ),
    "an attempt left out": (
        "attempts are contiguous and within the budget",
        "update command_bus_audit set attempt = 3 where command_id = %(transient)s"
        " and event_type = 'RECEIVED' and attempt = 2",
    ),
    "an attempt beyond the budget": (
        "attempts are contiguous and within the budget",
        "update command_bus_command set max_attempts = 1 where command_id = %(transient)s",
    ),
    "a row that counts otherwise than its trail": (
        "attempts are contiguous and within the budget",
        "update command_bus_command set attempts = 2 where command_id = %(success)s",
    ),
    "two closing events": (
        "one closing event",
        f"{EVENT} values (%(success)s, now(), 'COMPLETED', 'test', 1, null)",
    ),
    "an end of another attempt": (
        "an outcome has a start",
        "update command_bus_audit set attempt = 2 where command_id = %(success)s"
        " and event_type = 'COMPLETED'",
    ),
    "a second reply": (
        "one reply",
        "insert into pgmq.q_test__replies (vt, message)"
        " select vt, message from pgmq.q_test__replies"
        " where message ->> 'command_id' = %(success)s",
    ),
    "a missing reply": (
        "one reply",
        "delete from pgmq.q_test__replies where message ->> 'command_id' = %(business)s",
    ),
    "a reply too early": (
        "one reply",
        "insert into pgmq.q_test__replies (vt, message)"
        " select now(), jsonb_set(message, '{command_id}', to_jsonb(%(tsq)s::text))"
        " from pgmq.q_test__replies where message ->> 'command_id' = %(success)s",
    ),
    "a reply that lies": (
        "the reply says what happened",
        """update pgmq.q_test__replies set message = message || '{"status": "FAILED"}'"""
        " where message ->> 'command_id' = %(success)s",
    ),
    "a command in the TSQ that is not listed": (
        "the TSQ lists what is IN_TSQ",
        "delete from command_bus_tsq where command_id = %(tsq)s",
    ),
    "a counter that is off": (
        "counters equal a recount",
        "update command_bus_counter set completed = completed + 1",
    ),
    "a histogram that is off": (
        "histograms hold each processed command once",
        "update command_bus_second set hist_count = hist_count || 1, hist_bucket = hist_bucket ||"
        " 2100 where processed > 0",
    ),
    "a worker that counted one too many": (
        "worker totals equal a recount",
        "update command_bus_worker set completed = completed + 1",
    ),
    "a worker that counted a retry too few": (
        "worker totals equal a recount",
        "update command_bus_worker set retried = retried - 1",
    ),
    "a worker that counted a failure too many": (
        "worker totals equal a recount",
        "update command_bus_worker set failed = failed + 1",
    ),
    "a worker that forgot one for the TSQ": (
        "worker totals equal a recount",
        "update command_bus_worker set moved_to_tsq = moved_to_tsq - 1",
    ),
    "a group of failures that is off": (
        "groups of failures count what is in the queue",
        "update command_bus_tsq_group set in_tsq = in_tsq + 1",
    ),
    "a failed command that is not listed": (
        "failed and cancelled commands are listed",
        "delete from command_bus_unsuccessful where command_id = %(business)s",
    ),
    "a command without a carrier": (
        "what is open is carried by exactly one message or waiting row",
        "update command_bus_command set status = 'IN_PROGRESS' where command_id = %(success)s",
    ),
}


@pytest.mark.parametrize("seeded", ROWS)
def test_what_the_rows_contradict_is_found(run, seeded):
    rule, query = ROWS[seeded]

    assert rule in found(run, corruption=query)


def test_a_run_with_fewer_faults_than_planned_does_not_pass():
    faults = Faults(planned=2)
    faults.happened()

    with pytest.raises(pytest.fail.Exception, match="UNKNOWN: only 1 of 2"):
        faults.require()
