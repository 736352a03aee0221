"""torchvision's modules holding the project's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from impls.implementation import CannotError
from impls.spec import BatchNorm2d, ModelSpec, layers

try:
    from torchvision import models
except RuntimeError:
    # Where torchvision's compiled operators do not load (another build of torch), its import still registers the shapes of
    # these two and fails because they are unknown. No classifier uses them.
    LIBRARY = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import models


ARGUMENTS = {"googlenet": {"aux_logits": False, "init_weights": False}}
"""What a model is made with besides the number of classes: the spec's GoogLeNet has its auxiliary heads in training only."""


def build(model: ModelSpec, weights: Mapping[str, Tensor]) -> nn.Module:
    """The torchvision model of the spec's name in evaluation mode, in the dtype and on the device of ``weights``.

    A spec with batch norm folded gives a model whose convolutions have a bias and whose batch norms are the identity.

    Raises:
        CannotError: torchvision has no model of this name.
    """
    make = getattr(models, model.name, None)
    if make is None:
        raise CannotError(f"torchvision has no model {model.name!r}")
    network: nn.Module = make(num_classes=model.classes, **ARGUMENTS.get(model.name, {}))
    if not any(isinstance(layer, BatchNorm2d) for layer in layers(model.body)):
        _fold(network)
    held = next(iter(weights.values()))
    network.to(held.device, held.dtype)
    # Batch norm counts training steps under this name, which is in no weight file.
    counters = {name: tensor for name, tensor in network.state_dict().items() if name.endswith(".num_batches_tracked")}
    network.load_state_dict({**weights, **counters})
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None
    return network.eval()


def _fold(network: nn.Module) -> None:
    """Give each convolution a bias and make each batch norm the identity."""
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
            elif isinstance(module, nn.Conv2d):
                module.bias = nn.Parameter(torch.empty(module.out_channels))
