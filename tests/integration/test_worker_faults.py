"""Faults that are nobody's outcome: what the database refuses once, or for a while."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.facts import (
    Pool,
    assert_books_balance,
    ended,
    events,
    rows,
    send,
    value,
)
from tests.waiting import eventually, until

STATES = ["XX000", "42501", "0A000", "23505", "P0001"]


async def let_fail(pool: Pool, table: str, when: str, sqlstate: str, times: int) -> None:
    """The next *times* rows for which *when* is true cannot be written to *table*."""
    await rows(
        pool,
        f"""
        create sequence failures;
        create function fail() returns trigger language plpgsql as $$
        begin
            if {when} and nextval('failures') <= {times} then
                raise exception 'on purpose' using errcode = '{sqlstate}';
            end if;
            return new;
        end $$;
        create trigger fails before insert or update on {table}
            for each row execute function fail();
        """,
    )


@pytest.mark.parametrize("sqlstate", STATES)
async def test_a_success_stays_one_whatever_keeps_it_from_being_recorded_once(
    pool, recorded, start_worker, caplog, sqlstate
):
    times = 3
    await let_fail(pool, "command_bus_audit", "new.event_type = 'COMPLETED'", sqlstate, times)
    worker = await start_worker()
    [command_id] = await send(pool)

    await ended(pool, command_id)
    assert await events(pool, command_id) == ["SENT", "RECEIVED", "COMPLETED"]
    assert await value(pool, "select last_value from failures") > times
    assert not worker.is_stopping
    [error, *_] = [each.error for each in caplog.records if each.msg == "settle_retried"]
    assert error == "on purpose"
    assert len(recorded) == 1


async def test_an_outcome_that_a_trigger_refuses_for_ever_keeps_its_lease_and_holds_up_nobody(
    pool, recorded, start_worker
):
    [refused] = await send(pool)
    refuses = f"new.event_type = 'COMPLETED' and new.command_id = '{refused}'"
    await let_fail(pool, "command_bus_audit", refuses, "P0001", 1_000_000)
    await start_worker(visibility_timeout=1)

    await ended(pool, *await send(pool, 20))
    held = "select extract(epoch from clock_timestamp() - started_at) > 2.5"
    await eventually(
        lambda: value(pool, f"{held} from command_bus_command where status <> 'COMPLETED'")
    )
    await ended(pool, *await send(pool, 20))
    assert await events(pool, refused) == ["SENT", "RECEIVED"]

    await rows(pool, "drop trigger fails on command_bus_audit")
    await ended(pool, refused)
    assert await events(pool, refused) == ["SENT", "RECEIVED", "COMPLETED"]


async def test_a_result_that_the_database_cannot_hold_is_the_outcomes_own_fault(
    bus, pool, recorded, start_worker
):
    refuses = "new.result is not null and new.status = 'COMPLETED'"
    await let_fail(pool, "command_bus_command", refuses, "22P05", 1_000_000)
    await start_worker()
    ids = await send(pool, 2)

    await ended(pool, *ids, expected="IN_TSQ")
    command = await bus.get_command("test", ids[0])
    assert command.last_error_code == "UNSTORABLE_RESULT"
    assert "on purpose" in command.last_error_message
    assert "CONTEXT" not in command.last_error_message


@pytest.mark.parametrize("sqlstate", ["XX000", "42501", "P0001"])
async def test_a_claim_that_fails_for_a_while_is_made_again(
    pool, recorded, start_worker, caplog, sqlstate
):
    await let_fail(pool, "command_bus_audit", "new.event_type = 'RECEIVED'", sqlstate, 2)
    worker = await start_worker()
    [command_id] = await send(pool)

    await ended(pool, command_id)
    assert await events(pool, command_id) == ["SENT", "RECEIVED", "COMPLETED"]
    assert not worker.is_stopping
    [error, *_] = [each.error for each in caplog.records if each.msg == "claim_retried"]
    assert error == "on purpose"


async def test_a_renewal_that_fails_for_a_while_is_made_again(pool, registry, start_worker, caplog):
    extended = asyncio.Event()

    @registry.handler("test", "DoIt", auto_renew=True)
    async def handle(command, context):
        if command.data == "extends":
            await context.extend_visibility(30)
            extended.set()
        await asyncio.sleep(1.6)

    longer = "new.lease_until > old.lease_until and new.status = old.status"
    await let_fail(pool, "command_bus_command", f"tg_op = 'UPDATE' and {longer}", "XX000", 3)
    ids = [*await send(pool), *await send(pool, data="extends")]
    worker = await start_worker(visibility_timeout=1)

    await ended(pool, *ids)
    assert extended.is_set()
    assert "renewal_failed" in caplog.messages
    assert not worker.is_stopping
    assert {len(await events(pool, each)) for each in ids} == {3}


@pytest.mark.parametrize("table", ["command_bus_counter", "command_bus_worker"])
async def test_a_heartbeat_that_fails_for_a_while_ends_no_worker(
    pool, recorded, start_worker, caplog, table
):
    worker = await start_worker()
    await ended(pool, *await send(pool, 3))
    await let_fail(pool, table, "true", "22003", 1)
    told = {"command_bus_counter": "counters_not_folded", "command_bus_worker": "heartbeat_failed"}
    if table == "command_bus_counter":
        await send(pool)

    await until(lambda: told[table] in caplog.messages)
    await ended(pool, *await send(pool, 3))
    assert not worker.is_stopping
    await assert_books_balance(pool)


async def test_each_rejected_message_is_told_with_its_ids(pool, recorded, start_worker, caplog):
    nobodys = "7f0e6a7e-0000-4000-8000-000000000001"
    named = await value(
        pool,
        "select pgmq.send('test__commands', jsonb_build_object('command_id', %s::text))",
        nobodys,
    )
    unnamed = await value(pool, "select pgmq.send('test__commands', '{\"x\": 1}')")
    await rows(
        pool,
        "select pgmq.send('test__commands', '[]') from generate_series(1, 12)",
    )
    await start_worker(batch_size=100, concurrency=100)
    await ended(pool, *await send(pool))

    lines = [each for each in caplog.records if each.msg == "message_rejected"]
    assert [(each.msg_id, each.command_id, each.reason) for each in lines[:2]] == [
        (named, nobodys, "No such command"),
        (unnamed, None, "The message names no command_id"),
    ]
    assert {each.levelno for each in lines} == {logging.WARNING}
    assert len(lines) == 10
    [rest] = [each for each in caplog.records if each.msg == "messages_rejected"]
    assert rest.count == 14
    assert await value(pool, "select count(*) from command_bus_rejected") == 14
