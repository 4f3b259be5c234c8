"""Products of which one factor is not explained: layers with a weight for each sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import relprop
from relprop import backends, rules
from relprop.capture.call import neutral_modes
from relprop.capture.record import record
from relprop.composites.composite import uniform
from relprop.engine import run
from relprop.engine.plan import Plan
from relprop.errors import PlanningError
from relprop.graph.canonical import canonical
from relprop.graph.maps import Dense


class Network(nn.Module):
    """A function of a hidden layer, of what is not explained and of parameters.

    torch.export refuses it if `branches`, so that it is recorded.
    """

    def __init__(self, function: Callable[..., Tensor], branches: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.weight, self.vector = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))
        self.register_buffer("ring", torch.rand(4, 4))
        self.function, self.branches = function, branches

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        if self.branches and bool(x.sum() > 1e9):
            return x
        return self.function(self, self.layer(x).relu(), given)


def _by_quotients(model: nn.Module, x: Tensor, given: Tensor, start: Tensor) -> Tensor:
    """LRP-0 of what is linear, ReLU aside: the quotients of the output, by its gradient."""
    leaf = x.clone().requires_grad_()
    output = model(leaf, given)
    return (
        x
        * torch.autograd.grad(output, leaf, torch.where(start == 0, 0.0, start / output.detach()))[
            0
        ]
    )


PRODUCTS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "from the left": lambda m, h, a: a @ h,
    "from the right": lambda m, h, a: h.mT @ a,
    "bmm": lambda m, h, a: torch.bmm(a, h),
    "einsum": lambda m, h, a: torch.einsum("bij,bjk->bik", a, h),
    "baddbmm": lambda m, h, a: torch.baddbmm(h, a, h, alpha=2, beta=0.5),
    "baddbmm, no summand": lambda m, h, a: torch.baddbmm(h, a, h, beta=0, alpha=3),
    "a buffer": lambda m, h, a: m.ring @ h,
    "normalised": lambda m, h, a: (a / a.sum(-1, keepdim=True)) @ h,
    "computed from parameters": lambda m, h, a: (m.weight @ m.weight.mT).softmax(-1) @ h.mT,
    "a vector": lambda m, h, a: h @ m.vector,
    "a vector, a matrix": lambda m, h, a: (a @ (h @ m.vector)[..., None])[..., 0],
    "tensordot": lambda m, h, a: torch.tensordot(h, m.weight, dims=([2], [0])),
    "inner": lambda m, h, a: torch.inner(h, m.weight.T),
    "a computed weight": lambda m, h, a: F.linear(h, (m.weight / m.weight.norm()).T),
    "a product and a sum": lambda m, h, a: (a[..., None] * h[:, None]).sum(2),
    "several heads": lambda m, h, a: (torch.stack([a, a.mT], 1) @ h[:, None]).sum(1),
    "a weight that is explained": lambda m, h, a: F.linear(a, h[0].T, a[0, 0, :3]),
    "a bias that is explained": lambda m, h, a: F.linear(a, m.weight, h[0, 0]),
}


@pytest.mark.parametrize("branches", [False, True], ids=["exported", "recorded"])
def test_a_product_with_what_is_not_explained_is_a_layer(branches: bool) -> None:
    x, given = torch.randn(5, 4, 3).double(), torch.rand(5, 4, 4).double()

    def side_by_side(m: Any, h: Tensor, a: Tensor) -> Tensor:
        return torch.cat([function(m, h, a).flatten(1) for function in PRODUCTS.values()], 1)

    model = Network(side_by_side, branches).double().eval()
    explainer = relprop.Explainer(model, "lrp_zero", inputs=[0])
    start = torch.randn_like(model(x, given)).detach()
    expected = _by_quotients(model, x, given, start)
    found = explainer(x, given, start=start)
    assert_close(found, expected, rtol=1e-8, atol=1e-10 * float(expected.abs().max()))
    assert explainer.plan.graph.origin == ("record" if branches else "export")


VECTORS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "mv": lambda m, h, a: torch.mv(a[0], h[0, :, 1]),
    "vm": lambda m, h, a: h[0, :, 1] @ a[1],
    "a vector, a stack": lambda m, h, a: a @ h[0, :, 1],
    "a stack, a vector": lambda m, h, a: a[0, 0] @ h,
    "a row": lambda m, h, a: a[0, 0] @ h[0],
    "dot": lambda m, h, a: torch.dot(a[0, 0], h[0, :, 1])[None],
    "addmv": lambda m, h, a: torch.addmv(h[0, :, 0], a[0], h[0, :, 1], alpha=-2),
    "addbmm": lambda m, h, a: torch.addbmm(h[0], a, h, beta=2),
    "addmm": lambda m, h, a: torch.addmm(h[0], a[0], h[0], beta=3),
    "outer": lambda m, h, a: torch.outer(a[0, 0], h[0, 0]),
    "three": lambda m, h, a: torch.linalg.multi_dot([a[0], a[1], h[0]]),
    "shared by all samples": lambda m, h, a: a @ h[0],
}


def test_products_without_a_batch() -> None:
    x, given = torch.randn(2, 4, 3).double(), torch.rand(2, 4, 4).double()
    for function in VECTORS.values():
        model = Network(function).double().eval()
        with neutral_modes():
            graph = canonical(record(model, (x, given), {}, 0))
            plan = Plan.make(graph, graph.output_names[0], uniform(rules.Epsilon(0.0)),
                             floating=graph.inputs[:1])  # fmt: skip
            engine = run.Engine(backends.get("aten"))
            values = dict(zip(graph.inputs, (x, given)))
            passed = run.forward(plan, engine, model, values)
            start = torch.randn_like(passed.output) * (passed.output != 0)
            found = run.relevance(plan, engine, passed, start[None], graph.inputs)
        expected = _by_quotients(model, x, given, start)
        assert_close(found[graph.inputs[0]][0], expected, rtol=1e-8, atol=1e-10)


def test_rules_of_layers_hold_for_weights_of_each_sample() -> None:
    x, given = torch.randn(3, 4, 3).double(), torch.randn(3, 4, 4).double()
    box = rules.ZBox(-4.0, 4.0)
    chosen: list[Any] = [rules.Epsilon(0.1), rules.ZPlus(), rules.AlphaBeta(2, 1, conserve=True),
                         rules.Gamma(0.3), box, rules.WSquare(), rules.Flat()]  # fmt: skip
    model = Network(lambda m, h, a: torch.cat([a @ (h - 0.5), (a @ h).relu()], 2)).double().eval()
    start = torch.randn(3, 4, 6).double()
    for rule in chosen:
        found, expected = (
            relprop.Explainer(model, rule, inputs=[0], backend=backend)(x, given, start=start)
            for backend in ("aten", "reference")
        )
        assert expected.abs().sum() > 0
        assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_zplus_through_an_adjacency_matrix_by_hand() -> None:
    model = Network(lambda m, h, a: a @ h).double().eval()
    with torch.no_grad():
        model.layer.weight.copy_(torch.eye(3))
        model.layer.bias.zero_()
    x = torch.tensor([[[1.0, 2.0, 3.0], [4.0, 0.0, 1.0], [2.0, 2.0, 2.0], [0.0, 5.0, 1.0]]])
    x, given = x.double(), torch.zeros(1, 4, 4).double()
    given[0, 0] = torch.tensor([1.0, -3.0, 2.0, 0.0])
    start = torch.zeros(1, 4, 3).double()
    start[0, 0] = torch.tensor([5.0, 12.0, 14.0])
    found = relprop.Explainer(model, rules.ZPlus(), inputs=[0])(x, given, start=start)
    expected = torch.zeros(1, 4, 3).double()
    expected[0, 0], expected[0, 2] = torch.tensor([1.0, 4, 6]), torch.tensor([4.0, 8, 8])
    assert_close(found, expected, rtol=1e-5, atol=0)


def test_weights_that_are_an_input_are_never_kept() -> None:
    model = Network(lambda m, h, a: F.linear(h, a[0, :3, :3])).double().eval()
    x, given = torch.randn(2, 4, 3).double(), torch.randn(2, 2, 4, 4).double()
    frozen = relprop.Explainer(model, rules.AlphaBeta(), inputs=[0], frozen=True)
    for a in given:
        fresh = relprop.Explainer(model, rules.AlphaBeta(), inputs=[0])
        start = torch.ones(2, 4, 3).double()
        assert_close(frozen(x, a, start=start), fresh(x, a, start=start), rtol=1e-12, atol=1e-14)


def test_what_cannot_be_a_layer_is_refused_in_words() -> None:
    x, given = torch.randn(2, 4, 3).double(), torch.rand(2, 4, 4).double()
    model = Network(lambda m, h, a: a @ h).double().eval()
    with pytest.raises(PlanningError, match="both factors depend on an explained input"):
        relprop.Explainer(model, "lrp_epsilon")(x, given, start=torch.ones(2, 4, 3))
    with pytest.raises(PlanningError, match="use backend='aten'"):
        relprop.Explainer(model, "lrp_epsilon", inputs=[0], backend="triton")(
            x, given, start=torch.ones(2, 4, 3)
        )


def test_a_weight_of_each_sample_broadcasts() -> None:
    a, w = torch.randn(5, 3).double(), torch.randn(2, 4, 3).double()
    z = Dense().contraction(a, w, torch.ones(4).double())
    assert_close(z, torch.einsum("ni,boi->bno", a, w) + 1)
    s = torch.randn(7, 2, 5, 4).double()
    assert_close(Dense().adjoint(s, w, a.shape), torch.einsum("kbno,boi->kni", s, w))
    assert Dense().output_shape((2, 5, 3), w.shape) == (2, 5, 4)
