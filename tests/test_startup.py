"""Start-up from empty caches and from warm ones."""

from __future__ import annotations

from pathlib import Path

from reports import write
from tests.checkouts import BRIEF, Checkout, bench, records


def test_a_mode_that_keeps_files_starts_cold_and_then_warm(checkout: Checkout, tmp_path: Path) -> None:
    """The cold process finds nothing although earlier ones left files, the warm one what the cold one left; other modes have only that."""
    code, document = checkout.document(*bench("keeper", store=tmp_path, modes="eager,compile"), "--cold", before=BRIEF)
    assert code == 0
    found = {(each.suite, each.cell.mode): each for each in records(tmp_path) if each.suite in ("startup", "cold_startup")}
    assert {key: each.settings["warm"] for key, each in found.items()} == {
        ("cold_startup", "compile"): False,
        ("startup", "compile"): True,
        ("startup", "eager"): True,
    }
    assert all(each.status == "ok" for each in found.values())
    cold = found["cold_startup", "compile"].measurements
    (compiled,) = [row for row in document["rows"] if row["mode"] == "compile"]
    (eager,) = [row for row in document["rows"] if row["mode"] == "eager"]
    assert (compiled["cold_load_s"], compiled["cold_first_call_s"]) == (cold["load_s"], cold["first_call_s"])
    assert (eager["cold_load_s"], eager["cold_first_call_s"]) == (None, None)
    page = write.write(tmp_path / document["run_id"], tmp_path / "out")[0].read_text(encoding="utf-8")
    startup = page[page.index('<section id="startup"') :].split("</section>")[0]
    assert f'<td class="number">{cold["first_call_s"]:.2f}</td>' in startup


def test_a_cold_start_that_fails_is_a_remark(checkout: Checkout, tmp_path: Path) -> None:
    """Its record holds the reason; the warm start-up is measured as ever."""
    broken = f"""{BRIEF}
from suites.harness import context
context.compiler_caches = lambda folder: {{"TORCHINDUCTOR_CACHE_DIR": "/dev/null/no"}}
"""
    _, document = checkout.document(*bench("keeper", store=tmp_path, modes="compile"), "--cold", before=broken)
    (row,) = document["rows"]
    assert row["remark"].startswith("cold_startup: failed: ")
    assert row["cold_first_call_s"] is None
    assert row["first_call_s"] > 0
