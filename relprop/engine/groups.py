"""A batch explained in groups of its samples, and the groups put back together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop.capture.call import Call
from relprop.conservation import StepRecord
from relprop.explanation import Explanation

__all__ = ["Explain", "Group", "explain_group", "explain_halves", "joined"]

Explain = Callable[[Call, Any, Any], Explanation]
"""A call, its target, its start → its explanation."""


@dataclass(frozen=True)
class Group:
    """Samples of one length: which they are, their call, its explanation."""

    rows: Tensor
    call: Call
    result: Explanation


def explain_group(
    rows: Tensor,
    call: Call,
    target: Any,
    start: Any,
    explain: Explain,
    axes: Mapping[int, int] | None = None,
    length: int = 0,
) -> Group:
    """Explain some samples of a call.

    Args:
        rows: which samples, int64 on the CPU.
        call, target, start: of the whole batch.
        explain: what explains a call.
        axes: time axes of leaves, by their position, to be cut to `length`.
    """
    leaves = [
        value
        if i in call.shared
        else _cut(value, rows, call.batch_dim, (axes or {}).get(i), length)
        for i, value in enumerate(call.leaves)
    ]
    part = replace(call, leaves=leaves)
    begin = _cut(start, rows, call.batch_dim, None, length)
    return Group(rows, part, explain(part, _of_rows(target, rows, call.batch), begin))


def explain_halves(call: Call, target: Any, start: Any, explain: Explain) -> Explanation:
    """Explain the halves of a call for which memory does not suffice, each by `explain`.

    Samples do not depend on each other, so the result is the same.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    halves = torch.arange(call.batch).tensor_split(2)
    groups = [explain_group(rows, call, target, start, explain) for rows in halves]
    return joined(groups, target, call, {})


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


def joined(
    groups: Sequence[Group], target: Any, call: Call, axes: Mapping[int, int]
) -> Explanation:
    first, batch, axis = groups[0].result, call.batch, call.batch_dim
    rows = [group.rows for group in groups]
    maps = [_tuple(group.result.relevance) for group in groups]
    explained = _explained_leaves(groups[0], first.convergence_delta.ndim > 1)
    relevance = [
        _together(parts, rows, batch, axis, _full_size(call, leaf, axes, parts[0]))
        for leaf, parts in zip(explained, zip(*maps, strict=True), strict=True)
    ]
    layers: dict[str, Tensor | tuple[Tensor, ...]] = {}
    for path, one in first.layers.items():
        parts = zip(*(_tuple(group.result.layers[path]) for group in groups), strict=True)
        whole = tuple(_together(own, rows, batch, axis) for own in parts)
        layers[path] = whole[0] if isinstance(one, Tensor) else whole
    deltas = [group.result.convergence_delta for group in groups]
    return replace(
        first,
        relevance=relevance[0] if len(relevance) == 1 else tuple(relevance),
        output=_together([group.result.output for group in groups], rows, batch, axis),
        target=_targets(groups, batch) if callable(target) else target,
        layers=layers,
        convergence_delta=_together(deltas, rows, batch, 0),
        steps=_records(groups, batch),
    )


def _targets(groups: Sequence[Group], batch: int) -> Any:
    """The targets that a function of the output chose in each group, one or K a sample."""
    found = [group.result.target for group in groups]
    if isinstance(found[0], Tensor) and found[0].ndim > 0:
        return _together(found, [group.rows.to(found[0].device) for group in groups], batch, 0)
    if not isinstance(found[0], list):
        return found[0]
    each = {
        int(row): entry
        for group, entries in zip(groups, found, strict=True)
        for row, entry in zip(group.rows, entries, strict=True)
    }
    return [each[row] for row in range(batch)]


def _tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _explained_leaves(group: Group, with_targets: bool) -> list[int]:
    """Which leaf of the call each map belongs to: they come in the order of the leaves."""
    found: list[int] = []
    after = group.call.batch_dim + 1
    maps = iter(_tuple(group.result.relevance))
    wanted = next(maps, None)
    for index, leaf in enumerate(group.call.leaves):
        if wanted is None:
            break
        if index in group.call.shared:
            continue
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


def _records(groups: Sequence[Group], batch: int) -> tuple[StepRecord, ...]:
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
