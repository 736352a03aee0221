"""Shapes, order, counts and identity, which follow from the spec alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from impls import models
from impls.models import NAMES, get
from impls.spec import (
    NO_PADDING,
    AdaptiveAvgPool2d,
    Add,
    BatchNorm2d,
    Block,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    Linear,
    MaxPool2d,
    ModelSpec,
    Node,
    Padding,
    Relu,
    SpecError,
    as_json,
    bytes_moved,
    from_json,
    layers,
    macs,
    output_shape,
    parameter_count,
    tap_shapes,
    tensor_shapes,
    walk,
    windows,
)

CONV = Conv2d("conv", 3, 8, 3, 2, Padding(0, 1, 2, 3), bias=True)
NORM = BatchNorm2d("bn", 8, 1e-5, 0.1, "unbiased")


def net(*body: Node) -> ModelSpec:
    return ModelSpec("net", (3, 10, 12), 5, body, "a test")


def slid(size: int, before: int, after: int, kernel: int, stride: int) -> int:
    """Number of places at which a window fits, by sliding it."""
    return len([start for start in range(0, size + before + after, stride) if start + kernel <= size + before + after])


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    pads=st.tuples(*[st.integers(0, 4)] * 4),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 4),
)
def test_window_shapes(size: tuple[int, int], pads: tuple[int, int, int, int], kernel: int, stride: int) -> None:
    """Convolution and pool give as many outputs as places where the window fits, and refuse where there is none."""
    top, bottom, left, right = pads
    height = slid(size[0], top, bottom, kernel, stride)
    width = slid(size[1], left, right, kernel, stride)
    conv = Conv2d("layer1.conv", 3, 8, kernel, stride, Padding(*pads), bias=False)
    pool = MaxPool2d("pool", kernel, stride, Padding(*pads))
    for layer, channels in ((conv, 8), (pool, 3)):
        if height and width:
            assert output_shape(layer, (2, 3, *size)) == (2, channels, height, width)
        else:
            with pytest.raises(SpecError, match=f"^{layer.name}: .*too small for its {kernel}x{kernel} window"):
                output_shape(layer, (2, 3, *size))


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (CONV, [(1, 4, 8, 8)]),
        (CONV, [(1, 3)]),
        (MaxPool2d("pool", 3, 2, NO_PADDING), [(1, 3)]),
        (NORM, [(1, 7, 4, 4)]),
        (NORM, [(1, 8)]),
        (Linear("fc", 8, 5), [(1, 7)]),
        (Linear("fc", 8, 5), [(1, 8, 1, 1)]),
        (Add("add"), [(1, 8, 4, 4), (1, 8, 2, 2)]),
        (Concat("cat"), [(1, 8, 4, 4), (1, 8, 4, 2)]),
        (Concat("cat"), [(1, 8, 4, 4), (2, 8, 4, 4)]),
        (Concat("cat"), [(1, 8), (2, 8)]),
        (Concat("cat"), [(1, 8), (1, 8, 4, 4)]),
        (AdaptiveAvgPool2d("pool", 4), [(1, 8)]),
        (Flatten("flat", 8, 4, 2), [(1, 8, 2, 4)]),
        (Flatten("flat", 8, 4, 2), [(1, 64)]),
    ],
)
def test_misfits_name_the_layer(layer: Layer, inputs: list[tuple[int, ...]]) -> None:
    """An input that a layer cannot take is refused with the layer's name."""
    with pytest.raises(SpecError, match=f"^{layer.name}: "):
        output_shape(layer, *inputs)


def test_shapes_of_what_moves_values() -> None:
    """Channels add up in a concatenation, a map's elements in a flattening, and dropout changes nothing."""
    assert output_shape(Concat("cat"), (2, 3, 5, 4), (2, 8, 5, 4), (2, 1, 5, 4)) == (2, 12, 5, 4)
    assert output_shape(Concat("cat"), (2, 5), (2, 7)) == (2, 12)
    assert output_shape(Flatten("flat", 8, 4, 2), (3, 8, 4, 2)) == (3, 64)
    assert output_shape(Dropout("drop", 0.5), (3, 64)) == (3, 64)


