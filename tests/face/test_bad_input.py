"""Every wrong input gives one clear error: where, what came, what was expected, what to do."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from closeness import same_numbers
from torch import Tensor, nn

import relprop
from relprop import CaptureError, InputError, PlanningError, rules
from relprop.composites import uniform


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).eval()


@pytest.fixture(scope="module")
def net() -> nn.Sequential:
    return make_net()


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def refusal(error: type[Exception], call: Callable[[], Any], *words: str) -> str:
    """The message of the error that `call` raises, checked to hold the words in their order."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert re.search(".*".join(map(re.escape, words)), message, re.DOTALL), message
    return message


# --- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (5, ["target: 5 is out of range", "expected 0 to 4", "5 values a sample"]),
        (-1, ["target: -1 is out of range", "expected 0 to 4"]),
        (1.0, ["target: 1.0 of type float", "expected an integer"]),
        (True, ["target: True of type bool", "expected an integer"]),
        ("cat", ["target: 'cat' of type str", "expected an integer"]),
        ({1}, ["target: {1} of type set", "expected an integer"]),
        (None, ["target: None", "5 values a sample", "expected a target"]),
        ([0], ["target: 1 entries for a batch of 2", "expected one a sample"]),
        ([0, 1, 2], ["target: 3 entries for a batch of 2"]),
        ([0, 9], ["target[1]: 9 is out of range", "expected 0 to 4"]),
        ([0, None], ["target[1]: None of type NoneType", "expected an integer"]),
        ((0, 1), ["target: (0, 1)", "5 values a sample", "expected an int for all"]),
        (torch.tensor([0.0, 1.0]), ["target: torch.float32", "expected integers", ".long()"]),
        (torch.tensor([True, False]), ["target: torch.bool", "expected integers"]),
        (torch.tensor([0, 1, 2]), ["target: 3 entries for a batch of 2"]),
        (torch.tensor([[0, 7], [1, 2]]), ["target[0, 1]: 7 is out of range"]),
        (torch.tensor([0, -1]), ["target[1]: -1 is out of range"]),
        (torch.zeros(2, 0, dtype=torch.long), ["shape (2, 0)", "[batch, K] for K >= 1"]),
        (torch.zeros(2, 1, 1, dtype=torch.long), ["shape (2, 1, 1)", "expected [batch]"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["epsilon_plus", "gradient"])
def test_target(target: Any, words: list[str], method: str, net: nn.Module) -> None:
    refusal(
        InputError, lambda: relprop.explain(net, images(), target=target, method=method), *words
    )


class Grid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def test_target_of_an_output_with_several_dimensions() -> None:
    explainer = relprop.Explainer(Grid(), "lrp_zero")
    x = torch.rand(2, 3, 4) + 1
    found = explainer(x, target=(2, 1))
    expected = torch.zeros(2, 3, 4)
    expected[:, 2, 1] = 2 * x[:, 2, 1]
    torch.testing.assert_close(found, expected)
    each = explainer(x, target=[(0, 0), (2, 3)])
    assert each.nonzero().tolist() == [[0, 0, 0], [1, 2, 3]]
    for target, words in (
        (1, ["target: 1", "3 x 4 values a sample", "expected a tuple of 2 integers"]),
        ((1,), ["target: (1,)", "expected a tuple of 2 integers"]),
        ((3, 0), ["target: (3, 0) is out of range", "expected 0 to 2 x 0 to 3"]),
        ((0, -1), ["target: (0, -1) is out of range"]),
        ([(0, 0)], ["target: 1 entries for a batch of 2"]),
        ([(0, 0), (0, 4)], ["target[1]: (0, 4) is out of range"]),
        (torch.tensor([0, 1]), ["target: an array of integers", "expected a tuple of 2"]),
        (None, ["target: None", "3 x 4 values a sample"]),
    ):
        refusal(InputError, lambda target=target: explainer(x, target=target), *words)


# --- inputs -------------------------------------------------------------------------------------


def with_values(**places: float) -> Tensor:
    x = images()
    for index, value in enumerate(places.values()):
        x[index, 0, 0, 0] = value
    return x


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: x[:, :2], ["model itself fails", "(2, 2, 4, 4) float32", "channels"]),
        (lambda x: x[..., :3], ["model itself fails", "(2, 3, 4, 3) float32"]),
        (lambda x: (x * 50).byte(), ["(2, 3, 4, 4) uint8", "model's parameters are float32"]),
        (lambda x: x.double(), ["(2, 3, 4, 4) float64", "model's parameters are float32"]),
        (lambda x: x.half(), ["(2, 3, 4, 4) float16", "model's parameters are float32"]),
        (lambda x: x.numpy(), ["inputs: ndarray", "expected at least one torch.Tensor"]),
        (lambda x: None, ["inputs: NoneType", "expected at least one torch.Tensor"]),
        (lambda x: [], ["inputs: nothing", "expected at least one torch.Tensor"]),
        (lambda x: x.to_sparse(), ["input 0: torch.float32, torch.sparse_coo", "expected real"]),
        (lambda x: x.to(torch.complex64), ["input 0: torch.complex64", "expected real, dense"]),
        (lambda x: x.to("meta"), ["input 0: ", "meta device", "expected values"]),
        (lambda x: torch.tensor(1.0), ["inputs: no tensor has an axis 0"]),
        (lambda x: with_values(a=float("nan")), ["input 0: 1 of 96 values", "nan_policy"]),
        (lambda x: with_values(a=float("inf"), b=-float("inf")), ["input 0: 2 of 96 values"]),
    ],
)
def test_input(make: Callable[[Tensor], Any], words: list[str], net: nn.Module) -> None:
    for method in ("epsilon_plus", "gradient"):
        explainer = relprop.Explainer(net, method)
        refusal(InputError, lambda: explainer(make(images()), target=0), *words)  # noqa: B023
        assert explainer(images(), target=0).shape == (2, 3, 4, 4)
        refusal(InputError, lambda: explainer(make(images()), target=0), *words)  # noqa: B023


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor | None = None, *, mask: Any = None) -> dict[str, Any]:
        logits = self.layer(x)
        return {
            "logits": logits if y is None else logits + y,
            "hidden": [x * 2, x * 3],
            "best": x.argmax(1),
            "constant": torch.ones(3),
        }


