"""The small convolutional networks shipped trained: images `[N, 1, 28, 28]` to 10 logits."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["FashionMNISTConvNet", "MNISTConvNet"]


class MNISTConvNet(nn.Module):
    """LeNet-like: two convolutions with average pooling, two dense layers (63,698 parameters)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 5, padding=2),  # [8, 28, 28]
            nn.ReLU(),
            nn.AvgPool2d(2),  # [8, 14, 14]
            nn.Conv2d(8, 24, 5),  # [24, 10, 10]
            nn.ReLU(),
            nn.AvgPool2d(2),  # [24, 5, 5]
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(24 * 5 * 5, 96),
            nn.ReLU(),
            nn.Linear(96, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, 10]`."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class FashionMNISTConvNet(nn.Module):
    """VGG-like: three convolutions with batch norm, max pooling, dropout (115,194 parameters)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),  # [16, 14, 14]
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),  # [32, 7, 7]
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(0.25),
            nn.Linear(32 * 7 * 7, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, 10]`."""
        logits: Tensor = self.classifier(self.features(images))
        return logits
