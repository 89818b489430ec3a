"""docs/roles.sql gives each part what it needs, and nothing that it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from app import create_app
from app.database.urls import build_url, parameters
from app.settings.configuration import PROJECT_ROOT
from commandbus import (
    CommandBus,
    CommandStatus,
    HandlerRegistry,
    Reply,
    UnsuitableDatabaseError,
    Worker,
)
from commandbus.migrating import find_obstacles
from commandbus.ops import TroubleshootingQueue
from tests.applications import close
from tests.facts import (
    DOMAIN,
    REPLIES,
    assert_books_balance,
    claim,
    ended,
    events,
    register,
    rows,
    send,
    value,
)
from tests.integration.pruning import left, send_test
from tests.programs import free_port, program

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


SECURE = "alter table {} enable row level security"


async def test_no_program_starts_where_rows_are_hidden_from_its_role(logins, pool):
    sent = await send(pool, 3)
    await rows(pool, SECURE.format("command_bus_command"))
    programs = {
        ("-m", "app.worker"): logins.app,
        ("-m", "app.database", "validate"): logins.app,
        ("-m", "app.database", "migrate"): logins.app,
        ("run.py", "--port", str(free_port())): logins.app,
        ("-m", "app.prune", "--keep", "0"): logins.maintenance,
    }

    async def outcome(arguments: tuple[str, ...], url: str) -> tuple[int, str]:
        async with program(*arguments, DATABASE_URL=url) as started:
            return await started.ends(), started.output

    for code, output in await asyncio.gather(*(outcome(*each) for each in programs.items())):
        assert code == 1, output
        assert len(output.splitlines()) == 1
        assert "row-level security hides rows of command_bus_command from this role" in output

    assert await value(pool, "select count(*) from command_bus_rejected") == 0
    assert await value(pool, "select count(*) from pgmq.q_test__commands") == len(sent)


async def test_a_message_is_not_rejected_because_its_command_is_hidden(logins, pool):
    """Also where the rows were hidden only after the worker had started."""
    async with AsyncConnectionPool(
        logins.app, connection_class=AsyncConnection[TupleRow], min_size=1, open=False
    ) as own:
        [command_id] = await send(own)
        worker_id = await register(own)
        await rows(pool, SECURE.format("command_bus_command"))

        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await claim(own, worker_id)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await send(own)
        with pytest.raises(UnsuitableDatabaseError, match="command_bus_command"):
            await Worker(own, domain=DOMAIN, handler_registry=HandlerRegistry()).run()
        for table in ("pgmq.q_test__commands", "command_bus_domain", "command_bus_worker"):
            await rows(pool, SECURE.format(table))
        with pytest.raises(UnsuitableDatabaseError, match="command_bus_worker and 1 more"):
            await Worker(own, domain=DOMAIN, handler_registry=HandlerRegistry()).run()

    assert await value(pool, "select count(*) from command_bus_rejected") == 0
    assert await events(pool, command_id) == ["SENT"]


async def test_what_the_library_reads_is_refused_where_rows_are_hidden(logins, pool):
    """Also where the rows were hidden only after the first call, and on a pool of the caller's."""
    [command_id] = await send(pool, reply_to=REPLIES)
    async with AsyncConnectionPool(
        logins.app, connection_class=AsyncConnection[TupleRow], min_size=1, open=False
    ) as own:
        bus, tsq = CommandBus(own), TroubleshootingQueue(own)
        reply = Reply(
            msg_id=1,
            command_id=command_id,
            correlation_id=None,
            domain=DOMAIN,
            command_type="Test",
            status=CommandStatus.COMPLETED,
            result=None,
            error=None,
        )
        calls: dict[str, list[Callable[[], Awaitable[object]]]] = {
            "command_bus_command": [
                lambda: bus.get_command(DOMAIN, command_id),
                lambda: bus.query_commands(domain=DOMAIN),
            ],
            "command_bus_audit": [lambda: bus.get_audit_trail(command_id)],
            "command_bus_tsq": [lambda: tsq.list(DOMAIN), lambda: tsq.count(DOMAIN)],
            f"pgmq.q_{REPLIES}": [
                lambda: bus.read_replies(REPLIES),
                lambda: bus.acknowledge_replies(REPLIES, [reply]),
            ],
            "command_bus_domain": [
                lambda: bus.get_reply_queue(DOMAIN),
                lambda: bus.read_replies(REPLIES),
            ],
        }
        for table, reads in calls.items():
            for read in reads:
                await read()
            await rows(pool, SECURE.format(table))
            for read in reads:
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level"):
                    await read()
            await rows(pool, f"alter table {table} disable row level security")


async def test_the_owner_is_hindered_only_where_policies_are_forced(logins, pool):
    owner = parameters(logins.app)["user"]
    await rows(pool, f'alter table command_bus_tsq owner to "{owner}"')
    await rows(pool, SECURE.format("command_bus_tsq"))
    with psycopg.connect(logins.app, autocommit=True) as conn:
        assert find_obstacles(conn) == []
        await rows(pool, "alter table command_bus_tsq force row level security")
        [found] = find_obstacles(conn)
    assert "command_bus_tsq" in found


async def test_the_web_says_that_rows_are_hidden_and_shows_no_empty_list(logins, pool, tmp_path):
    app = create_app({"database_url": logins.app, "data_dir": tmp_path, "secret_key": "tests"})
    client = app.test_client()
    try:
        assert client.get("/health/ready").status_code == 200
        await rows(pool, SECURE.format("command_bus_command"))
        await rows(pool, SECURE.format("operator_job"))
        ready = client.get("/health/ready")
        pages = [client.get(path).status_code for path in ("/commands", "/api/v1/commands")]
        sent = client.post("/api/v1/commands", json={"behavior": {"type": "success"}})
    finally:
        close(app)

    assert ready.status_code == 503
    assert ready.json is not None
    assert ready.json["migrated"] is True
    [obstacle] = ready.json["problems"]
    assert "command_bus_command, operator_job" in obstacle
    assert pages == [503, 503]
    assert sent.status_code == 503
