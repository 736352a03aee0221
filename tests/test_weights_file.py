"""The weight file: round trip, determinism, and everything that the loader refuses."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import tempfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from impls import models
from impls.spec import ModelSpec, SpecError, tensor_shapes
from impls.weights.file import (
    FORMAT,
    MAX_HEADER_BYTES,
    WeightFileError,
    load,
    read_metadata,
    save,
    spec_sha256,
    tensor_hashes,
    tensor_sha256,
)
from impls.weights.synthesis import synthesize
from impls.weights.variant import epsilons, for_images_of, with_constants

NAME = "cifar_resnet8"
MODEL = models.get(NAME)
WEIGHTS = synthesize(MODEL, 0)
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


@functools.cache
def content() -> bytes:
    """The bytes of the file that the tests damage."""
    with tempfile.TemporaryDirectory() as folder:
        return write(Path(folder) / "weights").read_bytes()


def write(path: Path, weights: dict[str, Any] = WEIGHTS, model: ModelSpec = MODEL) -> Path:
    save(path, model, weights, source="seed 0", preprocess=PREPROCESS, licence="CC0-1.0")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content())
    return path


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def assemble(path: Path, header: dict[str, Any] | bytes, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def edited(path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """The file with its header changed by ``edit``."""
    header, data = parts(path)
    edit(header)
    return assemble(path, header, data)


def refusal(path: Path, model: ModelSpec | None = MODEL) -> str:
    """The message with which the loader refuses the file; it names the file."""
    with pytest.raises(WeightFileError) as caught:
        load(path, model)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_round_trip(file: Path) -> None:
    """What is loaded is what was saved, bit for bit, in topological order, in float32 that can be written to."""
    loaded = load(file, MODEL)
    assert list(loaded.weights) == list(tensor_shapes(MODEL))
    for name, array in loaded.weights.items():
        assert array.dtype == np.float32
        assert array.tobytes() == WEIGHTS[name].tobytes()
        assert array.flags.writeable
    assert loaded.sha256 == tensor_sha256(WEIGHTS) == loaded.metadata["tensor_sha256"]
    assert loaded.model == MODEL


def test_metadata(file: Path) -> None:
    """The metadata holds the format, the whole spec, the preprocessing, the source and the licence, and can be read alone."""
    metadata = read_metadata(file)
    assert metadata["format"] == FORMAT == "levelfield-weights/1"
    assert hashlib.sha256(metadata["arch"].encode()).hexdigest() == spec_sha256(MODEL)
    assert json.loads(metadata["preprocess"]) == PREPROCESS
    assert (metadata["source"], metadata["licence"], metadata["classes"]) == ("seed 0", "CC0-1.0", "[]")


def test_model_found_by_metadata(file: Path) -> None:
    """Without a model the file says which it is."""
    assert load(file).model == MODEL


def test_same_content_gives_the_same_file(tmp_path: Path) -> None:
    """The bytes do not depend on the order of the mapping, nor on memory layout, nor on the run."""
    first = write(tmp_path / "first").read_bytes()
    shuffled = {name: np.asfortranarray(WEIGHTS[name]) for name in sorted(WEIGHTS)}
    assert write(tmp_path / "second", shuffled).read_bytes() == first
    assert hashlib.sha256(first).hexdigest() == "2d848a6c3bb250a8bde0769e1d5a1ed208edc57a266db1d212894f2801d04936"


def test_safetensors_reads_it(file: Path) -> None:
    """The public library reads the file, and its data begins on 8 bytes."""
    tensors = safetensors.numpy.load_file(file)
    assert tensors.keys() == WEIGHTS.keys()
    assert all(np.array_equal(tensors[name], WEIGHTS[name]) for name in WEIGHTS)
    assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0


def test_reads_what_safetensors_writes(file: Path, tmp_path: Path) -> None:
    """A file with the same metadata in the public library's own order is read too."""
    other = tmp_path / "other"
    safetensors.numpy.save_file(WEIGHTS, other, metadata=read_metadata(file))
    assert list(parts(other)[0]) != list(parts(file)[0])
    assert load(other, MODEL).sha256 == load(file, MODEL).sha256


