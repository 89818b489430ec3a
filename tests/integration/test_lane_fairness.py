"""Groups of lanes share what is free by weight, and a claim costs the same however much waits."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import psycopg
import pytest

from commandbus import NewCommand, uuid7
from tests.facts import (
    DOMAIN,
    Pool,
    assert_books_balance,
    claim,
    completed,
    register,
    settle,
    value,
)
from tests.waiting import eventually


def group_of(lane: str) -> str:
    group, slash, _ = lane.partition("/")
    return group if slash else ""


async def fill(bus, *lanes: str) -> None:
    """Send a command to each of *lanes*, in chunks."""
    commands = [
        NewCommand(command_type="DoIt", command_id=uuid7(), lane=lane, data={}) for lane in lanes
    ]
    await bus.send_many(DOMAIN, commands)


async def work(pool: Pool, worker_id: int, batches: int, *, limit: int = 10) -> list[str]:
    """The groups of what was claimed and completed, in order."""
    seen: list[str] = []
    for _ in range(batches):
        claimed = await claim(pool, worker_id, limit=limit)
        await settle(pool, worker_id, *[completed(each) for each in claimed])
        seen += [group_of(each.command.lane or "") for each in claimed]
    return seen


@pytest.mark.parametrize("lanes", [1, 40, 1500])
async def test_a_flood_of_one_group_does_not_delay_the_few_of_another(pool, bus, lanes):
    worker = await register(pool)
    await fill(bus, *[f"flood/{n % lanes}" for n in range(3000)])
    before = await work(pool, worker, 3)
    await fill(bus, *[f"few/{n}" for n in range(30)])

    after = await work(pool, worker, 12)

    assert set(before) == {"flood"}
    last = max(place for place, group in enumerate(after) if group == "few")
    assert after.count("few") == 30
    # A window of twice a claim may be ahead of them, and then they get every second place.
    assert last <= 20 + 2 * 30 + 10
    await assert_books_balance(pool)


async def test_groups_get_shares_by_their_weights(pool, bus):
    worker = await register(pool)
    await bus.set_lane_group(DOMAIN, "heavy", weight=3)
    await fill(bus, *[f"{group}/{n}" for n in range(500) for group in ("heavy", "light")])

    served = Counter(await work(pool, worker, 40))
    await bus.set_lane_group(DOMAIN, "light", weight=3)
    later = Counter(await work(pool, worker, 30))

    assert served.total() == 400
    assert served["heavy"] / served["light"] == pytest.approx(3, rel=0.1)
    assert later["heavy"] / later["light"] == pytest.approx(1, rel=0.2)


async def test_a_group_that_was_away_does_not_get_the_time_it_missed(pool, bus):
    worker = await register(pool)
    await fill(bus, *[f"a/{n}" for n in range(600)], "b/0")
    await work(pool, worker, 20)
    await fill(bus, *[f"b/{n}" for n in range(200)])

    served = Counter(await work(pool, worker, 20))

    assert served["b"] == pytest.approx(100, abs=20)


async def test_each_of_many_groups_has_its_turn(pool, bus):
    worker = await register(pool)
    await fill(bus, *[f"g{n}/{k}" for k in range(4) for n in range(150)])

    served = Counter(await work(pool, worker, 40))

    assert len(served) == 150
    assert max(served.values()) <= 2 * served.total() / 150 + 1


async def test_a_group_at_its_limit_leaves_its_share_to_others(pool, bus):
    worker = await register(pool)
    await bus.set_lane_group(DOMAIN, "a", max_in_flight=2)
    await fill(bus, *[f"{group}/{n}" for n in range(50) for group in ("a", "b")])

    claimed = await claim(pool, worker, limit=20)

    served = Counter(group_of(each.command.lane or "") for each in claimed)
    assert served == {"a": 2, "b": 18}


async def test_many_single_sends_to_one_lane_do_not_hide_the_other_lanes(pool, bus):
    worker = await register(pool)
    for _ in range(150):
        await fill(bus, "g/full")
    await fill(bus, "g/other")

    claimed = await claim(pool, worker, limit=10)

    assert {each.command.lane for each in claimed} == {"g/full", "g/other"}


def rows_read(conn: psycopg.Connection, worker_id: int) -> int:
    """How many rows of the lanes' tables, of commands and of the queue one claim reads."""
    query = (
        "select sum(coalesce(idx_tup_fetch, 0) + seq_tup_read)::bigint"
        " from pg_stat_xact_user_tables where relname like 'command\\_bus\\_%'"
        " or relname = 'q_test__commands'"
    )
    with conn.transaction():
        before = conn.execute(query).fetchone()
        claimed = conn.execute(
            "select command_id from command_bus.claim_commands_v3('test', %s, 10, 60, 3)",
            (worker_id,),
        ).fetchall()
        after = conn.execute(query).fetchone()
    assert len(claimed) == 10
    assert before is not None
    assert after is not None
    return int(after[0]) - int(before[0])


async def test_a_claim_reads_as_much_with_many_lanes_waiting_as_with_few(pool, bus, database_url):
    worker = await register(pool)
    read = []
    with psycopg.connect(database_url, autocommit=True) as conn:
        for lanes in (100, 3000):
            await fill(bus, *[f"g{n % 5}/{n % lanes}" for n in range(lanes * 3)])
            conn.execute("vacuum analyze")
            rows_read(conn, worker)
            read.append(max(rows_read(conn, worker) for _ in range(4)))
    few, many = read

    assert many <= 1.5 * few


async def test_held_lanes_cost_a_claim_nothing(pool, bus, database_url):
    worker = await register(pool)
    await fill(bus, *[f"g/{n}" for n in range(300) for _ in range(3)])
    held = await claim(pool, worker, limit=400)
    assert len(held) == 300
    with psycopg.connect(database_url, autocommit=True) as conn:
        await fill(bus, *["other/1"] * 0, *[f"other/{n}" for n in range(40)])
        conn.execute("vacuum analyze")
        rows_read(conn, worker)

        assert rows_read(conn, worker) < 400


async def test_the_latency_of_a_small_group_survives_a_flood(pool, bus, registry, start_worker):
    """The short form of: A sends 100,000, then B 100, with handlers that sleep 20 ms."""
    ends: dict[str, list[float]] = {"a": [], "b": []}

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        await asyncio.sleep(0.02)
        ends[group_of(command.lane)].append(time.monotonic())

    await fill(bus, *[f"a/{n % 50}" for n in range(3000)])
    await start_worker(concurrency=10, batch_size=10)
    await eventually(lambda: _amount(ends["a"]), lambda n: n > 50)
    await fill(bus, *[f"b/{n}" for n in range(50)])
    done_before = len(ends["a"])

    await eventually(lambda: _amount(ends["b"]), lambda n: n == 50, seconds=30)

    overtaken_by = sum(end < max(ends["b"]) for end in ends["a"]) - done_before
    assert overtaken_by <= 50 + 60  # every second place, and what was on its way
    assert await value(pool, "select count(*) from command_bus_lane") > 1000


async def _amount(seen: list[float]) -> int:
    return len(seen)
