"""A graph evaluated plainly: its sources read from the model, its operations in order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from relprop.errors import InputError, is_out_of_memory
from relprop.graph.nodes import CAPTURE_LOCK, Graph, Node

__all__ = ["evaluate", "located", "source_values"]


def source_values(graph: Graph, model: nn.Module, names: Iterable[str]) -> dict[str, Any]:
    """The parameters, buffers and constants among `names`, as the model holds them now."""
    wanted = set(names)
    # while another thread captures the model, torch.export has tensors of its own in their place
    with CAPTURE_LOCK:
        return {n: source.read(model) for n, source in graph.sources.items() if n in wanted}


@contextlib.contextmanager
def located(node: Node) -> Iterator[None]:
    """Lets an error of a library operation say in which of the model's layers it happened."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        where = f"'{node.path}' ({node.op})" if node.path else node.op
        raise InputError(
            f"{where}: the forward pass fails on these inputs or parameters: {error}"
        ) from error


def evaluate(graph: Graph, model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """All values that the graph's outputs need, computed plainly; those of the outputs returned."""
    values = source_values(graph, model, graph.sources) | dict(inputs)
    last = graph.last_reads([*graph.output_names, *inputs])
    for node in graph.nodes.values():
        values[node.name] = node.evaluate(values)
        for name in last[node.name]:
            values.pop(name, None)
    return {name: values[name] for name in graph.output_names}
