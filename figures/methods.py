"""The README's figure: real test images of both data sets under eight methods.

Run `python figures/methods.py`: writes methods.png and methods.pdf beside this file.
"""

from __future__ import annotations

from pathlib import Path

from relprop.demo import draw

METHODS = (
    "sensitivity",
    "guided_backprop",
    "simple_taylor",
    "deep_taylor",
    "lrp_epsilon",
    "lrp_alpha1.5_beta0.5",
    "lrp_alpha2_beta1",
    "epsilon_plus",
)

if __name__ == "__main__":
    for file in draw(Path(__file__).with_suffix(""), METHODS):
        print(f"wrote {file}")
