"""The version of the application that a worker shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from commandbus.app_version import app_version, git_revision

REVISION = "0123456789abcdef0123456789abcdef01234567"
SHORT = REVISION[:12]


@pytest.fixture
def git(tmp_path: Path) -> Path:
    folder = tmp_path / ".git"
    folder.mkdir()
    (folder / "HEAD").write_text("ref: refs/heads/main\n")
    return folder


def test_the_environment_comes_first():
    assert app_version({"APP_VERSION": " 1.4 "}) == "1.4"
    assert len(app_version({"APP_VERSION": "x" * 500}) or "") == 100


def test_the_revision_of_a_branch_is_found_from_a_folder_below(git, tmp_path):
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "refs" / "heads" / "main").write_text(REVISION + "\n")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)

    assert git_revision(below) == SHORT


def test_a_packed_branch_and_a_detached_head_are_found(git, tmp_path):
    (git / "packed-refs").write_text(f"# pack-refs\n{REVISION} refs/heads/main\n")
    assert git_revision(tmp_path) == SHORT

    (git / "HEAD").write_text(REVISION + "\n")
    assert git_revision(tmp_path) == SHORT


def test_a_worktree_has_its_own_head_and_the_branches_of_its_repository(git, tmp_path):
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "refs" / "heads" / "other").write_text(REVISION + "\n")
    own = git / "worktrees" / "w"
    own.mkdir(parents=True)
    (own / "HEAD").write_text("ref: refs/heads/other\n")
    (own / "commondir").write_text("../..\n")
    worktree = tmp_path / "w"
    worktree.mkdir()
    (worktree / ".git").write_text(f"gitdir: {own}\n")

    assert git_revision(worktree) == SHORT


@pytest.mark.parametrize("head", ["", "ref: refs/heads/none", "\x00\xff"])
def test_without_a_revision_there_is_no_version(git, tmp_path, head):
    (git / "HEAD").write_text(head, encoding="latin-1")

    assert git_revision(tmp_path) in (None, head)
