"""Words of a command line as values; what a parser refuses is an argument error."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

__all__ = [
    "colour", "count", "count_or_zero", "list_of", "numbers", "option", "size", "spread", "target",
]  # fmt: skip


def list_of(convert: Callable[[str], Any], what: str) -> Callable[[str], tuple[Any, ...]]:
    """What reads values separated by commas; `what` they are, for its refusal."""

    def parse(text: str) -> tuple[Any, ...]:
        try:
            return tuple(convert(part.strip()) for part in text.split(","))
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None

    return parse


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


numbers = list_of(_finite, "numbers separated by commas")


def spread(text: str) -> tuple[float, ...]:
    """Standard deviations separated by commas."""
    found = numbers(text)
    if min(found) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: a standard deviation must be above 0")
    return found


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def count_or_zero(text: str) -> int:
    """A whole number."""
    return 0 if text.strip() == "0" else count(text)


def size(text: str) -> tuple[int, ...]:
    """A side, or height x width."""
    sides = tuple(count(side) for side in text.lower().split("x"))
    if len(sides) > 2 or max(sides) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a side, or height x width, like 224x320")
    return sides


def colour(text: str) -> str:
    """A colour that Pillow knows, by its name or as #rrggbb."""
    try:
        from PIL import ImageColor

        ImageColor.getrgb(text)
    except ImportError:
        pass  # no picture is read without it either
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a colour, like white, #808080 or rgb(0,128,255)"
        ) from None
    return text


def target(text: str) -> str | int | tuple[int, ...]:
    """What is explained: a word, a class, or the indices of one output."""
    if text in ("predicted", "label"):
        return text
    found = list_of(int, "'predicted', 'label', a class, or the indices of one output")(text)
    return found[0] if len(found) == 1 else found


def option(text: str) -> tuple[str, Any]:
    """A name and its value: a number, a list of them, true, false, none, or a word."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value, like low=-1")
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return name, words[value.lower()]
    try:
        found = [
            int(v) if v.strip().lstrip("+-").isdecimal() else float(v) for v in value.split(",")
        ]
    except ValueError:
        return name, value
    return name, found[0] if len(found) == 1 else found
