"""Pages and static files are compressed for those who ask, and for nobody who could misuse it."""

from __future__ import annotations

import gzip
import re

import pytest
from flask import Flask

from app import create_app
from app.models import db

GZIP = {"Accept-Encoding": "gzip, deflate, br"}
OWN = {**GZIP, "Sec-Fetch-Site": "same-origin"}
PAGE = "/api-docs"
"""A page that asks the database for nothing."""


@pytest.fixture
def app(tmp_path, shared_database_url):
    app = create_app({"data_dir": tmp_path, "database_url": shared_database_url})
    yield app
    with app.app_context():
        db.session.remove()
        db.engine.dispose()
    app.extensions["portal"].close()


@pytest.fixture
def client(app: Flask):
    return app.test_client()


@pytest.mark.parametrize(
    "path", [PAGE, "/static/src/live.js", "/static/dist/app.css", "/static/icons.svg"]
)
def test_who_accepts_gzip_gets_the_same_content_in_fewer_bytes(client, path):
    plain = client.get(path, buffered=True, headers={"Sec-Fetch-Site": "same-origin"})
    packed = client.get(path, buffered=True, headers=OWN)

    assert packed.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in plain.headers
    text = gzip.decompress(packed.data)
    token = re.compile(rb'(csrf[_-]token"[^>]*(?:value|content)=")[^"]*')
    assert token.sub(rb"\1", text) == token.sub(rb"\1", plain.data)
    assert int(packed.headers["Content-Length"]) == len(packed.data) < len(plain.data) / 2
    for answer in (plain, packed):
        assert "Accept-Encoding" in answer.headers["Vary"]


def test_a_head_request_is_told_the_length_of_what_get_would_send(client):
    got = client.get("/static/dist/app.css", buffered=True, headers=OWN)
    told = client.head("/static/dist/app.css", headers=OWN)

    assert told.headers["Content-Length"] == got.headers["Content-Length"]
    assert told.headers["Content-Encoding"] == "gzip"


def test_the_tag_of_a_file_holds_with_and_without_compression(client):
    packed = client.get("/static/dist/app.css", buffered=True, headers=OWN)
    plain = client.get("/static/dist/app.css", buffered=True)
    headers = {**OWN, "If-None-Match": packed.headers["ETag"]}
    again = client.get("/static/dist/app.css", buffered=True, headers=headers)

    assert packed.headers["ETag"] == plain.headers["ETag"] == again.headers["ETag"]
    assert packed.headers["ETag"].startswith("W/")
    assert (again.status_code, again.data) == (304, b"")


def test_a_part_of_a_file_is_a_part_of_the_file_itself(client):
    part = client.get("/static/dist/app.css", buffered=True, headers={**OWN, "Range": "bytes=0-99"})

    assert part.status_code == 206
    assert "Content-Encoding" not in part.headers
    assert part.data == client.get("/static/dist/app.css", buffered=True).data[:100]


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {},
    ],
    ids=["another site's page", "a neighbour's page", "a browser that does not say whose page"],
)
def test_a_page_that_another_site_may_have_asked_for_tells_nothing_by_its_length(client, headers):
    client.set_cookie("operator", "Ada")
    page = client.get(PAGE, buffered=True, headers={**GZIP, **headers})

    assert page.status_code == 200
    assert "Content-Encoding" not in page.headers


@pytest.mark.parametrize("headers", [{}, {"Sec-Fetch-Site": "none"}], ids=["curl", "typed address"])
def test_nobody_is_behind_a_request_without_a_cookie_or_page(client, headers):
    assert (
        client.get(PAGE, buffered=True, headers={**GZIP, **headers}).headers["Content-Encoding"]
        == "gzip"
    )


def test_small_and_compressed_files_and_answers_of_the_api_are_sent_as_they_are(client):
    for path in (
        "/static/fonts/inter-latin.woff2",
        "/static/favicon.svg",
        "/api/v1/openapi.json",
    ):
        answer = client.get(path, buffered=True, headers=OWN)
        assert answer.status_code == 200
        assert "Content-Encoding" not in answer.headers
