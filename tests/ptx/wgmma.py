"""`wgmma`: products of a warpgroup, of shared memory, that run on by themselves.

They complete when they are waited for, not before; until then their registers may not be touched,
but by a further `wgmma`, nor what they read be written.  The left operand may be in registers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from ptx.fragments import accumulated, left, set_accumulators, type_of
from ptx.machine import Ctas, instruction
from ptx.shared import BASE
from ptx.text import Instruction, Operand, PtxError, Register
from ptx.values import Array, decode

WARPGROUP = 128
SWIZZLES = {0: (16, 0), 1: (128, 7), 2: (64, 3), 3: (32, 1)}
"""By a descriptor's mode: octets of a pattern's row, and which bits of the address are mixed."""


@dataclass(frozen=True)
class Product:
    """What was asked for.  Operands as numbers `[warps or warpgroups, rows, k]`, read when asked:
    nothing may write them until the product is complete."""

    accumulators: tuple[Operand, ...]
    a: Array
    b: Array
    keeps: Array
    sign: int

    def take(self, threads: Array) -> Product:
        chosen = threads[::WARPGROUP] // WARPGROUP
        return replace(
            self, a=self.a[chosen], b=self.b[chosen], keeps=self.keeps[threads]
        )  # fmt: skip

    def finish(self, ctas: Ctas) -> None:
        exact = self.a.astype(np.float64) @ self.b.astype(np.float64).transpose(0, 2, 1)
        before = accumulated(ctas, self.accumulators)
        keeps = self.keeps.reshape(-1, 32)[:, :1, None]
        total = np.where(keeps, before, 0) + self.sign * exact.reshape(before.shape)
        set_accumulators(ctas, self.accumulators, total.astype(np.float32))


@instruction("wgmma")
def wgmma(ctas: Ctas, i: Instruction, mask: Array | None) -> None:
    if i.has("commit_group"):
        ctas.products.commit()
    elif i.has("wait_group"):
        done = ctas.products.wait(i.number(0))
        ctas.shared.complete_products(ctas.products.complete)
        ctas.kept.clear()
        for each in done:
            each.finish(ctas)
        _keep(ctas)
    elif i.has("mma_async") and mask is None:
        ask(ctas, i)
    elif not i.has("fence"):
        raise PtxError(f"unknown instruction: {i.text[:80]}")


def _keep(ctas: Ctas) -> None:
    """The accumulators of what is in flight are nobody else's."""
    queue = ctas.products
    for product in [*queue.open, *(each for group in queue.groups for each in group)]:
        assert isinstance(product, Product)
        ctas.kept.update(r.name for r in product.accumulators if isinstance(r, Register))


def ask(ctas: Ctas, i: Instruction) -> None:
    shape = re.search(r"m64n(\d+)k(\d+)", i.text)
    if shape is None or i.parts[-3] != "f32":
        raise PtxError(f"unknown product: {i.text[:80]}")
    columns, k, kind = int(shape[1]), int(shape[2]), type_of(i.parts)
    numbers = [i.number(n) for n in range(4, len(i.operands))]
    in_registers = len(i.registers(1)) > 1
    turned = numbers[2:] if kind != "tf32" else []
    if in_registers:
        a = left([ctas.full(r, np.uint32) for r in i.registers(1)], kind).reshape(-1, 64, k)
    else:
        a = operand(ctas, i.operands[1], (64, k), kind, bool(turned and turned[0]))
    b = operand(ctas, i.operands[2], (columns, k), kind, bool(turned and turned[-1]))
    keeps = ctas.holds(i.operands[3])
    product = Product(i.registers(0), a, b, keeps, numbers[0] * numbers[1])
    ctas.products.open.append(product)
    _keep(ctas)


def operand(
    ctas: Ctas, where: Operand, shape: tuple[int, int], kind: str, turned: bool
) -> Array:  # fmt: skip
    """`[warpgroups, rows, k]` of a matrix in shared memory, where its descriptor says.

    Args:
        turned: whether neighbours in memory are rows, not places along k.
    """
    descriptors = ctas.full(where, np.uint64).reshape(-1, WARPGROUP)
    if (descriptors != descriptors[:, :1]).any():
        raise PtxError("the descriptor of a wgmma differs within a warpgroup")
    size = 4 if kind == "tf32" else 2
    offsets = addresses(descriptors[:, 0], shape, size, turned) - BASE
    if ((offsets < 0) | (offsets + size > ctas.shared.size)).any():
        raise PtxError("an operand of wgmma lies outside shared memory")
    cta = ctas.cta[::WARPGROUP, None, None]
    octets = ctas.shared.read_by_product(cta, offsets, size, ctas.products.group)
    bits = np.ascontiguousarray(octets).view(np.uint32 if size == 4 else np.uint16)[..., 0]
    return decode(bits, kind)


def addresses(descriptors: Array, shape: tuple[int, int], size: int, turned: bool) -> Array:
    """`[descriptors, rows, k]`, of each number of such a matrix.

    A descriptor has the start, the leading and the stride offset, each in units of 16 octets, and
    the swizzle: in patterns of 8 rows, octets in groups of 16 are permuted by the row's number.
    """
    start, leading, stride = (
        (((descriptors >> np.uint64(shift)) & np.uint64(0x3FFF)) << np.uint64(4))
        .astype(np.int64)[:, None, None]
        for shift in (0, 16, 32)
    )  # fmt: skip
    modes = {int(mode) for mode in descriptors >> np.uint64(62)}
    if len(modes) != 1:
        raise PtxError("the warpgroups of a wgmma swizzle differently")
    width, mixed = SWIZZLES[modes.pop()]
    row, k = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    if turned:
        per = width // size
        inside = (k % 8) * width + (row % per) * size
        found = start + (row // per) * leading + (k // 8) * stride + inside
    elif mixed:
        found = start + (row // 8) * stride + (row % 8) * width + k * size
    else:
        along, rest = k * size // 16, k * size % 16
        found = start + (row // 8) * stride + along * leading + (row % 8) * 16 + rest
    found = np.broadcast_to(found, (len(descriptors), *shape))
    return found ^ (((found >> 7) & mixed) << 4)
