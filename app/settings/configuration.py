"""Settings of a process, read once from the environment and `.env`; and those in the database."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from app.settings.environment import PROJECT_ROOT as PROJECT_ROOT
from app.settings.environment import ConfigurationError as ConfigurationError
from app.settings.environment import Values, without_driver
from app.settings.environment import environment as environment
from app.settings.options import checked, option, options_of
from app.testcommand import store
from commandbus import RetryPolicy
from commandbus.bus import MAX_ATTEMPTS_LIMIT
from commandbus.pools import autocommit

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
SECRET_KEY_MIN_LENGTH = 32
MAX_WIDTH = 1_000
"""The most commands that a worker runs, or a claim takes, at once."""


class LogFormat(StrEnum):
    """How a process writes its log: one readable line or one JSON object for each event."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True)
class Settings:
    """What a process needs to know before it reaches the database."""

    # None means the embedded server. May hold a password, hence never in repr.
    database_url: str | None = field(default=None, repr=False)
    data_dir: Path = PROJECT_ROOT / ".data"
    host: str = "127.0.0.1"
    port: int = 5001
    # Names under which the web application answers, besides those of this machine's loopback.
    allowed_hosts: tuple[str, ...] = ()
    # Serve Flowbite from app/static/vendor instead of its CDN (see app/server/assets.py).
    local_assets: bool = False
    # Start worker processes from the browser and the API; never where others can reach the server.
    start_workers: bool = True
    # The most that run, including those of `run.py --worker`.
    start_workers_max: int = 16
    # None means that the web application makes one and keeps it under data_dir.
    secret_key: str | None = field(default=None, repr=False)
    # Who may sign in (see app/credentials); None lets everybody who reaches the server do anything.
    credentials_file: Path | None = None
    # How many hours until a browser must sign in again.
    session_hours: int = 12
    # Addresses and networks of reverse proxies, whose word on the client's address and TLS counts.
    trusted_proxies: tuple[str, ...] = ()
    # The path below which a proxy serves the web application, such as /bus, where no trusted proxy
    # says it with X-Forwarded-Prefix.
    url_prefix: str = ""
    # Calls of the API that change something, a minute, for each user or address; 0: no limit.
    rate_limit_per_minute: int = 30_000
    # Wrong passwords, a minute, for each name from each address (see app/server/rate_limits.py).
    sign_in_failures_per_minute: int = 10
    # Seconds that a request, or a call of a worker, waits for the database.
    answer_timeout: int = 15
    # Seconds that a program waits at its start for a database that is away or starting.
    database_wait: int = 20
    log_format: LogFormat = LogFormat.TEXT
    log_level: str = "INFO"

    def __post_init__(self) -> None:
        object.__setattr__(self, "database_url", without_driver(self.database_url))

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        env_file: Path | None = PROJECT_ROOT / ".env",
    ) -> Settings:
        """Read the settings from *environ* (the process's by default), then from *env_file*.

        The environment wins over the file, and an empty value counts as not given. Relative paths
        start at the project root, so that every process finds the same data from any directory.

        Raises ConfigurationError for the first value that cannot be used.
        """
        values = Values(os.environ if environ is None else environ, env_file)
        return cls(
            database_url=values.database_url("DATABASE_URL"),
            data_dir=values.path("DATA_DIR", cls.data_dir),
            host=values.text("HOST") or cls.host,
            port=values.integer("PORT", cls.port, low=1, high=65535),
            allowed_hosts=values.names("ALLOWED_HOSTS"),
            local_assets=values.boolean("LOCAL_ASSETS"),
            start_workers=values.boolean("START_WORKERS", default=cls.start_workers),
            start_workers_max=values.integer(
                "START_WORKERS_MAX", cls.start_workers_max, low=1, high=64
            ),
            secret_key=values.secret("SECRET_KEY", "SECRET_KEY_FILE"),
            credentials_file=values.optional_path("CREDENTIALS_FILE"),
            session_hours=values.integer("SESSION_HOURS", cls.session_hours, low=1, high=720),
            trusted_proxies=values.networks("TRUSTED_PROXIES"),
            url_prefix=values.url_prefix("URL_PREFIX"),
            rate_limit_per_minute=values.integer(
                "RATE_LIMIT_PER_MINUTE", cls.rate_limit_per_minute, low=0, high=10_000_000
            ),
            sign_in_failures_per_minute=values.integer(
                "SIGN_IN_FAILURES_PER_MINUTE", cls.sign_in_failures_per_minute, low=1, high=10_000
            ),
            answer_timeout=values.integer("ANSWER_TIMEOUT", cls.answer_timeout, low=1, high=3600),
            database_wait=values.integer("DATABASE_WAIT", cls.database_wait, low=0, high=86_400),
            log_format=LogFormat(
                values.choice("LOG_FORMAT", tuple(LogFormat), cls.log_format, fold=str.lower)
            ),
            log_level=values.choice("LOG_LEVEL", LOG_LEVELS, cls.log_level, fold=str.upper),
        )

    @property
    def is_loopback(self) -> bool:
        """Whether the server listens where only this machine's programs reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def is_exposed(self) -> bool:
        """Whether others than this machine's programs may reach it, if only through a proxy."""
        return not self.is_loopback or bool(self.trusted_proxies)


