"""Targets and starts: every accepted form, every refused one, hand-computed seeds."""

import numpy as np
import pytest
import torch

from relprop.engine.targets import resolve_target, seed, squeeze_targets, start_sums
from relprop.errors import InputError

OUTPUT = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])


def start_with(target, start="output", output=OUTPUT, batch_axis=0):
    batch = output.shape[batch_axis]
    return seed(resolve_target(target, output.shape, batch, batch_axis), output, start)


@pytest.mark.parametrize(
    "one", [1, np.int64(1), np.uint8(1), torch.tensor(1), np.array(1), (1,), (np.int32(1),)]
)
def test_one_target_for_all(one):
    expected = torch.tensor([[[0.0, -2.0, 0.0], [0.0, 5.0, 0.0]]])
    torch.testing.assert_close(start_with(one), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "each",
    [
        [2, 0],
        [np.int64(2), torch.tensor(0)],
        [(2,), (0,)],
        torch.tensor([2, 0]),
        torch.tensor([2, 0], dtype=torch.uint8),
        torch.tensor([2, 0], dtype=torch.int32),
        np.array([2, 0], dtype=np.uint16),
    ],
)
def test_one_target_a_sample(each):
    expected = torch.tensor([[[0.0, 0.0, 3.0], [4.0, 0.0, 0.0]]])
    torch.testing.assert_close(start_with(each), expected, rtol=0, atol=0)
    assert not resolve_target(each, (2, 3), 2).keep_axis


def test_k_targets_a_sample():
    wanted = torch.tensor([[0, 2, 0], [1, 1, 2]])
    for target in (wanted, wanted.numpy()):
        resolved = resolve_target(target, OUTPUT.shape, 2)
        assert resolved.count == 3 and resolved.keep_axis
        expected = torch.tensor(
            [
                [[1.0, 0.0, 0.0], [0.0, 5.0, 0.0]],
                [[0.0, 0.0, 3.0], [0.0, 5.0, 0.0]],
                [[1.0, 0.0, 0.0], [0.0, 0.0, -6.0]],
            ]
        )
        torch.testing.assert_close(seed(resolved, OUTPUT, "output"), expected, rtol=0, atol=0)


def test_tuples_index_outputs_of_several_dimensions():
    output = torch.arange(12.0).reshape(2, 3, 2)
    expected = torch.zeros(1, 2, 3, 2)
    expected[0, 0, 2, 1], expected[0, 1, 2, 1] = 5.0, 11.0
    torch.testing.assert_close(start_with((2, 1), output=output), expected, rtol=0, atol=0)
    expected = torch.zeros(1, 2, 3, 2)
    expected[0, 0, 0, 1], expected[0, 1, 2, 0] = 1.0, 10.0
    each = [(0, 1), (2, torch.tensor(0))]
    torch.testing.assert_close(start_with(each, output=output), expected, rtol=0, atol=0)


def test_batch_axis_of_the_output():
    output = torch.arange(12.0).reshape(3, 2, 2)
    expected = torch.zeros(1, 3, 2, 2)
    expected[0, 2, 0, 1], expected[0, 0, 1, 1] = 9.0, 3.0
    for axis in (1, -2):
        found = start_with([(2, 1), (0, 1)], output=output, batch_axis=axis)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    found = start_with(torch.tensor([[0, 2], [1, 1]]), output=table, batch_axis=1)
    expected = torch.zeros(2, 3, 2)
    expected[0, 0, 0], expected[0, 1, 1], expected[1, 2, 0], expected[1, 1, 1] = 1.0, 4.0, 5.0, 4.0
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 1)])
def test_no_target_where_the_output_has_one_value(shape):
    output = torch.tensor([1.0, -2.0, 3.0]).reshape(shape)
    torch.testing.assert_close(start_with(None, output=output), output.unsqueeze(0))


def test_starts():
    targets = [1, 2]
    for start, values in [
        ("output", (-2.0, -6.0)),
        ("one", (1.0, 1.0)),
        ("relu", (0.0, 0.0)),
        (lambda y: y.exp(), (0.1353352832, 0.0024787522)),
        (lambda y: y - y.mean(1, keepdim=True), (-8 / 3, -7.0)),
    ]:
        expected = torch.zeros(1, 2, 3)
        expected[0, 0, 1], expected[0, 1, 2] = values
        torch.testing.assert_close(start_with(targets, start), expected, rtol=1e-6, atol=1e-9)


