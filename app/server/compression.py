"""Pages and static files, compressed for browsers that ask for it.

Compressed text tells by its length which of its parts repeat. If a page of another site could make
a browser ask for one of ours with chosen text in it, and someone measured the answers, secrets of
the page could be guessed letter by letter (BREACH). So a page is compressed only for requests that
no other site can have made: see `_is_own_request` and docs/decisions/0014-compressed-pages.md.
"""

from __future__ import annotations

import gzip
from functools import lru_cache
from pathlib import Path

from flask import Flask, Response, request

LEAST_BYTES = 1024
"""Less than this fits into one packet anyway."""
PAGE_LEVEL = 6
FILE_LEVEL = 9  # each file is compressed once
PAGES = frozenset({"text/html"})
FILES = frozenset({"text/css", "text/javascript", "image/svg+xml"})


def init_app(app: Flask) -> None:
    """Compress the answers of *app*; register this first, as the last change to an answer."""
    folder = Path(app.static_folder or "")

    def compress(response: Response) -> Response:
        is_file = request.endpoint == "static"
        if response.mimetype not in (FILES if is_file else PAGES):
            return response
        response.vary.add("Accept-Encoding")
        _weaken_etag(response)
        if (
            response.status_code in (204, 206, 304)
            or "Content-Encoding" in response.headers
            or not request.accept_encodings["gzip"]
            or not (is_file or _is_own_request())
        ):
            return response
        if is_file:
            path = folder / (request.view_args or {}).get("filename", "")
            stat = path.stat()
            if stat.st_size < LEAST_BYTES:
                return response
            body = _packed(path, stat.st_mtime_ns, stat.st_size)
            _close_file(response)
            response.direct_passthrough = False
            response.headers.pop("Accept-Ranges", None)
        else:
            page = response.get_data()
            if len(page) < LEAST_BYTES:
                return response
            body = gzip.compress(page, PAGE_LEVEL, mtime=0)
        response.set_data(body)
        response.headers["Content-Encoding"] = "gzip"
        return response

    app.after_request(compress)


def _is_own_request() -> bool:
    """Whether no other site can have made this request in somebody's name.

    Browsers say where a request over TLS or to this machine comes from. One that does not say so,
    such as curl, speaks for nobody as long as it sends no cookie.
    """
    site = request.headers.get("Sec-Fetch-Site")
    if site is None:
        return "Cookie" not in request.headers
    return site in ("same-origin", "none")


def _close_file(response: Response) -> None:
    close = getattr(response.response, "close", None)
    if close is not None:
        close()


def _weaken_etag(response: Response) -> None:
    """One tag for the same content with and without compression, so it is a weak one."""
    tag, is_weak = response.get_etag()
    if tag is not None and not is_weak:
        response.set_etag(tag, weak=True)


@lru_cache(maxsize=128)
def _packed(path: Path, _mtime_ns: int, _size: int) -> bytes:
    return gzip.compress(path.read_bytes(), FILE_LEVEL, mtime=0)
