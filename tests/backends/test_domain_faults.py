"""Faults of this field, planted by name: of each, a comparison that the tests make must take note.

Where the mutation gate (`.ci/mutants.py`) draws small edits by chance, these are the mistakes that
an implementation of relevance propagation is known for.  Every comparison is a test of another
file, called as it stands: it passes, and fails once the fault is there.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from relprop.backends.aten import blockwise
from relprop.backends.aten.forms.layer import Layer
from relprop.backends.aten.products import Products
from relprop.backends.aten.recurrent import stack as recurrent
from relprop.backends.aten.recurrent import tape
from relprop.backends.reference import linear as reference
from relprop.backends.reference import recurrent as naive
from relprop.engine import targets
from relprop.errors import RelpropError
from relprop.graph.maps import Conv, scale_bias
from relprop.operations import arithmetic, base
from relprop.operations import pointwise as operations
from relprop.operations.pool import AveragePooling, Maximum
from relprop.rules import AlphaBeta, Gamma, Group, Term, ZBox
from relprop.rules.terms import NEGATIVE, OPPOSITE_SIGNS, POSITIVE, SAME_SIGNS

Plant = Callable[[pytest.MonkeyPatch], None]
Row = tuple[Any, ...]
"""A test function's name and its arguments."""

TESTS = next(folder for folder in Path(__file__).resolve().parents if folder.name == "tests")


def _home(row: Row) -> Path:
    """The file that holds a test and names its arguments, in whichever folder it lies."""
    name, *arguments = row
    wanted = [f"def {name}(", *(f'"{each}"' for each in arguments if isinstance(each, str))]
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(TESTS.rglob("test_*.py"))}
    found = [path for path, text in texts.items() if all(part in text for part in wanted)]
    assert len(found) == 1, f"{row}: the test is in {len(found)} files; expected one"
    return found[0]


