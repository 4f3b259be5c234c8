"""Relevance as pictures: symmetric normalisation, the colour map, grids, PNG files, figures.

Arrays in, arrays out (torch tensors are taken too); nothing but NumPy is needed up to `save_png`.
`heatmap_figure` and `save_sheet` need Matplotlib: `pip install 'relprop[figures]'`.

Imports `errors` and `atomic`.
"""

from relprop.image.colours import (
    colours,
    fade,
    grey,
    heatmap,
    legend,
    normalise,
    sum_channels,
)
from relprop.image.figure import heatmap_figure
from relprop.image.png import grid, save_png
from relprop.image.sheet import Panel, save_sheet, shrunk

__all__ = [
    "Panel",
    "colours",
    "fade",
    "grey",
    "grid",
    "heatmap",
    "heatmap_figure",
    "legend",
    "normalise",
    "save_png",
    "save_sheet",
    "shrunk",
    "sum_channels",
]
