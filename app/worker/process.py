"""What one worker process does from its start to its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import psycopg
from psycopg_pool import PoolTimeout

from app.database import Database, DatabaseError, waiting
from app.database.health import HealthWatch
from app.database.pools import Pool, new_pool, opened
from app.loadtest.runs import settle_while_working
from app.processes import tell_that_it_works
from app.retention import RetentionConfig, RetentionSchedule
from app.settings.configuration import (
    RETRY_OPTIONS,
    WORKER_OPTIONS,
    ConfigStore,
    RetryConfig,
    Settings,
)
from app.settings.options import Chosen, InvalidOptionError, Source, choose
from app.settings.signals import EarlyStop, stop_signals
from app.worker import create_worker
from app.worker.event_loop import run_to_end
from commandbus import CommandBus, CommandBusError, Worker
from commandbus.deadlines import end_tasks
from commandbus.errors import INFRASTRUCTURE_ERRORS, one_line

logger = logging.getLogger(__name__)

T = TypeVar("T")

FOLLOW_SECONDS = 1.0
POOL_SIZE = 8
GARBAGE_THRESHOLD = 5_000
POOL_WAIT_SECONDS = 2.0
OPTIONS = (*WORKER_OPTIONS, *RETRY_OPTIONS)
_RETRY_NAMES = frozenset(option.name for option in RETRY_OPTIONS)


def wait_for_database(settings: Settings, seconds: float) -> Database:
    """The database, migrated; while it is away, try again for up to *seconds*.

    Raises DatabaseError with the last reason, at once where waiting does not help.
    """

    def tell(error: DatabaseError, delay: float) -> None:
        logger.warning("database_away", extra={"error": one_line(error), "retry_seconds": delay})

    return waiting.wait_for_database(settings, seconds, on_away=tell)


def run_in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run *work*, the rest of a process that only works, on an event loop: uvloop's if installed.

    What was imported stays, so the garbage collector need not look at it; and a claimed batch is
    thousands of objects that end by themselves, so it need not look at each. That saves a fifth of
    the time a command takes in Python.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 20)
    return run_to_end(work, _loop_factory())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def serve(
    url: str,
    *,
    domain: str,
    flags: Mapping[str, int | float | None],
    environ: Mapping[str, str],
    drain_timeout: float,
    answer_timeout: int,
    stop_with_parent: bool,
    early_stop: EarlyStop,
    replaces: tuple[int, str] | None = None,
) -> int:
    """Run a worker until it is stopped; returns the exit code of the process.

    The first signal lets it drain, the second one ends it at once. Stored settings are followed
    while it runs, for every option that neither *flags* nor *environ* set. Of all workers one
    prunes what *environ* says. *replaces*: the worker that it was started in place of, and how
    the process of that one ended.
    """
    pool = new_pool(
        url,
        application_name=f"commandbus worker {domain}",
        name=f"worker-{domain}",
        answer_timeout=answer_timeout,
        max_size=POOL_SIZE,
        timeout=min(POOL_WAIT_SECONDS, answer_timeout),
    )
    async with opened(pool):
        configuration = FollowedConfiguration(ConfigStore(pool), flags, environ)
        await configuration.read()
        worker = await create_worker(
            pool,
            domain,
            drain_timeout=drain_timeout,
            answer_timeout=answer_timeout,
            app_version=environ.get("APP_VERSION"),
            settings=configuration.shown(),
            **configuration.worker_options(),
        )
        stop = _StopRequests(worker)
        stop.listen(stop_with_parent=stop_with_parent)
        if early_stop.came:
            worker.stop()
        following = asyncio.create_task(configuration.follow(worker), name="configuration")
        following.add_done_callback(lambda task: _on_following_ended(task, worker))
        schedule = RetentionSchedule(url, RetentionConfig.from_environment(environ), answer_timeout)
        pruning = asyncio.create_task(schedule.run(), name="retention")
        watching = asyncio.create_task(HealthWatch(pool).run(), name="database-health")
        settling = asyncio.create_task(
            settle_while_working(pool, lambda: worker.outcomes_recorded), name="runs"
        )
        telling = asyncio.create_task(_tell_that_it_works(pool, worker, replaces), name="telling")
        beside = (following, pruning, watching, settling, telling)
        try:
            await worker.run()
        finally:
            await end_tasks(beside)
        for task in beside:
            if not task.cancelled():
                task.result()
    return stop.exit_code


async def _tell_that_it_works(pool: Pool, worker: Worker, replaces: tuple[int, str] | None) -> None:
    """Once *worker* is registered, let its parent know, and the workers' page whom it replaces."""
    await worker.registered.wait()
    tell_that_it_works(worker.registered_id)
    if replaces is None:
        return
    try:
        await CommandBus(pool).record_replacement(worker.registered_id, *replaces)
    except (psycopg.Error, PoolTimeout, CommandBusError) as exc:
        logger.warning("replacement_not_recorded", extra={"error": one_line(exc)})


