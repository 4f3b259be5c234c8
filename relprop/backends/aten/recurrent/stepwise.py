"""Every other option of `Recurrent`, step by step: gates that take a share, bias shares, a rule.

Batched over targets and samples; one product a step, over all gates that carry relevance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relprop.backends.aten.linear import AtenLinear
from relprop.backends.aten.recurrent.reduced import Inflow, Outflow, _join
from relprop.backends.aten.recurrent.tape import Tape
from relprop.graph.maps import Dense
from relprop.graph.recurrent import candidate_rule
from relprop.operations.arithmetic import flush_tiny_
from relprop.operations.base import quotient
from relprop.operations.protocol import LinearCall
from relprop.rules import Recurrent

__all__ = ["stepwise_relevance"]


def stepwise_relevance(tape: Tape, rule: Recurrent, inflow: Inflow) -> Outflow:
    """Carry relevance back through every step of a direction, `Recurrent` with any options."""
    kinds = {"lstm": _LstmSteps, "r_lstm": _LstmSteps, "gru": _GruSteps}
    steps = kinds.get(tape.kind, _RnnSteps)
    return steps(tape, rule, inflow).run()


class _Steps:
    """Base: the loop, the maps on [x, h], the shares of bias and stabilizer."""

    def __init__(self, tape: Tape, rule: Recurrent, inflow: Inflow) -> None:
        self.tape, self.rule, self.inflow = tape, rule, inflow
        self.count, self.targets, self.batch, _ = inflow.above.shape
        w = tape.weights
        self.bias = 0.0 if w.b_ih is None or w.b_hh is None else w.b_ih + w.b_hh
        self.features = tape.x.shape[-1]
        self.inputs = self.features + tape.h.shape[-1]
        above = inflow.above
        self.r_x = above.new_zeros(self.count, self.targets, self.batch, self.features)
        self.backend = AtenLinear()

    def run(self) -> Outflow:
        above, last = self.inflow.above, self.inflow.last
        r_h = torch.zeros_like(above[0])
        r_c = self.initial_cells()
        for t in reversed(range(self.count)):
            if r_c is not None and self.inflow.cells is not None:
                _join(r_c, self.inflow.cells, last, t, self.count)
            if r_c is not None:
                flush_tiny_(r_c)
            self.r_x[t], r_h, r_c = self.step(t, flush_tiny_(above[t] + r_h), r_c)
        return Outflow(self.r_x, r_h, r_c)

    def initial_cells(self) -> Tensor | None:
        return None

    def step(self, t: int, r_h: Tensor, r_c: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        raise TypeError(type(self).__name__)

    def unexplained(self, r: Tensor, z: Tensor, bias: Any) -> Tensor:
        """The share of bias and stabilizer of some outputs, a number for each row."""
        sign = torch.where(z >= 0, 1.0, -1.0).to(z)
        lost = quotient(r * (bias + self.rule.epsilon * sign), z, self.rule.epsilon)
        return self.rule.bias_factor * lost.sum(-1, keepdim=True)

    def linear(
        self, t: int, r: Tensor, z: Tensor, w_x: Tensor, w_h: Tensor, bias: Any,
        mix: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Epsilon on the map of [x_t, h_{t-1}] with outputs z."""
        s = quotient(r, z, self.rule.epsilon)
        r_x = torch.matmul(s, w_x).mul_(self.tape.x[t])
        r_h = torch.matmul(s if mix is None else s * mix, w_h).mul_(self.tape.h_before[t])
        if self.rule.bias_factor:
            spread = self.unexplained(r, z, bias) / self.inputs
            r_x, r_h = r_x + spread, r_h + spread
        return r_x, r_h

    def candidate(self, t: int, r: Tensor, w_x: Tensor, w_h: Tensor, bias: Any) -> list[Tensor]:
        """The rule given for the candidate's map, which has bias and stabilizer of its own."""
        assert self.rule.rule is not None
        rule = candidate_rule(self.rule.rule, self.features)
        call = LinearCall(Dense(), rule, path="candidate")
        v = torch.cat([self.tape.x[t], self.tape.h_before[t]], -1)
        b = bias if isinstance(bias, Tensor) else None
        _, saved = self.backend.forward(call, v, torch.cat([w_x, w_h], 1), b)
        r_v = self.backend.relevance(call, saved, r)
        if self.rule.bias_factor:
            lost = r.sum(-1, keepdim=True) - r_v.sum(-1, keepdim=True)
            r_v = r_v + self.rule.bias_factor * lost / self.inputs
        return list(r_v.split([self.features, self.inputs - self.features], -1))

    def split(self, r: Tensor, total: Tensor, *parts: Tensor) -> list[Tensor]:
        """A sum of two in proportion, the bias share of the stabilizer to both."""
        s = quotient(r, total, self.rule.epsilon)
        shares = [s * part for part in parts]
        if not self.rule.bias_factor:
            return shares
        sign = torch.where(total >= 0, 1.0, -1.0).to(total)
        extra = s * (0.5 * self.rule.bias_factor * self.rule.epsilon * sign)
        return [share + extra for share in shares]


