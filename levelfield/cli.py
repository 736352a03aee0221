"""The command ``levelfield``: thin over the suites and reports. Everything heavy is imported when a command needs it."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from levelfield import checkout
from levelfield._version import __version__

if TYPE_CHECKING:
    from suites.data.test_set import Dataset
    from suites.harness import plan as planning
    from suites.harness.runner import Options

YES, NO, USAGE, INVALID, INCONCLUSIVE = range(5)
"""The exit codes: yes; no; usage or environment, or nothing could run; measured but nothing valid; inconclusive."""

INTERRUPTED = 130

SCHEMA_VERSION = 1
"""Of the documents that ``--json`` prints."""

F = TypeVar("F", bound=Callable[..., Any])


class Listed(click.ParamType[tuple[Any, ...], Any]):
    """A comma-separated list of words, or of numbers."""

    name = "list"

    def __init__(self, item: Callable[[str], Any] = str) -> None:
        self.item = item

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Split at commas; an empty word or a number that is none is refused."""
        if isinstance(value, tuple):
            return value
        try:
            words = tuple(self.item(word.strip()) for word in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a comma-separated list of numbers", param, ctx)
        if "" in words:
            self.fail(f"{value!r} has an empty word", param, ctx)
        return words


class BatchSizes(Listed):
    """Numbers, and at the end maybe ``...``: twice as many each time, as long as they fit."""

    def __init__(self) -> None:
        super().__init__(lambda word: ... if word == "..." else int(word))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """As a list of numbers; the dots follow a number and end it."""
        sizes = super().convert(value, param, ctx)
        if ... in sizes[:-1] or sizes == (...,):
            self.fail(f"{value!r}: ... stands at the end, behind the size that is doubled first, as in 1,32,...", param, ctx)
        return sizes


class Duration(click.ParamType[float, Any]):
    """Seconds, minutes or hours: ``90s``, ``5m``, ``1h``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """A number with a unit, in seconds."""
        if isinstance(value, float):
            return value
        unit = {"s": 1, "m": 60, "h": 3600}.get(value[-1:])
        try:
            seconds = float(value[:-1]) * unit if unit else float("nan")
        except ValueError:
            seconds = float("nan")
        if not 0 < seconds < float("inf"):
            self.fail(f"{value!r} is not a duration like 90s, 5m or 1h", param, ctx)
        return seconds


class Commands(click.Group):
    """A group that answers an unknown command with the nearest one."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but with a hint."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1, cutoff=0.0)
            ctx.fail(f"there is no command {args[0]!r}; did you mean {near[0]!r}?")


def fail(message: str, code: int = USAGE) -> NoReturn:
    """One sentence on stderr, and out."""
    click.echo(f"levelfield: {message}", err=True)
    raise SystemExit(code)


