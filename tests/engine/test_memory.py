"""Out of memory: smaller batches inside, the same result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import relprop
from relprop.backends.aten.backend import AtenBackend


class Limited:
    """A backend's forward that has memory for a few samples only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, samples: int, message: str) -> None:
        self.batches: list[int] = []
        original = AtenBackend.forward

        def forward(backend: AtenBackend, call: Any, a: Tensor, *rest: Any) -> Any:
            self.batches.append(len(a))
            if len(a) > samples:
                raise torch.OutOfMemoryError(message)
            return original(backend, call, a, *rest)

        monkeypatch.setattr(AtenBackend, "forward", forward)


@pytest.fixture
def model() -> nn.Module:
    layers = nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)
    return nn.Sequential(*layers).double().eval()


CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB"
CPU = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"


@pytest.mark.parametrize("message", [CUDA, CPU])
@pytest.mark.parametrize("target", [1, [0, 1, 2, 3, 0, 1, 2], torch.arange(14).view(7, 2) % 4])
def test_same_result_in_halves(
    model: nn.Module, target: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(7, 2, 5, 5).double()
    explainer = relprop.Explainer(model, "epsilon_plus", layers=["0"])
    whole = explainer.explain(x, target=target)
    limited = Limited(monkeypatch, 2, message)
    parts = explainer.explain(x, target=target)
    assert max(limited.batches) == 7 and 2 in limited.batches
    assert isinstance(whole.relevance, Tensor) and isinstance(parts.relevance, Tensor)
    torch.testing.assert_close(parts.relevance, whole.relevance, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(parts.layers["0"], whole.layers["0"], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(parts.output, whole.output, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(parts.convergence_delta, whole.convergence_delta)
    for ours, theirs in zip(parts.steps, whole.steps, strict=True):
        torch.testing.assert_close(ours.relevance_out, theirs.relevance_out)


@pytest.mark.parametrize("kind", ["tensor", "list", "top"])
def test_targets_chosen_from_the_output_in_halves(
    model: nn.Module, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(7, 2, 5, 5).double()
    explainer = relprop.Explainer(model, "epsilon_plus")
    output = model(x)
    calls: list[int] = []

    def choose(output: Tensor) -> Any:
        calls.append(len(output))
        if kind == "top":
            return output.topk(2).indices
        best = output.argmax(1)
        return best if kind == "tensor" else best.tolist()

    wanted = output.topk(2).indices if kind == "top" else output.argmax(1)
    expected = explainer(x, target=wanted)
    whole = explainer.explain(x, target=choose, report=False)
    assert calls == [7] and whole.steps == ()
    assert isinstance(whole.relevance, Tensor) and isinstance(expected, Tensor)
    assert torch.equal(whole.relevance, expected)
    assert torch.equal(torch.as_tensor(whole.target), wanted)
    Limited(monkeypatch, 2, CUDA)
    parts = explainer.explain(x, target=choose)
    assert len(parts.steps) > 0 and isinstance(parts.relevance, Tensor)
    torch.testing.assert_close(parts.relevance, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(torch.as_tensor(parts.target), wanted)


def test_tensor_start_in_halves(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x, start = torch.randn(3, 2, 5, 5).double(), torch.randn(3, 4).double()
    explainer = relprop.Explainer(model, "lrp_epsilon")
    whole = explainer(x, start=start)
    Limited(monkeypatch, 1, CUDA)
    torch.testing.assert_close(explainer(x, start=start), whole)


def test_one_sample_that_does_not_fit(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = relprop.Explainer(model, "lrp_epsilon")
    x = torch.randn(2, 2, 5, 5).double()
    explainer(x, target=0)
    Limited(monkeypatch, 0, CUDA)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        explainer(x, target=0)


def test_other_errors_are_not_retried(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    limited = Limited(monkeypatch, 0, "something else")
    with pytest.raises(relprop.RelpropError, match="something else"):
        relprop.explain(model, torch.randn(4, 2, 5, 5).double(), target=0)
    assert limited.batches == [4]
