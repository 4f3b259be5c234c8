"""Relevance of one recurrent layer from tensors; `relprop.functional` hands these out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.backends.checks import check_tensors
from relprop.errors import InputError
from relprop.recurrent import aten
from relprop.recurrent.layout import CELLED, Direction, Layout, directions_of, recurrent_rule
from relprop.recurrent.oracle import relevance_of_samples
from relprop.rules import Recurrent, Rule

__all__ = ["gru_relevance", "lstm_relevance", "rnn_relevance"]

Relevance = Tensor | Sequence[Tensor | None]

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
    call = _Call("lstm_relevance", kind, x, weights, relevance, rule, batch_first, backend)
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
    call = _Call("gru_relevance", "gru", x, weights, relevance, rule, batch_first, backend)
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
    call = _Call("rnn_relevance", kind, x, weights, relevance, rule, batch_first, backend)
    r_x, r_h0, _ = call.evaluate(h0, None, lengths)
    return r_x if h0 is None else (r_x, r_h0)


class _Call:
    """The checked operands of one call, in one number format."""

    def __init__(
        self,
        where: str,
        kind: str,
        x: Tensor,
        weights: Sequence[Tensor],
        relevance: Relevance,
        rule: Rule,
        batch_first: bool,
        backend: str,
    ) -> None:
        self.where, self.backend = where, backend
        self.rule = recurrent_rule(rule, kind, where)
        if backend not in ("aten", "reference", "triton"):
            raise InputError(
                f"{where}: backend is {backend!r}; expected 'aten', 'reference' or 'triton'"
            )
        parts = [relevance] if isinstance(relevance, Tensor) else list(relevance)
        allowed = 3 if kind in CELLED else 2
        if not 1 <= len(parts) <= allowed or all(part is None for part in parts):
            raise InputError(
                f"{where}: relevance has {len(parts)} parts; expected a tensor, or relevance of "
                "the output, h_n" + (", c_n" if kind in CELLED else "") + ", one at least not None"
            )
        self.parts = [*parts, *[None] * (3 - len(parts))]
        named = {f"weights[{i}]": w for i, w in enumerate(weights)}
        given = {f"relevance[{i}]": r for i, r in enumerate(self.parts) if r is not None}
        check_tensors(where, x=x, **named, **given)
        wide = any(t.dtype is torch.float64 for t in (x, *weights))
        self.dtype = torch.float64 if wide else torch.float32
        self.alone = x.ndim == 2
        if x.ndim not in (2, 3) or 0 in x.shape:
            raise InputError(
                f"{where}: x is {list(x.shape)}; expected [T, batch, E] "
                "([batch, T, E] with batch_first), with one step and one sample at least"
            )
        self.batch_axis = 0 if batch_first else 1
        self.x = x.unsqueeze(self.batch_axis) if self.alone else x
        self.directions = directions_of(weights, kind, where)
        self.layout = self._layout(kind, batch_first)

    def _layout(self, kind: str, batch_first: bool) -> Layout:
        """Number of layers and directions, from the weights and the width of the relevance."""
        count, out = len(self.directions), self.directions[0].w_hh.shape[1]
        features = self.x.shape[-1]
        if self.directions[0].w_ih.shape[1] != features:
            raise InputError(
                f"{self.where}: x has {features} features; the first of weights takes "
                f"{self.directions[0].w_ih.shape[1]}"
            )
        both = count % 2 == 0 and self.directions[1].w_ih.shape[1] == features
        r_out = self.parts[0]
        if both and r_out is not None and count > 1:
            both = r_out.shape[-1] == 2 * out
        elif both and features in (out, 2 * out):
            deeper = self.directions[-1].w_ih.shape[1]
            both = count > 2 and deeper == 2 * out
        ways = 2 if both else 1
        layout = Layout(kind, count // ways, both, batch_first)
        for index, direction in enumerate(self.directions):
            expected = features if index < ways else ways * out
            if direction.w_ih.shape[1] != expected or direction.w_hh.shape[1] != out:
                raise InputError(
                    f"{self.where}: weights of direction {index} take "
                    f"{direction.w_ih.shape[1]} inputs; expected {expected} in a stack of "
                    f"{layout.layers} layers, {ways} direction(s) each"
                )
        return layout

    def evaluate(
        self, h0: Tensor | None, c0: Tensor | None, lengths: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Relevance of x, h_0 and c_0, shaped as they were given."""
        batch, steps = self.x.shape[self.batch_axis], self.x.shape[1 - self.batch_axis]
        first = self.directions[0]
        states, out = len(self.directions), first.w_hh.shape[1]
        hidden = out if first.w_hr is None else first.w_hr.shape[1]
        h = self._state("h0", h0, (states, batch, out))
        c = self._state("c0", c0, (states, batch, hidden)) if self.layout.kind in CELLED else None
        width = self.layout.ways * out
        shape = (batch, steps, width) if self.layout.batch_first else (steps, batch, width)
        r = [
            self._part("relevance", self.parts[0], shape),
            self._part("relevance of h_n", self.parts[1], (states, batch, out)),
            self._part("relevance of c_n", self.parts[2], (states, batch, hidden)),
        ]
        valid = checked_lengths(self.where, lengths, batch, steps, self.x.device)
        x = self.x.to(self.dtype)
        weights = [direction.to(x) for direction in self.directions]
        if self.backend == "triton":
            self._check_served()
        found = _relevance(
            self.where, self.backend, self.layout, weights, x, h, c, r, self.rule, valid
        )
        if not self.alone:
            return found
        r_x, r_h, r_c = found
        return r_x.squeeze(self.batch_axis), r_h[:, 0], None if r_c is None else r_c[:, 0]

    def _check_served(self) -> None:
        """Refuse what no kernel serves."""
        from relprop.backends import get, triton_recurrent

        get("triton")
        reason = triton_recurrent.limits_of(self.rule, self.directions[0].w_hr is not None)
        if reason is not None:
            raise InputError(f"{self.where}: {reason}")

    def _state(self, name: str, state: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        if state is None:
            return self.x.new_zeros(shape, dtype=self.dtype)
        check_tensors(self.where, **{name: state})
        return self._shaped(name, state, shape)

    def _part(self, name: str, r: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
        return None if r is None else self._shaped(name, r, shape)

    def _shaped(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        expected = list(shape)
        if self.alone:
            axis = self.batch_axis if name == "relevance" else 1
            expected.pop(axis)
            tensor = tensor.unsqueeze(axis) if tensor.ndim == 2 else tensor
        if tuple(tensor.shape) != shape:
            raise InputError(f"{self.where}: {name} is {list(tensor.shape)}; expected {expected}")
        return tensor.detach().to(self.dtype)


def _relevance(
    where: str,
    backend: str,
    layout: Layout,
    weights: list[Direction],
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    r: list[Tensor | None],
    rule: Recurrent,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    rows = [None if part is None else part.unsqueeze(0) for part in r]
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        if backend == "reference":
            r_x, r_h, r_c = relevance_of_samples(layout, weights, x, h0, c0, rows, rule, lengths)
        elif backend == "triton":
            from relprop.backends import triton_recurrent

            _, kept = triton_recurrent.forward(
                layout, weights, x, h0, c0, rule, lengths, where=where
            )
            r_x, r_h, r_c = triton_recurrent.relevance(kept, *rows)
        else:
            _, saved = aten.forward(layout, weights, x, h0, c0, rule, lengths)
            r_x, r_h, r_c = aten.relevance(saved, *rows)
    return r_x[0], r_h[0], None if r_c is None else r_c[0]


def checked_lengths(
    where: str, lengths: Any, batch: int, steps: int, device: torch.device
) -> Tensor | None:
    """Lengths as an integer tensor `[batch]`, or None.

    Raises:
        InputError: not one integer from 1 to T a sample.
    """
    if lengths is None:
        return None
    tensor = torch.as_tensor(lengths, device=device)
    if tensor.is_floating_point() or tensor.dtype is torch.bool or tuple(tensor.shape) != (batch,):
        raise InputError(
            f"{where}: lengths is {tensor.dtype} of shape {list(tensor.shape)}; expected one "
            f"integer a sample, [{batch}]"
        )
    low, high = int(tensor.min()), int(tensor.max())
    if low < 1 or high > steps:
        raise InputError(
            f"{where}: lengths run from {low} to {high}; expected 1 to {steps}, the steps of the "
            "input" + ("; leave out empty sequences" if low < 1 else "")
        )
    return tensor.long()