EXPECTED = {
    "impls.implementation.ManifestError",
    "impls.models.UnknownModelError",
    "impls.oracle.forward.WeightsError",
    "impls.spec.SpecError",
    "impls.weights.container.WeightFileError",
    "reports.asv_site.SiteError",
    "reports.frame.BaselineError",
    "reports.frame.NoRecordsError",
    "reports.likeness.AllowUnlikeError",
    "results.schema.RecordError",
    "results.store.StoreError",
    "suites.data.labelled.DataError",
    "suites.data.preprocess.PreprocessError",
    "suites.equivalence.scoring.ScoringError",
    "suites.equivalence.doors.DoorError",
    "suites.equivalence.foreign.ForeignError",
    "suites.equivalence.outputs.NotFiniteError",
    "suites.equivalence.outputs.OutputsError",
    "suites.harness.closure.ClosureError",
    "suites.harness.environments.EnvironmentBuildError",
    "suites.harness.inputs.NoInputError",
    "suites.harness.noise.NoCardError",
    "suites.harness.npz.NpzError",
    "suites.harness.plan.UsageError",
    "suites.harness.revisions.RevisionError",
    "suites.harness.runner.NothingToRunError",
    "suites.training.TrainingError",
}
"""What users can mend, by name, so that no command imports what it does not need."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what users can mend into one sentence and the documented exit code; a fault of ours keeps its traceback.

    SIGTERM, with which schedulers cancel a job, ends a command as Ctrl-C does.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        click.echo("levelfield: interrupted; what was measured is stored, and the same command goes on from there", err=True)
        with suppress(OSError):  # of a pipe that nobody reads any more
            sys.stdout.flush()
        os._exit(INTERRUPTED)  # a thread in the middle of the oracle cannot be told to stop, and Python would wait for it
    except BrokenPipeError:
        raise SystemExit(INTERRUPTED) from None
    except OSError as error:
        fail(f"{error.filename or 'the system'}: {error.strerror or error}")
    except Exception as error:
        if f"{type(error).__module__}.{type(error).__qualname__}" not in EXPECTED:
            raise
        fail(str(error))
    finally:
        signal.signal(signal.SIGTERM, before)


def request_options(command: F) -> F:
    """The options that choose cells, shared by bench, certify, plan and accuracy."""
    for option in reversed(
        (
            click.option("--models", "--model", "models", type=Listed(), help="Models, comma-separated; `levelfield models` lists them."),
            click.option("--impls", type=Listed(), help="Implementations: pytorch, jax, tensorflow, onnx."),
            click.option("--modes", type=Listed(), help="Modes: eager, compile, jit, graph, xla, ort."),
            click.option("--precisions", type=Listed(), help="Precisions: fp64, fp32, tf32, bf16, fp16. Default: fp32."),
            click.option("--batch-sizes", type=BatchSizes(), help="Batch sizes. Default: 1,8. On a GPU 1,32,... doubles while they fit."),
            click.option("--scopes", type=Listed(), help="device, transfer (host to host). Default: transfer."),
            click.option("--device", default="cpu", show_default=True, help="cpu or cuda."),
            click.option("--threads", type=int, help="Threads per process. Default: the cores that this process may use."),
            click.option("--processes", type=int, help="Fresh processes per implementation (K)."),
            click.option("--budget", type=Duration(), help="Longest run, like 5m; the plan says what it measures less of."),
            click.option("--zoo", is_flag=True, help="Also the frameworks' own model zoos, in the same rounds (docs/zoo.md)."),
            click.option("--smoke", is_flag=True, help="Run every path once; the records are marked as no measurement."),
        )
    ):
        command = option(command)
    return command


with_cold = click.option("--cold", is_flag=True, help="Also start-up with empty caches of compilers; takes minutes.")
with_energy = click.option("--energy", is_flag=True, help="Also energy per image, where the machine has a counter; takes long.")


with_training = click.option("--training", is_flag=True, help="Training steps (forward, backward, SGD) instead of inference.")


def run_options(command: F) -> F:
    """The options that say where things lie."""
    for option in reversed(
        (
            click.option("--env", "env", multiple=True, help="'current' or IMPLEMENTATION=PYTHON: an existing interpreter."),
            click.option("--store", type=click.Path(path_type=Path, file_okay=False), help="Folder of runs. Default: results/local."),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else."),
        )
    ):
        command = option(command)
    return command


allowing = click.option(
    "--allow-unlike",
    type=Listed(),
    default=(),
    help="Compare rows although these fields differ, as folded,tf32; the report says so.",
)
resumed = click.option("--fresh", is_flag=True, help="Start a new run even if an unfinished one of the same plan is there.")


def _request(options: dict[str, Any], *, doubling: bool = False) -> planning.Request:
    from suites.harness.plan import Request

    sizes = options["batch_sizes"] or ()
    if ... in sizes and not doubling:
        fail("--batch-sizes: only bench and plan take ..., which doubles")
    return Request(
        models=options["models"],
        implementations=options["impls"],
        modes=options["modes"],
        precisions=options["precisions"],
        batch_sizes=tuple(size for size in sizes if size is not ...) or None,
        doubling=... in sizes,
        cold=options.get("cold", False),
        scopes=options["scopes"],
        device=options["device"],
        threads=options["threads"],
        processes=options["processes"],
        smoke=options["smoke"],
        budget_s=options["budget"],
        zoo=options["zoo"],
        second_clock=options.get("second_clock", False),
        energy=options.get("energy", False),
        training=options.get("training", False),
    )


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=1, allow_nan=False))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def main() -> None:
    """The same ResNets in PyTorch, JAX, TensorFlow and ONNX Runtime: proved equal first, then compared."""
    checkout.enter()


@main.command()
@request_options
@with_training
@with_energy
@with_cold
@run_options
@resumed
@click.option("--second-clock", is_flag=True, help="Let MLCommons LoadGen time one cell of each implementation too (docs/measuring.md).")
@click.option("--baseline", default="pytorch/eager", show_default=True, help="IMPLEMENTATION/MODE that ratios are against.")
@click.option("--weights", multiple=True, type=click.Path(path_type=Path, dir_okay=False), help="Your own weight files, one for a model.")
@allowing
def bench(
    env: tuple[str, ...],
    store: Path | None,
    fresh: bool,
    as_json: bool,
    baseline: str,
    weights: tuple[Path, ...],
    allow_unlike: tuple[str, ...],
    **options: Any,
) -> None:
    """Certify, measure, store, print the comparison and write the report."""
    with plain_errors():
        from levelfield import screen
        from reports import likeness, write
        from suites.harness import runner

        likeness.require_liftable(allow_unlike)
        request = _request(options, doubling=True)
        _require_device(request.device)
        with screen.live(quiet=as_json, baseline=baseline, allow_unlike=allow_unlike) as live:
            folder, planned = runner.bench(request, _options(runner, env, store, fresh, live), weights)
        out = runner.REPORTS / folder.name
        write.write(folder, out, baseline, allow_unlike)
        frame = _frame(folder, baseline)
        if as_json:
            _print_json(screen.bench_document(folder, baseline, planned, allow_unlike))
        else:
            screen.final(folder, baseline, out, allow_unlike)
        raise SystemExit(screen.bench_code(frame, planned))


@main.command()
@request_options
@run_options
@resumed
@click.option("--training", is_flag=True, help="Of derivatives and training steps instead of inference.")
@click.option("--thorough", is_flag=True, help="Also odd and non-square sizes, batches of 1 and 3, and extreme inputs.")
@click.option("--clean-seeds", type=click.IntRange(1), help="Examine so many clean seeds of a small network, and count false alarms.")
@click.option("--mutants", is_flag=True, help="Examine known faults instead, and write the matrix to docs/faults.md.")
@click.option("--weights", type=click.Path(path_type=Path, dir_okay=False), help="Your own weight file, for one model.")
def certify(
    env: tuple[str, ...],
    store: Path | None,
    fresh: bool,
    as_json: bool,
    training: bool,
    thorough: bool,
    clean_seeds: int | None,
    mutants: bool,
    weights: Path | None,
    **options: Any,
) -> None:
    """Prove the equivalence, and measure nothing."""
    if mutants:
        _mutants(
            env,
            options.pop("threads"),
            as_json,
            any((store, fresh, training, thorough, clean_seeds, weights, options.pop("device") != "cpu", *options.values())),
        )
    if weights and (training or clean_seeds is not None):
        fail("--weights is for certificates of inference; leave out --training and --clean-seeds")
    if thorough and (training or clean_seeds is not None):
        fail("--thorough is for certificates of inference; leave out --training and --clean-seeds")
    with plain_errors():
        from levelfield import screen
        from reports import certificate
        from suites.harness import runner

        request = _request(options)
        _require_device(request.device)
        with screen.live(quiet=as_json, baseline=None) as live:
            arguments = _options(runner, env, store, fresh, live)
            if clean_seeds is not None:
                folder, records = runner.clean_seeds(request, clean_seeds, arguments)
                found = screen.clean_document(records)
                if as_json:
                    _print_json(found)
                else:
                    click.echo(screen.clean(found, folder))
                raise SystemExit(YES if found["alarms"] == 0 and not found["failed"] else NO)
            purpose: Any = "training" if training else "inference"
            folder, certificates, skips = runner.certify(request, purpose, arguments, thorough=thorough, weights=weights)
        pages = certificate.write(folder, runner.REPORTS / folder.name / "certificates")
        if as_json:
            _print_json(screen.certify_document(certificates, skips))
        else:
            screen.certificates(certificates, skips, pages)
        raise SystemExit(screen.certify_code(certificates, skips))


def _mutants(env: tuple[str, ...], threads: int | None, as_json: bool, more: bool) -> NoReturn:
    """The certificate shown every fault of the catalogue."""
    with plain_errors():
        from levelfield import screen
        from suites.equivalence import scoring
        from suites.harness import plan as planning

        if more:
            fail("--mutants examines a set of networks and precisions of its own; it takes --env, --threads and --json only")
        if threads is not None and threads < 1:
            fail(f"--threads {threads}: at least one thread is needed")
        with screen.live(quiet=as_json, baseline=None) as live:
            matrix = scoring.make(env, threads or planning.available_threads(), live.say)
        scoring.write(matrix)
        if as_json:
            _print_json(scoring.document(matrix))
        else:
            click.echo(scoring.summary(matrix))
        raise SystemExit(YES if matrix.holds else NO)


class Share(click.ParamType[float, Any]):
    """A share between 0 and 1, as ``5%`` or ``0.05``."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """A percentage or fraction."""
        if isinstance(value, float):
            return value
        try:
            share = float(value[:-1]) / 100 if value.endswith("%") else float(value)
        except ValueError:
            share = float("nan")
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is not a share like 5% or 0.05", param, ctx)
        return share


def gate_options(command: F) -> F:
    """The options of what goes through the regression gate."""
    for option in reversed(
        (
            click.option("--inject-slowdown", type=Share(), default=0.0, help="Hold up the second side's calls by so much, as 5%."),
            click.option("--ledger", type=click.Path(path_type=Path, dir_okay=False), help="Ledger. Default: results/ledgers/MACHINE."),
        )
    ):
        command = option(command)
    return command


@main.command()
@request_options
@run_options
@gate_options
@click.option("--burner", is_flag=True, help="Beside a process that burns a random core half of the time.")
def aa(
    env: tuple[str, ...],
    store: Path | None,
    as_json: bool,
    inject_slowdown: float,
    ledger: Path | None,
    burner: bool,
    **options: Any,
) -> None:
    """Compare cells with themselves as the gate does, and write the outcome into this machine's ledger (docs/gate.md)."""
    with plain_errors():
        from levelfield import judged, screen
        from suites import aa as suite
        from suites.harness import runner

        request = _gate_request(options)
        with screen.live(quiet=as_json, baseline=None) as live:
            arguments = _options(runner, env, store, True, live)
            entries = []
            for entry in suite.run(request, arguments, ledger, "burner" if burner else "quiet", inject_slowdown):
                live.say(judged.compared(entry))
                entries.append(entry)
        if as_json:
            _print_json(judged.aa_document(entries))
        else:
            click.echo(judged.aa(entries, ledger))
        raise SystemExit(YES if entries else INVALID)


