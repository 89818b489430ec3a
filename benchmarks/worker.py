"""A worker process with a handler that does nothing: what is left is the bus."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from app.settings.configuration import PROJECT_ROOT
from app.worker.process import run_in_loop
from commandbus import HandlerRegistry, Worker


@contextlib.contextmanager
def noop_workers(
    url: str, processes: int, **options: float
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run worker processes; *options* are those of `Worker`."""
    command = [sys.executable, "-m", "benchmarks.worker", url, json.dumps(options)]
    running = [subprocess.Popen(command, cwd=PROJECT_ROOT) for _ in range(processes)]
    try:
        yield running
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait(30)


async def work(url: str, options: dict[str, float]) -> None:
    """Run one worker until SIGTERM."""
    registry = HandlerRegistry()

    @registry.handler("test", "Noop")
    async def handle(command: object, context: object) -> None:
        """Do nothing."""

    async with AsyncConnectionPool(
        url, connection_class=AsyncConnection, min_size=3, max_size=6, open=False
    ) as pool:
        worker = Worker(pool, domain="test", handler_registry=registry, **options)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
        await worker.run()


if __name__ == "__main__":
    run_in_loop(work(sys.argv[1], json.loads(sys.argv[2])))
