"""The data of the study: images read strip by strip, and the majority task.

Run `python -m figures.task`: writes task.png and task.pdf beside this file, from the images shipped
with relprop.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from figures.charts import PAGE_INCHES, chart
from figures.common import Places, run
from relprop import data
from relprop.study.evaluation.reported import TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = (1, 4, 7)
SINGLE = ("mnist", 7), ("fashion_mnist", 9)
MAJORITY = ("mnist_maj", (1, 9)), ("fashion_mnist_maj", (5, 8))
MAJORITY_STEPS = 12
RIGHT, ODD = "#009E73", "#D55E00"
SIDE = 28


def draw(places: Places) -> list[Path]:
    """Draw the figure; returns its files."""
    figure = chart(PAGE_INCHES, 4.5)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1, 2.6))
    top, bottom = halves
    top.suptitle("single images as sequences of T strips", fontsize=9, fontweight="bold")
    panels = top.subplots(1, len(SINGLE) * len(STEPS))
    for number, (name, label) in enumerate(SINGLE):
        images, labels = data.sample(name)
        image = images[labels == label][0]
        for axes, steps in zip(panels[number * len(STEPS) :], STEPS):
            _draw_strips(axes, image, steps)
            axes.set_title(f"T = {steps}")
    bottom.suptitle("majority task: T = 12 strips of 7 columns", fontsize=9, fontweight="bold")
    grid = bottom.subplots(2, len(MAJORITY))
    for column, (name, classes) in enumerate(MAJORITY):
        for axes, label in zip(grid[:, column], classes, strict=True):
            _draw_sample(axes, name, label)
    return places.save(figure, "task")


def _draw_strips(
    axes: Axes, image: Tensor, steps: int, gap: float = 2.5, least: float = 45
) -> None:
    """An image `[1, 28, columns]` cut into strips, a gap between each two, `least` columns wide."""
    strips = data.strips(image.unsqueeze(0), steps).squeeze(0)
    left, width = 0.0, strips.shape[-1]
    for strip in strips[:, 0]:
        box = (left, left + width, SIDE, 0)
        axes.imshow(strip.numpy(), cmap="gray", vmin=-1, vmax=1, extent=box, interpolation="none")
        left += width + gap
    margin = max(0.5, (least - left + gap) / 2)
    axes.set(xlim=(-margin, left - gap + margin), ylim=(SIDE + 0.5, -0.5), aspect="equal")
    axes.set_axis_off()


def _draw_sample(axes: Axes, name: str, label: int) -> None:
    """The first shipped sample of a class: strips, a frame around each block, the label."""
    task = data.task(name, "sample")
    images, _, masks = task.batch((task.labels == label).nonzero()[:1].flatten())
    gap = 1.2
    _draw_strips(axes, images[0], MAJORITY_STEPS, gap)
    steps_a_block = MAJORITY_STEPS // masks.shape[1]
    width = steps_a_block * (7 + gap)
    for block, right in enumerate(masks[0].tolist()):
        colour = RIGHT if right else ODD
        left = block * width
        axes.plot([left, left + width - gap], [SIDE + 3, SIDE + 3], color=colour, linewidth=2)
        words = "same class" if right else "other class"
        axes.text(left + (width - gap) / 2, SIDE + 5, words, color=colour, ha="center", va="top")
    axes.set_ylim(SIDE + 12, -0.5)
    classes = data.class_names(name.removesuffix("_maj"))
    axes.set_title(f"{TITLES[name]}: label “{classes[label]}”")


if __name__ == "__main__":
    run(draw, __doc__)
