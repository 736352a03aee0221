"""The public checkpoints that the importer knows: what was published about each, and the command that holds it to that.

A file is known by the hash that its publisher gave out, never by its name. Where none was published in a document that we could read,
it is None, and the file is imported as anybody's is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from impls.weights import checkpoints


@dataclass(frozen=True, slots=True)
class Public:
    """A published checkpoint.

    Attributes:
        file: its published name.
        model: of this project, that it is for.
        source: who published it, and where accuracy and hash stand.
        licence: of the weights, as its publisher says.
        preprocess: how its accuracy was measured, by the name of a preset.
        dataset: on which.
        top1: published, in percent, of a single central crop.
        top5: likewise; None where none was published.
        sha256: first digits, hex.
        md5: hex.
    """

    file: str
    model: str
    source: str
    licence: str
    preprocess: str
    dataset: str
    top1: float
    top5: float | None
    sha256: str | None = None
    md5: str | None = None

    @property
    def check(self) -> tuple[str, str]:
        """The commands that hold its accuracy to the published one."""
        out = f"{Path(self.file).stem}.safetensors"
        return (
            f"levelfield weights import {self.file} --model {self.model} --preprocess {self.preprocess} --out {out}",
            f"levelfield accuracy --models {self.model} --weights {out} --dataset {self.dataset} --data-dir DIR",
        )


# Its file names end in the first eight digits of the SHA-256 (torch.hub.load_state_dict_from_url, check_hash).
TORCHVISION = "torchvision models/resnet.py"
CIFAR_MODELS = "chenyaofo/pytorch-cifar-models README.md, loaded by torch.hub.load_state_dict_from_url"
KERAS = "keras-team/keras-applications README.md (top-1, top-5) and keras applications/resnet.py (MD5)"
KERAS_FIRST = "keras-team/keras-applications resnet50.py (MD5) and README.md; released by fchollet/deep-learning-models v0.2"
AKAMASTER = "akamaster/pytorch_resnet_cifar10 README.md"


def _torchvision(digits: str, model: str, version: int, top1: float, top5: float) -> Public:
    preset = {1: "torchvision", 2: "torchvision_v2"}[version]
    source = f"{TORCHVISION} IMAGENET1K_V{version}"
    return Public(f"{model}-{digits}.pth", model, source, "BSD-3-Clause", preset, "imagenet", top1, top5, sha256=digits)


def _keras(model: str, md5: str, top1: float, top5: float, source: str = KERAS) -> Public:
    file = f"{model.removesuffix('_v1')}_weights_tf_dim_ordering_tf_kernels.h5"
    return Public(file, model, source, "MIT", "keras_caffe", "imagenet", top1, top5, md5=md5)


def _cifar(classes: int, depth: int, digits: str, top1: float, top5: float) -> Public:
    name = f"cifar{classes}_resnet{depth}-{digits}.pt"
    return Public(name, f"cifar_resnet{depth}_b", CIFAR_MODELS, "BSD-3-Clause", "cifar", f"cifar{classes}", top1, top5, sha256=digits)


def _akamaster(file: str, depth: int, top1: float) -> Public:
    return Public(file, f"cifar_resnet{depth}", AKAMASTER, "BSD-2-Clause", "cifar_imagenet", "cifar10", top1, None)


KNOWN = (
    _torchvision("f37072fd", "resnet18", 1, 69.758, 89.078),
    _torchvision("b627a593", "resnet34", 1, 73.314, 91.420),
    _torchvision("0676ba61", "resnet50", 1, 76.130, 92.862),
    _torchvision("11ad3fa6", "resnet50", 2, 80.858, 95.434),
    _torchvision("63fe2227", "resnet101", 1, 77.374, 93.546),
    _torchvision("cd907fc2", "resnet101", 2, 81.886, 95.780),
    _torchvision("394f9c45", "resnet152", 1, 78.312, 94.046),
    _torchvision("f82ba261", "resnet152", 2, 82.284, 96.002),
    _keras("resnet50_v1", "a7b3fe01876f51b976af0dea6bc144eb", 74.704, 92.020, KERAS_FIRST),
    _keras("resnet50_v1", "2cb95161c43110f7111970584f804107", 74.928, 92.060),
    _keras("resnet101_v1", "f1aeb4b969a6efcfb50fad2f0c20cfc5", 76.420, 92.786),
    _keras("resnet152_v1", "100835be76be38e30d865e96f2aaae62", 76.604, 93.118),
    _cifar(10, 20, "4118986f", 92.60, 99.81),
    _cifar(10, 32, "ef93fc4d", 93.53, 99.77),
    _cifar(10, 44, "2a3cabcb", 94.01, 99.77),
    _cifar(10, 56, "187c023a", 94.37, 99.83),
    _cifar(100, 20, "23dac2f1", 68.83, 91.01),
    _cifar(100, 32, "84213ce6", 70.16, 90.89),
    _cifar(100, 44, "ffe32858", 71.63, 91.58),
    _cifar(100, 56, "f2eff4c8", 72.63, 91.94),
    _akamaster("resnet20-12fca82f.th", 20, 91.73),
    _akamaster("resnet44-014dd654.th", 44, 93.10),
)


def find(path: Path) -> Public | None:
    """The known checkpoint that a file is, by its bytes.

    Raises:
        WeightFileError: the file cannot be read.
    """
    sha256, md5 = checkpoints.sha256(path), checkpoints.md5(path)
    return next((each for each in KNOWN if (each.sha256 and sha256.startswith(each.sha256)) or each.md5 == md5), None)
