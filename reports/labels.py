"""Names as people read them. A name that is not listed here is shown as it stands."""

from __future__ import annotations

import re

IMPLEMENTATIONS = {"pytorch": "PyTorch", "jax": "JAX", "tensorflow": "TensorFlow", "onnx": "ONNX Runtime"}
MODES = {"xla": "XLA", "ort": ""}  # ONNX Runtime has one way of executing, so its mode adds nothing
SCOPES = {"transfer": "host to host", "device": "on the device", "pipeline": "from JPEG"}
SCENARIOS = {"single_stream": "latency", "offline": "throughput"}

_MODEL = re.compile(r"(?P<cifar>cifar_)?(?P<kind>resnet|plain)(?P<depth>\d+)(?P<suffix>(?:_\w+)?)")


def implementation(name: str, mode: str) -> str:
    """"PyTorch compile" for ("pytorch", "compile")."""
    return f"{IMPLEMENTATIONS.get(name, name)} {MODES.get(mode, mode)}".strip()


def model(name: str) -> str:
    """"CIFAR ResNet-20" for "cifar_resnet20"."""
    match = _MODEL.fullmatch(name)
    if match is None:
        return name
    kind = {"resnet": "ResNet", "plain": "Plain"}[match["kind"]]
    return f"{'CIFAR ' if match['cifar'] else ''}{kind}-{match['depth']}{match['suffix'].replace('_', ' ')}"


def joined(names: list[str]) -> str:
    """"A, B and C"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def short(identifier: str) -> str:
    """The first eight characters of a hash: what tables show of it."""
    return identifier[:8]
