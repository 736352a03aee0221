"""ResNets and plain nets for ImageNet and CIFAR (He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385).

Tensor names are torchvision's (torchvision 0.28 ``models/resnet.py``); CIFAR nets use the same scheme with three stages.

Two places for the stride of a downsampling bottleneck are in use: on the first 1x1, as in the paper's Caffe release
("v1"), and on the 3x3 ("v1.5"), as in torchvision. The same weights fit both and give different functions.
A basic block has only 3x3 convolutions, so there v1 and v1.5 are one network.
"""

from __future__ import annotations

import re
from typing import Literal

from impls.spec import (
    NO_PADDING,
    Add,
    BatchNorm2d,
    Block,
    Conv2d,
    GlobalAvgPool2d,
    Layer,
    Linear,
    MaxPool2d,
    ModelSpec,
    Node,
    Padding,
    PadShortcut,
    Relu,
)

Shortcut = Literal["A", "B", "C"]

# torch.nn.BatchNorm2d's numbers, which torchvision's checkpoints were trained with.
EPS = 1e-5
MOMENTUM = 0.1

# Blocks per stage: the paper's table 1.
BASIC_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
IMAGENET_WIDTHS = (64, 128, 256, 512)
CIFAR_WIDTHS = (16, 32, 64)  # section 4.2
EXPANSION = 4  # a bottleneck's output is four times as wide as its 3x3

NAMES: tuple[str, ...] = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"resnet{depth}_v1" for depth in (18, 34, 50, 101, 152)),
    "plain18",
    "plain34",
    *(f"cifar_resnet{depth}{shortcut}" for shortcut in ("", "_b", "_c") for depth in (20, 32, 44, 56, 110, 1202)),
    *(f"cifar_plain{depth}" for depth in (20, 32, 44, 56, 110)),
)

_NAME = re.compile(r"(?P<cifar>cifar_)?(?P<kind>resnet|plain)(?P<depth>[1-9]\d{0,4})(?P<v1>_v1)?(?:_(?P<shortcut>[abc]))?")


def parse(name: str) -> ModelSpec | None:
    """The model of this name, or None when the family has none.

    ``[cifar_](resnet|plain)DEPTH[_v1][_a|_b|_c]``: without a letter, ImageNet nets take shortcut option B and CIFAR nets
    option A, as the paper's main results do; plain nets have no shortcuts.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    depth, residual, letter = int(match["depth"]), match["kind"] == "resnet", match["shortcut"]
    if not residual and (letter or match["v1"]):
        return None
    default: Shortcut = "A" if match["cifar"] else "B"
    option: Shortcut | None = ({"a": "A", "b": "B", "c": "C", None: default}[letter]) if residual else None
    if match["cifar"]:
        return None if match["v1"] or depth < 8 or (depth - 2) % 6 else cifar(name, depth, option)
    if depth in BASIC_DEPTHS or (residual and depth in BOTTLENECK_DEPTHS):
        return imagenet(name, depth, option, stride_on_first=match["v1"] is not None)
    return None


def imagenet(name: str, depth: int, shortcut: Shortcut | None, *, stride_on_first: bool) -> ModelSpec:
    """A net of the paper's table 1; ``shortcut`` None gives the plain net of the same layers."""
    depths = BASIC_DEPTHS.get(depth) or BOTTLENECK_DEPTHS[depth]
    body: list[Node] = [*_conv_bn("conv1", "bn1", 3, 64, 7, 2), Relu("relu"), MaxPool2d("maxpool", 3, 2, Padding.same_on_all_sides(1))]
    channels = 64
    for stage, (blocks, width) in enumerate(zip(depths, IMAGENET_WIDTHS, strict=True), start=1):
        for index in range(blocks):
            stride = 2 if stage > 1 and index == 0 else 1
            prefix = f"layer{stage}.{index}"
            if depth in BASIC_DEPTHS:
                main, out = _basic(prefix, channels, width, stride), width
            else:
                main, out = _bottleneck(prefix, channels, width, stride, stride_on_first=stride_on_first), width * EXPANSION
            body += _joined(prefix, main, channels, out, stride, shortcut)
            channels = out
    return ModelSpec(
        name, (3, 224, 224), 1000, (*body, *_head(channels, 1000)), "arXiv 1512.03385 table 1; torchvision 0.28 models/resnet.py"
    )


