"""The bus on the versions of PGMQ that people have, and on one that lacks something.

All other tests run on the version that the `pgmq` package ships. The true older ones are put
together from the scripts in the folder that PGMQ_SCRIPTS names (`python -m tools.pgmq_scripts`).
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from app import create_app
from app.database import DatabaseError
from app.database.opening import prepare
from app.models import db
from commandbus import (
    CommandBus,
    HandlerRegistry,
    PermanentCommandError,
    TroubleshootingQueue,
    UnsuitableDatabaseError,
    Worker,
    queries,
)
from commandbus.migrating import migrations_folder
from commandbus.obstacles import FIND_OBSTACLES
from tests.facts import (
    DOMAIN,
    QUEUE,
    REPLIES,
    Pool,
    assert_books_balance,
    claim,
    claim_one,
    claim_suspect,
    completed,
    ended,
    expire_leases,
    failed,
    register,
    release,
    renew,
    rows,
    send,
    settle,
    value,
)
from tests.integration.conftest import QUICK_RETRIES
from tests.programs import program
from tests.waiting import eventually

VARIABLE = "PGMQ_SCRIPTS"
# What PGMQ was before its scripts hold all of it; they replace the two functions.
BEFORE = """
    create table pgmq.meta (
        queue_name varchar unique not null, is_partitioned boolean not null,
        is_unlogged boolean not null, created_at timestamptz not null default now()
    );
    create type pgmq.message_record as (
        msg_id bigint, read_ct integer, enqueued_at timestamptz, vt timestamptz, message jsonb
    );
    create function pgmq.metrics(text) returns integer language sql as 'select 1';
    create function pgmq.metrics_all() returns integer language sql as 'select 1';
