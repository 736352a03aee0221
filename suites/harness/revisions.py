"""Revisions of the implementations: their sources out of git, and a hash of all that a timed call runs through.

What is compared between two revisions is ``impls/``: the networks, the pins of their environments and how weights are loaded. The
clock, the statistics and the oracle are those of the checkout that asks, for both sides.
"""

from __future__ import annotations

import ast
import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from impls.implementation import ROOT, Manifest
from suites.harness.environments import cache_root

LOADING = ("impls.weights.file", "impls.weights.folding")
"""What a worker imports beside an implementation's own ``runtime``."""


class RevisionError(ValueError):
    """A revision that is not there or holds no implementations; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Revision:
    """Implementations as of a commit: ``root`` holds ``impls/``. The working tree's commit is None."""

    name: str
    commit: str | None
    root: Path


def working_tree() -> Revision:
    """The checkout as it lies there."""
    return Revision("the working tree", None, ROOT)


def revision(name: str) -> Revision:
    """The implementations of a commit, branch or tag, laid out once in the cache folder.

    Raises:
        RevisionError: git has no such commit, or it has no ``impls``.
    """
    commit = (
        _git(f"there is no revision {name!r} here", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        .decode()
        .strip()
    )
    tree = _git(f"{name} has no folder impls", "rev-parse", "--verify", "--quiet", f"{commit}:impls").decode().strip()
    root = cache_root() / "revisions" / tree[:16]
    if not (root / "impls").is_dir():
        unfinished = root.with_name(f"{root.name}.{os.getpid()}")
        with tarfile.open(fileobj=io.BytesIO(_git(f"{name} cannot be read", "archive", commit, "impls"))) as archive:
            archive.extractall(unfinished, filter="data")
        try:
            unfinished.rename(root)
        except OSError:  # another process was faster
            if not (root / "impls").is_dir():
                raise
    return Revision(name, commit, root)


def _git(message: str, *arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise RevisionError("revisions come out of git, and there is no git on the PATH") from None
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().splitlines()
        raise RevisionError(f"{message}{f': {why[0]}' if why else ''}")
    return done.stdout


def closure_sha256(root: Path, manifest: Manifest, device: str) -> str:
    """A hash of what a timed call of an implementation runs through: modules reached by imports, its manifest and its pins.

    Modules count as their syntax trees without docstrings, so comments, docstrings and formatting change nothing.

    Raises:
        RevisionError: a module is not Python.
    """
    digest = hashlib.sha256()
    for path in sorted(set(_modules(root, f"{manifest.package}.runtime", *LOADING))):
        digest.update(f"{path.relative_to(root)}\0{_code(path)}\0".encode())
    for path in (root.joinpath(*manifest.package.split("."), "impl.toml"), manifest.devices[device].requirements):
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def _modules(root: Path, *names: str) -> Iterator[Path]:
    """The files of these modules and of all that they import below ``root``."""
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop()
        path = _file(root, name)
        if path is None or path in seen:
            continue
        seen.add(path)
        yield path
        parents = name.split(".")
        waiting += [".".join(parents[:length]) for length in range(1, len(parents))]
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        waiting += _imports(_parsed(path), package)


def _file(root: Path, name: str) -> Path | None:
    stem = root.joinpath(*name.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Absolute names of all that a module may import; a name taken from a package may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            above = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _code(path: Path) -> str:
    tree = _parsed(path)
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                setattr(node, field, [each for each in statements if not _is_text(each)])
    return ast.dump(tree)


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise RevisionError(f"{path}: line {error.lineno}: {error.msg}") from None


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
