"""``levelfield weights import`` and ``export``, and certificates of what was imported."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from impls import models
from impls.spec import tensor_shapes
from impls.weights import checkpoints, file, synthesis
from impls.weights.checkpoints import public, state_dict
from impls.weights.variant import epsilons, for_images_of, with_constants
from levelfield.cli import main
from suites.data import preprocess
from suites.equivalence import foreign as onnx
from suites.harness import context
from tests import foreign_checkpoints as foreign

MODEL = models.get("cifar_resnet8")


def levelfield(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], prog_name="levelfield")


def brought(path: Path, model: str, *more: object) -> Result:
    return levelfield("weights", "import", path, "--model", model, "--out", path.with_suffix(".safetensors"), *more)


def state(path: Path) -> Path:
    """A public CIFAR checkpoint of a small net: a dictionary, a prefix, and other names."""
    weights = synthesis.synthesize(MODEL, 0)
    theirs = {f"module.{name.replace('fc.', 'linear.')}": array for name, array in weights.items()}
    program = foreign.pickled(theirs)
    nested = b"\x80\x02}(X\x0a\x00\x00\x00state_dict" + program[2:-1] + b"X\x05\x00\x00\x00epochK\x05u."
    return foreign.archive(path, nested, {f"data/{number}": array.tobytes() for number, array in enumerate(theirs.values())})


def test_import(tmp_path: Path) -> None:
    """A weight file of the same bytes, with where it is from and how images become its inputs."""
    path = state(tmp_path / "net.th")
    done = brought(path, MODEL.name, "--preprocess", "cifar_imagenet")
    assert done.exit_code == 0, done.output
    loaded = file.load(path.with_suffix(".safetensors"))
    assert loaded.sha256 == file.tensor_sha256(synthesis.synthesize(MODEL, 0))
    assert (
        done.stdout == f"{path.with_suffix('.safetensors')}: cifar_resnet8, images of 32 x 32, 10 classes, epsilon 1e-05, {loaded.sha256}\n"
    )
    assert (loaded.metadata["source"], loaded.metadata["licence"]) == ("net.th, names of PyTorch", "unknown")
    assert loaded.metadata["source_sha256"] == checkpoints.sha256(path)
    assert json.loads(loaded.metadata["preprocess"]) == preprocess.chosen("cifar_imagenet").as_json()


def test_import_without_preprocessing_says_so(tmp_path: Path) -> None:
    """Nothing is guessed."""
    path = state(tmp_path / "net.th")
    assert brought(path, MODEL.name).stdout.endswith("how images become its inputs is not known; --preprocess says it\n")
    assert file.read_metadata(path.with_suffix(".safetensors"))["preprocess"] == "{}"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "cifar_resnet20"), "its tensors are all those of cifar_resnet8"),
        (("--model", "cifar_resnet21"), "there is no model 'cifar_resnet21'"),
        (("--model", "cifar_resnet8", "--preprocess", "magic"), "there is no preprocessing 'magic'"),
        (
            ("--model", "cifar_resnet8", "--preprocess", "timm"),
            "--preprocess timm: cifar_resnet8 takes images of 32 x 32; not of 224 x 224",
        ),
        (("--model", "cifar_resnet8", "--out", "PATH"), "would be written over by what is imported from it"),
        (("--model", "cifar_resnet8", "--out", "PATH/none/x"), "Not a directory"),
    ],
)
def test_import_refused(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    """One sentence, exit code 2, and nothing is written."""
    path = state(tmp_path / "net.th")
    own = [each.replace("PATH", str(path)) for each in arguments]
    out = [] if "--out" in own else ["--out", str(tmp_path / "out")]
    before = path.read_bytes()
    done = levelfield("weights", "import", path, *own, *out)
    assert (done.exit_code, done.stdout, says in done.stderr, done.stderr.count("\n")) == (2, "", True, 1), done.output
    assert ([each.name for each in tmp_path.iterdir()], path.read_bytes() == before) == (["net.th"], True)


def test_import_of_an_attack(tmp_path: Path) -> None:
    """A pickle that calls the shell: one sentence, nothing executed."""
    mark = tmp_path / "mark"
    done = brought(foreign.archive(tmp_path / "evil.pth", pickle.dumps(foreign.Evil(mark), 2)), MODEL.name)
    assert (done.exit_code, "names 'posix.system'" in done.stderr, mark.exists()) == (2, True, False)


def test_a_known_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its bytes: source, licence and preprocessing are those that were published, and another model is refused."""
    path = state(tmp_path / "net.th")
    known = public.Public("net.pt", MODEL.name, "somebody", "MIT", "cifar", "cifar10", 90.5, None, sha256=checkpoints.sha256(path)[:8])
    monkeypatch.setattr(public, "KNOWN", (known,))
    done = brought(path, MODEL.name)
    assert done.stdout.splitlines()[1] == "it has the hash published of net.pt (somebody): top-1 90.5 % on cifar10"
    out = path.with_suffix(".safetensors")
    assert done.stdout.splitlines()[2] == f"`levelfield accuracy --weights {out} --dataset cifar10 --data-dir DIR` holds it to that"
    metadata = file.read_metadata(out)
    assert (metadata["licence"], metadata["source"]) == ("MIT", "net.th, somebody")
    assert json.loads(metadata["preprocess"]) == preprocess.chosen("cifar").as_json()
    assert (
        brought(path, "cifar_resnet20").stderr
        == f"levelfield: {path}: has the hash published of net.pt, which is for cifar_resnet8: --model cifar_resnet8\n"
    )
    by_md5 = public.Public("net.pt", MODEL.name, "somebody", "MIT", "cifar", "cifar10", 90.5, None, md5=checkpoints.md5(path))
    monkeypatch.setattr(public, "KNOWN", (by_md5,))
    assert public.find("", checkpoints.md5(path)) is by_md5
    assert public.find("", "") is None
    assert metadata["source_md5"] == checkpoints.md5(path)


