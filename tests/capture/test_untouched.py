"""The model is bit-identical afterwards, and every change to it is seen by the next call."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from closeness import same_numbers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations

import relprop
from relprop import rules
from relprop.backends.aten.backend import AtenBackend
from relprop.operations import registered

METHODS: dict[str, dict[str, int]] = {
    "epsilon_plus": {},
    "gradient": {},
    "guided_backprop": {},
    "integrated_gradients": {"steps": 3},
    "smoothgrad": {"samples": 2},
}


class Store:
    """An object of the user's that a module holds."""

    def __init__(self) -> None:
        self.seen: Any = None


class Busy(nn.Module):
    """A forward pass that leaves traces of every kind in its module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(12, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("nan", torch.tensor([float("nan"), -0.0]))
        self.features: list[Tensor] = []
        self.recent: deque[Tensor] = deque(maxlen=2)
        self.nested: dict[str, Any] = {"maps": [], "by_name": {}}
        self.store = Store()
        self.feature: Tensor | None = None
        self.count = 0
        self.gone = "an attribute that forward removes"

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1
        x = F.relu(self.norm(self.conv(x)))
        self.feature = x
        self.new_feature = x
        self.features.append(x)
        self.recent.append(x)
        self.nested["maps"].append(x)
        self.nested["by_name"]["x"] = x
        self.store.seen = x
        if hasattr(self, "gone"):
            del self.gone
        return self.head(F.max_pool2d(x, 2).flatten(1))


def busy() -> Busy:
    model = Busy().eval()
    model.norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
    model.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    for number, parameter in enumerate(model.parameters()):
        if number % 2:
            parameter.grad = torch.randn_like(parameter)
    model.conv.bias.requires_grad_(False)  # type: ignore[union-attr]
    return model


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().view(-1).view(torch.uint8).tolist())


def fingerprint(value: Any, keep: list[Any], depth: int = 6) -> Any:
    """Identity of everything below a value, with the bits and version of its tensors."""
    keep.append(value)  # an id is only an identity while the object lives
    if isinstance(value, Tensor):
        grad = value.grad if value.is_leaf else None
        return (
            id(value), value.data_ptr(), value._version, bits(value), value.requires_grad,
            None if grad is None else fingerprint(grad, keep),
        )  # fmt: skip
    if depth and isinstance(value, dict):
        items = [(key, fingerprint(item, keep, depth - 1)) for key, item in value.items()]
        return id(value), items
    if depth and isinstance(value, (list, tuple, deque)):
        return id(value), [fingerprint(item, keep, depth - 1) for item in value]
    if depth and isinstance(value, (nn.Module, Store)):
        return id(value), fingerprint(value.__dict__, keep, depth)
    return id(value)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    keep: list[Any] = []
    before = {path: fingerprint(m.__dict__, keep) for path, m in model.named_modules()}
    flags = [m.training for m in model.modules()]
    yield
    after = {path: fingerprint(m.__dict__, keep) for path, m in model.named_modules()}
    assert [m.training for m in model.modules()] == flags
    assert list(before) == list(after)
    for path, state in before.items():
        assert after[path] == state, f"'{path}' was changed"


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 2, 4, 4)


# --- the model is the same afterwards -----------------------------------------------------------


def test_model_is_identical_after_capture_and_after_explaining() -> None:
    model, x = busy(), images().requires_grad_()
    random = torch.get_rng_state()
    with unchanged(model):
        relprop.check(model, x)  # captures
    for method, options in METHODS.items():
        explainer = relprop.Explainer(model, method, method_options=options)
        with unchanged(model):
            relevance = explainer(x[:2], target=[0, 3])
            explainer.explain(x, target=torch.tensor([[0, 1], [1, 2], [2, 3]]))
        assert x.grad is None
        assert not relevance.requires_grad and relevance.grad_fn is None
    assert torch.equal(torch.get_rng_state(), random)


def test_model_that_has_run_before_keeps_what_it_stored() -> None:
    model, x = busy(), images()
    for _ in range(3):
        model(x)
    with unchanged(model):
        relprop.explain(model, x, target=0)
        relprop.check(model, x)
    assert int(model.calls) == 3
    assert model.count == 3
    assert len(model.features) == 3
    assert isinstance(model.feature, Tensor) and not isinstance(model.feature, FakeTensor)


def test_autograd_graph_made_before_still_goes_backward() -> None:
    model = busy()
    x = images().requires_grad_()
    loss = model(x).square().sum()
    # the buffer that forward counts in is part of no graph, the running statistics are
    relprop.explain(model, x, target=0)
    loss.backward()
    assert x.grad is not None and bool(x.grad.abs().sum() > 0)


def test_input_tensors_are_not_written() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.mul_(2).relu_())

    x, model = torch.randn(3, 4), InPlace().eval()
    before, version = x.clone(), x._version
    for method in ("epsilon_plus", "gradient"):
        relprop.explain(model, x, target=0, method=method)
        assert torch.equal(x, before)
        assert x._version == version


class Data(nn.Module):
    """Parameters and buffers written behind autograd's back, as max-norm layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.layer.weight.data = torch.renorm(self.layer.weight.data, 2, 0, 0.5)
        self.seen.data.add_(1)
        return self.layer(x)


