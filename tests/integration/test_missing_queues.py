"""Somebody drops a queue, or takes a domain away: the rest goes on, and what is missing is told."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import psycopg
import pytest
from flask.testing import FlaskClient

from commandbus import (
    CommandBus,
    MissingQueueError,
    NewCommand,
    UnknownDomainError,
    UnknownReplyQueueError,
)
from commandbus.bus import SEND_CHUNK
from commandbus.errors import DomainInUseError
from commandbus.migrating import connect
from tests.facts import (
    DOMAIN,
    QUEUE,
    Pool,
    assert_books_balance,
    ended,
    events,
    rows,
    send,
    value,
)
from tests.integration.api.conftest import app, client, conn, got
from tests.integration.test_database_cli import refusal, run
from tests.waiting import eventually, until

__all__ = ["app", "client", "conn"]

PATHS = (
    *("/", "/commands", "/troubleshooting", "/workers", "/invariants", "/audit", "/load-tests"),
    *("/api/v1/stats", "/api/v1/stats/throughput", "/api/v1/invariants", "/api/v1/commands"),
    *("/api/v1/commands?status=PENDING", "/api/v1/commands?status=IN_PROGRESS"),
)


@pytest.mark.parametrize(
    ("spoil", "missing"),
    [
        (
            "select pgmq.drop_queue('old__commands')",
            ["pgmq.a_old__commands", "pgmq.q_old__commands"],
        ),
        ("select pgmq.drop_queue('old__replies')", ["pgmq.a_old__replies", "pgmq.q_old__replies"]),
        ("drop table pgmq.a_old__commands", ["pgmq.a_old__commands"]),
        ("alter table pgmq.q_old__commands rename to q_new", ["pgmq.q_old__commands"]),
    ],
)
def test_everything_else_goes_on_and_the_missing_table_is_a_finding(
    client: FlaskClient, conn: psycopg.Connection, spoil: str, missing: list[str]
) -> None:
    conn.execute("select command_bus.create_domain('old')")
    conn.execute(spoil.encode())

    pages = {path: client.get(path) for path in PATHS}
    assert {path: page.status_code for path, page in pages.items()} == dict.fromkeys(PATHS, 200)
    report = got(pages["/api/v1/invariants"])
    [found] = [each for each in report["invariants"] if each["violations_count"]]
    assert found["name"] == "every domain has its queues"
    assert sorted(each["detail"] for each in found["violations"]) == [
        f"{name} is missing" for name in missing
    ]
    assert missing[0] in pages["/"].text
    ready = client.get("/health/ready")
    [level] = [c["level"] for c in got(ready)["checks"] if c["name"] == "missing_queues"]
    assert level == "critical"


def test_without_pgmq_pages_say_so_and_health_is_not_ready(
    client: FlaskClient, conn: psycopg.Connection
) -> None:
    conn.execute("alter schema pgmq rename to pgmq_away")

    for path in PATHS:
        assert client.get(path).status_code in (200, 503), path
    ready = client.get("/health/ready")
    assert ready.status_code == 503
    assert "PGMQ is not installed in the database." in got(ready)["problems"]
    assert (
        client.post("/api/v1/commands", json={"behavior": {"type": "success"}}).status_code == 503
    )


async def test_a_worker_whose_queue_is_away_waits_and_says_so_once(
    pool, start_worker, recorded, caplog
):
    worker = await start_worker(poll_interval=0.02)
    await rows(pool, f"alter table pgmq.q_{QUEUE} rename to q_elsewhere")
    worker._state.wake()
    await until(lambda: "claim_retried" in caplog.messages)
    with pytest.raises(MissingQueueError, match="dropped or renamed"):
        await send(pool)
    await rows(pool, f"alter table pgmq.q_elsewhere rename to q_{QUEUE}")

    [command_id] = await send(pool)
    await ended(pool, command_id)
    assert await events(pool, command_id) == ["SENT", "RECEIVED", "COMPLETED"]
    assert caplog.messages.count("claim_retried") == 1


async def test_a_worker_of_a_read_only_server_waits_says_so_once_and_spends_nothing(
    pool, database_url, start_worker, recorded, caplog
):
    worker = await start_worker(poll_interval=0.02)
    [waiting] = await send(pool, delay=0.5)
    await read_only(database_url, on=True)
    await until(lambda: "claim_retried" in caplog.messages)
    await until(lambda: "heartbeat_failed" in caplog.messages)
    await read_only(database_url, on=False)

    # The connections of the pool were ended.
    await eventually(lambda: asyncio.to_thread(events_seen, database_url, waiting), "DONE".__eq__)
    refused = [record for record in caplog.records if record.message == "claim_retried"]
    assert sum("read-only" in vars(record)["error"] for record in refused) == 1
    assert not worker.is_stopping


def events_seen(url: str, command_id: object) -> str:
    with connect(url) as conn:
        query = "select event_type::text from command_bus_audit where command_id = %s order by 1"
        seen = [name for (name,) in conn.execute(query, (command_id,))]
    return "DONE" if seen == ["COMPLETED", "RECEIVED", "SENT"] else str(seen)


async def read_only(url: str, *, on: bool) -> None:
    """The database takes no changes, for sessions old and new, as where a provider says so."""

    def say() -> None:
        with connect(url) as conn:
            conn.execute("set default_transaction_read_only = off")
            conn.execute(
                "do $$ begin execute format('alter database %I set default_transaction_read_only"
                f" = {'on' if on else 'off'}', current_database()); end $$".encode()
            )
            conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )

    await asyncio.to_thread(say)


# Deleting a domain


async def test_a_domain_is_deleted_and_what_has_ended_stays(pool, bus, start_worker, recorded):
    [done] = await send(pool)
    await start_worker()
    await ended(pool, done)
    await bus.create_domain("old")
    await bus.delete_domain("old")

    assert await rows(pool, "select * from pgmq.meta where queue_name like 'old%%'") == []
    with pytest.raises(UnknownDomainError):
        await bus.delete_domain("old")
    await assert_books_balance(pool)


async def test_a_domain_in_use_is_not_deleted(pool: Pool, bus: CommandBus):
    await bus.create_domain("old")
    reply_to = await bus.get_reply_queue("old")

    [asked] = await send(pool, reply_to=reply_to)  # of another domain
    with pytest.raises(DomainInUseError, match="1 open commands of other domains"):
        await bus.delete_domain("old")
    await rows(pool, "select command_bus.cancel_pending(%s, %s, 'o', 'r')", DOMAIN, asked)

    with pytest.raises(DomainInUseError, match="1 unread replies"):
        await bus.delete_domain("old")
    await bus.send("old", "DoIt", uuid4(), {}, delay=3600)
    with pytest.raises(DomainInUseError, match="1 open commands, 0 messages"):
        await bus.delete_domain("old", with_replies=True)
    await rows(pool, "select pgmq.send('old__commands', '{}')")
    with pytest.raises(DomainInUseError, match="1 open commands, 1 messages"):
        await bus.delete_domain("old", with_replies=True)
    await assert_books_balance(pool)


async def test_a_domain_is_not_deleted_under_somebody_who_is_about_to_send(pool, bus):
    await bus.create_domain("old")
    async with pool.connection() as sender:
        await bus.send("old", "DoIt", uuid4(), {}, conn=sender)
        deleting = asyncio.create_task(bus.delete_domain("old"))
        waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
        await eventually(lambda: value(pool, f"{waits} and datname = current_database()"))
    with pytest.raises(DomainInUseError):
        await deleting


def test_the_command_line_deletes_a_domain_whose_queue_was_dropped(database_url: str):
    command = '{"command_id": "0193e0a0-0000-7000-8000-000000000001", "command_type": "A"}'
    with connect(database_url) as conn:
        conn.execute("select command_bus.create_domain('old')")
        conn.execute("select pgmq.drop_queue('old__commands')")
        conn.execute(
            "select command_bus.send_command('test', %s::jsonb || '{\"data\": {}}', null)",
            (command,),
        )

    assert "Deleted the domain old" in run("delete-domain", "old", url=database_url)
    assert "does not exist" in refusal("delete-domain", "old", url=database_url)
    assert "1 open commands" in refusal("delete-domain", "test", url=database_url)


@pytest.mark.parametrize(
    "spoil",
    [
        "select pgmq.drop_queue('old__commands')",
        "alter table pgmq.q_old__commands rename to q_new",
        "select pgmq.drop_queue('old__replies')",
    ],
)
async def test_a_send_that_joins_a_transaction_leaves_it_usable(pool, bus, spoil):
    await rows(pool, "create table my_order (id int primary key)")
    await bus.create_domain("old")
    reply_to = await bus.get_reply_queue("old")
    await rows(pool, spoil)
    refused = UnknownReplyQueueError if "replies" in spoil else MissingQueueError

    def new(**fields) -> NewCommand:
        return NewCommand(command_type="A", command_id=uuid4(), reply_to=reply_to, **fields)

    async with bus.transaction() as conn:
        await conn.execute("insert into my_order values (1)")
        with pytest.raises(refused):
            await bus.send("old", "A", uuid4(), {}, reply_to=reply_to, conn=conn)
        with pytest.raises(refused):
            await bus.send("old", "A", uuid4(), {}, reply_to=reply_to, delay=60, conn=conn)
        for commands in ([new(), new()], [new() for _ in range(SEND_CHUNK + 1)]):
            with pytest.raises(refused):
                await bus.send_many("old", commands, conn=conn)
        await bus.send(DOMAIN, "A", uuid4(), {}, conn=conn)

    assert await value(pool, "select count(*) from my_order") == 1
    assert await value(pool, "select count(*) from command_bus_command") == 1
