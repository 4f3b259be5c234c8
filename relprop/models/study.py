"""The study's networks under the name that their model card gives: see `relprop.study.networks`."""

from relprop.study.networks import *  # noqa: F403
from relprop.study.networks import __all__ as __all__
