"""Lanes: commands of one key run in order, one at a time, whatever happens to them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from commandbus import (
    CommandBus,
    DuplicateCommandError,
    InvalidCommandError,
    NewCommand,
    PermanentCommandError,
    TransientCommandError,
    UnknownDomainError,
    store,
    uuid7,
)
from tests.facts import (
    DOMAIN,
    Pool,
    assert_books_balance,
    claim,
    claim_parked,
    completed,
    ended,
    expire_leases,
    failed,
    make_due,
    park,
    register,
    release,
    rows,
    settle,
    status,
    value,
)

LANE = "tenant-7/order-42"


def new(lane: str | None = LANE, **options) -> NewCommand:
    return NewCommand(command_type="DoIt", command_id=uuid4(), lane=lane, **options)


async def send(bus: CommandBus, *commands: NewCommand) -> list[UUID]:
    await bus.send_many(DOMAIN, commands)
    return [each.command_id for each in commands]


async def claimed_ids(pool: Pool, worker_id: int, **options) -> list[UUID]:
    return [each.command.command_id for each in await claim(pool, worker_id, **options)]


async def test_a_lane_gives_one_command_at_a_time_in_the_order_of_sending(pool, bus):
    worker = await register(pool)
    sent = await send(bus, *[new() for _ in range(5)])

    seen: list[UUID] = []
    for _ in range(5):
        [claimed] = await claim(pool, worker, limit=10)
        assert await claim(pool, worker, limit=10) == []
        await settle(pool, worker, completed(claimed))
        seen.append(claimed.command.command_id)
        await assert_books_balance(pool)

    assert seen == sent
    assert claimed.command.lane == LANE
    assert await claim(pool, worker, limit=10) == []
    for table in ("command_bus_lane", "command_bus_lane_slot", "command_bus_lane_ready"):
        assert await value(pool, f"select count(*) from {table}") == 0


async def test_a_large_set_keeps_its_order_though_its_ids_are_in_another(pool, bus):
    worker = await register(pool)
    sent = await send(bus, *[new() for _ in range(1500)])

    in_lane = await rows(pool, "select command_id from command_bus_lane order by seq")

    assert [each for (each,) in in_lane] == sent
    assert sent != sorted(sent)
    assert await claimed_ids(pool, worker, limit=10) == sent[:1]


async def test_commands_of_several_lanes_and_without_one_run_beside_each_other(pool, bus):
    worker = await register(pool)
    sent = await send(bus, new("a"), new("a"), new("b"), new(None), new("g/c"))

    assert set(await claimed_ids(pool, worker, limit=10)) == {sent[0], *sent[2:]}
    await assert_books_balance(pool)


async def test_a_send_in_a_transaction_takes_its_place_when_that_commits(pool, bus):
    worker = await register(pool)
    async with bus.transaction() as conn:
        await bus.send(DOMAIN, "DoIt", first := uuid4(), {}, conn=conn, lane=LANE)
        second = (await send(bus, new()))[0]
        assert await claimed_ids(pool, worker) == [second]

    assert await claimed_ids(pool, worker) == []  # the lane is taken
    await assert_books_balance(pool)
    assert await status(pool, first) == "PENDING"


@pytest.mark.parametrize("how", ["retry", "release", "lease over", "suspect"])
async def test_a_command_keeps_its_lane_until_it_ends(pool, bus, how):
    worker = await register(pool)
    first, second = await send(bus, new(), new())
    [claimed] = await claim(pool, worker)

    match how:
        case "retry":
            await settle(pool, worker, failed(claimed, retry_delay_ms=60_000))
            assert await claimed_ids(pool, worker) == []
            await make_due(pool, first)
        case "release":
            await release(pool, worker, [claimed])
        case "lease over":
            await expire_leases(pool, first)
        case "suspect":
            await expire_leases(pool, first, worker_lives=False)
            assert await claimed_ids(pool, worker) == []
            await assert_books_balance(pool)
            async with store.autocommit(pool) as conn:
                [again] = await store.claim_suspect(conn, DOMAIN, worker, 30, 3)
            await settle(pool, worker, completed(again))
    if how != "suspect":
        [again] = await claim(pool, worker)
        assert again.command.command_id == first
        await assert_books_balance(pool)
        await settle(pool, worker, completed(again))

    assert await claimed_ids(pool, worker) == [second]
    await assert_books_balance(pool)


@pytest.mark.parametrize("end", ["business", "spent"])
async def test_a_lane_goes_on_after_a_failure_that_ends_its_command(pool, bus, end):
    worker = await register(pool)
    await bus.set_lane_group(DOMAIN, "tenant-7", on_trouble="skip")
    first, second = await send(bus, new(max_attempts=1), new())
    [claimed] = await claim(pool, worker)

    if end == "business":
        await settle(pool, worker, failed(claimed, "business"))
    else:
        await expire_leases(pool, first)
        await claim(pool, worker)

    assert await claimed_ids(pool, worker) == [second]
    await assert_books_balance(pool)


async def test_a_command_in_the_tsq_holds_its_lane_until_an_operator_ends_it(pool, bus, tsq):
    worker = await register(pool)
    sent = await send(bus, *[new() for _ in range(4)])
    for command_id, act in zip(
        sent, (tsq.operator_cancel, tsq.operator_complete, tsq.operator_retry), strict=False
    ):
        [claimed] = await claim(pool, worker)
        assert claimed.command.command_id == command_id
        await settle(pool, worker, failed(claimed, "permanent"))
        await assert_books_balance(pool)
        assert await claimed_ids(pool, worker) == []
        await act(DOMAIN, command_id)
        await assert_books_balance(pool)

    [retried] = await claim(pool, worker)
    assert retried.command.command_id == sent[2]
    await settle(pool, worker, completed(retried))
    assert await claimed_ids(pool, worker) == sent[3:]


async def test_under_skip_a_lane_goes_on_and_a_retried_command_comes_first_again(pool, bus, tsq):
    worker = await register(pool)
    await bus.set_lane_group(DOMAIN, "*", on_trouble="skip")
    sent = await send(bus, *[new() for _ in range(4)])
    for command_id in sent[:2]:
        [claimed] = await claim(pool, worker)
        assert claimed.command.command_id == command_id
        await settle(pool, worker, failed(claimed, "permanent"))
    [running] = await claim(pool, worker)

    await tsq.operator_retry_many(DOMAIN, [sent[1], sent[0]])

    assert await claimed_ids(pool, worker) == []  # within the limit
    await assert_books_balance(pool)
    await settle(pool, worker, completed(running))
    order = []
    for _ in range(3):
        [claimed] = await claim(pool, worker)
        order.append(claimed.command.command_id)
        await settle(pool, worker, completed(claimed))
    assert order == [sent[0], sent[1], sent[3]]
    await assert_books_balance(pool)


@pytest.mark.parametrize("on_trouble", ["hold", "skip"])
async def test_an_undone_retry_leaves_the_lane_as_it_was(pool, bus, tsq, on_trouble):
    worker = await register(pool)
    await bus.set_lane_group(DOMAIN, "tenant-7", on_trouble=on_trouble)
    first, second = await send(bus, new(), new())
    [claimed] = await claim(pool, worker)
    await settle(pool, worker, failed(claimed, "permanent"))

    await tsq.operator_retry(DOMAIN, first, delay_seconds=60)
    await assert_books_balance(pool)
    await tsq.undo_retry(DOMAIN, first)

    await assert_books_balance(pool)
    assert await claimed_ids(pool, worker) == ([] if on_trouble == "hold" else [second])
    await tsq.operator_retry(DOMAIN, first, delay_seconds=60)
    await make_due(pool, first)
    assert await claimed_ids(pool, worker) == ([first] if on_trouble == "hold" else [])
    await assert_books_balance(pool)


async def test_a_cancelled_command_leaves_the_others_in_order(pool, bus, tsq):
    worker = await register(pool)
    sent = await send(bus, *[new() for _ in range(4)])
    [claimed] = await claim(pool, worker)
    await release(pool, worker, [claimed])

    await tsq.cancel_pending(DOMAIN, sent[0])  # has a message
    await assert_books_balance(pool)
    await tsq.cancel_pending(DOMAIN, sent[2])  # waits in the lane
    await assert_books_balance(pool)

    [claimed] = await claim(pool, worker)
    assert claimed.command.command_id == sent[1]
    await settle(pool, worker, completed(claimed))
    assert await claimed_ids(pool, worker) == [sent[3]]


async def test_a_set_that_waits_in_lanes_is_cancelled_at_once(pool, bus):
    await register(pool)
    sent = await send(bus, *[new(f"l{n % 3}") for n in range(30)])

    cancelled = await rows(
        pool, "select command_bus.cancel_queued(%s, %s, 'me', null)", DOMAIN, sent
    )

    assert len(cancelled) == 30
    await assert_books_balance(pool)
    assert await value(pool, "select count(*) from command_bus_lane") == 0


async def test_a_delayed_command_takes_its_place_when_it_is_due(pool, bus):
    worker = await register(pool)
    late, soon = await send(bus, new(delay=60), new())
    await assert_books_balance(pool)
    await make_due(pool, late)
    later = (await send(bus, new()))[0]

    order = []
    for _ in range(3):
        [claimed] = await claim(pool, worker)
        order.append(claimed.command.command_id)
        await settle(pool, worker, completed(claimed))
        await assert_books_balance(pool)

    assert order[0] == soon
    assert set(order[1:]) == {late, later}


async def test_the_lane_belongs_to_the_content_where_it_is_given(pool, bus):
    await bus.send(DOMAIN, "DoIt", command_id := uuid4(), {}, lane=LANE)

    again = await bus.send(DOMAIN, "DoIt", command_id, {}, lane=LANE)
    without = await bus.send_many(DOMAIN, [NewCommand(command_type="DoIt", command_id=command_id)])

    assert not again.created
    assert not without[0].created
    with pytest.raises(DuplicateCommandError):
        await bus.send(DOMAIN, "DoIt", command_id, {}, lane="other")
    await assert_books_balance(pool)


@pytest.mark.parametrize("lane", ["", "x" * 201, "a\x00b", 7])
async def test_what_can_be_no_lane_is_refused(bus, lane):
    with pytest.raises(InvalidCommandError, match="lane"):
        await bus.send(DOMAIN, "DoIt", uuid4(), {}, lane=lane)


async def test_limits_of_lane_and_group_hold_and_change_while_running(pool, bus):
    worker = await register(pool)
    await bus.set_lane_group(DOMAIN, "t", lane_limit=2, max_in_flight=3)
    await send(bus, *[new(f"t/{n % 4}") for n in range(20)], *[new("u/1") for _ in range(3)])

    first = await claim(pool, worker, limit=10)
    lanes = [each.command.lane for each in first]

    assert sum(lane.startswith("t/") for lane in lanes if lane) == 3
    assert lanes.count("u/1") == 1
    assert max(map(lanes.count, lanes)) <= 2
    await assert_books_balance(pool)
    await bus.set_lane_group(DOMAIN, "t", max_in_flight=None)
    assert len(await claim(pool, worker, limit=10)) == 5
    await bus.set_lane_group(DOMAIN, "t", lane_limit=3)
    assert len(await claim(pool, worker, limit=10)) == 4
    await bus.set_lane_group(DOMAIN, "t", max_in_flight=0)
    await settle(pool, worker, *[completed(each) for each in first])
    assert await claimed_ids(pool, worker) != []  # of the group u, and only that
    assert await bus.reset_lane_group(DOMAIN, "t")
    await assert_books_balance(pool)


async def test_a_group_that_skips_from_now_on_frees_its_held_lanes(pool, bus):
    worker = await register(pool)
    first, second = await send(bus, new(), new())
    [claimed] = await claim(pool, worker)
    await settle(pool, worker, failed(claimed, "permanent"))
    [group] = await bus.lane_groups(DOMAIN)
    assert (group.group, group.waiting, group.in_flight, group.held) == ("tenant-7", 1, 0, 1)

    await bus.set_lane_group(DOMAIN, "tenant-7", on_trouble="skip")

    assert await claimed_ids(pool, worker) == [second]
    await assert_books_balance(pool)
    assert await status(pool, first) == "IN_TSQ"


@pytest.mark.parametrize(
    "bad",
    [
        {"weight": 0}, {"weight": float("nan")}, {"lane_limit": 0}, {"lane_limit": True},
        {"max_in_flight": -1}, {"on_trouble": "wait"}, {"group": "a/b"}, {"group": "x" * 201},
    ],
)  # fmt: skip
async def test_settings_out_of_range_are_refused(bus, bad):
    with pytest.raises(InvalidCommandError):
        await bus.set_lane_group(DOMAIN, **{"group": "g", **bad})


async def test_settings_of_an_unknown_domain_are_refused(bus):
    with pytest.raises(UnknownDomainError):
        await bus.set_lane_group("nowhere", "g", weight=2)


async def test_a_locked_command_is_not_overtaken_in_its_lane(pool, bus):
    worker = await register(pool)
    first, _ = await send(bus, new(), new())
    other = (await send(bus, new("other")))[0]
    async with pool.connection() as conn, conn.transaction():
        await conn.execute(
            "select from command_bus_command where command_id = %s for update", (first,)
        )

        assert await claimed_ids(pool, worker) == [other]

    assert await claimed_ids(pool, worker) == [first]
    await assert_books_balance(pool)


async def test_while_somebody_promotes_others_claim_what_is_there(pool, bus):
    worker = await register(pool)
    first, _ = await send(bus, new(), new())
    await claim(pool, worker)
    [without, in_lane] = await send(bus, new(None), new("other"))
    async with pool.connection() as conn, conn.transaction():
        await conn.execute("select from command_bus_lane_clock for update")

        assert await claimed_ids(pool, worker) == [without]

    assert await claimed_ids(pool, worker) == [in_lane]
    assert await status(pool, first) == "IN_PROGRESS"


async def test_a_claim_that_may_not_promote_since_others_have_goes_on_without(
    pool, bus, database_url
):
    worker = await register(pool)
    await send(bus, new(), new())
    await claim(pool, worker)
    [without, _] = await send(bus, new(None), new("other"))
    with psycopg.connect(database_url) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("select from command_bus_lane_clock")
        await rows(
            pool, "update command_bus_lane_clock set virtual_time = virtual_time + 1 returning 1"
        )

        claimed = conn.execute(
            "select command_id from command_bus.claim_commands_v2('test', %s, 10, 30, 3)", (worker,)
        ).fetchall()

    assert claimed == [(without,)]


async def test_a_follow_up_in_its_parents_lane_takes_its_place(pool, bus, registry, start_worker):
    order: list[str] = []

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        order.append(command.data["name"])
        for name in command.data.get("then", ()):
            context.send(DOMAIN, "DoIt", data={"name": name}, lane=command.lane)

    names = [
        {"name": "1", "then": ["1a", "1b", "1c"]},
        {"name": "2", "then": ["2a"]},
        {"name": "3"},
    ]
    sent = await send(bus, *[new(data=data) for data in names])
    await start_worker(concurrency=4)

    await ended(pool, *sent)
    assert order == ["1", "1a", "1b", "1c", "2", "2a", "3"]
    await assert_books_balance(pool)


async def hand_off(pool: Pool, worker_id: int, claimed, *names: str) -> list[UUID]:
    """Complete a command that sends others in its own lane; their ids."""
    ids = [uuid4() for _ in names]
    sends = [
        {
            "domain": DOMAIN,
            "command": {
                "command_id": str(command_id),
                "command_type": "DoIt",
                "data": {"name": name},
                "lane": claimed.command.lane,
            },
        }
        for command_id, name in zip(ids, names, strict=True)
    ]
    outcome = {
        **completed(claimed),
        "sends": sends,
        "events": [],
    }
    async with pool.connection() as conn:
        await conn.execute(
            "select * from command_bus.settle_commands_v3(%s, %s, %s)",
            (DOMAIN, worker_id, Jsonb([outcome])),
        )
    return ids


async def test_fifteen_generations_of_two_follow_ups_come_before_what_waits(pool, bus):
    worker = await register(pool)
    _, waiting = await send(bus, new(), new())
    [claimed] = await claim(pool, worker)
    for _ in range(15):
        step, go_on = await hand_off(pool, worker, claimed, "step", "go on")
        [claimed] = await claim(pool, worker)
        assert claimed.command.command_id == step
        await settle(pool, worker, completed(claimed))
        [claimed] = await claim(pool, worker)
        assert claimed.command.command_id == go_on
    await hand_off(pool, worker, claimed, "one more")
    [claimed] = await claim(pool, worker)
    await hand_off(pool, worker, claimed, "and", "one")  # there is no room for two

    [claimed] = await claim(pool, worker)
    assert claimed.command.command_id == waiting
    await assert_books_balance(pool)


async def test_follow_ups_never_get_the_place_of_one_that_runs(pool, bus):
    await bus.set_lane_group(DOMAIN, "tenant-7", lane_limit=2)
    worker = await register(pool)
    await send(bus, new())
    [root] = await claim(pool, worker)
    await hand_off(pool, worker, root, "first", "slow")
    first, slow = await claim(pool, worker, limit=10)
    await hand_off(pool, worker, first, "1", "2")

    for _ in range(2):
        [each] = await claim(pool, worker, limit=10)
        await settle(pool, worker, completed(each))
        await assert_books_balance(pool)
    await settle(pool, worker, completed(slow))
    assert await claim(pool, worker, limit=10) == []
    await assert_books_balance(pool)


async def test_follow_ups_never_get_the_place_of_one_in_the_tsq_that_let_go_of_its_lane(
    pool, bus, tsq
):
    await bus.set_lane_group(DOMAIN, "tenant-7", on_trouble="skip")
    worker = await register(pool)
    await send(bus, new())
    [root] = await claim(pool, worker)
    await hand_off(pool, worker, root, "first", "second")
    [first] = await claim(pool, worker)
    await settle(pool, worker, failed(first, kind="permanent"))
    [second] = await claim(pool, worker)
    await settle(pool, worker, failed(second, kind="permanent"))
    await tsq.operator_retry(DOMAIN, first.command.command_id)
    [first] = await claim(pool, worker)
    following = await hand_off(pool, worker, first, "1", "2")
    await tsq.operator_retry(DOMAIN, second.command.command_id)
    await assert_books_balance(pool)

    for expected_id in [*following, second.command.command_id]:
        [claimed] = await claim(pool, worker)
        assert claimed.command.command_id == expected_id
        await settle(pool, worker, completed(claimed))
        await assert_books_balance(pool)


async def test_workers_keep_the_order_of_each_lane_through_failures(
    pool, bus, registry, start_worker
):
    running: set[str] = set()
    order: dict[str, list[int]] = {}

    @registry.handler("test", "DoIt")
    async def handle(command, context):
        lane = command.lane
        assert lane not in running, "two of one lane at once"
        running.add(lane)
        try:
            await asyncio.sleep(0.002)
            number = command.data["number"]
            if number % 7 == 3 and context.attempt < 2:
                raise TransientCommandError("E", "again")
            order.setdefault(lane, []).append(number)
            if number % 11 == 5:
                raise PermanentCommandError("E", "never")
        finally:
            running.remove(lane)

    await bus.set_lane_group(DOMAIN, "*", on_trouble="skip")
    commands = [
        NewCommand(
            command_type="DoIt", command_id=uuid7(), lane=f"g{n % 3}/{n % 12}", data={"number": n}
        )
        for n in range(240)
    ]
    await send(bus, *commands)
    await asyncio.gather(*[start_worker(concurrency=5, batch_size=7) for _ in range(3)])

    await _all_over(pool, [each.command_id for each in commands])
    assert {lane: sorted(seen) for lane, seen in order.items()} == order
    assert sum(map(len, order.values())) == 240
    await assert_books_balance(pool)


async def _all_over(pool: Pool, ids: Sequence[UUID]) -> None:
    from tests.waiting import eventually

    async def left() -> int:
        return int(
            await value(
                pool,
                "select count(*) from command_bus_command"
                " where status in ('PENDING', 'IN_PROGRESS') and command_id = any (%s)",
                list(ids),
            )
        )

    await eventually(left, lambda n: n == 0, seconds=30)


async def test_repair_gives_back_what_somebody_took_from_lanes(pool, bus):
    worker = await register(pool)
    sent = await send(bus, *[new(f"l{n % 2}") for n in range(6)])
    running = await claim(pool, worker)
    await rows(pool, "delete from command_bus_lane returning 1")
    await rows(pool, "delete from command_bus_lane_slot returning 1")
    await rows(pool, "delete from command_bus_lane_ready returning 1")
    assert await rows(pool, "select * from command_bus.find_violations()") != []

    requeued = await rows(pool, "select * from command_bus.requeue_lost_commands('test')")
    await rows(pool, "select * from command_bus.recount()")

    assert len(requeued) == 4
    await assert_books_balance(pool)
    seen = {each.command.command_id for each in running}
    while running:
        await settle(pool, worker, *[completed(each) for each in running])
        running = await claim(pool, worker)
        seen |= {each.command.command_id for each in running}
    assert seen == set(sent)


async def test_repair_gives_a_parked_command_its_slot_back(pool, bus):
    worker = await register(pool)
    first, second = await send(bus, new(), new())
    await park(pool, worker, await claim(pool, worker))
    await rows(pool, "delete from command_bus_lane_slot returning 1")

    await rows(pool, "select * from command_bus.recount()")

    await assert_books_balance(pool)
    assert await claim(pool, worker) == []
    for expected_id in (first, second):
        [claimed] = await claim_parked(pool, worker, "DoIt") or await claim(pool, worker)
        assert claimed.command.command_id == expected_id
        await settle(pool, worker, completed(claimed))
    await assert_books_balance(pool)


async def test_a_domain_with_commands_in_lanes_is_not_deleted(pool, bus):
    from commandbus import DomainInUseError

    await bus.create_domain("other")
    await bus.send("other", "DoIt", command_id := uuid4(), {}, lane="a")
    await bus.set_lane_group("other", "a", weight=2)

    with pytest.raises(DomainInUseError):
        await bus.delete_domain("other")
    await rows(
        pool, "select * from command_bus.cancel_pending('other', %s, 'me', null)", command_id
    )
    await bus.delete_domain("other")
    assert await value(pool, "select count(*) from command_bus_lane_group") == 0
    assert await rows(pool, "select * from command_bus.find_violations()") == []
