"""Connection URIs: the embedded server's, SQLAlchemy's spelling, and one without its password."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from app.database.errors import DatabaseError

DEFAULT_DATABASE = "commandbus_e2e"
MAINTENANCE_DATABASES = ("postgres", "template1")
DEFAULT_PORT = "5432"
SECRETS = frozenset(
    {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}
)
"""The parameters that are never shown."""


def socket_url(socket_dir: Path, port: int, database: str = DEFAULT_DATABASE) -> str:
    """A libpq URI for *database* on the server that listens in *socket_dir*."""
    where = urlencode({"host": str(socket_dir), "port": port}, quote_via=quote)
    return f"postgresql://postgres@/{quote(database, safe='')}?{where}"


def parameters(url: str) -> dict[str, str]:
    """The connection parameters in *url*, a URI or libpq's keywords and values.

    Raises DatabaseError when it is neither; the text is not repeated, it may hold a password.
    """
    try:
        values = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except psycopg.ProgrammingError:
        values = {}
    # A password with a "/" in it makes libpq take its beginning for the port and the rest for the
    # database; refused here, or it would be shown as such.
    ports_are_numbers = all(part.isdigit() for part in values.get("port", "").split(",") if part)
    path = url.partition("://")[2].partition("?")[0].partition("/")[2]
    if not values or not ports_are_numbers or "@" in path:
        raise DatabaseError(
            "DATABASE_URL is not a valid PostgreSQL URI; write"
            " postgresql://user:password@host:5432/database and percent-encode special characters"
        )
    return values


def database_name(url: str) -> str:
    """The database that *url* names, or its environment or service file; else DatabaseError."""
    values = parameters(url)
    name = values.get("dbname") or os.environ.get("PGDATABASE")
    if not name and not (values.get("service") or os.environ.get("PGSERVICE")):
        raise DatabaseError(
            f"DATABASE_URL names no database; add one, for example /{DEFAULT_DATABASE}"
        )
    return name or ""


def build_url(values: dict[str, str], *, scheme: str = "postgresql") -> str:
    """A URI of the connection parameters *values*, each percent-encoded in its usual place."""
    rest = dict(values)
    login = quote(rest.pop("user", ""), safe="")
    if login and "password" in rest:  # a service file may name the user
        login += f":{quote(rest.pop('password'), safe='*')}"
    database = quote(rest.pop("dbname", ""), safe="")
    place = _network_place(rest)
    query = urlencode(rest, quote_via=quote, safe="*")
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
    """*url* as SQLAlchemy's psycopg dialect takes it, Unix sockets and several hosts included."""
    values = parameters(url)
    hosts = values.get("host", "").split(",")
    if len(hosts) > 1:  # it wants a port for each
        ports = values.get("port", "").split(",")
        each = ports * len(hosts) if len(ports) == 1 else ports
        values["port"] = ",".join(port or DEFAULT_PORT for port in each)
    return build_url(values, scheme="postgresql+psycopg")


def without_password(url: str) -> str:
    """*url* fit to be shown and logged."""
    values = parameters(url)
    return build_url({name: "***" if name in SECRETS else values[name] for name in values})
