"""An LSTM's forward pass on a CPU that keeps what the relevance pass needs as it goes.

The library's pass and a second one for the gates would be twice the products, and gates of all
steps at once are more memory than a cache holds: here a step's gates live in one small buffer, and
alpha and beta (see `reduced`) are all that is kept of them.  The input's products
are taken for a block of steps at once, which is twice as fast as one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relprop.backends.aten.recurrent.reduced import Scan
from relprop.graph.recurrent import Direction
from relprop.operations.arithmetic import stabilized

__all__ = ["fused_scan"]

BLOCK = 2**22
"""Numbers in a block of input products."""


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
    steps, batch, _ = x.shape
    hidden = h0.shape[-1]
    h, c = (x.new_empty(steps + 1, batch, hidden) for _ in range(2))
    alpha, beta = (x.new_empty(steps, batch, hidden) for _ in range(2))
    h[0], c[0] = h0, c0
    bias = None if w.b_ih is None or w.b_hh is None else w.b_ih + w.b_hh
    turned = w.w_hh.t()
    gates = x.new_empty(batch, 4 * hidden)
    i, f, g, o = gates.chunk(4, -1)
    block = max(1, BLOCK // max(1, 4 * hidden * batch))
    products = x.new_empty(0)
    for t in range(steps):
        if t % block == 0:
            products = torch.nn.functional.linear(x[t : t + block], w.w_ih, bias)
        pre = products[t % block].addmm_(h[t], turned)
        torch.sigmoid(pre, out=gates)
        g_pre = pre.narrow(-1, 2 * hidden, hidden)
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
