"""One environment per implementation and kind of device, built from its pinned requirements and cached by their hash.

GPU wheels force one environment per framework (their CUDA libraries exclude each other); the CPU uses the same arrangement.
Environments live in the user's cache folder, so that every checkout and worktree with the same pins shares them.
An existing interpreter can be named instead, for containers and clusters.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from impls.implementation import Device, Manifest

COMPLETE = "levelfield-complete"
"""The file whose presence says that an environment was installed to its end."""


class EnvironmentBuildError(RuntimeError):
    """An environment that cannot be had; the message holds the line that would mend it."""


def cache_root() -> Path:
    """``$LEVELFIELD_CACHE``, else ``levelfield`` in the user's cache folder (XDG base directory specification)."""
    if named := os.environ.get("LEVELFIELD_CACHE"):
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "levelfield"


def folder(manifest: Manifest, device: Device) -> Path:
    """Where the environment of these pins, this Python and this machine type lies or will lie."""
    content = "\n".join((device.requirements.read_text(encoding="utf-8"), platform.python_version(), platform.machine()))
    return cache_root() / "environments" / f"{manifest.name}-{device.name}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def is_built(manifest: Manifest, device: Device) -> bool:
    """Whether the environment is there, whole."""
    return (folder(manifest, device) / COMPLETE).is_file()


def pip_line(python: Path, device: Device) -> str:
    """The command that installs what an implementation needs into this interpreter's environment, for people to copy."""
    return f"{python} -m pip install -r {device.requirements}"


def parse_named(values: tuple[str, ...], known: Mapping[str, Manifest]) -> dict[str, Path]:
    """``current`` or ``IMPLEMENTATION=PYTHON``, as given to ``--env``, by implementation.

    Raises:
        EnvironmentBuildError: an unknown implementation or an interpreter that is not there.
    """
    named: dict[str, Path] = {}
    for value in values:
        name, separator, python = value.partition("=")
        if value == "current":
            named = dict.fromkeys(known, Path(sys.executable)) | named
        elif not separator or name not in known:
            raise EnvironmentBuildError(f"--env {value}: expected 'current' or IMPLEMENTATION=PYTHON with one of {', '.join(known)}")
        elif (found := shutil.which(python)) is None:
            raise EnvironmentBuildError(f"--env {value}: there is no interpreter {python}")
        else:
            named[name] = Path(found).absolute()
    return named


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file, so that two runs do not build one environment at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(manifest: Manifest, device: Device) -> Path:
    """The environment's interpreter, installed first where it is not there yet.

    Raises:
        EnvironmentBuildError: venv or pip failed; the message ends with the line that would mend it.
    """
    place = folder(manifest, device)
    python = place / "bin" / "python"
    steps = ([sys.executable, "-m", "venv", str(place)], _pip_install(python, "-r", str(device.requirements)))
    _once(place, steps, manifest.title, pip_line(python, device))
    return python


SECOND_CLOCK = Path(__file__).with_name("requirements-second-clock.txt")


def second_clock_folder(python: Path) -> Path:
    """Where MLCommons LoadGen lies or will lie for an interpreter: beside the frameworks' environments, which stay as they are.

    Raises:
        EnvironmentBuildError: the interpreter does not run.
    """
    content = "\n".join((SECOND_CLOCK.read_text(encoding="utf-8"), software(python)[0], platform.machine()))
    return cache_root() / "environments" / f"second-clock-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def second_clock(python: Path) -> Path:
    """``second_clock_folder``, installed first where it is not there yet.

    Raises:
        EnvironmentBuildError: pip failed, or the interpreter does not run; the message ends with the line that would mend it.
    """
    place = second_clock_folder(python)
    step = _pip_install(python, "--target", str(place), "-r", str(SECOND_CLOCK))
    _once(place, [step], "the second clock", shlex.join(step))
    return place


def _pip_install(python: Path, *what: str) -> list[str]:
    return [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what]


def _once(place: Path, steps: Iterable[Sequence[str]], title: str, mend: str) -> None:
    """Take the steps that fill a folder, unless they were taken to their end before."""
    with _exclusive(place):
        if not (place / COMPLETE).is_file():
            shutil.rmtree(place, ignore_errors=True)
            for step in steps:
                try:
                    done = subprocess.run(step, capture_output=True, text=True, check=False)
                except OSError as error:
                    raise EnvironmentBuildError(f"cannot run {step[0]}: {error.strerror}") from None
                if done.returncode:
                    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip() and not line.startswith("WARNING")]
                    why = lines[-1].strip() if lines else f"exit code {done.returncode}"
                    raise EnvironmentBuildError(f"{title} could not be installed: {why}; to mend it: {mend}")
            (place / COMPLETE).touch()


@functools.cache
def software(python: Path) -> tuple[str, Mapping[str, str]]:
    """Version of an interpreter, and name and version of every package that it finds; asked of it without importing any.

    Raises:
        EnvironmentBuildError: it does not run.
    """
    question = (
        "import importlib.metadata as m, json, platform;"
        "print(json.dumps([platform.python_version(), {d.name: d.version for d in m.distributions()}]))"
    )
    try:
        done = subprocess.run(
            [python, "-c", question], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONSAFEPATH": "1"}
        )
        version, packages = json.loads(done.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        raise EnvironmentBuildError(f"{python} does not run as a Python interpreter") from None
    return version, packages


class Interpreters:
    """The Python of every implementation asked for.

    Environments that are missing are built in the background, two at a time, so that work with the first can begin;
    asking for one that is not there yet waits for it.
    """

    def __init__(self, manifests: Mapping[str, Manifest], names: Iterable[str], device: str, named: Mapping[str, Path]) -> None:
        self._named = named
        waiting = [name for name in names if name not in named]
        self.missing = tuple(name for name in waiting if not is_built(manifests[name], manifests[name].devices[device]))
        executor = ThreadPoolExecutor(2)
        self._built = {name: executor.submit(build, manifests[name], manifests[name].devices[device]) for name in waiting}
        executor.shutdown(wait=False)

    def __getitem__(self, name: str) -> Path:
        """The interpreter.

        Raises:
            EnvironmentBuildError: it could not be built.
        """
        return self._named[name] if name in self._named else self._built[name].result()
