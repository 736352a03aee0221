"""Number formats against the numbers that NumPy and the formats' definitions give."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from impls.precision import PRECISIONS


@pytest.mark.parametrize(("name", "dtype"), [("fp64", np.float64), ("fp32", np.float32), ("fp16", np.float16)])
def test_ieee_formats_agree_with_numpy(name: str, dtype: type[np.floating]) -> None:
    """Unit roundoff is half NumPy's eps, storage is the item size, and the first integer that is lost follows exact_integer."""
    precision = PRECISIONS[name]
    assert precision.unit_roundoff == float(np.finfo(dtype).eps) / 2
    assert precision.storage_bytes == np.dtype(dtype).itemsize
    assert int(dtype(precision.exact_integer)) == precision.exact_integer
    assert int(dtype(precision.exact_integer + 1)) != precision.exact_integer + 1


@pytest.mark.parametrize(("name", "stored_bits"), [("bf16", 7), ("tf32", 10)])
def test_formats_that_numpy_lacks(name: str, stored_bits: int) -> None:
    """bf16 stores 7 significand bits and tf32 10; rounding to nearest loses at most half the last place."""
    precision = PRECISIONS[name]
    assert precision.significand_bits == stored_bits + 1
    assert Fraction(precision.unit_roundoff) == Fraction(1, 2 ** (stored_bits + 1))
    assert precision.exact_integer == 2 ** (stored_bits + 1)


def test_storage() -> None:
    """tf32 lives in fp32 words, bf16 in two bytes; every name is its key."""
    assert {name: p.storage_bytes for name, p in PRECISIONS.items()} == {"fp64": 8, "fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}
    assert all(name == p.name for name, p in PRECISIONS.items())
