"""The readers of others' checkpoints: right for what PyTorch, safetensors and h5py write, and a sentence for everything else."""

from __future__ import annotations

import contextlib
import pickle
import pickletools
import struct
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from impls.weights import checkpoints
from impls.weights.checkpoints import hdf5, pickled, pth
from impls.weights.container import WeightFileError
from tests import foreign_checkpoints as foreign
from tests.foreign_checkpoints import GIVEN, by_torch

TENSORS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}


def refusal(path: Path) -> str:
    """The sentence, which names the file first."""
    with pytest.raises(WeightFileError) as caught:
        checkpoints.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def same(found: Any, expected: Any) -> bool:
    """Whether these are the same arrays by name, numbers and shapes."""
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


# --- What is right ---


@pytest.mark.parametrize("name", ["zip", "row", "protocol3", "protocol4", "protocol5", "half", "bfloat16", "double"])
def test_pytorch(name: str) -> None:
    """What ``torch.save`` writes, in both serialisations, every protocol and type of number."""
    assert same(checkpoints.read(by_torch() / f"{name}.pth").tensors, GIVEN)


@pytest.mark.parametrize("name", ["training", "training_row"])
def test_pytorch_training(name: str) -> None:
    """A training script's dictionary: its state dict is taken, its optimiser left."""
    assert same(checkpoints.read(by_torch() / f"{name}.pth").tensors, {f"module.{name}": array for name, array in GIVEN.items()})


def test_pytorch_views() -> None:
    """Strides, and several tensors of one storage."""
    found = checkpoints.read(by_torch() / "strided.pth").tensors
    assert np.array_equal(found["a"], GIVEN["a"])
    whole = np.arange(64, dtype=np.float32)
    assert same(checkpoints.read(by_torch() / "shared.pth").tensors, {"a": whole[8:20].reshape(3, 4), "b": whole[::2]})


