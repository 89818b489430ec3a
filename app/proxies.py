"""Reverse proxies: whose word on the client's address and on TLS counts."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import TYPE_CHECKING

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from app.config import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class TrustedProxies:
    """Takes X-Forwarded-For and X-Forwarded-Proto from the proxies in *networks* only.

    Others of these headers are never taken: the proxy has to pass Host on as it came.
    """

    def __init__(self, application: WSGIApplication, networks: Iterable[str]) -> None:
        self._direct = application
        self._proxied = ProxyFix(application, x_for=1, x_proto=1, x_host=0, x_port=0, x_prefix=0)
        self._networks = [ipaddress.ip_network(network) for network in networks]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        is_trusted = self._trusts(environ.get("REMOTE_ADDR", ""))
        return (self._proxied if is_trusted else self._direct)(environ, start_response)

    def _trusts(self, address: str) -> bool:
        try:
            peer = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(peer in network for network in self._networks)


def init_app(app: Flask) -> None:
    """Put the check before *app* where a proxy is configured."""
    settings: Settings = app.config["SETTINGS"]
    if settings.trusted_proxies:
        app.wsgi_app = TrustedProxies(app.wsgi_app, settings.trusted_proxies)  # type: ignore[method-assign]
