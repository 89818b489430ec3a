"""reliable-cmd at work, in an environment of its own: setup, send, work."""

import asyncio
import re
import sys
from uuid import uuid4

from commandbus.setup import get_schema_sql
from psycopg_pool import AsyncConnectionPool

from commandbus import CommandBus, HandlerRegistry, SendRequest, Worker

CONCURRENCY = 20  # the best of 4, 20, 50 and 100 that were tried
POOL = CONCURRENCY + 4


async def main(action: str, url: str, count: int) -> None:
    async with AsyncConnectionPool(url, min_size=4, max_size=POOL, open=False) as pool:
        if action == "setup":
            async with pool.connection() as conn:
                # PGMQ is there, though not as an extension.
                await conn.execute(re.sub(r"(?i)create extension.*?;", "", get_schema_sql()))
                await conn.execute("select pgmq.create('bench__commands')")
        elif action == "single":
            bus = CommandBus(pool)
            for n in range(count):
                await bus.send("bench", "Noop", uuid4(), {"n": n})
        elif action == "send":
            bus = CommandBus(pool)
            for start in range(0, count, 1_000):
                size = min(1_000, count - start)
                await bus.send_batch(
                    [SendRequest("bench", "Noop", uuid4(), {"n": n}) for n in range(size)]
                )
        else:
            registry = HandlerRegistry()

            @registry.handler("bench", "Noop")
            async def handle(command: object, context: object) -> None:
                """Do nothing."""

            await Worker(pool, "bench", registry).run(concurrency=CONCURRENCY)


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