def test_python_2(tmp_path: Path) -> None:
    """Python 2 wrote byte strings for names, and gave an ordered dictionary's items as a list."""
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x06Nt"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"QK\x00(K\x02K\x03t(K\x03K\x01tI00\nccollections\nOrderedDict\n)RtR"
    program = b"\x80\x02ccollections\nOrderedDict\n(](](U\x01w" + tensor + b"eetR."
    path = foreign.row(tmp_path / "old.pth", program, {"0": TENSORS["w"]})
    assert same(checkpoints.read(path).tensors, {"w": TENSORS["w"]})


def test_parameters_of_the_first_versions(tmp_path: Path) -> None:
    """PyTorch 0.1 kept parameters in state dicts, with hooks and flags beside the numbers."""
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x06NtQ"
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"K\x00K\x02K\x03\x86K\x03K\x01\x86tR"
    program = b"\x80\x02}U\x01wctorch.nn.parameter\nParameter\n" + tensor + b"\x85\x81\x88\x89}\x87bs."
    path = foreign.row(tmp_path / "old.pth", program, {"0": TENSORS["w"]})
    assert same(checkpoints.read(path).tensors, {"w": TENSORS["w"]})


def test_safetensors(tmp_path: Path) -> None:
    """What the public library writes, bfloat16 included."""
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({**TENSORS, "half": TENSORS["w"].astype(np.float16)}, path, metadata={"format": "pt"})
    assert same(checkpoints.read(path).tensors, {**TENSORS, "half": TENSORS["w"]})
    header = b'{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<2H", 0x3F80, 0xC000))
    assert same(checkpoints.read(path).tensors, {"x": np.array([1, -2], np.float32)})


@pytest.mark.parametrize("count", [1, 300])
def test_hdf5(count: int, tmp_path: Path) -> None:
    """Groups within groups, more of them than one node of a tree holds, compact arrays, and every type of number."""
    path = tmp_path / "weights.h5"
    expected: dict[str, Any] = {}
    with h5py.File(path, "w") as file:
        for number in range(count):
            expected[f"layer{number}/layer{number}/kernel:0"] = np.arange(6, dtype=np.float32).reshape(2, 3) + number
        for dtype in ("<f2", "<f8", "<i4", "<i8", "u1"):
            expected[f"types/{dtype[1:]}"] = np.arange(3).astype(dtype)
        expected["scalar"], expected["empty"] = np.float32(2).reshape(()), np.zeros((0, 3), np.float32)
        for name, array in expected.items():
            file[name] = array
        file["layer0"].attrs["weight_names"] = [b"x" * 200] * 300
        compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        compact.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((4,))
        h5py.h5d.create(file.id, b"compact", h5py.h5t.IEEE_F32LE, space, dcpl=compact).write(h5py.h5s.ALL, h5py.h5s.ALL, np.ones(4, "<f4"))
        expected["compact"] = np.ones(4, np.float32)
    assert same(checkpoints.read(path).tensors, expected)


def test_hdf5_of_the_newer_form(tmp_path: Path) -> None:
    """Headers and links of HDF5 1.8 and later, few enough links to lie in the header."""
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w", libver="latest") as file:
        for name, array in TENSORS.items():
            file[f"group/{name}"] = array
    assert same(checkpoints.read(path).tensors, {f"group/{name}": array for name, array in TENSORS.items()})


# --- What is none ---


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"hello, world", "begins with b'hello, w', as no checkpoint does; known are PyTorch's .pth, safetensors, Keras's .h5 and ONNX"),
        (b"\x1f\x8b\x08\x00 gzip", "begins with"),
        (b"\x08\x08\x12\x04onnx", "is an ONNX file"),
        (b"PK\x03\x04 and no more", "is a damaged archive: File is not a zip file"),
        (b"\x80\x02K\x01.", "is a pickle, but none of torch.save; save the state dict alone: torch.save(model.state_dict(), FILE)"),
        (b"\x80\x02", "its pickle is damaged"),
        (hdf5.SIGNATURE, "is cut off, or damaged"),
        (hdf5.SIGNATURE + b"\x09" + bytes(99), "has version 9 of the format"),
        (b"\x04" + bytes(7) + b'{"a"', "its header cannot be read"),
    ],
)
def test_other_files(data: bytes, says: str, tmp_path: Path) -> None:
    """The first bytes say what it is, or that it is nothing known."""
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    assert says in refusal(path)


def test_the_name_says_nothing(tmp_path: Path) -> None:
    """A checkpoint under another format's name is read as what it is."""
    path = tmp_path / "weights.h5"
    safetensors.numpy.save_file(TENSORS, path)
    assert checkpoints.read(path).format == "safetensors"


def test_no_file(tmp_path: Path) -> None:
    """Nothing, and a folder."""
    assert refusal(tmp_path / "absent") == "there is no such file"
    assert refusal(tmp_path) == "is not a file"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("module", "names 'torch.nn.modules.linear.Linear', which is no part of tensors; nothing of it was run"),
        ("list", "holds a list, not a state dict"),
        ("program", "is compressed, which torch.save never does"),
    ],
)
def test_pytorch_files_of_more_than_tensors(name: str, says: str) -> None:
    """Whole modules, programs, and what is no dictionary, with the way out."""
    message = refusal(by_torch() / f"{name}.pth")
    assert says in message
    assert message.endswith("save the state dict alone: torch.save(model.state_dict(), FILE)")


# --- What is hostile ---


@pytest.mark.parametrize("write", [foreign.archive, foreign.row])
def test_a_pickle_that_calls_the_shell(write: Callable[..., Path], tmp_path: Path) -> None:
    """Nothing is executed, and the sentence says what was tried. The attack itself works."""
    mark = tmp_path / "mark"
    program = pickle.dumps({"w": foreign.Evil(mark)}, 2)
    assert "names 'posix.system', which is no part of tensors; nothing of it was run" in refusal(write(tmp_path / "evil.pth", program))
    assert not mark.exists()
    pickle.loads(program)
    assert mark.exists()


