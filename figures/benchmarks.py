"""The benchmark figures, drawn from benchmarks/records/*.csv alone.

Run `python -m figures.benchmarks`: writes, as PNG and PDF beside this file, what there are records
for.

    benchmarks_throughput    explanations per second of whole models, by library
    benchmarks_rules         cost of each rule on single layers over the plain gradient, and floor
    benchmarks_memory        peak memory of whole models over the plain gradient's
    benchmarks_growth        time and memory against batch, depth, image size, T and K
    benchmarks_precision     error against throughput
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.recording import RECORDS
from benchmarks.report import load
from figures.charts import PAGE_INCHES, chart
from relprop.image.figure import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURES", "main"]

HERE = Path(__file__).parent
Row = Mapping[str, str]
Rows = Sequence[Row]

COLOURS = {
    "gradient": "#999999",
    "relprop": "#0072B2",
    "relprop frozen": "#56B4E9",
    "relprop medium": "#009E73",
    "relprop triton": "#004466",
    "zennit": "#D55E00",
    "captum": "#E69F00",
    "naive reference": "#CC79A7",
    "NumPy loop": "#000000",
}
NAMES = {
    "lrp_epsilon": "LRP-ε",
    "epsilon_plus": "ε-plus",
    "epsilon_alpha2_beta1": "ε-α2β1",
    "lrp_gamma": "LRP-γ",
    "epsilon_plus_flat": "ε-plus-flat",
    "epsilon_gamma_box": "ε-γ-box",
}
TITLES = {"vgg16": "VGG-16", "resnet50": "ResNet-50", "mobilenet_v2": "MobileNet-v2"}
AXES = {
    "batch": "batch size", "depth": "convolutions", "image size": "side of the image, pixels",
    "sequence length": "steps T", "targets": "targets K",
}  # fmt: skip


def _timed(rows: Rows, level: str) -> list[Row]:
    return [row for row in rows if row["level"] == level and row["status"] == "ok"]


def _who(row: Row) -> str:
    narrow = row["precision"] == "medium"
    return row["library"] + (" medium" if narrow else "")


def _groups(rows: Rows, *keys: str) -> dict[tuple[str, ...], list[Row]]:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def _bars(axes: Axes, rows: Rows, groups: Sequence[str], key: str, column: str) -> list[str]:
    """Grouped bars: a group for each value of `key`, a bar for each library; the libraries."""
    libraries = [who for who in COLOURS if any(_who(row) == who and row[column] for row in rows)]
    width = 0.8 / max(1, len(libraries))
    for number, who in enumerate(libraries):
        own = {row[key]: float(row[column]) for row in rows if _who(row) == who and row[column]}
        places = [g + (number - (len(libraries) - 1) / 2) * width for g in range(len(groups))]
        heights = [own.get(group, np.nan) for group in groups]
        axes.bar(places, heights, width * 0.92, color=COLOURS[who], label=who)
        for place, height in zip(places, heights, strict=True):
            if np.isfinite(height):
                text = f"{height:.2f}" if height < 10 else f"{height:.0f}"
                axes.text(place, height, text, ha="center", va="bottom", fontsize=5, rotation=90)
    axes.set_xticks(range(len(groups)), [NAMES.get(group, group) for group in groups])
    return libraries


def _two_a_row(count: int, inches: float, legend_inches: float) -> tuple[Figure, list[Axes]]:
    """A page with so many panels, each some inches high, and room for a legend below."""
    height = -(-count // 2)
    figure = chart(PAGE_INCHES, inches * height + legend_inches)
    panels = list(figure.subplots(height, 2, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def _draw_legend(figure: Figure) -> None:
    """One legend below for what all panels show."""
    seen: dict[str, Any] = {}
    for axes in figure.axes:
        seen |= {text: handle for handle, text in zip(*axes.get_legend_handles_labels())}
    figure.legend(seen.values(), seen.keys(), loc="outside lower center", ncols=len(seen),
                  frameon=False)  # fmt: skip


def _networks(rows: Rows) -> dict[tuple[str, ...], list[Row]]:
    """The CNNs' rows by model, size, and batch of the cell."""
    own = [r for r in _timed(rows, "model") if r["workload"] in TITLES and r["method"] in NAMES]
    return _groups(own, "workload", "size")


def _model_bars(rows: Rows, column: str, label: str, line: bool) -> Figure | None:
    networks = _networks(rows)
    if not networks:
        return None
    figure = chart(PAGE_INCHES, 2.2 * len(networks) + 0.3)
    panels = figure.subplots(len(networks), 1, squeeze=False)[:, 0]
    for axes, ((workload, size), own) in zip(panels, networks.items(), strict=True):
        methods = [method for method in NAMES if any(row["method"] == method for row in own)]
        _bars(axes, own, methods, "method", column)
        batch = max(int(row["batch"]) for row in own)
        axes.set_title(f"{TITLES[workload]}, {size}, batches of {batch}", loc="left")
        axes.set_ylabel(label)
        axes.margins(y=0.18)
        if line:
            axes.axhline(1, color="black", linewidth=0.6, linestyle=":")
    _draw_legend(figure)
    return figure


