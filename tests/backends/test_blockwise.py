"""Parts of large dense weights, made block by block, against the naive reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from relprop import rules
from relprop.backends import LinearCall, get
from relprop.backends.aten import blockwise, products
from relprop.graph.maps import Dense
from relprop.operations.arithmetic import modified
from relprop.rules.terms import Modifier
from tables import RULES, TOLERANCES

ATEN, NAIVE = get("aten"), get("reference")


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Elementwise, with the largest entry as the scale of what may cancel."""
    tolerance = TOLERANCES[torch.float64]
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)


def sliced(*shape: int) -> Tensor:
    """Random numbers, every second of a larger tensor full of NaN."""
    host = torch.full((*shape[:-1], 2 * shape[-1]), float("nan"), dtype=torch.float64)
    host[..., ::2] = torch.randn(shape, dtype=torch.float64)
    return host[..., ::2]


# a row; two of five rows, and a last one
@pytest.mark.parametrize(("block", "lead"), [(1, (2, 3)), (15, (3,))], ids=["tokens", "dense"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_equals_reference(
    rule: rules.LinearRule, lead: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockwise, "BLOCK", block)
    torch.manual_seed(0)
    for nonnegative, biased, rectified in [(0, 1, 0), (1, 1, 1), (0, 0, 1), (1, 0, 0)]:
        a, w, r = sliced(*lead, 7), sliced(5, 7), sliced(2, *lead, 5)
        a = a.relu() if nonnegative else a
        b = torch.randn(5, dtype=torch.float64) if biased else None
        call = LinearCall(Dense(), rule, bool(nonnegative), rectified=bool(rectified))
        z, saved = ATEN.forward(call, a, w, b)
        expected_z, naive = NAIVE.forward(call, a, w, b)
        assert_near(z, expected_z.relu() if rectified else expected_z)
        r = torch.where(z > 0, r, 0.0) if rectified else r
        assert_near(ATEN.relevance(call, saved, r), NAIVE.relevance(call, naive, r))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the parts of weights that are made."""
    sizes: list[int] = []

    def recorded(modifier: Modifier, u: Tensor) -> Tensor:
        sizes.append(u.numel())
        return modified(modifier, u)

    monkeypatch.setattr(products, "modified", recorded)
    monkeypatch.setattr(blockwise, "BLOCK", 64)
    return sizes


@pytest.mark.parametrize("rule", [rules.ZPlus(), rules.AlphaBeta(), rules.Gamma(), rules.WSquare()])
@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_no_part_of_the_whole_weight(
    rule: rules.LinearRule, precision: str, made: list[int]
) -> None:
    a, w, r = torch.rand(3, 16), torch.randn(20, 16), torch.randn(2, 3, 20)
    call = LinearCall(Dense(), rule, nonnegative=True, precision=precision)
    _, saved = ATEN.forward(call, a, w, None)
    ATEN.relevance(call, saved, r)
    assert made and max(made) <= 64


def test_kept_weights_are_made_whole_and_once(made: list[int]) -> None:
    a, w, r = torch.rand(3, 16), torch.randn(20, 16), torch.randn(2, 3, 20)
    call = LinearCall(Dense(), rules.ZPlus(), nonnegative=True)
    cache: dict[object, object] = {}
    for _ in range(2):
        _, saved = ATEN.forward(call, a, w, None, cache)
        ATEN.relevance(call, saved, r)
    assert made == [w.numel()]


@pytest.mark.parametrize("part", [torch.relu, torch.abs])
def test_products(part: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "BLOCK", 6)
    a, w, b = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 4, 3), (7, 3), (7,)))
    s = torch.randn(2, 4, 7, dtype=torch.float64)
    assert_near(blockwise.contraction(a, w, part, b), a @ part(w).T + b)
    assert_near(blockwise.contraction(a[:0], w, part), a[:0] @ part(w).T)
    assert_near(blockwise.adjoint(s, w, part), s @ part(w))
    assert_near(blockwise.adjoint(s[:, :0], w, part), s[:, :0] @ part(w))
