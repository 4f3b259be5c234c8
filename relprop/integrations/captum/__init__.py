"""Captum's interface on relprop's engine.

    from relprop.integrations.captum import LRP     # instead of: from captum.attr import LRP

The classes derive from Captum's, take its arguments and give its return forms; they run inside its
`NoiseTunnel` and with its visualisation.  Residual sums, functional operations, modules used twice
and recurrent layers are handled; `strict=True` gives Captum's own numbers and errors instead.
"""

from __future__ import annotations

from relprop.integrations import peer

peer("captum.attr", "captum")

from relprop.integrations.captum.gradients import (  # noqa: E402
    Deconvolution,
    GuidedBackprop,
    InputXGradient,
    Saliency,
)
from relprop.integrations.captum.layers import LayerLRP  # noqa: E402
from relprop.integrations.captum.lrp import LRP  # noqa: E402

__all__ = ["LRP", "Deconvolution", "GuidedBackprop", "InputXGradient", "LayerLRP", "Saliency"]
