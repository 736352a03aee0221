"""``levelfield accuracy``: what it refuses in a sentence, and how it goes from weight files to rows, flips and ensembles."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from rich.console import Console

from impls import models
from impls.weights import file, synthesis
from impls.weights.checkpoints import public
from levelfield import cli
from levelfield.screen import Progress
from results.certificate import load
from results.record import Cell, Record
from suites import accuracy, evaluation
from suites.data import cifar, preprocess
from suites.data.imagenet import synsets
from suites.evaluation import Asked
from suites.harness import inputs, runner
from suites.harness.context import Context
from suites.harness.plan import Request
from tests.checkouts import Checkout
from tests.test_accuracy import BY_BYTES, LABELS, Fakes, FakeWorker, logits_of

MODEL = models.get("cifar_resnet8")


@pytest.fixture
def weights(tmp_path: Path) -> Callable[..., Path]:
    """Write weights of a seed."""

    def write(seed: int, preprocess: dict[str, object] | None = None, model: str = MODEL.name) -> Path:
        path, spec = tmp_path / f"{model}-{seed}.safetensors", models.get(model)
        stored = dict(inputs.DIGITS_PREPROCESS) if preprocess is None else preprocess
        file.save(path, spec, synthesis.synthesize(spec, seed), source="a test", preprocess=stored, licence="CC0-1.0")
        return path

    return write


def levelfield(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["accuracy", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data-dir", "x"), "--data-dir is not for the digits"),
        (("--preprocess", "timm"), "--preprocess is not for the digits"),
        (("--ten-crop",), "--ten-crop is not for the digits"),
        (("--dataset", "imagenet"), "--data-dir names the folder"),
        (("--dataset", "imagenet", "--data-dir", "/nowhere"), "/nowhere: is no folder"),
        (("--dataset", "cifar10", "--data-dir", "/nowhere"), "/nowhere: holds neither cifar-10-batches-bin/test_batch.bin"),
        (("--dataset", "cifar10", "--preprocess", "tim"), "there is no preprocessing 'tim' (known: torchvision"),
        (("--weights", "absent.safetensors"), "absent.safetensors: there is no such file"),
        (("--models", "resnet18,resnet50", "--weights", "a"), "--weights FILE holds one model's weights"),
    ],
)
def test_what_cannot_be_is_a_sentence(arguments: tuple[str, ...], message: str) -> None:
    """Before anything is built or downloaded, with the exit code of usage."""
    found = levelfield("--model", "cifar_resnet20", *arguments) if "--models" not in arguments else levelfield(*arguments)
    assert (found.exit_code, found.stdout) == (2, "")
    assert message in found.stderr
    assert found.stderr.count("\n") == 1


def test_weights_that_do_not_fit_the_data(tmp_path: Path, weights: Callable[..., Path]) -> None:
    """Prepared as digits, of another number of classes, or of another size: the sentence names file or model."""
    (tmp_path / "test_batch.bin").write_bytes(bytes(cifar.OFFICIAL["cifar10"].bytes))
    folder = ("--data-dir", tmp_path)
    found = levelfield("--dataset", "cifar10", *folder, "--weights", weights(0))
    assert found.exit_code == 2
    assert "'repeat' is unknown or missing in it; --preprocess names one of torchvision" in found.stderr
    found = levelfield("--dataset", "cifar10", *folder, "--weights", weights(0), "--preprocess", "torchvision")
    assert "crops 224 x 224 of 256 pixels, the network takes 32 x 32" in found.stderr
    found = levelfield("--dataset", "cifar10", *folder, "--weights", weights(0), "--preprocess", "cifar", "--ten-crop")
    assert "a 10-crop test needs images that are larger" in found.stderr
    stored = {"channels": "RGB", "range": [0, 1], "mean": [0, 0, 0], "std": [1, 1, 1]}
    found = levelfield("--weights", weights(1, stored))
    assert "its weights are not for the digits" in found.stderr


class ByWeights(FakeWorker):
    """Answers with the logits of whichever weight file it was given."""

    def __init__(self, logits: dict[str, Any]) -> None:
        super().__init__(next(iter(logits.values())))
        self.by_name = logits

    def call(self, operation: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        if operation == "prepare":
            self.logits = self.by_name[Path(arguments["weights"]).name]
        return super().call(operation, timeout_s, **arguments)


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Fakes], None]:
    """Let the command ask faked workers, certified beforehand."""

    def certified(context: Context, arms: tuple[Cell, ...], sizes: tuple[int, ...], *rest: object) -> dict[Cell, Record]:
        return {arm: context.record("equivalence", arm) for arm in arms}

    def use(given: Fakes) -> None:
        monkeypatch.setenv("LEVELFIELD_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(accuracy, "ORACLE_MACS", 0)
        monkeypatch.setattr(accuracy, "Workers", lambda context, purpose: given)
        monkeypatch.setattr(runner, "interpreters", lambda *rest: {})
        monkeypatch.setattr(runner, "certificates_of", certified)

    return use


def options(tmp_path: Path) -> runner.Options:
    return runner.Options(tmp_path / "store", (), False, lambda line: None, lambda folder: None)


def test_an_ensemble_of_two_files_of_one_model(tmp_path: Path, weights: Callable[..., Path], fakes: Callable[[Fakes], None]) -> None:
    """Each file has its rows; averaged they are right where one is sure and the other merely leans, and a rerun asks nobody."""
    sure, leaning = 9 * logits_of({4: 0}), logits_of({})
    assert LABELS[4] != 0
    paths = (weights(0), weights(1))
    worker = ByWeights({paths[0].name: sure, paths[1].name: leaning})
    fakes(Fakes({"onnx": worker}))
    request = Request(implementations=("onnx",))
    found = evaluation.run(request, Asked(weights=paths), options(tmp_path))
    assert [record.measurements["top1"] for record in found.records] == [499 / 500, 1]
    assert len({record.model.weights_sha256 for record in found.records if record.model}) == 2
    (together,) = found.ensembles
    assert together["top1"] == 499 / 500  # the first is sure of its fault
    assert [each["model"] for each in together["members"]] == [MODEL.name] * 2
    batches = len(worker.seen)
    (folder,) = (tmp_path / "store").iterdir()
    (folder / runner.FINISHED).unlink()  # as if it had been interrupted at the end
    again = evaluation.run(request, Asked(weights=paths), options(tmp_path))
    assert (again.ensembles, len(worker.seen)) == (found.ensembles, batches)


def test_a_folder_of_images_from_end_to_end(tmp_path: Path, weights: Callable[..., Path], fakes: Callable[[Fakes], None]) -> None:
    """Files to rows, decoded and prepared as the weight file says; the one that is no image is named, and the exit code is 1."""
    stored = {"channels": "RGB", "range": [0, 1], "mean": [0, 0, 0], "std": [1, 1, 1]}
    path = weights(0, stored, "resnet18")
    data = tmp_path / "val"
    data.mkdir()
    for number, value in enumerate((0, 255, 51)):
        Image.new("RGB", (300, 280), (value, value, value)).save(data / f"{number}.png")
    (data / "3.png").write_bytes(b"no image")
    (data / "labels.csv").write_text("file,label\n" + "".join(f"{number}.png,{synsets()[number]}\n" for number in range(4)))

    class Brightness(FakeWorker):
        """Puts black into class 0, white into 1, the rest into 2."""

        def receive(self, timeout_s: float) -> dict[str, Any]:
            from safetensors.numpy import load_file, save_file

            _, arguments = self.asked[-1]
            images = load_file(arguments["images"])["images"]
            mean = images.mean(axis=(2, 3, 4))
            assert images.shape == (1, 8, 3, 224, 224)
            assert {round(float(each), 4) for each in mean.ravel()} == {0, 0.2, 1}
            classes = np.where(mean == 0, 0, np.where(mean == 1, 1, 2))
            save_file({"logits": np.eye(1000, dtype=np.float32)[classes]}, arguments["out"])
            return {}

    fakes(Fakes({"onnx": Brightness(logits_of({}))}))
    arguments = ("--weights", path, "--dataset", "imagenet", "--data-dir", data, "--impls", "onnx", "--store", tmp_path / "store", "--json")
    found = levelfield(*arguments)
    assert isinstance(found.exception, SystemExit), found.exception
    assert found.exit_code == 1, found.stderr
    (row,) = json.loads(found.stdout)["rows"]
    assert (row["dataset"], row["images"], row["top1"]) == ("imagenet/val-4", 4, 0.75)
    assert row["unreadable"][0]["name"] == "3.png"
    assert row["preprocess"]["resize"] == 256
    shown = levelfield(*arguments[:-1])
    assert "1 images could not be read; they are counted, and not as right:" in shown.stdout
    assert "3.png is no image" in shown.stdout


@pytest.mark.parametrize(("top1", "code"), [(99.02, 0), (99.04, 1)])
def test_a_public_checkpoint_is_held_to_what_was_published(
    top1: float, code: int, tmp_path: Path, fakes: Callable[[Fakes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CIFAR-10's 10,000 images from the folder to the exit code; the weight file says of which checkpoint it is."""
    images = np.zeros((10_000, 1 + 3 * 32 * 32), np.uint8)
    images[:, 0] = np.arange(10_000) % 10
    images[:, 1:] = 20 * images[:, :1]
    (tmp_path / "test_batch.bin").write_bytes(images.tobytes())
    path = tmp_path / "net.safetensors"
    pipeline = preprocess.chosen("cifar")
    weights = synthesis.synthesize(MODEL, 0)
    file.save(path, MODEL, weights, source="net.pt", preprocess=pipeline.as_json(), licence="MIT", source_md5="5" * 32)
    known = public.Public("net.pt", MODEL.name, "somebody", "MIT", "cifar", "cifar10", top1, None, md5="5" * 32)
    monkeypatch.setattr(public, "KNOWN", (known,))

    class Reader(FakeWorker):
        """Reads the class off the brightness, but of the first 100 images."""

        def receive(self, timeout_s: float) -> dict[str, Any]:
            from safetensors.numpy import load_file, save_file

            _, arguments = self.asked[-1]
            given = load_file(arguments["images"])["images"]
            pixels = given[:, :, 0, 0, 0] * pipeline.std[0] + pipeline.mean[0]
            classes = np.rint(pixels * 255 / 20).astype(int)
            if not self.seen:
                classes[:, :100] = (classes[:, :100] + 1) % 10
            self.seen.append(classes)
            save_file({"logits": np.eye(10, dtype=np.float32)[classes]}, arguments["out"])
            return {}

    fakes(Fakes({"onnx": Reader(logits_of({}))}))
    arguments = ("--weights", path, "--dataset", "cifar10", "--data-dir", tmp_path, "--impls", "onnx", "--batch-sizes", "1000")
    found = levelfield(*arguments, "--store", tmp_path / "store", "--json")
    assert found.exit_code == code, found.stderr
    document = json.loads(found.stdout)
    (row,), (claim,) = document["rows"], document["published"]
    assert row["top1"] == 0.99
    assert (claim["implementation"], claim["top1"], claim["holds"]) == ("onnx", top1, not code)
    assert claim["top1_points"] == pytest.approx(99 - top1)
    fakes(Fakes({"onnx": Reader(logits_of({}))}))
    shown = levelfield(*arguments, "--store", tmp_path / "store").stdout
    assert f"Published of net.pt: top-1 {top1} % (somebody)." in shown
    verdict = "MORE than 0.03 away: not what was published" if code else "within 0.03"
    assert f"ONNX Runtime fp32: top-1 {99 - top1:+.3f} points, {verdict}" in shown


