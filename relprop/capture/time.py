"""The time axis of recurrent models, and their capture for any number of steps.

torch.export unrolls `nn.LSTM` and its siblings in order to learn the shape of what they return,
which ties the graph to one number of steps.  While `whole_sequences` is active they are operations
of their own, whose shape rule is one line, so that time may stay symbolic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["library_operation", "time_axes", "whole_sequences"]

_KINDS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_REST = (
    "Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, "
    "bool bidirectional, bool batch_first"
)
_OPERATORS = torch.library.Library("relprop_recurrent", "DEF")


def _shapes(x: Tensor, states: Sequence[Tensor], bidirectional: bool) -> tuple[Tensor, ...]:
    width = states[0].shape[2] * (2 if bidirectional else 1)
    return x.new_empty(x.shape[0], x.shape[1], width), *map(torch.empty_like, states)


def _lstm(x: Tensor, hx: Sequence[Tensor], *rest: Any) -> tuple[Tensor, ...]:
    return _shapes(x, hx, rest[5])


def _other(x: Tensor, hx: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _shapes(x, [hx], rest[5])


for _kind in _KINDS:
    _is_lstm = _kind == "lstm"
    _states = "Tensor[] hx" if _is_lstm else "Tensor hx"
    _returned = "(Tensor, Tensor, Tensor)" if _is_lstm else "(Tensor, Tensor)"
    _OPERATORS.define(f"{_kind}(Tensor x, {_states}, {_REST}) -> {_returned}")
    torch.library.register_fake(
        f"relprop_recurrent::{_kind}", _lstm if _is_lstm else _other, lib=_OPERATORS
    )


def library_operation(target: Any) -> Any:
    """The library's operation behind one of ours; any other operation as it is."""
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "relprop_recurrent":
        return getattr(torch.ops.aten, target._schema.name.partition("::")[2]).input
    return target


class _WholeSequences(TorchFunctionMode):
    """Calls of the library's recurrent layers on padded sequences, as operations of ours."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kind = getattr(func, "__name__", "")
        if kind in _KINDS and not kwargs and len(args) == 9 and isinstance(args[2], (list, tuple)):
            return getattr(torch.ops.relprop_recurrent, kind)(*args)
        return func(*args, **(kwargs or {}))


@contextmanager
def whole_sequences() -> Iterator[None]:
    """Trace recurrent layers without unrolling them, in this thread."""
    with _WholeSequences():
        yield


def time_axes(model: nn.Module, leaves: Sequence[Any], batch_dim: int) -> dict[int, int]:
    """Which inputs of a recurrent model run over time, and on which axis.

    Time is the other one of the first two axes of the first input that is floating and has three
    axes or more, or holds tokens and has two; inputs with as many steps there run along with it.

    Returns:
        Position among `leaves` → axis; empty where the model has no recurrent module.
    """
    if not any(isinstance(m, (nn.RNNBase, nn.RNNCellBase)) for m in model.modules()):
        return {}
    axis = 1 - batch_dim
    tensors = {i: x for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.ndim > 1}
    steps = [
        x.shape[axis] for x in tensors.values() if x.ndim > (2 if x.is_floating_point() else 1)
    ]
    return {i: axis for i, x in tensors.items() if steps and x.shape[axis] == steps[0]}
