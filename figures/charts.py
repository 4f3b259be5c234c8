"""Style of the charts: sizes of text, a colour for each method and architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from relprop.study.evaluation import METHODS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["METHOD_COLOURS", "MODEL_COLOURS", "PAGE_INCHES", "chart"]

PAGE_INCHES = 7.0
"""The width of a page's text."""

# Okabe and Ito's colours, which readers who confuse red and green tell apart.
_SAFE = ("#0072B2", "#56B4E9", "#999999", "#D55E00", "#E69F00", "#CC79A7", "#009E73")
METHOD_COLOURS = dict(zip(METHODS, _SAFE, strict=True))

MODEL_COLOURS = {
    "shallow": "#999999",
    "deep": "#56B4E9",
    "deep_v2": "#0072B2",
    "conv_deep": "#004466",
    "conv_plus_deep": "#CC79A7",
    "r_lstm": "#E69F00",
    "r_lstm_sd": "#D55E00",
    "conv_r_lstm_sd": "#009E73",
    "conv_plus_r_lstm_sd": "#000000",
}

_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def chart(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, its parts placed so that nothing overlaps."""
    from matplotlib import rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rcParams.update(_STYLE)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
