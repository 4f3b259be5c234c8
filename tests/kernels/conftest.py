"""The kernels run in Triton's interpreter, which has to be chosen before Triton is imported."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

REASON = "needs TRITON_INTERPRET=1 from the start of the process: run 'make kernels'"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip this folder where the interpreter was not asked for."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """New tensors hold NaN until a kernel writes them."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.zeros(2).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each kernel is launched."""
    from triton.runtime.interpreter import GridExecutor

    count: Counter[str] = Counter()
    original = GridExecutor.__call__

    def counted(self: GridExecutor, *args: object, **kwargs: object) -> object:
        count[self.fn.__name__] += 1
        return original(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", counted)
    yield count
