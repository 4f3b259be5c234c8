"""Where Zennit 0.5.1 is silently wrong: its answer, ours and the truth worked out by hand.

Ours is the one line changed: `relprop.integrations.zennit.Gradient` in place of Zennit's, with the
same composite; where hooks alone can be right, relprop's rules as hooks too.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

pytest.importorskip("zennit", reason="Zennit is not installed: pip install 'relprop[zennit]'")
import zennit.attribution
import zennit.rules
from zennit.canonizers import NamedMergeBatchNorm, SequentialMergeBatchNorm
from zennit.composites import (
    EpsilonPlus,
    EpsilonPlusFlat,
    GuidedBackprop,
    LayerMapComposite,
    NameMapComposite,
)
from zennit.core import BasicHook, Composite
from zennit.types import Activation

from relprop.errors import InputError, PlanningError
from relprop.integrations import zennit as ours

Attribution = tuple[Tensor, Tensor]


def linear(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None).double()
    layer.weight.data = torch.tensor(weight, dtype=torch.float64)
    if bias is not None:
        layer.bias.data = torch.tensor(bias, dtype=torch.float64)
    return layer


def vector(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def epsilon(value: float = 1e-9) -> LayerMapComposite:
    """Epsilon in every linear layer, activations passing."""
    return LayerMapComposite(
        [(Activation, zennit.rules.Pass()), (nn.Linear, zennit.rules.Epsilon(value))]
    )


def both(
    model: nn.Module,
    composite: Callable[[], Composite],
    x: Tensor,
    attr_output: Any = None,
) -> tuple[Attribution, Attribution]:
    """Zennit's output and relevance, and ours."""
    model = model.double().eval()
    with zennit.attribution.Gradient(model, composite()) as attributor:
        theirs = attributor(x.clone(), attr_output)
    with ours.Gradient(model, composite()) as attributor:
        own = attributor(x, attr_output)
    return theirs, own


def by_hooks(
    model: nn.Module, composite: Composite, x: Tensor, attr_output: Any = None
) -> Attribution:
    """Zennit's attributor on relprop's rules as hooks."""
    with zennit.attribution.Gradient(model.double().eval(), ours.hooked(composite)) as attributor:
        found: Attribution = attributor(x.clone(), attr_output)
    return found