def test_parameters_that_forward_renormalises_are_put_back() -> None:
    model, x = Data().eval(), torch.ones(2, 4)
    with torch.no_grad():
        model.layer.weight.copy_(torch.full((3, 4), 2.0))
    # the parameters as they are do not give the model's output: no silent wrong answer
    with (
        unchanged(model),
        pytest.raises(relprop.CaptureError, match="differs from the model's own"),
    ):
        relprop.explain(model, x, target=0, method="gradient")
    model(x)
    with unchanged(model):
        relevance = relprop.explain(model, x, target=0, method="gradient")
    torch.testing.assert_close(relevance, torch.full((2, 4), 0.25))


def test_training_mode_without_norm_or_dropout_is_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).train()
    with unchanged(model):
        relprop.explain(model, torch.randn(2, 4), target=0)
    assert model.training and model[1].training


# --- after errors -------------------------------------------------------------------------------


class Refused(Busy):
    """An operation without a rule."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).cumsum(1)


class Leaving(Busy):
    """A forward pass that leaves PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.from_numpy(x.detach().numpy()).sum()


class Failing(Busy):
    """A forward pass that fails late."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) @ torch.ones(9, 9)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (Refused, relprop.PlanningError),
        (Leaving, relprop.CaptureError),
        (Failing, relprop.InputError),
    ],
)
def test_model_is_identical_after_an_error(kind: type[Busy], error: type[Exception]) -> None:
    model = kind().eval()
    with unchanged(model), pytest.raises(error):
        relprop.explain(model, images(), target=0)
    with unchanged(model), pytest.raises(error):
        relprop.explain(model, images(), target=0)


def test_model_is_identical_after_bad_targets_and_inputs() -> None:
    model, x = busy(), images()
    explainer = relprop.Explainer(model, "epsilon_plus", example_inputs=x)
    for inputs, target in ((x, 99), (x, "cat"), (x * float("nan"), 0), (x[:, :1], 0)):
        with unchanged(model), pytest.raises(relprop.InputError):
            explainer(inputs, target=target)


class Stopped(Exception):
    """Raised on purpose at one step."""


def stop_at(monkeypatch: pytest.MonkeyPatch, what: str, step: int) -> None:
    """Let call number `step` of `what`, over all operations and the backend, raise."""
    count = iter(range(10_000))

    def stopping(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(count) == step:
                raise Stopped(str(step))
            return original(*args, **kwargs)

        return call

    for operation in {id(found): found for found in registered().values()}.values():
        monkeypatch.setattr(operation, what, stopping(getattr(operation, what)))
    monkeypatch.setattr(AtenBackend, what, stopping(getattr(AtenBackend, what)))


@pytest.mark.parametrize("what", ["forward", "relevance"])
def test_exception_at_every_step_in_turn(what: str) -> None:
    model, x = busy(), images()
    explainer = relprop.Explainer(model, "epsilon_plus")
    expected = explainer(x, target=1)
    # every step, and the backend's call inside each linear one
    linear = sum(step.operation.carry == "linear" for step in explainer.plan.steps.values())
    calls = len(explainer.plan.steps) + linear
    assert linear == 2 and calls >= 7
    for step in range(calls):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, what, step)
            with unchanged(model), pytest.raises(Stopped, match=f"^{step}$"):
                explainer(x, target=1)
        assert torch.equal(explainer(x, target=1), expected)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, what, calls)
        assert torch.equal(explainer(x, target=1), expected)


@pytest.mark.parametrize("stage", ["capture_by_export", "canonical", "evaluate", "difference"])
def test_exception_inside_capture(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = busy(), images()

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"relprop.capture.cache.{stage}", stop)
        with unchanged(model), pytest.raises(KeyboardInterrupt):
            relprop.explain(model, x, target=0)
    assert relprop.explain(model, x, target=0).shape == x.shape


# --- hooks --------------------------------------------------------------------------------------


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()


def gradient_x_input(model: nn.Module, x: Tensor, target: int = 0) -> Tensor:
    """Autograd's gradient times input: LRP-0 of a network of ReLU, whatever its biases."""
    leaf = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, target].sum(), leaf)
    return gradient * x


