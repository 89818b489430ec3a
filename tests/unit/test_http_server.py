"""The HTTP server in front of an application that answers at once: slow and doubtful requests."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from waitress import wasyncore

from app.server.http_server import BoundedServer
from tests.waiting import eventually_now

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
# What would be served as a second request if the first one's end were misread.
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
PATIENCE = 20.0


class Echo:
    """Answers with the body it was sent, and remembers which paths were asked for."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        self.paths.append(environ["PATH_INFO"])
        body = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]


@pytest.fixture
def echo() -> Echo:
    return Echo()


@contextlib.contextmanager
def serving(echo: Echo, **options: Any) -> Iterator[BoundedServer]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = BoundedServer(echo, listening, threads=2, **options)
        leaving = threading.Event()
        connections: Any = server._map  # type: ignore[attr-defined]

        def serve() -> None:
            while not leaving.is_set():
                wasyncore.loop(timeout=0.02, use_poll=True, map=connections, count=1)
            wasyncore.close_all(connections)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server
        finally:
            leaving.set()
            thread.join()
            server.task_dispatcher.shutdown()


@pytest.fixture
def server(echo: Echo) -> Iterator[BoundedServer]:
    with serving(echo, max_request_body_size=10_000) as started:
        yield started


def connect(server: BoundedServer, sent: bytes = b"") -> socket.socket:
    """A connection on which *sent* was sent."""
    assert server.socket is not None
    connection = socket.create_connection(server.socket.getsockname(), PATIENCE)
    connection.sendall(sent)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes; fails where it never does."""
    with connection:
        parts = iter(lambda: connection.recv(65_536), b"")
        return b"".join(parts)


def answer_to(server: BoundedServer, sent: bytes) -> bytes:
    """What comes for *sent*, of which the last asks to close."""
    return read_all(connect(server, sent))


LAST = HEAD + b"Connection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "body"),
    [
        (POST + b"Content-Length: 5\r\n\r\nhello", b"hello"),
        (
            POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
            b"hello",
        ),
        (POST + b"transfer-encoding:\tChunked \r\n\r\n0\r\nTrailer: x\r\n\r\n", b""),
        (POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\nhello", b"hello"),
        (HEAD + b"Expect: 100-continue\r\n\r\n", b""),
        (HEAD + b"Expect: something else\r\n\r\n", b""),
        (b"\r\n" + HEAD + b"\r\n", b""),
    ],
)
def test_a_request_that_can_be_read_in_one_way_is_served_and_the_next_one_too(
    server, echo, request_bytes, body
):
    answer = answer_to(server, request_bytes + LAST)

    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert body in answer
    assert echo.paths == ["/", "/"]


def test_http_1_0_is_served_and_closed(server):
    assert b" 200 OK" in answer_to(server, b"GET / HTTP/1.0\r\n\r\n")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Content-Length: 0\r\nTransfer-Encoding: identity\r\n", 400),
        (b"Content-Length: 5\r\nContent-Length: 5\r\n", 400),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        (b"Content-Length: 5, 5\r\n", 400),
        (b"Content-Length: +5\r\n", 400),
        (b"Content-Length: -5\r\n", 400),
        (b"Content-Length: 0x5\r\n", 400),
        (b"Content-Length: 5 5\r\n", 400),
        (b"Content-Length:\r\n", 400),
        (b"Content-Length: " + b"9" * 5_000 + b"\r\n", 400),
        (b"Content-Length: x\r\nExpect: 100-continue\r\n", 400),
        (b"Content-Length : 5\r\n", 400),
        (b"Content-Length: 99999999\r\n", 413),
        (b"Content-Length: 99999999\r\nExpect: 100-continue\r\n", 413),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Transfer-Encoding: chunked, chunked\r\n", 400),
        (b"Transfer-Encoding:\r\n", 400),
        (b"Transfer-Encoding: gzip\r\n", 501),
        (b"Transfer-Encoding: gzip, chunked\r\n", 501),
        (b"Transfer-Encoding: \x0bchunked\r\n", 400),
        (b"X-Folded: a\r\n b\r\n", 400),
        (b" Folded: a\r\n", 400),
        (b"X: a\rContent-Length: 5\r\n", 400),
        (b"X: a\nContent-Length: 5\r\n", 400),
        (b"X-Zero: a\x00b\r\n", 400),
        (b"No colon\r\n", 400),
        (b": no name\r\n", 400),
        (b"X: " + b"a" * 70_000 + b"\r\n", 431),
    ],
)
def test_a_request_that_can_be_read_in_two_ways_is_refused_and_closed(
    server, echo, headers, status
):
    answer = answer_to(server, POST + headers + b"\r\n0\r\n\r\n" + SMUGGLED)

    assert answer.split(b" ", 2)[1] == str(status).encode()
    assert answer.count(b"HTTP/1.") == 1
    assert b"\r\nConnection: close" in answer
    assert echo.paths == []


@pytest.mark.parametrize(
    "chunks",
    [
        b"-1\r\n",
        b"0x5\r\nhello\r\n",
        b"g\r\n",
        b" 5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b"5;\x00\r\nhello\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"3\r\nhello\r\n0\r\n\r\n",
        b"5\nhello\r\n",
    ],
)
def test_chunks_of_a_doubtful_size_are_refused_and_the_connection_closed(server, echo, chunks):
    sent = POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n" + SMUGGLED

    answer = answer_to(server, sent)

    assert answer.split(b" ", 2)[1] == b"400"
    assert answer.count(b"HTTP/1.") == 1
    assert echo.paths == []


@pytest.mark.parametrize(
    "first_line",
    [
        b"GET /",
        b"GET / HTTP/0.9",
        b"GET / HTTP/1.2",
        b"GET / HTTP/2.0",
        b"PRI * HTTP/2.0",
        b"get / HTTP/1.1",
        b"GET  / HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b"GET / http/1.1",
        b"G\x00T / HTTP/1.1",
        b"\x16\x03\x01\x02\x00",
    ],
)
def test_a_first_line_that_is_none_of_http_1_is_refused(server, echo, first_line):
    answer = answer_to(server, first_line + b"\r\nHost: localhost\r\n\r\n")

    assert answer.split(b" ", 2)[1] == b"400"
    assert echo.paths == []


@pytest.mark.parametrize(
    "half", [b"", b"POST", POST, POST + b"Content-Length: 5\r\n\r\nhel", HEAD + b"X: y"]
)
def test_others_are_answered_while_many_send_their_requests_by_halves(echo, half):
    with serving(echo, most_connections=20) as server, contextlib.ExitStack() as open_ones:
        for _ in range(60):
            open_ones.enter_context(connect(server, half))

        for _ in range(3):
            assert b" 200 OK" in answer_to(server, LAST)

        eventually_now(lambda: len(server.active_channels) <= 20, seconds=PATIENCE)


@pytest.mark.parametrize("half", [POST, POST + b"Content-Length: 5\r\n\r\nhel"])
def test_a_request_that_does_not_end_in_time_is_answered_408(echo, half):
    with serving(echo, head_seconds=0.1, request_seconds=0.1) as server:
        answer = answer_to(server, half)

    assert answer.split(b" ", 2)[1] == b"408"
    assert echo.paths == []


def test_a_request_that_trickles_is_not_waited_for_without_end(echo):
    with serving(echo, head_seconds=0.3) as server, connect(server) as slow:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # Each byte is a sign of life, and none of them the end.
            eventually_now(lambda: slow.send(b"G") and not server.active_channels, seconds=PATIENCE)
        eventually_now(lambda: not server.active_channels, seconds=PATIENCE)

    assert echo.paths == []
