"""Relevance to colours: channel sums, symmetric normalisation, the colour map."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relprop.errors import InputError

__all__ = [
    "Array",
    "Pixels",
    "colours",
    "fade",
    "grey",
    "heatmap",
    "legend",
    "normalise",
    "sum_channels",
]

Array = Tensor | NDArray[Any]
Pixels = NDArray[np.uint8]

GREY, RED, DARK_RED = (0.9, 0.9, 0.9), (1.0, 0.0, 0.0), (0.5, 0.0, 0.0)
"""Colours at relevance 0, +1/2 and +1; negative relevance swaps red and blue."""


def normalise(relevance: Array, per: str = "image") -> NDArray[Any]:
    """Divide relevance by its largest magnitude, so that it lies in [-1, 1] and 0 stays 0.

    An image is the last two axes `[H, W]`, or the last three `[C, H, W]` where there are four or
    more.  `per="image"` takes each image's own maximum, `per="batch"` one for all.  A map of zeros
    stays zero.

    Raises: InputError for NaN, Inf, fewer than two axes, or another `per`.
    """
    values = _finite("normalise", relevance)
    if per not in ("image", "batch"):
        raise InputError(f"image.normalise: per is {per!r}; expected 'image' or 'batch'.")
    axes = None if per == "batch" else (-1, -2) if values.ndim < 4 else (-1, -2, -3)
    largest = np.abs(values).max(axis=axes, keepdims=True, initial=0)
    return np.divide(values, largest, out=np.zeros_like(values), where=largest > 0)


def sum_channels(relevance: Array) -> NDArray[Any]:
    """Relevance of pixels: `[..., C, H, W]` summed over the channels to `[..., H, W]`."""
    values = _finite("sum_channels", relevance)
    if values.ndim < 3:
        raise InputError(
            f"image.sum_channels: relevance has shape {values.shape}; expected [..., C, H, W]."
        )
    return np.asarray(values.sum(axis=-3))


def colours(relevance: Array) -> Pixels:
    """Colours of normalised relevance `[..., H, W]` as RGB bytes `[..., H, W, 3]`.

    0 is light grey, positive goes through red to dark red, negative through blue to dark blue;
    magnitudes above 1 are drawn as 1.  Not normalised here: see `normalise`, `heatmap`.
    """
    values = np.clip(_finite("colours", relevance), -1, 1)
    stops = (0.0, 0.5, 1.0)
    channels = [
        np.interp(np.abs(values), stops, levels) for levels in zip(GREY, RED, DARK_RED, strict=True)
    ]
    positive = np.stack(channels, axis=-1)
    rgb = np.where(values[..., None] < 0, positive[..., ::-1], positive)
    return np.rint(rgb * 255).astype(np.uint8)


def heatmap(relevance: Array, per: str = "image") -> Pixels:
    """Relevance `[N, C, H, W]` as pictures `[N, H, W, 3]`: summed, normalised, coloured."""
    return colours(normalise(sum_channels(relevance), per))


def grey(images: Array, low: float = -1.0, high: float = 1.0) -> Pixels:
    """Images `[..., C, H, W]` with values from `low` to `high` as RGB bytes `[..., H, W, 3]`.

    One channel becomes grey, three stay colours; any other number is averaged to grey.
    """
    values = _finite("grey", images)
    if values.ndim < 3 or not high > low:
        raise InputError(
            f"image.grey: images of shape {values.shape}, values from {low} to {high}; expected "
            f"[..., C, H, W] and low < high."
        )
    if values.shape[-3] != 3:
        values = np.repeat(values.mean(axis=-3, keepdims=True), 3, axis=-3)
    levels = np.clip((values - low) / (high - low), 0, 1)
    return np.rint(np.moveaxis(levels, -3, -1) * 255).astype(np.uint8)


def fade(rgb: Pixels) -> Pixels:
    """The same picture, faint: two thirds of the way to white."""
    return (255 - (255 - rgb.astype(np.uint16)) // 3).astype(np.uint8)


def legend(length: int = 256, thickness: int = 16) -> Pixels:
    """The colour scale from -1 (left) to +1 (right): bytes `[thickness, length, 3]`."""
    return colours(np.broadcast_to(np.linspace(-1, 1, length), (thickness, length)))


def _finite(function: str, values: Array) -> NDArray[Any]:
    """A floating-point array `[..., H, W]` without NaN and Inf."""
    if isinstance(values, Tensor):
        tensor = values.detach().cpu()
        halves = (torch.bfloat16, torch.float16)
        values = (tensor.float() if tensor.dtype in halves else tensor).numpy()
    array = np.asarray(values)
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    if array.ndim < 2:
        raise InputError(f"image.{function}: shape {array.shape}; expected [..., H, W].")
    if not np.isfinite(array).all():
        raise InputError(
            f"image.{function}: {int((~np.isfinite(array)).sum())} of {array.size} values are NaN "
            f"or Inf; they have no colour. Find where they come from, or replace them first."
        )
    return array
