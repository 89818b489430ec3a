"""Addresses that the application gives of itself, below a prefix and at the root of its site."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from tests.applications import close
from tests.integration.api.conftest import got

NEAR, FAR = {"REMOTE_ADDR": "127.0.0.1"}, {"REMOTE_ADDR": "203.0.113.9"}


@pytest.fixture
def make_client(database_url: str) -> Iterator[Callable[..., FlaskClient]]:
    made: list[Flask] = []

    def make(**options: Any) -> FlaskClient:
        given = {"database_url": database_url, "secret_key": "for tests only"}
        made.append(create_app({**given, **options}))
        return made[-1].test_client()

    yield make
    for app in made:
        close(app)


@pytest.mark.parametrize(
    ("settings", "path", "forwarded"),
    [
        ({"trusted_proxies": ("127.0.0.1",)}, "", "/bus"),
        ({"trusted_proxies": ("127.0.0.1",)}, "", "/bus/"),
        ({"trusted_proxies": ("127.0.0.1",)}, "/bus", "/bus"),
        ({"trusted_proxies": ("127.0.0.1",), "url_prefix": "/other"}, "", "/x, /bus"),
        ({"url_prefix": "/bus"}, "", None),
        ({"url_prefix": "/bus"}, "/bus", None),
        ({"url_prefix": "/bus"}, "/bus", "/ignored"),
    ],
)
def test_below_a_prefix_every_address_begins_with_it(
    make_client: Callable[..., FlaskClient],
    settings: dict[str, Any],
    path: str,
    forwarded: str | None,
) -> None:
    client = make_client(**settings)
    headers = {} if forwarded is None else {"X-Forwarded-Prefix": forwarded}

    page = client.get(f"{path}/", headers=headers)
    body = {"count": 10_001, "behavior": {"type": "success"}}
    started = client.post(f"{path}/api/v1/commands/bulk", json=body, headers=headers)
    document = got(client.get(f"{path}/api/v1/openapi.json", headers=headers))
    docs = client.get(f"{path}/api-docs", headers=headers).text
    moved = client.get(f"{path}/load-tests/compare", headers=headers)

    assert page.status_code == 200
    for attribute in (' href="', ' src="', ' action="', ' data-live-src="'):
        found = [part.split('"')[0] for part in page.text.split(attribute)[1:]]
        local = [each for each in found if not each.startswith(("https://", "#", "?"))]
        assert [each for each in local if not each.startswith("/bus/")] == []
    assert "Path=/bus" in page.headers["Set-Cookie"]
    assert started.headers["Location"].startswith("/bus/api/v1/load-tests/")
    assert document["servers"] == [{"url": "/bus"}]
    assert "http://localhost/bus/api/v1/commands" in docs
    assert "http://localhost/api/v1" not in docs
    assert moved.headers["Location"] == "/bus/load-tests"
    client.post(f"{started.headers['Location']}/cancel".removeprefix("/bus"), json={})


@pytest.mark.parametrize(
    ("peer", "forwarded"),
    [
        (FAR, "/bus"),
        (NEAR, "//evil.example"),
        (NEAR, "/\\evil.example"),
        (NEAR, "https://evil.example"),
        (NEAR, "bus"),
        (NEAR, "/../bus"),
        (NEAR, "/b us"),
        (NEAR, '/bus"><script>'),
        (NEAR, "/"),
        (NEAR, ""),
        (NEAR, "/" + "a" * 5_000),
    ],
)
def test_a_prefix_that_is_none_or_comes_from_anybody_is_ignored(
    make_client: Callable[..., FlaskClient], peer: dict[str, str], forwarded: str
) -> None:
    client = make_client(trusted_proxies=("127.0.0.1",))

    page = client.get("/send", headers={"X-Forwarded-Prefix": forwarded}, environ_base=peer)

    assert 'href="/commands"' in page.text
    assert "Path=/;" in page.headers["Set-Cookie"] + ";"


def test_a_prefix_that_is_called_like_a_page_does_not_hide_it(
    make_client: Callable[..., FlaskClient],
) -> None:
    client = make_client(trusted_proxies=("127.0.0.1",))

    page = client.get("/commands", headers={"X-Forwarded-Prefix": "/commands"})

    assert 'aria-current="page"' in page.text
    assert 'href="/commands/commands"' in page.text
