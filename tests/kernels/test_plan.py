"""Whole plans in the Triton backend: who runs each step, and that results are the reference's."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relprop
from relprop import kernels, rules
from relprop.backends.reference import linear as reference
from relprop.errors import InputError, PlanningError


class Residual(nn.Module):
    """Convolutions with pooling of every kind, a residual sum and a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(16, 3)
        self.norm.running_mean.uniform_(-0.1, 0.1)
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.max_pool2d(x, 2)
        x = F.relu(x + self.second(x))
        x = self.norm(F.avg_pool2d(x, 3, 1, 1))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


class Reductions(nn.Module):
    """A mean, a maximum, a sum, a difference with a constant, adaptive maxima."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(3, 4, 3)
        self.offset = nn.Parameter(torch.randn(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x) - self.offset) + 0.5
        pooled = F.adaptive_max_pool1d(x, 2).sum(-1)
        return x.mean(-1) + 2 * x.amax(-1) + torch.sub(pooled, x[..., 0], alpha=0.5)


def explained(model: nn.Module, x: Tensor, method: object, backend: str) -> Tensor:
    target = torch.tensor([[0, 2], [1, 1]])
    result = relprop.Explainer(model, method, backend=backend)(x, target=target)
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize("method", ["lrp_epsilon", "epsilon_plus"])
def test_pooling_and_a_residual_launch_a_kernel_each(method: str, launches: Counter[str]) -> None:
    model, x = Residual().eval(), torch.randn(2, 2, 6, 6)
    explainer = relprop.Explainer(model, method, backend="triton")
    target = torch.tensor([[0, 2], [1, 1]])
    found = explainer(x, target=target)
    expected = explained(model, x, method, "reference")
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())
    products = {name: launches[name] for name in launches if "contraction" not in name}
    products.pop("modified_weights", None)
    assert products == {
        "max_pool_kernel": 1,
        "average_pool_kernel": 2,
        "dense_adjoint": 1,
        "conv_adjoint": 3,
        "quotient": 1,
        "sum_values": 1,
        "sum_shares": 1,
        "average_pool_adjoint": 2,
        "max_pool_adjoint": 1,
    }
    assert launches["conv_contraction"] >= 3 and launches["dense_contraction"] >= 1
    table = {line.split()[1]: line for line in str(explainer.plan).splitlines()[2:] if line}
    for operation in ("conv_map", "dense_map", "diagonal_map", "max_pool2d", "add", "avg_pool2d"):
        assert " triton " in table[operation]
    assert " triton " in table["relu"]


@pytest.mark.parametrize(
    "method",
    [
        "lrp_alpha2_beta1",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("lrp_epsilon", "lrp_gamma", "lrp_w_square")
        ),
    ],
)
def test_joined_steps_give_what_they_give_one_by_one(method: str, launches: Counter[str]) -> None:
    model, x = Residual().eval(), torch.randn(2, 2, 6, 6)
    explainer = relprop.Explainer(model, method, backend="triton", layers=["second"])
    target = torch.tensor([[0, 2], [1, 1]])
    joined = explainer(x, target=target)
    fused = launches["quotient"]
    launches.clear()
    apart = explainer.explain(x, target=target)  # forms the relevance of every layer
    assert fused == 1 and launches["quotient"] == 4
    torch.testing.assert_close(joined, apart.relevance, rtol=1e-5, atol=1e-6 * joined.abs().max())
    assert apart.layers["second"].shape == (2, 2, 4, 3, 3)


class Upsampling(nn.Module):
    """Interpolation by a factor and to a size, after a layer and before one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.first(x).relu(), scale_factor=2, mode="bilinear")
        x = F.interpolate(self.second(x), (5, 7), mode="bilinear", align_corners=True)
        return torch.maximum(x.mean((2, 3)), x[:, :, 0, 0])


@pytest.mark.slow
def test_interpolation_launches_a_kernel_each_way(launches: Counter[str]) -> None:
    model, x = Upsampling().eval(), torch.randn(2, 2, 4, 5)
    found = explained(model, x, "lrp_alpha2_beta1", "triton")
    expected = explained(model, x, "lrp_alpha2_beta1", "reference")
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * scale)
    assert launches["linear_resample_kernel"] == launches["linear_resample_adjoint"] == 2
    assert "quotient" not in launches  # both layers' are taken by the interpolation above them