def cifar(name: str, depth: int, shortcut: Shortcut | None) -> ModelSpec:
    """A CIFAR-10 net of the paper's section 4.2: 6n + 2 layers in three stages of 2n, widths 16, 32, 64."""
    body: list[Node] = [*_conv_bn("conv1", "bn1", 3, 16, 3, 1), Relu("relu")]
    channels = 16
    for stage, width in enumerate(CIFAR_WIDTHS, start=1):
        for index in range((depth - 2) // 6):
            stride = 2 if stage > 1 and index == 0 else 1
            prefix = f"layer{stage}.{index}"
            body += _joined(prefix, _basic(prefix, channels, width, stride), channels, width, stride, shortcut)
            channels = width
    return ModelSpec(name, (3, 32, 32), 10, (*body, *_head(channels, 10)), "arXiv 1512.03385 section 4.2")


def _conv_bn(conv: str, bn: str, in_channels: int, out_channels: int, kernel: int, stride: int) -> tuple[Layer, Layer]:
    padding = Padding.same_on_all_sides(kernel // 2) if kernel > 1 else NO_PADDING
    return (
        Conv2d(conv, in_channels, out_channels, kernel, stride, padding, bias=False),
        BatchNorm2d(bn, out_channels, EPS, MOMENTUM, "unbiased"),
    )


def _basic(prefix: str, in_channels: int, width: int, stride: int) -> tuple[Layer, ...]:
    return (
        *_conv_bn(f"{prefix}.conv1", f"{prefix}.bn1", in_channels, width, 3, stride),
        Relu(f"{prefix}.relu1"),
        *_conv_bn(f"{prefix}.conv2", f"{prefix}.bn2", width, width, 3, 1),
    )


def _bottleneck(prefix: str, in_channels: int, width: int, stride: int, *, stride_on_first: bool) -> tuple[Layer, ...]:
    return (
        *_conv_bn(f"{prefix}.conv1", f"{prefix}.bn1", in_channels, width, 1, stride if stride_on_first else 1),
        Relu(f"{prefix}.relu1"),
        *_conv_bn(f"{prefix}.conv2", f"{prefix}.bn2", width, width, 3, 1 if stride_on_first else stride),
        Relu(f"{prefix}.relu2"),
        *_conv_bn(f"{prefix}.conv3", f"{prefix}.bn3", width, width * EXPANSION, 1, 1),
    )


def _joined(
    prefix: str, main: tuple[Layer, ...], in_channels: int, out_channels: int, stride: int, shortcut: Shortcut | None
) -> tuple[Node, ...]:
    out = Relu(f"{prefix}.out")
    if shortcut is None:
        return (*main, out)
    return (Block(prefix, (main, _shortcut(prefix, in_channels, out_channels, stride, shortcut)), Add(f"{prefix}.add"), (out,)),)


def _shortcut(prefix: str, in_channels: int, out_channels: int, stride: int, option: Shortcut) -> tuple[Layer, ...]:
    """Options A, B and C of the paper's section 4.1."""
    changes = in_channels != out_channels or stride != 1
    if option == "C" or (option == "B" and changes):
        return _conv_bn(f"{prefix}.downsample.0", f"{prefix}.downsample.1", in_channels, out_channels, 1, stride)
    if not changes:
        return ()
    # The paper says only "extra zero entries"; half on each side is what the public CIFAR checkpoints have
    # (akamaster/pytorch_resnet_cifar10, resnet.py).
    before = (out_channels - in_channels) // 2
    return (PadShortcut(f"{prefix}.downsample", stride, before, out_channels - in_channels - before),)


def _head(channels: int, classes: int) -> tuple[Layer, Layer]:
    return GlobalAvgPool2d("avgpool"), Linear("fc", channels, classes)
