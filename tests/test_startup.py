"""Start-up from empty caches and from warm ones."""

from __future__ import annotations

import re
from pathlib import Path

from reports import table, write
from suites.harness.memory import NO_PEAK
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


def test_a_sandbox_without_a_peak_costs_no_figure(checkout: Checkout, tmp_path: Path) -> None:
    """Its memory is null with the reason, "-" in every table; a peak that cannot be reset is not that of the running network."""
    code, document = checkout.document(*bench("villain", "honest", store=tmp_path, modes="eager,no_peak,no_reset"), before=BRIEF)
    assert code == 0
    rows = {row["mode"]: row for row in document["rows"]}
    assert {mode: (row["status"], row["peak_memory_bytes"] is None) for mode, row in rows.items()} == {
        "eager": ("ok", False),
        "no_peak": ("ok", True),
        "no_reset": ("ok", False),
    }
    assert rows["no_peak"]["latency_s"]["value"] > 0
    found = {each.cell.mode: each for each in records(tmp_path) if each.suite == "memory"}
    names = ("peak_memory_bytes", "running_memory_bytes", "imported_memory_bytes")
    told = {mode: tuple(name for name in names if each.measurements[name] is not None) for mode, each in found.items()}
    assert told == {"eager": names, "no_peak": ("imported_memory_bytes",), "no_reset": (names[0], names[2])}
    assert {mode: each.data for mode, each in found.items()} == {"eager": None, "no_peak": {"absent": NO_PEAK}, "no_reset": None}
    shown = write.comparison(tmp_path / document["run_id"])
    assert {line.implementation: line.memory == "-" for line in shown.sections[0].lines} == {
        "honest eager": False,
        "villain no_peak": True,
        "villain no_reset": False,
    }
    column = shown.sections[0].headings(wide=True).index(table.COLUMNS[3])
    (row,) = [line for line in table.markdown(shown).splitlines() if "| villain no_peak |" in line]
    assert row.split("|")[1:][column].strip() == "-"
    page = write.write(tmp_path / document["run_id"], tmp_path / "out")[0].read_text(encoding="utf-8")
    behind = page[page.index("villain no_peak</th>") :].split("</tr>")[0]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", behind)[column - 2] == "-"
