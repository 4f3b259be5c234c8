"""Whole networks: planned without canonizers, conserving, ATen equal to the reference; the face."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import relprop
from relprop import composites
from relprop.errors import InputError

METHODS = ["epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_gamma_box",
           "epsilon_alpha2_beta1_flat", "excitation_backprop", "alpha_beta", "deep_taylor",
           "lrp_zero", "lrp_epsilon", "lrp_gamma", "lrp_zplus", "lrp_w_square", "lrp_flat",
           "lrp_alpha1.4_beta0.4"]  # fmt: skip
BOXED = ("epsilon_gamma_box", "deep_taylor")


def options(method: str) -> dict[str, Any]:
    """What the method cannot do without."""
    return {"low": -4.0, "high": 4.0} if method in BOXED else {}


def test_every_preset_is_tried() -> None:
    assert set(composites.PRESETS) <= set(METHODS)


class UNet(nn.Module):
    """Two levels down, two up: transposed convolution, nearest upsampling, skips by cat and sum."""

    def __init__(self) -> None:
        super().__init__()
        self.down = self._block(3, 6)
        self.deep = self._block(6, 8, stride=2)
        self.bottom = self._block(8, 8)
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 6, 2, 2), nn.BatchNorm2d(6))
        self.join = self._block(18, 6)
        self.head = nn.Conv2d(6, 4, 1)

    @staticmethod
    def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        top = self.down(x)
        middle = self.deep(top)
        bottom = self.bottom(F.max_pool2d(middle, 2))
        middle = middle + F.interpolate(bottom, scale_factor=2.0)
        up = F.relu(self.up(middle))
        wide = F.interpolate(middle[:, :6], size=top.shape[2:], mode="nearest")
        joined = self.join(torch.cat([top, up, wide], 1))
        return self.head(joined).mean((2, 3))


def unet() -> tuple[nn.Module, Tensor]:
    return UNet(), torch.randn(2, 3, 16, 16)


def resnet18() -> tuple[nn.Module, Tensor]:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    return models.resnet18(num_classes=7), torch.randn(2, 3, 64, 64)


def vgg11() -> tuple[nn.Module, Tensor]:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    model = models.vgg11_bn(num_classes=7)
    # the classifier's 120 million weights test nothing more
    model.avgpool = nn.AdaptiveAvgPool2d((2, 3))
    model.classifier[0] = nn.Linear(512 * 6, 40)
    model.classifier[3], model.classifier[6] = nn.Linear(40, 40), nn.Linear(40, 7)
    return model, torch.randn(2, 3, 64, 64)


def transformers_resnet() -> tuple[nn.Module, Tensor]:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], num_labels=5,
        layer_type="basic",
    )  # fmt: skip
    return transformers.ResNetForImageClassification(config), torch.randn(2, 3, 32, 32)


NETWORKS = {
    "unet": unet,
    "resnet18": resnet18,
    "vgg11_bn": vgg11,
    "transformers resnet": transformers_resnet,
}


def scramble(model: nn.Module, plain: bool = False) -> nn.Module:
    """Random batch norms; `plain`: every bias, shift and running mean 0."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                if plain:
                    module.running_mean.zero_()
        for name, parameter in model.named_parameters():
            if plain and name.endswith("bias"):
                parameter.zero_()
    return model.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_lrp_zero_conserves(name: str) -> None:
    model, x = NETWORKS[name]()
    model, x = scramble(model, plain=True).double(), x.double()
    explainer = relprop.Explainer(model, "lrp_zero")
    result = explainer.explain(x, target=torch.tensor([[1, 3], [0, 2]]))
    start = result.output.gather(1, result.target)
    assert_close(result.relevance.sum((2, 3, 4)), start, rtol=1e-6, atol=0)
    assert_close(result.convergence_delta, torch.zeros(2, 2).double(), atol=1e-6, rtol=0)
    assert "batch_norm" not in str(explainer.plan) and "diagonal_map" not in str(explainer.plan)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_method_is_finite_and_equals_the_reference(name: str) -> None:
    model, x = NETWORKS[name]()
    model, x = scramble(model).double(), x[:1, :, :32, :32].double()
    chosen = METHODS if name in ("unet", "transformers resnet") else METHODS[::7]
    for method in METHODS:
        found = relprop.explain(model, x, target=1, method=method, method_options=options(method))
        assert found.shape == x.shape and found.isfinite().all(), method
        if method in chosen:
            expected = relprop.explain(
                model, x, target=1, method=method, method_options=options(method),
                backend="reference",
            )  # fmt: skip
            scale = float(expected.abs().max())
            assert_close(found, expected, rtol=1e-6, atol=1e-9 * scale, msg=method)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_number_formats(dtype: torch.dtype) -> None:
    model, x = unet()
    x = x.to(dtype)
    scramble(model).to(dtype)
    wide = UNet().double().eval()  # the same numbers as parameters, computed in float64
    wide.load_state_dict(model.state_dict())
    for method in METHODS:
        explainer = relprop.Explainer(model, method, method_options=options(method))
        found = explainer(x, target=1)
        assert found.dtype is torch.float32 and found.isfinite().all(), method
        expected = relprop.explain(
            wide, x.double(), target=1, method=method, method_options=options(method)
        )
        cosine = F.cosine_similarity(found.double().flatten(), expected.flatten(), 0)
        assert cosine > (0.9999 if dtype is torch.float32 else 0.98), (method, float(cosine))


