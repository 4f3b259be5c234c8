"""Recurrent layers from tensors: the batched implementation against the plain per-step loop."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from relprop.backends.aten.recurrent import stack as recurrent
from relprop.backends.aten.recurrent.fused import fused_scan
from relprop.backends.aten.recurrent.reduced import Inflow, _ratio, reduced_relevance, scan_of
from relprop.backends.aten.recurrent.tape import run
from relprop.backends.reference.recurrent import naive_forward
from relprop.errors import InputError
from relprop.functional import gru_relevance, lstm_relevance, rnn_relevance
from relprop.graph.recurrent import CELLED, Direction, Layout, directions_of, suits
from relprop.rules import AlphaBeta, Epsilon, Flat, Gamma, Joint, LinearRule, Pass, Recurrent

STEPS, BATCH, INPUTS, HIDDEN = 4, 3, 3, 5
KINDS = ("lstm", "gru", "rnn_tanh", "rnn_relu", "r_lstm")
STACKS = {
    "plain": {},
    "stacked both ways, batch first": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "stacked, no bias": {"num_layers": 2, "bias": False},
    "projected, both ways": {"num_layers": 2, "bidirectional": True, "proj_size": 2},
}


def module(kind: str, **options: Any) -> nn.RNNBase:
    options = {"dtype": torch.float64, **options}
    if kind == "lstm":
        return nn.LSTM(INPUTS, HIDDEN, **options)
    options.pop("proj_size", None)
    if kind == "r_lstm":
        return nn.LSTM(INPUTS, HIDDEN, **options)
    if kind == "gru":
        return nn.GRU(INPUTS, HIDDEN, **options)
    return nn.RNN(INPUTS, HIDDEN, nonlinearity=kind.removeprefix("rnn_"), **options)


class Case:
    """A layer with random input, initial states, relevance of all its values."""

    def __init__(self, kind: str, **options: Any) -> None:
        self.kind, self.layer = kind, module(kind, **options)
        self.ways = 2 if self.layer.bidirectional else 1
        out = self.layer.proj_size or HIDDEN
        shape = (BATCH, STEPS) if self.layer.batch_first else (STEPS, BATCH)
        states = self.layer.num_layers * self.ways
        self.x = self.random(*shape, INPUTS)
        self.h0 = self.random(states, BATCH, out)
        self.c0 = self.random(states, BATCH, HIDDEN)
        self.r_out = self.random(*shape, self.ways * out)
        self.r_h, self.r_c = torch.randn_like(self.h0), torch.randn_like(self.c0)

    @staticmethod
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    @property
    def relevance(self) -> list[Tensor]:
        return [self.r_out, self.r_h, self.r_c][: 3 if self.kind in CELLED else 2]

    def explain(self, rule: Recurrent | LinearRule, **options: Any) -> tuple[Tensor, ...]:
        states = {"h0": self.h0, "c0": self.c0} if self.kind in CELLED else {"h0": self.h0}
        return self.call(rule, **{**states, **options})

    def call(self, rule: Any, **options: Any) -> Any:
        functions = {"lstm": lstm_relevance, "r_lstm": lstm_relevance, "gru": gru_relevance}
        function: Callable[..., Any] = functions.get(self.kind, rnn_relevance)
        if self.kind == "r_lstm":
            options["nonlinearity"] = "relu"
        if self.kind.startswith("rnn"):
            options["nonlinearity"] = self.kind.removeprefix("rnn_")
        options = {"relevance": self.relevance, "x": self.x, **options}
        return function(
            weights=self.layer._flat_weights,
            rule=rule,
            batch_first=self.layer.batch_first,
            **options,
        )


def assert_equals_loop(case: Case, rule: Any, **options: Any) -> tuple[Tensor, ...]:
    ours = case.explain(rule, **options)
    loop = case.explain(rule, backend="reference", **options)
    for found, expected in zip(ours, loop, strict=True):
        scale = expected.abs().max().item()
        assert_close(found, expected, rtol=1e-9, atol=1e-11 * scale)
        assert scale > 0
    return ours


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("lengths", [None, [4, 1, 3]], ids=["whole", "mixed lengths"])
def test_reduced_recurrence_equals_the_loop(kind: str, stack: str, lengths: Any) -> None:
    case = Case(kind, **STACKS[stack])
    assert_equals_loop(case, Recurrent(epsilon=1e-3), lengths=lengths)
    assert_equals_loop(case, Recurrent(epsilon=0), lengths=lengths)


@pytest.mark.parametrize("gate", Recurrent.GATES)
@pytest.mark.parametrize("bias_factor", [0, 1])
@pytest.mark.parametrize("rule", [None, AlphaBeta(2, 1), Joint()], ids=["epsilon", "ab", "joint"])
def test_every_option_equals_the_loop(
    gate: str, bias_factor: float, rule: LinearRule | None
) -> None:
    option = Recurrent(gate, 1e-3, bias_factor, rule)
    assert_equals_loop(Case("lstm"), option)
    assert_equals_loop(Case("r_lstm"), option)
    assert_equals_loop(Case("lstm", proj_size=2, bidirectional=True), option, lengths=[2, 4, 1])


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("rule", [None, Gamma(0.5)], ids=["epsilon", "gamma"])
def test_options_of_the_other_layers_equal_the_loop(kind: str, rule: LinearRule | None) -> None:
    rule = None if kind == "gru" else rule
    case = Case(kind, num_layers=2, bidirectional=True)
    assert_equals_loop(case, Recurrent("all", 1e-3, 1, rule), lengths=[2, 4, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_epsilon_zero_at_zero_states_and_inputs(kind: str) -> None:
    case = Case(kind, bias=False)
    case.x[0], case.x[-1] = 0, 0
    case.h0.zero_()
    case.c0.zero_()
    for part in case.explain(Recurrent(epsilon=0)):
        assert torch.isfinite(part).all()


CONSERVING = [
    (kind, rule)
    for kind, gate, own in product(KINDS, ("all", "abs", "half"), (None, AlphaBeta(2, 1)))
    if suits(rule := Recurrent(gate, 1e-3, 1, own), kind)
]


@pytest.mark.parametrize(("kind", "rule"), CONSERVING, ids=str)
def test_bias_factor_one_conserves(kind: str, rule: Recurrent) -> None:
    case = Case(kind, num_layers=2, bidirectional=True)
    parts = case.explain(rule)
    arrived = sum(part.sum() for part in parts)
    magnitude = sum(part.abs().sum() for part in parts)
    assert abs(arrived - sum(r.sum() for r in case.relevance)) < 1e-10 * magnitude


def test_one_step_by_hand() -> None:
    """c = i g, h = o tanh(c): all of R goes through g's map, x1 : x2 as their contributions."""
    weight = torch.tensor([[0.0, 0], [0, 0], [1, 2], [0, 0]], dtype=torch.float64)
    weights = [weight, torch.zeros(4, 1, dtype=torch.float64)]
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    r = torch.tensor([[6.0]], dtype=torch.float64)
    expected = torch.tensor([[2.0, 4.0]], dtype=torch.float64)
    assert_close(lstm_relevance(x, weights, r, rule=Epsilon(0)), expected)
    half = torch.tensor([[0.5, 1.0]], dtype=torch.float64)  # two products, half each
    found = lstm_relevance(x, weights, r, rule=Recurrent("half", 0.0))
    assert_close(found, half)


