"""``levelfield accuracy``: certify, classify a data set, compare image by image; one weight file, or several as an ensemble."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impls.implementation import find
from impls.weights import file, trained
from results import statistics
from results.record import Cell, Record
from suites import accuracy, published
from suites.data import preprocess, test_set
from suites.data.labelled import Labelled
from suites.data.test_set import Dataset, TestSet
from suites.harness import plan, runner, scores
from suites.harness.context import Context, subject
from suites.harness.plan import Skip


@dataclass(frozen=True, slots=True)
class Asked:
    """What is classified: a data set from ``data_dir``, prepared as ``preprocess`` names or else as the weight files say.

    ``weights`` are the user's own files; several are an ensemble. ``ten_crop`` averages the probabilities of ten crops.
    """

    dataset: Dataset = "digits"
    data_dir: Path | None = None
    weights: tuple[Path, ...] = ()
    preprocess: str | None = None
    ten_crop: bool = False


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came of it: a record for every arm and weight file, and what follows from them.

    ``flips``, ``pairs`` and ``oracle`` are lists of ``suites.accuracy``'s documents, each with its group's model, precision, device,
    data set and weights; ``ensembles`` holds one for each arm that all members were classified by; ``published`` those of
    ``suites.published``, one for each record of a public checkpoint, with its identity.
    """

    records: tuple[Record, ...]
    skips: tuple[Skip, ...]
    flips: tuple[Mapping[str, Any], ...]
    pairs: tuple[Mapping[str, Any], ...]
    oracle: tuple[Mapping[str, Any], ...]
    ensembles: tuple[Mapping[str, Any], ...]
    published: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class _Member:
    """Models with weights of their own: one with a file, or all that were asked for with the project's."""

    arms: tuple[Cell, ...]
    weights: Mapping[str, Path]


def run(request: plan.Request, asked: Asked, options: runner.Options) -> Evaluation:
    """Without modes in the request each implementation's default mode is taken.

    Raises:
        UsageError, DataError, PreprocessError, WeightFileError, EnvironmentBuildError, NothingToRunError, StoreError.
    """
    _check(request, asked)
    members, skips = _members(request, asked)
    arms = tuple(dict.fromkeys(arm for member in members for arm in member.arms))
    if not arms:
        raise runner.NothingToRunError(skips[0].reason if skips else "the request names no cell")
    images = None if asked.dataset == "digits" else test_set.labelled(asked.dataset, asked.data_dir, options.say)
    tests = [_tests(member, asked, images) for member in members]
    able = tuple(arm for arm in arms if any(arm.model in own for own in tests))
    sizes = runner.proved_sizes(request.device, request.batch_sizes or plan.DEFAULTS[request.device].batch_sizes)
    identity = [
        [sizes, {name: subject(name, path).weights_sha256 for name, path in member.weights.items()}, _identity(own)]
        for member, own in zip(members, tests, strict=True)
    ]
    with runner.opened(request, None, options, able, asked=identity) as context:
        records: list[Record] = []
        found: list[Mapping[str, Any]] = []
        pairs: list[Mapping[str, Any]] = []
        oracle: list[Mapping[str, Any]] = []
        claimed: list[Mapping[str, Any]] = []
        for member, own in zip(members, tests, strict=True):
            its = dataclasses.replace(context, weights=member.weights)
            made = _classified(its, member, own, sizes)
            records += made
            claimed += _published(member, made)
            for group in accuracy.groups(made):
                test = own[group.model]
                labels = test.labels.tolist()
                about = {name: getattr(group, name) for name in ("model", "weights_sha256", "precision", "device", "dataset")}
                judged = accuracy.judged(its, group, accuracy.flips(group.members, labels), test)
                found += [{**about, **flip, "name": test.names[flip["image"]]} for flip in judged]
                pairs += [{**about, **pair} for pair in accuracy.disagreements(group.members, labels)]
                if accuracy.ORACLE in group.members:
                    oracle.append({**about, "top1": group.members[accuracy.ORACLE]["top1"]})
        ensembles = _ensembles(context, records, tests[0]) if len(members) > 1 else ()
        (context.folder / runner.FINISHED).touch()
    return Evaluation(tuple(records), skips, tuple(found), tuple(pairs), tuple(oracle), ensembles, tuple(claimed))


def _check(request: plan.Request, asked: Asked) -> None:
    if asked.dataset == "digits":
        for name, value in (("--data-dir", asked.data_dir), ("--preprocess", asked.preprocess), ("--ten-crop", asked.ten_crop)):
            if value:
                raise plan.UsageError(f"{name} is not for the digits, which are embedded and prepared")
    if asked.preprocess is not None:
        preprocess.chosen(asked.preprocess)


