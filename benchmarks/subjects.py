"""Models to explain, and batches for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from benchmarks.peers import network
from benchmarks.timing import rotation

__all__ = ["LstmClassifier", "Subject", "cnn"]


@dataclass(frozen=True)
class Subject:
    """A model and batches to explain.

    Attributes:
        model: in eval mode, without gradients.
        batches: different inputs, with a target for each sample.
    """

    model: nn.Module
    batches: Sequence[tuple[Tensor, Tensor]]

    @property
    def batch(self) -> int:
        """Samples of a batch."""
        return len(self.batches[0][0])

    @property
    def sample(self) -> tuple[Tensor, Tensor]:
        """What the gate looks at."""
        x, target = self.batches[0]
        return x[:1], target[:1]


class LstmClassifier(nn.Module):
    """One LSTM layer over `[batch, T, inputs]`, and its last state's linear readout."""

    def __init__(self, inputs: int = 128, hidden: int = 256, classes: int = 5) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, batch_first=True)
        self.readout = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, T, inputs]` to `[batch, classes]`."""
        result: Tensor = self.readout(self.lstm(x)[0][:, -1])
        return result


def cnn(name: str, batch: int, size: int, device: str = "cpu", count: int = 0) -> Subject:
    """A torchvision network and different random images in channels_last."""
    model = _network(name, device)
    torch.manual_seed(1)
    count = count or rotation(batch * 3 * size * size * 4) // 8 + 1
    images = [torch.randn(batch, 3, size, size) for _ in range(count)]
    images = [i.to(device, memory_format=torch.channels_last) for i in images]
    with torch.no_grad():
        target = model(images[0]).argmax(1)
    return Subject(model, [(image, target) for image in images])


@lru_cache(maxsize=1)
def _network(name: str, device: str) -> nn.Module:
    """Cells of one network follow each other: it is made, and captured, once for all of them."""
    return network(name).to(device)
