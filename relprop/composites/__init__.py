"""Composites: which rule each layer gets.

A composite is data.  `Composite.assign` looks only at `LayerInfo`, the plan's description of an
operation, so nothing here knows of graphs or tensors.  Presets carry the names the field uses;
those of Zennit mean what they mean there, on networks with one stem.
"""

from relprop.composites.composite import KINDS, LINEAR_KINDS, Composite, LayerInfo, Selector
from relprop.composites.presets import (
    PRESETS,
    alpha_beta,
    deep_taylor,
    epsilon_alpha2_beta1,
    epsilon_alpha2_beta1_flat,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_flat,
    excitation_backprop,
    from_name,
    lrp_epsilon,
    lrp_flat,
    lrp_gamma,
    lrp_w_square,
    lrp_zero,
    lrp_zplus,
    uniform,
)

__all__ = [
    "KINDS",
    "LINEAR_KINDS",
    "PRESETS",
    "Composite",
    "LayerInfo",
    "Selector",
    "alpha_beta",
    "deep_taylor",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
    "epsilon_gamma_box",
    "epsilon_plus",
    "epsilon_plus_flat",
    "excitation_backprop",
    "from_name",
    "lrp_epsilon",
    "lrp_flat",
    "lrp_gamma",
    "lrp_w_square",
    "lrp_zero",
    "lrp_zplus",
    "uniform",
]
