"""The architectures of the recurrent-explanation study, trained, and how each is explained.

Sizes and equations: P. Chormai, "Designing Recurrent Neural Networks for Explainability", TU Berlin
2018.  All are ordinary modules of images `[batch, 1, 28, steps * width]` in [-1, 1] to 10 logits.
"""

from __future__ import annotations

from relprop.study.networks.explained import Kind, composite, method
from relprop.study.networks.registry import (
    ARCHITECTURES,
    TITLES,
    build,
    describe,
    load,
    pairs,
    steps_and_width,
)

__all__ = [
    "ARCHITECTURES",
    "TITLES",
    "Kind",
    "build",
    "composite",
    "describe",
    "load",
    "method",
    "pairs",
    "steps_and_width",
]
