"""Measures of explanations against answers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from relprop import metrics
from relprop.errors import InputError


def blocks_of(*sums: float) -> Tensor:
    """A map [1, 2, 6] whose three blocks of two columns have these sums, unevenly spread."""
    columns = [part for total in sums for part in (total + 3.0, -1.0)]
    below = [part for _ in sums for part in (-2.5, 0.5)]
    return torch.tensor([[columns, below]])


def test_strips_are_signed_sums_of_columns_over_channels_and_rows():
    relevance = torch.arange(24.0).reshape(1, 2, 2, 6)
    # columns: 0+6+12+18 = 36, then 4 more each
    assert metrics.strip_relevance(relevance, 6).tolist() == [[36, 40, 44, 48, 52, 56]]
    assert metrics.strip_relevance(relevance, 3).tolist() == [[76, 92, 108]]
    assert metrics.strip_relevance(-relevance, 1).tolist() == [[-276]]
    assert metrics.strip_relevance(relevance, 2).dtype == torch.float64


def test_strips_add_small_to_large_without_loss():
    relevance = torch.tensor([[[[2.0**25, 1.0, 1.0, 1.0]]]])
    assert metrics.strip_relevance(relevance, 1).item() == 2**25 + 3


def test_relevance_over_time_adds_up_to_one():
    relevance = torch.tensor([[[[1.0, 2.0, -1.0, 2.0], [0.0, 1.0, 3.0, 0.0]]]])
    assert metrics.relevance_over_time(relevance, 4).tolist() == [[0.125, 0.375, 0.25, 0.25]]
    assert metrics.relevance_over_time(relevance, 2).tolist() == [[0.5, 0.5]]


def test_relevance_over_time_of_a_map_without_relevance_is_zero():
    maps = torch.tensor([[[[1.0, -1.0]]], [[[0.0, 0.0]]]])
    assert metrics.relevance_over_time(maps, 2).tolist() == [[0, 0], [0, 0]]


def test_shares_are_over_the_total_with_its_sign():
    relevance = torch.stack([blocks_of(3.0, 1.0, -2.0), blocks_of(-3.0, -1.0, 0.0)])
    torch.testing.assert_close(
        metrics.block_share(relevance),
        torch.tensor([[1.5, 0.5, -1.0], [0.75, 0.25, 0.0]], dtype=torch.float64),
        rtol=0,
        atol=1e-15,
    )


@pytest.mark.parametrize(
    ("sums", "mask", "cosine", "share"),
    [
        ((1, 1, 1), (1, 0, 1), math.sqrt(2 / 3), 2 / 3),
        ((1, 0, 0), (1, 1, 0), math.sqrt(1 / 2), 1.0),
        ((0, 0, 1), (1, 1, 0), 0.0, 0.0),
        ((1, 1, 0), (1, 1, 0), 1.0, 1.0),
        ((3, 0, 4), (0, 1, 1), 4 / (5 * math.sqrt(2)), 4 / 7),
        ((2, 2, -1), (1, 1, 0), 4 / (3 * math.sqrt(2)), 4 / 3),
        ((-3, 0, -4), (0, 1, 1), 4 / (5 * math.sqrt(2)), 4 / 7),
        ((1, -2, 0), (1, 0, 1), -1 / math.sqrt(10), -1.0),
    ],
)
def test_cosine_and_share_by_hand(sums, mask, cosine, share):
    relevance, mask = blocks_of(*sums).unsqueeze(0), torch.tensor([mask])
    assert metrics.block_cosine(relevance, mask).item() == pytest.approx(cosine, abs=1e-15)
    assert metrics.share_in_blocks(relevance, mask).item() == pytest.approx(share, abs=1e-15)


def test_always_the_last_block_has_the_reported_mean():
    masks = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 1, 1]])
    last = blocks_of(0, 0, 1).expand(3, 1, 2, 6)
    assert metrics.block_cosine(last, masks).mean().item() == pytest.approx(math.sqrt(2) / 3)
    assert f"{metrics.block_cosine(last, masks).mean():.4f}" == "0.4714"


def test_where_a_norm_is_zero_the_cosine_is_zero():
    nothing, one = torch.zeros(1, 1, 2, 6), blocks_of(1, 0, 0).unsqueeze(0)
    assert metrics.block_cosine(nothing, torch.tensor([[1, 1, 0]])).tolist() == [0.0]
    assert metrics.block_cosine(one, torch.tensor([[0, 0, 0]])).tolist() == [0.0]
    cancelling = blocks_of(1, -1, 0).unsqueeze(0)
    assert metrics.block_cosine(cancelling, torch.tensor([[1, 1, 0]])).tolist() == [0.0]


def test_cosine_of_the_smallest_and_largest_relevance():
    for scale in (1e-30, 1e30):
        relevance = torch.zeros(1, 1, 2, 6)
        relevance[0, 0, 0, 0] = scale
        assert metrics.block_cosine(relevance, torch.tensor([[1, 1, 0]])).item() == pytest.approx(
            math.sqrt(0.5), abs=1e-15
        )


def test_several_maps_of_a_sample():
    relevance = torch.stack([blocks_of(1, 0, 0), blocks_of(0, 1, 0)]).expand(5, 2, 1, 2, 6)
    mask = torch.tensor([1, 0, 0]).expand(5, 2, 3)
    assert metrics.block_cosine(relevance, mask).tolist() == [[1.0, 0.0]] * 5


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 3), torch.ones(3), torch.ones(1, 0), torch.full((1, 3), 0.5)]
)
def test_masks_that_do_not_fit(mask):
    with pytest.raises(InputError, match="mask"):
        metrics.block_cosine(torch.ones(1, 1, 2, 6), mask)


@pytest.mark.parametrize("strips", [0, 4, 7])
def test_strips_that_do_not_divide(strips):
    with pytest.raises(InputError, match=f"{strips} strips"):
        metrics.strip_relevance(torch.ones(1, 2, 6), strips)


def test_conservation_error_is_relative_above_one():
    relevance = torch.tensor([[[[3.0, 1.0]]], [[[0.25, 0.0]]], [[[-3.0, -1.0]]], [[[0.0, 0.0]]]])
    start = torch.tensor([5.0, 0.5, -5.0, 0.0])
    assert metrics.conservation_error(relevance, start).tolist() == [0.2, 0.25, 0.2, 0.0]


def test_conservation_error_wants_a_start_for_each_map():
    with pytest.raises(InputError, match="one start for each map"):
        metrics.conservation_error(torch.ones(2, 1, 2, 2), torch.ones(3))


def test_patch_order_by_hand():
    relevance = torch.zeros(2, 2, 4, 6)
    # six patches of 2 x 2: rows of three
    relevance[0, 0, 3, 5] = 4.0  # patch 5
    relevance[0, 1, 0, 2] = 3.0  # patch 2: columns 2 and 3 are patch 1
    relevance[0, 0, 2, 0] = -1.0  # patch 3
    relevance[1] = torch.tensor([1.0, 1, 1, 1, 1, 1])
    assert metrics.patch_order(relevance, 2).tolist() == [[5, 1, 0, 2, 4, 3], [0, 1, 2, 3, 4, 5]]


def test_random_order_is_a_permutation_and_seeded():
    order = metrics.random_order(50, 49, seed=7)
    assert (order.sort(1).values == torch.arange(49)).all()
    assert (order == metrics.random_order(50, 49, seed=7)).all()
    assert (order != metrics.random_order(50, 49, seed=8)).any()
    assert len(order[:, 0].unique()) > 20


def weighted_sums(images: Tensor) -> Tensor:
    """Two outputs: the sum of the pixels, and minus twice that."""
    total = images.sum((1, 2, 3))
    return torch.stack([total, -2 * total], 1)


def test_flipping_curve_by_hand():
    images = torch.zeros(2, 1, 2, 4)
    images[0, 0] = torch.tensor([[1.0, 2.0, 5.0, 0.0], [3.0, 4.0, 0.0, 0.0]])
    images[1, 0] = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    order = torch.tensor([[0, 1], [1, 0]])
    curve = metrics.pixel_flipping(
        weighted_sums, images, torch.tensor([0, 1]), order, patch=2, fill=-1.0
    )
    # 15, then 5 - 4 (four pixels of -1), then -8; second: -2 times 2, 1 - 4, -8
    assert curve.tolist() == [[15, 1, -8], [-4, 6, 16]]
    assert curve.dtype == torch.float64


def test_flipping_by_relevance_of_a_linear_model_is_fastest():
    torch.manual_seed(0)
    weight = torch.randn(1, 1, 8, 8)

    def model(images: Tensor) -> Tensor:
        return (images * weight).sum((2, 3))

    images = torch.rand(3, 1, 8, 8) + 0.5
    labels = torch.zeros(3, dtype=torch.int64)
    best = metrics.patch_order(images * weight, 2)
    curves = [
        metrics.pixel_flipping(model, images, labels, order, patch=2, fill=0.0).mean(0)
        for order in (best, metrics.random_order(3, 16), best.flip(1))
    ]
    areas = [float(curve.sum()) for curve in curves]
    assert areas[0] < areas[1] < areas[2]
    for curve in curves:
        torch.testing.assert_close(curve[-1], torch.zeros((), dtype=torch.float64))


def test_area_under_curve_by_hand():
    curves = torch.tensor([[4.0, 4.0, 4.0, 4.0], [2.0, 1.0, 0.0, -1.0], [8.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(
        metrics.area_under_curve(curves),
        # trapezoids: (1.5 + 0.5 - 0.5) / 3 / 2 and 4 / 3 / 8
        torch.tensor([1.0, 0.25, 1 / 6], dtype=torch.float64),
        rtol=0,
        atol=1e-15,
    )


@pytest.mark.parametrize(
    "order", [torch.zeros(1, 4, dtype=torch.int64), torch.arange(3)[None], torch.arange(4)]
)
def test_orders_that_are_no_permutation(order):
    with pytest.raises(InputError, match="permutation of 4 patches"):
        metrics.pixel_flipping(
            weighted_sums, torch.ones(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64), order, 2
        )


def test_patches_that_do_not_divide():
    with pytest.raises(InputError, match="multiples of the patch"):
        metrics.patch_order(torch.ones(1, 1, 28, 28), 5)
    with pytest.raises(InputError, match="two points"):
        metrics.area_under_curve(torch.ones(1))
