"""Names and layouts of public checkpoints: every convention comes out as the same canonical bytes, and what does not fit is named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from impls import models
from impls.oracle.forward import forward
from impls.spec import BatchNorm2d, Block, Conv2d, Flatten, Linear, MaxPool2d, ModelSpec, Padding, Relu, layers, tensor_shapes
from impls.weights import checkpoints
from impls.weights.checkpoints import names, state_dict
from impls.weights.container import WeightFileError
from impls.weights.variant import epsilons, with_constants
from tests import foreign_checkpoints as foreign

PATH = Path("checkpoint.pth")

Weights = dict[str, Any]


def numbered(model: ModelSpec) -> Weights:
    """Weights of which no two tensors are alike, and no axis of any is as another."""
    generator = np.random.default_rng(0)
    return {name: np.abs(generator.standard_normal(shape, np.float32)) for name, shape in tensor_shapes(model).items()}


def imported(tensors: Weights, model: str, *, keras: bool = False) -> names.Imported:
    return names.canonical(PATH, tensors, models.get(model), keras=keras)


def refusal(tensors: Weights, model: str, *, keras: bool = False) -> str:
    with pytest.raises(WeightFileError) as caught:
        imported(tensors, model, keras=keras)
    return str(caught.value).removeprefix(f"{PATH}: ")


def same(found: Weights, expected: Weights) -> bool:
    return list(found) == list(expected) and all(found[name].tobytes() == expected[name].tobytes() for name in expected)


# --- PyTorch ---

CONVENTIONS: dict[str, Callable[[str], str]] = {
    "torchvision": lambda name: name,
    "DataParallel": lambda name: f"module.{name}",
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "akamaster": lambda name: f"module.{name.replace('fc.', 'linear.').replace('.downsample.', '.shortcut.')}",
}


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("model", ["cifar_resnet20", "cifar_resnet20_b", "resnet18"])
def test_pytorch(convention: str, model: str) -> None:
    """Prefixes, the names of classifier and projections, and counters of steps; in any order."""
    weights = numbered(models.get(model))
    theirs = {CONVENTIONS[convention](name): array for name, array in reversed(weights.items())}
    theirs |= {f"{name.removesuffix('weight')}num_batches_tracked": np.int64(3) for name in theirs if "bn" in name and "weight" in name}
    found = imported(theirs, model)
    assert same(found.weights, weights)
    assert found.model == models.get(model)


def test_blocks_go_by_their_number() -> None:
    """The tenth block is not the second."""
    weights = numbered(models.get("cifar_resnet110"))
    assert same(imported(dict(sorted(weights.items())), "cifar_resnet110").weights, weights)


def test_classes_are_the_checkpoint_s() -> None:
    """CIFAR-100 and fine-tuned heads."""
    weights = numbered(with_constants(models.get("cifar_resnet20"), 100, {}))
    found = imported(weights, "cifar_resnet20")
    assert (found.model.classes, found.model.body[-1].out_features) == (100, 100)  # type: ignore[union-attr]
    assert same(found.weights, weights)


def without(name: str) -> Callable[[Weights], object]:
    return lambda weights: weights.pop(name)


def having(**changed: Any) -> Callable[[Weights], object]:
    return lambda weights: weights.update({name.replace("__", "."): value for name, value in changed.items()})


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (without("layer1.0.bn1.weight"), "lacks 'layer1.0.bn1.weight' of resnet18 (1 such); no other model is nearer"),
        (
            having(extra__weight=np.zeros(3, np.float32)),
            "holds 'extra.weight', which resnet18 does not have (1 such); no other model is nearer",
        ),
        (having(bn1__bias=np.zeros(65, np.float32)), "bn1.bias has the shape (65,), resnet18 needs (64,)"),
        (
            having(bn1__bias=np.full(64, np.nan, np.float32)),
            "bn1.bias: its float32 values are not all finite numbers that float32 holds exactly",
        ),
        (having(bn1__bias=np.full(64, 0.1)), "bn1.bias: its float64 values are not all finite numbers that float32 holds exactly"),
        (having(bn1__bias=np.full(64, 1e300)), "bn1.bias: its float64 values are not all finite"),
        (having(bn1__bias=np.zeros(64, np.int64)), "bn1.bias: its int64 values are not all finite"),
        (having(fc__weight=np.zeros((0, 512), np.float32)), "fc.weight has the shape (0, 512), resnet18 needs (1000, 512)"),
    ],
)
def test_what_does_not_fit_is_named(edit: Callable[[Weights], object], says: str) -> None:
    """One tensor too few, too many, of another shape, type or without a value."""
    weights = numbered(models.get("resnet18"))
    edit(weights)
    assert says in refusal(weights, "resnet18")


@pytest.mark.parametrize(
    ("held", "meant", "says"),
    [
        ("resnet34", "resnet18", "which resnet18 does not have (80 such); its tensors are all those of resnet34: --model resnet34"),
        ("resnet50", "resnet18", "its tensors are all those of resnet50: --model resnet50"),
        ("cifar_resnet56_b", "cifar_resnet56", "its tensors are all those of cifar_resnet56_b: --model cifar_resnet56_b"),
        ("cifar_resnet20", "resnet50", "its tensors are all those of cifar_resnet20: --model cifar_resnet20"),
    ],
)
def test_the_nearest_model_is_named(held: str, meant: str, says: str) -> None:
    """Another architecture's weights."""
    assert refusal(numbered(models.get(held)), meant).endswith(says)


def test_a_stem_that_no_model_has() -> None:
    """The stem of ResNet-D in timm: the nearest model, and how far off it is."""
    weights = numbered(models.get("resnet50"))
    del weights["conv1.weight"]
    weights |= {"conv1.0.weight": np.zeros((32, 3, 3, 3), np.float32), "conv1.3.weight": np.zeros((64, 32, 3, 3), np.float32)}
    assert refusal(weights, "resnet18").endswith("the nearest model is resnet50, from which 3 tensors differ")


# --- Keras ---


@pytest.mark.parametrize("scheme", [foreign.FIRST, foreign.LATER], ids=["first", "later"])
@pytest.mark.parametrize("whole", [False, True])
def test_keras(scheme: names.KerasNames, whole: bool, tmp_path: Path) -> None:
    """Both generations: layouts turned, biases taken into the means, and the epsilon of the generation."""
    model = models.get("resnet50_v1")
    weights = numbered(model)
    biases = foreign.keras(tmp_path / "weights.h5", model, weights, scheme, whole=whole)
    found = names.canonical(PATH, checkpoints.read(tmp_path / "weights.h5").tensors, model, keras=True)
    assert set(epsilons(found.model).values()) == {scheme.epsilon}
    assert found.model == with_constants(model, 1000, dict.fromkeys(epsilons(model), scheme.epsilon))
    assert len(biases) == 53
    for name, array in found.weights.items():
        if name.endswith("running_mean"):
            assert np.allclose(array, weights[name], rtol=0, atol=1e-6)  # added and taken away, with a rounding each
        else:
            assert array.tobytes() == weights[name].tobytes(), name


def test_biases_in_the_means_compute_the_same(tmp_path: Path) -> None:
    """The network with biases before batch norm, evaluated as Keras does, and the imported one."""
    weights = numbered(models.get("resnet18"))
    model = models.get("resnet18")
    biases = foreign.keras(tmp_path / "weights.h5", model, weights, foreign.LATER)
    found = names.canonical(PATH, checkpoints.read(tmp_path / "weights.h5").tensors, model, keras=True)
    theirs = with_biases(found.model)
    means = {f"{norm}.running_mean": weights[f"{norm}.running_mean"] + biases[conv] for conv, norm in foreign.followed(model.body)}
    kept = weights | {f"{conv}.bias": bias for conv, bias in biases.items()} | means
    images = np.random.default_rng(1).standard_normal((2, 3, 32, 32)).astype(np.float32)
    expected = forward(theirs, {name: kept[name] for name in tensor_shapes(theirs)}, images)
    assert np.allclose(forward(found.model, found.weights, images), expected, rtol=1e-4, atol=1e-6 * float(np.abs(expected).max()))


def with_biases(model: ModelSpec) -> ModelSpec:
    """Every convolution with a bias."""

    def changed(node: Any) -> Any:
        if isinstance(node, Block):
            return replace(node, branches=tuple(tuple(map(changed, branch)) for branch in node.branches))
        return replace(node, bias=True) if isinstance(node, Conv2d) else node

    return replace(model, body=tuple(map(changed, model.body)))


@pytest.mark.parametrize(
    ("model", "meant", "says"),
    [
        ("resnet50_v1", "resnet50", "Keras's ResNets have their stride on the first 1x1: its weights are for resnet50_v1"),
        ("resnet101_v1", "resnet50_v1", "its tensors are all those of resnet101_v1: --model resnet101_v1"),
        ("resnet50_v1", "resnet152_v1", "its tensors are all those of resnet50_v1: --model resnet50_v1"),
    ],
)
def test_keras_of_another_model(model: str, meant: str, says: str, tmp_path: Path) -> None:
    """Other depths, and the stride that Keras does not have."""
    foreign.keras(tmp_path / "weights.h5", models.get(model), numbered(models.get(model)), foreign.LATER)
    assert refusal(dict(checkpoints.read(tmp_path / "weights.h5").tensors), meant, keras=True).endswith(says)


def test_keras_leftovers() -> None:
    """A layer that nobody knows, a tensor twice, and no ResNet at all."""
    weights: Weights = {"conv1_bn/conv1_bn/gamma:0": np.ones(64, np.float32)}
    assert "lacks 'conv1.weight' of resnet50_v1" in refusal(weights, "resnet50_v1", keras=True)
    twice = weights | {"conv1_bn/conv1_bn/gamma_1:0": np.ones(64, np.float32)}
    assert refusal(twice, "resnet50_v1", keras=True) == "holds two tensors for bn1.weight: 'conv1_bn/conv1_bn/gamma_1:0' is one"
    odd = weights | {"conv9_bn/conv9_bn/gamma:0": np.ones(64, np.float32)}
    assert "holds 'conv9_bn/conv9_bn/gamma:0', which resnet50_v1 does not have (1 such)" in refusal(odd, "resnet50_v1", keras=True)
    assert refusal({"dense/kernel:0": np.ones((2, 2))}, "resnet50_v1", keras=True) == (
        "is an HDF5 file, but none of Keras's networks that are known: it has none of the layers bn_conv1, conv1_bn, block1_conv1"
    )


@pytest.mark.parametrize("scheme", [foreign.FIRST, foreign.LATER], ids=["first", "later"])
def test_keras_names_are_one_to_one(scheme: names.KerasNames) -> None:
    """No two layers have one name."""
    for name in ("resnet50_v1", "resnet101_v1", "resnet152_v1"):
        theirs = scheme.names(models.get(name))
        assert len(set(theirs.values())) == len(theirs)
    assert (
        scheme.names(models.get("resnet101_v1"))["layer3.22.bn2"]
        == {
            1e-3: "bn4w_branch2b",
            1.001e-5: "conv4_block23_2_bn",
        }[scheme.epsilon or 0]
    )


def test_keras_vgg(tmp_path: Path) -> None:
    """Blocks between the max-pools, and a linear layer that takes a map whose channels come last there and first here."""
    no_padding = Padding.same_on_all_sides(0)
    same_padding = Padding.same_on_all_sides(1)
    body = (
        *(Conv2d("features.0", 3, 4, 3, 1, same_padding, bias=True), Relu("features.1"), MaxPool2d("features.2", 2, 2, no_padding)),
        *(Conv2d("features.3", 4, 5, 3, 1, same_padding, bias=True), Relu("features.4"), MaxPool2d("features.5", 2, 2, no_padding)),
        *(Flatten("flatten", 5, 2, 2), Linear("classifier.0", 5 * 2 * 2, 6), Relu("classifier.1"), Linear("classifier.3", 6, 7)),
    )
    model = ModelSpec("vgg_of_two_blocks", (3, 8, 8), 7, body, "")
    weights = numbered(model)
    names_of = {
        **{"features.0": "block1_conv1", "features.3": "block2_conv1"},
        **{"classifier.0": "fc1", "classifier.3": "predictions"},
    }
    assert foreign.VGG.names(model) == names_of
    tensors: Weights = {}
    for layer, theirs in names_of.items():
        kernel = weights[f"{layer}.weight"]
        tensors[f"{theirs}/{theirs}/kernel:0"] = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T
        tensors[f"{theirs}/{theirs}/bias:0"] = weights[f"{layer}.bias"]
    tensors["fc1/fc1/kernel:0"] = weights["classifier.0.weight"].reshape(6, 5, 2, 2).transpose(2, 3, 1, 0).reshape(20, 6)
    assert same(names.canonical(PATH, tensors, model, keras=True).weights, weights)


def test_googlenet_s_heads_for_training_are_left_out() -> None:
    """And those of no other network."""
    weights = numbered(models.get("googlenet"))
    heads = {"aux1.conv.conv.weight": np.zeros(3, np.float32), "aux2.fc2.bias": np.zeros(3, np.float32)}
    assert same(imported(weights | heads, "googlenet").weights, weights)
    assert "holds 'aux1.conv.weight', which googlenet does not have" in refusal({"aux1.conv.weight": np.zeros(3)} | weights, "googlenet")
    assert "holds 'aux1.conv.conv.weight', which resnet18 does not have" in refusal(heads, "resnet18")


# --- Out ---


@pytest.mark.parametrize("name", state_dict.TORCHVISION[:3])
def test_round_trip_through_torchvision(name: str, tmp_path: Path) -> None:
    """Canonical to state dict to canonical: every bit, whatever the number of classes; and equal weights give equal files."""
    model = with_constants(models.get(name), 7, {})
    weights = numbered(model)
    assert state_dict.twin(PATH, model) == name
    state_dict.save(tmp_path / "a.pth", model, weights)
    state_dict.save(tmp_path / "b.pth", model, weights)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
    found = imported(dict(checkpoints.read(tmp_path / "a.pth").tensors), name)
    assert same(found.weights, weights)
    assert found.model == model


OF_TORCHVISION = {
    "resnet18": (122, "fcc3e68eb7d4c6b4"),
    "resnet34": (218, "4e4163928dfedf02"),
    "resnet50": (320, "bec98b1f5761a8d0"),
    "resnet101": (626, "ec04b6f8f814ac3e"),
    "resnet152": (932, "35a820c1f6b157df"),
    "vgg16": (32, "08248c3310654be3"),
    "vgg19": (38, "9619636d8d5d538e"),
    "vgg16_bn": (97, "6c3ac00f20474339"),
    "vgg19_bn": (118, "92cd561be6ddc418"),
    "googlenet": (344, "96fa9b7bec5fd2b1"),
    "alexnet": (16, "a8e3813ef4e97631"),
}
"""Of ``torchvision.models.NAME().state_dict()``, torchvision 0.28.0 (GoogLeNet with ``aux_logits=False``): how many tensors, and the first
digits of the SHA-256 of the sorted lines ``NAME SHAPE DTYPE``. Strict loading asks for exactly these names and shapes."""


@pytest.mark.parametrize("name", state_dict.TORCHVISION)
def test_torchvision_would_load_strictly(name: str) -> None:
    """What is exported has the names, shapes and types of torchvision's class, no more and no fewer."""
    model = models.get(name)
    nothing = {key: np.broadcast_to(np.float32(0), shape) for key, shape in tensor_shapes(model).items()}
    lines = sorted(f"{key} {tensor.shape} {tensor.dtype}" for key, tensor in state_dict._tensors(model, nothing))
    assert (len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]) == OF_TORCHVISION[name]


def test_pytorch_loads_what_is_exported(tmp_path: Path) -> None:
    """``torch.load``, with the counters that torchvision's modules have."""
    model = models.get("resnet18")
    weights = numbered(model)
    state_dict.save(tmp_path / "exported.pth", model, weights)
    found = foreign.loaded_by_torch(tmp_path / "exported.pth")
    counters = {f"{layer.name}.num_batches_tracked" for layer in layers(model.body) if isinstance(layer, BatchNorm2d)}
    assert found.keys() == weights.keys() | counters
    assert all(found[name].tobytes() == weights[name].tobytes() for name in weights)
    assert all(found[name].dtype == np.int64 and found[name].shape == () for name in counters)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (models.get("resnet50_v1"), "the weights would fit resnet50, which computes something else"),
        (with_constants(models.get("resnet50"), 1000, {"bn1": 1e-3}), "the weights would fit resnet50, which computes something else"),
        (
            models.get("cifar_resnet20"),
            "it has resnet18, resnet34, resnet50, resnet101, resnet152, vgg16, vgg19, vgg16_bn, vgg19_bn, googlenet, alexnet",
        ),
    ],
)
def test_torchvision_has_no_such_network(model: ModelSpec, says: str) -> None:
    """What its classes cannot express is not written."""
    with pytest.raises(WeightFileError) as caught:
        state_dict.twin(PATH, model)
    assert str(caught.value).endswith(says)


def test_a_basic_block_has_no_stride_to_choose() -> None:
    """resnet18_v1 is resnet18."""
    assert state_dict.twin(PATH, models.get("resnet18_v1")) == "resnet18"
    assert any(isinstance(layer, Relu) for layer in layers(models.get("resnet18_v1").body))
