"""Looking before explaining: `check` a model, `info` on what is installed."""

from __future__ import annotations

import importlib.util
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from relprop._version import __version__
from relprop.capture.cache import captured
from relprop.capture.call import Call, unwrap
from relprop.composites import Composite
from relprop.engine.binding import bind
from relprop.engine.facts import analyse, layer_names, leading_to
from relprop.errors import InputError
from relprop.graph import Graph
from relprop.operations import operation
from relprop.tables import aligned, table

__all__ = ["Check", "check", "info", "installed"]


@dataclass(frozen=True)
class Check:
    """What relprop sees in a model.

    Attributes:
        operations: how often each operation that carries relevance occurs.
        unsupported: (module path, operation) of those without a propagation of their own.
        dissolved: modules folded into another layer, with its path.
        modules: module calls whose relevance `layers=` can ask for.
        seconds: time that the capture took.
        origin: "export" or "record".
        symbolic: whether one capture serves every batch size.
    """

    operations: dict[str, int]
    unsupported: tuple[tuple[str, str], ...]
    dissolved: dict[str, str]
    modules: tuple[str, ...]
    seconds: float
    origin: str
    symbolic: bool

    @property
    def ok(self) -> bool:
        """Whether every operation has a propagation."""
        return not self.unsupported

    def __str__(self) -> str:
        kinds = {name: operation(name) for name in self.operations}
        rows = [
            (name, str(count), found.carry if (found := kinds[name]) else "unsupported")
            for name, count in self.operations.items()
        ]
        lines = [table(("operation", "count", "relevance"), rows)]
        for path, name in self.unsupported:
            lines.append(f"unsupported: '{path}' is aten.{name}")
        lines += [f"dissolved: '{path}' into '{other}'" for path, other in self.dissolved.items()]
        batch = "any batch size" if self.symbolic else "this batch size only"
        lines.append(f"captured by {self.origin} in {self.seconds:.2f} s, for {batch}")
        return "\n".join(lines)


def check(model: nn.Module, *inputs: Any, kwargs: Mapping[str, Any] | None = None,
          batch_dim: int = 0, shared: Sequence[int | str] = ()) -> Check:  # fmt: skip
    """What relprop sees in a model; explains nothing.

    Args:
        model: the module, in eval mode.
        inputs: its positional arguments, such as a batch of images.
        kwargs: its keyword arguments.
        batch_dim: the axis of the samples.
        shared: positions and keywords of the inputs that are one for all samples.

    Raises:
        InputError: no tensor among the inputs, or the model refuses them.
        CaptureError: the model cannot be captured.
    """
    model = unwrap(model)
    call = Call.of(inputs, kwargs, batch_dim, shared=shared)
    if not any(isinstance(leaf, Tensor) for leaf in call.leaves):
        raise InputError("check: expected at least one torch.Tensor to run the model on")
    began = time.perf_counter()
    graph = captured(model, call)
    seconds = time.perf_counter() - began
    tensors = [
        (name, leaf)
        for i, (name, leaf) in enumerate(zip(graph.inputs, call.leaves, strict=True))
        if isinstance(leaf, Tensor) and i not in call.shared
    ]
    floating = [name for name, leaf in tensors if leaf.is_floating_point()]
    integer = [name for name, _ in tensors if name not in floating]
    facts = analyse(graph, floating, integer)
    carrying = [node for node in graph.nodes.values() if node.name in facts.carriers]
    return Check(
        operations=dict(Counter(node.op for node in carrying if node.op != "getitem")),
        unsupported=tuple(dict.fromkeys(_lacking(graph, floating, integer))),
        dissolved={
            node.attributes["folded"]: node.path for node in carrying if "folded" in node.attributes
        },
        modules=tuple(layer_names(graph, facts)),
        seconds=seconds,
        origin=graph.origin,
        symbolic=graph.symbolic,
    )


def _lacking(graph: Graph, floating: list[str], integer: list[str]) -> Iterator[tuple[str, str]]:
    """Paths and names of the operations that a plan for any of the outputs would lack."""
    carriers = analyse(graph, floating, integer).carriers
    for output in graph.output_names:
        if output in carriers:
            part, facts = leading_to(output, graph, floating, integer)
            lacks = bind(part, facts, output, Composite()).lacks
            yield from ((lack.node.path, lack.node.op) for lack in lacks)


def info() -> dict[str, str]:
    """Print, and return, versions, devices and backends: what a problem's report should hold."""
    found = installed()
    print("\n".join(aligned(list(found.items()))))
    return found


def installed() -> dict[str, str]:
    """Versions, devices and backends by name."""
    found = {"relprop": __version__, "python": platform.python_version()}
    for package in ("torch", "triton", "numpy", "safetensors", "matplotlib", "captum", "zennit"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["threads"] = str(torch.get_num_threads())
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["devices"] = "cpu, " + ", ".join(names)
    else:
        found["devices"] = "cpu"
    triton = importlib.util.find_spec("triton") is not None and torch.cuda.is_available()
    found["backends"] = "aten, reference" + (", triton" if triton else "")
    return found