def test_save_is_atomic(file: Path) -> None:
    """A refused save leaves the old file as it was and nothing beside it."""
    before = file.read_bytes()
    with pytest.raises(WeightFileError):
        write(file, WEIGHTS | {"conv1.weight": WEIGHTS["conv1.weight"] * np.float32("nan")})
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_readers_keep_the_file_that_they_opened(file: Path) -> None:
    """A save replaces the file instead of writing into it, so whoever reads the old one reads it whole."""
    before = file.read_bytes()
    with file.open("rb") as reader:
        write(file, WEIGHTS | {"fc.bias": WEIGHTS["fc.bias"] + np.float32(1)})
        assert reader.read() == before
    assert file.read_bytes() != before


def test_hashes_see_name_shape_and_bytes() -> None:
    """The hash of a tensor is that of its shape and bytes; the root changes with a name, a shape or one bit."""
    array = np.arange(6, dtype=np.float32)
    expected = hashlib.sha256(b"[6]" + array.tobytes()).hexdigest()
    assert tensor_hashes({"a": array}) == {"a": expected}
    assert tensor_sha256({"a": array}) == hashlib.sha256(f"{expected} a\n".encode()).hexdigest()
    flipped = array.copy()
    flipped.view(np.uint32)[3] ^= 1
    assert len({tensor_sha256(w) for w in ({"a": array}, {"b": array}, {"a": array.reshape(2, 3)}, {"a": flipped})}) == 4


