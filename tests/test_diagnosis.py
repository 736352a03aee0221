"""The diagnosis: every fault of the catalogue is named, sound outputs are called equal, and what is unknown is said to be unknown."""

from __future__ import annotations

import doctest
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

import levelfield
from impls import models
from impls.models import googlenet, resnet
from impls.oracle import forward
from impls.oracle.rounding import envelope, rho
from impls.spec import (
    NO_PADDING,
    Block,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    Linear,
    MaxPool2d,
    ModelSpec,
    Padding,
    Relu,
    layers,
)
from impls.weights import file, synthesis
from levelfield.cli import main
from suites.equivalence import diagnosis, simulation
from suites.equivalence.diagnosis import Diagnosis, diagnose
from suites.equivalence.doors import embedded
from suites.equivalence.faults import fault as faults
from suites.equivalence.faults.families import CATALOGUE
from suites.equivalence.faults.fault import Case, Fault, Site, without_helpers
from suites.equivalence.outputs import OutputsError

Array = npt.NDArray[Any]

FAULTS = {fault.id: fault for fault in CATALOGUE}


def _bottlenecks() -> ModelSpec:
    """Two stages of two bottlenecks with stem and max-pool: ResNet-50 in small."""
    body: list[Any] = [*resnet._conv_bn("conv1", "bn1", 3, 8, 7, 2), Relu("relu"), MaxPool2d("maxpool", 3, 2, Padding.same_on_all_sides(1))]
    channels = 8
    for stage, width in ((1, 4), (2, 8)):
        for index in range(2):
            stride = 2 if stage > 1 and index == 0 else 1
            prefix = f"layer{stage}.{index}"
            body += resnet._joined(
                prefix, resnet._bottleneck(prefix, channels, width, stride, stride_on_first=False), channels, 4 * width, stride, "B"
            )
            channels = 4 * width
    return ModelSpec("bottlenecks", (3, 32, 32), 10, (*body, *resnet._head(channels, 10)), "for tests")


def _case(model: ModelSpec, side: int) -> Case:
    images = np.random.default_rng(0).standard_normal((3, 3, side, side)).astype(np.float32)
    return Case(model, synthesis.synthesize(model, 0), images)


def _inception() -> ModelSpec:
    """A pool and a block of GoogLeNet's, and a head of VGG's, in small."""
    pad = Padding.same_on_all_sides(1)
    block = Block(
        "block",
        (
            (Conv2d("block.1", 8, 3, 1, 1, NO_PADDING, bias=True),),
            (Conv2d("block.2", 8, 4, 3, 1, pad, bias=True),),
            (MaxPool2d("block.3", 3, 1, pad), Conv2d("block.4", 8, 2, 1, 1, NO_PADDING, bias=True)),
        ),
        Concat("block.concat"),
        (Relu("block.relu"),),
    )
    body = (
        Conv2d("conv1", 3, 8, 3, 2, pad, bias=True),
        Relu("relu"),
        MaxPool2d("maxpool", 3, 2, googlenet.CEIL_MODE),
        block,
        Flatten("flatten", 9, 4, 4),
        Dropout("dropout", 0.5),
        Linear("fc1", 144, 24),
        Relu("relu1"),
        Linear("fc2", 24, 10),
    )
    return ModelSpec("inception", (3, 16, 16), 10, body, "for tests")


CASES = {"basic": _case(models.get("cifar_resnet8"), 16), "bottlenecks": _case(_bottlenecks(), 32)}


def last(model: ModelSpec) -> str:
    return list(layers(model.body))[-1].name


def computed(case: Case, faulty: Case, fault: Fault | None = None, precision: str = "fp32") -> dict[str, Array]:
    """What an implementation in this precision would give out."""
    taps = without_helpers(simulation.taps(faulty.model, faulty.weights, faulty.images, precision, instead=faulty.instead))
    if fault is not None and fault.output is not None:
        taps[last(case.model)] = fault.output(taps[last(case.model)]).astype(np.float32)
    return taps


def logits_of(case: Case, taps: Mapping[str, Array]) -> dict[str, Array]:
    return {"logits": taps[last(case.model)]}


def asked(case: Case, found: Mapping[str, Array], precision: str = "fp32") -> Diagnosis:
    return diagnose(case.model, case.weights, case.images, found, precision)


