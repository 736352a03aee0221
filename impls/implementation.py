"""The contract that an implementation meets, and finding implementations on disk.

An implementation is a folder of ``impls/`` with an ``impl.toml`` (what it offers), a pinned ``requirements-DEVICE.txt``
for each kind of device, ``layers.py`` (one function or small module per layer kind) and ``runtime.py``, which holds a
class ``Runtime``. Nothing else in the project names it. It never times itself: the harness owns the clock.

Arrays that cross the contract are NumPy arrays; this module imports only the standard library.
"""

from __future__ import annotations

import math
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from impls.precision import PRECISIONS
from impls.spec import BatchNorm2d, Dropout, ModelSpec, Shape, layers, tap_shapes

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""

OURS = "impls"
ZOO = "suites.zoo"
"""The packages whose folders are implementations: the project's, and the model zoos that they are held against."""


class ManifestError(ValueError):
    """An impl.toml that does not say what it must; the message names file and key."""


class CannotError(RuntimeError):
    """Something that this implementation cannot do here; the message is the reason that a skipped row shows."""


@dataclass(frozen=True, slots=True)
class Mode:
    """A way of executing: its name, how people see it, and the executables it needs on the PATH (any one of ``needs``).

    ``build_s`` is about how long one ResNet-50 takes to build, in seconds; only the plan's estimate uses it. ``cannot`` holds the
    precisions in which this mode does not run although its device does, each with the reason; ``untrained`` says why nothing is trained in
    it although its implementation trains. A mode that ``caches`` keeps what it compiled on the disk for other processes, so that its
    start-up is measured from empty caches too.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    build_s: float
    cannot: Mapping[str, str] = field(default_factory=dict, hash=False)
    caches: bool = False
    untrained: str | None = None


Roofline = Literal["fused", "compile", "folded", "eager"]
"""What a mode makes one kernel of, which decides how many bytes it must move (``impls.traffic``)."""


@dataclass(frozen=True, slots=True)
class Device:
    """What an implementation offers on one kind of device.

    ``precisions`` can be certified. Those in ``untimed`` are not measured and those in ``cannot`` do not run at all;
    each comes with its reason. ``modes`` are those that only this device has. ``rooflines`` says what each mode is held against,
    ``training_rooflines`` what a step is in a mode that fuses less in training.
    ``distribution`` is the package that stands for the framework here, None where it is the manifest's. Where it ``caches``, all modes
    keep on the disk what was compiled, as those do that say so of themselves. ``short`` are the modes that a short budget keeps on a GPU,
    where each costs a build in every process; all where none is named.
    """

    name: str
    requirements: Path
    precisions: tuple[str, ...]
    untimed: Mapping[str, str]
    cannot: Mapping[str, str]
    modes: Mapping[str, Mode] = field(default_factory=dict)
    rooflines: Mapping[str, Roofline] = field(default_factory=dict)
    training_rooflines: Mapping[str, Roofline] = field(default_factory=dict)
    distribution: str | None = None
    caches: bool = False
    short: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """An ``impl.toml``. ``distribution`` is the package whose version stands for the framework's.

    ``package`` is the folder as Python imports it. ``models`` are the only ones that it has, None where it builds any spec.
    ``folds`` says whether it is given the network with batch norm folded, ``taps`` whether it shows intermediate outputs,
    ``trains`` whether all its modes train.
    """

    name: str
    package: str
    title: str
    distribution: str
    default_mode: str
    models: tuple[str, ...] | None
    folds: bool
    taps: bool
    trains: bool
    modes: Mapping[str, Mode]
    devices: Mapping[str, Device]

    def caches(self, mode: str, device: str) -> bool:
        """Whether a mode keeps on the disk what it compiled, for other processes to find."""
        return self.devices[device].caches or self.modes_on(device)[mode].caches

    def modes_on(self, device: str) -> Mapping[str, Mode]:
        """The modes of every device, and those that only this one has."""
        return {**self.modes, **(self.devices[device].modes if device in self.devices else {})}

    @property
    def every_mode(self) -> Mapping[str, Mode]:
        """The modes of all devices."""
        return {name: mode for device in self.devices for name, mode in self.modes_on(device).items()} or self.modes

    @property
    def distributions(self) -> tuple[str, ...]:
        """The packages that may stand for the framework, one for each kind of wheel."""
        others = (device.distribution for device in self.devices.values() if device.distribution is not None)
        return tuple(dict.fromkeys((self.distribution, *others)))


def _modes(tables: dict[str, Any]) -> dict[str, Mode]:
    """The modes of a table of them; the keys that are understood are taken out of it."""
    return {
        name: Mode(
            name,
            entry.pop("title"),
            tuple(entry.pop("needs", ())),
            float(entry.pop("build_s")),
            dict(entry.pop("cannot", {})),
            bool(entry.pop("caches", False)),
            entry.pop("untrained", None),
        )
        for name, entry in tables.items()
    }


def read_manifest(path: Path, parent: str = OURS) -> Manifest:
    """Read one ``impl.toml``; the implementation is called as its folder, which is a subpackage of ``parent``.

    Raises:
        ManifestError: unreadable, a key missing or unknown, a precision that does not exist.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        mode_tables, device_tables = document.pop("modes"), document.pop("devices")
        modes = _modes(mode_tables)
        own_tables = {name: entry.pop("modes", {}) for name, entry in device_tables.items()}
        devices = {
            name: Device(
                name,
                path.parent / f"requirements-{name}.txt",
                tuple(entry.pop("precisions")),
                dict(entry.pop("untimed", {})),
                dict(entry.pop("cannot", {})),
                _modes(own_tables[name]),
                dict(entry.pop("rooflines", {})),
                dict(entry.pop("training_rooflines", {})),
                entry.pop("distribution", None),
                bool(entry.pop("caches", False)),
                tuple(entry.pop("short", ())),
            )
            for name, entry in device_tables.items()
        }
        name, only = path.parent.name, document.pop("models", None)
        manifest = Manifest(
            name,
            f"{parent}.{name}",
            document.pop("title"),
            document.pop("distribution"),
            document.pop("default_mode"),
            None if only is None else tuple(only),
            document.pop("folds", True),
            document.pop("taps", True),
            document.pop("trains", False),
            modes,
            devices,
        )
    except KeyError as error:
        raise ManifestError(f"{path}: the key {error} is missing") from None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ManifestError(f"{path}: {error}") from None
    unknown = [
        *document,
        *(f"modes.{name}.{key}" for name, entry in mode_tables.items() for key in entry),
        *(f"devices.{name}.{key}" for name, entry in device_tables.items() for key in entry),
        *(f"devices.{name}.modes.{mode}.{key}" for name, own in own_tables.items() for mode, entry in own.items() for key in entry),
    ]
    if unknown:
        raise ManifestError(f"{path}: unknown keys: {', '.join(sorted(unknown))}")
    for key, value in (("folds", manifest.folds), ("taps", manifest.taps), ("trains", manifest.trains)):
        if not isinstance(value, bool):
            raise ManifestError(f"{path}: {key} = {value!r} is neither true nor false")
    if manifest.default_mode not in modes:
        raise ManifestError(f"{path}: default_mode {manifest.default_mode!r} is not one of its modes: {', '.join(modes)}")
    for device in devices.values():
        named = (*device.precisions, *device.untimed, *device.cannot, *(each for mode in device.modes.values() for each in mode.cannot))
        if nonexistent := sorted(set(named) - set(PRECISIONS)):
            raise ManifestError(f"{path}: devices.{device.name} names precisions that do not exist: {', '.join(nonexistent)}")
        names = ", ".join(manifest.modes_on(device.name))
        if device.rooflines and set(device.rooflines) != set(manifest.modes_on(device.name)):
            raise ManifestError(f"{path}: devices.{device.name}.rooflines must name each of its modes: {names}")
        if nonexistent := sorted(set(device.short) - set(manifest.modes_on(device.name))):
            raise ManifestError(f"{path}: devices.{device.name}.short: {', '.join(nonexistent)} is none of its modes: {names}")
        if nonexistent := sorted(set(device.training_rooflines) - set(device.rooflines)):
            unlisted = ", ".join(nonexistent)
            raise ManifestError(f"{path}: devices.{device.name}.training_rooflines names {unlisted}, which rooflines does not")
        for key, lines in (("rooflines", device.rooflines), ("training_rooflines", device.training_rooflines)):
            if nonexistent := sorted(set(lines.values()) - set(get_args(Roofline))):
                kinds = ", ".join(get_args(Roofline))
                raise ManifestError(f"{path}: devices.{device.name}.{key}: {', '.join(nonexistent)} is none of {kinds}")
        if not device.requirements.is_file():
            raise ManifestError(f"{path}: {device.requirements.name} is missing")
    return manifest