@pytest.fixture(scope="module")
def two() -> Two:
    torch.manual_seed(0)
    return Two()


def test_inputs_that_disagree(two: Two) -> None:
    x, y = torch.randn(3, 4), torch.randn(2, 3)
    explainer = relprop.Explainer(two, "lrp_zero", output="logits")
    refusal(
        InputError, lambda: explainer(x, y, target=0),
        "batch sizes differ on axis 0", "{0: 3, 1: 2}", "expected one size",
    )  # fmt: skip
    refusal(
        InputError, lambda: explainer(x, target=0, kwargs={"mask": torch.ones(5)}),
        "batch sizes differ", "'mask': 5",
    )  # fmt: skip


def test_the_input_with_a_nan_is_named(two: Two) -> None:
    x, bad = torch.randn(3, 4), torch.full((3, 3), float("nan"))
    explainer = relprop.Explainer(two, "lrp_zero", output="logits")
    refusal(InputError, lambda: explainer(x, bad, target=0), "input 1: 9 of 9 values are NaN")
    words = "input y: 9 of 9 values are NaN"
    refusal(InputError, lambda: explainer(x, target=0, kwargs={"y": bad}), words)


def test_nan_policy_propagate_keeps_samples_apart(net: nn.Module) -> None:
    x = images(3)
    x[1, 0, 0, 0] = float("nan")
    for method in ("epsilon_plus", "lrp_alpha2_beta1", "gradient_x_input"):
        explainer = relprop.Explainer(net, method, nan_policy="propagate")
        found = explainer(x, target=1)
        assert bool(found[1].isnan().any())
        clean = relprop.explain(net, images(3), target=1, method=method)
        torch.testing.assert_close(found[[0, 2]], clean[[0, 2]], rtol=1e-5, atol=1e-7)


class Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(max=0) / 0.0


