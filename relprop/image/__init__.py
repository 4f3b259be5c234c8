"""Relevance as pictures: symmetric normalisation, the colour map, grids, PNG files, figures.

Arrays in, arrays out (torch tensors are taken too); nothing but NumPy is needed up to `save_png`.
`heatmap_figure` needs Matplotlib, which comes with `pip install 'relprop[figures]'`.

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

__all__ = [
    "colours",
    "fade",
    "grey",
    "grid",
    "heatmap",
    "heatmap_figure",
    "legend",
    "normalise",
    "save_png",
    "sum_channels",
]
