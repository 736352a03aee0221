"""Certificates as pages to read: for each tier what was compared, how much, within which bound, and how every layer rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

from reports import figures, labels
from reports.publish import environment, replace
from results.certificate import IMAGES, Certificate, Layer, Probe, Tier, load, save
from results.schema import RecordError

QUESTIONS: Mapping[str, Mapping[str, str]] = {
    "inference": {
        "E0": "Does the framework hold the weights of the file, byte for byte as this precision holds them?",
        "E1": "Is the structure right? On a probe where every format computes the same integers, outputs must be equal.",
        "E2": "Is the function right, constants included? In float64, the largest difference over the tap's rms.",
        "E3": "Does each layer round as its precision allows, given its own inputs? The worst of three tests over its bound.",
        "E4": "Does the timed mode round as its precision allows? The logits' error over the noise that theory predicts.",
    },
    "training": {
        "E2": "Is the derivative right? In float64: loss, taps, cotangents, gradients, statistics and steps against the oracle.",
        "E3": "Does each layer's derivative round as its precision allows, given its own inputs and cotangents?",
        "E5": "Is a training step the oracle's, from the same state? Parameters, momentum and running statistics after it.",
    },
}
"""What each tier asks."""


@dataclass(frozen=True, slots=True)
class TierRow:
    """A tier as the page's table shows it; ``passed`` is None where it is excused."""

    name: str
    question: str
    passed: bool | None
    elements: str
    worst: str
    bound: str
    said: str


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """What a tier asked about, as the page's table shows it."""

    tier: str
    images: str
    shape: str
    why: str


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A layer as the page's table shows it; ``shape`` is the path of its histogram, in a box of ``WIDTH`` by ``HEIGHT``."""

    tap: str
    kind: str
    elements: str
    rms_z: str
    tests: tuple[str, ...]
    shape: str
    fault: str


@dataclass(frozen=True, slots=True)
class Listed:
    """A certificate in the list; ``page`` is empty where there is none to show."""

    title: str
    purpose: str
    page: str
    kind: str
    verdict: str
    says: str


WIDTH, HEIGHT = 108, 20
"""Of a histogram, in the page's pixels."""


def write(run_folder: Path, out: Path) -> Path | None:
    """Write a page and the document of every certificate of a run into ``out``, and a page that lists them, which is returned.

    None where the run has no certificate. A damaged document is listed with what is wrong with it.

    Raises:
        OSError: ``out`` cannot be written.
    """
    listed = []
    for path in sorted((run_folder / "certificates").glob("*.json")):
        try:
            certificate = load(path)
        except RecordError as error:
            listed.append(Listed(path.stem, "", "", "failed", "unreadable", str(error)))
            continue
        save(out / path.name, certificate)
        page = f"{path.stem}.html"
        replace(out / page, render(certificate, path.name).encode())
        kind = "measured" if certificate.passed else "uncertified"
        says = certificate.reason or ", ".join(f"{name} {_worst(tier)}" for name, tier in certificate.tiers.items())
        of = f"{title(certificate)}, weights {labels.short(certificate.sha256['weights'])}"
        listed.append(Listed(of, certificate.purpose, page, kind, _verdict(certificate), says))
    if not listed:
        return None
    index = out / "index.html"
    replace(index, environment().get_template("certificates.html.j2").render(listed=listed).encode())
    return index


def title(certificate: Certificate) -> str:
    """ "PyTorch compile, ResNet-50, fp32, cpu"."""
    cell = certificate.cell
    return f"{labels.implementation(cell.implementation, cell.mode)}, {labels.model(cell.model)}, {cell.precision}, {cell.device}"


def render(certificate: Certificate, document: str) -> str:
    """The page of one certificate; ``document`` is the name of the JSON file beside it."""
    elements = sum(tier.elements for tier in certificate.tiers.values())
    judged = [layer for layer in certificate.layers if layer.histogram]
    return (
        environment()
        .get_template("certificate.html.j2")
        .render(
            title=title(certificate),
            certificate=certificate,
            document=document,
            verdict=_verdict(certificate),
            says=certificate.reason or f"{elements:,} numbers were compared: {certificate.compared}.",
            facts=_facts(certificate),
            tiers=tuple(_tiers(certificate)),
            probes=tuple(_probe(probe) for probe in certificate.probes),
            figure=_tests(judged),
            edges=certificate.edges,
            layers=tuple(_layer(layer) for layer in certificate.layers),
            exact=len(certificate.layers) - len(judged),
            width=WIDTH,
            height=HEIGHT,
        )
    )


