"""What the RETENTION_ settings say is pruned."""

from __future__ import annotations

from datetime import timedelta

import pytest

from app.retention import RETENTION_OPTIONS, RetentionConfig
from app.settings.configuration import PROJECT_ROOT
from app.settings.options import InvalidOptionError
from commandbus import CommandStatus
from commandbus.retention import RetentionRule


def test_nothing_is_pruned_by_default():
    config = RetentionConfig.from_environment({})

    assert not config.is_on
    assert (config.rules(), config.history) == ([], None)


def test_each_status_has_its_own_limits():
    config = RetentionConfig.from_environment(
        {
            "RETENTION_COMPLETED_DAYS": "0.5",
            "RETENTION_FAILED_COUNT": "100",
            "RETENTION_CANCELLED_DAYS": "0",
            "RETENTION_HISTORY_DAYS": "90",
        }
    )

    assert config.is_on
    assert config.rules() == [
        RetentionRule(status=CommandStatus.COMPLETED, older_than=timedelta(hours=12)),
        RetentionRule(status=CommandStatus.FAILED, keep=100),
    ]
    assert config.history == timedelta(days=90)


@pytest.mark.parametrize("option", RETENTION_OPTIONS, ids=lambda option: option.variable)
def test_what_cannot_be_meant_is_refused(option):
    with pytest.raises(InvalidOptionError, match=option.variable):
        RetentionConfig.from_environment({option.variable: "-1"})


def test_every_setting_is_in_the_example_with_its_default():
    example = (PROJECT_ROOT / ".env.example").read_text().splitlines()

    for option in RETENTION_OPTIONS:
        assert f"#{option.variable}={option.default:g}" in example
