"""Pruning deletes what has ended, with all that hangs on it, and nothing else."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest

from app import retention
from app.actions import job_store
from app.testcommand import store
from commandbus import (
    CommandStatus,
    InvalidCommandError,
    UnknownDomainError,
    retention_store,
)
from commandbus import store as bus_store
from commandbus.ops import TroubleshootingQueue
from commandbus.retention import FINISHED, RetentionRule
from tests.facts import (
    DOMAIN,
    QUEUE,
    assert_books_balance,
    claim,
    claim_one,
    completed,
    count,
    events,
    expire_leases,
    failed,
    queued,
    register,
    rows,
    send,
    settle,
    value,
)
from tests.integration.pruning import (
    ENDED_STATES,
    TABLES,
    age,
    end,
    everything,
    left,
    make,
    new_command,
    prune,
    prune_history,
)
from tests.integration.scenes import CONTENT, STATES, Scene

# What goes and what stays


@pytest.mark.parametrize("state", [name for name in STATES if name != "nowhere"])
async def test_only_what_has_ended_is_deleted_and_then_completely(pool, bus, state):
    worker_id = await register(pool)
    scene = Scene(pool, worker_id, uuid4())
    await bus.send(DOMAIN, command_id=scene.command_id, **CONTENT)
    await STATES[state](scene)
    before = await everything(pool)

    pruned = await prune(pool)

    if state in ENDED_STATES:
        assert pruned.commands.total() == 1
        assert pruned.events == len(before["command_bus_audit"])
        for table in TABLES:
            assert await count(pool, table, scene.command_id) == 0
        assert await queued(pool, scene.command_id) == 0
    else:
        assert (pruned.commands.total(), pruned.events) == (0, 0)
        assert await everything(pool) == before
    await assert_books_balance(pool)


async def test_age_is_counted_from_the_end_of_a_command(pool):
    worker_id = await register(pool)
    old, fresh = await make(pool, worker_id, 3), await make(pool, worker_id, 3)
    [long_lived] = await make(pool, worker_id, 1)
    await age(pool, old, 31)
    await rows(
        pool,
        "update command_bus_command set created_at = created_at - interval '90 days'"
        " where command_id = %s",
        long_lived,
    )

    pruned = await prune(
        pool, [RetentionRule(status=CommandStatus.COMPLETED, older_than=timedelta(days=30))]
    )

    assert pruned.commands == {CommandStatus.COMPLETED: 3}
    assert await left(pool) == {*fresh, long_lived}


@pytest.mark.parametrize("how", FINISHED)
async def test_pruning_by_count_keeps_the_newest_commands(pool, how):
    ids = await make(pool, await register(pool), 7, how)

    pruned = await prune(pool, [RetentionRule(status=how, keep=3)], batch_size=2)

    assert (pruned.commands[how], pruned.complete) == (4, True)
    assert await left(pool) == set(ids[-3:])
    await assert_books_balance(pool)


async def test_each_status_has_limits_of_its_own(pool):
    worker_id = await register(pool)
    ids = {how: await make(pool, worker_id, 4, how) for how in FINISHED}
    await age(pool, [each for made in ids.values() for each in made[:2]], 10)

    rules = [
        RetentionRule(status=CommandStatus.COMPLETED, older_than=timedelta(days=5)),
        RetentionRule(status=CommandStatus.FAILED, older_than=timedelta(days=20), keep=3),
    ]
    foretold = await prune(pool, rules, dry_run=True)
    assert len(await left(pool)) == 12
    pruned = await prune(pool, rules)

    assert foretold.commands == pruned.commands
    assert await left(pool) == {
        *ids[CommandStatus.COMPLETED][2:],
        *ids[CommandStatus.FAILED][1:],
        *ids[CommandStatus.CANCELLED],
    }


async def test_a_domain_can_be_pruned_alone(pool, bus):
    await bus.create_domain("other")
    worker_id, other = await register(pool), await register(pool, "other")
    mine = await make(pool, worker_id, 2)
    await bus.send("other", "DoIt", uuid4(), {})
    claimed = await claim_one(pool, other, domain="other")
    await settle(pool, other, completed(claimed), domain="other")

    pruned = await prune(pool, domain="other")

    assert pruned.commands.total() == 1
    assert await left(pool) == set(mine)
    with pytest.raises(UnknownDomainError):
        await prune(pool, domain="nowhere")


async def test_pruning_walks_past_what_stays(pool):
    """Old commands that are open do not keep it from what has ended after them."""
    worker_id = await register(pool)
    open_ones = await send(pool, 7)
    held = await claim(pool, worker_id)
    done = await make(pool, worker_id, 5)
    assert len(held) == 7

    after: list[object] = [None, None]
    deleted, calls = [], 0
    while True:
        [(found, *after, more)] = await rows(
            pool,
            "select command_ids, last_created_at, last_id, more from command_bus.prune_commands("
            "'COMPLETED', clock_timestamp(), 2, null, %s, %s, p_examine => 3)",
            *after,
        )
        deleted += found
        calls += 1
        if not more:
            break

    assert (set(deleted), await left(pool)) == (set(done), set(open_ones))
    assert calls >= 4


async def test_what_has_not_ended_cannot_even_be_asked_for(pool):
    for each in set(CommandStatus) - set(FINISHED):
        with pytest.raises(ValueError, match="have not ended"):
            RetentionRule(status=each, keep=0)
        async with bus_store.autocommit(pool) as conn:
            now = await bus_store.server_time(conn)
            with pytest.raises(InvalidCommandError, match="is not final"):
                await retention_store.prune_commands(
                    conn, each, now, 10, domain=None, after=(None, None), dry_run=False
                )


@pytest.mark.parametrize(
    "limits", [{}, {"keep": -1}, {"older_than": timedelta(seconds=-1)}], ids=str
)
def test_a_rule_that_makes_no_sense_is_refused(limits):
    with pytest.raises(ValueError, match=r"needs|negative|from 0 to"):
        RetentionRule(status=CommandStatus.COMPLETED, **limits)


async def test_pruning_with_a_time_limit_ends_between_two_batches(pool):
    await make(pool, await register(pool), 3)

    pruned = await prune(pool, max_seconds=0)

    assert (pruned.commands.total(), pruned.complete) == (0, False)
    assert len(await left(pool)) == 3


# The books


async def test_history_stays_when_commands_go(pool, bus):
    """Batches, rates and the totals of workers tell what happened, and still add up."""
    worker_id, batch_id = await register(pool), uuid4()
    sent = await bus.send_many(DOMAIN, [new_command() for _ in range(4)], batch_id=batch_id)
    await end(pool, worker_id, [each.command_id for each in sent[:2]], "COMPLETED")
    await expire_leases(pool, *[each.command_id for each in sent[2:]])
    await end(pool, worker_id, [sent[2].command_id], "FAILED")
    of_workers = "select completed, failed from command_bus_worker"
    assert await rows(pool, of_workers) == [(2, 1)]
    before = await bus.get_batch(batch_id)

    await prune(pool)
    await assert_books_balance(pool)
    async with bus_store.autocommit(pool) as conn:
        await bus_store.fold_deltas(conn)
    await assert_books_balance(pool)

    assert (await bus.count_by_status())[CommandStatus.COMPLETED] == 0
    after = await bus.get_batch(batch_id)
    assert (after.counts, after.sent, after.processed) == (
        before.counts,
        before.sent,
        before.processed,
    )
    assert after.total_ms == before.total_ms
    assert await rows(pool, of_workers) == [(2, 1)]
    assert await value(pool, "select processed from command_bus.throughput('test', 3600)") == 3


async def test_a_pruned_id_can_be_sent_anew(pool, bus):
    worker_id = await register(pool)
    [command_id] = await make(pool, worker_id, 1)
    await prune(pool)

    again = await bus.send(DOMAIN, "Other", command_id, {"now": "different"})

    assert again.created
    assert await events(pool, command_id) == ["SENT"]
    await end(pool, worker_id, [command_id], "COMPLETED")
    await assert_books_balance(pool)


async def test_messages_of_pruned_commands_make_no_noise(pool):
    """Nothing of a finished command is left in the queue that a worker could stumble over."""
    worker_id = await register(pool)
    [late] = await send(pool)
    first = await claim_one(pool, worker_id)
    await expire_leases(pool, late)
    await settle(pool, worker_id, completed(await claim_one(pool, worker_id)))
    await prune(pool)

    [answer] = await settle(pool, worker_id, completed(first))
    assert answer.verdict == "unknown"
    assert await claim(pool, worker_id) == []
    assert await value(pool, "select count(*) from command_bus_rejected") == 0
    assert await value(pool, "select count(*) from command_bus_audit") == 0
    await assert_books_balance(pool)


# The application's rows


async def test_a_test_command_goes_with_its_command(pool, bus):
    worker_id = await register(pool)
    ids = [uuid4() for _ in range(3)]
    async with bus.transaction() as conn:
        for each in ids:
            await store.create_test_command(conn, each, {"type": "success"}, {})
            await bus.send(DOMAIN, "TestCommand", each, {}, conn=conn)
    await end(pool, worker_id, ids[:2], "COMPLETED")

    await prune(pool, on_pruned=retention.with_test_commands)

    assert await rows(pool, "select command_id from test_command") == [(ids[2],)]


async def test_what_the_application_refuses_to_lose_stays(pool):
    """Its rows and the command's are deleted together or not at all."""
    worker_id = await register(pool)
    ids = await make(pool, worker_id, 3)

    async def refuse(conn, command_ids):
        raise RuntimeError("not these")

    with pytest.raises(RuntimeError, match="not these"):
        await prune(pool, on_pruned=refuse)

    assert await left(pool) == set(ids)
    await assert_books_balance(pool)


