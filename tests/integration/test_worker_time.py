"""What is due starts at its time, however long an idle worker may sleep."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from commandbus import RetryPolicy, TransientCommandError, Worker, claiming, heartbeat, store
from commandbus.ops import TroubleshootingQueue
from tests.facts import (
    DOMAIN,
    Pool,
    claim_one,
    ended,
    events,
    failed,
    register,
    release,
    renew,
    rows,
    send,
    settle,
    value,
)
from tests.waiting import POLL_SECONDS, eventually, until

# What is due is started within 0.1 s on an idle machine; this tells it from the poll interval.
SOON = 3.0
HOUR = 3600.0
RETRIES = RetryPolicy(base_delay_ms=300, jitter=0, backoff_multiplier=1)


async def seconds_between(pool: Pool, command_id: UUID, *wanted: str) -> float:
    """Seconds between two events of the trail that follow each other."""
    trail = await rows(
        pool,
        "select event_type::text, extract(epoch from created_at)::float8 from command_bus_audit"
        " where command_id = %s order by audit_id",
        command_id,
    )
    names = [name for name, _ in trail]
    start = next(at for at in range(len(names)) if names[at : at + len(wanted)] == [*wanted])
    return float(trail[start + len(wanted) - 1][1] - trail[start][1])


@pytest.fixture
def flaky(registry) -> None:
    """A handler whose first attempt fails or hangs where the data says so."""

    @registry.handler(DOMAIN, "DoIt")
    async def handle(command, context):
        if command.data == "hang" and context.attempt == 1:
            await asyncio.Event().wait()
        if command.data == "fail" and context.attempt == 1:
            raise TransientCommandError


@pytest.mark.parametrize("poll_interval", [30.0, HOUR])
async def test_a_retry_starts_when_its_backoff_is_over(pool, flaky, start_worker, poll_interval):
    await start_worker(poll_interval=poll_interval, retry_policy=RETRIES)
    [command_id] = await send(pool, data="fail")

    await ended(pool, command_id)
    waited = await seconds_between(pool, command_id, "RETRY_SCHEDULED", "RECEIVED")
    assert 0.3 <= waited < SOON


async def test_another_workers_retry_starts_when_its_backoff_is_over(pool, flaky, start_worker):
    [command_id] = await send(pool)
    worker_id = await register(pool)
    claimed = await claim_one(pool, worker_id)
    await start_worker(poll_interval=HOUR)
    await ended(pool, *await send(pool))

    await settle(pool, worker_id, failed(claimed, retry_delay_ms=200))

    await ended(pool, command_id)
    waited = await seconds_between(pool, command_id, "RETRY_SCHEDULED", "RECEIVED")
    assert 0.2 <= waited < SOON


async def test_the_next_attempt_starts_when_the_lease_of_another_worker_ends(
    pool, flaky, start_worker
):
    [stopped, dead] = [*await send(pool), *await send(pool)]
    of_stopped, of_dead = await register(pool), await register(pool)
    await claim_one(pool, of_stopped, limit=1, seconds=2)
    await claim_one(pool, of_dead, limit=1, seconds=2)
    async with store.autocommit(pool) as conn:
        await store.worker_stopped(conn, of_stopped)
    await start_worker(poll_interval=HOUR)

    await ended(pool, stopped, dead)
    waited = await seconds_between(pool, stopped, "RECEIVED", "LEASE_EXPIRED", "RECEIVED")
    assert 2 <= waited < 2 + SOON
    # One heartbeat later it is known that its worker is dead, and the command is run alone.
    waited = await seconds_between(pool, dead, "RECEIVED", "LEASE_EXPIRED", "RECEIVED")
    assert 3 <= waited < 3 + SOON


async def test_a_given_up_command_is_claimed_again_at_once_by_a_worker_with_one_slot(
    pool, flaky, start_worker
):
    await start_worker(poll_interval=HOUR, concurrency=1, visibility_timeout=1)
    [command_id] = await send(pool, data="hang")

    await ended(pool, command_id)
    waited = await seconds_between(pool, command_id, "RECEIVED", "LEASE_EXPIRED", "RECEIVED")
    assert 1 <= waited < 1 + SOON


async def test_what_was_delayed_or_given_back_starts_at_its_time(
    pool, registry, flaky, start_worker
):
    [failing] = await send(pool, command_type="Nobodys", max_attempts=1)
    [given_back] = await send(pool)
    worker_id = await register(pool)
    first = await claim_one(pool, worker_id, limit=1)
    await settle(pool, worker_id, failed(first, "permanent"))
    claimed = await claim_one(pool, worker_id)
    await start_worker(poll_interval=HOUR)

    [delayed] = await send(pool, delay=0.3)
    await release(pool, worker_id, [claimed])
    await ended(pool, delayed, given_back)
    registry.register(DOMAIN, "Nobodys", registry.get(DOMAIN, "DoIt").run)
    await TroubleshootingQueue(pool).operator_retry(DOMAIN, failing, delay_seconds=0.3)
    await ended(pool, failing)

    assert 0.3 <= await seconds_between(pool, delayed, "SENT", "RECEIVED") < SOON
    assert await seconds_between(pool, given_back, "RELEASED", "RECEIVED") < SOON
    # The event is written a moment after the time is computed at which it is due.
    assert 0.29 <= await seconds_between(pool, failing, "OPERATOR_RETRY", "RECEIVED") < SOON


async def test_what_is_due_is_found_without_notifications(pool, flaky, start_worker):
    """As behind a pooler that shares sessions between transactions."""
    await start_worker(poll_interval=HOUR)
    [command_id] = await send(pool, delay=600)
    await ended(pool, *await send(pool))

    await rows(
        pool,
        "update command_bus_waiting set due_at = clock_timestamp() + interval '200 ms'"
        " where command_id = %s",
        command_id,
    )

    await ended(pool, command_id, seconds=SOON + 2)


class Counted(AsyncCursor[TupleRow]):
    """Counts the statements of all its kind."""

    statements = 0

    async def execute(self, *args, **kwargs):
        Counted.statements += 1
        return await super().execute(*args, **kwargs)


async def test_a_worker_at_rest_asks_three_things_a_second(database_url, pool, registry):
    """Also beside the leases of others, which are renewed before they end."""
    [command_id] = await send(pool)
    other = await register(pool)
    held = await claim_one(pool, other, seconds=5)
    before = 0
    beat = "select heartbeat_at from command_bus_worker where worker_id = %s"
    async with AsyncConnectionPool(
        database_url,
        connection_class=AsyncConnection[TupleRow],
        kwargs={"cursor_factory": Counted},
        min_size=1,
        max_size=4,
        open=False,
    ) as counted:
        worker = Worker(counted, domain=DOMAIN, handler_registry=registry, poll_interval=HOUR)
        running = asyncio.create_task(worker.run())
        await until(lambda: worker.worker_id is not None)
        seen = {await value(pool, beat, worker.worker_id)}
        while len(seen) < 6:
            await asyncio.sleep(POLL_SECONDS)
            at = await value(pool, beat, worker.worker_id)
            if at not in seen:
                seen.add(at)
                before = Counted.statements if len(seen) == 2 else before
                assert await renew(pool, other, held, 5)
        asked = Counted.statements - before
        worker.stop()
        await running

    # A beat is a heartbeat, folding, and a look ahead; now and then a connection is opened.
    assert asked <= 3 * 4 + 3
    assert await events(pool, command_id) == ["SENT", "RECEIVED"]


@pytest.mark.parametrize("workers", [1, 3])
async def test_a_command_that_outlasts_its_lease_waits_for_no_heartbeat(
    pool, flaky, start_worker, monkeypatch, workers
):
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 60.0)
    for _ in range(workers):
        await start_worker(poll_interval=HOUR, concurrency=4, visibility_timeout=1)

    for _ in range(3):
        await ended(pool, *await send(pool, 4, data="hang"))


async def test_suspects_that_are_parked_one_after_the_other_are_run_at_once(
    pool, flaky, start_worker, monkeypatch
):
    monkeypatch.setattr(claiming, "SUSPECT_SECONDS", 60.0)
    dead = await register(pool)
    for _ in range(5):
        await send(pool)
        await claim_one(pool, dead, seconds=1)
        await asyncio.sleep(0.05)
    await start_worker(poll_interval=HOUR)

    left = "select count(*) from command_bus_command where status <> 'COMPLETED'"
    await eventually(lambda: value(pool, left), lambda count: count == 0)
