"""The demo, end-to-end and load-test application around the command bus.

Importing this package imports no web framework, so that a worker process never loads one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from app.settings import preflight
from app.settings.signals import end_at_interrupts

if preflight.is_program():
    end_at_interrupts()
preflight.check()

if TYPE_CHECKING:
    from flask import Flask

    from app.settings.configuration import Settings


def create_app(config: Settings | Mapping[str, Any] | None = None) -> Flask:
    """The web application; see app.factory."""
    from app import factory

    return factory.create_app(config)
