"""Tables of measured rows, as they are printed and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from relprop.tables import table

__all__ = ["HEAD", "cells_of", "markdown", "notes", "number", "printed", "seconds"]

HEAD = ("workload", "method", "who", "precision", "expl./s", "ms each", "spread", "x gradient",
        "x floor", "MiB", "x its MiB", "error")  # fmt: skip


def number(value: Any, digits: int = 3) -> str:
    """A number with so many significant digits, an exponent only where it helps."""
    if value in ("", None):
        return ""
    found = float(value)
    size = math.floor(math.log10(abs(found))) if found else 0
    if not -4 <= size < 5:
        return f"{found:.{digits - 1}e}"
    return f"{found:.{max(0, digits - 1 - size)}f}"


def seconds(row: Mapping[str, Any]) -> str:
    """Milliseconds of one explanation."""
    rate = row.get("explanations_per_s", "")
    return "" if rate in ("", None) else number(1e3 / float(rate))


def cells_of(row: Mapping[str, Any]) -> list[str]:
    """A row's cells under `HEAD`; what was not timed says why."""
    who = [str(row.get(key, "")) for key in ("workload", "method", "library", "precision")]
    if row.get("status") != "ok":
        error = number(row.get("error"))
        shown = str(row.get("status"))
        shown += f" by {error}, allowed {number(row.get('tolerance'))}" if error else ""
        return [*who, shown, *[""] * 6, error]
    spread = row.get("spread", "")
    return [
        *who,
        number(row.get("explanations_per_s")),
        seconds(row),
        "" if spread in ("", None) else f"{100 * float(spread):.0f} %",
        number(row.get("x_gradient")),
        number(row.get("x_floor")),
        _mebibytes(row.get("peak_bytes")),
        number(row.get("x_gradient_peak")),
        number(row.get("error"), 2),
    ]


def _mebibytes(value: Any) -> str:
    return "" if value in ("", None) else number(float(value) / 2**20)


def printed(rows: Sequence[Mapping[str, Any]]) -> str:
    """A plain-text table, and what else is to be said of its rows."""
    return "\n".join([table(HEAD, [cells_of(row) for row in rows]), *notes(rows)])


def notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each row that has a note, such as the stages' shares of a stream's time."""
    return [
        f"- {row['workload']}, {row['method']}, {row['library']}, {row['size']}: {row['note']}"
        for row in rows
        if row.get("note")
    ]


def markdown(
    head: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    cells: Callable[[Mapping[str, Any]], Sequence[str]],
) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *(cells(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
