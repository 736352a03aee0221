"""What a network is: layers, blocks and models as frozen data, and what follows from the data alone.

Every number is explicit: no default of any framework is relied on, and padding is always four integers.
Layers carry the names under which their tensors stand in the weight file (torchvision's names) and under which
their outputs ("taps") are compared. The spec owns the wiring; an implementation owns the arithmetic.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

Shape = tuple[int, ...]
T = TypeVar("T")


class SpecError(ValueError):
    """A network that does not fit together; the message names the layer."""


@dataclass(frozen=True, slots=True)
class Padding:
    """Rows and columns added around an image, in elements."""

    top: int
    bottom: int
    left: int
    right: int

    @classmethod
    def same_on_all_sides(cls, size: int) -> Padding:
        """``size`` rows or columns on each side."""
        return cls(size, size, size, size)


NO_PADDING = Padding(0, 0, 0, 0)


class _NoTensors:
    """A layer without weights."""

    __slots__ = ()

    def tensors(self) -> dict[str, Shape]:
        """None."""
        return {}


@dataclass(frozen=True, slots=True)
class Conv2d:
    """Cross-correlation with a square kernel; zero padding. Weight is OIHW, bias (O,)."""

    name: str
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    padding: Padding
    bias: bool

    def tensors(self) -> dict[str, Shape]:
        """Shape of each tensor that the layer holds, by the last part of its name."""
        shapes: dict[str, Shape] = {"weight": (self.out_channels, self.in_channels, self.kernel, self.kernel)}
        return shapes | {"bias": (self.out_channels,)} if self.bias else shapes


@dataclass(frozen=True, slots=True)
class BatchNorm2d:
    """(x - mean) / sqrt(var + eps) * weight + bias, per channel (Ioffe and Szegedy, arXiv 1502.03167).

    In inference mean and var are the stored running statistics. In training they are the batch's, var with divisor n;
    the running statistics become (1 - momentum) * old + momentum * batch, with divisor n - 1 where
    ``running_variance`` is "unbiased" and n where it is "biased".
    """

    name: str
    channels: int
    eps: float
    momentum: float
    running_variance: Literal["unbiased", "biased"]

    def tensors(self) -> dict[str, Shape]:
        """Scale, offset and running statistics, (channels,) each."""
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (self.channels,))


@dataclass(frozen=True, slots=True)
class Relu(_NoTensors):
    """max(x, 0), with derivative 0 at 0."""

    name: str


@dataclass(frozen=True, slots=True)
class MaxPool2d(_NoTensors):
    """Maximum over a square window; padding holds minus infinity, so a pad is never the maximum."""

    name: str
    kernel: int
    stride: int
    padding: Padding


@dataclass(frozen=True, slots=True)
class GlobalAvgPool2d(_NoTensors):
    """Mean over height and width: (N, C, H, W) to (N, C)."""

    name: str


@dataclass(frozen=True, slots=True)
class AdaptiveAvgPool2d(_NoTensors):
    """Mean over ``size`` x ``size`` windows that cover a map of any size, as ``windows`` says: (N, C, H, W) to (N, C, size, size)."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Flatten(_NoTensors):
    """(N, C, H, W) to (N, C H W): channel by channel, and in each row by row, the order in which the weights behind it stand.

    The one size of map that those weights fit is said here, so no other goes through.
    """

    name: str
    channels: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Dropout(_NoTensors):
    """The identity in inference.

    In training each element is 0 with ``probability`` and the others are divided by 1 - ``probability`` (Srivastava et al., JMLR
    15, 2014, with the scale in training). Which are 0 every framework draws for itself, so networks are trained here without it.
    """

    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class Linear:
    """x @ weight.T + bias: (N, in_features) to (N, out_features)."""

    name: str
    in_features: int
    out_features: int

    def tensors(self) -> dict[str, Shape]:
        """Weight (out, in) and bias (out,)."""
        return {"weight": (self.out_features, self.in_features), "bias": (self.out_features,)}


