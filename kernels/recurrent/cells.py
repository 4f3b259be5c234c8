"""One step of each kind of cell, with what the relevance recurrence needs of it."""

from __future__ import annotations

import triton
import triton.language as tl

from relprop.kernels.epilogues import stabilized
from relprop.kernels.modifiers import relu

__all__ = ["cell"]


@triton.jit
def tanh(u):
    """To 2 units in the last place, near 0 too, where 1 - 2 / (1 + exp(2 u)) is not."""
    square = u * u
    near = -0.005883633624762297
    near = near * square + 0.020785512402653694
    near = near * square - 0.05378051474690437
    near = near * square + 0.13331881165504456
    near = near * square - 0.33333295583724976
    near = u + u * square * near
    far = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * tl.abs(u)))
    return tl.where(tl.abs(u) < 0.6, near, tl.where(u < 0, -far, far))


@triton.jit
def cell(p, own, state, epsilon, CELL: tl.constexpr):
    """New state, h, alpha, beta, mix of a step.

    p are four pre-activations in the order of PyTorch's weights: i, f, g, o of an LSTM (CELL
    "lstm", or "r_lstm": ReLU candidate, h = o c), r, z and the input's part of n of a GRU, whose
    other part of n is `own`, one of an RNN.  `state` is c, otherwise h.
    """
    if CELL == "lstm" or CELL == "r_lstm":
        if CELL == "lstm":
            g = tanh(p[2])
        else:
            g = relu(p[2])
        kept = tl.sigmoid(p[1]) * state
        made = tl.sigmoid(p[0]) * g
        new = kept + made
        if CELL == "lstm":
            h = tl.sigmoid(p[3]) * tanh(new)
        else:
            h = tl.sigmoid(p[3]) * new
        divisor = stabilized(new, epsilon)
        return new, h, kept / divisor, made / (divisor * stabilized(p[2], epsilon)), kept
    elif CELL == "gru":
        mix = tl.sigmoid(p[0])
        z = tl.sigmoid(p[1])
        candidate = p[2] + mix * own
        kept = z * state
        made = (1.0 - z) * tanh(candidate)
        new = kept + made
        divisor = stabilized(new, epsilon)
        return new, new, kept / divisor, made / (divisor * stabilized(candidate, epsilon)), mix
    else:
        if CELL == "rnn_tanh":
            new = tanh(p[0])
        else:
            new = relu(p[0])
        return new, new, new, 1.0 / stabilized(p[0], epsilon), new