def find(root: Path = ROOT, *, zoo: bool = False) -> dict[str, Manifest]:
    """Every implementation of the checkout at ``root``, by name; with ``zoo`` the model zoos' too, after them.

    Raises:
        ManifestError: one of them has a faulty ``impl.toml``.
    """
    return {
        path.parent.name: read_manifest(path, parent)
        for parent in ((OURS, ZOO) if zoo else (OURS,))
        for path in sorted(root.glob(f"{parent.replace('.', '/')}/*/impl.toml"))
    }


@dataclass(frozen=True, slots=True)
class Settings:
    """What is fixed for a whole process, before the framework's first operation."""

    device: str
    precision: str
    threads: int
    deterministic: bool


@dataclass(frozen=True, slots=True)
class Sgd:
    """Stochastic gradient descent as PyTorch defines it (torch.optim.SGD, dampening 0), for every parameter p.

    ::

        g = d loss / d p + weight_decay * p                          coupled; batch norm's weight and bias too
        v = momentum * v + g                                         v starts at 0 and does not hold the learning rate
        p = p - learning_rate * (g + momentum * v if nesterov else v)

    The loss is the batch's mean of -sum_k t_k log softmax(logits)_k, where t is 1 - label_smoothing at the label plus
    label_smoothing / classes everywhere (Szegedy et al., arXiv 1512.00567, section 7). Running statistics are no parameters:
    a batch norm updates its own, as ``impls.spec.BatchNorm2d`` says.

    ``momentum`` and ``label_smoothing`` are at least 0 and below 1, ``weight_decay`` at least 0; Nesterov's form needs a momentum.
    """

    momentum: float
    nesterov: bool
    weight_decay: float
    label_smoothing: float


