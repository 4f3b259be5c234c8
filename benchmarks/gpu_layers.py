"""Each layer of VGG-16 and ResNet-50 on a CUDA device: time, bound, and the library's own product.

python -m benchmarks.gpu_layers --record FILE.csv              batch 64, bfloat16 operands
python -m benchmarks.gpu_layers --device cpu                   one small layer, in the interpreter

For each layer, rule and direction: milliseconds of the kernel, the bound (bytes over the measured
copy bandwidth, or operations over the measured matrix rate, whichever is longer), the share of it
that is reached, and the time of as many plain products by the library.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.recording import write_record
from benchmarks.timing import Timing, interleaved
from benchmarks.traffic import recorded
from relprop import kernels, rules
from relprop.graph.maps import Conv, Dense, LinearMap

__all__ = ["LAYERS", "main"]

Layer = tuple[str, LinearMap, tuple[int, ...], tuple[int, ...]]


def _conv(size: int, channels: int, outputs: int, taps: int = 3, stride: int = 1) -> Layer:
    pad = taps // 2
    conv = Conv((stride,) * 2, ((pad, pad),) * 2, (1, 1))
    name = f"{taps}x{taps} {channels}-{outputs} on {size}" + (f" by {stride}" * (stride > 1))
    return name, conv, (channels, size, size), (outputs, channels, taps, taps)


LAYERS: list[Layer] = [
    _conv(224, 3, 64), _conv(224, 64, 64), _conv(112, 64, 128), _conv(112, 128, 128),
    _conv(56, 128, 256), _conv(56, 256, 256), _conv(28, 256, 512), _conv(28, 512, 512),
    _conv(14, 512, 512),
    ("dense 25088-4096", Dense(), (25088,), (4096, 25088)),
    ("dense 4096-4096", Dense(), (4096,), (4096, 4096)),
    _conv(224, 3, 64, 7, 2), _conv(56, 64, 64, 1), _conv(56, 64, 256, 1), _conv(56, 256, 64, 1),
    _conv(56, 64, 64), _conv(56, 256, 128, 1), _conv(56, 128, 128, 3, 2), _conv(28, 128, 512, 1),
    _conv(56, 256, 512, 1, 2), _conv(28, 512, 128, 1), _conv(28, 128, 128),
    _conv(28, 256, 256, 3, 2), _conv(14, 256, 1024, 1), _conv(14, 1024, 256, 1),
    _conv(14, 256, 256), _conv(14, 512, 512, 3, 2), _conv(7, 512, 2048, 1),
    _conv(7, 2048, 512, 1), _conv(7, 512, 512),
]  # fmt: skip
"""The different layers of VGG-16, then of ResNet-50."""
SMALL: list[Layer] = [_conv(6, 4, 8), ("dense 24-8", Dense(), (24,), (8, 24))]
RULES: dict[str, rules.LinearRule] = {
    "epsilon": rules.Epsilon(),
    "zplus": rules.ZPlus(),
    "alphabeta": rules.AlphaBeta(2, 1),
}
OPERANDS = {"highest": torch.float32, "high": torch.float32, "medium": torch.bfloat16}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; a layer that fails is named, and the others go on."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_layers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--precision", choices=sorted(OPERANDS), default="medium")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", type=Path, help="CSV file to write after each layer")
    options = parser.parse_args(argv)
    rates = _rates(options.device, OPERANDS[options.precision], options.precision == "high")
    print(f"copy {rates[0] / 1e9:.3g} GB/s, matrix {rates[1] / 1e12:.3g} TFLOP/s", flush=True)
    rows: list[dict[str, Any]] = []
    failures = 0
    for layer in LAYERS if options.device == "cuda" else SMALL:
        for name, rule in RULES.items():
            try:
                rows += _measured(layer, name, rule, options, rates)
            except Exception as error:
                failures += 1
                print(f"{layer[0]}, {name}: {type(error).__name__}: {error}", flush=True)
        if options.record is not None and rows:
            write_record(options.record, rows)
    return 1 if failures or not rows else 0


def _rates(device: str, dtype: torch.dtype, tf32: bool) -> tuple[float, float]:
    """Bytes a second of a copy, operations a second of a matrix product."""
    size, numbers = (8192, 2**28) if device == "cuda" else (64, 2**10)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    source = torch.empty(numbers, device=device)
    target = torch.empty_like(source)
    matrix = torch.randn(size, size, device=device).to(dtype)
    times = _times(
        {"copy": lambda: target.copy_(source), "matrix": lambda: matrix @ matrix}, 5, device
    )
    return 2 * source.nbytes / times["copy"], 2 * size**3 / times["matrix"]


def _times(calls: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each; on a device many runs stand for one, to hide the launches."""
    repeats = 10 if device == "cuda" else 1

    def repeated(call: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(repeats):
                call()

        return run

    timings: dict[str, Timing] = interleaved({n: repeated(c) for n, c in calls.items()}, rounds)
    return {name: timing.median / repeats for name, timing in timings.items()}


def _measured(
    layer: Layer,
    name: str,
    rule: rules.LinearRule,
    options: argparse.Namespace,
    rates: tuple[float, float],
) -> list[dict[str, Any]]:
    """Two rows: the contraction with its activation, the adjoint of the same layer."""
    text, linear_map, a_shape, w_shape = layer
    torch.manual_seed(0)
    a = torch.rand(options.batch, *a_shape, device=options.device)
    w = torch.randn(w_shape, device=options.device) / w_shape[1]
    if a.ndim == 4:
        a, w = (x.contiguous(memory_format=torch.channels_last) for x in (a, w))
    b = torch.zeros(w_shape[0], device=options.device)
    program = kernels.compile_rule(rule, True)
    weight = kernels.prepare_weights(program, w, a, precision=options.precision)

    def contraction() -> Any:
        return kernels.contraction(
            linear_map, rule, a, w, b, nonnegative=True, precision=options.precision,
            activation="relu", rectified=True, weight=weight,
        )  # fmt: skip

    saved = contraction()
    s = kernels.quotient(saved, torch.rand_like(saved.y)[None])

    def adjoint() -> Tensor:
        return kernels.adjoint(saved, s, precision=options.precision)

    dtype = OPERANDS[options.precision]
    own_a, own_w, own_s = a.to(dtype), w.to(dtype), s[0, 0].to(dtype)
    calls: dict[str, Callable[[], Any]] = {
        "contraction": contraction,
        "adjoint": adjoint,
        "library contraction": lambda: linear_map.contraction(own_a, own_w),
        "library adjoint": lambda: linear_map.adjoint(own_s, own_w, own_a.shape),
    }
    times = _times(calls, options.rounds, options.device)
    taps = w[0].numel() if isinstance(linear_map, Conv) else a_shape[-1]
    one = 2 * saved.y.numel() * taps
    rows = []
    for direction, products in (("contraction", weight.parts), ("adjoint", program.parts)):
        with recorded() as launches:
            calls[direction]()
        moved = sum(launch.reads + launch.writes for launch in launches)
        bounds = {"memory": moved / rates[0], "products": products * one / rates[1]}
        bound = max(bounds, key=bounds.__getitem__)
        library = products * times[f"library {direction}"]
        rows.append(
            {
                "layer": text,
                "rule": name,
                "direction": direction,
                "precision": options.precision,
                "batch": options.batch,
                "kernels": "+".join(launch.kernel for launch in launches),
                "ms": f"{1e3 * times[direction]:.4g}",
                "bound": bound,
                "bound_ms": f"{1e3 * bounds[bound]:.4g}",
                "share_of_bound": f"{bounds[bound] / times[direction]:.3f}",
                "library_ms": f"{1e3 * library:.4g}",
                "library_over_ours": f"{library / times[direction]:.3f}",
            }
        )
        print("  ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
