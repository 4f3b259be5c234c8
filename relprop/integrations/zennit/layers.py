"""Relevance of one linear module from its input, on relprop's products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relprop import backends
from relprop.graph.checks import conv_map
from relprop.graph.maps import Dense, LinearMap
from relprop.operations.arithmetic import modify
from relprop.operations.base import quotient
from relprop.rules import LinearRule, ZBox
from relprop.rules.terms import Group

__all__ = ["LinearModule", "kind_of", "linear_module"]

Stabilize = Callable[[Tensor], Tensor]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FORWARDS = {kind.forward for kind in (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)}


def kind_of(module: nn.Module) -> str | None:
    """relprop's word for a linear module: "linear", "conv" or "conv_transpose"; None for others."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, _CONVOLUTIONS):
        return "conv"
    return "conv_transpose" if isinstance(module, _TRANSPOSED) else None


@dataclass(frozen=True)
class LinearModule:
    """A linear module at one of its calls.

    Attributes:
        map: its geometry.
        x: its input as the map takes it: with a batch axis, and padded where zeros will not do.
        weight: its weight, weight norm and other parametrizations applied.
        bias: its bias, or None.
        restore: relevance of `x` to relevance of the input that the module was given.
        pad: whatever is shaped like the module's input, shaped like `x`.
    """

    map: LinearMap
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    restore: Callable[[Tensor], Tensor]
    pad: Callable[[Tensor], Tensor]

    def relevance(self, r: Tensor, rule: LinearRule, stabilize: Stabilize | None = None) -> Tensor:
        """Relevance of the module's input.

        Where autograd records (`create_graph=True`) the result can be differentiated with respect
        to the input, the parameters and `r`.

        Args:
            r: relevance of the module's output.
            rule: a linear rule.
            stabilize: from a denominator to what is divided by, in place of the rule's epsilon.
        """
        r = r.unsqueeze(0) if r.ndim < self.x.ndim else r
        if torch.is_grad_enabled() or stabilize is not None or self._by_sample(rule):
            return self.restore(self._term_by_term(r, rule, stabilize))
        call = backends.LinearCall(self.map, rule, nonnegative=bool((self.x >= 0).all()))
        engine = backends.get("aten")
        z, saved = engine.forward(call, self.x, self.weight, self.bias)
        return self.restore(engine.relevance(call, saved, r.to(z.dtype).unsqueeze(0))[0])

    def _by_sample(self, rule: LinearRule) -> bool:
        """Whether a box has bounds of its own for each sample, which no backend caches."""
        if not isinstance(rule, ZBox):
            return False
        shapes = [getattr(getattr(b, "tensor", None), "shape", ()) for b in (rule.low, rule.high)]
        return any(len(shape) == self.x.ndim and max(shape[:1]) > 1 for shape in shapes)

    def _term_by_term(self, r: Tensor, rule: LinearRule, stabilize: Stabilize | None) -> Tensor:
        """The rule as its formula says, in operations that autograd records."""
        dtype = torch.promote_types(torch.promote_types(self.x.dtype, self.weight.dtype), r.dtype)
        a, w, r = self.x.to(dtype), self.weight.to(dtype), r.to(dtype)
        b = None if self.bias is None else self.map.align(self.bias.to(dtype))
        output = self.map.contraction(a, w)
        output = output if b is None else output + b
        shares = []
        for group in rule.groups:
            terms = [
                (modify(term.input, a, self.map, rule), modify(term.weight, w, self.map, rule))
                for term in group.terms
            ]
            z = reduce(torch.add, [self.map.contraction(f, g) for f, g in terms])
            z = z if b is None else z + modify(group.bias, b, self.map, rule)
            s = quotient(r, z, rule.epsilon) if stabilize is None else r / stabilize(z)
            s = group.scale * _gate(group, output) * s
            shares += [f * self.map.adjoint(s, g, a.shape) for f, g in terms]
        return reduce(torch.add, shares)


def _gate(group: Group, output: Tensor) -> Tensor | float:
    if group.gate is None:
        return 1.0
    return (output > 0 if group.gate == "positive" else output < 0).to(output)


def linear_module(module: nn.Module, x: Tensor, output: torch.Size) -> LinearModule | None:
    """A module as a linear map, None if it is none, or computes otherwise than its class.

    Args:
        module: of any class.
        x: what it is called on.
        output: the shape of what it returns.
    """
    kind = kind_of(module)
    if kind is None or "forward" in vars(module) or type(module).forward not in _FORWARDS:
        return None
    weight, bias = _tensor(module.weight), module.bias
    bias = None if bias is None else _tensor(bias)
    if kind != "linear":
        return _convolution(module, x, weight, bias, output)
    if x.ndim > 1:
        return LinearModule(Dense(), x, weight, bias, _same, _same)
    return LinearModule(Dense(), x.unsqueeze(0), weight, bias, _first, _batched)


def _convolution(
    module: Any, x: Tensor, weight: Tensor, bias: Tensor | None, output: torch.Size
) -> LinearModule:
    lone = x.ndim == weight.ndim - 1
    padding, pads, transposed = module.padding, None, kind_of(module) == "conv_transpose"
    if not transposed and module.padding_mode != "zeros":
        padding, pads = 0, list(module._reversed_padding_repeated_twice)

    def pad(u: Tensor) -> Tensor:
        u = _batched(u) if lone else u
        return u if pads is None else F.pad(u, pads, mode=module.padding_mode)

    def restore(r: Tensor) -> Tensor:
        if pads is not None:
            return _adjoint(pad, x, r)
        return _first(r) if lone else r

    padded = pad(x)
    extra = _output_padding(module, x, output) if transposed else 0
    geometry = conv_map(
        type(module).__name__, padded, weight, module.stride, padding, module.dilation,
        module.groups, transposed, extra,
    )  # fmt: skip
    return LinearModule(geometry, padded, weight, bias, restore, pad)


def _output_padding(module: Any, x: Tensor, output: torch.Size) -> tuple[int, ...]:
    """What the output is longer by: a call may choose it by `output_size`."""
    spatial = len(module.kernel_size)
    return tuple(
        output[axis - spatial]
        - (x.shape[axis - spatial] - 1) * module.stride[axis]
        + 2 * module.padding[axis]
        - module.dilation[axis] * (module.kernel_size[axis] - 1)
        - 1
        for axis in range(spatial)
    )


def _adjoint(function: Callable[[Tensor], Tensor], like: Tensor, s: Tensor) -> Tensor:
    """The adjoint of a linear function at `s`."""
    graphed = torch.is_grad_enabled()
    with torch.enable_grad():
        u = torch.zeros_like(like, dtype=s.dtype, requires_grad=True)
        (found,) = torch.autograd.grad(function(u), u, s, create_graph=graphed)
    return found


def _same(u: Tensor) -> Tensor:
    return u


def _first(u: Tensor) -> Tensor:
    return u[0]


def _batched(u: Tensor) -> Tensor:
    return u.unsqueeze(0)


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value
