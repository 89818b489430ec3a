"""Users for tests: a viewer and an operator, each with a password and a token."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from app.credentials import CredentialsFile, Role, User
from app.credentials.users import hash_password, token_hash

VIEWER = "Vera Viewer"
OPERATOR = "Maximiliane von Hohenlohe-Schillingsfürst, night@example.org"
PASSWORDS = {VIEWER: "looks-but-never-touches", OPERATOR: "correct horse battery ståple"}
TOKENS = {VIEWER: "cbt_viewers-token-for-tests", OPERATOR: "cbt_operators-token-for-tests"}
ROLES = {VIEWER: Role.VIEWER, OPERATOR: Role.OPERATOR}


def credentials_file(folder: Path) -> Path:
    """A file with both users."""
    path = folder / "credentials.json"
    CredentialsFile(path).change(lambda users: users.update(_users()))
    return path


def remove(path: Path, name: str) -> None:
    """Take a user away."""

    def alter(users: dict[str, User]) -> None:
        del users[name]

    CredentialsFile(path).change(alter)


def bearer(name: str) -> dict[str, str]:
    """The header that says who calls."""
    return {"Authorization": f"Bearer {TOKENS[name]}"}


@cache
def _users() -> dict[str, User]:
    return {
        name: User(name, role, hash_password(PASSWORDS[name]), (token_hash(TOKENS[name]),))
        for name, role in ROLES.items()
    }
