"""The standard streams of a program: nothing that is wrong with them ends it, or holds it up.

Every program begins with `set_up_streams()` and runs by `run_program`. One that works for others
(a worker, the web server) also says `never_wait`: what it writes goes through a queue with a
bound, and is dropped and counted where a pipe is full (a journal that stands still, a terminal
after Ctrl-S).
"""

from __future__ import annotations

import atexit
import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, BinaryIO, TextIO, cast

from app.settings.signals import raise_interrupts

QUEUE_BYTES = 4 * 1024 * 1024
FLUSH_SECONDS = 2.0
"""How long a program waits at its end for output that is not yet written."""
BROKEN_PIPE = 141
"""The exit code after a broken pipe: that of a program ended by SIGPIPE."""
_STDIN, _STDOUT, _STDERR = 0, 1, 2


class OutputError(OSError):
    """Standard output cannot be written; a pipe without a reader is a BrokenPipeError instead."""


def set_up_streams() -> None:
    """Print what the terminal's encoding cannot spell as `?`, and miss no stream.

    A stream that was closed (`>&-`) is one that takes everything. Errors of standard error are
    passed over, as there is nobody to tell; those of standard output raise OutputError.
    """
    for number in (_STDIN, _STDOUT, _STDERR):
        _open_missing(number)
    if sys.stdin is None:
        sys.stdin = open(_STDIN, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = _text(_Output(_STDOUT, "wb", closefd=False), sys.stdout, "replace")
    sys.stderr = _text(_Errors(_STDERR, "wb", closefd=False), sys.stderr, "backslashreplace")


def never_wait(*, output: bool = True) -> None:
    """From now on writes to standard error never wait; with *output* nor do those to output."""
    sys.stderr = _text(_Queued(LineQueue(_STDERR)), sys.stderr, "backslashreplace")
    if output:
        sys.stdout = _text(_Queued(LineQueue(_STDOUT)), sys.stdout, "replace")


def run_program(main: Callable[[], int]) -> int:
    """The exit code of *main*; 1 and a line on standard error where its output was lost.

    Ctrl-C ends it with 130, and a reader that has gone with 141, as a shell counts these.
    """
    raise_interrupts()
    code = 0
    try:
        try:
            code = main()
        except SystemExit as exc:  # argparse: --help, or wrong options
            code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
            _require_written()  # it was all that the program had to do
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return code or BROKEN_PIPE
    except KeyboardInterrupt:
        _discard_output()
        return 130
    except OutputError as exc:
        _discard_output()
        sys.stderr.write(f"error: standard output cannot be written: {exc.strerror}\n")
        return code or 1
    return code


def _require_written() -> None:
    """Raise what became of standard output where it is queued and could not be written."""
    queue = queue_of(sys.stdout)
    if queue is None:
        return
    sys.stdout.flush()
    queue.drain(FLUSH_SECONDS)
    if isinstance(queue.error, BrokenPipeError):
        raise queue.error
    if queue.error is not None:
        raise OutputError(queue.error.errno, queue.error.strerror)


def drain() -> None:
    """Let what is queued be written, for at most FLUSH_SECONDS."""
    deadline = time.monotonic() + FLUSH_SECONDS
    for queue in list(_QUEUES):
        queue.drain(deadline - time.monotonic())


class LineQueue:
    """Lines on their way to a file descriptor, written by a thread of their own.

    `put` never waits. Where more than QUEUE_BYTES are waiting, lines are dropped; where they would
    have stood, a line says how many.
    """

    def __init__(self, number: int, *, bound: int = QUEUE_BYTES) -> None:
        self.tell_dropped: Callable[[int], str] = "{} lines dropped\n".format
        self.error: OSError | None = None
        """Why the last line could not be written."""
        # A descriptor of its own: the number may be another file's one day.
        self._number = os.dup(number)
        self._bound = bound
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._dropped = 0
        self._is_stuck = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        _QUEUES.append(self)

    def put(self, line: bytes) -> None:
        """Write *line*, which may be several, soon; or drop it."""
        with self._changed:
            if self._lines and self._size + len(line) > self._bound:
                self._dropped += max(line.count(b"\n"), 1)
                return
            self._tell_dropped()
            self._add(line)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._write_all, name="line-writer", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def drain(self, seconds: float) -> bool:
        """Wait until all is written, for at most that long; return whether it is."""
        with self._changed:
            if self._is_stuck:  # somebody has waited before
                return False
            done = self._changed.wait_for(
                lambda: not self._lines and not self._dropped, max(seconds, 0)
            )
            self._is_stuck = not done
            return done

    def _add(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)

    def _tell_dropped(self) -> None:
        if self._dropped:
            count, self._dropped = self._dropped, 0
            self._add(self.tell_dropped(count).encode("utf-8", "backslashreplace"))

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._lines))
                line = self._lines[0]
            error = _write(self._number, line)
            with self._changed:
                self.error = error
                self._is_stuck = False
                # Not before it is written: until then it counts among what waits.
                self._lines.popleft()
                self._size -= len(line)
                if not self._lines:
                    self._tell_dropped()
                self._changed.notify_all()


_QUEUES: list[LineQueue] = []
atexit.register(drain)


def queue_of(stream: TextIO) -> LineQueue | None:
    """The queue of a stream that `never_wait` has made; None for any other."""
    raw = getattr(stream, "buffer", None)
    return raw.queue if isinstance(raw, _Queued) else None


class _Output(io.FileIO):
    """Standard output; what it does not take is an OutputError."""

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            try:
                written += super().write(view[written:]) or _wait_for_room(self.fileno())
            except BrokenPipeError:
                raise
            except OSError as exc:
                raise OutputError(exc.errno, exc.strerror) from None
        return written


class _Errors(io.FileIO):
    """Standard error; what it does not take is lost."""

    def write(self, data: Any, /) -> int:
        _write(self.fileno(), bytes(data))
        return len(data)


class _Queued(io.RawIOBase):
    """A stream whose lines are queued."""

    def __init__(self, queue: LineQueue) -> None:
        self.queue = queue

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.queue._number

    def isatty(self) -> bool:
        return os.isatty(self.queue._number)

    def write(self, data: Any, /) -> int:
        self.queue.put(bytes(data))
        return len(data)


def _text(raw: io.RawIOBase, like: TextIO | None, errors: str) -> TextIO:
    """A text stream onto *raw*, in the encoding of the one that it replaces; in whole lines.

    A file or pipe that somebody waits for is written in larger portions.
    """
    encoding = "utf-8" if like is None else like.encoding
    is_output = isinstance(raw, _Output)
    buffer = io.BufferedWriter(raw) if is_output else raw
    return io.TextIOWrapper(
        cast(BinaryIO, buffer),
        encoding=encoding,
        errors=errors,
        line_buffering=not is_output or raw.isatty(),
    )


def _write(number: int, data: bytes) -> OSError | None:
    """Write all of *data*, however long that takes; what cannot be written is passed over.

    Returns the reason why.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(number, view) :]
        except BlockingIOError:
            _wait_for_room(number)
        except OSError as exc:
            return exc
    return None


def _wait_for_room(number: int) -> int:
    """Another user of the file may have made it non-blocking."""
    select.select([], [number], [])
    return 0


def _open_missing(number: int) -> None:
    """A file that is opened later must not become a standard stream by chance."""
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
        else:
            os.set_inheritable(opened, True)


def _discard_output() -> None:
    """What is left in the buffer goes nowhere, so that the end of the program does not fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _STDOUT)
    os.close(nowhere)