@pytest.mark.parametrize("kind", KINDS[:4])
def test_naive_forward_is_the_librarys(kind: str) -> None:
    case = Case(kind, num_layers=2, bidirectional=True, proj_size=2)
    layer, out = case.layer, case.layer.proj_size or HIDDEN
    states = (case.h0, case.c0) if kind == "lstm" else case.h0
    expected, _ = layer(case.x, states)
    layout = Layout(kind, 2, True)
    directions = directions_of([w.detach() for w in layer._flat_weights], kind, "here")
    cells = case.c0[:, 1] if kind == "lstm" else None
    found, h, _ = naive_forward(layout, directions, case.x[:, 1], case.h0[:, 1], cells)
    assert_close(found, expected[:, 1].detach())
    assert_close(h[-2], expected[-1, 1, :out].detach())


@pytest.mark.parametrize("kind", KINDS)
def test_padding_gets_exactly_nothing_and_changes_nothing(kind: str) -> None:
    case = Case(kind, num_layers=2, bidirectional=True, batch_first=True)
    lengths = torch.tensor([4, 2, 3])
    found = case.explain(Recurrent(), lengths=lengths)[0]
    case.x[1, 2:], case.x[2, 3:] = float("nan"), 1e30
    case.r_out[1, 2:] = 7
    again = case.explain(Recurrent(), lengths=lengths)[0]
    assert torch.equal(found, again)
    assert not found[1, 2:].any() and not found[2, 3:].any()
    alone = case.explain(
        Recurrent(),
        x=case.x[1:2, :2],
        relevance=[case.r_out[1:2, :2], *(r[:, 1:2] for r in case.relevance[1:])],
        h0=case.h0[:, 1:2],
        **({"c0": case.c0[:, 1:2]} if kind in CELLED else {}),
    )[0]
    assert_close(found[1:2, :2], alone, rtol=1e-9, atol=1e-12)


