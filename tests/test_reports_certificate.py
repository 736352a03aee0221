"""The pages of certificates: what they show, what they escape, and the list of them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from reports.certificate import HEIGHT, WIDTH, render, write
from results.certificate import Layer, Tier, save
from tests.example_certificates import LAYERS, TIERS, certificate


def text(page: str) -> str:
    """The words of a page."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.partition("<body>")[2]))


def test_a_page_shows_every_tier_and_layer() -> None:
    """Question, elements, bound and worst tap of each tier; the tests and the histogram of each layer that rounds."""
    page = render(certificate(), "one.json")
    words = text(page)
    assert "PyTorch compile, ResNet-50, fp32, cpu" in words
    assert "certified 86 numbers were compared: every tap and the logits." in words
    for said in (
        "E2 Is the function right",
        "6.9e-14 at fc 1e-10 pass",
        "E0 Does the framework hold",
        "10 equal equality pass",
        "0.55 at logits 1.5",
    ):
        assert said in words
    assert "E1 integers, and weights on which every format computes the same 2 of 64 x 64 even sizes" in words
    for said in ("conv1 Conv2d 10 0.5 0.4 0.1 0.2", "relu Relu 10 equal", "1 layers round nothing"):
        assert said in words
    assert page.count('class="bars"') == 2
    assert "layout channels &lt;last&gt;" in page
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)


def test_histograms_are_drawn_to_scale() -> None:
    """The highest bin reaches the top of the box, an empty one its bottom, and the outline ends at the right edge."""
    (path,) = re.findall(r'<path d="(M0[^"]*)"/></svg></td>', render(certificate(layers=LAYERS[2:]), "one.json"))
    heights = [float(height) for height in re.findall(r"V([\d.]+)h", path)]
    steps = [float(step) for step in re.findall(r"h([\d.]+)", path)]
    assert heights == [HEIGHT, 0.0, 0.0, HEIGHT]
    assert sum(steps) == WIDTH


def test_a_failed_certificate_says_why() -> None:
    """Verdict, tier, tap and layer."""
    failed = TIERS | {"E3": Tier(False, 24, 1.0, "conv1", None, "conv1: does not round as fp32 does")}
    broken = Layer("conv1", "Conv2d", 10, None, None, 4.0, 2.0, (0, 0, 0, 10), "does not round as fp32 does")
    words = text(render(certificate(tiers=failed, layers=(broken,)), "one.json"))
    assert "NOT CERTIFIED E3: conv1: does not round as fp32 does" in words
    assert "conv1 Conv2d 10 not finite not finite 4 2 does not round as fp32 does" in words


def test_a_certificate_without_layers_has_no_empty_table() -> None:
    """Where no taps are shown there is nothing to list."""
    assert "Layers" not in text(render(certificate(layers=()), "one.json"))


def test_a_run_is_listed(tmp_path: Path) -> None:
    """Each certificate gets a page and its document; one that is damaged is named in the list."""
    for name, tiers in (("good", TIERS), ("bad", {name: TIERS[name] for name in ("E0", "E1")})):
        save(tmp_path / "run" / "certificates" / f"{name}.json", certificate(tiers=tiers))
    (tmp_path / "run" / "certificates" / "torn.json").write_text("{", encoding="utf-8")
    index = write(tmp_path / "run", tmp_path / "out")
    assert index == tmp_path / "out" / "index.html"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bad.html", "bad.json", "good.html", "good.json", "index.html"]
    words = text(index.read_text(encoding="utf-8"))
    for said in (
        "inference certified E0 equal, E1 equal, E2 6.9e-14, E3 0.6, E4 0.55",
        "NOT CERTIFIED E2: was not examined",
        "torn.json: not valid JSON",
    ):
        assert said in words
    assert dataclasses.asdict(certificate())["key"] in (tmp_path / "out" / "good.html").read_text(encoding="utf-8")


def test_a_run_without_certificates_has_no_list(tmp_path: Path) -> None:
    """Nothing is written for nothing."""
    assert write(tmp_path, tmp_path / "out") is None
    assert not (tmp_path / "out").exists()


def test_an_excused_tier_is_shown_with_its_reason() -> None:
    """What was not examined is no pass and no failure."""
    without = {name: tier for name, tier in TIERS.items() if name != "E3"}
    words = text(render(certificate(tiers=without, excused={"E3": "it shows no taps"}, layers=()), "one.json"))
    assert "excused it shows no taps" in words
    assert "NOT CERTIFIED" not in words


def test_a_test_that_was_not_taken_is_not_drawn() -> None:
    """Training has no slope: its figure does not show one of zeros."""
    without = tuple(dataclasses.replace(layer, slope=0.0) for layer in LAYERS)
    assert "slope at most" in render(certificate(), "one.json")
    assert "slope at most" not in render(certificate(layers=without), "one.json")
