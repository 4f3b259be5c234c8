"""Layers' relevance as operators of PyTorch, for `torch.compile`: one operator for each layer kind.

`relprop.functional` calls them while it is being compiled, where the rule travels as a string; the
tensors among its parameters travel beside it.  Outside of compiled functions nothing goes through
an operator, which would cost more than a small layer.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from relprop import rules
from relprop.bounds import Bound
from relprop.errors import InputError
from relprop.maps import Conv, Dense, LinearMap

__all__ = [
    "conv_relevance",
    "decoded",
    "encoded",
    "layer_relevance",
    "linear_relevance",
    "result_type",
]

_FIELDS: dict[str, tuple[str, ...]] = {
    "Epsilon": ("epsilon", "zero_params"),
    "ZPlus": ("epsilon", "zero_params"),
    "AlphaBeta": ("epsilon", "zero_params", "alpha", "beta", "conserve"),
    "Gamma": ("epsilon", "zero_params", "gamma"),
    "ZBox": ("epsilon", "zero_params", "low", "high"),
    "WSquare": ("epsilon", "zero_params"),
    "Flat": ("epsilon", "zero_params"),
    "Joint": ("epsilon", "zero_params", "pixel", "state", "channels"),
}
"""What each rule is made of, in words that a compiler follows."""


def encoded(rule: Any) -> tuple[str, list[Tensor]]:
    """A rule as a string, and the tensors that it refers to by number.

    Raises:
        InputError: a rule that is none of relprop's own.
    """
    tensors: list[Tensor] = []
    return _text(rule, tensors), tensors


def _text(value: Any, tensors: list[Tensor]) -> str:
    if isinstance(value, Bound):
        tensors.append(value.tensor)
        return f"Tensor({len(tensors) - 1})"
    if isinstance(value, rules.Rule):
        name = type(value).__name__
        if name not in _FIELDS:
            raise InputError(f"a compiled function takes relprop's own linear rules, got {name}")
        parts = [f"{key}={_text(getattr(value, key), tensors)}" for key in _FIELDS[name]]
        return f"{name}({', '.join(parts)})"
    if isinstance(value, tuple):
        return "(" + "".join(f"{_text(item, tensors)}, " for item in value) + ")"
    return repr(value)


def decoded(text: str, tensors: Sequence[Tensor] = ()) -> rules.LinearRule:
    """The rule that `encoded` gave this string.

    Raises:
        InputError: the string is none of its.
    """
    try:
        rule = _value(ast.parse(text, mode="eval").body, tensors)
    except (SyntaxError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"rule {text!r}: {error}; expected what `encoded` gives") from error
    if not isinstance(rule, rules.LinearRule):
        raise InputError(f"rule {text!r}; expected a linear rule as `encoded` gives it")
    return rule


def _value(node: ast.expr, tensors: Sequence[Tensor]) -> Any:
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    assert isinstance(node.func, ast.Name)
    if node.func.id == "Tensor":
        return tensors[ast.literal_eval(node.args[0])]
    fields = {key.arg: _value(key.value, tensors) for key in node.keywords if key.arg}
    if set(fields) != set(_FIELDS[node.func.id]):
        raise ValueError(f"{node.func.id} has the parameters {sorted(fields)}")
    return getattr(rules, node.func.id)(**fields)


@torch.library.custom_op("relprop::linear_relevance", mutates_args=())
def linear_relevance(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relevance: Tensor,
    rule: str,
    tensors: Sequence[Tensor],
    backend: str,
) -> Tensor:
    """As `relprop.functional.linear_relevance`, the rule as `encoded` gives it."""
    return _evaluated(Dense(), (x, weight, bias, relevance), rule, tensors, backend)


@torch.library.custom_op("relprop::conv_relevance", mutates_args=())
def conv_relevance(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relevance: Tensor,
    rule: str,
    tensors: Sequence[Tensor],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    transposed: bool,
    output_padding: Sequence[int],
    backend: str,
) -> Tensor:
    """As `relprop.functional.conv_relevance`; the padding before and after each axis in turn."""
    pads = tuple(zip(padding[::2], padding[1::2], strict=True))
    extra = tuple(output_padding) if transposed else ()
    conv = Conv(tuple(stride), pads, tuple(dilation), groups, transposed, extra)
    return _evaluated(conv, (x, weight, bias, relevance), rule, tensors, backend)


@linear_relevance.register_fake
@conv_relevance.register_fake
def _like_input(x: Tensor, weight: Tensor, bias: Tensor | None, *_: Any) -> Tensor:
    """What an operator returns, without its values."""
    return x.new_empty(x.shape, dtype=result_type(x, weight, bias))


def _evaluated(
    linear_map: LinearMap,
    operands: tuple[Tensor, Tensor, Tensor | None, Tensor],
    rule: str,
    tensors: Sequence[Tensor],
    backend: str,
) -> Tensor:
    from relprop import functional

    own = decoded(rule, tensors)
    where = "compiled function"
    return functional.layer_relevance(where, linear_map, *operands, own, backend).contiguous()


def result_type(x: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype:
    """Of a layer's relevance: float64 if an operand is, else float32."""
    operands = (x, weight) if bias is None else (x, weight, bias)
    wide = any(operand.dtype is torch.float64 for operand in operands)
    return torch.float64 if wide else torch.float32


def layer_relevance(
    linear_map: LinearMap,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relevance: Tensor,
    rule: rules.LinearRule,
    backend: str,
) -> Tensor:
    """The operator of a layer's kind, on tensors that fit it; the result is contiguous."""
    text, tensors = encoded(rule)
    x, weight, relevance = x.detach(), weight.detach(), relevance.detach()
    bias = None if bias is None else bias.detach()
    if isinstance(linear_map, Dense):
        return linear_relevance(x, weight, bias, relevance, text, tensors, backend)
    assert isinstance(linear_map, Conv)
    spatial = linear_map.spatial
    return conv_relevance(
        x, weight, bias, relevance, text, tensors, list(linear_map.stride),
        [size for pair in linear_map.padding for size in pair], list(linear_map.dilation),
        linear_map.groups, linear_map.transposed,
        list(linear_map.output_padding) or [0] * spatial, backend,
    )  # fmt: skip
