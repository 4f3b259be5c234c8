"""The plain per-step loops of every recurrent rule: the oracle of the tests.

One sample, one target, one step at a time, straight from the formulas (Arras et al. 2017, 2019;
PyTorch's definitions of the layers).  Nothing is reduced, batched or cached; the dtype is the one
that is given.  Epsilon = 0 is the limit of 0 / 0 = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.backends.reference import linear as reference
from relprop.graph.maps import Dense
from relprop.graph.recurrent import CELLED, Direction, Layout, candidate_rule
from relprop.rules import Recurrent

__all__ = ["naive_forward", "naive_relevance"]

Step = dict[str, Any]


def naive_forward(
    layout: Layout,
    directions: Sequence[Direction],
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output `[T, P * ways]`, last hidden states and cells `[layers * ways, ·]` of one sample.

    Args:
        layout: the layer.
        directions: its weights, layer by layer.
        x: `[T, E]`.
        h0: `[layers * ways, P]`.
        c0: `[layers * ways, H]`, an LSTM's.
    """
    out, tapes = _forward(layout, directions, x, h0, c0)
    last = [tape[-1] for tape in tapes]
    cells = None if c0 is None else torch.stack([step["c"] for step in last])
    return out, torch.stack([step["h"] for step in last]), cells


def _forward(
    layout: Layout,
    directions: Sequence[Direction],
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
) -> tuple[Tensor, list[list[Step]]]:
    tapes: list[list[Step]] = []
    for layer in range(layout.layers):
        outputs = []
        for way in range(layout.ways):
            index = layer * layout.ways + way
            h, c = h0[index], None if c0 is None else c0[index]
            tape: list[Step] = []
            for row in x.flip(0) if way else x:
                tape.append(_STEPS[layout.kind](directions[index], row, h, c))
                h, c = tape[-1]["h"], tape[-1].get("c")
            tapes.append(tape)
            found = torch.stack([step["h"] for step in tape])
            outputs.append(found.flip(0) if way else found)
        x = torch.cat(outputs, -1)
    return x, tapes


