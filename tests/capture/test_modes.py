"""Ambient modes, threads, memory, capture and its fallback, and inputs of every form."""

from __future__ import annotations

import gc
import resource
import runpy
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from closeness import same_numbers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import relprop
from relprop import backends, methods
from relprop.capture import cache as captured_module
from relprop.engine import run
from relprop.graph import CAPTURE_LOCK
from relprop.graph.nodes import source_values

OPTIONS = {"epsilon_gamma_box": {"low": -3, "high": 3}, "deep_taylor": {"low": -3, "high": 3}}
NAMES = [*methods.names()[:-1], "lrp_alpha2_beta1"]


class Net(nn.Module):
    """A small convolutional network with a residual sum, a pooling and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.first(x))), 2)
        x = x + F.relu(self.second(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def make_net() -> Net:
    torch.manual_seed(1)
    return Net().eval()


@pytest.fixture(scope="module")
def net() -> Net:
    """Shared: whoever uses it leaves it as it is, so it is captured once for each shape."""
    return make_net()


def images(batch: int = 3, size: int = 6) -> Tensor:
    return torch.randn(batch, 2, size, size, generator=torch.Generator().manual_seed(batch))


def gradient_x_input(model: nn.Module, x: Tensor, target: int = 0) -> Tensor:
    """Autograd's gradient times input: LRP-0 of a piecewise linear network."""
    leaf = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf * 1)[:, target].sum(), leaf)
    return gradient * x


# --- ambient modes ------------------------------------------------------------------------------


@contextmanager
def default_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default_float64": default_float64,
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
}
SEVERAL = ("epsilon_plus", "lrp_gamma", "lrp_flat", "lrp_w_square", "deep_taylor", "gradient",
           "guided_backprop", "smoothgrad")  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_result_does_not_depend_on_the_ambient_mode(mode: str, net: Net) -> None:
    x = images()
    for method in SEVERAL:
        explainer = relprop.Explainer(net, method, method_options=OPTIONS.get(method))
        expected = explainer.explain(x, target=1)
        with MODES[mode]():
            found = explainer.explain(x, target=1)
        assert torch.equal(found.relevance, expected.relevance), method
        assert torch.equal(found.output, expected.output), method
        assert torch.equal(found.convergence_delta, expected.convergence_delta), method
        for tensor in (found.relevance, found.output, found.convergence_delta):
            assert not tensor.requires_grad and not tensor.is_inference()
            assert tensor.dtype is torch.float32


@pytest.mark.parametrize("mode", ["inference_mode", "autocast", "default_float64"])
def test_captured_under_a_mode_and_run_outside_of_it(mode: str, net: Net) -> None:
    x, model = images(), make_net()
    with MODES[mode]():
        inside = relprop.explain(model, x, target=1)
    assert torch.equal(inside, relprop.explain(net, x, target=1))
    assert torch.equal(relprop.explain(model, x, target=1), inside)
    assert not any(p.is_inference() or p.dtype is not torch.float32 for p in model.parameters())


def test_model_and_inputs_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model, x = make_net(), images()
    for method in ("epsilon_plus", "gradient", "guided_backprop", "integrated_gradients"):
        found = relprop.explain(model, x, target=1, method=method)
        expected = relprop.explain(make_net(), images(), target=1, method=method)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_results_are_the_same_at_each_run(net: Net) -> None:
    x = images(5)
    for method in SEVERAL:
        explainer = relprop.Explainer(net, method, method_options=OPTIONS.get(method))
        first = explainer(x, target=[0, 1, 2, 0, 1])
        assert torch.equal(explainer(x.clone(), target=[0, 1, 2, 0, 1]), first)


