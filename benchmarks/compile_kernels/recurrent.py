"""Recurrent layers to compile: production sizes, batch 256."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

__all__ = ["cases"]

SIZES = (64, 128, 256, 512, 1024)
OPERANDS = (
    ("bfloat16", torch.bfloat16, "highest"),
    ("float32 high", torch.float32, "high"),
    ("float32 highest", torch.float32, "highest"),
)
OTHERS = (("gru", 128), ("gru", 256), ("gru", 1024), ("r_lstm", 128), ("rnn_tanh", 256))


def cases() -> list[tuple[str, Callable[[], object]]]:
    """Name and call of each layer's two passes, on meta tensors."""
    return [
        (f"recurrent {kind} {hidden} {name}", lambda arguments=arguments: _build(*arguments))
        for kind, hidden, name, *arguments in _layers()
    ]


def _layers() -> Iterator[tuple[str, int, str, str, int, torch.dtype, str]]:
    for name, dtype, precision in OPERANDS:
        for hidden in SIZES:
            yield "lstm", hidden, name, "lstm", hidden, dtype, precision
    for kind, hidden in OTHERS:
        name, dtype, precision = OPERANDS[0]
        yield kind, hidden, name, kind, hidden, dtype, precision


def _build(kind: str, hidden: int, dtype: torch.dtype, precision: str) -> None:
    """16 steps stand for any number that 16 divides; a launch a step compiles once."""
    from relprop.graph.recurrent import GATES
    from relprop.kernels.recurrent.launch import recurrent_forward, recurrent_relevance

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rows, batch, steps = GATES[kind] * hidden, 256, 16
    states = empty(1, batch, hidden)
    *_, saved = recurrent_forward(
        kind, empty(steps, batch, hidden), empty(1, rows, hidden), empty(1, rows, hidden),
        empty(1, rows), empty(1, rows), states, states if "lstm" in kind else None,
        epsilon=1e-6, precision=precision,
    )  # fmt: skip
    recurrent_relevance(saved, empty(1, steps, batch, hidden, dtype=torch.float32), None, None)
