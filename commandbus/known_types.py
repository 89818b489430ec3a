"""Which command types a worker takes, and which it leaves to workers that have a handler."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

from commandbus.handlers import HandlerRegistry

logger = logging.getLogger(__name__)

LEAVE_SECONDS = 60.0
"""How long a type without a handler is remembered after it was met."""
MAX_LEFT = 1_000
"""How many of them are remembered."""


class KnownTypes:
    """The types of one domain that a worker has handlers for, and those it has met without one."""

    def __init__(self, registry: HandlerRegistry, domain: str) -> None:
        self._registry = registry
        self._domain = domain
        self._left: dict[str, float] = {}
        self._parked: list[str] = []
        self._paused: frozenset[str] = frozenset()
        self._is_domain_paused = False

    def all(self) -> list[str]:
        """The types with a handler, sorted."""
        return self._registry.command_types(self._domain)

    def met(self, types: Iterable[str], ids: dict[str, Any]) -> None:
        """Leave these from now on; each is logged when it is met."""
        for name in sorted(set(types)):
            logger.warning("no_handler_for_type", extra={**ids, "command_type": name})
            self._leave(name)

    def _leave(self, name: str) -> None:
        self._left.pop(name, None)
        if len(self._left) >= MAX_LEFT:
            del self._left[next(iter(self._left))]
        self._left[name] = time.monotonic() + LEAVE_SECONDS

    def to_leave(self) -> list[str] | None:
        """The types that a claim shall leave to others; None, as nearly always: there are none."""
        if not self._left:
            return None
        now = time.monotonic()
        self._left = {
            name: until
            for name, until in self._left.items()
            if until > now and not self._knows(name)
        }
        return list(self._left) or None

    def saw_parked(self, types: Iterable[str]) -> None:
        """Others have parked commands of *types*: those with a handler are taken, others left."""
        self._parked = [name for name in types if self._knows(name)]
        for name in types:
            if not self._knows(name):
                self._leave(name)

    def to_take(self) -> list[str]:
        """The types of which parked commands wait for this worker, as far as it has heard."""
        return self._parked

    def none_parked(self) -> None:
        """What was parked for this worker has been taken."""
        self._parked = []

    def saw_pauses(self, *, domain: bool, types: Iterable[str] | None) -> None:
        """The whole domain is paused, or these types of it."""
        self._is_domain_paused, self._paused = domain, frozenset(types or ())

    @property
    def are_paused(self) -> bool:
        """Whether anything is paused, as far as the worker has heard."""
        return self._is_domain_paused or bool(self._paused)

    def is_paused(self, name: str) -> bool:
        """Whether nothing of this type shall start."""
        return self._is_domain_paused or name in self._paused

    def _knows(self, name: str) -> bool:
        return self._registry.get(self._domain, name) is not None
