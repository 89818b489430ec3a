"""Addresses of static files that change with their content, so that browsers may keep them."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from flask import Flask, Response, g, request, url_for
from markupsafe import Markup

from app.server import assets
from app.settings.configuration import Settings

VERSION_LENGTH = 12
_IMPORT = re.compile(r"""^\s*(?:import|\}) .*?['"](\.[^'"]+)['"];""", re.MULTILINE)
YEAR_SECONDS = 365 * 24 * 60 * 60


def init_app(app: Flask) -> None:
    root = Path(app.static_folder or "").resolve()
    settings: Settings = app.config["SETTINGS"]

    def static_url(filename: str) -> str:
        """The address of a static file with the hash of its content, found once per request."""
        urls: dict[str, str] = g.setdefault("static_urls", {})
        if filename not in urls:
            version = content_version(root / filename)
            urls[filename] = url_for("static", filename=filename, v=version)
        return urls[filename]

    def module(filename: str, *, loaded: str = "") -> Markup:
        """The script element of a module, after hints for the modules that it imports.

        So a browser fetches them all at the same time, not one level after the other. Those that
        the module *loaded* has brought already are left out.
        """
        known = imports_of(root / loaded) if loaded else ()
        links = [
            Markup('<link rel="modulepreload" href="{}">').format(
                url_for("static", filename=path.relative_to(root).as_posix())
            )
            for path in imports_of(root / filename)
            if path not in known
        ]
        script = Markup('<script type="module" src="{}"></script>').format(static_url(filename))
        return Markup("\n").join([*links, script])

    def asset(name: str) -> dict[str, str]:
        """Attributes of the script element for a browser library: its address and its hash."""
        library = assets.BY_NAME[name]
        if library.cdn and not settings.local_assets:
            return {
                "src": library.url,
                "integrity": library.integrity,
                "crossorigin": "anonymous",
            }
        return {"src": static_url(library.vendor_path), "integrity": library.integrity}

    def set_lifetime(response: Response) -> Response:
        """A year for the very content that was asked for; all else is asked for again each time.

        Modules import each other without a version, so they are answered with 304 when unchanged.
        """
        if request.endpoint == "static" and response.status_code in (200, 304):
            values: dict[str, Any] = request.view_args or {}
            version = request.args.get("v")
            if version and version == content_version(root / values.get("filename", "")):
                response.headers["Cache-Control"] = f"public, max-age={YEAR_SECONDS}, immutable"
            else:
                response.headers["Cache-Control"] = "public, no-cache"
        return response

    app.after_request(set_lifetime)
    app.jinja_env.globals.update(static_url=static_url, module=module, asset=asset)


def imports_of(path: Path) -> tuple[Path, ...]:
    """The modules that the module at *path* imports, directly or through others; each once."""
    found: dict[Path, None] = {}
    waiting = [path.resolve()]
    while waiting:
        module = waiting.pop(0)
        for name in _imported_names(module, module.stat().st_mtime_ns):
            imported = (module.parent / name).resolve()
            if imported not in found:
                found[imported] = None
                waiting.append(imported)
    return tuple(found)


@lru_cache(maxsize=256)
def _imported_names(path: Path, _mtime_ns: int) -> tuple[str, ...]:
    return tuple(_IMPORT.findall(path.read_text("utf-8")))


def content_version(path: Path) -> str:
    """A short hash of the file's content; empty where there is no such file."""
    try:
        stat = path.stat()
    except OSError:
        return ""
    return _hash(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _hash(path: Path, _mtime_ns: int, _size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:VERSION_LENGTH]
