"""The signals that stop a process, and what to do before there is anything to drain."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


def stop_signals() -> list[signal.Signals]:
    """The signals that stop this process: all but a SIGHUP that it was told to ignore (nohup).

    What a shell script starts with `&` is born ignoring SIGINT; `kill -INT` stops it all the same.
    """
    return [
        number
        for number in _STOP_SIGNALS
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN
    ]


def end_at_interrupts() -> None:
    """Let Ctrl-C end this process without a traceback; for the moment that its imports take."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_interrupts() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, as Python does by itself."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class EarlyStop:
    """Turns stop signals into KeyboardInterrupt, and remembers that one came.

    An exception that a signal handler raises is lost where Python cannot pass it on (a finalizer,
    a callback from C), so check `came` before starting something long, and now and then in it.
    """

    def __init__(self) -> None:
        self.came = False
        self._is_held = False

    def listen(self) -> None:
        """Take the stop signals."""
        for number in stop_signals():
            signal.signal(number, self._interrupt)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let a short step come to its end: a signal that comes meanwhile is raised after it.

        For what starts threads or tasks, of which nobody would know after half of the step.
        """
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        if self.came:
            raise KeyboardInterrupt

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self.came = True
        if not self._is_held:
            raise KeyboardInterrupt
