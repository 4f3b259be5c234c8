"""Pixel flipping on single images: the true logit while patches are erased, by seven methods.

Run `python -m figures.pixel_flipping`: writes pixel_flipping.png and pixel_flipping.pdf beside this
file.  ConvDeep at T = 1; 49 patches of 4 x 4 pixels, most relevant first, become background.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from figures.charts import METHOD_COLOURS, PAGE_INCHES, chart
from figures.common import Places, run
from relprop import metrics
from relprop.data import Task
from relprop.study import networks as study
from relprop.study.evaluation import LABELS, Explained
from relprop.study.evaluation.reported import TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODEL = "conv_deep"
TASKS = ("mnist", "fashion_mnist")
PATCHES, BATCH, MOST = 49, 100, 500


def draw(places: Places) -> list[Path]:
    """Draw the chart with a panel for each trained network; returns its files."""
    networks = {task: places.networks(task, [MODEL]).get(MODEL) for task in TASKS}
    shown = {task: network for task, network in networks.items() if network is not None}
    if not shown:
        return []
    figure = chart(PAGE_INCHES, 3.6)
    (panels,) = figure.subplots(1, len(shown), squeeze=False)
    areas: dict[str, list[str]] = {}
    for axes, (task, network) in zip(panels, shown.items(), strict=True):
        samples = places.task(task).subset(min(places.samples, MOST))
        found = curves(network, samples)
        _draw_panel(axes, found)
        axes.set_title(f"{TITLES[task]}, {study.TITLES[MODEL]}, {len(samples)} test images")
        for key, curve in found.items():
            areas.setdefault(key, []).append(f"{float(metrics.area_under_curve(curve)):.3f}")
    panels[0].set_ylabel("mean logit of the true class")
    _draw_legend(figure, panels[0], areas)
    return places.save(figure, "pixel_flipping")


def curves(network: nn.Module, samples: Task) -> dict[str, Tensor]:
    """The mean true logit after each patch, `[50]`, by method and for a random order."""
    explained = Explained(network, MODEL)
    sums: dict[str, Tensor] = {}
    for start in range(0, len(samples), BATCH):
        images, labels, _ = samples.batch(slice(start, start + BATCH))
        _, maps = explained(images, labels)
        for key, order in _orders(maps, start):
            curve = metrics.pixel_flipping(network, images, labels, order).sum(0)
            sums[key] = sums[key] + curve if key in sums else curve
    return {key: total / len(samples) for key, total in sums.items()}


def _orders(maps: dict[str, Tensor], seed: int) -> Iterator[tuple[str, Tensor]]:
    for method, relevance in maps.items():
        yield method, metrics.patch_order(relevance)
    yield "random", metrics.random_order(len(relevance), PATCHES, seed)


def _draw_panel(axes: Axes, found: dict[str, Tensor]) -> None:
    axes.axhline(0, color="0.6", linewidth=0.6)
    for key, curve in found.items():
        colour, style = ("black", "--") if key == "random" else (METHOD_COLOURS[key], "-")
        axes.plot(range(len(curve)), curve.tolist(), color=colour, linestyle=style, linewidth=1.2)
    axes.set_xlabel(f"patches erased of {PATCHES}")


def _draw_legend(figure: Figure, axes: Axes, areas: dict[str, list[str]]) -> None:
    """The methods below the panels, each with its areas in the order of the panels."""
    labels = [f"{LABELS.get(key, 'Random order')} ({', '.join(a)})" for key, a in areas.items()]
    figure.legend(
        axes.lines[1:],
        labels,
        title="normalised area under each panel's curve in brackets; smaller is better",
        title_fontsize=7.5,
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )


if __name__ == "__main__":
    run(draw, __doc__)
