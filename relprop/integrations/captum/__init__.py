"""Captum's interface on relprop's engine.

    from relprop.integrations.captum import LRP     # instead of: from captum.attr import LRP

The classes derive from Captum's, take its arguments and give its return forms; they run inside its
`NoiseTunnel` and with its visualisation.  Residual sums, functional operations, modules used twice
and recurrent layers are handled; `strict=True` gives Captum's own numbers and errors instead.
"""

from __future__ import annotations

from typing import Any

from relprop.integrations import peer

captum_attr = peer("captum.attr", "captum")

from relprop.integrations.captum.gradients import (  # noqa: E402
    Deconvolution,
    GuidedBackprop,
    InputXGradient,
    Saliency,
)
from relprop.integrations.captum.layers import LayerLRP  # noqa: E402
from relprop.integrations.captum.lrp import LRP  # noqa: E402


def __getattr__(name: str) -> Any:
    if name in captum_attr.__all__:
        raise ImportError(
            f"relprop.integrations.captum has no {name!r}: use Captum's own, "
            f"from captum.attr import {name}; it works beside {', '.join(__all__)} from here"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["LRP", "Deconvolution", "GuidedBackprop", "InputXGradient", "LayerLRP", "Saliency"]
