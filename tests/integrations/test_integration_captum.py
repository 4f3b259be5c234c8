"""Captum's interface: signatures, rules, layers, targets, restrictions, and what we mend."""

from __future__ import annotations

import copy
import inspect
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.testing import assert_close

from relprop.engine.plan import Plan
from relprop.errors import InputError, PlanningError

peer: Any = pytest.importorskip("captum.attr", reason="Captum is not installed")

import captum.attr._utils.lrp_rules as peer_rules  # noqa: E402
from captum.attr._utils.custom_modules import Addition_Module  # noqa: E402

import relprop.integrations.captum as ours  # noqa: E402
from relprop.functional import linear_relevance  # noqa: E402
from relprop.integrations.terms import ScaledWeights  # noqa: E402

LRP_NAMES = ("LRP", "LayerLRP")
GRADIENT_NAMES = ("Saliency", "InputXGradient", "GuidedBackprop", "Deconvolution")

pytestmark = pytest.mark.filterwarnings("ignore")


def _detached(tree: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.detach(), tree)


def _identity_of(library: Any, model: nn.Module, x: Tensor, **options: Any) -> Any:
    return _detached(library.LRP(model, **options).attribute(x, 1))


def test_rules_by_hand() -> None:
    """W = [[1, -2]], b = 3, a = (2, -1), R = 7."""
    w, b = torch.tensor([[1.0, -2.0]]).double(), torch.tensor([3.0]).double()
    a, r = torch.tensor([[2.0, -1.0]]).double(), torch.tensor([[7.0]]).double()

    def relevance(rule: ScaledWeights) -> list[float]:
        both = [linear_relevance(a, w, b, r, rule, backend=name) for name in ("aten", "reference")]
        assert_close(both[0], both[1])
        return [float(value) for value in both[0][0]]

    # gamma 0.5: W' = (1.5, -2), z = 3 + 2 + 3 = 8
    assert relevance(ScaledWeights(0.5, 0.0)) == pytest.approx([3 * 7 / 8, 2 * 7 / 8])
    # its bias set to zero: z = 5
    assert relevance(ScaledWeights(0.5, 0.0, "bias")) == pytest.approx([3 * 7 / 5, 2 * 7 / 5])
    # alpha1 beta0: W' = (1, 0), z = 2 + 3 = 5; without the bias z = 2; epsilon 1 makes that 3
    assert relevance(ScaledWeights(None, 0.0)) == pytest.approx([2 * 7 / 5, 0.0])
    assert relevance(ScaledWeights(None, 0.0, "bias")) == pytest.approx([7.0, 0.0])
    assert relevance(ScaledWeights(None, 1.0, "bias")) == pytest.approx([2 * 7 / 3, 0.0])


def test_identity_rule() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    x = torch.randn(3, 4).double()

    def marked() -> nn.Module:
        net[0].rule = peer_rules.IdentityRule()  # type: ignore[assignment]
        return net

    expected = _identity_of(peer, marked(), x)
    assert_close(_identity_of(ours, marked(), x, strict=True), expected)
    assert_close(_identity_of(ours, marked(), x), expected)


class Halved(peer_rules.EpsilonRule):  # type: ignore[misc]
    """A rule of the user's own."""

    def _manipulate_weights(self, module: Any, inputs: Any, outputs: Any) -> None:
        module.weight.data = module.weight.data / 2


def test_a_rule_of_the_users_own() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    x = torch.randn(2, 4).double()
    marked = copy.deepcopy(net)
    marked[0].rule = Halved()
    expected = peer.LRP(marked).attribute(x, 1).detach()
    net[0].rule = Halved()  # type: ignore[assignment]
    assert_close(ours.LRP(net, strict=True).attribute(x, 1), expected)
    with pytest.raises(PlanningError, match="Halved is a rule of your own"):
        ours.LRP(net).attribute(x, 1)


