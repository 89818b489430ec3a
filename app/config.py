"""Settings of a process, read once from the environment and `.env`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from dotenv import dotenv_values

PROJECT_ROOT = Path(__file__).resolve().parent.parent
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class ConfigurationError(Exception):
    """A setting that cannot be used; the message is one line for the user and holds no secret."""


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
    # Serve the browser libraries from app/static/vendor (see app/assets.py) instead of their CDN.
    local_assets: bool = False
    # None means that the web application makes one and keeps it under data_dir.
    secret_key: str | None = field(default=None, repr=False)
    log_format: LogFormat = LogFormat.TEXT
    log_level: str = "INFO"

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
        values = _Values(os.environ if environ is None else environ, env_file)
        return cls(
            database_url=values.database_url("DATABASE_URL"),
            data_dir=values.path("DATA_DIR", cls.data_dir),
            host=values.text("HOST") or cls.host,
            port=values.integer("PORT", cls.port, low=1, high=65535),
            allowed_hosts=values.names("ALLOWED_HOSTS"),
            local_assets=values.boolean("LOCAL_ASSETS"),
            secret_key=values.text("SECRET_KEY"),
            log_format=LogFormat(
                values.choice("LOG_FORMAT", tuple(LogFormat), cls.log_format, fold=str.lower)
            ),
            log_level=values.choice("LOG_LEVEL", LOG_LEVELS, cls.log_level, fold=str.upper),
        )


class _Values:
    """Named values of the environment over those of a file, each read as what it should be."""

    def __init__(self, environ: Mapping[str, str], env_file: Path | None) -> None:
        from_file: Mapping[str, str | None] = {}
        if env_file is not None and env_file.exists():
            try:
                from_file = dotenv_values(env_file, interpolate=False)  # a password may hold a $
            except (OSError, UnicodeDecodeError) as exc:
                raise ConfigurationError(f"{env_file} cannot be read: {exc}") from exc
        self._values = {**from_file, **environ}

    def text(self, name: str) -> str | None:
        """The value without surrounding blanks, or None where there is nothing in it."""
        return (self._values.get(name) or "").strip() or None

    def path(self, name: str, default: Path) -> Path:
        value = self.text(name)
        return default if value is None else PROJECT_ROOT / Path(value).expanduser()

    def names(self, name: str) -> tuple[str, ...]:
        """Names separated by commas."""
        return tuple(
            part.strip().lower() for part in (self.text(name) or "").split(",") if part.strip()
        )

    def boolean(self, name: str) -> bool:
        return self.choice(name, ("true", "false"), "false", fold=str.lower) == "true"

    def integer(self, name: str, default: int, *, low: int, high: int) -> int:
        value = self.text(name)
        if value is None:
            return default
        # int() alone would also take "5_001" and digits of other scripts.
        number = int(value) if value.isascii() and value.isdigit() else None
        if number is None or not low <= number <= high:
            raise ConfigurationError(
                f"{name} must be a whole number from {low} to {high}, not {value!r}"
            )
        return number

    def choice(
        self, name: str, choices: tuple[str, ...], default: str, *, fold: Callable[[str], str]
    ) -> str:
        value = self.text(name)
        if value is None:
            return default
        if fold(value) not in choices:
            raise ConfigurationError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        return fold(value)

    def database_url(self, name: str) -> str | None:
        """A libpq URI; SQLAlchemy's spelling of one is accepted too.

        The value is never repeated in an error, as it may hold a password.
        """
        value = self.text(name)
        if value is not None:
            value = value.replace("postgresql+psycopg://", "postgresql://", 1)
        if value is not None and not value.startswith(("postgresql://", "postgres://")):
            raise ConfigurationError(
                f"{name} must be a PostgreSQL URI such as"
                " postgresql://user:password@localhost:5432/commandbus_e2e"
            )
        return value