@dataclass
class WorkerConfig:
    """How workers take commands from the queue."""

    visibility_timeout: int = option(
        30,
        "Visibility timeout",
        unit="seconds",
        low=1,
        high=43_200,
        variable="WORKER_VISIBILITY_TIMEOUT",
        help="How long a worker holds a command; after that it is redelivered.",
    )
    concurrency: int = option(
        4,
        "Concurrency",
        unit="commands",
        low=1,
        high=MAX_WIDTH,
        variable="WORKER_CONCURRENCY",
        help="How many commands each worker process runs at once.",
    )
    poll_interval: float = option(
        1.0,
        "Poll interval",
        unit="seconds",
        low=0.01,
        high=3_600,
        variable="WORKER_POLL_INTERVAL",
        help="An empty queue is checked at least this often.",
    )
    batch_size: int = option(
        10,
        "Batch size",
        unit="commands",
        low=1,
        high=MAX_WIDTH,
        variable="WORKER_BATCH_SIZE",
        help="The most commands that one claim takes.",
    )
    handler_timeout: float = option(
        0.0,
        "Handler timeout",
        unit="seconds",
        low=0,
        high=86_400,
        variable="WORKER_HANDLER_TIMEOUT",
        help="How long a handler may run before its attempt fails. 0 = until its lease ends.",
    )
    no_handler_after: float = option(
        3_600.0,
        "Limit without a handler",
        unit="seconds",
        low=0,
        high=31_536_000,
        variable="WORKER_NO_HANDLER_AFTER",
        help="How long a command waits while no running worker has a handler for its type.",
    )


@dataclass
class RetryConfig:
    """How often and after which delay a command that failed is tried again."""

    max_attempts: int = option(
        3,
        "Max attempts",
        unit="attempts",
        low=1,
        high=MAX_ATTEMPTS_LIMIT,
        variable="RETRY_MAX_ATTEMPTS",
        help="Attempts before a command goes to the TSQ, unless it has its own budget.",
    )
    base_delay_ms: int = option(
        1_000,
        "Base delay",
        unit="ms",
        low=0,
        high=86_400_000,
        variable="RETRY_BASE_DELAY_MS",
        help="The delay after the first failed attempt.",
    )
    max_delay_ms: int = option(
        60_000,
        "Max delay",
        unit="ms",
        low=0,
        high=86_400_000,
        variable="RETRY_MAX_DELAY_MS",
        help="The longest delay.",
    )
    backoff_multiplier: float = option(
        2.0,
        "Backoff multiplier",
        low=1.0,
        high=100.0,
        variable="RETRY_BACKOFF_MULTIPLIER",
        help="Each further delay is this many times the one before.",
    )

    def to_policy(self) -> RetryPolicy:
        """The policy that a worker follows."""
        return RetryPolicy(**dataclasses.asdict(self))


