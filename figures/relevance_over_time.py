"""Where in time relevance lies: its share at each step, by which of three images is the odd one.

Run `python -m figures.relevance_over_time`: writes relevance_over_time_mnist.png and .pdf, and the
same for Fashion-MNIST, beside this file, from the cells of `relprop evaluate`; those that are
missing are measured first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from figures.charts import MODEL_COLOURS, PAGE_INCHES, chart
from figures.common import Places, run
from relprop.study import networks as study
from relprop.study.evaluation import LABELS, Cell
from relprop.study.evaluation.explained import TABLE
from relprop.study.evaluation.reported import TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TASKS = {"mnist_maj": "mnist", "fashion_mnist_maj": "fashion"}
PLACES = ("first", "second", "third")
STEPS_A_BLOCK = 4


def draw(places: Places) -> list[Path]:
    """Draw a chart for each task; returns their files, none where nothing is trained."""
    files = []
    for task, ending in TASKS.items():
        cells = places.measured(task, tuple(MODEL_COLOURS))
        if cells:
            files += _draw_task(places, task, f"relevance_over_time_{ending}", cells)
    return files


def _draw_task(places: Places, task: str, name: str, cells: Mapping[str, Cell]) -> list[Path]:
    figure = chart(PAGE_INCHES, 5.0)
    grid = figure.subplots(len(PLACES), len(TABLE), sharex=True, sharey=True)
    for odd, row in enumerate(grid):
        for axes, method in zip(row, TABLE, strict=True):
            _draw_panel(axes, method, odd, cells)
        row[0].set_ylabel(f"other class {PLACES[odd]}\nshare of relevance")
    for axes, method in zip(grid[0], TABLE, strict=True):
        axes.set_title(LABELS[method].removesuffix(" Decomposition"))
    figure.suptitle(TITLES[task], fontsize=9, fontweight="bold")
    for axes in grid[-1]:
        axes.set_xlabel("time step")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return places.save(figure, name)


def _draw_panel(axes: Axes, method: str, odd: int, cells: Mapping[str, Cell]) -> None:
    start = odd * STEPS_A_BLOCK
    axes.axvspan(
        start + 0.5, start + STEPS_A_BLOCK + 0.5, color="0.9", linewidth=0, label="other class"
    )
    axes.axhline(0, color="0.6", linewidth=0.6)
    for model, cell in cells.items():
        shares = cell.over_time[method][odd]
        axes.plot(
            range(1, len(shares) + 1),
            shares,
            color=MODEL_COLOURS[model],
            linewidth=1.1,
            label=study.TITLES[model],
        )
    axes.set_xticks(range(STEPS_A_BLOCK, 3 * STEPS_A_BLOCK + 1, STEPS_A_BLOCK))
    axes.set_xticks(range(1, 3 * STEPS_A_BLOCK + 1), minor=True)
    axes.set_xlim(0.5, 3 * STEPS_A_BLOCK + 0.5)


if __name__ == "__main__":
    run(draw, __doc__)
