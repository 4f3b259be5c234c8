"""Whether relevance lies in the right ones of several images side by side.

For the majority tasks (Chormai 2018): three images in a row, two of which make the label.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relprop.errors import InputError
from relprop.metrics.strips import ratio, strip_relevance

__all__ = ["block_cosine", "block_share", "share_in_blocks"]


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
