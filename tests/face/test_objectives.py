"""What is explained may be computed from the model's outputs: `output=` as a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import relprop
from relprop.composites import lrp_zero


class Heads(nn.Module):
    """A map of two classes, features, and a cache that no graph can hold."""

    def __init__(self, recorded: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.ReLU()).double()
        self.head = nn.Conv2d(3, 2, 1, bias=False).double()
        self.gain, self.recorded = 1.0, recorded

    def forward(self, x: Tensor) -> dict[str, Any]:
        if self.recorded and float(x.sum()) > 1e9:  # which no export can follow
            x = x + 1
        h = self.body(x)
        return {"map": self.head(h) * self.gain, "features": h.mean((2, 3)), "cache": object()}


REFERENCE = torch.linspace(0, 1, 3).double()

OBJECTIVES: dict[str, tuple[Callable[[Any], Tensor], int | None]] = {
    "a region": (lambda o: o["map"][:, :, 2:4, 1:3].sum((2, 3)), 1),
    "one pixel": (lambda o: o["map"][:, :, 1, 1], 0),
    "a difference": (lambda o: o["map"].sum((2, 3)).diff(dim=1), 0),
    "a difference of heads": (lambda o: o["map"][:, 0].sum((1, 2)) - o["features"].sum(1), None),
    "the features": (lambda o: o["features"], 2),
    "a picked one": (lambda o: o["map"].flatten(1)[:, 7], None),
}
"""Functions that are linear in the outputs, with a target: LRP-0 is input times gradient."""


@pytest.mark.parametrize("recorded", [False, True], ids=["exported", "recorded"])
def test_functions_of_the_outputs(recorded: bool) -> None:
    model = Heads(recorded).eval()
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    for name, (function, target) in OBJECTIVES.items():
        leaf = x.clone().requires_grad_()
        value = function(model(leaf))
        explained = value if target is None else value[:, target]
        want = x * torch.autograd.grad(explained.sum(), leaf)[0]
        for method in (lrp_zero(), "gradient_x_input"):
            explainer = relprop.Explainer(model, method, output=function, layers=["body.1"])
            result = explainer.explain(x, target=target)
            assert_close(
                result.relevance, want, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
            )
            assert result.layers["body.1"].shape == (2, 3, 6, 6)


def test_a_key_beside_what_cannot_be_captured() -> None:
    model = Heads().eval()
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    found = relprop.explain(model, x, target=1, output="features", method="lrp_zero")
    leaf = x.clone().requires_grad_()
    want = x * torch.autograd.grad(model(leaf)["features"][:, 1].sum(), leaf)[0]
    assert_close(found, want, rtol=1e-6, atol=1e-9)


def test_objectives_that_bend() -> None:
    """Squared errors and distances to a fixed reference: relevance is finite and goes on."""
    model, x = Heads().eval(), torch.rand(2, 1, 6, 6, dtype=torch.float64) + 0.1
    for function in (
        lambda o: (o["features"] - REFERENCE).square().sum(1, keepdim=True),
        lambda o: F.mse_loss(o["features"], REFERENCE.expand(2, 3), reduction="none").mean(1),
        lambda o: (o["features"] ** 2).sum(1).sqrt(),
        lambda o: -(o["features"] - REFERENCE).abs().sum(1),
        lambda o: (o["features"] - REFERENCE).norm(dim=1),
        lambda o: F.pairwise_distance(o["features"], REFERENCE.expand(2, 3)),
        lambda o: F.cosine_similarity(o["features"], REFERENCE[None]),
    ):
        explainer = relprop.Explainer(model, "lrp_epsilon", output=function)
        found = explainer(x, target=0 if function(model(x)).ndim == 2 else None)
        assert found.shape == x.shape and bool(torch.isfinite(found).all())
        assert float(found.abs().sum()) > 0


def test_the_model_s_own_attributes_still_count() -> None:
    model, x = Heads().eval(), torch.randn(2, 1, 6, 6, dtype=torch.float64)
    explainer = relprop.Explainer(model, "lrp_zero", output=lambda o: o["map"].sum((2, 3)))
    once = explainer(x, target=1)
    model.gain = 3.0
    assert_close(explainer(x, target=1), 3 * once, rtol=1e-9, atol=0)
    assert list(model.state_dict()) == ["body.0.weight", "head.weight"]


def test_functions_that_give_no_tensor() -> None:
    model, x = Heads().eval(), torch.randn(2, 1, 6, 6, dtype=torch.float64)
    for function, words in (
        (lambda o: o["map"].sum((2, 3)).tolist(), "gives list"),
        (lambda o: o["mask"] + 1, "KeyError: 'mask'"),
        (lambda o: float(o["map"].sum()), "gives float"),
    ):
        with pytest.raises(relprop.InputError, match=words):
            relprop.explain(model, x, target=0, output=function)


def test_what_the_function_reads_outside_may_change() -> None:
    model, x = Heads().eval(), torch.rand(2, 1, 6, 6, dtype=torch.float64)
    fixed = torch.zeros(3).double()

    def error(o: Any) -> Tensor:
        return (o["features"] - fixed).square().sum(1)

    explainer = relprop.Explainer(model, "gradient_x_input", output=error)
    for change in (lambda: None, lambda: fixed.add_(0.5)):
        change()
        leaf = x.clone().requires_grad_()
        want = x * torch.autograd.grad(error(model(leaf)).sum(), leaf)[0]
        assert_close(explainer(x), want, rtol=1e-6, atol=1e-9)
    fixed = torch.full((3,), 2.0).double()
    leaf = x.clone().requires_grad_()
    want = x * torch.autograd.grad(error(model(leaf)).sum(), leaf)[0]
    assert_close(explainer(x), want, rtol=1e-6, atol=1e-9)


@dataclass
class Output:
    logits: Tensor
    cache: object


def test_a_dataclass_that_no_graph_knows() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2).double()

        def forward(self, x: Tensor) -> Output:
            return Output(self.layer(x), object())

    model, x = Wrapped(), torch.randn(2, 3).double()
    found = relprop.explain(model, x, target=1, output="logits", method="gradient_x_input")
    assert_close(found, x * model.layer.weight[1].detach())
