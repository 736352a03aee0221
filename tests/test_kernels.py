"""Reading the arithmetic of products from recorded lines of oneDNN and XLA, and from broken ones."""

from __future__ import annotations

import ctypes
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from impls import kernels
from impls.kernels import Product

# Recorded on an AMD EPYC (family 26): PyTorch 2.13.0 with oneDNN 3.12.0, eager and compiled, and TensorFlow 2.21.0 with oneDNN 3.7.3.
HEADER = [
    "onednn_verbose,v1,info,oneDNN v3.12.0 (commit 80afa71049cd69a3df32adcccb623b12cd7baa22)",
    "onednn_verbose,v1,info,cpu,runtime:OpenMP,nthr:2",
    "onednn_verbose,v1,info,cpu,isa:Intel AVX-512 with Intel DL Boost and bfloat16 support",
    "onednn_verbose,v1,info,gpu,runtime:none",
    "onednn_verbose,v1,primitive,info,template:operation,engine,primitive,implementation,prop_kind,memory_descriptors,attributes,"
    "auxiliary,problem_desc,exec_time",
]
REORDER = (
    "onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,src:bf16::blocked:acdb::f0 dst:bf16::blocked:AcdB64a2b::f0,"
    "attr-scratchpad:user,,64x16x3x3,7.42896"
)
CONVOLUTION = (
    "onednn_verbose,v1,primitive,exec,cpu,convolution,brg_conv_fwd:avx512_core_bf16,forward_inference,src:bf16::blocked:acdb::f0 "
    "wei:bf16:a:blocked:AcdB64a2b::f0 bia:bf16:a:blocked:a::f0 dst:bf16::blocked:acdb::f0,attr-scratchpad:user "
    "attr-post-ops:eltwise_relu,alg:convolution_direct,mb2_ic16oc64_ih32oh32kh3sh1dh0ph1_iw32ow32kw3sw1dw0pw1,0.0549316"
)
INNER_PRODUCT = (
    "onednn_verbose,v1,primitive,exec,cpu,inner_product,x64:gemm:jit,forward_training,src:f32::blocked:ab::f0 wei:f32::blocked:ba::f0 "
    "bia:f32:a:blocked:a::f0 dst:f32::blocked:ab::f0,attr-scratchpad:user,,mb2ic64oc10,48.6631"
)
GEMM = (
    "onednn_verbose,v1,primitive,exec,cpu,gemm_api,,undef,src_f32::blocked:ab:f0 wei_f32::blocked:ab:f0 dst_f32::blocked:ab:f0,,,"
    "1032x27:27x16,67.2561"
)
# The format of oneDNN 2.4, from its issue 1196.
OLDER = (
    "dnnl_verbose,exec,cpu:0,convolution,brgconv:avx512_core,forward_inference,src_f32::blocked:acdb:f0 wei_f32::blocked:Acdb32a:f0 "
    "bia_undef::undef::f0 dst_f32::blocked:acdb:f0,,alg:convolution_direct,mb32_ic3oc32,6.56299"
)

# Excerpts of what jax.jit (0.10.2) made of a convolution, in bf16, and a classifier, whose operands stay bf16.
PROGRAM = """
%fused_computation (param_0: bf16[2,128], param_1: bf16[128,10]) -> f32[2,10] {
  %param_0 = bf16[2,128]{1,0} parameter(0)
  %param_1 = bf16[128,10]{1,0} parameter(1)
  ROOT %dot_general.0 = f32[2,10]{1,0} dot(%param_0, %param_1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
  %convert.20 = f32[2,32,32,16]{3,2,1,0} convert(%param_2.7)
  %convert.21 = f32[3,3,16,64]{3,2,1,0} convert(%param_3.4)
  %conv_general_dilated.0 = f32[2,32,32,64]{3,2,1,0} convolution(%convert.20, %convert.21), window={size=3x3 pad=1_1x1_1}
"""
LIBRARY = """
  %x = bf16[1,8,8,16]{3,2,1,0} parameter(0)
  %w = bf16[3,3,16,16]{2,1,0,3} parameter(1)
  %y = (bf16[1,8,8,16]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), window={size=3x3}, custom_call_target="__cudnn$convForward"
  %top = (f32[5]{0}, s32[5]{0}) custom-call(%x), custom_call_target="TopK"
"""


