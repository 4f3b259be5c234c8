"""Cosine similarities of methods, architectures and data sets beside the reported values.

Run `python -m figures.cosine_similarity`: writes cosine_similarity.png and cosine_similarity.pdf
beside this file, from the cells of `relprop evaluate`; those that are missing are measured first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures.charts import METHOD_COLOURS, PAGE_INCHES, chart
from figures.common import Places, run
from relprop.study import networks as study
from relprop.study.evaluation import LABELS, Cell
from relprop.study.evaluation.explained import TABLE
from relprop.study.evaluation.reported import COSINE, MODELS, REFERENCES, TASKS, TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(places: Places) -> list[Path]:
    """Draw the chart; returns its files, none where nothing is trained."""
    cells = {task: places.measured(task, MODELS) for task in TASKS}
    if not any(cells.values()):
        return []
    figure = chart(PAGE_INCHES, 4.6)
    grid = figure.subplots(len(TASKS), len(TABLE), sharex=True, sharey=True)
    for row, task in zip(grid, TASKS, strict=True):
        for axes, method in zip(row, TABLE, strict=True):
            _draw_panel(axes, task, method, cells[task])
        row[0].set_ylabel(TITLES[task], fontweight="bold")
    for axes, method in zip(grid[0], TABLE, strict=True):
        axes.set_title(LABELS[method].removesuffix(" Decomposition"))
    shown = [value for own in cells.values() for c in own.values() for value in c.cosine.values()]
    for axes in grid[-1]:
        axes.set(xlabel="cosine similarity", xlim=(min(0.4, *shown) - 0.05, 1.02))
    _draw_legend(figure)
    return places.save(figure, "cosine_similarity")


def _draw_panel(axes: Axes, task: str, method: str, cells: Mapping[str, Cell]) -> None:
    """One method on one task: a line for each architecture, the first on top."""
    for value in REFERENCES.values():
        axes.axvline(value, color="0.75", linewidth=0.8, linestyle=":", zorder=0)
    for y, model in enumerate(MODELS):
        reported = COSINE[task, model][method]
        colour = METHOD_COLOURS[method]
        if model in cells:
            value = cells[model].cosine[method]
            axes.plot([reported, value], [y, y], color=colour, linewidth=0.8, alpha=0.5)
            axes.plot(value, y, "o", color=colour, markersize=5)
        axes.plot(reported, y, "o", color="black", markersize=6, fillstyle="none")
    axes.set_yticks(range(len(MODELS)), [study.TITLES[model] for model in MODELS])
    axes.set(ylim=(len(MODELS) - 0.5, -0.5))


def _draw_legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"color": "black", "linestyle": "none", "marker": "o", "markersize": 6}
    handles = [
        Line2D([], [], label="measured here", **style),
        Line2D([], [], label="reported", fillstyle="none", **style),
        Line2D([], [], label=_references(), color="0.6", linewidth=0.8, linestyle=":"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)


def _references() -> str:
    return "; ".join(f"{name} {value:.4f}" for name, value in REFERENCES.items())


if __name__ == "__main__":
    run(draw, __doc__)