NESTED = b"(" * 60 + b")q\x00" + (b"h\x00" * 8 + b"tq\x00") * 60
"""A tuple of nine references to a tuple of nine references ...: whoever hashes, compares or prints it never ends."""


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (b"cos\nsystem\n(S'id'\ntR.", "names 'os.system'"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x04pass\x85R.", "names 'builtins.exec'"),
        (b"(ios\nsystem\n.", "has the instruction INST"),
        (b"(cos\nsystem\no.", "names 'os.system'"),
        (b"ctorch\nFloatStorage\n)\x81.", "calls torch.FloatStorage with what it does not take"),
        (b"ctorch.nn.parameter\nParameter\nK\x01\x85R.", "calls torch.nn.parameter.Parameter with what it does not take"),
        (b"]}b.", "is damaged: it treats a list as a dict"),
        (b"\x82\x01.", "has the instruction EXT1"),
        (
            b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02K\x03K\x04tR.",
            "calls torch._utils._rebuild_tensor_v2 with what it does not take",
        ),
        (b"ctorch\nFloatStorage\nK\x01\x85R.", "calls torch.FloatStorage with what it does not take"),
        (b"K\x01K\x02R.", "calls what is no function"),
        (b"}K\x01\x85Q.", "names data by something else than a storage"),
        (b"}(K\x01t}s.", "has a tuple for a key"),
        (b"}" + NESTED + b"K\x01s.", "has a tuple for a key"),
        (NESTED + b".", "holds a tuple, not a state dict"),
        (b"}X\x01\x00\x00\x00w" + NESTED + b"s.", "holds 'w', a tuple, where a tensor was expected"),
        (b"ccollections\nOrderedDict\n" + NESTED + b"\x85R.", "calls collections.OrderedDict with what it does not take"),
        (b"]q\x00h\x00a.", "holds a list"),
        (b"h\x07.", "is damaged"),
        (b"K\x01", "is damaged"),
        (b"}(K\x01u.", "is damaged"),
        (b"a.", "is damaged"),
        (b"(R.", "is damaged"),
        (b"X\xff\xff\xff\x7fabc.", "is damaged"),
        (b"L" + b"9" * 5000 + b"L\n.", "is damaged"),
        (b"}X\x01\x00\x00\x00wK\x01s.", "holds 'w', a int, where a tensor was expected"),
        (b"}.", None),
    ],
)
def test_hostile_pickles(program: bytes, says: str | None, tmp_path: Path) -> None:
    """Names, instructions, circles, and towers of references: each its sentence, at once."""
    path = foreign.archive(tmp_path / "evil.pth", program)
    if says is None:
        assert checkpoints.read(path).tensors == {}
    else:
        assert says in refusal(path)


def view(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], elements: int = 6, dtype: bytes = b"FloatStorage") -> bytes:
    """A state dict of one tensor with any view of its storage."""
    identity = b"(X\x07\x00\x00\x00storagectorch\n" + dtype + b"\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + number(elements) + b"tQ"
    sizes = b"".join(b"(" + b"".join(map(number, each)) + b"t" for each in (shape, strides))
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + number(offset) + sizes + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s."


def number(value: int) -> bytes:
    """LONG1, which takes any size."""
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


