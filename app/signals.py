"""Stop signals that come before there is anything to drain."""

from __future__ import annotations

import signal
from types import FrameType

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class EarlyStop:
    """Turns stop signals into KeyboardInterrupt, and remembers that one came.

    An exception that a signal handler raises is lost where Python cannot pass it on (a finalizer,
    a callback from C), so whoever starts something long asks `came` first.
    """

    def __init__(self) -> None:
        self.came = False

    def listen(self) -> None:
        """Take the stop signals that this process does not ignore (as it does under nohup)."""
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._interrupt)

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt
