"""The families against published figures, and the names by which models are found."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impls import models
from impls.models import googlenet, resnet
from impls.spec import (
    Add,
    Block,
    Conv2d,
    Dropout,
    Layer,
    Linear,
    MaxPool2d,
    ModelSpec,
    PadShortcut,
    Relu,
    bytes_moved,
    layers,
    macs,
    output_shape,
    parameter_count,
    tap_shapes,
    tensor_shapes,
    walk,
)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # torchvision's num_params of each checkpoint.
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
    ],
)
def test_torchvision_parameter_counts(name: str, parameters: int) -> None:
    """Parameters are torchvision's to the last one; the place of the stride changes none."""
    assert parameter_count(models.get(name)) == parameters
    assert parameter_count(models.get(f"{name}_v1")) == parameters


@pytest.mark.parametrize(
    ("name", "parameters", "gmacs"),
    [
        # num_params and _ops of each checkpoint in torchvision 0.29's models/vgg.py, alexnet.py and googlenet.py.
        ("vgg16", 138_357_544, "15.470"),
        ("vgg16_bn", 138_365_992, "15.470"),
        ("vgg19", 143_667_240, "19.632"),
        ("vgg19_bn", 143_678_248, "19.632"),
        ("alexnet", 61_100_840, "0.714"),
        ("googlenet", 6_624_904, "1.498"),
    ],
)
def test_torchvision_counts_of_the_others(name: str, parameters: int, gmacs: str) -> None:
    """Parameters to the last one, multiply-accumulates to three decimals."""
    assert parameter_count(models.get(name)) == parameters
    assert f"{macs(models.get(name)) / 1e9:.3f}" == gmacs


