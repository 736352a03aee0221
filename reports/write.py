"""A run as files to read and to publish: page, Markdown, CSV and Parquet, side by side."""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path

from reports import certificate, frame, page, publish, roofline, table
from reports.about import About


def comparison(
    path: str | Path, baseline: str = frame.BASELINE, report: Path | None = None, allow_unlike: Collection[str] = ()
) -> table.Content:
    """What a run's folder (or a folder of runs) has to say, ready for ``table.terminal``, however much of it is there.

    Raises:
        frame.NoRecordsError: nothing there is a run.
    """
    loaded = frame.read(path)
    cells = frame.tidy(loaded, baseline, allow_unlike)
    return table.content(cells, About(loaded.records, loaded.runs, loaded.unreadable), report, allow_unlike)


def write(run_folder: str | Path, out: str | Path, baseline: str = frame.BASELINE, allow_unlike: Collection[str] = ()) -> tuple[Path, ...]:
    """Write ``index.html``, ``report.md``, ``cells.csv``, ``cells.parquet`` and the pages of the certificates; each is replaced whole.

    Raises:
        frame.NoRecordsError: ``run_folder`` holds no run.
        OSError: ``out`` cannot be written.
    """
    out = Path(out)
    loaded = frame.read(run_folder)
    cells = frame.tidy(loaded, baseline, allow_unlike)
    content = table.content(cells, About(loaded.records, loaded.runs, loaded.unreadable), allow_unlike=allow_unlike)
    certificates = certificate.write(Path(run_folder), out / "certificates")
    rates = functools.partial(roofline.rates, loaded.records)
    documents = {
        "index.html": page.render(cells, content, certificates=certificates is not None, rates=rates).encode(),
        "report.md": table.markdown(content).encode(),
        "cells.csv": cells.to_csv(index=False).encode(),
        "cells.parquet": cells.to_parquet(index=False),
    }
    for name, data in documents.items():
        publish.replace(out / name, data)
    return tuple(out / name for name in documents)
