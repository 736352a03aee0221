"""A training pass in float32 arithmetic, written otherwise than the oracle: what a correct implementation's rounding is simulated with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from impls.oracle import backward, forward
from impls.oracle.backward import Pullback
from impls.oracle.rounding import round_to
from impls.oracle.training import Operations
from impls.spec import BatchNorm2d, Conv2d, Layer, Linear

Array = npt.NDArray[Any]
Rounding = Callable[[Array], Array]
ChannelSum = Callable[[Array], Array]


def sequential(x: Array) -> Array:
    """Sum over all but the channels, one addend after the other in float32."""
    total: Array = np.cumsum(x.swapaxes(0, 1).reshape(x.shape[1], -1), axis=1, dtype=np.float32)[:, -1]
    return total


def pairwise(x: Array) -> Array:
    """The same sum by halves."""
    total: Array = np.ascontiguousarray(x.swapaxes(0, 1)).reshape(x.shape[1], -1).sum(axis=1, dtype=np.float32)
    return total


def wide(channels: Array) -> Array:
    """(C,) as it broadcasts to (N, C, H, W)."""
    return channels[:, None, None]


def batch_norm(x: Array, gamma: Array, beta: Array, eps: float, total: ChannelSum) -> tuple[Array, Array, Array]:
    """Mean, biased variance and the output x * a + b."""
    count = np.float32(x.size // x.shape[1])
    mean = total(x) / count
    variance = total((x - wide(mean)) ** 2) / count
    scale = gamma / np.sqrt(variance + np.float32(eps))
    return mean, variance, x * wide(scale) + wide(beta - mean * scale)


def batch_norm_back(x: Array, g: Array, gamma: Array, eps: float, total: ChannelSum) -> tuple[Array, Array, Array]:
    """Cotangent of x, gradients of gamma and beta, by the gathered formula."""
    mean, variance, _ = batch_norm(x, gamma, gamma, eps, total)
    count, inverse, centred = np.float32(x.size // x.shape[1]), 1 / np.sqrt(variance + np.float32(eps)), x - wide(mean)
    dot, plain = total(g * centred), total(g)
    pulled = (g - wide(plain / count) - centred * wide(dot * inverse * inverse / count)) * wide(inverse * gamma)
    return pulled, dot * inverse, plain


def batch_norm_by_parts(x: Array, g: Array, gamma: Array, eps: float, total: ChannelSum) -> tuple[Array, Array, Array]:
    """The same, each operation differentiated on its own; the mean is taken off twice."""
    count = np.float32(x.size // x.shape[1])
    first = total(x) / count
    centred = x - wide(first)
    centred = centred - wide(total(centred) / count)
    variance = total(centred * centred) / count
    deviation = np.sqrt(variance + np.float32(eps))
    of_normalised = g * wide(gamma)
    of_deviation = total(-of_normalised * centred / wide(deviation * deviation))
    of_variance = of_deviation * np.float32(0.5) / deviation
    of_centred = of_normalised / wide(deviation) + np.float32(2) * centred * wide(of_variance / count)
    return of_centred - wide(total(of_centred) / count), total(g * (centred / wide(deviation))), total(g)


def windows(x: Array, layer: Conv2d) -> Array:
    """(N, C, H, W, kernel, kernel) that the layer's outputs see."""
    pad = layer.padding
    padded = np.pad(x, ((0, 0), (0, 0), (pad.top, pad.bottom), (pad.left, pad.right)))
    seen = np.lib.stride_tricks.sliding_window_view(padded, (layer.kernel, layer.kernel), axis=(2, 3))
    return np.ascontiguousarray(seen[:, :, :: layer.stride, :: layer.stride])


def transposed(g: Array, weight: Array, layer: Conv2d, height: int, width: int) -> Array:
    """Cotangent of a convolution's input: its cotangent with stride - 1 zeros between, correlated with the kernels turned around."""
    kernel, stride = layer.kernel, layer.stride
    spread = np.zeros((*g.shape[:2], (g.shape[2] - 1) * stride + 1, (g.shape[3] - 1) * stride + 1), g.dtype)
    spread[:, :, ::stride, ::stride] = g
    top, left = kernel - 1 - layer.padding.top, kernel - 1 - layer.padding.left
    bottom, right = height + kernel - 1 - spread.shape[2] - top, width + kernel - 1 - spread.shape[3] - left
    padded = np.pad(spread, ((0, 0), (0, 0), (top, bottom), (left, right)))
    seen = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3)))
    return np.moveaxis(np.tensordot(seen, weight[:, :, ::-1, ::-1], axes=((1, 4, 5), (0, 2, 3))), 3, 1)