class NoAutograd(TorchDispatchMode):
    """Sees every operation below autograd."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not torch.is_grad_enabled()
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in methods._GRADIENT_METHODS])
def test_engine_runs_in_inference_mode_without_autograd(
    name: str, net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = images()
    explainer = relprop.Explainer(net, name, method_options=OPTIONS.get(name), backend="aten")
    expected = explainer(x, target=1)

    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("autograd was used")

    for owner, what in (
        (torch.autograd, "grad"), (torch.autograd, "backward"), (Tensor, "backward"),
        (Tensor, "requires_grad_"), (torch.autograd.Function, "apply"), (torch.func, "vjp"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, what, forbidden)
    assert torch.equal(explainer(x, target=1), expected)
    plan, engine = explainer.plan, run.Engine(backends.get("aten"))
    with torch.inference_mode(), NoAutograd() as seen:
        passed = run.forward(plan, engine, net, {plan.graph.inputs[0]: x})
        start = torch.zeros(1, 3, 3)
        start[0, :, 1] = (
            passed.output[:, 1].relu() if name == "deep_taylor" else passed.output[:, 1]
        )
        found = run.relevance(plan, engine, passed, start, [plan.graph.inputs[0]])
        (relevance,) = found.values()
        assert relevance.is_inference() and not relevance.requires_grad
        assert seen.count > len(plan.steps)
        same_numbers(relevance[0], expected)


# --- threads ------------------------------------------------------------------------------------


def in_threads(*tasks: Callable[[], Any]) -> list[Any]:
    """Runs the tasks at the same time, each in a thread; their results, or their exception."""
    barrier = threading.Barrier(len(tasks))

    def start(task: Callable[[], Any]) -> Any:
        barrier.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result(timeout=120) for future in [pool.submit(start, t) for t in tasks]]


@pytest.mark.parametrize("method", ["epsilon_alpha2_beta1", "guided_backprop"])
@pytest.mark.parametrize("frozen", [False, True])
def test_two_threads_on_one_explainer(method: str, frozen: bool, net: Net) -> None:
    batches = [images(n) for n in (1, 2, 3, 4)]
    explainer = relprop.Explainer(net, method, frozen=frozen)
    expected = [relprop.explain(net, x, target=1, method=method) for x in batches]

    def task() -> list[Tensor]:
        return [explainer(x, target=1) for _ in range(5) for x in batches]

    for results in in_threads(task, task):
        for found, wanted in zip(results, expected * 5, strict=True):
            same_numbers(found, wanted)  # other threads, other shares of a sum


def test_two_threads_planning_at_once() -> None:
    models = [make_net(), make_net()]
    x = images()

    def task(model: Net) -> Callable[[], Tensor]:
        return lambda: relprop.explain(model, x, target=1)

    first, second = in_threads(*map(task, models))
    same_numbers(first, second)
    same_numbers(relprop.explain(models[0], x, target=1), first)


def test_explaining_while_another_thread_captures_the_same_model(net: Net) -> None:
    x = images()
    explainer = relprop.Explainer(net, "epsilon_plus")
    expected = explainer(x, target=1)
    done = threading.Event()

    def capture() -> list[Tensor]:
        try:
            return [relprop.explain(net, images(2, size), target=1) for size in (7, 9)]
        finally:
            done.set()

    def run_meanwhile() -> list[Tensor]:
        found = []
        while not done.is_set():
            found.append(explainer(x, target=1))
        return found

    maps, found = in_threads(capture, run_meanwhile)
    assert [m.shape[-1] for m in maps] == [7, 9]
    for relevance in found:  # the last bit depends on how many threads a product gets
        torch.testing.assert_close(relevance, expected)


def test_parameters_are_not_read_while_a_capture_is_under_way(net: Net) -> None:
    explainer = relprop.Explainer(net, "epsilon_plus", example_inputs=images())
    graph, read = explainer.plan.graph, threading.Event()

    def task() -> None:
        source_values(graph, net, graph.sources)
        read.set()

    thread = threading.Thread(target=task)
    with CAPTURE_LOCK:  # torch.export has its own tensors in the model's place now
        thread.start()
        assert not read.wait(0.1)
    thread.join(10)
    assert read.is_set()


# --- memory -------------------------------------------------------------------------------------


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_200_explanations_do_not_grow(net: Net, captures: list[str]) -> None:
    x = images()
    explainers = [
        relprop.Explainer(net, m, layers=["second"]) for m in ("epsilon_plus", "gradient")
    ]

    def once(number: int) -> None:
        explainer = explainers[number % 2]
        explainer(x[: 1 + number % 3], target=number % 3)
        explainer.explain(x, target=0)

    for number in range(10):
        once(number)
    captures.clear()
    tensors, blocks, resident = live_tensors(), sys.getallocatedblocks(), resident_bytes()
    for number in range(100):
        once(number)
    assert live_tensors() == tensors
    assert sys.getallocatedblocks() - blocks < 1000
    assert resident_bytes() - resident < 8 << 20
    assert not captures


def test_recorded_models_do_not_grow() -> None:
    model, x = Branch(), torch.randn(2, 3)
    explainer = relprop.Explainer(model, "epsilon_plus")
    explainer(x, target=0)
    explainer(x, target=0)
    tensors, blocks = live_tensors(), sys.getallocatedblocks()
    for _ in range(4):
        explainer(x, target=0)
    assert live_tensors() == tensors
    assert sys.getallocatedblocks() - blocks < 1500


def test_explain_in_a_loop_captures_once(captures: list[str]) -> None:
    model = make_net()
    for number in range(5):
        relprop.explain(model, images(number), target=0)
        relprop.explain(model, images(2), target=0, method="gradient")
        relprop.check(model, images(3))
        relprop.Explainer(model, "lrp_zero", example_inputs=images(2))
        model(images(2))
    assert captures == ["Net"]


def test_model_is_freed_after_use() -> None:
    model = make_net()
    explainer = relprop.Explainer(model, "epsilon_plus", frozen=True)
    result = explainer.explain(images(), target=0)
    relprop.explain(model, images(), target=0, method="gradient")
    dead, parameter = weakref.ref(model), weakref.ref(model.head.weight)
    graphs = len(captured_module._GRAPHS)
    del model, explainer
    gc.collect()
    assert dead() is None and parameter() is None
    assert len(captured_module._GRAPHS) == graphs - 1
    assert result.relevance.shape == (3, 2, 6, 6)


def test_graphs_of_many_shapes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured_module, "KEPT", 2)
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.ReLU())
    for length in (4, 5, 6):
        relprop.explain(model, torch.randn(2, 1, length), target=0)
    assert len(captured_module._GRAPHS[model]) == 2


# --- wrapped models -----------------------------------------------------------------------------


def test_wrappers_are_taken_off(net: Net, captures: list[str]) -> None:
    x = images()
    expected = relprop.explain(net, x, target=1)
    captures.clear()
    for wrapped in (
        nn.DataParallel(net),
        torch.compile(net),
        nn.DataParallel(torch.compile(net)),  # type: ignore[arg-type]
    ):
        explainer = relprop.Explainer(wrapped, "epsilon_plus", layers=["second"])
        result = explainer.explain(x, target=1)
        same_numbers(result.relevance, expected)  # here a layer was asked for as well
        assert result.layers["second"].shape == (3, 4, 3, 3)
    assert not captures


def test_model_compiled_in_place_is_not_compiled_by_us() -> None:
    model, x = make_net(), images()
    compiled: list[Any] = []

    def backend(module: Any, inputs: Any) -> Any:
        compiled.append(module)
        return module.forward

    model.compile(backend=backend)
    assert torch.equal(
        relprop.explain(model, x, target=1), relprop.explain(make_net(), x, target=1)
    )
    assert callable(model._compiled_call_impl)


def quantised() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    model.linear = nn.Linear(3, 2)

    class Linear(nn.Module):
        """Stands for torch.ao.nn.quantized.Linear, which needs an engine to be made."""

    Linear.__module__ = "torch.ao.nn.quantized.modules.linear"
    model[0] = Linear()
    return model


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: torch.jit.trace(make_net(), images()), relprop.CaptureError, "TorchScript"),
        (
            lambda: nn.Sequential(torch.jit.script(nn.Linear(4, 3)), nn.ReLU()),
            relprop.CaptureError, "'0' is a TorchScript",
        ),
        (quantised, relprop.CaptureError, r"'0' is quantised \(Linear\)"),
        (lambda: torch.relu, relprop.InputError, "expected a torch.nn.Module"),
        (lambda: "vgg16", relprop.InputError, "model: str; expected a torch.nn.Module"),
        (lambda: nn.Linear, relprop.InputError, "model: type; expected a torch.nn.Module"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_no_capturable_module_is_refused(
    make: Callable[[], Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        relprop.Explainer(make(), "epsilon_plus")
    with pytest.raises(error, match=words):
        relprop.check(make(), images())


def test_module_of_a_file_called_quantized_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Net, "__module__", "torch_study.quantized.nets")
    assert relprop.explain(make_net(), images(), target=1).shape == (3, 2, 6, 6)


# --- models that torch.export refuses -----------------------------------------------------------


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 2)
        self.right = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.left(x)
        return self.right(x).relu()


def test_branch_on_values_is_followed_both_ways() -> None:
    model = Branch().double()
    x = torch.tensor([[1.0, 2, 3], [4, 5, 6]], dtype=torch.float64)
    explainer = relprop.Explainer(model, "lrp_zero")
    for inputs in (x, -x, x[:1], -x):
        found = explainer(inputs, target=1)
        expected = gradient_x_input(model, inputs, 1)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        branch = "left" if inputs.sum() > 0 else "right"
        assert next(iter(explainer.plan.steps.values())).node.path == branch
    assert len(explainer._planner.plans) == 1  # each record serves once


class Loop(nn.Module):
    """Newton-like iteration: as many steps as the values ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(3, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        count = 0
        while x.norm() < 100 and count < 20:
            x = self.step(x).relu()
            count += 1
        return x


def test_loop_on_values_is_unrolled_as_it_runs() -> None:
    model = Loop().double()
    with torch.no_grad():
        model.step.weight.copy_(torch.tensor([[2.0, 1, 0], [0, 2, 1], [1, 0, 2]]))
    explainer = relprop.Explainer(model, "lrp_zero", layers=["step"])
    for scale, steps in ((1.0, 4), (20.0, 1)):
        x = scale * torch.tensor([[1.0, 2, 3]], dtype=torch.float64)
        result = explainer.explain(x, target=0)
        assert sum(step.node.op == "dense_map" for step in explainer.plan.steps.values()) == steps
        torch.testing.assert_close(
            result.relevance, gradient_x_input(model, x), rtol=1e-12, atol=1e-12
        )
        assert result.layers["step"].shape == (1, 3)


class InPlace(nn.Module):
    """In-place operations, on the input too, with and without a branch on values."""

    def __init__(self, branch: bool) -> None:
        super().__init__()
        self.branch = branch
        self.first = nn.Linear(4, 5)
        self.last = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x += 0
        h = self.first(x)
        if not self.branch or h.sum() < 1e9:
            h.mul_(2)
            h.relu_()
        return self.last(h).sub_(1).add_(1)


@pytest.mark.parametrize("branch", [False, True])
def test_in_place_operations(branch: bool) -> None:
    model = InPlace(branch).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    before = x.clone()
    expected = gradient_x_input(model, x)
    found = relprop.explain(model, x, target=0, method="gradient_x_input")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    found = relprop.explain(model, x, target=0, method="lrp_zero")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    assert torch.equal(x, before)


class Leaving(nn.Module):
    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.how(x))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda x: torch.from_numpy(x.detach().numpy() * 2), r"Tensor.numpy\(\)"),
        (lambda x: torch.as_tensor(__import__("numpy").asarray(x.detach())), "NumPy"),
    ],
    ids=["numpy", "asarray"],
)
def test_model_that_leaves_pytorch_is_refused(
    how: Callable[[Tensor], Tensor], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(relprop.CaptureError, match=rf"leaves PyTorch: .*{words}") as caught:
        relprop.explain(Leaving(how), torch.randn(2, 3), target=0)
    assert "test_modes.py:" in str(caught.value)  # which line
    assert "compute that with tensor operations" in str(caught.value)  # what to do
    assert capfd.readouterr() == ("", "")  # torch.export prints graphs and stack traces


@pytest.mark.parametrize("folder", ["relprop", "torch", "numpy", "relprop/kernels", "own"])
def test_the_line_that_leaves_pytorch_may_lie_in_a_folder_of_any_name(
    folder: str, tmp_path: Path
) -> None:
    """`git clone` itself makes a folder relprop."""
    script = tmp_path / folder / "numpy" / "script.py"
    script.parent.mkdir(parents=True)
    script.write_text(LEAVES)
    with pytest.raises(relprop.CaptureError) as caught:
        runpy.run_path(str(script))
    assert f": Tensor.numpy() at {script}:7; compute" in str(caught.value)


LEAVES = """import relprop
import torch


class Model(torch.nn.Linear):
    def forward(self, x):
        return super().forward(torch.from_numpy(x.detach().numpy()))


relprop.explain(Model(3, 2), torch.ones(1, 3), target=0)
"""


class Contexts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.second = nn.Linear(5, 5)
        self.last = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.first(x).relu()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.second(x)
        with torch.autocast("cpu", enabled=False):
            return self.last(x.float().relu())


def test_contexts_inside_the_forward_pass() -> None:
    model, x = Contexts(), torch.randn(3, 4)
    result = relprop.Explainer(model, "lrp_epsilon", layers=["first"]).explain(x, target=0)
    torch.testing.assert_close(result.output, model(x).detach(), rtol=2e-2, atol=2e-2)
    # relevance goes through no_grad blocks as through any other operation
    assert bool((result.relevance.abs().sum(1) > 0).all())
    plain = nn.Sequential(model.first, nn.ReLU(), model.second, nn.ReLU(), model.last)
    expected = relprop.explain(plain, x, target=0, method="lrp_epsilon")
    torch.testing.assert_close(result.relevance, expected, rtol=0.1, atol=0.02)


class Fixed(nn.Module):
    """A forward pass that only works for one batch size."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.view(self.batch, -1))


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_model_tied_to_a_batch_size(batch: int, captures: list[str]) -> None:
    model = Fixed(batch).double()
    x = torch.randn(batch, 2, 3, dtype=torch.float64)
    explainer = relprop.Explainer(model, "lrp_zero")
    expected = x * model.layer.weight[1].detach().view(2, 3)
    for _ in range(2):
        found = explainer(x, target=1)
        # with a bias, relevance is w x (w x + b)/(w x + b)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert len(captures) == 1
    with pytest.raises(relprop.InputError, match="the model itself fails on these inputs"):
        explainer(torch.randn(3, 2, 3, dtype=torch.float64), target=1)


# --- forms of input -----------------------------------------------------------------------------


def test_layout_of_the_input_does_not_matter(net: Net) -> None:
    x = images(4)
    strided = torch.empty(4, 6, 6, 4)[..., :2].permute(0, 3, 1, 2).copy_(x)
    last = x.contiguous(memory_format=torch.channels_last)
    assert not strided.is_contiguous() and not last.is_contiguous()
    for method in ("epsilon_plus", "lrp_gamma", "epsilon_plus_flat", "gradient"):
        explainer = relprop.Explainer(net, method)
        expected = explainer(x, target=1)
        for other in (strided, last):
            torch.testing.assert_close(explainer(other, target=1), expected, rtol=1e-5, atol=1e-6)
        one = x[:1]
        expanded = one.expand(4, -1, -1, -1)
        found = explainer(expanded, target=1)
        torch.testing.assert_close(
            found, explainer(one, target=1).expand_as(found), rtol=1e-5, atol=1e-6
        )
        assert expanded.stride(0) == 0 and torch.equal(expanded[3], one[0])


def test_batch_sizes_agree_with_one_by_one(net: Net) -> None:
    x = images(7)
    for method in ("epsilon_plus", "epsilon_alpha2_beta1", "guided_backprop"):
        explainer = relprop.Explainer(net, method)
        whole = explainer(x, target=2)
        parts = [explainer(x[i : i + 3], target=2) for i in range(0, 7, 3)]
        assert [len(part) for part in parts] == [3, 3, 1]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_empty_batch_gives_an_empty_result(name: str, net: Net) -> None:
    empty = images(3)[:0]
    explainer = relprop.Explainer(net, name, method_options=OPTIONS.get(name), layers=["second"])
    assert explainer(empty, target=1).shape == (0, 2, 6, 6)
    assert explainer(empty, target=[]).shape == (0, 2, 6, 6)
    several = explainer.explain(empty, target=torch.zeros(0, 4, dtype=torch.long))
    assert several.relevance.shape == (0, 4, 2, 6, 6)
    assert several.output.shape == (0, 3)
    assert several.convergence_delta.shape == (0, 4)
    assert several.layers["second"].shape == (0, 4, 4, 3, 3)


def test_empty_batch_first_and_on_the_reference(captures: list[str]) -> None:
    model = make_net()
    explainer = relprop.Explainer(model, "epsilon_plus", backend="reference")
    assert explainer(images(3)[:0], target=1).shape == (0, 2, 6, 6)
    torch.testing.assert_close(
        explainer(images(), target=1), relprop.explain(model, images(), target=1)
    )
    assert captures == ["Net"]


def test_input_sizes_that_change_between_calls(net: Net, captures: list[str]) -> None:
    explainer = relprop.Explainer(net, "lrp_zero")
    for size in (6, 8, 6, 8):
        x = images(2, size)
        torch.testing.assert_close(
            explainer(x, target=1), gradient_x_input(net, x, 1), rtol=1e-3, atol=1e-5
        )
    assert len(captures) <= 2


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Several(nn.Module):
    """Nested inputs, keywords, an optional tensor, and settings that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2, bias=False)
        self.b = nn.Linear(4, 2, bias=False)

    def forward(
        self,
        pair: Any,
        *,
        scale: float = 1.0,
        extra: Tensor | None = None,
        mode: str = "sum",
        flag: bool = True,
    ) -> dict[str, Tensor]:
        x, y = pair
        total = self.a(x) * scale + self.b(y)
        if extra is not None:
            total = total + extra
        return {"logits": total if mode == "sum" else -total, "aux": self.a(x)}


