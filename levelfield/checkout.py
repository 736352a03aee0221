"""Finding the checkout: the project is used from it, and only this package is installed."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def enter() -> None:
    """Put the checkout's folders on the import path, behind everything else.

    Raises:
        SystemExit: this package does not lie in a checkout (exit code 2).
    """
    if not (ROOT / "impls" / "implementation.py").is_file():
        print(f"levelfield is used from its checkout, and {ROOT} is none: clone the repository and `pip install -e` it", file=sys.stderr)
        raise SystemExit(2)
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
