"""An LSTM's forward pass on a CPU that keeps what the relevance pass needs as it goes.

The library's pass and a second one for the gates would be twice the products, and gates of all
steps at once are more memory than a cache holds: here a step's gates live in one small buffer, and
alpha and beta (see `relprop.recurrent.reduced`) are all that is kept of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relprop.backends.pointwise import stabilized
from relprop.recurrent.layout import Direction
from relprop.recurrent.reduced import Scan

__all__ = ["fused_scan"]


def fused_scan(
    w: Direction, x: Tensor, h0: Tensor, c0: Tensor, epsilon: float
) -> tuple[Scan, Tensor, Tensor]:
    """The reduced recurrence of one direction, its hidden states and cells `[T, batch, H]`.

    Args:
        w: the weights, without a projection.
        x: `[T, batch, E]`.
        h0, c0: `[batch, H]`.
        epsilon: the stabilizer, above 0.
    """
    steps, batch, features = x.shape
    hidden = h0.shape[-1]
    h, c = (x.new_empty(steps + 1, batch, hidden) for _ in range(2))
    alpha, beta = (x.new_empty(steps, batch, hidden) for _ in range(2))
    h[0], c[0] = h0, c0
    joint = x.new_empty(batch, features + hidden)
    weight = torch.cat([w.w_ih.t(), w.w_hh.t()])
    bias = None if w.b_ih is None or w.b_hh is None else w.b_ih + w.b_hh
    pre, gates = (x.new_empty(batch, 4 * hidden) for _ in range(2))
    i, f, g, o = gates.chunk(4, -1)
    g_pre = pre.chunk(4, -1)[2]
    for t in range(steps):
        joint[:, :features], joint[:, features:] = x[t], h[t]
        torch.mm(joint, weight, out=pre)
        if bias is not None:
            pre.add_(bias)
        # 1 / (1 + exp(-z)) takes half the time of torch.sigmoid here
        torch.neg(pre, out=gates).exp_().add_(1).reciprocal_()
        torch.tanh(g_pre, out=g)
        kept, made = torch.mul(f, c[t], out=alpha[t]), torch.mul(i, g, out=beta[t])
        cell = torch.add(kept, made, out=c[t + 1])
        divisor = stabilized(cell, epsilon)
        kept.div_(divisor)
        made.div_(divisor.mul_(stabilized(g_pre, epsilon)))
        torch.mul(torch.tanh(cell, out=h[t + 1]), o, out=h[t + 1])
    rows = slice(2 * hidden, 3 * hidden)
    scan = Scan(
        alpha, beta, None, h[1:], None, None, w.w_hh[rows], w.w_ih[rows], x, (h0, c0), False
    )
    return scan, h[1:], c[1:]