class Calls(nn.Module):
    """A model from a function of its parts, in the order in which they are defined."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **self.parts)


def test_residual_sum() -> None:
    """y = x + 2x at x = 1: the sum splits 3 into 1 and 2.  Zennit gives 3 to both."""
    model = Calls(lambda x, f: x + f(x), f=linear([[2.0]]))
    (_, theirs), (_, own) = both(model, epsilon, vector(1.0))
    assert_close(theirs, vector(3.0 + 3.0), rtol=1e-6, atol=0)
    assert_close(own, vector(1.0 + 2.0), rtol=1e-6, atol=0)


def test_module_called_twice() -> None:
    """h = Wx = (4, 7), y = Wh: R_h = (8, 7), R_x = x * W^T (8/4, 7/7) = (5, 10).

    Zennit keeps the second call's input alone, and propagates (8, 7) from h to h.
    """
    model = Calls(lambda x, f: f(f(x)), f=linear([[2.0, 1.0], [1.0, 3.0]]))
    x, start = vector(1.0, 2.0), vector(15.0, 0.0)
    (_, theirs), (_, own) = both(model, epsilon, x, start)
    wrong = vector(4 * (2 * 8 / 15 + 7 / 25), 7 * (8 / 15 + 3 * 7 / 25))
    assert_close(theirs, wrong, rtol=1e-8, atol=0)
    assert_close(own, vector(5.0, 10.0), rtol=1e-8, atol=0)
    _, hooks = by_hooks(model, epsilon(), x, start)
    assert_close(hooks, vector(5.0, 10.0), rtol=1e-8, atol=0)


def test_functional_activation() -> None:
    """An activation passes relevance on: R_x = y.  As a function Zennit takes its gradient."""
    model = Calls(lambda x, f, g: g(torch.tanh(f(x))), f=linear([[1.0]]), g=linear([[2.0]]))
    (_, theirs), (_, own) = both(model, epsilon, vector(1.0))
    y, slope = 2 * math.tanh(1.0), 1 - math.tanh(1.0) ** 2
    assert_close(theirs, vector(y * slope), rtol=1e-8, atol=0)
    assert_close(own, vector(y), rtol=1e-8, atol=0)


def test_functional_relu_in_guided_backprop() -> None:
    """y = -relu(x): guided backprop stops the gradient -1.  As a function Zennit lets it pass."""
    model = Calls(lambda x, f: f(F.relu(x)), f=linear([[-1.0]]))
    (_, theirs), (_, own) = both(model, GuidedBackprop, vector(1.0), torch.ones_like)
    assert_close(theirs, vector(-1.0))
    assert_close(own, vector(0.0))


def test_lstm() -> None:
    """One step of one cell without biases: the signal x takes all, R_x = y.

    Zennit gives y times the gradient, with no word.
    """
    cell = nn.LSTM(1, 1, bias=False, batch_first=True).double()
    cell.weight_ih_l0.data = torch.tensor([[0.5], [0.25], [2.0], [1.0]]).double()
    model = Calls(lambda x, cell: cell(x)[0][:, -1], cell=cell)
    x = vector(1.0).unsqueeze(-1)
    (_, theirs), (_, own) = both(model, epsilon, x)

    def sigmoid(u: float) -> float:
        return 1 / (1 + math.exp(-u))

    i, g, o = sigmoid(0.5), math.tanh(2.0), sigmoid(1.0)
    c = i * g
    y = o * math.tanh(c)
    in_c = 0.5 * i * (1 - i) * g + i * 2.0 * (1 - g**2)
    slope = o * (1 - o) * math.tanh(c) + o * (1 - math.tanh(c) ** 2) * in_c
    assert_close(
        theirs.flatten(), torch.tensor([y * slope], dtype=torch.float64), rtol=1e-9, atol=0
    )
    assert_close(own.flatten(), torch.tensor([y], dtype=torch.float64), rtol=1e-5, atol=0)


def test_gate() -> None:
    """y = 2x sigmoid(3x): the signal takes all, R_x = y.  Zennit adds the gate's gradient."""
    model = Calls(lambda x, f, g: f(x) * torch.sigmoid(g(x)), f=linear([[2.0]]), g=linear([[3.0]]))
    (_, theirs), (_, own) = both(model, epsilon, vector(1.0))
    s = 1 / (1 + math.exp(-3.0))
    y = 2 * s
    assert_close(theirs, vector(y * s + y * 2 * s * (1 - s)), rtol=1e-8, atol=0)
    assert_close(own, vector(y), rtol=1e-8, atol=0)


def test_weight_norm() -> None:
    """z+ of w = (1, -1) at x = (2, 1): all to the first.

    Zennit modifies parameters, and a normalised weight is none: it propagates by the raw weight.
    """
    layer = linear([[1.0, -1.0]])
    layer = nn.utils.parametrizations.weight_norm(layer)
    model = nn.Sequential(layer)

    def composite() -> Composite:
        return LayerMapComposite([(nn.Linear, zennit.rules.ZPlus(1e-12))])

    (_, theirs), (_, own) = both(model, composite, vector(2.0, 1.0))
    assert_close(theirs, vector(2.0, -1.0), rtol=1e-9, atol=0)
    assert_close(own, vector(1.0, 0.0), rtol=1e-9, atol=1e-12)
    _, hooks = by_hooks(model, composite(), vector(2.0, 1.0))
    assert_close(hooks, vector(1.0, 0.0), rtol=1e-9, atol=1e-12)


