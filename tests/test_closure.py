"""The hash of a closure changes with the code that is run through, and with nothing else."""

from __future__ import annotations

import ast
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from impls.implementation import ROOT, find
from suites.harness.closure import ClosureError, closure_sha256, implementation_sha256

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
    closure_sha256.cache_clear()
    return implementation_sha256((tree,), find(tree)["pytorch"], "cpu")


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
    with pytest.raises(ClosureError, match=r"impls/spec\.py: line 1: "):
        closure(tree)


def test_modules_come_from_the_first_folder_that_has_them(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As Python finds them where the revision that is examined lies before the checkout."""
    other = tmp_path_factory.mktemp("other")
    (other / "impls").mkdir()
    (other / "impls/spec.py").write_text("DEPTH = 32\n", encoding="utf-8")
    name = "impls.pytorch.runtime"
    assert len({closure_sha256((tree,), name), closure_sha256((other, tree), name)}) == 2
    assert closure_sha256((tree, other), name) == closure_sha256((tree,), name)


def test_one_thread_parses_at_a_time(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython 3.11 fails where two do."""
    parsing, together, parse = threading.Lock(), [], ast.parse

    def watched(source: bytes) -> ast.Module:
        together.append(not parsing.acquire(blocking=False))
        time.sleep(1e-3)
        if not together[-1]:
            parsing.release()
        return parse(source)

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(ast, "parse", watched)
        hashes = list(pool.map(lambda name: closure_sha256.__wrapped__((tree,), name), ["impls.pytorch.runtime"] * 2))
    assert len(set(hashes)) == 1
    assert len(together) > 4
    assert not any(together)
