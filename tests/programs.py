"""Programs of the project as real processes, for tests."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 30.0
# Below the ports that systems give to outgoing connections.
PORTS = range(20_000, 32_000)


def free_port() -> int:
    """A port on which nothing listens, and which no outgoing connection will be given."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Program:
    """A running program whose output is kept, line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._silent = 0  # streams that have come to their end
        self._more = asyncio.Condition()
        self._readers = [
            asyncio.create_task(self._read(stream))
            for stream in (process.stdout, process.stderr)
            if stream is not None
        ]

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            async with self._more:
                self.lines.append(line.decode().rstrip("\n"))
                self._more.notify_all()
        async with self._more:
            self._silent += 1
            self._more.notify_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    async def says(self, text: str) -> str:
        """Wait for a line with *text* in it; fails when the program ends without one."""

        def found() -> str | None:
            return next((line for line in self.lines if text in line), None)

        async with asyncio.timeout(PATIENCE), self._more:
            await self._more.wait_for(lambda: found() or self._silent == len(self._readers))
        line = found()
        assert line is not None, f"it never said {text!r}:\n{self.output}"
        return line

    async def ends(self) -> int:
        """Wait for its end; returns the exit code."""
        async with asyncio.timeout(PATIENCE):
            code = await self.process.wait()
            await asyncio.gather(*self._readers)
        return code


@asynccontextmanager
async def program(
    *arguments: str, within: Sequence[str] = (), **environment: str
) -> AsyncIterator[Program]:
    """`python *arguments` with additions to the environment; killed at the end if it still runs.

    *within* is a command that runs it somewhere else, such as `ip netns exec`.
    """
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WORKER_", "RETRY_", "RETENTION_", "LOG_"))
    }
    process = await asyncio.create_subprocess_exec(
        *within,
        sys.executable,
        *arguments,
        cwd=ROOT,
        env={**clean, **environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    running = Program(process)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await running.ends()