def _members(request: plan.Request, asked: Asked) -> tuple[tuple[_Member, ...], tuple[Skip, ...]]:
    """The arms of each weight file, or of all models asked for; and what cannot run, once."""
    manifests = find(zoo=request.zoo)
    members: list[_Member] = []
    skipped: dict[Skip, None] = {}
    for path in asked.weights or (None,):
        own, brought = runner.with_own_weights(request, path)
        arms, skips = plan.arms(own, manifests, timed=False)
        if request.modes is None:
            arms = tuple(arm for arm in arms if arm.mode == manifests[arm.implementation].default_mode)
            skips = tuple(skip for skip in skips if skip.mode == manifests[skip.implementation].default_mode)
        members.append(_Member(arms, brought))
        skipped |= dict.fromkeys(skips)
    return tuple(members), tuple(skipped)


def _tests(member: _Member, asked: Asked, images: Labelled | None) -> dict[str, TestSet]:
    """The test set of every model that has weights of somebody's training; the digits only for weights that take them."""
    found: dict[str, TestSet] = {}
    for name in dict.fromkeys(arm.model for arm in member.arms):
        brought = member.weights.get(name)
        if brought is None and trained.path(name) is None:
            continue
        about = subject(name, brought)
        if images is None:
            if about.dataset is None:
                raise plan.UsageError(f"{about.path}: its weights are not for the digits: they take other images, classes or preprocessing")
            found[name] = accuracy.embedded(about)
            continue
        stored = json.loads(file.read_metadata(about.path)["preprocess"])
        try:
            size = about.model.input_chw[1]
            how = preprocess.chosen(asked.preprocess) if asked.preprocess else preprocess.of_metadata(stored, size)
            found[name] = test_set.prepared(images, about.model, how, preprocess.TEN if asked.ten_crop else 1)
        except preprocess.PreprocessError as error:
            known = ", ".join(preprocess.PRESETS)
            own = "a file imported with one takes images of the size that it crops to"
            raise preprocess.PreprocessError(f"{about.path}: {error}; --preprocess names one of {known}; {own}") from None
    return found


def _identity(tests: Mapping[str, TestSet]) -> list[object]:
    return [[name, test.name, test.sha256, dict(test.preprocess)] for name, test in tests.items()]


def _classified(context: Context, member: _Member, tests: Mapping[str, TestSet], sizes: tuple[int, ...]) -> list[Record]:
    """A record for every arm of a member, of those that cannot be classified too."""
    able = tuple(arm for arm in member.arms if arm.model in tests)
    certificates = runner.certificates_of(context, able, sizes)
    for arm in member.arms:
        if accuracy.held(context, arm):
            continue
        if arm not in able:
            context.store.append(accuracy.without_weights(context, arm))
        elif certificates[arm].status != "ok":
            certificate = certificates[arm]
            about = context.subject(arm.model).as_record(arm.precision, None)
            reason, identity = certificate.reason, certificate.record_id
            context.store.append(context.record("accuracy", arm, certificate.status, reason, certificate_id=identity, model=about))
    cells = tuple(dataclasses.replace(arm, batch_size=max(sizes)) for arm in able if certificates[arm].status == "ok")
    accuracy.run(context, cells, certificates, tests)
    return [accuracy.held(context, arm)[-1] for arm in member.arms]


def _published(member: _Member, made: Sequence[Record]) -> list[Mapping[str, Any]]:
    """What was published of a member's weight files beside what was measured, where they were imported from public checkpoints."""
    found: list[Mapping[str, Any]] = []
    for name, path in member.weights.items():
        if known := published.checkpoint(path):
            for record in made:
                cell = record.cell
                if cell.model == name and (claim := published.held(record, known)):
                    about = {field: getattr(cell, field) for field in ("implementation", "mode", "model", "precision", "device")}
                    found.append({"record": record.record_id, **about, **claim})
    return found


def _ensembles(context: Context, records: Sequence[Record], tests: Mapping[str, TestSet]) -> tuple[Mapping[str, Any], ...]:
    """The averaged probabilities of all weight files, for every arm that classified with each of them."""
    by_arm: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        cell = record.cell
        by_arm.setdefault((cell.implementation, cell.mode, cell.precision, cell.device), []).append(record)
    (test,) = tests.values()
    found = []
    for (implementation, mode, precision, device), own in by_arm.items():
        if any(record.status != "ok" for record in own):
            continue
        parts = [scores.read(context.folder / str((record.data or {})["scores"])) for record in own]
        score = accuracy.scored(accuracy.averaged(parts, logits=test.views == 1), test.labels)
        images = len(test.labels)
        found.append(
            {
                "implementation": implementation,
                "mode": mode,
                "precision": precision,
                "device": device,
                "members": [{"model": each.cell.model, "weights_sha256": each.model.weights_sha256} for each in own if each.model],
                "dataset": test.name,
                "images": images,
                "top1": score.top1,
                "top5": score.top5,
                "top1_interval": statistics.wilson(round(score.top1 * images), images),
            }
        )
    return tuple(found)
