"""An event loop for handlers, and an end of the process that none of them can put off.

asyncio waits without end for a task that ignores being cancelled, and the interpreter for a thread.
A handler may leave either behind; its command comes back by its lease.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, TypeVar

from app.settings.streams import drain

logger = logging.getLogger(__name__)

T = TypeVar("T")

END_SECONDS = 1.0
"""How long leftover tasks may take to end."""


def run_to_end(
    work: Coroutine[Any, Any, T],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> T:
    """What *work* returns or raises, on a new event loop; what it leaves behind is cancelled."""
    runner = asyncio.Runner(loop_factory=loop_factory)
    threads = ThreadPoolExecutor(thread_name_prefix="handler")
    runner.get_loop().set_default_executor(threads)
    try:
        return runner.run(work)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        # A loop with something left in it cannot be closed; it goes with the process.
        if runner.run(_tasks_end()) and not _threads_left(END_SECONDS):
            runner.close()


def end_process(code: int) -> NoReturn:
    """End with *code*, immediately if threads are left that may never end."""
    if left := _threads_left(END_SECONDS):
        logger.warning("threads_left_behind", extra={"count": len(left)})
        logging.shutdown()
        drain()
        os._exit(code)
    sys.exit(code)


async def _tasks_end() -> bool:
    """Cancel every other task; whether all of them ended soon."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if not tasks:
        return True
    _, left = await asyncio.wait(tasks, timeout=END_SECONDS)
    if left:
        logger.warning("tasks_left_behind", extra={"count": len(left)})
    return not left


def _threads_left(seconds: float) -> list[threading.Thread]:
    """The threads for which the interpreter would wait, and which do not end within *seconds*."""
    deadline = time.monotonic() + seconds
    own = threading.current_thread()
    found = [each for each in threading.enumerate() if each is not own and not each.daemon]
    for thread in found:
        thread.join(max(deadline - time.monotonic(), 0))
    return [thread for thread in found if thread.is_alive()]
