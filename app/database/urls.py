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
        values = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except psycopg.ProgrammingError:
        values = {}
    # A password with a "/" in it makes libpq take its beginning for the port and the rest for the
    # database; refused here, or it would be shown as such.
    port_is_number = all(part.isdigit() for part in values.get("port", "0").split(","))
    if not values or not port_is_number or "@" in url.partition("://")[2].partition("/")[2]:
        raise DatabaseError(
            "DATABASE_URL is not a valid PostgreSQL URI; write"
            " postgresql://user:password@host:5432/database and percent-encode special characters"
        )
    return values


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
    login = quote(rest.pop("user", ""), safe="")
    if "password" in rest:
        login += f":{quote(rest.pop('password'), safe='*')}"
    database = quote(rest.pop("dbname", ""), safe="")
    place = _network_place(rest)
    query = urlencode(rest, quote_via=quote)
    return (
        f"{scheme}://{login}{'@' if login else ''}{place}/{database}{'?' if query else ''}{query}"
    )


def _network_place(rest: dict[str, str]) -> str:
    """Take host and port out of *rest* where they are a single network host's."""
    host = rest.get("host", "")
    if not host or "/" in host or "," in host or "," in rest.get("port", ""):
        return ""
    del rest["host"]
    port = rest.pop("port", "")
    return f"{f'[{host}]' if ':' in host else quote(host, safe='')}{':' if port else ''}{port}"


def with_database(url: str, database: str) -> str:
    """The same server and login as *url*, but another database."""
    return build_url({**parameters(url), "dbname": database})


def sqlalchemy_url(url: str) -> str:
    """*url* as SQLAlchemy's psycopg dialect takes it, Unix sockets included."""
    return build_url(parameters(url), scheme="postgresql+psycopg")


def without_password(url: str) -> str:
    """*url* fit to be shown and logged."""
    values = parameters(url)
    if "password" in values:
        values["password"] = "***"
    return build_url(values)
