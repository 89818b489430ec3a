"""How often one caller may change something, and may fail to sign in.

The counts are this process's own: of several web processes each allows as much.
"""

from __future__ import annotations

import ipaddress
import time
from dataclasses import dataclass
from typing import cast

from flask import Flask, current_app, g, request
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from app.config import Settings
from app.errors import Problem
from app.security import API_PREFIX, SAFE_METHODS


@dataclass(frozen=True)
class Limits:
    """The limits of an application, and what was used of them."""

    writes: RateLimitItem | None
    failures: RateLimitItem
    used: FixedWindowRateLimiter


def init_app(app: Flask) -> None:
    """Limit *app*; to be called after what finds out who makes a request."""
    settings: Settings = app.config["SETTINGS"]
    writes = settings.rate_limit_per_minute
    app.extensions["limits"] = Limits(
        writes=RateLimitItemPerMinute(writes) if writes else None,
        failures=RateLimitItemPerMinute(settings.sign_in_failures_per_minute),
        used=FixedWindowRateLimiter(MemoryStorage()),
    )
    app.before_request(_limit_writes)


def address() -> str:
    """Whom to count as one caller: the address, of IPv6 the network that one customer gets."""
    given = request.remote_addr or ""
    try:
        parsed = ipaddress.ip_address(given)
    except ValueError:
        return given
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return given


def refuse_after_failures() -> None:
    """Raises Problem 429 where the address has failed to sign in too often in this minute."""
    limits = _limits()
    if not limits.used.test(limits.failures, "sign-in", address()):
        raise _too_many(limits.failures, "sign-in", address())


def count_failure() -> None:
    """Somebody at this address failed to sign in."""
    limits = _limits()
    limits.used.hit(limits.failures, "sign-in", address())


def _limit_writes() -> None:
    limits = _limits()
    if (
        limits.writes is None
        or request.method in SAFE_METHODS
        or not request.path.startswith(API_PREFIX)
        or request.endpoint is None
    ):
        return
    identity = g.get("identity")
    caller = f"address {address()}" if identity is None else f"user {identity.name}"
    if not limits.used.hit(limits.writes, "writes", caller):
        raise _too_many(limits.writes, "writes", caller)


def _too_many(limit: RateLimitItem, *what: str) -> Problem:
    window = _limits().used.get_window_stats(limit, *what)
    seconds = max(1, round(window.reset_time - time.time() + 0.5))
    return Problem(
        429,
        detail=f"At most {limit.amount:,} in a minute. Try again in {seconds} seconds.",
        headers={"Retry-After": str(seconds)},
    )


def _limits() -> Limits:
    return cast(Limits, current_app.extensions["limits"])