def test_strict_refuses_what_captum_refuses() -> None:
    x = torch.randn(2, 3)
    unruled = nn.Sequential(nn.Linear(3, 3), nn.Sigmoid())
    for library, options in ((peer, {}), (ours, {"strict": True})):
        with pytest.raises(TypeError, match="has no rule defined"):
            library.LRP(unruled, **options).attribute(x, 0)
    layer = nn.Linear(3, 3)
    reused = nn.Sequential(layer, nn.ReLU(), layer)
    for library, options in ((peer, {}), (ours, {"strict": True})):
        with pytest.raises(RuntimeError, match="is being used more than once"):
            library.LRP(copy.deepcopy(reused), **options).attribute(x, 0)
    for library, options in ((peer, {}), (ours, {"strict": True})):
        with pytest.raises(AssertionError, match="Target not provided"):
            library.LRP(nn.Sequential(nn.Linear(3, 3)), **options).attribute(x)
    layer.rule = "epsilon"  # type: ignore[assignment]
    for library in (peer, ours):
        with pytest.raises(TypeError, match="PropagationRule"):
            library.LRP(reused)


def test_the_default_mode_takes_what_captum_refuses() -> None:
    """A layer used twice, without biases: relevance is conserved, and is x * W^T W^T by hand."""
    layer = nn.Linear(3, 3, bias=False).double()
    x = torch.rand(2, 3).double()
    relevance, delta = ours.LRP(nn.Sequential(layer, layer)).attribute(
        x, 2, return_convergence_delta=True
    )
    squared = layer.weight @ layer.weight
    assert_close(relevance, (x * squared[2]).detach(), rtol=1e-6, atol=1e-8)
    assert_close(delta, torch.zeros(2).double(), rtol=0, atol=1e-7)


class Skip(nn.Module):
    """W x + x with W = [[1, 2], [3, -1]], written as a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2, bias=False)
        self.inner.weight.data = torch.tensor([[1.0, 2.0], [3.0, -1.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x  # type: ignore[no-any-return]


def test_a_functional_sum() -> None:
    """x = (2, 1), explained y_1 = (6 - 1) + 1 = 6: by hand the shares are 6 and -1 + 1 = 0.

    Captum hands 6 to both summands: the inner layer's share is 6 / 5 * (6, -1), and the input's
    hook multiplies what came past it by x: 6 * (0, 1) -> 6 * 1 * 1, so (7.2, -1.2 + 6).
    """
    net, x = Skip().double(), torch.tensor([[2.0, 1.0]]).double()
    captums = torch.tensor([[7.2, 4.8]]).double()
    assert_close(peer.LRP(copy.deepcopy(net)).attribute(x, 1).detach(), captums)
    found, delta = ours.LRP(net, strict=True).attribute(x, 1, return_convergence_delta=True)
    assert_close(found, captums)
    assert_close(delta, torch.tensor([-6.0]).double())
    found, delta = ours.LRP(net).attribute(x, 1, return_convergence_delta=True)
    assert_close(found, torch.tensor([[6.0, 0.0]]).double(), rtol=0, atol=1e-8)
    assert_close(delta, torch.zeros(1).double(), rtol=0, atol=1e-7)


class Sequence(nn.Module):
    """A recurrent classifier, for which Captum has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, batch_first=True, bias=False)
        self.head = nn.Linear(5, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])  # type: ignore[no-any-return]


def test_a_recurrent_network() -> None:
    net, x = Sequence().double(), torch.randn(3, 6, 3).double()
    with pytest.raises(TypeError):
        peer.LRP(net).attribute(x, 0)
    relevance, delta = ours.LRP(net).attribute(x, 0, return_convergence_delta=True)
    assert relevance.shape == x.shape
    assert_close(delta, torch.zeros(3).double(), rtol=0, atol=1e-6)


def test_rules_stay_over_the_batches_of_a_noise_tunnel() -> None:
    """Captum deletes the rules after its first batch, so that the second runs with others."""
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x, rule = torch.rand(2, 4).double(), peer_rules.Alpha1_Beta0_Rule()

    def smoothed(library: Any, **options: Any) -> Tensor:
        net[0].rule = rule  # type: ignore[assignment]
        tunnel = peer.NoiseTunnel(library.LRP(net, **options))
        found: Tensor = tunnel.attribute(
            x, target=1, nt_samples=4, nt_samples_batch_size=2, stdevs=0.0
        )
        return found.detach()

    truth = ours.LRP(copy.deepcopy(_with_rule(net, rule))).attribute(x, 1)
    plain = ours.LRP(copy.deepcopy(_with_rule(net, None))).attribute(x, 1)
    assert not torch.allclose(truth, plain)
    assert_close(smoothed(ours), truth)
    assert_close(smoothed(ours, strict=True), truth, rtol=1e-6, atol=1e-8)
    assert_close(smoothed(peer), (truth + plain) / 2, rtol=1e-6, atol=1e-8)


