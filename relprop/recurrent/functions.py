"""Relevance of one recurrent layer from tensors; `relprop.functional` hands these out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from relprop.errors import InputError
from relprop.recurrent.operands import Operands, Relevance
from relprop.rules import Recurrent, Rule

__all__ = ["gru_relevance", "lstm_relevance", "rnn_relevance"]

SIGNAL_TAKES_ALL = Recurrent()
"""The default rule."""


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
