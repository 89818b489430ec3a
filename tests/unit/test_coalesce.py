"""Calls that arrive together become one call for a set."""

from __future__ import annotations

import asyncio

import pytest

from app.testcommand.coalesce import Coalescer


class Sets:
    """Answers each key with its value doubled; remembers the sets, and may be held or fail."""

    def __init__(self):
        self.seen = []
        self.open = asyncio.Event()
        self.open.set()
        self.failures = []

    async def __call__(self, calls):
        self.seen.append(dict(calls))
        await self.open.wait()
        if self.failures:
            raise self.failures.pop(0)
        return {key: value * 2 for key, value in calls.items() if key != "unknown"}


@pytest.fixture
async def sets():
    return Sets()


async def until(condition):
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come true")


async def test_calls_of_one_pass_of_the_loop_form_one_set(sets):
    call = Coalescer(sets)
    answers = [call("a", 1), call("b", 2), call("unknown", 3)]
    assert await asyncio.gather(*answers) == [2, 4, None]
    assert sets.seen == [{"a": 1, "b": 2, "unknown": 3}]


async def test_calls_that_arrive_meanwhile_form_the_next_set(sets):
    call = Coalescer(sets)
    sets.open.clear()
    first = asyncio.create_task(call("a", 1))
    await until(lambda: sets.seen)
    others = [asyncio.create_task(call(key, 1)) for key in "bcd"]
    await asyncio.sleep(0)
    sets.open.set()
    assert await asyncio.gather(first, *others) == [2, 2, 2, 2]
    assert sets.seen == [{"a": 1}, {"b": 1, "c": 1, "d": 1}]


async def test_a_set_is_limited_and_holds_each_key_once(sets):
    call = Coalescer(sets, limit=2)
    answers = await asyncio.gather(*(call(key, n) for n, key in enumerate("aabc")))
    assert answers == [0, 2, 4, 6]
    assert sets.seen == [{"a": 0, "b": 2}, {"a": 1, "c": 3}]


async def test_an_error_reaches_each_caller_of_its_set_only(sets):
    call = Coalescer(sets)
    sets.failures.append(ValueError("no"))
    results = await asyncio.gather(call("a", 1), call("b", 1), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError]
    assert await call("c", 1) == 2


async def test_a_cancelled_caller_harms_nobody(sets):
    call = Coalescer(sets)
    sets.open.clear()
    under_way = asyncio.create_task(call("a", 1))
    beside = asyncio.create_task(call("b", 1))
    await until(lambda: sets.seen)
    waiting, last = asyncio.create_task(call("c", 1)), asyncio.create_task(call("d", 1))
    await asyncio.sleep(0)
    under_way.cancel()
    waiting.cancel()
    await asyncio.sleep(0)
    sets.open.set()
    assert await asyncio.gather(*[beside, last]) == [2, 2]
    assert sets.seen == [{"a": 1, "b": 1}, {"d": 1}]


async def test_faults_are_waited_out_while_somebody_waits(sets):
    call = Coalescer(sets, retried=(ConnectionError,))
    sets.failures += [ConnectionError(), ConnectionError()]
    assert await call("a", 1) == 2
    assert len(sets.seen) == 3


async def test_faults_that_nobody_waits_for_are_not_tried_again(sets):
    call = Coalescer(sets, retried=(ConnectionError,))
    sets.failures += [ConnectionError()] * 1000
    caller = asyncio.create_task(call("a", 1))
    await until(lambda: sets.seen)
    caller.cancel()
    await asyncio.sleep(0.2)
    assert len(sets.seen) == 1
    sets.failures.clear()
    assert await call("b", 1) == 2


async def test_a_fault_that_is_not_retried_reaches_the_caller(sets):
    call = Coalescer(sets, retried=(OSError,), not_retried=(ConnectionError,))
    sets.failures.append(ConnectionError())
    with pytest.raises(ConnectionError):
        await call("a", 1)


async def test_an_error_that_nobody_hears_is_logged(sets, caplog):
    call = Coalescer(sets)
    sets.open.clear()
    sets.failures.append(ValueError("no"))
    caller = asyncio.create_task(call("a", 1))
    await until(lambda: sets.seen)
    caller.cancel()
    await asyncio.sleep(0)
    sets.open.set()
    await until(lambda: caplog.messages)
    assert caplog.messages == ["set_call_failed_unheard"]
