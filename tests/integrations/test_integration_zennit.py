"""Zennit's interfaces on relprop's engine: hooks, converted composites, attributors."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

pytest.importorskip("zennit", reason="Zennit is not installed: pip install 'relprop[zennit]'")
import zennit.attribution
import zennit.composites as zc
import zennit.rules as zr
from zennit.canonizers import AttributeCanonizer, SequentialMergeBatchNorm
from zennit.core import BasicHook, Composite, Hook, Stabilizer
from zennit.layer import Sum
from zennit.torchvision import ResNetCanonizer
from zennit.types import Activation, AvgPool
from zennit.types import Linear as AnyLinear

import relprop
from relprop import rules
from relprop.errors import InputError, PlanningError
from relprop.integrations import zennit as ours

ROOT = Path(__file__).resolve().parents[2]

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, 5), (3, 7)),
    "linear, one sample": (lambda: nn.Linear(7, 5), (7,)),
    "linear, time": (lambda: nn.Linear(4, 3, bias=False), (2, 5, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv1d, same": (lambda: nn.Conv1d(4, 2, 4, padding="same"), (1, 4, 7)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2), dilation=(1, 2)), (2, 3, 5, 6)),
    "conv2d, one sample": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 5, 4)),
    "conv2d, groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1, bias=False), (1, 4, 4, 5)),
    "conv2d, reflected": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
                          (2, 2, 4, 5)),
    "conv2d, circular, one sample": (
        lambda: nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular"), (2, 5, 4)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, padding=1), (1, 2, 3, 2, 3)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 3, 3, 2, 1, output_padding=1), (2, 4, 5)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 2, (3, 2), (2, 1), groups=2), (2, 4, 3, 4)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 2, (2, 1, 2)), (1, 2, 2, 3, 2)),
}  # fmt: skip

RULES: dict[str, Callable[[Any], Hook]] = {
    "epsilon": lambda r: r.Epsilon(),
    "epsilon, no bias": lambda r: r.Epsilon(0.25, zero_params="bias"),
    "epsilon, clipped": lambda r: r.Epsilon(Stabilizer(1e-2, clip=True)),
    "epsilon, scaled": lambda r: r.Epsilon(Stabilizer(1e-2, norm_scale=True)),
    "epsilon, function": lambda r: r.Epsilon(lambda z: z + torch.where(z < 0, -0.1, 0.1)),
    "norm": lambda r: r.Norm(1e-3),
    "z+": lambda r: r.ZPlus(),
    "z+, no bias": lambda r: r.ZPlus(1e-3, zero_params=["bias"]),
    "alpha beta": lambda r: r.AlphaBeta(),
    "alpha 1": lambda r: r.AlphaBeta(1.0, 0.0, 1e-4),
    "alpha 3": lambda r: r.AlphaBeta(3.0, 2.0, zero_params="bias"),
    "gamma": lambda r: r.Gamma(),
    "gamma 2": lambda r: r.Gamma(2.0, Stabilizer(1e-3), "bias"),
    "gamma, function": lambda r: r.Gamma(0.5, lambda z: z + 0.01 * (z + 1e-9).sign()),
    "box": lambda r: r.ZBox(-3.25, 2.75),
    "box of tensors": lambda r: r.ZBox(torch.full((1,), -3.25), torch.full((1,), 2.75), 1e-4),
    "w^2": lambda r: r.WSquare(),
    "w^2, no bias": lambda r: r.WSquare(1e-3, ["bias"]),
    "flat": lambda r: r.Flat(),
    "flat, function": lambda r: r.Flat(lambda z: z + 0.5),
    "no weight": lambda r: r.ZPlus(zero_params=["weight", "bias"]),
}


def relevance_of(
    layer: nn.Module, rule: Hook, x: Tensor, r: Tensor | None = None, graph: bool = False
) -> Tensor:
    """Relevance of a hooked module's input; of its own output if none is given."""
    handle = rule.copy().register(layer)
    try:
        x = x if x.requires_grad else x.clone().requires_grad_()
        output = layer(x)
        (found,) = torch.autograd.grad(
            output, x, output.detach() if r is None else r, create_graph=graph
        )
    finally:
        handle.remove()
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_rules_have_zennits_numbers(name: str) -> None:
    make, shape = LAYERS[name]
    layer = make().double()
    for x in (torch.randn(shape).double(), torch.randn(shape).double().relu()):
        for label, rule in RULES.items():
            if label == "epsilon, scaled" and name.startswith("conv") and "one sample" in name:
                continue  # without a batch axis Zennit's Stabilizer takes channels for samples
            expected = relevance_of(layer, rule(zr), x)
            found = relevance_of(layer, rule(ours.rules), x)
            assert_close(found, expected, rtol=1e-9, atol=1e-10, msg=lambda m, n=label: f"{n}: {m}")


