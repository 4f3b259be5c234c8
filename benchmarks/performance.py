"""The README's performance section as Markdown, from the records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.recording import RECORDS
from benchmarks.report import goals, load, origin
from benchmarks.tables import number

__all__ = ["section"]

Row = Mapping[str, str]

SUBJECTS = {
    "model/vgg16/lrp_epsilon/": ("VGG-16", "LRP-ε"),
    "model/vgg16/epsilon_plus/": ("VGG-16", "ε-plus"),
    "model/vgg16/epsilon_alpha2_beta1/": ("VGG-16", "ε-α2β1"),
    "model/resnet50/lrp_epsilon/": ("ResNet-50", "LRP-ε"),
    "model/resnet50/epsilon_plus/": ("ResNet-50", "ε-plus"),
    "model/resnet50/epsilon_alpha2_beta1/": ("ResNet-50", "ε-α2β1"),
    "model/lstm classifier/": ("LSTM, 50 steps", "LRP-ε"),
}
PEERS = ("relprop", "zennit", "captum", "NumPy loop", "naive reference")
NAMES = {"zennit": "Zennit", "captum": "Captum"}


def section(folder: Path = RECORDS) -> str:
    """The section's text; says so where nothing has been recorded yet."""
    rows = [row for row in load("cpu", folder) if row["level"] == "model"]
    wanted = [row for row in rows if any(row["cell"].startswith(cell) for cell in SUBJECTS)]
    if not wanted:
        return "No benchmark has been recorded yet: `make bench-full`."
    parts = [_table(wanted), _caption(wanted), *_misses(load("cpu", folder))]
    return "\n\n".join(parts)


def _table(rows: Sequence[Row]) -> str:
    """Time of one explanation over the gradient's, and explanations per second, by library."""
    head = ["model", "method", "gradient, expl./s", *(NAMES.get(p, p) for p in PEERS),
            "relprop over its floor", "peak memory, relprop", "Zennit"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for cell, subject in SUBJECTS.items():
        own = {row["library"]: row for row in rows if row["cell"].startswith(cell)}
        if not own:
            continue
        shown = [*subject, _cell(own, "gradient", "explanations_per_s")]
        shown += [_cell(own, library, "x_gradient") for library in PEERS]
        shown.append(_cell(own, "relprop", "x_floor"))
        shown += [_cell(own, library, "x_gradient_peak") for library in ("relprop", "zennit")]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _cell(rows: Mapping[str, Row], library: str, column: str) -> str:
    if library not in rows:
        return "–"
    row = rows[library]
    if row["status"] != "ok":
        return row["status"].partition(":")[0]
    return number(row[column]) or "–"


def _caption(rows: Sequence[Row]) -> str:
    return (
        "Time and peak memory of one explanation; autograd's forward pass and input gradient = 1, "
        "in the same run; the floor is the products that the method needs, done by the library and "
        "nothing else. Measured " + "; ".join(origin(rows)) + ". All tables: "
        "[benchmarks/records/report-cpu.md](benchmarks/records/report-cpu.md); how: "
        "[benchmarks/README.md](benchmarks/README.md)."
    )


def _misses(rows: Sequence[Row]) -> list[str]:
    """The project's own goals that are missed, in words."""
    missed = [
        f"{goal.text} is {number(value)}, the goal was at most {number(goal.most)}"
        for goal, value in goals(rows)
        if value is not None and value > goal.most
    ]
    return ["Missed so far: " + "; ".join(missed) + "."] if missed else []
