"""Weights that the project trained itself and ships, one file per model below ``trained/``."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "trained"


def path(model: str) -> Path | None:
    """The weight file shipped for a model, or None."""
    candidate = FOLDER / f"{model}.safetensors"
    return candidate if candidate.is_file() else None
