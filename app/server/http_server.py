"""The HTTP server: waitress, with bounds for slow requests and no doubt about where a request ends.

waitress alone waits two minutes for each request that is not sent to its end, and takes a hundred
connections at most, so that a hundred half-sent requests keep everybody else out.
"""

from __future__ import annotations

import select
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher
from waitress.utilities import BadRequest

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

HEAD_SECONDS = 15.0
"""How long a request's first line and headers may take to come."""
REQUEST_SECONDS = 60.0
"""How long a request may take to come, body included."""
IDLE_SECONDS = 120
"""How long a connection is kept on which nothing is asked."""
LINGER_SECONDS = 2.0
"""How long what a refused caller still sends is read; closing before that loses the answer."""
LOOK_SECONDS = 1
MOST_CONNECTIONS = 500
MOST_BUSY = 100
"""How many more connections are accepted while all others are being served."""
MOST_HEADER_BYTES = 64 * 1024
_LONGEST_LENGTH = 18


class RequestTimeout(BadRequest):
    """A request did not come to its end in time."""

    code = 408
    reason = "Request Timeout"


class Parser(HTTPRequestParser):
    """Refuses what two programs could read as requests of different lengths (RFC 9112, 6)."""

    def __init__(self, adj: Adjustments) -> None:
        super().__init__(adj)
        self.began_at = time.monotonic()

    def parse_header(self, header_plus: bytes) -> None:
        try:
            _check_framing(header_plus)
            super().parse_header(header_plus)
        except BaseException:
            self.expect_continue = False  # or it would wait for the body
            raise
        if not self.chunked and not 0 < self.content_length < self.adj.max_request_body_size:
            self.expect_continue = False


def _check_framing(header: bytes) -> None:
    """Raises ParsingError, which is answered 400 and closes the connection."""
    first, *lines = header.split(b"\r\n")
    version = first.rstrip().rpartition(b" ")[2]
    if version not in (b"HTTP/1.0", b"HTTP/1.1"):
        raise ParsingError("This server speaks HTTP/1.0 and HTTP/1.1 only")
    given: dict[bytes, list[bytes]] = {b"content-length": [], b"transfer-encoding": []}
    for line in lines:
        if line.startswith((b" ", b"\t")):
            raise ParsingError("A header goes on in the next line")
        name, _, value = line.partition(b":")
        if name.lower() in given:
            given[name.lower()].append(value.strip(b" \t").lower())
    lengths, codings = given.values()
    if len(lengths) > 1 or any(len(length) > _LONGEST_LENGTH for length in lengths):
        raise ParsingError("Content-Length is invalid")
    if codings and lengths:
        raise ParsingError("Transfer-Encoding and Content-Length exclude each other")
    if codings and version == b"HTTP/1.0":
        raise ParsingError("HTTP/1.0 knows no Transfer-Encoding")
    if codings and (len(codings) > 1 or not codings[0] or codings[0].count(b"chunked") > 1):
        raise ParsingError("Transfer-Encoding is invalid")


