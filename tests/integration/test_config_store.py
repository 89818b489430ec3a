"""The stored configuration: versions, history, and what is refused."""

from __future__ import annotations

import asyncio

import pytest

from app.settings.configuration import ConfigStore, ConfigVersionError, RetryConfig, WorkerConfig
from app.settings.options import InvalidOptionError


@pytest.fixture
def config_store(pool):
    return ConfigStore(pool)


async def test_a_fresh_database_has_the_defaults(config_store):
    stored = await config_store.load()
    assert (stored.worker, stored.retry) == (WorkerConfig(), RetryConfig())
    assert (stored.version, stored.set_values()) == (1, {})


async def test_stored_settings_are_read_back(config_store):
    await config_store.set_worker_config(WorkerConfig(2, 8, 0.5, 100))
    await config_store.set_retry_config(RetryConfig(5, 10, 20, 1.5))
    assert await config_store.get_worker_config() == WorkerConfig(2, 8, 0.5, 100)
    assert await config_store.get_retry_config() == RetryConfig(5, 10, 20, 1.5)


async def test_only_what_is_given_changes_and_counts_as_set(config_store):
    stored = await config_store.update(
        worker={"concurrency": 9}, retry={"max_attempts": 7}, changed_by="ann"
    )
    assert stored.worker == WorkerConfig(concurrency=9)
    assert stored.retry == RetryConfig(max_attempts=7)
    assert stored.set_values() == {"concurrency": 9, "max_attempts": 7}


async def test_a_stale_version_stores_nothing(config_store):
    first = await config_store.load()
    await config_store.update(
        worker={"concurrency": 9}, expected_version=first.version, changed_by="ann"
    )
    with pytest.raises(ConfigVersionError) as caught:
        await config_store.update(
            worker={"concurrency": 2}, expected_version=first.version, changed_by="bob"
        )
    assert (caught.value.expected, caught.value.current) == (1, 2)
    assert (await config_store.get_worker_config()).concurrency == 9


async def test_of_two_who_save_the_same_version_one_wins(config_store):
    results = await asyncio.gather(
        *(
            config_store.update(
                worker={"concurrency": number}, expected_version=1, changed_by=str(number)
            )
            for number in (2, 3)
        ),
        return_exceptions=True,
    )
    assert sorted(type(result).__name__ for result in results) == [
        "ConfigVersionError",
        "StoredConfig",
    ]


async def test_the_history_says_who_stored_what(config_store):
    await config_store.update(worker={"concurrency": 9}, changed_by="ann")
    await config_store.update(retry={"max_attempts": 5}, changed_by="bob")
    await config_store.update(worker={"concurrency": 9}, changed_by="nobody")  # changes nothing
    assert [
        (change.version, change.changed_by, change.worker, change.retry)
        for change in await config_store.history()
    ] == [
        (3, "bob", {"concurrency": 9}, {"max_attempts": 5}),
        (2, "ann", {"concurrency": 9}, {}),
    ]


async def test_nothing_is_stored_when_one_value_is_refused(config_store):
    with pytest.raises(InvalidOptionError) as caught:
        await config_store.update(
            worker={"concurrency": 9, "visibility_timeout": 0}, changed_by="ann"
        )
    assert caught.value.errors == {
        "visibility_timeout": "must be a whole number from 1 to 43200 seconds"
    }
    assert (await config_store.load()).version == 1