def test_spec_hash_differs_between_models() -> None:
    """No two named models share a spec hash."""
    assert len({spec_sha256(models.get(name)) for name in models.NAMES}) == len(models.NAMES)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"extra.weight": np.zeros(3, np.float32)}, "holds the tensor 'extra.weight', which cifar_resnet8 does not have"),
        ({"fc.bias": None}, "lacks the tensor 'fc.bias' of cifar_resnet8"),
        ({"fc.bias": np.zeros(11, np.float32)}, "fc.bias: has the shape (11,), cifar_resnet8 needs (10,)"),
        ({"fc.bias": np.zeros(10)}, "fc.bias: is float64, must be float32"),
        ({"fc.bias": np.full(10, np.inf, np.float32)}, "fc.bias: 10 of 10 values are not finite, the first is inf at (0,)"),
        ({"bn1.running_var": np.full(16, -0.5, np.float32)}, "bn1.running_var: a variance is negative: -0.5 at (0,)"),
    ],
)
def test_save_refuses_by_name(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    """Nothing is written that the loader would refuse."""
    weights = {name: array for name, array in (WEIGHTS | change).items() if array is not None}
    with pytest.raises(WeightFileError) as caught:
        write(tmp_path / "w", weights)
    assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_save_refuses_wrong_number_of_classes(tmp_path: Path) -> None:
    """Class names must be as many as the logits."""
    with pytest.raises(WeightFileError, match="2 class names, cifar_resnet8 has 10 classes"):
        save(tmp_path / "w", MODEL, WEIGHTS, source="", preprocess={}, licence="", classes=["cat", "dog"])


def test_refuses_unknown_tensor(file: Path) -> None:
    """A tensor that the model does not have is named."""
    edited(file, lambda header: header.update({"bn1.num_batches_tracked": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}))
    assert "holds the tensor 'bn1.num_batches_tracked', which cifar_resnet8 does not have (1 such)" in refusal(file)


def test_refuses_missing_tensor(file: Path) -> None:
    """A tensor that is not there is named."""
    header, data = parts(file)
    del header["fc.bias"]
    assemble(file, header, data[:-40])
    assert "lacks the tensor 'fc.bias' of cifar_resnet8 (1 such)" in refusal(file)


def test_refuses_misshapen_tensor(file: Path) -> None:
    """A shape of the right size but the wrong form is refused with both shapes."""
    edited(file, lambda header: header["fc.weight"].update(shape=[64, 10]))
    assert refusal(file) == "fc.weight: has the shape (64, 10), cifar_resnet8 needs (10, 64)"


@pytest.mark.parametrize("dtype", ["F64", "F16", "BF16", "I64", "f32", "", None, ["F32"]])
def test_refuses_wrong_type(file: Path, dtype: object) -> None:
    """Any type but F32 is refused by name."""
    edited(file, lambda header: header["fc.weight"].update(dtype=dtype))
    assert refusal(file) == f"'fc.weight': its dtype is {dtype!r}, must be 'F32'"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_non_finite(file: Path, value: float) -> None:
    """A value that is no number is named with its place."""
    header, data = parts(file)
    begin = header["fc.bias"]["data_offsets"][0] + 4 * 3
    assemble(file, header, data[:begin] + np.float32(value).tobytes() + data[begin + 4 :])
    assert refusal(file) == f"fc.bias: 1 of 10 values are not finite, the first is {np.float32(value)} at (3,)"


def test_refuses_negative_variance(file: Path) -> None:
    """A negative running variance is named with its place."""
    header, data = parts(file)
    begin = header["layer3.0.bn2.running_var"]["data_offsets"][0] + 4 * 5
    assemble(file, header, data[:begin] + np.float32(-1e-3).tobytes() + data[begin + 4 :])
    assert refusal(file) == "layer3.0.bn2.running_var: a variance is negative: -0.0010000000474974513 at (5,)"


def test_refuses_changed_bytes(file: Path) -> None:
    """One flipped bit of one weight is seen by the hash."""
    content = bytearray(file.read_bytes())
    content[-4] ^= 1
    file.write_bytes(content)
    assert "was damaged or edited: the tensors have the hash" in refusal(file)


def test_refuses_truncated_files(file: Path) -> None:
    """A file cut anywhere is refused, and the message says that it is cut off or too short."""
    content = file.read_bytes()
    header_end = 8 + int.from_bytes(content[:8], "little")
    for length in (0, 7, 8, 9, header_end - 1, header_end, header_end + 1, len(content) - 1):
        file.write_bytes(content[:length])
        assert ("cut off" if length >= 8 else "too short") in refusal(file)


def test_refuses_bytes_after_the_data(file: Path) -> None:
    """Bytes that belong to no tensor are refused."""
    file.write_bytes(file.read_bytes() + b"\0")
    assert "has bytes that belong to no tensor" in refusal(file)


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_refuses_absurd_header_length(file: Path, length: int) -> None:
    """A header above safetensors' own limit is not even looked for."""
    file.write_bytes(length.to_bytes(8, "little") + b"{}")
    assert refusal(file) == f"is no safetensors file: claims a header of {length} bytes, at most 100000000 are allowed"


def test_refuses_header_longer_than_file(file: Path) -> None:
    """A header that the file cannot hold is refused before it is read."""
    file.write_bytes((50_000_000).to_bytes(8, "little") + b"{}")
    assert refusal(file) == "is cut off: says that its header has 50000000 bytes, the whole file has 10"


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"\xff\xfe", "its header cannot be read"),
        (b"{", "its header cannot be read"),
        (b"[]", "its header is not a JSON object"),
        (b'{"a":1,"a":2}', "the key 'a' stands in it twice"),
        (b'{"__metadata__":{"format":"x","format":"y"}}', "the key 'format' stands in it twice"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "its header cannot be read"),
        (b"[" * 200_000, "its header cannot be read"),
        (b'{"__metadata__":[]}', "__metadata__ is not an object of strings"),
        (b'{"__metadata__":{"format":1}}', "__metadata__ is not an object of strings"),
        (b"{}", "its format is None, not 'levelfield-weights/1'; `levelfield weights import` converts checkpoints"),
        (b'{"__metadata__":{"format":"pt"}}', "its format is 'pt'"),
        (b'{"__metadata__":{"format":"levelfield-weights/1"}}', "its metadata lacks arch, preprocess"),
    ],
)
def test_refuses_bad_headers(file: Path, header: bytes, says: str) -> None:
    """Headers that are no JSON, no object, ambiguous or of another format are refused in one sentence."""
    assert says in refusal(assemble(file, header, b""))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ([], "must be an object of dtype, shape and data_offsets"),
        ({"dtype": "F32", "shape": [10]}, "must be an object of dtype, shape and data_offsets"),
        ({"shape": [-10]}, "is not a list of at most 8 non-negative integers"),
        ({"shape": [10.0]}, "is not a list of at most 8 non-negative integers"),
        ({"shape": [True]}, "is not a list of at most 8 non-negative integers"),
        ({"shape": 10}, "is not a list of at most 8 non-negative integers"),
        ({"shape": [1] * 9}, "is not a list of at most 8 non-negative integers"),
        ({"shape": [2**63]}, "is not a list of at most 8 non-negative integers"),
        ({"shape": [2**62] * 8}, "its data_offsets"),
        ({"shape": [11]}, "takes 44 bytes"),
        ({"data_offsets": [0]}, "are not two non-negative integers"),
        ({"data_offsets": [-40, 0]}, "are not two non-negative integers"),
        ({"data_offsets": ["0", "40"]}, "are not two non-negative integers"),
        ({"data_offsets": [2**64, 2**64 + 40]}, "are not two non-negative integers"),
        ({"data_offsets": [40, 0]}, "span -40"),
        ({"data_offsets": [2**62, 2**62 + 40]}, "leaves a hole before it"),
    ],
)
def test_refuses_bad_entries(file: Path, entry: Any, says: str) -> None:
    """Absurd shapes and offsets are refused with the tensor's name."""
    edited(file, lambda header: header.update({"fc.bias": header["fc.bias"] | entry if entry and len(entry) == 1 else entry}))
    message = refusal(file)
    assert message.startswith("'fc.bias': ")
    assert says in message


