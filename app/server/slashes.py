"""Addresses with a slash at their end lead to those without, which are ours."""

from __future__ import annotations

from urllib.parse import quote

from flask import Flask, redirect, request
from flask.globals import request_ctx
from flask.typing import ResponseReturnValue


def init_app(app: Flask) -> None:
    """Redirect what the slash alone would make a 404; method and body stay as they are."""
    app.before_request(_without_slash)


def _without_slash() -> ResponseReturnValue | None:
    path = request.path.rstrip("/")
    if request.endpoint is not None or not path or path == request.path:
        return None
    adapter = request_ctx.url_adapter
    if adapter is None or not adapter.allowed_methods(path):
        return None
    query = request.query_string.decode("latin-1")
    address = request.script_root + quote(path, safe="/:@!$&'()*+,;=~")
    return redirect(f"{address}?{query}" if query else address, 308)
