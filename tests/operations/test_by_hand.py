"""Operations alone: quotients, pools, winners and norms, their numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import relprop
from plans import Function, passed, recorded
from relprop.composites import Composite
from relprop.graph.maps import per_axis
from relprop.operations.base import quotient, unbroadcast


def test_quotients() -> None:
    r, z = torch.tensor([6.0, 6.0, 6.0]), torch.tensor([2.0, 0.0, -4.0])
    assert torch.equal(quotient(r, z, 0.0), torch.tensor([3.0, 0.0, -1.5]))
    assert torch.equal(quotient(r, z, 1.0), torch.tensor([2.0, 6.0, -1.2]))
    for dtype in (torch.float16, torch.bfloat16):  # 1e-6 has no such number
        assert_close(
            quotient(r[1:2], z[1:2].to(dtype), 1e-6), torch.tensor([6e6]), rtol=1e-6, atol=0
        )


def test_unbroadcast_sums_over_leading_and_unit_axes() -> None:
    r = torch.arange(48.0).view(2, 2, 3, 4)
    assert torch.equal(unbroadcast(r, torch.Size([4])), r.sum((1, 2)))
    assert torch.equal(unbroadcast(r, torch.Size([3, 1])), r.sum((1, 3)).unsqueeze(-1))
    assert torch.equal(unbroadcast(r, torch.Size([2, 3, 4])), r)


def test_one_number_stands_for_every_axis() -> None:
    assert per_axis(2, 3) == per_axis([2], 3) == [2, 2, 2]
    assert per_axis((1, 2), 2) == [1, 2]


def test_volumes_whose_samples_count_as_channels_are_pooled_in_three_dimensions() -> None:
    model = nn.Sequential(nn.MaxPool3d(2, 1), nn.Flatten(), nn.Linear(24, 2)).double()
    x = torch.randn(2, 3, 5, 4).double()
    found = relprop.Explainer(model, "lrp_epsilon", layers=["0"]).explain(x, target=1)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model[0](leaf), leaf, found.layers["0"])
    assert found.relevance.abs().sum() > 0
    assert_close(found.relevance, expected)


def test_max_pooling_keeps_channels_last() -> None:
    x = torch.randn(2, 3, 4, 6).contiguous(memory_format=torch.channels_last)
    model = nn.MaxPool2d(2)
    plan = recorded(model, x)
    plain = passed(plan, model, x.contiguous(), torch.ones(2, 3, 2, 3))[1]
    turned = passed(plan, model, x, torch.ones(2, 3, 2, 3))[1]
    assert plain.is_contiguous() and turned.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, turned) and plain.sum() == 36


@pytest.mark.parametrize(
    ("choice", "factors"),
    # 2 a gives a all its relevance, b + 1 gives b b / (b + 1); at 1 both are 2
    [(torch.maximum, [0.0, 1.0, 1.0, 2.0, 0.0, 0.0]), (torch.minimum, [1.0, 1.0, 0.0, 0, 0, 0.75])],
)
def test_the_taken_operand_gets_all(choice: Any, factors: list[float]) -> None:
    x = torch.tensor([[-2.0, 1.0, 3.0, -2.0, 1.0, 3.0]], dtype=torch.float64)
    model = Function(lambda x: choice(2 * x[:, :3], x[:, 3:] + 1))
    start = torch.ones(1, 3, dtype=torch.float64)
    _, found = passed(recorded(model, x, Composite(stabilizer=0.0)), model, x, start)
    assert_close(found, torch.tensor([factors], dtype=torch.float64), rtol=1e-12, atol=0)


def test_norms_by_hand() -> None:
    x, start = torch.randn(2, 4, 5).double(), torch.randn(2, 4, 5).double()
    gain, shift = torch.randn(4).double(), torch.randn(4).double()

    def by_hand(view: tuple[int, ...], gain: Tensor | float, shift: Tensor | float) -> Tensor:
        v = x.view(view)
        sigma = (v.var(-1, correction=0, keepdim=True) + 0.5).sqrt()
        out = ((v - v.mean(-1, keepdim=True)) / sigma).view_as(x) * gain + shift
        u = (start / torch.where(out >= 0, out + 0.1, out - 0.1) * gain).view(view) / sigma
        return (u - u.mean(-1, keepdim=True)).view_as(x) * x

    column, row = gain.view(4, 1), shift.view(4, 1)
    cases: list[tuple[Callable[[Tensor], Tensor], Tensor]] = [
        (lambda x: F.layer_norm(x, [5], eps=0.5), by_hand((2, 4, 5), 1.0, 0.0)),
        (lambda x: F.group_norm(x, 2, gain, shift, eps=0.5), by_hand((2, 2, 10), column, row)),
        (
            lambda x: F.instance_norm(x, weight=gain, bias=shift, eps=0.5),
            by_hand((2, 4, 5), column, row),
        ),
    ]
    for function, expected in cases:
        model = Function(function)
        _, found = passed(recorded(model, x, Composite(stabilizer=0.1)), model, x, start)
        assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_rms_norm_by_hand() -> None:
    x, start = torch.randn(3, 5).double(), torch.randn(3, 5).double()
    model = Function(lambda x: F.rms_norm(x, [5], eps=0.5))
    _, found = passed(recorded(model, x, Composite(stabilizer=1e-12)), model, x, start)
    assert_close(found, start, rtol=1e-8, atol=1e-8)  # out is a multiple of x
    output = x / (x.square().mean(-1, keepdim=True) + 0.5).sqrt()
    _, coarse = passed(recorded(model, x, Composite(stabilizer=0.5)), model, x, start)
    expected = start * output / (output + 0.5 * torch.where(output >= 0, 1.0, -1.0))
    assert_close(coarse, expected, rtol=1e-10, atol=1e-12)