@main.command()
@request_options
@run_options
@gate_options
@click.option("--base", required=True, help="The revision to compare with: a commit, branch or tag.")
@click.option("--head", help="The revision that is judged. Default: the working tree.")
def regress(
    env: tuple[str, ...],
    store: Path | None,
    as_json: bool,
    inject_slowdown: float,
    ledger: Path | None,
    base: str,
    head: str | None,
    **options: Any,
) -> None:
    """Judge whether the implementations of HEAD are slower, larger or less right than those of BASE (docs/gate.md)."""
    with plain_errors():
        from levelfield import judged, screen
        from reports import regressions
        from suites import regression as suite
        from suites.harness import revisions, runner

        request = _gate_request(options)
        sides = revisions.revision(base), revisions.revision(head) if head else revisions.working_tree()
        with screen.live(quiet=as_json, baseline=None) as live:
            arguments = _options(runner, env, store, True, live)
            folder, found = suite.run(request, *sides, arguments, ledger, inject_slowdown, lambda each: live.say(judged.verdict(each)))
        written = regressions.write(folder, runner.REPORTS / folder.name) if folder else ()
        if as_json:
            _print_json(judged.document(found))
        else:
            judged.show(found, written)
        raise SystemExit(judged.code(found))


@main.command()
@click.argument("record", type=click.Path(path_type=Path, exists=True))
@run_options
def rerun(env: tuple[str, ...], store: Path | None, as_json: bool, record: Path) -> None:
    """Measure a stored RECORD again, or all timed cells of a run's folder, and say whether its result is reproduced (docs/gate.md)."""
    with plain_errors():
        from levelfield import repeated, screen
        from suites import rerun as suite
        from suites.harness import runner

        with screen.live(quiet=as_json, baseline=None) as live:
            arguments = _options(runner, env, store, True, live)
            folder, found = suite.run(suite.read(record, arguments), arguments)
        if as_json:
            _print_json(repeated.document(found))
        else:
            repeated.show(found, folder)
        raise SystemExit(repeated.code(found))


