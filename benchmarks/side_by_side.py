"""The same no-op work by other libraries on PostgreSQL, each in an environment of its own.

Installs reliable-cmd, pgqueuer and procrastinate from PyPI and graphile-worker from npm into a
cache folder, and measures them in turns with the command bus on the same server, each at the best
settings that were found for it. What each keeps differs: reliable-cmd does the same work as the
command bus (metadata, audit, queue); procrastinate keeps job rows and events, pgqueuer a log row,
graphile-worker nothing. reliable-cmd reads columns by position and takes the wrong ones from
today's PGMQ; its installed copy is corrected, or it would process nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from app.settings.configuration import PROJECT_ROOT
from benchmarks import filling, harness
from benchmarks.processing import BATCH_SIZE, CONCURRENCY, drained_per_second
from benchmarks.send import asyncio_run, singly

DRIVERS = PROJECT_ROOT / "benchmarks" / "others"
PROCESSES = 4
LOOK_SECONDS = 0.1
GIVE_UP_SECONDS = 180.0


@dataclass(frozen=True)
class Library:
    """Another library, and how it is measured."""

    name: str
    packages: tuple[str, ...]
    driver: str
    remaining: str
    """What counts the jobs that are not done."""
    settings: Sequence[int] = (0,)
    """An argument for its worker, a measurement each."""
    commands: int = 20_000


LIBRARIES = (
    Library(
        "reliable-cmd",
        ("reliable-cmd==0.2.2", "psycopg[binary,pool]"),
        "reliable_cmd.py",
        "select count(*) from commandbus.command where status in ('PENDING', 'IN_PROGRESS')",
        commands=10_000,
    ),
    Library(
        "procrastinate",
        ("procrastinate==3.10.0", "psycopg[binary,pool]"),
        "procrastinate_.py",
        "select count(*) from procrastinate_jobs where status in ('todo', 'doing')",
        commands=10_000,
    ),
    Library(
        "pgqueuer",
        ("pgqueuer==1.6.0", "asyncpg", "uvloop"),
        "pgqueuer_.py",
        "select count(*) from pgqueuer",
        settings=(100, 500),
        commands=60_000,
    ),
    Library(
        "graphile-worker",
        ("graphile-worker@0.17.3", "pg@8"),
        "graphile_worker.mjs",
        "select count(*) from graphile_worker._private_jobs",
        commands=100_000,
    ),
)


def measure(bench: harness.Bench) -> None:
    """One library after the other."""
    for library in LIBRARIES:
        if not bench.options.only or library.name in bench.options.only:
            program = install(library, bench.options.cache)
            _measure_sending(bench, library, program)
            for setting in library.settings:
                _measure_processing(bench, library, program, setting)


def _measure_sending(bench: harness.Bench, library: Library, program: list[str]) -> None:
    options, url, ours = bench.options, bench.database(), bench.database()
    _do(program, "setup", url, 0)
    _pair(
        bench,
        f"{library.name}, single send",
        lambda: _timed(program, "single", url, options.single),
        lambda: asyncio_run(singly(ours, options.single, 1)),
    )
    filling.work_off(ours)
    _pair(
        bench,
        f"{library.name}, bulk send",
        lambda: _timed(program, "send", url, library.commands),
        lambda: _bulk(ours, options.commands),
    )
    bench.drop(url)
    bench.drop(ours)


def _measure_processing(
    bench: harness.Bench, library: Library, program: list[str], setting: int
) -> None:
    options, url, ours = bench.options, bench.database(), bench.database()
    _do(program, "setup", url, 0)
    size = setting or BATCH_SIZE
    _pair(
        bench,
        f"{library.name}, processing" + (f", batch {setting}" if setting else ""),
        lambda: _processed(library, program, url, setting),
        lambda: drained_per_second(
            ours, options.commands, batch_size=size, concurrency=max(2 * size, CONCURRENCY)
        ),
    )
    bench.drop(url)
    bench.drop(ours)


def _pair(
    bench: harness.Bench, what: str, theirs: Callable[[], float], ours: Callable[[], float]
) -> None:
    """Measure both in turns, so that what else the machine does weighs on both alike."""
    rates = [(theirs(), ours()) for _ in range(bench.runs)]
    other = bench.record(what, "/s", [rate for rate, _ in rates])
    own = bench.record(f"command bus beside {what}", "/s", [rate for _, rate in rates])
    bench.record(f"command bus / {what}", "x", [own.median / other.median])


def _bulk(url: str, count: int) -> float:
    began = time.perf_counter()
    filling.send(url, count)
    rate = count / (time.perf_counter() - began)
    filling.work_off(url)
    return rate


def _do(program: list[str], action: str, url: str, count: int) -> None:
    command = [*program, action, url, str(count)]
    subprocess.run(
        command,
        check=True,
        cwd=_folder(program),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _timed(program: list[str], action: str, url: str, count: int) -> float:
    """The rate, without the time that the program takes to start and connect."""
    began = time.perf_counter()
    _do(program, action, url, 1)
    start = time.perf_counter() - began
    began = time.perf_counter()
    _do(program, action, url, count)
    return count / (time.perf_counter() - began - start)


def _processed(library: Library, program: list[str], url: str, setting: int) -> float:
    _do(program, "send", url, library.commands)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("vacuum (analyze)")
        command = [*program, "work", url, str(setting)]
        workers = [
            subprocess.Popen(
                command, cwd=_folder(program), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            for _ in range(PROCESSES)
        ]
        try:
            return _watch(conn, library)
        finally:
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.wait()


def _watch(conn: psycopg.Connection, library: Library) -> float:
    total = conn.execute(library.remaining).fetchone()[0]
    first: tuple[float, int] | None = None
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while True:
        remaining = conn.execute(library.remaining).fetchone()[0]
        now, done = time.perf_counter(), total - remaining
        if first is None and done:
            first = now, done
        if not remaining and first is not None:
            return (done - first[1]) / (now - first[0])
        if time.monotonic() > deadline:
            raise SystemExit(
                f"{library.name} left {remaining} of {total} after {GIVE_UP_SECONDS} s"
            )
        time.sleep(LOOK_SECONDS)


def install(library: Library, cache: Path) -> list[str]:
    """Have the library in its own environment; how its driver is started."""
    folder = cache / library.name
    driver = str(DRIVERS / library.driver)
    if library.driver.endswith(".mjs"):
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "install", "--silent", "--no-audit", "--prefix", folder, *library.packages],
            check=True, cwd=folder,
        )  # fmt: skip
        return ["node", driver]
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *library.packages],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    if library.name == "reliable-cmd":
        _correct_columns(folder)
    return [str(python), driver]


def _correct_columns(folder: Path) -> None:
    """pgmq.read answers msg_id, read_ct, enqueued_at, last_read_at, vt, message, headers today."""
    [client] = folder.glob("lib/python3*/site-packages/commandbus/pgmq/client.py")
    text = client.read_text()
    if "vt=str(row[3])" in text:
        text = text.replace("row[4]", "row[5]").replace("vt=str(row[3])", "vt=str(row[4])")
        client.write_text(text)


def _folder(program: list[str]) -> Path:
    return Path(program[0]).parent.parent if program[0] != "node" else CACHE / "graphile-worker"


CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "commandbus-benchmarks"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which libraries, and where they are kept."""
    parser.add_argument("--only", nargs="*", choices=[lib.name for lib in LIBRARIES])
    parser.add_argument(
        "--commands", type=int, default=100_000, help="of the command bus, in a run"
    )
    parser.add_argument("--single", type=int, default=2_000, help="single sends in a run")
    parser.set_defaults(cache=CACHE)


if __name__ == "__main__":
    harness.run("side_by_side", __doc__, measure, add_options)
