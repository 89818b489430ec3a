"""What a long run uses, measured from outside: memory, descriptors, connections, tables.

Each sample is a line of a CSV file, which outlives the test; `assert_flat` looks for a trend.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import psutil
import psycopg

_TABLES = (
    "pgmq.q_test__commands",
    "command_bus_waiting",
    "command_bus_suspect",
    "command_bus_delta",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment; memory and descriptors are those of the worker that uses most."""

    seconds: float
    memory_mb: float
    descriptors: int
    web_memory_mb: float
    web_descriptors: int
    connections: int
    web_connections: int
    database_mb: float
    small_tables_kb: int
    queued: int
    done: int


def take(url: str, workers: Iterable[int], web: int, began: float) -> Sample | None:
    """A sample of these processes, or None while a fault keeps the server away."""
    memory, descriptors = _most_used(workers)
    web_memory, web_descriptors = _most_used([web])
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as conn:
            row = conn.execute(
                "select count(*), count(*) filter (where application_name = 'commandbus-web'),"
                " pg_database_size(current_database()) / 1024,"
                " (select coalesce(sum(pg_total_relation_size(to_regclass(name))), 0) / 1024"
                "  from unnest(%s::text[]) as name),"
                " (select count(*) from pgmq.q_test__commands),"
                " (select count(*) from command_bus_command where finished_at is not null)"
                " from pg_stat_activity where datname = current_database()",
                (list(_TABLES),),
            ).fetchone()
    except psycopg.OperationalError:
        return None
    assert row is not None
    connections, web_connections, database_kb, small_tables_kb, queued, done = map(int, row)
    return Sample(
        seconds=round(time.monotonic() - began, 2),
        memory_mb=memory,
        descriptors=descriptors,
        web_memory_mb=web_memory,
        web_descriptors=web_descriptors,
        connections=connections,
        web_connections=web_connections,
        database_mb=round(database_kb / 1024, 1),
        small_tables_kb=small_tables_kb,
        queued=queued,
        done=done,
    )


def _most_used(pids: Iterable[int]) -> tuple[float, int]:
    """Memory in MB and descriptors, each of the process that uses most."""
    memory, descriptors = 0.0, 0
    for pid in pids:
        try:
            process = psutil.Process(pid)
            memory = max(memory, process.memory_info().rss / 2**20)
            descriptors = max(descriptors, process.num_fds())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # a fault was faster
    return round(memory, 1), descriptors


def write(samples: Sequence[Sample], path: Path) -> None:
    """The samples as CSV, for spreadsheets and for comparing runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.DictWriter(file, [field.name for field in fields(Sample)])
        rows.writeheader()
        rows.writerows(asdict(sample) for sample in samples)


def assert_flat(samples: Sequence[Sample], name: str, *, more: float) -> None:
    """The median of the last third is not above that of the middle third by *more*.

    The first third is left out: caches fill, pools open.
    """
    third = len(samples) // 3
    assert third >= 3, f"UNKNOWN: only {len(samples)} samples"
    values = [float(getattr(sample, name)) for sample in samples]
    before, after = statistics.median(values[third:-third]), statistics.median(values[-third:])
    assert after <= before + more, f"{name} grew from {before} to {after}: {values}"
