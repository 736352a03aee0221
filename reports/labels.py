"""Names as people read them. A name that is not listed here is shown as it stands."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Mapping

from impls import models
from impls.implementation import OURS, ROOT, ZOO, Manifest, ManifestError, Roofline, read_manifest
from impls.models import UnknownModelError

SCOPES = {"transfer": "host to host", "device": "on the device", "pipeline": "from JPEG"}
NAMES = {"googlenet": "GoogLeNet", "alexnet": "AlexNet"}
SCENARIOS = {"single_stream": "latency", "offline": "throughput", "training": "training"}

_MODEL = re.compile(r"(?P<cifar>cifar_)?(?P<kind>resnet|plain|vgg)(?P<depth>\d+)(?P<suffix>(?:_\w+)?)")


@functools.cache
def _manifest(name: str) -> Manifest | None:
    """What the checkout says of an implementation; a record may name one that it does not have, or have it half edited."""
    for parent in (OURS, ZOO):
        with contextlib.suppress(ManifestError):
            return read_manifest(ROOT.joinpath(*parent.split("."), name, "impl.toml"), parent)
    return None


def implementation(name: str, mode: str) -> str:
    """ "PyTorch compile" for ("pytorch", "compile"): the title in its ``impl.toml``."""
    manifest = _manifest(name)
    if manifest is None or mode not in manifest.every_mode:
        return f"{name} {mode}".strip()
    return manifest.every_mode[mode].title


def roofline(name: str, mode: str, device: str, *, training: bool = False) -> Roofline | None:
    """What a mode is held against on a device; None where its manifest names nothing, or the checkout does not have it."""
    manifest = _manifest(name)
    if manifest is None or device not in manifest.devices:
        return None
    lines = manifest.devices[device].rooflines
    return ({**lines, **manifest.devices[device].training_rooflines} if training else lines).get(mode)


def folds(name: str) -> bool:
    """Whether an implementation is given the network with batch norm folded; of one that the checkout does not have, true."""
    manifest = _manifest(name)
    return manifest is None or manifest.folds


def versions(implementation: str, software: Mapping[str, str]) -> str:
    """ "torch 2.13.0, python 3.11.7": of the installed packages, the one that stands for the framework, and Python."""
    wanted = (*_distributions(implementation), "python")
    normal = {_normal(name): version for name, version in software.items()}
    return ", ".join(f"{name} {normal[_normal(name)]}" for name in wanted if _normal(name) in normal)


def version(implementation: str, software: Mapping[str, str]) -> str | None:
    """ "2.13.0": of the framework alone; None where it was not recorded."""
    normal = {_normal(name): version for name, version in software.items()}
    return next((normal[_normal(name)] for name in _distributions(implementation) if _normal(name) in normal), None)


def _distributions(implementation: str) -> tuple[str, ...]:
    """The packages of which one stands for the framework."""
    manifest = _manifest(implementation)
    return manifest.distributions if manifest else (implementation,)


def _normal(name: str) -> str:
    """A distribution's name as packages are compared by (PEP 503): the same for ``tensorflow_cpu`` and ``tensorflow-cpu``."""
    return re.sub(r"[-_.]+", "-", name).lower()


def model(name: str) -> str:
    """ "CIFAR ResNet-20" for "cifar_resnet20"."""
    match = _MODEL.fullmatch(name)
    if match is None:
        return NAMES.get(name, name)
    kind = {"resnet": "ResNet", "plain": "Plain", "vgg": "VGG"}[match["kind"]]
    return f"{'CIFAR ' if match['cifar'] else ''}{kind}-{match['depth']}{match['suffix'].replace('_', ' ')}"


def images(name: str, size: object) -> list[str]:
    """ "288x288" where these are not the images that the model is for; ``size`` may be pandas' NA."""
    try:
        own = "x".join(map(str, models.get(name).input_chw[1:]))
    except UnknownModelError:
        return []
    return [size] if isinstance(size, str) and size != own else []


def cell(
    name: str,
    precision: str,
    device: str,
    batch_size: int | None = None,
    scope: str | None = None,
    scenario: str | None = None,
    image_size: object = None,
) -> list[str]:
    """ "ResNet-50", "fp32", "host to host", "batch 8", "throughput": what is run, without what goes without saying."""
    what = [model(name), *images(name, image_size), precision, *([device] if device != "cpu" else [])]
    what += [SCOPES.get(scope, scope)] if scope is not None else []
    what += [f"batch {batch_size}"] if batch_size is not None else []
    return [*what, *([SCENARIOS[scenario]] if scenario in ("offline", "training") else [])]


def joined(names: list[str]) -> str:
    """ "A, B and C"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def short(identifier: str) -> str:
    """The first eight characters of a hash: what tables show of it."""
    return identifier[:8]