# History


async def test_history_goes_by_its_own_age(pool, bus):
    worker_id, batch_id = await register(pool), uuid4()
    [sent] = await bus.send_many(DOMAIN, [new_command()], batch_id=batch_id)
    await end(pool, worker_id, [sent.command_id], "CANCELLED")
    await rows(pool, "select pgmq.send(%s, '{\"what\": 1}')", QUEUE)
    await claim(pool, worker_id)
    async with bus_store.autocommit(pool) as conn:
        await job_store.create_job(
            conn,
            job_id=uuid4(),
            action="retry",
            operator="olga",
            arguments={},
            chosen=[],
            filters=None,
            delay_seconds=0,
            expected=0,
            runner=uuid4(),
        )
        await bus_store.worker_stopped(conn, worker_id)
    await rows(pool, "update operator_job set state = 'finished', finished_at = now()")
    await prune(pool)
    async with bus_store.autocommit(pool) as conn:
        await bus_store.fold_deltas(conn)

    assert await prune_history(pool, timedelta(days=1)) == {}
    for table, columns in {
        "command_bus_second": ("at",),
        "command_bus_worker": ("heartbeat_at", "stopped_at"),
        "command_bus_batch": ("updated_at",),
        "command_bus_rejected": ("rejected_at",),
        f"pgmq.a_{QUEUE}": ("archived_at",),
        "command_bus_tsq_trend": ("hour",),
        "command_bus_tsq_group": ("last_seen_at",),
        "operator_job": ("finished_at",),
    }.items():
        moved = ", ".join(f"{each} = {each} - interval '2 days'" for each in columns)
        await rows(pool, f"update {table} set {moved}")
    seconds = await value(pool, "select count(*) from command_bus_second")
    fresh = await register(pool)
    [stays] = await bus.send_many(DOMAIN, [new_command()], batch_id=uuid4())
    async with bus_store.autocommit(pool) as conn:
        await bus_store.fold_deltas(conn)

    assert await prune_history(pool, timedelta(days=1)) == {
        "statistics": seconds,
        "workers": 1,
        "batches": 1,
        "rejected messages": 1,
        "archived messages": 1,
        "hours of failure groups": 1,
        "failure groups": 1,
        "operator jobs": 1,
    }
    assert await rows(pool, "select worker_id from command_bus_worker") == [(fresh,)]
    assert await left(pool) == {stays.command_id}
    await assert_books_balance(pool)


