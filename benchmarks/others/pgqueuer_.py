"""pgqueuer at work, in an environment of its own: setup, send, work."""

import sys

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries


async def main(action: str, url: str, count: int) -> None:
    connection = await asyncpg.connect(url)
    driver = AsyncpgDriver(connection)
    queries = Queries(driver)
    if action == "setup":
        await queries.install()
    elif action == "single":
        for n in range(count):
            await queries.enqueue("noop", str(n).encode())
    elif action == "send":
        for start in range(0, count, 1_000):
            size = min(1_000, count - start)
            await queries.enqueue(["noop"] * size, [b"1"] * size, [0] * size)
    else:
        queuer = PgQueuer(driver)

        @queuer.entrypoint("noop")
        async def handle(job: object) -> None:
            """Do nothing."""

        await queuer.run(batch_size=count)


uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
