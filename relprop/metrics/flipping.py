"""Pixel flipping: how fast a model's output falls when the most relevant patches are erased.

Bach et al. 2015; Samek et al. 2017.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from relprop.errors import InputError

__all__ = ["area_under_curve", "patch_order", "pixel_flipping", "random_order"]


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
