"""An embedding bag as an embedding and a sum, mean or maximum over bags of its rows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from relprop.graph.nodes import Graph, Node, Ref

__all__ = ["BAGS", "bag", "coefficients", "embedding_and_bag", "places", "winners"]

BAGS = {"_embedding_bag", "_embedding_bag_forward_only", "embedding_bag"}
_MODES = "sum", "mean", "max"


def embedding_and_bag(graph: Graph, node: Node, fixed: Collection[str]) -> list[Node]:
    """The look-up of each index, and what is made of the rows of a bag."""
    weight, indices, offsets = node.args[:3]
    table, count = graph.shape(weight.name) or (), graph.shape(indices.name) or ()
    rows = replace(
        node, name=f"{node.name}_rows", op="embedding", function=torch.ops.aten.embedding.default,
        args=(weight, indices), kwargs={}, shape=(*count, *table[1:]),
    )  # fmt: skip
    padding = node.argument(8, "padding_idx", None)
    args = (
        Ref(rows.name), indices, offsets, _MODES[node.argument(4, "mode", 0)],
        node.argument(6, "per_sample_weights", None),
        bool(node.argument(7, "include_last_offset", False)),
        None if padding is None or padding < 0 else padding,
    )  # fmt: skip
    return [rows, replace(node, op="bag", function=bag, args=args, kwargs={})]


def places(indices: Tensor, offsets: Tensor, include_last: bool) -> Tensor:
    """The bag of each index, `[N]`; offsets say where each bag begins."""
    starts = offsets[:-1] if include_last else offsets
    numbers = torch.arange(len(indices), device=indices.device, dtype=starts.dtype)
    return torch.searchsorted(starts.contiguous(), numbers, right=True) - 1


def coefficients(
    indices: Tensor,
    offsets: Tensor,
    mode: str,
    weights: Tensor | None,
    include_last: bool,
    padding: int | None,
) -> Tensor:
    """With which each row enters a sum or mean, `[N]`."""
    kept = torch.ones_like(indices) if padding is None else (indices != padding).to(indices)
    if mode == "sum":
        return kept if weights is None else kept.to(weights) * weights
    where = places(indices, offsets, include_last)
    counts = kept.new_zeros(len(offsets) - include_last).index_add_(0, where, kept)
    return kept.double() / counts.clamp(min=1)[where]


def bag(
    rows: Tensor,
    indices: Tensor,
    offsets: Tensor,
    mode: str,
    weights: Tensor | None,
    include_last: bool,
    padding: int | None,
) -> Tensor:
    """Sums, means or maxima of the rows of each bag, `[bags, D]`; 0 for an empty one."""
    where = places(indices, offsets, include_last)
    shape = len(offsets) - include_last, rows.shape[1]
    if mode != "max":
        factors = coefficients(indices, offsets, mode, weights, include_last, padding)
        return rows.new_zeros(shape).index_add(0, where, rows * factors.to(rows)[:, None])
    lowest = rows.new_full(shape, -torch.inf)
    kept = rows if padding is None else rows.masked_fill((indices == padding)[:, None], -torch.inf)
    found = lowest.scatter_reduce(0, where[:, None].expand(rows.shape), kept, "amax")
    return torch.where(found == -torch.inf, 0.0, found)


def winners(rows: Tensor, out: Tensor, indices: Tensor, offsets: Tensor, *given: Any) -> Tensor:
    """The number of the first row that a maximum is, `[bags, D]`; N for that of an empty bag."""
    _, _, include_last, padding = given
    where = places(indices, offsets, include_last)
    found = rows == out[where]
    if padding is not None:
        found &= (indices != padding)[:, None]
    numbers = torch.arange(len(rows), device=rows.device)[:, None].expand(rows.shape)
    numbers = numbers.masked_fill(~found, len(rows))
    first = numbers.new_full(out.shape, len(rows))
    return first.scatter_reduce(0, where[:, None].expand(rows.shape), numbers, "amin")
