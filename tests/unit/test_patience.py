"""Who waits for a silent database, and who is turned away."""

from __future__ import annotations

import pytest

from app.patience import Patience


def in_vain(patience: Patience) -> None:
    """Somebody waits, and gives up."""
    with pytest.raises(TimeoutError), patience.waiting():
        raise TimeoutError
    patience.waited_in_vain()


def test_nobody_is_turned_away_while_there_are_answers() -> None:
    patience = Patience(3600)

    with patience.waiting() as seconds:
        assert seconds == 3600
    assert not patience.turns_away()


def test_after_a_wait_in_vain_one_asks_and_the_others_are_turned_away() -> None:
    patience = Patience(3600)
    in_vain(patience)

    assert [patience.turns_away() for _ in range(3)] == [False, True, True]


def test_while_nobody_gets_an_answer_somebody_asks_again_and_again() -> None:
    patience = Patience(0)
    in_vain(patience)

    assert [patience.turns_away() for _ in range(3)] == [False] * 3


def test_an_answer_lets_everybody_in_again() -> None:
    patience = Patience(3600)
    in_vain(patience)
    patience.turns_away()

    with patience.waiting():
        pass

    assert not patience.turns_away()
