"""Per-sample lengths: each sample explained as if it were alone and had only its own steps.

Samples of one length are explained together, on inputs cut to that length: nothing that a model
does after its recurrent layers (the last step, a mean over time) sees the padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relprop.captured import Call
from relprop.conservation import StepRecord
from relprop.errors import InputError
from relprop.explanation import Explanation
from relprop.recurrent.functions import checked_lengths
from relprop.timeaxis import time_axes

__all__ = ["explain_by_length"]

Explain = Callable[[Call, Any, Any], Explanation]
"""A call, its target, its start → its explanation."""


@dataclass(frozen=True)
class _Group:
    """Samples of one length: which they are, their call, its explanation."""

    rows: Tensor
    call: Call
    result: Explanation


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
    axes = time_axes(model, call.leaves, call.batch_dim)
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
        leaves = [
            _cut(value, rows, call.batch_dim, axes.get(i), length)
            for i, value in enumerate(call.leaves)
        ]
        part = replace(call, leaves=leaves)
        begin = _cut(start, rows, call.batch_dim, None, length)
        groups.append(_Group(rows, part, explain(part, _of_rows(target, rows, batch), begin)))
    return _joined(groups, target, call, axes)


def _cut(leaf: Any, rows: Tensor, batch_dim: int, axis: int | None, length: int) -> Any:
    if not isinstance(leaf, Tensor) or leaf.ndim <= batch_dim:
        return leaf
    leaf = leaf.index_select(batch_dim, rows.to(leaf.device))
    return leaf if axis is None else leaf.narrow(axis, 0, length)


def _of_rows(target: Any, rows: Tensor, batch: int) -> Any:
    if isinstance(target, list) and len(target) == batch:
        return [target[row] for row in rows.tolist()]
    if isinstance(target, Tensor) and target.ndim > 0 and len(target) == batch:
        return target[rows.to(target.device)]
    if isinstance(target, np.ndarray) and target.ndim > 0 and len(target) == batch:
        return target[rows.numpy()]
    return target


def _joined(
    groups: Sequence[_Group], target: Any, call: Call, axes: Mapping[int, int]
) -> Explanation:
    first, batch, axis = groups[0].result, call.batch, call.batch_dim
    rows = [group.rows for group in groups]
    maps = [_tuple(group.result.relevance) for group in groups]
    explained = _explained_leaves(groups[0], first.convergence_delta.ndim > 1)
    relevance = [
        _together(parts, rows, batch, axis, _full_size(call, leaf, axes, parts[0]))
        for leaf, parts in zip(explained, zip(*maps, strict=True), strict=True)
    ]
    layers = {
        path: _together([group.result.layers[path] for group in groups], rows, batch, axis)
        for path in first.layers
    }
    deltas = [group.result.convergence_delta for group in groups]
    return replace(
        first,
        relevance=relevance[0] if len(relevance) == 1 else tuple(relevance),
        output=_together([group.result.output for group in groups], rows, batch, axis),
        target=target,
        layers=layers,
        convergence_delta=_together(deltas, rows, batch, 0),
        steps=_records(groups, batch),
    )


def _tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _explained_leaves(group: _Group, with_targets: bool) -> list[int]:
    """Which leaf of the call each map belongs to: they come in the order of the leaves."""
    found: list[int] = []
    after = group.call.batch_dim + 1
    maps = iter(_tuple(group.result.relevance))
    wanted = next(maps, None)
    for index, leaf in enumerate(group.call.leaves):
        if wanted is None:
            break
        shape = list(wanted.shape)
        if with_targets:
            del shape[after]
        if isinstance(leaf, Tensor) and list(leaf.shape) == shape:
            found.append(index)
            wanted = next(maps, None)
    return found


def _full_size(
    call: Call, leaf: int, axes: Mapping[int, int], part: Tensor
) -> tuple[int, int] | None:
    """The time axis of a map and the number of steps of the whole batch."""
    if leaf not in axes:
        return None
    axis, steps = axes[leaf], call.leaves[leaf].shape[axes[leaf]]
    behind = part.ndim > call.leaves[leaf].ndim and axis > call.batch_dim
    return axis + behind, steps


def _together(
    parts: Sequence[Tensor],
    rows: Sequence[Tensor],
    batch: int,
    axis: int,
    full: tuple[int, int] | None = None,
) -> Tensor:
    """The parts, each at its samples; what is shorter than the longest is filled up with 0.

    `axis` is the samples' unless the sizes say otherwise, as for an LSTM's last states.
    """
    counts = [len(own) for own in rows]
    likely = sorted(range(parts[0].ndim), key=lambda i: i != axis)
    axis = next(i for i in likely if [part.shape[i] for part in parts] == counts)
    sizes = [max(part.shape[i] for part in parts) for i in range(parts[0].ndim)]
    sizes[axis] = batch
    if full is not None:
        sizes[full[0]] = full[1]
    result = parts[0].new_zeros(sizes)
    for part, own in zip(parts, rows, strict=True):
        padded = part.new_zeros([*sizes[:axis], len(own), *sizes[axis + 1 :]])
        padded[tuple(slice(size) for size in part.shape)] = part
        result.index_copy_(axis, own.to(part.device), padded)
    return result


def _records(groups: Sequence[_Group], batch: int) -> tuple[StepRecord, ...]:
    """One record a step for all samples; a step that some groups lack is 0 for these."""
    merged: dict[tuple[int, str, str, str], tuple[Tensor, Tensor]] = {}
    for group in groups:
        for record in group.result.steps:
            key = record.step, record.operation, record.path, record.rule
            shape = len(record.relevance_out), batch
            out, into = merged.setdefault(
                key, (record.relevance_out.new_zeros(shape), record.relevance_in.new_zeros(shape))
            )
            out[:, group.rows], into[:, group.rows] = record.relevance_out, record.relevance_in
    return tuple(StepRecord(*key, *sums) for key, sums in merged.items())
