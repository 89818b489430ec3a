"""What names, texts and ids may be: such that PostgreSQL can store and look for them.

They are checked where they are given, so that nothing is accepted that breaks later.
"""

from __future__ import annotations

import re
from uuid import UUID

from commandbus.errors import InvalidCommandError, InvalidDomainError
from commandbus.texts import shown, why_unstorable

DOMAIN_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,39}")
_FUNCTION = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,62}\.[a-zA-Z_][a-zA-Z0-9_]{0,62}")
MAX_TYPE = 200
"""Characters of a command's type."""
MAX_LANE = 200
MAX_OPERATOR = 200
MAX_REASON = 4_000


def check_domain(domain: object) -> None:
    """*domain* is a name that a domain can have; raises InvalidDomainError otherwise."""
    if not isinstance(domain, str) or DOMAIN_PATTERN.fullmatch(domain) is None:
        raise InvalidDomainError(
            f"domain name {shown(domain)} is not allowed: it must match ^{DOMAIN_PATTERN.pattern}$"
        )


def check_function(function: object) -> None:
    """*function* is a name with its schema; raises InvalidCommandError otherwise."""
    if not isinstance(function, str) or _FUNCTION.fullmatch(function) is None:
        raise InvalidCommandError(
            f"function must be schema.name, without quotes, not {shown(function)}"
        )


def check_text(name: str, value: object, low: int, high: int) -> None:
    """*value* is text of *low* to *high* characters; raises InvalidCommandError otherwise."""
    if not isinstance(value, str) or not low <= len(value) <= high:
        raise InvalidCommandError(
            f"{name} must be text of {low} to {high} characters, not {shown(value)}"
        )
    check_storable(name, value)


def check_storable(name: str, value: object) -> None:
    """*value* is text that can be stored or looked for; raises InvalidCommandError otherwise."""
    if not isinstance(value, str):
        raise InvalidCommandError(f"{name} must be text, not {shown(value)}")
    reason = why_unstorable(value)
    if reason is not None:
        raise InvalidCommandError(f"{name} must not hold {reason}")


def uuid_of(name: str, value: object) -> UUID:
    """The UUID that *value* is or spells; raises InvalidCommandError otherwise."""
    if isinstance(value, UUID):
        return value
    try:
        return UUID(value if isinstance(value, str) else "")
    except ValueError as exc:
        raise InvalidCommandError(f"{name} must be a UUID, not {shown(value)}") from exc
