"""What is stored of a map: pooled, summed over channels, its largest entries.

A reduction is a chain such as `channel-sum,pool:14x14`; sums of relevance are kept by all of them
but `topk`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from relprop.errors import InputError

__all__ = ["Reduced", "Reduction", "parse_reduction"]

FORMS = "pool:N, pool:HxW, channel-sum or topk:K, in a chain such as channel-sum,pool:14x14"


@dataclass(frozen=True)
class Reduced:
    """What is left of maps `[n, ...]` or `[n, targets, ...]`.

    Attributes:
        relevance: the values.
        position: for `topk` where in the flattened map each value stood, int64; else None.
    """

    relevance: Tensor
    position: Tensor | None = None


@dataclass(frozen=True)
class Reduction:
    """A parsed chain: `steps` on maps, then the `top` entries of what they leave, if asked."""

    steps: tuple[Callable[[Tensor, int], Tensor], ...] = ()
    top: int | None = None

    def maps(self, relevance: Tensor, lead: int) -> Tensor:
        """The steps that leave a map.

        Args:
            relevance: `[n, ...]`, or `[n, targets, ...]`.
            lead: how many of its axes come before a sample's: 1 or 2.
        """
        for step in self.steps:
            relevance = step(relevance, lead)
        return relevance

    def pick(self, maps: Tensor, lead: int) -> Reduced:
        """The largest entries of maps, if asked for; equal ones in the order of their positions."""
        if self.top is None:
            return Reduced(maps)
        flat = maps.flatten(lead)
        if self.top > flat.shape[-1]:
            raise InputError(f"--reduce topk:{self.top}: a map has {flat.shape[-1]} entries")
        order = flat.abs().sort(dim=-1, descending=True, stable=True).indices[..., : self.top]
        return Reduced(flat.gather(-1, order), order)


def parse_reduction(text: str | None) -> Reduction:
    """The reduction of a text such as `channel-sum,topk:100`; None keeps whole maps.

    Raises:
        InputError: none of the known forms, or `topk` before the end.
    """
    steps: list[Callable[[Tensor, int], Tensor]] = []
    top = None
    for part in text.split(",") if text else ():
        if top is not None:
            raise InputError(f"--reduce {text}: topk leaves no map to reduce; put it last")
        name, _, size = part.strip().partition(":")
        sides = [int(side) if side.isdecimal() else 0 for side in size.split("x")]
        if name == "channel-sum" and not size:
            steps.append(_channel_sum)
        elif name == "pool" and len(sides) <= 2 and min(sides) > 0:
            steps.append(_pool(tuple(sides)))
        elif name == "topk" and len(sides) == 1 and sides[0] > 0:
            top = sides[0]
        else:
            raise InputError(f"--reduce {part.strip()!r}; expected {FORMS}")
    return Reduction(tuple(steps), top)


def _channel_sum(relevance: Tensor, lead: int) -> Tensor:
    if relevance.ndim < lead + 2:
        raise InputError(
            f"--reduce channel-sum: maps of shape {list(relevance.shape[lead:])} have no channels"
        )
    return relevance.sum(lead)


def _pool(sides: tuple[int, ...]) -> Callable[[Tensor, int], Tensor]:
    """Sums over a grid of cells: `N` on the last axis, `HxW` on the last two."""

    def pool(relevance: Tensor, lead: int) -> Tensor:
        own = relevance.shape[lead:]
        if len(own) < len(sides) or any(
            side > size for side, size in zip(sides, own[-len(sides) :])
        ):
            raise InputError(
                f"--reduce pool:{'x'.join(map(str, sides))}: maps of shape {list(own)} are smaller"
            )
        for axis, side in zip(range(-len(sides), 0), sides):
            cells = _cells(relevance.shape[axis], side).to(relevance)
            relevance = (relevance.movedim(axis, -1) @ cells).movedim(-1, axis)
        return relevance

    return pool


def _cells(size: int, side: int) -> Tensor:
    """Which of `side` cells each of `size` places lies in, as zeros and ones `[size, side]`."""
    places = torch.arange(size)
    return torch.nn.functional.one_hot(
        torch.div(places * side, size, rounding_mode="floor"), side
    ).float()
