"""Sums by kernels: the value through its activation, the split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.backends.triton.fusion import Dividing, lower_of
from relprop.backends.triton.operands import check_operands, parts_of
from relprop.graph import Ref
from relprop.operations import Step
from relprop.operations.base import Engine, unbroadcast
from relprop.operations.pointwise import Sum, operand_factors
from relprop.operations.protocol import Quotients
from relprop.rules import Norm, Pass

__all__ = ["TritonSum"]

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
}
"""Activations that a sum's kernel applies, for the sums that are the library's."""


class TritonSum(Dividing, Sum):
    """a + b: the value through its activation by one kernel, the split by one."""

    backend = "triton"
    applies = True

    def forward(self, step: Step, values: Mapping[str, Any], engine: Engine) -> tuple[Any, Any]:
        from relprop import kernels

        activation = step.options.get("activation")
        pair = [values[x.name] if isinstance(x, Ref) else x for x in step.node.args[:2]]
        if _same_kind(pair):
            check_operands(step.where, summand=pair[0], other=pair[1])
            out = kernels.residual_sum(*pair, operand_factors(step.node), activation)
        else:
            out = step.node.evaluate(values)
            out = out if activation is None else _FUNCTIONS[activation](out)
        return out, self.save(step, values, out)

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        if isinstance(step.rule, Pass):
            return super().save(step, values, out)
        operands = []
        for given in step.node.args[:2]:
            operand = torch.as_tensor(values[given.name] if isinstance(given, Ref) else given)
            operand = operand.to(out.device, torch.promote_types(operand.dtype, torch.float32))
            if not isinstance(given, Ref):
                operand = operand.float()
            carries = isinstance(given, Ref) and given.name in step.inputs
            operands.append((operand, carries))
        check_operands(step.where, summand=operands[0][0], other=operands[1][0])
        return operands, out.shape

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Any]:
        from relprop import kernels

        if isinstance(step.rule, Pass):
            return super().relevance(step, saved, r, engine)
        assert isinstance(step.rule, Norm) and step.rule.epsilon is not None
        (operands, shape), below = parts_of(saved)
        left, right = (operand.expand(shape) for operand, _ in operands)
        layers = iter(below)
        lower = [
            lower_of(next(layers), shape) if carries and operand.shape == shape else None
            for operand, carries in operands
        ]
        shares = kernels.residual_split(
            left, right, r, step.rule.epsilon, operand_factors(step.node), (lower[0], lower[1])
        )
        return [
            unbroadcast(share, operand.shape) if layer is None else Quotients(share)
            for share, (operand, carries), layer in zip(shares, operands, lower, strict=True)
            if carries
        ]


def _same_kind(pair: Sequence[Any]) -> bool:
    """Whether both are tensors of floats and of one shape, which the sum's kernel takes."""
    tensors = all(isinstance(x, Tensor) and x.is_floating_point() and x.ndim for x in pair)
    return tensors and pair[0].shape == pair[1].shape
