"""How many of relprop's files an explanation enters: what a reader walks through to follow it.

    python -m benchmarks.entered

Counted are files in which a function is called, those of kernels included; a file that is merely
imported is not.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

import relprop
from relprop import kernels

__all__ = ["cached_cnn", "entered", "first_cnn", "first_lstm"]

_HOMES = tuple(
    str(Path(module.__file__ or "").resolve().parent) + "/" for module in (relprop, kernels)
)


def entered(work: Callable[[], Any]) -> list[str]:
    """The files of relprop in which `work` calls a function, relative to their folder, sorted."""
    files: set[str] = set()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_flags & inspect.CO_NEWLOCALS:  # no class, no module
            files.add(frame.f_code.co_filename)

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return sorted(
        name.removeprefix(home) for name in files for home in _HOMES if name.startswith(home)
    )


def first_cnn() -> list[str]:
    """By the first explanation of a network of five layers."""
    model, x = _cnn()
    return entered(lambda: relprop.explain(model, x, target=1, method="epsilon_plus"))


def cached_cnn() -> list[str]:
    """By the second explanation of the same network."""
    model, x = _cnn()
    explainer = relprop.Explainer(model, "epsilon_plus")
    explainer(x, target=1)
    return entered(lambda: explainer(x, target=1))


def first_lstm() -> list[str]:
    """By the first explanation of a network of one LSTM and a linear layer."""
    model, x = _Lstm().eval(), torch.randn(2, 5, 3)
    return entered(lambda: relprop.explain(model, x, target=1, method="lrp_epsilon"))


def _cnn() -> tuple[nn.Module, Tensor]:
    """Two convolutions, the first with a batch norm, pooling, two dense layers."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip
    return model.eval(), torch.randn(2, 3, 16, 16)


class _Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x)[0][:, -1])
        return out


if __name__ == "__main__":
    for work in (first_cnn, cached_cnn, first_lstm):
        files = work()
        print(f"{work.__name__}: {len(files)} files\n  {' '.join(files)}")
