"""Settings come from the environment and .env, and bad ones are told in one line."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from app.settings.configuration import PROJECT_ROOT, ConfigurationError, LogFormat, Settings
from app.settings.options import plain_number
from app.worker.command_line import PROCESS_OPTIONS
from app.worker.process import OPTIONS


def test_nothing_given_means_the_defaults() -> None:
    settings = Settings.from_env({}, env_file=None)

    assert settings.database_url is None
    assert settings.data_dir == PROJECT_ROOT / ".data"
    assert (settings.host, settings.port) == ("127.0.0.1", 5001)
    assert settings.secret_key is None
    assert (settings.log_format, settings.log_level) == (LogFormat.TEXT, "INFO")


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("PORT=6000\nHOST=0.0.0.0\nLOG_FORMAT=json\n")

    settings = Settings.from_env({"PORT": "7000"}, env_file=env_file)

    assert (settings.port, settings.host) == (7000, "0.0.0.0")
    assert settings.log_format is LogFormat.JSON


def test_a_password_in_the_file_is_taken_as_it_is_written(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text("HOME_OF_X=1\nDATABASE_URL=postgresql://u:a${HOME_OF_X}b@host/db\n")

    settings = Settings.from_env({}, env_file=env_file)

    assert settings.database_url == "postgresql://u:a${HOME_OF_X}b@host/db"


def test_an_empty_value_counts_as_not_given() -> None:
    settings = Settings.from_env({"DATABASE_URL": " ", "PORT": "", "SECRET_KEY": ""}, env_file=None)

    assert (settings.database_url, settings.port, settings.secret_key) == (None, 5001, None)


def test_a_relative_data_dir_is_the_same_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    settings = Settings.from_env({"DATA_DIR": "elsewhere"}, env_file=None)

    assert settings.data_dir == PROJECT_ROOT / "elsewhere"


def test_sqlalchemys_spelling_of_a_url_is_accepted() -> None:
    settings = Settings.from_env({"DATABASE_URL": "postgresql+psycopg://u@h/d"}, env_file=None)

    assert settings.database_url == "postgresql://u@h/d"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SESSION_HOURS", "0"),
        ("RATE_LIMIT_PER_MINUTE", "-1"),
        ("SIGN_IN_FAILURES_PER_MINUTE", "0"),
        ("URL_PREFIX", "//evil.example"),
        ("URL_PREFIX", "https://example.org/bus"),
        ("URL_PREFIX", "/a/../b"),
        ("URL_PREFIX", "/a b"),
        ("URL_PREFIX", "/bus#x"),
        ("PORT", "http"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "5_001"),
        ("PORT", "-1"),
        ("LOG_FORMAT", "xml"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_bad_value_is_named_with_its_setting(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} must be .*{value!r}"):
        Settings.from_env({name: value}, env_file=None)


@pytest.mark.parametrize(
    ("value", "prefix"),
    [("bus", "/bus"), ("/bus/", "/bus"), ("/a/b-c.d_e", "/a/b-c.d_e"), ("/", ""), ("", "")],
)
def test_a_prefix_is_a_path_without_a_slash_at_its_end(value: str, prefix: str) -> None:
    assert Settings.from_env({"URL_PREFIX": value}, env_file=None).url_prefix == prefix


def test_a_bad_database_url_is_refused_without_repeating_its_password() -> None:
    with pytest.raises(ConfigurationError) as refused:
        Settings.from_env({"DATABASE_URL": "mysql://me:hunter2@host/db"}, env_file=None)

    assert "DATABASE_URL must be a PostgreSQL URI" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_bytes(b"PORT=\xff\xfe")

    with pytest.raises(ConfigurationError, match="cannot be read"):
        Settings.from_env({}, env_file=env_file)


def test_a_secret_may_come_from_a_file_that_only_its_owner_may_read(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("open sesame\n")
    path.chmod(0o600)
    given = {"SECRET_KEY_FILE": str(path)}

    assert Settings.from_env(given, env_file=None).secret_key == "open sesame"
    assert Settings.from_env({**given, "SECRET_KEY": "x"}, env_file=None).secret_key == "x"
    path.chmod(0o660)
    with pytest.raises(ConfigurationError, match="mode 0660") as refused:
        Settings.from_env(given, env_file=None)
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "proxies", "is_exposed"),
    [
        ("127.0.0.1", (), False),
        ("127.8.9.1", (), False),
        ("::1", (), False),
        ("localhost", (), False),
        ("0.0.0.0", (), True),
        ("::", (), True),
        ("", (), True),
        ("127.0.0.1.evil.example", (), True),
        ("127.0.0.1", ("127.0.0.1",), True),
    ],
)
def test_whether_others_may_reach_the_server(host, proxies, is_exposed) -> None:
    assert Settings(host=host, trusted_proxies=proxies).is_exposed == is_exposed


@pytest.mark.parametrize("value", ["proxy", "10.0.0.0/33", "10.0.0.1/8", "127.0.0.1,*"])
def test_proxies_are_addresses_and_networks(value: str) -> None:
    with pytest.raises(ConfigurationError, match="TRUSTED_PROXIES must be"):
        Settings.from_env({"TRUSTED_PROXIES": value}, env_file=None)


def test_every_setting_of_the_web_server_is_in_the_example() -> None:
    example = (PROJECT_ROOT / ".env.example").read_text()

    source = (PROJECT_ROOT / "app/settings/configuration.py").read_text()
    names = set(re.findall(r"values\.\w+\(\s*\"([A-Z_]+)\"", source)) | {"SECRET_KEY_FILE"}
    assert len(names) > 12
    assert [name for name in sorted(names) if f"#{name}=" not in example] == []


def test_every_option_of_a_worker_is_in_the_example_with_its_default() -> None:
    example = (PROJECT_ROOT / ".env.example").read_text().splitlines()

    lines = [f"#{o.variable}={plain_number(o.default)}" for o in (*OPTIONS, *PROCESS_OPTIONS)]
    assert [line for line in lines if line not in example] == []


def test_secrets_are_not_shown() -> None:
    settings = Settings.from_env(
        {"DATABASE_URL": "postgresql://u:hunter2@h/d", "SECRET_KEY": "sesame"}, env_file=None
    )

    assert "hunter2" not in repr(settings)
    assert "sesame" not in repr(settings)


def test_settings_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]