def test_output_that_is_not_finite() -> None:
    x = -torch.rand(2, 3)
    words = "the model's output: 6 of 6 values are NaN or infinite"
    refusal(InputError, lambda: relprop.explain(Root(), x, target=0), words)
    found = relprop.explain(Root(), x, target=0, nan_policy="propagate")
    assert found.shape == (2, 3) and bool(found.isinf().any())


class Ids(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float() * 2


def test_integers_alone() -> None:
    for x in (torch.arange(6).view(2, 3), torch.ones(2, 3, dtype=torch.bool)):
        for method in ("epsilon_plus", "gradient"):
            refusal(
                PlanningError, lambda: relprop.explain(Ids(), x, target=0, method=method),  # noqa: B023
                "does not depend on any input to explain", "integer inputs", "embedding",
            )  # fmt: skip
    words = "output: torch.int64", "expected floating point"
    refusal(
        InputError, lambda: relprop.explain(nn.Flatten(), torch.ones(2, 3).long(), target=0), *words
    )


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.layer = nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.layer(self.embedding(ids).sum(1))


def test_methods_that_vary_the_input_refuse_tokens() -> None:
    model, ids = Tokens(), torch.tensor([[0, 3, 6], [1, 1, 2]])
    for method in ("smoothgrad", "integrated_gradients"):
        refusal(
            InputError, lambda: relprop.explain(model, ids, target=0, method=method),  # noqa: B023
            f"{method}: token inputs have no values to vary", "gradient_x_input",
        )  # fmt: skip
    for method in ("epsilon_plus", "gradient"):  # captured by now, so the plan meets the id
        refusal(
            InputError, lambda: relprop.explain(model, ids + 9, target=0, method=method),  # noqa: B023
            "'embedding' (embedding): the forward pass fails", "index out of range",
        )  # fmt: skip
    refusal(
        InputError, lambda: relprop.explain(Tokens(), ids + 9, target=0),
        "the model itself fails", "(2, 3) int64", "IndexError",
    )  # fmt: skip


# --- models -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Dropout2d(0.1), nn.AlphaDropout(0.1)], ids=str
)
def test_training_mode_is_named_with_its_path(kind: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), kind), nn.Flatten())
    kind.train()
    name = type(kind).__name__
    refusal(
        PlanningError, lambda: relprop.explain(model, images(), target=0),
        f"'1.1' ({name}) is in training mode", "model.eval()",
    )  # fmt: skip
    assert kind.training
    model.eval()
    assert relprop.explain(model, images(), target=0).shape == (2, 3, 4, 4)


class FunctionalDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


def test_random_forward_pass() -> None:
    refusal(
        (CaptureError, PlanningError),  # type: ignore[arg-type]
        lambda: relprop.explain(FunctionalDropout(), torch.ones(2, 50), target=0),
    )


def test_batch_norm_without_running_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    model = nn.Sequential(*model, nn.Flatten()).eval()
    refusal(
        PlanningError, lambda: relprop.explain(model, images(), target=0),
        "'1'", "no running statistics", "track_running_stats=True",
    )  # fmt: skip


def test_lazy_module_that_has_not_run() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    refusal(
        PlanningError, lambda: relprop.explain(model, torch.randn(2, 4), target=0),
        "'0.weight' has no shape yet", "call the model once",
    )  # fmt: skip
    assert isinstance(model[0], nn.LazyLinear)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def test_model_that_cannot_be_captured_says_what_to_do() -> None:
    message = refusal(
        CaptureError, lambda: relprop.explain(Noisy(), torch.ones(2, 3), target=0),
        "Noisy could not be captured", "differs from the model's own", "deterministic",
        "explain a sub-module",
    )  # fmt: skip
    assert "Traceback" not in message


