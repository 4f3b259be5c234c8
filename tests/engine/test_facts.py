"""What is known of a graph's values: signs, gates, tokens, what carries relevance."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plans import Function, recorded
from relprop.capture.call import neutral_modes
from relprop.capture.record import record
from relprop.engine.binding import layer_info
from relprop.engine.facts import Facts, analyse, known_signs
from relprop.errors import PlanningError
from relprop.graph.canonical import canonical


def _smaller(x: Tensor, mode: str) -> Tensor:
    return F.interpolate(x[:, None, None], (1, 2), mode=mode, antialias=True)


def _sampled(x: Tensor, mode: str) -> Tensor:
    grid = torch.linspace(-0.9, 0.8, 12).view(3, 2, 1, 2)
    return F.grid_sample(x[:, None, None], grid, mode=mode, align_corners=False)


SIGNS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "clamp": (lambda x: x.clamp(0, 2), True),
    "clamp of a ReLU": (lambda x: x.relu().clamp(-1, 2), True),
    "clamp below": (lambda x: x.clamp(-1, 2), False),
    "clamp from above": (lambda x: torch.clamp_max(x.relu(), 2.0), True),
    "clamp from above, low": (lambda x: torch.clamp_max(x.relu(), -1.0), False),
    "clamp from above, signed": (lambda x: torch.clamp_max(x, 2.0), False),
    "hardtanh": (lambda x: F.hardtanh(x), False),
    "sum": (lambda x: x.relu() + x.sigmoid(), True),
    "sum with a number": (lambda x: x.relu() + 0.5, True),
    "sum with a negative number": (lambda x: x.relu() + -0.5, False),
    "half a sum": (lambda x: x.relu() + x, False),
    "difference": (lambda x: x.relu() - x.sigmoid(), False),
    "negation": (lambda x: -x.relu(), False),
    "parts": (lambda x: torch.cat([x.relu(), x.sigmoid()]), True),
    "half of the parts": (lambda x: torch.cat([x.relu(), x]), False),
    "larger": (lambda x: torch.maximum(x.relu(), x), True),
    "smaller": (lambda x: torch.minimum(x.relu(), x.sigmoid()), True),
    "smaller, signed": (lambda x: torch.minimum(x.relu(), x), False),
    "written over": (lambda x: torch.slice_scatter(x.relu(), x.sigmoid(), 1, 0, 5), True),
    "signed over": (lambda x: torch.slice_scatter(x.relu(), x, 1, 0, 5), False),
    "over signed": (lambda x: torch.slice_scatter(x, x.relu(), 1, 0, 5), False),
    "antialiased": (lambda x: _smaller(x.relu(), "bilinear"), True),
    "antialiased, signed": (lambda x: _smaller(x, "bilinear"), False),
    "antialiased, bicubic": (lambda x: _smaller(x.relu(), "bicubic"), False),
    "sampled": (lambda x: _sampled(x.relu(), "bilinear"), True),
    "sampled, signed": (lambda x: _sampled(x, "bilinear"), False),
    "sampled, bicubic": (lambda x: _sampled(x.relu(), "bicubic"), False),
    "bicubic": (
        lambda x: F.interpolate(x.relu()[:, None, None], (2, 3), mode="bicubic"), False
    ),
    "bilinear": (
        lambda x: F.interpolate(x.relu()[:, None, None], (2, 3), mode="bilinear"), True
    ),
}  # fmt: skip


def test_what_is_known_of_signs() -> None:
    for name, (function, known) in SIGNS.items():
        with neutral_modes():
            graph = canonical(record(Function(function), (torch.randn(3, 5),), {}, 0))
        facts = analyse(graph, graph.inputs, [])
        assert (graph.output_names[0] in facts.nonnegative) is known, name


GATES: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "hard sigmoid times six": (lambda x: F.relu6(x + 3), True),
    "clamped hard sigmoid times six": (lambda x: (x + 3).clamp(0, 6), True),
    "shifted by two": (lambda x: F.relu6(x + 2), False),
    "shifted by two, over six": (lambda x: F.relu6(x + 2) / 6, True),
    "over seven": (lambda x: F.relu6(x + 2) / 7, False),
    "norm": (lambda x: x.norm(dim=-1).unsqueeze(-1), True),
    "complement": (lambda x: 1 - x.sigmoid(), True),
    "complement of a signal": (lambda x: 1 - x, False),
    "less than nothing": (lambda x: -x.sigmoid(), True),
    "hardtanh of one bound": (lambda x: F.hardtanh(x, 0.0), True),
    "hardtanh": (lambda x: F.hardtanh(x), False),
    "one plus tanh": (lambda x: 1 + torch.tanh(x), True),
    "one minus tanh's like": (lambda x: 1 + torch.relu(x), False),
}


def test_what_is_known_of_gates() -> None:
    for name, (function, known) in GATES.items():
        with neutral_modes():
            graph = canonical(record(Function(function), (torch.randn(3, 5),), {}, 0))
        gates = analyse(graph, graph.inputs, []).gates
        assert (graph.output_names[0] in gates) is known, name


def test_even_powers_are_magnitudes() -> None:
    for exponent, known in ((2, True), (3, False), (4, True)):
        with neutral_modes():
            function = Function(lambda x: x**exponent)  # noqa: B023
            graph = canonical(record(function, (torch.randn(3, 5),), {}, 0))
        magnitudes = analyse(graph, graph.inputs, []).magnitudes
        assert (graph.output_names[0] in magnitudes) is known, exponent


def test_only_numbers_and_known_values_are_known_to_be_at_least_zero() -> None:
    known = facts_of(lambda x: x.relu())[1]
    assert [known(value) for value in (0, 0.5, -1, None, "mean")] == [True, True, *[False] * 3]


def facts_of(function: Callable[[Tensor], Tensor]) -> tuple[Facts, Callable[[object], bool]]:
    """Facts of a function's graph, and what is known of signs in it."""
    with neutral_modes():
        graph = canonical(record(Function(function), (torch.randn(3, 5),), {}, 0))
    found = analyse(graph, graph.inputs, [])
    return found, known_signs(found)


