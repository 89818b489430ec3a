"""Which code runs for which command."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from functools import wraps
from typing import Any, TypeVar
from uuid import UUID

from psycopg import AsyncConnection

from commandbus.checks import MAX_INTEGER, MAX_LEASE_SECONDS, MAX_SECONDS, check_number, check_whole
from commandbus.errors import HandlerAlreadyRegisteredError, PermanentCommandError
from commandbus.handoff import FollowUpId, FollowUps
from commandbus.models import ClaimedCommand, Command
from commandbus.names import MAX_TYPE, check_domain, check_text
from commandbus.texts import shown

Handler = Callable[[Command, "HandlerContext"], Awaitable[Any]]
H = TypeVar("H", bound=Handler)
NOT_ASYNC = "HANDLER_NOT_ASYNC"
MAX_AWAITS = 10
ExtendVisibility = Callable[[float], Awaitable[None]]


class HandlerContext:
    """What a handler knows of the attempt it runs in."""

    __slots__ = (
        "_command",
        "_conn",
        "_extend",
        "_follow_ups",
        "_is_cancel_requested",
        "_is_over",
        "attempt",
        "max_attempts",
    )

    def __init__(
        self,
        *,
        attempt: int,
        max_attempts: int,
        extend: ExtendVisibility,
        command: Command | None = None,
        conn: AsyncConnection[Any] | None = None,
        is_cancel_requested: Callable[[], bool] | None = None,
    ) -> None:
        check_whole("attempt", attempt, 1, MAX_INTEGER)
        check_whole("max_attempts", max_attempts, 1, MAX_INTEGER)
        if not callable(extend):
            raise TypeError(f"extend is a coroutine function, not {shown(extend)}")
        self.attempt = attempt
        self.max_attempts = max_attempts
        self._extend = extend
        self._command = command
        self._conn = conn
        self._is_cancel_requested = is_cancel_requested
        self._follow_ups: FollowUps | None = None
        self._is_over = False

    @property
    def cancel_requested(self) -> bool:
        """Whether an operator asks to cancel this command.

        A handler in steps may clean up and raise ``asyncio.CancelledError``; what it returns
        counts as its success. After the worker's ``cancel_grace`` its task is cancelled.
        """
        return self._is_cancel_requested is not None and self._is_cancel_requested()

    @property
    def conn(self) -> AsyncConnection[Any]:
        """The open transaction of a handler that is registered with ``transactional=True``.

        It commits with the success of this attempt, and is undone with everything else. Raises
        RuntimeError for other handlers.
        """
        if self._conn is None:
            raise RuntimeError("the handler is not registered with transactional=True")
        return self._conn

    def send(
        self,
        domain: str,
        command_type: str,
        command_id: UUID | None = None,
        data: Any = None,
        *,
        correlation_id: UUID | None = None,
        reply_to: str | None = None,
        max_attempts: int | None = None,
        delay: float | timedelta | None = None,
        batch_id: UUID | None = None,
        headers: Mapping[str, Any] | None = None,
        lane: str | None = None,
    ) -> FollowUpId:
        """Send a command when, and only if, this attempt's success is recorded: with it, at once.

        After a failure, a late result or a crash nothing was sent. The arguments are those of
        ``CommandBus.send``. A *command_id* left out is made of this command's id and the number of
        the call, so that another run of the same command sends the same one. Without
        *correlation_id* and *headers* those of this command go along (``headers={}``: none). Its
        ``causation_id`` is this command's id. Returns the id; there is nothing to wait for, but it
        may be awaited.

        In this command's own lane (``lane=command.lane``) it takes this command's place, before
        all that waits there; of several the first does, and the others stand directly behind it.
        A single one can do so for ever. Of two that go on in the same way there is room for 15
        generations (fewer of more); what comes then stands at the end of the lane.

        A command that is refused then (a known id with other content, an unknown domain, a queue
        that is gone) sends this command to the troubleshooting queue with the code
        FOLLOW_UP_REFUSED, and nothing of what it sent is there. Raises InvalidDomainError and
        InvalidCommandError for what can never be sent, and RuntimeError once the handler has
        returned.
        """
        return self._kept().send(
            domain,
            command_type,
            command_id,
            data,
            correlation_id,
            reply_to,
            max_attempts,
            delay,
            batch_id,
            headers,
            lane,
        )

    def publish(
        self,
        event_type: str,
        data: Any,
        key: str | None = None,
        *,
        headers: Mapping[str, Any] | None = None,
    ) -> FollowUpId:
        """Publish an event when, and only if, this attempt's success is recorded: with it, at once.

        It goes into the outbox, as with ``CommandBus.publish``, which says what *key* is. Without
        *headers* those of this command go along. Returns the event's id, which is the same when
        this command runs again. Raises InvalidCommandError for what cannot be stored, and
        RuntimeError once the handler has returned.
        """
        return self._kept().publish(event_type, data, key, headers)

    def _kept(self) -> FollowUps:
        if self._is_over:
            raise RuntimeError("the handler has ended, so what it sends now would be lost")
        if self._follow_ups is None:
            self._follow_ups = FollowUps(self._command)
        return self._follow_ups

    @property
    def is_last_attempt(self) -> bool:
        """Whether a transient failure now would end in the troubleshooting queue."""
        return self.attempt >= self.max_attempts

    async def extend_visibility(self, seconds: float) -> None:
        """Make the lease end *seconds* from now (rounded up to whole ones, at least 1).

        Raises LeaseLostError when the attempt is over already; the handler should stop then, since
        its outcome will not count. Raises ValueError for what is no number from 0 to a year.
        """
        check_number("seconds", seconds, 0, MAX_LEASE_SECONDS)
        await self._extend(seconds)


def context_of(
    claimed: ClaimedCommand,
    extend: ExtendVisibility,
    conn: AsyncConnection[Any] | None,
    is_cancel_requested: Callable[[], bool],
) -> HandlerContext:
    """The context of a worker's attempt, whose values need no check."""
    context = HandlerContext.__new__(HandlerContext)
    context.attempt = claimed.attempt
    context.max_attempts = claimed.max_attempts
    context._extend = extend
    context._command = claimed.command
    context._conn = conn
    context._is_cancel_requested = is_cancel_requested
    context._follow_ups = None
    context._is_over = False
    return context


