"""The registry of handlers, and what a handler knows of its attempt."""

from __future__ import annotations

import pytest

from commandbus import HandlerContext, HandlerRegistry
from commandbus.errors import HandlerAlreadyRegisteredError


async def do_nothing(command, context):
    """A handler."""


async def refuse(seconds: float) -> None:
    raise AssertionError("not asked for")


def context(attempt: int, max_attempts: int) -> HandlerContext:
    return HandlerContext(attempt=attempt, max_attempts=max_attempts, extend=refuse)


def test_the_decorator_registers_and_gives_the_function_back():
    registry = HandlerRegistry()

    assert registry.handler("test", "DoIt")(do_nothing) is do_nothing
    found = registry.get("test", "DoIt")
    assert found is not None
    assert (found.run, found.auto_renew) == (do_nothing, False)


def test_a_handler_may_ask_for_renewal():
    registry = HandlerRegistry()
    registry.handler("test", "DoIt", auto_renew=True)(do_nothing)

    found = registry.get("test", "DoIt")
    assert found is not None
    assert found.auto_renew


def test_a_second_handler_for_a_type_is_refused():
    registry = HandlerRegistry()
    registry.register("test", "DoIt", do_nothing)

    with pytest.raises(HandlerAlreadyRegisteredError, match='"DoIt" in domain "test"'):
        registry.register("test", "DoIt", do_nothing)


def test_domains_and_registries_do_not_know_each_other():
    registry = HandlerRegistry()
    registry.register("test", "B", do_nothing)
    registry.register("test", "A", do_nothing)
    registry.register("other", "C", do_nothing)

    assert registry.command_types("test") == ["A", "B"]
    assert registry.command_types("nowhere") == []
    assert registry.get("other", "A") is None
    assert HandlerRegistry().get("test", "A") is None


@pytest.mark.parametrize(("attempt", "last"), [(1, False), (2, False), (3, True), (4, True)])
def test_a_handler_knows_its_last_attempt(attempt: int, last: bool):
    assert context(attempt, 3).is_last_attempt is last


async def test_extending_asks_the_worker():
    asked = []

    async def extend(seconds: float) -> None:
        asked.append(seconds)

    await HandlerContext(attempt=1, max_attempts=3, extend=extend).extend_visibility(12.5)

    assert asked == [12.5]


def test_a_negative_limit_of_time_is_refused():
    with pytest.raises(ValueError, match="timeout must be a number from 0 to 316224000"):
        HandlerRegistry().register("test", "DoIt", do_nothing, timeout=-1)
