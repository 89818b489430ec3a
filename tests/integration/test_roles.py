"""docs/roles.sql gives each part what it needs, and nothing that it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from app.config import PROJECT_ROOT
from app.database.urls import build_url, parameters
from commandbus import CommandBus, CommandStatus
from commandbus.ops import TroubleshootingQueue
from tests.facts import DOMAIN, assert_books_balance, ended, events, rows, send, value
from tests.integration.pruning import left, send_test
from tests.programs import program

PASSWORD = "s3cret"
ROLES = (PROJECT_ROOT / "docs" / "roles.sql").read_text()


@dataclass(frozen=True)
class Logins:
    """The database, as each of the two sees it."""

    app: str
    maintenance: str


@pytest.fixture
def logins(database_url: str) -> Iterator[Logins]:
    """Members of the two roles, which have names of this test's own: roles belong to the server."""
    mark = uuid4().hex[:12]
    script = ROLES.replace("commandbus_app", f"app_{mark}").replace(
        "commandbus_maintenance", f"maintenance_{mark}"
    )
    groups = [f"app_{mark}", f"maintenance_{mark}"]
    with psycopg.connect(database_url, autocommit=True) as conn:
        for _ in range(2):  # running it again is harmless
            conn.execute(script.encode())
        for group in groups:
            conn.execute(
                sql.SQL("create role {} login password {} in role {}").format(
                    sql.Identifier(f"{group}_login"), PASSWORD, sql.Identifier(group)
                )
            )
        given = parameters(database_url)
        urls = [
            build_url({**given, "user": f"{group}_login", "password": PASSWORD}) for group in groups
        ]
        yield Logins(*urls)
        for name in (*[f"{group}_login" for group in groups], *groups):
            conn.execute(sql.SQL("drop owned by {}").format(sql.Identifier(name)))
            conn.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def refused(url: str, statement: str) -> bool:
    """Whether the role lacks the right; the statement must be right otherwise."""
    with psycopg.connect(url) as conn:
        try:
            conn.execute(statement.encode())
        except psycopg.errors.InsufficientPrivilege:
            return True
        conn.rollback()
    return False


async def test_the_application_runs_the_bus_and_only_adds_to_the_trail(logins, pool):
    async with (
        AsyncConnectionPool(
            logins.app, connection_class=AsyncConnection[TupleRow], min_size=1, open=False
        ) as own,
        program("-m", "app.worker", DATABASE_URL=logins.app, RETRY_BASE_DELAY_MS="10") as worker,
    ):
        await worker.says("worker_started")
        bus, tsq = CommandBus(own), TroubleshootingQueue(own)
        expected = {
            "success": "COMPLETED",
            "fail_business": "FAILED",
            "fail_permanent": "IN_TSQ",
            "fail_transient": "IN_TSQ",
            "fail_transient_then_succeed": "COMPLETED",
        }
        sent = {kind: await send_test(own, kind, reply_to="test__replies") for kind in expected}
        for kind, status in expected.items():
            await ended(own, sent[kind], expected=status, seconds=30)
        await tsq.operator_cancel(DOMAIN, sent["fail_permanent"], "olga")
        await tsq.operator_retry(DOMAIN, sent["fail_transient"], "olga", delay_seconds=900)
        await tsq.undo_retry(DOMAIN, sent["fail_transient"], "olga")
        await tsq.operator_complete(DOMAIN, sent["fail_transient"], "olga", {})
        assert len(await bus.read_replies("test__replies")) == 5
        await rows(own, "select pgmq.send('test__commands', '{}')")
        await send(own, 3, delay=900)
        assert (await bus.count_by_status())[CommandStatus.COMPLETED] == 3
        worker.process.terminate()
        assert await worker.ends() == 0, worker.output

    assert "Traceback" not in worker.output
    assert await events(pool, sent["success"]) == ["SENT", "RECEIVED", "COMPLETED"]
    for statement in (
        "delete from command_bus_audit",
        "update command_bus_audit set created_at = now()",
        "truncate command_bus_audit",
        "delete from command_bus_command",
        "select * from command_bus.prune_commands('COMPLETED', now(), 10)",
        "select * from command_bus.prune_history(now(), 10)",
        "create table public.mine ()",
    ):
        assert refused(logins.app, statement), statement
    await assert_books_balance(pool)


async def test_maintenance_prunes_and_can_delete_nothing_else(logins, pool):
    async with program("-m", "app.worker", DATABASE_URL=logins.app) as worker:
        done = await send_test(pool, "success")
        troubled = await send_test(pool, "fail_permanent")
        await ended(pool, done)
        await ended(pool, troubled, expected="IN_TSQ")
        worker.process.terminate()
        await worker.ends()

    for arguments in (("--keep", "0", "--history", "0s", "--dry-run"), ("--keep", "0")):
        async with program(
            "-m", "app.prune", *arguments, "--domain", "test", DATABASE_URL=logins.maintenance
        ) as pruner:
            assert await pruner.ends() == 0, pruner.output
    async with program(
        "-m", "app.prune", "--history", "0s", DATABASE_URL=logins.maintenance
    ) as pruner:
        assert await pruner.ends() == 0, pruner.output

    assert await left(pool) == {troubled}
    assert await rows(pool, "select command_id from test_command") == [(troubled,)]
    assert await value(pool, "select count(*) from command_bus_audit") == 4
    for statement in (
        "delete from command_bus_audit",
        "delete from command_bus_command",
        "update command_bus_command set status = 'COMPLETED'",
        "insert into command_bus_audit default values",
        "select data from command_bus_command",
        "select payload from test_command",
    ):
        assert refused(logins.maintenance, statement), statement
    await assert_books_balance(pool)


async def test_a_worker_that_may_not_prune_says_so_once_and_works_on(logins, pool):
    scheduled = {"RETENTION_COMPLETED_DAYS": "0.00001", "RETENTION_INTERVAL_SECONDS": "0.1"}
    async with program("-m", "app.worker", DATABASE_URL=logins.app, **scheduled) as worker:
        await worker.says("retention_not_permitted")
        command_id = await send_test(pool, "success")
        await ended(pool, command_id)
        async with program(
            "-m", "app.prune", "--keep", "0", DATABASE_URL=logins.app
        ) as refused_one:
            assert await refused_one.ends() == 1
        worker.process.terminate()
        assert await worker.ends() == 0, worker.output

    assert worker.output.count("retention_not_permitted") == 1
    assert refused_one.output == (
        "error: permission denied for function prune_commands"
        " (pruning is granted to the owner and to the maintenance role)"
    )
    assert await left(pool) == {command_id}