def test_refuses_overlaps(file: Path) -> None:
    """Two tensors on the same bytes are refused."""
    edited(file, lambda header: header["bn1.bias"].update(data_offsets=header["bn1.weight"]["data_offsets"]))
    assert refusal(file).endswith("overlaps the tensor before it")


def test_refuses_holes(file: Path) -> None:
    """Bytes between tensors that belong to none are refused."""
    header, data = parts(file)
    for entry in list(header.values())[2:]:
        entry["data_offsets"] = [offset + 4 for offset in entry["data_offsets"]]
    begin = header["bn1.weight"]["data_offsets"][0]
    assemble(file, header, data[: begin - 4] + bytes(4) + data[begin - 4 :])
    assert refusal(file) == f"'bn1.weight': begins at byte {begin} of the data, expected {begin - 4}: leaves a hole before it"


def test_refuses_10_gigabytes_without_taking_them(file: Path) -> None:
    """A header that asks for 10 GB is refused with little memory, even when a sparse file does have the bytes."""
    header, data = parts(file)
    begin = header["fc.bias"]["data_offsets"][0]
    header["fc.bias"] = {"dtype": "F32", "shape": [2_500_000_000], "data_offsets": [begin, begin + 10_000_000_000]}
    for size in (None, begin + 10_000_000_000):
        assemble(file, header, data)
        if size is not None:
            with file.open("r+b") as sparse:
                sparse.truncate(8 + int.from_bytes(file.read_bytes()[:8], "little") + size)
        tracemalloc.start()
        message = refusal(file)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2_000_000
        assert ("is cut off" if size is None else "fc.bias: has the shape (2500000000,)") in message


def test_refuses_another_network(tmp_path: Path) -> None:
    """Tensors that fit are refused when the stored network computes another function; the difference is named."""
    pool = MODEL.body[-2]
    other = replace(MODEL, body=(*MODEL.body[:-2], replace(pool, name="pool"), MODEL.body[-1]))  # type: ignore[arg-type]
    write(tmp_path / "w", model=other)
    assert refusal(tmp_path / "w").endswith("a different network than cifar_resnet8: avgpool.name is 'pool' in the file, must be 'avgpool'")
    assert refusal(tmp_path / "w", None).endswith("is 'pool' in the file, must be 'avgpool'")


