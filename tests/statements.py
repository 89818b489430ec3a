"""A proxy that writes down every statement on its way to PostgreSQL."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from psycopg.conninfo import conninfo_to_dict

from app.database.urls import build_url


class Recorder:
    """Passes everything on between its clients and the server of a database.

    It counts what the server is asked to run, whoever asks and in whichever way: text and prepared
    statements, checks of a connection as well. Preparing a statement is no run of it.
    """

    def __init__(self, url: str) -> None:
        self._target = conninfo_to_dict(url)
        self._lock = threading.Lock()
        self._statements: list[str] = []
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._start(self._accept)

    @property
    def url(self) -> str:
        """The same database, through the proxy."""
        host, port = self._listener.getsockname()[:2]
        plain = {"host": host, "port": port, "sslmode": "disable", "gssencmode": "disable"}
        parameters = {**self._target, **plain}
        return build_url({name: str(value) for name, value in parameters.items()})

    def take(self) -> list[str]:
        """The statements since the last call, in the order in which they came."""
        with self._lock:
            taken, self._statements = self._statements, []
        return taken

    def close(self) -> None:
        """Close the proxy and every connection through it."""
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                client, _ = self._listener.accept()
                server = self._connect()
                self._sockets += [client, server]
                self._start(self._record, client, server)
                self._start(self._pass_on, server, client)

    def _connect(self) -> socket.socket:
        host, port = str(self._target["host"]), int(self._target.get("port") or 5432)
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while part := source.recv(65536):
                target.sendall(part)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _record(self, client: socket.socket, server: socket.socket) -> None:
        texts: dict[bytes, str] = {}  # of the prepared statements, by name
        pending = b""
        is_open = False
        with suppress(OSError):
            while part := client.recv(65536):
                pending += part
                while (message := _first_message(pending, is_open)) is not None:
                    pending = pending[len(message) :]
                    if is_open:
                        self._note(message, texts)
                    is_open = True  # the first message opens the session and has no type
                server.sendall(part)
        with suppress(OSError):
            server.shutdown(socket.SHUT_WR)

    def _note(self, message: bytes, texts: dict[bytes, str]) -> None:
        kind, body = message[:1], message[5:]
        if kind == b"P":
            name, text = body.split(b"\0")[:2]
            texts[name] = _one_line(text)
        elif kind in (b"Q", b"B"):
            first, second = [*body.split(b"\0"), b""][:2]
            statement = _one_line(first) if kind == b"Q" else texts.get(second, "unknown")
            with self._lock:
                self._statements.append(statement)

    def _start(self, target: object, *args: object) -> None:
        threading.Thread(target=target, args=args, daemon=True).start()  # type: ignore[arg-type]


@contextmanager
def recording(url: str) -> Iterator[Recorder]:
    """A recorder in front of the database of *url*, closed afterwards."""
    recorder = Recorder(url)
    try:
        yield recorder
    finally:
        recorder.close()


def _first_message(data: bytes, is_typed: bool) -> bytes | None:
    """The first whole message of *data*; None where more has to come."""
    start = 1 if is_typed else 0
    if len(data) < start + 4:
        return None
    length = start + int.from_bytes(data[start : start + 4])
    return data[:length] if len(data) >= length else None


def _one_line(text: bytes) -> str:
    return " ".join(text.decode().split())