def _on_following_ended(task: asyncio.Task[None], worker: Worker) -> None:
    """A worker that no longer hears of settings must not go on as if it did."""
    if not task.cancelled():
        worker.stop()


class FollowedConfiguration:
    """The settings of a worker process: what was chosen at the start, and what changes since."""

    def __init__(
        self,
        config_store: ConfigStore,
        flags: Mapping[str, int | float | None],
        environ: Mapping[str, str],
    ) -> None:
        self._store = config_store
        self._flags = flags
        self._environ = environ
        self._version = 0
        self._chosen: dict[str, Chosen] = {}

    async def read(self) -> dict[str, Chosen]:
        """The options that have changed since the last call, with their new values.

        Raises InvalidOptionError for stored values that no option takes.
        """
        stored = await self._store.load()
        if stored.version == self._version:
            return {}
        chosen = choose(
            OPTIONS, flags=self._flags, environ=self._environ, stored=stored.set_values()
        )
        changed = {name: item for name, item in chosen.items() if self._chosen.get(name) != item}
        self._version, self._chosen = stored.version, chosen
        return changed

    def worker_options(self) -> dict[str, Any]:
        """The options as `commandbus.Worker` and its `configure` take them."""
        values = {name: chosen.value for name, chosen in self._chosen.items()}
        retry: dict[str, Any] = {name: values.pop(name) for name in _RETRY_NAMES}
        return {**values, "retry_policy": RetryConfig(**retry).to_policy()}

    def shown(self) -> dict[str, Any]:
        """The options with their sources, as they are shown beside the worker."""
        return {name: chosen.to_json() for name, chosen in self._chosen.items()}

    async def follow(self, worker: Worker) -> None:
        """Let *worker* have every change of the stored settings, for ever."""
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            try:
                changed = await self.read()
            except INFRASTRUCTURE_ERRORS as exc:
                logger.warning("configuration_not_read", extra={"error": one_line(exc)})
                continue
            except InvalidOptionError as exc:
                logger.error("configuration_refused", extra={"error": one_line(exc)})
                continue
            if changed:
                worker.configure(**self.worker_options())
                worker.settings = self.shown()
                logger.info(
                    "configuration_changed",
                    extra={
                        "worker_id": worker.worker_id,
                        "version": self._version,
                        **{
                            name: chosen.value
                            for name, chosen in changed.items()
                            if chosen.source is not Source.DEFAULT
                        },
                    },
                )


class _StopRequests:
    """Signals, and the end of the parent process, turned into `worker.stop()`."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._asked = False
        self.exit_code = 0

    def listen(self, *, stop_with_parent: bool) -> None:
        loop = asyncio.get_running_loop()
        for number in stop_signals():
            loop.add_signal_handler(number, self._on_signal, number)
        if stop_with_parent:
            loop.add_reader(sys.stdin.fileno(), self._on_parent_ended)

    def _on_signal(self, number: signal.Signals) -> None:
        force = self._asked
        self._asked = True
        if force:
            self.exit_code = 128 + number
        logger.info(
            "stop_signal",
            extra={
                "worker_id": self._worker.worker_id,
                "signal": signal.Signals(number).name,
                "force": force,
            },
        )
        self._worker.stop(force=force)

    def _on_parent_ended(self) -> None:
        with suppress(ConnectionResetError):  # it ended before it had read what was said to it
            if os.read(sys.stdin.fileno(), 4096):
                return
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        self._asked = True
        logger.info("parent_ended", extra={"worker_id": self._worker.worker_id})
        self._worker.stop()