def test_own_constants(tmp_path: Path) -> None:
    """A file may hold the named network with epsilons and a number of classes of its own, and they are what is loaded."""
    classes, own = 7, dict.fromkeys(epsilons(MODEL), 1e-3) | {"bn1": 2e-5}
    model = with_constants(MODEL, classes, own)
    weights = WEIGHTS | {"fc.weight": WEIGHTS["fc.weight"][:7], "fc.bias": WEIGHTS["fc.bias"][:7]}
    write(tmp_path / "w", weights, model)
    for asked in (MODEL, None):
        loaded = load(tmp_path / "w", asked)
        assert (loaded.model, epsilons(loaded.model), loaded.model.classes) == (model, own, 7)
        assert loaded.weights["fc.weight"].shape[0] == 7
    assert "arch_sha256" not in read_metadata(write(tmp_path / "ordinary"))


def test_own_size_of_images(tmp_path: Path) -> None:
    """Of a network that averages its last map, whatever its size."""
    model = models.get("resnet18")
    weights = {name: np.ones(shape, np.float32) for name, shape in tensor_shapes(model).items()}
    sized = for_images_of(model, 288, 320)
    assert sized == replace(model, input_chw=(3, 288, 320))
    write(tmp_path / "w", weights, sized)
    for asked in (model, None):
        assert load(tmp_path / "w", asked).model == sized
    assert "arch_sha256" not in read_metadata(write(tmp_path / "ordinary", weights, for_images_of(model, 224, 224)))

    def unmark(header: dict[str, Any]) -> None:
        del header["__metadata__"]["arch_sha256"]

    message = refusal(edited(tmp_path / "w", unmark), model)
    assert message.endswith("a different network than resnet18: input_chw[1] is 288 in the file, must be 224")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("resnet50", (63, 224), "resnet50 takes images of 224 x 224, or others of 64 to 1024 pixels a side; not of 63 x 224"),
        ("resnet50", (224, 1025), "resnet50 takes images of 224 x 224, or others of 64 to 1024 pixels a side; not of 224 x 1025"),
        ("cifar_resnet20", (64, 64), "cifar_resnet20 takes images of 32 x 32; not of 64 x 64"),
        ("vgg16", (240, 240), "vgg16 takes images of 224 x 224; not of 240 x 240"),
        ("alexnet", (288, 288), "alexnet takes images of 224 x 224; not of 288 x 288"),
    ],
)
def test_images_of_which_a_network_is_another_or_none(name: str, size: tuple[int, int], message: str, tmp_path: Path) -> None:
    """Where one is asked for, and where a file says that it is for such images."""
    with pytest.raises(SpecError) as found:
        for_images_of(models.get(name), *size)
    assert str(found.value) == message
    if name != "cifar_resnet20":
        return

    def edit(header: dict[str, Any]) -> None:
        metadata = header["__metadata__"]
        metadata["arch"] = metadata["arch"].replace('"input_chw":[3,32,32]', '"input_chw":[3,64,64]')
        metadata["arch_sha256"] = hashlib.sha256(metadata["arch"].encode()).hexdigest()

    assert refusal(edited(write(tmp_path / "w"), edit)).endswith("cifar_resnet8 takes images of 32 x 32; not of 64 x 64")


@pytest.mark.parametrize("change", ["damaged", "unmarked"])
def test_other_constants_by_accident_are_refused(change: str, tmp_path: Path) -> None:
    """An epsilon that was changed behind the writer's back is no constant of the file's own."""
    path = write(tmp_path / "w", model=with_constants(MODEL, MODEL.classes, dict.fromkeys(epsilons(MODEL), 1e-3)))

    def edit(header: dict[str, Any]) -> None:
        metadata = header["__metadata__"]
        metadata["arch"] = metadata["arch"].replace('"eps":0.001', '"eps":0.002')
        if change == "unmarked":
            del metadata["arch_sha256"]

    message = refusal(edited(path, edit))
    assert (
        "arch in its metadata does not have the hash" if change == "damaged" else "bn1.eps is 0.002 in the file, must be 1e-05"
    ) in message