@given(size=st.integers(1, 60), count=st.integers(1, 20))
def test_windows_cover_a_map(size: int, count: int) -> None:
    """They go on from row to row without a gap, none is empty, and turned around they are the same."""
    found = windows(size, count)
    assert (len(found), found[0][0], found[-1][1]) == (count, 0, size)
    assert all(first < end for first, end in found)
    assert all(first <= later <= end for (first, end), (later, _) in pairwise(found))
    assert found == tuple((size - end, size - first) for first, end in reversed(found))
    assert output_shape(AdaptiveAvgPool2d("pool", count), (2, 3, size, 2 * size)) == (2, 3, count, count)


def test_windows_of_googlenet() -> None:
    """Of 14 rows four windows of four, three or four apart; of 7 two of two and two of three."""
    assert windows(14, 4) == ((0, 4), (3, 7), (7, 11), (10, 14))
    assert windows(7, 4) == ((0, 2), (1, 4), (3, 6), (5, 7))


def test_a_flattening_net_takes_one_size() -> None:
    """Images of another size are refused at the layer that cannot take them, with what it takes."""
    with pytest.raises(SpecError, match=r"^flatten: takes 512 maps of 7x7, its input is \(1, 512, 2, 2\)"):
        tap_shapes(models.get("vgg16"), 1, 64, 64)


def test_branches_that_differ_are_refused() -> None:
    """A block whose branches do not fit together is refused at its sum."""
    block = Block("block", ((replace(CONV, stride=1),), (CONV,)), Add("block.add"), ())
    with pytest.raises(SpecError, match=r"^block\.add: its branches differ in shape"):
        tap_shapes(net(block), 1, 10, 12)


def test_too_small_images_name_the_layer() -> None:
    """A stage that an image does not reach names the layer where it ran out."""
    model = replace(models.get("resnet18"), body=(MaxPool2d("maxpool", 3, 2, NO_PADDING),))
    with pytest.raises(SpecError, match=r"^maxpool: "):
        tap_shapes(model, 1, 2, 224)


@pytest.mark.parametrize(
    ("name", "size", "stages"),
    [
        # Heights and widths of the stem's convolution, the pool (ImageNet), and each stage, by hand: ceil(size / 2) each time.
        ("resnet18", (224, 224), [(112, 112), (56, 56), (56, 56), (28, 28), (14, 14), (7, 7)]),
        ("resnet50", (225, 97), [(113, 49), (57, 25), (57, 25), (29, 13), (15, 7), (8, 4)]),
        ("resnet50_v1", (63, 64), [(32, 32), (16, 16), (16, 16), (8, 8), (4, 4), (2, 2)]),
        ("resnet18", (1, 1), [(1, 1)] * 6),
    ],
)
def test_imagenet_sizes(name: str, size: tuple[int, int], stages: list[tuple[int, int]]) -> None:
    """Odd, non-square and smallest images go through with the sizes that halving gives."""
    shapes = tap_shapes(models.get(name), 2, *size)
    last = [max((tap for tap in shapes if tap.startswith(f"layer{n}.") and tap.endswith(".out")), key=len) for n in (1, 2, 3, 4)]
    assert [shapes[tap][2:] for tap in ("conv1", "maxpool", *last)] == stages
    assert shapes["fc"] == (2, 1000)


@pytest.mark.parametrize("option", ["a", "b", "c"])
@settings(max_examples=20)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_shortcuts_fit_at_every_size(option: str, height: int, width: int) -> None:
    """Options A, B and C give both branches one shape at odd and non-square sizes."""
    for name in ("cifar_resnet20", "resnet18", "resnet50", "resnet50_v1"):
        model = models.get(f"{name}_{option}")
        assert tap_shapes(model, 3, height, width)["fc"] == (3, model.classes)


def test_taps_follow_the_layers() -> None:
    """Every layer has one tap, in the order of ``layers`` and of ``walk``, and names do not repeat."""
    for name in models.NAMES:
        model = models.get(name)
        names = [layer.name for layer in layers(model.body)]
        assert names == list(tap_shapes(model, 1, *model.input_chw[1:]))
        assert len(set(names)) == len(names)


