"""LSTM relevance on this machine, beside a NumPy loop over one sequence and autograd's backward.

    python -m benchmarks.recurrent_cpu                        batch 64, 50 steps, hidden 256
    python -m benchmarks.recurrent_cpu --hidden 128 --rounds 3

The loop is the per-step algorithm of Arras et al. 2019 for one sequence at a time: forward a
product a step, backward every map as the matrix of all its messages.  Autograd's backward goes
through the same nn.LSTM, to the input alone; the library's forward pass is shown beside ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.rows import write_rows
from benchmarks.timing import interleaved
from relprop.backends.aten.recurrent import stack as aten
from relprop.graph.recurrent import Layout, directions_of
from relprop.rules import Recurrent
from relprop.tables import table

__all__ = ["NumpyLoop", "main"]

Array = NDArray[np.float64]


class NumpyLoop:
    """Relevance of one sequence, signal takes all, as the published algorithm computes it.

    Every map is one function that writes out all its messages, the sum c = f c' + i g too, as a
    map with the identity; NumPy's own float64.
    """

    def __init__(self, layer: nn.LSTM, epsilon: float) -> None:
        w_ih, w_hh, b_ih, b_hh = (w.detach().double().numpy() for w in layer.parameters())
        self.w_x, self.w_h, self.b = w_ih, w_hh, b_ih + b_hh
        self.hidden, self.epsilon, self.bias_factor = layer.hidden_size, epsilon, 0.0

    def __call__(self, x: Array, r: Array) -> Array:
        """Relevance of x `[T, E]` from that of the last hidden state `[H]`."""
        steps, hidden, features = len(x), self.hidden, x.shape[1]
        pre, h, c = self._forward(x)
        i, f, g, _ = np.split(pre, 4, axis=1)
        i, f, g = _sigmoid(i), _sigmoid(f), np.tanh(g)
        rows, none = slice(2 * hidden, 3 * hidden), np.zeros(hidden)
        w_x, w_h, b = self.w_x[rows], self.w_h[rows], self.b[rows]
        r_x, r_h, r_c = np.zeros_like(x), r.copy(), np.zeros(hidden)
        for t in reversed(range(steps)):
            r_c = r_c + r_h
            kept, made = f[t] * c[t], i[t] * g[t]
            r_g = self._messages(made, np.identity(hidden), none, c[t + 1], r_c, 2 * hidden)
            r_c = self._messages(kept, np.identity(hidden), none, c[t + 1], r_c, 2 * hidden)
            z = pre[t, rows]
            r_x[t] = self._messages(x[t], w_x, b, z, r_g, features + hidden)
            r_h = self._messages(h[t], w_h, b, z, r_g, features + hidden)
        return r_x

    def _forward(self, x: Array) -> tuple[Array, Array, Array]:
        steps, hidden = len(x), self.hidden
        h, c = np.zeros((steps + 1, hidden)), np.zeros((steps + 1, hidden))
        pre = np.zeros((steps, 4 * hidden))
        for t in range(steps):
            pre[t] = self.w_x @ x[t] + self.w_h @ h[t] + self.b
            i, f, g, o = np.split(pre[t], 4)
            c[t + 1] = _sigmoid(f) * c[t] + _sigmoid(i) * np.tanh(g)
            h[t + 1] = _sigmoid(o) * np.tanh(c[t + 1])
        return pre, h, c

    def _messages(self, a: Array, w: Array, b: Array, z: Array, r: Array, units: int) -> Array:
        """What every input gets: each output's relevance by its share of the output, summed."""
        sign = np.where(z >= 0, 1.0, -1.0)
        spread = self.bias_factor * (b + self.epsilon * sign) / units
        shares = (w.T * a[:, None] + spread[None, :]) / (z + self.epsilon * sign)[None, :]
        found: Array = (shares * r[None, :]).sum(1)
        return found


def _sigmoid(z: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-z)))


def calls(
    layer: nn.LSTM, x: Tensor, r: Tensor, epsilon: float, sequences: int
) -> dict[str, Callable[[], Any]]:
    """The variants: ours whole, ours backward alone, autograd's, the loop over some sequences."""
    directions = directions_of([w.detach() for w in layer.parameters()], "lstm", "benchmark")
    h0 = x.new_zeros(1, x.shape[1], layer.hidden_size)
    rule, last = Recurrent(epsilon=epsilon), r.unsqueeze(0).unsqueeze(0)
    loop = NumpyLoop(layer, epsilon)

    def ours_forward() -> Any:
        return aten.forward(Layout("lstm"), directions, x, h0, h0, rule)[1]

    saved = ours_forward()

    def ours_backward() -> Tensor:
        return aten.relevance(saved, None, last, None)[0]

    def ours() -> Tensor:
        return aten.relevance(ours_forward(), None, last, None)[0]

    leaf = x.clone().requires_grad_()

    def library_forward() -> Tensor:
        out: Tensor = layer(leaf)[0][-1]
        return out

    kept = library_forward()

    def library_backward() -> Tensor:
        return torch.autograd.grad(kept, leaf, r, retain_graph=True)[0]

    def one_by_one() -> list[Array]:
        return [loop(x[:, i].double().numpy(), r[i].double().numpy()) for i in range(sequences)]

    return {
        "ours, forward and relevance": ours,
        "ours, relevance pass": ours_backward,
        "library, forward": library_forward,
        "autograd, backward to the input": library_backward,
        "NumPy loop": one_by_one,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure in turn, print medians and the two ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recurrent_cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--inputs", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sequences", type=int, default=1, help="how many the NumPy loop explains")
    parser.add_argument("--record", type=Path, help="CSV file to write")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    layer = nn.LSTM(arguments.inputs, arguments.hidden).requires_grad_(False)
    x = torch.randn(arguments.steps, arguments.batch, arguments.inputs)
    r = layer(x)[0][-1].clone()
    variants = calls(layer, x, r, 1e-3, arguments.sequences)
    found, expected = variants["ours, relevance pass"]()[0][:, 0], variants["NumPy loop"]()[0]
    difference = np.abs(found.numpy() - expected).max() / np.abs(expected).max()
    timings = interleaved(variants, arguments.rounds)
    samples = dict.fromkeys(variants, arguments.batch) | {"NumPy loop": arguments.sequences}
    speed = {name: samples[name] / t.median for name, t in timings.items()}
    rows = [
        {
            "variant": name,
            "ms": f"{1e3 * t.median:.1f}",
            "spread": f"{100 * t.spread:.0f} %",
            "sequences/s": f"{speed[name]:.1f}",
            "over the loop": f"{speed[name] / speed['NumPy loop']:.0f}",
            "batch": samples[name],
            "steps": arguments.steps,
            "inputs": arguments.inputs,
            "hidden": arguments.hidden,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        for name, t in timings.items()
    ]
    print(f"batch {arguments.batch}, {arguments.steps} steps, {arguments.hidden} units, float32, "
          f"{torch.get_num_threads()} thread(s); largest difference {difference:.1e}")  # fmt: skip
    shown = ("variant", "ms", "spread", "sequences/s", "over the loop")
    print(table(shown, [tuple(str(row[key]) for key in shown) for row in rows]))
    write_rows(arguments.record, rows)
    times = speed["ours, forward and relevance"] / speed["NumPy loop"]
    ratio = (
        timings["ours, relevance pass"].median / timings["autograd, backward to the input"].median
    )
    print(f"explanations per second over the NumPy loop: {times:.0f} x")
    print(f"relevance pass over autograd's backward: {ratio:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
