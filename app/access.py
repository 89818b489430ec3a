"""Who may call which endpoint. What declares nothing is refused."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeVar

from flask import Flask, abort, current_app, request

ViewT = TypeVar("ViewT", bound=Callable[..., Any])

_ATTRIBUTE = "required_role"


class Role(IntEnum):
    """What a caller may do; each role includes those below it."""

    PUBLIC = 0
    VIEWER = 1
    OPERATOR = 2


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
    """The caller's role; without configured credentials, whoever reaches us is an operator."""
    return Role.OPERATOR


def init_app(app: Flask) -> None:
    """Check every request; declare Flask's own endpoint for static files, which anyone may read."""
    app.view_functions["static"] = public(_wrapped(app.view_functions["static"]))
    app.before_request(_enforce)


def _enforce() -> None:
    if request.endpoint is None:
        return  # no such page or method; the routing error answers
    required = required_role(current_app, request.endpoint)
    if required is None or current_role() < required:
        abort(403)


def _declare(view: ViewT, role: Role) -> ViewT:
    setattr(view, _ATTRIBUTE, role)
    return view


def _wrapped(view: Callable[..., Any]) -> Callable[..., Any]:
    """A function of our own around *view*, which may be a lambda or a method."""

    def call(**values: Any) -> Any:
        return view(**values)

    return call
