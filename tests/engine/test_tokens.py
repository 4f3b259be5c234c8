"""Token ids on their way to an embedding: relevance comes back to where each id was given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import relprop
from relprop.composites import lrp_zero

T = 5
FIXED = torch.tensor([[7]])
KEPT = torch.tensor([True, True, False, True, True])

ROUTES: dict[str, tuple[Callable[[Tensor], Tensor], list[int | None]]] = {
    "as they are": (lambda i: i, [0, 1, 2, 3, 4]),
    "viewed": (lambda i: i.view(-1, i.shape[-1]), [0, 1, 2, 3, 4]),
    "sliced": (lambda i: i[:, 1:], [1, 2, 3, 4]),
    "strided": (lambda i: i[:, ::2], [0, 2, 4]),
    "flipped": (lambda i: i.flip(1), [4, 3, 2, 1, 0]),
    "rolled": (lambda i: i.roll(2, 1), [3, 4, 0, 1, 2]),
    "clamped": (lambda i: i.clamp(1, 6), [0, 1, 2, 3, 4]),
    "shifted": (lambda i: i + 1, [0, 1, 2, 3, 4]),
    "shifted back and forth": (lambda i: ((i + 3) % 8 - 1).abs(), [0, 1, 2, 3, 4]),
    "of another type": (lambda i: i.int().long(), [0, 1, 2, 3, 4]),
    "behind a first one": (
        lambda i: torch.cat([FIXED.expand(i.shape[0], 1), i], 1), [None, 0, 1, 2, 3, 4]
    ),
    "indexed": (lambda i: i[:, [2, 0, 2]], [2, 0, 2]),
    "padded": (lambda i: F.pad(i, (1, 2), value=3), [None, 0, 1, 2, 3, 4, None, None]),
    "some replaced": (lambda i: torch.where(KEPT, i, 4), [0, 1, None, 3, 4]),
    "some filled": (lambda i: i.masked_fill(~KEPT, 4), [0, 1, None, 3, 4]),
    "doubled": (lambda i: i.repeat(1, 2), [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]),
}  # fmt: skip
"""What is done to ids, and where each embedded one comes from."""


class Routes(nn.Module):
    """A number for each route."""

    def __init__(self, recorded: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding = nn.Embedding(9, 4).double()
        self.places = nn.Embedding(T, 4).double()
        self.layer = nn.Linear(4, 1, bias=False).double()
        self.recorded = recorded

    def head(self, e: Tensor) -> Tensor:
        return self.layer(e.relu()).sum(1)

    def forward(self, ids: Tensor) -> Tensor:
        if self.recorded and int(ids.sum()) < 0:  # which no export can follow
            ids = ids + 1
        outputs = [self.head(self.embedding(route(ids))) for route, _ in ROUTES.values()]
        places = torch.arange(ids.shape[1])  # made of no id: they carry nothing
        outputs.append(self.head(self.embedding(ids)) + self.head(self.places(places)[None]))
        outputs.append(self.head(self.embedding(ids)) + self.head(self.embedding(ids.flip(1))))
        return torch.cat(outputs, 1)


@pytest.mark.parametrize("recorded", [False, True], ids=["exported", "recorded"])
@pytest.mark.parametrize("method", ["lrp_zero", "gradient_x_input", "sensitivity"])
def test_relevance_comes_back_to_the_ids(method: str, recorded: bool) -> None:
    model = Routes(recorded).eval()
    ids = torch.tensor([[1, 2, 3, 4, 5], [5, 0, 7, 2, 2], [6, 6, 1, 3, 0]])
    count = len(ROUTES) + 2
    explainer = relprop.Explainer(model, lrp_zero() if method == "lrp_zero" else method)
    found = explainer(ids, target=torch.arange(count).expand(len(ids), -1))

    def part(given: Tensor) -> Tensor:
        e = model.embedding(given).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model.head(e).sum(), e)
        value = gradient**2 if method == "sensitivity" else e.detach() * gradient
        return value.sum(-1)

    for k, (name, (route, sources)) in enumerate(ROUTES.items()):
        expected = torch.zeros(ids.shape, dtype=torch.float64)
        for position, source in enumerate(sources):
            if source is not None:
                expected[:, source] += part(route(ids))[:, position]
        assert_close(
            found[:, k].double(), expected, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert_close(found[:, -2], found[:, 0])
    assert_close(found[:, -1], 2 * found[:, 0], rtol=1e-5, atol=1e-6)


def test_tokens_that_two_inputs_make_are_refused() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.layer = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
            return self.layer(self.embedding(ids + offsets).sum(1))

    ids = torch.ones(2, 3, dtype=torch.long)
    for method in ("lrp_zero", "gradient_x_input"):
        with pytest.raises(relprop.PlanningError, match="several of its arguments depend"):
            relprop.Explainer(Sum(), method)(ids, ids, target=0)
        assert relprop.Explainer(Sum(), method, inputs=[0])(ids, ids, target=0).shape == (2, 3)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 2])
def test_embedding_bags(mode: str, padding: int | None) -> None:
    class Bags(nn.Module):
        def __init__(self, recorded: bool) -> None:
            super().__init__()
            torch.manual_seed(5)
            self.bag = nn.EmbeddingBag(9, 4, mode=mode, padding_idx=padding).double()
            self.layer, self.recorded = nn.Linear(4, 2, bias=False).double(), recorded

        def forward(self, ids: Tensor) -> Tensor:
            if self.recorded and int(ids.sum()) < 0:
                ids = ids + 1
            return self.layer(self.bag(ids.flip(1)))

    ids = torch.tensor([[1, 2, 3, 2], [4, 5, 6, 0], [2, 2, 8, 1]])
    for model in (Bags(False).eval(), Bags(True).eval()):
        # the gradient by each row of the table, times it, falls to the ids one by one
        expected = torch.zeros(ids.shape, dtype=torch.float64)
        for sample, row in enumerate(ids):
            for place, token in enumerate(row):
                if int(token) == padding:
                    continue
                e = model.bag.weight.detach().clone()
                kept = [t for t in row.tolist() if t != padding]
                vectors = torch.stack([e[t] for t in kept])
                if mode == "max":
                    first = {d: kept.index(kept[int(vectors[:, d].argmax())]) for d in range(4)}
                    share = torch.tensor(
                        [float(kept[first[d]] == int(token)) for d in range(4)]
                    ).double()
                else:
                    share = torch.ones(4).double() / (len(kept) if mode == "mean" else 1)
                expected[sample, place] = (share * e[int(token)] * model.layer.weight[1]).sum()
        if mode != "max":  # of equal tokens one takes all
            for method in (lrp_zero(), "gradient_x_input"):
                found = relprop.explain(model, ids, target=1, method=method)
                assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)
        found = relprop.explain(model, ids, target=1, method="lrp_zero")
        total = model(ids)[:, 1].detach()
        assert_close(found.double().sum(1), total, rtol=1e-6, atol=1e-7)
        for sample, row in enumerate(ids.tolist()):
            for token in set(row):
                own = [i for i, t in enumerate(row) if t == token]
                got = float(found[sample, own].sum())
                want = float(expected[sample, own].sum()) / (len(own) if mode == "max" else 1)
                assert abs(got - want) < 1e-6, (sample, token)


def test_bags_by_offsets_are_refused_in_words() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.layer = nn.EmbeddingBag(9, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
            return self.layer(self.bag(ids, offsets))

    with pytest.raises(relprop.InputError, match="batch sizes differ"):
        relprop.explain(Flat(), torch.arange(6), torch.tensor([0, 2]), target=0)
