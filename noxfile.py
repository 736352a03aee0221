"""The project's doors: thin sessions over the command ``levelfield`` and the checks. ``nox -l`` lists them."""

from __future__ import annotations

import nox

nox.needs_version = ">=2026.10.20"
# pip, not uv: uv ignores some indexes that pip is configured with, and both commands of the README promise pip alone.
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True
nox.options.sessions = ["tests"]

PROJECT = nox.project.load_toml("pyproject.toml")


def _install(session: nox.Session, *groups: str) -> None:
    session.install("--quiet", "-e", ".", *nox.project.dependency_groups(PROJECT, *groups))


def _command(session: nox.Session, *arguments: str, groups: tuple[str, ...] = ()) -> None:
    _install(session, *groups)
    session.run("levelfield", *arguments, *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Certify, measure and compare on this machine's CPU."""
    _command(session, "bench")


@nox.session(name="bench-gpu")
def bench_gpu(session: nox.Session) -> None:
    """The same on an NVIDIA GPU (docs/gpu.md)."""
    _command(session, "bench", "--device", "cuda", groups=("gpu",))


@nox.session
def certify(session: nox.Session) -> None:
    """The equivalence certificate alone."""
    _command(session, "certify")


@nox.session
def accuracy(session: nox.Session) -> None:
    """Top-1 and top-5 of a weight file on a dataset, in every implementation."""
    _command(session, "accuracy")


@nox.session
def regress(session: nox.Session) -> None:
    """The regression gate: `nox -s regress -- --base REVISION`."""
    _command(session, "regress")


@nox.session
def report(session: nox.Session) -> None:
    """Tables, figures and the page from stored records."""
    _command(session, "report")


@nox.session
def asv(session: nox.Session) -> None:
    """The history of stored records as a site of asv, and the steps in it."""
    _install(session, "asv")
    session.run("levelfield", "asv", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Everything that must hold: lint, types, and the tests with all four frameworks."""
    _install(session, "tests", "lint", "types")
    _lint(session)
    _types(session)
    # Much of a test is one thread starting a process: two files at a time take little more than half of the time, if the threads of
    # one that wait leave the core to the other.
    session.run("pytest", "--numprocesses", "2", "--dist", "loadfile", *session.posargs, env={"OMP_WAIT_POLICY": "PASSIVE"})


@nox.session
def lint(session: nox.Session) -> None:
    """Style, and who may import whom."""
    _install(session, "lint")
    _lint(session)


@nox.session
def types(session: nox.Session) -> None:
    """Static types."""
    _install(session, "tests", "types")
    _types(session)


def _lint(session: nox.Session) -> None:
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


def _types(session: nox.Session) -> None:
    session.run("mypy")