def _affine(w: Direction, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The two maps of the pre-activations, with their biases."""
    a, b = w.w_ih @ x, w.w_hh @ h
    return (a if w.b_ih is None else a + w.b_ih), (b if w.b_hh is None else b + w.b_hh)


def _lstm_step(w: Direction, x: Tensor, h: Tensor, c: Tensor) -> Step:
    return _gated_step(w, x, h, c, torch.tanh, torch.tanh)


def _r_lstm_step(w: Direction, x: Tensor, h: Tensor, c: Tensor) -> Step:
    return _gated_step(w, x, h, c, torch.relu, torch.clone)


def _gated_step(
    w: Direction,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    candidate: Callable[[Tensor], Tensor],
    output: Callable[[Tensor], Tensor],
) -> Step:
    i_pre, f_pre, g_pre, o_pre = sum(_affine(w, x, h)).chunk(4)  # type: ignore[union-attr]
    i, f, o = torch.sigmoid(i_pre), torch.sigmoid(f_pre), torch.sigmoid(o_pre)
    g = candidate(g_pre)
    cell = f * c + i * g
    signal = output(cell)
    u = o * signal
    return {
        "x": x, "h_before": h, "c_before": c, "i": i, "f": f, "g": g, "o": o, "c": cell,
        "signal": signal, "u": u,
        "i_pre": i_pre, "f_pre": f_pre, "g_pre": g_pre, "o_pre": o_pre,
        "h": u if w.w_hr is None else w.w_hr @ u,
    }  # fmt: skip


def _gru_step(w: Direction, x: Tensor, h: Tensor, c: None) -> Step:
    a, b = _affine(w, x, h)
    (ar, az, an), (br, bz, bn) = a.chunk(3), b.chunk(3)
    r, z = torch.sigmoid(ar + br), torch.sigmoid(az + bz)
    pre = an + r * bn
    n = torch.tanh(pre)
    return {"x": x, "h_before": h, "r": r, "z": z, "n": n, "n_pre": pre, "h": (1 - z) * n + z * h}


def _rnn_step(w: Direction, x: Tensor, h: Tensor, c: None) -> Step:
    pre = sum(_affine(w, x, h))
    return {"x": x, "h_before": h, "pre": pre, "h": torch.tanh(pre)}  # type: ignore[arg-type]


def _relu_step(w: Direction, x: Tensor, h: Tensor, c: None) -> Step:
    step = _rnn_step(w, x, h, c)
    return {**step, "h": torch.relu(step["pre"])}


_STEPS: dict[str, Any] = {
    "lstm": _lstm_step,
    "r_lstm": _r_lstm_step,
    "gru": _gru_step,
    "rnn_tanh": _rnn_step,
    "rnn_relu": _relu_step,
}


def naive_relevance(
    layout: Layout,
    directions: Sequence[Direction],
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    relevance: tuple[Tensor, Tensor | None, Tensor | None],
    rule: Recurrent,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Relevance of x, of the initial hidden states and of the initial cells.

    Args:
        layout, directions, x, h0, c0: as in `naive_forward`.
        relevance: of the output, of the last hidden states, of the last cells, shaped like them.
        rule: the rule.
    """
    _, tapes = _forward(layout, directions, x, h0, c0)
    r_out, r_last, r_cells = relevance
    r_h0 = torch.zeros_like(h0)
    r_c0 = None if c0 is None else torch.zeros_like(c0)
    for layer in reversed(range(layout.layers)):
        parts = []
        for way in range(layout.ways):
            index = layer * layout.ways + way
            own = r_out.chunk(layout.ways, -1)[way]
            own = (own.flip(0) if way else own).clone()
            if r_last is not None:
                own[-1] += r_last[index]
            r_c = None if r_cells is None else r_cells[index]
            r_x, r_h, r_c = _direction_relevance(
                layout.kind, directions[index], tapes[index], own, r_c, rule
            )
            r_h0[index] = r_h
            if r_c0 is not None and r_c is not None:
                r_c0[index] = r_c
            parts.append(r_x.flip(0) if way else r_x)
        r_out = torch.stack(parts).sum(0)
    return r_out, r_h0, r_c0


def _direction_relevance(
    kind: str, w: Direction, tape: list[Step], above: Tensor, r_c: Tensor | None, rule: Recurrent
) -> tuple[Tensor, Tensor, Tensor | None]:
    backs = {"lstm": _lstm_back, "r_lstm": _lstm_back, "gru": _gru_back}
    back: Any = backs.get(kind, _rnn_back)
    r_h = torch.zeros_like(above[0])
    if kind in CELLED and r_c is None:
        r_c = torch.zeros_like(tape[0]["c"])
    r_x = torch.zeros(len(tape), *tape[0]["x"].shape, dtype=above.dtype)
    for t in reversed(range(len(tape))):
        r_x[t], r_h, r_c = back(w, tape[t], above[t] + r_h, r_c, rule)
    return r_x, r_h, r_c


def _lstm_back(
    w: Direction, step: Step, r_h: Tensor, r_c: Tensor, rule: Recurrent
) -> tuple[Tensor, Tensor, Tensor]:
    epsilon, phi = rule.epsilon, rule.bias_factor
    hidden = step["c"].shape[0]
    r_u = r_h
    if w.w_hr is not None:
        r_u = _epsilon_map(step["u"], w.w_hr, torch.zeros_like(r_h), r_h, epsilon, phi)
    r_o, r_signal = _product(rule, step["o"], step["signal"], r_u)
    r_c = r_c + r_signal
    sign = torch.where(step["c"] >= 0, 1.0, -1.0).to(r_c)
    shared = phi * reference.quotient(r_c * epsilon * sign / 2, step["c"], epsilon)
    kept = reference.quotient(r_c * step["f"] * step["c_before"], step["c"], epsilon) + shared
    made = reference.quotient(r_c * step["i"] * step["g"], step["c"], epsilon) + shared
    r_f, r_before = _product(rule, step["f"], step["c_before"], kept)
    r_i, r_g = _product(rule, step["i"], step["g"], made)
    gates = {"i": r_i, "f": r_f, "g": r_g, "o": r_o}
    v = torch.cat([step["x"], step["h_before"]])
    bias = _zeros_or(w.b_ih, w.w_ih) + _zeros_or(w.b_hh, w.w_hh)
    r_v = torch.zeros_like(v)
    for number, (name, r_gate) in enumerate(gates.items()):
        if r_gate is None:
            continue
        rows = slice(number * hidden, (number + 1) * hidden)
        weight = torch.cat([w.w_ih[rows], w.w_hh[rows]], 1)
        if name == "g":
            r_v += _candidate(v, weight, bias[rows], r_gate, rule, len(step["x"]))
        else:
            r_v += _epsilon_map(v, weight, bias[rows], r_gate, epsilon, phi)
    r_x, r_h = r_v.split([len(step["x"]), len(step["h_before"])])
    return r_x, r_h, r_before


def _gru_back(
    w: Direction, step: Step, r_h: Tensor, r_c: None, rule: Recurrent
) -> tuple[Tensor, Tensor, None]:
    epsilon, phi, z, r = rule.epsilon, rule.bias_factor, step["z"], step["r"]
    sign = torch.where(step["h"] >= 0, 1.0, -1.0).to(r_h)
    shared = phi * reference.quotient(r_h * epsilon * sign / 2, step["h"], epsilon)
    r_before = reference.quotient(r_h * z * step["h_before"], step["h"], epsilon) + shared
    r_n = reference.quotient(r_h * (1 - z) * step["n"], step["h"], epsilon) + shared
    w_in, w_hn = w.w_ih.chunk(3)[2], w.w_hh.chunk(3)[2]
    b_in = _zeros_or(w.b_ih, w.w_ih).chunk(3)[2]
    b_hn = _zeros_or(w.b_hh, w.w_hh).chunk(3)[2]
    # the reset gate scales the rows of the recurrent map: one map on [x, h]
    weight, bias = torch.cat([w_in, r[:, None] * w_hn], 1), b_in + r * b_hn
    v = torch.cat([step["x"], step["h_before"]])
    r_v = _epsilon_map(v, weight, bias, r_n, epsilon, phi)
    r_x, r_hidden = r_v.split([len(step["x"]), len(step["h_before"])])
    return r_x, r_hidden + r_before, None


def _rnn_back(
    w: Direction, step: Step, r_h: Tensor, r_c: None, rule: Recurrent
) -> tuple[Tensor, Tensor, None]:
    v = torch.cat([step["x"], step["h_before"]])
    weight = torch.cat([w.w_ih, w.w_hh], 1)
    bias = _zeros_or(w.b_ih, w.w_ih) + _zeros_or(w.b_hh, w.w_hh)
    r_v = _candidate(v, weight, bias, r_h, rule, len(step["x"]))
    r_x, r_hidden = r_v.split([len(step["x"]), len(step["h_before"])])
    return r_x, r_hidden, None


def _product(
    rule: Recurrent, gate: Tensor, signal: Tensor, r: Tensor
) -> tuple[Tensor | None, Tensor]:
    """The shares of a product's two factors."""
    match rule.gate:
        case "all":
            return None, r
        case "half":
            return r / 2, r / 2
        case "prop":
            total = gate + signal
            return (
                reference.quotient(r * gate, total, rule.epsilon),
                reference.quotient(r * signal, total, rule.epsilon),
            )
    share = reference.quotient(r * gate.abs(), gate.abs() + signal.abs(), rule.epsilon)
    return share, r - share


def _epsilon_map(
    v: Tensor, weight: Tensor, bias: Tensor, r: Tensor, epsilon: float, phi: float
) -> Tensor:
    """Epsilon on a dense map, a share phi of bias and stabilizer spread over the inputs."""
    z = weight @ v + bias
    sign = torch.where(z >= 0, 1.0, -1.0).to(z)
    r_v = v * (weight.T @ reference.quotient(r, z, epsilon))
    unexplained = reference.quotient(r * (bias + epsilon * sign), z, epsilon).sum()
    return r_v + phi * unexplained / len(v)


def _candidate(
    v: Tensor, weight: Tensor, bias: Tensor, r: Tensor, rule: Recurrent, inputs: int
) -> Tensor:
    if rule.rule is None:
        return _epsilon_map(v, weight, bias, r, rule.epsilon, rule.bias_factor)
    linear = candidate_rule(rule.rule, inputs)
    row = v.unsqueeze(0), weight, bias, r.unsqueeze(0), linear
    spread = rule.bias_factor * reference.absorbed(Dense(), *row).sum() / len(v)
    return reference.linear_relevance(Dense(), *row)[0] + spread


def _zeros_or(bias: Tensor | None, weight: Tensor) -> Tensor:
    return weight.new_zeros(len(weight)) if bias is None else bias
