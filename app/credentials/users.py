"""Users: what they may do, and how they prove who they are."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

from werkzeug.security import check_password_hash, generate_password_hash

NAME_MAX_LENGTH = 60
PASSWORD_MIN_LENGTH = 12
PASSWORD_MAX_LENGTH = 1_000
# The beginning of every token, so that scanners find those that leaked.
TOKEN_PREFIX = "cbt_"  # nosec B105
_HASH_METHOD = "scrypt"


class Role(IntEnum):
    """What a caller may do; each role includes those below it."""

    PUBLIC = 0
    VIEWER = 1
    OPERATOR = 2


ROLES = {"viewer": Role.VIEWER, "operator": Role.OPERATOR}
"""The roles that a user can have, by their names in the file."""


@dataclass(frozen=True)
class User:
    """A person or program that may sign in. Its hashes are never shown."""

    name: str
    role: Role
    password_hash: str
    token_hashes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"User(name={self.name!r}, role={self.role.name})"

    @property
    def fingerprint(self) -> str:
        """Changes with the password; so what was signed in before can be told."""
        return hashlib.sha256(self.password_hash.encode()).hexdigest()[:32]


class Users:
    """All users, by name. Every check takes the same time whether or not there is such a user."""

    def __init__(self, users: Iterable[User] = ()) -> None:
        self._by_name: Mapping[str, User] = {user.name: user for user in users}

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[User]:
        return iter(self._by_name.values())

    def get(self, name: str) -> User | None:
        """The user of this name."""
        return self._by_name.get(name)

    def with_password(self, name: str, password: str) -> User | None:
        """The user of this name where *password* is theirs. Takes some 60 ms of one core."""
        user = self._by_name.get(normal_name(name))
        expected = _nobodys_hash() if user is None else user.password_hash
        matches = len(password) <= PASSWORD_MAX_LENGTH and check_password_hash(expected, password)
        return user if matches else None

    def with_token(self, token: str) -> User | None:
        """The user to whom *token* was given."""
        given = token_hash(token)
        found = None
        for user in self._by_name.values():
            for expected in user.token_hashes:
                if hmac.compare_digest(expected, given):
                    found = user
        return found


def new_token() -> str:
    """A token of 256 random bits; only its hash is to be kept."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    """What is kept of *token*. It is random enough that a fast hash does."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def hash_password(password: str) -> str:
    """What is kept of *password*; ValueError with the reason for one that is not acceptable."""
    if not PASSWORD_MIN_LENGTH <= len(password) <= PASSWORD_MAX_LENGTH:
        raise ValueError(f"a password has {PASSWORD_MIN_LENGTH} characters at least")
    return generate_password_hash(password, method=_HASH_METHOD)


def normal_name(name: str) -> str:
    """*name* in the one spelling that the file uses."""
    return unicodedata.normalize("NFC", name).strip()


def checked_name(name: str) -> str:
    """*name* as a user's; ValueError with the reason for one that is not acceptable.

    A colon would end it in HTTP's basic authentication; what is not printable could forge a line.
    """
    name = normal_name(name)
    if not 1 <= len(name) <= NAME_MAX_LENGTH or not name.isprintable() or ":" in name:
        raise ValueError(
            f"a name has 1 to {NAME_MAX_LENGTH} printable characters and no colon among them"
        )
    return name


@cache
def _nobodys_hash() -> str:
    """Checked for unknown names, so that the time of an answer does not reveal known ones."""
    return generate_password_hash(secrets.token_urlsafe(32), method=_HASH_METHOD)
