"""`python -m app.worker` as a real process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from app.database.urls import build_url, parameters
from app.processes import request_stop
from app.settings.configuration import ConfigStore
from app.testcommand import store
from commandbus import CommandBus, CommandStatus, uuid7
from tests.programs import PATIENCE, program


def worker(database_url, *arguments, **environment):
    return program("-m", "app.worker", *arguments, DATABASE_URL=database_url, **environment)


async def wait_until(condition):
    """Poll *condition* until it answers with something true; that is returned."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := await condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.05)
    return answer


async def workers(pool):
    async with pool.connection() as conn:
        cur = await conn.execute(
            "select pid, concurrency, settings, stopped_at from command_bus_worker order by pid"
        )
        return await cur.fetchall()


async def send(pool, behavior):
    """One test command and its command, in one transaction; returns its id."""
    command_id = uuid7()
    bus = CommandBus(pool)
    async with bus.transaction() as conn:
        await store.create_test_command(conn, command_id, behavior, {})
        await bus.send("test", "TestCommand", command_id, {}, conn=conn)
    return command_id


async def wait_for_status(pool, command_id, status):
    async def reached():
        command = await CommandBus(pool).get_command("test", command_id)
        return command if command is not None and command.status is status else None

    return await wait_until(reached)


async def wait_until_begun(pool, command_id):
    """Wait for the handler: what a worker has claimed and not begun, it gives back at a stop."""

    async def begun():
        async with pool.connection() as conn:
            [row] = (await store.get_test_commands(conn, [command_id])).values()
        return row.attempts

    await wait_until(begun)


async def test_flag_wins_over_environment_over_stored_over_default(database_url, pool):
    await ConfigStore(pool).update(
        worker={"concurrency": 5, "visibility_timeout": 5, "batch_size": 5}, changed_by="test"
    )
    flags = ("--visibility-timeout", "7")
    environment = {"WORKER_VISIBILITY_TIMEOUT": "6", "WORKER_CONCURRENCY": "6"}
    async with worker(database_url, *flags, **environment) as running:
        await running.says("worker_started")
        [(_, concurrency, settings, _)] = await workers(pool)
    assert concurrency == 6
    assert settings["visibility_timeout"] == {"value": 7, "source": "flag"}
    assert settings["concurrency"] == {"value": 6, "source": "environment"}
    assert settings["batch_size"] == {"value": 5, "source": "stored"}
    assert settings["poll_interval"] == {"value": 1.0, "source": "default"}


async def test_stored_settings_are_followed_unless_a_flag_overrides_them(database_url, pool):
    async with worker(database_url, "--batch-size", "3") as running:
        await running.says("worker_started")
        await ConfigStore(pool).update(
            worker={"concurrency": 9, "batch_size": 50}, changed_by="test"
        )
        line = await running.says("configuration_changed")
        assert "concurrency=9" in line
        assert "batch_size" not in line

        async def shown():
            [(_, concurrency, settings, _)] = await workers(pool)
            return settings if concurrency == 9 else None

        settings = await wait_until(shown)
        assert settings["concurrency"] == {"value": 9, "source": "stored"}
        assert settings["batch_size"] == {"value": 3, "source": "flag"}


async def test_a_signal_lets_running_commands_finish(database_url, pool):
    async with worker(database_url) as running:
        await running.says("worker_started")
        command_id = await send(pool, {"type": "success", "execution_time_ms": 1500})
        await wait_until_begun(pool, command_id)
        running.process.terminate()
        assert await running.ends() == 0
    command = await CommandBus(pool).get_command("test", command_id)
    assert command is not None
    assert (command.status, command.result) == (CommandStatus.COMPLETED, {"status": "success"})
    async with pool.connection() as conn:
        [row] = (await store.get_test_commands(conn, [command_id])).values()
    assert (row.attempts, row.result) == (1, {"status": "success"})
    assert row.processed_at is not None
    [(_, _, _, stopped_at)] = await workers(pool)
    assert stopped_at is not None


async def test_a_second_signal_ends_at_once(database_url, pool):
    async with worker(database_url) as running:
        await running.says("worker_started")
        command_id = await send(pool, {"type": "success", "execution_time_ms": 60_000})
        await wait_until_begun(pool, command_id)
        running.process.terminate()
        await running.says("stop_signal")
        running.process.terminate()
        assert await running.ends() == 128 + signal.SIGTERM
    command = await CommandBus(pool).get_command("test", command_id)
    assert command is not None
    assert command.status is CommandStatus.IN_PROGRESS  # it comes back when its lease ends


async def test_a_stop_can_be_requested_in_the_database(database_url, pool):
    async with worker(database_url) as running:
        await running.says("worker_started")
        assert await request_stop(pool, None, "test") == 1
        assert await running.ends() == 0


async def test_json_log_lines_are_objects_that_hold_no_password(database_url, pool):
    # The server's own password where it has one; elsewhere it takes any.
    url, password = database_url, conninfo_to_dict(database_url).get("password")
    if password is None:
        password = "hidden-word"
        url = f"{database_url}{'&' if '?' in database_url else '?'}password={password}"
    async with worker(url, "--log-format", "json", "--log-level", "debug") as running:
        await running.says("worker_started")
        command_id = await send(pool, {"type": "fail_permanent", "error_message": "two\nlines"})
        await wait_for_status(pool, command_id, CommandStatus.IN_TSQ)
        running.process.terminate()
        assert await running.ends() == 0
    events = [json.loads(line) for line in running.lines]
    assert {"worker_started", "stop_signal", "worker_stopped"} <= {e["event"] for e in events}
    assert all({"time", "level", "logger"} <= event.keys() for event in events)
    assert str(password) not in running.output