class _LstmSteps(_Steps):
    def __init__(self, tape: Tape, rule: Recurrent, inflow: Inflow) -> None:
        super().__init__(tape, rule, inflow)
        assert tape.gates is not None
        self.i, self.f, self.g, self.o = tape.gates.chunk(4, -1)
        self.signal = tape.signal()
        # gates that take relevance beside the candidate: all of them, or none
        self.rows = slice(2 * tape.hidden, 3 * tape.hidden) if rule.gate == "all" else slice(None)

    def initial_cells(self) -> Tensor:
        return self.inflow.above.new_zeros(self.targets, self.batch, self.tape.hidden)

    def step(self, t: int, r_h: Tensor, r_c: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        tape, c, before = self.tape, self.tape.c, self.tape.c_before
        assert c is not None and before is not None
        squashed = self.signal[t]
        r_o, r_signal = self.product(self.o[t], squashed, self.projected(t, r_h, squashed))
        kept, made = self.split(
            r_signal if r_c is None else r_c + r_signal,
            c[t], self.f[t] * before[t], self.i[t] * self.g[t],
        )  # fmt: skip
        r_f, r_before = self.product(self.f[t], before[t], kept)
        r_i, r_g = self.product(self.i[t], self.g[t], made)
        bias = self.bias[self.rows] if isinstance(self.bias, Tensor) else 0.0
        w_x, w_h = tape.weights.w_ih[self.rows], tape.weights.w_hh[self.rows]
        if r_i is None or r_f is None or r_o is None:
            if self.rule.rule is not None:
                r_x, r_hidden = self.candidate(t, r_g, w_x, w_h, bias)
            else:
                r_x, r_hidden = self.linear(t, r_g, tape.pre[t][:, self.rows], w_x, w_h, bias)
            return r_x, r_hidden, r_before
        if self.rule.rule is None:
            r = torch.cat([r_i, r_f, r_g, r_o], -1)
            r_x, r_hidden = self.linear(t, r, tape.pre[t], w_x, w_h, bias)
            return r_x, r_hidden, r_before
        hidden = slice(2 * tape.hidden, 3 * tape.hidden)
        own = None if not isinstance(bias, Tensor) else bias[hidden]
        r = torch.cat([r_i, r_f, torch.zeros_like(r_g), r_o], -1)
        parts = self.linear(t, r, tape.pre[t], w_x, w_h, bias)
        others = self.candidate(t, r_g, w_x[hidden], w_h[hidden], own)
        return parts[0] + others[0], parts[1] + others[1], r_before

    def projected(self, t: int, r_h: Tensor, squashed: Tensor) -> Tensor:
        """Relevance of o * tanh(c), below the projection."""
        w_hr = self.tape.weights.w_hr
        if w_hr is None:
            return r_h
        u, h = self.o[t] * squashed, self.tape.h[t]
        r_u = torch.matmul(quotient(r_h, h, self.rule.epsilon), w_hr).mul_(u)
        if self.rule.bias_factor:
            r_u = r_u + self.unexplained(r_h, h, 0.0) / u.shape[-1]
        return r_u

    def product(self, gate: Tensor, signal: Tensor, r: Tensor) -> tuple[Tensor | None, Tensor]:
        """The shares of a product's factors, by the gate option."""
        epsilon = self.rule.epsilon
        match self.rule.gate:
            case "all":
                return None, r
            case "half":
                return r / 2, r / 2
            case "prop":
                s = quotient(r, gate + signal, epsilon)
                return s * gate, s * signal
        share = quotient(r, gate + signal.abs(), epsilon).mul_(gate)
        return share, r - share


class _GruSteps(_Steps):
    def step(self, t: int, r_h: Tensor, r_c: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        tape, w = self.tape, self.tape.weights
        r_pre, z_pre, n_pre = tape.pre[t].chunk(3, -1)
        reset, z = torch.sigmoid(r_pre), torch.sigmoid(z_pre)
        old, new = z * tape.h_before[t], (1 - z) * torch.tanh(n_pre)
        r_before, r_n = self.split(r_h, tape.h[t], old, new)
        rows = slice(2 * tape.hidden, None)
        bias: Any = 0.0
        if w.b_ih is not None and w.b_hh is not None:
            bias = w.b_ih[rows] + reset * w.b_hh[rows]
        r_x, r_hidden = self.linear(t, r_n, n_pre, w.w_ih[rows], w.w_hh[rows], bias, reset)
        return r_x, r_hidden + r_before, None


class _RnnSteps(_Steps):
    def step(self, t: int, r_h: Tensor, r_c: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        tape, w = self.tape, self.tape.weights
        if self.rule.rule is not None:
            r_x, r_hidden = self.candidate(t, r_h, w.w_ih, w.w_hh, self.bias)
        else:
            r_x, r_hidden = self.linear(t, r_h, tape.pre[t], w.w_ih, w.w_hh, self.bias)
        return r_x, r_hidden, None
