"""Families of networks, with random weights: planned, finite, conserving; all with `-m slow`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

pytest.importorskip("torchvision", reason="torchvision is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import relprop
from benchmarks.families import conservation
from benchmarks.zoo import FAMILIES, randomised
from relprop import composites, rules
from relprop.errors import InputError, PlanningError

QUICK = ("unet", "cnn 1-d", "cnn 3-d", "squeezenet1_1", "transformers ConvNextV2")
NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]
METHODS = [*composites.PRESETS, "lrp_alpha2_beta1"]
BOXED = ("epsilon_gamma_box", "deep_taylor")
PLANNING_LIMIT = 15.0
"""Seconds on a quiet machine of two cores; on a busy one the same work takes more of them."""


@pytest.mark.parametrize("name", NAMES)
def test_planned_and_conserving(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    family = FAMILIES[name]
    found = conservation(family)
    with capsys.disabled():
        print(f"\n{name}: planned in {found.planning:.1f} s of processor time, "
              f"{found.steps} steps, z-plus loses {found.plus:.1e}", end=" ")  # fmt: skip
    assert found.planning <= 3 * PLANNING_LIMIT
    assert found.zero <= 1e-6
    if family.rectified:
        assert found.plus <= 1e-6
    else:
        # lost where no contribution is positive, and the report says in which layers
        losses = {row.operation for row in found.report if row.loss > 1e-9 * found.start}
        assert losses <= {"conv_map", "dense_map", "conv_transpose_map"}
        assert found.report.worst is not None and (found.report.worst.path or not losses)


@pytest.mark.parametrize("name", NAMES)
def test_finite_under_every_composite(name: str) -> None:
    family = FAMILIES[name]
    model = randomised(family)
    args, kwargs = family.inputs(torch.float32)
    for method in METHODS:
        options = {"low": -4.0, "high": 4.0} if method in BOXED else {}
        explainer = relprop.Explainer(model, method, method_options=options, output=family.output)
        relevance = explainer(*args, kwargs=kwargs, target=family.target)
        assert isinstance(relevance, Tensor), method
        assert relevance.shape == (2, *family.shape), method
        assert torch.isfinite(relevance).all(), method
        assert relevance.abs().amax() > 0 or method == "deep_taylor", method


class Lossy(nn.Module):
    """Convolution, something that loses relevance, dense layer."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, bias=False)
        self.middle = middle
        self.last = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x).relu()).mean((2, 3)))


class Difference(nn.Module):
    """x - 0.999 x: a thousandth of two large summands."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.999 * x


class Cancelled(nn.Module):
    """Noise + (x - x)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", torch.linspace(1, 2, 4).view(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.noise + (x - x)


def _biased() -> nn.Module:
    layer = nn.Conv2d(4, 4, 1)
    nn.init.constant_(layer.bias, 1e6)
    return layer