# Faults that are one function, or one up to less than fp32's rounding.
SAME = (
    {"eps-2e-5", "variance-plus-eps"},
    {"eps-none", "eps-maximum", "eps-1e-7"},
    {"kernel-transposed", "images-transposed"},  # of a net with symmetric paddings and a global mean
)


def check(case: Case, fault: Fault, site: Site, answer: Diagnosis) -> None:
    """The fault is named first or with its equals, or it is too small to be seen."""
    if answer.verdict == "equal":
        faulty = fault.of(case, site)
        signal = rho(list(faults.computed(faulty).values())[-1], envelope(case.model, case.weights, case.images, "fp32"))
        assert fault.output is None
        assert signal < 5
        return
    named = [(each.faults[0], each.sites[0]) for each in answer.explanations]
    assert (fault.id, site.name) in named, answer.sentence
    if named[0] != (fault.id, site.name):
        assert any({fault.id, *(each for each, _ in named)} <= same for same in SAME), answer.sentence
    assert fault.say(site) in answer.sentence
    assert answer.explanations[0].share is not None
    assert answer.explanations[0].share >= 0.9


SAMPLE = CATALOGUE[::3]
"""All of them take minutes, and a family's members are much alike."""


@pytest.mark.parametrize("name", CASES)
def test_faults_are_named_from_all_taps(name: str) -> None:
    """Everywhere at once and at the last single place; the first tap is the site's unless the fault shows only later."""
    case, seen = CASES[name], 0
    for fault in SAMPLE:
        sites = fault.sites(case.model)
        for site in {each.name: each for each in (*sites[:1], *sites[-1:])}.values():
            answer = asked(case, computed(case, fault.of(case, site), fault))
            check(case, fault, site, answer)
            if answer.verdict == "different" and site.single:
                assert answer.first_tap in site.layers
            seen += answer.verdict == "different"
    assert seen > 40


def test_faults_that_are_everywhere_are_named_from_the_logits_alone() -> None:
    """The first site of each, by nothing but thirty numbers."""
    seen = 0
    for fault in SAMPLE:
        case = CASES["bottlenecks"] if fault.find(CASES["bottlenecks"].model) else CASES["basic"]
        for site in fault.sites(case.model)[:1]:
            if fault.reach == "one" and site.single and len(fault.find(case.model)) > 1:
                continue
            answer = asked(case, logits_of(case, computed(case, fault.of(case, site), fault)))
            check(case, fault, site, answer)
            seen += answer.verdict == "different"
    assert seen > 15


@pytest.mark.parametrize(
    ("fault", "site"), [("conv-same", "layer3.0.conv1"), ("kernel-flipped", "layer2.0.conv2"), ("relu-missing-sum", "layer1.0.out")]
)
def test_one_layer_is_named_from_the_logits_alone(fault: str, site: str) -> None:
    """Also where a single layer is at fault."""
    case = CASES["basic"]
    place = next(each for each in FAULTS[fault].sites(case.model) if each.name == site)
    answer = asked(case, logits_of(case, computed(case, FAULTS[fault].of(case, place))))
    assert [(each.faults, each.sites) for each in answer.explanations] == [((fault,), (site,))]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("name", CASES)
def test_sound_outputs_agree(name: str, precision: str) -> None:
    """All taps of sound arithmetic lie within the noise of their precision, and so do the oracle's own in float64."""
    case = CASES[name]
    answer = asked(case, computed(case, case, precision=precision), precision)
    assert answer.verdict == "equal", answer.sentence
    assert answer.explanations == ()
    assert asked(case, forward.taps(case.model, case.weights, case.images), "fp64").verdict == "equal"


def test_logits_that_rounding_drowns_are_unclear() -> None:
    """Nearly equal images whose common logits are taken off again: what is left in bf16 is noise, and taps decide."""
    case = CASES["basic"]
    images = case.images[:1] + np.float32(1e-4) * case.images
    common = forward.forward(case.model, case.weights, images).mean(0)
    bias = (case.weights["fc.bias"] - common).astype(np.float32)
    alike = Case(case.model, {**case.weights, "fc.bias": bias}, images)
    taps = computed(alike, alike, precision="bf16")
    answer = asked(alike, logits_of(alike, taps), "bf16")
    assert answer.verdict == "unclear"
    assert "cannot tell: rounding in bf16 alone changes fc by" in answer.sentence
    assert asked(alike, taps, "bf16").verdict == "equal"
    assert asked(alike, logits_of(alike, computed(alike, alike))).verdict == "equal"


