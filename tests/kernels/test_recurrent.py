"""Recurrent kernels against the plain per-step loop in float64: every kind, form and option."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from layer_support import inside_nan
from torch import Tensor

from relprop.backends.reference.recurrent import naive_forward
from relprop.backends.reference.samples import relevance_of_samples
from relprop.errors import InputError
from relprop.graph.recurrent import GATES, Direction, Layout
from relprop.kernels import interpreted
from relprop.kernels.recurrent.forms import Form
from relprop.kernels.recurrent.launch import recurrent_forward, recurrent_relevance
from relprop.rules import Recurrent

KINDS = tuple(GATES)
INPUTS = 5


def form(name: str, hidden: int) -> Form:
    """Blocks small enough that a layer has several of them where its form allows it."""
    block = max(16, 1 << (hidden - 1).bit_length())
    return Form(name, 16, 16 if name == "stepped" else block, 16, 4, 2)


class Case:
    """A layer of random weights, its operands, and relevance of all its values."""

    def __init__(
        self, kind: str, steps: int, batch: int, hidden: int, *, ways: int = 1, targets: int = 2,
        lengths: list[int] | None = None, biased: bool = True, epsilon: float = 1e-2,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        def random(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape) * scale).to(dtype)

        rows = GATES[kind] * hidden
        self.kind, self.ways, self.epsilon = kind, ways, epsilon
        self.hidden = hidden
        self.w_ih = random(ways, rows, INPUTS, scale=INPUTS**-0.5)
        self.w_hh = random(ways, rows, hidden, scale=hidden**-0.5)
        self.b_ih, self.b_hh = (random(ways, rows) if biased else None for _ in range(2))
        self.x = random(steps, batch, INPUTS)
        self.h0 = random(ways, batch, hidden)
        self.c0 = random(ways, batch, hidden) if "lstm" in kind else None
        self.lengths = None if lengths is None else torch.tensor(lengths)
        self.r_out: Tensor | None = torch.randn(targets, steps, batch, ways * hidden)
        self.r_last: Tensor | None = torch.randn(targets, ways, batch, hidden)
        self.r_cells = None if self.c0 is None else torch.randn(targets, ways, batch, hidden)
        if lengths is not None:
            for sample, length in enumerate(lengths):
                self.x[length:, sample] = 0

    def found(self, form: Form | None = None, precision: str = "highest") -> list[Tensor]:
        """What the kernels compute."""
        out, h, c, saved = recurrent_forward(
            self.kind, inside_nan(self.x), self.w_ih, self.w_hh, self.b_ih, self.b_hh, self.h0,
            self.c0, epsilon=self.epsilon, lengths=self.lengths, precision=precision, form=form,
        )  # fmt: skip
        r_out = None if self.r_out is None else inside_nan(self.r_out)
        parts = recurrent_relevance(saved, r_out, self.r_last, self.r_cells, form=form)
        return [value for value in (out, h, c, *parts) if value is not None]

    def expected(self) -> list[Tensor]:
        """The same from the loop over samples, targets and steps, in float64."""
        exact = [None if w is None else w.double() for w in self.weights()]
        directions = [
            Direction(*(None if w is None else w[i] for w in exact)) for i in range(self.ways)
        ]
        layout = Layout(self.kind, 1, self.ways == 2)
        x, h0 = self.x.double(), self.h0.double()
        c0 = None if self.c0 is None else self.c0.double()
        steps, batch, _ = x.shape
        out = x.new_zeros(steps, batch, self.ways * self.hidden)
        h, c = torch.zeros_like(h0), torch.zeros_like(h0)
        for sample in range(batch):
            length = steps if self.lengths is None else int(self.lengths[sample])
            cells = None if c0 is None else c0[:, sample]
            found = naive_forward(layout, directions, x[:length, sample], h0[:, sample], cells)
            out[:length, sample], h[:, sample] = found[0], found[1]
            if found[2] is not None:
                c[:, sample] = found[2]
        r = [None if r is None else r.double() for r in (self.r_out, self.r_last, self.r_cells)]
        rule = Recurrent(epsilon=self.epsilon)
        parts = relevance_of_samples(layout, directions, x, h0, c0, r, rule, self.lengths)
        values = (out, h, None if c0 is None else c, *parts)
        return [value for value in values if value is not None]

    def weights(self) -> tuple[Tensor | None, ...]:
        return self.w_ih, self.w_hh, self.b_ih, self.b_hh


def assert_equal(case: Case, form: Form | None = None, precision: str = "highest") -> None:
    """Values to a few units in the last place, relevance to what the quotients make of these."""
    found, expected = case.found(form, precision), case.expected()
    states = 2 if case.c0 is None else 3
    for number, (ours, loop) in enumerate(zip(found, expected, strict=True)):
        assert ours.dtype == torch.float32 and ours.shape == loop.shape
        limit = (2e-6 if number < states else 4e-5) * loop.abs().max().item()
        torch.testing.assert_close(ours.double(), loop, rtol=0, atol=limit)
        assert loop.abs().max() > 0


SHAPES = [(1, 1, 1), (1, 3, 16), (3, 3, 3), (3, 1, 63), (7, 3, 16), (7, 1, 1)]


FORMS = ("held", "streamed", "stepped")


def matrix() -> list[Any]:
    """Every kind, form and shape; the quick ones: two shapes of an LSTM's forms, one of others'."""
    found = []
    for i, kind in enumerate(KINDS):
        for j, name in enumerate(FORMS):
            quick = {(i + j) % 6, 4} if kind == "lstm" else {(i + j) % 6}
            for number, shape in enumerate(SHAPES):
                marks = [] if number in quick else [pytest.mark.slow]
                found.append(pytest.param(kind, name, shape, marks=marks))
    return found


@pytest.mark.parametrize(("kind", "name", "shape"), matrix(), ids=str)
def test_every_kind_and_form(kind: str, name: str, shape: tuple[int, int, int]) -> None:
    if not interpreted() and name == "held":
        assert_equal(Case(kind, *shape), form(name, shape[2]), "high")
    else:
        assert_equal(Case(kind, *shape, targets=3), form(name, shape[2]))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=[] if i % 3 == j or kind == "lstm" else [pytest.mark.slow])
        for i, kind in enumerate(KINDS)
        for j, name in enumerate(FORMS)
    ],
)
def test_both_directions_and_lengths(kind: str, name: str) -> None:
    precision = "high" if name == "held" and not interpreted() else "highest"
    case = Case(kind, 7, 3, 3, ways=2, targets=1, lengths=[7, 1, 4])
    assert_equal(case, form(name, 3), precision)
    found = case.found(form(name, 3), precision)
    out, r_x = found[0], found[2 if case.c0 is None else 3]
    for sample, length in enumerate([7, 1, 4]):
        assert not out[length:, sample].any() and not r_x[:, length:, sample].any()


@pytest.mark.parametrize("kind", KINDS)
def test_more_rows_than_a_block_and_no_bias(kind: str) -> None:
    assert_equal(Case(kind, 2, 9, 20, targets=3, ways=2, biased=False))


@pytest.mark.parametrize("name", ["held", "streamed", "stepped"])
def test_relevance_of_some_values_alone(name: str) -> None:
    precision = "high" if name == "held" and not interpreted() else "highest"
    for given in ("r_out", "r_last", "r_cells"):
        case = Case("lstm", 3, 2, 4, ways=2, lengths=[2, 3])
        for other in {"r_out", "r_last", "r_cells"} - {given}:
            setattr(case, other, None)
        assert_equal(case, form(name, 4), precision)


def test_padding_of_any_value_reaches_nothing() -> None:
    case = Case("lstm", 4, 2, 3, ways=2, lengths=[4, 2])
    expected = case.found()
    assert case.r_out is not None
    case.r_out[:, 2:, 1] = torch.nan
    for found, other in zip(case.found(), expected, strict=True):
        assert torch.equal(found, other)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_batch_first_gives_the_same(kind: str) -> None:
    case = Case(kind, 3, 2, 4, ways=2)
    expected = case.found()
    case.x = case.x.transpose(0, 1).contiguous().transpose(0, 1)
    out, h, c, saved = recurrent_forward(
        kind, case.x, case.w_ih, case.w_hh, case.b_ih, case.b_hh, case.h0, case.c0, epsilon=1e-2
    )
    r_x, *states = recurrent_relevance(saved, case.r_out, case.r_last, case.r_cells)
    assert saved.batch_first and out.transpose(0, 1).is_contiguous()
    assert r_x.transpose(1, 2).is_contiguous()
    found = [value for value in (out, h, c, r_x, *states) if value is not None]
    for ours, other in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-6)


def test_small_denominators_and_saturated_gates() -> None:
    """Gates at their ends: the loop's numbers.  A cell and a candidate that are 0: finite."""
    case = Case("lstm", 5, 2, 4, epsilon=0.1)
    case.w_ih *= 50
    assert_equal(case)
    zero = Case("lstm", 5, 2, 4, epsilon=1e-6)
    for tensor in (zero.w_ih, zero.w_hh, zero.b_ih, zero.b_hh, zero.h0, zero.c0):
        assert tensor is not None
        tensor.zero_()
    for value in zero.found()[3:]:
        assert value.isfinite().all()


