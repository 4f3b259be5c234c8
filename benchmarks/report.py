"""What the records say: tables, fitted exponents, goals met and missed.  Nothing is measured here.

python -m benchmarks.report             writes benchmarks/records/report-cpu.md
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.recording import RECORDS, read
from benchmarks.suites import LEVELS, record_of
from benchmarks.tables import HEAD, cells_of, markdown, notes, number
from relprop.atomic import replacing

__all__ = ["GOALS", "Fit", "Goal", "exponent", "fits", "goals", "growth_table", "load", "main",
           "origin", "page"]  # fmt: skip

Row = Mapping[str, str]
Rows = Sequence[Row]
MARGIN = 0.1
"""How far an exponent may be above the arithmetic's before it is flagged, if its error is less."""


def load(device: str = "cpu", folder: Path = RECORDS) -> list[dict[str, str]]:
    """All rows recorded on that kind of device."""
    return read(record_of(level, device, folder) for level in LEVELS)


@dataclass(frozen=True)
class Goal:
    """A figure that the project set itself.

    Attributes:
        text: what it is about.
        cell: how the cell's name begins.
        value: from the cell's rows by library to the figure; KeyError if something is missing.
        most: the figure may be this at most.
    """

    text: str
    cell: str
    value: Callable[[Mapping[str, Row]], float]
    most: float


def _column(column: str, library: str = "relprop") -> Callable[[Mapping[str, Row]], float]:
    return lambda rows: float(rows[library][column])


def _against(other: str, library: str = "relprop") -> Callable[[Mapping[str, Row]], float]:
    """Time of one explanation over another library's."""
    return lambda rows: (
        float(rows[other]["explanations_per_s"]) / float(rows[library]["explanations_per_s"])
    )


def _by_precision(rows: Mapping[str, Row]) -> float:
    wide, narrow = rows["relprop"], rows["relprop medium"]
    return float(wide["explanations_per_s"]) / float(narrow["explanations_per_s"])


_EPS, _PLUS, _AB = "lrp_epsilon", "epsilon_plus", "epsilon_alpha2_beta1"
GOALS = (
    Goal("VGG-16, LRP-ε: time over the gradient's", f"model/vgg16/{_EPS}/", _column("x_gradient"),
         1.05),
    Goal("VGG-16, ε-plus: time over the gradient's", f"model/vgg16/{_PLUS}/",
         _column("x_gradient"), 1.35),
    Goal("VGG-16, ε-α2β1: time over the gradient's", f"model/vgg16/{_AB}/", _column("x_gradient"),
         1.8),
    Goal("ResNet-50, ε-plus: time over Zennit's", f"model/resnet50/{_PLUS}/", _against("zennit"),
         1 / 2.5),
    Goal("ResNet-50, ε-α2β1: time over Zennit's", f"model/resnet50/{_AB}/", _against("zennit"),
         1 / 3.2),
    Goal("VGG-16, LRP-ε: peak memory over the gradient's", f"model/vgg16/{_EPS}/",
         _column("x_gradient_peak"), 1.2),
    Goal("VGG-16, ε-α2β1: peak memory over the gradient's", f"model/vgg16/{_AB}/",
         _column("x_gradient_peak"), 2.2),
    Goal("VGG-16, ε-plus: bfloat16's time over float32's", f"precision/vgg16/{_PLUS}/",
         _by_precision, 0.5),
    Goal("VGG-16, ε-plus: ten targets in one call over ten calls", "model/vgg16/10 targets/",
         _against("relprop, one by one"), 0.6),
    Goal("LSTM 256-256, 50 steps: time over the NumPy loop's", "layer/lstm 256-256/",
         _against("NumPy loop"), 0.01),
)  # fmt: skip
"""The goals of the project's plan that this suite measures."""


def goals(rows: Rows, chosen: Iterable[Goal] = GOALS) -> list[tuple[Goal, float | None]]:
    """What each goal's figure is; None where it was not measured."""
    found: list[tuple[Goal, float | None]] = []
    for goal in chosen:
        own: dict[str, Row] = {}
        for row in rows:
            if row["cell"].startswith(goal.cell) and row["status"] == "ok":
                narrow = f" {row['precision']}" if row["precision"] != "highest" else ""
                own[row["library"] + narrow] = row
        try:
            found.append((goal, goal.value(own)))
        except KeyError:
            found.append((goal, None))
    return found


def _goal_lines(rows: Rows) -> list[str]:
    lines = []
    for goal, value in goals(rows):
        if value is None:
            said = "not measured"
        elif value <= goal.most:
            said = f"{number(value)}, met"
        else:
            said = f"{number(value)}, **missed**"
        lines.append(f"| {goal.text} | ≤ {number(goal.most)} | {said} |")
    return ["| goal | limit | measured |", "|---|---|---|", *lines]


