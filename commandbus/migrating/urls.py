"""Connection URIs: reading one, building one, and showing one without its password."""

from __future__ import annotations

from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from commandbus.errors import DatabaseSetupError

SECRETS = frozenset(
    {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}
)
"""The connection parameters that are never shown."""


def parameters(url: str, called: str = "The URL of the database") -> dict[str, str]:
    """The connection parameters in *url*, a URI or libpq's keywords and values.

    Raises DatabaseSetupError when it is neither. Its message names *url* as *called*, and does not
    repeat the text, which may hold a password.
    """
    if not isinstance(url, str):
        raise TypeError(f"a URL is text, not {type(url).__name__}")
    try:
        values = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except (psycopg.ProgrammingError, UnicodeError):
        values = {}
    # libpq takes what stands before a "/" in a password for the port, and the rest for the
    # database. Refused here, or a message would show it.
    ports_are_numbers = all(part.isdigit() for part in values.get("port", "").split(",") if part)
    path = url.partition("://")[2].partition("?")[0].partition("/")[2]
    if not values or not ports_are_numbers or "@" in path:
        raise DatabaseSetupError(
            f"{called} is not a valid PostgreSQL URI; write"
            " postgresql://user:password@host:5432/database and percent-encode special characters"
        )
    return values


def build_url(values: dict[str, str], *, scheme: str = "postgresql") -> str:
    """A URI of the connection parameters *values*, each percent-encoded in its usual place."""
    rest = dict(values)
    login = quote(rest.pop("user", ""), safe="")
    if login and "password" in rest:  # a service file may name the user
        login += f":{quote(rest.pop('password'), safe='*')}"
    database = quote(rest.pop("dbname", ""), safe="")
    place = _network_place(rest)
    query = urlencode(rest, quote_via=quote, safe="*")
    return (
        f"{scheme}://{login}{'@' if login else ''}{place}/{database}{'?' if query else ''}{query}"
    )


def _network_place(rest: dict[str, str]) -> str:
    """Take host and port out of *rest* if they name a single network host."""
    host = rest.get("host", "")
    if not host or "/" in host or "," in host or "," in rest.get("port", ""):
        return ""
    del rest["host"]
    port = rest.pop("port", "")
    return f"{f'[{host}]' if ':' in host else quote(host, safe='')}{':' if port else ''}{port}"


def without_password(url: str) -> str:
    """*url* with every secret in it replaced, for messages and logs."""
    values = parameters(url)
    return build_url({name: "***" if name in SECRETS else values[name] for name in values})