class Channel(HTTPChannel):
    """A connection that knows since when it keeps us waiting, and lets a refusal be read."""

    parser_class = Parser
    lingers_until: float | None = None
    _was_refused = False
    # As waitress has them; its published types say otherwise.
    request: Parser | None
    requests: list[Parser]
    requests_lock: threading.Lock

    @property
    def is_busy(self) -> bool:
        """Whether a request of it is being served, or waits for that."""
        return bool(self.requests)

    @property
    def waits_since(self) -> float:
        """By the monotonic clock: when its unfinished request began, or it was last used."""
        request = self.request
        if request is not None:
            return request.began_at
        return time.monotonic() - (time.time() - self.last_activity)

    def service(self) -> None:
        if self.requests and self.requests[0].error:
            self._was_refused = True
        super().service()

    def handle_close(self) -> None:
        """After a refusal only our side is closed at first."""
        if self._was_refused and self.lingers_until is None and self.connected:
            self.lingers_until = time.monotonic() + LINGER_SECONDS
            self.will_close = False
            with suppress(OSError):
                cast(socket.socket, self.socket).shutdown(socket.SHUT_WR)
                return
        super().handle_close()

    def handle_read(self) -> None:
        if self.lingers_until is None:
            super().handle_read()
            return
        with suppress(OSError):
            self.recv(self.adj.recv_bytes)  # which closes at the end of what comes

    def drop(self) -> None:
        """Close immediately."""
        self.lingers_until = time.monotonic()
        self.handle_close()

    def is_overdue(self, head_seconds: float, request_seconds: float) -> bool:
        """Whether its request has not come in time."""
        request = self.request
        if request is None:
            return False
        limit = request_seconds if request.headers_finished else head_seconds
        return time.monotonic() - self.waits_since > limit

    def time_out(self) -> None:
        """Answer 408 to the unfinished request, and close."""
        with self.requests_lock:
            request = self.request
            if request is None or self.requests:
                return
            request.error = RequestTimeout("The request did not come to its end in time")
            request.completed = True
            self.request = None
            self.requests.append(request)
        self.server.add_task(cast(Any, self))


class BoundedServer(TcpWSGIServer):
    """Ends what comes too slowly; where connections run out, those that only wait make room.

    Once *is_stopped* says so `run` returns, at most LOOK_SECONDS later.
    """

    channel_class = Channel
    active_channels: dict[int, Channel]  # type: ignore[assignment]

    def __init__(
        self,
        application: WSGIApplication,
        listening: socket.socket,
        *,
        head_seconds: float = HEAD_SECONDS,
        request_seconds: float = REQUEST_SECONDS,
        most_connections: int = MOST_CONNECTIONS,
        is_stopped: Callable[[], bool] = bool,
        **options: Any,
    ) -> None:
        self._is_stopped = is_stopped
        self._head_seconds = head_seconds
        self._request_seconds = request_seconds
        self._most_connections = min(most_connections, _open_files() // 2)
        adjustments = Adjustments(
            sockets=[listening],
            ident=None,
            asyncore_use_poll=hasattr(select, "poll"),
            channel_timeout=IDLE_SECONDS,
            cleanup_interval=LOOK_SECONDS,
            connection_limit=self._most_connections + MOST_BUSY,
            max_request_header_size=MOST_HEADER_BYTES,
            **options,
        )
        dispatcher = ThreadedTaskDispatcher()
        dispatcher.set_thread_count(adjustments.threads)
        super().__init__(
            application,
            {},
            _sock=listening,
            dispatcher=dispatcher,
            adj=adjustments,
            bind_socket=False,
            sockinfo=(
                listening.family,
                listening.type,
                listening.proto,
                listening.getsockname(),
            ),
        )

    def maintenance(self, now: int) -> None:
        """Close what is idle, and what keeps us waiting; called every LOOK_SECONDS."""
        if self._is_stopped():
            raise KeyboardInterrupt
        super().maintenance(now)
        for channel in list(self.active_channels.values()):
            if channel.lingers_until is not None:
                if channel.lingers_until < time.monotonic():
                    channel.drop()
            elif channel.is_overdue(self._head_seconds, self._request_seconds):
                channel.time_out()

    def handle_accept(self) -> None:
        super().handle_accept()
        while len(self.active_channels) > self._most_connections:
            if not self._make_room():
                return

    def _make_room(self) -> bool:
        """Close the connection that has waited longest, of the address that has most of them."""
        waiting = [channel for channel in self.active_channels.values() if not channel.is_busy]
        if not waiting:
            return False
        addresses = Counter(channel.addr[0] for channel in waiting)
        [(greediest, _)] = addresses.most_common(1)
        of_it = [channel for channel in waiting if channel.addr[0] == greediest]
        min(of_it, key=lambda channel: channel.waits_since).drop()
        return True


def _open_files() -> int:
    """How many files this process may have open."""
    if sys.platform == "win32":
        return 2 * MOST_CONNECTIONS
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2 * MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else soft
