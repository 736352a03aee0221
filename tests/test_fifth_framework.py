"""Adding a framework is one folder, and whatever an implementation does wrong ends as a row that says so."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.checkouts import BRIEF, IMPATIENT, MODEL, ROOT, Checkout, bench, records

Document = dict[str, Any]

ROWS = {
    "same_padding": ("not_certified", "E2: layer2.0.conv1: the first tap that differs"),
    "epsilon": ("not_certified", "E2: bn1: the first tap that differs"),
    "channel_order": ("not_certified", "E1: conv1: the first tap that differs"),
    "zeros": ("not_certified", "E2: conv1: the first tap that differs"),
    "missing_tap": ("not_certified", "E2: layer1.0.conv2: the tap is missing"),
    "extra_tap": ("not_certified", "E2: layer9.conv1: there is no such tap in the spec"),
    "not_a_number": ("not_certified", "E2: logits: holds values that are not finite"),
    "misshapen": ("not_certified", "E2: logits: shape (2, 9), not (2, 10)"),
    "only_timed_mode_wrong": ("not_certified", "E2: logits: the first tap that differs"),
    "one_weight_rounded": ("not_certified", "E0: fc.weight: its bytes are not the file's"),
    "fails": ("failed", "ValueError: the graph could not be built"),
    "out_of_memory": ("out_of_memory", "MemoryError"),
    "killed": ("failed", "its worker was killed (SIGKILL: usually the kernel, for lack of memory)"),
    "hangs": ("timed_out", "its worker gave no answer within 5 s"),
    "garbage": ("failed", "its worker did not talk the protocol: b'\\xff\\x00 not the protocol'"),
}
"""What becomes of each mode of the villain: the status, and how its reason begins."""

LATE = {
    "killed_late": ("failed", "its worker was killed"),
    "hangs_late": ("timed_out", "its worker gave no answer within 5 s"),
    "not_a_number_late": ("not_certified", "the outputs of timed calls: logits: hold values that are not finite"),
    "cheats_late": ("not_certified", "the outputs of timed calls: logits: "),
}
"""The modes that pass the certificate and fail while they are timed."""


SLY = {
    "odd_padding": ("not_certified", "E1: layer2.0.conv1: the first tap that differs"),
    "square_mean": ("not_certified", "E1: avgpool: the first tap that differs"),
    "odd_batch": ("not_certified", "E1: conv1: the first tap that differs"),
    "no_batch": ("not_certified", "E1: avgpool: shape (64,), not (1, 64)"),
    "clipped": ("not_certified", "E3: relu: "),
    "clipped_where_folded": ("not_certified", "E4: logits: "),
    "vanishing": ("not_certified", "E3: conv1: does not round as fp32 does"),
    "empty_channels": ("not_certified", "E3: conv1: does not round as fp32 does"),
    "half_epsilon": ("not_certified", "E3: bn1: does not round as fp32 does"),
}
"""What a thorough certificate says to each mode of the sly one; to an ordinary one they are all sound."""


@pytest.fixture(scope="module", params=[False, True], ids=["ordinary", "thorough"])
def sly(request: pytest.FixtureRequest, checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, Document]:
    """Whether it is thorough, and the document of one ``certify`` over the sly one and the honest one."""
    store = str(tmp_path_factory.mktemp("sly"))
    more = ("--thorough",) if request.param else ()
    _, document = checkout.document(
        *("certify", "--models", MODEL, "--env", "current", "--impls", "sly,honest", "--batch-sizes", "8", "--store", store, *more)
    )
    return request.param, document


@pytest.fixture(scope="module")
def certified(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Document]:
    """Exit code and document of one ``certify`` over all fakes at once, honest last."""
    store = str(tmp_path_factory.mktemp("certify"))
    return checkout.document(
        *("certify", "--models", MODEL, "--env", "current", "--impls", "broken,villain,honest", "--store", store), before=IMPATIENT
    )


@pytest.fixture(scope="module")
def timed(checkout: Checkout, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Document, Path]:
    """Exit code, document and store of one ``bench`` of those that pass the certificate, and two that do not."""
    store = tmp_path_factory.mktemp("bench")
    modes = ",".join(("eager", "zeros", *LATE))
    code, document = checkout.document(
        *bench("broken", "villain", "honest", modes=modes, store=store), "--processes", "1", before=f"{IMPATIENT}\n{BRIEF}"
    )
    return code, document, store


def row(rows: list[Document], implementation: str, mode: str) -> Document:
    (found,) = (each for each in rows if (each["implementation"], each["mode"]) == (implementation, mode))
    return found


def test_a_framework_is_one_folder(checkout: Checkout) -> None:
    """The checkout of these tests has the project's files, byte for byte, and the folders of the fakes: nothing else names them."""
    copied = {path.relative_to(checkout.root) for path in checkout.root.rglob("*.py")}
    differing = {
        path.parts[:2]
        for path in copied
        if not (ROOT / path).is_file() or (checkout.root / path).read_bytes() != (ROOT / path).read_bytes()
    }
    assert differing == {("impls", path.name) for path in (ROOT / "tests" / "fakes").iterdir()}


