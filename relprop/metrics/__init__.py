"""Measures of explanations: where relevance lies, whether it matters, whether it adds up.

Relevance comes as maps `[..., C, H, W]` and counts signed.  Every function returns one number (or
curve) a map, in float64; means are the caller's.
"""

from relprop.metrics.blocks import block_cosine, block_share, share_in_blocks
from relprop.metrics.flipping import (
    area_under_curve,
    patch_order,
    pixel_flipping,
    random_order,
)
from relprop.metrics.strips import conservation_error, relevance_over_time, strip_relevance

__all__ = [
    "area_under_curve",
    "block_cosine",
    "block_share",
    "conservation_error",
    "patch_order",
    "pixel_flipping",
    "random_order",
    "relevance_over_time",
    "share_in_blocks",
    "strip_relevance",
]
