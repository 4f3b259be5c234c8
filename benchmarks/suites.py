"""The named runs, and which cells belong to which."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import growth, layers, lstm_layers, models, precision, streams
from benchmarks.cells import Cell
from benchmarks.recording import RECORDS

__all__ = ["LEVELS", "SUITES", "chosen", "every", "find", "record_of"]

SUITES = {
    "quick": "a table of each level in less than ten minutes; nothing is written",
    "window": "the most valuable cells of all levels, fifteen minutes",
    "full": "everything, at most ninety minutes",
}
LEVELS = ("model", "layer", "precision", "growth", "stream")
"""Each has a record of its own."""


def every(device: str = "cpu", triton: bool = False) -> list[Cell]:
    """All cells, the most valuable first."""
    return [
        *models.cells(device, triton=triton),
        *layers.cells(device, triton=triton),
        *lstm_layers.cells(device),
        *precision.cells(device),
        *growth.cells(device),
        *streams.cells(device),
        *models.more(device),
    ]


def chosen(cells: Iterable[Cell], suite: str, only: Sequence[str] = ()) -> list[Cell]:
    """The cells of a suite whose name holds one of some texts; of all suites with texts alone."""
    return [
        cell
        for cell in cells
        if suite in cell.suites and (not only or any(text in cell.name for text in only))
    ]


def find(name: str, device: str = "cpu") -> Cell:
    """The cell of that name."""
    for cell in every(device):
        if cell.name == name:
            return cell
    raise SystemExit(f"benchmarks: no cell {name!r}; python -m benchmarks --list prints them all")


def record_of(level: str, device: str, folder: Path = RECORDS) -> Path:
    """Where the rows of a level are kept."""
    return folder / f"suite-{level}-{device}.csv"