def _facts(certificate: Certificate) -> tuple[tuple[str, str], ...]:
    cell = certificate.cell
    settings = ", ".join(f"{name} {value}" for name, value in certificate.settings.items())
    return (
        ("For", f"{certificate.purpose}, {'thorough, ' if certificate.thorough else ''}{certificate.threads} threads"),
        ("Machine", certificate.machine_id),
        ("When", certificate.created_utc),
        ("Versions", labels.versions(cell.implementation, {**certificate.software, "python": certificate.python})),
        ("Settings", settings),
        ("Hashes", ", ".join(f"{name} {digest}" for name, digest in certificate.sha256.items())),
        ("Key", certificate.key),
    )


def _tiers(certificate: Certificate) -> Sequence[TierRow]:
    return [
        TierRow(
            name=name,
            question=QUESTIONS[certificate.purpose][name],
            passed=tier.passed,
            elements=f"{tier.elements:,}",
            worst=_worst(tier) + (f" at {tier.worst_tap}" if tier.worst_tap else ""),
            bound="equality" if tier.bound == 0 else f"{tier.bound:g}",
            said=tier.reason or tier.note or "",
        )
        for name, tier in certificate.tiers.items()
    ] + [TierRow(name, QUESTIONS[certificate.purpose][name], None, "", "", "", why) for name, why in certificate.excused.items()]


def _probe(probe: Probe) -> ProbeRow:
    batch, _, height, width = probe.shape
    return ProbeRow(probe.tier, IMAGES[probe.images], f"{batch} of {height} x {width}", probe.why)


def _verdict(certificate: Certificate) -> str:
    return "certified" if certificate.passed else "NOT CERTIFIED"


def _worst(tier: Tier) -> str:
    return "equal" if tier.worst_error == 0 else _number(tier.worst_error)


def _layer(layer: Layer) -> LayerRow:
    return LayerRow(
        tap=layer.tap,
        kind=layer.kind,
        elements=f"{layer.elements:,}",
        rms_z="equal" if not layer.histogram and not layer.fault else _number(layer.rms_z),
        tests=() if not layer.histogram else tuple(_number(test) for test in (layer.rms, layer.gauge, layer.slope)),
        shape=_shape(layer.histogram),
        fault=layer.fault or "",
    )


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def _shape(histogram: Sequence[int]) -> str:
    """The outline of a histogram as an SVG path, its highest bin as high as the box."""
    if not histogram:
        return ""
    step, highest = WIDTH / len(histogram), max(histogram)
    heights = "".join(f"V{HEIGHT - HEIGHT * count / highest:.1f}h{step:.1f}" for count in histogram)
    return f"M0 {HEIGHT}{heights}V{HEIGHT}Z"


@mpl.rc_context(figures.STYLE)
def _tests(layers: Sequence[Layer]) -> figures.Picture | None:
    """The tests of every layer that rounds, in the order of the network; 1 is the bound."""
    if not layers:
        return None
    figure, axes = figures.drawing(3.2)
    taken = {name: [getattr(layer, name) for layer in layers] for name in ("rms", "gauge", "slope")}
    series = {name: values for name, values in taken.items() if any(value != 0 for value in values)}  # training has no slope
    for (name, values), color, marker in zip(series.items(), figures.CYCLE, figures.MARKERS, strict=False):
        finite = [float("nan") if value is None else value for value in values]
        axes.plot(range(len(layers)), finite, marker=marker, markersize=3, linestyle="", color=color, label=name)
    axes.axhline(1, color=figures.INK, linestyle="--", linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer, in the order of the network")
    axes.set_ylabel("test over its bound")
    axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    worst = {name: max((value for value in values if value is not None), default=float("nan")) for name, values in series.items()}
    told = ", ".join(f"{name} at most {value:.3g}" for name, value in worst.items())
    return figures.picture(figure, f"Tests of {len(layers)} layers over their bounds: {told}.")