@pytest.mark.parametrize("write", [foreign.archive, foreign.row])
@pytest.mark.parametrize(
    ("program", "says"),
    [
        (view(0, (2**40,), (0,)), "describes a tensor of shape"),
        (view(0, (2, 3), (2**40, 1)), "describes a tensor of shape"),
        (view(5, (2,), (1,)), "describes a tensor of shape"),
        (view(0, (1,) * 50, (1,) * 50), "describes a tensor of shape"),
        (view(-1, (2,), (1,)), "with what it does not take"),
        (view(0, (2, 3), (-1, 1)), "with what it does not take"),
        (view(0, (2,), (1, 1)), "with what it does not take"),
        (view(0, (2,), (1,), elements=2**62), "lacks the 4611686018427387904 numbers of '0'"),
        (view(0, (2,), (1,), elements=7), "lacks the 7 numbers of '0'"),
        (view(0, (2,), (1,), dtype=b"QUInt8Storage"), "names 'torch.QUInt8Storage'"),
    ],
)
def test_hostile_tensors(write: Callable[..., Path], program: bytes, says: str, tmp_path: Path) -> None:
    """No view reaches outside its storage or is larger than it, and no storage is other than the file says."""
    numbers = np.arange(6, dtype=np.float32)
    given: dict[str, Any] = {"data/0": numbers.tobytes()} if write is foreign.archive else {"0": numbers}
    assert says in refusal(write(tmp_path / "evil.pth", program, given))
    assert checkpoints.read(write(tmp_path / "good.pth", view(1, (2, 2), (2, 1)), given)).tensors["w"].tolist() == [[1, 2], [3, 4]]


def test_several_state_dicts(tmp_path: Path) -> None:
    """Whose weights are meant is not guessed."""
    path = foreign.archive(tmp_path / "two.pth", pickle.dumps({"state_dict": {}, "model": {}}, 2))
    assert refusal(path).startswith("holds several state dicts, state_dict and model; save the state dict alone")


def test_zip_bombs(tmp_path: Path) -> None:
    """Compressed members, two of one name, members that overlap, and a directory larger than the memory."""
    program = view(0, (2, 3), (3, 1))
    bomb = foreign.archive(tmp_path / "bomb.pth", program, {"data/0": bytes(10**8)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 10**6
    assert bounded(bomb).startswith("'archive/data.pkl' is compressed, which torch.save never does; save the state dict")

    good = foreign.archive(tmp_path / "good.pth", program, {"data/0": bytes(24)}).read_bytes()
    assert good.count(b"archive/data/0") == 2
    path = tmp_path / "twice.pth"
    with zipfile.ZipFile(path, "w") as written:
        for name in ("archive/data.pkl", "archive/data.pkx"):
            written.writestr(name, program)
    path.write_bytes(path.read_bytes().replace(b".pkx", b".pkl"))
    assert refusal(path) == "holds two files of one name"

    # The size in the directory and in the member's own header: 10^8 instead of 24.
    path.write_bytes(good.replace(struct.pack("<II", 24, 24), struct.pack("<II", 10**8, 10**8)))
    assert bounded(path) == "claims to hold more bytes than it has: its files overlap"

    entries = b"".join(struct.pack("<4s6H3I5H2I", b"PK\x01\x02", *(0,) * 16) for _ in range(200_000))
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 65535, 65535, len(entries), 4, 0)
    path.write_bytes(b"PK\x03\x04" + entries + end)
    assert bounded(path) == f"is a damaged archive: its directory would take {len(entries)} bytes"


def bounded(path: Path) -> str:
    """The refusal, which may take no more than 20 MB."""
    tracemalloc.start()
    try:
        return refusal(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2e7


@pytest.mark.parametrize(
    ("member", "data", "says"),
    [
        ("byteorder", b"big", "was written on a machine of another byte order"),
        ("byteorder", b"little" * 10**6, "was written on a machine of another byte order"),
        ("constants.pkl", b"", "is a zip archive, but no state dict"),
        ("data/0", bytes(20), "lacks the 6 numbers of '0'"),
    ],
)
def test_archives_that_do_not_fit(member: str, data: bytes, says: str, tmp_path: Path) -> None:
    """Another byte order, a program, and a storage of another size."""
    path = foreign.archive(tmp_path / "odd.pth", view(0, (2, 3), (3, 1)), {"data/0": bytes(24), member: data})
    assert says in refusal(path)


def test_a_long_pickle_is_not_read(tmp_path: Path) -> None:
    """A byte makes an object of fifty."""
    path = foreign.archive(tmp_path / "long.pth", b"\x80\x02" + b"]" * pickled.LARGEST + b".")
    assert bounded(path) == f"names its tensors in a pickle of more than {pickled.LARGEST} bytes"


def change(path: Path, edit: Callable[[h5py.File], object], **options: Any) -> Path:
    """An HDF5 file with one sound array and something else."""
    with h5py.File(path, "w", **options) as file:
        file["layer/kernel:0"] = TENSORS["w"]
        edit(file)
    return path


def circle(file: h5py.File) -> None:
    """A group that holds itself."""
    file["layer/again"] = file["layer"]


def elsewhere(file: h5py.File) -> None:
    """An array whose numbers lie in another file."""
    file.create_dataset("secret", shape=(8,), dtype="u1", external=[("/etc/passwd", 0, 8)])


def deep(file: h5py.File) -> None:
    """Forty groups within each other."""
    file["/".join("abcdefgh" * 5)] = TENSORS["w"]


def virtual(file: h5py.File) -> None:
    """An array put together of other files' arrays."""
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "data", shape=(4,))
    file.create_virtual_dataset("virtual", layout)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda file: file.update({"x": h5py.ExternalLink("/etc/passwd", "/")}), "has a link to another file, 'x', which is not followed"),
        (lambda file: file.update({"x": h5py.SoftLink("/layer")}), "has a soft link, which is not followed"),
        (circle, "names one of its parts twice, by a hard link or in a circle"),
        (elsewhere, "'secret' lies in another file, which is not read"),
        (virtual, "'virtual' is stored in chunks, which are not read"),
        (lambda file: file.create_dataset("x", data=np.zeros(99, "f4"), compression="gzip"), "'x' is compressed, which is not read"),
        (lambda file: file.create_dataset("x", data=np.zeros(99, "f4"), chunks=(9,)), "'x' is stored in chunks, which are not read"),
        (lambda file: file.create_dataset("x", shape=(10**9,), dtype="f4"), "'x' was never written"),
        (
            lambda file: file.create_dataset("x", data=np.zeros(3, ">f4")),
            "'x' holds something else than numbers in the order of this machine",
        ),
        (lambda file: file.create_dataset("x", data="text"), "'x' holds something else than numbers"),
        (lambda file: file.create_dataset("c", data=np.zeros(3, "c8")), "'c' holds something else than numbers"),
        (deep, "has groups more than 16 deep"),
        (lambda file: file.update({"t": np.dtype("f4")}), None),
    ],
)
def test_hdf5_beyond_what_is_read(edit: Callable[[h5py.File], object], says: str | None, tmp_path: Path) -> None:
    """Links, filters, chunks and other files, each by its name; a named type is not an array and is passed over."""
    path = change(tmp_path / "odd.h5", edit)
    if says is None:
        assert list(checkpoints.read(path).tensors) == ["layer/kernel:0"]
    else:
        assert says in bounded(path)