@dataclass(frozen=True)
class Fit:
    """An exponent, by least squares on logarithms.

    Attributes:
        slope: the exponent.
        error: its standard error.
    """

    slope: float
    error: float


def exponent(x: Sequence[float], y: Sequence[float]) -> Fit:
    """The exponent p of y ~ x^p, for three points at least."""
    u, v = np.log(np.asarray(x)), np.log(np.asarray(y))
    slope, level = np.polyfit(u, v, 1)
    rest = v - slope * u - level
    spread = float((rest**2).sum()) / (len(u) - 2) / float(((u - u.mean()) ** 2).sum())
    return Fit(float(slope), math.sqrt(spread))


def fits(rows: Rows) -> list[dict[str, object]]:
    """For each curve and library: exponents of time and memory, the arithmetic's, and flags."""
    curves: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["level"] == "growth" and row["status"] == "ok":
            key = (row["axis"], row["workload"], row["method"], row["library"])
            curves.setdefault(key, []).append(row)
    found: list[dict[str, object]] = []
    for (axis, workload, method, library), points in curves.items():
        if len(points) < 3:
            continue
        points = sorted(points, key=lambda row: float(row["value"]))
        x = [float(row["value"]) for row in points]
        line: dict[str, object] = {
            "axis": axis, "workload": workload, "method": method, "library": library,
            "points": ", ".join(row["value"] for row in points),
        }  # fmt: skip
        for name, measured, needed in (
            ("time", "median_s", "multiplications"),
            ("memory", "peak_bytes", "at_once_bytes"),
        ):
            own = exponent(x, [float(row[measured]) for row in points])
            arithmetic = exponent(x, [float(row[needed]) for row in points])
            line[name], line[f"{name} needed"] = own, arithmetic
            line[f"{name} flag"] = own.slope - arithmetic.slope > max(MARGIN, 2 * own.error)
        found.append(line)
    return found


def growth_table(rows: Rows) -> str:
    """The exponents as a Markdown table."""
    head = ("axis", "model", "method", "who", "points", "time grows as", "multiply-adds as",
            "memory grows as", "bytes needed at once as", "above the arithmetic")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for line in fits(rows):
        flags = [name for name in ("time", "memory") if line[f"{name} flag"]]
        shown = [str(line[key]) for key in ("axis", "workload", "method", "library", "points")]
        for key in ("time", "time needed", "memory", "memory needed"):
            fit = line[key]
            assert isinstance(fit, Fit)
            error = f" ± {fit.error:.2f}" if "needed" not in key else ""
            shown.append(f"n^{fit.slope:.2f}{error}")
        lines.append("| " + " | ".join([*shown, ", ".join(flags) or "no"]) + " |")
    return "\n".join(lines)


def origin(rows: Rows) -> list[str]:
    """Where and how rows were measured, a line for each machine and set of versions."""
    places: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        places.setdefault((row["device"], row["threads"], row["versions"]), []).append(row)
    lines = []
    for (device, threads, versions), some in places.items():
        days = sorted({row["time"][:10] for row in some})
        when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        commits: dict[str, set[str]] = {}
        for row in some:
            commits.setdefault(row["command"].partition(" --budget")[0], set()).add(row["commit"])
        how = "; ".join(
            f"commit {', '.join(sorted(own))}, `{command}`" for command, own in commits.items()
        )
        lines.append(f"{when}, {device}, {threads} threads; {versions}; {how}")
    return lines


def page(rows: Rows, device: str = "cpu") -> str:
    """The whole report as Markdown."""
    parts = [
        f"# Measured on a {device.upper()}",
        "Written by `python -m benchmarks.report` from the records beside it; benchmarks/README.md "
        "says what the columns mean.",
        *(f"- {line}" for line in origin(rows)),
        "## Goals",
        "\n".join(_goal_lines(rows)),
    ]
    titles = {
        "model": "Models",
        "precision": "Error and throughput by precision",
        "stream": "Streams",
        "layer": "Single layers",
    }
    for level, title in titles.items():
        own = [row for row in rows if row["level"] == level]
        if own:
            parts += [f"## {title}", markdown(HEAD, own, cells_of), "\n".join(notes(own))]
    if any(row["level"] == "growth" for row in rows):
        parts += ["## Growth", growth_table(rows)]
    return "\n\n".join(filter(None, parts)) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args(argv)
    rows = load(options.device, options.records)
    if not rows:
        print(f"benchmarks.report: no records in {options.records}; make bench-full writes them")
        return 1
    path = options.records / f"report-{options.device}.md"
    with replacing(path) as beside:
        beside.write_text(page(rows, options.device))
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
