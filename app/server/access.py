"""Who may call which endpoint. What declares nothing is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from flask import Flask, abort, current_app, redirect, request, url_for
from flask.typing import ResponseReturnValue

from app.credentials import Role
from app.server import identity
from app.server.errors import Problem, wants_json
from app.server.proxies import path_and_query

__all__ = ["Role", "current_role", "may_operate", "operator", "public", "required_role", "viewer"]

ViewT = TypeVar("ViewT", bound=Callable[..., Any])

OPERATORS_ONLY = "You are signed in as a viewer, who may look; this needs an operator."
SIGN_IN_FIRST = "Sign in first, or send a password or a token with the call."

_ATTRIBUTE = "required_role"
_REALM = 'realm="Command Bus", charset="UTF-8"'


def public(view: ViewT) -> ViewT:
    """Anyone may call *view*; only for what shows nothing of the bus and changes nothing."""
    return _declare(view, Role.PUBLIC)


def viewer(view: ViewT) -> ViewT:
    """Who may look may call *view*."""
    return _declare(view, Role.VIEWER)


def operator(view: ViewT) -> ViewT:
    """Only who may change the bus may call *view*."""
    return _declare(view, Role.OPERATOR)


def required_role(app: Flask, endpoint: str) -> Role | None:
    """The role that *endpoint* declares, or None."""
    return getattr(app.view_functions[endpoint], _ATTRIBUTE, None)


def current_role() -> Role:
    """The caller's role; without configured credentials every caller is an operator."""
    if not identity.is_required():
        return Role.OPERATOR
    caller = identity.current_identity()
    return Role.PUBLIC if caller is None else caller.role


def may_look() -> bool:
    """Whether the caller may see pages; also for what is answered before that is known."""
    try:
        return current_role() >= Role.VIEWER
    except Problem:  # who they are cannot be asked now
        return False


def may_operate() -> bool:
    """Whether the caller may change the bus; what others cannot do is not offered to them."""
    return current_role() >= Role.OPERATOR


def init_app(app: Flask) -> None:
    """Check every request; declare Flask's own endpoint for static files, which anyone may read."""
    app.view_functions["static"] = public(_wrapped(app.view_functions["static"]))
    app.before_request(_enforce)


def _enforce() -> ResponseReturnValue | None:
    if request.endpoint is None:
        return None  # no such page or method; the routing error answers
    required = required_role(current_app, request.endpoint)
    if required is None:
        abort(403)
    if required is Role.PUBLIC or current_role() >= required:
        return None
    if identity.current_identity() is not None:
        raise Problem(403, "operators_only", OPERATORS_ONLY)
    if wants_json() or _is_fetched():
        raise Problem(401, detail=SIGN_IN_FIRST, headers={"WWW-Authenticate": _challenge()})
    back = path_and_query() if request.method == "GET" else None
    return redirect(url_for("web.login", next=back), 303)


def _is_fetched() -> bool:
    """Whether a script asks, which would take the login page for the part that it refreshes."""
    return request.headers.get("Sec-Fetch-Mode", "navigate") != "navigate"


def _challenge() -> str:
    """How to say who one is. A browser would answer `Basic` with a dialog of its own."""
    is_browser = "Sec-Fetch-Mode" in request.headers
    return f"Bearer {_REALM}" if is_browser else f"Basic {_REALM}, Bearer {_REALM}"


def _declare(view: ViewT, role: Role) -> ViewT:
    setattr(view, _ATTRIBUTE, role)
    return view


def _wrapped(view: Callable[..., Any]) -> Callable[..., Any]:
    """A function of our own around *view*, which may be a lambda or a method."""

    def call(**values: Any) -> Any:
        return view(**values)

    return call
