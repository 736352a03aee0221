"""Environments: built once from their pins, rebuilt when incomplete, and one sentence with its mend when pip fails."""

from __future__ import annotations

import dataclasses
import sys
import tomllib
from pathlib import Path

import pytest

from impls.implementation import Device, Manifest, find, read_manifest
from suites.harness import environments
from suites.harness.environments import EnvironmentBuildError
from tests.checkouts import ROOT

KNOWN = find()


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Manifest, Device]:
    """An implementation whose requirements are a local package, in a cache of its own, without any index."""
    monkeypatch.setenv("LEVELFIELD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    manifest = read_manifest(ROOT / "tests" / "fakes" / "honest" / "impl.toml")
    pins = tmp_path / "requirements-cpu.txt"
    pins.write_text("# none\n")
    device = dataclasses.replace(manifest.devices["cpu"], requirements=pins)
    return manifest, device


def test_built_once_and_again_when_incomplete(toy: tuple[Manifest, Device]) -> None:
    """An environment is installed once; one whose installation was cut off is thrown away and installed anew."""
    manifest, device = toy
    assert not environments.is_built(manifest, device)
    built = environments.build(manifest, device)
    place = environments.folder(manifest, device)
    assert built == place / "bin" / "python"
    assert environments.is_built(manifest, device)
    (place / "mark").touch()
    environments.build(manifest, device)
    assert (place / "mark").exists()
    (place / environments.COMPLETE).unlink()
    assert not environments.is_built(manifest, device)
    environments.build(manifest, device)
    assert not (place / "mark").exists()
    assert built.is_file()


def test_pins_decide_the_folder(toy: tuple[Manifest, Device]) -> None:
    """Other pins, another environment; the same pins elsewhere, the same one."""
    manifest, device = toy
    first = environments.folder(manifest, device)
    moved = device.requirements.with_name("elsewhere.txt")
    moved.write_bytes(device.requirements.read_bytes())
    assert environments.folder(manifest, dataclasses.replace(device, requirements=moved)) == first
    device.requirements.write_text("numpy==1.0\n")
    assert environments.folder(manifest, device) != first


def test_a_pin_that_cannot_be_had(toy: tuple[Manifest, Device]) -> None:
    """Where pip fails the error says what pip said and ends with the line that would mend it; nothing passes for built."""
    manifest, device = toy
    device.requirements.write_text("a-framework-that-is-not-there==9.9.9\n")
    with pytest.raises(EnvironmentBuildError) as caught:
        environments.build(manifest, device)
    python = environments.folder(manifest, device) / "bin" / "python"
    assert str(caught.value).startswith(
        "Plain NumPy could not be installed: ERROR: No matching distribution found for a-framework-that-is-not-there"
    )
    assert str(caught.value).endswith(f"; to mend it: {python} -m pip install -r {device.requirements}")
    assert not environments.is_built(manifest, device)


def test_the_second_clock_has_a_folder_of_its_own(toy: tuple[Manifest, Device]) -> None:
    """Where pip cannot have it the error says so; one that was installed to its end is not installed again."""
    python = Path(sys.executable)
    place = environments.second_clock_folder(python)
    assert place.parent == environments.folder(*toy).parent
    with pytest.raises(EnvironmentBuildError) as caught:
        environments.second_clock(python)
    assert str(caught.value).startswith(
        "the second clock could not be installed: ERROR: No matching distribution found for mlcommons-loadgen"
    )
    assert f"; to mend it: {python} -m pip install" in str(caught.value)
    place.mkdir()
    (place / environments.COMPLETE).touch()
    assert environments.second_clock(python) == place


def test_the_tests_hold_the_second_clock_that_is_pinned() -> None:
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]["tests"]
    assert environments.SECOND_CLOCK.read_text(encoding="utf-8").strip() in pins


def test_named_interpreters() -> None:
    """``current`` stands for all, a name for one, and the name wins in either order."""
    shell = Path("/bin/sh")
    assert environments.parse_named(("current",), KNOWN) == dict.fromkeys(KNOWN, Path(sys.executable))
    for values in (("current", f"jax={shell}"), (f"jax={shell}", "current")):
        named = environments.parse_named(values, KNOWN)
        assert named["jax"] == shell
        assert named["onnx"] == Path(sys.executable)
    assert environments.parse_named((), KNOWN) == {}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("curent", "--env curent: expected 'current' or IMPLEMENTATION=PYTHON with one of jax, onnx, pytorch, tensorflow"),
        ("jaks=/bin/sh", "--env jaks=/bin/sh: expected 'current'"),
        ("jax=/no/such/python", "--env jax=/no/such/python: there is no interpreter /no/such/python"),
        ("jax=", "--env jax=: there is no interpreter"),
    ],
)
def test_a_wrong_name_is_refused(value: str, message: str) -> None:
    """One sentence that quotes the flag and says what would do."""
    with pytest.raises(EnvironmentBuildError) as caught:
        environments.parse_named((value,), KNOWN)
    assert str(caught.value).startswith(message)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's variable wins over XDG's, XDG's over the home folder."""
    monkeypatch.setenv("LEVELFIELD_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    monkeypatch.setenv("HOME", "/c")
    assert environments.cache_root() == Path("/a")
    monkeypatch.delenv("LEVELFIELD_CACHE")
    assert environments.cache_root() == Path("/b/levelfield")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert environments.cache_root() == Path("/c/.cache/levelfield")
