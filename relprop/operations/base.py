"""The base class of operations, their registry, and their traits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from relprop.errors import PlanningError
from relprop.graph import Node
from relprop.graph.maps import CHANNELS_LAST, is_channels_last, unbroadcast
from relprop.rules import Rule

__all__ = [
    "Operation",
    "Parts",
    "Step",
    "operation",
    "quotient",
    "register",
    "registered",
    "run_by",
    "traits",
    "unbroadcast",
]


@dataclass(frozen=True)
class Step:
    """One operation of a plan.

    Attributes:
        node: what is computed.
        operation: how relevance goes back through it.
        inputs: names of the values that carry relevance, in the order of its arguments.
        rule: the rule in force, None where the operation leaves no choice.
        options: what planning found out for the operation, such as the gate of a product.
    """

    node: Node
    operation: Operation
    inputs: tuple[str, ...]
    rule: Rule | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the value it computes."""
        return self.node.name

    @property
    def where(self) -> str:
        """The step in the words of an error message."""
        return f"'{self.node.path}' ({self.node.op})" if self.node.path else self.node.op


@dataclass(frozen=True)
class Parts:
    """Relevance of an operation with several values, by their position; those without are absent.

    Attributes:
        items: `[K, *shape]` of each.
    """

    items: Mapping[int, Tensor]

    def __add__(self, other: Parts) -> Parts:
        both = {**self.items}
        for index, r in other.items.items():
            both[index] = both[index] + r if index in both else r
        return Parts(both)


class Engine(Protocol):
    """What an operation asks of the run that it is a step of."""

    @property
    def backend(self) -> Any:
        """The `relprop.operations.protocol.Backend` that linear layers go through."""
        ...

    @property
    def known(self) -> Mapping[str, Any]:
        """Values that need not be computed again."""
        ...

    def cache(self, name: str) -> dict[Any, Any] | None:
        """What a layer may keep from call to call; None where nothing may be kept."""
        ...

    def value(self, node: Node, values: Mapping[str, Any]) -> Any:
        """An operation's value."""
        ...


class Operation:
    """An operation through which relevance can go back.  Stateless: one instance an operation."""

    kind: ClassVar[str] = ""
    carry: ClassVar[str] = ""
    several: ClassVar[bool] = False
    """Whether more than one argument may carry relevance."""
    backend: ClassVar[str] = "aten"
    """Whose code it runs, where the plan's backend has none of its own."""
    limits: ClassVar[str] = ""
    """Which rules of its kind it does not take, for messages."""
    flows: ClassVar[bool] = True
    """Whether its value depends on the values it reads: not that of `zeros_like`."""
    moves: ClassVar[bool] = False
    """Each element of its value is an element that it reads, or a constant."""
    averages: ClassVar[bool] = False
    """Each element of its value is a mean or a sum of several that it reads."""
    gate: ClassVar[bool] = False
    """Its value is a gate, whatever it reads: between 0 and 1."""
    combines_gates: ClassVar[bool] = False
    """Its value is a gate where all that it reads are gates or constants."""
    measures: ClassVar[bool] = False
    """Its value is a magnitude, whatever it reads: how large that is, the sign forgotten."""
    scales_magnitudes: ClassVar[bool] = False
    """Its value is a magnitude where all that it reads are magnitudes or constants."""
    keeps_zero: ClassVar[bool] = False
    """Element by element, it gives 0 for 0."""
    weighted: ClassVar[bool] = False
    """A layer between units: the first of them on a path from an input is a first layer."""
    embeds: ClassVar[bool] = False
    """It makes vectors of integers, and relevance goes on to those."""
    shaped_like: ClassVar[bool] = False
    """Its second argument gives its shape and nothing else."""
    needs_kernel: ClassVar[bool] = False
    """It computes: a backend made of kernels must have one for it."""
    hint: ClassVar[str] = ""
    """What to do where relevance reaches it and it has no rule, for messages."""

    def forward(self, step: Step, values: Mapping[str, Any], engine: Engine) -> tuple[Any, Any]:
        """The value, and what `relevance` needs."""
        out = engine.value(step.node, values)
        return out, self.save(step, values, out)

    def save(self, step: Step, values: Mapping[str, Any], out: Any) -> Any:
        """What `relevance` needs of the forward pass; nothing unless overridden."""
        return None

    def relevance(self, step: Step, saved: Any, r: Any, engine: Engine) -> Sequence[Any]:
        """The relevance of each of `step.inputs`, `[K, *shape]`, from that of the output.

        That of an operation with several values is `Parts`; None where an input gets nothing.
        """
        raise TypeError(type(self).__name__)

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        """Whether the value is ≥ 0 whatever the input, `known` telling it of an argument."""
        return False

    def default_rule(self, epsilon: float) -> Rule | None:
        """The rule where the composite gives none."""
        return None

    def accepts(self, rule: Rule) -> bool:
        """Whether the rule can be given to this operation."""
        return False


