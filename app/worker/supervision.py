"""Worker processes that are kept running: one that ends unasked is started again.

Each start after the first follows a pause that doubles, up to LONGEST_PAUSE; once a process has
lived for STEADY_SECONDS the next pause is short again. A process that ends as it was asked to is
not replaced. Neither is one where a start leads to nothing: it ended within AT_ONCE_SECONDS and
never came to work, START_ATTEMPTS times in a row, or it does not take its options. A worker that is
ended by what it runs has come to work, so it is replaced for as long as that goes on.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from app.processes import EndedProcess, WorkerProcesses
from commandbus.errors import one_line

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
STEADY_SECONDS = 60.0
AT_ONCE_SECONDS = 20.0
START_ATTEMPTS = 5
MISUSED = 2
"""The exit code of a worker that does not take its options."""
KEPT_FAILURES = 5


class TooManyWorkersError(Exception):
    """There are as many worker processes as there may be."""


@dataclass(slots=True)
class Failure:
    """A process that ended unasked, and what became of its place."""

    ended: EndedProcess
    at: float
    successor: int | None = None
    """The pid of the process that was started instead, once there is one."""
    due: float | None = None
    """When that is started, by the monotonic clock; None where none will be."""

    @property
    def seconds_left(self) -> float | None:
        """How long until the next start; None where there is none to come."""
        if self.due is None or self.successor is not None:
            return None
        return max(self.due - time.monotonic(), 0.0)


@dataclass(slots=True)
class _Place:
    """One worker to keep running: its first process or a replacement."""

    domain: str | None
    flags: Mapping[str, int | float | str]
    is_needed: bool
    pause: float
    pid: int | None = None
    failed_starts: int = 0
    failure: Failure | None = None
    """How the process ended whose successor is due."""
    predecessor: EndedProcess | None = None
    """The last one that worked, where its place has not been taken since."""


class Supervisor:
    """Starts worker processes and keeps them running until they are to stop.

    Callable from any thread. *on_given_up* is called, from a thread of its own, when a worker that
    is needed cannot be kept running; `given_up` says why.
    """

    def __init__(
        self,
        processes: WorkerProcesses,
        *,
        on_given_up: Callable[[], None] | None = None,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        self.given_up: str | None = None
        self._processes = processes
        self._on_given_up = on_given_up
        self._first_pause = first_pause
        self._lock = threading.RLock()
        self._places: list[_Place] = []
        self._failures: deque[Failure] = deque(maxlen=KEPT_FAILURES)
        self._stopping = False
        self._failed_at_the_end = False
        self._forced: int | None = None
        self._watcher: threading.Thread | None = None

    def start(
        self,
        *,
        domain: str | None = None,
        flags: Mapping[str, int | float | str] | None = None,
        is_needed: bool = False,
        at_most: int | None = None,
    ) -> int:
        """Start a worker that is kept running; returns the pid of its first process.

        With *is_needed* nothing goes on without it. Raises TooManyWorkersError where *at_most* are
        there already, and OSError where the system starts no process.
        """
        with self._lock:
            if at_most is not None and len(self._places) >= at_most:
                raise TooManyWorkersError(len(self._places))
            place = _Place(domain, dict(flags or {}), is_needed, self._first_pause)
            self._start(place)
            self._places.append(place)
            if self._watcher is None:
                self._watcher = threading.Thread(
                    target=self._watch, name="worker-supervisor", daemon=True
                )
                self._watcher.start()
            assert place.pid is not None
            return place.pid

    @property
    def pids(self) -> list[int]:
        """The processes that run."""
        with self._lock:
            return [place.pid for place in self._places if place.pid is not None]

    @property
    def is_done(self) -> bool:
        """Whether no worker runs, and none will be started again."""
        with self._lock:
            return not self._places

    @property
    def exit_code(self) -> int:
        """0: all ended as requested. 1: one did not. 128 + n: ended immediately by signal n."""
        if self.given_up is not None or self._failed_at_the_end:
            return 1
        return self._forced or 0

    def failures_within(self, seconds: float) -> list[Failure]:
        """The latest few that ended unasked in the last *seconds*, and those that wait."""
        earliest = time.monotonic() - seconds
        with self._lock:
            return [
                each
                for each in self._failures
                if each.at >= earliest or each.seconds_left is not None
            ]

    def send_signal(self, number: signal.Signals) -> None:
        """Let all workers stop; a second signal to each process ends it immediately."""
        with self._lock:
            self._stop_replacing()
            self._processes.send_signal(number)

    def stop(self, *, seconds: float = 60.0) -> None:
        """Let all processes drain; those that still run after *seconds* are killed."""
        self.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while not self.is_done and time.monotonic() < deadline:
            self.look()
            time.sleep(LOOK_SECONDS / 2)
        self.kill()

    def kill(self) -> None:
        """End every process immediately."""
        with self._lock:
            self._stop_replacing()
        self._processes.kill()
        with self._lock:
            self._places.clear()

    def look(self) -> None:
        """See which processes have ended, and start those that are due."""
        with self._lock:
            by_pid = {place.pid: place for place in self._places}
            for ended in self._processes.reap():
                if (place := by_pid.get(ended.pid)) is not None:
                    self._on_ended(place, ended)
            for place in self._places:
                if place.pid is None and not self._stopping and self._is_due(place):
                    self._start_again(place)

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            try:
                self.look()
            except Exception:
                logger.exception("workers_not_looked_after")

    def _stop_replacing(self) -> None:
        self._stopping = True
        self._places = [place for place in self._places if place.pid is not None]

    def _on_ended(self, place: _Place, ended: EndedProcess) -> None:
        place.pid = None
        fields = {
            "pid": ended.pid,
            "code": ended.code,
            "signal": ended.how if ended.code < 0 else None,
            "lived_seconds": round(ended.lived_seconds, 1),
        }
        if ended.is_asked:
            self._places.remove(place)
            if ended.code > 128:
                self._forced = ended.code
            logger.info("worker_process_ended", extra={**fields, "left": len(self._places)})
            return
        if self._stopping:
            self._places.remove(place)
            self._failed_at_the_end = True
            logger.error("worker_process_ended", extra={**fields, "left": len(self._places)})
            return
        if ended.worked:
            place.predecessor = ended
            place.failed_starts = 0
        elif ended.lived_seconds < AT_ONCE_SECONDS:
            place.failed_starts += 1
        if ended.lived_seconds >= STEADY_SECONDS:
            place.pause = self._first_pause
        place.failure = Failure(ended, time.monotonic())
        self._failures.append(place.failure)
        if place.failed_starts >= START_ATTEMPTS or (not ended.worked and ended.code == MISUSED):
            logger.error("worker_process_ended", extra=fields)
            self._give_up(place, ended)
            return
        self._wait(place.failure, place)
        logger.error("worker_process_ended", extra={**fields, "restart_seconds": place.pause})

    def _wait(self, failure: Failure, place: _Place) -> None:
        failure.due = time.monotonic() + place.pause

    def _is_due(self, place: _Place) -> bool:
        return place.failure is not None and place.failure.seconds_left == 0

    def _start_again(self, place: _Place) -> None:
        failure = place.failure
        assert failure is not None
        place.pause = min(place.pause * 2, LONGEST_PAUSE)
        try:
            self._start(place)
        except OSError as exc:  # the machine has no room for another process
            self._wait(failure, place)
            logger.error(
                "worker_process_not_started",
                extra={"error": one_line(exc), "restart_seconds": place.pause},
            )
        else:
            failure.successor = place.pid

    def _start(self, place: _Place) -> None:
        replaced = None if place.failure is None else place.failure.ended.pid
        place.pid = self._processes.start(
            domain=place.domain, flags=place.flags, replaces=place.predecessor
        )
        logger.info("worker_process_started", extra={"pid": place.pid, "replaces": replaced})

    def _give_up(self, place: _Place, ended: EndedProcess) -> None:
        self._places.remove(place)
        if place.failed_starts < START_ATTEMPTS:
            reason = f"A worker process does not take its options: it ended with {ended.how}"
        else:
            reason = (
                f"A worker process ended {place.failed_starts} times in a row before it came to"
                f" work, the last time with {ended.how}; it is not started again"
            )
        if not place.is_needed:
            logger.error("worker_process_given_up", extra={"pid": ended.pid, "reason": reason})
            return
        if self.given_up is None:
            self.given_up = reason
            if self._on_given_up is not None:
                threading.Thread(target=self._on_given_up, name="given-up", daemon=True).start()
