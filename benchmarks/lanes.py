"""What lanes cost: the rate beside that without lanes, and a claim while many lanes wait."""

from __future__ import annotations

import argparse
import statistics
import time

import psycopg

from benchmarks import filling, harness
from benchmarks.processing import drained_per_second

CLAIMS = 60


def measure(bench: harness.Bench) -> None:
    """Pairs in one database, in turns, then claims over few and many lanes."""
    options = bench.options
    url = bench.database()
    plain, laned = [], []
    for _ in range(bench.runs):
        plain.append(drained_per_second(url, options.commands))
        laned.append(drained_per_second(url, options.commands, lanes=options.lanes, groups=5))
    bench.record("without lanes", "commands/s", plain)
    bench.record(f"{options.lanes:,} lanes in 5 groups", "commands/s", laned)
    shares = [100 * one / other for one, other in zip(laned, plain, strict=True)]
    bench.record("with lanes, of the rate without", "%", shares)
    bench.drop(url)

    for waiting, lanes in ((1_000, 100), (options.waiting, options.waiting // 10)):
        url = bench.database()
        filling.send(url, waiting, lanes=lanes, groups=5)
        bench.record(f"claim of 10 while {waiting:,} wait in {lanes:,} lanes", "ms", _claims(url))
        bench.drop(url)


def _claims(url: str) -> list[float]:
    """The median of claims, each of which is settled."""
    took = []
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("vacuum analyze")
        worker = filling.register_worker(conn)
        for _ in range(CLAIMS):
            began = time.perf_counter()
            found = conn.execute(
                "select command_id, msg_id, claim_no"
                " from command_bus.claim_commands_v3('test', %s, 10, 60, 3)",
                (worker,),
            ).fetchall()
            took.append((time.perf_counter() - began) * 1000)
            filling.settle(conn, worker, found)
    return [statistics.median(took)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much."""
    parser.add_argument("--commands", type=int, default=40_000, help="in a run (default: 40,000)")
    parser.add_argument("--lanes", type=int, default=10_000, help="(default: 10,000)")
    parser.add_argument("--waiting", type=int, default=1_000_000, help="(default: 1,000,000)")


if __name__ == "__main__":
    harness.run("lanes", __doc__, measure, add_options)
