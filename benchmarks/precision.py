"""Error as well as speed: how far each precision is from float64, and what it saves."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.cells import Cell, Workload
from benchmarks.comparison import compared
from benchmarks.models import FIRST
from benchmarks.peers import Peer, captum, gradient, ours, zennit
from benchmarks.subjects import cnn
from relprop.backends import PRECISIONS

__all__ = ["cells"]


def cells(device: str = "cpu", batch: int = 4, size: int = 128) -> Iterator[Cell]:
    """relprop in every precision, peers in float32, on two CNNs."""
    for name in ("vgg16", "resnet50"):
        for method in FIRST:
            suites = {"full"} | ({"window"} if method == "epsilon_plus" else set())
            yield Cell(
                f"precision/{name}/{method}/b{batch}/{size}",
                "precision",
                {"workload": name, "method": method, "batch": batch, "size": f"{size} px"},
                partial(_precisions, name, method, batch, size, device),
                frozenset(suites),
                rounds=5,
                limit=15.0,
            )


def _precisions(name: str, method: str, batch: int, size: int, device: str) -> Workload:
    subject = cnn(name, batch, size, device)
    model = subject.model
    found = [Peer("gradient", gradient(model))]
    for precision in PRECISIONS:
        if precision != "high" or device == "cuda":  # on a CPU that is "highest"
            found.append(Peer("relprop", ours(model, method, precision=precision), precision))
    for library, maker in (("zennit", zennit), ("captum", captum)):
        explain = maker(model, method)
        if explain is not None:
            found.append(Peer(library, explain))
    return compared(subject, found, method, device)
