"""Reverse proxies: whose word on address, TLS and prefix counts, and below which path we live."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from flask import Flask, request
from werkzeug.middleware.proxy_fix import ProxyFix

from app.settings.configuration import Settings
from app.settings.environment import url_prefix

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class BehindProxies:
    """Takes X-Forwarded-For, -Proto and -Prefix from the proxies in *networks* only.

    *prefix* is the one where no proxy names another. A proxy may take it away from the path or
    leave it there, unless it begins like one of the application's *own* paths: then it has to be
    taken away. Others of these headers are never believed: the proxy has to pass Host on.
    """

    def __init__(
        self,
        application: WSGIApplication,
        networks: Iterable[str],
        prefix: str = "",
        own: Collection[str] = (),
    ) -> None:
        self._direct = application
        self._proxied = ProxyFix(application, x_for=1, x_proto=1, x_host=0, x_port=0, x_prefix=0)
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self._prefix = prefix
        self._own = own

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        is_trusted = self._trusts(environ.get("REMOTE_ADDR", ""))
        given = _forwarded_prefix(environ) if is_trusted else None
        self._mount(environ, self._prefix if given is None else given)
        return (self._proxied if is_trusted else self._direct)(environ, start_response)

    def _trusts(self, address: str) -> bool:
        try:
            peer = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(peer in network for network in self._networks)

    def _mount(self, environ: WSGIEnvironment, prefix: str) -> None:
        """The application lives below *prefix* for this request."""
        if not prefix:
            return
        path = environ.get("PATH_INFO", "")
        is_there = path == prefix or path.startswith(f"{prefix}/")
        if is_there and _first_part(prefix) not in self._own:
            environ["PATH_INFO"] = path[len(prefix) :] or "/"
        environ["SCRIPT_NAME"] = prefix


def init_app(app: Flask) -> None:
    """Put the check before *app* where a proxy or a prefix is configured."""
    settings: Settings = app.config["SETTINGS"]
    if settings.trusted_proxies or settings.url_prefix:
        app.wsgi_app = BehindProxies(  # type: ignore[method-assign]
            app.wsgi_app,
            settings.trusted_proxies,
            settings.url_prefix,
            {_first_part(rule.rule) for rule in app.url_map.iter_rules()},
        )


def path_and_query() -> str:
    """The address of this request within its site, as the browser has it."""
    return request.script_root + request.full_path.rstrip("?")


def _forwarded_prefix(environ: WSGIEnvironment) -> str | None:
    """What the nearest proxy says; None where that is nothing, or no path."""
    given = environ.get("HTTP_X_FORWARDED_PREFIX", "").rpartition(",")[2].strip()
    return url_prefix(given) if given.startswith("/") else None


def _first_part(path: str) -> str:
    """`/commands` of `/commands/<id>`."""
    return "/" + path.split("/")[1]
