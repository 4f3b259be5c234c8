"""The reduced recurrence: signal takes all, one small product a step, linear in the relevance.

With r the relevance of the state (an LSTM's cell, otherwise the hidden state) and R_t what comes
from above to h_t,

    s_t = beta_t * r_t,   v_t = (mix_t * s_t) W_rec,
    r_t = alpha_{t+1} * r_{t+1} + h_t * v_{t+1} + R_t,   R_x = x * (S W_in)  for all steps at once.

LSTM (Arras et al. 2019): alpha = f c' / st(c), beta = i g / (st(c) st(g^)), W_rec = W_hg.
GRU: alpha = z h' / st(h), beta = (1 - z) n / (st(h) st(n^)), mix = the reset gate, W_rec = W_hn.
RNN: no alpha, beta = 1 / st(pre).

Epsilon = 0 takes the bounded form, which divides by neither c nor h: the same recurrence for the
coefficients q = r / state, with alpha = f (z), beta = i tanh(g^)/g^, and what comes from above
given as a coefficient of h, which o tanh(c) / c turns into one of c.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relprop.backends.aten.recurrent.tape import Tape
from relprop.graph.recurrent import CELLED
from relprop.operations.arithmetic import flush_tiny_, stabilized
from relprop.operations.base import quotient

__all__ = ["Inflow", "Outflow", "Scan", "reduced_relevance", "scan_of"]


@dataclass(frozen=True)
class Scan:
    """What the recurrence needs of the forward pass; tensors over `[T, batch, ·]`.

    Attributes:
        alpha, beta, mix: see above; None is 0, -, 1.
        inner: factor of the recurrent product on its way to the state, None for 1.
        above: factor of what comes from above, None for 1.
        projection: an LSTM's W_hr, and the factor that its product gets.
        w_rec, w_in: rows of the recurrent and of the input weight that relevance goes through.
        x: the input; None where the caller wants coefficients.
        first: the states before the first step, h_0 and (LSTM) c_0.
        bounded: whether relevance is carried as coefficients.
        last: the cells, for relevance of the last ones under the bounded form.
    """

    alpha: Tensor | None
    beta: Tensor
    mix: Tensor | None
    inner: Tensor | None
    above: Tensor | None
    projection: tuple[Tensor, Tensor] | None
    w_rec: Tensor
    w_in: Tensor
    x: Tensor
    first: tuple[Tensor, Tensor | None]
    bounded: bool
    cells: Tensor | None = None


@dataclass(frozen=True)
class Inflow:
    """Relevance that reaches one direction of a layer; coefficients under the bounded form.

    Attributes:
        above: that of h at every step, `[T, K, batch, P]`.
        cells: that of each sample's last cell, `[K, batch, H]`, or None.
        last: each sample's last step `[batch]`; None where it is the last of all.
    """

    above: Tensor
    cells: Tensor | None = None
    last: Tensor | None = None


@dataclass(frozen=True)
class Outflow:
    """Relevance that leaves it: of x `[T, K, batch, E]` (a coefficient under the bounded form),
    of h_0 `[K, batch, P]`, of c_0 `[K, batch, H]` or None."""

    x: Tensor
    h0: Tensor
    c0: Tensor | None


def scan_of(tape: Tape, epsilon: float) -> Scan:
    """The reduced recurrence of a direction under `Recurrent("all", epsilon)`."""
    if tape.kind in CELLED:
        return _lstm(tape, epsilon)
    return _gru(tape, epsilon) if tape.kind == "gru" else _rnn(tape, epsilon)


def _ratio(numerator: Tensor, z: Tensor) -> Tensor:
    """numerator / z where both vanish together with slope 1: tanh(z) / z."""
    return torch.where(z == 0, 1.0, numerator / torch.where(z == 0, 1.0, z))


def _lstm(tape: Tape, epsilon: float) -> Scan:
    w, c, before = tape.weights, tape.c, tape.c_before
    assert tape.gates is not None and c is not None and before is not None
    i, f, g, o = tape.gates.chunk(4, -1)
    g_pre = tape.pre.chunk(4, -1)[2]
    rows = slice(2 * tape.hidden, 3 * tape.hidden)
    projection = inner = above = None
    if epsilon == 0:
        alpha = f
        if tape.kind == "lstm":
            beta, inner = i * _ratio(g, g_pre), o * _ratio(torch.tanh(c), c)
        else:
            beta, inner = i * (g_pre > 0), o
        above = inner
        if w.w_hr is not None:
            projection, inner, above = (w.w_hr, inner), None, None
    else:
        divisor = stabilized(c, epsilon).reciprocal_()
        alpha = (f * before).mul_(divisor)
        beta = (i * g).mul_(divisor).div_(stabilized(g_pre, epsilon))
        inner = tape.h
        if w.w_hr is not None:
            projection = w.w_hr, o * tape.signal()
            above = stabilized(tape.h, epsilon).reciprocal_()
            inner = tape.h * above
    first = tape.h_before[0], before[0]
    return Scan(
        alpha, beta, None, inner, above, projection, w.w_hh[rows], w.w_ih[rows], tape.x, first,
        epsilon == 0, c if epsilon == 0 else None,
    )  # fmt: skip


def _gru(tape: Tape, epsilon: float) -> Scan:
    r_pre, z_pre, n_pre = tape.pre.chunk(3, -1)
    r, z, n = torch.sigmoid(r_pre), torch.sigmoid(z_pre), torch.tanh(n_pre)
    if epsilon == 0:
        alpha, beta, inner = z, (1 - z) * _ratio(n, n_pre), None
    else:
        divisor = stabilized(tape.h, epsilon).reciprocal_()
        alpha = (z * tape.h_before).mul_(divisor)
        beta = ((1 - z) * n).mul_(divisor).div_(stabilized(n_pre, epsilon))
        inner = tape.h
    w, rows = tape.weights, slice(2 * tape.hidden, 3 * tape.hidden)
    first = tape.h_before[0], None
    return Scan(
        alpha, beta, r, inner, None, None, w.w_hh[rows], w.w_ih[rows], tape.x, first, epsilon == 0
    )


def _rnn(tape: Tape, epsilon: float) -> Scan:
    pre, w = tape.pre, tape.weights
    # a dead ReLU has no coefficient of its state, so that its relevance is divided by pre
    bounded = epsilon == 0 and tape.kind == "rnn_tanh"
    if bounded:
        beta = _ratio(torch.tanh(pre), pre)
    else:
        beta = quotient(torch.ones_like(pre), pre, epsilon)
    inner = None if bounded else tape.h
    first = tape.h_before[0], None
    return Scan(None, beta, None, inner, None, None, w.w_hh, w.w_ih, tape.x, first, bounded)


def reduced_relevance(scan: Scan, inflow: Inflow) -> Outflow:
    """Carry relevance back through every step of a direction."""
    steps, targets, batch, _ = inflow.above.shape
    above = inflow.above if scan.above is None else inflow.above * scan.above.unsqueeze(1)
    cells = _cells(scan, inflow)
    s = above.new_empty(steps, targets, batch, scan.beta.shape[-1])
    r = torch.zeros_like(s[0])
    v: Tensor | None = None
    for t in reversed(range(steps)):
        y = above[t] if v is None else _added(above[t], v, scan.inner, t)
        if scan.projection is not None:
            y = torch.matmul(y, scan.projection[0]).mul_(scan.projection[1][t])
        if v is not None and scan.alpha is not None:
            r.mul_(scan.alpha[t + 1]).add_(y)
        else:
            r.copy_(y)
        if cells is not None:
            _join(r, cells, inflow.last, t, steps)
        flush_tiny_(r)
        torch.mul(r, scan.beta[t], out=s[t])
        mixed = s[t] if scan.mix is None else s[t] * scan.mix[t]
        v = torch.mm(mixed.flatten(0, 1), scan.w_rec).view(targets, batch, -1)
    assert v is not None
    coefficients = torch.matmul(s, scan.w_in)
    x = coefficients if scan.bounded else coefficients.mul_(scan.x.unsqueeze(1))
    return Outflow(x, *_first(scan, r, v))


def _added(above: Tensor, v: Tensor, factor: Tensor | None, t: int) -> Tensor:
    return v.add_(above) if factor is None else v.mul_(factor[t]).add_(above)


def _cells(scan: Scan, inflow: Inflow) -> Tensor | None:
    if inflow.cells is None or not scan.bounded:
        return inflow.cells
    assert scan.cells is not None
    last = scan.cells[-1] if inflow.last is None else at_last(scan.cells, inflow.last)
    return quotient(inflow.cells, last, 0.0)


def at_last(values: Tensor, last: Tensor) -> Tensor:
    """`[T, batch, ·]` at each sample's own step, `[batch, ·]`."""
    return values[last, torch.arange(values.shape[1], device=values.device)]


def _join(r: Tensor, cells: Tensor, last: Tensor | None, t: int, steps: int) -> None:
    """Relevance of the last cells enters at each sample's last step."""
    if last is not None:
        r.addcmul_(cells, (last == t).to(r).unsqueeze(-1))
    elif t == steps - 1:
        r.add_(cells)


def _first(scan: Scan, r: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    h0, c0 = scan.first
    r_h0 = h0 * v
    if scan.alpha is None:
        return r_h0, None
    state = r * scan.alpha[0]
    if c0 is not None:
        return r_h0, state * c0 if scan.bounded else state
    return r_h0 + (state * h0 if scan.bounded else state), None
