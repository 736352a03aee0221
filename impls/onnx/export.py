"""A network with its weights as an ONNX file for others: batches of any size, batch norm unfolded, tensors under their canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from impls.implementation import CannotError
from impls.onnx.foreign import LARGEST_FILE
from impls.onnx.runtime import build
from impls.spec import ModelSpec

BATCH = "N"
"""What the dimension is called that is left free."""


def write(model: ModelSpec, weights: Mapping[str, Any], out: Path, notes: Mapping[str, str]) -> None:
    """Write the file; ``notes`` become its metadata.

    Raises:
        CannotError: the file would be larger than an ONNX file can be.
        OSError: it cannot be written.
    """
    proto = build(model, weights, np.float32, (1, *model.input_chw))
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        value.type.tensor_type.shape.dim[0].dim_param = BATCH  # takes the place of the number
    for key, text in notes.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, text
    if proto.ByteSize() > LARGEST_FILE:
        raise CannotError(f"would be larger than the {LARGEST_FILE} bytes that an ONNX file can have")
    out.write_bytes(proto.SerializeToString(deterministic=True))
