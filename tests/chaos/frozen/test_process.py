"""One process of the server stands still, in the middle of a call of a worker."""

from __future__ import annotations

from dataclasses import replace

import psycopg

from tests.chaos.checker import assert_clean
from tests.chaos.faults import stopped
from tests.chaos.freezing import (
    GatedHandler,
    all_completed,
    moments_later,
    pool_of,
    stopped_in,
    working,
    writes_wait,
)
from tests.chaos.history import History
from tests.chaos.scenes import command, send_on_record
from tests.chaos.worker_program import RENEWED_TYPE
from tests.facts import value
from tests.waiting import eventually, until

LEASE_SECONDS = 2


def assert_each_ran_once(url: str, history: History) -> None:
    """The history is clean, and each command was started once and completed at that."""
    recorded = history.read()
    with psycopg.connect(url, autocommit=True) as conn:
        assert_clean(recorded, conn)
        found = conn.execute(
            "select distinct status::text, attempts from command_bus_command"
        ).fetchall()
    assert found == [("COMPLETED", 1)]
    assert {recorded.starts_of(each) for each in recorded.attempted} == {1}


async def test_a_claim_that_stands_still_loses_nothing_and_spends_nothing(url, own_pool, history):
    handler = GatedHandler(history)
    handler.gate.set()
    # With a budget of one, an attempt that was spent without a start would end in the TSQ.
    caught = [command("success", max_attempts=1) for _ in range(4)]
    beside = [command("success", max_attempts=1) for _ in range(10)]
    await send_on_record(own_pool, history, caught)
    async with (
        pool_of(url) as pool,
        writes_wait(own_pool) as lock,
        working(pool, handler, visibility_timeout=LEASE_SECONDS),
    ):
        async with stopped_in("claim_commands", own_pool, lock):
            await send_on_record(own_pool, history, beside)
            await all_completed(own_pool, beside)
            await moments_later(own_pool, LEASE_SECONDS + 0.5)
        await all_completed(own_pool, caught)
    assert_each_ran_once(url, history)


async def test_a_claim_that_is_made_long_after_it_was_given_up_takes_nothing(
    url, own_pool, history, monkeypatch
):
    monkeypatch.setattr("commandbus.leases.DOUBT_SECONDS", 0.5)
    handler = GatedHandler(history)
    handler.gate.set()
    sessions = (
        "select coalesce(array_agg(pid), '{}') from pg_stat_activity"
        " where datname = current_database() and application_name = 'to be stopped'"
        " and not starts_with(lower(query), 'listen')"
    )
    # It holds little in advance, so that something is left for others to take.
    options = {"poll_interval": 0.05, "batch_size": 1, "answer_timeout": 0.5}
    async with (
        pool_of(f"{url}&application_name=to%20be%20stopped") as pool,
        working(pool, handler, visibility_timeout=LEASE_SECONDS, **options) as worker,
    ):
        await until(lambda: worker.worker_id is not None)
        pids = await value(own_pool, sessions)
        with stopped(*pids):
            # Whatever the worker asks next is read when they go on.
            await eventually(
                lambda: value(own_pool, sessions), lambda found: set(found) - set(pids)
            )
            # They stand still for longer than a call that was given up is doubted in any case.
            for _ in range(5):
                passing = [command("success", max_attempts=1)]
                await send_on_record(own_pool, history, passing)
                await all_completed(own_pool, passing)
                await moments_later(own_pool, 0.5)
            handler.gate.clear()
            filling = [replace(command("success"), command_type=RENEWED_TYPE) for _ in range(4)]
            await send_on_record(own_pool, history, filling)
            await until(lambda: handler.running == len(filling))
            behind = [command("success", max_attempts=1) for _ in range(8)]
            await send_on_record(own_pool, history, behind)
        await eventually(
            lambda: value(own_pool, sessions), lambda found: not set(found) & set(pids)
        )
        await moments_later(own_pool, LEASE_SECONDS + 0.5)
        handler.gate.set()
        await all_completed(own_pool, behind)
    assert_each_ran_once(url, history)


async def test_a_renewal_that_stands_still_is_made_on_another_connection(url, own_pool, history):
    handler = GatedHandler(history)
    held = [replace(command("success"), command_type=RENEWED_TYPE) for _ in range(4)]
    await send_on_record(own_pool, history, held)
    lease = {"visibility_timeout": 5, "answer_timeout": 0.5}
    async with pool_of(url) as pool, working(pool, handler, **lease):
        await until(lambda: handler.running == len(held))
        async with writes_wait(own_pool) as lock, stopped_in("renew_leases", own_pool, lock):
            await moments_later(own_pool, 5.5)
            handler.gate.set()
            await all_completed(own_pool, held)
    assert_each_ran_once(url, history)


async def test_an_outcome_whose_recording_stands_still_is_recorded_once(
    url, own_pool, history, caplog
):
    handler = GatedHandler(history)
    held = [command("success") for _ in range(4)]
    await send_on_record(own_pool, history, held)
    async with pool_of(url) as pool, working(pool, handler, visibility_timeout=300):
        await until(lambda: handler.running == len(held))
        async with writes_wait(own_pool) as lock:
            handler.gate.set()
            async with stopped_in("settle_commands", own_pool, lock):
                await until(lambda: "settle_retried" in caplog.messages)
            await all_completed(own_pool, held)
    assert_each_ran_once(url, history)