def test_a_fault_shows_in_bf16_taps() -> None:
    """Rounding to nearest leaves nothing of the right explanation's residual, however coarse the format."""
    case = CASES["basic"]
    for name in ("conv-same", "eps-1e-3", "shortcut-twice"):
        site = FAULTS[name].sites(case.model)[0]
        answer = asked(case, computed(case, FAULTS[name].of(case, site), precision="bf16"), "bf16")
        assert answer.explanations[0].faults == (name,), answer.sentence


def test_float64_tells_epsilons_apart_that_fp32_cannot() -> None:
    """1.001e-5 for 1e-5 moves the logits by less than fp32's rounding."""
    case = CASES["basic"]
    faulty = FAULTS["eps-1.001e-5"].of(case, FAULTS["eps-1.001e-5"].sites(case.model)[0])
    found = logits_of(case, forward.taps(faulty.model, faulty.weights, faulty.images))
    assert asked(case, found, "fp32").verdict == "equal"
    answer = asked(case, found, "fp64")
    assert [each.faults for each in answer.explanations] == [("eps-1.001e-5",)], answer.sentence


def test_some_taps_are_enough_to_narrow_it_down() -> None:
    """With the blocks' outputs alone the fault is looked for between the last sound one and the first wrong one."""
    case = CASES["basic"]
    site = next(each for each in FAULTS["kernel-flipped"].sites(case.model) if each.name == "layer2.0.conv2")
    taps = computed(case, FAULTS["kernel-flipped"].of(case, site))
    answer = asked(case, {name: taps[name] for name in ("layer1.0.out", "layer2.0.out", "layer3.0.out", "fc")})
    assert answer.first_tap == "layer2.0.out"
    assert [(each.faults, each.sites) for each in answer.explanations] == [(("kernel-flipped",), ("layer2.0.conv2",))]


@pytest.mark.parametrize("alone", [False, True], ids=["taps", "logits"])
def test_two_faults_are_named_together(alone: bool) -> None:
    """A large one and a smaller one."""
    case = CASES["basic"]
    one, other = FAULTS["images-bgr"], FAULTS["eps-1e-3"]
    faulty = other.of(one.of(case, one.sites(case.model)[0]), other.sites(case.model)[0])
    taps = computed(case, faulty)
    answer = asked(case, logits_of(case, taps) if alone else taps)
    assert {frozenset(each.faults) for each in answer.explanations} == {frozenset({"images-bgr", "eps-1e-3"})}, answer.sentence
    assert ", and " in answer.sentence


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("name", ["pool-ceil-before", "flatten-nhwc", "flatten-ncwh", "concat-reversed"])
def test_faults_of_other_families_are_named(name: str, alone: bool) -> None:
    """Those of pools in ceil mode, flattened maps and branches side by side, from all taps and from the logits."""
    case, fault = _case(_inception(), 16), FAULTS[name]
    (site,) = fault.sites(case.model)
    taps = computed(case, fault.of(case, site))
    check(case, fault, site, asked(case, logits_of(case, taps) if alone else taps))


@pytest.mark.parametrize("sites", [("layer1.0.add", "layer2.0.add"), ("layer2.0.add", "layer3.0.add")])
def test_one_fault_at_two_layers_is_two_faults(sites: tuple[str, str]) -> None:
    """The fault of every layer explains both, and is not it: it breaks taps that are right."""
    case, fault = CASES["basic"], FAULTS["sum-shortcut-half"]
    faulty = case
    for site in fault.sites(case.model):
        faulty = fault.of(faulty, site) if site.name in sites else faulty
    answer = asked(case, computed(case, faulty))
    assert [each.sites for each in answer.explanations] == [sites], answer.sentence


@pytest.mark.parametrize("bright", [0, 7])
def test_a_fault_that_shows_in_one_image_is_named(bright: int) -> None:
    """The faults are ranked on few images, those that are the farthest off, wherever they stand in the batch."""
    model = CASES["basic"].model
    images = 0.2 * np.random.default_rng(1).standard_normal((8, 3, 16, 16)).astype(np.float32)
    images[bright] *= 20
    case = Case(model, CASES["basic"].weights, images)
    site = next(each for each in FAULTS["relu-6"].sites(model) if each.name == "relu")
    stem = forward.taps(model, case.weights, images)["relu"].max((1, 2, 3))
    assert [index for index in range(8) if stem[index] > 6] == [bright]
    answer = asked(case, logits_of(case, computed(case, FAULTS["relu-6"].of(case, site))))
    assert [(each.faults, each.sites) for each in answer.explanations] == [(("relu-6",), ("relu",))], answer.sentence


