"""An embedded server that dies under its users is started again.

Nobody else would do it: it is no service of the machine. What somebody has stopped stays stopped,
and what was acknowledged is recovered by PostgreSQL itself as it starts.
"""

from __future__ import annotations

import logging
import threading
from types import TracebackType

from app.database.embedded import EmbeddedServer
from app.database.errors import EmbeddedServerError
from commandbus.errors import one_line

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
AGAIN_SECONDS = 5.0
"""Between two attempts to start a server that does not start."""


class ServerGuard:
    """Looks after a server that this process has joined, in a thread, as a context manager."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="database-guard", daemon=True)
        self._told: str | None = None  # since the server last ran

    def __enter__(self) -> ServerGuard:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leaving.set()
        self._thread.join()

    def _run(self) -> None:
        pause = LOOK_SECONDS
        while not self._leaving.wait(pause):
            pause = LOOK_SECONDS
            try:
                self._look()
            except (EmbeddedServerError, OSError) as exc:
                self._tell("database_not_restarted", error=one_line(exc))
                pause = AGAIN_SECONDS

    def _look(self) -> None:
        if self._server.revive(on_death=self._on_death):
            logger.warning("database_restarted", extra={"data_dir": str(self._server.data_dir)})
        if self._server.running() is not None:
            self._told = None

    def _on_death(self) -> None:
        if self._told is None:
            self._tell("database_died")

    def _tell(self, event: str, **fields: str) -> None:
        """Log an error, but not again and again while nothing changes."""
        text = f"{event} {fields}"
        if self._told != text:
            logger.error(event, extra={"data_dir": str(self._server.data_dir), **fields})
            self._told = text
