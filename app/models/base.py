"""The session of the pages and the API: for reading, on connections that bound every wait."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from functools import partial
from typing import Any, cast

import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from psycopg import Connection
from psycopg.rows import TupleRow
from psycopg.types.json import set_json_loads
from sqlalchemy.orm import DeclarativeBase, registry

from app.server.clock import DatabaseClock
from app.server.portal import Portal, connect_to_read
from commandbus.payload import decode_json

READABLE_DEPTH = 100
RECYCLE_SECONDS = 600
"""A connection of this age is replaced, and the database asked for its time again."""


class Base(DeclarativeBase):
    """What every mapped table derives from."""

    # A role's own search_path, or a schema named like it, may lead to other tables of these names.
    metadata = sa.MetaData(schema="public")
    # Whatever fits a URL's number fits the comparison, whether or not a row can have it.
    registry = registry(type_annotation_map={int: sa.BigInteger()})


db = SQLAlchemy(model_class=Base, disable_autonaming=True)


def init_app(app: Flask) -> None:
    """Bind the session to the database of the portal, which has to be there already.

    Each statement is a transaction of its own: a page holds no snapshot open while it renders.
    """
    app.config["SQLALCHEMY_DATABASE_URI"] = "postgresql+psycopg://"
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {
        "creator": partial(_connect, app.extensions["portal"], app.extensions["clock"]),
        "isolation_level": "AUTOCOMMIT",
        "pool_pre_ping": True,
        "pool_timeout": 5,
        "pool_recycle": RECYCLE_SECONDS,
    }
    db.init_app(app)


def _connect(portal: Portal, clock: DatabaseClock) -> Connection[TupleRow]:
    conn = connect_to_read(portal)
    try:
        conn.autocommit = True
        clock.read(lambda: server_time(conn))
    except BaseException:
        conn.close()
        raise
    set_json_loads(readable_json, conn)  # a creator's connections miss what SQLAlchemy would set
    return conn


def server_time(conn: Connection[TupleRow]) -> datetime:
    """What the server's clock says, on a connection in autocommit mode."""
    row = conn.execute("select clock_timestamp()").fetchone()
    assert row is not None  # a select without a table
    return cast(datetime, row[0])


def readable_json(text: str | bytes) -> Any:
    """Stored JSON as Python values; what cannot be shown is replaced by a note that says why.

    Writing to the tables by hand can store what Python's decoder or encoder refuses; the
    list in which such a command stands must not break.
    """
    try:
        value = decode_json(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError) as exc:
        return {"_unreadable": type(exc).__name__, "size_bytes": len(text)}
    if _deeper_than(value, READABLE_DEPTH):
        return {"_unreadable": f"nested more than {READABLE_DEPTH} deep", "size_bytes": len(text)}
    return value


def _deeper_than(value: Any, depth: int) -> bool:
    containers = _containers([value])
    for _ in range(depth):
        if not containers:
            return False
        containers = _containers(
            inner
            for container in containers
            for inner in (container.values() if isinstance(container, dict) else container)
        )
    return bool(containers)


def _containers(values: Iterable[Any]) -> list[dict[str, Any] | list[Any]]:
    return [value for value in values if isinstance(value, dict | list)]