def _with_rule(net: nn.Sequential, rule: Any) -> nn.Sequential:
    if hasattr(net[0], "rule"):
        del net[0].rule
    if rule is not None:
        net[0].rule = rule
    return net


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """One network for many tests: it is captured once."""
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()


@pytest.mark.parametrize("kind", ["smoothgrad", "smoothgrad_sq", "vargrad"])
@pytest.mark.parametrize("name", ["LRP", *GRADIENT_NAMES])
def test_noise_tunnel(kind: str, name: str, small: nn.Module) -> None:
    """The same noise gives the same maps; the delta comes with it."""
    net, x = small, torch.randn(2, 4).double()
    arguments: dict[str, Any] = {"nt_type": kind, "nt_samples": 6, "stdevs": 0.3, "target": [2, 0]}
    if name == "LRP":
        arguments["return_convergence_delta"] = True
    results = []
    for library in (peer, ours):
        torch.manual_seed(3)
        tunnel = peer.NoiseTunnel(getattr(library, name)(net))
        results.append(_detached(tunnel.attribute(x, **arguments)))
    assert_close(results[1], results[0], rtol=1e-6, atol=1e-8)


class Joined(nn.Module):
    """Two layers into Captum's addition module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)
        self.sum, self.act, self.head = Addition_Module(), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.sum(self.a(x), self.b(x))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("entering", [False, True])
def test_layers(strict: bool, entering: bool) -> None:
    net, x = Joined().double(), torch.randn(3, 3).double()
    one = dict(target=1, attribute_to_layer_input=entering, return_convergence_delta=True)
    expected = peer.LayerLRP(net, net.head).attribute(x, **one)
    found = ours.LayerLRP(net, net.head, strict=strict).attribute(x, **one)
    assert_close(found, _detached(expected), rtol=1e-6, atol=1e-8)
    expected = peer.LayerLRP(net, [net.a, net.head]).attribute(x, **one)
    found = ours.LayerLRP(net, [net.a, net.head], strict=strict).attribute(x, **one)
    assert_close(found, _detached(expected), rtol=1e-6, atol=1e-8)
    joined = ours.LayerLRP(net, net.sum, strict=strict).attribute(x, **one)[0]
    if entering:
        leaving = ours.LayerLRP(net, [net.a, net.b]).attribute(x, 1)
        assert isinstance(joined, tuple)
        assert_close(list(joined), leaving, rtol=1e-6, atol=1e-8)
    else:
        expected = peer.LayerLRP(net, net.sum).attribute(x, 1).detach()
        assert_close(joined, expected, rtol=1e-6, atol=1e-8)


def test_layers_that_captum_has_no_rule_for() -> None:
    """In the default mode an activation and a block are layers too."""
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 2)).double()
    x = torch.randn(3, 3).double()
    below = ours.LayerLRP(net, net[1]).attribute(x, 1, attribute_to_layer_input=True)
    for module in (net[0], net[0][1]):  # type: ignore[index]
        assert_close(ours.LayerLRP(net, module).attribute(x, 1), below)
    for block in (net[0], net):
        assert_close(
            ours.LayerLRP(net, block).attribute(x, 1, attribute_to_layer_input=True),
            ours.LRP(net).attribute(x, 1),
        )
    output = net(x).detach()
    assert_close(ours.LayerLRP(net, net).attribute(x, 1), output * torch.tensor([0.0, 1.0]))
    with pytest.raises(InputError, match=r"layer: '0.1' has no rule"):
        ours.LayerLRP(net, net[0][1], strict=True).attribute(x, 1)  # type: ignore[index]


def test_layers_that_are_none() -> None:
    layer = nn.Linear(3, 3)
    x = torch.randn(2, 3)
    with pytest.raises(InputError, match="is called 2 times"):
        ours.LayerLRP(nn.Sequential(layer, layer), layer).attribute(x, 0)
    with pytest.raises(InputError, match="is no module of Sequential"):
        ours.LayerLRP(nn.Sequential(layer), nn.Linear(3, 3)).attribute(x, 0)
    normed = nn.Sequential(nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)).eval()
    method = ours.LayerLRP(normed, normed[1])
    with pytest.raises(InputError, match="it is folded into '0'"):
        method.attribute(torch.randn(2, 3, 4), (0, 0), attribute_to_layer_input=True)


def test_a_rule_on_a_folded_batch_norm() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU()).eval()
    net[1].rule = peer_rules.IdentityRule()  # type: ignore[assignment]
    x = torch.randn(2, 1, 3, 3)
    with pytest.raises(PlanningError, match=r"'1'\.rule is Pass\(\), but '1' is folded into '0'"):
        ours.LRP(net).attribute(x, (0, 1, 1))
    expected = peer.LRP(copy.deepcopy(net)).attribute(x, (0, 1, 1)).detach()
    assert_close(ours.LRP(net, strict=True).attribute(x, (0, 1, 1)), expected)


class Grid(nn.Module):
    """An output of several dimensions, and one that is a row of one column."""

    def __init__(self, column: bool = False) -> None:
        super().__init__()
        self.layer, self.column = nn.Linear(4, 6), column

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).reshape(-1, 6, 1) if self.column else self.layer(x).reshape(-1, 2, 3)


@pytest.fixture(scope="module")
def grids() -> dict[bool, nn.Module]:
    return {column: Grid(column) for column in (False, True)}


@pytest.mark.parametrize(
    ("column", "target"),
    [
        (False, (1, 2)),
        (False, (-1, -3)),
        (False, [(0, 1), (1, 1), (1, 2)]),
        (True, 4),
        (True, -2),
        (True, torch.tensor([3])),
        (True, (2, 0)),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_targets_of_outputs_of_several_dimensions(
    column: bool, target: Any, strict: bool, grids: dict[bool, nn.Module]
) -> None:
    net, x = grids[column], torch.randn(3, 4)
    expected = peer.LRP(net).attribute(x, target).detach()
    assert_close(ours.LRP(net, strict=strict).attribute(x, target), expected)
    gradient = peer.Saliency(net).attribute(x, target)
    assert_close(ours.Saliency(net).attribute(x, target), gradient)


@pytest.mark.parametrize(
    "target", [2, -1, [0, 2, 1], torch.tensor(1), torch.tensor([1]), torch.tensor([2, 1, 0])]
)
def test_targets(target: Any, small: nn.Module) -> None:
    net, x = small, torch.randn(3, 4).double()
    expected = peer.LRP(copy.deepcopy(net)).attribute(x, target).detach()
    for strict in (False, True):
        assert_close(ours.LRP(net, strict=strict).attribute(x, target), expected)
    for name in GRADIENT_NAMES:
        wanted = getattr(peer, name)(net).attribute(x, target)
        assert_close(getattr(ours, name)(net).attribute(x, target), wanted)


def test_targets_that_are_none() -> None:
    net, x = nn.Sequential(nn.Linear(4, 3)), torch.randn(3, 4)
    for target in (3, -4, (0, 0), [0, 1], None):
        with pytest.raises(InputError, match="target"):
            ours.LRP(net).attribute(x, target)
    for target in (torch.tensor([[0, 1]] * 3), np.eye(3, dtype=int), [[0], [1], [2]]):
        for name in ("LRP", *GRADIENT_NAMES):
            with pytest.raises(InputError, match="several targets a sample"):
                getattr(ours, name)(net).attribute(x, target)
    with pytest.raises(InputError, match=r"inputs\[0\]: ndarray"):
        ours.LRP(net).attribute(x.numpy(), 0)
    for strict in (False, True):
        with pytest.raises(InputError, match=r"model: function; expected a torch\.nn\.Module"):
            ours.LRP(lambda x: x, strict)  # type: ignore[arg-type]


class Several(nn.Module):
    """Two inputs, a factor and a bias that get no relevance."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act, self.head = (
            nn.Linear(3, 4), nn.Linear(2, 4), nn.ReLU(), nn.Linear(8, 2),
        )  # fmt: skip

    def forward(self, x: Tensor, y: Tensor, mask: Tensor, scale: int = 1) -> Tensor:
        both = self.act(torch.cat([self.a(x), self.b(y)], 1) * mask)
        return self.head(both) * scale  # type: ignore[no-any-return]


