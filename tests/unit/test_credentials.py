"""The file of users: only its owner reads it, it holds no password, and changes count at once."""

from __future__ import annotations

import io
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.credentials import CredentialsError, CredentialsFile, Role, User
from app.credentials.__main__ import main
from app.credentials.users import hash_password
from tests.credentials import OPERATOR, PASSWORDS, TOKENS, VIEWER, credentials_file, remove

PASSWORD = "a long enough pässword"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users.json"


@pytest.fixture
def run(path: Path, monkeypatch, capsys):
    """Run one command of the program; its exit code, output and errors."""

    def run(*arguments: str, password: str = PASSWORD):
        monkeypatch.setattr("sys.stdin", io.StringIO(password + "\n"))
        code = main(["--file", str(path), *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_who_is_added_may_sign_in_with_the_password_and_nobody_else(run, path):
    code, said, _ = run("add", "Ada Lovelace", "--role", "operator", "--password-stdin")

    users = CredentialsFile(path).load()
    ada = users.with_password("Ada Lovelace", PASSWORD)
    assert (code, said) == (0, "Ada Lovelace may sign in as operator\n")
    assert ada is not None
    assert ada.role is Role.OPERATOR
    assert users.with_password("Ada Lovelace", PASSWORD + " ") is None
    assert users.with_password("Ada", PASSWORD) is None
    assert users.with_password("", "") is None


def test_the_file_is_its_owners_alone_and_holds_no_password_or_token(run, path):
    run("add", "ada", "--role", "viewer", "--password-stdin")
    _, token, _ = run("token", "ada")

    text = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert PASSWORD not in text
    assert token.strip() not in text
    assert json.loads(text)["users"][0]["password_hash"].startswith("scrypt:")


def test_a_token_is_shown_once_works_and_can_be_revoked(run, path):
    run("add", "ada", "--role", "viewer", "--password-stdin")
    first, second = (run("token", "ada")[1].strip() for _ in range(2))
    file = CredentialsFile(path)

    assert first != second
    for token in (first, second):
        user = file.current().with_token(token)
        assert user is not None
        assert user.name == "ada"
    assert file.current().with_token(first + "x") is None
    assert file.current().with_token("") is None

    assert run("revoke", "ada")[0] == 0
    assert file.current().with_token(first) is None


def test_another_password_takes_the_place_of_the_first(run, path):
    run("add", "ada", "--role", "viewer", "--password-stdin")
    before = next(iter(CredentialsFile(path).load()))
    run("password", "ada", "--password-stdin", password="another good password")

    users = CredentialsFile(path).load()
    assert users.with_password("ada", PASSWORD) is None
    after = users.with_password("ada", "another good password")
    assert after is not None
    assert after.fingerprint != before.fingerprint


def test_everybody_is_listed_until_removed(run):
    run("add", "ada", "--role", "operator", "--password-stdin")
    run("add", "bob", "--role", "viewer", "--password-stdin")
    run("token", "bob")

    assert run("list")[1] == "ada\toperator\tno token\nbob\tviewer\t1 token\n"
    run("remove", "ada")
    assert run("list")[1] == "bob\tviewer\t1 token\n"


@pytest.mark.parametrize(
    ("arguments", "password", "said"),
    [
        (("add", "ada", "--role", "viewer", "--password-stdin"), PASSWORD, "is there already"),
        (("add", "bob", "--role", "viewer", "--password-stdin"), "short", "12 characters"),
        (("add", "bob", "--role", "viewer", "--password-stdin"), "", "12 characters"),
        (("password", "nobody", "--password-stdin"), PASSWORD, "no user nobody"),
        (("token", "nobody"), "", "no user nobody"),
        (("remove", "nobody"), "", "no user nobody"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_and_changes_nothing(
    run, path, arguments, password, said
):
    run("add", "ada", "--role", "viewer", "--password-stdin")
    before = path.read_text()
    code, out, err = run(*arguments, password=password)

    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1
    assert path.read_text() == before


@pytest.mark.parametrize("name", ["", " ", "a:b", "a\nb", "a\x1b[2J", "x" * 61])
def test_names_that_could_mislead_are_refused(run, name, capsys):
    with pytest.raises(SystemExit) as refused:
        run("add", name, "--role", "viewer", "--password-stdin")

    assert refused.value.code == 2
    assert "printable" in capsys.readouterr().err


def test_a_file_that_others_may_open_is_refused(run, path):
    run("add", "ada", "--role", "viewer", "--password-stdin")
    path.chmod(0o640)

    code, _, err = run("list")
    assert code == 1
    assert f"chmod 600 {path}" in err
    with pytest.raises(CredentialsError, match="mode 0640"):
        CredentialsFile(path).load()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no file of users"),
        ("[]", "must be"),
        ('{"users": {}}', "must be"),
        ('{"users": [{}]}', "needs a name"),
        ('{"users": [{"name": "a:b"}]}', "colon"),
        ('{"users": [{"name": "ada", "role": "admin"}]}', "role of 'ada'"),
        ('{"users": [{"name": "ada", "role": "viewer", "password_hash": "md5:x"}]}', "scrypt"),
    ],
)
def test_a_file_with_anything_else_in_it_is_refused_with_the_reason(path, text, said):
    path.write_text(text)
    path.chmod(0o600)

    with pytest.raises(CredentialsError, match=said):
        CredentialsFile(path).load()


def test_a_name_that_stands_in_the_file_twice_is_refused(tmp_path):
    path = credentials_file(tmp_path)
    document = json.loads(path.read_text())
    document["users"] *= 2
    path.write_text(json.dumps(document))

    with pytest.raises(CredentialsError, match="twice"):
        CredentialsFile(path).load()


def test_a_change_of_the_file_counts_at_once_and_without_it_nobody_is_known(tmp_path):
    path = credentials_file(tmp_path)
    file = CredentialsFile(path)
    assert file.current().with_token(TOKENS[VIEWER]) is not None

    remove(path, VIEWER)
    assert file.current().with_token(TOKENS[VIEWER]) is None
    assert file.current().with_token(TOKENS[OPERATOR]) is not None

    path.chmod(0o644)
    assert len(file.current()) == 0
    path.chmod(0o600)
    assert len(file.current()) == 1
    path.unlink()
    assert len(file.current()) == 0


def test_changes_at_the_same_time_lose_nobody(path):
    hashed = hash_password(PASSWORD)

    def add(name: str) -> None:
        user = User(name, Role.VIEWER, hashed)
        CredentialsFile(path).change(lambda users: users.update({name: user}))

    names = [f"user-{number}" for number in range(24)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, names))

    assert sorted(user.name for user in CredentialsFile(path).load()) == sorted(names)


def test_a_user_does_not_show_its_hashes(tmp_path):
    users = CredentialsFile(credentials_file(tmp_path)).load()

    text = repr(list(users))
    assert OPERATOR in text
    assert "scrypt" not in text
    assert PASSWORDS[OPERATOR] not in text
