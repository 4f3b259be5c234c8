"""Aligned plain-text tables."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned", "table"]


def aligned(rows: Sequence[Sequence[str]], numbers: int = 0) -> list[str]:
    """Lines of columns aligned left, the last `numbers` of them right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    words = len(widths) - numbers
    return [
        "  ".join(
            cell.ljust(width) if i < words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 0) -> str:
    """The same under a head, which is underlined."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(aligned([head, ["-" * width for width in widths], *rows], numbers))
