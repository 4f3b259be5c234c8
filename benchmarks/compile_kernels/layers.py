"""Linear layers to compile: VGG-16's and ResNet-50's, batch 64, every rule and operand type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from relprop import rules
from relprop.graph.maps import Conv, Dense, LinearMap

__all__ = ["cases", "label"]


@dataclass(frozen=True)
class Case:
    """A layer to compile: every kernel that its three passes launch."""

    name: str
    map: LinearMap
    rule: rules.LinearRule
    a: tuple[int, ...]
    w: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    nonnegative: bool = True
    precision: str = "highest"
    channels_last: bool = True


def cases() -> list[tuple[str, Callable[[], object]]]:
    """Name and call of each layer's three passes, on meta tensors."""
    return [(case.name, lambda case=case: _build(case)) for case in _layers()]  # type: ignore[misc]


def _layers() -> list[Case]:
    """Each kernel form at a production shape: VGG-16's and ResNet-50's layers, batch 64."""
    conv = Conv((1, 1), ((1, 1), (1, 1)), (1, 1))
    strided = Conv((2, 2), ((1, 1), (1, 1)), (1, 1))
    depthwise = Conv((1, 1), ((1, 1), (1, 1)), (1, 1), groups=96)
    grouped = Conv((1, 1), ((1, 1), (1, 1)), (1, 1), groups=32)
    transposed = Conv((2, 2), ((1, 1), (1, 1)), (1, 1), transposed=True)
    first = Conv((1, 1), ((1, 1), (1, 1)), (1, 1))
    volume = Conv((1, 1, 1), ((1, 1),) * 3, (1, 1, 1))
    dense_a, dense_w = (64, 4096), (4096, 4096)
    token_a, token_w = (64, 197, 768), (3072, 768)
    conv_a, conv_w = (64, 256, 28, 28), (256, 256, 3, 3)
    main: list[rules.LinearRule] = [
        rules.Epsilon(),
        rules.ZPlus(),
        rules.AlphaBeta(),
        rules.Gamma(),
        rules.WSquare(),
    ]
    found = [Case(f"dense {label(rule)}", Dense(), rule, dense_a, dense_w) for rule in main] + [
        Case(f"conv {label(rule)}", conv, rule, conv_a, conv_w) for rule in main
    ]
    found += [Case(f"tokens {label(rule)}", Dense(), rule, token_a, token_w) for rule in main[:4]]
    found += [
        Case("tokens signed AlphaBeta", Dense(), main[2], token_a, token_w, nonnegative=False),
        Case("tokens signed Gamma", Dense(), main[3], token_a, token_w, nonnegative=False),
        Case("dense signed AlphaBeta", Dense(), main[2], dense_a, dense_w, nonnegative=False),
        Case("conv signed AlphaBeta", conv, main[2], conv_a, conv_w, nonnegative=False),
        Case("dense signed Gamma", Dense(), main[3], dense_a, dense_w, nonnegative=False),
        Case("conv signed Gamma", conv, main[3], conv_a, conv_w, nonnegative=False),
        Case("pixels ZBox", first, rules.ZBox(-2.1, 2.6), (64, 3, 224, 224), (64, 3, 3, 3)),
        Case("conv stride 2 AlphaBeta", strided, main[2], conv_a, conv_w),
        Case("grouped ZPlus", grouped, main[1], (64, 512, 28, 28), (512, 16, 3, 3)),
        Case("depthwise ZPlus", depthwise, main[1], (64, 96, 28, 28), (96, 1, 3, 3)),
        Case("transposed ZPlus", transposed, main[1], (64, 256, 14, 14), (256, 128, 4, 4)),
        Case("conv 3-d ZPlus", volume, main[1], (8, 64, 16, 28, 28), (64, 64, 3, 3, 3)),
        Case("conv NCHW ZPlus", conv, main[1], conv_a, conv_w, channels_last=False),
        Case(
            "joint", Dense(), rules.Joint(channels=(0, 1024)), dense_a, dense_w, nonnegative=False
        ),
    ]
    # as PyTorch's networks are by default
    plain: dict[str, Any] = {"dtype": torch.float32, "channels_last": False}
    line = Conv((2,), ((1, 1),), (1,))
    found += [
        Case("conv NCHW float32 highest Epsilon", conv, main[0], conv_a, conv_w, **plain),
        Case("conv NCHW float32 highest AlphaBeta", conv, main[2], conv_a, conv_w, **plain),
        Case("conv 1-d float32 highest ZPlus", line, main[1], (64, 64, 1024), (64, 64, 3), **plain),
    ]
    for precision in ("highest", "high", "medium"):
        for rule in (rules.Epsilon(), rules.AlphaBeta()):
            name = f"float32 {precision} {label(rule)}"
            extra: dict[str, Any] = {"dtype": torch.float32, "precision": precision}
            found.append(Case(f"dense {name}", Dense(), rule, dense_a, dense_w, **extra))
            found.append(Case(f"conv {name}", conv, rule, conv_a, conv_w, **extra))
    found.append(
        Case("dense float16 AlphaBeta", Dense(), main[2], dense_a, dense_w, dtype=torch.float16)
    )
    return found


def label(rule: rules.LinearRule) -> str:
    """A rule in the name of a case."""
    return type(rule).__name__


def _build(case: Case) -> None:
    """Run the three passes of a case on meta tensors."""
    from relprop import kernels

    a = torch.empty(case.a, dtype=case.dtype, device="meta")
    w = torch.empty(case.w, dtype=case.dtype, device="meta")
    if case.channels_last and len(case.a) in (4, 5):
        layout = torch.channels_last if len(case.a) == 4 else torch.channels_last_3d
        a, w = a.to(memory_format=layout), w.to(memory_format=layout)
    conv = case.map
    wide = isinstance(conv, Conv) and conv.transposed
    b = torch.empty(case.w[1] if wide else case.w[0], device="meta", dtype=case.dtype)
    saved = kernels.contraction(
        conv, case.rule, a, w, b, nonnegative=case.nonnegative, precision=case.precision
    )
    assert saved.y is not None
    s = kernels.quotient(saved, torch.empty((1, *saved.y.shape), device="meta"))
    kernels.adjoint(saved, s, precision=case.precision)