def test_output_size_of_a_transposed_convolution() -> None:
    """A call may choose the size of its output; Zennit's hooks take tensors alone."""
    layer = nn.ConvTranspose2d(2, 3, 3, stride=2).double()
    x = torch.randn(1, 2, 3, 4).double().requires_grad_()
    found = {}
    for name, module in (("ours", ours.rules), ("zennit", zr)):
        handle = module.Epsilon(0.5).register(layer)
        try:
            output = layer(x, [8, 9])
            found[name] = torch.autograd.grad(output, x, output)[0]
        except AttributeError:
            assert name == "zennit"
        finally:
            handle.remove()
    z = layer(x, [8, 9])
    assert z.shape[2:] == (8, 9) and list(found) == ["ours"]
    (share,) = torch.autograd.grad(z, x, z / (z + 0.5 * z.sign()))
    assert_close(found["ours"], x.detach() * share, rtol=1e-12, atol=1e-12)


MODULES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "average": (nn.AvgPool2d((2, 3), stride=1, padding=1), (2, 2, 5, 6)),
    "adaptive": (nn.AdaptiveAvgPool1d(3), (2, 3, 7)),
    "sum": (Sum(1), (2, 3, 4)),
    "upsample": (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 2, 3, 4)),
    "softmax": (nn.Softmax(1), (2, 5)),
    "norm": (nn.BatchNorm1d(4).eval(), (3, 4)),
}


@pytest.mark.parametrize("name", MODULES)
def test_norm_of_any_module(name: str) -> None:
    layer, shape = MODULES[name]
    layer, x = layer.double(), torch.randn(shape).double()
    for make in (lambda r: r.Norm(1e-3), lambda r: r.Epsilon(Stabilizer(0.1, clip=True))):
        expected = relevance_of(layer, make(zr), x)
        assert_close(relevance_of(layer, make(ours.rules), x), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("rule", ["ReLUDeconvNet", "ReLUGuidedBackprop", "ReLUBetaSmooth", "Pass"])
@pytest.mark.parametrize("layer", [nn.ReLU(), nn.ReLU(inplace=True), nn.Softmax(1), nn.Tanh()])
def test_rules_of_activations(rule: str, layer: nn.Module) -> None:
    x, r = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4).double()

    def through(hook: Hook) -> Tensor:
        model = nn.Sequential(nn.Linear(4, 4).double(), layer)
        nn.init.eye_(model[0].weight)
        nn.init.zeros_(model[0].bias)
        handle = hook.register(layer)
        a = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(model(a), a, r)
        handle.remove()
        return found

    expected = through(getattr(zr, rule)())
    if rule == "ReLUBetaSmooth" and getattr(layer, "inplace", False):
        # Zennit keeps the input after the layer has overwritten it
        assert not torch.allclose(expected, torch.sigmoid(10 * x) * r)
        expected = torch.sigmoid(10 * x) * r
    assert_close(through(getattr(ours.rules, rule)()), expected)