class Texts(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "cat"


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ones(x.shape[0], 3)


def test_outputs_that_cannot_be_explained(two: Two) -> None:
    x = torch.randn(2, 4)
    words = "Texts returns no tensor to explain"
    refusal(InputError, lambda: relprop.explain(Texts(), x, target=0), words)
    words = "does not depend on any input to explain"
    refusal(PlanningError, lambda: relprop.explain(Constant(), x, target=0), words)


@pytest.mark.parametrize(
    ("output", "error", "words"),
    [
        (None, InputError, ["returns 5 tensors in a dict", "'logits', 'hidden'", "output="]),
        ("loss", InputError, ["output: 'loss' picks nothing", "5 tensors in a dict", "'logits'"]),
        (9, InputError, ["output: 9 picks nothing", "'logits'"]),
        ("hidden", InputError, ["output: 'hidden' picks 2 tensors", "expected exactly one"]),
        (lambda out: out.logits, InputError, ["picks nothing"]),
        (lambda out: None, InputError, ["picks 0 tensors", "expected exactly one"]),
        ("best", PlanningError, ["does not depend on any input"]),
        ("constant", PlanningError, ["does not depend on any input"]),
    ],
)
def test_output(output: Any, error: type[Exception], words: list[str], two: Two) -> None:
    x = torch.randn(2, 4)
    refusal(error, lambda: relprop.explain(two, x, target=0, output=output), *words)


def test_output_of_a_model_with_one(net: nn.Module) -> None:
    for output in (1, "logits"):
        refusal(
            InputError, lambda: relprop.explain(net, images(), target=0, output=output),  # noqa: B023
            f"output: {output!r} picks nothing; the model returns one tensor",
        )  # fmt: skip
    expected = relprop.explain(net, images(), target=0)
    assert torch.equal(relprop.explain(net, images(), target=0, output=0), expected)


# --- operations without a rule ------------------------------------------------------------------


class Sorting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(1).values.cumprod(1)


class Summing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


class Odd(nn.Module):
    """Several operations without a rule, one of them in no module."""

    def __init__(self, root: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.parts = nn.ModuleDict({"sums": Summing(), "order": Sorting()})
        self.last = nn.Linear(4, 2)
        self.root = root

    def forward(self, x: Tensor) -> Tensor:
        x = self.parts["order"](self.parts["sums"](self.first(x)))
        return self.last(x.logcumsumexp(1) if self.root else x)


def test_unsupported_operations_are_listed_all_at_once() -> None:
    model, x = Odd(), torch.rand(3, 4)
    message = refusal(
        PlanningError, lambda: relprop.explain(model, x, target=0, method="epsilon_plus"),
        "epsilon_plus has no rule for 4 operations",
    )  # fmt: skip
    lines = [line.strip() for line in message.splitlines()[1:]]
    assert sorted(lines[:4]) == [
        "'parts.order' is aten.cumprod",
        "'parts.order' is aten.sort",
        "'parts.sums' is aten.cumsum",
        "aten.logcumsumexp (in the model)",
    ]
    assert sorted(lines[5:8]) == [
        ".with_rule('path:', rules.Pass())",
        ".with_rule('path:parts.order', rules.Pass())",
        ".with_rule('path:parts.sums', rules.Pass())",
    ]
    assert lines[8].startswith("No rule fits aten.sort: ")
    check = relprop.check(model, x)
    assert not check.ok
    assert sorted(check.unsupported) == [
        ("", "logcumsumexp"), ("parts.order", "cumprod"), ("parts.order", "sort"),
        ("parts.sums", "cumsum"),
    ]  # fmt: skip


def test_product_of_two_signals_is_listed_too() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sums = Summing()

        def forward(self, x: Tensor) -> Tensor:
            return self.sums(x) * (x + 1)

    model, x = Product(), torch.rand(2, 3)
    refusal(
        PlanningError, lambda: relprop.explain(model, x, target=0),
        "2 operations", "cumsum", "neither factor is a gate", "rules.Product(mode='half')",
    )  # fmt: skip
    composite = uniform(rules.Epsilon(0)).with_rule("sums", rules.Pass())
    composite = composite.with_rule("mul", rules.Product("half"))
    found = relprop.explain(model, x, target=1, method=composite)
    # y = cumsum(x) (x + 1): R/2 each; the left passes, the right goes through x + 1
    half = (x.cumsum(1) * (x + 1))[:, 1] / 2
    expected = torch.zeros(2, 3)
    expected[:, 1] = half + half * x[:, 1] / (x[:, 1] + 1)
    torch.testing.assert_close(found, expected)


class Reducing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.logsumexp(1, keepdim=True)


def test_pass_on_an_operation_that_changes_the_shape_is_refused() -> None:
    composite = uniform(rules.Epsilon(0)).with_rule("1", rules.Pass())
    model = nn.Sequential(nn.Linear(4, 4), Reducing())
    refusal(
        PlanningError,
        lambda: relprop.explain(model, torch.rand(3, 4), target=0, method=composite),
        "'1' (logsumexp)",
        "one shape",
        "[3, 4] and [3, 1]",
    )


def test_pass_on_an_operation_in_no_module() -> None:
    class Summed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumsum(1)

    x = torch.rand(3, 4)
    refusal(PlanningError, lambda: relprop.explain(Summed(), x, target=2), "with_rule('path:'")
    composite = uniform(rules.Epsilon(0)).with_rule("path:", rules.Pass())
    found = relprop.explain(Summed(), x, target=2, method=composite)
    expected = torch.zeros(3, 4)
    expected[:, 2] = x[:, :3].sum(1)
    torch.testing.assert_close(found, expected)


def test_pass_on_a_shape_preserving_operation_is_identity() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), Summing(), nn.Linear(4, 2, bias=False))
    model, x = model.double(), torch.rand(3, 4, dtype=torch.float64)
    composite = uniform(rules.Epsilon(0)).with_rule("1", rules.Pass())
    found = relprop.explain(model, x, target=1, method=composite)
    w, v = (model[i].weight.detach() for i in (0, 2))
    z = x @ w.T
    r = z.cumsum(1) * v[1]  # LRP-0 at the last layer, passed on to z
    expected = x * ((r / z) @ w)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_rule_that_does_not_fit(net: nn.Module) -> None:
    for selector, rule, words in (
        ("1", rules.Epsilon(), ["Epsilon", "'1' (activation)", "activation takes Pass"]),
        ("0", rules.Product("half"), ["Product", "'0' (conv)", "which cannot take it"]),
        ("3", rules.Pass(), ["'3' (dense_map)", "one shape", "[2, 16] and [2, 5]"]),
    ):
        composite = uniform(rules.Epsilon()).with_rule(selector, rule)
        refusal(
            PlanningError,
            lambda composite=composite: relprop.explain(net, images(), target=0, method=composite),
            *words,
        )


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "epsilon_pluss"}, ["'epsilon_pluss'", "did you mean", "'epsilon_plus'"]),
        ({"method": "gradent"}, ["'gradent'", "did you mean", "'gradient'"]),
        ({"method": 5}, ["method: 5 of type int", "expected a name, a rule, a Composite"]),
        ({"method": rules.Epsilon}, ["method:", "expected a name, a rule"]),
        ({"method": "lrp_alpha2_beta2"}, ["lrp_alpha2_beta2", "expected alpha - beta = 1"]),
        ({"method": "lrp_epsilonn"}, ["lrp_epsilonn", "lrp_epsilon"]),
        ({"method": "epsilon_gamma_box"}, ["epsilon_gamma_box", "low and high"]),
        ({"method": "deep_taylor"}, ["deep_taylor", "low and high", "method_options={'low'"]),
        ({"method_options": {"low": 1}}, ["epsilon_plus: unknown option 'low'", "epsilon"]),
        ({"method_options": "low"}, ["method_options: str", "expected a dict"]),
        (
            {"method": "lrp_epsilon", "method_options": {"eps": 1}},
            ["lrp_epsilon: unknown option 'eps'", "did you mean 'epsilon'"],
        ),
        (
            {"method": "lrp_epsilon", "method_options": {"epsilon": -1}},
            ["lrp_epsilon", "epsilon is -1", ">= 0"],
        ),
        (
            {"method": rules.Epsilon(), "method_options": {"a": 1}},
            ["method_options: ['a']", "only with a method's name"],
        ),
        (
            {"method": "gradient", "method_options": {"steps": 3}},
            ["gradient takes no 'steps'", "expected none"],
        ),
        (
            {"method": "smoothgrad", "method_options": {"sample": 3}},
            ["smoothgrad takes no 'sample'", "['samples', 'noise', 'seed']"],
        ),
        (
            {"method": "smoothgrad", "method_options": {"samples": 0}},
            ["smoothgrad: samples is 0", "whole number >= 1"],
        ),
        (
            {"method": "smoothgrad", "method_options": {"samples": 2.5}},
            ["smoothgrad: samples is 2.5", "whole number >= 1"],
        ),
        (
            {"method": "smoothgrad", "method_options": {"noise": float("nan")}},
            ["smoothgrad: noise is nan", "finite number >= 0"],
        ),
        (
            {"method": "smoothgrad", "method_options": {"seed": "a"}},
            ["smoothgrad: seed is 'a'", "whole number"],
        ),
        (
            {"method": "integrated_gradients", "method_options": {"steps": True}},
            ["integrated_gradients: steps is True", "whole number >= 1"],
        ),
        (
            {"method": "integrated_gradients", "method_options": {"baseline": torch.zeros(7)}},
            ["integrated_gradients: baseline of shape (7,)", "broadcasts to", "(2, 3, 4, 4)"],
        ),
        ({"backend": "cuda"}, ["backend: 'cuda'", "'auto', 'triton', 'aten', 'reference'"]),
        ({"precision": "hi"}, ["precision: 'hi'", "'highest', 'high', 'medium'"]),
        ({"nan_policy": "ignore"}, ["nan_policy: 'ignore'", "'raise', 'propagate'"]),
        ({"batch_dim": 2}, ["batch_dim: 2", "expected one of 0, 1"]),
        ({"batch_dim": True}, ["batch_dim: True", "expected one of 0, 1"]),
        ({"layers": ["4"]}, ["layers: '4' is no module call", "0, 1, 2, 3"]),
        ({"layers": "3x"}, ["layers: '3x' is no module call", "near ones: 3"]),
        ({"inputs": [1]}, ["inputs: [1] not among the arguments", "[0]"]),
        ({"inputs": "mask"}, ["inputs: ['mask'] not among the arguments", "[0]"]),
        ({"start": "outputs"}, ["start: 'outputs'", "did you mean 'output'"]),
        ({"start": lambda y: y[0]}, ["start(output): shape (5,)", "shape (2, 5)"]),
        ({"start": lambda y: 3}, ["start(output): int", "expected a tensor"]),
        ({"start": lambda y: y / 0}, ["the starting relevance", "NaN or infinite"]),
    ],
    ids=lambda value: str(value).partition(" at 0x")[0],
)
def test_option(options: dict[str, Any], words: list[str], net: nn.Module) -> None:
    refusal(InputError, lambda: relprop.explain(net, images(), target=0, **options), *words)


