"""Shared set-up: random numbers, the Hypothesis profile, torchvision beside a CPU torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from ptx.plugin import (
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_terminal_summary,
)

if TYPE_CHECKING:
    from relprop.capture.call import Call

__all__ = [
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_terminal_summary",
]

if importlib.util.find_spec("hypothesis") is not None:  # a GPU machine may have pytest alone
    import hypothesis

    hypothesis.settings.register_profile("relprop", deadline=None, derandomize=True)
    hypothesis.settings.load_profile("relprop")


def _define_torchvision_operators() -> torch.library.Library | None:
    """Declare the operators that `import torchvision` looks up when its extension cannot load.

    torchvision's wheel holds an extension built for CUDA; beside a CPU build of torch only its
    Python part (the models) works, once the operators' schemas exist.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    try:
        torch.ops.load_library(str(Path(spec.origin).parent / "_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


TORCHVISION_OPERATORS = _define_torchvision_operators()


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The class of each model that is captured, in order; empty at first."""
    from relprop.capture import cache as captured

    done: list[str] = []
    original = captured._capture

    def capture(model: torch.nn.Module, call: Call) -> Any:
        done.append(type(model).__name__)
        return original(model, call)

    monkeypatch.setattr(captured, "_capture", capture)
    return done
