"""Counting which worker did how much of the work."""

from __future__ import annotations

from commandbus import CommandBus, NewCommand, uuid7
from tests.facts import Pool, rows
from tests.waiting import eventually


async def send_test_commands(pool: Pool, count: int, *, execution_time_ms: int) -> None:
    """Send commands that succeed after so many milliseconds, in one call."""
    behavior = {"type": "success", "execution_time_ms": execution_time_ms}
    await CommandBus(pool).send_many(
        "test",
        [
            NewCommand(command_type="TestCommand", command_id=uuid7(), data={"behavior": behavior})
            for _ in range(count)
        ],
    )


async def workers_alive(pool: Pool, count: int) -> list[int]:
    """Wait for so many workers; their ids, in the order of their start."""
    living = await eventually(
        lambda: rows(
            pool,
            "select worker_id from command_bus_worker where stopped_at is null order by worker_id",
        ),
        lambda seen: len(seen) == count,
        seconds=30,
    )
    return [worker_id for [worker_id] in living]


async def completed(pool: Pool, count: int, *, seconds: float = 60) -> None:
    """Wait until at least so many commands have been completed."""
    await eventually(
        lambda: rows(pool, "select count(*) from command_bus_audit where event_type = 'COMPLETED'"),
        lambda seen: seen[0][0] >= count,
        seconds=seconds,
    )


async def shares(pool: Pool, *, after_event: int = 0) -> dict[int, int]:
    """How many commands each worker completed, counted after an event of the audit."""
    counted = await rows(
        pool,
        "select worker_id, count(*) from command_bus_audit"
        " where event_type = 'COMPLETED' and audit_id > %s group by worker_id",
        after_event,
    )
    return dict(counted)


def assert_fair(counted: dict[int, int], workers: list[int]) -> None:
    """Nobody did less than half or more than twice an equal share."""
    equal = sum(counted.values()) / len(workers)
    assert sorted(counted) == sorted(workers), counted
    assert all(equal / 2 <= count <= equal * 2 for count in counted.values()), counted