def test_selectors_name_near_ones(net: nn.Module) -> None:
    for selector, words in (
        ("3x", ["selector '3x' matches no layer", "Near it: 3"]),
        ("max_pool", ["selector 'max_pool' matches no layer", "conv", "linear"]),
        ("path:conv", ["matches no layer"]),
        (nn.LSTM, ["LSTM", "matches no layer"]),
    ):
        composite = uniform(rules.Epsilon()).with_rule(selector, rules.ZPlus())
        refusal(
            PlanningError,
            lambda composite=composite: relprop.explain(net, images(), target=0, method=composite),
            *words,
        )


def test_start_tensor(net: nn.Module) -> None:
    explainer = relprop.Explainer(net, "epsilon_plus")
    x = images()
    for start, target, words in (
        (torch.ones(2, 4), None, ["start: shape (2, 4)", "expected real numbers of shape (2, 5)"]),
        (torch.ones(1, 2, 5), None, ["start: shape (1, 2, 5)", "(2, 5)"]),
        (torch.ones(2, 5).bool(), None, ["start: shape (2, 5), torch.bool", "real numbers"]),
        (torch.ones(2, 5), 1, ["start: a tensor beside a target", "target=None"]),
        (torch.full((2, 5), torch.nan), None, ["the starting relevance: 10 of 10 values"]),
        ("relu", None, ["target: None"]),
    ):
        refusal(
            InputError,
            lambda start=start, target=target: explainer(x, start=start, target=target),
            *words,
        )
    start = torch.zeros(2, 5)
    start[:, 1] = net(x).detach()[:, 1]
    # the model computed this start, the plan its own
    same_numbers(explainer(x, start=start), explainer(x, target=1))


