"""Layers' relevance as operators of PyTorch, for `torch.compile`: one operator for each layer kind.

An operator takes tensors, numbers and strings, so under `torch.compile` a rule travels as a key
into a table of live rules.  The key is a digest of the rule's pickle, for two reasons: one rule has
one key in every process, so that what a compiler keeps on disk is found again; and a program that
another process compiled, run where its rule is unknown, fails instead of taking another rule.
Nothing is ever unpickled: strings that come to an operator from elsewhere are only looked up.

Outside of compiled functions nothing goes through an operator, which would cost more than a small
layer.
"""

from __future__ import annotations

import hashlib
import io
import operator
import pickle
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from relprop import backends
from relprop.capture.call import neutral_modes
from relprop.errors import InputError
from relprop.graph.maps import Conv, Dense, LinearMap
from relprop.rules import LinearRule, Rule

__all__ = ["conv_relevance", "key_of", "layer_relevance", "linear_relevance", "result_type"]

_RULES: dict[str, Rule | str] = {}
"""Rules by key, for as long as the process: a compiled function holds the key alone.  A rule that
has no pickle is there as the reason, which an operator raises: a compiler would bury the error."""


class _Pickler(pickle.Pickler):
    """Writes tensors by value: torch's own way writes their addresses too."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.tensor, (value.tolist(), value.dtype)
        return NotImplemented


def key_of(rule: Rule) -> str:
    """The key under which operators find a rule.

    A compiler reads the attributes one by one, since a rule made inside of what it compiles is no
    object yet: asked for that, it would hand out one whose attributes are its class's defaults.
    """
    names, nested, values = [], [], []
    for name, value in vars(rule).items():
        inner = isinstance(value, Rule)
        names.append(name)
        nested.append(inner)
        values.append(key_of(value) if inner else _constant(value))
    return _registered(type(rule), tuple(names), tuple(nested), *values)


def _constant(value: Any) -> Any:
    """The value, as a constant also where a number changed between calls.

    Of such a number a compiler makes a variable, which only these two ways make a constant again.
    """
    if isinstance(value, tuple):
        return tuple(_constant(item) for item in value)
    if type(value) is int:
        return operator.index(value)
    return float.fromhex(value.hex()) if type(value) is float else value


def _registered(
    kind: type[Rule], names: tuple[str, ...], nested: tuple[bool, ...], *values: Any
) -> str:
    """The key of a rule of this class and these attributes, `nested` ones given by their keys."""
    rule = object.__new__(kind)
    for name, inner, value in zip(names, nested, values, strict=True):
        if inner and isinstance(_RULES[value], str):
            return value
        object.__setattr__(rule, name, _RULES[value] if inner else value)
    try:
        written = io.BytesIO()
        _Pickler(written, protocol=4).dump(rule)
        key = hashlib.sha256(written.getvalue()).hexdigest()
    except Exception as error:
        key = f"{kind.__module__}.{kind.__qualname__}"
        _RULES[key] = (
            f"rule {kind.__qualname__} cannot be pickled ({error}), so no compiled function takes "
            "it; define its class at the top level of a module, keep functions and open files out "
            "of its attributes, or leave this call out of torch.compile"
        )
        return key
    # a class that was defined anew, as in a notebook, pickles like its forerunner
    while type(_RULES.setdefault(key, rule)) is not kind:
        key += "+"
    return key


# all that torch.compiler.assume_constant_result does, which imports the compiler, Triton included
_registered._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _rule(key: str) -> LinearRule:
    rule = _RULES.get(key, f"no rule of this process has the key {key!r}; compile the call here")
    if isinstance(rule, LinearRule):
        return rule
    raise InputError(str(rule))


@torch.library.custom_op("relprop::linear_relevance", mutates_args=())
def linear_relevance(
    x: Tensor, weight: Tensor, bias: Tensor | None, relevance: Tensor, rule: str, backend: str
) -> Tensor:
    """As `relprop.functional.linear_relevance`, the rule by `key_of`."""
    return _evaluated(Dense(), x, weight, bias, relevance, _rule(rule), backend).contiguous()


@torch.library.custom_op("relprop::conv_relevance", mutates_args=())
def conv_relevance(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relevance: Tensor,
    rule: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    transposed: bool,
    output_padding: Sequence[int],
    backend: str,
) -> Tensor:
    """As `relprop.functional.conv_relevance`; the padding before and after each axis in turn."""
    pads = tuple(zip(padding[::2], padding[1::2], strict=True))
    extra = tuple(output_padding) if transposed else ()
    conv = Conv(tuple(stride), pads, tuple(dilation), groups, transposed, extra)
    return _evaluated(conv, x, weight, bias, relevance, _rule(rule), backend).contiguous()


@linear_relevance.register_fake
@conv_relevance.register_fake
def _like_input(x: Tensor, weight: Tensor, bias: Tensor | None, *_: Any) -> Tensor:
    """What an operator returns, without its values."""
    return x.new_empty(x.shape, dtype=result_type(x, weight, bias))


def result_type(x: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype:
    """Of a layer's relevance: float64 if an operand is, else float32."""
    operands = (x, weight) if bias is None else (x, weight, bias)
    wide = any(operand.dtype is torch.float64 for operand in operands)
    return torch.float64 if wide else torch.float32


def layer_relevance(
    linear_map: LinearMap,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relevance: Tensor,
    rule: LinearRule,
    backend: str,
    where: str = "layer_relevance",
) -> Tensor:
    """The relevance of a layer's input, from operands that fit each other.

    Args:
        linear_map: a `Dense` or a `Conv`.
        x, weight, bias, relevance, rule, backend: as in `relprop.functional`.
        where: the caller, for messages.

    Raises:
        InputError: the backend takes no such operands, or a compiled function's rule no pickle.
    """
    if not torch.compiler.is_compiling():
        return _evaluated(linear_map, x, weight, bias, relevance, rule, backend, where)
    key = key_of(rule)
    x, weight, relevance = x.detach(), weight.detach(), relevance.detach()
    bias = None if bias is None else bias.detach()
    if isinstance(linear_map, Dense):
        return linear_relevance(x, weight, bias, relevance, key, backend)
    assert isinstance(linear_map, Conv)
    return conv_relevance(
        x, weight, bias, relevance, key, list(linear_map.stride),
        [size for pair in linear_map.padding for size in pair], list(linear_map.dilation),
        linear_map.groups, linear_map.transposed,
        list(linear_map.output_padding) or [0] * linear_map.spatial, backend,
    )  # fmt: skip


def _evaluated(
    linear_map: LinearMap,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relevance: Tensor,
    rule: LinearRule,
    backend: str,
    where: str = "compiled function",
) -> Tensor:
    """One target through a backend, whatever the caller's modes are."""
    dtype = result_type(x, weight, bias)
    engine = backends.get(backend)
    call = backends.LinearCall(linear_map, rule, path=where)
    with neutral_modes(x):
        b = None if bias is None else bias.to(dtype)
        z, saved = engine.forward(call, x.to(dtype), weight.to(dtype), b)
        return engine.relevance(call, saved, relevance.reshape(1, *z.shape).to(dtype))[0].detach()
