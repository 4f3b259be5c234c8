"""The kernels run in Triton's interpreter, chosen before Triton is imported, or on a device.

TRITON_INTERPRET=1 means the interpreter, --ptx the device that executes PTX (tests/ptx/README.md).
Without them RELPROP_KERNEL_DEVICE names the device; by
default, "auto", it is the CUDA device if there is one.  RELPROP_KERNEL_SHARD="2/8" keeps every
eighth test from the third on, so that several processes share the compiling.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

REASON = (
    "needs a CUDA device, or TRITON_INTERPRET=1 from the start of the process: run 'make kernels'; "
    "or --ptx 90: run 'make ptx'"
)


MOST_PROGRAMS = 32
"""Of a launch in the interpreter, which runs one after the other."""


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def chosen_device(config: pytest.Config) -> str | None:
    """Where the tests' tensors lie; None if there is nothing to run them on."""
    if INTERPRETED or config.getoption("--ptx"):
        return "cpu"
    asked = os.environ.get("RELPROP_KERNEL_DEVICE", "auto")
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else None
    return asked


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the asked share of this folder, nothing where there is nothing to run it on.

    The suite as a whole runs this folder in the interpreter: tests/project/test_kernels.py.

    Raises:
        pytest.UsageError: nothing else was asked for.
    """
    here = Path(__file__).parent
    own = [item for item in items if here in item.path.parents]
    shard, _, shards = os.environ.get("RELPROP_KERNEL_SHARD", "0/1").partition("/")
    left = [item for number, item in enumerate(own) if number % int(shards) != int(shard)]
    device = chosen_device(config)
    if device is None:
        left = own
    if device is None and own and len(own) == len(items):
        raise pytest.UsageError(f"tests/kernels {REASON}")
    if left:
        config.hook.pytest_deselected(items=left)
        gone = set(left)
        items[:] = [item for item in items if item not in gone]


class _Kept:
    """What is in place already needs no undoing."""

    def restore(self) -> None:
        pass


@pytest.fixture(autouse=True, scope="session")
def _interpreter_set_up_once_a_launch() -> Iterator[None]:
    """Keep the interpreter from replacing triton.language's functions at every inlined call.

    Within a launch it has done so already, and doing it again takes two fifths of the time.
    """
    if not INTERPRETED:
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    replaced: set[frozenset[str]] = set()
    original = interpreter._patch_lang

    def patch(fn: Any) -> Any:
        """Triton's own, where none has done the same for a caller of this function."""
        languages = [value for value in fn.__globals__.values() if value is tl or value is tl.core]
        modules = frozenset(module.__name__ for module in languages)
        if modules in replaced:
            return _Kept()
        scope = original(fn)
        replaced.add(modules)
        undo = scope.restore

        def restore() -> None:
            replaced.discard(modules)
            undo()

        scope.restore = restore
        return scope

    called = interpreter.GridExecutor.__call__

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        """Triton's own; what needs many programs would take minutes here."""
        few = callable(self.grid) or prod(self.grid) <= MOST_PROGRAMS
        assert few, f"{self.fn.__name__}: {self.grid} programs"
        return called(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(interpreter, "_patch_lang", patch)
        patched.setattr(interpreter.GridExecutor, "__call__", call)
        yield


@pytest.fixture(autouse=True)
def _on_the_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """New tensors lie on the device and hold NaN until a kernel writes them."""
    on_cuda = chosen_device(request.config) == "cuda"
    if on_cuda:
        torch.set_default_device("cuda")
    # on CUDA some of the reference's own operations have no deterministic form, which must not stop
    # them; float32 there means IEEE products
    torch.use_deterministic_algorithms(True, warn_only=on_cuda)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.backends.cudnn.allow_tf32 = False
    assert torch.zeros(2).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = True
    if on_cuda:
        torch.set_default_device(None)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each kernel is launched."""
    count: Counter[str] = Counter()
    if INTERPRETED:
        from triton.runtime.interpreter import GridExecutor as Launcher

        name = "__call__"
    else:
        from triton.runtime.jit import JITFunction as Launcher

        name = "run"
    original = getattr(Launcher, name)

    def counted(self: object, *args: object, **kwargs: object) -> object:
        count[self.fn.__name__] += 1  # type: ignore[attr-defined]
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Launcher, name, counted)
    yield count
