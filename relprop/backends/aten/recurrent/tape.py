"""The forward pass of one direction of one layer: the library's hidden states, gates recovered.

Everything runs over time first, `[T, batch, ·]`.  The library computes the hidden states of all
steps; the gates follow from one product over [x_t, h_{t-1}], an LSTM's cells from a scan.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.graph.recurrent import CELLED, GATES, Direction

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
        gates: an LSTM's i, f, g, o, `[T, batch, 4H]`.
        c_before, c: cells, an LSTM's.
    """

    kind: str
    weights: Direction
    x: Tensor
    h_before: Tensor
    h: Tensor
    pre: Tensor
    gates: Tensor | None = None
    c_before: Tensor | None = None
    c: Tensor | None = None

    def signal(self) -> Tensor:
        """What an LSTM's output gate multiplies: tanh(c), or c."""
        assert self.c is not None
        return torch.tanh(self.c) if self.kind == "lstm" else self.c

    @property
    def hidden(self) -> int:
        """Number of hidden units."""
        return self.weights.w_ih.shape[0] // GATES[self.kind]


def run(kind: str, w: Direction, x: Tensor, h0: Tensor, c0: Tensor | None) -> Tape:
    """Run one direction.

    Args:
        kind: of the layer.
        w: its weights, in the number format of x.
        x: `[T, batch, E]`.
        h0: `[batch, P]`.
        c0: `[batch, H]`, an LSTM's.
    """
    if kind in CELLED:
        assert c0 is not None
        return _lstm(w, x, h0, c0) if kind == "lstm" else _r_lstm(w, x, h0, c0)
    states = h0.unsqueeze(0)
    biased = w.b_ih is not None
    h = _LIBRARY[kind](x, states, w.tensors(), biased, 1, 0.0, False, False, False)[0]
    h_before = torch.cat([states, h[:-1]])
    gates = _gru_gates if kind == "gru" else _pre_activations
    return Tape(kind, w, x, h_before, h, gates(w, x, h_before))


def _lstm(w: Direction, x: Tensor, h0: Tensor, c0: Tensor) -> Tape:
    """An LSTM's hidden states from the library, gates from one product, cells from a scan."""
    states = [h0.unsqueeze(0), c0.unsqueeze(0)]
    biased = w.b_ih is not None
    h = torch.lstm(x, states, w.tensors(), biased, 1, 0.0, False, False, False)[0]
    h_before = torch.cat([states[0], h[:-1]])
    pre = _pre_activations(w, x, h_before)
    gates = torch.sigmoid(pre)
    i, f, g, _ = gates.chunk(4, -1)
    torch.tanh(pre.chunk(4, -1)[2], out=g)
    c, before = i * g, c0
    for t in range(len(c)):
        c[t].addcmul_(f[t], before)
        before = c[t]
    return Tape("lstm", w, x, h_before, h, pre, gates, torch.cat([states[1], c[:-1]]), c)


def _r_lstm(w: Direction, x: Tensor, h0: Tensor, c0: Tensor) -> Tape:
    """A ReLU candidate and h = o * c: no library has it, so one product a step."""
    pre = F.linear(x, w.w_ih, _joined(w.b_ih, w.b_hh))
    h, c, gates = [h0], [c0], torch.empty_like(pre)
    for t, row in enumerate(pre):
        row.addmm_(h[-1], w.w_hh.t())
        torch.sigmoid(row, out=gates[t])
        i, f, g, o = gates[t].chunk(4, -1)
        torch.clamp(row.chunk(4, -1)[2], min=0, out=g)
        c.append(f * c[-1] + i * g)
        h.append(o * c[-1])
    states, cells = torch.stack(h), torch.stack(c)
    return Tape("r_lstm", w, x, states[:-1], states[1:], pre, gates, cells[:-1], cells[1:])


def _pre_activations(w: Direction, x: Tensor, h_before: Tensor) -> Tensor:
    pre = F.linear(x, w.w_ih, _joined(w.b_ih, w.b_hh))
    pre.flatten(0, 1).addmm_(h_before.flatten(0, 1), w.w_hh.t())
    return pre


def _joined(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a + b


def _gru_gates(w: Direction, x: Tensor, h_before: Tensor) -> Tensor:
    """Pre-activations of r and z, and of the candidate with the reset gate at work in it."""
    pre = F.linear(x, w.w_ih, w.b_ih)
    recurrent = F.linear(h_before, w.w_hh, w.b_hh)
    hidden = pre.shape[-1] // 3
    gates, candidate = pre[..., : 2 * hidden], pre[..., 2 * hidden :]
    gates.add_(recurrent[..., : 2 * hidden])
    reset = torch.sigmoid(gates[..., :hidden])
    candidate.addcmul_(reset, recurrent[..., 2 * hidden :])
    return pre
