"""Rules as data, and every rule's numbers on a layer small enough to compute by hand."""

from __future__ import annotations

import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch

from relprop import rules
from relprop.backends.reference import linear as reference
from relprop.functional import linear_relevance
from relprop.graph.maps import Dense
from relprop.rules.bounds import Bound, bound_tensor
from relprop.rules.terms import ZERO

EVERY_RULE = [
    rules.Epsilon(),
    rules.Epsilon(0),
    rules.ZPlus(zero_params="bias"),
    rules.AlphaBeta(),
    rules.AlphaBeta(1, 0, conserve=True),
    rules.Gamma(0.5),
    rules.ZBox(-1, 1),
    rules.ZBox(torch.tensor([[-1.0], [-2.0]]), [[1.0], [2.0]]),
    rules.WSquare(),
    rules.Flat(),
    rules.Pass(),
    rules.Norm(),
    rules.Norm(1e-3),
    rules.Product("half"),
    rules.Joint(channels=(0, 3)),
    rules.Recurrent("prop", rule=rules.AlphaBeta()),
]


@pytest.mark.parametrize("rule", EVERY_RULE, ids=repr)
def test_rules_compare_hash_and_pickle_by_value(rule: rules.Rule) -> None:
    copy = pickle.loads(pickle.dumps(rule))
    assert copy == rule
    assert hash(copy) == hash(rule)
    assert repr(copy) == repr(rule)
    assert sum(other == rule for other in EVERY_RULE) == 1
    with pytest.raises(AttributeError):
        rule.epsilon = 1.0  # type: ignore[attr-defined]


def test_boxes_of_other_values_differ() -> None:
    box = rules.ZBox(torch.tensor([-1.0, -2.0]), 1)
    assert box == rules.ZBox(torch.tensor([-1.0, -2.0]), 1.0)
    assert box != rules.ZBox(torch.tensor([-1.0, -3.0]), 1)
    assert box != rules.ZBox(torch.tensor([[-1.0, -2.0]]), 1)


def test_box_owns_its_bounds_and_keeps_their_precision() -> None:
    low = torch.tensor([-1.0, -2.0])
    box = rules.ZBox(low, 2.6400001)
    low.fill_(7.0)
    assert bound_tensor(box.low).tolist() == [-1.0, -2.0]
    assert bound_tensor(box.high).item() == 2.6400001
    assert bound_tensor(rules.ZBox([-0.1, -0.2], np.float64(0.3)).low).tolist() == [
        -0.1,
        -0.2,
    ]


@pytest.mark.parametrize(
    ("alpha", "beta"), [(2, 1), (1, 0), (1.4, 0.4), (2.2, 1.2), (1.1, 0.1), (1000.1, 999.1)]
)
def test_alpha_minus_beta_is_one_up_to_rounding(alpha: float, beta: float) -> None:
    rule = rules.AlphaBeta(alpha, beta)
    assert (rule.alpha, rule.beta) == (alpha, beta)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules.AlphaBeta(2, 0.5), r"alpha - beta is 1\.5 .* expected alpha - beta = 1"),
        (lambda: rules.AlphaBeta(0.5, -0.5), "alpha is 0.5; expected a finite number >= 1"),
        (lambda: rules.AlphaBeta(1.001, 0), "expected alpha - beta = 1"),
        (lambda: rules.AlphaBeta(float("inf"), float("inf")), "alpha is inf"),
        (lambda: rules.Epsilon(-1e-6), "Epsilon: epsilon is -1e-06"),
        (lambda: rules.Epsilon(float("nan")), "Epsilon: epsilon is nan"),
        (lambda: rules.Epsilon("1"), "Epsilon: epsilon is '1'"),  # type: ignore[arg-type]
        (lambda: rules.ZPlus(zero_params="weight"), "ZPlus: zero_params is 'weight'"),
        (lambda: rules.Gamma(-0.1), "Gamma: gamma is -0.1"),
        (lambda: rules.ZBox(1, -1), "ZBox: low exceeds high"),
        (lambda: rules.ZBox(float("nan"), 1), "ZBox: low must be finite"),
        (lambda: rules.ZBox(0, torch.tensor(1j)), "ZBox: high must be finite real"),
        (lambda: rules.ZBox(torch.zeros(2), torch.ones(3)), "ZBox: low and high do not broadcast"),
        (lambda: rules.Joint(epsilon=-1.0), "Joint: epsilon is -1.0"),
        (lambda: rules.Joint(pixel=rules.Epsilon()), "expected a ZBox and an AlphaBeta"),  # type: ignore[arg-type]
        (lambda: rules.Product("both"), "Product: mode is 'both'"),
        (lambda: rules.Norm(-1.0), "Norm: epsilon is -1.0"),
        (lambda: rules.Recurrent("some"), "Recurrent: gate is 'some'"),
    ],
)
def test_bad_arguments_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_groups_of_scale_zero_are_left_out() -> None:
    assert len(rules.AlphaBeta(1, 0).groups) == 1
    assert len(rules.Joint(state=rules.AlphaBeta(1, 0)).groups) == 1
    assert all(group.bias == ZERO for group in rules.Gamma(zero_params="bias").groups)


