"""Operations in their canonical form, folded into the linear maps beside them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import relprop
from plans import Function, everywhere, passed, recorded
from relprop import rules
from relprop.errors import InputError, PlanningError


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
    assert str(plan).splitlines()[-2] == "dissolved: 2 into 1"


def test_padding_of_no_named_value_is_folded_too() -> None:
    pad = torch.ops.aten.constant_pad_nd.default
    model = Function(lambda x, w: F.conv1d(pad(x, [2, 1]), w), (3, 4, 2))
    plan = recorded(model, torch.randn(2, 4, 6).double())
    assert [node.op for node in plan.graph.nodes.values()] == ["conv_map"]


def test_a_clamp_from_below_is_a_relu() -> None:
    plan = recorded(Function(lambda x: x.clamp(min=0)), torch.randn(ROWS))
    assert [node.op for node in plan.graph.nodes.values()] == ["relu"]


def test_the_weight_of_a_product_is_what_does_not_depend_on_the_inputs() -> None:
    model = Function(lambda x, w: (x @ w.softmax(1)) @ x.T, (5, 5))
    with pytest.raises(PlanningError, match="both factors depend on an explained input"):
        recorded(model, torch.randn(ROWS).double())


def test_complex_numbers_are_named_where_relevance_ends() -> None:
    with pytest.raises(PlanningError, match=r"aten\.fft_rfft .* of complex"):
        recorded(Function(lambda x: torch.fft.rfft(x).abs()), torch.randn(ROWS).double())


def test_a_plan_says_whose_code_runs_a_step() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU())
    explainer = relprop.Explainer(model, "lrp_epsilon", backend="reference")
    explainer(torch.randn(ROWS), target=0)
    _, _, layer, relu, *_ = str(explainer.plan).splitlines()
    assert " reference " in layer and " aten " in relu


def test_copies_are_identities() -> None:
    plan = recorded(
        Function(lambda x: torch.positive(x.T.contiguous().clone().detach()).T.relu()),
        torch.randn(ROWS),
    )
    assert [node.op for node in plan.graph.nodes.values()] == ["numpy_T", "numpy_T", "relu"]


def test_an_output_that_is_not_finite_is_named() -> None:
    model = Function(lambda x: x / 0)
    with pytest.raises(InputError, match="the model's output"):
        relprop.explain(model, torch.ones(ROWS), target=0, method="lrp_zero")


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
