"""What every request must satisfy, and the headers that every answer carries.

Forms are protected by a token. JSON calls are protected by what another site's page cannot do: send
the JSON media type without asking first, or hide where it comes from. So curl works as it is.
"""

from __future__ import annotations

import re
import secrets
from urllib.parse import urlsplit

from flask import Flask, Response, abort, current_app, g, request
from flask_wtf.csrf import CSRFProtect

from app.server import assets
from app.server.errors import Problem
from app.settings.configuration import Settings

API_PREFIX = "/api/"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?", re.ASCII)

csrf = CSRFProtect()


def init_app(app: Flask) -> None:
    """Guard *app*; to be called before anything else registers what runs before a request.

    `guard_writes` completes it, once it is known who makes a request.
    """
    settings: Settings = app.config["SETTINGS"]
    app.config["ALLOWED_HOSTS"] = LOOPBACK_HOSTS | set(settings.allowed_hosts)
    app.config["SECURITY_HEADERS"] = security_headers(settings)
    csrf.init_app(app)
    # What was signed in for is not shown again by the browser's Back after signing out.
    app.config["CACHE_CONTROL"] = "no-store" if settings.credentials_file else "private, no-cache"
    for guard in (_name_request, _check_host, _check_size, _check_encoding):
        app.before_request(guard)
    app.after_request(_set_headers)


def guard_writes(app: Flask) -> None:
    """Refuse requests that change something unless the caller means them."""
    app.before_request(_check_origin)


def content_security_policy(settings: Settings) -> str:
    """Allow our own files, and of the CDN exactly the file of Flowbite, not its neighbours."""
    scripts = ["'self'"]
    if not settings.local_assets:
        scripts.append(assets.FLOWBITE.url)
    directives = {
        "default-src": "'none'",
        "script-src": " ".join(scripts),
        "style-src": "'self'",
        "img-src": "'self'",
        "font-src": "'self'",
        "connect-src": "'self'",
        "manifest-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def security_headers(settings: Settings) -> dict[str, str]:
    return {
        "Content-Security-Policy": content_security_policy(settings),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    }


def _name_request() -> None:
    """Give the request an id of our own; one from outside could forge lines of the log."""
    g.request_id = secrets.token_hex(8)


def _check_host() -> None:
    """Refuse names that are not ours: a foreign name that resolves to us is an attack."""
    match = _HOST.fullmatch(request.headers.get("Host", "").lower())
    if match is None or match["name"] not in current_app.config["ALLOWED_HOSTS"]:
        abort(400, "The Host header names no host that this server answers for.")


def _check_size() -> None:
    """Refuse a body that announces too much before anything reads it."""
    limit = current_app.config["MAX_CONTENT_LENGTH"]
    if request.content_length is not None and request.content_length > limit:
        abort(413)


def _check_encoding() -> None:
    """Refuse a body that is compressed, or text of another encoding than UTF-8."""
    if request.method in SAFE_METHODS and not request.content_length:
        return
    coding = request.headers.get("Content-Encoding", "").strip().lower()
    if {each.strip() for each in coding.split(",")} - {"", "identity"}:
        raise Problem(
            415,
            "encoded_body",
            f"The body is encoded as {coding[:50]!r}; send it as it is.",
            headers={"Accept-Encoding": "identity"},
        )
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise Problem(415, "unknown_charset", f"The body is {charset[:50]!r}; send UTF-8.")


def _check_origin() -> None:
    if request.method in SAFE_METHODS or request.endpoint is None:
        return
    if _is_foreign():
        abort(403, "The request comes from another site.")
    if not request.path.startswith(API_PREFIX):
        _check_token()
    elif request.mimetype != "application/json" and (
        request.method == "POST" or request.content_length
    ):
        abort(415, "Send the body as application/json.")


def _check_token() -> None:
    try:
        csrf.protect()
    except ValueError:  # behind TLS it reads the Referer, which may be no address at all
        abort(403, "The request comes from another site.")


def _is_foreign() -> bool:
    """Whether the browser says that another site's page makes this request.

    The scheme is not compared: behind a proxy that ends TLS it differs although the site is ours.
    """
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    origin = request.headers.get("Origin")
    own = request.headers["Host"].lower()
    try:
        return site not in ("same-origin", "none") or (
            origin is not None and urlsplit(origin).netloc.lower() != own
        )
    except ValueError:  # no browser shows one of our pages under such an address
        return True


def _set_headers(response: Response) -> Response:
    for name, value in current_app.config["SECURITY_HEADERS"].items():
        response.headers.setdefault(name, value)
    response.headers["X-Request-ID"] = g.request_id
    if "Cache-Control" not in response.headers:
        response.headers["Cache-Control"] = current_app.config["CACHE_CONTROL"]
    return response
