"""Connection URIs: the embedded server's, another database of the same server, SQLAlchemy's."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, urlencode

from app.database.errors import DatabaseError
from commandbus.migrating import build_url as build_url
from commandbus.migrating import parameters as read_parameters
from commandbus.migrating import without_password as without_password

DEFAULT_DATABASE = "commandbus_e2e"
MAINTENANCE_DATABASES = ("postgres", "template1")
DEFAULT_PORT = "5432"


def socket_url(socket_dir: Path, port: int, database: str = DEFAULT_DATABASE) -> str:
    """A libpq URI for *database* on the server that listens in *socket_dir*."""
    where = urlencode({"host": str(socket_dir), "port": port}, quote_via=quote)
    return f"postgresql://postgres@/{quote(database, safe='')}?{where}"


def parameters(url: str) -> dict[str, str]:
    """The connection parameters in *url*, which came from DATABASE_URL; else DatabaseError."""
    return read_parameters(url, "DATABASE_URL")


def database_name(url: str) -> str:
    """The database that *url* names, or its environment or service file; else DatabaseError."""
    values = parameters(url)
    name = values.get("dbname") or os.environ.get("PGDATABASE")
    if not name and not (values.get("service") or os.environ.get("PGSERVICE")):
        raise DatabaseError(
            f"DATABASE_URL names no database; add one, for example /{DEFAULT_DATABASE}"
        )
    return name or ""


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
