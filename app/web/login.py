"""Signing in and out, where the settings name a file of credentials."""

from __future__ import annotations

from typing import Any

from flask import flash, make_response, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from app.server import access, identity
from app.server.errors import Problem
from app.web import bp
from app.web.operations import safe_next


@bp.get("/login")
@access.public
def login() -> ResponseReturnValue:
    if access.current_role() > access.Role.PUBLIC:
        return redirect(_next(), 303)
    return _form()


@bp.post("/login")
@access.public
def sign_in() -> ResponseReturnValue:
    if not identity.is_required():
        return redirect(_next(), 303)
    try:
        is_known = identity.sign_in(request.form.get("name", ""), request.form.get("password", ""))
    except Problem as exc:
        if exc.code != 429:
            raise
        seconds = exc.extra_headers["Retry-After"]
        return _form(f"Too many failed attempts. Try again in {seconds} seconds.", exc)
    if not is_known:
        return _form("This name and password do not belong together.", Problem(401))
    return redirect(_next(), 303)


@bp.post("/logout")
@access.viewer
def sign_out() -> ResponseReturnValue:
    if not identity.is_required():
        return redirect(url_for("web.dashboard"), 303)
    identity.sign_out()
    flash("You are signed out.", "success")
    return redirect(url_for("web.login"), 303)


def _form(refusal: str = "", problem: Problem | None = None) -> ResponseReturnValue:
    context: dict[str, Any] = {
        "refusal": refusal,
        "name": request.form.get("name", ""),
        "next": _next(),
    }
    response = make_response(render_template("pages/login.html", **context))
    if problem is not None:
        response.status_code = problem.code or 400
        response.headers.extend(problem.extra_headers)
    return response


def _next() -> str:
    """Where to go once signed in, within this site."""
    return safe_next(url_for("web.dashboard"))
