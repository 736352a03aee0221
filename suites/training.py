"""Training of the weights that the project ships: one recipe, fixed beforehand, in PyTorch fp32.

The parent makes everything that is not arithmetic of the network, in NumPy: initial weights, order, augmentation, learning
rates. A worker takes the steps. The weights are those after the last step; nothing is selected on the test set.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from impls.implementation import OURS, Sgd
from impls.oracle import forward
from impls.spec import ModelSpec
from impls.weights import file
from impls.weights.initial import initialize
from suites.accuracy import score
from suites.harness.arrays import save
from suites.harness.context import BUILD_TIMEOUT_S, CALL_TIMEOUT_S, START_TIMEOUT_S
from suites.harness.inputs import DIGITS_PREPROCESS, Dataset, Images, check_dataset, digits
from suites.harness.process import Launch, WorkerError, WorkerProcess

IMPLEMENTATION = "pytorch"
MODE = "eager"
PRECISION = "fp32"

LICENCE = "Apache-2.0"
"""Of the weights. The digits are CC BY 4.0 (UCI Machine Learning Repository, data set 80)."""


class TrainingError(RuntimeError):
    """Training that cannot be done or did not end well; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained. An epoch goes once through the training set in whole batches; what is left over is dropped.

    ``largest_shift`` is in pixels: each image moves by -largest_shift .. largest_shift rows and columns, ``fill`` flows in.
    ``learning_rate`` is that of the first step; it falls with half a cosine to 0 after the last.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    sgd: Sgd
    largest_shift: int
    fill: float


DIGITS = Recipe(
    epochs=30,
    batch_size=64,
    # 0.1 for batches of 128 (arXiv 1512.03385, section 4.2), in proportion to the batch (Goyal et al., arXiv 1706.02677).
    learning_rate=0.05,
    # Momentum and weight decay: arXiv 1512.03385, section 4.2.
    sgd=Sgd(momentum=0.9, nesterov=False, weight_decay=1e-4, label_smoothing=0.0),
    # As there: 32 x 32 crops of the image padded by 4. No mirror images: a mirrored digit is none.
    largest_shift=4,
    fill=-1.0,  # the digits' background
)
"""For the digits. The schedule: Loshchilov and Hutter, arXiv 1608.03983, without restarts."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What training gave: canonical weights, the mean loss of every epoch, and the worker's versions."""

    weights: dict[str, npt.NDArray[np.float32]]
    losses: tuple[float, ...]
    versions: dict[str, str]


def steps_per_epoch(recipe: Recipe, count: int) -> int:
    """Whole batches in ``count`` images.

    Raises:
        TrainingError: there is none.
    """
    if count < recipe.batch_size:
        raise TrainingError(f"a batch of {recipe.batch_size} images cannot be made of {count}")
    return count // recipe.batch_size


def learning_rates(recipe: Recipe, count: int, epoch: int) -> list[float]:
    """The learning rate of each step of an epoch: of step t of T, from 0, learning_rate * (1 + cos(pi t / T)) / 2."""
    steps = steps_per_epoch(recipe, count)
    places = range(epoch * steps, (epoch + 1) * steps)
    return [recipe.learning_rate * (1 + math.cos(math.pi * place / (recipe.epochs * steps))) / 2 for place in places]


def epoch_batches(recipe: Recipe, dataset: Dataset, seed: int, epoch: int) -> tuple[Images, npt.NDArray[np.int64]]:
    """The batches of one epoch: images (steps, N, C, H, W) and labels (steps, N).

    Everything random comes from the raw 64-bit outputs of PCG64 seeded with [seed, epoch], a stream that NumPy keeps (NEP 19):
    one a training image, whose stable sorting gives the order; then one a used image for its rows and one for its columns,
    taken modulo the number of shifts.
    """
    generator = np.random.PCG64([seed, epoch])
    steps, shift = steps_per_epoch(recipe, len(dataset.images)), recipe.largest_shift
    used = steps * recipe.batch_size
    order = np.argsort(generator.random_raw(len(dataset.images)), kind="stable")[:used]
    offsets = (generator.random_raw(2 * used) % np.uint64(2 * shift + 1)).astype(np.intp).reshape(2, used)
    chosen = dataset.images[order]
    height, width = chosen.shape[2:]
    padded = np.pad(chosen, ((0, 0), (0, 0), (shift, shift), (shift, shift)), constant_values=recipe.fill)
    images = np.empty_like(chosen)
    for index, (top, left) in enumerate(offsets.T):
        images[index] = padded[index, :, top : top + height, left : left + width]
    shape = (steps, recipe.batch_size)
    return images.reshape(*shape, *chosen.shape[1:]), dataset.labels[order].reshape(shape)