def test_the_honest_one_is_certified(certified: tuple[int, Document]) -> None:
    """An implementation without a framework passes every tier, beside two dozen that do not."""
    certificate = row(certified[1]["certificates"], "honest", "eager")
    assert certificate["status"] == "ok", certificate["reason"]
    assert {name: tier["passed"] for name, tier in certificate["tiers"].items()} == dict.fromkeys(("E0", "E1", "E2", "E3", "E4"), True)
    assert certificate["elements_compared"] > 1_000_000


@pytest.mark.parametrize("mode", ROWS)
def test_a_fault_ends_as_the_row_that_names_it(certified: tuple[int, Document], mode: str) -> None:
    """Every misbehaviour has its status and a reason of one line that names the tap, the tensor or the death."""
    status, reason = ROWS[mode]
    certificate = row(certified[1]["certificates"], "villain", mode)
    assert (certificate["status"], certificate["passed"]) == (status, False)
    assert certificate["reason"].startswith(reason)
    assert "\n" not in certificate["reason"]


@pytest.mark.parametrize("mode", SLY)
def test_what_only_a_thorough_certificate_sees(sly: tuple[bool, Document], mode: str) -> None:
    """Each shape and input that it adds refuses a fault that all the others let pass, and the reason says which it was."""
    thorough, document = sly
    certificate = row(document["certificates"], "sly", mode)
    status, reason = SLY[mode] if thorough else ("ok", "")
    assert certificate["status"] == status, certificate["reason"]
    assert (certificate["reason"] or "").startswith(reason)
    assert thorough is bool(re.search(r" \(\d (lattice|extreme|large) of \d+x\d+\)$", certificate["reason"] or ""))


def test_what_was_examined_is_stated(sly: tuple[bool, Document]) -> None:
    """The document lists every shape and kind of images; the honest one passes them all."""
    thorough, document = sly
    certificate = row(document["certificates"], "honest", "eager")
    assert (certificate["status"], certificate["thorough"]) == ("ok", thorough), certificate["reason"]
    shown = [(each["tier"], each["images"], each["shape"]) for each in certificate["probes"]]
    ordinary = [(tier, images, [2, 3, 32, 32]) for tier, images in (("E1", "lattice"), ("E2", "real"), ("E3", "real"))]
    assert shown[:4] == [*ordinary, ("E4", "timed", [8, 3, 32, 32])]
    more = [("E1", "lattice", [3, 3, 13, 31]), ("E1", "lattice", [1, 3, 32, 15]), ("E3", "extreme", [3, 3, 13, 31])]
    assert shown[4:] == ([*more, ("E4", "large", [1, 3, 32, 15])] if thorough else [])
    assert all(each["why"] for each in certificate["probes"])


@pytest.mark.parametrize("mode", ["chatty", *LATE])
def test_noise_on_stdout_and_later_faults_pass_the_certificate(certified: tuple[int, Document], mode: str) -> None:
    """What a framework prints cannot garble the protocol, even where it looks like it; faults that come later are caught later."""
    assert row(certified[1]["certificates"], "villain", mode)["status"] == "ok"


