"""A deadline for every wait for the database, even for one that no longer answers.

A server whose process is stopped, or a network that loses every packet, answers neither the
statement nor the request to cancel it. psycopg waits for both when its task is cancelled, and
closes the connection when it is cancelled again. So a call that takes too long is cancelled until
it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from commandbus.errors import NoAnswerError

ANSWER_SECONDS = 15.0
"""How long a call waits for a connection and for the answer, unless its caller says otherwise."""
AGAIN_SECONDS = 1.0
"""How long the server may take to agree to a cancellation; then the connection is closed."""


class answered_within:  # noqa: N801 - used like asyncio.timeout
    """An async context whose calls of the database end within *seconds*, and AGAIN_SECONDS more.

    Raises NoAnswerError then. What the server had been asked may still happen.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._fired = 0

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # a coroutine runs in a task
        self._task = task
        self._fired = 0
        self._loop = asyncio.get_running_loop()
        self._cancelled_before = task.cancelling()
        self._timer = self._loop.call_later(self._seconds, self._fire)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        if not self._fired:
            return
        for _ in range(self._fired):
            cancelled = self._task.uncancel()
        if kind is asyncio.CancelledError and cancelled <= self._cancelled_before:
            raise NoAnswerError(f"no answer within {self._seconds:g} s") from error

    def renew(self) -> None:
        """Count anew: there was an answer, or a pause is over."""
        self.pause()
        self._timer = self._loop.call_later(self._seconds, self._fire)

    def pause(self) -> None:
        """Do not count until `renew`: the database is not waited for."""
        self._timer.cancel()

    def _fire(self) -> None:
        self._fired += 1
        self._task.cancel()
        self._timer = self._loop.call_later(AGAIN_SECONDS, self._fire)


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel *tasks* until they have ended; what they raise is not raised here.

    Once may not do: an error that the database answers meanwhile takes the cancellation's place,
    and a loop that survives errors goes on.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_SECONDS)
