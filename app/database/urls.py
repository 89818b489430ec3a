"""Connection URIs: the embedded server's, SQLAlchemy's spelling, and one without its password."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from app.database.errors import DatabaseError

DEFAULT_DATABASE = "commandbus_e2e"
MAINTENANCE_DATABASES = ("postgres", "template1")


def socket_url(socket_dir: Path, port: int, database: str = DEFAULT_DATABASE) -> str:
    """A libpq URI for *database* on the server that listens in *socket_dir*."""
    where = urlencode({"host": str(socket_dir), "port": port}, quote_via=quote)
    return f"postgresql://postgres@/{quote(database, safe='')}?{where}"


def parameters(url: str) -> dict[str, str]:
    """The connection parameters in *url*.

    Raises DatabaseError when it is no libpq URI; the text is not repeated, it may hold a password.
    """
    try:
        return {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except psycopg.ProgrammingError:
        raise DatabaseError(
            "DATABASE_URL is not a valid PostgreSQL URI; write"
            " postgresql://user:password@host:5432/database and percent-encode special characters"
        ) from None


def database_name(url: str) -> str:
    """The database that *url* names; DatabaseError when it names none."""
    name = parameters(url).get("dbname")
    if not name:
        raise DatabaseError(
            f"DATABASE_URL names no database; add one, for example /{DEFAULT_DATABASE}"
        )
    return name


def build_url(values: dict[str, str], *, scheme: str = "postgresql") -> str:
    """A URI of the connection parameters *values*, each percent-encoded in its usual place."""
    rest = dict(values)
    user = quote(rest.pop("user", ""), safe="")
    password = rest.pop("password", None)
    database = quote(rest.pop("dbname", ""), safe="")
    login = user if password is None else f"{user}:{quote(password, safe='')}"
    query = urlencode(rest, quote_via=quote)
    return f"{scheme}://{login}{'@' if login else ''}/{database}{'?' if query else ''}{query}"


def with_database(url: str, database: str) -> str:
    """The same server and login as *url*, but another database."""
    return build_url({**parameters(url), "dbname": database})


def sqlalchemy_url(url: str) -> str:
    """*url* as SQLAlchemy's psycopg dialect takes it, Unix sockets included."""
    return build_url(parameters(url), scheme="postgresql+psycopg")


def without_password(url: str) -> str:
    """*url* fit to be shown and logged."""
    return build_url(
        {**parameters(url), "password": "***"} if _has_password(url) else parameters(url)
    )


def _has_password(url: str) -> bool:
    return "password" in parameters(url)