def end_context(context: HandlerContext) -> FollowUps | None:
    """What the handler, which has ended, sent and published; it can send nothing any more."""
    context._is_over = True
    return context._follow_ups


class RegisteredHandler:
    """A handler with the way it wants to be run."""

    __slots__ = ("auto_renew", "run", "timeout", "transactional")

    def __init__(
        self,
        run: Handler,
        *,
        auto_renew: bool,
        timeout: float | None = None,
        transactional: bool = False,
    ) -> None:
        self.run = run
        self.auto_renew = auto_renew
        self.timeout = timeout
        self.transactional = transactional


class HandlerRegistry:
    """The handlers of a program, by domain and command type."""

    def __init__(self) -> None:
        self._handlers: dict[tuple[str, str], RegisteredHandler] = {}

    def handler(
        self,
        domain: str,
        command_type: str,
        *,
        auto_renew: bool = False,
        timeout: float | None = None,
        transactional: bool = False,
    ) -> Callable[[H], H]:
        """Register the decorated coroutine function for commands of this type.

        What it returns becomes the command's result. With *auto_renew* the worker makes the lease
        longer for as long as the handler runs, so that it may outlast the visibility timeout.
        After *timeout* seconds the handler is cancelled, and the attempt fails as a transient
        error; 0 means no limit, None the worker's ``handler_timeout``. What a plain function
        returns cannot be awaited, nor can a generator: the command goes to the troubleshooting
        queue, which says so.

        With *transactional* the handler gets ``context.conn``, an open transaction on a connection
        of its own, which is committed together with the command's success: what it writes there
        counts exactly once, so it need not be idempotent. After anything else (an error, a late
        result, a crash) the transaction is undone. It costs a commit for each command.

        Raises HandlerAlreadyRegisteredError for a second handler of the same type, ValueError for a
        timeout that is no number of seconds and for names that no domain or command can have, and
        TypeError for what cannot be called.
        """

        def register(function: H) -> H:
            self.register(
                domain,
                command_type,
                function,
                auto_renew=auto_renew,
                timeout=timeout,
                transactional=transactional,
            )
            return function

        return register

    def register(
        self,
        domain: str,
        command_type: str,
        function: Handler,
        *,
        auto_renew: bool = False,
        timeout: float | None = None,
        transactional: bool = False,
    ) -> None:
        """The same as :meth:`handler` without the decorator."""
        if not callable(function):
            raise TypeError(f"a handler is a coroutine function, not {shown(function)}")
        check_domain(domain)
        check_text("command_type", command_type, 1, MAX_TYPE)
        if timeout is not None:
            check_number("timeout", timeout, 0, MAX_SECONDS)
        key = (domain, command_type)
        if key in self._handlers:
            raise HandlerAlreadyRegisteredError(
                f'a handler for "{command_type}" in domain "{domain}" is registered already'
            )
        if not _is_async(function):
            function = _awaited(function)
        self._handlers[key] = RegisteredHandler(
            function, auto_renew=auto_renew, timeout=timeout, transactional=transactional
        )

    def get(self, domain: str, command_type: str) -> RegisteredHandler | None:
        """The handler for a command type, or None."""
        return self._handlers.get((domain, command_type))

    def command_types(self, domain: str) -> list[str]:
        """The types of a domain that have a handler, sorted."""
        return sorted(kind for of_domain, kind in self._handlers if of_domain == domain)


def _is_async(function: Handler) -> bool:
    """Whether it is a coroutine function, or an object that is called like one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        type(function).__call__
    )


def _awaited(function: Handler) -> Handler:
    """*function*, which may return something to await, or was meant to be a coroutine function."""

    @wraps(function)
    async def run(command: Command, context: HandlerContext) -> Any:
        answer: object = function(command, context)
        if inspect.isawaitable(answer):
            return await answer
        is_generator = inspect.isasyncgen(answer) or inspect.isgenerator(answer)
        what = "has a yield, so it did not run" if is_generator else "is a plain function, and ran"
        raise PermanentCommandError(
            NOT_ASYNC,
            f'The handler of "{command.command_type}" {what}; it must be a coroutine function'
            " (async def, without yield)",
        )

    return run


async def awaited_result(result: Any) -> Any:
    """What *result*, which a handler returned, ends in where it is to be awaited itself.

    So a forgotten ``await`` costs nothing: ``return work(command)``. Raises PermanentCommandError
    for what only ever gives something else to await.
    """
    for _ in range(MAX_AWAITS):
        if not inspect.isawaitable(result):
            return result
        result = await result
    raise PermanentCommandError(
        NOT_ASYNC, f"The handler returned something to await, {MAX_AWAITS} times over"
    )


default_registry = HandlerRegistry()
"""Holds what ``@handler`` registers; a Worker uses it that is given no other."""

handler = default_registry.handler
"""``@handler("domain", "CommandType")`` registers a coroutine function in the default registry."""