def test_what_takes_too_long_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """With little work to spend, the layers nearest the end are searched; the tap that is asked for makes the rest affordable."""
    case = CASES["basic"]
    site = next(each for each in FAULTS["kernel-flipped"].sites(case.model) if each.name == "layer1.0.conv1")
    taps = computed(case, FAULTS["kernel-flipped"].of(case, site))
    said: list[str] = []
    monkeypatch.setattr(diagnosis, "WORK", 2 * 10**9)
    answer = diagnose(case.model, case.weights, case.images, logits_of(case, taps), say=said.append)
    assert answer.untried > 100
    assert answer.explanations == ()
    assert "faults and places are not tried, since all would take" in answer.sentence
    assert any("give the tap layer2.0.out, or smaller images" in line for line in said)
    answer = diagnose(case.model, case.weights, case.images, {"layer2.0.out": taps["layer2.0.out"], **logits_of(case, taps)})
    assert answer.untried == 0
    assert [(each.faults, each.sites) for each in answer.explanations] == [(("kernel-flipped",), ("layer1.0.conv1",))]


def perturbed(case: Case, name: str, change: Any) -> Case:
    return Case(case.model, {**case.weights, name: np.float32(change(case.weights[name]))}, case.images)


def noisy(weight: Array) -> Array:
    return weight * (1 + 0.05 * np.random.default_rng(1).standard_normal(weight.shape))


@pytest.mark.parametrize("alone", [False, True], ids=["taps", "logits"])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("layer2.0.conv1.weight", noisy),
        ("layer2.0.bn1.running_var", lambda variance: variance + 5e-4),  # as an epsilon that nobody has
        ("layer1.0.bn2.bias", lambda bias: bias * np.linspace(0.5, 1.5, len(bias))),
        ("fc.weight", lambda weight: weight * 0.9),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_unknown_is_said_to_be_unknown(name: str, change: Any, alone: bool) -> None:
    """A made-up fault is never taken for one of the catalogue; its tap is named."""
    case = CASES["basic"]
    taps = computed(case, perturbed(case, name, change))
    answer = asked(case, logits_of(case, taps) if alone else taps)
    assert answer.verdict == "different"
    assert answer.explanations == (), answer.sentence
    assert "nothing in the catalogue explains it" in answer.sentence
    assert answer.first_tap == (last(case.model) if alone else name.rpartition(".")[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x * 1.5, "it is 1.5 times what it should be"),
        (lambda x: x + 0.1 * np.arange(1, 5)[:, None, None], "it has every channel moved by a constant, 0.1 to 0.4"),
        (lambda x: x * np.linspace(0.5, 2, 4)[:, None, None], "it has every channel rescaled, by 0.5 to 2, and moved by a constant"),
        (lambda x: np.roll(x, 3, axis=1), "it has its channels in another order: 0 holds 1, 1 holds 2, 2 holds 3, ..."),
        (lambda x: np.roll(x, (1, 2), axis=(2, 3)), "it is shifted by 1 rows and 2 columns"),
        (lambda x: x[:, :, ::-1], "it is mirrored top to bottom"),
        (lambda x: x.swapaxes(2, 3), "it has rows and columns exchanged"),
    ],
    ids=["scale", "offsets", "scales", "permutation", "shift", "mirror", "transpose"],
)
def test_the_signature_of_an_unknown_fault_is_read_off(change: Any, says: str) -> None:
    """The output of one layer, moved about; the layers after it compute on what they get."""
    case = CASES["bottlenecks"]
    taps = {name: tap.astype(np.float64) for name, tap in computed(case, case).items()}
    answer = asked(case, {"maxpool": taps["maxpool"], "layer1.0.bn1": change(taps["layer1.0.bn1"])})
    assert says in answer.sentence
    assert answer.first_tap == "layer1.0.bn1"


def test_the_embedded_images_have_three_different_channels() -> None:
    """Grey images, as the digits, would hide BGR."""
    images = embedded(models.get("cifar_resnet20"))
    assert images.shape == (8, 3, 32, 32)
    assert np.abs(images - images[:, ::-1]).mean() > 0.1