"""
FIRST = (0, 33, 1)
CONTROL = "default_version = '{}'\nrelocatable = false\nschema = 'pgmq'\n"
LEASE = "select lease_until from command_bus_command where command_type = 'Slow'"
# Those of set_vt that take a set of messages came with 1.8.
NEWER = ("bigint[], integer", "bigint[], timestamptz")


def install(url: str, version: str, folder: Path) -> None:
    """The true PGMQ of this version is in the empty database, as an extension."""
    if (given := os.environ.get(VARIABLE)) is None:
        pytest.skip(f"{VARIABLE} names no folder with PGMQ's scripts (tools/pgmq_scripts.py)")
    wanted = tuple(map(int, version.split(".")))
    scripts = {}
    for path in Path(given).glob("pgmq--*--*.sql"):
        before, after = (
            tuple(map(int, part.split(".")))
            for part in path.stem.removeprefix("pgmq--").split("--")
        )
        if before >= FIRST and after <= wanted:
            scripts[after] = path
    assert wanted in scripts, f"no script leads to {version}"
    texts = [BEFORE, *(path.read_text() for _, path in sorted(scripts.items()))]
    extension = folder / "extension"
    extension.mkdir()
    (extension / f"pgmq--{version}.sql").write_text("\n".join(texts))
    (extension / "pgmq.control").write_text(CONTROL.format(version))
    with psycopg.connect(url) as conn:
        if conn.info.server_version < 180000:
            pytest.skip("PostgreSQL takes extensions from a folder that is named since 18")
        conn.execute("select set_config('extension_control_path', %s, false)", (str(folder),))
        conn.execute("create extension pgmq")


@pytest.fixture
def make_url(
    make_database: Callable[[str], str], template_database: str
) -> Iterator[Callable[[str], str]]:
    """A migrated database on a version of PGMQ."""

    def make(version: str) -> str:
        if version == "1.5.1, by the functions that it lacks":
            url = make_database(template_database)
            with psycopg.connect(url) as conn:
                for arguments in NEWER:
                    conn.execute(f"drop function pgmq.set_vt(text, {arguments})".encode())
            return url
        url = make_database("template0")
        # Not below pytest's folder, which is closed to the user that the server runs as.
        folder = Path(tempfile.mkdtemp(prefix="commandbus-pgmq-"))
        folders.append(folder)
        folder.chmod(0o755)
        install(url, version, folder)
        prepare(url, on_step=lambda _: None)
        return url

    folders: list[Path] = []
    yield make
    for folder in folders:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "version", ["1.5.1, by the functions that it lacks", "1.5.1", "1.8.0", "1.11.0"]
)
async def test_everything_that_asks_pgmq_works_on(make_url, version):
    async with AsyncConnectionPool(
        make_url(version), connection_class=AsyncConnection[TupleRow], min_size=2, open=False
    ) as pool:
        await by_hand(pool)
        await by_a_worker(pool)
        await assert_books_balance(pool)


async def by_hand(pool: Pool) -> None:
    """Whatever a claim, a lease, an outcome and an operator can do to a message."""
    tsq, worker_id = TroubleshootingQueue(pool), await register(pool)
    [command_id] = await send(pool, reply_to=REPLIES)
    claimed = await claim_one(pool, worker_id)
    assert await renew(pool, worker_id, claimed)
    assert await claim(pool, worker_id) == []
    assert await release(pool, worker_id, [claimed]) == 1
    claimed = await claim_one(pool, worker_id)
    await settle(pool, worker_id, failed(claimed, "permanent"))
    await tsq.operator_retry(DOMAIN, command_id)
    claimed = await claim_one(pool, worker_id)
    await expire_leases(pool, command_id, worker_lives=False)
    assert await claim(pool, worker_id) == []  # parked as a suspect
    [claimed] = await claim_suspect(pool, worker_id)
    await release(pool, worker_id, [claimed])
    [claimed] = await claim_suspect(pool, worker_id)
    await settle(pool, worker_id, completed(claimed))

    [waiting] = await send(pool, delay=0.01)
    await tsq.cancel_pending(DOMAIN, waiting)
    message = f'{{"command_id": "{uuid4()}"}}'
    await rows(pool, f"select pgmq.send('{QUEUE}', %s::jsonb)", message)
    assert await claim(pool, worker_id) == []
    assert await value(pool, "select reason from command_bus_rejected") == "No such command"
    [lost] = await send(pool)
    await rows(pool, f"select pgmq.purge_queue('{QUEUE}')")
    await rows(pool, "select * from command_bus.requeue_lost_commands(%s)", DOMAIN)
    claimed = await claim_one(pool, worker_id)
    assert claimed.command.command_id == lost
    await settle(pool, worker_id, completed(claimed))


async def by_a_worker(pool: Pool) -> None:
    """Handlers that outlast their lease, fail and send replies."""
    registry, bus = HandlerRegistry(), CommandBus(pool)

    @registry.handler(DOMAIN, "Slow", auto_renew=True)
    async def slow(command, context):
        first = await value(pool, LEASE)
        await eventually(lambda: value(pool, LEASE), lambda until: until > first)

    @registry.handler(DOMAIN, "Fail")
    async def fail(command, context):
        raise PermanentCommandError

    await bus.create_domain("other")
    slow_one, failing = uuid4(), uuid4()
    await bus.send(DOMAIN, "Slow", slow_one, {}, reply_to=REPLIES)
    worker = Worker(
        pool,
        domain=DOMAIN,
        handler_registry=registry,
        visibility_timeout=1,
        retry_policy=QUICK_RETRIES,
        poll_interval=0.2,
    )
    running = asyncio.create_task(worker.run())
    await ended(pool, slow_one)
    await bus.send(DOMAIN, "Fail", failing, {}, delay=0.01)
    await ended(pool, failing, expected="IN_TSQ")
    worker.stop()
    await running
    found = await bus.read_replies(REPLIES)
    assert slow_one in {reply.command_id for reply in found}
    assert await bus.acknowledge_replies(REPLIES, found) == len(found)


def test_every_function_of_pgmq_that_is_called_is_looked_for() -> None:
    texts = [path.read_text() for path in migrations_folder().glob("*.sql")]
    texts.append(Path(queries.__file__).read_text())
    called = {name for text in texts for name in re.findall(r"pgmq\.(\w+)\(", text)}

    assert "send_batch" in called
    assert called == set(re.findall(r"\('(\w+)', '\{", FIND_OBSTACLES))


LACKING = "drop function pgmq.archive(text, bigint[])"
REFUSAL = "PGMQ lacks pgmq.archive(text, bigint[]); 1.5.1 or newer is needed"


def test_a_pgmq_without_a_function_that_is_called_is_refused_before_anything_is_changed(
    empty_database_url: str,
) -> None:
    from pgmq.install import get_embedded_install_sql

    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute(get_embedded_install_sql().encode())
        conn.execute(LACKING)

        with pytest.raises(DatabaseError, match=re.escape(REFUSAL)):
            prepare(empty_database_url, on_step=lambda _: None)

        made = conn.execute(
            "select to_regnamespace('command_bus'), to_regclass('flyway_schema_history')"
        )
        assert made.fetchone() == (None, None)


async def test_nothing_starts_on_a_pgmq_that_lacks_a_function(pool, database_url, tmp_path):
    await rows(pool, LACKING)

    with pytest.raises(UnsuitableDatabaseError, match=re.escape(REFUSAL)):
        await Worker(pool, domain=DOMAIN, handler_registry=HandlerRegistry()).run()
    async with program("-m", "app.worker", DATABASE_URL=database_url) as worker:
        assert await worker.ends() == 1
    assert len(worker.lines) == 1
    assert REFUSAL in worker.output
    app = create_app({"database_url": database_url, "data_dir": tmp_path, "secret_key": "tests"})
    ready = app.test_client().get("/health/ready")
    with app.app_context():
        db.engine.dispose()
    app.extensions["portal"].close()
    assert ready.status_code == 503
    assert ready.json is not None
    assert (ready.json["pgmq"], ready.json["migrated"]) == (False, True)
    assert REFUSAL in ready.json["problems"][0]
