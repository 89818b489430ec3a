"""Waiting for facts, never for time to pass."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.02


async def eventually(
    look: Callable[[], Awaitable[T]],
    holds: Callable[[T], object] = bool,
    *,
    seconds: float = 15.0,
) -> T:
    """What *look* gives as soon as it *holds*; after *seconds* it fails and tells what it saw."""
    deadline = time.monotonic() + seconds
    while True:
        seen = await look()
        if holds(seen):
            return seen
        assert time.monotonic() < deadline, f"after {seconds} s still {seen!r:.2000}"
        await asyncio.sleep(POLL_SECONDS)


async def until(holds: Callable[[], object], *, seconds: float = 15.0) -> None:
    """The same for a fact that this process can see by itself."""

    async def look() -> bool:
        return bool(holds())

    await eventually(look, seconds=seconds)


def eventually_now(
    look: Callable[[], T], *, seconds: float = 30.0, every: float = 0.05, message: str = ""
) -> T:
    """The first true value of *look*, in tests that have no event loop."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"after {seconds} s still {seen!r:.2000} {message}"
        time.sleep(every)
    return seen
