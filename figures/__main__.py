"""Draw the study's figures: `python -m figures`, the options of any one of them given to all."""

from __future__ import annotations

import sys

from figures import (
    cosine_similarity,
    majority,
    pixel_flipping,
    relevance_over_time,
    single_images,
    task,
)

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
        for file in script.main(sys.argv[1:]):
            print(f"wrote {file}", flush=True)
