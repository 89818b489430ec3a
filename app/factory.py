"""Building the web application from its settings."""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flask import Flask
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.info import Info
from flask_openapi3.openapi import OpenAPI
from jinja2 import StrictUndefined

from app.server import (
    access,
    clock,
    compression,
    errors,
    identity,
    proxies,
    rate_limits,
    security,
    slashes,
    static_files,
)
from app.settings.configuration import ConfigurationError, Settings
from app.settings.private_files import (
    PrivateFileError,
    make_own_folder,
    read_private,
    write_private,
)

MAX_REQUEST_BYTES = 1024 * 1024

# Packages that bring a blueprint named `bp`, in the order in which their routes are listed.
BLUEPRINT_MODULES = ("app.web", "app.api", "app.api.health")


def create_app(config: Settings | Mapping[str, Any] | None = None) -> Flask:
    """A web application that is ready to serve.

    *config* is the complete settings; or a mapping that overrides single settings by their field
    name (`{"database_url": …}`, or `DATABASE_URL` as in the environment) and Flask's own by theirs
    (`{"TESTING": True}`), the rest coming from the environment.
    """
    settings, flask_config = _read(config)
    app = OpenAPI(
        __name__,
        info=Info(title="Command Bus", version="1.0.0"),
        validation_error_callback=errors.validation_response,
        doc_ui=False,
    )
    app.config.from_mapping(
        SETTINGS=settings,
        SECRET_KEY=settings.secret_key or kept_secret_key(settings.data_dir),
        SESSION_COOKIE_NAME="commandbus_session",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_REFRESH_EACH_REQUEST=False,
        MAX_CONTENT_LENGTH=MAX_REQUEST_BYTES,
        MAX_FORM_MEMORY_SIZE=MAX_REQUEST_BYTES,
        # A form may stay open for as long as its session lives.
        WTF_CSRF_TIME_LIMIT=None,
        WTF_CSRF_CHECK_DEFAULT=False,
    )
    app.config.from_mapping(flask_config)
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    # A name that a template expects and does not get is a mistake, not an empty string.
    app.jinja_env.undefined = StrictUndefined

    # The order in which a request is looked at: is it meant for us and of a sane size, who makes
    # it and may they, how often, and do they make it themselves.
    compression.init_app(app)
    clock.init_app(app)
    security.init_app(app)
    slashes.init_app(app)
    identity.init_app(app)
    access.init_app(app)
    rate_limits.init_app(app)
    security.guard_writes(app)
    errors.init_app(app)
    static_files.init_app(app)
    for name in BLUEPRINT_MODULES:
        _register(app, name)
    proxies.init_app(app)
    return app


def kept_secret_key(data_dir: Path) -> str:
    """The secret key under *data_dir*, made at the first call and readable by its owner only.

    Several processes may start at once; they all get the same. Raises ConfigurationError where it
    cannot be kept, others may read it, or somebody else has made it.
    """
    path = data_dir / "secret_key"
    try:
        make_own_folder(data_dir)
        if not os.path.lexists(path):
            write_private(path, secrets.token_urlsafe(48), replace=False)
        return read_private(path, is_own=True).strip()
    except PrivateFileError as exc:
        raise ConfigurationError(str(exc)) from exc
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be written: {exc.strerror}") from exc


def _read(config: Settings | Mapping[str, Any] | None) -> tuple[Settings, dict[str, Any]]:
    """The settings, and what is meant for Flask itself."""
    if isinstance(config, Settings):
        return config, {}
    fields = {field.name for field in dataclasses.fields(Settings)}
    given = dict(config or {})
    ours = {name.lower(): value for name, value in given.items() if name.lower() in fields}
    flask_config = {name: value for name, value in given.items() if name.lower() not in fields}
    return dataclasses.replace(Settings.from_env(), **ours), flask_config


def _register(app: OpenAPI, name: str) -> None:
    """Register the blueprint of a package that is there; its `init_app(app)` runs first."""
    if find_spec(name) is None:
        return
    module = import_module(name)
    if hasattr(module, "init_app"):
        module.init_app(app)
    if hasattr(module, "bp"):
        if isinstance(module.bp, APIBlueprint):
            app.register_api(module.bp)
        else:
            app.register_blueprint(module.bp)
