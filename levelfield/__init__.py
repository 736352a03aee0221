"""The same networks in four frameworks: proved equal first, then compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd


def load(path: str | Path, baseline: str | None = None) -> pd.DataFrame:
    """What was measured, as one tidy frame with a row per cell: see ``reports.frame.load`` for columns, units and errors."""
    from reports import frame  # importing levelfield must need nothing

    return frame.load(path) if baseline is None else frame.load(path, baseline)
