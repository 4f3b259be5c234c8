"""Images as sequences: vertical strips of neighbouring columns, from left to right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from relprop.data.tasks import Task
from relprop.errors import InputError

__all__ = ["Sequences", "strips"]


def strips(images: Tensor, steps: int) -> Tensor:
    """Cut images `[batch, channels, height, columns]` to `[batch, steps, channels, height, width]`.

    Step t shows columns `t * width` to `(t + 1) * width`, with width = columns / steps.

    Raises: InputError if the columns cannot be shared out evenly.
    """
    if images.ndim != 4 or steps < 1 or images.shape[3] % steps:
        raise InputError(
            f"strips: images {list(images.shape)} in {steps} steps; expected [batch, channels, "
            "height, columns] with columns a multiple of steps"
        )
    # reshape needs the size of each axis but the batch's, which a capture keeps symbolic
    channels, height, columns = images.shape[1:]
    cut = images.reshape(-1, channels, height, steps, columns // steps)
    return cut.permute(0, 3, 1, 2, 4)


class Sequences(Dataset[tuple[Tensor, int, Tensor]]):
    """A task's images as strips: samples (`[steps, 1, 28, width]`, label, mask `[blocks]`)."""

    def __init__(self, task: Task, steps: int) -> None:
        self.task, self.steps = task, steps
        strips(task.images[:0].new_zeros(1, 1, 28, 28 * task.blocks.shape[1]), steps)

    def __len__(self) -> int:
        return len(self.task)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        image, label, mask = self.task[index]
        return strips(image[None], self.steps)[0], label, mask

    def batch(self, indices: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Several samples at once: strips `[n, steps, 1, 28, width]`, labels, masks."""
        images, labels, masks = self.task.batch(torch.as_tensor(indices))
        return strips(images, self.steps), labels, masks
