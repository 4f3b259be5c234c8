"""Captum's calling forms: inputs, additional arguments, targets, and what `NoiseTunnel` expects."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch.utils._pytree as pytree
from torch import Tensor

from relprop.capture.call import Call
from relprop.errors import InputError
from relprop.explainer import Explainer

__all__ = ["Arguments", "like_inputs", "target_of", "unwrappable"]

F = TypeVar("F", bound=Callable[..., Any])


def unwrappable(method: F) -> F:
    """The method with itself under `__wrapped__`, which Captum's `NoiseTunnel` calls."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return call  # type: ignore[return-value]


class Arguments:
    """The arguments of a call in Captum's form.

    Args:
        inputs: a tensor, or a tuple of tensors.
        additional: None, one further argument of the model, or a tuple of them.

    Attributes:
        inputs: the tensors to explain.
        is_tuple: whether the caller gave a tuple, hence gets one.
        all: all positional arguments of the model.
        unbatched: which leaves of `all` are additional tensors that do not count the samples.
    """

    def __init__(self, inputs: Any, additional: Any) -> None:
        self.is_tuple = isinstance(inputs, tuple)
        self.inputs: tuple[Tensor, ...] = inputs if self.is_tuple else (inputs,)
        for number, x in enumerate(self.inputs):
            if not isinstance(x, Tensor):
                raise InputError(f"inputs[{number}]: {type(x).__name__}; expected a torch.Tensor")
        more = additional if isinstance(additional, tuple) else (additional,)
        self.all: tuple[Any, ...] = self.inputs + (more if additional is not None else ())
        self.unbatched = tuple(
            i
            for i, leaf in enumerate(pytree.tree_leaves(self.all))
            if isinstance(leaf, Tensor)
            and i >= len(self.inputs)
            and leaf.ndim > 0
            and leaf.shape[:1] != self.inputs[0].shape[:1]
        )

    @property
    def batched(self) -> tuple[Any, ...]:
        """All positional arguments, None in the places of those in `unbatched`."""
        leaves, spec = pytree.tree_flatten(self.all)
        for place in self.unbatched:
            leaves[place] = None
        found: tuple[Any, ...] = pytree.tree_unflatten(leaves, spec)
        return found

    @property
    def explained(self) -> list[int | str]:
        """The positions of the inputs to explain."""
        return list(range(len(self.inputs)))


def like_inputs(arguments: Arguments, maps: Any) -> Any:
    """Maps in the form in which Captum returns them: a tuple for a tuple, of the inputs' types."""
    parts = maps if isinstance(maps, tuple) else (maps,)
    if len(parts) != len(arguments.inputs):
        raise InputError(
            f"inputs: {len(arguments.inputs)} tensors, of which the explanation reaches "
            f"{len(parts)}; pass those that are neither floating point nor token ids of an "
            "embedding as additional_forward_args"
        )
    cast = tuple(
        part.to(x.dtype) if x.is_floating_point() else part
        for part, x in zip(parts, arguments.inputs, strict=True)
    )
    return cast if arguments.is_tuple else cast[0]


def target_of(explainer: Explainer, arguments: Arguments, target: Any) -> Any:
    """A target of Captum's as one of relprop's.

    A tensor of one element stands for all samples, a negative index counts from the end, and an
    index may leave out trailing axes of size 1.

    Raises:
        InputError: it has several values a sample, for which Captum's classes have no return form.
    """
    if isinstance(target, Tensor) and target.numel() == 1:
        target = int(target.item())
    rows = target if isinstance(target, list) else ()
    if getattr(target, "ndim", 1) > 1 or any(isinstance(row, (list, Tensor)) for row in rows):
        raise InputError(
            f"target: {target!r}; expected an index, a list or 1-d tensor of one a sample, or "
            "tuples where the output has several dimensions; several targets a sample are for "
            "relprop.Explainer"
        )
    if not isinstance(target, (int, tuple)) or isinstance(target, bool):
        return target
    position = (target,) if isinstance(target, int) else target
    if not all(isinstance(index, int) for index in position):
        raise InputError(f"target: {target!r}; expected integers")
    sizes = _output_sizes(explainer, arguments)
    rest = sizes[len(position) :]
    if len(position) > len(sizes) or any(size != 1 for size in rest):
        return target
    wrapped = [i + size if i < 0 else i for i, size in zip(position, sizes, strict=False)]
    return tuple(wrapped + [0] * len(rest))


def _output_sizes(explainer: Explainer, arguments: Arguments) -> tuple[int, ...]:
    """The axes of the explained output besides the batch's."""
    plan = explainer._prepare(Call.of(arguments.batched, None, 0)).plan
    node = plan.graph.nodes.get(plan.output)
    return () if node is None or node.shape is None else tuple(node.shape[1:])