def test_a_model_without_weights_says_how_to_bring_some(tmp_path: Path, fakes: Callable[[Fakes], None]) -> None:
    """It was named, so that is a no; nobody is asked."""
    fakes(Fakes({}))
    found = levelfield("--model", "resnet18", "--impls", "onnx", "--store", tmp_path / "store")
    assert found.exit_code == 1
    assert "bring weights: resnet18 has none here that were trained" in found.stdout
    assert "--dataset imagenet --data-dir DIR" in found.stdout.replace("\n", " ")


def test_the_digits_are_told_apart() -> None:
    """What the fakes rely on: no two of the test images are the same."""
    assert len(BY_BYTES) == len(LABELS)


def test_the_command_with_a_real_worker(checkout: Checkout, tmp_path: Path, weights: Callable[..., Path]) -> None:
    """Certified, classified and compared with the oracle, from a weight file to the document; killed halfway it goes on."""
    arguments = ("accuracy", "--weights", str(weights(0)), "--impls", "honest", "--env", "current", "--batch-sizes", "50")
    arguments += ("--store", str(tmp_path / "store"))
    stop = "from suites.harness import scores; kept = scores.Scores.append\n"
    stop += "def append(self, batch):\n kept(self, batch)\n if self.batches == 4: raise KeyboardInterrupt\nscores.Scores.append = append"
    done = checkout.run(*arguments, before=stop)
    assert done.returncode == 130, done.stderr
    assert "the same command goes on from there" in done.stderr
    code, document = checkout.document(*arguments)
    assert code == 0
    (row,) = document["rows"]
    assert (row["dataset"], row["images"], row["status"]) == ("digits/test", 500, "ok")
    assert document["oracle"][0]["top1"] == row["top1"]
    assert document["flips"] == []
    (pair,) = document["disagreements"]
    assert (pair["first"], pair["second"], pair["images"], pair["p"]) == ("honest/eager", "oracle", 0, 1)
    (run,) = (tmp_path / "store").iterdir()
    (kept,) = (run / "scores").iterdir()
    assert len(kept.read_text().splitlines()) == 11


