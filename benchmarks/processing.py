"""How fast worker processes bring commands to their end: the measure of the other scripts."""

from __future__ import annotations

import time
from uuid import UUID

import psycopg

from benchmarks import filling
from benchmarks.worker import noop_workers
from commandbus import uuid7

LOOK_SECONDS = 0.02
# Wide enough that a worker never waits for its own commits.
CONCURRENCY = 200
BATCH_SIZE = 100


def drained_per_second(
    url: str,
    commands: int,
    *,
    processes: int = 4,
    batch_size: int = BATCH_SIZE,
    concurrency: int = CONCURRENCY,
    lanes: int = 0,
    groups: int = 1,
) -> float:
    """Send no-op commands, then let workers process them.

    The rate is that of the active time, from the first command seen to be done to the last: the
    start of the processes is not in it.
    """
    batch_id = uuid7()
    filling.send(url, commands, batch_id=batch_id, lanes=lanes, groups=groups)
    filling.fold(url)
    with noop_workers(url, processes, concurrency=concurrency, batch_size=batch_size):
        return _watch(url, batch_id, commands)


def _watch(url: str, batch_id: UUID, commands: int) -> float:
    first: tuple[float, int] | None = None
    query = "select pending + in_progress from command_bus.batch_progress(%s)"
    with psycopg.connect(url, autocommit=True) as conn:
        while True:
            open_ = conn.execute(query, (batch_id,)).fetchone()[0]
            now, done = time.perf_counter(), commands - open_
            if first is None and done:
                first = now, done
            if not open_:
                return (done - first[1]) / (now - first[0])
            time.sleep(LOOK_SECONDS)