def _gate_request(options: dict[str, Any]) -> planning.Request:
    for name, value in (("--smoke", options["smoke"]), ("--processes", options["processes"]), ("--budget", options["budget"])):
        if value:
            fail(f"{name} is not for the gate: how often it measures is fixed beforehand (docs/gate.md)")
    request = _request(options)
    _require_device(request.device)
    return request


@main.command()
@request_options
@run_options
@resumed
@click.option(
    "--weights", multiple=True, type=click.Path(path_type=Path, dir_okay=False), help="Your own weight file; several are an ensemble."
)
@click.option(
    "--dataset",
    type=click.Choice(["digits", "cifar10", "cifar100", "imagenet"]),
    default="digits",
    show_default=True,
    help="The labelled images.",
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data set; CIFAR is downloaded without (docs/accuracy.md).")
@click.option("--preprocess", metavar="PRESET", help="How images become inputs, instead of as the weight file says: torchvision, timm, ...")
@click.option("--ten-crop", is_flag=True, help="Average the probabilities of ten crops of each image, as in the paper.")
def accuracy(
    env: tuple[str, ...],
    store: Path | None,
    fresh: bool,
    as_json: bool,
    weights: tuple[Path, ...],
    dataset: Dataset,
    data_dir: Path | None,
    preprocess: str | None,
    ten_crop: bool,
    **options: Any,
) -> None:
    """Top-1 and top-5 of weight files in every implementation, certified first, and the images that they do not agree on."""
    with plain_errors():
        from levelfield import classified, screen
        from suites import evaluation
        from suites.harness import runner

        request = _request(options)
        _require_device(request.device)
        asked = evaluation.Asked(dataset, data_dir, weights, preprocess, ten_crop)
        with screen.live(quiet=as_json, baseline=None) as live:
            found = evaluation.run(request, asked, _options(runner, env, store, fresh, live))
        if as_json:
            _print_json(classified.document(found))
        else:
            classified.show(found)
        raise SystemExit(classified.code(found, by_name=request.models is not None and "all" not in request.models))


@main.command()
@click.option("--model", required=True, help="The model.")
@click.option("--dataset", type=click.Choice(["digits"]), default="digits", show_default=True, help="The labelled images.")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The weight file to write.")
@click.option("--epochs", type=click.IntRange(1), help="Epochs instead of the recipe's.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads. Default: the cores that this process may use.")
@click.option("--env", "env", multiple=True, help="'current' or pytorch=PYTHON: an existing interpreter.")
def train(model: str, dataset: str, out: Path, epochs: int | None, seed: int, threads: int | None, env: tuple[str, ...]) -> None:
    """Train a model by the recipe of docs/training.md, in PyTorch fp32, and write its weight file."""
    with plain_errors():
        import dataclasses

        from impls import models as known
        from levelfield import screen
        from suites import training
        from suites.harness import plan as planning
        from suites.harness import runner

        spec = known.get(model)
        recipe = training.DIGITS if epochs is None else dataclasses.replace(training.DIGITS, epochs=epochs)
        with screen.live(quiet=False, baseline=None) as live:
            python = runner.interpreter(training.IMPLEMENTATION, "cpu", env, live.say)
            threads = threads or planning.available_threads()
            top1 = training.make(spec, recipe, seed, out, python=python, threads=threads, version=__version__, say=live.say)
        click.echo(f"{out}: {model}, {100 * top1:.1f} % of the test images of {dataset} right")


def _options(runner: Any, env: tuple[str, ...], store: Path | None, fresh: bool, live: Any) -> Options:
    return runner.Options(store or runner.LOCAL, env, fresh, live.say, live.show, live.count)  # type: ignore[no-any-return]


def _frame(folder: Path, baseline: str) -> Any:
    from reports import frame

    return frame.load(folder, baseline)


def _require_device(device: str) -> None:
    """Without an NVIDIA GPU, say so before anything is built."""
    if device == "cuda":
        from suites.harness import gpu

        if why := gpu.missing():
            fail(why)


@main.command()
@request_options
@with_training
@with_energy
@with_cold
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
def plan(as_json: bool, **options: Any) -> None:
    """Show what would be measured, what not and why, and about how long it takes."""
    with plain_errors():
        from impls.implementation import find
        from levelfield import lists
        from suites.harness import plan as planning

        request = _request(options, doubling=True)
        manifests = find(zoo=request.zoo)
        planned = planning.make(request, manifests)
        if as_json:
            _print_json(lists.plan_document(planned))
        else:
            lists.plan(planned, manifests)


@main.command()
@click.argument("run", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder to write to. Default: reports/local/RUN.")
@click.option("--baseline", default="pytorch/eager", show_default=True, help="IMPLEMENTATION/MODE that ratios are against.")
@allowing
def report(run: Path | None, out: Path | None, baseline: str, allow_unlike: tuple[str, ...]) -> None:
    """Write tables, figures and the page from stored records; without RUN, of the latest run."""
    with plain_errors():
        from levelfield import screen
        from reports import write
        from results.store import Store
        from suites.harness import runner

        if run is None:
            latest = Store(runner.LOCAL).latest_run()
            if latest is None:
                fail("no run is stored yet; `levelfield bench` makes one")
            run = runner.LOCAL / latest.run_id
        out = out or runner.REPORTS / run.name
        write.write(run, out, baseline, allow_unlike)
        screen.final(run, baseline, out, allow_unlike)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
def models(as_json: bool) -> None:
    """List the models: parameters, multiply-accumulates, shipped weights."""
    with plain_errors():
        from levelfield import lists

        rows = lists.model_rows()
        if as_json:
            _print_json({"models": rows})
        else:
            lists.models(rows)


@main.group()
def weights() -> None:
    """Make and look into weight files."""


@weights.command("make")
@click.option("--model", required=True, help="The model.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False))
def weights_make(model: str, seed: int, out: Path) -> None:
    """Synthesise weights from a seed: the same bytes on every machine."""
    with plain_errors():
        from impls import models as known
        from impls.weights import file, synthesis
        from suites.harness import inputs

        spec = known.get(model)
        preprocess = inputs.for_model(spec).preprocess
        root = file.save(
            out, spec, synthesis.synthesize(spec, seed), source=f"synthesised, seed {seed}", preprocess=preprocess, licence="CC0-1.0"
        )
        click.echo(f"{out}: {model}, seed {seed}, {root}")


@weights.command("import")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--model", required=True, help="The model that it is for.")
@click.option("--preprocess", help="How images become inputs: a preset (docs/weights.md). Default: what a known file was published with.")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The weight file to write.")
@click.option("--threads", type=click.IntRange(1), help="Threads. Default: the cores that this process may use.")
@click.option("--env", "env", multiple=True, help="'current' or onnx=PYTHON: an existing interpreter, for ONNX files.")
def weights_import(path: Path, model: str, preprocess: str | None, out: Path, threads: int | None, env: tuple[str, ...]) -> None:
    """Bring a checkpoint of PyTorch, timm, Keras or ONNX into a weight file; no code of it runs."""
    with plain_errors():
        from impls.weights.variant import constants
        from suites import weights as suite
        from suites.harness.plan import available_threads

        say = functools.partial(click.echo, err=True)
        made = suite.bring(path, model, preprocess, out, named=env, threads=threads or available_threads(), say=say)
        click.echo(f"{out}: {made.model.name}, {constants(made.model)}, {made.sha256}")
        if made.known:
            known = made.known
            click.echo(f"it has the hash published of {known.file} ({known.source}): top-1 {known.top1} % on {known.dataset}")
            click.echo(f"`levelfield accuracy --weights {out} --dataset {known.dataset} --data-dir DIR` holds it to that")
        if made.preprocess is None:
            click.echo("how images become its inputs is not known; --preprocess says it")


@weights.command("export")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--format", "form", required=True, type=click.Choice(["torchvision", "onnx"]))
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The file to write.")
@click.option("--threads", type=click.IntRange(1), help="Threads. Default: the cores that this process may use.")
@click.option("--env", "env", multiple=True, help="'current' or onnx=PYTHON: an existing interpreter, for ONNX files.")
def weights_export(path: Path, form: str, out: Path, threads: int | None, env: tuple[str, ...]) -> None:
    """Write a weight file as a state dict of torchvision, or as an ONNX file; imported again it is the same to the bit."""
    with plain_errors():
        from suites import weights as suite
        from suites.harness.plan import available_threads

        click.echo(f"{out}: {suite.give(path, form, out, named=env, threads=threads or available_threads())}")


@weights.command("known")
@click.argument("named", required=False, metavar="[FILE]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
def weights_known(named: str | None, as_json: bool) -> None:
    """List the public checkpoints that import knows: hash, preprocessing, published accuracy, and the commands that check it.

    FILE is a file's name or a part of it.
    """
    with plain_errors():
        from levelfield import lists

        rows = lists.checkpoint_rows(named)
        if as_json:
            _print_json({"checkpoints": rows})
        elif rows:
            lists.checkpoints(rows, whole=named is not None)
        else:
            fail(f"no public checkpoint that is known is called {named!r}; `levelfield weights known` lists them")


@weights.command("show")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
def weights_show(path: Path) -> None:
    """Check a weight file whole and print what it says of itself."""
    with plain_errors():
        from impls.weights import file

        loaded = file.load(path)
        for name, value in loaded.metadata.items():
            click.echo(f"{name}: {value if len(value) <= 100 else value[:97] + '...'}")
        click.echo(f"tensors: {len(loaded.weights)}, all as the model {loaded.model.name} has them")


@main.command()
@click.argument("arms", nargs=-1, metavar="[IMPLEMENTATION/MODE]...")
@click.option("--model", help="The model; the file names it unless given.")
@click.option("--weights", type=click.Path(path_type=Path, dir_okay=False), help="The weight file that the outputs are of.")
@click.option("--outputs", type=click.Path(path_type=Path, dir_okay=False), help="Your outputs or taps as an .npz file (docs/diagnose.md).")
@click.option("--write-inputs", type=click.Path(path_type=Path, dir_okay=False), help="Write the images to feed your own port.")
@click.option("--onnx", type=click.Path(path_type=Path, dir_okay=False), help="An ONNX file of a ResNet, with its weights.")
@click.option("--precision", type=click.Choice(["fp64", "fp32", "tf32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads. Default: the cores that this process may use.")
@click.option("--env", "env", multiple=True, help="'current' or IMPLEMENTATION=PYTHON: an existing interpreter.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
def diagnose(
    arms: tuple[str, ...],
    model: str | None,
    weights: Path | None,
    outputs: Path | None,
    write_inputs: Path | None,
    onnx: Path | None,
    precision: str,
    threads: int | None,
    env: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say whether outputs are those of a model, and if not, what is wrong.

    Of implementations (--model M A B), of your own port (--weights FILE --outputs FILE.npz), or of an ONNX file (--onnx FILE).
    """
    if [bool(arms), outputs is not None, write_inputs is not None, onnx is not None].count(True) != 1:
        fail("diagnose takes one of IMPLEMENTATION/MODE..., --outputs FILE, --write-inputs FILE and --onnx FILE")
    if arms and (model is None or weights is not None):
        fail("implementations are diagnosed on a --model, with the project's own weights")
    if (outputs or write_inputs) and weights is None:
        fail("--weights FILE is missing: the weights that the outputs are of")
    with plain_errors():
        from levelfield import answers as shown
        from levelfield import screen
        from suites.equivalence import doors
        from suites.harness.plan import available_threads

        if write_inputs is not None and weights is not None:
            click.echo(f"{write_inputs}: images of shape {doors.write_inputs(weights, write_inputs, model)}, (N, C, H, W)")
            return
        cores = threads or available_threads()
        with screen.live(quiet=as_json, baseline=None) as live:
            if outputs is not None and weights is not None:
                answers = [(str(outputs), doors.of_files(weights, outputs, model, precision, cores, live.say))]
            elif onnx is not None:
                name, answer = doors.of_onnx(onnx, weights, model, precision, env, cores, live.say)
                answers = [(f"{onnx}, {name}", answer)]
            else:
                answers = doors.of_arms(model or "", arms, precision, env, cores, live.say)
        if as_json:
            _print_json(shown.document(answers))
        else:
            shown.show(answers)
        raise SystemExit(shown.code(answers))


@main.command()
@click.option("--env", "env", multiple=True, help="'current' or IMPLEMENTATION=PYTHON: an existing interpreter.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
def doctor(env: tuple[str, ...], as_json: bool) -> None:
    """Check this machine: environments, compiler, cores, noise; with the line that mends what is missing."""
    with plain_errors():
        from levelfield import lists
        from suites.harness import doctor as checks

        findings = checks.examine(env)
        if as_json:
            _print_json({"findings": [{"what": each.what, "ok": each.ok, "found": each.found, "mend": each.mend} for each in findings]})
        else:
            lists.findings(findings)
        raise SystemExit(YES if all(each.ok for each in findings) else NO)


@main.command()
@click.option("--store", "stores", multiple=True, type=click.Path(path_type=Path), help="Folder of runs, besides results/records.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder to write to. Default: reports/local/asv.")
@click.option("--baseline", default="pytorch/eager", show_default=True, help="IMPLEMENTATION/MODE that ratios are against.")
def asv(stores: tuple[Path, ...], out: Path | None, baseline: str) -> None:
    """Export stored records to asv, publish them as its site, and print the steps in their history (docs/history.md)."""
    with plain_errors():
        if importlib.util.find_spec("asv") is None:
            fail("asv is not installed here; `nox -s asv` brings it")
        from levelfield import history

        try:
            made = history.make((history.RECORDS, *stores), out or history.SITE, baseline)
        except history.EmptyHistoryError as error:
            fail(str(error), INVALID)
        history.show(made)


if __name__ == "__main__":
    sys.exit(main())
