"""Draw the study's figures: `python -m figures`, the options of any one of them given to all."""

from __future__ import annotations

from figures import (
    cosine_similarity,
    majority,
    pixel_flipping,
    relevance_over_time,
    single_images,
    task,
)
from figures.common import run

SCRIPTS = (
    single_images,
    majority,
    cosine_similarity,
    relevance_over_time,
    pixel_flipping,
    task,
)

if __name__ == "__main__":
    for script in SCRIPTS:
        run(script.draw, script.__doc__)
