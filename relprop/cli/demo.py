"""`make demo`: real images explained with every method, a figure, a table of throughput.

Works offline on a CPU: the networks and the images ship with the package.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relprop import data, image, models
from relprop.explainer import Explainer
from relprop.methods import GradientMethod, resolve
from relprop.tables import table

__all__ = ["LABELS", "main"]

LABELS: dict[str, str] = {
    "sensitivity": "Sensitivity Analysis",
    "gradient": "Gradient",
    "guided_backprop": "Guided Backprop",
    "deconvnet": "Deconvnet",
    "smoothgrad": "SmoothGrad",
    "integrated_gradients": "Integrated Gradients",
    "simple_taylor": "Simple Taylor",
    "deep_taylor": "Deep Taylor",
    "lrp_alpha1.2_beta0.2": "LRP-α1.2β0.2",
    "lrp_alpha1.5_beta0.5": "LRP-α1.5β0.5",
    "lrp_alpha2_beta1": "LRP-α2β1",
    "lrp_zero": "LRP-0",
    "lrp_epsilon": "LRP-ε",
    "lrp_gamma": "LRP-γ",
    "lrp_zplus": "LRP-z⁺",
    "lrp_w_square": "LRP-w²",
    "lrp_flat": "LRP-flat",
    "epsilon_plus": "ε-plus",
    "epsilon_plus_flat": "ε-plus-flat",
    "epsilon_alpha2_beta1": "ε-α2β1",
    "epsilon_alpha2_beta1_flat": "ε-α2β1-flat",
    "epsilon_gamma_box": "ε-γ-box",
    "excitation_backprop": "Excitation Backprop",
}
"""Every method, in the order of the figure; simple_taylor is gradient_x_input too."""

_BOXED = ("deep_taylor", "epsilon_gamma_box")
_MODELS = (("mnist_cnn", "mnist", "MNIST"), ("fashion_mnist_cnn", "fashion_mnist", "Fashion-MNIST"))
_CLASSES = {"mnist": (0, 3, 4, 7), "fashion_mnist": (0, 5, 8, 9)}
BATCH, ROUNDS = 32, 3


def options_of(method: str) -> dict[str, Any]:
    """The options that a method needs for images in [-1, 1]."""
    return {"low": -1.0, "high": 1.0} if method in _BOXED else {}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m relprop.cli.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder of the figure")
    parser.add_argument("--no-table", action="store_true", help="draw the figure only")
    arguments = parser.parse_args(argv)
    began = time.perf_counter()
    for file in draw(arguments.out / "methods"):
        print(f"wrote {file}")
    if not arguments.no_table:
        print()
        print(throughput())
    print(f"\nfinished in {time.perf_counter() - began:.0f} s")
    return 0


def draw(path: Path, methods: Sequence[str] = tuple(LABELS)) -> list[Path]:
    """The figure, methods x samples of both data sets; returns its PDF and PNG.

    Args:
        path: of the files, without suffix.
        methods: names of `LABELS`, the rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    inputs, names, wrong = [], [], []
    maps: dict[str, list[Tensor]] = {method: [] for method in methods}
    for model_name, dataset, _ in _MODELS:
        model = models.load(model_name)
        images, labels = _chosen(model, dataset)
        with torch.no_grad():
            wrong.append(model(images).argmax(1) != labels)
        inputs.append(images)
        names += [data.class_names(dataset)[int(label)] for label in labels]
        for method, parts in maps.items():
            explainer = Explainer(model, method, method_options=options_of(method))
            relevance = explainer(images, target=labels)
            assert isinstance(relevance, Tensor)
            parts.append(relevance)
    rows = [(LABELS[method], torch.cat(parts)) for method, parts in maps.items()]
    groups = [(title, len(_CLASSES[dataset])) for _, dataset, title in _MODELS]
    return list(
        image.heatmap_figure(
            rows,
            names,
            inputs=torch.cat(inputs),
            path=path,
            faint=torch.cat(wrong),
            column_groups=groups,
        )
    )


def _chosen(model: nn.Module, dataset: str) -> tuple[Tensor, Tensor]:
    """The first correctly classified sample image of each class shown."""
    images, labels = data.sample(dataset)
    with torch.no_grad():
        correct = model(images).argmax(1) == labels
    picked = [int((correct & (labels == c)).nonzero()[0]) for c in _CLASSES[dataset]]
    return images[picked], labels[picked]


def throughput() -> str:
    """Explanations per second of each method beside the naive reference, as a table."""
    model = models.load("fashion_mnist_cnn")
    images, labels = (x[:BATCH] for x in data.sample("fashion_mnist"))
    rows = []
    for method, label in LABELS.items():
        ours, naive = _interleaved(
            _call(model, method, images, labels, "auto"), _naive(model, method, images, labels)
        )
        rows.append((label, f"{BATCH / ours:,.0f}", f"{BATCH / naive:,.0f}", f"{naive / ours:.1f}"))
        if sys.stdout.isatty():
            print(f"\rmeasuring {label:30}", end="\r")
    head = ("method", "explanations/s", "naive reference/s", "ratio")
    note = (
        f"fashion_mnist_cnn, {BATCH} real images, float32, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {platform.machine()}; medians of {ROUNDS} rounds in turn.\n"
        "naive reference: LRP by autograd term by term, layer by layer; for gradient methods the\n"
        "model's own forward pass and torch.autograd.grad, once per point."
    )
    return table(head, rows) + "\n" + note


def _call(
    model: nn.Module, method: str, images: Tensor, labels: Tensor, backend: str
) -> Callable[[], Any]:
    explainer = Explainer(model, method, method_options=options_of(method), backend=backend)
    return lambda: explainer(images, target=labels)


def _naive(model: nn.Module, method: str, images: Tensor, labels: Tensor) -> Callable[[], Any]:
    resolved = resolve(method, options_of(method))
    if not isinstance(resolved, GradientMethod):
        return _call(model, method, images, labels, "reference")

    def gradients() -> None:
        for _ in range(resolved.samples):
            x = images.clone().requires_grad_()
            chosen = model(x).gather(1, labels.unsqueeze(1)).sum()
            torch.autograd.grad(chosen, x)

    return gradients


def _interleaved(*calls: Callable[[], Any]) -> list[float]:
    """Median seconds of each call, measured in turn after one warm-up."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(ROUNDS + 1):
        for call, found in zip(calls, times, strict=True):
            began = time.perf_counter()
            call()
            if number:
                found.append(time.perf_counter() - began)
    return [statistics.median(found) for found in times]


if __name__ == "__main__":
    sys.exit(main())