@dataclass(frozen=True, slots=True)
class PadShortcut(_NoTensors):
    """The paper's option A: every ``stride``-th row and column from the first, and zero channels added on both sides."""

    name: str
    stride: int
    channels_before: int
    channels_after: int


@dataclass(frozen=True, slots=True)
class Add(_NoTensors):
    """Sum of its inputs, in the order of the branches."""

    name: str


@dataclass(frozen=True, slots=True)
class Concat(_NoTensors):
    """The channels of its inputs behind one another, in the order of the branches: (N, C_i, H, W) to (N, sum of C_i, H, W).

    So are the logits (N, C_i) of several heads.
    """

    name: str


Layer = (
    Conv2d | BatchNorm2d | Relu | MaxPool2d | GlobalAvgPool2d | AdaptiveAvgPool2d | Flatten | Dropout | Linear | PadShortcut | Add | Concat
)


@dataclass(frozen=True, slots=True)
class Block:
    """Branches that take the same input, are joined by ``merge`` and go through ``then``.

    An empty branch is the identity shortcut.
    """

    name: str
    branches: tuple[tuple[Node, ...], ...]
    merge: Add | Concat
    then: tuple[Layer, ...]


Node = Layer | Block


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A network with a name.

    ``input_chw`` is the size that the published accuracy is for; every function here takes other sizes too.
    ``source`` says where the numbers come from.

    A network in training may have auxiliary heads. Its output is then the logits of the main head and, behind them, those of each
    auxiliary one: (N, classes * heads). The loss is the main head's and each other's times its weight in ``auxiliary_weights``.
    """

    name: str
    input_chw: tuple[int, int, int]
    classes: int
    body: tuple[Node, ...]
    source: str
    auxiliary_weights: tuple[float, ...] = ()

    @property
    def heads(self) -> int:
        """The main one and the auxiliary ones."""
        return 1 + len(self.auxiliary_weights)


def walk(nodes: tuple[Node, ...], apply: Callable[..., T], x: T) -> T:
    """Evaluate the tree: ``apply(layer, *inputs)`` for every layer in topological order.

    The one walk that shapes, counts, the oracle and all implementations share. It keeps no intermediate result longer
    than the wiring needs it, so an eager framework can free each activation as soon as it is used.
    """
    for node in nodes:
        if isinstance(node, Block):
            x = apply(node.merge, *(walk(branch, apply, x) for branch in node.branches))
            x = walk(node.then, apply, x)
        else:
            x = apply(node, x)
    return x


def layers(nodes: tuple[Node, ...]) -> Iterator[Layer]:
    """Every layer below ``nodes`` in topological order."""
    for node in nodes:
        if isinstance(node, Block):
            for branch in node.branches:
                yield from layers(branch)
            yield node.merge
            yield from layers(node.then)
        else:
            yield node


def without_prefix(node: Node, prefix: str) -> Node:
    """The node with ``prefix`` taken off its name and the names below it."""
    name = node.name.removeprefix(prefix)
    if not isinstance(node, Block):
        return dataclasses.replace(node, name=name)

    def each(nodes: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(without_prefix(child, prefix) for child in nodes)

    merge = dataclasses.replace(node.merge, name=node.merge.name.removeprefix(prefix))
    return Block(name, tuple(each(branch) for branch in node.branches), merge, each(node.then))


def equal_runs(nodes: tuple[Node, ...]) -> list[tuple[Node, ...]]:
    """The nodes in order; consecutive blocks that differ only in the prefix of all their names form one group."""

    def nameless(node: Node) -> Node:
        return without_prefix(node, node.name) if isinstance(node, Block) else node

    return [tuple(run) for _, run in itertools.groupby(nodes, nameless)]


def tensor_shapes(model: ModelSpec) -> dict[str, Shape]:
    """Name and shape of every tensor in the weight file, in topological order."""
    return {f"{layer.name}.{leaf}": shape for layer in layers(model.body) for leaf, shape in layer.tensors().items()}


def parameter_names(model: ModelSpec) -> tuple[str, ...]:
    """The trainable tensors, in topological order: all but the running statistics."""
    return tuple(name for name in tensor_shapes(model) if ".running_" not in name)


def parameter_count(model: ModelSpec) -> int:
    """Trainable parameters: every tensor but the running statistics."""
    shapes = tensor_shapes(model)
    return sum(math.prod(shapes[name]) for name in parameter_names(model))


def _window(size: int, before: int, after: int, kernel: int, stride: int) -> int:
    return (size + before + after - kernel) // stride + 1


def windows(size: int, count: int) -> tuple[tuple[int, int], ...]:
    """First row and the one behind the last of each of ``count`` windows on ``size`` rows (or columns).

    Window i goes from floor(i size / count) to ceil((i + 1) size / count) (PyTorch's ``nn.AdaptiveAvgPool2d``, ATen
    native/AdaptivePooling.h). They overlap, and may differ in size, where count does not divide size: 14 rows in 4 are 0:4, 3:7, 7:11
    and 10:14; 7 in 4 are 0:2, 1:4, 3:6 and 5:7.
    """
    return tuple((i * size // count, -(-(i + 1) * size // count)) for i in range(count))


def output_shape(layer: Layer, *inputs: Shape) -> Shape:
    """Shape of a layer's output in NCHW (or NC).

    Raises:
        SpecError: the layer does not take inputs of these shapes.
    """
    shape = inputs[0]
    match layer:
        case Conv2d() | MaxPool2d():
            if len(shape) != 4 or (isinstance(layer, Conv2d) and shape[1] != layer.in_channels):
                raise SpecError(f"{layer.name}: cannot take an input of shape {shape}")
            channels = layer.out_channels if isinstance(layer, Conv2d) else shape[1]
            pad = layer.padding
            height = _window(shape[2], pad.top, pad.bottom, layer.kernel, layer.stride)
            width = _window(shape[3], pad.left, pad.right, layer.kernel, layer.stride)
            if height < 1 or width < 1:
                raise SpecError(f"{layer.name}: an input of shape {shape} is too small for its {layer.kernel}x{layer.kernel} window")
            return (shape[0], channels, height, width)
        case BatchNorm2d():
            if len(shape) != 4 or shape[1] != layer.channels:
                raise SpecError(f"{layer.name}: has {layer.channels} channels, its input is {shape}")
            return shape
        case Relu() | Dropout():
            return shape
        case GlobalAvgPool2d():
            return shape[:2]
        case AdaptiveAvgPool2d():
            if len(shape) != 4:
                raise SpecError(f"{layer.name}: cannot take an input of shape {shape}")
            return (*shape[:2], layer.size, layer.size)
        case Flatten():
            if shape[1:] != (layer.channels, layer.height, layer.width):
                size = f"{layer.channels} maps of {layer.height}x{layer.width}"
                raise SpecError(f"{layer.name}: takes {size}, its input is {shape}: the weights behind it fit images of one size")
            return (shape[0], math.prod(shape[1:]))
        case Linear():
            if shape[1:] != (layer.in_features,):
                raise SpecError(f"{layer.name}: takes {layer.in_features} features, its input is {shape}")
            return (shape[0], layer.out_features)
        case PadShortcut():
            channels = shape[1] + layer.channels_before + layer.channels_after
            return (shape[0], channels, -(-shape[2] // layer.stride), -(-shape[3] // layer.stride))
        case Add():
            if any(other != shape for other in inputs[1:]):
                raise SpecError(f"{layer.name}: its branches differ in shape: {', '.join(map(str, inputs))}")
            return shape
        case Concat():
            if any((other[0], *other[2:]) != (shape[0], *shape[2:]) for other in inputs):
                raise SpecError(f"{layer.name}: its branches differ in height or width: {', '.join(map(str, inputs))}")
            return (shape[0], sum(other[1] for other in inputs), *shape[2:])


def tap_shapes(model: ModelSpec, batch: int, height: int, width: int) -> dict[str, Shape]:
    """Shape of every tap, keyed by layer name in topological order, for an input of (batch, C, height, width).

    Raises:
        SpecError: the network does not fit together at this size.
    """
    shapes: dict[str, Shape] = {}

    def apply(layer: Layer, *inputs: Shape) -> Shape:
        shapes[layer.name] = output_shape(layer, *inputs)
        return shapes[layer.name]

    images: Shape = (batch, model.input_chw[0], height, width)
    walk(model.body, apply, images)
    return shapes


def _layer_macs(layer: Layer, output: Shape) -> int:
    match layer:
        case Conv2d():
            return math.prod(output) * layer.in_channels * layer.kernel**2
        case Linear():
            return math.prod(output) * layer.in_features
        case _:
            return 0


def macs_of_layers(model: ModelSpec, height: int, width: int) -> dict[str, int]:
    """Multiply-accumulates of one image in every layer, by name in topological order; 0 but in convolutions and linear layers."""
    shapes = tap_shapes(model, 1, height, width)
    return {layer.name: _layer_macs(layer, shapes[layer.name]) for layer in layers(model.body)}


def macs(model: ModelSpec, height: int | None = None, width: int | None = None) -> int:
    """Multiply-accumulates of one image in convolutions and linear layers; 1 MAC = 2 FLOP.

    The convention of torchvision's ``_ops`` field (which calls them GFLOPS) and of the paper's "FLOPs".
    """
    return sum(macs_of_layers(model, height or model.input_chw[1], width or model.input_chw[2]).values())


def bytes_moved(model: ModelSpec, storage_bytes: int, batch: int, height: int | None = None, width: int | None = None) -> int:
    """Bytes that one batch reads and writes when every convolution is one kernel.

    Batch norm, ReLU and the residual sum are taken to happen inside the convolution before them, so a kernel reads its
    inputs and weights once and writes its output once, and nothing stays in a cache between kernels. A separate
    shortcut (pool, option A) is a kernel of its own; branches that are concatenated are written where they belong. This is the
    least traffic that layer-by-layer execution has.
    """
    total = 0

    def apply(layer: Layer, *inputs: Shape) -> Shape:
        nonlocal total
        output = output_shape(layer, *inputs)
        if isinstance(layer, Add):
            total += sum(math.prod(shape) for shape in inputs[1:])
        elif not isinstance(layer, (BatchNorm2d, Relu, Flatten, Dropout, Concat)):
            total += math.prod(inputs[0]) + math.prod(output)
        total += sum(math.prod(shape) for leaf, shape in layer.tensors().items() if leaf in ("weight", "bias"))
        return output

    images: Shape = (batch, model.input_chw[0], height or model.input_chw[1], width or model.input_chw[2])
    walk(model.body, apply, images)
    return total * storage_bytes


def as_json(model: ModelSpec) -> dict[str, object]:
    """The whole spec as JSON values, every node with its ``kind``; the identity of a network is this document.

    ``auxiliary_weights`` stands in it where there are any.
    """

    def node_json(node: Node) -> dict[str, object]:
        if isinstance(node, Block):
            return {
                "kind": "Block",
                "name": node.name,
                "branches": [[node_json(child) for child in branch] for branch in node.branches],
                "merge": node_json(node.merge),
                "then": [node_json(child) for child in node.then],
            }
        return {"kind": type(node).__name__, **dataclasses.asdict(node)}

    document: dict[str, object] = {
        "name": model.name,
        "input_chw": list(model.input_chw),
        "classes": model.classes,
        "source": model.source,
        "body": [node_json(node) for node in model.body],
    }
    return document | {"auxiliary_weights": list(model.auxiliary_weights)} if model.auxiliary_weights else document


_KINDS: dict[str, type] = {kind.__name__: kind for kind in get_args(Layer)}

LARGEST = 1 << 24
"""No size of a network's description is larger: what is, is no network but an attempt on the memory."""