def test_bounds_given_as_numbers() -> None:
    """x - low = (1e-8, 3e-8) shares 1 : 3.  Zennit rounds low = -0.1 to float32."""
    x = vector(-0.1 + 1e-8, -0.1 + 3e-8).reshape(1, 2, 1, 1)
    convolution = nn.Conv2d(2, 1, 1, bias=False).double()
    nn.init.ones_(convolution.weight)
    model = nn.Sequential(convolution)

    def composite() -> Composite:
        return LayerMapComposite([(nn.Conv2d, zennit.rules.ZBox(-0.1, 0.1, stabilizer=1e-18))])

    (_, theirs), (_, own) = both(model, composite, x, torch.ones_like)
    off = -0.1 - float(torch.tensor(-0.1))
    wrong = (1e-8 + off) / (4e-8 + 2 * off)
    assert abs(wrong - 0.25) > 0.01
    assert_close(theirs.flatten()[0].item(), wrong, rtol=1e-6, atol=0)
    truth = torch.tensor([0.25, 0.75]).double()
    assert_close(own.flatten(), truth, rtol=1e-6, atol=0)
    _, hooks = by_hooks(model, composite(), x, torch.ones_like)
    assert_close(hooks.flatten(), truth, rtol=1e-6, atol=0)


def test_bounds_of_channels_in_a_batch_as_large() -> None:
    """x - low = (1, 2, 3) in every sample.  Zennit takes [3, 1, 1] for bounds of three samples."""
    low = torch.tensor([0.0, -1.0, -2.0]).double().reshape(3, 1, 1)
    convolution = nn.Conv2d(3, 1, 1, bias=False).double()
    nn.init.ones_(convolution.weight)
    model = nn.Sequential(convolution)
    x = torch.ones(3, 3, 1, 1).double()

    def composite() -> Composite:
        box = zennit.rules.ZBox(low, torch.full((1,), 9.0).double(), stabilizer=1e-12)
        return LayerMapComposite([(nn.Conv2d, box)])

    (_, theirs), (_, own) = both(model, composite, x, torch.ones_like)
    assert_close(theirs.flatten(1), vector(1 / 3, 1 / 3, 1 / 3).expand(3, 3))
    truth = vector(1 / 6, 2 / 6, 3 / 6).expand(3, 3)
    assert_close(own.flatten(1), truth, rtol=1e-9, atol=0)
    with pytest.raises(InputError, match=r"low is \[3, 1, 1\].*may be the batch or the channels"):
        by_hooks(model, composite(), x, torch.ones_like)


def test_first_layer_is_the_first_defined() -> None:
    """y = 2h_1 + h_2 = 9 of h = (4, 1): R_h = (8, 1), and Flat at x: (4.5, 4.5).

    Zennit takes the layer that the class defines first: it has Flat at h.
    """
    head, stem = linear([[2.0, 1.0]]), linear([[1.0, 1.0], [0.0, 1.0]])
    model = Calls(lambda x, head, stem: head(torch.relu(stem(x))), head=head, stem=stem)
    (_, theirs), (_, own) = both(model, EpsilonPlusFlat, vector(3.0, 1.0))
    assert_close(theirs, vector(4.5 * 3 / 4, 4.5 / 4 + 4.5), rtol=1e-5, atol=0)
    assert_close(own, vector(4.5, 4.5), rtol=1e-5, atol=0)


def norm(scale: float, shift: float, mean: float, eps: float) -> nn.BatchNorm1d:
    layer = nn.BatchNorm1d(1, eps=eps).double()
    layer.weight.data.fill_(scale)
    layer.bias.data.fill_(shift)
    assert layer.running_mean is not None
    layer.running_mean.fill_(mean)
    return layer.eval()


def merging() -> Composite:
    return EpsilonPlus(canonizers=[SequentialMergeBatchNorm()])


def test_merged_norm_keeps_its_eps() -> None:
    """y = x / sqrt(1.001).  Zennit merges the norm and leaves one that divides once more."""
    model = nn.Sequential(linear([[1.0]], [0.0]), norm(1.0, 0.0, 0.0, 1e-3))
    (output, theirs), (own_output, own) = both(model, merging, vector(1.0))
    assert_close(output, vector(1 / 1.001), rtol=1e-12, atol=0)
    assert_close(theirs, vector(1 / 1.001), rtol=2e-6, atol=0)
    truth = 1 / math.sqrt(1.001)
    assert_close(model(vector(1.0)).detach(), vector(truth), rtol=1e-12, atol=0)
    assert_close(own_output, vector(truth), rtol=1e-12, atol=0)
    assert_close(own, vector(truth), rtol=2e-6, atol=0)