def test_calls(net: nn.Module) -> None:
    explainer = relprop.Explainer(net, "epsilon_plus")
    refusal(PlanningError, lambda: explainer.plan, "nothing is planned yet", "example_inputs=")
    refusal(InputError, lambda: explainer(target=0), "inputs: nothing")
    refusal(InputError, lambda: explainer(images(), target=0, lengths=[1, 2]), "lengths")
    refusal(
        InputError, lambda: explainer(images(), target=0, kwargs={"foo": 1}),
        "the model itself fails", "unexpected keyword argument 'foo'",
    )  # fmt: skip
    refusal(InputError, lambda: explainer(images(), images(), target=0), "the model itself fails")
    refusal(InputError, lambda: relprop.check(net, 3), "expected at least one torch.Tensor")


def test_batch_on_the_other_axis(net: nn.Module) -> None:
    explainer = relprop.Explainer(net, "epsilon_plus", batch_dim=1)
    refusal(InputError, lambda: explainer(images(), target=0), "axis 0 to count the 3 samples")


def test_triton_is_refused_without_a_fallback(
    net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.cuda.is_available():
        refusal(
            InputError, lambda: relprop.explain(net, images(), target=0, backend="triton"),
            "backend='triton'", "cpu", "backend='aten'",
        )  # fmt: skip
    find_spec = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(
        importlib.util, "find_spec",
        lambda name, *args: None if name == "triton" else find_spec(name, *args),
    )  # fmt: skip
    message = refusal(
        InputError, lambda: relprop.explain(net, images(), target=0, backend="triton"),
        "backend='triton'", "not installed", "pip install", "backend='aten'",
    )  # fmt: skip
    assert "Traceback" not in message


def test_errors_are_one_family() -> None:
    for error in (CaptureError, PlanningError, InputError, relprop.FileFormatError):
        assert issubclass(error, relprop.RelpropError)
    assert issubclass(InputError, ValueError)


# --- what people meet ---------------------------------------------------------------------------


class Calls(nn.Module):
    """A layer, and a function of what it gives."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(6, 6), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


def test_complex_numbers_on_the_way_are_named() -> None:
    spectrum = Calls(lambda x: torch.fft.rfft(x).abs())
    pairs = Calls(lambda x: torch.view_as_complex(x.view(-1, 3, 2)).abs())
    for model, name in ((spectrum, "aten.fft_rfft"), (pairs, "aten.view_as_complex")):
        for method in ("lrp_epsilon", "gradient"):
            refusal(
                PlanningError,
                lambda: relprop.explain(model, torch.rand(4, 6), target=0, method=method),  # noqa: B023
                "relevance passes through real numbers alone", name, "complex64",
            )  # fmt: skip


def test_functional_dropout_of_an_eval_model() -> None:
    refusal(
        PlanningError,
        lambda: relprop.explain(Calls(lambda x: F.dropout(x)).eval(), torch.rand(4, 6), target=0),
        "eval mode", "training=self.training",
    )  # fmt: skip


def test_a_missing_batch_axis_is_said_where_one_helps() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2)).eval()
    image = torch.rand(1, 6, 6)
    refusal(
        InputError, lambda: relprop.explain(network, image, target=0),
        "with a batch axis it runs", "x.unsqueeze(0)",
    )  # fmt: skip
    assert relprop.explain(network, image.unsqueeze(0), target=0).shape == (1, 1, 6, 6)
    wrong = torch.rand(1, 5, 5)
    message = refusal(
        InputError, lambda: relprop.explain(network, wrong, target=0), "fails on these inputs"
    )
    assert "unsqueeze" not in message
    refusal(
        InputError, lambda: relprop.explain(Calls(F.relu), torch.rand(6), target=0),
        "one value a sample", "x.unsqueeze(0)",
    )  # fmt: skip
