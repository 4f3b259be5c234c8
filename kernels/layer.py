"""The three passes of a linear layer: `contraction`, `quotient`, `adjoint`.

Everything is a plain tensor; K targets are a leading axis of relevance that saved tensors lack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from relprop.errors import InputError
from relprop.graph.maps import Conv, Dense, LinearMap
from relprop.kernels.conv import launch as conv
from relprop.kernels.dense import launch as dense
from relprop.kernels.layouts import ordered_empty, quotient_empty
from relprop.kernels.operands import AdjointCall, ContractionCall, Lower, Weight
from relprop.kernels.pointwise import quotients
from relprop.kernels.program import Program, compile_rule
from relprop.kernels.tiling import Choice
from relprop.kernels.weights import prepare_weights
from relprop.rules import Epsilon, LinearRule

__all__ = ["Contraction", "adjoint", "below", "contraction", "quotient"]


@dataclass(frozen=True)
class Contraction:
    """What one layer's contraction leaves behind.

    Attributes:
        map: geometry of the layer.
        program: its rule.
        a: its input.
        weight: its modified weights.
        z: the denominators, `[saved, batch, ...]`, float32; None if not asked for.
        y: the layer's output through the activation, float32; None inside a recurrent layer.
    """

    map: LinearMap
    program: Program
    a: Tensor
    weight: Weight
    z: Tensor | None
    y: Tensor | None


def contraction(
    linear_map: LinearMap,
    rule: LinearRule,
    a: Tensor,
    w: Tensor,
    b: Tensor | None,
    *,
    nonnegative: bool = False,
    precision: str = "highest",
    save: bool = True,
    activation: str | None = None,
    rectified: bool = False,
    weight: Weight | None = None,
    z: Tensor | None = None,
    tile: Choice | None = None,
) -> Contraction:
    """A layer's output and the denominators of its rule.

    Args:
        linear_map: a `Dense` or a `Conv`.
        rule: the rule.
        a: the input, `[batch, ...]`.
        w: the weight.
        b: the bias over output features, or None.
        nonnegative: whether `a` is known to be >= 0.
        precision: of float32 products: "highest" (IEEE), "high" (3xTF32), "medium" (bfloat16).
        save: whether to write the denominators.
        activation: of the output: None, "relu", "sigmoid", "silu" or "gelu".
        rectified: whether no relevance arrives where the output's relu is 0: there the denominator
            may be 0 too, so that output and denominator can be one tensor.
        weight: what `prepare_weights` returned for this layer before.
        z: denominators found before, of a rule whose denominators do not depend on the input.
        tile: block sizes, or "library" for its product and one pointwise kernel; None chooses.

    Raises:
        InputError: a type, precision or rule that no kernel takes.
    """
    program = compile_rule(rule, nonnegative)
    _check(a, w, b)
    if weight is None:
        weight = prepare_weights(program, w, a, precision=precision)
    shape = _output_shape(linear_map, a, w)
    joined = program.own_input and program.output is not None and save
    known = z
    one = joined and _is_denominator(program, b)
    same = one and activation is None
    over = one and activation == "relu" and rectified
    z = _save(linear_map, program, a, shape) if save and known is None and not over else None
    y = _empty(linear_map, (), shape, a) if joined and not same else None
    if z is not None or over:
        source = a if program.own_input else _first(linear_map, a)
        _launch(
            ContractionCall(
                linear_map, program, source, weight, b, z, y,
                program.output if y is not None else None, activation, precision, tile,
            )
        )  # fmt: skip
    if same:
        assert z is not None
        y = z[0]
    elif over:
        assert y is not None
        z = y[None]
    if y is None:
        plain = compile_rule(Epsilon())
        y = _empty(linear_map, (), shape, a)
        own = prepare_weights(plain, w, a, precision=precision)
        _launch(
            ContractionCall(
                linear_map, plain, a, own, b, None, y, "first", activation, precision, tile
            )
        )
    return Contraction(linear_map, program, a, weight, z if known is None else known, y)


def quotient(saved: Contraction, r: Tensor) -> Tensor:
    """Quotients `[1 or 2, targets, batch, ...]` of relevance `[targets, batch, ...]`."""
    if saved.z is None:
        raise InputError("quotient: the contraction saved no denominators; call it with save=True")
    return quotients(saved.program, saved.z, r, saved.map.feature_axis)


def adjoint(
    saved: Contraction,
    s: Tensor,
    *,
    lower: Lower | None = None,
    precision: str = "highest",
    tile: Choice | None = None,
) -> Tensor:
    """Relevance of a layer's input, or the quotients of the layer below.

    Args:
        saved: the layer's contraction.
        s: its quotients, `[1 or 2, targets, batch, ...]`.
        lower: the layer (`below`) whose output, elementwise activations apart, is this layer's
            input and has no other consumer: its quotient is taken in the epilogue.
        precision: of the products.
        tile: block sizes, or "library" for its product and one pointwise kernel; None chooses.

    Returns:
        `[targets, *a.shape]`, float32; with `lower`, `[1 or 2, targets, *a.shape]`.
    """
    a, targets = saved.a, s.shape[1]
    parts = 1 if lower is None else lower.program.parts
    if isinstance(saved.map, Conv):
        axis = saved.map.feature_axis if lower is None else lower.feature_axis
        out = quotient_empty(parts, targets, a.shape, a, axis)
    else:
        sizes = (targets, *a.shape[:-1], parts, a.shape[-1])
        out = a.new_empty(sizes, dtype=torch.float32).movedim(-2, 0)
    call = AdjointCall(
        saved.map, saved.program, s.flatten(1, 2), a, saved.weight.of(saved.program.adjoint),
        out.flatten(1, 2), lower, precision, tile,
    )  # fmt: skip
    (conv if isinstance(saved.map, Conv) else dense).propagate(call)
    return out if lower is not None else out[0]


def below(lower: Contraction, shape: Sequence[int]) -> Lower:
    """A layer as the one whose quotient the operation above takes in its epilogue.

    Args:
        lower: the layer's contraction.
        shape: of the input of the operation above, which is the layer's output but for elementwise
            activations.

    Raises:
        InputError: the layer saved no denominator for each element.
    """
    z = lower.z
    if z is not None and not lower.program.own_input and z.dim() == 1 + len(shape):
        z = z.expand(z.shape[0], *shape)
    if z is None or z.shape[1:] != shape:
        raise InputError(
            f"below: the layer below saved {None if z is None else tuple(z.shape)}; expected "
            f"denominators shaped like the input above it, {tuple(shape)}, for every element"
        )
    return Lower(lower.program, z, lower.map.feature_axis)


def _launch(call: ContractionCall) -> None:
    (conv if isinstance(call.map, Conv) else dense).contract(call)


def _check(a: Tensor, w: Tensor, b: Tensor | None) -> None:
    for name, tensor in [("input", a), ("weight", w), ("bias", b)]:
        if tensor is not None and tensor.dtype not in (
            torch.float32,
            torch.bfloat16,
            torch.float16,
        ):
            raise InputError(
                f"Triton kernels take float32, bfloat16 or float16, got a {name} of {tensor.dtype};"
                " use backend='aten' for it"
            )


def _output_shape(linear_map: LinearMap, a: Tensor, w: Tensor) -> tuple[int, ...]:
    if not isinstance(linear_map, (Dense, Conv)):
        raise InputError(f"no kernel for {type(linear_map).__name__}; expected Dense or Conv")
    if isinstance(linear_map, Conv) and a.dim() != linear_map.spatial + 2:
        raise InputError(
            f"a convolution over {linear_map.spatial} axes takes an input of "
            f"{linear_map.spatial + 2}, batch first; got {tuple(a.shape)}"
        )
    return linear_map.output_shape(a.shape, w.shape)


def _empty(
    linear_map: LinearMap, lead: tuple[int, ...], shape: tuple[int, ...], a: Tensor
) -> Tensor:
    """Uninitialised float32: a convolution's in the input's memory order, else contiguous."""
    if isinstance(linear_map, Conv):
        return ordered_empty(lead, shape, a)
    return a.new_empty((*lead, *shape), dtype=torch.float32)


def _save(linear_map: LinearMap, program: Program, a: Tensor, shape: tuple[int, ...]) -> Tensor:
    if not program.own_input:
        shape = (
            (1, *shape[1:]) if isinstance(linear_map, Conv) else (*(1,) * (a.dim() - 1), shape[-1])
        )
    return _empty(linear_map, (program.saved,), shape, a)


def _first(linear_map: LinearMap, a: Tensor) -> Tensor:
    """One sample: all that denominators need which do not depend on the input."""
    return a[:1] if isinstance(linear_map, Conv) else a.reshape(prod(a.shape[:-1]), a.shape[-1])[:1]


def _is_denominator(program: Program, b: Tensor | None) -> bool:
    """Whether the one denominator that is saved is the layer's output itself."""
    plain = program.saved == 1 and program.output == "first"
    return plain and (b is None or program.bias[0].kind == "identity")
