"""Relevance of single layers, from tensors: no model, no plan."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from relprop import operators
from relprop.backends.checks import check_rule, check_tensors, conv_map
from relprop.errors import InputError
from relprop.maps import Dense, LinearMap
from relprop.recurrent.functions import gru_relevance, lstm_relevance, rnn_relevance
from relprop.rules import LinearRule, Pass, Rule

__all__ = [
    "conv_relevance",
    "gru_relevance",
    "linear_relevance",
    "lstm_relevance",
    "rnn_relevance",
]


def linear_relevance(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relevance: Tensor,
    rule: Rule,
    *,
    backend: str = "aten",
) -> Tensor:
    """Relevance of the input of `torch.nn.functional.linear(x, weight, bias)`.

    Args:
        x: `[..., in]`.
        weight: `[out, in]`.
        bias: `[out]`, or None.
        relevance: of the output, `[..., out]`, in the unit of what is explained.
        rule: a linear rule, or `Pass` where input and output match in shape.
        backend: "aten", "reference" or "triton".

    Returns:
        Shaped like `x`, detached; float64 if an operand is float64, else float32.

    Raises:
        InputError: shapes, dtypes or the rule do not fit.
    """
    where = "linear_relevance"
    check_tensors(where, x=x, weight=weight, bias=bias, relevance=relevance)
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise InputError(
            f"{where}: x is {list(x.shape)} and weight {list(weight.shape)}; "
            "expected x [..., in] and weight [out, in]"
        )
    if x.ndim == 1 and relevance.ndim == 1:
        row = relevance.unsqueeze(0)
        return linear_relevance(x.unsqueeze(0), weight, bias, row, rule, backend=backend)[0]
    return _evaluate(where, Dense(), x, weight, bias, relevance, rule, backend)


def conv_relevance(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relevance: Tensor,
    rule: Rule,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    transposed: bool = False,
    output_padding: int | Sequence[int] = 0,
    backend: str = "aten",
) -> Tensor:
    """Relevance of the input of a convolution in 1, 2 or 3 spatial dimensions.

    Args:
        x: `[batch, in, *spatial]`.
        weight: `[out, in / groups, *kernel]`, transposed `[in, out / groups, *kernel]`; its number
            of axes sets the number of spatial dimensions.
        bias: `[out]`, or None.
        relevance: of the output, shaped like it.
        rule: a linear rule, or `Pass` where input and output match in shape.
        stride, dilation, groups, transposed, output_padding: as in `torch.nn.functional.conv2d`
            and `conv_transpose2d`.
        padding: likewise; also "valid", or "same" for a stride of 1.
        backend: "aten", "reference" or "triton".

    Returns:
        Shaped like `x`, detached; float64 if an operand is float64, else float32.

    Raises:
        InputError: shapes, dtypes, geometry or the rule do not fit.
    """
    where = "conv_relevance"
    check_tensors(where, x=x, weight=weight, bias=bias, relevance=relevance)
    linear_map = conv_map(
        where, x, weight, stride, padding, dilation, groups, transposed, output_padding
    )
    return _evaluate(where, linear_map, x, weight, bias, relevance, rule, backend)


def _evaluate(
    where: str,
    linear_map: LinearMap,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relevance: Tensor,
    rule: Rule,
    backend: str,
) -> Tensor:
    """The relevance, once what the map does not know of is checked."""
    expected = linear_map.output_shape(x.shape, weight.shape)
    if tuple(relevance.shape) != expected:
        raise InputError(
            f"{where}: relevance is {list(relevance.shape)}; "
            f"expected the shape of the output, {list(expected)}"
        )
    features = expected[linear_map.feature_axis]
    if bias is not None and tuple(bias.shape) != (features,):
        raise InputError(f"{where}: bias is {list(bias.shape)}; expected [{features}]")
    if isinstance(rule, Pass):
        dtype = operators.result_type(x, weight, bias)
        return _passed(where, x, relevance).to(dtype, copy=True)
    check_rule(where, rule, linear_map, x.shape)
    assert isinstance(rule, LinearRule)
    return operators.layer_relevance(linear_map, x, weight, bias, relevance, rule, backend, where)


def _passed(where: str, x: Tensor, relevance: Tensor) -> Tensor:
    if relevance.shape != x.shape:
        raise InputError(
            f"{where}: rule Pass needs an output shaped like the input, but the input is "
            f"{list(x.shape)} and the output {list(relevance.shape)}; choose a linear rule"
        )
    return relevance.detach()
