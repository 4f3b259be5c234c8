"""Answers that tell apart faults which the other quick tests let pass; see `.ci/mutants.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close

import relprop
from relprop import backends, rules, run
from relprop.analysis import analyse
from relprop.backends import LinearCall
from relprop.backends.products import Products
from relprop.composites import Composite
from relprop.errors import PlanningError
from relprop.layers.base import quotient, unbroadcast
from relprop.layers.precision import float32_products
from relprop.layers.windows import per_axis
from relprop.maps import Conv, Dense
from relprop.modes import neutral_modes
from relprop.plan import Plan
from relprop.record import record
from relprop.recurrent import aten as recurrent
from relprop.recurrent.layout import Direction, Layout
from relprop.recurrent.reduced import _ratio
from relprop.rewrite import canonical
from relprop.terms import IDENTITY, NEGATIVE


class Function(nn.Module):
    """A function of the input and of some parameters."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(torch.randn(shape).double() for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


def everywhere(rule: rules.LinearRule, stabilizer: float) -> Composite:
    """One rule for all linear maps."""
    kinds = "linear", "conv", "conv_transpose", "batch_norm"
    return Composite(stabilizer=stabilizer, defaults=[(kind, rule) for kind in kinds])


def recorded(model: nn.Module, x: Tensor, composite: Composite | None = None) -> Plan:
    """The plan of a recorded model, operations as they were called."""
    with neutral_modes():
        graph = canonical(record(model, (x,), {}, 0))
    name = graph.output_names[0]
    return Plan.make(
        graph, name, composite or Composite(), floating=graph.inputs, integer=[], backend="aten"
    )