def test_what_an_implementation_says_it_cannot_do_is_skipped(certified: tuple[int, Document]) -> None:
    """A refusal is a reasoned skip, not a failure."""
    assert row(certified[1]["skipped"], "villain", "cannot")["reason"] == "it is not in the mood"


def test_a_missing_framework_comes_with_the_line_that_mends_it(certified: tuple[int, Document], checkout: Checkout) -> None:
    """The row of an implementation whose import fails says what is missing, and the pip line."""
    certificate = row(certified[1]["certificates"], "broken", "eager")
    assert certificate["status"] == "failed"
    assert "No module named 'a_framework_that_is_not_there'; to mend it: " in certificate["reason"]
    assert certificate["reason"].endswith(f"-m pip install -r {checkout.root}/impls/broken/requirements-cpu.txt")


def test_a_failed_certificate_is_the_answer_no(certified: tuple[int, Document]) -> None:
    """The command that found faults exits with 1."""
    assert certified[0] == 1


def test_the_honest_one_is_measured_beside_the_villains(timed: tuple[int, Document, Path]) -> None:
    """Its row holds a latency; no fault of its neighbours touched it."""
    honest = row(timed[1]["rows"], "honest", "eager")
    assert honest["status"] == "ok"
    assert 0 < honest["time_per_batch_s"] < 5


@pytest.mark.parametrize("mode", LATE)
def test_a_fault_while_timed_ends_as_the_row_that_names_it(timed: tuple[int, Document, Path], mode: str) -> None:
    """Outputs are checked on the very networks that were timed, and a worker that dies or hangs fails alone."""
    status, reason = LATE[mode]
    villain = row(timed[1]["rows"], "villain", mode)
    assert villain["status"] == status
    assert reason in villain["reason"]


def test_no_figure_without_a_certificate(timed: tuple[int, Document, Path]) -> None:
    """Nothing that went wrong has a number in the document, though some were timed to the end."""
    code, document, store = timed
    assert code == 1
    wrong = [each for each in document["rows"] if each["implementation"] != "honest"]
    assert {each["mode"] for each in wrong} == {"eager", "zeros", *LATE}
    for each in wrong:
        assert each["latency_s"] == each["throughput_images_per_s"] == {"value": None, "low": None, "high": None}
        assert each["time_per_batch_s"] is None
        assert each["ratios"] == []
    cheat = [each for each in records(store) if each.suite == "inference" and each.cell.mode == "cheats_late"]
    assert all(each.status == "not_certified" for each in cheat)
    assert cheat


def test_no_figure_in_the_printed_table(timed: tuple[int, Document, Path], checkout: Checkout, tmp_path: Path) -> None:
    """The table that people read has the villains' reasons where the figures would be."""
    (run,) = timed[2].iterdir()
    shown = checkout.run("report", str(run), "--out", str(tmp_path), "--baseline", "honest/eager").stdout
    for mode in ("zeros", *LATE):
        (line,) = (line for line in shown.splitlines() if line.lstrip().startswith(f"-  Villain {mode}"))
        assert any(word in line for word in ("NOT CERTIFIED", "failed", "timed out"))
    (honest,) = (line for line in shown.splitlines() if "Plain NumPy  " in line and " ok " in line)
    assert re.search(r"\d\.\d", honest)


def test_an_environment_that_cannot_be_built(checkout: Checkout, tmp_path: Path) -> None:
    """Where pip fails the row holds what pip said and the line that would mend it, and the rest runs."""
    code, document = checkout.document(
        *("certify", "--models", MODEL, "--env", f"honest={sys.executable}", "--impls", "broken,honest", "--store", str(tmp_path))
    )
    broken = row(document["certificates"], "broken", "eager")
    assert (code, broken["status"]) == (1, "failed")
    assert broken["reason"].startswith("Broken could not be installed: ERROR: No matching distribution found for a-framework")
    assert broken["reason"].endswith(f"-m pip install -r {checkout.root}/impls/broken/requirements-cpu.txt")
    assert row(document["certificates"], "honest", "eager")["status"] == "ok"
