"""The labelled figure of heatmaps, methods x samples, drawn with Matplotlib."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from relprop.atomic import replacing
from relprop.errors import InputError, RelpropError
from relprop.image.colours import Array, Pixels, fade, grey, heatmap, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["heatmap_figure", "save_figure"]

Groups = Sequence[tuple[str, int]]

# Lengths are in units of a cell's width.
CELL_INCHES = 0.68
GAP = 0.06
COLUMN_GROUP_GAP, ROW_GROUP_GAP = 0.3, 0.4
LINE = 0.22
"""Height of a line of text."""
FONT: dict[str, Any] = {"fontsize": 8, "color": "black"}
SHARPNESS = 8
"""Pixels are repeated this often, so that no viewer of the PDF blurs them."""


def heatmap_figure(
    rows: Iterable[tuple[str, Array]],
    columns: Sequence[str],
    *,
    inputs: Array,
    path: str | os.PathLike[str],
    faint: Array | None = None,
    row_groups: Groups = (),
    column_groups: Groups = (),
    low: float = -1.0,
    high: float = 1.0,
    input_label: str = "Input",
    dpi: int = 200,
    cell_inches: float = CELL_INCHES,
) -> tuple[Path, Path]:
    """Draw heatmaps, methods x samples, under the inputs, with a colour legend; as PDF and PNG.

    `rows` are (label, relevance `[N, C, H, W]`) pairs, each map divided by its own maximum;
    `columns` the N samples' labels; `inputs` the images `[N, C, H, W]`, from `low` to `high`.
    `faint`, bool `[N]` or `[rows, N]`, marks misclassified samples, drawn faint.  `row_groups` and
    `column_groups` are (heading, number of rows or columns) pairs.  `path` is without its suffix;
    `cell_inches` the width of a column.

    Returns: the paths of the PDF (text as text) and of the PNG.

    Raises: InputError where shapes disagree; RelpropError where Matplotlib is missing.
    """
    rows = list(rows)
    _check_groups("row_groups", row_groups, len(rows))
    _check_groups("column_groups", column_groups, len(columns))
    pictures = _pictures(rows, columns, inputs, faint, low, high)
    figure, axes = canvas("heatmap_figure")
    height, text = pictures.shape[2] / pictures.shape[3], CELL_INCHES / cell_inches
    layout = Layout(
        lefts=_edges(column_groups or [("", len(columns))], 1, 0, COLUMN_GROUP_GAP),
        tops=_tops(row_groups or [("", len(rows))], height, text),
        height=height,
        text=text,
    )
    labels = [input_label, *(label for label, _ in rows)]
    _draw_cells(axes, layout, pictures, labels)
    _draw_headings(axes, layout, columns, row_groups, column_groups)
    draw_legend(axes, layout, faint is not None and bool(np.asarray(faint).any()))
    axes.set(xlim=(0, layout.width), ylim=(layout.bottom, 0), aspect="auto")
    figure.set_size_inches(layout.width * cell_inches, layout.bottom * cell_inches)
    return save_figure(figure, path, dpi)


def _check_groups(name: str, groups: Groups, count: int) -> None:
    if groups and sum(size for _, size in groups) != count:
        raise InputError(
            f"image.heatmap_figure: the sizes of {name} {list(groups)} do not add up to {count}."
        )


def _pictures(
    rows: list[tuple[str, Array]],
    columns: Sequence[str],
    inputs: Array,
    faint: Array | None,
    low: float,
    high: float,
) -> Pixels:
    """All cells `[1 + rows, N, H, W, 3]`, the inputs first."""
    first = grey(inputs, low, high)
    if first.ndim != 4 or len(first) != len(columns) or 0 in first.shape:
        raise InputError(
            f"image.heatmap_figure: inputs of shape {tuple(inputs.shape)} for {len(columns)} "
            f"columns; expected [{len(columns)}, C, H, W], one or more."
        )
    cells = [first]
    for label, relevance in rows:
        cells.append(heatmap(relevance))
        if cells[-1].shape != first.shape:
            raise InputError(
                f"image.heatmap_figure: row {label!r} has relevance {tuple(relevance.shape)}; "
                f"expected that of inputs {tuple(inputs.shape)}."
            )
    pictures = np.stack(cells)
    if faint is not None:
        marks = _marks(faint, len(rows), len(columns))
        pictures[1:][marks] = fade(pictures[1:][marks])
    return pictures


def _marks(faint: Array, rows: int, columns: int) -> NDArray[np.bool_]:
    marks = np.asarray(faint, dtype=bool)
    if marks.shape not in ((columns,), (rows, columns)):
        raise InputError(
            f"image.heatmap_figure: faint has shape {marks.shape}; expected ({columns},) or "
            f"({rows}, {columns})."
        )
    return np.broadcast_to(marks, (rows, columns))


@dataclass(frozen=True)
class Layout:
    """Left edges of columns, top edges of rows (the inputs' first), and a cell's height.

    `text` is what text takes of a cell, in units of what it takes of one of `CELL_INCHES`.
    """

    lefts: tuple[float, ...]
    tops: tuple[float, ...]
    height: float
    text: float

    @property
    def width(self) -> float:
        return self.lefts[-1] + 1

    @property
    def bottom(self) -> float:
        return self.tops[-1] + self.height


def _edges(groups: Groups, size: float, start: float, group_gap: float) -> tuple[float, ...]:
    """Left or top edges of cells of a size, with a wider gap between groups."""
    of_cell = [group for group, (_, count) in enumerate(groups) for _ in range(count)]
    return tuple(
        start + cell * (size + GAP) + group * group_gap for cell, group in enumerate(of_cell)
    )


def _tops(groups: Groups, height: float, text: float) -> tuple[float, ...]:
    heading = ROW_GROUP_GAP * text
    below_inputs = height + (heading if groups[0][0] else 2 * GAP)
    return (0.0, *_edges(groups, height, below_inputs, heading))


def canvas(caller: str) -> tuple[Figure, Axes]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RelpropError(
            f"image.{caller} needs Matplotlib: pip install 'relprop[figures]'."
        ) from error
    # Not pyplot: it would open windows and keep every figure alive.
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return figure, axes


def show(axes: Axes, picture: Pixels, left: float, top: float, width: float, height: float) -> None:
    sharp = picture.repeat(SHARPNESS, axis=0).repeat(SHARPNESS, axis=1)
    box = (left, left + width, top + height, top)
    axes.imshow(sharp, extent=box, interpolation="none", aspect="auto", clip_on=False)


def _draw_cells(axes: Axes, layout: Layout, pictures: Pixels, labels: Sequence[str]) -> None:
    for top, label, row in zip(layout.tops, labels, pictures, strict=True):
        middle = top + layout.height / 2
        axes.text(-0.12 * layout.text, middle, label, ha="right", va="center", **FONT)
        for left, picture in zip(layout.lefts, row, strict=True):
            show(axes, picture, left, top, 1, layout.height)


def _draw_headings(
    axes: Axes,
    layout: Layout,
    columns: Sequence[str],
    row_groups: Groups,
    column_groups: Groups,
) -> None:
    texts = [textwrap.fill(text, 12, break_long_words=False) for text in columns]
    for left, text in zip(layout.lefts, texts, strict=True):
        axes.text(left + 0.5, -0.06 * layout.text, text, ha="center", va="bottom", **FONT)
    line = -layout.text * (0.16 + LINE * max(text.count("\n") + 1 for text in texts))
    start = 0
    for heading, count in column_groups:
        first, last = layout.lefts[start], layout.lefts[start + count - 1] + 1
        axes.plot([first, last], [line, line], color="black", linewidth=0.8, clip_on=False)
        middle, above = (first + last) / 2, line - 0.06 * layout.text
        axes.text(middle, above, heading, ha="center", va="bottom", fontweight="bold", **FONT)
        start += count
    start = 1
    for heading, count in row_groups:
        top = layout.tops[start] - 0.06 * layout.text
        axes.text(0, top, heading, ha="left", va="bottom", fontweight="bold", **FONT)
        start += count


def draw_legend(axes: Axes, layout: Layout, faint: bool) -> None:
    """The colour scale under the figure, from R_i << 0 to R_i >> 0, and a note on faint maps."""
    length, thickness = 2.5 * layout.text, 0.18 * layout.text
    left, top = (layout.width - length) / 2, layout.bottom + 0.3 * layout.text
    show(axes, legend(thickness=1), left, top, length, thickness)
    middle = top + thickness / 2
    axes.text(left - 0.1 * layout.text, middle, r"$R_i \ll 0$", ha="right", va="center", **FONT)
    axes.text(
        left + length + 0.1 * layout.text, middle, r"$R_i \gg 0$", ha="left", va="center", **FONT
    )
    if faint:
        note = "faint: misclassified sample"
        axes.text(layout.width / 2, top + 0.32 * layout.text, note, ha="center", va="top", **FONT)


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 200) -> tuple[Path, Path]:
    """Write a figure as PDF and PNG, each whole or not at all; equal figures give equal files.

    `path` is without its suffix.  Returns the paths of the PDF and of the PNG.
    """
    from matplotlib import rc_context

    path = Path(path)
    pdf, png = (path.with_name(f"{path.name}.{kind}") for kind in ("pdf", "png"))
    # Type 42 keeps the text searchable; without dates and versions equal input gives equal files.
    metadata = {
        pdf: {"Creator": "relprop", "Producer": None, "CreationDate": None},
        png: {"Software": None},
    }
    with rc_context({"pdf.fonttype": 42}):
        for target in (pdf, png):
            with replacing(target) as temporary:
                figure.savefig(
                    temporary,
                    dpi=dpi,
                    bbox_inches="tight",
                    pad_inches=0.06,
                    facecolor="white",
                    metadata=metadata[target],
                )
    return pdf, png