def test_lines_of_onednn() -> None:
    """Kernel and types of operands of each kind of line; what computes no product is passed over."""
    found = [kernels.onednn_product(line) for line in [*HEADER, REORDER, CONVOLUTION, INNER_PRODUCT, GEMM, OLDER]]
    assert found[: len(HEADER) + 1] == [None] * (len(HEADER) + 1)
    assert found[len(HEADER) + 1 :] == [
        Product("bf16", "oneDNN brg_conv_fwd:avx512_core_bf16"),
        Product("f32", "oneDNN x64:gemm:jit"),
        Product("f32", "oneDNN gemm_api"),
        Product("f32", "oneDNN brgconv:avx512_core"),
    ]


def test_a_weaker_attribute_is_told() -> None:
    """f32 operands that oneDNN was allowed to multiply in bf16, or to add up in any type, are not passed off as f32."""
    line = INNER_PRODUCT.replace("attr-scratchpad:user", "attr-scratchpad:user attr-fpmath:bf16 attr-acc-mode:any")
    assert kernels.onednn_product(line) == Product("f32", "oneDNN x64:gemm:jit attr-fpmath:bf16 attr-acc-mode:any")


def test_operands_of_two_types_are_both_told() -> None:
    """Weights that stayed narrow beside widened activations."""
    line = CONVOLUTION.replace("src:bf16", "src:f32")
    assert kernels.onednn_product(line) == Product("f32 x bf16", "oneDNN brg_conv_fwd:avx512_core_bf16")


@pytest.mark.parametrize(
    "line",
    [
        "",
        CONVOLUTION[:60],
        CONVOLUTION.replace("exec", "create:cache_miss"),
        CONVOLUTION.replace("cpu,", "gpu,"),
        CONVOLUTION.replace("wei:bf16", "wei"),
        CONVOLUTION.replace("src:bf16", "src"),
        CONVOLUTION.replace("onednn_verbose", "verbose"),
        "said onednn_verbose,exec,cpu,convolution",
    ],
)
def test_a_broken_line_tells_nothing(line: str) -> None:
    """Cut off, of another operation or engine, or without the types: no product is made up."""
    assert kernels.onednn_product(line) is None


@given(st.text())
def test_any_text_is_read_or_passed_over(text: str) -> None:
    """Nothing that a library prints is an error."""
    assert kernels.onednn_product(text) is None
    assert kernels.of_hlo(text).startswith(kernels.UNTOLD) or "XLA" in kernels.of_hlo(text)


def test_the_instruction_set_is_that_of_the_header() -> None:
    """It is named once, and not made up where it is not."""
    assert kernels.onednn_isa([REORDER, *HEADER]) == "cpu isa Intel AVX-512 with Intel DL Boost and bfloat16 support"
    assert kernels.onednn_isa([REORDER, CONVOLUTION]) is None


def test_summary() -> None:
    """Kernels are grouped by their operands' types, each once; empty remarks are left out."""
    products = [Product("f32", "b"), Product("bf16", "c"), Product("f32", "a"), Product("bf16", "c")]
    assert kernels.summary(products, "", "cpu isa x") == "bf16 in c; f32 in a, b; cpu isa x"


def test_programs_of_xla() -> None:
    """The operands' types are told, not those of results; of calls only those of libraries' products count."""
    assert kernels.of_hlo(PROGRAM) == "bf16 in XLA dot; f32 in XLA convolution"
    assert kernels.of_hlo(LIBRARY, "a remark") == "bf16 in XLA __cudnn$convForward; a remark"


def test_a_program_that_cannot_be_read_says_so() -> None:
    """An operand without a definition is not guessed, and a program without products is not called narrow or wide."""
    assert kernels.of_hlo(PROGRAM.replace("%convert.21 =", "%other =")) == "bf16 in XLA dot; not told of 1 products of XLA's program"
    assert kernels.of_hlo("") == "not told: XLA's program shows no product"
    assert kernels.of_hlo(LIBRARY.replace("convForward", "norm")) == "not told: XLA's program shows no product"


def test_standard_output_is_kept_and_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    """What the C library prints meanwhile is in the list and nowhere else; before and after, and after an error, it goes where it went."""
    libc = ctypes.CDLL(None)
    print("before")
    with kernels.standard_output() as lines:
        libc.printf(b"%s\n", b"inside")
        os.write(1, b"written\n")
    with pytest.raises(ZeroDivisionError), kernels.standard_output():
        print(libc.puts(b"lost") / 0)
    print("after")
    sys.stdout.flush()
    assert sorted(lines) == ["inside", "written"]
    assert capfd.readouterr().out == "before\nafter\n"
