"""A plain Flax ResNet under ``jax.jit``, its variables the arguments of the compiled function."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import flax
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from impls import kernels
from impls.implementation import CannotError
from impls.jax import runtime
from impls.jax.layers import to_canonical, to_framework
from impls.spec import BatchNorm2d, ModelSpec, Shape, layers
from suites.zoo.flax.network import ResNet

Array = npt.NDArray[Any]

STAGE_SIZES = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}

LEAVES = {"running_mean": ("batch_stats", "mean"), "running_var": ("batch_stats", "var"), "bias": ("params", "bias")}
"""Flax's collection and name of a tensor; a weight is a batch norm's scale or another layer's kernel."""


def path(name: str, is_norm: bool) -> tuple[str, ...]:
    """("batch_stats", "layer1.0", "bn1", "mean") for "layer1.0.bn1.running_mean": where Flax holds a tensor."""
    layer, leaf = name.rsplit(".", 1)
    collection, own = LEAVES.get(leaf, ("params", "scale" if is_norm else "kernel"))
    block = re.match(r"(layer\d\.\d+)\.(.+)", layer)
    return (collection, *(block.groups() if block else (layer,)), own)


class Network(runtime.Network):
    """The Flax model, compiled for one shape at its first call.

    In bf16 and fp16 a batch norm's tensors are rounded as the others are, and held in float32, Flax's ``param_dtype``: it then computes in
    float32 and rounds what it gives.
    """

    def __init__(self, model: ModelSpec, weights: Mapping[str, Array], input_shape: Shape, dtype: Any) -> None:
        norms = {layer.name: layer for layer in layers(model.body) if isinstance(layer, BatchNorm2d)}
        network = ResNet(STAGE_SIZES[model.name], model.classes, next(iter(norms.values())).eps, dtype)
        self._paths = {name: path(name, name.rsplit(".", 1)[0] in norms) for name in weights}
        wide = jnp.promote_types(dtype, jnp.float32)

        def tensor(name: str) -> jax.Array:
            rounded = jnp.array(to_framework(weights[name]), dtype)
            return rounded.astype(wide) if name.rsplit(".", 1)[0] in norms else rounded

        held = {self._paths[name]: tensor(name) for name in weights}
        self._params = flax.traverse_util.unflatten_dict(held)
        self._dtype = dtype
        self._parts = []
        batch, channels, height, width = input_shape
        self._forward = jax.jit(network.apply)
        lowered = self._forward.lower(self._params, jax.ShapeDtypeStruct((batch, height, width, channels), dtype))
        self._operand_precisions = sorted(set(re.findall(r"precision = \[(\w+)", lowered.as_text())))

    def arithmetic(self, batch: jax.Array) -> str:
        """See the contract; the program is compiled once more, since a jitted function does not show its own."""
        return kernels.of_hlo(self._forward.lower(self._params, batch).compile().as_text())

    def weights(self) -> dict[str, Array]:
        """See the contract."""
        held = flax.traverse_util.flatten_dict(jax.device_get(self._params))
        wide = np.float64 if self._dtype == jnp.float64 else np.float32
        return {name: to_canonical(np.asarray(held[place], wide)) for name, place in self._paths.items()}

    def settings(self) -> dict[str, Any]:
        """See the contract; the precision is that of convolutions' kernels."""
        kernel = next(leaf for leaf in jax.tree.leaves(self._params) if leaf.ndim == 4)
        return {**runtime._settings(kernel, self._operand_precisions), "scanned_blocks": 0}


class Runtime(runtime.Runtime):
    """JAX in this process, set up as for our implementation."""

    def prepare(self, model: ModelSpec, weights: Mapping[str, Array], mode: str, input_shape: Shape) -> Network:
        """See the contract."""
        if model.name not in STAGE_SIZES:
            raise CannotError(f"the plain Flax network is {', '.join(STAGE_SIZES)}, not {model.name}")
        return Network(model, weights, input_shape, self._dtype)

    def versions(self) -> dict[str, str]:
        """See the contract."""
        return super().versions() | {"flax": flax.__version__}
