"""The load test itself: `load_test.py` with real workers, test commands read and written."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from app.settings.configuration import PROJECT_ROOT
from benchmarks import harness

FIGURES = (
    ("processed_per_second", "commands/s", "from the first command taken to the last one ended"),
    ("throughput_per_second", "commands/s", "generation and the start of the workers included"),
    ("generated_per_second", "commands/s", ""),
    ("waiting_seconds", "s", "until the first worker process takes a command"),
    ("total_seconds", "s", ""),
)


def measure(bench: harness.Bench) -> None:
    """The same load test several times on one database."""
    url = bench.database()
    results = [
        load_test(url, bench.options.commands, bench.options.workers) for _ in range(bench.runs)
    ]
    for name, unit, note in FIGURES:
        bench.record(name, unit, [result[name] for result in results], note)
    unaccounted = sum(result["unaccounted"] for result in results)
    bench.record("unaccounted", "commands", [unaccounted])


def load_test(url: str, commands: int, workers: int) -> dict[str, Any]:
    """The results of one run; raises where it does not end well."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        command = [sys.executable, "load_test.py", "--json", str(file)]
        command += ["--commands", str(commands), "--workers", str(workers)]
        subprocess.run(
            command,
            check=True,
            cwd=PROJECT_ROOT,
            env={**os.environ, "DATABASE_URL": url},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        found: dict[str, Any] = json.loads(file.read_text())
        return found


def add_options(parser: argparse.ArgumentParser) -> None:
    """As of load_test.py."""
    parser.add_argument("--commands", type=int, default=10_000, help="default: 10,000")
    parser.add_argument("--workers", type=int, default=4, help="default: 4")


if __name__ == "__main__":
    harness.run("load", __doc__, measure, add_options, runs=5)
