"""Reading the environment and `.env`: each value as what it should be, or a clear error."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import psycopg
from dotenv import dotenv_values
from psycopg.conninfo import conninfo_to_dict

from app.settings.private_files import PrivateFileError, read_private

_DRIVER = re.compile(r"^(postgres(?:ql)?)\+\w+://")

PROJECT_ROOT = Path(__file__).resolve().parents[2]

_URL_PREFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]{1,100}){1,10}", re.ASCII)


class ConfigurationError(Exception):
    """A setting that cannot be used; the message is one line for the user and holds no secret."""


class Values:
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

    def names_given(self) -> Iterable[str]:
        return self._values.keys()

    def path(self, name: str, default: Path) -> Path:
        value = self.text(name)
        return default if value is None else PROJECT_ROOT / Path(value).expanduser()

    def optional_path(self, name: str) -> Path | None:
        value = self.text(name)
        return None if value is None else PROJECT_ROOT / Path(value).expanduser()

    def secret(self, name: str, file_name: str) -> str | None:
        """The value itself, or what the file holds that *file_name* names."""
        value, path = self.text(name), self.optional_path(file_name)
        if value is not None or path is None:
            return value
        try:
            return read_private(path).strip() or None
        except PrivateFileError as exc:
            raise ConfigurationError(f"{file_name}: {exc}") from exc

    def networks(self, name: str) -> tuple[str, ...]:
        """Addresses and networks separated by commas."""
        for given in self.names(name):
            try:
                ipaddress.ip_network(given)
            except ValueError as exc:
                raise ConfigurationError(
                    f"{name} must be addresses or networks such as 127.0.0.1,10.0.0.0/8,"
                    f" not {given!r}"
                ) from exc
        return self.names(name)

    def url_prefix(self, name: str) -> str:
        """A path without a slash at its end; empty for the root."""
        value = self.text(name)
        prefix = url_prefix(value or "")
        if prefix is None:
            raise ConfigurationError(f"{name} must be a path such as /bus, not {value!r}")
        return prefix

    def names(self, name: str) -> tuple[str, ...]:
        """Names separated by commas."""
        return tuple(
            part.strip().lower() for part in (self.text(name) or "").split(",") if part.strip()
        )

    def boolean(self, name: str, *, default: bool = False) -> bool:
        text = str(default).lower()
        return self.choice(name, ("true", "false"), text, fold=str.lower) == "true"

    def integer(self, name: str, default: int, *, low: int, high: int) -> int:
        value = self.text(name)
        if value is None:
            return default
        # int() alone would also take "5_001" and digits of other scripts.
        number = int(value) if value.isascii() and value.isdigit() and len(value) < 20 else None
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
        """What libpq takes: a URI, also with a driver as SQLAlchemy spells it, or keywords.

        The value is never repeated in an error, as it may hold a password.
        """
        value = without_driver(self.text(name))
        if value is not None and not _is_conninfo(value):
            raise ConfigurationError(
                f"{name} must be a PostgreSQL URI such as"
                " postgresql://user:password@localhost:5432/commandbus_e2e, or libpq's keywords"
                " such as host=localhost dbname=commandbus_e2e"
            )
        return value


def without_driver(url: str | None) -> str | None:
    """*url* without the name of a driver, such as in postgresql+asyncpg://."""
    return None if url is None else _DRIVER.sub(r"\1://", url, count=1)


def _is_conninfo(value: str) -> bool:
    if value.startswith(("postgresql://", "postgres://")):
        return True  # errors in it are reported where it is used
    try:
        return "://" not in value.partition("=")[0] and bool(conninfo_to_dict(value))
    except psycopg.Error:
        return False


def url_prefix(text: str) -> str | None:
    """*text* with a slash before it and none behind; empty for the root, None for no such path."""
    path = (text if text.startswith("/") else f"/{text}").removesuffix("/")
    if not path:
        return ""
    return path if _URL_PREFIX.fullmatch(path) else None


def environment(
    environ: Mapping[str, str] | None = None, *, env_file: Path | None = PROJECT_ROOT / ".env"
) -> dict[str, str]:
    """The values in *environ* (the process's by default) over those in *env_file*."""
    values = Values(os.environ if environ is None else environ, env_file)
    return {name: value for name in values.names_given() if (value := values.text(name))}