@dataclass(frozen=True, slots=True)
class Derivatives:
    """One loss and its derivatives, seen from inside; arrays as ``Network.taps`` gives them.

    ``taps`` holds every layer's output in training mode and ``cotangents`` the derivative of the loss with respect to it, both
    by layer name; ``gradients`` the derivative with respect to every parameter by tensor name, without weight decay.
    """

    loss: float
    taps: dict[str, Any]
    cotangents: dict[str, Any]
    gradients: dict[str, Any]


TRAINING_PRECISIONS = ("fp64", "fp32", "tf32", "bf16")
"""bf16 is mixed precision (Micikevicius et al., arXiv 1710.03740; without loss scaling: Kalamkar et al., arXiv 1905.12322).

Parameters, momentum buffers, running statistics and loss are float32, and so is all arithmetic of batch norm, loss and ``Sgd``. Images,
every layer's output and every cotangent are bf16. A convolution or linear layer rounds its weight and bias to bf16, multiplies bf16 numbers
and adds up in float32, forward and backward; what it gives, gradients included, is rounded to bf16, a gradient at most once. A convolution
may add its bias to its output as it was stored, and round again.

fp16 would need loss scaling as well, which is not defined here.
"""


def check_training(model: ModelSpec, precision: str, input_shape: Shape) -> None:
    """Refuse what no implementation trains.

    Raises:
        CannotError: another precision, dropout, or a batch norm that gets one value of each channel, which has no variance.
        SpecError: the network does not take images of ``input_shape``.
    """
    if precision not in TRAINING_PRECISIONS:
        raise CannotError(f"training is done in {', '.join(TRAINING_PRECISIONS)}, not in {precision}")
    batch, _, height, width = input_shape
    taps = tap_shapes(model, batch, height, width)
    for layer in layers(model.body):
        if isinstance(layer, Dropout):
            raise CannotError(f"{layer.name}: every framework draws its own dropout, so networks are trained here without it")
        if isinstance(layer, BatchNorm2d) and math.prod(taps[layer.name]) == layer.channels:
            raise CannotError(f"{layer.name}: one value of each channel has no variance; train on more images or larger ones")


