"""A cell: variants that answer one question, checked, timed in turn, recorded as one row each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from torch import Tensor

from benchmarks.floor import Work, seconds_of_bytes
from benchmarks.gate import Gate
from benchmarks.recording import circumstances
from benchmarks.timing import Timing, interleaved, peak_bytes

__all__ = ["GRADIENT", "Cell", "Variant", "Workload", "gated", "measure"]

GRADIENT = "gradient"
"""Name of the variant that all others are compared with: autograd's plain input gradient."""
FLOOR = "products alone"
LONG_SECONDS = 2.0
LEAST_SECONDS = 0.01
"""What one measurement should take; the clock, and waking up, are no part of it."""


@dataclass(frozen=True)
class Variant:
    """Somebody's way to do the cell's task.

    Attributes:
        library: who.
        call: explains the next batch.
        answer: the explanation of the gate's sample; None where `gate` is None.
        gate: what the answer must agree with; None for what explains nothing.
        samples: explanations that one call makes.
        precision: of its products.
        measured: columns that it fills itself.
    """

    library: str
    call: Callable[[], Any]
    answer: Callable[[], Tensor] | None = None
    gate: Gate | None = None
    samples: int = 1
    precision: str = "highest"
    measured: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """What a cell measures, once it has been set up.

    Attributes:
        variants: in the order of the table.
        work: makes the products that the task needs, for the floor.
        samples: explanations that `work` is for.
    """

    variants: Sequence[Variant]
    work: Callable[[], Work] | None = None
    samples: int = 1


@dataclass(frozen=True)
class Cell:
    """One comparison.

    Attributes:
        name: unique.
        level: "layer", "model", "stream", "growth" or "precision": which record it goes to.
        columns: of its rows: workload, method, batch, size …
        make: sets it up.
        suites: the named runs it belongs to.
        rounds: to measure at most.
        limit: seconds after which no further round begins.
    """

    name: str
    level: str
    columns: dict[str, Any]
    make: Callable[[], Workload]
    suites: frozenset[str] = frozenset({"full"})
    rounds: int = 7
    limit: float = 25.0


def measure(cell: Cell, command: str = "", device: str = "cpu") -> list[dict[str, Any]]:
    """Check, time and weigh all variants of a cell: a row each."""
    workload = cell.make()
    rows = {number: gated(variant) for number, variant in enumerate(workload.variants)}
    good = {n: v for n, v in enumerate(workload.variants) if rows[n]["status"] == "ok"}
    began = perf_counter()
    for number, variant in good.items():
        rows[number]["peak_bytes"] = peak_bytes(variant.call)
    work = None if workload.work is None or not good else workload.work()
    if work is not None:
        work()
    # that was a warm-up round already, for all; short calls get another, see `interleaved`
    warmup = 0 if perf_counter() - began > LONG_SECONDS else 1
    calls: dict[str, Callable[[], Any]] = {str(n): v.call for n, v in good.items()}
    if work is not None:
        calls[FLOOR] = work
    timings = interleaved(calls, cell.rounds, warmup, cell.limit, LEAST_SECONDS)
    for number, variant in good.items():
        rows[number] |= _timed(variant, timings[str(number)])
        if work is not None:
            share = timings[FLOOR].median, workload.samples
            rows[number] |= _floor(variant, rows[number], work, *share, device)
            if variant.library == GRADIENT:  # which needs other products
                del rows[number]["x_floor"]
    _compare(rows, workload)
    seen = circumstances(device, command)
    base = {"level": cell.level, "cell": cell.name, **cell.columns}
    return [base | row | workload.variants[n].measured | seen for n, row in rows.items()]


def gated(variant: Variant) -> dict[str, Any]:
    """Who it is and how it passed the gate."""
    row: dict[str, Any] = {"library": variant.library, "precision": variant.precision}
    row["status"] = "ok"
    if variant.gate is None or variant.answer is None:
        return row
    try:
        error = variant.gate.error(variant.answer)
    except Exception as problem:
        first = str(problem).strip().splitlines() or [""]
        return row | {"status": f"left out: {type(problem).__name__}: {first[0][:160]}"}
    tolerance = variant.gate.tolerance(variant.precision)
    if not error <= tolerance:
        row["status"] = "wrong"
    return row | {"error": error, "tolerance": tolerance}


def _timed(variant: Variant, timing: Timing) -> dict[str, Any]:
    return {
        "explanations_per_s": variant.samples / timing.median,
        "median_s": timing.median,
        "spread": timing.spread,
        "rounds": timing.rounds,
    }


def _floor(
    variant: Variant, row: dict[str, Any], work: Work, seconds: float, samples: int, device: str
) -> dict[str, Any]:
    """The floor's columns: of the whole work, and the ratio of one explanation to its share."""
    contractions, adjoints = work.counts
    by_bytes = seconds_of_bytes(work.moved, device)
    least = max(seconds, by_bytes) / samples
    return {
        "floor_products_s": seconds,
        "floor_bytes_s": by_bytes,
        "contractions": contractions,
        "adjoints": adjoints,
        "multiplications": work.multiplications,
        "moved_bytes": work.moved,
        "held_bytes": work.held,
        "at_once_bytes": work.at_once,
        "x_floor": row["median_s"] / variant.samples / least,
    }


def _compare(rows: dict[int, dict[str, Any]], workload: Workload) -> None:
    """Ratios, of one explanation, to the plain gradient of the same run."""
    variants = workload.variants
    found = [n for n, v in enumerate(variants) if v.library == GRADIENT and "median_s" in rows[n]]
    if not found:
        return
    base, samples = rows[found[0]], variants[found[0]].samples
    for number, row in rows.items():
        if "median_s" in row:
            share = samples / variants[number].samples
            row["x_gradient"] = row["median_s"] * share / base["median_s"]
            if share == 1 and base["peak_bytes"]:
                row["x_gradient_peak"] = row["peak_bytes"] / base["peak_bytes"]