def test_walk_order_and_wiring() -> None:
    """Branches are evaluated in order from the same input, then merged in that order, then what follows."""

    def relu(name: str) -> Relu:
        return Relu(name)

    inner = Block("inner", ((relu("c"),), ()), Add("inner.add"), (relu("d"),))
    outer = Block("outer", ((relu("a"), inner), (relu("b"),), ()), Add("outer.add"), (relu("e"),))
    visited: list[str] = []

    def apply(layer: Layer, *inputs: str) -> str:
        visited.append(layer.name)
        return f"{layer.name}({','.join(inputs)})"

    result = walk((relu("first"), outer, relu("last")), apply, "x")
    a = "a(first(x))"
    assert result == f"last(e(outer.add(d(inner.add(c({a}),{a})),b(first(x)),first(x))))"
    assert visited == ["first", "a", "c", "inner.add", "d", "b", "outer.add", "e", "last"]
    assert visited == [layer.name for layer in layers((relu("first"), outer, relu("last")))]


def test_tensor_shapes_are_torchvisions() -> None:
    """Names, shapes and order of resnet18's first tensors, as in torchvision's state_dict."""
    shapes = tensor_shapes(models.get("resnet18"))
    assert list(shapes.items())[:6] == [
        ("conv1.weight", (64, 3, 7, 7)),
        ("bn1.weight", (64,)),
        ("bn1.bias", (64,)),
        ("bn1.running_mean", (64,)),
        ("bn1.running_var", (64,)),
        ("layer1.0.conv1.weight", (64, 64, 3, 3)),
    ]
    assert shapes["layer2.0.downsample.0.weight"] == (128, 64, 1, 1)
    assert shapes["layer4.1.bn2.running_var"] == (512,)
    assert list(shapes.items())[-2:] == [("fc.weight", (1000, 512)), ("fc.bias", (1000,))]
    assert len(shapes) == 20 * 5 + 2


def test_counts_of_a_net_by_hand() -> None:
    """Parameters, multiply-accumulates and traffic of a net small enough to count on paper."""
    model = net(CONV, NORM, Relu("relu"), GlobalAvgPool2d("avgpool"), Linear("fc", 8, 5))
    # Output of the convolution: (10 + 0 + 1 - 3) // 2 + 1 = 5 rows, (12 + 2 + 3 - 3) // 2 + 1 = 8 columns.
    assert tap_shapes(model, 2, 10, 12)["conv"] == (2, 8, 5, 8)
    assert parameter_count(model) == (8 * 3 * 9 + 8) + (8 + 8) + (8 * 5 + 5)
    assert macs(model) == 8 * 5 * 8 * 3 * 9 + 8 * 5
    assert macs(model, 20, 12) == 8 * 10 * 8 * 3 * 9 + 8 * 5
    activations = 2 * (3 * 10 * 12 + 8 * 5 * 8) + 2 * (8 * 5 * 8 + 8) + 2 * (8 + 5)
    assert bytes_moved(model, 4, 2) == 4 * (activations + parameter_count(model))


def test_residual_sum_reads_its_shortcut_once() -> None:
    """A sum happens in the convolution before it, so only the other branch is read again."""
    conv = Conv2d("conv", 3, 3, 1, 1, NO_PADDING, bias=False)
    block = Block("block", ((conv,), ()), Add("add"), (Relu("out"),))
    assert bytes_moved(net(block), 1, 1) == 3 * (3 * 10 * 12) + 9


def test_branches_are_written_where_they_belong() -> None:
    """Concatenation, flattening and dropout move nothing of their own."""
    conv = Conv2d("conv", 3, 2, 1, 1, NO_PADDING, bias=False)
    block = Block("block", ((conv,), (replace(conv, name="other"),)), Concat("cat"), (Relu("out"),))
    alone = bytes_moved(net(conv), 1, 1)
    assert bytes_moved(net(block, Flatten("flat", 4, 10, 12), Dropout("drop", 0.5)), 1, 1) == 2 * alone


def rebuilt(value: Any) -> Any:
    """A node, padding or tuple made again from its JSON."""
    if isinstance(value, list):
        return tuple(map(rebuilt, value))
    if not isinstance(value, dict):
        return value
    kinds = {kind.__name__: kind for kind in (*get_args(Layer), Block)}
    fields = {key: rebuilt(item) for key, item in value.items() if key != "kind"}
    return kinds[value["kind"]](**fields) if "kind" in value else Padding(**fields)


