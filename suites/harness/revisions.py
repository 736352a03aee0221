"""Revisions of the implementations: their sources out of git.

What is compared between two revisions is ``impls/``: the networks, the pins of their environments and how weights are loaded. The
clock, the statistics and the oracle are those of the checkout that asks, for both sides.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from impls.implementation import ROOT
from suites.harness.environments import cache_root


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
