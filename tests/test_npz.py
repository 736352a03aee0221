"""Reading somebody's .npz file: every hostile one gets a sentence, before memory is taken."""

from __future__ import annotations

import io
import resource
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from suites.harness import npz


def accept(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Any shapes."""


def member(array_or_header: object, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """The bytes of an .npy file, of an array or of a header that says what it likes."""
    if isinstance(array_or_header, np.ndarray):
        stream = io.BytesIO()
        np.save(stream, array_or_header, allow_pickle=True)
        return stream.getvalue()
    header = str(array_or_header).encode() + b"\n"
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header + data


def archive(path: Path, members: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_arrays_come_back(tmp_path: Path) -> None:
    """Names, values, both memory orders, compressed or not."""
    arrays = {"logits": np.arange(6.0).reshape(2, 3), "layer1.0.out": np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4))}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        found = npz.load(tmp_path / "a.npz", accept)
        assert found.keys() == arrays.keys()
        assert all(np.array_equal(found[name], array) for name, array in arrays.items())


FLOATS = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"no zip"), "is no .npz file"),
        (lambda path: archive(path, {"a.txt": b""}), "'a.txt' is no array"),
        (lambda path: archive(path, {"a.npy": member(np.array([{}], object))}), "a: holds Python objects"),
        (lambda path: archive(path, {"a.npy": member(FLOATS % 10**15)}), f"takes {4 * 10**15} bytes, the file says 0"),
        (lambda path: archive(path, {"a.npy": member(FLOATS % 2, b"1234")}), "takes 8 bytes, the file says 4"),
        (lambda path: archive(path, {"a.npy": member(FLOATS % -1, b"")}), "a: has the shape"),
        (lambda path: archive(path, {"a.npy": member("__import__('os').abort()")}), "a: is no array that can be read"),
        (lambda path: archive(path, {"a.npy": member("(" * 9000)}), "a: is no array that can be read"),
        (lambda path: archive(path, {"a.npy": b"short"}), "a: is no array that can be read"),
        (lambda path: archive(path, {"a.npy": member(FLOATS % 0, version=b"\x09\x00")}), "a: is no array that can be read"),
        (lambda path: archive(path, {f"{i}.npy": b"" for i in range(npz.MOST_ARRAYS + 1)}), "more than the 10000 arrays"),
    ],
    ids=["no zip", "no array", "pickle", "petabyte", "cut", "negative", "code", "deep", "short", "version", "many"],
)
def test_hostile_files(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    """One sentence each that names the file."""
    path = tmp_path / "hostile.npz"
    make(path)
    with pytest.raises(npz.NpzError) as told:
        npz.load(path, accept)
    assert message in str(told.value)
    assert str(told.value).startswith(str(path))


def test_a_bomb_is_refused_by_its_shape(tmp_path: Path) -> None:
    """A few hundred kB that unpack to 400 MB: the shapes are judged first, and nothing is unpacked."""
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, logits=np.zeros((10, 10_000_000), np.float32))
    assert path.stat().st_size < 1_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def refuse(shapes: Mapping[str, tuple[int, ...]]) -> None:
        raise ValueError(f"logits: {shapes['logits']} is too large")

    with pytest.raises(npz.NpzError, match="is too large"):
        npz.load(path, refuse)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_damaged_data(tmp_path: Path) -> None:
    """A wrong checksum is told, not read."""
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(1000.0))
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(npz.NpzError, match=r"is no \.npz file that can be read"):
        npz.load(path, accept)
