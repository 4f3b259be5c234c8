"""The Triton backend: linear, pooling and recurrent layers and residual sums are kernels.

It never falls back on the library: a layer of these kinds that no kernel serves is refused when the
plan is made, what no kernel takes (float64, a tensor outside the GPU) when it runs.  What merely
moves relevance, activations and normalisation are the library's; the plan says which.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from relprop.backends.triton.fusion import FusedCall, Saved, fuse, lower_of
from relprop.backends.triton.operations import OPERATIONS, check_operands
from relprop.backends.triton.recurrent import TritonRecurrence, check_rule
from relprop.errors import InputError
from relprop.graph import Graph
from relprop.graph.maps import Conv, Diagonal, LinearMap
from relprop.operations import Operation, Step
from relprop.operations.base import refuse, run_by
from relprop.operations.protocol import Joined, LinearCall, Quotients
from relprop.operations.recurrent import Recurrence
from relprop.rules import Flat, ZBox

__all__ = ["TritonBackend"]


class TritonBackend:
    """Fused kernels on a CUDA device; in Triton's interpreter also on the CPU.

    Raises:
        InputError: Triton is not installed.
    """

    name = "triton"

    def __init__(self) -> None:
        if importlib.util.find_spec("triton") is None:
            raise InputError(
                "backend='triton' needs Triton, which is not installed; "
                "pip install 'relprop[triton]', or use backend='aten'"
            )

    def operation(self, step: Step) -> Operation:
        """See `relprop.operations.protocol.Backend.operation`."""
        if isinstance(step.operation, Recurrence):
            check_rule(step)
            return run_by(TritonRecurrence, type(step.operation))
        found = OPERATIONS.get(type(step.operation), step.operation)
        if found.needs_kernel and found.backend != self.name:
            raise refuse(step, "backend='triton' has no kernel for it; use backend='aten'")
        return found

    def fuse(self, graph: Graph, steps: Mapping[str, Step], output: str) -> dict[str, Step]:
        """See `relprop.operations.protocol.Fusing.fuse`."""
        return fuse(graph, steps, output)

    def forward(
        self,
        call: LinearCall,
        a: Tensor,
        w: Tensor,
        b: Tensor | None,
        cache: dict[Any, Any] | None = None,
        known: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """See `relprop.operations.protocol.Backend.forward`."""
        from relprop import kernels

        check_operands(call.path or type(call.map).__name__, input=a, weight=w, bias=b)
        shape = a.shape
        linear_map, a, w = _lifted(call, a, w)
        program = kernels.compile_rule(call.rule, call.nonnegative)
        cache = {} if cache is None else cache
        key = ("triton", a.dtype, a.stride(), call.rule, call.nonnegative)
        if key not in cache:
            cache[key] = kernels.prepare_weights(program, w, a, precision=call.precision)
        flat = isinstance(call.rule, Flat)
        activation = call.activation if isinstance(call, FusedCall) else None
        activation = "relu" if call.rectified else activation
        fixed = ("triton z", a.shape[1:], a.stride(), call.rule, call.precision)
        saved = kernels.contraction(
            linear_map,
            call.rule,
            a,
            w,
            b,
            nonnegative=call.nonnegative,
            precision=call.precision,
            activation=activation,
            rectified=call.rectified,
            save=not flat,
            weight=cache[key],
            z=cache.get(fixed),
        )
        if not program.own_input and not flat:
            cache[fixed] = saved.z
        assert saved.y is not None
        y = saved.y.squeeze(-1) if len(shape) < a.ndim else saved.y
        return y, Saved(linear_map, shape, None if flat else saved, a, w)

    def relevance(self, call: LinearCall, saved: Any, r: Any) -> Any:
        """See `relprop.operations.protocol.Backend.relevance`.

        With `Joined` for `saved` it returns the `Quotients` of the layer below, and it takes its
        own for `r`.
        """
        from relprop import kernels

        lower = None
        if isinstance(saved, Joined):
            lower = lower_of(saved.below[0], saved.own.a.shape)
            saved = saved.own
        if saved.contraction is None:
            assert isinstance(call.rule, Flat)
            return self._flat(call.rule, saved, r)
        if isinstance(r, Quotients):
            s = r.s
        else:
            r = r.unsqueeze(-1) if len(saved.shape) < saved.a.ndim else r
            s = kernels.quotient(saved.contraction, r)
        out = kernels.adjoint(saved.contraction, s, lower=lower, precision=call.precision)
        return out.reshape(len(out), *saved.shape) if lower is None else Quotients(out)

    def _flat(self, rule: Flat, saved: Saved, r: Tensor) -> Tensor:
        from relprop import kernels

        r = r.unsqueeze(-1) if len(saved.shape) < saved.a.ndim else r
        out = kernels.flat_relevance(saved.map, rule, saved.a, saved.w, r)
        return out.reshape(len(r), *saved.shape)


def _lifted(call: LinearCall, a: Tensor, w: Tensor) -> tuple[LinearMap, Tensor, Tensor]:
    """A scale for each channel as the depthwise convolution of one tap that it is."""
    if not isinstance(call.map, Diagonal):
        return call.map, a, w
    if a.ndim == 2:
        if isinstance(call.rule, ZBox) and any(
            torch.as_tensor(bound).ndim for bound in (call.rule.low, call.rule.high)
        ):
            raise InputError(
                f"{call.path}: backend='triton' takes a ZBox of two numbers on a batch norm "
                "without spatial axes; use backend='aten'"
            )
        a = a.unsqueeze(-1)
    axes = a.ndim - 2
    ones = (1,) * axes
    conv = Conv(ones, ((0, 0),) * axes, ones, groups=len(w))
    return conv, a, w.reshape(-1, 1, *ones)
