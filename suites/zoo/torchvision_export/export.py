"""Export a torchvision model to ONNX: ``python -m suites.zoo.torchvision_export.export WEIGHTS OUT N C H W``.

A process of its own, so the one that is timed holds no PyTorch. WEIGHTS is a safetensors file whose metadata holds the
spec under ``spec``; its dtype is the graph's, which casts float32 images where it is narrower. Batch norm is folded already, as
the exporter itself would fold it.
"""

from __future__ import annotations

import json
import sys

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from impls import spec
from suites.zoo.torchvision.network import build


def main() -> None:
    """Entry point."""
    source, target, *shape = sys.argv[1:]
    with safe_open(source, "pt") as header:
        model = spec.from_json(json.loads(header.metadata()["spec"]))
    weights = load_file(source)
    network = build(model, weights)
    dtype = next(iter(weights.values())).dtype
    if dtype == torch.float16:
        network.register_forward_pre_hook(lambda module, inputs: tuple(images.half() for images in inputs))
    images = torch.zeros(*map(int, shape), dtype=torch.promote_types(dtype, torch.float32))
    torch.onnx.export(network, (images,), target, input_names=["images"], output_names=["logits"], external_data=False)


if __name__ == "__main__":
    main()