def from_json(document: object) -> ModelSpec:
    """The model that ``as_json`` described; nothing of the document is trusted.

    Raises:
        SpecError: an unknown kind or field, a missing field, a value of the wrong type or out of range, a name that stands twice,
            or layers that do not fit together.
    """
    optional = {"auxiliary_weights"} & set(document if isinstance(document, dict) else ())
    top = _fields(document, {"name", "input_chw", "classes", "source", "body", *optional}, "model")
    chw = top["input_chw"]
    if not isinstance(chw, list) or len(chw) != 3 or not all(type(size) is int and 0 < size <= LARGEST for size in chw):
        raise SpecError(f"model: input_chw must be three positive integers, found {chw!r}")
    if not isinstance(top["classes"], int) or not isinstance(top["name"], str) or not isinstance(top["source"], str):
        raise SpecError("model: name and source must be strings and classes an integer")
    weights = top.get("auxiliary_weights", [])
    if not isinstance(weights, list) or not all(type(weight) is float and 0 < weight <= 1 for weight in weights):
        raise SpecError(f"model: auxiliary_weights must be numbers above 0 and at most 1, found {str(weights)[:80]}")
    model = ModelSpec(top["name"], (chw[0], chw[1], chw[2]), top["classes"], _nodes(top["body"]), top["source"], tuple(weights))
    seen: set[str] = set()
    for layer in layers(model.body):
        if layer.name in seen:
            raise SpecError(f"{layer.name}: the name stands twice")
        seen.add(layer.name)
    shapes = tap_shapes(model, 1, chw[1], chw[2])
    if weights and list(shapes.values())[-1] != (1, model.classes * model.heads):
        raise SpecError(f"model: its output is not the {model.classes} logits of each of {model.heads} heads")
    return model


