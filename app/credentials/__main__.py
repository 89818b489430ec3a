"""`python -m app.credentials`: who may sign in to the web application, and as what."""

from __future__ import annotations

from app.settings.signals import end_at_interrupts
from app.settings.streams import run_program, set_up_streams

if __name__ == "__main__":
    end_at_interrupts()
    set_up_streams()

import argparse
import getpass
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from app.credentials.file import CredentialsError, CredentialsFile
from app.credentials.users import ROLES, User, checked_name, hash_password, new_token, token_hash
from app.settings.configuration import ConfigurationError, Settings
from app.visible import terminal_line

_ROLE_NAMES = {role: name for name, role in ROLES.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 where it did what it says, else 1 and one line on stderr."""
    options = _parser().parse_args(arguments)
    run: Callable[[CredentialsFile, argparse.Namespace], None] = options.run
    try:
        run(CredentialsFile(_path(options)), options)
    except (ConfigurationError, CredentialsError, ValueError) as exc:
        print(f"error: {terminal_line(exc)}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, EOFError):
        print("error: nothing was changed", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m app.credentials",
        description=__doc__,
        epilog="The file is the one of CREDENTIALS_FILE (environment or .env). Web servers that run"
        " follow each change with their next request.",
    )
    parser.add_argument("--file", type=Path, help="the file to use instead of CREDENTIALS_FILE")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[..., None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        if run is not _list:
            command.add_argument("name", metavar="NAME", type=_name)
        return command

    new = add("add", _add, "Let somebody sign in; asks for the password, twice.")
    new.add_argument(
        "--role",
        choices=tuple(ROLES),
        required=True,
        help="viewer: may look; operator: may also send, retry, cancel and change settings",
    )
    password = add("password", _password, "Set another password; ends the sessions of the old one.")
    for command in (new, password):
        command.add_argument(
            "--password-stdin",
            action="store_true",
            help="read the password from standard input instead of asking for it",
        )
    add("token", _token, "Make a token for a program, beside those made before; shows it once.")
    add("revoke", _revoke, "Make every token of a user worthless.")
    add("remove", _remove, "Let somebody sign in no more; ends their sessions, too.")
    add("list", _list, "Show who may sign in.")
    return parser


def _path(options: argparse.Namespace) -> Path:
    if options.file is not None:
        return Path(options.file)
    path = Settings.from_env().credentials_file
    if path is None:
        raise CredentialsError("Set CREDENTIALS_FILE in the environment or .env, or give --file")
    return path


def _add(file: CredentialsFile, options: argparse.Namespace) -> None:
    def alter(users: dict[str, User]) -> None:
        if options.name in users:
            raise CredentialsError(f"{options.name} is there already")
        users[options.name] = User(options.name, ROLES[options.role], hashed)

    hashed = _asked_password(options)
    file.change(alter)
    print(f"{options.name} may sign in as {options.role}")


def _password(file: CredentialsFile, options: argparse.Namespace) -> None:
    def alter(users: dict[str, User]) -> None:
        users[options.name] = replace(_known(users, options.name), password_hash=hashed)

    _known({user.name: user for user in file.load()}, options.name)
    hashed = _asked_password(options)
    file.change(alter)
    print(f"{options.name} has another password; every session of theirs has ended")


def _token(file: CredentialsFile, options: argparse.Namespace) -> None:
    def alter(users: dict[str, User]) -> None:
        user = _known(users, options.name)
        hashes = (*user.token_hashes, token_hash(token))
        users[options.name] = replace(user, token_hashes=hashes)

    token = new_token()
    file.change(alter)
    print("Send it as Authorization: Bearer TOKEN. It is shown only now.", file=sys.stderr)
    print(token)


def _revoke(file: CredentialsFile, options: argparse.Namespace) -> None:
    def alter(users: dict[str, User]) -> None:
        users[options.name] = replace(_known(users, options.name), token_hashes=())

    file.change(alter)
    print(f"{options.name} has no token any more")


def _remove(file: CredentialsFile, options: argparse.Namespace) -> None:
    def alter(users: dict[str, User]) -> None:
        del users[_known(users, options.name).name]

    file.change(alter)
    print(f"{options.name} may not sign in any more")


def _list(file: CredentialsFile, _: argparse.Namespace) -> None:
    for user in sorted(file.load(), key=lambda each: each.name):
        count = len(user.token_hashes)
        tokens = f"{count} token{'' if count == 1 else 's'}" if count else "no token"
        print(f"{user.name}\t{_ROLE_NAMES[user.role]}\t{tokens}")


def _known(users: dict[str, User], name: str) -> User:
    if name not in users:
        raise CredentialsError(f"There is no user {name}; `add {name} --role ROLE` makes one")
    return users[name]


def _asked_password(options: argparse.Namespace) -> str:
    """The hash of the password that is given. Raises ValueError for one that is not acceptable."""
    if options.password_stdin:
        return hash_password(sys.stdin.readline().rstrip("\r\n"))
    first = getpass.getpass(f"Password of {options.name}: ")
    hashed = hash_password(first)
    if getpass.getpass("Once more: ") != first:
        raise CredentialsError("The two are not the same")
    return hashed


def _name(text: str) -> str:
    try:
        return checked_name(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


if __name__ == "__main__":
    sys.exit(run_program(main))
