"""docs/api.md names every route that there is, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from app import create_app
from app.settings.configuration import Settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"


def test_the_page_lists_every_route_of_the_api(tmp_path):
    app = create_app(Settings(data_dir=tmp_path, secret_key="not a secret"))
    description = app.test_client().get("/api/v1/openapi.json").get_json()
    routes = {
        re.sub(r"\{\w+\}", "{id}", path.removeprefix("/api/v1")) for path in description["paths"]
    }
    app.extensions["portal"].close()

    listed: set[str] = set()
    for row in re.findall(r"^\| (`[A-Z]+ /.*) \|$", PAGE.read_text(), re.M):
        before = ""
        for path in re.findall(r"[` ](/[\w/{}-]+)[`?]", row):
            siblings = {f"{before.rpartition('/')[0]}{path}", path} & routes
            listed |= siblings or {path}
            before = path if path in routes else before
    assert listed == routes
