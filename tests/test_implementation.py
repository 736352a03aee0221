"""Reading impl.toml: what it says, and every way in which it can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from impls.implementation import ROOT, Manifest, ManifestError, Mode, find, read_manifest

MANIFEST = """
title = "Toy"
distribution = "toy-framework"
default_mode = "eager"

[modes.eager]
title = "Toy eager"
build_s = 1

[modes.compile]
title = "Toy compile"
needs = ["c++", "g++"]
build_s = 60

[devices.cpu]
precisions = ["fp64", "fp32", "bf16"]
untimed = { fp64 = "only for proof" }
cannot = { tf32 = "no such unit" }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout with one implementation called toy."""
    toy = tmp_path / "impls" / "toy"
    toy.mkdir(parents=True)
    (toy / "requirements-cpu.txt").write_text("toy-framework==1.0\n")
    (toy / "impl.toml").write_text(MANIFEST)
    return toy


def manifest(folder: Path, old: str = "", new: str = "") -> Manifest:
    """The toy's manifest with the first ``old`` replaced."""
    assert old in MANIFEST
    (folder / "impl.toml").write_text(MANIFEST.replace(old, new, 1))
    return read_manifest(folder / "impl.toml")


def test_everything_is_read(folder: Path) -> None:
    """Name from the folder, the rest from the file, with empty tuples and mappings where it says nothing."""
    toy = manifest(folder)
    assert (toy.name, toy.title, toy.distribution, toy.default_mode) == ("toy", "Toy", "toy-framework", "eager")
    assert toy.modes == {"eager": Mode("eager", "Toy eager", (), 1.0), "compile": Mode("compile", "Toy compile", ("c++", "g++"), 60.0)}
    cpu = toy.devices["cpu"]
    assert cpu.requirements == folder / "requirements-cpu.txt"
    assert cpu.precisions == ("fp64", "fp32", "bf16")
    assert cpu.untimed == {"fp64": "only for proof"}
    assert cpu.cannot == {"tf32": "no such unit"}
    assert (toy.folds, toy.taps, toy.trains) == (True, True, False)
    assert manifest(folder, 'untimed = { fp64 = "only for proof" }\n').devices["cpu"].untimed == {}


@pytest.mark.parametrize("key", ["title", "distribution", "default_mode"])
def test_missing_keys_are_named(folder: Path, key: str) -> None:
    """A key that must be there is named."""
    line = next(line for line in MANIFEST.splitlines() if line.startswith(key))
    with pytest.raises(ManifestError, match=f"impl.toml: the key '{key}' is missing"):
        manifest(folder, f"\n{line}\n", "\n")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[modes.eager]\n", "[other.eager]\n", "unknown keys: other"),
        ("needs =", "wants =", "unknown keys: modes.compile.wants"),
        ("untimed =", "untmied =", "unknown keys: devices.cpu.untmied"),
        ("build_s = 1\n", "", "the key 'build_s' is missing"),
        ("build_s = 1\n", 'build_s = "soon"\n', "could not convert string to float: 'soon'"),
        ('[modes.eager]\ntitle = "Toy eager"\n', "[modes.eager]\n", "the key 'title' is missing"),
        ('precisions = ["fp64", "fp32", "bf16"]\n', "", "the key 'precisions' is missing"),
        ('title = "Toy"', 'titel = "Toy"', "the key 'title' is missing"),
        ('title = "Toy"', 'title = "Toy"\ntrains = "yes"', "trains = 'yes' is neither true nor false"),
        ('title = "Toy"', 'title = "Toy"\ncolour = "red"\nanswer = 42', "unknown keys: answer, colour"),
        ('default_mode = "eager"', 'default_mode = "fast"', "default_mode 'fast' is not one of its modes: eager, compile"),
        ('"bf16"]', '"bf15"]', "devices.cpu names precisions that do not exist: bf15"),
        ("{ fp64 =", "{ fp63 =", "devices.cpu names precisions that do not exist: fp63"),
        ("{ tf32 =", "{ tf33 =", "devices.cpu names precisions that do not exist: tf33"),
        ("[devices.cpu]", "[devices.tpu]", "requirements-tpu.txt is missing"),
        ("[devices.cpu]", "[devices.cpu", "impl.toml: "),
        ('precisions = ["fp64", "fp32", "bf16"]', "precisions = 5", "impl.toml: "),
    ],
)
def test_faults_are_refused(folder: Path, old: str, new: str, says: str) -> None:
    """Each fault gives a ManifestError that names the file and the fault."""
    with pytest.raises(ManifestError) as caught:
        manifest(folder, old, new)
    assert str(caught.value).startswith(str(folder / "impl.toml"))
    assert says in str(caught.value)


