"""What the parts of one worker share: who it is, its options, and whether it stops."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from commandbus.retry import RetryPolicy

STOP_SECONDS = 1.0
"""How long a stop waits for a call of the database; only recording outcomes gets longer."""


class WorkerState:
    """Belongs to one `Worker`; its parts read it, and stop or wake the worker through it."""

    concurrency: int
    batch_size: int
    visibility_timeout: int
    poll_interval: float
    handler_timeout: float
    no_handler_after: float
    retry_policy: RetryPolicy

    def __init__(
        self,
        domain: str,
        *,
        settings: dict[str, Any],
        drain_timeout: float,
        answer_timeout: float,
        app_version: str | None,
        cancel_grace: float,
    ) -> None:
        self.domain = domain
        self.settings = settings
        self.drain_timeout = drain_timeout
        self.answer_timeout = answer_timeout
        self.app_version = app_version
        self.cancel_grace = cancel_grace
        self.worker_id: int | None = None
        self.registered = asyncio.Event()
        self.outcomes_recorded = 0
        self.woken = asyncio.Event()
        """Set when the claim loop shall look again."""
        self.is_stopping = False
        self.is_forced = False
        """Whether the stop waits for nothing."""
        self._stop_asked = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain_deadline: float | None = None

    @property
    def ids(self) -> dict[str, Any]:
        """The fields of every log line about this worker."""
        return {"worker_id": self.worker_id, "domain": self.domain}

    @property
    def registered_id(self) -> int:
        """The worker's id; RuntimeError before ``run()`` got one."""
        if self.worker_id is None:
            raise RuntimeError("the worker is not registered; run() does it")
        return self.worker_id

    def start(self) -> None:
        """Belong to the running event loop; RuntimeError the second time."""
        if self._loop is not None:
            raise RuntimeError("a worker runs once; make another one")
        self._loop = asyncio.get_running_loop()

    def identify(self, worker_id: int) -> None:
        """Take the id that the database has given."""
        self.worker_id = worker_id
        self.registered.set()

    def stop(self, *, force: bool = False) -> None:
        """Ask the worker to stop; callable from any thread."""
        self.is_stopping = True
        self.is_forced = self.is_forced or force
        self.wake()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop_asked.set)

    def wake(self) -> None:
        """Let the claim loop look again; callable from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.woken.set)

    async def wait_for_stop(self) -> None:
        """Wait until the worker is asked to stop."""
        await self._stop_asked.wait()

    async def back_off(self, seconds: float) -> None:
        """Wait *seconds* after a fault, or until a stop: new work does not end this wait."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop_asked.wait()

    def begin_drain(self) -> float:
        """Start the time that handlers and outcomes still have; returns its end."""
        self._drain_deadline = time.monotonic() + self.drain_timeout
        return self._drain_deadline

    @property
    def call_seconds(self) -> float:
        """How long a call of the database may take now."""
        return min(self.answer_timeout, STOP_SECONDS) if self.is_stopping else self.answer_timeout

    @property
    def recording_seconds(self) -> float:
        """How long recording outcomes may take now.

        During a stop it still gets time, because a command whose outcome is not recorded runs
        again; but not all the time, so that it can be tried again.
        """
        if self._drain_deadline is None:
            return self.answer_timeout
        left = self._drain_deadline - time.monotonic()
        return min(self.answer_timeout, max(left / 3, STOP_SECONDS))
