"""Whole networks on a CUDA device: as on the CPU, Triton as ATen, the same bits from run to run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop import methods, models

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

BOX = {"low": -1.0, "high": 1.0}
OPTIONS = {"epsilon_gamma_box": BOX, "deep_taylor": BOX}
NAMES = sorted({*(name for name in methods.names() if "<" not in name), "lrp_alpha2_beta1"})
PROPAGATION = [
    name
    for name in NAMES
    if isinstance(methods.resolve(name, OPTIONS.get(name)), methods.PropagationMethod)
]


@pytest.fixture(autouse=True)
def _ieee_products() -> Iterator[None]:
    """The device's float32 is compared with the CPU's: no TF32 in the library."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def explained(
    model: nn.Module, method: str, device: str, dtype: torch.dtype = torch.float32, **options: str
) -> Tensor:
    """Two targets of four images, back on the CPU."""
    torch.manual_seed(0)
    x = torch.rand(4, 1, 28, 28, dtype=dtype) * 2 - 1
    target = torch.tensor([[0, 3], [1, 9], [2, 2], [7, 5]])
    explainer = relprop.Explainer(
        model.to(device, dtype),
        method,
        method_options=OPTIONS.get(method),
        **options,  # type: ignore[arg-type]
    )
    result = explainer(x.to(device), target=target.to(device))
    assert isinstance(result, Tensor) and result.device.type == device
    return result.cpu()


def assert_near(found: Tensor, expected: Tensor, relative: float) -> None:
    """Within a share of the norm: quotients by small z amplify rounding of single elements."""
    assert found.shape == expected.shape
    assert (found - expected).norm() <= relative * expected.norm()


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("name", models.names())
def test_cuda_equals_cpu_in_float64(name: str, method: str) -> None:
    model = models.load(name)
    found = explained(model, method, "cuda", torch.float64, backend="aten")
    expected = explained(model, method, "cpu", torch.float64, backend="aten")
    if "smoothgrad" not in method:  # its noise is drawn on the device
        assert_near(found, expected, 1e-8)


@pytest.mark.parametrize("method", PROPAGATION)
@pytest.mark.parametrize("name", models.names())
def test_triton_equals_aten(name: str, method: str) -> None:
    pytest.importorskip("triton")
    model = models.load(name)
    found = explained(model, method, "cuda", backend="triton")
    expected = explained(model, method, "cuda", torch.float64, backend="aten")
    library = explained(models.load(name), method, "cuda", backend="aten")
    error, limit = ((x.double() - expected).norm() for x in (found, library))
    assert error <= 4 * limit + 1e-5 * expected.norm()


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("method", ["epsilon_plus", "epsilon_alpha2_beta1"])
def test_triton_gives_the_same_bits_from_run_to_run(method: str, precision: str) -> None:
    pytest.importorskip("triton")
    model = models.load("mnist_cnn")
    options = {"backend": "triton", "precision": precision}
    first = explained(model, method, "cuda", **options)
    assert torch.equal(first, explained(model, method, "cuda", **options))


@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("backend", ["aten", "triton"])
def test_reduced_precision_stays_near(backend: str, precision: str) -> None:
    pytest.importorskip("triton")
    model = models.load("mnist_cnn")
    found = explained(model, "epsilon_plus", "cuda", backend=backend, precision=precision)
    expected = explained(model, "epsilon_plus", "cuda", torch.float64, backend="aten")
    assert_near(found.double(), expected, 0.1 if precision == "medium" else 0.02)


@pytest.mark.parametrize("backend", ["aten", "triton"])
def test_replayed_as_explained(backend: str) -> None:
    pytest.importorskip("triton")
    from relprop.engine.graphed import GraphedExplainer

    model = models.load("mnist_cnn").cuda()
    explainer = relprop.Explainer(model, "epsilon_alpha2_beta1", backend=backend, frozen=True)
    target = torch.tensor([[0, 3], [1, 9], [2, 2], [7, 5]], device="cuda")
    x = torch.rand(4, 1, 28, 28, device="cuda") * 2 - 1
    graphed = GraphedExplainer(explainer._planner, x, target)
    for _ in range(3):
        x = torch.rand(4, 1, 28, 28, device="cuda") * 2 - 1
        found = graphed(x, target.flip(1))
        expected = explainer(x, target=target.flip(1))
        assert isinstance(expected, Tensor)
        assert_near(found.cpu(), expected.cpu(), 1e-5)
