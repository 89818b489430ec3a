"""No-op processing with nothing given up in durability or audit, by processes and batch size."""

from __future__ import annotations

import argparse

from benchmarks import harness
from benchmarks.processing import drained_per_second


def measure(bench: harness.Bench) -> None:
    """Each combination on a fresh database."""
    options = bench.options
    combinations = [(4, size) for size in options.batch_sizes]
    combinations += [
        (count, 100) for count in options.processes if (count, 100) not in combinations
    ]
    for processes, batch_size in combinations:
        # Small batches are slow, and need no more commands to show it.
        commands = options.commands if batch_size >= 100 else options.commands // 4
        url = bench.database()
        rates = [
            drained_per_second(
                url, commands, processes=processes, batch_size=batch_size,
                concurrency=max(2 * batch_size, 20),
            )
            for _ in range(bench.runs)
        ]  # fmt: skip
        bench.record(f"{processes} processes, batch {batch_size}", "commands/s", rates)
        bench.drop(url)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which combinations."""
    parser.add_argument("--commands", type=int, default=100_000, help="in a run (default: 100,000)")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 10, 100, 500])


if __name__ == "__main__":
    harness.run("noop", __doc__, measure, add_options)
