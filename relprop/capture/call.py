"""One call of a model: the model itself, its inputs flattened and checked, ambient modes aside."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from relprop.capture.time import time_axes
from relprop.errors import CaptureError, InputError, PlanningError

__all__ = [
    "EXAMPLE_BATCH",
    "NAN_POLICIES",
    "Call",
    "check_finite",
    "check_inputs",
    "check_modes",
    "example_batch",
    "free_time",
    "neutral_modes",
    "unwrap",
]

EXAMPLE_BATCH = 2
"""A batch of 1 would be specialised by torch.export."""


@dataclass(frozen=True)
class Call:
    """The inputs of one call, flattened.

    Attributes:
        leaves: leaves of `(args, kwargs)` in pytree order.
        spec: their structure.
        labels: what each leaf is called in messages and in `inputs=`: a position or a keyword.
        batch_dim: the axis of the samples.
        shared: positions of the leaves that are one for all samples, and have no such axis.
    """

    leaves: list[Any]
    spec: pytree.TreeSpec
    labels: list[int | str]
    batch_dim: int
    shared: frozenset[int] = frozenset()

    @classmethod
    def of(
        cls,
        inputs: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        batch_dim: int,
        explained: Sequence[int | str] | None = None,
        shared: Sequence[int | str] = (),
    ) -> Call:
        """Flatten a call, keywords in alphabetical order.

        Args:
            inputs, kwargs, batch_dim: the call's.
            explained: labels of the inputs to explain, None for all; what is not explained and has
                another size on the axis of the samples is taken for shared.
            shared: labels of the inputs that are one for all samples.

        Raises:
            InputError: a label of `shared` is not among the arguments.
        """
        named = dict(sorted((kwargs or {}).items()))
        pairs, spec = pytree.tree_flatten_with_path((inputs, named))
        labels = [_label(path[1]) for path, _ in pairs]
        call = cls([leaf for _, leaf in pairs], spec, labels, batch_dim)
        unknown = [label for label in shared if label not in labels]
        if unknown:
            raise InputError(
                f"shared: {unknown} not among the arguments of the call, {labels}; expected "
                "positions and keywords"
            )
        call = replace(call, shared=call._positions(shared))
        if explained is None:
            return call
        sizes = {call._size(i) for i in call._positions(explained) - call.shared} - {None}
        others = range(len(labels)) if len(sizes) == 1 else ()
        odd = {i for i in others if labels[i] not in explained and call._size(i) not in sizes}
        return replace(call, shared=call.shared | odd)

    def _positions(self, labels: Sequence[int | str]) -> frozenset[int]:
        return frozenset(i for i, label in enumerate(self.labels) if label in labels)

    def _size(self, position: int) -> int | None:
        """The number of samples in a leaf, None where it has no axis for them."""
        leaf = self.leaves[position]
        counts = isinstance(leaf, Tensor) and leaf.ndim > self.batch_dim
        return leaf.shape[self.batch_dim] if counts else None

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
            label: size
            for i, label in enumerate(self.labels)
            if i not in self.shared and (size := self._size(i)) is not None
        }
        if not sizes:
            raise InputError(f"inputs: no tensor has an axis {self.batch_dim} that counts samples")
        if len(set(sizes.values())) > 1:
            raise InputError(
                f"inputs: batch sizes differ on axis {self.batch_dim}: {sizes}; expected one size "
                "(inputs without samples are named by shared=, or left unexplained by inputs=)"
            )
        return next(iter(sizes.values()))

    def example(self) -> Call:
        """The same call for the few samples that a capture looks at."""
        return replace(self, leaves=example_batch(self.leaves, self.batch_dim, self.shared))

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
        leaves = [
            self._leaf_key(leaf, axes.get(i), i in self.shared)
            for i, leaf in enumerate(self.leaves)
        ]
        return (str(self.spec), self.batch_dim, self.shared, *leaves)

    def _leaf_key(self, leaf: Any, free: int | None, shared: bool) -> Any:
        if not isinstance(leaf, Tensor):
            return (type(leaf), repr(leaf))
        shape = list(leaf.shape)
        if leaf.ndim > self.batch_dim and not shared:
            shape[self.batch_dim] = -1
        if free is not None:
            shape[free] = -2
        return (tuple(shape), leaf.dtype, str(leaf.device))


def _label(entry: Any) -> int | str:
    """A positional argument's number or a keyword."""
    label: int | str = entry.idx if isinstance(entry, pytree.SequenceKey) else entry.key
    return label


NAN_POLICIES = ("raise", "propagate")