def passed(plan: Plan, model: nn.Module, x: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and relevance of the input, of a plan."""
    engine = run.Engine(backends.get("aten"))
    with neutral_modes():
        forward = run.forward(plan, engine, model, {plan.graph.inputs[0]: x})
        found = run.relevance(plan, engine, forward, start.unsqueeze(0), plan.graph.inputs)
    return forward.output, found[plan.graph.inputs[0]].squeeze(0)


def _randomised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.double().eval()


IMAGE, ROWS = (2, 4, 6, 7), (3, 5)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "padding into a convolution": (
        lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(4, 3, 3, padding=(2, 1))),
        IMAGE,
    ),
    "padding of one axis": (
        lambda: nn.Sequential(nn.ConstantPad1d((2, 1), 0.0), nn.Conv1d(4, 3, 3, stride=2)),
        (2, 4, 6),
    ),
    "padding of the last of two axes": (
        lambda: Function(
            lambda x, w: F.conv2d(F.pad(x, (1, 0)), w, padding=(1, 0)), (3, 4, 2, 3)
        ),
        IMAGE,
    ),
    "padding by a value stays": (
        lambda: nn.Sequential(nn.ConstantPad2d(1, 2.0), nn.Conv2d(4, 3, 3)),
        IMAGE,
    ),
    "convolution, norm": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 2)),
        IMAGE,
    ),
    "grouped convolution without bias, norm without affine": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6, affine=False), nn.ReLU()
        ),
        IMAGE,
    ),
    "grouped transposed convolution, norm": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(4, 6, (3, 2), stride=2, groups=2), nn.BatchNorm2d(6), nn.ReLU()
        ),
        IMAGE,
    ),
    "norm, grouped convolution without bias": (
        lambda: nn.Sequential(
            nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.ReLU()
        ),
        IMAGE,
    ),
    "norm, dense": (
        lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 6, bias=False), nn.ReLU()),
        ROWS,
    ),
    "norm, norm": (
        lambda: nn.Sequential(nn.BatchNorm1d(5), nn.ReLU(), nn.BatchNorm1d(5, affine=False)),
        ROWS,
    ),
    "matrix products": (
        lambda: Function(
            lambda x, v, w, b: torch.addmm(b, torch.addmm(b, x, v.t()).relu() @ w.T, w),
            (5, 5), (5, 5), (5,),
        ),
        ROWS,
    ),
    "same padding, an even kernel": (
        lambda: nn.Conv2d(4, 3, (2, 5), dilation=(3, 1), padding="same"),
        IMAGE,
    ),
    "valid padding": (lambda: nn.Conv2d(4, 3, (2, 5), padding="valid"), IMAGE),
    "transposed, every option": (
        lambda: nn.ConvTranspose2d(
            4, 6, (3, 2), stride=(3, 2), padding=(1, 0), output_padding=(1, 0), groups=2,
            dilation=(2, 1),
        ),
        IMAGE,
    ),
    "shapes of other tensors": (
        lambda: Function(
            lambda x, w: (x.mean(1, keepdim=True).expand_as(x).reshape_as(x.T) @ w).view_as(x),
            (3, 3),
        ),
        ROWS,
    ),
    "the positive sign": (lambda: nn.Sequential(Function(torch.positive), nn.Linear(5, 2)), ROWS),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_lrp_0_is_gradient_times_input(name: str) -> None:
    make, shape = NETWORKS[name]
    model = _randomised(make())
    x = torch.randn(shape).double().requires_grad_()
    expected_output = model(x)
    start = torch.randn_like(expected_output) * expected_output.detach()
    (gradient,) = torch.autograd.grad(
        expected_output, x, torch.where(expected_output == 0, 0.0, start / expected_output)
    )
    plan = recorded(model, x.detach(), everywhere(rules.Epsilon(0), 0.0))
    output, found = passed(plan, model, x.detach(), start.detach())
    assert_close(output, expected_output.detach(), rtol=1e-11, atol=1e-11)
    assert_close(found, (gradient * x).detach(), rtol=1e-9, atol=1e-10)


def test_folded_layers_leave_nothing_behind() -> None:
    x = torch.randn(2, 4, 6, 7).double()
    model = _randomised(
        nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    )
    plan = recorded(model, x)
    assert not {"constant_pad_nd", "diagonal_map"} & {n.op for n in plan.graph.nodes.values()}


def test_relevance_at_a_layer_whose_norm_was_folded() -> None:
    model = _randomised(
        nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    )
    x = torch.randn(3, 5).double()
    explainer = relprop.Explainer(model, "lrp_epsilon", layers=["0", "1", "3"])
    layers = explainer.explain(x, target=1).layers
    assert_close(layers["0"], layers["1"], rtol=0, atol=0)
    assert layers["0"].abs().max() > 1e-3
    assert_close(layers["3"], model(x).detach() * torch.tensor([0.0, 1.0]).double())


LIKE_ALL: list[rules.LinearRule] = [
    rules.Epsilon(0.1), rules.ZPlus(), rules.AlphaBeta(3, 2), rules.Gamma(0.7), rules.WSquare(),
    rules.ZBox(-3, 2), rules.Flat(), rules.Gamma(0.7, zero_params="bias"),
]  # fmt: skip


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("rule", LIKE_ALL, ids=repr)
def test_a_rule_without_a_form_of_its_own(rule: rules.LinearRule, nonnegative: bool) -> None:
    @dataclass(frozen=True, init=False)
    class Other(type(rule)):  # type: ignore[misc]
        """The same terms under another type, hence evaluated group by group."""

    other = object.__new__(Other)
    for name, value in vars(rule).items():
        object.__setattr__(other, name, value)
    w, b = torch.randn(4, 6).double(), torch.randn(4).double()
    a, r = torch.randn(5, 6).double(), torch.randn(2, 5, 4).double()
    a = a.relu() if nonnegative else a
    found = []
    for each in (rule, other):
        call = LinearCall(Dense(), each, nonnegative=nonnegative)
        z, saved = backends.get("aten").forward(call, a, w, b)
        found.append(backends.get("aten").relevance(call, saved, r))
        assert_close(z, a @ w.T + b)
    assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)


def test_terms_that_are_known_to_be_empty_give_nothing() -> None:
    @dataclass(frozen=True)
    class Inhibition(rules.LinearRule):
        """Negative inputs only."""

        def terms(self) -> tuple[rules.Group, ...]:
            return (rules.Group((rules.Term(NEGATIVE, NEGATIVE),)),)

    call = LinearCall(Dense(), Inhibition(), nonnegative=True)
    a, w, r = torch.rand(5, 6).double(), torch.randn(4, 6).double(), torch.randn(3, 5, 4).double()
    _, saved = backends.get("aten").forward(call, a, w, None)
    assert torch.equal(
        backends.get("aten").relevance(call, saved, r), torch.zeros(3, 5, 6).double()
    )


def test_volumes_whose_samples_count_as_channels_are_pooled_in_three_dimensions() -> None:
    model = nn.Sequential(nn.MaxPool3d(2, 1), nn.Flatten(), nn.Linear(24, 2)).double()
    x = torch.randn(2, 3, 5, 4).double()
    found = relprop.Explainer(model, "lrp_epsilon", layers=["0"]).explain(x, target=1)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model[0](leaf), leaf, found.layers["0"])
    assert found.relevance.abs().sum() > 0
    assert_close(found.relevance, expected)


def test_bfloat16_products_add_the_bias_in_float32() -> None:
    linear_map = Conv((1, 1), ((0, 0), (0, 0)), (1, 1))
    w, b = torch.randn(3, 2, 2, 2).bfloat16().float(), torch.tensor([1.001, -2.0, 100.003])
    products = Products(linear_map, w, "medium", {})
    z = products.contraction(torch.zeros(1, 2, 3, 3), IDENTITY, b)
    assert torch.equal(z, b.view(1, 3, 1, 1).expand(1, 3, 2, 2))


def test_fused_convolutions_are_the_library_s_with_the_work_around_them() -> None:
    layout = torch.channels_last
    a, w = torch.randn(2, 3, 5, 6), torch.randn(4, 3, 3, 2)
    a, b = a.contiguous(memory_format=layout), torch.randn(4)
    linear_map = Conv((1, 1), ((1, 1), (0, 0)), (1, 2))
    products = Products(linear_map, w, "highest", {})
    z = F.conv2d(a, w, b, padding=(1, 0), dilation=(1, 2))
    found = products.contraction(a, IDENTITY, b, rectify=True)
    assert_close(found, z.relu(), rtol=1e-5, atol=1e-5)
    s = torch.randn(z.shape).contiguous(memory_format=layout).unsqueeze(0)
    back = F.conv_transpose2d(s[0], w, padding=(1, 0), dilation=(1, 2)) * a
    found = products.adjoint(s, IDENTITY, a.shape, times=a)
    assert_close(found[0], back, rtol=1e-5, atol=1e-5)


def test_tf32_is_a_matter_of_cuda() -> None:
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    with float32_products("high", torch.device("cuda")):
        assert settings.fp32_precision == "tf32"
    assert settings.fp32_precision == before


def test_float32_products_are_float32_inside_and_as_set_outside() -> None:
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        with float32_products("highest", torch.device("cpu")):
            assert settings.fp32_precision == "ieee"
        assert settings.fp32_precision == "bf16"
    finally:
        settings.fp32_precision = before


@pytest.mark.parametrize("spatial", [2, 3])
def test_convolutions_keep_channels_last(spatial: int) -> None:
    form = {2: torch.channels_last, 3: torch.channels_last_3d}[spatial]
    linear_map = Conv((1,) * spatial, ((1, 1),) * spatial, (1,) * spatial)
    s, w = torch.randn(2, 4, *(5,) * spatial), torch.randn(4, 3, *(3,) * spatial)
    shape = torch.Size((2, 3, *(5,) * spatial))
    plain = linear_map.adjoint(s, w, shape)
    turned = linear_map.adjoint(s.contiguous(memory_format=form), w, shape)
    assert plain.is_contiguous() and turned.is_contiguous(memory_format=form)
    assert_close(turned, plain, rtol=1e-5, atol=1e-5)


def test_quotients() -> None:
    r, z = torch.tensor([6.0, 6.0, 6.0]), torch.tensor([2.0, 0.0, -4.0])
    assert torch.equal(quotient(r, z, 0.0), torch.tensor([3.0, 0.0, -1.5]))
    assert torch.equal(quotient(r, z, 1.0), torch.tensor([2.0, 6.0, -1.2]))
    for dtype in (torch.float16, torch.bfloat16):  # 1e-6 has no such number
        assert_close(
            quotient(r[1:2], z[1:2].to(dtype), 1e-6), torch.tensor([6e6]), rtol=1e-6, atol=0
        )


def test_unbroadcast_sums_over_leading_and_unit_axes() -> None:
    r = torch.arange(48.0).view(2, 2, 3, 4)
    assert torch.equal(unbroadcast(r, torch.Size([4])), r.sum((1, 2)))
    assert torch.equal(unbroadcast(r, torch.Size([3, 1])), r.sum((1, 3)).unsqueeze(-1))
    assert torch.equal(unbroadcast(r, torch.Size([2, 3, 4])), r)


def test_the_ratio_at_zero_is_the_slope() -> None:
    z = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.equal(_ratio(torch.tanh(z), z), torch.tensor([1.0, torch.tanh(z)[1]]).double())


def test_one_number_stands_for_every_axis() -> None:
    assert per_axis(2, 3) == per_axis([2], 3) == [2, 2, 2]
    assert per_axis((1, 2), 2) == [1, 2]


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


@pytest.mark.parametrize("name", SIGNS)
def test_what_is_known_of_signs(name: str) -> None:
    function, known = SIGNS[name]
    with neutral_modes():
        graph = canonical(record(Function(function), (torch.randn(3, 5),), {}, 0))
    facts = analyse(graph, graph.inputs, [])
    assert (graph.output_names[0] in facts.nonnegative) is known


GATES: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "hard sigmoid times six": (lambda x: F.relu6(x + 3), True),
    "clamped hard sigmoid times six": (lambda x: (x + 3).clamp(0, 6), True),
    "shifted by two": (lambda x: F.relu6(x + 2), False),
    "shifted by two, over six": (lambda x: F.relu6(x + 2) / 6, True),
    "over seven": (lambda x: F.relu6(x + 2) / 7, False),
    "norm": (lambda x: x.norm(dim=-1).unsqueeze(-1), True),
    "complement": (lambda x: 1 - x.sigmoid(), True),
    "complement of a signal": (lambda x: 1 - x, False),
}


@pytest.mark.parametrize("name", GATES)
def test_what_is_known_of_gates(name: str) -> None:
    function, known = GATES[name]
    with neutral_modes():
        graph = canonical(record(Function(function), (torch.randn(3, 5),), {}, 0))
    assert (graph.output_names[0] in analyse(graph, graph.inputs, []).gates) is known


def test_one_input_of_an_operation_carries_relevance() -> None:
    model = Function(lambda x: F.prelu(x, x.sum().view(1)))
    with pytest.raises(PlanningError, match="several of its arguments"):
        recorded(model, torch.randn(3, 5))


@pytest.mark.parametrize(
    ("choice", "factors"),
    # 2 x gives x all its relevance, x + 1 gives it x / (x + 1); at 1 both are 2
    [(torch.maximum, [2.0, 1.0, 1.0]), (torch.minimum, [1.0, 1.0, 0.75])],
)
def test_the_taken_operand_gets_all(choice: Any, factors: list[float]) -> None:
    x = torch.tensor([[-2.0, 1.0, 3.0]], dtype=torch.float64)
    model, start = Function(lambda x: choice(2 * x, x + 1)), torch.ones_like(x)
    _, found = passed(recorded(model, x, Composite(stabilizer=0.0)), model, x, start)
    assert_close(found, torch.tensor([factors], dtype=torch.float64), rtol=1e-12, atol=0)


def test_max_pooling_keeps_channels_last() -> None:
    x = torch.randn(2, 3, 4, 6).contiguous(memory_format=torch.channels_last)
    model = nn.MaxPool2d(2)
    plan = recorded(model, x)
    plain = passed(plan, model, x.contiguous(), torch.ones(2, 3, 2, 3))[1]
    turned = passed(plan, model, x, torch.ones(2, 3, 2, 3))[1]
    assert plain.is_contiguous() and turned.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, turned) and plain.sum() == 36


def test_what_integers_keep_of_their_tokens() -> None:
    kept: list[tuple[Callable[[Tensor], Tensor], bool]] = [
        (lambda x: x.flip(0), True),
        (lambda x: x.view(-1), True),
        (lambda x: x + 1, False),
        (lambda x: x.bitwise_not(), False),
        (lambda x: x.float(), False),
    ]
    for function, expected in kept:
        with neutral_modes():
            graph = canonical(record(Function(function), (torch.arange(6).view(2, 3),), {}, 0))
        facts = analyse(graph, [], graph.inputs)
        assert (graph.output_names[0] in facts.tokens) is expected
        assert (graph.output_names[0] in facts.carriers) is expected


class Chain(nn.Module):
    """Dense, ReLU, something else, dense."""

    def __init__(self, between: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(5, 6), nn.Linear(6, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        h = self.below(x).relu()
        return self.above(h if self.between is None else self.between(h))


def overwrites(plan: Plan) -> bool:
    """Whether the ReLU of the plan writes over its input, or the layer below does its work."""
    (step,) = [step for step in plan.steps.values() if step.node.op == "relu"]
    return bool(step.options.get("inplace") or step.options.get("rectified"))


@pytest.mark.parametrize(
    ("rule", "between", "expected"),
    [
        (rules.Epsilon(), None, True),
        (rules.AlphaBeta(), None, True),
        (rules.Gamma(), None, True),
        (rules.Flat(), None, False),
        (rules.WSquare(), None, False),
        (rules.ZBox(-1, 1), None, False),
        (rules.Epsilon(), lambda h: F.avg_pool1d(h, 3, 1, 1), True),
        (rules.Epsilon(), lambda h: F.leaky_relu(h), True),
        (rules.Epsilon(), lambda h: h + 1, True),
        (rules.Flat(), lambda h: F.max_pool1d(h, 3, 1, 1), False),
        (rules.Flat(), lambda h: h.flip(-1), False),
        (rules.Epsilon(), lambda h: h.flip(-1), True),
        (rules.Epsilon(), lambda h: h.sigmoid(), False),
    ],
)
def test_a_relu_overwrites_only_what_no_rule_reads(
    rule: rules.LinearRule, between: Callable[[Tensor], Tensor] | None, expected: bool
) -> None:
    model, x = Chain(between).double(), torch.randn(3, 5).double()
    assert overwrites(recorded(model, x, everywhere(rule, 1e-6))) is expected


def test_norms_by_hand() -> None:
    x, start = torch.randn(2, 4, 5).double(), torch.randn(2, 4, 5).double()
    gain, shift = torch.randn(4).double(), torch.randn(4).double()

    def by_hand(view: tuple[int, ...], gain: Tensor | float, shift: Tensor | float) -> Tensor:
        v = x.view(view)
        sigma = (v.var(-1, correction=0, keepdim=True) + 0.5).sqrt()
        out = ((v - v.mean(-1, keepdim=True)) / sigma).view_as(x) * gain + shift
        u = (start / torch.where(out >= 0, out + 0.1, out - 0.1) * gain).view(view) / sigma
        return (u - u.mean(-1, keepdim=True)).view_as(x) * x

    column, row = gain.view(4, 1), shift.view(4, 1)
    cases: list[tuple[Callable[[Tensor], Tensor], Tensor]] = [
        (lambda x: F.layer_norm(x, [5], eps=0.5), by_hand((2, 4, 5), 1.0, 0.0)),
        (lambda x: F.group_norm(x, 2, gain, shift, eps=0.5), by_hand((2, 2, 10), column, row)),
        (
            lambda x: F.instance_norm(x, weight=gain, bias=shift, eps=0.5),
            by_hand((2, 4, 5), column, row),
        ),
    ]
    for function, expected in cases:
        model = Function(function)
        _, found = passed(recorded(model, x, Composite(stabilizer=0.1)), model, x, start)
        assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_rms_norm_by_hand() -> None:
    x, start = torch.randn(3, 5).double(), torch.randn(3, 5).double()
    model = Function(lambda x: F.rms_norm(x, [5], eps=0.5))
    _, found = passed(recorded(model, x, Composite(stabilizer=1e-12)), model, x, start)
    assert_close(found, start, rtol=1e-8, atol=1e-8)  # out is a multiple of x
    output = x / (x.square().mean(-1, keepdim=True) + 0.5).sqrt()
    _, coarse = passed(recorded(model, x, Composite(stabilizer=0.5)), model, x, start)
    expected = start * output / (output + 0.5 * torch.where(output >= 0, 1.0, -1.0))
    assert_close(coarse, expected, rtol=1e-10, atol=1e-12)


def test_rules_refuse_what_is_no_number() -> None:
    for make in (
        lambda: rules.Epsilon(True),
        lambda: rules.Gamma(False),
        lambda: rules.Recurrent(epsilon=-1.0),
        lambda: rules.Recurrent(bias_factor=-1.0),
        lambda: rules.Norm(-1.0),
    ):
        with pytest.raises(ValueError, match="expected a finite number"):
            make()


def test_bounds_may_be_tensors_that_numpy_cannot_read() -> None:
    low = torch.full((3,), -1.0, dtype=torch.bfloat16, requires_grad=True)
    assert rules.ZBox(low, 1.0) == rules.ZBox(torch.full((3,), -1.0), 1.0)


def test_a_recurrent_layer_returns_what_torch_returns() -> None:
    layer = nn.LSTM(3, 4, num_layers=2, bidirectional=True).double()
    x = torch.randn(5, 2, 3).double()
    state = torch.randn(4, 2, 4).double(), torch.randn(4, 2, 4).double()
    expected = layer(x, state)
    found, _ = _forward(layer, x, state)
    assert_close(found, (expected[0], *expected[1]), rtol=1e-10, atol=1e-12)


class Cells(nn.Module):
    """The last cells of an LSTM, on packed data or not."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.layer, self.packed = nn.LSTM(3, 4), packed

    def forward(self, x: Tensor) -> Tensor:
        if self.packed:
            return self.layer(pack_padded_sequence(x, torch.full((2,), 5)))[1][1][0]
        return self.layer(x)[1][1][0]


def test_cells_of_packed_sequences_are_cells() -> None:
    x, start, found = torch.randn(5, 2, 3).double(), torch.randn(2, 4).double(), []
    plain = Cells(False).double()
    for packed in (False, True):
        model = Cells(packed).double()
        model.load_state_dict(plain.state_dict())
        found.append(passed(recorded(model, x), model, x, start)[1])
    assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)
    assert found[0].abs().max() > 1e-3


def _forward(layer: nn.LSTM, x: Tensor, state: tuple[Tensor, Tensor]) -> Any:
    layout = Layout("lstm", layers=2, bidirectional=True)
    directions = [Direction(*weights) for weights in layer.all_weights]
    return recurrent.forward(layout, directions, x, *state, rules.Recurrent())