def test_several_inputs_and_additional_arguments() -> None:
    """A tuple comes back as a tuple; further arguments reach the model and get no relevance."""
    net = Several().double()
    x, y = torch.randn(3, 3).double(), torch.randn(3, 2).double()
    mask = torch.ones(3, 8).double()
    expected = peer.LRP(copy.deepcopy(net)).attribute((x, y), 1, (mask, 2))
    for strict in (False, True):
        found = ours.LRP(net, strict=strict).attribute((x, y), 1, (mask, 2))
        assert isinstance(found, tuple) and len(found) == 2
        # the factor 2 after the last layer multiplies Captum's relevance once more
        assert_close(
            _detached(found if strict else tuple(2 * part for part in found)),
            _detached(expected), rtol=1e-6, atol=1e-8,
        )  # fmt: skip
    one = ours.LRP(nn.Sequential(nn.Linear(3, 2)).double()).attribute((x,), 1)
    assert isinstance(one, tuple) and one[0].shape == x.shape


class Placed(nn.Module):
    """Arguments that do not count the samples: a table of positions, neighbours in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.head = nn.Embedding(5, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor, positions: Tensor, graph: dict[str, Tensor]) -> Tensor:
        spread = graph["neighbours"] @ (x + self.places(positions))
        return self.head(F.relu(spread).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["LRP", *GRADIENT_NAMES])
def test_additional_arguments_without_a_batch_axis(name: str) -> None:
    """They reach the model as they are, also where their values change from call to call."""
    net, x = Placed().double(), torch.randn(3, 4, 3).double()
    method = getattr(ours, name)(net)
    for positions, neighbours in (([4, 0, 2, 1], torch.eye(4)), ([3, 3, 1, 0], torch.rand(4, 4))):
        table, graph = torch.tensor(positions), {"neighbours": neighbours.double()}

        class Fixed(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return net(x, table, graph)  # type: ignore[no-any-return]  # noqa: B023

        found = method.attribute(x, [1, 0, 1], additional_forward_args=(table, graph))
        assert_close(found, getattr(ours, name)(Fixed()).attribute(x, [1, 0, 1]))
        if name in ("Saliency", "InputXGradient"):
            expected = getattr(peer, name)(net).attribute(
                x, [1, 0, 1], additional_forward_args=(table, graph)
            )
            assert_close(found, expected.detach())
    with mock.patch.object(Plan, "make", wraps=Plan.make) as plans:
        more = torch.cat([x, x])  # six samples, then four: as many as there are positions
        found = [method.attribute(part, 0, additional_forward_args=(table, graph))
                 for part in (more, more[:4])]  # fmt: skip
    assert plans.call_count == 0
    assert_close(found[1], found[0][:4])


def test_layers_beside_arguments_without_a_batch_axis() -> None:
    net, x = Placed().double(), torch.randn(3, 4, 3).double()
    more = torch.tensor([4, 0, 2, 1]), {"neighbours": torch.rand(4, 4).double()}
    net.head.rule = peer_rules.EpsilonRule(0.5)  # type: ignore[assignment]
    found, delta = ours.LayerLRP(net, net.head).attribute(
        x, 1, additional_forward_args=more, return_convergence_delta=True,
        attribute_to_layer_input=True,
    )  # fmt: skip
    with torch.no_grad():
        spread = more[1]["neighbours"] @ (x + net.places(more[0]))
        hidden = spread.relu().mean(1)
        z = net.head(hidden)[:, 1]
        truth = hidden * net.head.weight[1] * (z / (z + 0.5 * z.sign())).unsqueeze(1)
    assert_close(found, truth)
    assert_close(delta, z - truth.sum(1))


def test_a_function_is_left_to_captum() -> None:
    net, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(3, 4)
    for name in ("Saliency", "InputXGradient"):
        for function in (lambda x: 2 * net(x), net.forward, net):
            found = getattr(ours, name)(function).attribute(x, 1)
            assert_close(found, getattr(peer, name)(function).attribute(x, 1))
    signed = ours.Saliency(net).attribute(x, 1, abs=False)
    assert_close(signed, peer.Saliency(net).attribute(x, 1, abs=False))
    assert (signed < 0).any()


class Functional(nn.Module):
    """A ReLU that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6, bias=False), nn.Linear(6, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["GuidedBackprop", "Deconvolution"])
