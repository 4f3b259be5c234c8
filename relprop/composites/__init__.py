"""Composites: which rule each layer gets.

A composite is data.  `Composite.assign` looks only at `LayerInfo`, the plan's description of an
operation, so nothing here knows of graphs or tensors.  Presets carry the names the field uses;
those of Zennit mean what they mean there, on networks with one stem.
"""

from relprop.composites import presets
from relprop.composites.composite import Composite, uniform
from relprop.composites.presets import *  # noqa: F403 (the names are listed there)
from relprop.composites.selectors import KINDS, LINEAR_KINDS, LayerInfo, Selector

__all__ = [
    "KINDS",
    "LINEAR_KINDS",
    "Composite",
    "LayerInfo",
    "Selector",
    "uniform",
]
__all__ += presets.__all__
