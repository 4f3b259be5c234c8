"""Shallow, and the features of Deep and DeepV2: dense layers alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relprop.data import strips
from relprop.study.networks.layers import Dropout, Features, dense

__all__ = ["DenseFeatures", "Shallow"]


class Shallow(nn.Module):
    """h_t = relu(W [x_t, r_(t-1)]), r_t = relu(W_r h_t), y = W_o h_T.

    Args:
        steps: number of strips T of an image.
        width: columns of a strip.
    """

    def __init__(self, steps: int, width: int, hidden: int = 256, recur: int = 256) -> None:
        super().__init__()
        self.steps = steps
        self.hidden = dense(28 * width + recur, hidden)
        self.recur = dense(hidden, recur)
        self.output = dense(hidden, 10)
        self.dropout = Dropout()

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[batch, 10]` of images `[batch, 1, 28, steps * width]`."""
        pixels = strips(images, self.steps).flatten(2)
        state = pixels.new_zeros(len(pixels), self.recur.out_features)
        drop = self.dropout.begin(state)
        for x in pixels.unbind(1):
            h = torch.relu(self.hidden(torch.cat([x, state], 1)))
            state = torch.relu(self.recur(drop(h)))
        logits: Tensor = self.output(h)
        return logits


class DenseFeatures(Features):
    """Each strip by itself through dense layers of the given sizes, with ReLU: Deep, DeepV2.

    Args:
        steps: number of strips T of an image.
        width: columns of a strip.
        sizes: units of each layer.
    """

    def __init__(self, steps: int, width: int, sizes: tuple[int, ...]) -> None:
        super().__init__(steps, sizes[-1])
        inputs = (28 * width, *sizes)
        self.layers = nn.ModuleList(map(dense, inputs, sizes))
        self.dropout = Dropout()

    def forward(self, images: Tensor) -> Tensor:
        """`[batch, 1, 28, steps * width]` → `[batch, steps, features]`."""
        u = strips(images, self.steps).flatten(2)
        drop = self.dropout.begin(u)
        for number, layer in enumerate(self.layers):
            u = torch.relu(layer(drop(u) if number else u))
        return u
