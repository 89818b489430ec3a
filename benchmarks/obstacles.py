"""What makes queues slow with time: finished commands, a backlog, waiting ones, an old snapshot.

Each rate stands beside the one without the obstacle, measured in turns in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator

import psycopg

from benchmarks import filling, harness
from benchmarks.processing import drained_per_second


def measure(bench: harness.Bench) -> None:
    """One obstacle after the other, each in a database of its own beside one without."""
    options = bench.options
    chosen = options.only or list(OBSTACLES)
    for name in chosen:
        OBSTACLES[name](bench)


def growth(bench: harness.Bench) -> None:
    """With millions of finished commands."""
    for millions in bench.options.millions:
        count = int(millions * 1_000_000)
        beside(bench, f"{count:,} finished", lambda url, n=count: filling.finish(url, n))


def waiting(bench: harness.Bench) -> None:
    """With commands that wait for their retry."""
    count = bench.options.waiting

    def fill(url: str) -> None:
        for start in range(0, count, 250_000):
            filling.send(url, min(250_000, count - start))
            filling.work_off(url, "transient", delay_ms=3_600_000)
        filling.fold(url)

    beside(bench, f"{count:,} waiting for a retry", fill)


def backlog(bench: harness.Bench) -> None:
    """With a backlog, of which the measured commands are the end."""
    count, url = bench.options.backlog, bench.database()
    plain = bench.database()
    commands = bench.options.commands
    base = [drained_per_second(plain, commands) for _ in range(bench.runs)]
    rates = [drained_per_second(url, count) for _ in range(1)]
    report(bench, f"a backlog of {count:,}", base, rates)
    bench.drop(url)
    bench.drop(plain)


def old_snapshot(bench: harness.Bench) -> None:
    """With a transaction that somebody forgot, which keeps dead rows from being removed."""

    @contextlib.contextmanager
    def snapshot(url: str) -> Iterator[None]:
        with psycopg.connect(url) as conn:
            conn.execute("set transaction isolation level repeatable read")
            conn.execute("select count(*) from command_bus_domain").fetchone()
            yield

    beside(bench, "an old snapshot", lambda url: None, snapshot)


def beside(
    bench: harness.Bench,
    name: str,
    fill: Callable[[str], None],
    during: Callable[[str], contextlib.AbstractContextManager[None]] | None = None,
) -> None:
    """Measure a database with the obstacle and one without it in turns."""
    plain, filled = bench.database(), bench.database()
    fill(filled)
    commands = bench.options.commands
    base, rates = [], []
    with during(filled) if during else contextlib.nullcontext():
        for _ in range(bench.runs):
            base.append(drained_per_second(plain, commands))
            rates.append(drained_per_second(filled, commands))
    report(bench, name, base, rates)
    bench.drop(plain)
    bench.drop(filled)


def report(bench: harness.Bench, name: str, base: list[float], rates: list[float]) -> None:
    """Both rates, and the ratio of their medians."""
    without = bench.record(f"without {name}", "commands/s", base)
    with_ = bench.record(f"with {name}", "commands/s", rates)
    bench.record(f"with / without {name}", "", [with_.median / without.median])


OBSTACLES = {"growth": growth, "waiting": waiting, "backlog": backlog, "old-snapshot": old_snapshot}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which obstacles, and how large."""
    parser.add_argument("--only", nargs="*", choices=list(OBSTACLES), help="default: all")
    parser.add_argument("--commands", type=int, default=100_000, help="in a run (default: 100,000)")
    parser.add_argument(
        "--millions", type=float, nargs="*", default=[1, 5], help="finished (default: 1 5)"
    )
    parser.add_argument("--waiting", type=int, default=1_000_000, help="default: 1,000,000")
    parser.add_argument("--backlog", type=int, default=1_000_000, help="default: 1,000,000")


if __name__ == "__main__":
    harness.run("obstacles", __doc__, measure, add_options)
