"""Applications that tests make in their own process."""

from __future__ import annotations

from flask import Flask

from app.models import db


def close(app: Flask) -> None:
    """Give back what *app* holds: connections, and the loop of its pool."""
    with app.app_context():
        db.session.remove()
        db.engine.dispose()
    app.extensions["portal"].close()
