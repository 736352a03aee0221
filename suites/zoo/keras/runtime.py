"""keras.applications.ResNet50 on TensorFlow, called inside ``tf.function`` or compiled by XLA.

Keras's network is the paper's (stride on the first 1x1, our ``resnet50_v1``) but for two things: its convolutions have a
bias, which is zero here, and its batch norm has epsilon 1.001e-5, which is set to the spec's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

os.environ["KERAS_BACKEND"] = "tensorflow"  # read when Keras is imported

import keras
import tensorflow as tf

from impls.implementation import CannotError, Settings
from impls.spec import BatchNorm2d, ModelSpec, Shape, layers
from impls.tensorflow import runtime
from impls.tensorflow.layers import to_framework

Array = npt.NDArray[Any]

POLICIES = {"fp64": "float64", "fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}

NAME = re.compile(r"conv(?P<stage>\d)(?:_block(?P<block>\d+)_(?P<place>\d))?_(?P<kind>conv|bn)")


def canonical(name: str) -> str:
    """ "layer2.0.downsample.1" for "conv3_block1_0_bn": a layer's name in the weight file."""
    match = NAME.fullmatch(name)
    if match is None:
        return {"predictions": "fc"}[name]
    kind, place = match["kind"], match["place"]
    if match["block"] is None:
        return f"{kind}{match['stage']}"
    layer = f"downsample.{int(kind == 'bn')}" if place == "0" else f"{kind}{place}"
    return f"layer{int(match['stage']) - 1}.{int(match['block']) - 1}.{layer}"


def variables(model: keras.Model) -> Iterator[tuple[str, keras.Variable]]:
    """Every weight of the model under its name in the weight file."""
    leaves = {"kernel": "weight", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    for layer in model.layers:
        for variable in layer.weights:
            yield f"{canonical(layer.name)}.{leaves.get(variable.name, variable.name)}", variable


class Network(runtime.Network):
    """The Keras model, traced for one shape."""

    def __init__(self, model: ModelSpec, weights: Mapping[str, Array], mode: str, input_shape: Shape, dtype: tf.DType) -> None:
        batch, channels, height, width = input_shape
        network = keras.applications.ResNet50(
            weights=None, input_shape=(height, width, channels), classes=model.classes, classifier_activation=None
        )
        epsilons = {layer.name: layer.eps for layer in layers(model.body) if isinstance(layer, BatchNorm2d)}
        for layer in network.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.epsilon = epsilons[canonical(layer.name)]
        for name, variable in variables(network):
            variable.assign(to_framework(weights[name]) if name in weights else np.zeros(variable.shape))
        self._network, self._given = network, frozenset(weights)
        self._dtype = dtype
        self._on_gpu = bool(tf.config.list_logical_devices("GPU"))

        def forward(images: tf.Tensor) -> tf.Tensor:
            logits = network(images, training=False)
            return logits if dtype == tf.float64 else tf.cast(logits, tf.float32)

        signature = [tf.TensorSpec((batch, height, width, channels), dtype)]
        self._traced = tf.function(forward, input_signature=signature, jit_compile=mode == "xla")
        self._forward = self._traced.get_concrete_function()

    def _held(self) -> dict[str, Array]:
        """Each tensor on the host as Keras holds it; a bias that the weight file does not have only if it is not zero."""
        held = {name: variable.numpy() for name, variable in variables(self._network)}
        return {name: array for name, array in held.items() if name in self._given or np.any(array)}


class Runtime(runtime.Runtime):
    """TensorFlow in this process, set up as for our implementation."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        keras.config.set_floatx(POLICIES[settings.precision])

    def prepare(self, model: ModelSpec, weights: Mapping[str, Array], mode: str, input_shape: Shape) -> Network:
        """See the contract."""
        if model.name != "resnet50_v1":
            raise CannotError(f"keras.applications.ResNet50 is resnet50_v1, not {model.name}")
        return Network(model, weights, mode, input_shape, self._dtype)

    def versions(self) -> dict[str, str]:
        """See the contract."""
        return super().versions() | {"keras": keras.__version__}
