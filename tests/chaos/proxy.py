"""A proxy between a client and PostgreSQL that knows where the messages of the protocol end.

It can cut the connection before or after the n-th message, in whichever direction that goes; fall
silent, as a network does that loses every packet; and answer a statement with an error of its own,
which the server then never sees.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from psycopg.conninfo import conninfo_to_dict

from app.database.urls import build_url

THROUGH_PROXY = "through the proxy"


@dataclass(frozen=True, slots=True)
class Cut:
    """Where to cut: before the n-th message (from 1) reaches the other side, or after it did."""

    message: int
    after: bool


@dataclass(slots=True)
class Error:
    """An error that is answered to the next statements whose text, in small letters, contains
    *statement*."""

    statement: bytes
    sqlstate: str
    times: int = 1
    happened: int = 0

    @property
    def is_fatal(self) -> bool:
        """Whether the server would close the connection with it."""
        return self.sqlstate[:2] in ("08", "57") and self.sqlstate != "57014"


class Proxy:
    """One proxy; connections through it are made with *url*."""

    def __init__(self, url: str) -> None:
        self._target = conninfo_to_dict(url)
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.seen = 0
        self.cut: Cut | None = None
        self.was_cut = False
        self.error: Error | None = None
        self.counting = False
        self.refusals = 0  # so many of the next connections end at once
        self.refusal = b""  # with this as the server's last word
        self.silent_at: bytes | None = None  # the next connection that says this hears no more

    @property
    def url(self) -> str:
        """The same database, through the proxy, as a URI."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        parameters = {
            **self._target,
            "host": "127.0.0.1",
            "port": port,
            "application_name": THROUGH_PROXY,
            "sslmode": "disable",
            "gssencmode": "disable",
        }
        return build_url({name: str(given) for name, given in parameters.items()})

    async def start(self) -> None:
        """It listens."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def close(self) -> None:
        """It is gone, and so are its connections."""
        assert self._server is not None
        self._server.close()
        await asyncio.sleep(0)  # for those that were accepted and have not begun
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def arm(self, cut: Cut | None) -> None:
        """Count messages from now on, over all connections, and cut once."""
        self.seen, self.cut, self.was_cut, self.counting = 0, cut, False, True

    def disarm(self) -> int:
        """Neither count nor cut any more; how many messages were seen."""
        self.counting = False
        return self.seen

    def freeze(self) -> None:
        """Nothing comes through any more, and nobody is told."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Everything comes through again, also what was sent meanwhile."""
        self._flowing.set()

    def forget(self) -> None:
        """New connections work; those there are stay silent for ever, and nobody is told.

        So it is behind a firewall that was restarted and drops what it does not know.
        """
        self._flowing.clear()
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        flowing = self._flowing
        try:
            if self.refusals > 0:
                self.refusals -= 1
                if self.refusal:
                    await _message(reader, typed=False)
                    writer.write(self.refusal)
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
                return
            await flowing.wait()
            upstream = await self._connect()
            link = _Link(self, flowing, (reader, writer), upstream)
            await link.run()
        except (OSError, asyncio.CancelledError):
            pass  # the server is away, which the client sees by the end of its connection
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = str(self._target["host"]), int(self._target.get("port") or 5432)
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    def falls_silent(self, message: bytes) -> bool:
        """Whether the connection that sends *message* hears nothing any more."""
        silent = self.silent_at is not None and self.silent_at in message
        if silent:
            self.silent_at = None
        return silent

    def cuts_before(self) -> bool:
        """One more message arrived; whether the connection is to be cut instead of passing it."""
        if not self.counting:
            return False
        self.seen += 1
        return self._hits(after=False)

    def cuts_after(self) -> bool:
        """The message was passed; whether the connection is to be cut now."""
        return self.counting and self._hits(after=True)

    def _hits(self, *, after: bool) -> bool:
        hit = not self.was_cut and self.cut == Cut(self.seen, after)
        self.was_cut = self.was_cut or hit
        return hit


class _Link:
    """One connection through the proxy."""

    def __init__(
        self,
        proxy: Proxy,
        flowing: asyncio.Event,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._flowing = flowing
        self._client, self._server = client, server
        self._swallowing = False  # up to Sync: the statement is answered with an error

    async def run(self) -> None:
        """Pass messages both ways until one side ends or the connection is cut."""
        pumps = [
            asyncio.create_task(self._from_client()),
            asyncio.create_task(self._from_server()),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for _, writer in (self._client, self._server):
                writer.transport.abort()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _from_client(self) -> None:
        reader, writer = self._client[0], self._server[1]
        # The first message has no type.
        message: bytes | None = await _message(reader, typed=False)
        while message is not None:
            await self._flowing.wait()
            if self._proxy.falls_silent(message):
                await asyncio.Event().wait()
            if self._swallows(message):
                if message[:1] in b"SQ" and not self._answer_error():
                    return
            elif not await self._pass(message, writer):
                return
            message = await _message(reader)

    async def _from_server(self) -> None:
        reader, writer = self._server[0], self._client[1]
        while (message := await _message(reader)) is not None:
            await self._flowing.wait()
            if not await self._pass(message, writer):
                return

    async def _pass(self, message: bytes, writer: asyncio.StreamWriter) -> bool:
        """Hand a message on; False: the connection was cut."""
        if self._proxy.cuts_before():
            return False
        writer.write(message)
        with suppress(ConnectionError):
            await writer.drain()
        return not self._proxy.cuts_after()

    def _swallows(self, message: bytes) -> bool:
        error = self._proxy.error
        begins = (
            error is not None
            and error.happened < error.times
            and message[:1] in b"PQ"
            and error.statement in message.lower()
        )
        self._swallowing = self._swallowing or begins
        return self._swallowing

    def _answer_error(self) -> bool:
        """Answer the swallowed statement; False: with the end of the connection."""
        error = self._proxy.error
        assert error is not None
        self._swallowing = False
        error.happened += 1
        severity = b"FATAL" if error.is_fatal else b"ERROR"
        text = f"injected {error.sqlstate}"
        self._client[1].write(error_message(severity, error.sqlstate, text))
        if error.is_fatal:
            return False
        self._client[1].write(b"Z" + (5).to_bytes(4) + b"I")
        return True


def error_message(severity: bytes, sqlstate: str, text: str) -> bytes:
    """The protocol's message about an error."""
    body = b"S%b\0V%b\0C%b\0M%b\0\0" % (severity, severity, sqlstate.encode(), text.encode())
    return b"E" + (len(body) + 4).to_bytes(4) + body


async def _message(reader: asyncio.StreamReader, *, typed: bool = True) -> bytes | None:
    """The next whole message; None at the end of the stream."""
    try:
        head = await reader.readexactly(5 if typed else 4)
        return head + await reader.readexactly(int.from_bytes(head[-4:]) - 4)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[Proxy]:
    """A running proxy to the server of *url*."""
    proxy = Proxy(url)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()
