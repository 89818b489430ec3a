"""Programs whose output nobody reads: a journal that stands still, `less`, Ctrl-S."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

from commandbus import CommandBus, CommandStatus, uuid7
from tests.programs import PATIENCE, ROOT, free_port
from tests.unit.test_streams import fill
from tests.waiting import eventually, eventually_now


@contextmanager
def unread_program(*arguments, **environment):
    """A program both of whose outputs are a pipe that is full."""
    read, write = os.pipe()
    fill(write)
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "LOG_LEVEL": "DEBUG", **environment},
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=write,
    )
    os.close(write)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        os.close(read)


async def test_a_worker_works_and_stops_while_nobody_reads_its_log(database_url, pool):
    with unread_program("-m", "app.worker", "--processes", "1", DATABASE_URL=database_url) as told:
        bus = CommandBus(pool)
        ids = [uuid7() for _ in range(20)]
        for command_id in ids:  # without a test command each fails for good, with a warning
            await bus.send("test", "TestCommand", command_id, {})

        async def last_status():
            command = await bus.get_command("test", ids[-1])
            return command and command.status

        await eventually(last_status, lambda status: status is CommandStatus.IN_TSQ, seconds=30)
        told.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(told.wait, PATIENCE) == 0
    async with pool.connection() as conn:
        cur = await conn.execute("select stopped_at is not null from command_bus_worker")
        assert await cur.fetchall() == [(True,)]


def test_the_server_answers_and_stops_with_its_workers_while_nobody_reads(database_url):
    port = free_port()
    url = f"http://127.0.0.1:{port}/api/v1/workers"

    def workers():
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return b'"alive"' in answer.read()
        except OSError:
            return False

    arguments = ("run.py", "--port", str(port), "--worker")
    with unread_program(*arguments, DATABASE_URL=database_url) as told:
        eventually_now(workers, message="a worker that lives")
        told.send_signal(signal.SIGINT)
        assert told.wait(PATIENCE) == 0
