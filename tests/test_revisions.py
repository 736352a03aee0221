"""Revisions come out of git whole, and the hash of a timed path changes with its code and with nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from impls.implementation import ROOT, find
from suites.harness import revisions
from suites.harness.revisions import RevisionError, closure_sha256

FILES = {
    "impls/__init__.py": "",
    "impls/weights/file.py": "import json\n",
    "impls/weights/folding.py": "def fold():\n    return 1\n",
    "impls/spec.py": '"""What it is."""\nDEPTH = 20\n',
    "impls/aside.py": "DEPTH = 1\n",
    "impls/pytorch/__init__.py": "",
    "impls/pytorch/layers.py": 'from impls import spec\n\n\ndef conv():\n    """A layer."""\n    return spec.DEPTH  # as it is\n',
    "impls/pytorch/runtime.py": "from . import layers\n\n\ndef run():\n    return layers.conv()\n",
    "impls/pytorch/impl.toml": (ROOT / "tests/fakes/honest/impl.toml").read_text(encoding="utf-8"),
    "impls/pytorch/requirements-cpu.txt": "torch==2.13.0\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with one small implementation."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def closure(tree: Path) -> str:
    return closure_sha256(tree, find(tree)["pytorch"], "cpu")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("impls/spec.py", "What it is", "What it is not"),
        ("impls/pytorch/layers.py", "A layer.", "One layer."),
        ("impls/pytorch/layers.py", "# as it is", "# as it was"),
        ("impls/pytorch/layers.py", "def conv():\n", "def conv():\n\n"),
        ("impls/aside.py", "1", "2"),
    ],
)
def test_what_no_call_runs_through_changes_nothing(tree: Path, name: str, old: str, new: str) -> None:
    """Docstrings, comments, formatting, and modules that are not imported."""
    before = closure(tree)
    text = (tree / name).read_text(encoding="utf-8")
    assert old in text
    (tree / name).write_text(text.replace(old, new), encoding="utf-8")
    assert closure(tree) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("impls/spec.py", "20", "21"),
        ("impls/pytorch/layers.py", "return spec", "return 1 * spec"),
        ("impls/pytorch/runtime.py", "def run", "def walk"),
        ("impls/weights/file.py", "import json", "import tomllib"),
        ("impls/weights/folding.py", "return 1", "return 2"),
        ("impls/pytorch/impl.toml", "build_s = ", "build_s = 1"),
        ("impls/pytorch/requirements-cpu.txt", "2.13.0", "2.12.0"),
    ],
)
def test_what_a_call_runs_through_changes_the_hash(tree: Path, name: str, old: str, new: str) -> None:
    """Modules reached by absolute and relative imports, the manifest and the pins."""
    before = closure(tree)
    text = (tree / name).read_text(encoding="utf-8")
    assert old in text
    (tree / name).write_text(text.replace(old, new), encoding="utf-8")
    assert closure(tree) != before


def test_a_file_that_is_not_python_is_named(tree: Path) -> None:
    (tree / "impls/spec.py").write_text("DEPTH = = 20\n", encoding="utf-8")
    with pytest.raises(RevisionError, match=r"impls/spec\.py: line 1: "):
        closure(tree)


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
    assert (found.root / "impls/spec.py").read_text(encoding="utf-8") == FILES["impls/spec.py"]
    assert closure(found.root) != closure(tree)
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
