"""In which arithmetic products were computed, read from what compilers and oneDNN say of their own kernels.

A product of two bf16 or fp16 numbers is exact in fp32, so no output shows whether a convolution widened its operands first;
the program that was compiled and the kernels that ran do. Imports only the standard library.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

UNTOLD = "not told"
"""How an answer begins, or goes on, where the arithmetic cannot be read."""


@dataclass(frozen=True, slots=True)
class Product:
    """A convolution or matrix product as it was computed: the types of its operands ("bf16", "f32") and the kernel's name."""

    operands: str
    kernel: str


def summary(products: Iterable[Product], *others: str) -> str:
    """ "bf16 in oneDNN brg_conv_fwd:avx512_core_bf16, gemm:jit; ...": the kernels of each type of operands, then ``others``."""
    found = sorted({(product.operands, product.kernel) for product in products})
    types = sorted({operands for operands, _ in found})
    told = [f"{each} in {', '.join(kernel for operands, kernel in found if operands == each)}" for each in types]
    return "; ".join([*told, *filter(None, others)])


EXECUTED = re.compile(
    r"^(?:onednn|dnnl)_verbose,(?:[^,]*,)*?exec,cpu[^,]*,(?P<primitive>convolution|inner_product|matmul|gemm_api),(?P<kernel>[^,]*),[^,]*,"
    r"(?P<memory>[^,]*),(?P<attributes>[^,]*),"
)
"""A product in oneDNN's verbose output ("Verbose Mode" of its developer guide); lines recorded of 3.7.3 and 3.12.0 are in the tests."""

OPERAND = re.compile(r"\b(?:src|wei)[:_](bf16|[fsu]\d\w*):")
WEAKENED = re.compile(r"attr-(?:fpmath|acc-mode):\S+")
ISA = re.compile(r"^(?:onednn|dnnl)_verbose,.*\binfo,cpu,isa:(.+)$")


def onednn_product(line: str) -> Product | None:
    """The product that a line of oneDNN's verbose output reports, None where it reports anything else or cannot be read."""
    match = EXECUTED.match(line)
    operands = OPERAND.findall(match["memory"]) if match else []
    if match is None or len(operands) != 2:
        return None
    name = match["kernel"] or match["primitive"]  # a call of oneDNN's GEMM names no kernel
    return Product(" x ".join(dict.fromkeys(operands)), " ".join(["oneDNN", name, *WEAKENED.findall(match["attributes"])]))


def onednn_isa(lines: Iterable[str]) -> str | None:
    """The instruction sets that oneDNN chose its kernels for; it says so once in a process, with its first line."""
    return next((f"cpu isa {match[1]}" for match in map(ISA.match, lines) if match), None)


@contextmanager
def standard_output() -> Iterator[list[str]]:
    """Keep what libraries print to the C library's standard output, wherever that goes; the list is filled when the context ends."""
    lines: list[str] = []
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    libc.fflush(None)
    kept = os.dup(1)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 1)
            try:
                yield lines
            finally:
                sys.stdout.flush()
                libc.fflush(None)
                os.dup2(kept, 1)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()
    finally:
        os.close(kept)


DEFINED = re.compile(r"^\s*(?:ROOT )?%([\w.-]+) = \(?(\w+)\[", re.MULTILINE)
COMPUTED = re.compile(r" (convolution|dot|custom-call)\(([^)]*)\)(.*)")
LIBRARY = re.compile(r'custom_call_target="([^"]*(?:conv|gemm|matmul|dot)[^"]*)"', re.IGNORECASE)


def of_hlo(program: str, *others: str) -> str:
    """The arithmetic of an optimised XLA program, in its text: the types in which products take their operands.

    The type of a result says less: a sum of bf16 products may be f32 by request.
    """
    types = dict(DEFINED.findall(program))
    products, unread = [], 0
    for kind, arguments, rest in COMPUTED.findall(program):
        library = LIBRARY.search(rest)
        if kind == "custom-call" and library is None:
            continue
        operands = [types.get(name) for name in re.findall(r"%([\w.-]+)", arguments)[:2]]
        if len(operands) != 2 or None in operands:
            unread += 1
            continue
        products.append(Product(" x ".join(dict.fromkeys(map(str, operands))), f"XLA {library[1] if library else kind}"))
    if not products and not unread:
        return f"{UNTOLD}: XLA's program shows no product"
    return summary(products, *others, f"{UNTOLD} of {unread} products of XLA's program" if unread else "")
