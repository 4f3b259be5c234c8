"""Replayed explanations: what goes in and comes out, with a recorder that computes anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop.engine.graphed import GraphedExplainer
from relprop.errors import InputError


class Anew:
    """Stands in for a CUDA graph."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work, self.value, self.replays = work, work(), 0

    def replay(self) -> None:
        self.value, self.replays = self.work(), self.replays + 1


@pytest.fixture
def explainer() -> relprop.Explainer:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)]
    return relprop.Explainer(nn.Sequential(*layers).eval(), "epsilon_plus", frozen=True)


def images() -> Tensor:
    return torch.randn(2, 2, 6, 6)


@pytest.mark.parametrize("target", [3, torch.tensor([1, 4]), torch.tensor([[0, 3], [2, 2]])])
def test_replayed_as_explained(explainer: relprop.Explainer, target: Any) -> None:
    graphed = GraphedExplainer(explainer._planner, images(), target, record=Anew)
    for _ in range(2):
        x = images()
        assert torch.equal(graphed(x, target), explainer(x, target=target))
    first = graphed(x, target)
    graphed(images(), target)
    assert torch.equal(first, explainer(x, target=target))  # results are the caller's own


def test_what_was_not_recorded_is_refused(explainer: relprop.Explainer) -> None:
    graphed = GraphedExplainer(explainer._planner, images(), 1, record=Anew)
    with pytest.raises(InputError, match=r"x is \(\(3, 2, 6, 6\).*recorded was \(\(2, 2, 6, 6\)"):
        graphed(torch.randn(3, 2, 6, 6), 1)
    with pytest.raises(InputError, match="2 targets a sample; recorded were 1"):
        graphed(images(), torch.tensor([[0, 1], [1, 2]]))
    x = images()
    x[0, 1, 2, 3] = torch.nan
    with pytest.raises(InputError, match="1 of 144 values are NaN"):
        graphed(x, 1)
    with pytest.raises(InputError, match="target"):
        graphed(images(), 5)


def test_what_cannot_be_recorded_is_refused(explainer: relprop.Explainer) -> None:
    with pytest.raises(InputError, match="x is on cpu; expected a CUDA device"):
        GraphedExplainer(explainer._planner, images(), 1)
    with pytest.raises(InputError, match="give it frozen"):
        following = relprop.Explainer(explainer.model, "lrp_epsilon")
        GraphedExplainer(following._planner, images(), 1, record=Anew)
    gradient = relprop.Explainer(explainer.model, "gradient", frozen=True)
    with pytest.raises(InputError, match="gradient differentiates"):
        GraphedExplainer(gradient._planner, images(), 1, record=Anew)
