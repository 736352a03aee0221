"""Revisions come out of git whole."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from suites.harness import revisions
from suites.harness.revisions import RevisionError

SPEC = "DEPTH = 20\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with one module."""
    (tmp_path / "impls").mkdir()
    (tmp_path / "impls/spec.py").write_text(SPEC, encoding="utf-8")
    return tmp_path


@pytest.fixture
def repository(tree: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Git in that checkout, which is the one that the module is of."""
    monkeypatch.setattr(revisions, "ROOT", tree)
    monkeypatch.setenv("LEVELFIELD_CACHE", str(tmp_path_factory.mktemp("cache")))

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
        return subprocess.run(["git", "-C", tree, *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    return git


def test_a_revision_is_laid_out_once_as_it_was(repository: Callable[..., str], tree: Path) -> None:
    """Whatever the working tree has become since; equal trees share one folder."""
    first = repository("rev-parse", "HEAD")
    (tree / "impls/spec.py").write_text("DEPTH = 32\n", encoding="utf-8")
    found = revisions.revision("HEAD")
    assert found.commit == first
    assert (found.root / "impls/spec.py").read_text(encoding="utf-8") == SPEC
    repository("commit", "--quiet", "--allow-empty", "-m", "nothing")
    again = revisions.revision("HEAD")
    assert again.commit != first
    assert again.root == found.root


@pytest.mark.parametrize("name", ["no-such-branch", "--help", "", "HEAD:impls"])
def test_a_revision_that_does_not_exist(repository: Callable[..., str], name: str) -> None:
    with pytest.raises(RevisionError, match="there is no revision"):
        revisions.revision(name)


def test_a_revision_without_implementations(repository: Callable[..., str]) -> None:
    repository("rm", "-r", "--quiet", "impls")
    repository("commit", "--quiet", "--allow-empty", "-m", "gone")
    with pytest.raises(RevisionError, match="HEAD has no folder impls"):
        revisions.revision("HEAD")


def test_outside_of_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revisions, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(RevisionError, match="there is no revision 'HEAD' here: "):
        revisions.revision("HEAD")