def throughput(rows: Rows) -> Figure | None:
    """Explanations per second of whole CNNs, a panel for each."""
    return _model_bars(rows, "explanations_per_s", "explanations / s", line=False)


def memory(rows: Rows) -> Figure | None:
    """Peak memory over the plain gradient's, a panel for each CNN."""
    return _model_bars(rows, "x_gradient_peak", "peak memory / gradient's", line=True)


def rules(rows: Rows) -> Figure | None:
    """Cost of each rule over the layer's plain gradient, a panel a layer; lines are floors."""
    own = [row for row in _timed(rows, "layer") if row["method"] != "Recurrent"]
    layers = _groups(own, "workload")
    if not layers:
        return None
    figure, panels = _two_a_row(len(layers), 1.7, 0.4)
    for axes, ((layer,), some) in zip(panels, layers.items(), strict=True):
        methods = list(dict.fromkeys(row["method"] for row in some))
        shown = [row for row in some if row["library"] != "gradient"]
        _bars(axes, shown, methods, "method", "x_gradient")
        for place, method in enumerate(methods):
            ours = [r for r in shown if r["method"] == method and r["library"] == "relprop"]
            for row in ours:
                least = float(row["x_gradient"]) / float(row["x_floor"])
                axes.hlines(least, place - 0.45, place + 0.45, color="black", linewidth=1.0,
                            label="arithmetic floor")  # fmt: skip
        axes.set_title(layer, loc="left")
        axes.margins(y=0.22)
        axes.set_ylabel("time / gradient")
    _draw_legend(figure)
    return figure


def growth(rows: Rows) -> Figure | None:
    """Time and memory of a call along each axis; dashed, growth as the arithmetic alone has it."""
    curves = _groups(_timed(rows, "growth"), "axis", "workload", "method")
    if not curves:
        return None
    figure = chart(PAGE_INCHES, 1.75 * len(curves) + 0.3)
    panels = figure.subplots(len(curves), 2, squeeze=False)
    columns = (("median_s", "multiplications", "seconds a call"),
               ("peak_bytes", "at_once_bytes", "peak MiB"))  # fmt: skip
    for line, ((axis, workload, method), own) in zip(panels, curves.items(), strict=True):
        for axes, (measured, needed, label) in zip(line, columns, strict=True):
            scale = 2.0**-20 if "bytes" in measured else 1.0
            for (library,), points in _groups(own, "library").items():
                points = sorted(points, key=lambda row: float(row["value"]))
                x = [float(row["value"]) for row in points]
                y = [float(row[measured]) * scale for row in points]
                colour = COLOURS[library]
                axes.plot(x, y, "o-", color=colour, markersize=3, linewidth=1, label=library)
                if library == "relprop":
                    base = [float(row[needed]) for row in points]
                    ideal = [value / base[-1] * y[-1] for value in base]
                    axes.plot(x, ideal, "--", color="black", linewidth=0.8, label="arithmetic's")
            axes.set(xscale="log", yscale="log", xlabel=AXES[axis], ylabel=label)
            axes.set_xticks(x, [f"{value:g}" for value in x])
            axes.minorticks_off()
        line[0].set_title(f"{TITLES.get(workload, workload)}, {NAMES[method]}", loc="left")
    _draw_legend(figure)
    return figure


def precision(rows: Rows) -> Figure | None:
    """Relative error to float64 against explanations per second."""
    panels_of = _groups(_timed(rows, "precision"), "workload", "method", "size")
    if not panels_of:
        return None
    figure, panels = _two_a_row(len(panels_of), 2.2, 0.3)
    for axes, ((workload, method, size), own) in zip(panels, panels_of.items(), strict=True):
        for row in own:
            who = _who(row)
            axes.plot(float(row["explanations_per_s"]), float(row["error"]), "o",
                      color=COLOURS[who], markersize=5, label=who)  # fmt: skip
        axes.set(yscale="log", xlabel="explanations / s", ylabel="relative error to float64")
        axes.set_xlim(left=0)
        axes.set_title(f"{TITLES.get(workload, workload)}, {NAMES[method]}, {size}", loc="left")
    _draw_legend(figure)
    return figure


FIGURES: dict[str, Callable[[Rows], Figure | None]] = {
    "throughput": throughput,
    "rules": rules,
    "memory": memory,
    "growth": growth,
    "precision": precision,
}
"""By the last part of the file's name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Draw everything that there are records for."""
    parser = argparse.ArgumentParser(
        prog="python -m figures.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the figures")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(argv)
    rows = load(options.device, options.records)
    suffix = "" if options.device == "cpu" else f"_{options.device}"
    for name, draw in FIGURES.items():
        figure = draw(rows)
        if figure is None:
            print(f"benchmarks_{name}: no records")
            continue
        for path in save_figure(figure, options.out / f"benchmarks_{name}{suffix}"):
            print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