def lrp_zero(model: nn.Module, x: Tensor) -> Tensor:
    return relprop.explain(model, x, target=0, method="lrp_zero")


def test_recording_hooks_see_real_tensors_only() -> None:
    model, x = small(), torch.randn(3, 4, dtype=torch.float64)
    seen: list[Tensor] = []
    handles = [
        model[0].register_forward_hook(lambda module, args, out: seen.append(out)),
        model[1].register_forward_pre_hook(lambda module, args: seen.append(args[0])),
        register_module_forward_hook(lambda module, args, out: seen.append(out)),
    ]
    try:
        with unchanged(model):
            lrp_zero(model, x)
        assert all(type(tensor) is Tensor for tensor in seen)
        seen.clear()
        lrp_zero(model, x)
        assert not seen  # the plan runs, the model does not
        model(x)
        assert len(seen) == 6
    finally:
        for handle in handles:
            handle.remove()


def test_hooks_that_change_values_are_respected() -> None:
    model, x = small(), torch.randn(3, 4, dtype=torch.float64)
    plain = lrp_zero(model, x)
    seen: list[Tensor] = []

    def halve(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        seen.append(out)
        return out * torch.tensor([1.0, 0, 2, 0.5, -1], dtype=out.dtype)

    handle = model[1].register_forward_hook(halve)
    with unchanged(model):
        hooked = lrp_zero(model, x)
    torch.testing.assert_close(hooked, gradient_x_input(model, x), rtol=1e-10, atol=1e-12)
    assert all(type(tensor) is Tensor for tensor in seen)
    assert not torch.allclose(hooked, plain)
    handle.remove()
    torch.testing.assert_close(lrp_zero(model, x), plain)


def test_hook_replaced_by_another_one_is_noticed() -> None:
    model, x = small(), torch.randn(3, 4, dtype=torch.float64)
    for factor in (2.0, 3.0):
        handle = model[0].register_forward_pre_hook(
            lambda module, args, factor=factor: (args[0] * factor,)
        )
        expected = gradient_x_input(model, x)
        torch.testing.assert_close(lrp_zero(model, x), expected, rtol=1e-10, atol=1e-12)
        handle.remove()


def test_hook_with_a_changing_factor_is_read_at_each_call() -> None:
    model, x = small(), torch.randn(3, 4, dtype=torch.float64)
    factors = [1.5]
    model[2].register_forward_hook(lambda module, args, out: out * factors[-1])
    for factor in (2.0, -3.0):
        factors.append(factor)
        expected = gradient_x_input(model, x)
        torch.testing.assert_close(lrp_zero(model, x), expected, rtol=1e-10, atol=1e-12)


def test_backward_hooks_do_not_fire() -> None:
    model, x = small(), torch.randn(3, 4, dtype=torch.float64)
    fired: list[str] = []
    model[0].register_full_backward_hook(lambda *args: fired.append("full"))
    model[2].weight.register_hook(lambda grad: fired.append("tensor"))
    for method in ("lrp_zero", "gradient"):
        relprop.explain(model, x, target=0, method=method)
    assert not fired


# --- changes are seen by the next call ----------------------------------------------------------


class Net(nn.Module):
    """Batch norm, a plain tensor attribute and a plain number, all of which may change."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 3)
        self.scale = torch.linspace(0.5, 2, 6, dtype=torch.float64)
        self.power = 1.0
        self.activation = F.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.activation(self.norm(self.first(x))) * self.scale * self.power)


@pytest.fixture
def net() -> Net:
    model = Net().double().eval()
    model.norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
    model.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model


def train(model: Net, optimizer: torch.optim.Optimizer) -> None:
    loss = model(torch.randn(5, 4, dtype=torch.float64)).square().sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def sgd(model: Net) -> None:
    train(model, torch.optim.SGD(model.parameters(), lr=0.1))


def fused_adam(model: Net) -> None:
    train(model, torch.optim.Adam(model.parameters(), lr=0.1, fused=True))


def assign_data(model: Net) -> None:
    model.first.weight.data = torch.randn(6, 4, dtype=torch.float64)


def write_data(model: Net) -> None:
    model.last.weight.data.mul_(-2)


def replace_parameter(model: Net) -> None:
    model.first.weight = nn.Parameter(torch.rand(6, 4, dtype=torch.float64))


def replace_module(model: Net) -> None:
    model.last = nn.Linear(6, 3).double().eval()


def train_statistics(model: Net) -> None:
    model.train()
    model(torch.randn(50, 4, dtype=torch.float64) * 5 + 3)
    model.eval()


def load(model: Net) -> None:
    state = {key: value * 2 + 1 for key, value in model.state_dict().items()}
    model.load_state_dict(state)


def load_assign(model: Net) -> None:
    state = {key: value * 2 + 1 for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def write_plain_tensor(model: Net) -> None:
    model.scale.mul_(3)


def replace_plain_tensor(model: Net) -> None:
    model.scale = torch.linspace(2, 1, 6, dtype=torch.float64)


def change_number(model: Net) -> None:
    model.power = 2.5


def change_function(model: Net) -> None:
    model.activation = F.leaky_relu


def drop_bias(model: Net) -> None:
    model.first.bias = None


CHANGES = [
    sgd, fused_adam, assign_data, write_data, replace_parameter, replace_module, train_statistics,
    load, load_assign, write_plain_tensor, replace_plain_tensor, change_number, change_function,
    drop_bias,
]  # fmt: skip
RECAPTURED = {replace_module, change_number, change_function, drop_bias}


@pytest.fixture(scope="module")
def explained_net() -> tuple[Net, relprop.Explainer]:
    torch.manual_seed(3)
    model = Net().double().eval()
    explainer = relprop.Explainer(model, "lrp_zero")
    explainer(torch.randn(2, 4, dtype=torch.float64), target=0)
    return model, explainer


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_change_is_seen_by_the_next_call(
    change: Callable[[Net], None],
    explained_net: tuple[Net, relprop.Explainer],
    captures: list[str],
) -> None:
    model, explainer = explained_net
    x = torch.randn(30, 4, dtype=torch.float64)
    before = explainer(x, target=0)
    done = len(captures)
    change(model)
    expected = gradient_x_input(model, x)
    after = explainer.explain(x, target=0)
    assert not torch.allclose(before, expected)
    torch.testing.assert_close(after.output, model(x).detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(after.relevance, expected, rtol=1e-9, atol=1e-11)
    assert len(captures) - done == (1 if change in RECAPTURED else 0)


def test_to_float64_is_seen(net: Net) -> None:
    model = net.float()
    model.scale = model.scale.float()
    x = torch.randn(3, 4)
    explainer = relprop.Explainer(model, "lrp_zero")
    assert explainer(x, target=0).dtype is torch.float32
    model.double()
    model.scale = model.scale.double()
    relevance = explainer(x.double(), target=0)
    assert relevance.dtype is torch.float64
    expected = gradient_x_input(model, x.double())
    torch.testing.assert_close(relevance, expected, rtol=1e-9, atol=1e-11)
    with pytest.raises(relprop.InputError, match="model itself fails"):
        explainer(x, target=0)  # as the model does now


def test_frozen_keeps_what_was_derived(net: Net) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    frozen = relprop.Explainer(net, "epsilon_plus", frozen=True)
    live = relprop.Explainer(net, "epsilon_plus")
    before = frozen(x, target=0)
    same_numbers(before, live(x, target=0))  # one has its weights in another layout
    with torch.no_grad():
        net.norm.running_var.add_(1)  # type: ignore[union-attr]  # folded into the first layer
    assert torch.equal(frozen(x, target=0), before)
    assert not torch.allclose(live(x, target=0), before)


@pytest.mark.parametrize(
    "wrap",
    [torch.nn.utils.weight_norm, parametrizations.weight_norm, parametrizations.spectral_norm],
    ids=["weight_norm_hook", "weight_norm", "spectral_norm"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_computed_from_parameters_is_computed_each_call(
    wrap: Callable[[nn.Module], nn.Module], captures: list[str]
) -> None:
    layer = wrap(nn.Linear(4, 5)).double()
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(5, 3).double()).eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    explainer = relprop.Explainer(model, "lrp_zero")
    for _ in range(2):
        expected = gradient_x_input(model, x)
        with unchanged(model):
            found = explainer(x, target=0)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(1.7).add_(0.1)
    assert len(captures) == 1


def test_shared_sub_module_of_two_models() -> None:
    shared = nn.Linear(4, 5).double()
    models = [nn.Sequential(shared, nn.ReLU(), nn.Linear(5, 2).double()) for _ in range(2)]
    x = torch.randn(3, 4, dtype=torch.float64)
    for model in models:
        expected = gradient_x_input(model, x)
        torch.testing.assert_close(lrp_zero(model, x), expected, rtol=1e-9, atol=1e-11)


def test_copy_of_an_explained_model_is_another_model() -> None:
    model, x = small(), torch.randn(3, 4, dtype=torch.float64)
    before = lrp_zero(model, x)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.mul_(-1)
    torch.testing.assert_close(
        lrp_zero(other, x), gradient_x_input(other, x), rtol=1e-9, atol=1e-11
    )
    assert torch.equal(lrp_zero(model, x), before)
    composite = relprop.Composite([("linear", rules.Epsilon(0))], stabilizer=0)
    torch.testing.assert_close(relprop.explain(model, x, target=0, method=composite), before)
