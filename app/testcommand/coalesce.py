"""Turning calls that arrive together into one call for a set."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Generic, NamedTuple, TypeVar

from commandbus.errors import one_line

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
R = TypeVar("R")

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0


class Coalescer(Generic[K, V, R]):
    """Calls for single keys, made in sets.

    Calls that arrive in the same pass of the event loop, or while a set is under way, form the
    next set; so a single call does not wait, and the sets grow with the load. A set holds each
    key once: a second call for it joins a later set.

    An error of the set reaches each of its callers. A cancelled caller leaves its set, if that is
    not under way yet; others are unaffected. Belongs to the event loop on which it is called.
    """

    def __init__(
        self,
        call_set: Callable[[Mapping[K, V]], Awaitable[Mapping[K, R]]],
        *,
        limit: int = 1000,
        retried: tuple[type[Exception], ...] = (),
        not_retried: tuple[type[Exception], ...] = (),
    ) -> None:
        """Sets of at most *limit* keys are given to *call_set*, one set at a time.

        Errors of *retried* but not of *not_retried* are waited out: the set is tried again after a
        growing pause, as long as one of its callers waits.
        """
        self._call_set = call_set
        self._limit = limit
        self._retried = retried
        self._not_retried = not_retried
        self._waiting: deque[_Call[K, V, R]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, key: K, value: V) -> R | None:
        """What the set's call answered for *key*; None where it left the key out."""
        call = _Call(key, value, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await call.answer

    async def _work(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(0)  # calls made in this pass of the loop join the set
                calls = self._next_set()
                if calls:
                    await self._serve(calls)
        finally:
            self._worker = None
            for call in self._waiting:  # only when this task itself is cancelled
                call.answer.cancel()
            self._waiting.clear()

    def _next_set(self) -> list[_Call[K, V, R]]:
        taken: dict[K, _Call[K, V, R]] = {}
        later: deque[_Call[K, V, R]] = deque()
        while self._waiting and len(taken) < self._limit:
            call = self._waiting.popleft()
            if call.answer.done():
                continue
            if call.key in taken:
                later.append(call)
            else:
                taken[call.key] = call
        self._waiting.extendleft(reversed(later))
        return list(taken.values())

    async def _serve(self, calls: list[_Call[K, V, R]]) -> None:
        pause = FIRST_PAUSE_SECONDS
        while calls:
            try:
                answers = await self._call_set({call.key: call.value for call in calls})
            except asyncio.CancelledError:
                for call in calls:
                    call.answer.cancel()
                raise
            except Exception as exc:  # noqa: BLE001 - each caller gets it
                if not isinstance(exc, self._retried) or isinstance(exc, self._not_retried):
                    self._fail(calls, exc)
                    return
                logger.warning(
                    "set_call_retried",
                    extra={"size": len(calls), "error": one_line(exc)},
                )
                await asyncio.sleep(pause * (0.5 + random.random() / 2))  # nosec B311
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
                calls = [call for call in calls if not call.answer.done()]
            else:
                for call in calls:
                    if not call.answer.done():
                        call.answer.set_result(answers.get(call.key))
                return

    def _fail(self, calls: list[_Call[K, V, R]], error: Exception) -> None:
        waiting = [call for call in calls if not call.answer.done()]
        for call in waiting:
            call.answer.set_exception(error)
        if not waiting:
            logger.error("set_call_failed_unheard", extra={"size": len(calls)}, exc_info=error)


class _Call(NamedTuple, Generic[K, V, R]):
    key: K
    value: V
    answer: asyncio.Future[R | None]