def test_the_size_that_a_preprocessing_crops_to(tmp_path: Path) -> None:
    """What is timed and certified takes images of that size."""
    model = models.get("resnet18")
    path = tmp_path / "resnet18.pth"
    state_dict.save(path, model, {name: np.ones(shape, np.float32) for name, shape in tensor_shapes(model).items()})
    done = brought(path, "resnet18", "--preprocess", "timm_288_0.95")
    assert ": resnet18, images of 288 x 288, 1000 classes, epsilon 1e-05, " in done.stdout, done.output
    about = context.subject("resnet18", path.with_suffix(".safetensors"))
    assert about.model == for_images_of(model, 288, 288)
    assert about.inputs.pool.shape[1:] == (3, 288, 288)
    assert about.as_record("fp32", 1)["macs"] == pytest.approx(1.814e9 * (288 / 224) ** 2, rel=0.01)


def test_the_table_of_known_files() -> None:
    """Each is for a model that is there, with a preset that fits it; the documentation's table has a row for each, and no other."""
    rows = []
    for known in public.KNOWN:
        pipeline = preprocess.chosen(known.preprocess)
        side = pipeline.crop or 32
        preprocess.check_size(pipeline, 32, for_images_of(models.get(known.model), side, side).input_chw[1], 1)
        hashed = known.sha256 or known.md5 or "-"
        five = "-" if known.top5 is None else f"{known.top5:g}"
        rows.append(f"| `{known.file}` | `{known.model}` | `{known.preprocess}` | {known.dataset} | {known.top1:g} | {five} | {hashed} |")
    documented = (Path(__file__).parents[1] / "docs/weights.md").read_text(encoding="utf-8")
    section = documented.partition("### Public checkpoints\n")[2].partition("\n## ")[0]
    assert [line for line in section.splitlines() if line.startswith("| `")] == rows
    assert public.KNOWN[3].check[0] == (
        "levelfield weights import resnet50-11ad3fa6.pth --model resnet50 --preprocess torchvision_v2 --out resnet50-11ad3fa6.safetensors"
    )
    assert len({known.sha256 or known.md5 or known.file for known in public.KNOWN}) == len(public.KNOWN)