def test_functional_relu(name: str) -> None:
    """Captum's modification misses it; ours is the one of the network with a module."""
    net, x = Functional(), torch.randn(4, 3)
    modules = nn.Sequential(net.a, nn.ReLU(), net.b)
    truth = getattr(peer, name)(modules).attribute(x, 1)
    assert_close(getattr(ours, name)(net).attribute(x, 1), truth)
    assert not torch.allclose(getattr(peer, name)(net).attribute(x, 1), truth)


def test_types_follow_the_inputs() -> None:
    net = nn.Sequential(nn.Linear(3, 2)).bfloat16()
    for strict in (False, True):
        found = ours.LRP(net, strict=strict).attribute(torch.ones(1, 3).bfloat16(), 0)
        assert found.dtype is torch.bfloat16


@pytest.mark.parametrize("name", [*LRP_NAMES, *GRADIENT_NAMES])
def test_signatures_are_captums(name: str) -> None:
    for function in ("__init__", "attribute"):
        wanted, found = (
            [
                (p.name, p.kind, p.default)
                for p in inspect.signature(
                    getattr(getattr(library, name), function)
                ).parameters.values()
            ]
            for library in (peer, ours)
        )
        if name in LRP_NAMES and function == "__init__":
            assert found.pop() == ("strict", inspect.Parameter.POSITIONAL_OR_KEYWORD, False)
        assert found == wanted


