"""Quantus' max sensitivity on three ways to explain: its Captum path, its Zennit path, relprop's.

    python -m benchmarks.quantus [--network vgg11] [--size 64] [--batch 4] [--samples 10]

All run in one process, in turn, with the same noise; the scores must agree before times are shown.
"""

from __future__ import annotations

import argparse
import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.peers import declare_torchvision_operators, network
from benchmarks.timing import interleaved
from relprop.integrations.quantus import explain

__all__ = ["main", "variants"]

METHODS: dict[str, dict[str, Any]] = {
    "LRP-epsilon (Captum's LRP)": {"method": "LRP"},
    "epsilon-plus (Zennit's EpsilonPlus)": {"xai_lib": "zennit", "composite": "epsilon_plus"},
}
"""What is explained, as `explain_func_kwargs` that Quantus and relprop both take."""


def variants(
    quantus: Any, model: nn.Module, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], samples: int
) -> dict[tuple[str, str], Callable[[], list[float]]]:
    """A run of the metric for each method and library."""

    def run(function: Any, options: dict[str, Any]) -> list[float]:
        np.random.seed(0)
        metric = quantus.MaxSensitivity(
            nr_samples=samples, lower_bound=0.2, disable_warnings=True, display_progressbar=False
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores: list[float] = metric(
                model=model,
                x_batch=x,
                y_batch=y,
                explain_func=function,
                explain_func_kwargs={**options, "device": "cpu"},
                device="cpu",
                batch_size=len(x),
            )
        return scores

    return {
        (method, library): functools.partial(run, function, options)
        for method, options in METHODS.items()
        for library, function in (("relprop", explain), ("Quantus' own", quantus.explain))
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and print a table; 1 if the scores of two libraries differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="vgg11", help="of torchvision, without batch norm")
    for name, value in (("size", 64), ("batch", 4), ("samples", 10), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args(arguments)
    declare_torchvision_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import quantus
    model = network(given.network)
    draw = np.random.default_rng(0)
    x = draw.standard_normal((given.batch, 3, given.size, given.size), dtype=np.float32)
    with torch.no_grad():
        y = model(torch.from_numpy(x)).argmax(1).numpy()
    runs = variants(quantus, model, x, y, given.samples)
    scores = {key: np.array(run()) for key, run in runs.items()}
    times = interleaved({str(key): run for key, run in runs.items()}, given.rounds, warmup=0)
    print(
        f"quantus {quantus.__version__}, torch {torch.__version__}, {torch.get_num_threads()} "
        f"thread(s): {given.network}, {given.batch} x 3 x {given.size} x {given.size}, "
        f"{given.samples} noisy copies of each, median of {given.rounds} rounds"
    )
    explained = given.batch * (given.samples + 1)
    for method in METHODS:
        ours, theirs = (times[str((method, name))].median for name in ("relprop", "Quantus' own"))
        for name, seconds in (("relprop", ours), ("Quantus' own", theirs)):
            score = scores[method, name].mean()
            print(
                f"{method:36}  {name:13} {seconds:7.3f} s  {explained / seconds:7.1f} "
                f"explanations/s  score {score:.5f}"
            )
        print(f"{'':36}  {theirs / ours:.2f} times as fast")
    agree = all(
        np.allclose(scores[method, "relprop"], scores[method, "Quantus' own"], rtol=1e-2)
        for method in METHODS
    )
    if not agree:
        print("the scores of the two differ", file=sys.stderr)
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
