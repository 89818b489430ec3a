"""A pooler between the processes and the server: PgBouncer, which shares the server's sessions."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from app.database.urls import build_url
from commandbus import CommandBus, CommandStatus, NewCommand, Worker, create_pool, uuid7
from tests.facts import DOMAIN, Pool, assert_books_balance
from tests.waiting import eventually, eventually_now

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
NOBODY = 65534
COMMANDS = 600
SETTINGS = """
[databases]
{dbname} = host={host} port={port} user={user} password='{password}'
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = {home}
auth_type = any
pool_mode = {mode}
default_pool_size = {sessions}
"""

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed")


@pytest.fixture
def pooled(database_url: str) -> Iterator[Callable[[str, int], str]]:
    """Starts PgBouncer in a mode, with so many sessions; the test's database as seen through it."""
    server = {name: str(value) for name, value in conninfo_to_dict(database_url).items()}
    home = Path(tempfile.mkdtemp(prefix="commandbus-pooler-"))
    home.chmod(0o777)  # it refuses to run as root
    running = []

    def start(mode: str, sessions: int) -> str:
        settings = home / "pgbouncer.ini"
        given = {"password": "none", **server, "home": home, "mode": mode, "sessions": sessions}
        settings.write_text(SETTINGS.format_map(given))
        account = _account(server["host"]) if os.getuid() == 0 else None
        log = home / "log"
        assert PGBOUNCER is not None
        with log.open("wb") as output:
            process = subprocess.Popen(
                [PGBOUNCER, settings],
                user=account,
                group=None if account is None else pwd.getpwuid(account).pw_gid,
                stdout=output,
                stderr=output,
            )
        running.append(process)
        socket = home / ".s.PGSQL.6432"
        eventually_now(lambda: socket.exists() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        return build_url(
            {"user": server["user"], "dbname": server["dbname"], "host": str(home), "port": "6432"}
        )

    yield start
    for process in running:
        process.terminate()
        process.wait(20)
    shutil.rmtree(home)


def _account(host: str) -> int:
    """Who may reach the server's socket, but is not root."""
    return (Path(host).stat().st_uid if host.startswith("/") else 0) or NOBODY


def plain_pool(conninfo: str) -> Pool:
    """A pool as somebody makes one who has not read the documentation."""
    return AsyncConnectionPool(
        conninfo, connection_class=AsyncConnection[TupleRow], max_size=4, open=False
    )


@pytest.mark.parametrize("make_pool", [create_pool, plain_pool])
@pytest.mark.parametrize(("mode", "sessions"), [("session", 40), ("transaction", 3)])
async def test_commands_are_processed_through_a_pooler(
    pool, pooled, recorded, registry, mode, sessions, make_pool
):
    url = pooled(mode, sessions)
    async with make_pool(url) as one, make_pool(url) as two, make_pool(url) as three:
        workers = [
            Worker(each, domain=DOMAIN, handler_registry=registry, concurrency=8)
            for each in (one, two)
        ]
        running = [asyncio.create_task(worker.run()) for worker in workers]
        bus = CommandBus(three)
        for _ in range(COMMANDS // 20):
            await bus.send_many(
                DOMAIN,
                [NewCommand(command_type="DoIt", command_id=uuid7(), data={}) for _ in range(20)],
            )
        await eventually(
            bus.count_by_status, lambda counts: counts[CommandStatus.COMPLETED] == COMMANDS
        )
        for worker in workers:
            worker.stop()
        await asyncio.gather(*running)

    assert len(recorded) == COMMANDS
    await assert_books_balance(pool)
