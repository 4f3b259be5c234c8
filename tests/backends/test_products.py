"""Products of the ATen backend, in each precision and memory format."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from relprop.backends.aten import blockwise
from relprop.backends.aten.products import Products
from relprop.graph.maps import Conv, Dense
from relprop.operations.precision import float32_products
from relprop.rules.terms import IDENTITY


def test_bfloat16_products_add_the_bias_in_float32() -> None:
    linear_map = Conv((1, 1), ((0, 0), (0, 0)), (1, 1))
    w, b = torch.randn(3, 2, 2, 2).bfloat16().float(), torch.tensor([1.001, -2.0, 100.003])
    products = Products(linear_map, w, "medium", {})
    z = products.contraction(torch.zeros(1, 2, 3, 3), IDENTITY, b)
    assert torch.equal(z, b.view(1, 3, 1, 1).expand(1, 3, 2, 2))


def test_a_dense_layer_of_a_weight_for_each_sample() -> None:
    a, w, b = torch.randn(4, 3).double(), torch.randn(2, 5, 3).double(), torch.randn(5).double()
    z = Dense().contraction(a, w, b)  # the input is one for both weights
    assert_close(z, torch.stack([a @ own.T + b for own in w]), rtol=1e-12, atol=1e-12)
    s = torch.randn(6, *z.shape).double()
    found = Dense().adjoint(s, w, a.shape)
    expected = torch.stack([sum(row[i] @ w[i] for i in range(2)) for row in s])
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_only_dense_weights_are_taken_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "BLOCK", 8)
    w = torch.randn(3, 4)
    linear_map = Conv((1, 1), ((0, 0), (0, 0)), (1, 1))
    for geometry, weight, blocks in [(Dense(), w, True), (linear_map, w[..., None, None], False)]:
        products = Products(geometry, weight, "highest", {}, rows=2)
        assert products._in_blocks is blocks


def test_fused_convolutions_are_the_library_s_with_the_work_around_them() -> None:
    layout = torch.channels_last
    a, w = torch.randn(2, 3, 5, 6), torch.randn(4, 3, 3, 2)
    a, b = a.contiguous(memory_format=layout), torch.randn(4)
    linear_map = Conv((1, 1), ((1, 1), (0, 0)), (1, 2))
    products = Products(linear_map, w, "highest", {})
    z = F.conv2d(a, w, b, padding=(1, 0), dilation=(1, 2))
    found = products.contraction(a, IDENTITY, b, rectify=True)
    assert_close(found, z.relu(), rtol=1e-5, atol=1e-5)
    s = torch.randn(z.shape).contiguous(memory_format=layout).unsqueeze(0)
    back = F.conv_transpose2d(s[0], w, padding=(1, 0), dilation=(1, 2)) * a
    found = products.adjoint(s, IDENTITY, a.shape, times=a)
    assert_close(found[0], back, rtol=1e-5, atol=1e-5)


def test_tf32_is_a_matter_of_cuda() -> None:
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    with float32_products("high", torch.device("cuda")):
        assert settings.fp32_precision == "tf32"
    assert settings.fp32_precision == before


def test_float32_products_are_float32_inside_and_as_set_outside() -> None:
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        with float32_products("highest", torch.device("cpu")):
            assert settings.fp32_precision == "ieee"
        assert settings.fp32_precision == "bf16"
    finally:
        settings.fp32_precision = before


@pytest.mark.parametrize("spatial", [2, 3])
def test_convolutions_keep_channels_last(spatial: int) -> None:
    form = {2: torch.channels_last, 3: torch.channels_last_3d}[spatial]
    linear_map = Conv((1,) * spatial, ((1, 1),) * spatial, (1,) * spatial)
    s, w = torch.randn(2, 4, *(5,) * spatial), torch.randn(4, 3, *(3,) * spatial)
    shape = torch.Size((2, 3, *(5,) * spatial))
    plain = linear_map.adjoint(s, w, shape)
    turned = linear_map.adjoint(s.contiguous(memory_format=form), w, shape)
    assert plain.is_contiguous() and turned.is_contiguous(memory_format=form)
    assert_close(turned, plain, rtol=1e-5, atol=1e-5)
