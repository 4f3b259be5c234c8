"""The executor on kernels written by hand: what it computes, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptx.execution import execute
from ptx.memory import Storages
from ptx.text import PtxError, read

HEAD = """
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0,
	.param .u64 .ptr .global .align 1 kernel_param_1
)
.reqntid 64
{
	.reg .pred 	%p<4>;
	.reg .b16 	%rs<4>;
	.reg .b32 	%r<20>;
	.reg .b64 	%rd<20>;
	ld.param.b64 	%rd1, [kernel_param_0];
	ld.param.b64 	%rd2, [kernel_param_1];
	mov.u32 	%r1, %tid.x;
	mul.wide.u32 	%rd3, %r1, 4;
	add.s64 	%rd4, %rd1, %rd3;
	add.s64 	%rd5, %rd2, %rd3;
	mov.b64 	%rd6, global_smem;
	cvt.u32.u64 	%r2, %rd6;
	shl.b32 	%r3, %r1, 2;
	add.s32 	%r4, %r2, %r3;
	xor.b32 	%r5, %r3, 128;
	add.s32 	%r6, %r2, %r5;
"""
EXCHANGE = """
	ld.global.b32 	%r7, [ %rd4 + 0 ];
	st.shared.b32 	[%r4], %r7;
	bar.sync 	0;
	ld.shared.b32 	%r8, [%r6];
	st.global.b32 	[ %rd5 + 0 ], %r8;
"""
COPY = """
	cp.async.ca.shared.global [ %r4 + 0 ], [ %rd4 + 0 ], 0x4, 4;
	cp.async.commit_group;
	cp.async.wait_group 	0;
	bar.sync 	0;
	ld.shared.b32 	%r8, [%r6];
	st.global.b32 	[ %rd5 + 0 ], %r8;
"""


def run(body: str, x: torch.Tensor, size: int = 64, shared: int = 256) -> torch.Tensor:
    """What a body leaves in its second argument, two CTAs after one another."""
    y, storages = torch.full((size,), torch.nan), Storages()
    for tensor in (x, y):
        storages.add(tensor)
    parameters = {"kernel_param_0": x.data_ptr(), "kernel_param_1": y.data_ptr()}
    execute(read(HEAD + body + "\tret;\n}\n"), (2, 1, 1), parameters, storages, shared)
    return y


def test_values_and_what_orders_them() -> None:
    """Two warps exchange what they hold, by stores or by copies."""
    x = torch.randn(64)
    for body in (EXCHANGE, COPY):
        assert torch.equal(run(body, x), x.roll(32))
        with pytest.raises(PtxError, match=r"race: ld.shared of a word that another warp wrote"):
            run(body.replace("bar.sync", "//"), x)
    with pytest.raises(PtxError, match=r"race: ld.shared of a word that a cp.async in flight"):
        run(COPY.replace("wait_group 	0", "wait_group 	1"), x)
    twice = EXCHANGE + "	st.shared.b32 	[%r4], %r8;\n"
    with pytest.raises(PtxError, match=r"race: st.shared of a word that another warp read"):
        run(twice, x)


def test_nothing_beside_the_arguments() -> None:
    x = torch.randn(64)
    with pytest.raises(PtxError, match="outside the 128 bytes of shared memory"):
        run(EXCHANGE, x, shared=128)
    with pytest.raises(PtxError, match="store outside every argument's storage"):
        run(EXCHANGE, x, size=63)
    with pytest.raises(PtxError, match="load outside every argument's storage"):
        run(EXCHANGE, x[:63].clone())
    guarded = EXCHANGE.replace("st.global", "setp.lt.u32 %p1, %r1, 63;\n	@%p1 st.global")
    assert torch.equal(run(guarded, x, size=63), x.roll(32)[:63])
    with pytest.raises(PtxError, match="misaligned 4-byte load"):
        run(EXCHANGE.replace("[ %rd4 + 0 ]", "[ %rd4 + 2 ]"), x)
    parted = "\tsetp.lt.u32 %p1, %r1, 5;\n\t@%p1 bra $L;\n\tneg.f32 %r7, %r7;\n$L:\n"
    found = run(EXCHANGE.replace("st.shared", parted + "\tst.shared", 1), x)
    assert torch.equal(found, torch.cat([x[:5], -x[5:]]).roll(32))
    with pytest.raises(PtxError, match="not all threads of a CTA come to this barrier"):
        run(parted.replace("$L:", "\tbar.sync \t0;\n$L:"), x)
    with pytest.raises(PtxError, match="unknown instruction: vote"):
        run("\tvote.sync.ballot.b32 %r7, %p1, -1;\n", x)


INTEGERS = [
    ("shl.b32 %r8, %r7, 3", lambda a: a << 3),
    ("shr.s32 %r8, %r7, 40", lambda a: np.where(a < 0, -1, 0)),
    ("div.s32 %r8, %r7, 7", lambda a: np.trunc(a / 7)),
    ("rem.s32 %r8, %r7, 7", lambda a: np.fmod(a, 7)),
    ("bfe.s32 %r8, %r7, 1, 4", lambda a: ((a >> 1) + 8) % 16 - 8),
    ("prmt.b32 %r8, %r7, %r7, 0x3120", lambda a: np.array(
        [int.from_bytes(bytes(np.array([x], "<i4").tobytes()[i] for i in (0, 2, 1, 3)),
                        "little", signed=True) for x in a])),
    ("mad.lo.s32 %r8, %r7, %r7, 5", lambda a: a * a + 5),
    ("max.s32 %r8, %r7, -3", lambda a: np.maximum(a, -3)),
]  # fmt: skip
FLOATS = [
    ("fma.rn.f32 %r8, %r7, %r7, 0fBF800000", lambda x: x.double() * x.double() - 1),
    ("max.NaN.f32 %r8, %r7, 0f00000000", lambda x: x.clamp(min=0)),
    ("cvt.rn.bf16.f32 %rs1, %r7; cvt.f32.bf16 %r8, %rs1", lambda x: x.bfloat16()),
    ("cvt.rn.f16.f32 %rs1, %r7; cvt.f32.f16 %r8, %rs1", lambda x: x.half()),
    ("setp.ltu.f32 %p1, %r7, 0f00000000; selp.f32 %r8, 0f3F800000, %r7, %p1",
     lambda x: torch.where((x < 0) | x.isnan(), 1.0, x)),
    ("shfl.sync.bfly.b32 %r8, %r7, 1, 31, -1", lambda x: x.view(-1, 2).flip(1).flatten()),
]  # fmt: skip


def test_arithmetic() -> None:
    around = "ld.global.b32 %r7, [ %rd4 + 0 ];\n{};\nst.global.b32 [ %rd5 + 0 ], %r8;\n"
    numbers = np.arange(-32, 32, dtype=np.int32)
    whole = torch.from_numpy(numbers.copy()).view(torch.float32)
    for text, expected in INTEGERS:
        found = run(around.format(text), whole).view(torch.int32).numpy()
        assert np.array_equal(found, expected(numbers).astype(np.int32)), text
    x = torch.randn(64)
    x[3] = torch.nan
    for text, of in FLOATS:
        floats = run(around.format(text), x)
        assert torch.equal(floats.nan_to_num(7), of(x).float().nan_to_num(7)), text
