"""The embedded server: started by the first process that needs it, stopped by the last.

A server must neither outlive its users nor die under them, however a process ends. Two lock files
beside the data decide, both by flock, which the kernel frees even on SIGKILL. `start.lock` is held
while anyone starts, joins, leaves or stops. Whoever uses the server holds a share of `users.lock`;
who leaves and can take all of it was the last, and stops the server. A server whose users were
all killed, or that was left running on purpose, runs on until the next one joins and leaves.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from app.database.cluster import PORT, Cluster
from app.database.errors import EmbeddedServerError
from app.database.postmaster import Postmaster
from app.database.urls import DEFAULT_DATABASE, socket_url

logger = logging.getLogger(__name__)


class EmbeddedServer:
    """The server of one DATA_DIR, seen from one process. Use `join` and `leave`, or `with`."""

    def __init__(self, data_dir: Path) -> None:
        """Nothing is started or written yet."""
        self._cluster = Cluster(Path(os.path.realpath(data_dir)))
        self._users: int | None = None  # the descriptor that holds our share of users.lock
        self._joined_by = 0
        self._has_died = False  # and is not ready again, as far as this process knows

    def __enter__(self) -> EmbeddedServer:
        self.join()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave()

    @property
    def data_dir(self) -> Path:
        """Where PostgreSQL keeps its data."""
        return self._cluster.data_dir

    def join(self) -> None:
        """The server is ready, and stays until this process leaves or ends.

        Creates the data on first use. Waits for another process that is starting the server, and
        as long as the server needs to recover after a crash. Joining twice is harmless.

        Raises EmbeddedServerError with the reason, the end of the server's log included.
        """
        if self._users is not None:
            return
        self._make_home()
        with self._start_lock():
            users = self._open("users.lock")
            try:
                fcntl.flock(users, fcntl.LOCK_SH)
                self._cluster.ensure_ready()
            except BaseException:
                self._give_up(users)
                raise
        self._users = users
        self._joined_by = os.getpid()
        atexit.register(self.leave)

    def leave(self) -> None:
        """This process no longer uses the server; the last one to leave stops it.

        Leaving twice is harmless. A child that was forked while its parent used the server only
        forgets it.
        """
        users, self._users = self._users, None
        if users is None:
            return
        atexit.unregister(self.leave)
        if os.getpid() != self._joined_by or not self._is_current(users):
            os.close(users)
            return
        with self._start_lock():
            self._give_up(users)

    def revive(self, on_death: Callable[[], None]) -> bool:
        """A server that died under its users is ready again; True where it was this call's doing.

        *on_death* hears of it before that. A server that somebody has stopped stays so. Raises
        EmbeddedServerError with the reason.
        """
        if self._users is None or not (self._has_died or self._cluster.has_died()):
            return False
        with self._start_lock():
            # Another user may have been first; a start that failed leaves no trace of the death.
            self._has_died = self._cluster.running() is None and (
                self._has_died or self._cluster.has_died()
            )
            if not self._has_died:
                return False
            on_death()
            self._cluster.ensure_ready()
            self._has_died = False
        return True

    def leave_running(self) -> None:
        """This process no longer uses the server, which runs on: until `stop`, or until a later
        user is the last to leave.
        """
        users, self._users = self._users, None
        if users is not None:
            atexit.unregister(self.leave)
            os.close(users)

    def stop(self, *, force: bool = False) -> bool:
        """The server is stopped; True when it was running.

        Raises EmbeddedServerError when other processes use it, unless *force*.
        """
        if not self._cluster.home.is_dir():
            return False
        with self._start_lock():
            if self._cluster.running() is None:
                return False
            users = self._open("users.lock")
            try:
                if not _try_lock(users) and not force:
                    raise EmbeddedServerError(
                        "The embedded server is in use by another process; end that first, or"
                        " stop the server under it with --force"
                    )
                self._cluster.stop()
            finally:
                os.close(users)
        return True

    def running(self) -> Postmaster | None:
        """The server, if it runs; starts nothing."""
        return self._cluster.running()

    def url(self, database: str = DEFAULT_DATABASE) -> str:
        """A libpq URI for *database*: where the server listens, or would if it ran."""
        postmaster = self.running()
        if postmaster is not None and postmaster.is_ready:
            return socket_url(postmaster.socket_dir, postmaster.port, database)
        return socket_url(self._cluster.socket_dir, PORT, database)

    def _make_home(self) -> None:
        home = self._cluster.home
        try:
            home.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise EmbeddedServerError(f"DATA_DIR {home} cannot be created: {exc.strerror}") from exc

    @contextmanager
    def _start_lock(self) -> Iterator[None]:
        lock = self._open("start.lock")
        try:
            if not _try_lock(lock):
                logger.info("database_busy", extra={"data_dir": str(self._cluster.home)})
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _open(self, name: str) -> int:
        path = self._cluster.home / name
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as exc:
            raise EmbeddedServerError(f"{path} cannot be opened: {exc.strerror}") from exc

    def _give_up(self, users: int) -> None:
        """Free our share of users.lock; stop the server if nobody else has one."""
        try:
            if _try_lock(users):
                self._cluster.stop()
        finally:
            os.close(users)

    def _is_current(self, users: int) -> bool:
        """Whether the lock we hold is still the one in the folder, which may have been replaced."""
        try:
            return os.path.samestat(os.fstat(users), (self._cluster.home / "users.lock").stat())
        except FileNotFoundError:
            return False


def _try_lock(descriptor: int) -> bool:
    """Take all of a lock file, if that is possible without waiting."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
