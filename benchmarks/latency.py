"""How long a command takes from its send to its end: on an idle bus, and under load."""

from __future__ import annotations

import argparse
import asyncio
import time

import uvloop
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from benchmarks import filling, harness
from benchmarks.processing import drained_per_second
from benchmarks.worker import noop_workers
from commandbus import CommandBus, NewCommand, uuid7

TICK_SECONDS = 0.01


def measure(bench: harness.Bench) -> None:
    """Percentiles of all commands of each run, from the bus's own histograms (within 2 %)."""
    options = bench.options
    url = bench.database()
    capacity = drained_per_second(url, options.capacity_commands)
    bench.record("capacity", "commands/s", [capacity])
    loads = [("idle", options.rate, {})]
    loads += [
        (f"{share} % of capacity", capacity * share / 100, {"concurrency": 200, "batch_size": 100})
        for share in (50, 80)
    ]
    for name, rate, settings in loads:
        results = [percentiles(url, rate, options.seconds, settings) for _ in range(bench.runs)]
        for position, label in enumerate(("p50", "p95", "p99")):
            values = [result[position] for result in results]
            bench.record(f"{name}, {label}", "ms", values, f"{rate:,.0f} commands/s")


def percentiles(
    url: str, rate: float, seconds: float, settings: dict[str, float]
) -> tuple[float, float, float]:
    """p50, p95 and p99 in milliseconds at a steady rate, with four worker processes."""
    filling.fold(url)
    with noop_workers(url, 4, **settings):
        return uvloop.run(_send_steadily(url, rate, seconds))


async def _send_steadily(url: str, rate: float, seconds: float) -> tuple[float, float, float]:
    async with AsyncConnectionPool(
        url, connection_class=AsyncConnection, min_size=2, max_size=2, open=False
    ) as pool:
        bus = CommandBus(pool)
        await _warm_up(bus)
        batch_id = uuid7()
        sent, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            due = int(elapsed * rate) - sent
            if due > 0:
                await bus.send_many("test", _commands(due), batch_id=batch_id)
                sent += due
            await asyncio.sleep(TICK_SECONDS if rate > 1 / TICK_SECONDS else 1 / rate / 4)
        while (progress := await bus.get_batch(batch_id)) is None or progress.open:
            await asyncio.sleep(0.05)
    total = progress.total_ms
    return total.p50, total.p95, total.p99


async def _warm_up(bus: CommandBus) -> None:
    """Until every process has started and taken something."""
    await asyncio.sleep(2)
    batch_id = uuid7()
    await bus.send_many("test", _commands(100), batch_id=batch_id)
    while (progress := await bus.get_batch(batch_id)) is None or progress.open:
        await asyncio.sleep(0.05)


def _commands(count: int) -> list[NewCommand]:
    return [
        NewCommand(command_type="Noop", command_id=uuid7(), data={"n": n}) for n in range(count)
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    """At which rate, and for how long."""
    parser.add_argument("--rate", type=float, default=20, help="of the idle bus (default: 20/s)")
    parser.add_argument("--seconds", type=float, default=15, help="of each run (default: 15)")
    parser.add_argument("--capacity-commands", type=int, default=100_000, help="default: 100,000")


if __name__ == "__main__":
    harness.run("latency", __doc__, measure, add_options)