def operations(total: ChannelSum, operand: Rounding = np.asarray, before_bias: Rounding = np.asarray) -> Operations:
    """Forward and backward in float32, with channel sums by ``total``.

    ``operand`` rounds what enters every product of matrices, ``before_bias`` a convolution's sum to which its bias is added.
    """

    def single(array: Array) -> Array:
        return np.asarray(array, dtype=np.float32)

    def evaluate(layer: Layer, inputs: tuple[Array, ...], tensors: Mapping[str, Array]) -> Array:
        own = {leaf: single(tensor) for leaf, tensor in tensors.items()}
        x = single(inputs[0])
        match layer:
            case Conv2d():
                y = np.moveaxis(np.tensordot(operand(windows(x, layer)), operand(own["weight"]), axes=((1, 4, 5), (1, 2, 3))), 3, 1)
                y = single(before_bias(y)) + wide(own["bias"]) if layer.bias else y
            case BatchNorm2d():
                y = batch_norm(x, own["weight"], own["bias"], layer.eps, total)[2]
            case Linear():
                y = operand(x) @ operand(own["weight"]).T + own["bias"]
            case _:
                y = forward.evaluate(layer, tuple(map(single, inputs)), own)
        return single(y).astype(np.float64)

    def cross_entropy(
        logits: Array, labels: Array, label_smoothing: float, auxiliary_weights: tuple[float, ...] = ()
    ) -> tuple[float, Array]:
        weights = list(map(np.float32, (1.0, *auxiliary_weights)))
        heads = [of_head(head, labels, label_smoothing) for head in np.split(logits, len(weights), axis=1)]
        loss = sum((weight * loss for weight, (loss, _) in zip(weights, heads, strict=True)), np.float32(0))
        cotangents = [weight * cotangent for weight, (_, cotangent) in zip(weights, heads, strict=True)]
        return float(loss), np.concatenate(cotangents, axis=1).astype(np.float64)

    def of_head(logits: Array, labels: Array, label_smoothing: float) -> tuple[np.float32, Array]:
        z, (batch, classes) = single(logits), logits.shape
        target = single(single(1 - label_smoothing) * np.eye(classes, dtype=np.float32)[labels] + single(label_smoothing / classes))
        shifted = z - z.max(axis=1, keepdims=True)
        exponentials = np.exp(shifted)
        total = exponentials.sum(axis=1, keepdims=True)
        losses = -(target * (shifted - np.log(total))).sum(axis=1)
        cotangent = (exponentials / total * target.sum(axis=1, keepdims=True) - target) / np.float32(batch)
        return np.float32(losses.mean()), single(cotangent)

    def vjp(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Mapping[str, Array]) -> Pullback:
        own = {leaf: single(tensor) for leaf, tensor in tensors.items()}
        x, g = single(inputs[0]), single(cotangent)
        parameters: dict[str, Array] = {}
        match layer:
            case Conv2d():
                parameters["weight"] = np.tensordot(operand(g), operand(windows(x, layer)), axes=((0, 2, 3), (0, 2, 3)))
                if layer.bias:
                    parameters["bias"] = total(g)
                pulled = (transposed(operand(g), operand(own["weight"]), layer, *x.shape[2:]),)
            case BatchNorm2d():
                dx, parameters["weight"], parameters["bias"] = batch_norm_back(x, g, own["weight"], layer.eps, total)
                pulled = (dx,)
            case Linear():
                pulled = (operand(g) @ operand(own["weight"]),)
                parameters = {"weight": operand(g).T @ operand(x), "bias": total(g)}
            case _:
                pulled = backward.vjp(layer, tuple(map(single, inputs)), output, g, own).inputs
        return Pullback(
            tuple(single(value).astype(np.float64) for value in pulled),
            {leaf: single(value).astype(np.float64) for leaf, value in parameters.items()},
        )

    return Operations(evaluate, cross_entropy, vjp)


def to_bf16(array: Array) -> Array:
    """Rounded once."""
    return round_to(array, "bf16").astype(np.float64)


def mixed(
    total: ChannelSum,
    stored: Rounding = to_bf16,
    taken: Rounding = to_bf16,
    gradient: Rounding = to_bf16,
    before_bias: Rounding = np.asarray,
) -> Operations:
    """Mixed precision: float32 arithmetic whose results are ``stored``, on weights as products take them, with their gradients rounded."""
    single = operations(total, before_bias=before_bias)

    def own(layer: Layer, tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        return {leaf: taken(tensor) for leaf, tensor in tensors.items()} if isinstance(layer, Conv2d | Linear) else tensors

    def evaluate(layer: Layer, inputs: tuple[Array, ...], tensors: Mapping[str, Array]) -> Array:
        return stored(single.evaluate(layer, inputs, own(layer, tensors)))

    def cross_entropy(
        logits: Array, labels: Array, label_smoothing: float, auxiliary_weights: tuple[float, ...] = ()
    ) -> tuple[float, Array]:
        loss, cotangent = single.cross_entropy(logits, labels, label_smoothing, auxiliary_weights)
        return loss, stored(cotangent)

    def vjp(layer: Layer, inputs: tuple[Array, ...], output: Array, cotangent: Array, tensors: Mapping[str, Array]) -> Pullback:
        pulled = single.vjp(layer, inputs, output, stored(cotangent), own(layer, tensors))  # a sum of cotangents is stored too
        rounded = gradient if isinstance(layer, Conv2d | Linear) else np.asarray
        return Pullback(tuple(map(stored, pulled.inputs)), {leaf: rounded(value) for leaf, value in pulled.parameters.items()})

    return Operations(evaluate, cross_entropy, vjp)