# A layer of two inputs and two outputs.  Contributions a_i W_oi:
#     output 0:   3  -2   bias  1   z =  2
#     output 1:  -1  -4   bias -2   z = -7
A, W, B, R = [1.0, -2.0], [[3.0, 1.0], [-1.0, 2.0]], [1.0, -2.0], [10.0, 14.0]
F = Fraction

BY_HAND = {
    # s = (10/2, 14/-7)
    "epsilon": (rules.Epsilon(0), [3 * 5 + 2, -2 * 5 + 8]),
    # s = (10/3, 14/-8)
    "epsilon=1": (rules.Epsilon(1), [F(30, 3) + F(14, 8), F(-20, 3) + F(4 * 14, 8)]),
    # z without bias = (1, -5)
    "epsilon, no bias": (
        rules.Epsilon(0, zero_params="bias"),
        [3 * 10 + F(14, 5), -2 * 10 + F(4 * 14, 5)],
    ),
    # z+ = (3 + 1, 0)
    "z+": (rules.ZPlus(0), [F(30, 4), 0]),
    "z+, no bias": (rules.ZPlus(0, zero_params="bias"), [10, 0]),
    # z+ = (4, 0), z- = (-2, -7)
    "alpha2 beta1": (
        rules.AlphaBeta(2, 1, epsilon=0),
        [F(2 * 30, 4) - 2, F(-2 * 10, 2) - F(4 * 14, 7)],
    ),
    "alpha2 beta1, conserving": (
        rules.AlphaBeta(2, 1, epsilon=0, conserve=True),
        [F(2 * 30, 4) + 2, F(-2 * 10, 2) + F(4 * 14, 7)],
    ),
    "alpha1 beta0": (rules.AlphaBeta(1, 0, epsilon=0), [F(30, 4), 0]),
    # output 0: positive contributions twice, 6 - 2 + 2 = 6; output 1: negative twice, -14
    "gamma=1": (rules.Gamma(1, epsilon=0), [6 * F(10, 6) + 2, -2 * F(10, 6) + 8]),
    # without bias 6 - 2 = 4 and -10
    "gamma=1, no bias": (
        rules.Gamma(1, epsilon=0, zero_params="bias"),
        [F(60, 4) + F(2 * 14, 10), F(-20, 4) + F(8 * 14, 10)],
    ),
    # output 0: (1 + 3) 3, (-2 + 3) 1, sum 13; output 1: (1 - 2) (-1), (-2 + 3) 2, sum 3
    "box -3..2": (rules.ZBox(-3, 2, epsilon=0), [F(120, 13) + F(14, 3), F(10, 13) + F(28, 3)]),
    # low = (-3, -2): output 0: 12, 0; output 1: 1, 0
    "box by feature": (rules.ZBox(torch.tensor([-3.0, -2.0]), 2, epsilon=0), [24, 0]),
    # 9 + 1 + 1, 1 + 4 + 4
    "w^2": (rules.WSquare(0), [F(90, 11) + F(14, 9), F(10, 11) + F(56, 9)]),
    "w^2, no bias": (
        rules.WSquare(0, zero_params="bias"),
        [F(90, 10) + F(14, 5), F(10, 10) + F(56, 5)],
    ),
    "flat": (rules.Flat(0), [12, 12]),
    # first input a pixel: 12 and 1; second a state: -2 and -4, so z1 = (12, 1), z2 = (-2, -4)
    "joint": (
        rules.Joint(rules.ZBox(-3, 2), rules.AlphaBeta(2, 1), epsilon=0, channels=(0, 1)),
        [2 * 10 + 2 * 14, -10 - 14],
    ),
}