class Pair(nn.Module):
    """Two images in; logits, features and a pooled map out."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 4, 3), nn.Conv2d(1, 4, 3, padding=1)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(8, 3)

    def features(self, left: Tensor, right: Tensor) -> Tensor:
        a, b = self.left(left).relu(), self.right(right).relu()
        return torch.cat([a.mean((2, 3)), b.amax((2, 3))], 1)

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> dict[str, Any]:
        features = self.features(left, right)
        logits = self.head(self.drop(features)) * scale
        return {"logits": logits, "hidden": (features, features[:, :2] + 1)}


def pair(batch: int = 3) -> tuple[Pair, Tensor, Tensor]:
    left, right = torch.randn(batch, 2, 6, 5), torch.randn(batch, 1, 4, 7)
    return Pair().double().eval(), left.double(), right.double()


def test_several_inputs() -> None:
    model, left, right = pair()
    explainer = relprop.Explainer(model, "lrp_zplus", output="logits")
    found = explainer(left, right, target=2)
    assert [r.shape for r in found] == [left.shape, right.shape]
    naive = relprop.Explainer(model, "lrp_zplus", output="logits", backend="reference")
    for ours, theirs in zip(found, naive(left, right, target=2), strict=True):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    by_name = explainer(left, kwargs={"right": right}, target=2)
    assert_close(by_name[1], found[1])
    one = relprop.Explainer(model, "lrp_zplus", output="logits", inputs=[1])
    assert_close(one(left, right, target=2), found[1])
    scaled = explainer(left, right, target=2, kwargs={"scale": -2.0})
    assert_close(scaled[0], -2 * found[0])


def test_several_outputs() -> None:
    model, left, right = pair()
    with pytest.raises(InputError, match="3 tensors"):
        relprop.explain(model, left, right, target=0)
    first = relprop.explain(model, left, right, target=2, output="logits")
    by_function = relprop.explain(model, left, right, target=2, output=lambda out: out["logits"])
    by_index = relprop.explain(model, left, right, target=2, output=0)
    assert_close(by_function, first)
    assert_close(by_index, first)
    hidden = relprop.explain(model, left, right, target=5, output=lambda out: out["hidden"][0])
    # features 4 to 7 are of the right image
    assert not hidden[0].any() and hidden[1].any()
    with pytest.raises(InputError, match="picks 2 tensors"):
        relprop.explain(model, left, right, target=0, output="hidden")
    with pytest.raises(InputError, match="picks nothing"):
        relprop.explain(model, left, right, target=0, output="scores")


def test_model_output_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model, x = transformers_resnet()
    scramble(model)
    found = relprop.explain(model, x, target=1, output="logits", method="lrp_epsilon")
    assert found.shape == x.shape
    assert_close(relprop.explain(model, x, target=1, method="lrp_epsilon"), found)
    del transformers


class Tokens(nn.Module):
    """Token and position embeddings under a 1-d convolution, a float input beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.place = nn.Embedding(11, 6), nn.Embedding(7, 6)
        self.convolution, self.head = nn.Conv1d(6, 5, 3, padding=1), nn.Linear(5, 3)

    def forward(self, ids: Tensor, weight: Tensor) -> Tensor:
        places = self.place(torch.arange(ids.shape[1], device=ids.device))
        h = self.table(ids) + places
        h = self.convolution(h.transpose(1, 2)).relu()
        return self.head(h.mean(2) + weight)


