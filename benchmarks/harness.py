"""What every benchmark shares: a server, fresh databases, medians, settings, JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import pwd
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql
from rich.console import Console
from rich.table import Table

from app.database.opening import prepare
from app.database.urls import with_database
from app.settings.configuration import PROJECT_ROOT

RESULTS = PROJECT_ROOT / "benchmarks" / "results"
SERVER_SETTINGS = {
    "shared_buffers": "1GB",
    "max_connections": "200",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "15min",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
}
SHOWN_SETTINGS = ("server_version", *SERVER_SETTINGS, "wal_level", "jit", "autovacuum")

# What a figure depends on; a change of anything else is none of the revision that was measured.
MEASURED = ("commandbus", "app", "migrations", "benchmarks/*.py", "benchmarks/others", "*.py")

console = Console(highlight=False)


@dataclass
class Figure:
    """One measured quantity: a value for each run."""

    name: str
    unit: str
    values: list[float]
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass
class Bench:
    """One benchmark at work: where it measures, and what it has found."""

    name: str
    options: argparse.Namespace
    server_url: str
    figures: list[Figure] = field(default_factory=list)
    _databases: list[str] = field(default_factory=list)

    @property
    def runs(self) -> int:
        return int(self.options.runs)

    def database(self) -> str:
        """The URL of a fresh database with PGMQ and every migration; gone afterwards."""
        name = f"bench_{self.name}_{uuid4().hex[:8]}"
        url = with_database(self.server_url, name)
        prepare(url, on_step=lambda _: None)
        self._databases.append(name)
        return url

    def drop(self, url: str) -> None:
        """Drop a database of `database` before the end, to make room."""
        with psycopg.connect(url) as conn:
            name = conn.info.dbname
        self._databases.remove(name)
        _drop(self.server_url, name)

    def drop_all(self) -> None:
        for name in list(self._databases):
            _drop(self.server_url, name)
        self._databases.clear()

    def record(self, name: str, unit: str, values: Sequence[float], note: str = "") -> Figure:
        """Keep what the runs gave, and say it."""
        figure = Figure(name, unit, [float(value) for value in values], note)
        self.figures.append(figure)
        console.print(f"{name}: {_shown(figure.median)} {unit}  {_spread(figure)} {note}".rstrip())
        return figure


def run(
    name: str,
    description: str,
    measure: Callable[[Bench], None],
    add_options: Callable[[argparse.ArgumentParser], None] = lambda _: None,
    *,
    runs: int = 3,
) -> None:
    """Read the options, measure on a server, print a table and write JSON."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--database-url", help="a server of yours; without, one is started")
    parser.add_argument("--runs", type=int, default=runs, help=f"default: {runs}")
    parser.add_argument(
        "--json", type=Path, help=f"default: {RESULTS.relative_to(PROJECT_ROOT)}/{name}.json"
    )
    add_options(parser)
    options = parser.parse_args()
    with server(options.database_url) as url:
        bench = Bench(name, options, url)
        about = _about(bench)
        console.print(about)
        began = time.monotonic()
        try:
            measure(bench)
        finally:
            bench.drop_all()
        seconds = time.monotonic() - began
    _print(bench)
    file = options.json or RESULTS / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "benchmark": name,
        **about,
        "took_seconds": round(seconds, 1),
        "figures": [
            {
                "name": figure.name,
                "unit": figure.unit,
                "median": round(figure.median, 3),
                "values": [round(value, 3) for value in figure.values],
                "note": figure.note,
            }
            for figure in bench.figures
        ],
    }
    file.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"Written to {file}")


@contextlib.contextmanager
def server(url: str | None) -> Iterator[str]:
    """The server of *url*, or one of its own with durable settings, in a temporary folder."""
    if url is not None:
        yield url
        return
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="commandbus-bench-"))
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    prefix = ["runuser", "-u", user, "--"] if os.geteuid() == 0 else []
    if prefix:
        shutil.chown(folder, user)
    port = free_port()
    data = folder / "data"
    settings = {
        **SERVER_SETTINGS,
        "port": port,
        "unix_socket_directories": f"'{folder}'",
        "listen_addresses": "''",
    }
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    try:
        _quietly(
            [
                *prefix,
                programs / "initdb",
                "-D",
                data,
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale",
                "C",
            ]
        )
        _quietly(
            [
                *prefix,
                programs / "pg_ctl",
                "start",
                "-w",
                "-s",
                "-D",
                data,
                "-l",
                folder / "log",
                "-o",
                options,
            ]
        )
        try:
            yield f"postgresql://postgres@/postgres?host={folder}&port={port}"
        finally:
            _quietly(
                [*prefix, programs / "pg_ctl", "stop", "-w", "-s", "-m", "immediate", "-D", data]
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def programs_of_postgres() -> Path:
    """The folder of PostgreSQL's programs."""
    return _programs()


def _programs() -> Path:
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    if found:
        return found[0].parent
    if on_path := shutil.which("initdb"):
        return Path(on_path).resolve().parent
    raise SystemExit(
        "No PostgreSQL found to start: install Debian's postgresql, or give --database-url"
    )


def _quietly(command: Sequence[object]) -> None:
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, cwd="/")


def _drop(server_url: str, name: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as conn:
        conn.execute(
            sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
        )


def _about(bench: Bench) -> dict[str, Any]:
    with psycopg.connect(bench.server_url) as conn:
        settings = {
            name: conn.execute("select current_setting(%s)", (name,)).fetchone()[0]
            for name in SHOWN_SETTINGS
        }
    given = {
        name: value
        for name, value in vars(bench.options).items()
        if name not in ("database_url", "json")
    }
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": _git("rev-parse", "--short", "HEAD")
        + ("+changes" if _git("status", "--porcelain", *MEASURED) else ""),
        "machine": f"{os.cpu_count()} cores, {_memory_gb()} GB, {platform.platform(terse=True)}",
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "postgresql": settings,
        "options": {
            name: str(value) if isinstance(value, Path) else value for name, value in given.items()
        },
    }


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _memory_gb() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _print(bench: Bench) -> None:
    table = Table("figure", "median", "", "runs", "", title=bench.name, title_justify="left")
    for figure in bench.figures:
        table.add_row(figure.name, _shown(figure.median), figure.unit, _spread(figure), figure.note)
    console.print(table)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}"


def _spread(figure: Figure) -> str:
    return (
        f"({', '.join(_shown(value) for value in figure.values)})" if len(figure.values) > 1 else ""
    )
