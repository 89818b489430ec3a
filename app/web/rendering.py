"""Pages, the parts of them that refresh by themselves, and confirmations."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode, urlsplit

from flask import Response, abort, make_response, render_template, request

PARTIAL = "partial"
CONFIRMED = "confirmed"
CSRF_FIELD = "csrf_token"

# What differs from answer to answer without meaning anything: the text of ages, which the browser
# keeps ticking by itself, and tokens.
_PASSING = re.compile(rb'(?<=">)[^<]*(?=</time>)|(?<=name="csrf_token" value=")[^"]*')


def render_page(
    template: str, context: dict[str, Any], *, partials: Iterable[str] = ()
) -> Response:
    """The page; or with `?partial=name` only that partial, from the very same context.

    So a page and its refresh cannot disagree. *partials* are the names this page may be asked for;
    they are templates in partials/, and the page includes them.
    """
    name = request.args.get(PARTIAL)
    if name is None:
        return make_response(render_template(template, **context))
    if name not in partials:
        abort(404)
    response = make_response(render_template(f"partials/{name}.html", **context))
    # An unchanged part costs an empty answer and leaves the page alone.
    content = _PASSING.sub(b"", response.get_data())
    response.set_etag(hashlib.sha256(content).hexdigest()[:32], weak=True)
    response.headers["Cache-Control"] = "private, no-cache"
    response.make_conditional(request)
    return response


def live_url(partial: str) -> str:
    """The address that answers with *partial* of this page, all filters kept."""
    return url_with(**{PARTIAL: partial})


def url_with(**changes: object) -> str:
    """This page's address with some query values set, or removed where the new value is None."""
    values = {**request.args.to_dict(flat=False), PARTIAL: []}
    for name, value in changes.items():
        values[name] = [] if value is None else [str(value)]
    query = urlencode(values, doseq=True)
    path = request.script_root + request.path
    return f"{path}?{query}" if query else path


def local_path(address: str, default: str) -> str:
    """The path and query of *address*, which so cannot lead to another site; *default* where it
    has none.
    """
    try:
        parts = urlsplit(address)
    except ValueError:  # half an IPv6 address, a host that Unicode makes another
        return default
    if not parts.path:
        return default
    path = "/" + parts.path.lstrip("/\\")
    return f"{path}?{parts.query}" if parts.query else path


def ask_to_confirm(
    *, title: str, message: str, action: str, back: str, danger: bool = True
) -> str | None:
    """The page that asks before something is done, or None once the answer is yes.

    With JavaScript the question is a dialog on the page (`data-confirm`); without, a form arrives
    here unconfirmed and this page sends all its fields again.
    """
    if request.form.get(CONFIRMED) == "yes":
        return None
    fields = [
        (name, value)
        for name, value in request.form.items(multi=True)
        if name not in (CSRF_FIELD, CONFIRMED)
    ]
    return render_template(
        "pages/confirm.html",
        title=title,
        message=message,
        action=action,
        back=back,
        danger=danger,
        fields=fields,
    )