def train(
    model: ModelSpec,
    dataset: Dataset,
    recipe: Recipe,
    seed: int,
    *,
    python: Path,
    threads: int,
    folder: Path,
    say: Callable[[str], None],
) -> Trained:
    """Train ``model`` from fresh weights; ``say`` gets a line an epoch, ``folder`` holds what passes between the processes.

    Equal arguments on one machine give equal weights, bit for bit: the framework runs deterministically.

    Raises:
        NoInputError: the images or labels are not for this model.
        TrainingError: too few images, a loss that is not finite, or a worker that failed.
    """
    check_dataset(model, dataset)
    initial, batches, out = folder / "initial.safetensors", folder / "batches.safetensors", folder / "trained.safetensors"
    file.save(initial, model, initialize(model, seed), source=f"initial, seed {seed}", preprocess=DIGITS_PREPROCESS, licence="CC0-1.0")
    shape = [recipe.batch_size, *model.input_chw]
    losses: list[float] = []
    package, variables = f"{OURS}.{IMPLEMENTATION}", {"OMP_NUM_THREADS": str(threads)}
    launch = Launch(python, package, "cpu", PRECISION, threads, True, folder / "train.log", variables)
    try:
        with WorkerProcess(launch) as worker:
            hello = worker.call("start", START_TIMEOUT_S)
            sgd = dataclasses.asdict(recipe.sgd)
            worker.call("prepare_training", BUILD_TIMEOUT_S, weights=str(initial), sgd=sgd, mode=MODE, input_shape=shape)
            for epoch in range(recipe.epochs):
                images, labels = epoch_batches(recipe, dataset, seed, epoch)
                save({"images": images, "labels": labels}, batches)
                rates = learning_rates(recipe, len(dataset.images), epoch)
                taken = worker.call("train", BUILD_TIMEOUT_S, batches=str(batches), learning_rates=rates)["losses"]
                losses.append(math.fsum(taken) / len(taken))
                say(f"epoch {epoch + 1} of {recipe.epochs}: loss {losses[-1]:.4f}, learning rate {rates[-1]:.4f}")
                if not math.isfinite(losses[-1]):
                    raise TrainingError(f"the loss is {losses[-1]} in epoch {epoch + 1}: the learning rate is too high for this network")
            worker.call("trained", CALL_TIMEOUT_S, out=str(out))
    except WorkerError as error:
        raise TrainingError(f"training {model.name} failed: {error}") from None
    weights = {name.removeprefix("weights:"): tensor for name, tensor in load_file(out).items() if name.startswith("weights:")}
    return Trained(weights, tuple(losses), hello["versions"])


def make(
    model: ModelSpec, recipe: Recipe, seed: int, out: Path, *, python: Path, threads: int, version: str, say: Callable[[str], None]
) -> float:
    """Train on the digits and write the weight file; returns its top-1 on the test set, by the float64 oracle.

    Raises:
        NoInputError, TrainingError, WeightFileError, OSError: as ``train`` and ``write``.
    """
    training_set, test_set = digits()
    with tempfile.TemporaryDirectory(prefix="levelfield-") as folder:
        trained = train(model, training_set, recipe, seed, python=python, threads=threads, folder=Path(folder), say=say)
    write(out, model, trained, recipe, seed, threads, version)
    return score(forward.forward(model, trained.weights, test_set.images), test_set.labels).top1


def write(out: Path, model: ModelSpec, trained: Trained, recipe: Recipe, seed: int, threads: int, version: str) -> str:
    """Write trained weights as a canonical weight file that says how they were made; returns the root hash.

    ``version`` is levelfield's.

    Raises:
        WeightFileError, OSError: as ``impls.weights.file.save``.
    """
    sgd = recipe.sgd
    source = (
        f"trained by levelfield {version} on the first 1297 digits of scikit-learn (CC BY 4.0, UCI data set 80): "
        f"{recipe.epochs} epochs in batches of {recipe.batch_size}, SGD with momentum {sgd.momentum}, weight decay {sgd.weight_decay}, "
        f"label smoothing {sgd.label_smoothing}, learning rate {recipe.learning_rate} and half a cosine, "
        f"shifts of up to {recipe.largest_shift} pixels, seed {seed}, torch {trained.versions['torch']}, {PRECISION}, {threads} threads"
    )
    classes = tuple(map(str, range(model.classes)))
    return file.save(out, model, trained.weights, source=source, preprocess=DIGITS_PREPROCESS, licence=LICENCE, classes=classes)
