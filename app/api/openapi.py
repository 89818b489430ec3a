"""The OpenAPI 3.1 document, generated from the models."""

from __future__ import annotations

from typing import Any

from flask import Flask, Response, current_app, json, request
from flask_openapi3.models.security_scheme import SecurityScheme
from flask_openapi3.openapi import OpenAPI

from app.api import answers, bp
from app.server import access
from app.settings.configuration import Settings

SECURITY_SCHEMES: dict[str, SecurityScheme | dict[str, Any]] = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "What python -m app.credentials token NAME shows",
    },
    "password": {"type": "http", "scheme": "basic", "description": "Name and password"},
}


@bp.get("/openapi.json", doc_ui=False)
@access.public
def document() -> Any:
    """What this API takes and answers, for programs that read OpenAPI."""
    described = api_document(current_app)
    if request.script_root:
        described = {**described, "servers": [{"url": request.script_root}]}
    return Response(json.dumps(described), mimetype="application/json")


def describe(app: Flask) -> None:
    """Errors are described by our own model instead of the extension's."""
    if isinstance(app, OpenAPI):
        app.validation_error_model = answers.Problem
        app.security_schemes = {}  # the extension would write null, which is no valid document
        settings: Settings = app.config["SETTINGS"]
        if settings.credentials_file is not None:
            app.security_schemes = SECURITY_SCHEMES
            app.openapi_extensions = {"security": [{name: []} for name in SECURITY_SCHEMES]}
        app.info.description = "Send commands, watch them, and help those that need an operator."


def api_document(app: Flask) -> dict[str, Any]:
    """The document of *app*, which has to be one that describes itself."""
    if not isinstance(app, OpenAPI):
        raise TypeError("the application was not made by app.create_app")
    described: dict[str, Any] = app.api_doc
    return described