@pytest.mark.parametrize("actual", ["tf32", "bf16", "fp16"])
def test_another_precision_is_named(actual: str) -> None:
    """An fp32 run that is none is told by its taps."""
    case = CASES["bottlenecks"]
    answer = asked(case, computed(case, case, precision=actual))
    # Rounded weights are a fault of the catalogue too, but of a run that computes in fp32.
    assert [each.faults for each in answer.explanations] == [(f"fp32-as-{actual}",)], answer.sentence


def test_a_wrong_wire_is_named() -> None:
    """A sum that reads the shortcut of another block."""
    case = CASES["bottlenecks"]
    taps = computed(case, case)
    taps["layer1.1.add"] = taps["layer1.1.bn3"] + taps["layer1.0.bn3"]
    taps = {name: tap for name, tap in taps.items() if name in ("layer1.0.bn3", "layer1.0.out", "layer1.1.bn3", "layer1.1.add")}
    answer = asked(case, taps)
    assert answer.sentence == "differs: layer1.1.add reads layer1.0.bn3, not layer1.0.out"


def test_layouts_and_types() -> None:
    """NHWC is recognised; 16-bit arrays are widened, bfloat16 as np.save writes it too; what is ambiguous is refused."""
    case = CASES["basic"]
    taps = computed(case, case)
    nhwc = {name: tap.transpose(0, 2, 3, 1) if tap.ndim == 4 else tap for name, tap in taps.items()}
    assert asked(case, {name: nhwc[name] for name in ("conv1", "relu", "fc", "layer3.0.add")}).verdict == "equal"
    half = computed(case, case, precision="fp16")
    assert asked(case, {name: tap.astype(np.float16) for name, tap in half.items() if "conv" not in name}, "fp16").verdict == "equal"
    brain = {
        name: (np.ascontiguousarray(tap).view(np.uint32) >> 16).astype(np.uint16).view("V2")
        for name, tap in computed(case, case, precision="bf16").items()
    }
    assert asked(case, brain, "bf16").verdict == "equal"
    with pytest.raises(OutputsError, match=r"conv1: the shape .* is NCHW as well as NHWC"):
        asked(case, {"conv1": taps["conv1"]})  # 16 channels of 16 x 16
    with pytest.raises(OutputsError, match="give all taps in one layout"):
        asked(case, {"layer3.0.conv1": taps["layer3.0.conv1"], "layer2.0.conv1": nhwc["layer2.0.conv1"]})


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "there are no outputs"),
        ({"conv9": np.zeros((3, 10), np.float32)}, "conv9: the model has no such tap"),
        ({"logits": np.zeros((3, 10), np.float32), "fc": np.zeros((3, 10), np.float32)}, "logits and fc are one tap"),
        ({"logits": np.zeros((3, 9), np.float32)}, r"logits: has the shape \(3, 9\)"),
        ({"logits": np.zeros((0, 10), np.float32)}, r"logits: has the shape \(0, 10\)"),
        ({"logits": np.zeros((3, 10), np.int32)}, "logits: is of type int32"),
        ({"logits": np.full((3, 10), np.inf, np.float32)}, "logits: 30 of 30 values are NaN or infinite"),
        ({"layer1.0.add": np.zeros((3, 16, 160, 160), np.float32)}, "layer1.0.add: has the shape"),
    ],
)
def test_outputs_that_cannot_be_judged(found: dict[str, Array], message: str) -> None:
    """One sentence that names the array."""
    with pytest.raises(OutputsError, match=message):
        asked(CASES["basic"], found)


def test_few_numbers_explain_nothing() -> None:
    """With nine logits some fault would fit by chance."""
    case = CASES["basic"]
    small = Case(case.model, case.weights, case.images[:1])
    wrong = forward.forward(case.model, case.weights, small.images[:, ::-1])
    assert diagnose(small.model, small.weights, small.images, {"logits": wrong}).explanations
    few = ModelSpec("few", (3, 16, 16), 5, (*case.model.body[:-1], resnet._head(64, 5)[1]), "for tests")
    weights = {**case.weights, "fc.weight": case.weights["fc.weight"][:5], "fc.bias": case.weights["fc.bias"][:5]}
    answer = diagnose(few, weights, small.images, {"logits": wrong[:, :5]})
    assert answer.verdict == "different"
    assert answer.explanations == ()


