"""The public checkpoints that the importer knows: what was published about each, and the command that holds it to that.

A file is known by the hash that its publisher gave out, never by its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
        unsaid: what its publisher does not say of how it was measured; its accuracy can then be compared with, not held to.
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
    unsaid: str = ""
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


# Names of torchvision's and timm's files end in the first eight digits of the SHA-256 (torch.hub.load_state_dict_from_url, check_hash).
TORCHVISION = "torchvision models/resnet.py, vgg.py, googlenet.py and alexnet.py"
TORCHVISION_FIRST = "older torchvision docs/source/models.rst (100 minus the error), models/resnet.py and alexnet.py (hash)"
TIMM = "timm results/results-imagenet.csv and models/resnet.py (hash)"
GLUON = f"GluonCV, brought to PyTorch in rwightman/pytorch-pretrained-gluonresnet; {TIMM}"
FACEBOOK = f"facebookresearch/semi-supervised-ImageNet1K-models; {TIMM}"
CIFAR_MODELS = "chenyaofo/pytorch-cifar-models README.md, and logs/ for the preprocessing; loaded by torch.hub.load_state_dict_from_url"
KERAS = "keras-team/keras-applications README.md (top-1, top-5), keras applications/resnet.py, vgg16.py and vgg19.py (MD5)"
KERAS_FIRST = "keras-team/keras-applications resnet50.py (MD5) and README.md; released by fchollet/deep-learning-models v0.2"
AKAMASTER = "akamaster/pytorch_resnet_cifar10 README.md (it does not say that the digits in its files' names are the SHA-256's)"


def _named_by_hash(file: str, model: str, preset: str, top1: float, top5: float, *, source: str, licence: str) -> Public:
    digits = Path(file).stem.rpartition("-")[2]
    return Public(file, model, source, licence, preset, "imagenet", top1, top5, sha256=digits)


def _torchvision(file: str, model: str, top1: float, top5: float, version: int = 1, preset: str = "torchvision") -> Public:
    source = f"{TORCHVISION} IMAGENET1K_V{version}"
    return _named_by_hash(file, model, preset, top1, top5, source=source, licence="BSD-3-Clause")


def _torchvision_first(file: str, model: str, top1: float, top5: float) -> Public:
    return _named_by_hash(file, model, "torchvision", top1, top5, source=TORCHVISION_FIRST, licence="BSD-3-Clause")


def _timm(file: str, model: str, preset: str, top1: float, top5: float) -> Public:
    return _named_by_hash(file, model, preset, top1, top5, source=TIMM, licence="Apache-2.0")


def _gluon(depth: int, digits: str, top1: float, top5: float) -> Public:
    file = f"gluon_resnet{depth}_v1b-{digits}.pth"
    return _named_by_hash(file, f"resnet{depth}", "timm", top1, top5, source=GLUON, licence="Apache-2.0")


def _facebook(file: str, model: str, top1: float, top5: float) -> Public:
    return _named_by_hash(file, model, "torchvision", top1, top5, source=FACEBOOK, licence="CC-BY-NC-4.0")


def _keras(model: str, md5: str, top1: float, top5: float, *, source: str = KERAS, licence: str = "MIT") -> Public:
    file = f"{model.removesuffix('_v1')}_weights_tf_dim_ordering_tf_kernels.h5"
    unsaid = "how images were resized"
    return Public(file, model, source, licence, "keras_caffe", "imagenet", top1, top5, unsaid, md5=md5)


def _cifar(classes: int, depth: int, digits: str, top1: float, top5: float) -> Public:
    name = f"cifar{classes}_resnet{depth}-{digits}.pt"
    preset = {10: "cifar", 100: "cifar100_models"}[classes]
    return Public(name, f"cifar_resnet{depth}_b", CIFAR_MODELS, "BSD-3-Clause", preset, f"cifar{classes}", top1, top5, sha256=digits)


def _akamaster(depth: int, digits: str, top1: float) -> Public:
    file = f"resnet{depth}-{digits}.th"
    return Public(file, f"cifar_resnet{depth}", AKAMASTER, "BSD-2-Clause", "cifar_imagenet", "cifar10", top1, None, sha256=digits)


KNOWN = (
    _torchvision("resnet18-f37072fd.pth", "resnet18", 69.758, 89.078),
    _torchvision("resnet34-b627a593.pth", "resnet34", 73.314, 91.420),
    _torchvision("resnet50-0676ba61.pth", "resnet50", 76.130, 92.862),
    _torchvision("resnet50-11ad3fa6.pth", "resnet50", 80.858, 95.434, 2, "torchvision_v2"),
    _torchvision("resnet101-63fe2227.pth", "resnet101", 77.374, 93.546),
    _torchvision("resnet101-cd907fc2.pth", "resnet101", 81.886, 95.780, 2, "torchvision_v2"),
    _torchvision("resnet152-394f9c45.pth", "resnet152", 78.312, 94.046),
    _torchvision("resnet152-f82ba261.pth", "resnet152", 82.284, 96.002, 2, "torchvision_v2"),
    _torchvision("vgg16-397923af.pth", "vgg16", 71.592, 90.382),
    _torchvision("vgg19-dcbb9e9d.pth", "vgg19", 72.376, 90.876),
    _torchvision("vgg16_bn-6c64b313.pth", "vgg16_bn", 73.360, 91.516),
    _torchvision("vgg19_bn-c79401a0.pth", "vgg19_bn", 74.218, 91.842),
    _torchvision("googlenet-1378be20.pth", "googlenet", 69.778, 89.530, preset="torchvision_googlenet"),
    _torchvision("alexnet-owt-7be5be79.pth", "alexnet", 56.522, 79.066),
    _torchvision_first("resnet18-5c106cde.pth", "resnet18", 69.76, 89.08),
    _torchvision_first("resnet34-333f7ec4.pth", "resnet34", 73.30, 91.42),
    _torchvision_first("resnet50-19c8e357.pth", "resnet50", 76.15, 92.87),
    _torchvision_first("resnet101-5d3b4d8f.pth", "resnet101", 77.37, 93.56),
    _torchvision_first("resnet152-b121ed2d.pth", "resnet152", 78.31, 94.06),
    _torchvision_first("alexnet-owt-4df8aa71.pth", "alexnet", 56.55, 79.09),
    _timm("resnet18_a3_0-40c531c8.pth", "resnet18", "timm_0.95", 68.254, 88.176),
    _timm("resnet34_a3_0-a20cabb6.pth", "resnet34", "timm_0.95", 72.970, 91.108),
    _timm("resnet50_a3_0-59cae1ef.pth", "resnet50", "timm_0.95", 78.048, 93.780),
    _timm("resnet50_a1h2_176-001a1197.pth", "resnet50", "timm_1.0", 80.676, 95.306),
    _timm("resnet50_am-6c502b37.pth", "resnet50", "timm", 78.998, 94.396),
    _timm("resnet101_a3_0-1db14157.pth", "resnet101", "timm_0.95", 79.814, 94.606),
    _timm("resnet152_a3_0-134d4688.pth", "resnet152", "timm_0.95", 80.546, 95.000),
    _timm("resnet18_a1_0-d63eafa0.pth", "resnet18", "timm_288_1.0", 73.158, 91.026),
    _timm("resnet18_a2_0-b61bd467.pth", "resnet18", "timm_288_1.0", 72.372, 90.596),
    _timm("resnet34_a1_0-46f8f793.pth", "resnet34", "timm_288_1.0", 77.918, 93.766),
    _timm("resnet34_a2_0-82d47d71.pth", "resnet34", "timm_288_1.0", 77.158, 93.274),
    _timm("resnet34-43635321.pth", "resnet34", "timm_288_0.95", 76.480, 93.354),
    _timm("resnet50_a1_0-14fe96d1.pth", "resnet50", "timm_288_1.0", 81.214, 95.102),
    _timm("resnet50_a2_0-a2746f79.pth", "resnet50", "timm_288_1.0", 80.772, 94.988),
    _timm("resnet50_b1k-532a802a.pth", "resnet50", "timm_288_1.0", 80.706, 95.432),
    _timm("resnet50_b2k-1ba180c1.pth", "resnet50", "timm_288_1.0", 80.454, 95.318),
    _timm("resnet50_c1-5ba5e060.pth", "resnet50", "timm_288_1.0", 80.912, 95.552),
    _timm("resnet50_c2-d01e05b2.pth", "resnet50", "timm_288_1.0", 80.870, 95.534),
    _timm("resnet50_d-f39db8af.pth", "resnet50", "timm_288_1.0", 80.972, 95.430),
    _timm("resnet50_ram-a26f946b.pth", "resnet50", "timm_288_0.95", 79.976, 95.052),
    _timm("resnet50_ra-85ebb6e5.pth", "resnet50", "timm_288_0.95", 79.836, 94.966),
    _timm("rw_resnet50-86acaeed.pth", "resnet50", "timm_288_0.95", 79.640, 94.892),
    _timm("resnet101_a1h-36d3f2aa.pth", "resnet101", "timm_288_1.0", 82.778, 96.310),
    _timm("resnet101_a1_0-cdcb52a9.pth", "resnet101", "timm_288_1.0", 82.322, 95.632),
    _timm("resnet101_a2_0-6edb36c7.pth", "resnet101", "timm_288_1.0", 82.236, 95.730),
    _timm("resnet152_a1h-dc400468.pth", "resnet152", "timm_288_1.0", 83.450, 96.538),
    _timm("resnet152_a1_0-2eee8a7a.pth", "resnet152", "timm_288_1.0", 82.732, 95.720),
    _timm("resnet152_a2_0-b4c6978f.pth", "resnet152", "timm_288_1.0", 82.608, 95.752),
    _gluon(18, "0757602b", 70.838, 89.754),
    _gluon(34, "c6d82d59", 74.578, 91.984),
    _gluon(50, "0ebe02e2", 77.580, 93.718),
    _gluon(101, "3b017079", 79.310, 94.522),
    _gluon(152, "c1edb0dd", 79.694, 94.736),
    _facebook("semi_supervised_resnet18-d92f0530.pth", "resnet18", 72.594, 91.418),
    _facebook("semi_supervised_resnet50-08389792.pth", "resnet50", 79.234, 94.826),
    _facebook("semi_weakly_supervised_resnet18-118f1556.pth", "resnet18", 73.282, 91.732),
    _facebook("semi_weakly_supervised_resnet50-16a12f1b.pth", "resnet50", 81.182, 95.992),
    _keras("vgg16", "64373286793e3c8b2b4e3219cbf3544b", 71.268, 90.050, licence="CC-BY"),
    _keras("vgg19", "cbe5617147190e668d6c5d5026f83318", 71.256, 89.988, licence="CC-BY"),
    _keras("resnet50_v1", "a7b3fe01876f51b976af0dea6bc144eb", 74.704, 92.020, source=KERAS_FIRST),
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
    _akamaster(20, "12fca82f", 91.73),
    _akamaster(32, "d509ac18", 92.63),
    _akamaster(44, "014dd654", 93.10),
    _akamaster(56, "4bfd9763", 93.39),
    _akamaster(110, "1d1ed7c2", 93.68),
    _akamaster(1202, "f3b1deed", 93.82),
)


def find(sha256: str, md5: str) -> Public | None:
    """The known checkpoint of a file with these hashes, hex."""
    return next((each for each in KNOWN if (each.sha256 and sha256.startswith(each.sha256)) or (each.md5 and each.md5 == md5)), None)
