"""The closure of a module, itself and all that it imports, as a hash: the code that a result depends on.

Modules count as their syntax trees without docstrings, so comments, docstrings and formatting change nothing.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from impls.implementation import Manifest

LOADING = ("impls.weights.file", "impls.weights.folding")
"""What a worker imports beside an implementation's own ``runtime``."""


class ClosureError(ValueError):
    """A module that is not Python; the message is for the user."""


@functools.cache
def closure_sha256(roots: tuple[Path, ...], *modules: str) -> str:
    """A hash of these modules and of all that they import, each from the first of ``roots`` that has it; what none has does not count.

    Raises:
        ClosureError: a module is not Python.
    """
    digest = hashlib.sha256()
    for name, code in sorted(_modules(roots, modules).items()):
        digest.update(f"{name}\0{code}\0".encode())
    return digest.hexdigest()


def implementation_sha256(roots: tuple[Path, ...], manifest: Manifest, device: str) -> str:
    """A hash of what a timed call of an implementation runs through: its ``runtime``, how weights are loaded, its manifest and its pins.

    Raises:
        ClosureError: a module is not Python.
    """
    digest = hashlib.sha256(closure_sha256(roots, f"{manifest.package}.runtime", *LOADING).encode())
    pins = manifest.devices[device].requirements
    for path in (pins.with_name("impl.toml"), pins):
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def _modules(roots: Sequence[Path], names: Sequence[str]) -> dict[str, str]:
    """The code of these modules and of all that they import, by name."""
    waiting, found = list(names), dict[str, str]()
    while waiting:
        name = waiting.pop()
        path = _file(roots, name)
        if path is None or name in found:
            continue
        parents = name.split(".")
        waiting += [".".join(parents[:length]) for length in range(1, len(parents))]
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        imports, found[name] = _read(path, path.read_bytes(), package)
        waiting += imports
    return found


def _file(roots: Sequence[Path], name: str) -> Path | None:
    stems = [root.joinpath(*name.split(".")) for root in roots]
    return next((path for stem in stems for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


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


_parser = threading.Lock()


@functools.cache
def _read(path: Path, data: bytes, package: str) -> tuple[tuple[str, ...], str]:
    """What a module of a package imports, and its code; every closure that holds it shares the one reading."""
    try:
        with _parser:  # CPython 3.11 counts a tree's depth for all threads together, and fails where two parse (python/cpython#106905)
            tree = ast.parse(data)
    except SyntaxError as error:
        raise ClosureError(f"{path}: line {error.lineno}: {error.msg}") from None
    imports = tuple(_imports(tree, package))
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                setattr(node, field, [each for each in statements if not _is_text(each)])
    return imports, ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