WORKER_OPTIONS = options_of(WorkerConfig)
RETRY_OPTIONS = options_of(RetryConfig)


class ConfigVersionError(Exception):
    """Someone else changed the configuration in the meantime; nothing was stored."""

    def __init__(self, expected: int, current: int) -> None:
        super().__init__(f"the configuration has version {current} now, not {expected}")
        self.expected = expected
        self.current = current


@dataclass(frozen=True)
class StoredConfig:
    """The stored configuration: complete values, and the names of those that somebody set."""

    worker: WorkerConfig
    retry: RetryConfig
    version: int
    set_names: frozenset[str]

    def set_values(self) -> dict[str, int | float]:
        """Only the values that somebody set, by name; the names of both sections are distinct."""
        values = {**dataclasses.asdict(self.worker), **dataclasses.asdict(self.retry)}
        return {name: value for name, value in values.items() if name in self.set_names}


class ConfigStore:
    """Worker and retry settings in the database, where every worker finds them.

    The pool belongs to the caller. Values are checked by what their options declare, when they are
    written and when they are read; InvalidOptionError names those that are not allowed.
    """

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[TupleRow]]) -> None:
        self._pool = pool

    async def load(self) -> StoredConfig:
        """Everything stored; what was never set has its default."""
        async with autocommit(self._pool) as conn:
            return _stored_config(await store.read_configuration(conn))

    async def get_worker_config(self) -> WorkerConfig:
        """The stored worker settings."""
        return (await self.load()).worker

    async def set_worker_config(self, config: WorkerConfig, *, changed_by: str = "api") -> None:
        """Store all worker settings, overwriting earlier changes."""
        await self.update(worker=config, changed_by=changed_by)

    async def get_retry_config(self) -> RetryConfig:
        """The stored retry settings."""
        return (await self.load()).retry

    async def set_retry_config(self, config: RetryConfig, *, changed_by: str = "api") -> None:
        """Store all retry settings, overwriting earlier changes."""
        await self.update(retry=config, changed_by=changed_by)

    async def update(
        self,
        *,
        worker: WorkerConfig | Mapping[str, Any] | None = None,
        retry: RetryConfig | Mapping[str, Any] | None = None,
        expected_version: int | None = None,
        changed_by: str,
    ) -> StoredConfig:
        """Store the values that are given and keep the others; returns what is stored now.

        A new version comes into being only where something changes. Raises InvalidOptionError,
        and ConfigVersionError where *expected_version* is given and no longer the current one.
        """
        worker_values = checked(WORKER_OPTIONS, _values(worker))
        retry_values = checked(RETRY_OPTIONS, _values(retry))
        async with self._pool.connection() as conn, conn.transaction():
            current = await store.lock_configuration(conn)
            if expected_version is not None and expected_version != current.version:
                raise ConfigVersionError(expected_version, current.version)
            new_worker = {**current.worker, **worker_values}
            new_retry = {**current.retry, **retry_values}
            if (new_worker, new_retry) != (current.worker, current.retry):
                current = await store.write_configuration(
                    conn, worker=new_worker, retry=new_retry, changed_by=changed_by
                )
        return _stored_config(current)

    async def history(self, limit: int = 50) -> Sequence[store.ConfigurationChange]:
        """Who changed what and when, newest first."""
        async with autocommit(self._pool) as conn:
            return await store.read_configuration_history(conn, limit)


def _values(given: WorkerConfig | RetryConfig | Mapping[str, Any] | None) -> Mapping[str, Any]:
    if given is None:
        return {}
    return given if isinstance(given, Mapping) else dataclasses.asdict(given)


def _stored_config(row: store.StoredConfiguration) -> StoredConfig:
    worker = checked(WORKER_OPTIONS, row.worker)
    retry = checked(RETRY_OPTIONS, row.retry)
    names = frozenset({*worker, *retry})
    return StoredConfig(WorkerConfig(**worker), RetryConfig(**retry), row.version, names)