def test_the_python_door() -> None:
    """Nothing where all is well, an AssertionError with the sentence where not; the docstring's example runs."""
    case = CASES["basic"]
    weights: dict[str, Array] = {**case.weights, "bn1.num_batches_tracked": np.array(7)}
    logits = forward.forward(case.model, case.weights, case.images)
    levelfield.assert_equivalent("cifar_resnet8", weights, logits, case.images)
    with pytest.raises(AssertionError, match="gives probabilities instead of logits"):
        levelfield.assert_equivalent("cifar_resnet8", weights, FAULTS["softmax"].output(logits), case.images)  # type: ignore[misc]
    with pytest.raises(AssertionError, match="differs: logits: 30 of 30 values are NaN"):
        levelfield.assert_equivalent("cifar_resnet8", weights, logits * np.nan, case.images)
    with pytest.raises(ValueError, match=r"has no tensor 'bn1\.gamma'"):
        levelfield.assert_equivalent("cifar_resnet8", {**weights, "bn1.gamma": weights["bn1.weight"]}, logits, case.images)
    assert doctest.testmod(levelfield).attempted > 5
    assert doctest.testmod(levelfield).failed == 0


@pytest.fixture(name="port")
def files_of_a_port(tmp_path: Path) -> tuple[Path, dict[str, Array]]:
    """A weight file, and sound logits on the embedded images."""
    case = CASES["basic"]
    path = tmp_path / "weights.safetensors"
    file.save(path, case.model, case.weights, source="test", preprocess={}, licence="CC0-1.0")
    images = embedded(case.model)
    return path, {"logits": forward.forward(case.model, case.weights, images).astype(np.float32)}


def command(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, ["diagnose", *map(str, arguments)], prog_name="levelfield")


def test_the_files_door(port: tuple[Path, dict[str, Array]], tmp_path: Path) -> None:
    """The written inputs are what outputs without images are judged on; 0 agrees, 1 differs, and one document for --json."""
    weights, sound = port
    written, given = tmp_path / "in.npz", tmp_path / "out.npz"
    assert command("--weights", weights, "--write-inputs", written).exit_code == 0
    np.savez(given, **sound)
    done = command("--weights", weights, "--outputs", given)
    assert (done.exit_code, " agrees: " in done.stdout) == (0, True), done.output
    case = CASES["basic"]
    wrong = forward.forward(case.model, case.weights, np.load(written)["images"] * 0.5)
    np.savez(given, logits=wrong, images=np.load(written)["images"] * np.float32(0.5))
    assert command("--weights", weights, "--outputs", given).exit_code == 0
    np.savez(given, logits=sound["logits"][:, ::-1])
    done = command("--weights", weights, "--outputs", given, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["diagnoses"][0]["verdict"] == "different"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"logits": np.zeros((8, 11), np.float32)}, "logits: has the shape (8, 11)"),
        ({"logits": np.array([{}], object)}, "logits: holds Python objects"),
        ({"logits": np.full((8, 10), np.nan, np.float32)}, "80 of 80 values are NaN"),
        ({"conv1": np.zeros((8, 16, 999, 999), np.int8)}, "conv1: has the shape (8, 16, 999, 999)"),
        ({"images": np.zeros((8, 3, 32, 32), np.float64), "logits": np.zeros((8, 10))}, "images are of type float64"),
        ({"images": np.zeros((8, 4, 32, 32), np.float32), "logits": np.zeros((8, 10))}, "images have the shape (8, 4, 32, 32)"),
        ({"images": np.zeros((8, 3, 32, 32), np.float32)}, "there are no outputs"),
    ],
)
def test_files_that_cannot_be_judged(port: tuple[Path, dict[str, Array]], tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    """Exit code 2 and one sentence."""
    given = tmp_path / "out.npz"
    np.savez(given, allow_pickle=True, **arrays)
    done = command("--weights", port[0], "--outputs", given)
    assert (done.exit_code, message in done.stderr, "Traceback" in done.output) == (2, True, False), done.output


def test_the_command_needs_one_subject() -> None:
    """None or two of them are refused."""
    for arguments in ((), ("--outputs", "a.npz"), ("--outputs", "a", "--onnx", "b"), ("pytorch/eager",)):
        done = command(*arguments)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith("levelfield: ")
    assert "there is no 'pytorch/egaer'; known: " in command("--model", "cifar_resnet20", "pytorch/egaer").stderr
