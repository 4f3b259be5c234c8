"""Operations that copy elements: relevance moves with the data (the adjoint of the copying)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relprop.graph import Node
from relprop.operations.base import (
    Engine,
    Operation,
    Step,
    laid_out,
    layout,
    register,
    unbroadcast,
)

__all__ = ["Concatenation", "Movement"]

aten = torch.ops.aten


class Movement(Operation):
    """Base: every value of the result is one of the input's values, or a constant."""

    kind = "reshape"
    carry = "movement"
    moves = True

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        return known(node.args[0])


@register("reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel")
class Reshape(Movement):
    """The same elements in the same order."""

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        x = values[step.inputs[0]]
        return x.shape, layout(x)

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        shape, form = saved
        return (laid_out(r.reshape(r.shape[0], *shape), form),)


@register("view_as", "reshape_as")
class ReshapeLike(Reshape):
    """The same, in the shape of another tensor."""

    shaped_like = True


@register("permute", "transpose", "t", "movedim", "numpy_T", "swapaxes")
class Permutation(Movement):
    """Reordered axes."""

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        ndim = values[step.inputs[0]].ndim
        # the permutation as it acts on a tensor whose axis i has i + 1 elements
        probe = torch.empty(tuple(range(1, ndim + 1)), device="meta")
        moved = step.node.evaluate(_Replaced(values, step.inputs[0], probe))
        inverse = [0] * (ndim + 1)
        for position, size in enumerate(moved.shape):
            inverse[size] = position + 1
        return inverse

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        return (r.permute(saved),)


@register("expand", "broadcast_to")
class Expansion(Movement):
    """Repetition along axes of size 1."""

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        return values[step.inputs[0]].shape

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        return (unbroadcast(r, saved),)


@register("expand_as")
class ExpansionLike(Expansion):
    """The same, to the shape of another tensor."""

    shaped_like = True


@register("slice", "select", "narrow", "diagonal")
class View(Movement):
    """A view of part of the input."""

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        x = values[step.inputs[0]]
        return x.shape, dict(_plain(step, values))

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        shape, others = saved
        result = r.new_zeros(r.shape[0], *shape)
        for row, part in zip(result, r, strict=True):
            view = step.node.evaluate({**others, step.inputs[0]: row})
            view.copy_(part)
        return (result,)


def _plain(step: Step, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, values[name]) for name in step.node.refs if name not in step.inputs]


@register("cat", "concat")
class Concatenation(Movement):
    """Tensors side by side; those that carry no relevance absorb their share."""

    several = True

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        axis = step.node.argument(1, "dim", 0) % out.ndim + 1
        parts = [ref.name for ref in step.node.args[0]]
        sizes = [values[name].shape[axis - 1] if values[name].ndim == out.ndim else 0
                 for name in parts]  # fmt: skip
        return axis, [name in step.inputs for name in parts], sizes

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        axis, carrying, sizes = saved
        parts = r.split(sizes, axis)
        return [part for part, carries in zip(parts, carrying, strict=True) if carries]

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        return all(known(part) for part in node.args[0])


@register("stack")
class Stacking(Movement):
    """Tensors along a new axis."""

    several = True

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        axis = step.node.argument(1, "dim", 0) % out.ndim + 1
        return axis, [ref.name in step.inputs for ref in step.node.args[0]]

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        axis, carrying = saved
        parts = r.unbind(axis)
        return [part for part, carries in zip(parts, carrying, strict=True) if carries]

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        return all(known(part) for part in node.args[0])


@register("constant_pad_nd")
class Padding(Movement):
    """Constant padding, which absorbs the relevance on it."""

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        return (F.pad(r, [-size for size in step.node.args[1]]),)

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        return known(node.args[0]) and node.argument(2, "value", 0) >= 0


@register(
    "roll", "flip", "repeat", "tile", "repeat_interleave", "index", "index_select", "gather",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "pad", "fliplr", "flipud", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "rot90", "take_along_dim", "unfold", "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "im2col", "max_unpool2d",
    "max_unpool3d",
)  # fmt: skip
class Copying(Movement):
    """Any other copying of elements: where each came from is found by copying their numbers."""

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        return values[step.inputs[0]].shape, dict(_plain(step, values))

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        shape, others = saved
        return _by_index(step, others, shape, r)


def _by_index(
    step: Step, others: Mapping[str, Any], shape: torch.Size, r: Tensor
) -> Sequence[Tensor]:
    count = shape.numel()
    # float64 holds every index exactly, and every operation here takes it; 0 is padding
    numbers = torch.arange(1, count + 1, dtype=torch.float64, device=r.device).view(shape)
    origin = step.node.evaluate({**others, step.inputs[0]: numbers}).long().flatten()
    result = r.new_zeros(r.shape[0], count + 1)
    result.index_add_(1, origin, r.reshape(r.shape[0], -1))
    return (result[:, 1:].reshape(r.shape[0], *shape),)


@register("slice_scatter", "select_scatter")
class Assignment(Movement):
    """`x[:, i] = y`: the places written to carry the relevance of y, the others that of x."""

    several = True

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        node = step.node
        view = aten.slice.Tensor if node.op == "slice_scatter" else aten.select.int
        kept = r.clone()
        for row in kept:
            view(row, *node.args[2:], **node.kwargs).zero_()
        parts = (kept, torch.stack([view(row, *node.args[2:], **node.kwargs) for row in r]))
        operands = zip(node.args[:2], parts, strict=True)
        return [part for ref, part in operands if ref.name in step.inputs]

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        return known(node.args[0]) and known(node.args[1])


@register("embedding")
class Embedding(Movement):
    """Embedding look-up: a token's relevance is the sum over its vector."""

    kind = "embedding"
    carry = "embedding"
    moves = False  # what it reads are tokens, what it gives rows of a table
    embeds = True

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        return (r.sum(-1),)

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        return False


class _Replaced(Mapping[str, Any]):
    """A view of `values` in which one name has another value."""

    def __init__(self, values: Mapping[str, Any], name: str, value: Any) -> None:
        self.values_, self.name, self.value = values, name, value

    def __getitem__(self, key: str) -> Any:
        return self.value if key == self.name else self.values_[key]

    def __iter__(self) -> Any:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)
