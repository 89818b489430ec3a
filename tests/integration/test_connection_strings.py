"""The application runs with whatever libpq takes as the address of a database."""

from __future__ import annotations

import pytest
from psycopg.conninfo import make_conninfo

from app import create_app
from app.database import open_database
from app.database.urls import build_url, parameters
from app.settings.configuration import Settings
from tests.applications import close


@pytest.mark.parametrize("kind", ["two hosts", "keywords", "a driver", "a service file"])
def test_pages_and_sending_work_with_any_connection_string(
    kind, database_url, tmp_path, monkeypatch
):
    given = {"port": "5432", **parameters(database_url)}
    closed = {"host": f"/nowhere,{given['host']}", "port": f"1,{given['port']}"}
    service = tmp_path / "pg_service.conf"
    lines = (f"{name}={text}" for name, text in given.items())
    service.write_text("\n".join(["[bus]", *lines, ""]))
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    url = {
        "two hosts": build_url({**given, **closed, "target_session_attrs": "read-write"}),
        "keywords": make_conninfo("", **given),
        "a driver": build_url(given, scheme="postgresql+asyncpg"),
        "a service file": "service=bus",
    }[kind]
    settings = Settings.from_env({"DATABASE_URL": url, "DATA_DIR": str(tmp_path)}, env_file=None)

    with open_database(settings) as database:
        assert database.preparation.applied == ()
        assert "password" not in given or given["password"] not in str(database)
    app = create_app(settings)
    client = app.test_client()
    try:
        sent = client.post("/api/v1/commands", json={"behavior": {"type": "success"}})
        ready = client.get("/health/ready")
        page = client.get("/commands")
    finally:
        close(app)

    assert (sent.status_code, ready.status_code, page.status_code) == (201, 200, 200)