def test_norm_merged_across_an_activation() -> None:
    """2 (relu(-2) - 1) + 3 = 1.  Zennit merges what is defined side by side: relu(-3) = 0."""
    parts = {"f": linear([[1.0]], [0.0]), "norm": norm(2.0, 3.0, 1.0, 0.0)}
    model = Calls(lambda x, f, norm: norm(torch.relu(f(x))), **parts)
    (output, _), (own_output, _) = both(model, merging, vector(-2.0))
    assert_close(output, vector(0.0))
    assert_close(own_output, vector(1.0))
    assert_close(model(vector(-2.0)).detach(), vector(1.0))


def test_merged_weights_in_a_checkpoint() -> None:
    """A state_dict taken while an attributor is entered has the weight 1.  Zennit's has 2."""
    model = nn.Sequential(linear([[1.0]], [0.0]), norm(2.0, 0.0, 0.0, 0.0))
    with zennit.attribution.Gradient(model, merging()):
        assert model.state_dict()["0.weight"].item() == 2.0
    with ours.Gradient(model, merging()) as attributor:
        attributor(vector(1.0))
        assert model.state_dict()["0.weight"].item() == 1.0


def test_merged_weights_after_an_error() -> None:
    """A name that is wrong is an error; the weight that was merged before it stays so."""
    parts = OrderedDict(f=linear([[1.0]], [0.0]), norm=norm(2.0, 0.0, 0.0, 0.0))
    names = [(("f",), "norm"), (("missing",), "norm")]
    model = nn.Sequential(parts)
    with pytest.raises(KeyError):
        zennit.attribution.Gradient(
            model, EpsilonPlus(canonizers=[NamedMergeBatchNorm(names)])
        ).__enter__()
    assert parts["f"].weight.item() == 2.0  # of Zennit, for good

    parts["f"].weight.data.fill_(1.0)
    parts["norm"].weight.data.fill_(2.0)
    with ours.Gradient(model, EpsilonPlus(canonizers=[NamedMergeBatchNorm(names)])) as attributor:
        output, _ = attributor(vector(1.0))
    assert (parts["f"].weight.item(), output.item()) == (1.0, 2.0)


def test_training_mode() -> None:
    """An explanation must not change the model.  Zennit's moves the running mean to 0.1 * 3."""
    model = nn.Sequential(linear([[1.0]], [0.0]), norm(1.0, 0.0, 0.0, 1e-5))
    running, x = model[1].running_mean, torch.tensor([[2.0], [4.0]]).double()
    model.train()
    with zennit.attribution.Gradient(model, EpsilonPlus()) as attributor:
        attributor(x.clone())
    assert_close(running, vector(0.3)[0])
    running.zero_()
    with (
        ours.Gradient(model, EpsilonPlus()) as attributor,
        pytest.raises(PlanningError, match=r"training mode.*call model\.eval"),
    ):
        attributor(x)
    assert running.item() == 0.0


def test_zero_over_zero() -> None:
    """LRP-0 of y = x_1 + x_2 at (0, 1): (0, 1).  Zennit's 0/0 is NaN, everywhere."""
    model = nn.Sequential(linear([[1.0, 0.0], [0.0, 1.0]]), linear([[1.0, 1.0]]))
    (_, theirs), (_, own) = both(model, lambda: epsilon(0.0), vector(0.0, 1.0))
    assert theirs.isnan().all()
    assert_close(own, vector(0.0, 1.0))
    _, hooks = by_hooks(model, epsilon(0.0), vector(0.0, 1.0))
    assert_close(hooks, vector(0.0, 1.0))


def test_misspelt_parameter() -> None:
    """R = 2 of z = 1 + 1: without the bias all of it goes to x.  A slip of the pen: Zennit's 1."""
    model = nn.Sequential(linear([[1.0]], [1.0]))

    def composite(name: str) -> Composite:
        return LayerMapComposite([(nn.Linear, zennit.rules.Epsilon(1e-12, zero_params=[name]))])

    (_, theirs), (_, own) = both(model, lambda: composite("bias"), vector(1.0))
    assert_close(theirs, vector(2.0), rtol=1e-9, atol=0)
    assert_close(own, vector(2.0), rtol=1e-9, atol=0)
    with zennit.attribution.Gradient(model, composite("bais")) as attributor:
        assert_close(attributor(vector(1.0))[1], vector(1.0), rtol=1e-9, atol=0)
    with pytest.raises(InputError, match=r"Epsilon: zero_params has \['bais'\]; expected 'weight'"):
        ours.Gradient(model, composite("bais")).__enter__()