def _dead() -> nn.Module:
    layer = nn.Conv2d(4, 4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(-layer.weight.abs())
    return layer


@pytest.mark.parametrize(
    ("middle", "method", "operation", "path"),
    [
        (Cancelled, "lrp_epsilon", "add", "middle"),
        (_biased, "lrp_epsilon", "conv_map", "middle"),
        (_dead, "lrp_zplus", "conv_map", "middle"),
    ],
)
def test_the_report_names_the_layer_that_loses(
    middle: Callable[[], nn.Module], method: str, operation: str, path: str
) -> None:
    model = Lossy(middle()).double().eval()
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    result = relprop.Explainer(model, method).explain(x, target=1)
    report = result.conservation()
    assert report.worst is not None
    assert (report.worst.operation, report.worst.path) == (operation, path)
    start = result.output[:, 1]
    # all of it is lost there
    assert_close(report.worst.per_sample[0], start, rtol=1e-4, atol=0.0)
    assert_close(
        result.relevance.flatten(1).sum(1) / start, torch.zeros(3).double(), rtol=0, atol=1e-4
    )


def test_a_cancelling_difference_amplifies_and_conserves() -> None:
    model = Lossy(Difference()).double().eval()
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    result = relprop.Explainer(model, "lrp_zero").explain(x, target=1)
    assert_close(result.relevance.flatten(1).sum(1), result.output[:, 1], rtol=1e-9, atol=0.0)


def test_products_of_signals_are_listed_and_can_be_given_a_rule() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.VanConfig(
        hidden_sizes=[8, 16], depths=[1, 1], num_labels=3, patch_sizes=[7, 3], strides=[4, 2],
        mlp_ratios=[2, 2],
    )  # fmt: skip
    model = transformers.VanForImageClassification(config).eval()
    x = torch.randn(2, 3, 32, 32)
    with pytest.raises(PlanningError) as raised:
        relprop.Explainer(model, "lrp_zero")(kwargs={"pixel_values": x}, target=1)
    text = str(raised.value)
    paths = [f"van.encoder.stages.{i}.layers.0.attention.attention_layer" for i in (0, 1)]
    assert all(f"'{path}' is aten.mul: neither factor is a gate" in text for path in paths)
    composite = composites.lrp_epsilon()
    for path in paths:
        composite = composite.with_rule(f"path:{path}", rules.Product("half"))
    relevance = relprop.Explainer(model, composite)(kwargs={"pixel_values": x}, target=1)
    assert torch.isfinite(relevance).all() and relevance.abs().amax() > 0


def test_attention_is_a_planning_error_that_lists_every_layer() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(image_size=16, patch_size=8, hidden_size=8, num_labels=3,
                                    num_hidden_layers=2, num_attention_heads=2,
                                    intermediate_size=16)  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    with pytest.raises(PlanningError) as raised:
        relprop.Explainer(model, "lrp_epsilon")(
            kwargs={"pixel_values": torch.randn(2, 3, 16, 16)}, target=1
        )
    listed = [line for line in str(raised.value).splitlines() if line.startswith("  '")]
    assert len(listed) == 2
    assert all(f"encoder.layer.{i}.attention" in line for i, line in enumerate(listed))


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1],
                                       num_labels=3, layer_type="basic")  # fmt: skip
    return transformers.ResNetForImageClassification(config).eval()


def test_output_of_transformers(tiny: nn.Module) -> None:
    x = torch.randn(2, 3, 24, 24)
    expected = relprop.Explainer(tiny, "lrp_epsilon")(kwargs={"pixel_values": x}, target=2)
    assert isinstance(expected, Tensor) and expected.shape == x.shape
    kwargs = {"pixel_values": x, "output_hidden_states": True}
    with pytest.raises(InputError, match=r"\['logits', 'hidden_states'\]"):
        relprop.Explainer(tiny, "lrp_epsilon")(kwargs=kwargs, target=2)
    picks = ("logits", 0, lambda output: output["logits"], lambda output: output.logits)
    for output in picks:
        found = relprop.Explainer(tiny, "lrp_epsilon", output=output)(kwargs=kwargs, target=2)
        assert_close(found, expected, rtol=0, atol=0)
    with pytest.raises(InputError, match=r"hidden_states.*tensors"):
        relprop.Explainer(tiny, "lrp_epsilon", output="hidden_states")(kwargs=kwargs, target=2)
    with pytest.raises(InputError, match="'logit'"):
        relprop.Explainer(tiny, "lrp_epsilon", output="logit")(kwargs=kwargs, target=2)


def test_a_loss_beside_the_logits(tiny: nn.Module) -> None:
    x, labels = torch.randn(2, 3, 24, 24), torch.tensor([0, 2])
    kwargs = {"pixel_values": x, "labels": labels}
    with pytest.raises(InputError, match=r"\['loss', 'logits'\]"):
        relprop.Explainer(tiny, "lrp_epsilon")(kwargs=kwargs, target=2)
    found = relprop.Explainer(tiny, "lrp_epsilon", output="logits", inputs="pixel_values")(
        kwargs=kwargs, target=2
    )
    expected = relprop.Explainer(tiny, "lrp_epsilon")(kwargs={"pixel_values": x}, target=2)
    assert_close(found, expected)


