"""The Triton backend: every linear layer is a kernel of `relprop.kernels`, or an error.

It never falls back on the library: what no kernel takes (float64, a tensor outside the GPU) is
refused with the reason.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from relprop.backends import LinearCall
from relprop.errors import InputError
from relprop.rules import Flat

if TYPE_CHECKING:
    from relprop.kernels import Contraction

__all__ = ["TritonBackend"]


@dataclass(frozen=True)
class Saved:
    """What the relevance of a layer needs.

    Attributes:
        contraction: the layer's denominators; None under Flat, which counts instead.
        a, w: input and weight, of which Flat needs the shapes.
    """

    contraction: Contraction | None
    a: Tensor
    w: Tensor


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

    def forward(
        self,
        call: LinearCall,
        a: Tensor,
        w: Tensor,
        b: Tensor | None,
        cache: dict[Any, Any] | None = None,
    ) -> tuple[Tensor, Any]:
        """See `relprop.backends.Backend.forward`."""
        from relprop import kernels

        _check(call, a, w, b)
        program = kernels.compile_rule(call.rule, call.nonnegative)
        cache = {} if cache is None else cache
        key = ("triton", a.dtype, a.stride(), call.rule, call.nonnegative)
        if key not in cache:
            cache[key] = kernels.prepare_weights(program, w, a)
        flat = isinstance(call.rule, Flat)
        fixed = ("triton z", a.shape[1:], a.stride(), call.rule, call.precision)
        saved = kernels.contraction(
            call.map,
            call.rule,
            a,
            w,
            b,
            nonnegative=call.nonnegative,
            precision=call.precision,
            save=not flat,
            weight=cache[key],
            z=cache.get(fixed),
        )
        if not program.own_input and not flat:
            cache[fixed] = saved.z
        assert saved.y is not None
        return saved.y, Saved(None if flat else saved, a, w)

    def relevance(self, call: LinearCall, saved: Any, r: Tensor) -> Tensor:
        """See `relprop.backends.Backend.relevance`."""
        from relprop import kernels

        if saved.contraction is None:
            assert isinstance(call.rule, Flat)
            return kernels.flat_relevance(call.map, call.rule, saved.a, saved.w, r)
        s = kernels.quotient(saved.contraction, r)
        return kernels.adjoint(saved.contraction, s, precision=call.precision)


def _check(call: LinearCall, a: Tensor, w: Tensor, b: Tensor | None) -> None:
    from relprop import kernels

    where = call.path or type(call.map).__name__
    if not a.is_cuda and not kernels.interpreted():
        raise InputError(
            f"{where}: backend='triton' runs on a CUDA device, the input is on {a.device}; "
            "move model and input there, or use backend='aten'"
        )
    for name, tensor in [("input", a), ("weight", w), ("bias", b)]:
        if tensor is not None and tensor.dtype == torch.float64:
            raise InputError(
                f"{where}: the {name} is float64, which no Triton kernel takes; "
                "use backend='aten' or float32"
            )