@functools.cache
def _tests(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"faulty_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _compare(row: Row, patch: pytest.MonkeyPatch) -> None:
    name, *arguments = row
    function = getattr(_tests(_home(row)), name)
    patched = {"monkeypatch": patch} if "monkeypatch" in signature(function).parameters else {}
    torch.manual_seed(0)
    function(*arguments, **patched)


def instead(of: Any, other: Any) -> Plant:
    """Another value wherever the library holds this one."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        found = [
            (module, name)
            for path, module in list(sys.modules.items())
            if path.partition(".")[0] == "relprop"
            for name, value in list(vars(module).items())
            if value is of
        ]
        assert found, of
        for module, name in found:
            patch.setattr(module, name, other)

    return plant


def method(of: type, name: str, other: Any) -> Plant:
    """Another method or property of a class."""
    assert name in vars(of)
    return lambda patch: patch.setattr(of, name, other)


def together(*plants: Plant) -> Plant:
    """Several edits that are one fault."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        for each in plants:
            each(patch)

    return plant


def by_hand(rule: str, backend: str) -> Row:
    """The rule's numbers on the layer of two inputs and two outputs."""
    return "test_two_by_two_by_hand", rule, backend


def loop(kind: str, stack: str, lengths: list[int] | None = None) -> Row:
    """The batched recurrence beside the plain loop."""
    return "test_reduced_recurrence_equals_the_loop", kind, stack, lengths


def lrp_0(network: str) -> Row:
    """A network beside gradient times input."""
    return "test_lrp_0_is_gradient_times_input", network


def _minus_at_zero(z: Tensor, epsilon: float) -> Tensor:
    return torch.where(z > 0, z + epsilon, z - epsilon)


def _whole_where_empty(r: Tensor, z: Tensor, epsilon: float) -> Tensor:
    st = torch.where(z >= 0, z + epsilon, z - epsilon)
    return r / torch.where(st == 0, 1.0, st)


def _first_of_axes(r: Tensor, shape: torch.Size) -> Tensor:
    """What reaches a broadcast operand's first copy alone."""
    while r.ndim > 1 + len(shape):
        r = r.select(1, 0)
    for axis, size in enumerate(shape, start=1):
        r = r.narrow(axis, 0, 1) if size == 1 else r
    return r


_arguments, _contraction, _adjoint = Conv._arguments, Products.contraction, Products.adjoint
_forward, _pool, _box = Maximum.forward, AveragePooling.options, ZBox.box_terms
_pre_activations, _gated, _reverse = tape._pre_activations, naive._gated_step, recurrent.reverse
_runs, _scatter, _divide = blockwise._runs, targets._scatter, arithmetic.divide
_ranks, _mask, _sum_factors = reference._ranks, reference._mask, operations.operand_factors
_swapped = {POSITIVE: NEGATIVE, NEGATIVE: POSITIVE}


def _stride_for_dilation(self: Conv) -> tuple[object, ...]:
    stride, padding, dilation, *rest = _arguments(self)
    return dilation, padding, stride, *rest


def _wrong_sign_forth(self: Products, a: Tensor, part: Any, *args: Any, **options: Any) -> Tensor:
    return _contraction(self, a, _swapped.get(part, part), *args, **options)


def _wrong_sign_back(self: Products, s: Tensor, part: Any, *args: Any, **options: Any) -> Tensor:
    return _adjoint(self, s, _swapped.get(part, part), *args, **options)


def _alpha_for_beta(self: AlphaBeta) -> tuple[Group, ...]:
    return (
        Group(SAME_SIGNS, bias=POSITIVE, scale=self.beta),
        Group(OPPOSITE_SIGNS, bias=NEGATIVE, scale=-self.alpha),
    )


def _negative_added(
    r: Tensor, z: Tensor, epsilon: float, sign: int = 0, scale: Any = 1.0, out: Any = None
) -> Tensor:
    return _divide(r, z, epsilon, sign, abs(scale), out)


def _low_for_high(self: ZBox, part: str | None = None) -> tuple[Term, ...]:
    signal, low, high = _box(self, part)
    return signal, Term(high.input, low.weight), Term(low.input, high.weight)


def _one_gate(self: Gamma) -> tuple[Group, ...]:
    return tuple(Group(g.terms, g.bias, gate="positive") for g in _gamma_terms(self))


_gamma_terms = Gamma.terms


def _input_for_forget(*args: Any) -> Tensor:
    i, f, g, o = _pre_activations(*args).chunk(4, -1)
    return torch.cat([f, i, g, o], -1)


def _input_for_forget_in_the_loop(*args: Any) -> Any:
    step = _gated(*args)
    return {**step, "i": step["f"], "f": step["i"]}


def _without_the_last(w: Tensor) -> Any:
    return list(_runs(w))[:-1]


def _sample_for_target(values: Tensor, target: Any) -> Tensor:
    return _scatter(values, target).flip(1)


def _last_of_equals(self: Maximum, step: Any, values: Any, engine: Any) -> Any:
    out, (_, order, moved, flat) = _forward(self, step, values, engine)
    x = values[step.inputs[0]].permute(order).reshape(flat)
    last = flat[-1] - 1 - x.flip(-1).argmax(-1)
    return out, (last, order, moved, flat)


def _half_each(self: Any, step: Any, saved: Any, r: Tensor, engine: Any) -> Any:
    return [base.unbroadcast(r / len(saved), shape) for shape in saved]


def _padding_not_counted(self: AveragePooling, node: Any) -> tuple[Any, ...]:
    *rest, counted, divisor = _pool(self, node)
    return *rest, not counted, divisor


FAULTS: dict[str, tuple[Plant, Row]] = {
    "the sign of a sum of 0 is -1": (
        instead(base.quotient, lambda r, z, e: r / _minus_at_zero(z, e)),
        ("test_sums_by_hand", "aten"),
    ),
    "the sign of a sum of 0 is -1, in the oracle": (
        instead(reference.stabilize, _minus_at_zero),
        ("test_sums_by_hand", "reference"),
    ),
    "0 / 0 is R": (
        instead(base.quotient, _whole_where_empty),
        ("test_zero_stabilizer_gives_zero_for_empty_sums", "aten"),
    ),
    "0 / 0 is R, in the oracle": (
        instead(reference.quotient, _whole_where_empty),
        ("test_zero_stabilizer_gives_zero_for_empty_sums", "reference"),
    ),
    "summands of opposite signs where equal ones are due": (
        instead(SAME_SIGNS, OPPOSITE_SIGNS),
        by_hand("z+", "reference"),
    ),
    "the weight's part of the wrong sign, in the denominator": (
        method(Products, "contraction", _wrong_sign_forth),
        by_hand("z+", "aten"),
    ),
    "the weight's part of the wrong sign, on the way back": (
        method(Products, "adjoint", _wrong_sign_back),
        by_hand("z+", "aten"),
    ),
    "the bias is forgotten in the denominator": (
        method(Layer, "kept_bias", property(lambda self: None)),
        by_hand("z+", "aten"),
    ),
    "the bias is forgotten in the denominator, in the oracle": (
        instead(reference._bias, lambda *_: 0.0),
        by_hand("z+", "reference"),
    ),
    "the shift of a batch norm is forgotten where it folds": (
        instead(scale_bias, lambda b, scale, shift: b * scale),
        lrp_0("convolution, norm"),
    ),
    "stride and dilation are swapped": (
        method(Conv, "_arguments", _stride_for_dilation),
        lrp_0("transposed, every option"),
    ),
    "alpha and beta are swapped": (
        method(AlphaBeta, "terms", _alpha_for_beta),
        by_hand("alpha2 beta1", "reference"),
    ),
    "beta's group is added": (
        instead(arithmetic.divide, _negative_added),
        by_hand("alpha2 beta1", "aten"),
    ),
    "the box is upside down": (
        method(ZBox, "box_terms", _low_for_high),
        by_hand("box -3..2", "reference"),
    ),
    "gamma favours both signs of the output alike": (
        method(Gamma, "terms", _one_gate),
        by_hand("gamma=1", "reference"),
    ),
    "the pixels of a joint input are its state": (
        instead(reference._mask, lambda part, *rest: 1 - _mask(part, *rest)),
        by_hand("joint", "reference"),
    ),
    "a block of rows is dropped": (
        instead(blockwise._runs, _without_the_last),
        ("test_products", torch.relu),
    ),
    "the sign of a subtrahend is dropped": (
        instead(operations.operand_factors, lambda node: tuple(map(abs, _sum_factors(node)))),
        ("test_sums_by_hand", "aten"),
    ),
    "a broadcast operand gets the share of one copy": (
        instead(base.unbroadcast, _first_of_axes),
        ("test_broadcast_operands_are_summed_after_the_split", "aten"),
    ),
    "a gate takes half": (
        method(operations.Multiplication, "relevance", _half_each),
        ("test_signal_takes_all", "sigmoid", "aten"),
    ),
    "the last of equal elements wins": (
        method(Maximum, "forward", _last_of_equals),
        ("test_ties_go_to_the_first_index", "aten"),
    ),
    "the last of equal elements wins, in the oracle": (
        instead(reference._ranks, lambda x: _ranks(x.flip(-1)).flip(-1)),
        ("test_ties_go_to_the_first_index", "reference"),
    ),
    "an average counts its padding where it must not": (
        method(AveragePooling, "options", _padding_not_counted),
        ("test_equals_reference", "avg_pool2d ceil"),
    ),
    "each sample is explained at its neighbour's place": (
        instead(targets._scatter, _sample_for_target),
        ("test_k_targets_a_sample",),
    ),
    "the input and the forget gate are swapped": (
        instead(tape._pre_activations, _input_for_forget),
        loop("lstm", "projected, both ways"),
    ),
    "the input and the forget gate are swapped, in the oracle": (
        instead(naive._gated_step, _input_for_forget_in_the_loop),
        loop("lstm", "plain"),
    ),
    "the way back through a sequence starts at its padding": (
        instead(recurrent.reverse, lambda values, lengths: _reverse(values, None)),
        loop("gru", "stacked both ways, batch first", [4, 1, 3]),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fails_a_comparison(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, row = FAULTS[name]
    _compare(row, monkeypatch)
    plant(monkeypatch)
    with pytest.raises((AssertionError, RelpropError)):
        _compare(row, monkeypatch)
