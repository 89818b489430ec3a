"""Sending: one command a call, many a call, over HTTP, and a million within little memory."""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import subprocess
import sys
import time

import uvloop
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from app import create_app, models
from app.settings.configuration import PROJECT_ROOT
from benchmarks import filling, harness
from commandbus import CommandBus, uuid7

HTTP_COMMANDS = 10_000


def measure(bench: harness.Bench) -> None:
    """Each way of sending on a fresh database, without workers."""
    options = bench.options
    for clients in (1, 16):
        url = bench.database()
        rates = [asyncio_run(singly(url, options.single, clients)) for _ in range(bench.runs)]
        bench.record(f"single send, {clients} clients", "commands/s", rates)
        bench.drop(url)
    for connections in (1, 2, 4):
        url = bench.database()
        rates = [in_bulk(url, options.bulk, connections) for _ in range(bench.runs)]
        bench.record(f"bulk send, {connections} connections", "commands/s", rates)
        bench.drop(url)
    url = bench.database()
    bench.record(f"{HTTP_COMMANDS:,} test commands over HTTP", "s", over_http(url, bench.runs))
    bench.drop(url)
    url = bench.database()
    memory, seconds = generated(url, options.generate)
    bench.record(f"{options.generate:,} test commands, peak memory", "MB", [memory])
    bench.record(f"{options.generate:,} test commands", "commands/s", [options.generate / seconds])


def asyncio_run(coroutine):
    """On the loop that workers use."""
    return uvloop.run(coroutine)


async def singly(url: str, count: int, clients: int) -> float:
    """One command a call, each client on a connection of its own."""
    async with AsyncConnectionPool(
        url, connection_class=AsyncConnection, min_size=clients, max_size=clients, open=False
    ) as pool:
        await pool.wait()
        bus = CommandBus(pool)

        async def client(number: int) -> None:
            for n in range(count // clients):
                await bus.send("test", "Noop", uuid7(), {"client": number, "n": n})

        began = time.perf_counter()
        await asyncio.gather(*map(client, range(clients)))
        return count / (time.perf_counter() - began)


def in_bulk(url: str, count: int, connections: int) -> float:
    """A thousand commands a call, each connection in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(connections) as pool:
        pool.starmap(filling.send, [(url, 1_000)] * connections)  # everything is imported
        began = time.perf_counter()
        pool.starmap(filling.send, [(url, count // connections)] * connections)
        return count / (time.perf_counter() - began)


def over_http(url: str, runs: int) -> list[float]:
    """The time of POST /api/v1/commands/bulk at the server."""
    app = create_app({"database_url": url, "secret_key": "benchmark", "log_level": "ERROR"})
    client = app.test_client()
    seconds = []
    try:
        for count in (10, *[HTTP_COMMANDS] * runs):
            began = time.perf_counter()
            answer = client.post("/api/v1/commands/bulk", json={"count": count})
            assert answer.status_code == 201, answer.text
            seconds.append(time.perf_counter() - began)
    finally:
        with app.app_context():
            models.db.engine.dispose()
        app.extensions["portal"].close()
    return seconds[1:]


def generated(url: str, count: int) -> tuple[float, float]:
    """Peak memory in MB and seconds of a process that generates test commands."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.send", "--generate-into", url, str(count)],
        cwd=PROJECT_ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    return found["megabytes"], found["seconds"]


def generate_into(url: str, count: int) -> None:
    """What `generated` measures."""
    import resource

    began = time.perf_counter()
    filling.send_tests(url, count)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"megabytes": peak, "seconds": time.perf_counter() - began}))


def add_options(parser: argparse.ArgumentParser) -> None:
    """How many."""
    parser.add_argument("--single", type=int, default=8_000, help="default: 8,000")
    parser.add_argument("--bulk", type=int, default=200_000, help="default: 200,000")
    parser.add_argument("--generate", type=int, default=1_000_000, help="default: 1,000,000")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--generate-into"]:
        generate_into(sys.argv[2], int(sys.argv[3]))
    else:
        harness.run("send", __doc__, measure, add_options)
