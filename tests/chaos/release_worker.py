"""A worker of whichever release stands in the path: `release_worker.py URL TYPES OPTIONS`.

TYPES is a JSON list of the command types that it has handlers for, OPTIONS a JSON object of
``commandbus.Worker``'s options. It uses only what every release has.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from typing import Any

from commandbus import HandlerRegistry, RetryPolicy, Worker
from commandbus.handlers import HandlerContext
from commandbus.models import Command
from commandbus.pools import create_pool


async def handle(command: Command, context: HandlerContext) -> dict[str, Any]:
    """Take a moment, so that there is always something in flight."""
    await asyncio.sleep(command.data.get("ms", 0) / 1000)
    return {"attempt": context.attempt}


async def main(url: str, types: list[str], options: dict[str, Any]) -> None:
    """Run the worker until SIGTERM."""
    registry = HandlerRegistry()
    for name in types:
        registry.register("test", name, handle)
    async with create_pool(url, min_size=1, max_size=6) as pool:
        worker = Worker(
            pool,
            domain="test",
            handler_registry=registry,
            retry_policy=RetryPolicy(max_attempts=3, base_delay_ms=20, max_delay_ms=200),
            **options,
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
        running = asyncio.create_task(worker.run())
        await worker.registered.wait()
        sys.stdout.write("registered\n")
        sys.stdout.flush()
        await running


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])))
