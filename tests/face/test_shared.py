"""Inputs that all samples share: they are not explained and have no axis of samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import relprop
from relprop.capture.call import Call
from relprop.composites import lrp_zero
from relprop.engine.groups import explain_halves


class Places(nn.Module):
    """Reads some places of a sequence, weighted by a mask over them."""

    def __init__(self, recorded: bool = False) -> None:
        super().__init__()
        self.layer, self.recorded = nn.Linear(3, 4).double(), recorded

    def forward(self, h: Tensor, places: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.recorded and float(h.sum()) > 1e9:  # which no export can follow
            h = h + 1
        found = self.layer(h[:, places]).relu()
        return (found if mask is None else found * mask[None, :, None]).sum(1)


def expected(model: nn.Module, h: Tensor, *others: Any) -> Tensor:
    leaf = h.clone().requires_grad_()
    return h * torch.autograd.grad(model(leaf, *others)[:, 1].sum(), leaf)[0]


@pytest.mark.parametrize("recorded", [False, True], ids=["exported", "recorded"])
def test_what_is_not_explained_needs_no_samples(recorded: bool) -> None:
    model = Places(recorded).eval()
    h, places = torch.randn(2, 5, 3).double(), torch.tensor([0, 2, 4])
    mask = torch.tensor([1.0, 0.0, 2.0]).double()
    explainer = relprop.Explainer(model, lrp_zero(), inputs=[0])
    assert_close(explainer(h, places, target=1), expected(model, h, places))
    assert_close(explainer(h, places, mask, target=1), expected(model, h, places, mask))
    more = torch.randn(7, 5, 3).double()  # the same graph for another batch, other places too
    for own in (places, torch.tensor([1, 1, 3])):
        assert_close(explainer(more, own, mask, target=1), expected(model, more, own, mask))
    found = relprop.Explainer(model, "gradient_x_input", inputs=[0])(h, places, mask, target=1)
    assert_close(found, expected(model, h, places, mask))


def test_shared_says_so_where_sizes_are_the_same_by_chance() -> None:
    model = Places().eval()
    h, places = torch.randn(3, 5, 3).double(), torch.tensor([0, 2, 4])
    mask = torch.rand(3).double()
    explainer = relprop.Explainer(model, lrp_zero(), shared=[1, "mask"])
    found = explainer(h, places, kwargs={"mask": mask}, target=1)
    assert_close(found, expected(model, h, places, mask))
    plain = relprop.Explainer(model, lrp_zero())
    assert_close(plain(h, places, mask, target=1, shared=[1, 2]), found)
    assert_close(plain.explain(h, places, mask, target=1, shared=[1, 2]).relevance, found)
    call = Call.of((h, places, mask), None, 0, shared=[1, 2])

    def explain(part: Call, target: Any, start: Any) -> relprop.Explanation:
        args, _ = part.arguments
        assert args[1] is places and args[2] is mask and len(args[0]) < 3
        return relprop.Explainer(model, lrp_zero(), shared=[1, 2]).explain(*args, target=target)

    halves = explain_halves(call, 1, None, explain)
    assert_close(halves.relevance, found)
    assert relprop.check(model, h, places, mask, shared=[1, 2]).ok


def test_messages() -> None:
    model = Places().eval()
    h, places = torch.randn(2, 5, 3).double(), torch.tensor([0, 2, 4])
    with pytest.raises(relprop.InputError, match=r"batch sizes differ.*shared=.*inputs="):
        relprop.explain(model, h, places, target=1)
    with pytest.raises(relprop.InputError, match=r"inputs: \[1\] are shared by all samples"):
        relprop.Explainer(model, "lrp_zero", inputs=[0, 1], shared=[1])(h, places, target=1)
    with pytest.raises(relprop.InputError, match=r"shared: \['edges'\] not among the arguments"):
        relprop.Explainer(model, "lrp_zero", shared=["edges"])(h, places, target=1)


def test_a_graph_network() -> None:
    """Two rounds of messages over edges `[2, E]`, as graph libraries write them."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            source, goal = edges
            for layer in (self.first, self.second):
                sent = layer(x)[:, source]
                x = torch.zeros_like(layer(x)).index_add(1, goal, sent).relu()
            return x.sum(1)

    model = Network().eval()
    x, edges = torch.randn(2, 5, 3).double(), torch.randint(0, 5, (2, 9))
    x = x.repeat(3, 1, 1)
    found = relprop.Explainer(model, lrp_zero(), inputs=[0])(x, edges, target=1)
    assert_close(found, expected(model, x, edges), rtol=1e-6, atol=1e-9)
