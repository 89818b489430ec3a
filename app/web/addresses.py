"""Ids in the addresses of pages: read in every spelling, shown in one."""

from __future__ import annotations

from urllib.parse import quote
from uuid import UUID

from flask import redirect, request, url_for
from werkzeug.routing import UUIDConverter
from werkzeug.wrappers import Response


class IdConverter(UUIDConverter):
    """An id as people may have copied it: in capitals, without hyphens, in braces, as a URN."""

    regex = r"(?:urn:)?(?:uuid:)?\{?(?:[0-9A-Fa-f]-?){32}\}?"


def to_the_one_spelling() -> Response | None:
    """The address with its ids in lower case and with hyphens, for a page that has another one."""
    given = request.view_args or {}
    ids = [value for value in given.values() if isinstance(value, UUID)]
    parts = request.path.split("/")
    if request.method not in ("GET", "HEAD") or all(str(each) in parts for each in ids):
        return None
    query = quote(request.query_string, safe="%&=+-._~!$'()*,;:@/?")
    return redirect(url_for(request.endpoint or "", **given) + (f"?{query}" if query else ""))