def test_the_first_layer_is_the_first_behind_what_only_moves() -> None:
    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flip(1))

    plan = recorded(Net(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(3, 5))
    layers = [step.node for step in plan.steps.values() if step.operation.carry == "linear"]
    assert [layer_info(node, plan.facts).first for node in layers] == [True, False]


def test_only_a_convolution_over_images_convolves() -> None:
    nets = nn.Conv1d(2, 3, 2), nn.Conv2d(2, 3, 2), nn.ConvTranspose2d(2, 3, 2), nn.Conv3d(2, 3, 2)
    plans = [recorded(net, torch.randn(1, *[2] * (net.weight.ndim - 1))) for net in nets]
    assert [plan.convolves for plan in plans] == [False, True, False, False]


def test_what_integers_keep_of_their_tokens() -> None:
    kept: list[tuple[Callable[[Tensor], Tensor], bool]] = [
        (lambda x: x.flip(0), True),
        (lambda x: x.view(-1), True),
        (lambda x: x + 1, True),
        (lambda x: x.clamp(0, 3), True),
        (lambda x: x > 1, False),
        (lambda x: x.cumsum(1), False),
        (lambda x: x.float(), False),
    ]
    for function, expected in kept:
        with neutral_modes():
            graph = canonical(record(Function(function), (torch.arange(6).view(2, 3),), {}, 0))
        facts = analyse(graph, [], graph.inputs)
        assert (graph.output_names[0] in facts.tokens) is expected
        assert (graph.output_names[0] in facts.carriers) is expected


def test_one_input_of_an_operation_carries_relevance() -> None:
    model = Function(lambda x: F.prelu(x, x.sum().view(1)))
    with pytest.raises(PlanningError, match="several of its arguments"):
        recorded(model, torch.randn(3, 5))
