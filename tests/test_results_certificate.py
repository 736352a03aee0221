"""Certificates as documents: what is one, when it has passed, and what a damaged file says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from results.certificate import LONGEST_BYTES, Certificate, Layer, Tier, load, save
from results.schema import RecordError
from tests.example_certificates import LAYERS, TIERS, certificate


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    """A certificate survives the file, whose folder is made, and nothing unfinished stays behind."""
    path = tmp_path / "certificates" / "one.json"
    save(path, certificate())
    assert load(path) == certificate()
    assert [each.name for each in path.parent.iterdir()] == ["one.json"]


FAILED = Tier(False, 24, 0.0, "conv1", 3.0, "conv1: the first tap that differs, by 3 (bound 0)")


@pytest.mark.parametrize(
    ("tiers", "reason"),
    [
        (TIERS | {"E1": FAILED}, "E1: conv1: the first tap that differs, by 3 (bound 0)"),
        ({name: TIERS[name] for name in ("E0", "E1", "E2")}, "E3: was not examined"),
        ({"E1": FAILED, "E2": TIERS["E2"]}, "E1: conv1: the first tap that differs, by 3 (bound 0)"),
        ({}, "E0: was not examined"),
        (TIERS | {"E4": dataclasses.replace(TIERS["E4"], elements=0)}, "E4: nothing was compared"),
    ],
    ids=["failed", "partial", "failed and partial", "empty", "nothing compared"],
)
def test_only_whole_certificates_pass(tiers: dict[str, Tier], reason: str) -> None:
    """A tier that failed, is absent or compared nothing is no pass."""
    assert certificate().passed
    assert not certificate(tiers=tiers).passed
    assert certificate(tiers=tiers).reason == reason


def test_a_tier_may_be_excused() -> None:
    """What cannot be examined, for a reason, does not fail; nothing but excuses is no certificate."""
    without = {name: tier for name, tier in TIERS.items() if name != "E3"}
    assert certificate(tiers=without, excused={"E3": "it shows no taps"}).passed
    assert not certificate(tiers={}, excused=dict.fromkeys(TIERS, "it shows nothing")).passed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 1}, "schema_version: 1 is not 2"),
        ({"tiers": {"E9": FAILED}}, "a certificate of inference has no tier E9"),
        ({"tiers": {"E5": FAILED}}, "a certificate of inference has no tier E5"),
        ({"layers": (dataclasses.replace(LAYERS[0], elements=11),)}, "the histogram of conv1 does not count its 11 elements"),
        ({"layers": (dataclasses.replace(LAYERS[0], histogram=(10,)),)}, "the histogram of conv1 does not count its 10 elements"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    """A document that contradicts itself is never made."""
    with pytest.raises(RecordError, match=message):
        certificate(**changes)


def inside(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    """Edit the certificate in the file and leave the hash as it was."""

    def edit(text: str) -> str:
        document = json.loads(text)
        change(document["certificate"])
        return json.dumps(document)

    return edit


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: "", "not valid JSON"),
        (lambda text: text[: len(text) // 2], "not valid JSON"),
        (lambda text: "[]", "is not a certificate with its hash"),
        (lambda text: "[" * 100_000, "not valid JSON"),
        (lambda text: text.replace('"elements": 10', '"elements": 11', 1), "certif"),
        (lambda text: text.replace("6.9e-14", "NaN"), "finite"),
        (inside(lambda content: content.pop("layers")), "layers: missing"),
        (inside(lambda content: content.update(extra=1)), "extra: unknown field"),
        (inside(lambda content: content.update(threads="2")), "threads: expected an integer"),
        (inside(lambda content: content["tiers"]["E1"].update(passed=1)), "tiers.E1.passed: expected true or false"),
        (inside(lambda content: content["software"].update(torch="2.14.0")), "its content is not what its hash was taken of"),
        (lambda text: text + " " * LONGEST_BYTES, "are no certificate"),
    ],
    ids=["empty", "cut off", "list", "deep", "edited", "NaN", "missing", "unknown", "type", "boolean", "hash", "long"],
)
def test_damaged_files_are_refused(tmp_path: Path, spoil: Callable[[str], str], message: str) -> None:
    """Cut off, edited, of other fields or types, or absurdly long: one sentence that names the file."""
    path = tmp_path / "one.json"
    save(path, certificate())
    path.write_text(spoil(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(RecordError, match=message) as caught:
        load(path)
    assert "one.json" in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    """What is not UTF-8 is no certificate."""
    path = tmp_path / "one.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match="is not UTF-8"):
        load(path)


def test_infinite_tests_are_kept_as_null(tmp_path: Path) -> None:
    """A test that is infinite has no number in JSON."""
    broken = Layer("conv1", "Conv2d", 10, None, None, None, None, (0, 0, 0, 10), "does not round as fp32 does")
    path = tmp_path / "one.json"
    save(path, certificate(layers=(broken,)))
    found: Certificate = load(path)
    assert found.layers == (broken,)
