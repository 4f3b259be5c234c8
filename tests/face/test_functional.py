"""The functional face: torch's geometry arguments, and one sentence for each mistake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from relprop import rules
from relprop.errors import InputError
from relprop.functional import conv_relevance, linear_relevance

CONVOLUTIONS: list[
    tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...], dict[str, Any]]
] = [
    (F.conv1d, (2, 3, 9), (4, 3, 3), {"stride": 2, "padding": 1}),
    (F.conv1d, (2, 3, 9), (4, 3, 4), {"padding": "same", "dilation": 2}),
    (F.conv2d, (2, 4, 5, 7), (6, 2, 3, 2), {"stride": (2, 1), "padding": [1, 0], "groups": 2}),
    (F.conv2d, (2, 4, 5, 7), (6, 4, 2, 4), {"padding": "same"}),
    (F.conv2d, (2, 4, 5, 7), (6, 4, 2, 4), {"padding": "valid", "stride": 2}),
    (F.conv3d, (1, 2, 3, 4, 5), (3, 2, 2, 2, 2), {"dilation": (1, 2, 1)}),
    (F.conv_transpose1d, (2, 3, 5), (3, 4, 3), {"stride": 3, "output_padding": 2}),
    (
        F.conv_transpose2d,
        (2, 4, 3, 4),
        (4, 3, 3, 2),
        {"stride": (2, 1), "padding": 1, "groups": 2, "output_padding": (1, 0)},
    ),
    (F.conv_transpose3d, (1, 2, 2, 3, 2), (2, 3, 2, 2, 2), {"dilation": 2, "output_padding": 1}),
]


@pytest.mark.parametrize("backend", ["aten", "reference"])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: f"{case[0].__name__} {case[3]}")
def test_arguments_mean_what_they_mean_in_torch(case: Any, backend: str) -> None:
    """Epsilon on a convolution is input times gradient of sum(R * z / st(z)), by torch alone."""
    function, a_shape, w_shape, options = case
    transposed = "transpose" in function.__name__
    features = w_shape[1] * options.get("groups", 1) if transposed else w_shape[0]
    a, w, b = (torch.randn(s).double() for s in (a_shape, w_shape, (features,)))
    a.requires_grad_()
    z = function(a, w, b, **options)
    r = torch.randn_like(z)
    st = z.detach() + 0.1 * torch.where(z >= 0, 1.0, -1.0).double()
    (gradient,) = torch.autograd.grad((z * r / st).sum(), a)
    found = conv_relevance(
        a, w, b, r, rules.Epsilon(0.1), transposed=transposed, backend=backend, **options
    )
    assert not found.requires_grad
    torch.testing.assert_close(found, (a * gradient).detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5)])
def test_linear_takes_any_leading_axes(shape: tuple[int, ...]) -> None:
    x, w = torch.randn(shape), torch.randn(4, 5)
    r = torch.randn(*shape[:-1], 4)
    found = linear_relevance(x, w, None, r, rules.ZBox(-4, 4))
    assert found.shape == x.shape and found.dtype is torch.float32
    torch.testing.assert_close(found.sum(), r.sum(), rtol=1e-3, atol=1e-4)


def test_parameters_autocast_and_default_dtype_change_nothing() -> None:
    x, r = torch.randn(3, 4, 6, 6), torch.randn(3, 5, 6, 6)
    layer = torch.nn.Conv2d(4, 5, 3, padding=1)
    arguments = (x, layer.weight, layer.bias, r, rules.AlphaBeta(1.4, 0.4))
    expected = conv_relevance(*arguments, padding=1)
    assert not expected.requires_grad
    with torch.autocast("cpu"):
        assert torch.equal(conv_relevance(*arguments, padding=1), expected)
    with torch.inference_mode():
        assert torch.equal(conv_relevance(*arguments, padding=1), expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(conv_relevance(*arguments, padding=1), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_result_dtype(dtype: torch.dtype) -> None:
    x, w, r = torch.randn(2, 3).to(dtype), torch.randn(4, 3).to(dtype), torch.randn(2, 4).to(dtype)
    wanted = torch.float64 if dtype is torch.float64 else torch.float32
    for rule in (rules.Epsilon(), rules.Gamma(), rules.Flat()):
        assert linear_relevance(x, w, None, r, rule).dtype is wanted
    assert linear_relevance(x, w[:3], None, x, rules.Pass()).dtype is wanted


X, W, R = torch.randn(2, 3), torch.randn(4, 3), torch.randn(2, 4)
IMAGE, KERNEL, OUT = torch.randn(1, 4, 5, 5), torch.randn(6, 4, 3, 3), torch.randn(1, 6, 3, 3)
EPS = rules.Epsilon()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_relevance(X, W.T, None, R, EPS), r"x is \[2, 3\] and weight \[3, 4\]"),
        (lambda: linear_relevance(X, W, None, R[:1], EPS), r"relevance is \[1, 4\]; expected"),
        (lambda: linear_relevance(X, W, R[0, :3], R, EPS), r"bias is \[3\]; expected \[4\]"),
        (lambda: linear_relevance(X.int(), W, None, R, EPS), r"x is torch.int32; expected a float"),
        (lambda: linear_relevance(X, None, None, R, EPS), "weight is NoneType; expected a tensor"),
        (
            lambda: linear_relevance(X, W.to("meta"), None, R, EPS),
            "weight is on meta; expected cpu",
        ),
        (
            lambda: linear_relevance(X, W, None, R, rules.Norm()),
            "takes one of Epsilon, ZPlus, AlphaBeta, Gamma, ZBox, WSquare, Flat, Joint, or",
        ),
        (lambda: linear_relevance(X, W, None, R, "epsilon"), "rule is 'epsilon'"),
        (lambda: linear_relevance(X, W, None, R, rules.Pass()), "rule Pass needs an output shaped"),
        (lambda: linear_relevance(X, W, None, R, rules.Joint()), r"channels=\(start, stop\)"),
        (
            lambda: linear_relevance(X, W, None, R, rules.Joint(channels=(2, 4))),
            r"channels \(2, 4\); expected 0 <= start < stop <= 3",
        ),
        (
            lambda: linear_relevance(X, W, None, R, rules.ZBox(torch.zeros(2), 1)),
            r"low of ZBox is \[2\].*one sample of the input, \[3\]",
        ),
        (lambda: linear_relevance(X, W, None, R, EPS, backend="best"), "backend is 'best'"),
        (
            lambda: conv_relevance(IMAGE, KERNEL, None, OUT, rules.ZBox(0, torch.ones(4))),
            r"high of ZBox is \[4\].*\[channels, 1, 1\] for images",
        ),
        (
            lambda: conv_relevance(X, KERNEL, None, OUT, EPS),
            r"x is \[2, 3\] and weight \[6, 4, 3, 3\]",
        ),
        (lambda: conv_relevance(IMAGE, KERNEL, None, OUT, EPS, groups=2), "groups=2 takes 8"),
        (lambda: conv_relevance(IMAGE, KERNEL, None, OUT, EPS, groups=4), "expected a divisor"),
        (lambda: conv_relevance(IMAGE, KERNEL, None, OUT, EPS, stride=0), "stride is 0"),
        (lambda: conv_relevance(IMAGE, KERNEL, None, OUT, EPS, padding=(1, 1, 1)), "or 2 of them"),
        (
            lambda: conv_relevance(IMAGE, KERNEL, None, OUT, EPS, padding="full"),
            "'same' or 'valid'",
        ),
        (
            lambda: conv_relevance(IMAGE, KERNEL, None, OUT, EPS, padding="same", stride=2),
            "'same' needs stride 1",
        ),
        (
            lambda: conv_relevance(IMAGE, KERNEL, None, OUT, EPS, dilation=3),
            r"the output would have the spatial size \[-1, -1\]",
        ),
        (
            lambda: conv_relevance(IMAGE, KERNEL, None, OUT, EPS, padding=1),
            r"relevance is \[1, 6, 3, 3\]; expected the shape of the output, \[1, 6, 5, 5\]",
        ),
        (
            lambda: conv_relevance(IMAGE, KERNEL, None, OUT, EPS, output_padding=1),
            "only transposed=True has one",
        ),
        (
            lambda: conv_relevance(
                IMAGE, KERNEL[:4], None, OUT, EPS, transposed=True, output_padding=2
            ),
            "expected less than stride",
        ),
    ],
)
def test_mistakes_are_named(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert isinstance(caught.value, ValueError)
