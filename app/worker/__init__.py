"""Workers of the application: for tests and embedding, and as a process of its own.

`python -m app.worker --help` tells the options of the process.
"""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from app.testcommand.handlers import register_test_command
from commandbus import HandlerRegistry, Worker


async def create_worker(
    pool: AsyncConnectionPool[AsyncConnection[TupleRow]],
    domain: str = "test",
    concurrency: int = 4,
    visibility_timeout: int = 30,
    **more: Any,
) -> Worker:
    """A worker for the test commands of *domain*, not running yet.

    *more* are further options of `commandbus.Worker`. The pool belongs to the caller and to the
    event loop on which the worker will run; it needs room for about five connections.
    """
    registry = HandlerRegistry()
    register_test_command(registry, domain, pool)
    return Worker(
        pool,
        domain=domain,
        handler_registry=registry,
        concurrency=concurrency,
        visibility_timeout=visibility_timeout,
        **more,
    )
