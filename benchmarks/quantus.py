"""Quantus' max sensitivity on three ways to explain: its Captum path, its Zennit path, relprop's.

    python -m benchmarks.quantus [--network vgg11] [--size 64] [--batch 4] [--samples 10]
                                 [--rounds 3] [--record FILE.csv]

All run in one process, in turn, with the same noise; the scores must agree before times are shown.
"""

from __future__ import annotations

import argparse
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.peers import declare_torchvision_operators, network
from benchmarks.rows import write_rows
from benchmarks.timing import interleaved
from relprop.integrations.quantus import explain
from relprop.tables import table

__all__ = ["main", "measured", "variants"]

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


def measured(
    runs: dict[tuple[str, str], Callable[[], list[float]]], explained: int, rounds: int
) -> list[dict[str, str]]:
    """Time and score of each run, Quantus' own beside ours.

    Args:
        runs: what `variants` gives.
        explained: explanations that one run makes.
        rounds: measured rounds.

    Returns:
        A row a run.

    Raises:
        AssertionError: the scores of the two libraries differ.
    """
    scores = {key: np.array(run()) for key, run in runs.items()}
    for method in METHODS:
        np.testing.assert_allclose(
            scores[method, "relprop"], scores[method, "Quantus' own"], rtol=1e-2, err_msg=method
        )
    times = interleaved({str(key): run for key, run in runs.items()}, rounds, warmup=0)
    found = []
    for (method, library), score in scores.items():
        time, theirs = times[str((method, library))], times[str((method, "Quantus' own"))]
        found.append(
            {
                "method": method,
                "library": library,
                "seconds": f"{time.median:.3f}",
                "spread": f"{time.spread:.2f}",
                "explanations/s": f"{explained / time.median:.1f}",
                "times as fast": f"{theirs.median / time.median:.2f}",
                "score": f"{score.mean():.5f}",
            }
        )
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, record it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="vgg11", help="of torchvision, without batch norm")
    for name, value in (("size", 64), ("batch", 4), ("samples", 10), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--record", type=Path, help="CSV file to write")
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
    rows = measured(runs, given.batch * (given.samples + 1), given.rounds)
    setting = {
        "metric": "max sensitivity",
        "network": given.network,
        "images": " x ".join(map(str, x.shape)),
        "copies": str(given.samples),
        "rounds": str(given.rounds),
        "threads": str(torch.get_num_threads()),
        "quantus": quantus.__version__,
        "torch": torch.__version__,
    }
    print(", ".join(f"{key}: {value}" for key, value in setting.items()))
    print(table(list(rows[0]), [list(row.values()) for row in rows]))
    write_rows(given.record, [{**row, **setting} for row in rows])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
