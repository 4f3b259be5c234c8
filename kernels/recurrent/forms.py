"""How a recurrent kernel runs: where its loop over steps and its weights are (README.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from relprop.kernels.runtime import interpreted
from relprop.kernels.tiling import Limits, limits

__all__ = ["Form", "Steps", "choose_form", "form_for", "torch_type"]

LOOP_UNITS = 256
"""Hidden units up to which the loop over steps is inside a kernel."""
LOOP_ROWS = 16
"""Rows of a program with the loop inside: the fewest that a tensor core takes."""
FULL = 96
"""Programs from which on larger tiles are preferred to more of them."""


class Form(NamedTuple):
    """One way to run the steps.

    Attributes:
        name: "held" (loop inside, weights on the chip), "streamed" (loop inside, weights read
            every step) or "stepped" (a launch a step).
        m: rows of a program.
        n: units of a program; all of them unless "stepped".
        k: length of a block of the recurrent product; unused by "held".
        warps, stages: as `Tile`.
    """

    name: str
    m: int
    n: int
    k: int
    warps: int
    stages: int

    @property
    def loop_stages(self) -> int:
        """Steps in flight of a loop inside a kernel.

        One where a step's values go through memory: a load of them must not move ahead of the step
        that stores them.
        """
        return self.stages if self.name == "held" else 1

    def padded(self, hidden: int) -> int:
        """Units of weights and carried rows, which are padded with 0 to whole blocks."""
        block = max(self.n, self.k)
        return triton.cdiv(hidden, block) * block


@dataclass(frozen=True)
class Steps:
    """What the steps of one layer ask for.

    Attributes:
        rows: samples (times targets) of all directions.
        hidden: units.
        weights: matrices that each step multiplies by: the gates, or 1 on the way back.
        tiles: float32 numbers a row and unit that a step reads.
        operand: Triton dtype of the operands.
        precision: `input_precision` of the products.
    """

    rows: int
    hidden: int
    weights: int
    tiles: int
    operand: Any
    precision: str

    @property
    def block(self) -> int:
        """Units of a program that has them all."""
        return max(16, triton.next_power_of_2(self.hidden))

    @property
    def exact(self) -> bool:
        """IEEE float32 products: no tensor cores, operands in registers."""
        return self.operand == tl.float32 and self.precision == "ieee"

    def held_bytes(self) -> int:
        """Shared memory of the form "held"; 3xTF32 splits each weight in two."""
        split = 2 if self.precision == "tf32x3" else 1
        width = self.operand.primitive_bitwidth // 8
        staged = (self.tiles + split) * LOOP_ROWS * self.block * 4
        return split * self.weights * self.block**2 * width + staged


def torch_type(operand: Any) -> torch.dtype:
    """The PyTorch name of a Triton dtype."""
    names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return names[operand.name]


def choose_form(steps: Steps) -> Form:
    """The form on the current target."""
    if interpreted():
        return Form("held", LOOP_ROWS, steps.block, LOOP_ROWS, 4, 1)
    cuda = triton.runtime.driver.active.get_current_target().backend == "cuda"
    return form_for(steps, limits(), cuda)


def form_for(steps: Steps, limit: Limits, cuda: bool) -> Form:
    """The form for some steps within the limits of a target (README.md has the reasons)."""
    block = steps.block
    split = steps.precision == "tf32x3" and steps.weights > 1
    warps = 4 if block <= 64 and not split else 8
    if steps.hidden <= LOOP_UNITS and not steps.exact and steps.held_bytes() <= limit.shared:
        return Form("held", LOOP_ROWS, block, LOOP_ROWS, warps, 2)
    if cuda and block <= _streamed_units(steps):
        return _streamed(steps, block, warps)
    return _stepped(steps, limit)


def _streamed_units(steps: Steps) -> int:
    """Units up to which one program's registers hold all pre-activations of its rows."""
    if steps.weights == 1:
        return LOOP_UNITS
    return LOOP_UNITS if steps.operand != tl.float32 else LOOP_UNITS // 2


def _streamed(steps: Steps, block: int, warps: int) -> Form:
    if steps.operand == tl.float32:
        return Form("streamed", LOOP_ROWS, block, 16, warps, 2)
    return Form("streamed", LOOP_ROWS, block, min(block, 32), warps, 2)


def _stepped(steps: Steps, limit: Limits) -> Form:
    """Tiles of 64 rows where they are enough to fill a device, else of 32."""
    if steps.exact:
        return Form("stepped", 32, 32, 16, 4, 2)
    if steps.operand == tl.float32 and steps.weights > 1:
        # both halves of every operand pass through registers
        tile = (64, 32, 32, 8) if limit.crowding == 1 else (32, 16, 32, 4)
        return Form("stepped", *tile, 3)
    n, k = (32 if steps.weights > 1 else 64), (32 if steps.operand == tl.float32 else 64)
    programs = triton.cdiv(steps.rows, 64) * triton.cdiv(steps.hidden, n)
    return Form("stepped", 64 if programs >= FULL else 32, n, k, 4, 3)
