"""The file of users: JSON that only its owner may read, replaced as a whole at each change."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.credentials.users import ROLES, User, Users, checked_name
from app.settings.private_files import PrivateFileError, read_private, write_private

logger = logging.getLogger(__name__)

_ROLE_NAMES = {role: name for name, role in ROLES.items()}


class CredentialsError(Exception):
    """The file cannot be used or changed so; the message is one line for the user."""


class CredentialsFile:
    """The users in *path*, as it is now: a change of the file counts from the next request on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self._users = Users()

    def load(self) -> Users:
        """What the file holds. Raises CredentialsError."""
        try:
            return Users(_parse(read_private(self.path)))
        except PrivateFileError as exc:
            raise CredentialsError(str(exc)) from exc
        except ValueError as exc:
            raise CredentialsError(f"{self.path} is no file of users: {exc}") from exc

    def current(self) -> Users:
        """What the file holds, read again only after it has changed.

        An unusable file holds no users: removing it removes all access.
        """
        with self._lock:
            version = self._version()
            if version != self._seen:
                try:
                    self._users = self.load()
                except CredentialsError as exc:
                    logger.error("credentials_unusable", extra={"reason": str(exc)})
                    self._users = Users()
                self._seen = version
            return self._users

    def change(self, alter: Callable[[dict[str, User]], None]) -> None:
        """Let *alter* change the users by name, then write them; one change at a time.

        Raises CredentialsError; what *alter* raises passes through. Then nothing has changed.
        """
        with self._changing():
            users = {user.name: user for user in self.load()} if self.path.exists() else {}
            alter(users)
            document = {"users": [_written(user) for user in users.values()]}
            try:
                write_private(self.path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
            except OSError as exc:
                raise CredentialsError(f"{self.path} cannot be written: {exc.strerror}") from exc

    def _version(self) -> tuple[int, ...]:
        try:
            found = self.path.stat()
        except OSError:
            return ()
        return (found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Keep others from changing the file meanwhile (Windows has no such lock)."""
        if sys.platform == "win32":
            yield
            return
        import fcntl

        lock = self.path.with_name(f"{self.path.name}.lock")
        try:
            with lock.open("a", encoding="utf-8") as held:
                lock.chmod(0o600)
                fcntl.flock(held, fcntl.LOCK_EX)
                yield
        except OSError as exc:
            raise CredentialsError(f"{lock} cannot be written: {exc.strerror}") from exc


def _parse(text: str) -> Iterator[User]:
    """The users that *text* describes; ValueError for the first thing that is wrong."""
    document = json.loads(text)
    entries = document.get("users") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError('it must be {"users": [...]}')
    known: set[str] = set()
    for entry in entries:
        user = _user(entry)
        if user.name in known:
            raise ValueError(f"{user.name!r} stands in it twice")
        known.add(user.name)
        yield user


def _user(entry: Any) -> User:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ValueError("each user needs a name")
    name = checked_name(entry["name"])
    role = entry.get("role")
    password_hash = entry.get("password_hash")
    tokens = entry.get("token_hashes", [])
    if role not in ROLES:
        raise ValueError(f"the role of {name!r} must be {' or '.join(ROLES)}")
    if not isinstance(password_hash, str) or not password_hash.startswith("scrypt:"):
        raise ValueError(f"the password_hash of {name!r} must be one of scrypt")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"the token_hashes of {name!r} must be a list of texts")
    return User(name, ROLES[role], password_hash, tuple(tokens))


def _written(user: User) -> dict[str, Any]:
    return {
        "name": user.name,
        "role": _ROLE_NAMES[user.role],
        "password_hash": user.password_hash,
        "token_hashes": list(user.token_hashes),
    }