@pytest.mark.parametrize("name", ["LRP", *GRADIENT_NAMES])
def test_copies_of_methods_that_were_used(name: str, small: nn.Module) -> None:
    method, x = getattr(ours, name)(small), torch.randn(2, 4).double()
    before = method.attribute(x, 1)
    copied = copy.deepcopy(method)
    assert copied.forward_func is not small
    assert torch.equal(copied.attribute(x, 1), before)


def test_captum_classes() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    method = ours.LRP(net)
    assert isinstance(method, peer.LRP) and method.has_convergence_delta()
    assert method.multiplies_by_inputs
    assert isinstance(ours.LayerLRP(net, net[0]), peer.LayerLRP)
    for name in GRADIENT_NAMES:
        assert isinstance(getattr(ours, name)(net), getattr(peer, name))


def test_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    net, x = nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.randn(1, 3)
    ours.LRP(net).attribute(x, 0, verbose=True)
    assert "dense_map" in capsys.readouterr().out
    ours.LRP(net, strict=True).attribute(x, 0, verbose=True)
    assert "1: passes" in capsys.readouterr().out


def test_visualisation() -> None:
    """Captum's figures take our maps."""
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    matplotlib.use("Agg")
    from captum.attr import visualization

    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.rand(1, 3, 9, 7)
    relevance = ours.LRP(net).attribute(x, 1)
    figure, _ = visualization.visualize_image_attr(
        relevance[0].permute(1, 2, 0).numpy(),
        x[0].permute(1, 2, 0).numpy(),
        method="blended_heat_map",
        sign="all",
        use_pyplot=False,
    )
    drawn = figure.axes[0].images[-1].get_array()
    assert drawn.shape == (9, 7)


def test_a_gradient_function_of_the_user_s_own_counts() -> None:
    """As Captum's neuron methods put one in the place of their method's."""
    from captum._utils.gradient import construct_neuron_grad_fn

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(2, 3)
    pairs = [(peer.Saliency, ours.Saliency), (peer.InputXGradient, ours.InputXGradient),
             (peer.GuidedBackprop, ours.GuidedBackprop),
             (peer.Deconvolution, ours.Deconvolution)]  # fmt: skip
    for theirs, own in pairs:
        found = []
        for kind in (theirs, own):
            method = kind(model)
            method.gradient_func = construct_neuron_grad_fn(model[0], (1,), False)
            found.append(method.attribute(x))
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
        plain = own(model).attribute(x, target=0)
        assert not torch.allclose(found[1], plain)
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return tuple(torch.ones_like(part) for part in args[1])

    lrp = ours.LRP(model)
    lrp.gradient_func = counted
    lrp.attribute(x, target=0)
    assert len(calls) == 1


def test_what_is_captum_s_alone_is_named() -> None:
    with pytest.raises(ImportError, match=r"from captum\.attr import IntegratedGradients"):
        from relprop.integrations.captum import IntegratedGradients  # noqa: F401
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        ours.Nothing  # noqa: B018