@pytest.fixture(scope="module")
def several() -> Several:
    torch.manual_seed(2)
    return Several().double()


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("pack", [tuple, list, lambda pair: Pair(*pair)])
def test_nested_inputs(pack: Callable[[list[Tensor]], Any], several: Several) -> None:
    x, y = doubles(3, 3), doubles(3, 4)
    explainer = relprop.Explainer(several, "lrp_zero", output="logits")
    found = explainer(pack([x, y]), target=1)
    assert isinstance(found, tuple) and len(found) == 2
    for relevance, value, layer in zip(found, (x, y), (several.a, several.b), strict=True):
        expected = value * layer.weight[1].detach()
        torch.testing.assert_close(relevance, expected, rtol=1e-9, atol=1e-12)


def test_keywords_and_settings_that_are_no_tensors(several: Several) -> None:
    x, y, extra = doubles(3, 3), doubles(3, 4), doubles(3, 2)
    explainer = relprop.Explainer(several, "lrp_zero", output="logits")
    found = explainer((x, y), target=0, kwargs={"mode": "minus", "scale": 2.5, "extra": extra})
    assert [part.shape for part in found] == [x.shape, y.shape, extra.shape]
    total = sum(part.sum(1) for part in found)
    logits = several((x, y), mode="minus", scale=2.5, extra=extra)["logits"][:, 0].detach()
    torch.testing.assert_close(total, logits, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[2][:, 0], -extra[:, 0], rtol=1e-9, atol=1e-12)
    assert bool((found[2][:, 1] == 0).all())
    # other settings are other graphs, whatever their order
    without = explainer((x, y), target=0, kwargs={"extra": None, "mode": "sum"})
    torch.testing.assert_close(without[0], x * several.a.weight[0].detach(), rtol=1e-9, atol=1e-12)
    again = explainer((x, y), target=0, kwargs={"scale": 2.5, "extra": extra, "mode": "minus"})
    for one, other in zip(again, found, strict=True):
        assert torch.equal(one, other)


