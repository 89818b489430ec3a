"""How often one caller may change something, and may fail to sign in.

The counts are this process's own: of several web processes each allows as much.
"""

from __future__ import annotations

import hashlib
import ipaddress
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from flask import Flask, current_app, g, request
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from app.server.errors import Problem
from app.server.security import API_PREFIX, SAFE_METHODS
from app.server.sign_in_limits import Attempt, Bound, SignInLimits, TooManyFailuresError
from app.settings.configuration import Settings

NAMES_AT_AN_ADDRESS = 10
"""The limit for all names at one address, as a multiple of the limit for one name."""


@dataclass(frozen=True)
class Limits:
    """The limits of an application, and what was used of them."""

    writes: RateLimitItem | None
    used: FixedWindowRateLimiter
    failures: int
    failed: SignInLimits


def init_app(app: Flask) -> None:
    """Limit *app*; to be called after what finds out who makes a request."""
    settings: Settings = app.config["SETTINGS"]
    writes = settings.rate_limit_per_minute
    app.extensions["limits"] = Limits(
        writes=RateLimitItemPerMinute(writes) if writes else None,
        used=FixedWindowRateLimiter(MemoryStorage()),
        failures=settings.sign_in_failures_per_minute,
        failed=SignInLimits(),
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


@contextmanager
def password_attempt(name: str) -> Iterator[Attempt]:
    """A password for *name* is tried meanwhile; it counts unless it is said to be right.

    Counted for this name at this address, so that no one behind the same address is kept out by
    guesses at another's password. Raises Problem 429 where there were too many already.
    """
    with _answered(), _limits().failed.attempt(_bound("password", name)) as attempt:
        yield attempt


@contextmanager
def unknown_password_attempt() -> Iterator[Attempt]:
    """The same for all names at this address together: each try takes time, and guessing one
    password for many names is guessing, too.
    """
    bound = Bound(("passwords", address()), NAMES_AT_AN_ADDRESS * _limits().failures)
    with _answered(), _limits().failed.attempt(bound) as attempt:
        yield attempt


def count_bad_header() -> None:
    """Count an unknown token or an empty header from this address.

    Raises Problem 429 where there were too many already.
    """
    with _answered():
        _limits().failed.count(_bound("header"))


def _bound(*what: str) -> Bound:
    # A digest, as a name may be long.
    digests = [hashlib.sha256(part.encode("utf-8", "surrogatepass")).hexdigest() for part in what]
    return Bound((address(), *digests), _limits().failures)


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except TooManyFailuresError as exc:
        raise _too_many(exc.limit, exc.seconds) from exc


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
        window = limits.used.get_window_stats(limits.writes, "writes", caller)
        seconds = max(1, round(window.reset_time - time.time() + 0.5))
        raise _too_many(limits.writes.amount, seconds)


def _too_many(amount: int, seconds: int) -> Problem:
    return Problem(
        429,
        detail=f"At most {amount:,} in a minute. Try again in {seconds} seconds.",
        headers={"Retry-After": str(seconds)},
    )


def _limits() -> Limits:
    return cast(Limits, current_app.extensions["limits"])
