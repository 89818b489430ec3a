"""Who makes a request: a signed-in browser, or a program with a password or a token.

Without a credentials file there is no sign-in. A browser's session is a signed cookie with the
user's name; it ends by itself, with the password it was made by, and by signing out.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

from flask import Flask, current_app, g, request, session
from flask.sessions import SecureCookieSessionInterface
from werkzeug.datastructures import Authorization

from app.credentials import CredentialsFile, Role, User
from app.credentials.users import normal_name
from app.server import rate_limits
from app.server.signed_out import SignedOut
from app.settings.configuration import Settings

logger = logging.getLogger(__name__)

USER, PROOF, SIGNED_IN_AT, SESSION_ID = "user", "proof", "signed_in_at", "session_id"
REMEMBERED_PASSWORDS = 128
REMEMBERED_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Identity:
    """Who makes this request."""

    name: str
    role: Role


class CookieSessions(SecureCookieSessionInterface):
    """Flask's sessions; where the browser came by TLS, their cookie never travels without it, and
    where the application lives below a prefix, it goes to nothing beside it.
    """

    def get_cookie_path(self, app: Flask) -> str:  # noqa: ARG002
        return request.script_root or "/"

    def get_cookie_secure(self, app: Flask) -> bool:  # noqa: ARG002
        return request.is_secure


class PasswordMemory:
    """Which passwords proved right lately, so that a program's every call need not take 60 ms.

    It keeps no password, only what a random key of this process makes of one.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def holds(self, user: User, password: str) -> bool:
        """Whether *password* was the user's within the last minutes and still is."""
        with self._lock:
            return self._until.get(self._digest(user, password), 0.0) > time.monotonic()

    def add(self, user: User, password: str) -> None:
        """It proved right just now."""
        with self._lock:
            digest = self._digest(user, password)
            self._until[digest] = time.monotonic() + REMEMBERED_SECONDS
            self._until.move_to_end(digest)
            while len(self._until) > REMEMBERED_PASSWORDS:
                self._until.popitem(last=False)

    def _digest(self, user: User, password: str) -> bytes:
        text = f"{user.name}:{user.fingerprint}:{password}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, text, hashlib.sha256)


@dataclass(frozen=True)
class SignIns:
    """What tells who somebody is."""

    file: CredentialsFile
    signed_out: SignedOut
    passwords: PasswordMemory
    lifetime: timedelta


def init_app(app: Flask) -> None:
    """Read who may use *app*, where the settings name a file of credentials."""
    settings: Settings = app.config["SETTINGS"]
    app.session_interface = CookieSessions()
    app.extensions["sign_ins"] = None
    if settings.credentials_file is None:
        return
    lifetime = timedelta(hours=settings.session_hours)
    app.permanent_session_lifetime = lifetime
    app.extensions["sign_ins"] = SignIns(
        CredentialsFile(settings.credentials_file),
        SignedOut(settings.data_dir / "signed_out", lifetime),
        PasswordMemory(),
        lifetime,
    )


def is_required() -> bool:
    """Whether callers have to say who they are."""
    return current_app.extensions["sign_ins"] is not None


def current_identity() -> Identity | None:
    """Who makes this request; None if unknown.

    Raises Problem 429 for who has failed to say so too often.
    """
    if "identity" not in g:
        user = _current_user() if is_required() else None
        g.identity = None if user is None else Identity(user.name, user.role)
    return cast("Identity | None", g.identity)


def recorded_name(given: str) -> str:
    """Under which name an action is recorded: the login's, whatever was *given* besides."""
    identity = current_identity()
    return given if identity is None else identity.name


def sign_in(name: str, password: str) -> bool:
    """The browser is signed in from now on, in a new session; False for a wrong name or password.

    Raises Problem 429 after too many failures from the same address.
    """
    user = _with_password(name, password)
    if user is None:
        return False
    session.clear()
    session.permanent = True
    session[USER] = user.name
    session[PROOF] = user.fingerprint
    session[SIGNED_IN_AT] = int(time.time())
    session[SESSION_ID] = secrets.token_urlsafe(16)
    logger.info("signed_in", extra={"user": user.name, "address": rate_limits.address()})
    return True


def sign_out() -> None:
    """End the session, also for copies of its cookie."""
    session_id = session.get(SESSION_ID)
    if isinstance(session_id, str):
        _sign_ins().signed_out.add(session_id)
        logger.info("signed_out", extra={"user": session.get(USER)})
    session.clear()
    g.identity = None


def _current_user() -> User | None:
    if "Authorization" in request.headers:
        return _authorized(request.authorization)
    return _of_session()


def _authorized(given: Authorization | None) -> User | None:
    """Who sends this header; a wrong one is not made good by a session."""
    if given is not None and given.type == "basic":
        return _with_password(given.username or "", given.password or "")
    if given is not None and given.type == "bearer":
        # 256 bits cannot be guessed, so a right token passes whatever was tried before.
        user = _sign_ins().file.current().with_token(given.token or "")
        if user is None:
            _log_refusal("token")
            rate_limits.count_bad_header()
        return user
    _log_refusal("header")
    rate_limits.count_bad_header()
    return None


def _with_password(name: str, password: str) -> User | None:
    name = normal_name(name)
    users, memory = _sign_ins().file.current(), _sign_ins().passwords
    with rate_limits.password_attempt(name) as attempt:
        user = users.get(name)
        if user is None or not memory.holds(user, password):
            with rate_limits.unknown_password_attempt() as unknown:
                user = users.with_password(name, password)
                unknown.failed = user is None
            if user is not None:
                memory.add(user, password)
        attempt.failed = user is None
    if user is None:
        _log_refusal("password")
    return user


def _of_session() -> User | None:
    name, proof, session_id = session.get(USER), session.get(PROOF), session.get(SESSION_ID)
    if not (isinstance(name, str) and isinstance(proof, str) and isinstance(session_id, str)):
        return None
    user = _sign_ins().file.current().get(name)
    age = time.time() - session.get(SIGNED_IN_AT, 0)
    is_valid = (
        user is not None
        and hmac.compare_digest(proof, user.fingerprint)
        and age < _sign_ins().lifetime.total_seconds()
        and session_id not in _sign_ins().signed_out
    )
    return user if is_valid else None


def _log_refusal(what: str) -> None:
    # The name that was tried is not logged: it may be a password in the wrong field.
    logger.warning("sign_in_refused", extra={"by": what, "address": rate_limits.address()})


def _sign_ins() -> SignIns:
    return cast(SignIns, current_app.extensions["sign_ins"])