_RUN: dict[tuple[type[Operation], type[Operation]], Operation] = {}


def run_by(runner: type[Operation], described: type[Operation]) -> Operation:
    """An operation that one class describes and another, a backend's, runs."""
    pair = runner, described
    if pair not in _RUN:
        _RUN[pair] = type(runner.__name__, pair, {})()
    return _RUN[pair]


_OPERATIONS: dict[str, Operation] = {}


def register(*names: str) -> Callable[[type[Operation]], type[Operation]]:
    """Class decorator: the operation serves these canonical names."""

    def decorate(cls: type[Operation]) -> type[Operation]:
        for name in names:
            if name in _OPERATIONS:
                raise ValueError(f"operation '{name}' is registered twice")
            _OPERATIONS[name] = cls()
        return cls

    return decorate


def operation(name: str) -> Operation | None:
    """The operation of that canonical name, None if relevance cannot go through it."""
    return _OPERATIONS.get(name)


def registered() -> dict[str, Operation]:
    """All operations by canonical name."""
    return dict(_OPERATIONS)


def wide(tensor: Tensor) -> Tensor:
    """Half precision as float32: denominators and relevance are never narrower."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def quotient(r: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """r / st(z), 0 where st(z) is 0; so is the gradient there."""
    z = wide(z)
    if epsilon == 0:
        empty = z == 0
        return torch.where(empty, 0.0, r / torch.where(empty, 1.0, z))
    return r / torch.where(z >= 0, z + epsilon, z - epsilon)


def layout(x: Tensor) -> torch.memory_format:
    """The memory format of a value: channels innermost, or last axis innermost."""
    return CHANNELS_LAST[x.ndim] if is_channels_last(x) else torch.contiguous_format


def laid_out(r: Tensor, form: torch.memory_format) -> Tensor:
    """Relevance `[K, *shape]` in a memory format: mixed formats slow every operation down."""
    if form is torch.contiguous_format:
        return r
    return r.flatten(0, 1).contiguous(memory_format=form).unflatten(0, r.shape[:2])


def refuse(step: Step, text: str) -> PlanningError:
    """A planning error that says where."""
    return PlanningError(f"{step.where}: {text}")


def traits(name: str) -> Operation:
    """What to ask for the traits of the operation of that canonical name."""
    return operation(name) or _UNRULED.get(name, _UNKNOWN)


class _Unruled(Operation):
    """Base of the operations that no relevance goes through."""

    names: ClassVar[tuple[str, ...]] = ()
    """Their canonical names."""


class _Constant(_Unruled):
    """Of what they read, only shape, type or sign counts."""

    names = (
        "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like",
        "new_zeros", "new_ones", "new_full", "new_empty", "sym_size", "sign", "sgn", "fill", "zero",
    )  # fmt: skip
    flows = False


class _LogSoftmax(_Unruled):
    """What they read is explained instead."""

    names: ClassVar[tuple[str, ...]] = ("log_softmax", "_log_softmax")
    hint = "explain what it reads, such as the logits (a model without it, or output=)"


class _Softmax(_LogSoftmax):
    """Weights that sum to 1."""

    names = ("softmax", "_softmax", "special_softmax")
    gate = True


class _Product(_Unruled):
    """A product of matrices is a layer of one factor where the other is a weight."""

    names = ("matmul",)
    hint = "both factors depend on an explained input; leave one of these unexplained (inputs=)"


class _Magnitude(_Unruled):
    """Magnitudes element by element."""

    names: ClassVar[tuple[str, ...]] = ("abs", "square")
    measures = True


class _Spread(_Magnitude):
    """Norms and deviations, magnitudes of several elements together."""

    names = ("linalg_norm", "linalg_matrix_norm", "frobenius_norm", "var", "std")
    averages = True


class _Power(_Unruled):
    """Powers."""

    names = ("sqrt", "rsqrt", "pow", "reciprocal")
    scales_magnitudes = True


_UNKNOWN = Operation()
_UNRULED: dict[str, Operation] = {
    name: cls()
    for cls in (_Constant, _LogSoftmax, _Softmax, _Product, _Magnitude, _Spread, _Power)
    for name in cls.names
}
