"""The API's own documentation, drawn from the document that the API gives of itself."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, cast

from flask import current_app, request
from flask.typing import ResponseReturnValue
from flask_openapi3.openapi import OpenAPI

from app.server import access
from app.web import bp
from app.web.openapi_reading import Reader
from app.web.rendering import render_page

TITLES = {
    "tsq": "Troubleshooting queue",
    "config": "Settings",
    "audit": "Audit trail",
    "stats": "Statistics",
}
LEADS = {
    "commands": "Send, generate, list, look at and cancel commands.",
    "tsq": "What needs an operator: retry, complete or cancel it, one or many.",
    "audit": "What happened to a command, step by step.",
    "stats": "Counts, rates and latencies.",
    "pauses": "What does not start now; pause and resume a domain or a command type.",
    "workers": "Who runs commands; start one, let one or all drain.",
    "config": "The stored settings of workers and retries.",
    "invariants": "What must hold at every moment.",
    "health": "For supervisors and load balancers; at the root of the site.",
}
ORDER = (*LEADS,)


@bp.get("/api-docs")
@access.viewer
def api_docs() -> ResponseReturnValue:
    return render_page("pages/api_docs.html", api_docs_context())


def api_docs_context() -> dict[str, Any]:
    """The document, read for people; the examples reach this server as the reader does."""
    app = cast(OpenAPI, current_app)
    # It changes with the program alone, and reading it takes longer than all the rest.
    read = app.extensions.setdefault("api_docs", lru_cache(maxsize=4)(partial(_read, app.api_doc)))
    return cast(dict[str, Any], read(request.url_root))


def _read(document: dict[str, Any], root_url: str) -> dict[str, Any]:
    reader = Reader(document, root_url)
    known = {anchor: position for position, anchor in enumerate(ORDER)}
    sections = sorted(reader.sections(), key=lambda section: known.get(section.anchor, len(known)))
    return {
        "info": document.get("info", {}),
        "openapi_version": document.get("openapi", ""),
        "sections": sections,
        "titles": TITLES,
        "leads": LEADS,
        "problem": reader.problem(),
        "origin": root_url.rstrip("/"),
    }