class Trainer(ABC):
    """One model in training: its parameters, running statistics and momentum buffers.

    Images are (N, C, H, W) float32 (fp64: float64), labels (N,) int64 from 0 to classes - 1, which the caller has checked;
    batch norm takes the batch's statistics.

    A batch goes ``put`` -> ``enqueue`` -> ``wait`` -> ``get``, as in ``Network``; these four are the timed path.
    """

    host_layout: str
    """As ``Network``'s."""

    @abstractmethod
    def put(self, images: Any, labels: Any) -> Any:
        """A batch to the device; the images in any memory order, best in that of ``host_layout``."""

    @abstractmethod
    def enqueue(self, batch: Any, learning_rate: float) -> Any:
        """Enqueue one step of ``Sgd`` in the trainer's mode, and give the loss of this batch before it where it is computed.

        The batch is left as it was, and of what the trainer holds nothing is copied to the host.
        """

    @abstractmethod
    def wait(self, loss: Any) -> None:
        """Return when the step that gave this loss is done, with all that it changes."""

    @abstractmethod
    def get(self, loss: Any) -> float:
        """The loss on the host."""

    @abstractmethod
    def first_parameter(self) -> Any:
        """The parameter that comes first in the network, which a backward pass reaches last, read from where the trainer holds it.

        Any shape and layout, on the host, after all steps that were enqueued.
        """

    def step(self, images: Any, labels: Any, learning_rate: float) -> float:
        """One step, waited for; returns the loss of this batch before it."""
        loss = self.enqueue(self.put(images, labels), learning_rate)
        self.wait(loss)
        return self.get(loss)

    @abstractmethod
    def differentiate(self, images: Any, labels: Any) -> Derivatives:
        """The loss of a batch and its derivatives, computed unfused; nothing that the trainer holds is changed."""

    @abstractmethod
    def weights(self) -> dict[str, Any]:
        """Parameters and running statistics, canonical names and layout, float32 (fp64: float64)."""

    @abstractmethod
    def momentum(self) -> dict[str, Any]:
        """The momentum buffer v of every parameter by tensor name, in canonical layout, float32 (fp64: float64)."""

    @abstractmethod
    def compilations(self) -> int:
        """As ``Network.compilations``."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """As ``Network.settings``."""


class Network(ABC):
    """One model with its weights, ready to run in one mode on inputs of one shape.

    A batch goes ``put`` -> ``run`` -> ``wait`` -> ``get``. ``run`` may return before the work is done; ``wait`` returns
    when it is. Nothing else may happen in these four: they are the timed path.
    """

    host_layout: str
    """"NCHW" or "NHWC": the order in memory in which ``put`` takes host images without rearranging them."""

    @abstractmethod
    def put(self, images: Any) -> Any:
        """Host images, float32 (fp64: float64), logical NCHW with the memory order of ``host_layout``, to a device batch."""

    @abstractmethod
    def run(self, batch: Any) -> Any:
        """Enqueue one forward pass; the batch is left as it was."""

    @abstractmethod
    def wait(self, output: Any) -> None:
        """Return when an output of ``run``, or a batch of ``put``, is there."""

    @abstractmethod
    def get(self, output: Any) -> Any:
        """The logits on the host, (N, classes), float32 (fp64: float64)."""

    def taps(self, images: Any) -> dict[str, Any]:
        """Every layer's output by layer name, float32 (fp64: float64), NCHW, computed unfused from the held weights.

        Raises:
            CannotError: its manifest says ``taps = false``.
        """
        raise CannotError("this implementation shows no intermediate outputs")

    @abstractmethod
    def weights(self) -> dict[str, Any]:
        """The weights read back from the framework, canonical names and layout, float32 (fp64: float64)."""

    def arithmetic(self, batch: Any) -> str:
        """In which types, and in which kernels, the products of a batch that ``run`` has had before are computed.

        Read from the compiled program or from kernels that ran, for bf16 and fp16; where it cannot be read the answer says
        "not told" and why. It may run the batch again and take seconds, so it is never called in the timed path.
        """
        return "not told: this implementation does not say"

    @abstractmethod
    def compilations(self) -> int:
        """How often anything has been traced or compiled for this network so far, by the framework's own count; it never falls.

        Timed calls between which it grows measure the compiler. What never compiles says 0.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What was really used, as the framework reports it: at least threads, precision, tf32, layout, deterministic, placed_on.

        ``placed_on`` is the kind of device that holds the network, cpu or cuda.
        """


class Runtime(ABC):
    """A framework in this process."""

    @abstractmethod
    def __init__(self, settings: Settings) -> None:
        """Import the framework and make the settings.

        Raises:
            CannotError: the device or the precision is not to be had here.
        """

    @abstractmethod
    def prepare(self, model: ModelSpec, weights: Mapping[str, Any], mode: str, input_shape: Shape) -> Network:
        """Load float32 weights (cast to the process's precision by rounding to nearest even) and build the mode's network.

        ``input_shape`` is (N, C, H, W). Compilation may wait for the first ``run``.

        Raises:
            CannotError: this mode cannot run this model here.
        """

    def prepare_training(
        self, model: ModelSpec, weights: Mapping[str, Any], momentum: Mapping[str, Any], sgd: Sgd, mode: str, input_shape: Shape
    ) -> Trainer:
        """Make ready to train on batches of ``input_shape``, (N, C, H, W), from a given state.

        ``weights`` and ``momentum`` (one buffer for each parameter) are float32, or float64 where the process's precision is fp64
        and they were trained in it; both keep every bit that the precision holds. Compilation may wait for the first step.

        Raises:
            CannotError: no training in this framework or mode, or not of this model or in this precision.
        """
        raise CannotError("this implementation has no training")

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of the framework and of the libraries under it that decide its results."""

    def device_memory(self) -> dict[str, int]:
        """Peaks since the process began, in bytes, by the counters of the framework's own allocator; empty where it keeps none, as on CPU.

        ``peak_allocated_bytes`` is what tensors took, ``peak_reserved_bytes``, where it is told, what the allocator held for them.
        """
        return {}