def test_what_is_known_is_listed() -> None:
    """All in a line each; one or some with the commands; a name that none has is a sentence."""
    assert len(json.loads(levelfield("weights", "known", "--json").stdout)["checkpoints"]) == len(public.KNOWN)
    lines = levelfield("weights", "known").stdout.splitlines()
    assert len(lines) == len(public.KNOWN) + 2
    assert lines[4].split() == ["resnet50-11ad3fa6.pth", "resnet50", "imagenet", "torchvision_v2", "80.858", "95.434"]
    assert levelfield("weights", "known", "resnet50-11ad3fa6").stdout.splitlines() == [
        "resnet50-11ad3fa6.pth: resnet50, top-1 80.858 %, top-5 95.434 % on imagenet, prepared as torchvision_v2",
        f"  SHA-256 begins with 11ad3fa6; BSD-3-Clause; {public.TORCHVISION} IMAGENET1K_V2",
        *(f"  {command}" for command in public.KNOWN[3].check),
    ]
    assert "its publisher does not say how images were resized" in levelfield("weights", "known", "vgg16_weights").stdout
    done = levelfield("weights", "known", "resnet51")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "no public checkpoint that is known is called 'resnet51'" in done.stderr


def test_torchvision_s_googlenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The heads for training that its file holds are left out, and what its network does to images is in the weight file."""
    model = models.get("googlenet")
    weights = {name: np.full(shape, 0.5, np.float32) for name, shape in tensor_shapes(models.in_training(model)).items()}
    path = tmp_path / "googlenet.pth"
    state_dict.save(path, models.in_training(model), weights)
    published = next(each for each in public.KNOWN if each.model == "googlenet")
    monkeypatch.setattr(public, "KNOWN", (dataclasses.replace(published, sha256=checkpoints.sha256(path)[:8]),))
    assert brought(path, "googlenet").exit_code == 0
    loaded = file.load(path.with_suffix(".safetensors"))
    assert loaded.sha256 == file.tensor_sha256({name: weights[name] for name in tensor_shapes(model)})
    assert json.loads(loaded.metadata["preprocess"]) == preprocess.chosen("torchvision_googlenet").as_json()


def test_round_trip_through_torchvision(tmp_path: Path) -> None:
    """Weight file to state dict to weight file: the same hash."""
    model = models.get("resnet18")
    weights = {name: np.full(shape, 0.5, np.float32) for name, shape in tensor_shapes(model).items()}
    root = file.save(tmp_path / "a", model, weights, source="", preprocess={}, licence="")
    done = levelfield("weights", "export", tmp_path / "a", "--format", "torchvision", "--out", tmp_path / "b.pth")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'b.pth'}: torchvision's resnet18\n")
    assert brought(tmp_path / "b.pth", "resnet18").exit_code == 0
    assert file.load(tmp_path / "b.safetensors").sha256 == root


@pytest.mark.parametrize("own", ["usual", "own"])
def test_round_trip_through_onnx(own: str, tmp_path: Path) -> None:
    """The same, with the epsilons and classes of the file, and shortcuts without weights."""
    model = MODEL if own == "usual" else with_constants(MODEL, 7, dict.fromkeys(epsilons(MODEL), 1.001e-5))
    weights = synthesis.synthesize(model, 0)
    root = file.save(tmp_path / "a", model, weights, source="", preprocess={}, licence="")
    done = levelfield("weights", "export", tmp_path / "a", "--format", "onnx", "--out", tmp_path / "b.onnx")
    assert done.exit_code == 0, done.output
    done = brought(tmp_path / "b.onnx", MODEL.name)
    assert done.exit_code == 0, done.output
    loaded = file.load(tmp_path / "b.safetensors")
    assert (loaded.sha256, loaded.model) == (root, model)
    if own == "usual":
        wrong = brought(tmp_path / "b.onnx", "cifar_resnet20")
        assert (wrong.exit_code, "its tensors are all those of cifar_resnet8: --model cifar_resnet8" in wrong.stderr) == (2, True), (
            wrong.stderr
        )
        twin = brought(tmp_path / "b.onnx", "cifar_plain8")
        assert (twin.exit_code, "what it computes is not: `levelfield diagnose --onnx` says why" in twin.stderr) == (2, True), twin.stderr


def test_export_refused(tmp_path: Path) -> None:
    """What the format has no network for, or no number; what was there stays."""
    out = tmp_path / "out"
    out.write_text("here before")
    file.save(tmp_path / "a", MODEL, synthesis.synthesize(MODEL, 0), source="", preprocess={}, licence="")
    done = levelfield("weights", "export", tmp_path / "a", "--format", "torchvision", "--out", out)
    assert (done.exit_code, "torchvision has no cifar_resnet8 with these constants" in done.stderr) == (2, True)
    odd = with_constants(MODEL, 10, {"bn1": 1.00000000001e-3})
    file.save(tmp_path / "b", odd, synthesis.synthesize(odd, 0), source="", preprocess={}, licence="")
    done = levelfield("weights", "export", tmp_path / "b", "--format", "onnx", "--out", out)
    assert (done.exit_code, "ONNX keeps bn1's epsilon of 0.00100000000001 as 0.001" in done.stderr) == (2, True), done.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "b", "out"]
    assert out.read_text() == "here before"


def test_an_epsilon_through_float32() -> None:
    """The usual number where it may be meant, else the shortest decimal."""
    assert onnx.through_float32(float(np.float32(1e-5)), 1e-5) == 1e-5
    assert onnx.through_float32(float(np.float32(1.001e-5)), 1e-5) == 1.001e-5
    assert onnx.through_float32(float(np.float32(1e-3)), 1e-5) == 1e-3


@pytest.mark.parametrize("weights", ["own", "another's", "both"])
def test_certificates_of_own_weights(weights: str, tmp_path: Path) -> None:
    """Certified in the file's own spec, also where an epsilon is held as a float32; of another model, or of two, refused."""
    model = with_constants(MODEL, 7, dict.fromkeys(epsilons(MODEL), 1e-3))
    file.save(tmp_path / "own", model, synthesis.synthesize(model, 3), source="", preprocess={}, licence="")
    chosen = {"own": (), "another's": ("--models", "cifar_resnet20"), "both": ("--models", "cifar_resnet8,cifar_resnet20")}[weights]
    modes = ("--impls", "pytorch,onnx", "--modes", "eager,ort")
    store = ("--store", tmp_path / "store")
    done = levelfield("certify", "--weights", tmp_path / "own", *chosen, *modes, *store, "--batch-sizes", 1, "--json")
    if weights != "own":
        assert (done.exit_code, done.stdout) == (2, "")
        assert ("different network" if weights == "another's" else "name one model, or none") in done.stderr
        return
    assert done.exit_code == 0, done.output
    certificates = json.loads(done.stdout)["certificates"]
    assert {each["implementation"] for each in certificates} == {"pytorch", "onnx"}
    assert {each["status"] for each in certificates} == {"ok"}
    stored = [json.loads(path.read_text()) for path in (tmp_path / "store").rglob("equivalence-*.json")]
    assert {each["model"]["spec_sha256"] for each in stored if each["status"] == "ok"} == {file.spec_sha256(model)}


def test_own_weights_are_for_inference(tmp_path: Path) -> None:
    """Derivatives are certified on a state of their own."""
    assert "--weights is for certificates of inference" in levelfield("certify", "--weights", tmp_path / "x", "--training").stderr


def test_the_export_names_only_what_torchvision_has() -> None:
    """Each name is a model of ours with torchvision's names."""
    assert all("torchvision" in models.get(name).source for name in state_dict.TORCHVISION)
