"""Several hosts and one server on one machine: network namespaces, and PostgreSQL with TLS.

Root on Linux is needed to make a namespace; elsewhere `needs` says what is missing.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg.rows import TupleRow

from tests.waiting import eventually_now

PORT = 5432  # of an address that only this test has
ROLE = "bus"
DATABASE = "commandbus"
# Set aside for tests of networks (RFC 2544), so nobody's real network is hidden.
_NETWORK = "198.18"


def needs() -> str | None:
    """What this machine lacks for several hosts, or None."""
    if importlib.util.find_spec("trustme") is None:
        return "certificates need the package trustme of requirements-dev.txt"
    if os.geteuid() != 0:
        return "making a network namespace needs root"
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return "making a network namespace needs the programs ip and unshare"
    if _server_programs() is None:
        return "no installed PostgreSQL server speaks TLS"
    tried = subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True, text=True)
    return (
        f"this machine allows no namespaces: {tried.stderr.strip()}" if tried.returncode else None
    )


@dataclass(frozen=True, slots=True)
class Host:
    """A host of its own: name, address and network; `outside` is the other end of its cable."""

    name: str
    address: str
    outside: str
    namespace: str
    cable: str

    @property
    def within(self) -> tuple[str, ...]:
        """The command that runs a program there, and becomes that program."""
        rename = 'hostname "$0" && exec "$@"'
        enter = ("ip", "netns", "exec", self.namespace, "unshare", "--uts")
        return (*enter, "sh", "-c", rename, self.name)

    def unplug(self) -> None:
        """From now on nothing reaches it or comes from it, and nobody is told."""
        _run("ip", "link", "set", self.cable, "down")


@contextmanager
def host(name: str) -> Iterator[Host]:
    """A host with a cable to this machine; gone after."""
    unique = secrets.token_hex(4)
    third, fourth = secrets.randbelow(256), secrets.randbelow(64) * 4
    made = Host(
        name=name,
        address=f"{_NETWORK}.{third}.{fourth + 2}",
        outside=f"{_NETWORK}.{third}.{fourth + 1}",
        namespace=f"commandbus-{unique}",
        cable=f"cb{unique}",
    )
    inner = f"{made.cable}i"
    in_it = ("ip", "-n", made.namespace)
    _run("ip", "netns", "add", made.namespace)
    try:
        _run("ip", "link", "add", made.cable, "type", "veth", "peer", "name", inner)
        _run("ip", "link", "set", inner, "netns", made.namespace)
        _run("ip", "address", "add", f"{made.outside}/30", "dev", made.cable)
        _run("ip", "link", "set", made.cable, "up")
        _run(*in_it, "address", "add", f"{made.address}/30", "dev", inner)
        _run(*in_it, "link", "set", inner, "up")
        _run(*in_it, "link", "set", "lo", "up")
        yield made
    finally:
        subprocess.run(["ip", "link", "delete", made.cable], capture_output=True, check=False)
        _run("ip", "netns", "delete", made.namespace)


@dataclass(frozen=True, slots=True)
class TlsServer:
    """A PostgreSQL that lets nobody in without TLS and a password."""

    password: str
    authority: Path
    """The certificate of who signed the server's."""

    def url(self, address: str, **changed: str) -> str:
        """How a program that sees the server at *address* reaches it; checks whom it talks to."""
        options = {"sslmode": "verify-full", "sslrootcert": str(self.authority), **changed}
        password = options.pop("password", self.password)
        query = "&".join(f"{name}={quote(text)}" for name, text in options.items())
        return f"postgresql://{ROLE}:{password}@{address}:{PORT}/{DATABASE}?{query}"


@contextmanager
def tls_server(folder: Path, addresses: list[str]) -> Iterator[TlsServer]:
    """A server with its data in *folder*, which becomes its own, that listens on *addresses*."""
    programs = _server_programs()
    assert programs is not None
    data = folder / "data"
    server = TlsServer(secrets.token_urlsafe(16), folder / "authority.pem")
    import trustme  # not in requirements.txt, with which the other suites run

    authority = trustme.CA()
    authority.cert_pem.write_to_path(server.authority)
    certificate = authority.issue_cert(*addresses)
    certificate.private_key_pem.write_to_path(folder / "server.key")
    certificate.cert_chain_pems[0].write_to_path(folder / "server.crt")
    (folder / "server.key").chmod(0o600)
    (folder / "password").write_text(secrets.token_urlsafe(16))
    for path in (folder, *folder.iterdir()):
        shutil.chown(path, "postgres", "postgres")

    _run(
        *(programs / "initdb", "--pgdata", data, "--username=postgres"),
        *("--auth=scram-sha-256", "--pwfile", folder / "password", "--encoding=UTF8", "--locale=C"),
        user="postgres",
    )
    (data / "pg_hba.conf").write_text("local all all trust\nhostssl all all all scram-sha-256\n")
    with (data / "postgresql.conf").open("a") as conf:
        conf.write(
            f"listen_addresses = '{','.join(addresses)}'\nport = {PORT}\nssl = on\n"
            f"ssl_cert_file = '{folder}/server.crt'\nssl_key_file = '{folder}/server.key'\n"
            f"unix_socket_directories = '{folder}'\nfsync = off\n"
        )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [programs / "postgres", "-D", data], user="postgres", stdout=log, stderr=log, cwd="/"
        )
    try:
        local = f"postgresql://postgres@/postgres?host={quote(str(folder))}&port={PORT}"
        conn = eventually_now(lambda: _connected(local))
        assert conn is not None
        with conn:
            conn.execute(f"create role {ROLE} login password '{server.password}'".encode())
            conn.execute(f"create database {DATABASE} owner {ROLE}".encode())
        yield server
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait()


def _connected(url: str) -> psycopg.Connection[TupleRow] | None:
    try:
        return psycopg.connect(url, autocommit=True)
    except psycopg.OperationalError:
        return None


def _server_programs() -> Path | None:
    """Where a PostgreSQL server is installed that was built with TLS; the newest."""
    for programs in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        linked = subprocess.run(["ldd", programs / "postgres"], capture_output=True, check=False)
        if b"libssl" in linked.stdout:
            return programs
    return None


def _run(*command: str | Path, user: str | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, user=user, cwd="/")
    assert done.returncode == 0, f"{command}: {done.stderr}"
