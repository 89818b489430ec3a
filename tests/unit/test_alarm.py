"""The alarm of an idle worker rings when the first thing is due, not for what was put off."""

from __future__ import annotations

import asyncio

from commandbus.alarm import Alarm

LATER = 3600.0


async def rings(alarm_of) -> bool:
    """Whether an alarm that was set so rings at once."""
    rang = asyncio.Event()
    alarm = Alarm(rang.set)
    alarm_of(alarm)
    try:
        async with asyncio.timeout(0.2):
            await rang.wait()
    except TimeoutError:
        return False
    finally:
        alarm.off()
    return True


def told_before_a_look(alarm: Alarm) -> None:
    alarm.told(0.01)
    alarm.looked(LATER)


def renewed(alarm: Alarm) -> None:
    alarm.looked(0.01)
    alarm.looked(LATER)


def nothing_due_any_more(alarm: Alarm) -> None:
    alarm.looked(0.01)
    alarm.looked(None)


def told_something_later(alarm: Alarm) -> None:
    alarm.told(0.01)
    alarm.told(LATER)


async def test_it_rings_for_what_it_was_told_even_when_a_look_did_not_see_it():
    assert await rings(told_before_a_look)
    assert await rings(told_something_later)


async def test_it_does_not_ring_for_what_a_later_look_found_put_off():
    assert not await rings(renewed)
    assert not await rings(nothing_due_any_more)


async def test_it_rings_at_once_for_what_was_due_before():
    assert await rings(lambda alarm: alarm.looked(-5.0))


async def test_it_rings_again_for_the_next():
    rang: list[int] = []
    twice = asyncio.Event()

    def ring() -> None:
        rang.append(len(rang))
        if len(rang) == 2:
            twice.set()

    alarm = Alarm(ring)
    alarm.told(0.01)
    alarm.looked(0.5)  # so much later that both are not due at once on a busy machine
    async with asyncio.timeout(10):
        await twice.wait()
    alarm.off()