async def test_history_that_is_still_needed_stays(pool, bus):
    """A batch with commands, and a group with something in the troubleshooting queue."""
    worker_id, batch_id = await register(pool), uuid4()
    sent = await bus.send_many(DOMAIN, [new_command() for _ in range(2)], batch_id=batch_id)
    held = await claim(pool, worker_id)
    await settle(pool, worker_id, failed(held[0], "permanent"), completed(held[1]))
    await prune(pool)
    async with bus_store.autocommit(pool) as conn:
        await bus_store.fold_deltas(conn)
    await rows(pool, "update command_bus_batch set updated_at = updated_at - interval '9 days'")
    await rows(
        pool, "update command_bus_tsq_group set last_seen_at = last_seen_at - interval '9 days'"
    )

    assert await prune_history(pool, timedelta(days=1)) == {}
    assert (await bus.get_batch(batch_id)).sent == len(sent)
    # An operator's delayed retry comes back to its group when it is undone.
    tsq = TroubleshootingQueue(pool)
    await tsq.operator_retry(DOMAIN, held[0].command.command_id, delay_seconds=900)
    async with bus_store.autocommit(pool) as conn:
        await bus_store.fold_deltas(conn)
    assert await prune_history(pool, timedelta(days=1)) == {}
    await tsq.undo_retry(DOMAIN, held[0].command.command_id)
    await assert_books_balance(pool)