@pytest.mark.parametrize("name", [name for name in models.NAMES if "1202" not in name])
def test_json_holds_the_whole_spec(name: str) -> None:
    """A model made again from its JSON text is equal to the model."""
    model = models.get(name)
    document = json.loads(json.dumps(as_json(model)))
    fields = {key: rebuilt(value) for key, value in document.items()}
    assert ModelSpec(**fields) == model


def test_distinct_specs_give_distinct_json() -> None:
    """Changing any one number of a layer, a name, a branch or what follows changes the JSON."""
    relu, other = Relu("out"), Conv2d("c", 8, 8, 1, 1, NO_PADDING, bias=False)
    block = Block("block", ((other,), ()), Add("add"), (relu,))
    base = net(CONV, NORM, block)
    variants = [
        base,
        replace(base, name="other"),
        replace(base, classes=6),
        replace(base, input_chw=(3, 12, 10)),
        replace(base, source="elsewhere"),
        *(
            net(conv, NORM, block)
            for conv in (
                replace(CONV, stride=1),
                replace(CONV, kernel=4),
                replace(CONV, bias=False),
                replace(CONV, padding=Padding(1, 0, 2, 3)),
                replace(CONV, padding=Padding(0, 1, 3, 2)),
            )
        ),
        *(
            net(CONV, norm, block)
            for norm in (replace(NORM, eps=1.001e-5), replace(NORM, momentum=0.9), replace(NORM, running_variance="biased"))
        ),
        *(
            net(CONV, NORM, changed)
            for changed in (
                replace(block, branches=((), (other,))),
                replace(block, branches=((other,),)),
                replace(block, then=()),
                replace(block, merge=Add("sum")),
                replace(block, merge=Concat("add")),
                replace(block, branches=((other, relu), ()), then=()),
            )
        ),
        net(CONV, NORM),
        net(NORM, CONV, block),
        *(net(CONV, NORM, block, each) for each in (Flatten("f", 8, 2, 3), Flatten("f", 8, 3, 2), Dropout("f", 0.5), Dropout("f", 0.2))),
    ]
    assert len({json.dumps(as_json(model), sort_keys=True) for model in variants}) == len(variants)


def _document(**changes: object) -> dict[str, Any]:
    """The smallest net as JSON, its first convolution changed."""
    document: Any = as_json(get("cifar_resnet8"))
    document["body"][0] |= changes
    return document


@pytest.mark.parametrize("name", NAMES)
def test_json_there_and_back(name: str) -> None:
    """What as_json wrote, from_json reads."""
    assert from_json(json.loads(json.dumps(as_json(get(name))))) == get(name)


def test_json_of_auxiliary_heads() -> None:
    """Their weights stand in the document of a network that has them, and in no other; and they are as many as the heads."""
    model = models.in_training(get("googlenet"))
    document = json.loads(json.dumps(as_json(model)))
    assert from_json(document) == model
    assert "auxiliary_weights" not in as_json(get("googlenet"))
    for weights, message in (
        ([0.3], "its output is not the 1000 logits of each of 2 heads"),
        ([0.3, 2.0], "auxiliary_weights must be numbers above 0 and at most 1"),
        ([0.3, True], "auxiliary_weights must be"),
        (0.3, "auxiliary_weights must be"),
    ):
        with pytest.raises(SpecError, match=message):
            from_json(document | {"auxiliary_weights": weights})


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (_document(stride=0), "Conv2d.stride: 0 is out of range"),
        (_document(kernel=1 << 40), "Conv2d.kernel: 1099511627776 is out of range"),
        (_document(stride="2"), "Conv2d.stride: '2' is not of type int"),
        (_document(stride=True), "Conv2d.stride: 'True' is not of type int"),
        (_document(out_channels=17), "bn1: has 16 channels"),
        (_document(name="bn1"), "bn1: the name stands twice"),
        (_document(kind="Padding"), "there is no layer kind 'Padding'"),
        (_document(groups=1), "Conv2d: expected the fields"),
        (_document(padding=[1, 1, 1, 1]), "Padding: expected the fields"),
        ({**_document(), "input_chw": [3, 32]}, "input_chw must be three positive integers"),
        ({**_document(), "body": {}}, "expected a list of nodes"),
        ([], "model: expected the fields"),
    ],
)
def test_a_faulty_document_is_refused(document: object, message: str) -> None:
    """The sentence names the layer or the field."""
    with pytest.raises(SpecError, match=re.escape(message)):
        from_json(document)
