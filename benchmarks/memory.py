"""Resident memory of worker and web processes over time: idle, then at full speed."""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg

from app.settings.configuration import PROJECT_ROOT
from benchmarks import filling, harness

IDLE_SECONDS = 15
TICK_SECONDS = 1.0
BACKLOG = 20_000
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclasses.dataclass
class Watched:
    """A process and its resident memory in MB, a value each second."""

    name: str
    process: subprocess.Popen[bytes]
    megabytes: list[float] = dataclasses.field(default_factory=list)

    def look(self) -> None:
        """Take one value."""
        assert self.process.poll() is None, f"{self.name} has ended by itself"
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        self.megabytes.append(pages * PAGE_BYTES / 2**20)


def measure(bench: harness.Bench) -> None:
    """One worker and one web process of the application, as they are started by hand."""
    url = bench.database()
    port = str(harness.free_port())
    environment = {**os.environ, "DATABASE_URL": url, "LOG_LEVEL": "WARNING", "PORT": port}
    watched = [
        Watched(
            name, subprocess.Popen([sys.executable, *command], cwd=PROJECT_ROOT, env=environment)
        )
        for name, command in (
            ("worker", ["-m", "app.worker", "--concurrency", "100", "--batch-size", "100"]),
            ("web", ["run.py"]),
        )
    ]
    stop = threading.Event()
    try:
        over(watched, IDLE_SECONDS)
        for each in watched:
            bench.record(f"{each.name}, idle", "MB", [each.megabytes[-1]])
            each.megabytes.clear()
        feeding = threading.Thread(target=feed, args=(url, stop), daemon=True)
        feeding.start()
        over(watched, bench.options.seconds)
        for each in watched:
            tenth = max(len(each.megabytes) // 10, 1)
            early = max(each.megabytes[tenth : 2 * tenth] or each.megabytes)
            bench.record(f"{each.name}, at full speed, most", "MB", [max(each.megabytes)])
            bench.record(
                f"{each.name}, end - second tenth", "MB", [max(each.megabytes[-tenth:]) - early]
            )
        stop.set()
        feeding.join()
    finally:
        stop.set()
        for each in watched:
            each.process.terminate()
            each.process.wait(30)


def over(watched: list[Watched], seconds: float) -> None:
    """Look at every process once a second."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(TICK_SECONDS)
        for each in watched:
            each.look()


def feed(url: str, stop: threading.Event) -> None:
    """Keep a backlog of test commands."""
    with psycopg.connect(url, autocommit=True) as conn:
        while not stop.is_set():
            counts = conn.execute("select pending from command_bus.count_by_status('test')")
            row = counts.fetchone()
            if row is None or row[0] < BACKLOG:
                filling.send_tests(url, BACKLOG)
            else:
                stop.wait(0.2)


def add_options(parser: argparse.ArgumentParser) -> None:
    """For how long."""
    parser.add_argument(
        "--seconds", type=float, default=60, help="at full speed (default: 60; an hour is 3600)"
    )


if __name__ == "__main__":
    harness.run("memory", __doc__, measure, add_options, runs=1)