def test_batch_axis_and_single_sequences_agree() -> None:
    case = Case("lstm", num_layers=2)
    found = lstm_relevance(case.x, case.layer._flat_weights, case.r_out)
    turned = lstm_relevance(
        case.x.transpose(0, 1),
        case.layer._flat_weights,
        case.r_out.transpose(0, 1),
        batch_first=True,
    )
    single = lstm_relevance(case.x[:, 1], case.layer._flat_weights, case.r_out[:, 1])
    assert isinstance(found, Tensor) and isinstance(turned, Tensor)
    assert_close(turned.transpose(0, 1), found, rtol=1e-9, atol=1e-12)
    assert_close(single, found[:, 1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epsilon", [1e-6, 0.0])
def test_two_thousand_steps_in_float32(kind: str, epsilon: float) -> None:
    layer = module(kind, dtype=torch.float32, bidirectional=True)
    x = torch.randn(2000, 2, INPUTS)
    r = torch.zeros(2000, 2, 2 * HIDDEN)
    r[-1, :, :HIDDEN] = layer(x)[0][-1, :, :HIDDEN].detach()
    case = Case(kind, dtype=torch.float32, bidirectional=True)
    case.layer = layer
    found = case.call(Recurrent(epsilon=epsilon), x=x, relevance=r)
    assert torch.isfinite(found).all()
    # the way back from the last step: what the first steps get stays within what came in
    assert found.abs().sum() < 1e4 * r.abs().sum()


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_relevance_that_decays_ends_in_zeros(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in subnormal numbers, with which a CPU's products take forty times as long."""
    layer, product = module(kind, dtype=torch.float32), torch.mm
    sizes: list[Tensor] = []

    def watched(a: Tensor, b: Tensor) -> Tensor:
        sizes.append(a.abs())
        return product(a, b)

    monkeypatch.setattr(torch, "mm", watched)
    case = Case(kind, dtype=torch.float32)
    case.layer, x, r = layer, torch.randn(400, 2, INPUTS), torch.zeros(400, 2, HIDDEN)
    r[-1] = layer(x)[0][-1].detach()
    found = case.call(Recurrent(), x=x, relevance=r)
    seen = torch.stack(sizes)
    assert len(seen) == 400 and (seen[-1] == 0).all() and (seen[:50] > 0).any()
    assert not ((seen > 0) & (seen < torch.finfo(torch.float32).tiny)).any()
    double = Case(kind, bidirectional=False)
    double.layer = layer.double()
    exact = double.call(Recurrent(), x=x.double(), relevance=r.double())
    assert_close(found.double(), exact, rtol=1e-3, atol=1e-6 * exact.abs().max().item())


@pytest.mark.parametrize("epsilon", [1e-6, 0.0])
def test_saturated_gates(epsilon: float) -> None:
    case = Case("lstm")
    with torch.no_grad():
        for weight in case.layer._flat_weights:
            weight.mul_(1e3)
    parts = case.explain(Recurrent(epsilon=epsilon))
    assert all(torch.isfinite(part).all() for part in parts)
    if epsilon:  # at 0 the loop drops what reaches a cell that is exactly 0
        assert_equals_loop(case, Recurrent(epsilon=epsilon))


def test_cells_crossing_zero() -> None:
    """Relevance in proportion to h stays bounded where c passes through 0, for epsilon = 0."""
    case = Case("lstm")
    case.c0 *= 1e-14
    case.x[0] *= 1e-14
    case.h0 *= 0
    with torch.no_grad():
        for bias in case.layer._flat_weights[2:]:
            bias.zero_()
    out = case.layer(case.x, (case.h0, case.c0))[0].detach()
    parts = case.explain(Recurrent(epsilon=0), relevance=out)
    assert all(torch.isfinite(part).all() for part in parts)
    assert_close(sum(part.sum() for part in parts), out.sum(), rtol=1e-9, atol=1e-12)
    assert parts[0].abs().max() < 100 * out.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_results_are_at_least_float32(dtype: torch.dtype) -> None:
    case = Case("lstm", dtype=dtype)
    case.x, case.r_out = case.x.to(dtype), case.r_out.to(dtype)
    found = case.call(Recurrent(), relevance=case.r_out)
    assert found.dtype is torch.float32 and torch.isfinite(found).all()


def refuse(message: str, **options: Any) -> None:
    kind = options.pop("kind", "lstm")
    rule = options.pop("rule", Recurrent())
    with pytest.raises(InputError, match=message):
        Case(kind).call(rule, **options)


def test_refusals() -> None:
    refuse("lengths run from 0 to 4; expected 1 to 4.*leave out empty", lengths=[4, 0, 1])
    refuse("lengths run from 1 to 5; expected 1 to 4", lengths=[4, 5, 1])
    refuse(r"lengths is torch.int64 of shape \[2\].*\[3\]", lengths=[4, 1])
    refuse(r"lengths is torch.float32", lengths=[4.0, 1.0, 2.0])
    refuse("with one step and one sample at least", x=torch.zeros(0, BATCH, INPUTS))
    refuse("x has 2 features; the first of weights takes 3", x=torch.zeros(4, BATCH, 2))
    refuse(r"relevance is \[4, 3, 2\]; expected \[4, 3, 5\]", relevance=torch.zeros(4, 3, 2))
    refuse("relevance has 4 parts", relevance=[None] * 4)
    refuse(r"h0 is \[1, 2, 5\]; expected \[1, 3, 5\]", h0=torch.zeros(1, 2, 5))
    refuse("a GRU takes gate='all'", kind="gru", rule=Recurrent("half"))
    refuse("a GRU takes gate='all'", kind="gru", rule=Flat())
    refuse("expected a Recurrent or a linear rule", rule=Pass())
    refuse("expected 'aten', 'reference' or 'triton'", backend="cuda")
    weights = Case("lstm").layer._flat_weights
    for wrong in ([], weights[:3], [w[:5] for w in weights]):
        with pytest.raises(InputError, match=r"weights|expected a multiple"):
            lstm_relevance(torch.zeros(4, 3, 3), wrong, torch.zeros(4, 3, 5))
    for function in (lstm_relevance, rnn_relevance):
        with pytest.raises(InputError, match="expected 'tanh' or 'relu'"):
            function(torch.zeros(4, 3, 3), weights, torch.zeros(4, 3, 5), nonlinearity="elu")


@pytest.mark.parametrize("bias", [True, False])
def test_fused_forward_keeps_what_the_librarys_gives(bias: bool) -> None:
    layer = module("lstm", bias=bias)
    (direction,) = directions_of([w.detach() for w in layer._flat_weights], "lstm", "here")
    case = Case("lstm")
    tape = run("lstm", direction, case.x, case.h0[0], case.c0[0])
    expected = scan_of(tape, 1e-3)
    found, h, c = fused_scan(direction, case.x, case.h0[0], case.c0[0], 1e-3)
    assert tape.c is not None and expected.alpha is not None and found.alpha is not None
    assert_close((h, c), (tape.h, tape.c))
    assert_close((found.alpha, found.beta), (expected.alpha, expected.beta))
    flow = Inflow(case.r_out.unsqueeze(1))
    assert_close(reduced_relevance(found, flow).x, reduced_relevance(expected, flow).x)


def test_the_ratio_at_zero_is_the_slope() -> None:
    z = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.equal(_ratio(torch.tanh(z), z), torch.tensor([1.0, torch.tanh(z)[1]]).double())


def test_a_recurrent_layer_returns_what_torch_returns() -> None:
    layer = nn.LSTM(3, 4, num_layers=2, bidirectional=True).double()
    x = torch.randn(5, 2, 3).double()
    state = torch.randn(4, 2, 4).double(), torch.randn(4, 2, 4).double()
    expected = layer(x, state)
    found, _ = _forward(layer, x, state)
    assert_close(found, (expected[0], *expected[1]), rtol=1e-10, atol=1e-12)


def _forward(layer: nn.LSTM, x: Tensor, state: tuple[Tensor, Tensor]) -> Any:
    layout = Layout("lstm", layers=2, bidirectional=True)
    directions = [Direction(*weights) for weights in layer.all_weights]
    return recurrent.forward(layout, directions, x, *state, Recurrent())
