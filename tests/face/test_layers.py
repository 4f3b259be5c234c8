"""Relevance at hidden layers: every output and every call of a module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import relprop
from relprop import rules
from relprop.composites import uniform
from relprop.integrations.captum import LayerLRP

ZERO = uniform(rules.Epsilon(0.0))


class Pair(nn.Module):
    """Two outputs, computed in the other order than they are returned; one is used inside too."""

    def __init__(self, recorded: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4).double(), nn.Linear(4, 4).double()
        self.recorded = recorded

    def forward(self, x: Tensor) -> dict[str, Any]:
        h = self.a(x).relu()
        if self.recorded and float(h.sum()) > -1:  # which no export can follow
            h = h + 0 * h
        return {"deep": self.b(h).relu(), "count": 3, "low": (h,)}


class Reads(nn.Module):
    """Calls the pair twice and reads what it returns."""

    def __init__(self, recorded: bool) -> None:
        super().__init__()
        self.pair, self.back = Pair(recorded), nn.Linear(4, 3).double()
        self.u, self.v = (nn.Linear(4, 2, bias=False).double() for _ in range(2))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, 0.1, 1.0)  # no ReLU is dead

    def tail(self, found: dict[str, Any]) -> Tensor:
        return self.u(found["deep"]) + self.v(found["low"][0])

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.pair(self.back(self.pair(x)["deep"])))


@pytest.mark.parametrize("recorded", [False, True], ids=["exported", "recorded"])
def test_every_output_of_every_call(recorded: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, x = Reads(recorded).eval(), torch.rand(3, 3).double()
    result = relprop.Explainer(model, ZERO, layers=["pair"]).explain(x, target=1)
    assert list(result.layers) == ["pair", "pair@1"]
    assert isinstance(result.layers["pair"], Tensor)  # of its second output nothing is read
    deep, low = result.layers["pair@1"]

    held = model.pair(model.back(model.pair(x)["deep"]))
    leaves = [held["deep"].detach().requires_grad_(), held["low"][0].detach().requires_grad_()]
    # as the module's outputs leave it: its own use of `low` is no part of relevance at `deep`
    out = model.tail({"deep": leaves[0], "low": (leaves[1],)})
    gradients = torch.autograd.grad(out[:, 1].sum(), leaves, retain_graph=True)
    assert_close(deep, leaves[0].detach() * gradients[0], rtol=1e-9, atol=1e-12)
    # what the value `low` gets in all, inside and outside of the module
    inside = model.pair.b(leaves[1]).relu() * gradients[0]
    whole = leaves[1] * torch.autograd.grad(inside.sum() + out[:, 1].sum(), leaves[1])[0]
    assert_close(low, whole.detach(), rtol=1e-9, atol=1e-12)

    result.save(tmp_path / "file.safetensors")
    loaded = relprop.Explanation.load(tmp_path / "file.safetensors")
    assert loaded == result and isinstance(loaded.layers["pair@1"], tuple)
    one = relprop.Explainer(model, ZERO, layers=["pair@1"]).explain(x, target=1)
    assert list(one.layers) == ["pair@1"]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_output_and_last_state(kind: type[nn.RNNBase]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = kind(3, 4, batch_first=True)
            self.u, self.v = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y, state = self.rnn(x)
            return self.u(y.mean(1)) + self.v((state[0] if kind is nn.LSTM else state)[-1])

    net, x = Net().eval(), torch.randn(5, 6, 3)
    lengths = torch.tensor([6, 3, 6, 2, 1])
    for given in (None, lengths):
        result = relprop.Explainer(net, "lrp_epsilon", layers=["rnn"]).explain(
            x, target=torch.tensor([[0, 1]] * 5), lengths=given
        )
        y, h = result.layers["rnn"]
        assert y.shape == (5, 2, 6, 4) and h.shape == (1, 5, 2, 4)
        assert float(y.abs().sum()) > 0 and float(h.abs().sum()) > 0


def test_gradients_of_every_output() -> None:
    model, x = Reads(False).eval(), torch.rand(2, 3).double()
    result = relprop.Explainer(model, "gradient", layers=["pair"]).explain(x, target=0)
    deep, _ = result.layers["pair@1"]
    assert_close(deep, model.u.weight[0].detach().expand(2, 4))


@pytest.mark.parametrize("make", [list, tuple, iter])
def test_layer_lrp_takes_any_sequence(make: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(2, 3)
    if make is iter or make is list:
        expected = [LayerLRP(model, model[i]).attribute(x, target=0) for i in (2, 0)]
    else:
        expected = [LayerLRP(model, model[i]).attribute(x, target=0) for i in (0, 2)]
    chosen = [model[2], model[0]] if make is iter or make is list else [model[0], model[2]]
    found = LayerLRP(model, make(chosen)).attribute(x, target=0)
    assert isinstance(found, list)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, rtol=0, atol=0)


def test_layer_lrp_of_two_outputs() -> None:
    model = nn.Sequential(Pair(False), Tail()).eval()
    x = torch.randn(2, 3).double()
    deep, low = LayerLRP(model, model[0]).attribute(x, target=1)
    entering = LayerLRP(model, model[1]).attribute(x, target=1, attribute_to_layer_input=True)
    assert_close(entering, (deep, low), rtol=0, atol=0)


class Tail(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Linear(4, 2).double(), nn.Linear(4, 2).double()

    def forward(self, found: dict[str, Any]) -> Tensor:
        return self.u(found["deep"]) + self.v(found["low"][0])
