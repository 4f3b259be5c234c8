"""LSTM relevance on a CUDA device, beside the ATen backend and cuDNN's forward and backward pass.

    python -m benchmarks.recurrent_gpu                                batch 256, 128 steps
    python -m benchmarks.recurrent_gpu --hidden 256 --precision medium --record FILE.csv

Every variant explains (or differentiates) one nn.LSTM with as many inputs as hidden units, from
relevance of its last step.  "graph" is the same launches replayed as a CUDA graph.  cuDNN runs at
the same precision: IEEE float32, TF32, or a bfloat16 copy of the layer; its backward pass goes to
the input alone.  The difference is the norm of ours minus the ATen backend's float32 relevance,
over the latter's norm.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.rows import write_rows
from benchmarks.timing import interleaved
from relprop.backends import PRECISIONS
from relprop.backends.aten.recurrent import stack as aten
from relprop.backends.triton import recurrent as triton_recurrent
from relprop.graph.recurrent import Layout, directions_of
from relprop.rules import Recurrent
from relprop.tables import table

__all__ = ["main"]

RULE = Recurrent()
BASE = "cuDNN, forward and backward"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recurrent_gpu")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--record", type=Path, help="CSV file to write")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("no CUDA device; see benchmarks.recurrent_cpu")
    rows = []
    for hidden in options.hidden:
        for precision in options.precision:
            rows += measured(options.batch, options.steps, hidden, precision, options.rounds)
            write_rows(options.record, rows)
    print(table(tuple(rows[0]), [tuple(str(v) for v in row.values()) for row in rows]))
    return 0


def measured(
    batch: int, steps: int, hidden: int, precision: str, rounds: int
) -> list[dict[str, Any]]:
    """A row a variant: medians in ms, over the base's, difference from the ATen backend's."""
    variants = calls(batch, steps, hidden, precision)
    reference = variants["ATen"]()
    ours = variants["Triton"]()
    difference = float((ours - reference).norm() / reference.norm())
    timings = interleaved(variants, rounds, warmup=3)
    base = timings[BASE].median
    return [
        {
            "batch": batch,
            "steps": steps,
            "hidden": hidden,
            "precision": precision,
            "variant": name,
            "ms": f"{1e3 * timing.median:.3f}",
            "spread": f"{timing.spread:.2f}",
            "over cuDNN": f"{timing.median / base:.2f}",
            "difference": f"{difference:.1e}" if name.startswith("Triton") else "",
        }
        for name, timing in timings.items()
    ]


def calls(batch: int, steps: int, hidden: int, precision: str) -> dict[str, Callable[[], Any]]:
    """The variants by name."""
    torch.manual_seed(0)
    layer = nn.LSTM(hidden, hidden, device="cuda").requires_grad_(False)
    directions = directions_of([w.detach() for w in layer.parameters()], "lstm", "benchmark")
    x = torch.randn(steps, batch, hidden, device="cuda")
    r = torch.zeros(1, steps, batch, hidden, device="cuda")
    r[:, -1] = torch.randn(batch, hidden, device="cuda")
    states = x.new_zeros(1, batch, hidden)
    operands = Layout("lstm"), directions, x, states, states, RULE

    def ours() -> Tensor:
        _, saved = triton_recurrent.forward(*operands, precision=precision)
        return triton_recurrent.relevance(saved, r, None, None)[0]

    def by_library() -> Tensor:
        _, saved = aten.forward(*operands)
        return aten.relevance(saved, r, None, None)[0]

    forward, both = cudnn(layer, x, r[0], precision)
    return {
        "Triton": ours,
        "Triton, graph": graph(ours),
        "ATen": by_library,
        "cuDNN, forward": forward,
        BASE: both,
    }


def cudnn(
    layer: nn.LSTM, x: Tensor, r: Tensor, precision: str
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """The library's own passes at a precision: forward, forward and backward to the input."""
    if precision == "medium":
        own = nn.LSTM(layer.input_size, layer.hidden_size, device="cuda", dtype=torch.bfloat16)
        own.load_state_dict(layer.state_dict())
        layer, x, r = own.requires_grad_(False), x.bfloat16(), r.bfloat16()
    leaf = x.clone().requires_grad_()

    def forward() -> Tensor:
        torch.backends.cudnn.allow_tf32 = precision == "high"
        out: Tensor = layer(leaf)[0]
        return out

    def both() -> Tensor:
        return torch.autograd.grad(forward(), leaf, r)[0]

    return forward, both


def graph(call: Callable[[], Tensor]) -> Callable[[], None]:
    """A call's launches as a CUDA graph; what it returns is dropped."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        call()
    return recorded.replay


if __name__ == "__main__":
    raise SystemExit(main())