def check_inputs(call: Call, nan_policy: str) -> None:
    """Refuse a call that cannot be explained.

    Raises:
        InputError: no input is a tensor, the batch sizes differ, or a tensor is not of real, dense
            numbers, finite ones if `nan_policy` is "raise".
    """
    if not any(isinstance(leaf, Tensor) for leaf in call.leaves):
        kinds = sorted({type(leaf).__name__ for leaf in call.leaves}) or ["nothing"]
        raise InputError(f"inputs: {', '.join(kinds)}; expected at least one torch.Tensor")
    _ = call.batch
    for label, leaf in zip(call.labels, call.leaves, strict=True):
        if not isinstance(leaf, Tensor):
            continue
        if leaf.is_meta:
            raise InputError(f"input {label}: a tensor on the meta device; expected values")
        if leaf.is_complex() or leaf.layout is not torch.strided:
            raise InputError(
                f"input {label}: {leaf.dtype}, {leaf.layout}; expected real, dense numbers"
            )
        if nan_policy == "raise" and leaf.is_floating_point():
            check_finite(f"input {label}", leaf)


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise InputError where a tensor has NaN or infinite values; `name` is its own in words."""
    if not torch.isfinite(tensor).all():
        count = int((~torch.isfinite(tensor)).sum())
        raise InputError(
            f"{name}: {count} of {tensor.numel()} values are NaN or infinite; clean them, or pass "
            "nan_policy='propagate'"
        )


@contextmanager
def neutral_modes(*values: Any) -> Iterator[None]:
    """No gradients, no autocast, no inference mode: a result does not depend on the caller's.

    The current CUDA device is that of the first tensor among the values: kernels run there.
    """
    tensors = (value for value in values if isinstance(value, torch.Tensor) and value.is_cuda)
    first = next(tensors, None)
    with (
        contextlib.nullcontext() if first is None else torch.cuda.device_of(first),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


def check_modes(model: nn.Module) -> None:
    """Refuse batch norm and dropout in training mode, and modules without parameters yet.

    Raises:
        PlanningError: names the first such module.
    """
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise PlanningError(
                f"model: '{path}' has no shape yet; call the model once on real inputs first"
            )
    kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    for path, module in model.named_modules():
        dropping = isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1
        if module.training and (dropping or isinstance(module, kinds)):
            raise PlanningError(
                f"model: '{path}' ({type(module).__name__}) is in training mode, so an explanation "
                "would depend on the other samples or on chance; call model.eval() first"
            )


def unwrap(model: Any) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel or `torch.compile`.

    Raises:
        InputError: it is no module.
        CaptureError: it is a scripted or quantised one.
    """
    while isinstance(model, nn.Module):
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, (nn.DataParallel, nn.parallel.DistributedDataParallel)
        ):
            inner = model.module
        if inner is None:
            break
        model = inner
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model: {type(model).__name__}; expected a torch.nn.Module (wrap a function in one)"
        )
    for path, module in model.named_modules():
        where = f"'{path}'" if path else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                f"model: {where} is a TorchScript module, whose operations cannot be captured; "
                "explain the original nn.Module, or an ExportedProgram's .module()"
            )
        package, *inner = type(module).__module__.split(".")
        if package == "torch" and "quantized" in inner:  # a user's own may be called so
            raise CaptureError(
                f"model: {where} is quantised ({type(module).__name__}); explain the model before "
                "quantisation"
            )
    return model


def free_time(
    model: nn.Module, leaves: Sequence[Any], batch_dim: int, shared: Collection[int] = ()
) -> dict[int, int]:
    """The time axes for which one capture may serve any number of steps from two on."""
    if not any(isinstance(module, nn.RNNBase) for module in model.modules()):
        return {}
    own = [None if i in shared else leaf for i, leaf in enumerate(leaves)]
    axes = time_axes(model, own, batch_dim)
    return axes if all(leaves[i].shape[axis] > 1 for i, axis in axes.items()) else {}


def example_batch(leaves: Sequence[Any], batch_dim: int, shared: Collection[int] = ()) -> list[Any]:
    """The leaves, all but those shared cut or repeated to `EXAMPLE_BATCH` samples."""
    return [
        _resize(leaf, batch_dim) if isinstance(leaf, Tensor) and i not in shared else leaf
        for i, leaf in enumerate(leaves)
    ]


def _resize(tensor: Tensor, axis: int) -> Tensor:
    if tensor.ndim <= axis:
        return tensor
    size = tensor.shape[axis]
    if size >= EXAMPLE_BATCH:
        # a copy: strides that tell of the whole batch would tie the capture to its size
        return tensor.narrow(axis, 0, EXAMPLE_BATCH).clone()
    if size == 0:
        shape = list(tensor.shape)
        shape[axis] = EXAMPLE_BATCH
        return tensor.new_zeros(shape)
    return torch.cat([tensor] * EXAMPLE_BATCH, axis)
