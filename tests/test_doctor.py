"""What the doctor finds of interpreters that are named; the card's part is in test_gpu.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from suites.harness import doctor


def installed(site: Path, name: str, version: str) -> None:
    """A distribution's metadata in a folder, as pip writes it."""
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def of_onnx(python: str) -> doctor.Finding:
    (found,) = [each for each in doctor._frameworks((f"onnx={python}",)) if each.what == "ONNX Runtime"]
    return found


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime_gpu"])
def test_a_framework_has_a_package_for_each_kind_of_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Either of them in an interpreter that is named is the framework."""
    installed(tmp_path, name, "1.31.1")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = of_onnx(sys.executable)
    assert found.ok
    assert found.found == f"{name.replace('_', '-')} 1.31.1"


def test_an_interpreter_without_the_framework_is_told_with_the_command(tmp_path: Path) -> None:
    """Both names, and what installs it."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    found = of_onnx(str(bare))
    assert not found.ok
    assert found.found == f"onnxruntime or onnxruntime-gpu is not installed in {bare}"
    assert found.mend is not None
    assert found.mend.startswith(f"{bare} -m pip install -r ")
