"""A worker process for chaos tests: `python -m tests.chaos.worker_program URL HISTORY OPTIONS`.

Its handler does what the command's data asks for, {"do": ..., "ms": ...}, and records each start
and each end in the history. OPTIONS is a JSON object of ``commandbus.Worker``'s options.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.worker.event_loop import end_process, run_to_end
from commandbus import (
    BusinessRuleError,
    HandlerRegistry,
    PermanentCommandError,
    RetryPolicy,
    TransientCommandError,
    Worker,
)
from commandbus.handlers import HandlerContext
from commandbus.models import Command
from commandbus.pools import create_pool
from tests.chaos.history import CANCELLED, History

COMMAND_TYPE = "Chaos"
RENEWED_TYPE = "Renewed"
LIMITED_TYPE = "Limited"
HANDED_TYPE = "HandedOff"
NEXT_DOMAIN = "next"
"""Where the commands of HANDED_TYPE send theirs; nobody works on it."""
LIMIT_SECONDS = 0.5


class ChaosHandler:
    """Does what the data says, and writes down that it did."""

    def __init__(self, history: History) -> None:
        self._history = history

    async def __call__(self, command: Command, context: HandlerContext) -> dict[str, Any]:
        command_id, attempt = str(command.command_id), context.attempt
        self._history.started(command_id, attempt)
        try:
            result = await self._act(command.data, attempt)
        except asyncio.CancelledError:
            self._history.ended(command_id, attempt, CANCELLED)
            raise
        except (BusinessRuleError, PermanentCommandError, TransientCommandError) as exc:
            self._history.ended(command_id, attempt, exc.code)
            raise
        self._history.ended(command_id, attempt, "completed")
        return result

    async def _act(self, data: dict[str, Any], attempt: int) -> dict[str, Any]:
        if data.get("ms"):
            await asyncio.sleep(data["ms"] / 1000)
        match data["do"]:
            case "success":
                pass
            case "transient" if attempt <= data.get("failures", 1):
                raise TransientCommandError("E_TRANSIENT", "Not yet")
            case "permanent":
                raise PermanentCommandError("E_PERMANENT", "Never")
            case "business":
                raise BusinessRuleError("E_BUSINESS", "No")
            case "slow" if attempt == 1:
                await asyncio.sleep(data["seconds"])
            case "block" if attempt == 1:
                blocked_until = asyncio.get_running_loop().time() + data["seconds"]
                while asyncio.get_running_loop().time() < blocked_until:
                    pass
            case "hold" if attempt == 1:
                _hold(Path(data["until"]))
            case "hang":
                await asyncio.Event().wait()
            case "stubborn":
                while True:
                    with suppress(asyncio.CancelledError):
                        await asyncio.Event().wait()
            case "thread":
                await asyncio.to_thread(threading.Event().wait)
            case "exit":
                os._exit(1)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "segv":
                faulthandler._sigsegv()  # type: ignore[attr-defined]
            case "memory":
                _use_all_memory()
        return {"attempt": attempt}


class HandingHandler:
    """Writes one row, sends two commands and publishes an event, all with its success.

    At the cut of its first attempt, "cut_ms" after its start, the process is killed.
    """

    def __init__(self, history: History) -> None:
        self._history = history

    async def __call__(self, command: Command, context: HandlerContext) -> dict[str, Any]:
        command_id, attempt = str(command.command_id), context.attempt
        self._history.started(command_id, attempt)
        if "cut_ms" in command.data and attempt == 1:
            cut = threading.Timer(command.data["cut_ms"] / 1000, _kill_itself)
            cut.daemon = True
            cut.start()
        try:
            for number in (1, 2):
                context.send(NEXT_DOMAIN, "FollowUp", data={"number": number})
            await context.conn.execute("insert into business values (%s)", (command.command_id,))
            await asyncio.sleep(command.data.get("ms", 0) / 1000)
            context.publish("Done", {"attempt": attempt}, key=f"key {command.data['key']}")
        except asyncio.CancelledError:
            self._history.ended(command_id, attempt, CANCELLED)
            raise
        self._history.ended(command_id, attempt, "completed")
        return {"attempt": attempt}


def _kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hold(until: Path) -> None:
    """Block until the file is there."""
    while not until.exists():
        time.sleep(0.01)


def _use_all_memory() -> None:
    """End as the kernel ends what takes too much: the limit is reached, and nothing may go on."""
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    try:
        taken = [bytearray(2**26) for _ in range(17)]
    except MemoryError:
        taken = []
    assert not taken, "memory was not limited"
    os.kill(os.getpid(), signal.SIGKILL)


async def main(url: str, history: History, options: dict[str, Any]) -> None:
    """Run the worker until it is stopped; a second SIGTERM ends it at once."""
    registry = HandlerRegistry()
    registry.register("test", COMMAND_TYPE, ChaosHandler(history))
    registry.register("test", RENEWED_TYPE, ChaosHandler(history), auto_renew=True)
    registry.register(
        "test", LIMITED_TYPE, ChaosHandler(history), auto_renew=True, timeout=LIMIT_SECONDS
    )
    registry.register("test", HANDED_TYPE, HandingHandler(history), transactional=True)
    async with create_pool(
        url,
        min_size=1,
        max_size=6,
        kwargs={"application_name": f"chaos worker {os.getpid()}", "connect_timeout": 2},
    ) as pool:
        worker = Worker(
            pool,
            domain="test",
            handler_registry=registry,
            retry_policy=RetryPolicy(max_attempts=3, base_delay_ms=20, max_delay_ms=200),
            **options,
        )
        asked = False

        def stop() -> None:
            nonlocal asked
            worker.stop(force=asked)
            asked = True

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
        await worker.run()


def _log_handler() -> logging.Handler:
    """Lines with the time, the event, and all its fields."""
    usual = set(vars(logging.makeLogRecord({})))

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            fields = {k: v for k, v in vars(record).items() if k not in usual}
            return f"{self.formatTime(record)} {record.process} {super().format(record)} {fields}"

    handler = logging.StreamHandler()
    handler.setFormatter(Formatter())
    return handler


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, handlers=[_log_handler()])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    run_to_end(main(sys.argv[1], History(Path(sys.argv[2])), json.loads(sys.argv[3])))
    end_process(0)
