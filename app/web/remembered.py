"""What a person's browser remembers for the server: the theme and the operator's name."""

from __future__ import annotations

import unicodedata
from urllib.parse import quote, unquote

from flask import request, session
from werkzeug.wrappers import Response

from app.server import identity

THEMES = ("light", "system", "dark")
THEME_COOKIE = "theme"
OPERATOR_COOKIE = "operator"
OPERATOR_MAX_LENGTH = 60
UNNAMED_OPERATOR = "web"
# Messages for the next page travel in the session's cookie, which holds 4 KB at most.
MAX_MESSAGES = 5
YEAR_SECONDS = 365 * 24 * 60 * 60


def keep_few_messages(response: Response) -> Response:
    """Forget the oldest messages of a browser that sends forms and never looks at a page."""
    if len(waiting := session.get("_flashes", ())) > MAX_MESSAGES:
        session["_flashes"] = waiting[-MAX_MESSAGES:]
    return response


def current_theme() -> str:
    theme = request.cookies.get(THEME_COOKIE)
    return theme if theme in THEMES else "system"


def current_operator() -> str:
    """The name under which actions are recorded: the login's; without sign-in, the
    one that the person has given, and empty until then.
    """
    given = clean_operator(unquote(request.cookies.get(OPERATOR_COOKIE, "")))
    return identity.recorded_name(given)


def recorded_operator() -> str:
    """The same; where no name is known, that the action came from a page."""
    return current_operator() or UNNAMED_OPERATOR


def clean_operator(name: str) -> str:
    """The name on one line, without characters that only control how text is shown."""
    visible = "".join(" " if c.isspace() else c for c in name if unicodedata.category(c)[0] != "C")
    return " ".join(visible.split())[:OPERATOR_MAX_LENGTH]


def remember_theme(response: Response, theme: str) -> None:
    # Scripts set this cookie too, hence not HttpOnly.
    response.set_cookie(
        THEME_COOKIE,
        theme,
        max_age=YEAR_SECONDS,
        path=request.script_root or "/",
        samesite="Lax",
        secure=request.is_secure,
    )


def remember_operator(response: Response, name: str) -> None:
    response.set_cookie(
        OPERATOR_COOKIE,
        quote(name),
        max_age=YEAR_SECONDS,
        path=request.script_root or "/",
        samesite="Lax",
        httponly=True,
        secure=request.is_secure,
    )
