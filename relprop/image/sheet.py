"""A sheet of explained inputs: each beside its heatmaps, with titles and a colour bar."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from relprop.atomic import replacing
from relprop.errors import InputError
from relprop.image.colours import Pixels
from relprop.image.figure import FONT, Layout, canvas, draw_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Panel", "save_sheet", "shrunk"]

PANELS = 8
"""Panels of a line of the sheet, where an input with its heatmaps does not take more."""

INCHES, DPI = 1.5, 150
SIDE = int(INCHES * DPI)
TITLE, GAP, BETWEEN = 0.34, 0.06, 0.3
LETTERS = 22


@dataclass(frozen=True)
class Panel:
    """A picture, bytes `[H, W, 3]`, under a title of one or two lines."""

    title: str
    picture: Pixels


def save_sheet(strips: Sequence[Sequence[Panel]], path: str | os.PathLike[str]) -> Path:
    """Draw strips of panels, an input and its heatmaps each, as one PNG; returns its path.

    Pictures may be of any sizes; each is fitted into its cell.  Titles are cut to their column.

    Raises: InputError for no strips or strips of several lengths; RelpropError where Matplotlib is
    missing.
    """
    length = len(strips[0]) if strips else 0
    if not length or any(len(strip) != length for strip in strips):
        raise InputError(
            f"image.save_sheet: strips of {sorted({len(s) for s in strips})} panels; expected one "
            "or more, all of one length."
        )
    figure, axes = canvas("save_sheet")
    abreast = min(len(strips), max(1, PANELS // length))
    lines = -(-len(strips) // abreast)
    wide = length * (1 + GAP) - GAP + BETWEEN
    shapes = [panel.picture.shape for strip in strips for panel in strip]
    tall = max(min(1.0, shape[0] / shape[1]) for shape in shapes)
    layout = Layout(
        lefts=tuple(s * wide + p * (1 + GAP) for s in range(abreast) for p in range(length)),
        tops=tuple(TITLE + line * (tall + GAP + TITLE) for line in range(lines)),
        height=tall,
        text=0.68 / INCHES,
    )
    for number, strip in enumerate(strips):
        line, place = divmod(number, abreast)
        for left, panel in zip(layout.lefts[place * length :], strip, strict=False):
            _draw(axes, panel, (left, layout.tops[line], tall))
    draw_legend(axes, layout, False)
    axes.set(xlim=(0, layout.width), ylim=(layout.bottom, 0), aspect="auto")
    figure.set_size_inches(layout.width * INCHES, layout.bottom * INCHES)
    path = Path(path)
    with replacing(path) as temporary:
        figure.savefig(
            temporary,
            dpi=DPI,
            bbox_inches="tight",
            pad_inches=0.08,
            facecolor="white",
            metadata={"Software": None},
        )
    return path


def shrunk(picture: Pixels) -> Pixels:
    """A picture no larger than a panel shows: means of blocks of pixels."""
    block = max(picture.shape[:2]) // SIDE
    if block < 2:
        return picture
    height, width = (max(1, length // block) for length in picture.shape[:2])
    down, right = min(block, picture.shape[0]), min(block, picture.shape[1])
    cut = picture[: height * down, : width * right].reshape(height, down, width, right, 3)
    return np.rint(cut.mean((1, 3))).astype(np.uint8)


def _draw(axes: Axes, panel: Panel, cell: tuple[float, float, float]) -> None:
    """A panel in the middle of a cell: its left and top edge, its height; it is 1 wide."""
    left, top, tall = cell
    rows, columns = panel.picture.shape[:2]
    pixel = min(1 / columns, tall / rows)
    height, width = rows * pixel, columns * pixel
    x, y = left + (1 - width) / 2, top + (tall - height) / 2
    enlarges = max(panel.picture.shape[:2]) < SIDE
    axes.imshow(
        panel.picture,
        extent=(x, x + width, y + height, y),
        interpolation="nearest" if enlarges else "antialiased",
        aspect="auto",
        clip_on=False,
    )
    words = "\n".join(_cut(line) for line in panel.title.splitlines()[:2])
    # names may hold dollar signs, which are no formula
    axes.text(left + 0.5, y - 0.03, words, ha="center", va="bottom", parse_math=False, **FONT)


def _cut(line: str) -> str:
    """A line that fits its column: the end of a name tells more than its middle."""
    if len(line) <= LETTERS:
        return line
    tail = LETTERS // 2 - 1
    return f"{line[: LETTERS - tail - 1]}…{line[-tail:]}"