def test_hdf5_with_dense_links(tmp_path: Path) -> None:
    """More links than a header of the newer form holds, with the way out."""
    path = change(tmp_path / "dense.h5", lambda file: [file.create_group(f"g{number}") for number in range(20)], libver="latest")
    assert refusal(path) == "keeps the names of a group in a fractal heap, which is not read; write it anew with h5py's defaults"


def test_hdf5_sizes_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    """An array's shape against the bytes it has, and these against the file."""
    path = change(tmp_path / "weights.h5", lambda file: None)
    data = path.read_bytes()
    shape = struct.pack("<2Q", 2, 3)
    assert data.count(shape) == 2  # as it is, and as it may grow to
    path.write_bytes(data.replace(shape, struct.pack("<2Q", 2**20, 2**20)))
    assert "is cut off, or damaged" in bounded(path)
    path.write_bytes(data.replace(shape, struct.pack("<2Q", 2, 2)))
    assert "'layer/kernel:0': shape (2, 2) of float32 takes 16 bytes, the file says 24" in bounded(path)


# --- Damage of any kind ---


def examples() -> dict[str, bytes]:
    """A small file of every format."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        members = {f"data/{number}": tensor.tobytes() for number, tensor in enumerate(TENSORS.values())}
        found = {"zip": foreign.archive(path, foreign.pickled(TENSORS), members).read_bytes()}
        found["row"] = row(path).read_bytes()
        found["hdf5"] = change(path, lambda file: None).read_bytes()
        found["hdf5 of the newer form"] = change(path, lambda file: None, libver="latest").read_bytes()
        safetensors.numpy.save_file(TENSORS, path)
        found["safetensors"] = path.read_bytes()
    return found


def row(path: Path) -> Path:
    """The older serialisation of the tensors: its storages have a sixth field."""
    program = foreign.pickled(TENSORS).replace(b"tQ", b"NtQ")
    return foreign.row(path, program, {str(number): tensor for number, tensor in enumerate(TENSORS.values())})


EXAMPLES = examples()


def survives(data: bytes, path: Path) -> None:
    """Whatever the bytes are, they are arrays of numbers or one sentence, within a bound of memory."""
    path.write_bytes(data)
    tensors = {}
    with contextlib.suppress(WeightFileError):
        tensors = checkpoints.read(path).tensors
    assert sum(array.nbytes for array in tensors.values()) <= 16 * max(len(data), 1)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_sound(name: str, tmp_path: Path) -> None:
    """What is damaged below is whole before."""
    path = tmp_path / "x"
    path.write_bytes(EXAMPLES[name])
    found = checkpoints.read(path).tensors
    assert [array.tolist() for array in found.values()][:1] == [TENSORS["w"].tolist()] or same(found, TENSORS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_truncated(name: str, tmp_path: Path) -> None:
    """Cut off anywhere, a file is refused or has lost nothing that was read."""
    path, data = tmp_path / "x", EXAMPLES[name]
    path.write_bytes(data)
    whole = checkpoints.read(path).tensors
    for length in range(0, len(data), max(1, len(data) // 200)):
        path.write_bytes(data[:length])
        try:
            found = checkpoints.read(path).tensors
        except WeightFileError:
            continue
        assert same(found, whole)


KINDS = ("flip", "set", "insert", "delete", "copy")
EDITS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(KINDS), st.binary(min_size=1, max_size=9)),
    min_size=1,
    max_size=6,
)


def edited(data: bytes, edits: list[tuple[float, str, bytes]]) -> bytes:
    """The bytes with each edit made at its place, a share of the length."""
    for where, kind, value in edits:
        at = int(where * len(data))
        if kind == "flip":
            data = data[:at] + bytes([data[at] ^ (1 << (value[0] & 7))]) + data[at + 1 :] if data else value
        elif kind == "set":
            data = data[:at] + value + data[at + len(value) :]
        elif kind == "insert":
            data = data[:at] + value + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + len(value) :]
        else:
            data = data[:at] + data[int(value[0] / 256 * len(data)) :][:64] + data[at + 64 :]
    return data


@pytest.mark.parametrize("name", EXAMPLES)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS)
def test_damaged(name: str, edits: list[tuple[float, str, bytes]], tmp_path: Path) -> None:
    """Bytes changed, put in, taken out or copied."""
    survives(edited(EXAMPLES[name], edits), tmp_path / "x")


OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
WORDS = [
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n",
    b"X\x07\x00\x00\x00storage",
    b"K\x06",
]


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(st.one_of(st.sampled_from(OPCODES), st.sampled_from(WORDS), st.binary(max_size=4)), max_size=60))
def test_any_pickle(words: list[bytes], tmp_path: Path) -> None:
    """Any sequence of instructions."""
    survives(foreign.archive(tmp_path / "made", b"\x80\x02" + b"".join(words) + b".").read_bytes(), tmp_path / "x")


def test_the_readers_neither_unpickle_nor_import() -> None:
    """No source of theirs holds what could."""
    for module in (pickled, pth, hdf5):
        source = Path(module.__file__).read_text(encoding="utf-8")
        for word in ("import pickle\n", "pickle.load", "importlib", "__import__", "eval(", "exec(", "getattr("):
            assert word not in source, (module.__name__, word)