def _fields(value: object, expected: set[str], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != expected:
        found = sorted(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise SpecError(f"{what}: expected the fields {sorted(expected)}, found {found}")
    return value


def _nodes(value: object) -> tuple[Node, ...]:
    if not isinstance(value, list):
        raise SpecError(f"expected a list of nodes, found {type(value).__name__}")
    return tuple(_node(child) for child in value)


def _node(value: object) -> Node:
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise SpecError(f"a node of the body has no kind: {str(value)[:80]}")
    rest = {name: item for name, item in value.items() if name != "kind"}
    if value["kind"] in _KINDS:
        layer: Layer = _dataclass(rest, _KINDS[value["kind"]])
        return layer
    if value["kind"] != "Block":
        raise SpecError(f"there is no layer kind {value['kind'][:80]!r}")
    block = _fields(rest, {"name", "branches", "merge", "then"}, "Block")
    merge, then = _node(block["merge"]), _nodes(block["then"])
    if not isinstance(merge, Add | Concat) or not isinstance(block["branches"], list) or not isinstance(block["name"], str):
        raise SpecError(f"block {str(block['name'])[:80]!r} is not a name, branches, an Add or a Concat and layers after it")
    after = tuple(child for child in then if not isinstance(child, Block))
    if len(after) != len(then):
        raise SpecError(f"block {block['name']!r}: what follows its {type(merge).__name__} must be layers")
    return Block(block["name"], tuple(_nodes(branch) for branch in block["branches"]), merge, after)


def _dataclass(value: object, kind: type) -> Any:
    types = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    found = _fields(value, set(types), kind.__name__)
    return kind(**{name: _value(found[name], declared, f"{kind.__name__}.{name}") for name, declared in types.items()})


def _value(item: Any, declared: str, where: str) -> Any:
    if declared == "Padding":
        return _dataclass(item, Padding)
    if declared.startswith("Literal"):
        if item not in ("unbiased", "biased"):
            raise SpecError(f"{where}: {str(item)[:80]!r} is not a variance convention")
        return item
    wanted: Any = {"int": int, "float": float, "str": str, "bool": bool}[declared]
    if not isinstance(item, wanted) or isinstance(item, bool) != (wanted is bool):
        raise SpecError(f"{where}: {str(item)[:80]!r} is not of type {declared}")
    least = 0 if where.startswith(("Padding.", "PadShortcut.channels")) else 1
    if (wanted is int and not least <= item <= LARGEST) or (wanted is float and not 0 < item < 1):
        raise SpecError(f"{where}: {item!r} is out of range")
    return item