def test_inputs_to_explain_are_chosen(several: Several) -> None:
    x, y, extra = doubles(3, 3), doubles(3, 4), doubles(3, 2)
    kwargs = {"extra": extra}
    every = relprop.Explainer(several, "lrp_epsilon", output="logits")(
        (x, y), target=0, kwargs=kwargs
    )
    explainer = relprop.Explainer(several, "lrp_epsilon", output="logits", inputs=["extra"])
    relevance = explainer((x, y), target=0, kwargs=kwargs)
    assert isinstance(relevance, Tensor)
    torch.testing.assert_close(relevance, every[2], rtol=1e-9, atol=1e-12)
    gradient = relprop.Explainer(several, "gradient", output="logits", inputs=[0])
    parts = gradient((x, y), target=0, kwargs=kwargs)
    for part, layer in zip(parts, (several.a, several.b), strict=True):
        assert torch.equal(part, layer.weight[0].detach().expand_as(part))


def test_outputs_are_chosen(several: Several) -> None:
    pair = doubles(3, 3), doubles(3, 4)
    expected = pair[0] * several.a.weight[1].detach()
    for output in ("aux", 1, lambda found: found["aux"]):
        first, second = relprop.explain(several, pair, target=1, method="lrp_zero", output=output)
        torch.testing.assert_close(first, expected, rtol=1e-9, atol=1e-12)
        assert second.shape == (3, 4) and not second.any()


class Tokens(nn.Module):
    """Token ids and a boolean mask beside a floating input."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.layer = nn.Linear(4, 2)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.embedding(ids)
        if mask is not None:
            x = x * mask.unsqueeze(-1)
        return self.layer(x.sum(1))


def test_token_inputs_get_relevance_of_their_shape() -> None:
    model = Tokens().double()
    ids = torch.tensor([[0, 3, 6], [1, 1, 2]])
    mask = torch.tensor([[True, True, False], [True, False, True]])
    found = relprop.explain(model, ids, mask, target=1, method="lrp_zero")
    assert isinstance(found, Tensor) and found.shape == ids.shape
    x = model.embedding(ids).detach()
    expected = (x * model.layer.weight[1].detach()).sum(-1)
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-9, atol=1e-12)
