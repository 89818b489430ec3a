"""Pages, the parts of them that refresh by themselves, and confirmations."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from flask import Response, abort, make_response, render_template, request
from jinja2.runtime import Context

PARTIAL = "partial"
CONFIRMED = "confirmed"
CSRF_FIELD = "csrf_token"

# These differ from answer to answer and mean nothing: the text of ages, which the browser keeps up
# to date by itself, and tokens.
_PASSING = re.compile(rb'(?<=">)[^<]*(?=</time>)|(?<=name="csrf_token" value=")[^"]*')


class PageContext:
    """The values that a page and its parts show: the public names of a subclass.

    A template sees each name as a variable and computes it only when it uses it. With
    `functools.cached_property` each fact is asked for once, however many parts of a page show it.
    """

    def variables(self) -> dict[str, Any]:
        """The names for a template, with the values still to be computed."""
        names = (name for name in dir(self) if not name.startswith("_") and name != "variables")
        return {name: _Later(self, name) for name in names}


class _Later(NamedTuple):
    """A value that LazyContext computes."""

    context: PageContext
    name: str


class LazyContext(Context):
    """Jinja's lookup of names, which computes the values of a PageContext when they are used.

    An unknown name is an error, as always.
    """

    def resolve_or_missing(self, key: str) -> Any:
        """The value of *key*, computed now if it is one of a PageContext."""
        value = super().resolve_or_missing(key)
        return getattr(value.context, value.name) if isinstance(value, _Later) else value


def render_page(
    template: str,
    context: PageContext | Mapping[str, Any],
    *,
    partials: Iterable[str] = (),
    status: int = 200,
) -> Response:
    """The page; or with `?partial=name` only that partial, from the very same context.

    So a page and its refresh cannot disagree, and a refresh asks only for what that part shows. A
    page whose values cost nothing may give a mapping. *partials* are the names this page may be
    asked for; they are templates in partials/, and the page includes them.
    """
    values = context.variables() if isinstance(context, PageContext) else context
    name = request.args.get(PARTIAL)
    if name is None:
        return make_response(render_template(template, **values), status)
    if name not in partials:
        abort(404)
    response = make_response(render_template(f"partials/{name}.html", **values))
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
