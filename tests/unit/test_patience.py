"""Who waits for a silent database, and who is turned away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from flask import Flask
from psycopg_pool import PoolTimeout

from app import create_app
from app.actions.load_tests import AT_ONCE_SECONDS
from app.database.invariants import PATIENCE_SECONDS
from app.server.breaker import ASKING, IN_VAIN, WAITING, Patience, Turns
from app.server.portal import WITHOUT_DATABASE
from app.settings.configuration import PROJECT_ROOT, Settings
from commandbus.deadlines import AGAIN_SECONDS
from commandbus.errors import InvalidStateError, NoAnswerError
from commandbus.ids import uuid7
from commandbus.models import CommandStatus
from run import WEB_THREADS

FAR = 3600.0
"""So many seconds no test takes."""


def ends(patience: Patience, error: Exception) -> None:
    """Somebody waits until that happens."""
    with pytest.raises(type(error)), patience.waiting():
        raise error


def in_vain(patience: Patience) -> None:
    """Somebody waits, and gives up."""
    ends(patience, NoAnswerError())


def is_silent(patience: Patience) -> bool:
    """Whether requests are turned away, but for one."""
    return [patience.turns_away() for _ in range(2)] == [False, True]


def test_nobody_is_turned_away_while_there_are_answers() -> None:
    patience = Patience(FAR)

    with patience.waiting() as seconds:
        assert seconds == FAR
    assert not patience.turns_away()


def test_after_a_wait_in_vain_one_asks_and_the_others_are_turned_away() -> None:
    patience = Patience(FAR)
    in_vain(patience)

    assert [patience.turns_away() for _ in range(3)] == [False, True, True]


def test_while_nobody_gets_an_answer_somebody_asks_again_and_again() -> None:
    patience = Patience(0)
    in_vain(patience)

    assert [patience.turns_away() for _ in range(3)] == [False] * 3


def test_an_answer_lets_everybody_in_again() -> None:
    patience = Patience(FAR)
    in_vain(patience)
    patience.turns_away()

    with patience.waiting():
        pass

    assert not patience.turns_away()


@pytest.mark.parametrize("how", IN_VAIN)
def test_a_wait_that_nothing_has_answered_is_in_vain(how: type[Exception]) -> None:
    patience = Patience(FAR)
    ends(patience, how())

    assert is_silent(patience)


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.LockNotAvailable(),
        psycopg.errors.QueryCanceled(),
        InvalidStateError(uuid7(), CommandStatus.COMPLETED),
    ],
)
def test_an_error_that_the_database_answers_is_an_answer(error: Exception) -> None:
    patience = Patience(FAR)
    in_vain(patience)
    ends(patience, error)

    assert not is_silent(patience)


@pytest.mark.parametrize("error", [psycopg.OperationalError("lost"), PoolTimeout("none is free")])
def test_a_connection_that_fails_is_no_answer(error: Exception) -> None:
    patience = Patience(FAR)
    in_vain(patience)
    ends(patience, error)

    assert is_silent(patience)


def test_who_asked_before_somebody_was_answered_does_not_call_it_silent() -> None:
    patience = Patience(FAR)

    def asks() -> None:
        with patience.waiting():
            patience.answered()  # somebody else is
            raise NoAnswerError

    with pytest.raises(NoAnswerError):
        asks()

    assert not is_silent(patience)


def test_a_request_whose_answers_took_all_its_time_does_not_call_it_silent(app: Flask) -> None:
    patience = Patience(0)  # a first answer takes longer than that
    with app.app_context():
        with patience.waiting():
            pass
        with pytest.raises(NoAnswerError), patience.waiting() as seconds:
            raise NoAnswerError
    assert 0 < seconds < 1

    patience.seconds = FAR
    assert not is_silent(patience)

    with app.app_context():
        in_vain(patience)  # and one that nothing was answered does
    assert is_silent(patience)


def test_what_is_known_to_take_long_leaves_a_request_its_time(app: Flask) -> None:
    patience = Patience(0.2)
    with app.app_context():
        with patience.waiting(FAR) as seconds:
            assert seconds == FAR
        with patience.waiting() as seconds:
            assert seconds == 0.2


def test_the_proxy_that_is_shown_waits_for_the_longest_answer() -> None:
    shown = (PROJECT_ROOT / "docs" / "production.md").read_text()
    [seconds] = re.findall(r"proxy_read_timeout (\d+)s;", shown)
    longest = max(PATIENCE_SECONDS, AT_ONCE_SECONDS) + Settings().answer_timeout

    assert int(seconds) > longest + AGAIN_SECONDS


# Turns


def test_who_has_no_turn_waits_only_while_others_are_answered() -> None:
    stalled = Turns(2, stalled_seconds=0)
    assert [stalled.take() for _ in range(3)] == [True, True, False]
    stalled.give_back()
    assert stalled.take()

    moving = Turns(1, stalled_seconds=FAR)
    moving.take()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(moving.take)
        moving.give_back()
        assert waiting.result(60)


def test_the_server_has_threads_that_no_request_of_the_database_takes() -> None:
    assert WEB_THREADS > ASKING + WAITING


# Requests


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    """The application with a database that does not answer, as its portal has noticed."""
    url = "postgresql://nobody@127.0.0.1:1/nowhere"
    made = create_app({"database_url": url, "data_dir": tmp_path, "secret_key": "for tests"})
    in_vain(made.extensions["portal"].patience)
    yield made
    made.extensions["portal"].close()


def test_while_the_database_is_silent_unknown_addresses_are_told_apart(app: Flask) -> None:
    client = app.test_client()
    while not app.extensions["portal"].patience.turns_away():
        pass

    assert client.get("/commands").status_code == 503
    assert client.get("/nowhere").status_code == 404
    assert client.delete("/commands").status_code == 405
    assert client.get("/api/v1/nowhere").status_code == 404


def test_who_does_not_ask_the_database_keeps_nobody_from_asking(app: Flask) -> None:
    client = app.test_client()
    answers = {
        rule.endpoint: client.get(rule.rule.replace("<text>", "a").replace("<path:filename>", "x"))
        for rule in app.url_map.iter_rules()
        if rule.endpoint in WITHOUT_DATABASE and "GET" in (rule.methods or ())
    }
    client.get("/nowhere")

    assert {name: code for name, a in answers.items() if (code := a.status_code) >= 500} == {}
    assert answers.keys() >= {"web.login", "api.document", "health.live"}
    assert app.view_functions.keys() >= WITHOUT_DATABASE
    assert is_silent(app.extensions["portal"].patience)
