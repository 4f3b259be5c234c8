"""The traits of any operation, of those that relevance does not go through too.

Traits are the class attributes of `Operation`.  An operation that carries relevance states them
where it is registered; the others, which have nothing but traits, are below.
"""

from __future__ import annotations

from typing import ClassVar

from relprop.operations.base import Operation, operation

__all__ = ["traits"]


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


class _Magnitude(_Unruled):
    """Magnitudes element by element."""

    names: ClassVar[tuple[str, ...]] = ("abs", "square")
    measures = True


class _Spread(_Magnitude):
    """Norms and deviations, magnitudes of several elements together."""

    names = ("linalg_vector_norm", "linalg_norm", "linalg_matrix_norm", "norm", "frobenius_norm",
             "var", "std")  # fmt: skip
    averages = True


class _Power(_Unruled):
    """Powers."""

    names = ("sqrt", "rsqrt", "pow", "reciprocal")
    scales_magnitudes = True


_UNKNOWN = Operation()
_UNRULED: dict[str, Operation] = {
    name: cls()
    for cls in (_Constant, _LogSoftmax, _Softmax, _Magnitude, _Spread, _Power)
    for name in cls.names
}
