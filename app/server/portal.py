"""The database behind synchronous views: one event loop thread and one async pool per process.

A pool belongs to the loop that opened it, so the views, which are plain functions, hand their
calls to one thread that keeps a loop. Thread and pool start with the first call, hence after any
fork, and end with the process. What only reads goes through SQLAlchemy (app.models), whose
connections come from `connect_to_read` here: both sides share the address of the database and the
limits of time, so that no request waits without bound.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ParamSpec, Self, TypeVar, cast

import psycopg
from anyio.from_thread import BlockingPortal, start_blocking_portal
from flask import Flask, current_app, g, request
from psycopg.abc import PQGen
from psycopg.rows import TupleRow
from psycopg_pool import PoolClosed, PoolTimeout

from app.database import Database, open_database
from app.database.pools import Pool, connection_options, new_pool
from app.server.breaker import Patience, Turns
from app.server.database_faults import AWAY, SILENT, Failure, failure_of
from app.server.errors import RETRY_AFTER_SECONDS, Problem, answer, log_failure, unavailable
from app.settings.configuration import Settings
from commandbus import CommandBus, CommandBusError, NoAnswerError, TroubleshootingQueue
from commandbus.deadlines import answered_within

APPLICATION_NAME = "commandbus-web"
POOL_SIZE = 10
POOL_WAIT_SECONDS = 5.0
BACKGROUND_SECONDS = 10.0
"""How long background work may take to end when the process ends."""
FOLD_SECONDS = 1.0
WITHOUT_DATABASE = frozenset(
    {
        *("static", "health.live", "api.document", "web.api_docs"),
        *("web.login", "web.sign_in", "web.sign_out", "web.save_theme", "web.save_operator"),
        *("web.settings_delays", "web.audit_search"),
    }
)
"""The endpoints that never ask it."""

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")


class DatabaseSlowError(Exception):
    """The database did not answer in time; whether it acted is not known."""


class Portal:
    """What a process of the web application holds of the database."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.patience = Patience(settings.answer_timeout)
        self.turns = Turns()
        self._lock = threading.Lock()
        self._fold_again_at = 0.0
        self._forget()
        atexit.register(self.close)

    def _forget(self) -> None:
        """Hold nothing: at the start, and in a child, whose parent keeps thread and sockets."""
        self._pid = os.getpid()
        self._closing = threading.Event()
        self._database: Database | None = None
        self._running = ExitStack()
        self._loop: BlockingPortal | None = None
        self._pool: Pool | None = None
        self._background: set[Future[None]] = set()
        self._endless: list[Future[None]] = []

    @property
    def url(self) -> str:
        """The libpq URI; the first call starts or joins the embedded database where none is set.

        Raises DatabaseError where that fails.
        """
        if self._settings.database_url is not None:
            return self._settings.database_url
        with self._lock:
            if self._pid != os.getpid():
                self._forget()
            if self._database is None:
                self._database = open_database(self._settings)
            return self._database.url

    @property
    def pool(self) -> Pool:
        """The open pool; its connections are in autocommit mode."""
        return self._start()[1]

    def call(
        self,
        function: Callable[_P, Awaitable[_R]],
        /,
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _R:
        """Run *function* on the loop and return its result; its errors are raised here.

        Raises DatabaseSlowError when the time of the request, or of a call outside one, is over.
        """
        return self._call(partial(function, *args, **kwargs))

    def call_within(self, seconds: float, function: Callable[[], Awaitable[_R]]) -> _R:
        """`call` with another limit, for what is known to take long."""
        return self._call(function, seconds)

    def _call(self, function: Callable[[], Awaitable[_R]], seconds: float | None = None) -> _R:
        loop, _ = self._start()

        async def bounded(limit: float) -> _R:
            async with answered_within(limit):
                return await function()

        try:
            with self.patience.waiting(seconds) as limit:
                return loop.call(bounded, limit)
        except NoAnswerError as exc:
            raise DatabaseSlowError(str(exc)) from exc

    def start(
        self, name: str, function: Callable[[], Awaitable[object]], *, is_endless: bool = False
    ) -> None:
        """Run *function* in the background; what goes wrong is logged under *name*.

        It has to look at `closing` now and then, because `close` waits for it; one that
        *is_endless* is cancelled instead.
        """
        loop, _ = self._start()

        async def logged() -> None:
            try:
                await function()
            except Exception as exc:
                if (failure := failure_of(exc)) is None:
                    logger.exception("background_task_failed", extra={"task": name})
                else:
                    extra = {"task": name, "sqlstate": failure.sqlstate, "reason": failure.reason}
                    logger.error("background_task_failed", extra=extra)

        task = loop.start_task_soon(logged)
        if is_endless:
            self._endless.append(task)
            return
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    @property
    def answer_timeout(self) -> int:
        """How long a request waits for the database, in seconds."""
        return self._settings.answer_timeout

    @property
    def closing(self) -> threading.Event:
        """Set when background work must end."""
        return self._closing

    def fold_soon(self) -> None:
        """Fold counters in the background, at most once a second.

        Workers fold too; without workers, readers of the counts keep them cheap to read.
        """
        now = time.monotonic()
        with self._lock:
            if now < self._fold_again_at:
                return
            self._fold_again_at = now + FOLD_SECONDS
        loop, pool = self._start()
        loop.start_task_soon(_fold, pool)

    def close(self) -> None:
        """Close the pool, end the thread and leave the embedded database; twice is harmless."""
        with self._lock:
            if self._pid != os.getpid():
                return
            running, database, background = self._running, self._database, self._background
            endless = self._endless
            self._closing.set()
            self._forget()
        for task in endless:
            task.cancel()
        wait(list(background), BACKGROUND_SECONDS)  # it still needs the pool to say how it ended
        running.close()
        if database is not None:
            database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> tuple[BlockingPortal, Pool]:
        url = self.url
        with self._lock:
            if self._pid != os.getpid():
                self._forget()
            if self._loop is None or self._pool is None:
                with ExitStack() as starting:
                    options: dict[str, Any] = {}
                    if sys.platform == "win32":
                        options["loop_factory"] = asyncio.SelectorEventLoop
                    loop = starting.enter_context(
                        start_blocking_portal(backend_options=options, name="database-portal")
                    )
                    pool = new_pool(
                        url,
                        application_name=APPLICATION_NAME,
                        name="web",
                        answer_timeout=self._settings.answer_timeout,
                        max_size=POOL_SIZE,
                        timeout=POOL_WAIT_SECONDS,
                    )
                    loop.call(pool.open)
                    starting.callback(lambda: loop.call(pool.close))
                    self._loop, self._pool = loop, pool
                    self._running = starting.pop_all()
            return self._loop, self._pool


class ReadConnection(psycopg.Connection[TupleRow]):
    """A synchronous connection that gives up when the server falls silent."""

    patience: Patience | None = None

    def wait(self, gen: PQGen[Any], interval: float = 0.1, timeout: float | None = None) -> Any:
        if timeout is not None or self.patience is None:
            return super().wait(gen, interval, timeout)
        try:
            with self.patience.waiting() as seconds:
                return super().wait(gen, interval, seconds)
        except psycopg.errors._WaitTimeout as exc:
            self.close()  # what the server is still doing on it is unknown
            raise psycopg.errors.QueryCanceled(f"no answer within {seconds:g} s") from exc


def connect_to_read(portal: Portal) -> psycopg.Connection[TupleRow]:
    """A new connection for read queries, each planned for the values that it is asked with."""
    if portal.patience.is_spent():  # the connection before this one fell silent
        raise psycopg.errors.QueryCanceled(f"no answer within {portal.answer_timeout:g} s")
    options = connection_options(portal.url, APPLICATION_NAME, portal.answer_timeout)
    with portal.patience.waiting():
        conn = ReadConnection.connect(portal.url, prepare_threshold=None, **options)
    conn.patience = portal.patience
    return conn


def init_app(app: Flask) -> None:
    """Give *app* a portal, and an answer for what the database keeps from us."""
    portal = Portal(app.config["SETTINGS"])
    app.extensions["portal"] = portal
    app.before_request(_turn_away)
    app.teardown_request(_end_turn)
    app.register_error_handler(DatabaseSlowError, _too_slow)


def current_portal() -> Portal:
    """The portal of the current application."""
    return cast(Portal, current_app.extensions["portal"])


def current_bus() -> CommandBus:
    """The bus on the portal's pool: `call(current_bus().get_command, "test", command_id)`."""
    portal = current_portal()
    return CommandBus(portal.pool, answer_timeout=portal.answer_timeout)


def current_tsq() -> TroubleshootingQueue:
    """The troubleshooting queue on the portal's pool."""
    portal = current_portal()
    return TroubleshootingQueue(portal.pool, answer_timeout=portal.answer_timeout)


def call(function: Callable[_P, Awaitable[_R]], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
    """Run *function* on the loop of the current application's portal and return its result."""
    return current_portal().call(function, *args, **kwargs)


@contextmanager
def unless_refused() -> Iterator[None]:
    """For what a page does besides being shown: where the database refuses it, it is left undone.

    So a page can be read where nothing can be written.
    """
    try:
        yield
    except psycopg.Error as exc:
        failure = failure_of(exc)
        if failure is None or failure.fault in (AWAY, SILENT):
            raise  # nothing else would be answered
        log_failure(failure, "left_undone")


async def _fold(pool: Pool) -> None:
    try:
        await CommandBus(pool).fold_counters()
    except (psycopg.Error, PoolTimeout, PoolClosed, CommandBusError) as exc:
        # Nobody waits for it, and the next one makes up for it.
        failure = failure_of(exc)
        reason = str(exc) if failure is None else failure.reason
        logger.info("fold_failed", extra={"reason": reason})


def _turn_away() -> Any:
    """A quick answer while the database is silent, except for the requests that may wait."""
    if request.endpoint is None or request.endpoint in WITHOUT_DATABASE:
        return None  # nobody waits for it; where there is no endpoint the routing error answers
    portal = current_portal()
    if portal.patience.turns_away():
        return _turned_away("unavailable", AWAY.sentence)
    if not portal.turns.take():
        return _turned_away("busy", "Too many requests wait for the database.")
    g.has_turn = True
    return None


def _end_turn(_: BaseException | None) -> None:
    if g.pop("has_turn", False):
        current_portal().turns.give_back()


def _turned_away(code: str, sentence: str) -> Any:
    text = f"{sentence} Nothing was changed."
    headers = {"X-Problem": sentence, "Retry-After": str(RETRY_AFTER_SECONDS)}
    return answer(Problem(503, code, text, headers=headers))


def _too_slow(error: Exception) -> Any:
    return unavailable(Failure(SILENT, str(error)))