@pytest.mark.parametrize("backend", ["aten", "reference"])
def test_token_input(backend: str) -> None:
    model = Tokens().double().eval()
    ids, weight = torch.randint(0, 11, (2, 7)), torch.randn(2, 5).double()
    explainer = relprop.Explainer(model, "lrp_epsilon", layers=["table"], backend=backend)
    result = explainer.explain(ids, weight, target=torch.tensor([[0, 1], [2, 2]]))
    assert result.relevance[0].shape == (2, 2, 7) and result.relevance[0].dtype is torch.float64
    assert result.layers["table"].shape == (2, 2, 7, 6)
    assert_close(result.layers["table"].sum(-1), result.relevance[0])
    start = result.output.gather(1, result.target)
    delta = start - result.relevance[0].sum(-1) - result.relevance[1].sum(-1)
    assert_close(result.convergence_delta, delta)
    only = relprop.Explainer(model, "lrp_epsilon", inputs=0)(ids, weight, target=[0, 2])
    assert_close(only, result.relevance[0][:, 0])


class Plain(nn.Module):
    """A CNN of any number of dimensions."""

    def __init__(self, n: int) -> None:
        super().__init__()
        convolution, norm = getattr(nn, f"Conv{n}d"), getattr(nn, f"BatchNorm{n}d")
        self.body = nn.Sequential(
            convolution(2, 4, 3, padding=1), norm(4), nn.ReLU(),
            getattr(nn, f"MaxPool{n}d")(2, ceil_mode=True), convolution(4, 6, 2),
            nn.GELU(), getattr(nn, f"AdaptiveAvgPool{n}d")(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("method", ["epsilon_plus_flat", "epsilon_gamma_box"])
def test_other_dimensions(n: int, method: str) -> None:
    model, x = Plain(n).double().eval(), torch.randn(2, 2, *(5, 6, 4)[:n]).double()
    found = relprop.explain(model, x, target=3, method=method, method_options=options(method))
    expected = relprop.explain(
        model, x, target=3, method=method, method_options=options(method), backend="reference"
    )
    assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, Tensor]:
    """A captured network and its input."""
    torch.manual_seed(3)
    return Plain(2).double().eval(), torch.randn(4, 2, 6, 5).double()


@pytest.mark.parametrize("method", ["lrp_alpha2_beta1", "lrp_gamma", "gradient_x_input"])
def test_many_targets_equal_single_calls(small: Any, method: str) -> None:
    model, x = small
    explainer = relprop.Explainer(model, method)
    target = torch.tensor([[0, 1, 3], [3, 3, 0], [2, 1, 0], [1, 2, 3]])
    found = explainer(x, target=target)
    assert found.shape == (4, 3, 2, 6, 5)
    for k in range(3):
        assert_close(found[:, k], explainer(x, target=target[:, k]), rtol=1e-10, atol=1e-13)
    one = explainer(x, target=target[:, :1])
    assert one.shape == (4, 1, 2, 6, 5)


def test_one_capture_serves_every_batch(small: Any) -> None:
    model, x = small
    explainer = relprop.Explainer(model, "epsilon_plus", example_inputs=x)
    plan = explainer.plan
    whole = explainer(x, target=[0, 1, 2, 3])
    for start, stop in ((0, 1), (1, 4), (2, 4)):
        part = explainer(x[start:stop], target=list(range(start, stop)))
        assert_close(part, whole[start:stop], rtol=1e-10, atol=1e-13)
    empty = explainer(x[:0], target=torch.zeros(0, dtype=torch.int64))
    assert empty.shape == (0, 2, 6, 5)
    assert explainer.plan is plan
    channels_last = x.contiguous(memory_format=torch.channels_last)
    assert_close(explainer(channels_last, target=[0, 1, 2, 3]), whole, rtol=1e-10, atol=1e-13)
    strided = x.repeat_interleave(2, 0)[::2]
    assert_close(explainer(strided, target=[0, 1, 2, 3]), whole)


def test_hidden_relevance(small: Any) -> None:
    model, x = small
    paths = ["body.0", "body.1", "body.3", "body.6", "head"]
    result = relprop.Explainer(model, "lrp_epsilon", layers=paths).explain(x, target=1)
    assert result.layers["head"].shape == (4, 4) and result.layers["body.6"].shape == (4, 6, 1, 1)
    # the convolution is dissolved into conv + batch norm: both names mean the joint operation's
    assert torch.equal(result.layers["body.0"], result.layers["body.1"])
    assert result.layers["body.3"].shape == (4, 4, 3, 3)
    start = torch.zeros(4, 4).double()
    start[:, 1] = result.output[:, 1]
    assert_close(result.layers["head"], start)
    with pytest.raises(InputError, match=r"'body\.33'.*near ones: .*body\.3"):
        relprop.Explainer(model, "lrp_epsilon", layers="body.33").explain(x, target=1)


def test_dropout_is_a_layer_too() -> None:
    model, left, right = pair()
    explainer = relprop.Explainer(model, "lrp_epsilon", output="logits", layers=["drop", "head"])
    result = explainer.explain(left, right, target=1)
    features = model.features(left, right)
    w, b = model.head.weight, model.head.bias
    z = features @ w[1] + b[1]
    expected = features * w[1] * (z / (z + 1e-6 * z.sign()))[:, None]
    assert_close(result.layers["drop"], expected.detach(), rtol=1e-9, atol=1e-12)


def test_gated_layers_have_zero_relevance() -> None:
    class Excite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
            self.gate, self.soft = nn.Linear(4, 4), nn.Softmax(1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.body(x).relu()
            return self.head(h * self.soft(self.gate(h)))

    model, x = Excite().double().eval(), torch.randn(3, 4).double()
    layers = ["body", "gate", "soft"]
    for backend in ("aten", "reference"):
        explainer = relprop.Explainer(model, "lrp_epsilon", layers=layers, backend=backend)
        result = explainer.explain(x, target=1)
        assert_close(result.layers["gate"], torch.zeros(3, 4).double())
        assert_close(result.layers["soft"], torch.zeros(3, 4).double())
        assert result.layers["body"].any()


@pytest.mark.parametrize("method", ["epsilon_alpha2_beta1_flat", "lrp_gamma", "lrp_epsilon"])
def test_conservation_report_sums(small: Any, method: str) -> None:
    model, x = small
    result = relprop.Explainer(model, method).explain(x, target=torch.tensor([[0, 1]] * 4))
    report = result.conservation()
    for row in report:
        assert row.relevance_out - row.relevance_in == pytest.approx(row.absorbed, abs=1e-12)
    lost = result.output[:, :2].sum() - result.relevance.sum()
    assert report.total_absorbed == pytest.approx(float(lost), rel=1e-9)
    assert_close(report.per_sample.T.contiguous(), result.convergence_delta, rtol=1e-9, atol=1e-12)
    assert len(report) == len(relprop.Explainer(model, method, example_inputs=x).plan.steps)
    assert "total absorbed" in str(report)


def test_delta_of_attribute(small: Any) -> None:
    model, x = small
    relevance, delta = relprop.Explainer(model, "epsilon_plus").attribute(
        x, target=[3, 2, 1, 0], return_convergence_delta=True
    )
    output = model(x).detach().gather(1, torch.tensor([[3], [2], [1], [0]]))[:, 0]
    assert_close(delta, output - relevance.sum((1, 2, 3)), rtol=1e-9, atol=1e-12)


def test_round_trip(small: Any, tmp_path: Path) -> None:
    model, x = small
    explainer = relprop.Explainer(model, "epsilon_plus", layers=["body.3", "head"])
    result = explainer.explain(x, target=torch.tensor([[0, 1]] * 4))
    result.save(tmp_path / "one")
    assert relprop.Explanation.load(tmp_path / "one") == result
    model, left, right = pair()
    result = relprop.Explainer(model, "lrp_zplus", output=0).explain(left, right, target=2)
    result.save(tmp_path / "two")
    assert relprop.Explanation.load(tmp_path / "two") == result


def test_printed_plan(small: Any) -> None:
    model, x = small
    plan = str(relprop.Explainer(model, "epsilon_plus_flat", example_inputs=x).plan)
    lines = plan.splitlines()
    assert lines[0].split() == ["step", "operation", "module", "path", "rule", "backend", "inputs"]
    first = next(line for line in lines if " body.0 " in line)
    assert "conv_map" in first and "Flat(" in first and "aten" in first
    assert any("body.4" in line and "ZPlus(" in line for line in lines)
    assert any("head" in line and "Epsilon(" in line for line in lines)
    assert "dissolved: body.1 into body.0" in plan
    assert "layers: body.0, body.1" in plan


class Sequences(nn.Module):
    """Time first, batch second; the output has the batch first again."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).relu().mean(0))


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_batch_on_axis_one(batch: int) -> None:
    """Also where the number of classes equals that of samples."""
    model, x = Sequences().double().eval(), torch.randn(6, batch, 5).double()
    explainer = relprop.Explainer(model, "lrp_epsilon", batch_dim=1)
    target = [(2 * i + 1) % 3 for i in range(batch)]
    result = explainer.explain(x, target=target)
    for i in range(batch):
        alone = relprop.explain(model, x[:, i : i + 1], target=target[i], method="lrp_epsilon",
                                batch_dim=1)  # fmt: skip
        assert_close(result.relevance[:, i : i + 1], alone, rtol=1e-9, atol=1e-12)
    many = explainer(x, target=torch.tensor(target)[:, None].repeat(1, 2))
    assert many.shape == (6, batch, 2, 5)
    assert_close(many[:, :, 1], result.relevance, rtol=1e-9, atol=1e-12)
    start = result.output[torch.arange(batch), torch.tensor(target)]
    assert_close(result.convergence_delta, start - result.relevance.sum((0, 2)))
    report = result.conservation()
    assert_close(report.per_sample[0], result.convergence_delta, rtol=1e-9, atol=1e-12)


def test_several_dimensions_of_output(small: Any) -> None:
    class Map(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(2, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    _, x = small
    model = Map().double().eval()
    found = relprop.explain(model, x, target=(2, 5, 0), method="lrp_epsilon")
    assert found[:, :, 4:, :2].any() and not found[:, :, :4].any() and not found[..., 2:].any()
    start = torch.zeros(4, 3, 6, 5).double()
    start[:, 2, 5, 0] = model(x)[:, 2, 5, 0].detach()
    explainer = relprop.Explainer(model, "lrp_epsilon")
    assert_close(explainer(x, start=start), found)


def test_dtype_of_the_result_follows_the_input() -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.float())

    found = relprop.explain(Narrow().eval(), torch.randn(2, 3).double(), target=0)
    assert found.dtype is torch.float64


def test_ordered_dict_and_nested_inputs() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, parts: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
            return OrderedDict(out=self.a(parts["x"]) + self.b(parts["y"]))

    model = Nested().double().eval()
    parts = {"x": torch.randn(2, 3).double(), "y": torch.randn(2, 4).double()}
    found = relprop.explain(model, parts, target=1, method="lrp_zero")
    assert [r.shape for r in found] == [(2, 3), (2, 4)]