def test_own_constants_that_describe_no_network(tmp_path: Path) -> None:
    """The hash alone does not make a network of it."""

    def edit(header: dict[str, Any]) -> None:
        metadata = header["__metadata__"]
        metadata["arch"] = metadata["arch"].replace('"eps":1e-05', '"eps":-1.0')
        metadata["arch_sha256"] = hashlib.sha256(metadata["arch"].encode()).hexdigest()

    assert "arch in its metadata describes no network: BatchNorm2d.eps: -1.0 is out of range" in refusal(
        edited(write(tmp_path / "w"), edit)
    )


def test_refuses_stride_on_the_other_convolution(tmp_path: Path) -> None:
    """resnet50's weights fit resnet50_v1 tensor by tensor, and are refused."""
    model = models.get("resnet50")
    zeros = {name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(model).items()}
    write(tmp_path / "w", zeros, model)
    message = refusal(tmp_path / "w", models.get("resnet50_v1"))
    assert message == (
        "holds weights for 'resnet50', a different network than resnet50_v1: layer2.0.conv1.stride is 1 in the file, must be 2"
    )


def test_same_network_under_another_name(tmp_path: Path) -> None:
    """resnet18 and resnet18_v1 are one network, so either's file serves both."""
    model = models.get("resnet18")
    zeros = {name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(model).items()}
    write(tmp_path / "w", zeros, model)
    assert load(tmp_path / "w", models.get("resnet18_v1")).model.name == "resnet18_v1"


@pytest.mark.parametrize("arch", ["", "[]", "{}", '{"name":5}', '{"name":"' + "x" * 1000 + '"}', '{"name":"resnet19"}', "[" * 100_000])
def test_refuses_unusable_arch(file: Path, arch: str) -> None:
    """An arch that names no model is refused in one sentence."""
    edited(file, lambda header: header["__metadata__"].update(arch=arch))
    assert "arch in its metadata" in refusal(file, None) or "there is no model 'resnet19'" in refusal(file, None)


@pytest.mark.parametrize("preprocess", ["", "[]", "torchvision", "[" * 100_000])
def test_refuses_unusable_preprocess(file: Path, preprocess: str) -> None:
    """What is no object is refused in one sentence, before a tensor is read."""
    edited(file, lambda header: header["__metadata__"].update(preprocess=preprocess))
    assert refusal(file).startswith(("preprocess in its metadata cannot be read", "preprocess in its metadata is no object"))


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    """A folder and a name with nothing behind it are refused."""
    assert refusal(tmp_path) == "is not a file"
    assert refusal(tmp_path / "none") == "there is no such file"


@settings(max_examples=300, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_give_only_weight_file_errors(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever bytes change, the file is refused with WeightFileError or holds exactly the saved tensors."""
    path = tmp_path / "fuzzed"
    damaged = bytearray(content())
    header_end = 8 + int.from_bytes(damaged[:8], "little")
    place = st.integers(0, header_end + 64) | st.integers(0, len(damaged) - 1)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(place)
        stop = min(len(damaged), start + data.draw(st.integers(0, 12)))
        damaged[start:stop] = data.draw(st.binary(max_size=12) | st.sampled_from([b"null", b"[[", b"-1", b"1e9", b'"', b"{}", b"\\ud800"]))
    path.write_bytes(damaged)
    for model in (MODEL, None):
        with contextlib.suppress(WeightFileError):
            assert load(path, model).sha256 == tensor_sha256(WEIGHTS)


@settings(max_examples=200, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    where=st.sampled_from(["__metadata__", "fc.bias", "dtype", "shape", "data_offsets", "format", "arch"]),
)
def test_any_json_in_the_header_gives_only_weight_file_errors(tmp_path: Path, value: Any, where: str) -> None:
    """JSON of any form in any place of the header is refused with WeightFileError."""
    path = tmp_path / "w"
    path.write_bytes(content())
    header, data = parts(path)
    if where in ("dtype", "shape", "data_offsets"):
        header["fc.bias"][where] = value
    elif where in ("format", "arch"):
        header["__metadata__"][where] = value
    else:
        header[where] = value
    assemble(path, header, data)
    with pytest.raises(WeightFileError):
        load(path, MODEL)
