"""Saving what a person prefers, for browsers without JavaScript as well."""

from __future__ import annotations

from flask import flash, redirect, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.wrappers import Response as WerkzeugResponse

from app.server import access, identity
from app.server.errors import Problem
from app.web import bp
from app.web.remembered import THEMES, clean_operator, remember_operator, remember_theme
from app.web.rendering import local_path


@bp.post("/preferences/theme")
@access.viewer
def save_theme() -> ResponseReturnValue:
    theme = request.form.get("theme", "")
    if theme not in THEMES:
        raise Problem(422, detail="The theme is light, dark or system.")
    response = _back()
    remember_theme(response, theme)
    return response


@bp.post("/preferences/operator")
@access.viewer
def save_operator() -> ResponseReturnValue:
    if identity.is_required():
        raise Problem(409, "name_of_login", "Your actions are recorded under your login's name.")
    name = clean_operator(request.form.get("operator", ""))
    response = _back()
    remember_operator(response, name)
    flash(f"Your actions are recorded as {name}." if name else "Your name is forgotten.", "success")
    return response


def _back() -> WerkzeugResponse:
    """To the page the form was on."""
    origin = request.form.get("next") or request.referrer or ""
    return redirect(local_path(origin, url_for("web.dashboard")), 303)
