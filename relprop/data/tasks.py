"""The tasks of the study: single images, and three images side by side with a majority class.

In a majority task a sample is made around each image A: another image B of A's class and an image
C of another class, the three in a random order.  The label is A's class, and what supports it is
known: the blocks where A and B stand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from relprop.data.sets import SETS, lookup
from relprop.errors import InputError

__all__ = [
    "SEEDS",
    "TASKS",
    "Sequences",
    "Task",
    "data_set_of",
    "majority_task",
    "single_task",
    "split_indices",
    "strips",
]

TASKS = tuple(f"{name}{ending}" for ending in ("", "_maj") for name in SETS)
"""Names of the tasks: `mnist`, `fashion_mnist`, `mnist_maj`, `fashion_mnist_maj`."""

SEEDS = {"train": 0, "validation": 1, "test": 3, "sample": 3}
"""The splits of a task, and the seed by which a majority task combines each one's images."""

SPLIT_SEED = 0
TRAINING_SHARE = 4 / 5


@dataclass(frozen=True, eq=False)
class Task(Dataset[tuple[Tensor, int, Tensor]]):
    """Samples (image float32 `[1, 28, 28 * blocks]`, label, mask `[blocks]`).

    Attributes:
        images: the single images that samples are made of, float32 `[n, 1, 28, 28]`.
        blocks: which of them stand in each sample, from left to right, int64 `[samples, blocks]`.
        labels: int64 `[samples]`.
        masks: 1 where an image of the label's class stands, else 0: int64 `[samples, blocks]`.
    """

    images: Tensor
    blocks: Tensor
    labels: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self._image(self.blocks[index]), int(self.labels[index]), self.masks[index]

    def _image(self, blocks: Tensor) -> Tensor:
        """`[..., blocks]` → `[..., 1, 28, 28 * blocks]`."""
        # The blocks' axis goes between the rows and the columns of an image.
        return self.images[blocks].movedim(-4, -2).flatten(-2)

    def batch(self, indices: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        """Several samples at once: images `[n, 1, 28, 28 * blocks]`, labels `[n]`, masks."""
        return self._image(self.blocks[indices]), self.labels[indices], self.masks[indices]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All samples in order, `size` at a time, as `batch` gives them."""
        return (self.batch(slice(k, k + size)) for k in range(0, len(self), size))

    def subset(self, count: int) -> Task:
        """The first `count` samples."""
        own = slice(count)
        return replace(
            self, blocks=self.blocks[own], labels=self.labels[own], masks=self.masks[own]
        )

    def to(self, device: torch.device | str) -> Task:
        """The task with its tensors on a device."""
        return Task(*(t.to(device) for t in (self.images, self.blocks, self.labels, self.masks)))


def single_task(images: Tensor, labels: Tensor) -> Task:
    """One image `[1, 28, 28]` a sample; its mask is `[1]`, holding 1."""
    return Task(
        images, torch.arange(len(images))[:, None], labels, torch.ones_like(labels)[:, None]
    )


def majority_task(images: Tensor, labels: Tensor, seed: int) -> Task:
    """A majority task over images float32 `[n, 1, 28, 28]` with labels int64 `[n]`.

    Sample i is made around image i.  B is drawn evenly from the other images of its class, C evenly
    from all images of other classes, the order evenly from the six there are.

    Raises: InputError where a class has a single image, or there is a single class.
    """
    # RandomState's stream is frozen by NumPy's policy: the same samples with every version.
    draw = np.random.RandomState(seed)
    wanted = labels.numpy()
    by_class = np.argsort(wanted, kind="stable")
    count = np.bincount(wanted)
    start = np.cumsum(count) - count
    own, before = count[wanted], start[wanted]
    if len(wanted) and (own.min() < 2 or own.max() == len(wanted)):
        raise InputError(
            f"majority_task: images of each class {count.tolist()}; expected two of each class "
            "and two classes at least"
        )
    place = np.empty_like(by_class)
    place[by_class] = np.arange(len(wanted))
    step = 1 + _below(draw, own - 1)
    same = by_class[before + (place - before + step) % own]
    other = _below(draw, len(wanted) - own)
    different = by_class[other + (other >= before) * own]
    order = np.argsort(draw.random_sample((len(wanted), 3)), axis=1)
    trio = np.stack([np.arange(len(wanted)), same, different], axis=1)
    blocks = np.take_along_axis(trio, order, axis=1)
    masks = torch.from_numpy((order != 2).astype(np.int64))
    return Task(images, torch.from_numpy(blocks), labels, masks)


def _below(draw: np.random.RandomState, bound: np.ndarray) -> np.ndarray:
    """A whole number from 0 to below each bound, evenly."""
    return (draw.random_sample(len(bound)) * bound).astype(np.int64)


def split_indices(count: int, split: str) -> Tensor:
    """Which of `count` official training images are in "train" (four fifths) or "validation"."""
    order = np.random.RandomState(SPLIT_SEED).permutation(count)
    first = round(TRAINING_SHARE * count)
    return torch.from_numpy(np.sort(order[:first] if split == "train" else order[first:]))


def data_set_of(task: str) -> str:
    """The data set that a task's images are of.  Raises InputError that lists the tasks."""
    if task not in TASKS:
        raise InputError(f"relprop.data: no task {task!r}; there are {', '.join(TASKS)}.")
    return lookup(task.removesuffix("_maj")).name


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
