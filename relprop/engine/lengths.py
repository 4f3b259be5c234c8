"""Per-sample lengths: each sample explained as if it were alone and had only its own steps.

Samples of one length are explained together, on inputs cut to that length: nothing that a model
does after its recurrent layers (the last step, a mean over time) sees the padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from relprop.capture.call import Call
from relprop.capture.time import time_axes
from relprop.engine.groups import Explain, explain_group, joined
from relprop.errors import InputError
from relprop.explanation import Explanation
from relprop.graph.recurrent import checked_lengths

__all__ = ["explain_by_length"]


def explain_by_length(
    model: nn.Module, call: Call, target: Any, start: Any, lengths: Any, explain: Explain
) -> Explanation:
    """Explain samples group by group and put the groups back together; padding gets exactly 0.

    Args:
        model: the model.
        call: its inputs, padded.
        target, start: as in `Explainer.__call__`.
        lengths: valid steps of each sample, `[batch]`.
        explain: what explains one group.

    Raises:
        InputError: the model has no recurrent layer, or lengths are not from 1 to T.
    """
    own = [None if i in call.shared else leaf for i, leaf in enumerate(call.leaves)]
    axes = time_axes(model, own, call.batch_dim)
    if not axes:
        raise InputError(
            f"lengths: {type(model).__name__} has no recurrent layer with an input "
            "[batch, T, features] or tokens [batch, T] that could use them; leave them out"
        )
    batch, (leaf, axis) = call.batch, next(iter(axes.items()))
    steps = call.leaves[leaf].shape[axis]
    valid = checked_lengths("lengths", lengths, batch, steps, torch.device("cpu"))
    assert valid is not None
    groups = []
    for length in valid.unique().tolist():
        rows = (valid == length).nonzero().flatten()
        groups.append(explain_group(rows, call, target, start, explain, axes, length))
    return joined(groups, target, call, axes)
