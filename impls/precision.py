"""The number formats that a network is run in.

Sources: IEEE 754-2019 table 3.5 (binary16, 32, 64); Intel "BFLOAT16 - Hardware Numerics Definition" (2018);
NVIDIA A100 white paper (2020), TF32: 10 stored significand bits, fp32 range and storage.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Precision:
    """One number format.

    ``significand_bits`` counts the hidden bit, so every integer of magnitude up to ``2**significand_bits`` is exact.
    ``storage_bytes`` is the size of one element in memory.
    """

    name: str
    significand_bits: int
    storage_bytes: int

    @property
    def unit_roundoff(self) -> float:
        """Largest relative error of one rounding to nearest."""
        return 2.0**-self.significand_bits

    @property
    def exact_integer(self) -> int:
        """Largest N such that every integer in [-N, N] is held exactly."""
        return 1 << self.significand_bits


PRECISIONS: dict[str, Precision] = {
    p.name: p
    for p in (
        Precision("fp64", significand_bits=53, storage_bytes=8),
        Precision("fp32", significand_bits=24, storage_bytes=4),
        Precision("tf32", significand_bits=11, storage_bytes=4),
        Precision("bf16", significand_bits=8, storage_bytes=2),
        Precision("fp16", significand_bits=11, storage_bytes=2),
    )
}
