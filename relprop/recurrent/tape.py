"""The forward pass of one direction of one layer: the library's hidden states, gates recovered.

Everything runs over time first, `[T, batch, ·]`.  The library computes the hidden states of all
steps; the gates follow from one product over [x_t, h_{t-1}], an LSTM's cells from a scan.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relprop.recurrent.layout import Direction

__all__ = ["Tape", "run"]

_LIBRARY = {"gru": torch.gru, "rnn_tanh": torch.rnn_tanh, "rnn_relu": torch.rnn_relu}


@dataclass(frozen=True)
class Tape:
    """What happened at every step.

    Attributes:
        kind: of the layer.
        weights: of the direction.
        x: `[T, batch, E]`.
        h_before, h: `[T, batch, P]`.
        pre: pre-activations in the order of the weights' rows, `[T, batch, gates * H]`; a GRU's
            last third is that of the candidate.
        c_before, c: cells, an LSTM's.
    """

    kind: str
    weights: Direction
    x: Tensor
    h_before: Tensor
    h: Tensor
    pre: Tensor
    c_before: Tensor | None = None
    c: Tensor | None = None

    @property
    def hidden(self) -> int:
        """Number of hidden units."""
        return self.weights.w_ih.shape[0] // {"lstm": 4, "gru": 3}.get(self.kind, 1)


def run(kind: str, w: Direction, x: Tensor, h0: Tensor, c0: Tensor | None) -> Tape:
    """Run one direction.

    Args:
        kind: of the layer.
        w: its weights, in the number format of x.
        x: `[T, batch, E]`.
        h0: `[batch, P]`.
        c0: `[batch, H]`, an LSTM's.
    """
    biased, flat = w.b_ih is not None, w.tensors()
    if kind == "lstm":
        assert c0 is not None
        states = [h0.unsqueeze(0), c0.unsqueeze(0)]
        h = torch.lstm(x, states, flat, biased, 1, 0.0, False, False, False)[0]
    else:
        h = _LIBRARY[kind](x, h0.unsqueeze(0), flat, biased, 1, 0.0, False, False, False)[0]
    h_before = torch.cat([h0.unsqueeze(0), h[:-1]])
    if kind == "gru":
        return Tape(kind, w, x, h_before, h, _gru_gates(w, x, h_before))
    pre = _product(x, w.w_ih, _joined(w.b_ih, w.b_hh))
    pre.flatten(0, 1).addmm_(h_before.flatten(0, 1), w.w_hh.t())
    if kind != "lstm":
        return Tape(kind, w, x, h_before, h, pre)
    assert c0 is not None
    c = _cells(pre, c0)
    return Tape(kind, w, x, h_before, h, pre, torch.cat([c0.unsqueeze(0), c[:-1]]), c)


def _product(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x, w, b)


def _joined(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a + b


def _cells(pre: Tensor, c0: Tensor) -> Tensor:
    """c_t = f_t c_{t-1} + i_t g_t, for all steps."""
    i, f, g, _ = pre.chunk(4, -1)
    forget, c = torch.sigmoid(f), torch.sigmoid(i).mul_(torch.tanh(g))
    before = c0
    for t in range(len(c)):
        c[t].addcmul_(forget[t], before)
        before = c[t]
    return c


def _gru_gates(w: Direction, x: Tensor, h_before: Tensor) -> Tensor:
    """Pre-activations of r and z, and of the candidate with the reset gate at work in it."""
    pre = _product(x, w.w_ih, w.b_ih)
    recurrent = _product(h_before, w.w_hh, w.b_hh)
    hidden = pre.shape[-1] // 3
    gates, candidate = pre[..., : 2 * hidden], pre[..., 2 * hidden :]
    gates.add_(recurrent[..., : 2 * hidden])
    reset = torch.sigmoid(gates[..., :hidden])
    candidate.addcmul_(reset, recurrent[..., 2 * hidden :])
    return pre
