"""Plain NumPy behind the contract: an implementation without a framework."""

from __future__ import annotations

import os

import numpy as np

from impls import implementation, spec
from impls.implementation import CannotError

from . import layers

DTYPES = {"fp64": np.float64, "fp32": np.float32}


class Network(implementation.Network):
    """The spec's network over a dict of arrays."""

    host_layout = "NHWC"

    def __init__(self, model, tensors):
        self.model, self.tensors = model, tensors

    def layer(self, layer, *inputs):
        """One layer's output, NHWC."""
        own = {leaf: self.tensors[f"{layer.name}.{leaf}"] for leaf in layer.tensors()}
        return layers.FUNCTIONS[type(layer)](layer, own, *inputs)

    def put(self, images):
        """See the contract."""
        return images.transpose(0, 2, 3, 1)

    def run(self, batch):
        """See the contract."""
        return spec.walk(self.model.body, self.layer, batch)

    def wait(self, output):
        """See the contract."""

    def get(self, output):
        """See the contract."""
        return output

    def taps(self, images):
        """See the contract."""
        taken = {}

        def apply(layer, *inputs):
            taken[layer.name] = self.layer(layer, *inputs)
            return taken[layer.name]

        spec.walk(self.model.body, apply, self.put(images))
        return {name: tap.transpose(0, 3, 1, 2) if tap.ndim == 4 else tap for name, tap in taken.items()}

    def weights(self):
        """See the contract."""
        return {name: layers.to_canonical(tensor) for name, tensor in self.tensors.items()}

    def compilations(self):
        """See the contract."""
        return 0

    def settings(self):
        """See the contract."""
        return {
            "threads": len(os.sched_getaffinity(0)),
            "precision": next(iter(self.tensors.values())).dtype.name,
            "tf32": False,
            "layout": "NHWC",
            "deterministic": True,
            "placed_on": "cpu",
        }


class Runtime(implementation.Runtime):
    """NumPy in this process."""

    def __init__(self, settings):
        """See the contract."""
        if settings.precision not in DTYPES:
            raise CannotError(f"NumPy has no {settings.precision}")
        self.settings = settings

    def prepare(self, model, weights, mode, input_shape):
        """See the contract."""
        dtype = DTYPES[self.settings.precision]
        return Network(model, {name: layers.to_framework(array.astype(dtype)) for name, array in weights.items()})

    def versions(self):
        """See the contract."""
        return {"numpy": np.__version__}