class Branches(nn.Module):
    """A layer read twice, an activation of no kernel, one that is no pass, a tail of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.second = nn.Linear(6, 6)
        self.third = nn.Linear(6, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(x))
        y = F.gelu(self.second(x), approximate="tanh")
        return self.last(F.silu(self.third(y)) + x)


def test_what_is_read_twice_is_not_joined(launches: Counter[str]) -> None:
    model, x = Branches().eval(), torch.randn(2, 5)
    found = explained(model, x, "lrp_epsilon", "triton")
    expected = explained(model, x, "lrp_epsilon", "reference")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # `first` has two readers: its relevance is a sum, and it divides on its own
    assert launches["quotient"] == 2 and launches["dense_adjoint"] == 4


@pytest.mark.slow
def test_reductions_launch_a_kernel_each(launches: Counter[str]) -> None:
    model, x = Reductions().eval(), torch.randn(2, 3, 7)
    found = explained(model, x, "lrp_epsilon", "triton")
    expected = explained(model, x, "lrp_epsilon", "reference")
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())
    assert launches["average_pool_adjoint"] == 2 and launches["max_pool_adjoint"] == 2
    assert launches["max_pool_kernel"] == 1 and launches["sum_shares"] == 5


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(nn.MaxPool2d(2), marks=pytest.mark.slow),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        pytest.param(
            nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), marks=pytest.mark.slow
        ),
        pytest.param(nn.AdaptiveMaxPool2d((3, 2)), marks=pytest.mark.slow),
        pytest.param(nn.AdaptiveAvgPool2d((None, 2)), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_pooling_of_channels_last_and_of_half_precision(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), layer, nn.Flatten(), nn.LazyLinear(3)).eval()
    x = torch.randn(2, 2, 9, 8).to(memory_format=torch.channels_last)
    model(x)
    found = explained(model, x, "lrp_epsilon", "triton")
    expected = explained(model, x, "lrp_epsilon", "reference")
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())
    half = explained(model.bfloat16(), x.bfloat16(), "lrp_epsilon", "triton")
    assert half.dtype == torch.float32 and half.isfinite().all()
    assert F.cosine_similarity(half.flatten(), expected.flatten(), 0) > 0.95


@pytest.mark.parametrize(
    ("shape", "extents"),
    [
        ((2, 3, 7), [3]),
        ((2, 3, 7, 5), [3, 4]),
        ((1, 2, 3, 2), [7, 5]),
        ((1, 2, 4, 5, 3), [2, 5, 2]),
    ],
    ids=str,
)
def test_adaptive_max_pool_first_of_equal_elements(
    shape: tuple[int, ...], extents: list[int]
) -> None:
    a, spatial = torch.randint(-2, 2, shape).float(), len(extents)

    def pool(x: Tensor) -> tuple[Tensor, Tensor]:
        function = getattr(F, f"adaptive_max_pool{spatial}d")
        result: tuple[Tensor, Tensor] = function(x, extents, return_indices=True)
        return result

    y, winners = kernels.adaptive_max_pool(a, extents)
    expected, indices = pool(a)
    assert torch.equal(y, expected) and torch.equal(winners.long(), indices)
    r = torch.randn(2, *y.shape)
    relevance = kernels.adaptive_max_pool_relevance(r, winners, a.shape)
    for target in range(2):
        exact = reference.winner_relevance(lambda x: pool(x)[0], a.double(), r[target].double())
        torch.testing.assert_close(relevance[target].double(), exact, rtol=1e-6, atol=1e-6)


RULES = [rules.Epsilon(), rules.ZPlus(), rules.AlphaBeta(), rules.Flat(), rules.ZBox(-3, 3)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_batch_norm_alone_is_a_depthwise_convolution(
    rule: rules.LinearRule, launches: Counter[str]
) -> None:
    model = nn.Sequential(nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).eval()
    model[0].running_mean.normal_()
    x = torch.randn(2, 5)
    found = explained(model, x, rule, "triton")
    torch.testing.assert_close(found, explained(model, x, rule, "reference"), rtol=1e-4, atol=1e-5)
    assert launches["conv_adjoint"] == 1


def test_pass_on_a_linear_layer_computes_its_value_by_a_kernel(launches: Counter[str]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).eval()
    composite = relprop.composites.lrp_epsilon().with_rule("path:0", rules.Pass())
    x = torch.randn(2, 4)
    found = explained(model, x, composite, "triton")
    torch.testing.assert_close(found, explained(model, x, composite, "reference"))
    assert launches["dense_contraction"] == 2 and launches["dense_adjoint"] == 1


class Resampled(nn.Module):
    """Two kinds of resampling that no kernel serves."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bicubic")
        grid = x.new_zeros(1, 1, 1, 2).expand(len(x), 1, 1, 2)
        return F.grid_sample(x, grid, align_corners=False).flatten(1)


@pytest.mark.slow
def test_what_has_no_kernel_is_refused_with_all_its_places() -> None:
    explainer = relprop.Explainer(Resampled().eval(), "lrp_epsilon", backend="triton")
    with pytest.raises(PlanningError) as error:
        explainer(torch.randn(2, 3, 5, 4), target=0)
    lines = str(error.value).splitlines()
    assert len(lines) == 2 and all("use backend='aten'" in line for line in lines)
    assert "upsample_bicubic2d" in lines[0] and "grid_sampler" in lines[1]


@pytest.mark.parametrize("layer", [nn.MaxPool1d(2), nn.AvgPool1d(2)], ids=str)
def test_float64_is_refused_by_pooling(layer: nn.Module) -> None:
    model = nn.Sequential(layer, nn.Flatten()).eval()
    explainer = relprop.Explainer(model, "lrp_epsilon", backend="triton")
    with pytest.raises(InputError, match=r"'0' .*: the input is float64.*backend='aten'"):
        explainer(torch.randn(2, 3, 4).double(), target=0)
