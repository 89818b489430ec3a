"""procrastinate at work, in an environment of its own: setup, send, work."""

import asyncio
import sys

import procrastinate

CONCURRENCY = 20


async def main(action: str, url: str, count: int) -> None:
    connector = procrastinate.PsycopgConnector(conninfo=url, min_size=4, max_size=CONCURRENCY + 4)
    app = procrastinate.App(connector=connector)

    @app.task(name="noop")
    async def noop(n: int) -> None:
        """Do nothing."""

    async with app.open_async():
        if action == "setup":
            await app.schema_manager.apply_schema_async()
        elif action == "single":
            for n in range(count):
                await noop.defer_async(n=n)
        elif action == "send":
            for start in range(0, count, 1_000):
                size = min(1_000, count - start)
                await noop.batch_defer_async(*[{"n": n} for n in range(size)])
        else:
            await app.run_worker_async(concurrency=CONCURRENCY, install_signal_handlers=False)


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