def test_a_tensor_is_the_whole_relevance():
    given = torch.tensor([[1, 2, 3], [4, 5, 6]])
    found = seed(None, OUTPUT.double(), given)
    torch.testing.assert_close(found, given.double().unsqueeze(0), rtol=0, atol=0)
    found = seed(None, OUTPUT.half(), given.double())
    assert found.dtype is torch.float32 and found.shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_dtype_of_the_start(dtype, expected):
    assert start_with(0, output=OUTPUT.to(dtype)).dtype is expected


def test_the_start_is_detached_and_leaves_the_output_alone():
    output = OUTPUT.clone().requires_grad_()
    found = start_with(0, lambda y: y * 2, output)
    assert not found.requires_grad
    given = torch.ones(2, 3)
    seed(None, OUTPUT, given).mul_(1)
    with torch.inference_mode():
        torch.testing.assert_close(start_with(0), start_with(0))
    assert torch.equal(output, OUTPUT)


@pytest.mark.parametrize(
    ("target", "count"),
    [
        (1, 1),
        ([], 1),
        (torch.zeros(0, dtype=torch.long), 1),
        (torch.zeros(0, 4, dtype=torch.long), 4),
    ],
)
def test_an_empty_batch(target, count):
    found = start_with(target, output=torch.zeros(0, 3))
    assert found.shape == (count, 0, 3)
    assert start_sums(found).shape == (count, 0)
    assert start_with(None, output=torch.zeros(0)).shape == (1, 0)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (3, r"target: 3 is out of range; expected 0 to 2"),
        (-1, r"target: -1 is out of range; expected 0 to 2"),
        (2**70, r"out of range; expected 0 to 2"),
        ([0, 3], r"target\[1\]: 3 is out of range; expected 0 to 2"),
        ([-1, 3], r"target\[0\]: -1 is out of range"),
        (torch.tensor([0, 7]), r"target\[1\]: 7 is out of range; expected 0 to 2.*3 values"),
        (torch.tensor([[0, 1], [2, -5]]), r"target\[1, 1\]: -5 is out of range"),
        ((3,), r"target: 3 is out of range"),
        (True, r"target: True of type bool; expected an integer"),
        (1.0, r"target: 1.0 of type float; expected an integer"),
        ("1", r"target: '1' of type str"),
        ([0, 1.0], r"target\[1\]: 1.0 of type float"),
        ([False, 1], r"target\[0\]: False of type bool"),
        ([[0, 1], [1, 2]], r"target\[0\]: \[0, 1\] of type list.*2-d integer tensor"),
        (torch.tensor(True), r"target: .*expected an integer"),
        (torch.tensor(1.0), r"expected an integer"),
        (torch.tensor([0.0, 1.0]), r"torch.float32 entries; expected integers"),
        (torch.tensor([True, False]), r"torch.bool entries; expected integers"),
        (np.array([0.0, 1.0]), r"float64 entries; expected integers"),
        (np.array(["a", "b"]), r"entries; expected integers"),
        ([0], r"target: 1 entries for a batch of 2; expected one a sample"),
        (torch.tensor([0, 1, 2]), r"target: 3 entries for a batch of 2"),
        (torch.tensor([[0, 1]]), r"target: 1 entries for a batch of 2"),
        (torch.zeros(2, 0, dtype=torch.long), r"\[batch, K\] for K >= 1"),
        (torch.zeros(2, 1, 1, dtype=torch.long), r"shape \(2, 1, 1\); expected \[batch\]"),
        ((0, 1), r"target: \(0, 1\), but the output has 3 values a sample; expected an int"),
        (None, r"target: None, but the output has 3 values a sample; expected a target"),
    ],
)
def test_refused_targets(target, words):
    with pytest.raises(InputError, match=words):
        resolve_target(target, (2, 3), 2)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (0, r"target: 0, but the output has 3 x 4 values a sample; expected a tuple of 2"),
        ([0, 1], r"target\[0\]: 0, but the output has 3 x 4 values"),
        (torch.tensor([0, 1]), r"an array of integers, but the output has 3 x 4 values"),
        ((1, 2, 3), r"expected a tuple of 2 integers"),
        ((1, 4), r"target: \(1, 4\) is out of range; expected 0 to 2 x 0 to 3"),
        ([(0, 0), (3, 0)], r"target\[1\]: \(3, 0\) is out of range"),
        ((1, True), r"expected an integer, or a tuple"),
        (None, r"3 x 4 values"),
    ],
)
def test_refused_targets_of_outputs_of_several_dimensions(target, words):
    with pytest.raises(InputError, match=words):
        resolve_target(target, (2, 3, 4), 2)