def hooks_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if module._forward_hooks]


def test_name_that_is_missing() -> None:
    """A rule for a name that no module has.  Zennit registers nothing: the plain gradient."""
    model = nn.Sequential(OrderedDict(head=linear([[2.0]])))
    composite = NameMapComposite([(("haed",), zennit.rules.Epsilon())])
    with zennit.attribution.Gradient(model, composite) as attributor:
        assert hooks_of(model) == []
        assert_close(attributor(vector(3.0), torch.ones_like)[1], vector(2.0))
    with pytest.raises(InputError, match="no module 'haed'; near it: head"):
        ours.Gradient(model, composite).__enter__()


def test_names_given_as_one_string() -> None:
    """A rule for the module "ab".  Zennit also gives it to "a", to "b" and to the whole model."""
    model = nn.Sequential(OrderedDict((n, linear([[2.0]])) for n in ("a", "b", "ab")))
    composite = NameMapComposite([("ab", zennit.rules.Epsilon())])
    with zennit.attribution.Gradient(model, composite):
        assert hooks_of(model) == ["", "a", "b", "ab"]
    with pytest.raises(InputError, match=r"its names are the string 'ab'.*expected a tuple"):
        ours.Gradient(model, composite).__enter__()


def test_steps_of_integrated_gradients() -> None:
    """x^2 over 10 steps: the sum of 2 (k/10) x^2 / 10 is 1.1 x^2.  Zennit's steps are float32."""
    model = Calls(lambda x: x * x)
    x = vector(1.0)
    _, theirs = zennit.attribution.IntegratedGradients(model, n_iter=10)(x, torch.ones_like)
    _, own = ours.IntegratedGradients(model, n_iter=10)(x, torch.ones_like)
    assert 1e-9 < abs(theirs.item() - 1.1) < 1e-6
    assert abs(own.item() - 1.1) < 1e-14


def test_stabilizer_of_a_basic_hook() -> None:
    """R = 1 over z + 1 = 2: a half.  Zennit's BasicHook takes a stabilizer and does not use it."""
    model = nn.Sequential(linear([[1.0]]))
    x = vector(1.0)
    with zennit.attribution.Gradient(
        model, LayerMapComposite([(nn.Linear, BasicHook(stabilizer=1.0))])
    ) as attributor:
        assert_close(attributor(x.clone())[1], vector(1 / (1 + 1e-6)), rtol=1e-12, atol=0)
    with ours.Gradient(model, epsilon(1.0)) as attributor:
        assert_close(attributor(x)[1], vector(0.5))
    with pytest.raises(InputError, match="BasicHook is put together from modifiers"):
        ours.Gradient(
            model, LayerMapComposite([(nn.Linear, BasicHook(stabilizer=1.0))])
        ).__enter__()


def test_gradient_of_relevance_with_respect_to_parameters() -> None:
    """R_x = x w y / (w x + b) with y = w x + b, so R_x = x w and its derivative by w is x = 1.

    In Zennit the rule's own weight is a constant: x w x / (w x + b) = 2/3.
    """
    layer = linear([[2.0]], [1.0])
    found = {}
    for name, rule in (("zennit", zennit.rules.Epsilon(0.0)), ("ours", ours.rules.Epsilon(0.0))):
        handle = rule.register(layer)
        x = vector(1.0).requires_grad_()
        output = layer(x)
        (relevance,) = torch.autograd.grad(output, x, output, create_graph=True)
        handle.remove()
        assert_close(relevance.detach(), vector(2.0))
        (slope,) = torch.autograd.grad(relevance.sum(), layer.weight)
        found[name] = slope.item()
    assert math.isclose(found["zennit"], 2 / 3, rel_tol=1e-12)
    assert math.isclose(found["ours"], 1.0, rel_tol=1e-12)