@pytest.mark.parametrize("rule", ["epsilon, no bias", "z+", "alpha 3", "gamma", "w^2", "norm"])
def test_relevance_with_a_graph(rule: str) -> None:
    """`create_graph=True`: second derivatives by the input are Zennit's."""
    for make, shape in ((LAYERS["linear"]), LAYERS["conv2d"], LAYERS["transposed2d"]):
        layer, x = make().double(), torch.randn(shape).double()
        found = []
        for module in (zr, ours.rules):
            a = x.clone().requires_grad_()
            r = torch.ones_like(layer(x)).requires_grad_()
            relevance = relevance_of(layer, RULES[rule](module), a, r, graph=True)
            found.append(torch.autograd.grad(relevance.square().sum(), (a, r), allow_unused=True))
        for own, expected in zip(found[1], found[0]):
            if expected is not None:
                assert own is not None
                assert_close(own, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("rule", ["epsilon", "z+", "alpha beta", "gamma", "w^2"])
def test_relevance_with_a_graph_to_the_parameters(rule: str) -> None:
    """Derivatives by the parameters, against differences; Zennit has no such graph."""
    layer, x = nn.Conv1d(2, 2, 2).double(), torch.rand(1, 2, 4).double()
    r = torch.rand(1, 2, 3).double()
    weights = torch.rand(1, 2, 4).double()

    def total(graph: bool) -> Tensor:
        found = relevance_of(layer, RULES[rule](ours.rules), x, r, graph)
        return (found * weights).sum()

    slopes = torch.autograd.grad(total(True), tuple(layer.parameters()))
    for parameter, slope in zip(layer.parameters(), slopes):
        step = torch.zeros_like(parameter)
        step.view(-1)[1] = 1e-6
        parameter.data.add_(step)
        above = total(False)
        parameter.data.sub_(2 * step)
        difference = (above - total(False)) / 2e-6
        parameter.data.add_(step)
        assert_close(slope.flatten()[1], difference, rtol=1e-6, atol=1e-9)


def test_copies_and_removal() -> None:
    rule = ours.rules.AlphaBeta(3.0, 2.0, 0.125, "bias")
    copied = rule.copy()
    assert isinstance(rule, Hook) and type(copied) is type(rule) and copied is not rule
    assert copied.parameters == rule.parameters and copied.stored_tensors == {}
    layer, x = nn.Linear(3, 2).double(), torch.randn(2, 3).double().requires_grad_()
    handle = copied.register(layer)
    assert layer._forward_hooks and layer._forward_pre_hooks
    output = layer(x)
    relevance = torch.autograd.grad(output, x, output, retain_graph=True)[0]
    copied.active = False
    gradient = torch.autograd.grad(output, x, output, retain_graph=True)[0]
    assert_close(gradient, output @ layer.weight)
    copied.active = True
    assert_close(torch.autograd.grad(output, x, output, retain_graph=True)[0], relevance)
    handle.remove()
    assert not layer._forward_hooks and not layer._forward_pre_hooks
    assert_close(torch.autograd.grad(output, x, output)[0], gradient)


def test_gradients_of_a_hooked_modules_output() -> None:
    """What else holds the output sees the relevance that reaches it."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    kept: dict[str, Tensor] = {}
    model[0].register_forward_hook(lambda m, i, o: (o.retain_grad(), kept.update(h=o))[1])
    with ours.hooked(zc.EpsilonPlus()).context(model):
        x = torch.randn(2, 3).double().requires_grad_()
        output = model(x)
        output.backward(output.detach())
        hidden = kept["h"].relu()
        expected = hidden * ((output / (output + 1e-6 * output.sign())) @ model[2].weight)
    assert kept["h"].grad is not None
    assert_close(kept["h"].grad, expected.detach(), rtol=1e-9, atol=1e-12)


def test_hooks_say_what_they_cannot_do() -> None:
    x = torch.randn(2, 4, requires_grad=True)
    with pytest.raises(InputError, match=r"ZPlus on Tanh\(\): no linear layer"):
        relevance_of(nn.Tanh(), ours.rules.ZPlus(), x)
    with pytest.raises(InputError, match=r"Pass on Linear.*got \[2, 4\] and \[2, 3\]"):
        relevance_of(nn.Linear(4, 3), ours.rules.Pass(), x)
    bilinear = nn.Bilinear(4, 4, 2)
    handle = ours.rules.Epsilon().register(bilinear)
    with pytest.raises(InputError, match="called with 2 tensors; a hook gives relevance to one"):
        bilinear(x, x)
    handle.remove()
    cell = nn.LSTM(4, 3)
    handle = ours.rules.Pass().register(cell)
    with pytest.raises(InputError, match=r"Pass on LSTM.*returns a tuple"):
        cell(x)
    handle.remove()
    handle = ours.rules.Epsilon().register(linear := nn.Linear(4, 1))
    with pytest.raises(InputError, match="without a positional tensor"):
        linear(input=x)
    handle.remove()
    with pytest.raises(ValueError, match=r"low exceeds high"):
        ours.rules.ZBox(2.0, 1.0)
    with pytest.raises(InputError, match=r"low is \[5\], the input \[2, 4\]"):
        relevance_of(nn.Linear(4, 1), ours.rules.ZBox(torch.zeros(5), 9.0), x)
    with pytest.raises(TypeError, match="Epsilon: the stabilizer is 'x'"):
        ours.rules.Epsilon("x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"abstract class Mine .*rule_for"):
        type("Mine", (ours.rules.LinearHook,), {})(1e-6, None)
    with pytest.raises(TypeError, match="unexpected keyword argument 'zero_parameters'"):
        ours.rules.Flat(zero_parameters="bias")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="have no `backward` to override"):
        type("Mine", (ours.rules.Epsilon,), {"backward": lambda *a: None})

    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    with pytest.raises(InputError, match="with the forward pass of its class"):
        relevance_of(Doubled(4, 2), ours.rules.ZPlus(), x)
    layer = Doubled(4, 2).double()
    x = x.detach().double()
    assert_close(relevance_of(layer, ours.rules.Epsilon(), x), relevance_of(layer, zr.Epsilon(), x))


@pytest.mark.parametrize("label", RULES)
def test_parameters_are_read_from_zennits_instances(label: str) -> None:
    read = ours.own_rule(RULES[label](zr))
    made = RULES[label](ours.rules)
    assert type(read) is type(made)
    layer, x = nn.Linear(5, 3).double(), torch.randn(4, 5).double()
    assert torch.equal(relevance_of(layer, read, x), relevance_of(layer, made, x))
    assert ours.own_rule(read) is read


def test_rules_of_ones_own_are_refused_by_name() -> None:
    class Mine(Hook):
        pass

    class Changed(zr.Epsilon):
        def backward(self, module: Any, grad_input: Any, grad_output: Any) -> Any:
            return grad_output

    class Renamed(zr.Epsilon):
        def __init__(self) -> None:
            super().__init__(0.5)

    with pytest.raises(InputError, match="layer 3: Mine is a hook of one's own"):
        ours.own_rule(Mine(), "layer 3")
    with pytest.raises(InputError, match="Changed is Epsilon with its own backward"):
        ours.own_rule(Changed())
    with pytest.raises(InputError, match="BasicHook is put together from modifiers"):
        ours.own_rule(BasicHook())
    emptied = zr.Gamma()
    emptied.gradient_mapper = lambda r, z: r
    with pytest.raises(InputError, match="the parameters of this Gamma cannot be read"):
        ours.own_rule(emptied)
    assert ours.own_rule(Renamed()).parameters["stabilizer"].epsilon == 0.5


def network() -> nn.Module:
    return nn.Sequential(OrderedDict(
        stem=nn.Conv2d(3, 6, 3, padding=1), act=nn.ReLU(), pool=nn.AvgPool2d(2),
        body=nn.Conv2d(6, 6, 2), last=nn.ReLU(), flat=nn.Flatten(), head=nn.Linear(54, 4),
    )).double().eval()  # fmt: skip


BOUNDS = {"low": -3.0, "high": 2.5}


@pytest.mark.parametrize(
    "name", ["epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1",
             "epsilon_alpha2_beta1_flat", "epsilon_gamma_box", "excitation_backprop"],
)  # fmt: skip
def test_presets_convert_to_the_presets_of_the_same_name(name: str) -> None:
    options: dict[str, Any] = {"stabilizer": 1e-4, "zero_params": ["bias"]}
    options |= BOUNDS if "box" in name else {}
    preset = relprop.composites.from_name(name, **options)
    found = ours.to_composite(zc.COMPOSITES[name](**options), network())
    norms = () if name == "excitation_backprop" else (("batch_norm", rules.Pass()),)
    flat = rules.Flat(1e-4)  # a bias never counts, whatever zero_params says
    assert found.first == (flat if name.endswith("flat") else preset.first)
    assert found.defaults == (*preset.defaults, *norms)
    assert (found.stabilizer, found.rules, found.overrides) == (1e-4, (), ())


def test_names_outrank_classes_and_the_first_layer() -> None:
    named = zc.NameMapComposite([(("stem", "head"), zr.Epsilon(0.5)), (("body",), zr.ZPlus())])
    first = zc.EpsilonPlusFlat()
    found = ours.to_composite(zc.MixedComposite([named, first]), network())
    outranking = (("path:stem", rules.Epsilon(0.5)), ("path:head", rules.Epsilon(0.5)))
    assert set(outranking) <= set(found.overrides) and found.first == rules.Flat()
    assert ("conv", rules.ZPlus()) in found.defaults
    later = ours.to_composite(zc.MixedComposite([first, named]), network())
    assert not later.rules  # every layer has a rule by its class before it has one by name


def test_classes_that_not_all_layers_of_a_kind_have() -> None:
    class Special(nn.Conv2d):
        pass

    model = nn.Sequential(nn.Conv2d(1, 2, 1), Special(2, 2, 1), nn.Conv2d(2, 1, 1))
    composite = zc.LayerMapComposite([(Special, zr.Gamma(1.0)), (nn.Conv2d, zr.Flat())])
    found = ours.to_composite(composite, model)
    assert found.rules == () and found.overrides == (("path:1", rules.Gamma(1.0)),)
    assert found.defaults == (("conv", rules.Flat()),)


def of_ones_own(context: dict[str, str], name: str, module: nn.Module) -> Hook | None:
    """A mapping that is no class of Zennit's: w^2 in the first convolution."""
    if isinstance(module, nn.Conv2d) and context.setdefault("first", name) == name:
        return zr.WSquare()
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        return zr.Epsilon(0.1)
    return zr.Norm() if name == "pool" else None


COMPOSITES: dict[str, Callable[[], Composite]] = {
    **{
        name: (lambda kind=kind, name=name: kind(**(BOUNDS if "box" in name else {})))
        for name, kind in zc.COMPOSITES.items()
    },
    "names": lambda: zc.NameLayerMapComposite(
        name_map=[(("body",), zr.Gamma(0.5)), (("stem",), zr.ZBox(-3.0, 3.0))],
        layer_map=[(Activation, zr.Pass()), (AvgPool, zr.Norm(0.1)), (AnyLinear, zr.Epsilon(0.1))],
    ),
    "box of a tensor": lambda: zc.EpsilonGammaBox(
        low=torch.tensor([-3.0, -4.0, -5.0]).double().reshape(1, 3),
        high=torch.full((7, 3, 8, 8), 4.0).double(),
    ),
    "function": lambda: Composite(of_ones_own),
    "empty": Composite,
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSITES)
def test_attributors_have_zennits_numbers(name: str) -> None:
    model, x = network(), torch.randn(2, 3, 8, 8).double()
    composite = COMPOSITES[name]()
    for attr_output in (None, torch.ones_like, torch.randn(2, 4).double()):
        with zennit.attribution.Gradient(model, composite, attr_output) as theirs:
            output, expected = theirs(x.clone())
        with ours.Gradient(model, composite, attr_output) as attributor:
            assert not any(m._forward_hooks for m in model.modules()) and not composite.handles
            own_output, found = attributor(x)
        assert found.dtype is torch.float64 and not x.requires_grad
        assert_close(own_output, output, rtol=1e-12, atol=1e-12)
        assert_close(found, expected, rtol=1e-9, atol=1e-10)
        called = ours.Gradient(model, composite)(x, attr_output)[1]
        assert torch.equal(called, found)
        with zennit.attribution.Gradient(model, ours.hooked(composite), attr_output) as theirs:
            assert_close(theirs(x.clone())[1], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["SmoothGrad", "IntegratedGradients"])
@pytest.mark.parametrize("size", [None, 1, 3])
def test_iterations_in_one_batch(kind: str, size: int | None) -> None:
    model, x = network(), torch.randn(2, 3, 8, 8).double()
    calls: list[int] = []
    model.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    options: dict[str, Any] = {"n_iter": 7}
    for composite in (None, zc.EpsilonPlus()):
        torch.manual_seed(5)
        with getattr(zennit.attribution, kind)(model, composite, **options) as theirs:
            output, expected = theirs(x.clone(), torch.ones_like)
        calls.clear()
        torch.manual_seed(5)
        with getattr(ours, kind)(model, composite, iterations_per_call=size, **options) as own:
            found = own(x, torch.ones_like)
        assert_close(found[0].detach(), output.detach(), rtol=1e-12, atol=1e-12)
        # Zennit's steps of integrated gradients are float32
        assert_close(found[1], expected, rtol=1e-5, atol=1e-8)
        if composite is None:
            assert calls == {None: [14], 1: [2] * 7, 3: [6, 6, 2]}[size]


def test_iterations_refuse_what_mixes_samples() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    with pytest.raises(PlanningError, match="training mode"):
        ours.SmoothGrad(model)(torch.randn(2, 3))
    with pytest.raises(InputError, match="iterations_per_call: 0"):
        ours.SmoothGrad(model, iterations_per_call=0)

    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    with pytest.raises(InputError, match="Make the attributor with iterations_per_call=1"):
        ours.IntegratedGradients(Whole(), n_iter=3)(torch.randn(2, 3))


def test_relu_as_a_function_counts() -> None:
    class Functional(nn.Module):
        def __init__(self, module: bool) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
            self.relu = nn.ReLU() if module else None

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            if self.relu is not None:
                return self.last(self.relu(h))
            return self.last(F.relu_(h) if x.shape[0] == 2 else torch.relu(h))

    spelt, plain = Functional(True).double(), Functional(False).double()
    plain.load_state_dict(spelt.state_dict())
    for samples in (2, 3):
        x = torch.randn(samples, 3).double()
        for name in ("guided_backprop", "deconvnet", "beta_smooth"):
            composite = zc.COMPOSITES[name]()
            expected = zennit.attribution.Gradient(spelt, composite)(x.clone())[1]
            assert_close(ours.Gradient(plain, composite)(x)[1], expected)
    a = x.clone().requires_grad_()
    slopes = []
    for kind, model in ((zennit.attribution, spelt), (ours, plain)):
        attributor = kind.Gradient(model, zc.BetaSmooth(2.0), create_graph=True)
        slopes.append(torch.autograd.grad(attributor(a)[1].square().sum(), a)[0])
    assert_close(slopes[1], slopes[0])


def test_inactive_is_the_plain_gradient() -> None:
    model, x = network(), torch.randn(1, 3, 8, 8).double()
    with ours.Gradient(model, zc.EpsilonPlus()) as attributor:
        relevance = attributor(x, torch.ones_like)[1]
        with attributor.inactive():
            gradient = attributor(x, torch.ones_like)[1]
        assert torch.equal(attributor(x, torch.ones_like)[1], relevance)
    assert torch.equal(gradient, ours.Gradient(model)(x, torch.ones_like)[1])
    assert not torch.allclose(gradient, relevance)


def test_composites_that_are_registered_already_are_left_to_their_hooks() -> None:
    model, x, composite = network(), torch.randn(1, 3, 8, 8).double(), zc.EpsilonPlus()
    expected = ours.Gradient(model, composite)(x)[1]
    composite.register(model)
    found = ours.Gradient(model, composite)(x)[1]
    composite.remove()
    assert_close(found, expected, rtol=1e-9, atol=1e-12)


class Block(nn.Module):
    """A residual block that spells its sum as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3, eps=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x))


def summed(self: Any, x: Tensor) -> Tensor:
    found: Tensor = self.sum(torch.stack([x, self.norm(self.conv(x))], -1))
    return found


def spelling(name: str, module: nn.Module) -> dict[str, Any] | None:
    """A canonizer's map: the sum as a module."""
    if isinstance(module, Block):
        return {"sum": Sum(), "forward": summed.__get__(module)}
    return None


def test_canonizers() -> None:
    """Merging and sums are done by themselves; what a canonizer of one's own changes counts."""
    block = Block()
    nn.init.uniform_(block.norm.weight, 0.5, 2.0)
    nn.init.uniform_(block.norm.running_var, 0.5, 2.0)
    model = nn.Sequential(block, nn.Flatten(), nn.Linear(48, 2)).double().eval()
    x = torch.randn(2, 3, 4, 4).double()
    own = [SequentialMergeBatchNorm(), AttributeCanonizer(spelling)]
    with zennit.attribution.Gradient(model, zc.EpsilonPlus(canonizers=own)) as theirs:
        expected = theirs(x.clone())[1]
    for canonizers in ([], own, [SequentialMergeBatchNorm()], [ResNetCanonizer()]):
        composite = zc.EpsilonPlus(canonizers=canonizers)
        with ours.Gradient(model, composite) as attributor:
            assert_close(attributor(x)[1], expected, rtol=1e-9, atol=1e-10)
            assert "sum" not in dict(model.named_modules()) and "forward" not in vars(block)
        assert (ours.canonised(model, composite) is model) == (canonizers is not own)

    def halved(name: str, module: nn.Module) -> dict[str, Any] | None:
        if isinstance(module, Block):
            return {"forward": lambda x: module.conv(x) / 2}
        return None

    composite = zc.EpsilonPlus(canonizers=[AttributeCanonizer(halved)])
    with torch.no_grad():
        halves = model[2](block.conv(x).flatten(1) / 2)
    assert_close(ours.Gradient(model, composite)(x)[0], halves)


UNCONVERTIBLE: dict[str, tuple[Callable[[], Composite], str]] = {
    "no rule for a layer": (
        lambda: zc.LayerMapComposite([(nn.Conv2d, zr.ZPlus()), (AvgPool, zr.Norm())]),
        r"'head' \(Linear\): the composite has no rule for it",
    ),
    "no rule for a pooling": (
        lambda: zc.LayerMapComposite([(AnyLinear, zr.ZPlus())]),
        r"'pool' \(AvgPool2d\): the composite has no rule for it",
    ),
    "a container": (
        lambda: zc.MixedComposite([zc.NameMapComposite([(("",), zr.Epsilon())]), zc.EpsilonPlus()]),
        r"'' \(Sequential\): a rule around this module has no counterpart",
    ),
    "a rule that does not fit": (
        lambda: zc.EpsilonPlus(layer_map=[(nn.ReLU, zr.Norm())]),
        "Norm is no rule for it in relprop",
    ),
    "a stabilizer": (
        lambda: zc.EpsilonPlus(stabilizer=Stabilizer(1e-3, clip=True)),
        "the stabilizer of .* expected a number",
    ),
    "a weight": (lambda: zc.EpsilonPlus(zero_params="weight"), "'weight' in zero_params"),
    "gradients among relevance": (
        lambda: zc.EpsilonPlus(layer_map=[(nn.ReLU, zr.ReLUGuidedBackprop())]),
        "ReLUGuidedBackprop changes gradients",
    ),
    "some ReLU": (
        lambda: zc.NameMapComposite([(("act",), zr.ReLUGuidedBackprop())]),
        r"'last' \(ReLU\): a rule that changes the gradient",
    ),
    "several rules for ReLU": (
        lambda: zc.NameMapComposite([(("act",), zr.ReLUDeconvNet()),
                                     (("last",), zr.ReLUGuidedBackprop())]),
        "the rules of the model's nn.ReLU differ",
    ),
    "bounds of samples": (
        lambda: zc.EpsilonGammaBox(torch.arange(-2.0, 0).reshape(2, 1, 1, 1), 3.0),
        r"low is \[2, 1, 1, 1\] with bounds that differ",
    ),
    "a rule of one's own": (
        lambda: zc.LayerMapComposite([(nn.Linear, Hook())]),
        r"'head' \(Linear\): Hook is a hook of one's own",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNCONVERTIBLE)
def test_what_cannot_be_converted_is_named(name: str) -> None:
    make, message = UNCONVERTIBLE[name]
    with pytest.raises(InputError, match=message):
        ours.Gradient(network(), make()).__enter__()


def test_more_errors() -> None:
    model, x = network(), torch.randn(1, 3, 8, 8).double()
    with pytest.raises(InputError, match=r"create_graph.*relprop\.integrations\.zennit\.hooked"):
        ours.Gradient(model, zc.EpsilonPlus(), create_graph=True)(x)
    with pytest.raises(
        InputError, match=r"attr_output: \[3\]; expected a tensor of the shape of the output"
    ):
        ours.Gradient(model, zc.EpsilonPlus())(x, torch.ones(3))
    with pytest.raises(InputError, match=r"GuidedBackprop.*ReLUGuidedBackprop changes gradients"):
        ours.to_composite(zc.GuidedBackprop(), model)
    with pytest.raises(InputError, match=r"composite: <class .*; expected an instance"):
        ours.Gradient(model, zc.EpsilonPlus)(x)
    with pytest.raises(InputError, match=r"model: function; with a composite"):
        ours.Gradient(lambda x: x, zc.EpsilonPlus())(x)
    with pytest.raises(InputError, match=r"input: tuple; expected one torch\.Tensor"):
        ours.Gradient(model, zc.EpsilonPlus())((x,))
    for attr_output, came in ((3, "int"), (lambda output: None, "NoneType")):
        with pytest.raises(InputError, match=f"attr_output: {came}; expected a tensor"):
            ours.Gradient(model, zc.EpsilonPlus(), attr_output=attr_output)(x)
    for attributor in (ours.SmoothGrad, ours.IntegratedGradients):
        for count in (0, -1, 2.5, True):
            with pytest.raises(InputError, match=f"n_iter: {count}; expected a whole number >= 1"):
                attributor(model, zc.EpsilonPlus(), n_iter=count)(x)
            with pytest.raises(InputError, match=f"iterations_per_call: {count}; .* or None"):
                attributor(model, zc.EpsilonPlus(), iterations_per_call=count)
        with pytest.raises(TypeError, match="unexpected keyword argument 'iterations'"):
            attributor(model, zc.EpsilonPlus(), iterations=3)


@pytest.mark.parametrize("name", ["SmoothGrad", "IntegratedGradients"])
@pytest.mark.parametrize("composite", [None, zc.EpsilonPlus()])
def test_one_sample_without_a_batch(name: str, composite: Composite | None) -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double(), torch.rand(3)
    found = []
    for library in (zennit.attribution, ours):
        torch.manual_seed(5)
        attributor = getattr(library, name)(model, composite, n_iter=4)
        found.append(attributor(x.double(), torch.ones_like)[1])
    assert_close(found[1], found[0], rtol=1e-7, atol=1e-8)


def test_without_zennit() -> None:
    """relprop does not import it, and the integration says what to install."""
    code = (
        "import sys; sys.modules['zennit'] = None; import relprop, relprop.integrations\n"
        "try: relprop.integrations.zennit\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "pip install 'relprop[zennit]'" in done.stdout, done.stderr


def _peers() -> Any:
    spec = importlib.util.spec_from_file_location("peers", ROOT / ".ci" / "peers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["peers"] = module
    spec.loader.exec_module(module)
    return module


def test_peers_that_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """77 is a source package that no index gives, and nothing else; each case says what it is."""
    peers = _peers()
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no index can be reached\n")
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    monkeypatch.setattr(peers.subprocess, "run", lambda *args, **options: failed)
    monkeypatch.setattr(sys, "argv", ["peers.py"])
    assert peers.main() == 77
    assert capsys.readouterr().out == (
        "SKIPPED: none of Zennit's own tests ran: zennit-0.5.1.tar.gz could not be fetched from "
        "the package index: ERROR: no index can be reached\n"
    )
    (tmp_path / "other.tar.gz").write_bytes(b"something else")
    monkeypatch.setattr(sys, "argv", ["peers.py", "--source", str(tmp_path / "other.tar.gz")])
    assert peers.main() == 1
    assert "is not the published one" in capsys.readouterr().out
    monkeypatch.setattr(peers.importlib.metadata, "version", lambda package: "0.4.0")
    assert peers.main() == 1
    assert "for Zennit 0.5.1; 0.4.0 is installed" in capsys.readouterr().out


def test_peers_count_what_nothing_explains(capsys: pytest.CaptureFixture[str]) -> None:
    peers = _peers()
    suites = peers.SUITES
    outcomes = {suite.name: peers.Outcome(passed=["a::test_a[1]"]) for suite in suites}
    assert peers.tell(suites, outcomes)
    known = "test_attribution.py::test_smooth_grad_distribution[0.1]"
    said = "E   AssertionError: SmoothGrad iterations did not match n_iter!"
    outcomes["attribution"].failed[known] = said
    assert peers.tell(suites, outcomes)
    assert "test_smooth_grad_distribution, 1 cases: counts the calls" in capsys.readouterr().out
    outcomes["attribution"].failed[known] = "E   ZeroDivisionError"
    assert not peers.tell(suites, outcomes)
    assert "NOT EXPLAINED: test_attribution.py::test_smooth_grad" in capsys.readouterr().out
    outcomes["attribution"].failed[known] = said
    outcomes["attribution, one by one"].failed[known] = said
    assert not peers.tell(suites, outcomes)
    outcomes["attribution, one by one"].failed.clear()
    outcomes["rules"].failed["test_rules.py::test_linear_rule[x]"] = "wrong"
    assert not peers.tell(suites, outcomes)


def test_peers_want_all_the_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run in which nothing is collected, and a case that is skipped, are no success."""
    peers = _peers()
    monkeypatch.setattr(peers, "run", lambda suite, tests, selection, outcome: None)
    outcomes = peers.check(peers.SUITES, tmp_path, 500, 1, 0)
    assert not peers.tell(peers.SUITES, outcomes)
    said = capsys.readouterr().out
    for count in (250, 50, 200):
        assert f"NOT EXPLAINED: 0 cases ran; expected {count}\n" in said
    suites = peers.SUITES
    outcomes = {suite.name: peers.Outcome(passed=["a::test_a[1]"]) for suite in suites}
    outcomes["rules"].skipped.append("test_rules.py::test_linear_rule[x]")
    assert not peers.tell(suites, outcomes)