async def test_a_process_that_dies_is_replaced_and_one_that_was_stopped_is_not(database_url, pool):
    async with worker(database_url, "--processes", "2") as running:

        async def living(count):
            async with pool.connection() as conn:
                cur = await conn.execute(
                    "select worker_id, pid from command_bus_worker"
                    " where replaced_by is null and stopped_at is null order by worker_id"
                )
                rows = await cur.fetchall()
            return rows if len(rows) == count else None

        (killed_id, killed), (left_id, left) = await wait_until(lambda: living(2))
        assert running.pid not in (killed, left)
        os.kill(killed, signal.SIGKILL)
        assert f"pid={killed} code=-9 signal=SIGKILL" in await running.says("worker_process_ended")
        await running.says(f"replaces={killed}")

        async def replaced():
            async with pool.connection() as conn:
                cur = await conn.execute(
                    "select replaced_by, end_reason from command_bus_worker"
                    " where worker_id = %s and replaced_by is not null",
                    (killed_id,),
                )
                return await cur.fetchone()

        successor_id, reason = await wait_until(replaced)
        assert reason == "SIGKILL"
        [(_, left), (found_id, successor)] = await wait_until(lambda: living(2))
        assert found_id == successor_id
        # The one that is gone is not among those that are asked.
        assert await request_stop(pool, killed_id, "test") == 0
        assert await request_stop(pool, left_id, "test") == 1
        assert "INFO" in await running.says(f"pid={left} code=0")
        running.process.terminate()
        assert await running.ends() == 0
        assert f"pid={successor} code=0" in running.output
        assert running.output.count("INFO worker_process_started") == 3


async def test_a_second_signal_ends_several_processes_at_once(database_url, pool):
    async with worker(database_url, "--processes", "2") as running:
        await wait_until(lambda: _registered(pool, 2))
        command_id = await send(pool, {"type": "success", "execution_time_ms": 60_000})
        await wait_until_begun(pool, command_id)
        running.process.send_signal(signal.SIGINT)
        await running.says("stop_signal")
        running.process.send_signal(signal.SIGINT)
        assert await running.ends() == 128 + signal.SIGINT


async def _registered(pool, count):
    return len(await workers(pool)) == count


async def test_workers_drain_when_the_process_that_started_them_is_killed(database_url, pool):
    async with worker(database_url, "--processes", "2") as running:

        async def started():
            return len(await workers(pool)) == 2

        await wait_until(started)
        running.process.kill()
        await running.process.wait()

        async def all_stopped():
            return all(stopped_at is not None for _, _, _, stopped_at in await workers(pool))

        await wait_until(all_stopped)


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "text"),
    [
        (["--concurrency", "0"], {}, 2, "must be a whole number from 1 to 1000"),
        (["--batch-size", "many"], {}, 2, "not 'many'"),
        ([], {"WORKER_POLL_INTERVAL": "0"}, 2, "WORKER_POLL_INTERVAL"),
        ([], {"LOG_LEVEL": "loud"}, 2, "LOG_LEVEL"),
        (["--domain", "nowhere"], {}, 1, 'domain "nowhere" does not exist'),
        (
            ["--database-wait", "0"],
            {"DATABASE_URL": "postgresql://nobody:hidden-word@127.0.0.1:1/x"},
            1,
            "Cannot connect",
        ),
    ],
)
async def test_what_cannot_work_is_said_in_one_line(
    database_url, arguments, environment, code, text
):
    given = {"DATABASE_URL": database_url, **environment}
    async with program("-m", "app.worker", *arguments, **given) as running:
        assert await running.ends() == code
    [line] = [line for line in running.lines if "error: " in line]
    assert text in line
    assert "Traceback" not in running.output
    assert "hidden-word" not in running.output


async def test_a_database_that_is_away_is_waited_for(database_url):
    url = "postgresql://nobody@127.0.0.1:1/x"
    async with worker(url, "--database-wait", "60") as running:
        await running.says("database_away")
        running.process.terminate()
        assert await running.ends() == 0


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://nobody@127.0.0.1:1", "names no database"),
        ("postgresql://nobody@127.0.0.1:x/y", "not a valid PostgreSQL URI"),
    ],
)
async def test_what_waiting_does_not_mend_is_not_waited_for(url, reason):
    async with worker(url, "--database-wait", "3600") as running:
        assert await running.ends() == 1
    assert reason in running.output
    assert "database_away" not in running.output


async def test_a_role_without_the_right_to_install_is_told_at_once(empty_database_url):
    role = f"test_worker_{uuid4().hex[:12]}"
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute(sql.SQL("create role {} login password 'p'").format(sql.Identifier(role)))
        try:
            url = build_url({**parameters(empty_database_url), "user": role, "password": "p"})
            async with worker(url, "--database-wait", "3600") as running:
                assert await running.ends() == 1
            assert f"Role {role} may not" in running.output
            assert "database_away" not in running.output
        finally:
            conn.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


async def test_help_names_variables_defaults_and_ranges():
    async with program("-m", "app.worker", "--help") as running:
        assert await running.ends() == 0
    text = " ".join(running.output.split())
    for part in ("WORKER_CONCURRENCY; default: 4", "from 1 to 43200 seconds", "RETRY_MAX_ATTEMPTS"):
        assert part in text
