"""Canonizers: which relprop needs none of, and a copy of the model for the others."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import nn
from zennit.canonizers import Canonizer, CompositeCanonizer, MergeBatchNorm
from zennit.core import Composite

__all__ = ["canonised"]

_RESIDUAL = ("ResNetBottleneckCanonizer", "ResNetBasicBlockCanonizer", "ResNetCanonizer")


def canonised(model: nn.Module, composite: Composite) -> nn.Module:
    """The model as a composite's canonizers leave it; the model itself is not changed.

    Merging batch norms and spelling out residual sums is what relprop does by itself, from the
    operations: those canonizers are skipped.  For any other the model is copied, and the canonizer
    applied to the copy.

    Args:
        model: the model.
        composite: one of Zennit's.

    Returns:
        The model itself, or a copy of it with the values that it has now.
    """
    needed = list(_needed(composite.canonizers))
    if not needed:
        return model
    copied = copy.deepcopy(model)
    for canonizer in needed:
        canonizer.apply(copied)
    return copied


def _needed(canonizers: Iterable[Canonizer]) -> Iterable[Canonizer]:
    for canonizer in canonizers:
        if isinstance(canonizer, MergeBatchNorm) or _is_residual(canonizer):
            continue
        if type(canonizer) is CompositeCanonizer:
            yield from _needed(canonizer.canonizers)
        else:
            yield canonizer


def _is_residual(canonizer: Canonizer) -> bool:
    kind = type(canonizer)
    return kind.__module__ == "zennit.torchvision" and kind.__name__ in _RESIDUAL
