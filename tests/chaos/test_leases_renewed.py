"""Handlers that take long, block the event loop, or never end.

What is renewed runs once however long it takes; what blocks, hangs or ignores its cancellation
costs its own attempts, and neither the other commands nor the end of the process.
"""

from __future__ import annotations

import dataclasses
import json
import signal
from contextlib import AbstractAsyncContextManager
from typing import Any

from commandbus import NewCommand
from tests.chaos.checker import assert_clean
from tests.chaos.conftest import scaled
from tests.chaos.history import History
from tests.chaos.scenes import all_ended, command, send_on_record
from tests.chaos.worker_program import LIMITED_TYPE, RENEWED_TYPE
from tests.facts import Pool, ended, events, rows, value
from tests.programs import Program, program
from tests.waiting import eventually

# Long enough for a renewal to be late on a busy machine without the lease being over.
LEASE_SECONDS = 2
LEASES = scaled(3, 10)
LONG_COMMANDS = scaled(12, 200)


def worker(url: str, history: History, **options: Any) -> AbstractAsyncContextManager[Program]:
    """A worker process with the handlers of the chaos tests."""
    return program(
        "-m", "tests.chaos.worker_program", url, str(history.path), json.dumps(options)
    )  # fmt: skip


def typed(new: NewCommand, command_type: str) -> NewCommand:
    """The command for another handler."""
    return dataclasses.replace(new, command_type=command_type)


async def stopped(*workers: Program) -> None:
    """All are asked to stop, and do so as if nothing had been wrong."""
    for each in workers:
        each.process.send_signal(signal.SIGTERM)
    for each in workers:
        assert await each.ends() == 0, each.output


async def test_renewed_handlers_run_once_however_many_leases_they_take(database_url, pool, history):
    seconds = LEASES * LEASE_SECONDS
    long = [
        typed(command("success", ms=1000 * seconds, max_attempts=1), RENEWED_TYPE)
        for _ in range(LONG_COMMANDS)
    ]
    # Without a limit these are renewed until their worker stops, which they cannot put off.
    endless = [typed(command(do), RENEWED_TYPE) for do in ("hang", "stubborn", "thread")]
    commands = [*endless, *long]
    await send_on_record(pool, history, commands)
    options = {"concurrency": len(commands) // 2 + 1, "visibility_timeout": LEASE_SECONDS}
    async with (
        worker(database_url, history, drain_timeout=0.2, **options) as one,
        worker(database_url, history, drain_timeout=0.2, **options) as other,
    ):
        await ended(pool, *(each.command_id for each in long), seconds=60 + 2 * seconds)
        record = history.read()
        for each in commands:
            assert record.starts_of(str(each.command_id)) == 1
            last = ["COMPLETED"] if each in long else []
            assert await events(pool, each.command_id) == ["SENT", "RECEIVED", *last]
        shortest = await value(
            pool,
            "select min(extract(epoch from finished_at - started_at)) from command_bus_command",
        )
        assert shortest >= seconds
        await stopped(one, other)

    assert await rows(pool, "select * from command_bus.find_violations()") == []


async def test_a_handler_that_blocks_the_event_loop_costs_an_attempt_and_no_outcome(
    database_url, pool, conn, history, tmp_path
):
    let_go = tmp_path / "let go"
    waiting = command("slow", seconds=600)
    renewed = typed(command("slow", seconds=600), RENEWED_TYPE)
    blocking = command("hold", until=str(let_go))
    behind = command("success")
    together = [waiting, renewed, blocking, behind]
    await send_on_record(pool, history, together, chunk=1)  # they start in this order

    async with worker(
        database_url, history, concurrency=len(together), visibility_timeout=LEASE_SECONDS
    ) as blocked:
        blocked_id = await worker_id(blocked)
        said = await blocked.says("event_loop_blocked")
        assert "_hold (" in said, said

        # Another worker takes everything over; its handlers find nothing that blocks.
        async with worker(database_url, history, visibility_timeout=60) as other:
            await all_ended(database_url, seconds=60)
            await stopped(other)
        let_go.touch()
        await blocked.says("event_loop_went_on")
        await eventually(
            lambda: events(pool, blocking.command_id), lambda trail: "LATE_RESULT" in trail
        )

        # It goes on working.
        later = command("success")
        await send_on_record(pool, history, [later])
        await ended(pool, later.command_id)
        await stopped(blocked)

    assert_clean(history.read(), conn)
    record = history.read()
    for each in together:
        holder, attempts = await taken_by(pool, each)
        assert holder != blocked_id
        assert attempts == 2
        starts = 1 if each is behind else 2  # its lease was over before its first handler began
        assert record.starts_of(str(each.command_id)) == starts, each
    assert await taken_by(pool, later) == (blocked_id, 1)


async def test_handlers_that_never_end_cost_their_own_attempts_only(
    database_url, pool, conn, history
):
    """One slot, and each of three handlers would keep it for ever."""
    hanging = command("hang", max_attempts=1)
    limited = typed(command("hang", max_attempts=2), LIMITED_TYPE)
    stubborn = typed(command("stubborn", max_attempts=1), LIMITED_TYPE)
    others = [command("success", max_attempts=1) for _ in range(3)]
    commands = [others[0], hanging, others[1], limited, others[2], stubborn]
    await send_on_record(pool, history, commands, chunk=1)

    async with worker(
        database_url, history, concurrency=1, visibility_timeout=LEASE_SECONDS, poll_interval=0.1
    ) as single:
        await all_ended(database_url, seconds=60)
        await single.says("handler_ignores_cancellation")
        await stopped(single)

    database = assert_clean(history.read(), conn)
    for new, starts, error in (
        (hanging, 1, "LEASE_EXPIRED"),
        (limited, 2, "HANDLER_TIMEOUT"),
        (stubborn, 1, "LEASE_EXPIRED"),
    ):
        assert history.read().starts_of(str(new.command_id)) == starts
        row = database.commands[str(new.command_id)]
        assert (row["status"], row["last_error_code"]) == ("IN_TSQ", error)
        expired = "LEASE_EXPIRED" in await events(pool, new.command_id)
        assert expired == (error == "LEASE_EXPIRED")
    # Had one lost its only attempt while it waited behind another, it would not have been run.
    for new in others:
        assert database.commands[str(new.command_id)]["status"] == "COMPLETED"


async def test_a_limit_of_the_worker_counts_for_handlers_without_their_own(
    database_url, pool, conn, history
):
    endless = [
        command("hang", max_attempts=1),
        typed(command("hang", max_attempts=1), RENEWED_TYPE),
        command("thread", max_attempts=1),
    ]
    await send_on_record(pool, history, endless)
    async with worker(
        database_url, history, visibility_timeout=600, handler_timeout=0.5
    ) as limited:
        await all_ended(database_url, seconds=30)
        await stopped(limited)  # although a thread of a handler goes on

    assert_clean(history.read(), conn)
    found = await rows(
        pool, "select distinct status::text, last_error_code from command_bus_command"
    )
    assert found == [("IN_TSQ", "HANDLER_TIMEOUT")]


async def worker_id(running: Program) -> int:
    """The number under which it is registered."""
    line = await running.says("worker_started")
    return int(line.partition("'worker_id': ")[2].partition(",")[0])


async def taken_by(pool: Pool, new: NewCommand) -> tuple[int, int]:
    """Who completed the command, and with which attempt."""
    [found] = await rows(
        pool,
        "select worker_id, attempts from command_bus_command where command_id = %s",
        new.command_id,
    )
    return found
