"""Sums of relevance: of strips of columns, of time steps, of whole maps."""

from __future__ import annotations

import torch
from torch import Tensor

from relprop.errors import InputError

__all__ = ["conservation_error", "ratio", "relevance_over_time", "strip_relevance"]


def strip_relevance(relevance: Tensor, strips: int) -> Tensor:
    """Relevance of vertical strips of equal width, left to right: signed sums.

    Args:
        relevance: `[..., C, H, W]`.
        strips: how many; divides W.

    Returns:
        float64 `[..., strips]`, adding up to the sum of each map.

    Raises:
        InputError: fewer than three axes, or a width that is no multiple of `strips`.
    """
    if relevance.ndim < 3 or strips < 1 or relevance.shape[-1] % strips:
        raise InputError(
            f"metrics.strip_relevance: relevance {tuple(relevance.shape)} in {strips} strips; "
            "expected [..., C, H, W], W a multiple of the number of strips"
        )
    columns = relevance.sum((-3, -2), dtype=torch.float64)
    return columns.unflatten(-1, (strips, -1)).sum(-1)


def relevance_over_time(relevance: Tensor, steps: int) -> Tensor:
    """Share of a map's relevance that each time step got, where steps read strips of columns.

    Args:
        relevance: `[..., C, H, W]`, of an image that is read strip by strip from the left.
        steps: number of time steps; divides W.

    Returns:
        float64 `[..., steps]`, adding up to 1; zeros where a map's relevance adds up to 0.

    Raises:
        InputError: as `strip_relevance`.
    """
    sums = strip_relevance(relevance, steps)
    return ratio(sums, sums.sum(-1, keepdim=True))


def conservation_error(relevance: Tensor, start: Tensor) -> Tensor:
    """How far a map's relevance is from what it started with: |ΣR − start| / max(1, |start|).

    Args:
        relevance: `[..., C, H, W]`.
        start: the starting relevance of each map `[...]`, for deep Taylor relu of the logit.

    Returns:
        float64 `[...]`; 0 if relevance is conserved.

    Raises:
        InputError: shapes that do not belong together.
    """
    if relevance.ndim < 3 or relevance.shape[:-3] != start.shape:
        raise InputError(
            f"metrics.conservation_error: relevance {tuple(relevance.shape)}, start "
            f"{tuple(start.shape)}; expected [..., C, H, W] and one start for each map"
        )
    start = start.double()
    lost = relevance.sum((-3, -2, -1), dtype=torch.float64) - start
    return lost.abs() / start.abs().clamp(min=1)


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 0 where the whole is 0."""
    return torch.where(whole == 0, 0.0, part / torch.where(whole == 0, 1.0, whole))
