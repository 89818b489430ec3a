"""Stop signals while a program is starting."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from app.settings.signals import EarlyStop, stop_signals


@pytest.fixture
def early_stop() -> Iterator[EarlyStop]:
    before = {number: signal.getsignal(number) for number in stop_signals()}
    stop = EarlyStop()
    stop.listen()
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_interrupts(early_stop: EarlyStop) -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert early_stop.came


def test_a_step_that_is_held_comes_to_its_end_before_the_interrupt(early_stop: EarlyStop) -> None:
    done: list[str] = []

    def step() -> None:
        with early_stop.held():
            signal.raise_signal(signal.SIGTERM)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        step()
    assert done == ["all of it"]


def test_an_error_of_the_step_counts_more_than_the_signal(early_stop: EarlyStop) -> None:
    def step() -> None:
        with early_stop.held():
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("of the step")

    with pytest.raises(ValueError, match="of the step"):
        step()
    assert early_stop.came
