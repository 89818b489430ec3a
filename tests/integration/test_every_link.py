"""Every link of every page leads somewhere, whatever there is to be shown."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from flask.testing import FlaskClient

from tests.integration.api.conftest import app, client, conn, run_all, send
from tests.integration.api.test_prefix import make_client

__all__ = ["app", "client", "conn", "make_client", "run_all", "send"]

LINKS = re.compile(r'\b(?:href|src|data-live-url)="([^"]*)"')
# "None is open for long.", "None yet." and "None." are sentences.
NO_TEXT = re.compile(r"(?<![\w-])(?:NaN|None(?! is| yet|\.)|undefined|null|Infinity|nan)(?![\w-])")
UNSEEN = re.compile("[\u202a-\u202e\u2066-\u2069\u200b\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
MOST = 250


def seen_text(page: str) -> str:
    """What a reader sees of a page."""
    body = re.sub(r"(?s)<(script|style|template)\b.*?</\1>", " ", page)
    return html.unescape(re.sub(r"(?s)<[^>]*>", " ", body))


def walked(client: FlaskClient, start: str, prefix: str = "") -> dict[str, str]:
    """The pages that can be reached from *start*, by their addresses."""
    pages: dict[str, str] = {}
    shapes: dict[str, int] = {}
    left, seen = [start], {start}
    while left and len(seen) < MOST:
        address = left.pop(0)
        answer = client.get(address)
        assert answer.status_code < 400, (address, answer.status_code)
        if answer.status_code in (301, 302, 303, 308):
            found = [answer.headers["Location"]]
        elif answer.mimetype == "text/html":
            pages[address] = answer.text
            found = [html.unescape(each) for each in LINKS.findall(answer.text)]
        else:
            answer.close()
            continue
        for link in found:
            target = urlsplit(urljoin(f"http://localhost{address}", link))
            if target.scheme != "http" or target.netloc != "localhost":
                continue
            path = target.path + (f"?{target.query}" if target.query else "")
            assert path.startswith(f"{prefix}/") or path == prefix, (address, link)
            shape = re.sub(r"=[^&]*|[0-9a-f-]{36}", "", path)
            shapes[shape] = shapes.get(shape, 0) + 1
            if path not in seen and shapes[shape] <= 3 and "/logout" not in path:
                seen.add(path)
                left.append(path)
    return pages


def check(pages: dict[str, str]) -> None:
    assert len(pages) > 10
    for address, page in pages.items():
        if "/api" in address:  # the description of the API speaks of null
            continue
        text = seen_text(page)
        assert not (found := NO_TEXT.search(text)), (address, text[found.start() - 60 :][:120])
        assert not (hidden := UNSEEN.search(text)), (address, ascii(hidden))


@pytest.mark.parametrize("prefix", ["", "/bus"])
def test_no_page_is_broken_where_there_is_nothing(
    make_client: Callable[..., FlaskClient], prefix: str
) -> None:
    check(walked(make_client(url_prefix=prefix), f"{prefix}/", prefix))


ODD = "pay\u202etxt.exe\u2066\u200b \x1b[31m\x07 end"


@pytest.mark.parametrize(
    ("kind", "details"),
    [("business", {"at": ODD}), ("permanent", [ODD]), ("permanent", {"traceback": 5})],
)
def test_no_page_is_broken_where_everything_has_failed(
    client: FlaskClient,
    send: Callable[..., str],
    run_all: Callable[..., None],
    kind: str,
    details: Any,
) -> None:
    for _ in range(3):
        sent = send("fail_business", payload={"name": ODD, ODD: [ODD]}, reply_to=None)
    run_all(kind, message=ODD, details=details)

    pages = walked(client, "/")

    check(pages)
    for address in (f"/audit/{sent}", f"/commands/{sent}"):
        text = seen_text(client.get(address).text)
        assert "pay<U+202E>txt.exe" in text, address
        assert not (hidden := UNSEEN.search(text)), (address, ascii(hidden))
