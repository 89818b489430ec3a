"""Settings come from the environment and .env, and bad ones are told in one line."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from app.config import PROJECT_ROOT, ConfigurationError, LogFormat, Settings


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


def test_secrets_are_not_shown() -> None:
    settings = Settings.from_env(
        {"DATABASE_URL": "postgresql://u:hunter2@h/d", "SECRET_KEY": "sesame"}, env_file=None
    )

    assert "hunter2" not in repr(settings)
    assert "sesame" not in repr(settings)


def test_settings_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]
