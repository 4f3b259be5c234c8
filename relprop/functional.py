"""Relevance of single layers, from tensors: no model, no plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from relprop.backends import operators
from relprop.engine.recurrent_call import Operands, Relevance
from relprop.errors import InputError
from relprop.graph.checks import check_rule, check_tensors, conv_map
from relprop.graph.maps import Dense, LinearMap
from relprop.rules import LinearRule, Pass, Recurrent, Rule

__all__ = [
    "conv_relevance",
    "gru_relevance",
    "linear_relevance",
    "lstm_relevance",
    "rnn_relevance",
]


SIGNAL_TAKES_ALL = Recurrent()
"""The default rule."""


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


def lstm_relevance(
    x: Tensor,
    weights: Sequence[Tensor],
    relevance: Relevance,
    *,
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    lengths: Any = None,
    rule: Rule = SIGNAL_TAKES_ALL,
    nonlinearity: str = "tanh",
    batch_first: bool = False,
    backend: str = "aten",
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Relevance of the input of `torch.nn.LSTM`: Arras et al. 2017, 2019.

    Args:
        x: `[T, batch, E]`, `[batch, T, E]` with `batch_first`, or `[T, E]` of one sequence.
        weights: as `nn.LSTM._flat_weights`: for each layer, and each direction in it,
            w_ih `[4H, E]`, w_hh `[4H, P]`, then b_ih and b_hh `[4H]` unless the layer has none,
            then w_hr `[P, H]` where it projects (else P = H).  Rows in PyTorch's order i, f, g, o.
        relevance: of the output, `[T, batch, ways * P]` as x is laid out; or a sequence of
            relevance of the output, of h_n `[layers * ways, batch, P]` and of c_n
            `[layers * ways, batch, H]`, None for what has none.
        h0, c0: initial states, shaped like h_n and c_n; zero if not given.
        lengths: valid steps of each sample, `[batch]`, from 1 to T; relevance beyond is exactly 0.
        rule: a `Recurrent`, or a rule of linear maps for the candidate's map.
        nonlinearity: "tanh", or "relu": the candidate is max(., 0) and h = o * c (an R-LSTM).
        batch_first: whether the batch is the first axis of x and of relevance.
        backend: "aten", "reference", the plain loop, or "triton", kernels on a CUDA device, which
            serve `Recurrent("all", epsilon)` with epsilon > 0.

    Returns:
        Relevance shaped like x, detached; with h0 or c0 given the tuple of that, of h_0's and of
        c_0's.  float64 if an operand is float64, else float32.

    Raises:
        InputError: shapes, dtypes, lengths or the rule do not fit.
    """
    given = h0 is not None or c0 is not None
    kind = {"tanh": "lstm", "relu": "r_lstm"}.get(nonlinearity)
    if kind is None:
        raise InputError(
            f"lstm_relevance: nonlinearity is {nonlinearity!r}; expected 'tanh' or 'relu'"
        )
    call = Operands("lstm_relevance", kind, x, weights, relevance, rule, batch_first, backend)
    r_x, r_h0, r_c0 = call.evaluate(h0, c0, lengths)
    assert r_c0 is not None
    return (r_x, r_h0, r_c0) if given else r_x


def gru_relevance(
    x: Tensor,
    weights: Sequence[Tensor],
    relevance: Relevance,
    *,
    h0: Tensor | None = None,
    lengths: Any = None,
    rule: Rule = SIGNAL_TAKES_ALL,
    batch_first: bool = False,
    backend: str = "aten",
) -> Tensor | tuple[Tensor, Tensor]:
    """Relevance of the input of `torch.nn.GRU`, its gates taking none.

    Arguments as in `lstm_relevance`: weights with 3H rows in PyTorch's order r, z, n, relevance of
    the output or of (output, h_n); a rule with gate "all" and no rule of its own.

    Returns:
        Relevance shaped like x; with h0 given the tuple of that and of h_0's.

    Raises:
        InputError: shapes, dtypes, lengths or the rule do not fit.
    """
    call = Operands("gru_relevance", "gru", x, weights, relevance, rule, batch_first, backend)
    r_x, r_h0, _ = call.evaluate(h0, None, lengths)
    return r_x if h0 is None else (r_x, r_h0)


def rnn_relevance(
    x: Tensor,
    weights: Sequence[Tensor],
    relevance: Relevance,
    *,
    nonlinearity: str = "tanh",
    h0: Tensor | None = None,
    lengths: Any = None,
    rule: Rule = SIGNAL_TAKES_ALL,
    batch_first: bool = False,
    backend: str = "aten",
) -> Tensor | tuple[Tensor, Tensor]:
    """Relevance of the input of `torch.nn.RNN`: one linear map on [x_t, h_{t-1}] a step.

    Arguments as in `gru_relevance`, weights with H rows; `nonlinearity` is "tanh" or "relu".

    Returns:
        Relevance shaped like x; with h0 given the tuple of that and of h_0's.

    Raises:
        InputError: shapes, dtypes, lengths or the rule do not fit.
    """
    if nonlinearity not in ("tanh", "relu"):
        raise InputError(
            f"rnn_relevance: nonlinearity is {nonlinearity!r}; expected 'tanh' or 'relu'"
        )
    kind = f"rnn_{nonlinearity}"
    call = Operands("rnn_relevance", kind, x, weights, relevance, rule, batch_first, backend)
    r_x, r_h0, _ = call.evaluate(h0, None, lengths)
    return r_x if h0 is None else (r_x, r_h0)


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
