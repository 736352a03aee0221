"""Faults of arithmetic: the right function in another precision than the run says.

No spec and no weights can express them, so they are declared as where a layer rounds and injected into
``suites.equivalence.simulation``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from impls.spec import Add, BatchNorm2d, Conv2d, GlobalAvgPool2d, Linear, ModelSpec, layers
from suites.equivalence.faults.fault import Citation, Group, Site
from suites.equivalence.faults.surgery import each
from suites.equivalence.simulation import Steps


@dataclass(frozen=True, slots=True)
class ArithmeticFault:
    """A run declared to be in ``precision`` whose affected layers round as ``steps`` says; the rest as for ``Fault``."""

    id: str
    sentence: str
    everywhere: str
    precision: str
    steps: Steps
    find: Callable[[ModelSpec], tuple[Group, ...]]
    reach: Literal["all", "one", "both"] = "both"
    citation: Citation | None = None

    def sites(self, model: ModelSpec) -> tuple[Site, ...]:
        """Every place at which the fault can sit: all at once first, then one by one."""
        groups = self.find(model)
        single = tuple(Site(group[0], group, True) for group in groups)
        whole = (Site(self.everywhere, tuple(group[0] for group in groups), False),) if groups else ()
        return {"all": whole, "one": single, "both": whole + single}[self.reach]

    def say(self, site: Site) -> str:
        """The sentence about one site."""
        return self.sentence.format(site=site.name)


def _computing(model: ModelSpec) -> tuple[Group, ...]:
    """The layers that round at all."""
    return tuple((layer.name,) for layer in layers(model.body) if isinstance(layer, (Conv2d, Linear, BatchNorm2d, Add, GlobalAvgPool2d)))


CONVOLUTIONS = each(Conv2d)

ARITHMETIC: tuple[ArithmeticFault, ...] = (
    ArithmeticFault(
        "fp32-as-tf32",
        "{site} multiplies in TF32 in a run declared fp32",
        "every convolution",
        "fp32",
        Steps("tf32", "fp32", ("fp32",)),
        CONVOLUTIONS,
        citation=Citation("pytorch/pytorch#107514", "conv2d wrong results on 3090/3090ti"),
    ),
    ArithmeticFault(
        "fp32-products-bf16",
        "{site} multiplies in bfloat16 in a run declared fp32",
        "every convolution",
        "fp32",
        Steps("bf16", "fp32", ("fp32",)),
        CONVOLUTIONS,
    ),
    ArithmeticFault(
        "fp32-classifier-tf32",
        "{site} multiplies in TF32 in a run declared fp32",
        "the classifier",
        "fp32",
        Steps("tf32", "fp32", ("fp32",)),
        each(Linear),
        reach="one",
        citation=Citation("CanReader/FastNN#10", "cuBLAS is put into TF32 mode, which quietly halves matmul precision"),
    ),
    ArithmeticFault(
        "fp32-store-bf16",
        "{site} stores bfloat16 in a run declared fp32",
        "every convolution",
        "fp32",
        Steps("fp32", "fp32", ("bf16",)),
        CONVOLUTIONS,
        reach="one",
    ),
    ArithmeticFault(
        "fp32-sum-fp16",
        "{site} sums in float16 in a run declared fp32",
        "every convolution",
        "fp32",
        Steps("fp32", "fp16", ("fp32",)),
        CONVOLUTIONS,
        reach="one",
    ),
    ArithmeticFault(
        "tf32-as-fp32",
        "{site} multiplies in fp32 in a run declared TF32",
        "every convolution",
        "tf32",
        Steps("fp32", "fp32", ("fp32",)),
        CONVOLUTIONS,
        citation=Citation("tensorflow/tensorflow#58047", "tf.nn.conv2d failed to activate TF-32 mode"),
    ),
    ArithmeticFault(
        "bf16-as-fp32",
        "{site} stores fp32 in a run declared bf16",
        "every layer",
        "bf16",
        Steps("fp32", "fp32", ("fp32",)),
        _computing,
    ),
    ArithmeticFault(
        "bf16-truncated",
        "{site} truncates to bfloat16 instead of rounding to nearest",
        "every layer",
        "bf16",
        Steps("bf16", "fp32", ("bf16",), truncate=True),
        _computing,
        citation=Citation("tenstorrent/tt-metal#19882", "Replace truncating fp32->bf16 with tie-to-even rounding rule"),
    ),
    ArithmeticFault(
        "bf16-rounded-twice",
        "{site} rounds to float16 and then to bfloat16",
        "every layer",
        "bf16",
        Steps("bf16", "fp32", ("fp16", "bf16")),
        _computing,
    ),
    ArithmeticFault(
        "bf16-sum",
        "{site} sums in bfloat16 instead of in fp32",
        "every convolution",
        "bf16",
        Steps("bf16", "bf16", ("bf16",)),
        CONVOLUTIONS,
    ),
    ArithmeticFault(
        "bf16-mean-sum",
        "{site} sums in bfloat16 instead of in fp32",
        "the global mean",
        "bf16",
        Steps("bf16", "bf16", ("bf16",)),
        each(GlobalAvgPool2d),
        reach="one",
        citation=Citation(
            "pytorch/executorch#20089", "portable: accumulate in fp32 for Half/BFloat16 in softmax, log_softmax, mean, and sum"
        ),
    ),
    ArithmeticFault(
        "fp16-sum",
        "{site} sums in float16 instead of in fp32",
        "every convolution",
        "fp16",
        Steps("fp16", "fp16", ("fp16",)),
        CONVOLUTIONS,
        citation=Citation("uxlfoundation/oneDNN#5041", "[GPU] Use f32 accumulator for f16 input in convolution"),
    ),
    ArithmeticFault(
        "fp16-as-fp32",
        "{site} stores fp32 in a run declared fp16",
        "every layer",
        "fp16",
        Steps("fp32", "fp32", ("fp32",)),
        _computing,
    ),
    ArithmeticFault(
        "fp16-truncated",
        "{site} truncates to float16 instead of rounding to nearest",
        "every layer",
        "fp16",
        Steps("fp16", "fp32", ("fp16",), truncate=True),
        _computing,
    ),
    ArithmeticFault(
        "fp16-through-bf16",
        "{site} passes through bfloat16 in a run declared fp16",
        "every convolution",
        "fp16",
        Steps("bf16", "fp32", ("bf16", "fp16")),
        CONVOLUTIONS,
        reach="one",
    ),
)