@pytest.mark.parametrize("backend", ["aten", "reference"])
@pytest.mark.parametrize("case", BY_HAND)
def test_two_by_two_by_hand(case: str, backend: str) -> None:
    rule, expected = BY_HAND[case]
    a, w, b, r = (torch.tensor(v, dtype=torch.float64) for v in (A, W, B, R))
    found = linear_relevance(a, w, b, r, rule, backend=backend)
    wanted = torch.tensor([float(v) for v in expected], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("backend", ["aten", "reference"])
def test_joint_gives_all_to_pixels_at_the_first_step(backend: str) -> None:
    rule = rules.Joint(rules.ZBox(-3, 2), rules.AlphaBeta(2, 1), epsilon=0, channels=(0, 1))
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    w, r = (torch.tensor(v, dtype=torch.float64) for v in (W, R))
    found = linear_relevance(a, w, None, r, rule, backend=backend)
    assert found.tolist() == [24.0, 0.0]


def test_absorbed_by_hand() -> None:
    a, w, b, r = (torch.tensor(v, dtype=torch.float64) for v in (A, W, B, R))
    # the bias takes 1 * 5 and -2 * -2
    lost = reference.absorbed(Dense(), a, w, b, r, rules.Epsilon(0))
    assert lost.tolist() == [5.0, 4.0]
    # output 0: 2 * 10 * 1/4 to b+; output 1: z+ = 0, so that -14 reach the inputs (-10) and b- (-4)
    lost = reference.absorbed(Dense(), a, w, b, r, rules.AlphaBeta(2, 1, epsilon=0))
    torch.testing.assert_close(lost, torch.tensor([5.0, 14.0 + 14.0 - 4.0]).double())


def test_a_bound_is_copied_once_and_travels_without_its_copies() -> None:
    bound = Bound(torch.tensor([-1.0, 0.5], dtype=torch.float64))
    copy = bound.on(torch.device("cpu"))
    assert copy.dtype is torch.float32 and bound.on(torch.device("cpu")) is copy
    again = pickle.loads(pickle.dumps(bound))
    assert again == bound and not again._copies


def test_rules_refuse_what_is_no_number() -> None:
    for make in (
        lambda: rules.Epsilon(True),
        lambda: rules.Gamma(False),
        lambda: rules.Recurrent(epsilon=-1.0),
        lambda: rules.Recurrent(bias_factor=-1.0),
        lambda: rules.Norm(-1.0),
    ):
        with pytest.raises(ValueError, match="expected a finite number"):
            make()


def test_bounds_may_be_tensors_that_numpy_cannot_read() -> None:
    low = torch.full((3,), -1.0, dtype=torch.bfloat16, requires_grad=True)
    assert rules.ZBox(low, 1.0) == rules.ZBox(torch.full((3,), -1.0), 1.0)