@pytest.mark.slow
def test_long_sequences_stay_finite() -> None:
    case = Case("lstm", 300, 1, 2, targets=1, epsilon=1e-6)
    for value in case.found():
        assert value.isfinite().all()


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_operands(kind: str, dtype: torch.dtype) -> None:
    case = Case(kind, 4, 3, 16, dtype=dtype)
    if interpreted():  # operands are widened there
        assert_equal(case)
    for ours, loop in zip(case.found(), case.expected(), strict=True):
        error = (ours.double() - loop).norm() / loop.norm()
        assert ours.isfinite().all() and error < 0.05


@pytest.mark.parametrize(
    ("name", "launched"),
    [
        ("held", {"forward_scan": 1, "relevance_scan": 1}),
        ("streamed", {"forward_scan": 1, "relevance_scan": 1}),
        ("stepped", {"forward_step": 3, "relevance_step": 4}),
    ],
)
def test_launches_of_a_layer(name: str, launched: dict[str, int], launches: Counter[str]) -> None:
    precision = "high" if name == "held" and not interpreted() else "highest"
    Case("lstm", 3, 2, 4, ways=2).found(form(name, 4), precision)
    assert launches == {"dense_contraction": 1, "dense_adjoint": 1, **launched}


def test_an_empty_batch_launches_no_steps(launches: Counter[str]) -> None:
    found = Case("gru", 3, 0, 4).found()
    assert [list(value.shape) for value in found] == [
        [3, 0, 4], [1, 0, 4], [2, 3, 0, INPUTS], [2, 1, 0, 4]
    ]  # fmt: skip
    assert not launches


@pytest.mark.parametrize("epsilon", [0.0, -1e-6])
def test_a_stabilizer_of_zero_is_refused(epsilon: float) -> None:
    with pytest.raises(InputError, match=r"epsilon is .*; expected a number above 0"):
        Case("lstm", 2, 1, 2, epsilon=epsilon).found()


def test_float64_is_refused() -> None:
    case: Any = Case("lstm", 2, 1, 2, dtype=torch.float64)
    with pytest.raises(InputError, match="float64"):
        case.found()
