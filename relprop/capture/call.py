"""The inputs of one call, flattened: what a capture, a plan and a run take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor

from relprop.capture.export import example_batch
from relprop.errors import InputError

__all__ = ["Call"]


@dataclass(frozen=True)
class Call:
    """The inputs of one call, flattened.

    Attributes:
        leaves: leaves of `(args, kwargs)` in pytree order.
        spec: their structure.
        labels: what each leaf is called in messages and in `inputs=`: a position or a keyword.
        batch_dim: the axis of the samples.
    """

    leaves: list[Any]
    spec: pytree.TreeSpec
    labels: list[int | str]
    batch_dim: int

    @classmethod
    def of(cls, inputs: tuple[Any, ...], kwargs: Mapping[str, Any] | None, batch_dim: int) -> Call:
        """Flatten a call, keywords in alphabetical order."""
        named = dict(sorted((kwargs or {}).items()))
        pairs, spec = pytree.tree_flatten_with_path((inputs, named))
        labels = [_label(path[1]) for path, _ in pairs]
        return cls([leaf for _, leaf in pairs], spec, labels, batch_dim)

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's `(args, kwargs)`."""
        args, kwargs = pytree.tree_unflatten(self.leaves, self.spec)
        return args, kwargs

    @property
    def batch(self) -> int:
        """Number of samples.

        Raises:
            InputError: the inputs disagree, or none has a batch axis.
        """
        sizes = {
            label: leaf.shape[self.batch_dim]
            for label, leaf in zip(self.labels, self.leaves, strict=True)
            if isinstance(leaf, Tensor) and leaf.ndim > self.batch_dim
        }
        if not sizes:
            raise InputError(f"inputs: no tensor has an axis {self.batch_dim} that counts samples")
        if len(set(sizes.values())) > 1:
            raise InputError(
                f"inputs: batch sizes differ on axis {self.batch_dim}: {sizes}; expected one size"
            )
        return next(iter(sizes.values()))

    def example(self) -> Call:
        """The same call for the few samples that a capture looks at."""
        return replace(self, leaves=example_batch(self.leaves, self.batch_dim))

    def copied(self) -> Call:
        """The same call on copies, which a forward pass may write into."""
        leaves = [x.detach().clone() if isinstance(x, Tensor) else x for x in self.leaves]
        return replace(self, leaves=leaves)

    def key(self, free: Mapping[int, int] | None = None) -> tuple[Any, ...]:
        """What a graph depends on besides the model: structure, shapes but for the batch, types.

        Args:
            free: axes of leaves, by their position, whose size does not matter either.
        """
        axes = free or {}
        leaves = [self._leaf_key(leaf, axes.get(i)) for i, leaf in enumerate(self.leaves)]
        return (str(self.spec), self.batch_dim, *leaves)

    def _leaf_key(self, leaf: Any, free: int | None) -> Any:
        if not isinstance(leaf, Tensor):
            return (type(leaf), repr(leaf))
        shape = list(leaf.shape)
        if leaf.ndim > self.batch_dim:
            shape[self.batch_dim] = -1
        if free is not None:
            shape[free] = -2
        return (tuple(shape), leaf.dtype, str(leaf.device))


def _label(entry: Any) -> int | str:
    """A positional argument's number or a keyword."""
    label: int | str = entry.idx if isinstance(entry, pytree.SequenceKey) else entry.key
    return label