class Written(nn.Module):
    """A signal, its gate by some spelling, a head."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.signal, self.gate = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 3)
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.product(self.signal(x), self.gate(x)).mean((2, 3)))


GATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu6": lambda s, g: s * F.relu6(g + 3.0) / 6.0,
    "relu6 first": lambda s, g: F.relu6(3.0 + g) * s * (1 / 6),
    "clamp": lambda s, g: s * torch.clamp(g + 3, 0, 6) / 6,
    "clamp to one": lambda s, g: s * (0.2 * g + 0.5).clamp(0, 1),
    "hardtanh": lambda s, g: s * F.hardtanh(g + 3, 0, 6) / 6,
    "exp": lambda s, g: s * (1 / (1 + torch.exp(-g))),
    "exp below": lambda s, g: s / (torch.exp(-g) + 1),
    "tanh": lambda s, g: s * (0.5 * (torch.tanh(g) + 1)),
    "erf": lambda s, g: s * 0.5 * (1.0 + torch.erf(g)),
    "softplus": lambda s, g: s * torch.tanh(F.softplus(g)),
    "twice": lambda s, g: s * (2 * torch.sigmoid(g)),
    "residual": lambda s, g: (1 + torch.sigmoid(g)) * s,
    "complement": lambda s, g: s * (-torch.sigmoid(g) + 1),
    "interpolated": lambda s, g: s * F.interpolate(
        F.avg_pool2d(g, 2).sigmoid(), size=s.shape[2:], mode="bilinear"
    ),
    "pooled": lambda s, g: s * g.sigmoid().mean((2, 3), keepdim=True),
    "two gates": lambda s, g: s * (g.sigmoid() * g.mean(1, keepdim=True).sigmoid()),
    "joined": lambda s, g: s * torch.cat([g[:, :1].sigmoid(), g[:, 1:].softmax(1)], 1),
    "einsum": lambda s, g: torch.einsum("bchw,bc->bchw", s, g.mean((2, 3)).sigmoid()),
    "response norm": lambda s, g: s * (g.norm(dim=(2, 3), keepdim=True)
        / (g.norm(dim=(2, 3), keepdim=True).mean(1, keepdim=True) + 1e-6)),
}  # fmt: skip


@pytest.mark.parametrize("name", GATES)
def test_the_signal_takes_all_however_the_gate_is_spelt(name: str) -> None:
    model = Written(GATES[name]).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    result = relprop.Explainer(model, "lrp_zero", layers=("signal", "gate")).explain(x, target=1)
    assert result.layers["gate"].abs().max() == 0
    assert_close(result.layers["signal"], _contributions(model, x), rtol=1e-9, atol=1e-12)


def _contributions(model: Written, x: Tensor) -> Tensor:
    """What each element of the product adds to output 1: its relevance by LRP-0."""
    with torch.no_grad():
        value = model.product(model.signal(x), model.gate(x))
    contributions: Tensor = model.head.weight[1].detach()[:, None, None] * value
    return contributions / value[0, 0].numel()


NORMALISED: dict[str, Callable[[Tensor], Tensor]] = {
    "unit length": lambda x: F.normalize(x, dim=1),
    "local response": lambda x: F.local_response_norm(x, 3),
    "root mean square": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    "softsign": F.softsign,
    "length": lambda x: x / x.norm(dim=1, keepdim=True).clamp(min=1e-3),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_statistics_take_no_relevance(name: str) -> None:
    function = NORMALISED[name]
    model = Written(lambda s, g: function(s)).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    result = relprop.Explainer(model, "lrp_zero", layers=("signal",)).explain(x, target=1)
    assert_close(result.layers["signal"], _contributions(model, x), rtol=1e-9, atol=1e-12)


def _layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)


def test_a_layer_norm_written_out_is_a_layer_norm() -> None:
    def library(x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), (4,), None, None, 1e-6).permute(0, 3, 1, 2)

    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model = Written(lambda s, g: _layer_norm(s)).double().eval()
    found = relprop.explain(model, x, target=1, method="lrp_zero")
    model.product = lambda s, g: library(s)
    expected = relprop.explain(model, x, target=1, method="lrp_zero")
    assert_close(found, expected, rtol=1e-6, atol=1e-9)


class Standardised(nn.Conv2d):
    """Weights standardised as BiT does, by a batch norm of the weights in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias)


def test_standardised_weights_are_weights() -> None:
    layer = Standardised(3, 4, 3)
    model = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).double().eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    found = relprop.explain(model, x, target=0, method="epsilon_plus")
    plain = nn.Conv2d(3, 4, 3).double()
    with torch.no_grad():
        flat = layer.weight.flatten(1)
        flat = (flat - flat.mean(1, keepdim=True)) / (
            flat.var(1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        plain.weight.copy_(flat.view_as(plain.weight))
        plain.bias.copy_(layer.bias)
    expected = relprop.explain(
        nn.Sequential(plain, *list(model)[1:]).eval(), x, target=0, method="epsilon_plus"
    )
    assert_close(found, expected, rtol=1e-9, atol=1e-12)