GPU = """
[devices.cuda]
distribution = "toy-gpu"
precisions = ["fp32", "bf16"]
short = ["graph"]

[devices.cuda.modes.graph]
title = "Toy graph"
build_s = 2
cannot = { bf16 = "no graph of it" }

[devices.cuda.rooflines]
eager = "eager"
compile = "compile"
graph = "fused"

[devices.cuda.training_rooflines]
graph = "compile"
"""


def with_gpu(folder: Path, old: str = "", new: str = "") -> Manifest:
    """The toy's manifest with a GPU, and the first ``old`` in that replaced."""
    assert old in GPU
    (folder / "requirements-cuda.txt").write_text("toy-gpu==1.0\n")
    (folder / "impl.toml").write_text(MANIFEST + GPU.replace(old, new, 1))
    return read_manifest(folder / "impl.toml")


def test_a_device_has_modes_of_its_own(folder: Path) -> None:
    """Beside those of every device; its wheel has a name of its own; each mode has a roofline."""
    toy = with_gpu(folder)
    assert list(toy.modes) == list(toy.modes_on("cpu")) == list(toy.modes_on("tpu")) == ["eager", "compile"]
    assert list(toy.modes_on("cuda")) == list(toy.every_mode) == ["eager", "compile", "graph"]
    assert toy.modes_on("cuda")["graph"].cannot == {"bf16": "no graph of it"}
    assert toy.devices["cuda"].rooflines["graph"] == "fused"
    assert toy.devices["cuda"].training_rooflines == {"graph": "compile"}
    assert (toy.devices["cuda"].short, toy.devices["cpu"].short) == (("graph",), ())
    assert toy.distributions == ("toy-framework", "toy-gpu")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('graph = "fused"\n', "", "devices.cuda.rooflines must name each of its modes: eager, compile, graph"),
        ('graph = "fused"', 'graph = "fast"', "devices.cuda.rooflines: fast is none of fused, compile, folded, eager"),
        ('graph = "compile"', 'grahp = "compile"', "devices.cuda.training_rooflines names grahp, which rooflines does not"),
        ('graph = "compile"', 'graph = "fast"', "devices.cuda.training_rooflines: fast is none of fused, compile, folded, eager"),
        ('short = ["graph"]', 'short = ["grahp", "eager"]', "devices.cuda.short: grahp is none of its modes: eager, compile, graph"),
        ("cannot = { bf16", "cannot = { bf61", "devices.cuda names precisions that do not exist: bf61"),
        ("build_s = 2", "build_s = 2\nneedz = 1", "unknown keys: devices.cuda.modes.graph.needz"),
        ('title = "Toy graph"\n', "", "the key 'title' is missing"),
    ],
)
def test_faults_of_a_devices_own_are_refused(folder: Path, old: str, new: str, says: str) -> None:
    """As those of the rest are."""
    with pytest.raises(ManifestError, match=says.replace(".", r"\.")):
        with_gpu(folder, old, new)


@pytest.mark.parametrize("content", ["modes = 5\n", "[modes]\n", "\xff"])
def test_nonsense_is_refused(folder: Path, content: str) -> None:
    """A file that is no manifest at all is refused with the same error."""
    (folder / "impl.toml").write_bytes(content.encode("latin-1"))
    with pytest.raises(ManifestError, match=r"impl\.toml: "):
        read_manifest(folder / "impl.toml")


def test_unreadable_file(tmp_path: Path) -> None:
    """A file that is not there is refused with the same error."""
    with pytest.raises(ManifestError, match=r"impl\.toml: "):
        read_manifest(tmp_path / "impl.toml")


def test_found_by_folder(folder: Path) -> None:
    """Implementations are the folders with an impl.toml; a folder without one is none, a faulty one stops the search."""
    root = folder.parent.parent
    (root / "impls" / "models").mkdir()
    assert list(find(root)) == ["toy"]
    (folder / "impl.toml").write_text("")
    with pytest.raises(ManifestError):
        find(root)


def test_the_checkouts_own_manifests() -> None:
    """Every implementation of this checkout has a readable manifest, fp32 on the CPU, and no precision that both runs and cannot."""
    found = find()
    assert set(found) == {path.parent.name for path in (ROOT / "impls").glob("*/layers.py")}
    for toy in found.values():
        cpu = toy.devices["cpu"]
        assert "fp32" in cpu.precisions
        for device in toy.devices.values():
            assert not set(device.precisions) & set(device.cannot)
            assert set(device.untimed) <= set(device.precisions)
            assert all({**device.cannot, **device.untimed}.values())
            assert (device.name == "cpu") != bool(device.rooflines)