@pytest.mark.parametrize(("depth", "millions"), [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.7"), (1202, "19.4")])
def test_paper_table_6_parameters(depth: int, millions: str) -> None:
    """CIFAR parameters are those of the paper's table 6, at its digits."""
    digits = len(millions.partition(".")[2])
    assert f"{parameter_count(models.get(f'cifar_resnet{depth}')) / 1e6:.{digits}f}" == millions


@pytest.mark.parametrize(
    ("name", "gmacs"),
    [
        # torchvision's _ops, which it calls GFLOPS; 3.858 is the net with the stride on the first 1x1.
        ("resnet18", "1.814"),
        ("resnet34", "3.664"),
        ("resnet50", "4.089"),
        ("resnet101", "7.801"),
        ("resnet152", "11.514"),
        ("resnet50_v1", "3.858"),
    ],
)
def test_torchvision_macs(name: str, gmacs: str) -> None:
    """Multiply-accumulates per 224x224 image are torchvision's to three decimals."""
    assert f"{macs(models.get(name)) / 1e9:.3f}" == gmacs


@pytest.mark.parametrize(("depth", "paper"), [(18, 1.8), (34, 3.6), (50, 3.8), (101, 7.6), (152, 11.3)])
def test_paper_table_1_flops(depth: int, paper: float) -> None:
    """The paper's "FLOPs" count a multiply-add once and put the stride on the first 1x1; it truncates or rounds to 0.1e9.

    The stem, the pool and the additions are in neither count beyond their convolutions.
    """
    assert abs(macs(models.get(f"resnet{depth}_v1")) / 1e9 - paper) < 0.1


@pytest.mark.parametrize(
    ("name", "megabytes"),
    [("resnet18", 13.0), ("resnet34", 19.3), ("resnet50", 57.0), ("resnet50_v1", 54.9), ("resnet101", 84.5), ("resnet152", 118.3)],
)
def test_bytes_moved(name: str, megabytes: float) -> None:
    """Traffic per image in bf16 at batch 256 with one kernel per convolution, counted by hand from the table of layers."""
    assert abs(bytes_moved(models.get(name), 2, 256) / 256 / 1e6 - megabytes) <= 0.05 + 1e-9


def test_weight_layers_make_the_depth() -> None:
    """A ResNet's name counts its convolutions and its fc, without shortcuts."""
    for name in (*resnet.NAMES, "vgg16", "vgg19", "vgg16_bn", "vgg19_bn"):
        model = models.get(name)
        weighted = [layer for layer in layers(model.body) if isinstance(layer, Conv2d | Linear) and ".downsample" not in layer.name]
        depth = name.removesuffix("_bn").removesuffix("_v1").removesuffix("_b").removesuffix("_c").lstrip("abcdefghijklmnopqrstuvwxyz_")
        assert len(weighted) == int(depth), name


@pytest.mark.parametrize("name", [name for name in resnet.NAMES if not re.search("plain|1202|_b|_c", name)])
def test_shortcut_options(name: str) -> None:
    """A has no shortcut parameters, B projects where the shape changes, C everywhere."""
    option_a, option_b, option_c = (models.get(f"{name}_{letter}") for letter in "abc")

    def projections(model: ModelSpec) -> int:
        return sum(isinstance(layer, Conv2d) and ".downsample." in layer.name for layer in layers(model.body))

    pads = [layer for layer in layers(option_a.body) if isinstance(layer, PadShortcut)]
    blocks = sum(layer.name.endswith(".add") for layer in layers(option_a.body))
    assert projections(option_a) == 0
    assert projections(option_b) == len(pads) > 0
    assert projections(option_c) == blocks
    assert parameter_count(option_a) < parameter_count(option_b) < parameter_count(option_c)
    default = models.get(name)
    assert tensor_shapes(default) == tensor_shapes(option_a if name.startswith("cifar") else option_b)


def test_stride_placement() -> None:
    """v1.5 strides the 3x3 of a downsampling bottleneck, v1 its first 1x1, and their tensors are the same."""

    def strides(name: str) -> dict[str, int]:
        return {layer.name: layer.stride for layer in layers(models.get(name).body) if isinstance(layer, Conv2d)}

    late, early = strides("resnet50"), strides("resnet50_v1")
    assert (late["layer2.0.conv1"], late["layer2.0.conv2"]) == (1, 2)
    assert (early["layer2.0.conv1"], early["layer2.0.conv2"]) == (2, 1)
    assert tensor_shapes(models.get("resnet50")) == tensor_shapes(models.get("resnet50_v1"))


def test_basic_blocks_have_one_stride_placement() -> None:
    """For 18 and 34 layers v1 and v1.5 are one network."""
    for depth in (18, 34):
        assert models.get(f"resnet{depth}").body == models.get(f"resnet{depth}_v1").body


@pytest.mark.parametrize(
    ("name", "first", "last", "biased"),
    [
        ("vgg16", "features.0", "features.30", True),
        ("vgg19", "features.0", "features.36", True),
        ("vgg16_bn", "features.0", "features.43", True),
        ("vgg19_bn", "features.0", "features.52", True),
        ("alexnet", "features.0", "features.12", True),
        ("googlenet", "conv1.conv", "inception5b.concat", False),
    ],
)
def test_names_of_the_others_are_torchvisions(name: str, first: str, last: str, biased: bool) -> None:
    """The last map has the number that torchvision's ``features`` end with; convolutions have a bias where torchvision's have."""
    model = models.get(name)
    maps = [tap for tap, shape in tap_shapes(model, 1, 224, 224).items() if len(shape) == 4]
    assert (maps[0], maps[-1]) == (first, last)
    assert {layer.bias for layer in layers(model.body) if isinstance(layer, Conv2d)} == {biased}


def test_tensors_of_the_others() -> None:
    """The tensors around each seam, by name and shape, as in torchvision 0.29's state dicts."""
    assert [(name, shape) for name, shape in tensor_shapes(models.get("vgg16_bn")).items() if not name.startswith("features.")] == [
        ("classifier.0.weight", (4096, 25088)),
        ("classifier.0.bias", (4096,)),
        ("classifier.3.weight", (4096, 4096)),
        ("classifier.3.bias", (4096,)),
        ("classifier.6.weight", (1000, 4096)),
        ("classifier.6.bias", (1000,)),
    ]
    assert tensor_shapes(models.get("vgg16_bn"))["features.41.running_var"] == (512,)
    alexnet = tensor_shapes(models.get("alexnet"))
    assert (alexnet["features.0.weight"], alexnet["classifier.1.weight"]) == ((64, 3, 11, 11), (4096, 9216))
    googlenet = tensor_shapes(models.get("googlenet"))
    assert googlenet["inception3a.branch1.conv.weight"] == (64, 192, 1, 1)
    assert googlenet["inception5b.branch3.1.conv.weight"] == (128, 48, 3, 3)
    assert googlenet["inception5b.branch4.1.bn.running_mean"] == (128,)
    assert list(googlenet)[-2:] == ["fc.weight", "fc.bias"]
    assert len(googlenet) == 57 * 5 + 2


def test_maps_of_googlenet() -> None:
    """Channels and size behind each stage and block: the column "output size" of table 1 of arXiv 1409.4842."""
    model = models.get("googlenet")
    shapes = tap_shapes(model, 1, 224, 224)
    stem = {"conv1.relu": (64, 112), "maxpool1": (64, 56), "conv3.relu": (192, 56), "maxpool2": (192, 28)}
    pools = {"maxpool3": (480, 14), "maxpool4": (832, 7)}
    widths = zip(("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"), (256, 480, 512, 512, 512, 528, 832, 832, 1024), strict=True)
    blocks = {f"inception{name}.concat": (width, {"3": 28, "4": 14, "5": 7}[name[0]]) for name, width in widths}
    assert {name: (shapes[name][1], shapes[name][2]) for name in (*stem, *pools, *blocks)} == stem | pools | blocks
    assert sum(isinstance(node, Block) for node in model.body) == 9


@given(size=st.integers(2, 400), kernel=st.sampled_from([2, 3]))
def test_ceil_mode_is_a_padding_behind_the_map(size: int, kernel: int) -> None:
    """At every size there are as many windows as in ceil mode, whose last must begin on the map (ATen/native/Pool.h)."""
    windows = -(-(size - kernel) // 2) + 1
    windows -= (windows - 1) * 2 >= size
    pools = [layer for layer in layers(models.get("googlenet").body) if isinstance(layer, MaxPool2d) and layer.stride == 2]
    assert [pool.kernel for pool in pools] == [3, 3, 3, 2]
    for pool in pools:
        if pool.kernel == kernel:
            assert output_shape(pool, (1, 1, size, size)) == (1, 1, windows, windows)


def test_dropout_stands_where_torchvision_has_it() -> None:
    """Before which linear layer, and with which probability."""

    def found(name: str) -> list[tuple[str, float]]:
        return [(layer.name, layer.probability) for layer in layers(models.get(name).body) if isinstance(layer, Dropout)]

    assert found("vgg16") == found("vgg19_bn") == [("classifier.2", 0.5), ("classifier.5", 0.5)]
    assert found("alexnet") == [("classifier.0", 0.5), ("classifier.3", 0.5)]
    assert found("googlenet") == [("dropout", 0.2)]
    heads = googlenet.with_heads(models.get("googlenet")).body
    assert [(layer.name, layer.probability) for layer in layers(heads) if isinstance(layer, Dropout)] == [
        ("dropout", 0.2),
        ("aux2.dropout", 0.7),
        ("aux1.dropout", 0.7),
    ]


def test_googlenet_s_heads() -> None:
    """Parameters and names are those that torchvision 0.29 has with ``aux_logits``; the network that is run has none of them."""
    model, trained = models.get("googlenet"), models.in_training(models.get("googlenet"))
    assert (parameter_count(model), parameter_count(trained)) == (6_624_904, 13_004_888)
    shapes = tap_shapes(trained, 2, 224, 224)
    assert list(shapes.items())[-1] == ("aux1.logits", (2, 3000))
    assert (shapes["aux1.avgpool"], shapes["aux2.avgpool"]) == ((2, 512, 4, 4), (2, 528, 4, 4))
    leaves = {f"conv.{leaf}": 1 for leaf in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")}
    leaves |= {f"{layer}.{leaf}": 1 for layer in ("fc1", "fc2") for leaf in ("weight", "bias")}
    extra = tensor_shapes(trained).keys() - tensor_shapes(model).keys()
    assert extra == {f"{head}.{leaf}" for head in ("aux1", "aux2") for leaf in leaves}
    assert tensor_shapes(model).items() <= tensor_shapes(trained).items()
    readers: dict[str, list[str]] = {}

    def apply(layer: Layer, *inputs: str) -> str:
        for name in inputs:
            readers.setdefault(name, []).append(layer.name)
        return layer.name

    walk(trained.body, apply, "images")
    assert [block for block, names in readers.items() if any(name.endswith("aux1.avgpool") for name in names)] == ["inception4a.concat"]
    assert [block for block, names in readers.items() if any(name.endswith("aux2.avgpool") for name in names)] == ["inception4d.concat"]
    assert (readers["fc"], readers["aux2.logits"], readers["aux1.fc2"]) == (["aux2.logits"], ["aux1.logits"], ["aux1.logits"])


def test_what_is_trained() -> None:
    """A network without dropout and heads is trained as it is; another by another name, with all that it holds but dropout."""
    for name in models.NAMES:
        model = models.get(name)
        trained = models.in_training(model)
        assert not any(isinstance(layer, Dropout) for layer in layers(trained.body))
        assert (trained is model) == (trained.name == name) == (not any(isinstance(layer, Dropout) for layer in layers(model.body)))
        if name != "googlenet":
            assert [layer for layer in layers(model.body) if not isinstance(layer, Dropout)] == list(layers(trained.body))
            assert trained.auxiliary_weights == ()
    block = Block("b", ((Dropout("b.d", 0.5), Relu("b.r")), (Dropout("b.e", 0.5),)), Add("b.add"), (Dropout("b.f", 0.5), Relu("b.o")))
    within = models.in_training(ModelSpec("mine", (3, 8, 8), 3, (block,), "test"))
    assert [layer.name for layer in layers(within.body)] == ["b.r", "b.add", "b.o"]


@given(n=st.integers(1, 40))
def test_any_cifar_depth(n: int) -> None:
    """Every 6n + 2 is a ResNet and a plain net with equal parameters under option A, as counted stage by stage."""
    residual, plain = models.get(f"cifar_resnet{6 * n + 2}"), models.get(f"cifar_plain{6 * n + 2}")
    # Per stage of width w: 2n convolutions of 9 w^2 with 2 w of batch norm, less half a kernel where the width doubles.
    stages = sum(2 * n * (9 * w * w + 2 * w) for w in (16, 32, 64)) - 9 * (32 * 16 + 64 * 32)
    expected = 3 * 16 * 9 + 2 * 16 + stages + 64 * 10 + 10
    assert parameter_count(residual) == parameter_count(plain) == expected


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet49", "resnet"),
        ("ResNet50", "resnet50"),
        ("resnet-50", "resnet50"),
        ("cifar_resnet21", "cifar_resnet"),
        ("cifar_resnet2", "cifar_resnet"),
        ("cifar_resnet020", "cifar_resnet20"),
        ("resnet50_d", "resnet50"),
        ("plain50", "plain"),
        ("plain34_b", "plain34"),
        ("plain34_v1", "plain34"),
        ("cifar_resnet20_v1", "cifar_resnet20"),
        ("resnet50\n", "resnet50"),
        ("vgg11", "vgg1"),
        ("vgg16bn", "vgg16"),
        ("GoogLeNet", "googlenet"),
        ("alexnet_bn", "alexnet"),
        ("", ""),
    ],
)
def test_unknown_names_give_the_nearest(name: str, nearest: str) -> None:
    """A name that no family knows is refused with the nearest that exists."""
    with pytest.raises(models.UnknownModelError) as caught:
        models.get(name)
    assert str(caught.value).startswith(f"there is no model {name!r}; the nearest is ")
    suggestion = str(caught.value).split("the nearest is '")[1].split("'")[0]
    assert suggestion in models.NAMES
    assert suggestion.startswith(nearest)


@given(st.text(max_size=30))
def test_any_text_is_a_model_or_unknown(name: str) -> None:
    """No text gives anything but a model of that name or UnknownModelError."""
    with contextlib.suppress(models.UnknownModelError):
        assert models.get(name).name == name


def test_all_names_are_found() -> None:
    """Every listed name gives a model that is called so."""
    assert [models.get(name).name for name in models.NAMES] == list(models.NAMES)
    assert len(set(models.NAMES)) == len(models.NAMES)
