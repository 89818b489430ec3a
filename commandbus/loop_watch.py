"""Saying in the log that a handler keeps the event loop from going on: where, and for how long.

While one handler blocks, no other of the process goes on, no heartbeat is sent, and no lease is
renewed.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
BLOCKED_SECONDS = 1.0
"""A loop that takes no turn for this long is called blocked."""
SHOWN_FRAMES = 8
_ASYNCIO = str(Path(asyncio.__file__).parent)


class LoopWatch:
    """Looks from a thread of its own whether the event loop takes turns."""

    def __init__(self, ids: Mapping[str, Any]) -> None:
        self._ids = ids
        self._ended = threading.Event()

    async def run(self) -> None:
        """Watch the running loop for ever."""
        arguments = (asyncio.get_running_loop(), threading.get_ident())
        # A daemon, since a loop that is blocked for ever could not end it.
        threading.Thread(
            target=self._watch, args=arguments, name="event loop watch", daemon=True
        ).start()
        try:
            await asyncio.Event().wait()
        finally:
            self._ended.set()

    def _watch(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            turned = threading.Event()
            asked_at = time.monotonic()
            try:
                loop.call_soon_threadsafe(turned.set)
            except RuntimeError:
                return  # it is closed
            if turned.wait(BLOCKED_SECONDS):
                continue
            self._say("event_loop_blocked", asked_at, at=_stack(thread))
            while not turned.wait(LOOK_SECONDS):
                if self._ended.is_set():
                    return
            self._say("event_loop_went_on", asked_at)

    def _say(self, event: str, since: float, **more: str) -> None:
        seconds = round(time.monotonic() - since, 1)
        logger.warning(event, extra={**self._ids, "blocked_seconds": seconds, **more})


def _stack(thread: int) -> str:
    """Where *thread* is, the innermost call first, without the event loop itself."""
    frame = sys._current_frames().get(thread)
    calls = [at for at in traceback.extract_stack(frame) if not at.filename.startswith(_ASYNCIO)]
    shown = calls[: -SHOWN_FRAMES - 1 : -1]
    return " < ".join(f"{at.name} ({at.filename}:{at.lineno})" for at in shown)
