"""Measures of explanations: where relevance lies, whether it matters, whether it adds up.

Relevance comes as maps `[..., C, H, W]` and counts signed.  Every function returns one number (or
curve) a map, in float64; means are the caller's.  Strips of columns are time steps of a recurrent
network; blocks are the images side by side of the majority tasks (Chormai 2018), two of which make
the label; pixel flipping is how fast a model's output falls when the most relevant patches are
erased (Bach et al. 2015; Samek et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from relprop.errors import InputError

__all__ = [
    "area_under_curve",
    "block_cosine",
    "block_share",
    "conservation_error",
    "patch_order",
    "pixel_flipping",
    "random_order",
    "relevance_over_time",
    "share_in_blocks",
    "strip_relevance",
]


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


def block_share(relevance: Tensor, blocks: int = 3) -> Tensor:
    """The share of a map's relevance in each of several blocks side by side.

    Args:
        relevance: `[..., C, H, W]`, signed.
        blocks: their number; divides W.

    Returns:
        ρ, float64 `[..., blocks]`: the sum over each block over the sum of the map, so that they
        add up to 1 and a share may be negative or above 1; zeros where the map adds up to 0.

    Raises:
        InputError: as `strip_relevance`.
    """
    sums = strip_relevance(relevance, blocks)
    return ratio(sums, sums.sum(-1, keepdim=True))


def block_cosine(relevance: Tensor, mask: Tensor) -> Tensor:
    """Cosine similarity of the blocks' shares of relevance and the mask of the right blocks.

    Args:
        relevance: `[..., C, H, W]`, signed.
        mask: `[..., blocks]`, 1 where a block is right and 0 elsewhere.

    Returns:
        cos(ρ, mask), float64 `[...]`, with ρ of `block_share`; 0 where either is all zeros.  Even
        relevance in three blocks, two of them right, has √(2/3) = 0.8165; all of it in a right one
        has √(1/2) = 0.7071.

    Raises:
        InputError: the mask does not fit the relevance.
    """
    shares, mask = _fitting("block_cosine", relevance, mask)
    norms = shares.norm(dim=-1) * mask.norm(dim=-1)
    return ratio((shares * mask).sum(-1), norms)


def share_in_blocks(relevance: Tensor, mask: Tensor) -> Tensor:
    """The share of a map's relevance in the right blocks.

    Args:
        relevance: `[..., C, H, W]`, signed.
        mask: `[..., blocks]`, 1 where a block is right and 0 elsewhere.

    Returns:
        float64 `[...]`: 1 if all relevance is there; above 1 if the others have negative relevance;
        0 where the map adds up to 0.

    Raises:
        InputError: the mask does not fit the relevance.
    """
    shares, mask = _fitting("share_in_blocks", relevance, mask)
    return (shares * mask).sum(-1)


def _fitting(function: str, relevance: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The blocks' shares and the mask, float64 of one shape."""
    blocks = mask.shape[-1] if mask.ndim else 0
    fits = relevance.ndim >= 3 and mask.shape[:-1] == relevance.shape[:-3]
    if not fits or not blocks or not ((mask == 0) | (mask == 1)).all():
        raise InputError(
            f"metrics.{function}: relevance {tuple(relevance.shape)}, mask {tuple(mask.shape)}; "
            "expected [..., C, H, W] and a mask [..., blocks] of 0 and 1 for each map"
        )
    return block_share(relevance, blocks), mask.to(torch.float64)


def patch_order(relevance: Tensor, patch: int = 4) -> Tensor:
    """The patches of each map, most relevant first.

    Args:
        relevance: `[N, C, H, W]`.
        patch: side of a patch; divides H and W.

    Returns:
        int64 `[N, P]`: numbers of patches, counted row by row; of equals the first comes first.

    Raises:
        InputError: another shape.
    """
    rows, columns = _patches("patch_order", relevance, patch)
    pixels = relevance.sum(1, dtype=torch.float64)
    sums = pixels.unflatten(2, (columns, patch)).unflatten(1, (rows, patch)).sum((2, 4))
    return sums.flatten(1).argsort(dim=1, descending=True, stable=True)


def random_order(count: int, patches: int, seed: int = 0) -> Tensor:
    """Patches in random order, int64 `[count, patches]`: what `patch_order` is compared with."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, patches, generator=generator).argsort(1)


@torch.no_grad()
def pixel_flipping(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    order: Tensor,
    patch: int = 4,
    fill: float = -1.0,
) -> Tensor:
    """The output at the label while patches are erased one after another.

    Args:
        model: from images to outputs `[N, classes]`, in eval mode.
        images: `[N, C, H, W]`.
        labels: int64 `[N]`, the entry of the output to follow.
        order: patches in the order of erasing, int64 `[N, P]`, as from `patch_order`.
        patch: side of a patch.
        fill: what erased pixels are set to.

    Returns:
        float64 `[N, P + 1]`: the output of the whole image, then after each patch.

    Raises:
        InputError: shapes that do not belong together, or an order that is not a permutation.
    """
    rows, columns = _patches("pixel_flipping", images, patch)
    every = torch.arange(rows * columns, device=order.device)
    if (
        order.shape != (len(images), len(every))
        or not (order.sort(1).values == every).all()
        or labels.shape != (len(images),)
    ):
        raise InputError(
            f"metrics.pixel_flipping: order {tuple(order.shape)}, labels {tuple(labels.shape)} for "
            f"images {tuple(images.shape)}; expected a permutation of {len(every)} patches and one "
            "label for each image"
        )
    erased_at = order.argsort(1).unflatten(1, (rows, columns))
    erased_at = erased_at.repeat_interleave(patch, 1).repeat_interleave(patch, 2).unsqueeze(1)
    curve = [
        model(images.masked_fill(erased_at < count, fill)).gather(1, labels.unsqueeze(1)).squeeze(1)
        for count in range(len(every) + 1)
    ]
    return torch.stack(curve, 1).double()


def area_under_curve(curve: Tensor) -> Tensor:
    """The normalised area under curves `[..., points]`, float64 `[...]`.

    By trapezoids over the fraction erased, from 0 to 1, divided by the value at the start: 1 for a
    curve that never falls.  Smaller is better.  Take the area of the mean curve: where a single
    start is near 0 its own area says nothing.

    Raises:
        InputError: fewer than two points.
    """
    if curve.ndim < 1 or curve.shape[-1] < 2:
        raise InputError(
            f"metrics.area_under_curve: curve {tuple(curve.shape)}; expected [..., points], two "
            "points or more"
        )
    curve = curve.double()
    return torch.trapezoid(curve, dim=-1) / (curve.shape[-1] - 1) / curve[..., 0]


def _patches(function: str, images: Tensor, patch: int) -> tuple[int, int]:
    """Rows and columns of patches."""
    if images.ndim != 4 or patch < 1 or images.shape[2] % patch or images.shape[3] % patch:
        raise InputError(
            f"metrics.{function}: shape {tuple(images.shape)}, patches of {patch} x {patch}; "
            "expected [N, C, H, W], H and W multiples of the patch"
        )
    return images.shape[2] // patch, images.shape[3] // patch
