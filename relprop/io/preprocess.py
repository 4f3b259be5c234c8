"""From an image file to an input: size, channels and normalisation, as torchvision has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from relprop.errors import FileFormatError, InputError
from relprop.io.files import printable
from relprop.io.pictures import load_image

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Preprocess"]

Size = tuple[int, ...]


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop at the centre, scale bytes to [0, 1], subtract the mean, divide by the std.

    Attributes:
        resize: `(side,)` scales the shorter side to that length, `(height, width)` both; bilinear.
        crop: `(side,)` or `(height, width)`, cut from the centre.
        mean, std: one number, or one a channel; None leaves values as they are.
        channels: 1 (grey) or 3 (RGB), for image files.
        only_bytes: leave data that are floating point already as they are.
        background: the colour that transparent pixels of image files are laid on.
    """

    resize: Size | None = None
    crop: Size | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: int = 3
    only_bytes: bool = False
    background: str = "white"

    def load(self, path: Path, max_pixels: int, stored: bytes | None = None) -> Tensor:
        """Read an image, float32 `[channels, height, width]`, from a file; see `read`."""
        return self.read(path, max_pixels, stored)[0]

    def read(self, path: Path, max_pixels: int, stored: bytes | None = None) -> tuple[Tensor, str]:
        """An image, float32 `[channels, height, width]`, and what `load_image` notes of its file.

        With `stored` the file's content is these bytes, and `path` names it in messages alone.
        """
        image, note = load_image(path, max_pixels, stored, self.background)
        image = self._crop(self._resize(image, path, max_pixels), path)
        image = image.convert("L" if self.channels == 1 else "RGB")
        pixels = torch.from_numpy(np.array(image))
        pixels = pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        return self.normalise(pixels), note

    def normalise(self, values: Tensor, axis: int = 0) -> Tensor:
        """Bytes become float32 in [0, 1]; then mean and std, on an axis of `values`: 0, 1."""
        if values.dtype is torch.uint8:
            values = values.to(torch.float32).div_(255)
        elif self.only_bytes:
            return values
        if self.mean is None and self.std is None:
            return values
        if not values.is_floating_point():
            raise InputError("--mean and --std: the data are whole numbers; expected pixels")
        mean, std = self._statistics(values, axis)
        return (values - mean) / std

    def undo(self, values: Tensor) -> Tensor:
        """What an input was before mean and std: on [0, 1] what was bytes."""
        if self.mean is None and self.std is None:
            return values
        mean, std = self._statistics(values, 0)
        return values * std + mean

    def _statistics(self, values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        return (
            self._statistic("--mean", self.mean or (0.0,), values, axis),
            self._statistic("--std", self.std or (1.0,), values, axis),
        )

    def _statistic(
        self, option: str, numbers: tuple[float, ...], values: Tensor, axis: int
    ) -> Tensor:
        shape = list(values.shape[axis:])
        if len(numbers) not in (1, shape[0]):
            raise InputError(
                f"{option}: {len(numbers)} numbers for inputs of shape {shape}; "
                f"expected 1 or {shape[0]}"
            )
        statistic = torch.tensor(numbers, dtype=values.dtype)
        return statistic.reshape(-1, *(1,) * (len(shape) - 1))

    def _resize(self, image: Image.Image, path: Path, max_pixels: int) -> Image.Image:
        from PIL import Image

        if self.resize is None:
            return image
        if len(self.resize) == 2:
            height, width = self.resize
        else:
            side, short = self.resize[0], min(image.size)
            width, height = (max(1, side * length // short) for length in image.size)
        if width * height > max_pixels:
            raise FileFormatError(
                f"{printable(path)}: {image.width} x {image.height} pixels resized to "
                f"{width} x {height}, more than the cap of {max_pixels:,} pixels"
            )
        return image.resize((width, height), Image.Resampling.BILINEAR)

    def _crop(self, image: Image.Image, path: Path) -> Image.Image:
        if self.crop is None:
            return image
        height, width = self.crop[0], self.crop[-1]
        if width > image.width or height > image.height:
            raise FileFormatError(
                f"{printable(path)}: {image.width} x {image.height} pixels, smaller than the "
                f"crop of {width} x {height}; give --resize"
            )
        left = round((image.width - width) / 2)
        top = round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))
