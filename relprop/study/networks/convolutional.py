"""Convolutional features of each strip by itself (Conv), or recurrent ones (Conv⁺); LeNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relprop.data import strips
from relprop.study.networks.layers import Features, HalfSumPool, convolution, dense

__all__ = ["ConvFeatures", "ConvPlusFeatures", "LeNet"]

MAPS = 24, 32


def _flat_size(width: int) -> int:
    """Units after two poolings of a strip of 28 rows, each rounding up."""
    return MAPS[1] * 7 * -(-width // 4)


class ConvFeatures(Features):
    """u_t = relu(W flatten(pool(relu(K_2 * pool(relu(K_1 * x_t)))))), for all steps at once.

    Args:
        steps: number of strips T of an image.
        width: columns of a strip.
        features: units of the dense layer.
    """

    def __init__(self, steps: int, width: int, features: int = 128) -> None:
        super().__init__(steps, features)
        self.conv1 = convolution(1, MAPS[0], 5)
        self.conv2 = convolution(MAPS[0], MAPS[1], 3)
        self.pool = HalfSumPool()
        self.input = dense(_flat_size(width), features)

    def forward(self, images: Tensor) -> Tensor:
        """`[batch, 1, 28, steps * width]` → `[batch, steps, features]`."""
        maps = strips(images, self.steps).flatten(0, 1)
        maps = self.pool(torch.relu(self.conv1(maps)))
        maps = self.pool(torch.relu(self.conv2(maps)))
        u = torch.relu(self.input(maps.flatten(1)))
        return u.reshape(-1, self.steps, self.features)


class ConvPlusFeatures(Features):
    """Recurrent feature maps: each convolution sees its own maps of the step before.

    m_t = relu(K_1 * [x_t, m_(t-1)]), n_t = relu(K_2 * [pool(m_t), n_(t-1)]), and
    u_t = relu(W flatten(pool(n_t))).

    Args:
        steps: number of strips T of an image.
        width: columns of a strip.
        features: units of the dense layer.
    """

    def __init__(self, steps: int, width: int, features: int = 128) -> None:
        super().__init__(steps, features)
        self.conv1 = convolution(1 + MAPS[0], MAPS[0], 5)
        self.conv2 = convolution(MAPS[0] + MAPS[1], MAPS[1], 3)
        self.pool = HalfSumPool()
        self.input = dense(_flat_size(width), features)

    def forward(self, images: Tensor) -> Tensor:
        """`[batch, 1, 28, steps * width]` → `[batch, steps, features]`."""
        pixels = strips(images, self.steps)
        batch, width = len(pixels), pixels.shape[-1]
        m = pixels.new_zeros(batch, MAPS[0], 28, width)
        n = pixels.new_zeros(batch, MAPS[1], 14, -(-width // 2))
        flat = []
        for x in pixels.unbind(1):
            m = torch.relu(self.conv1(torch.cat([x, m], 1)))
            n = torch.relu(self.conv2(torch.cat([self.pool(m), n], 1)))
            flat.append(self.pool(n).flatten(1))
        return torch.relu(self.input(torch.stack(flat, 1)))


class LeNet(nn.Module):
    """Three convolutions, each with ReLU and pooling, and one dense layer; for single images.

    Source: LeCun et al. 1998, in the thesis's sizes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = convolution(1, 10, 5)
        self.conv2 = convolution(10, 25, 5, same=False)
        self.conv3 = convolution(25, 100, 4, same=False)
        self.pool = HalfSumPool()
        self.output = dense(100, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[batch, 10]` of images `[batch, 1, 28, 28]`."""
        maps = images
        for layer in (self.conv1, self.conv2, self.conv3):
            maps = self.pool(torch.relu(layer(maps)))
        logits: Tensor = self.output(maps.flatten(1))
        return logits
