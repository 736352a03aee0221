"""ONNX Runtime on the graph that PyTorch's exporter makes of a torchvision model, in a session set up as ours is."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from safetensors.numpy import save_file

from impls.implementation import CannotError
from impls.onnx import runtime
from impls.onnx.runtime import DTYPES, ReferenceNetwork, SessionNetwork
from impls.spec import ModelSpec, Shape, as_json


class Runtime(runtime.Runtime):
    """ONNX Runtime in this process, set up as for our implementation."""

    def prepare(self, model: ModelSpec, weights: Mapping[str, Any], mode: str, input_shape: Shape) -> SessionNetwork | ReferenceNetwork:
        """See the contract."""
        dtype = DTYPES[self._settings.precision]
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "weights.safetensors"), Path(folder, "model.onnx")
            save_file({name: array.astype(dtype) for name, array in weights.items()}, source, {"spec": json.dumps(as_json(model))})
            command = [sys.executable, "-m", "suites.zoo.torchvision_export.export", str(source), str(target), *map(str, input_shape)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise CannotError(f"torch.onnx.export failed: {done.stderr.strip().splitlines()[-1]}")
            if self._settings.precision == "fp64":
                return ReferenceNetwork(model, onnx.load(target))
            return SessionNetwork(model, target.open("rb"), self._settings)

    def versions(self) -> dict[str, str]:
        """See the contract."""
        return super().versions() | {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "onnxscript")}