def test_each_file_of_an_ensemble_keeps_its_certificate(checkout: Checkout, tmp_path: Path, weights: Callable[..., Path]) -> None:
    """Two files of one model: two documents, each named by a record of these weights."""
    files = [argument for seed in (0, 1) for argument in ("--weights", str(weights(seed)))]
    code, document = checkout.document(
        "accuracy", *files, "--impls", "honest", "--env", "current", "--batch-sizes", "50", "--store", str(tmp_path / "store")
    )
    assert code == 0
    (folder,) = (tmp_path / "store").iterdir()
    found = {load(path).sha256["weights"] for path in (folder / "certificates").iterdir()}
    assert found == {row["weights_sha256"] for row in document["rows"]}
    assert len(found) == 2


def watched(*, terminal: bool, quiet: bool = False) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=110)
    return Progress(console, quiet, None, ()), out


def test_a_terminal_shows_a_bar() -> None:
    """It names what is counted and how far that is, and is gone at the end."""
    progress, out = watched(terminal=True)
    progress.start()
    progress.count("digits, honest eager", 0, 500)
    progress.count("digits, honest eager", 200, 500)
    progress._live.refresh()  # type: ignore[union-attr]
    assert re.search(r"digits, honest eager .*200/500", out.getvalue())
    progress.count("digits, honest eager", 500, 500)
    progress.stop()
    assert "500/500" not in out.getvalue()


def test_elsewhere_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more often than every ten seconds, with what is left by the speed since the first; nothing where a document is printed."""
    now = iter((0.0, 0.0, 5.0, 20.0, 20.0, 21.0, 22.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    progress, out = watched(terminal=False)
    for done in (100, 150, 300, 350, 500):
        progress.count("digits, honest eager", done, 500)
    assert out.getvalue().splitlines() == ["  0:20  300 of 500 images, about 20 s are left"]
    monkeypatch.undo()
    progress, out = watched(terminal=False, quiet=True)
    progress.count("digits, honest eager", 0, 500)
    assert out.getvalue() == ""