def test_a_target_for_an_output_of_one_number_a_sample():
    with pytest.raises(InputError, match="one value a sample; expected target=None"):
        resolve_target(0, (2,), 2)
    assert resolve_target(0, (2, 1), 2).index.tolist() == [[[0], [0]]]


@pytest.mark.parametrize(("shape", "axis"), [((3, 5), 0), ((2, 3), 1), ((), 0), ((2, 3), 2)])
def test_an_output_without_the_batch(shape, axis):
    with pytest.raises(InputError, match=f"expected its axis {axis} to count the 2 samples"):
        resolve_target(0, shape, 2, axis)


def test_refused_starts():
    target = resolve_target(0, OUTPUT.shape, 2)
    for start, words in [
        ("ouput", r"'ouput'; expected one of 'output', 'one', 'relu'.*did you mean 'output'"),
        (3, r"start: 3; expected one of"),
        (None, r"start: None; expected one of"),
        (torch.ones(2, 3), r"a tensor beside a target; expected target=None"),
        (lambda y: y[0], r"start\(output\): shape \(3,\).*expected real numbers of shape \(2, 3\)"),
        (lambda y: 1.0, r"start\(output\): float; expected a tensor"),
    ]:
        with pytest.raises(InputError, match=words):
            seed(target, OUTPUT, start)
    with pytest.raises(InputError, match=r"start: shape \(3, 2\).*\(2, 3\)"):
        seed(None, OUTPUT, torch.ones(3, 2))
    with pytest.raises(InputError, match=r"torch\.bool"):
        seed(None, OUTPUT, torch.ones(2, 3).bool())
    with pytest.raises(InputError, match="needs a target"):
        seed(None, OUTPUT, "one")
    with pytest.raises(InputError, match=r"output: torch.int64; expected floating point"):
        seed(target, OUTPUT.long(), "output")


def test_squeeze_targets():
    one = resolve_target(1, (2, 3), 2)
    many = resolve_target(torch.tensor([[0], [1]]), (2, 3), 2)
    relevance = torch.randn(1, 2, 5)
    assert torch.equal(squeeze_targets(relevance, one), relevance[0])
    assert torch.equal(squeeze_targets(relevance, None), relevance[0])
    assert torch.equal(squeeze_targets(relevance, many), relevance.reshape(2, 1, 5))
    relevance = torch.arange(60.0).reshape(3, 2, 5, 2)
    many = resolve_target(torch.zeros(2, 3, dtype=torch.long), (2, 3), 2)
    found = squeeze_targets(relevance, many)
    assert found.shape == (2, 3, 5, 2) and found.is_contiguous()
    assert found[1, 2, 4, 0] == relevance[2, 1, 4, 0]
    many = resolve_target(torch.zeros(5, 3, dtype=torch.long), (5, 3), 5)
    found = squeeze_targets(relevance, many, batch_axis=1)
    assert found.shape == (2, 5, 3, 2)
    assert found[1, 4, 2, 0] == relevance[2, 1, 4, 0]


def test_start_sums():
    relevance = torch.arange(24.0).reshape(2, 3, 4)
    assert start_sums(relevance).tolist() == [[6, 22, 38], [54, 70, 86]]
    assert start_sums(relevance, 1).tolist() == [[12, 15, 18, 21], [48, 51, 54, 57]]
    assert start_sums(relevance[:, :, 0]).tolist() == [[0, 4, 8], [12, 16, 20]]
