"""Names of classes: one a line, or JSON as ImageNet's and Hugging Face's files have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from relprop import data, models
from relprop.errors import InputError
from relprop.io.files import printable
from relprop.io.labels import text_lines

__all__ = ["class_names"]


def class_names(file: str | None, model: str) -> dict[int, str]:
    """The names of a model's classes by their number; none where nothing tells them.

    Args:
        file: one name a line; or JSON: a list of names, a dict from number to name or to
            `[id, name]`, or from name to number.  None is what is known of a shipped model.
        model: the word for the model.

    Raises:
        FileFormatError: missing, or not text.
        InputError: of another form.
    """
    if file is None:
        shipped = model in models.names()
        return dict(enumerate(data.class_names(models.shipped(model).dataset))) if shipped else {}
    lines = text_lines(Path(file))
    words = "\n".join(lines)
    if not words.lstrip().startswith(("{", "[")):
        while lines and not lines[-1].strip():
            lines.pop()
        return _checked(file, {number: line.strip() for number, line in enumerate(lines)})
    try:
        return _checked(file, _of_json(json.loads(words)))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"--classes {printable(file)}: {printable(error)}; expected one name a line, or JSON: "
            'a list of names, {"0": "cat"}, {"0": ["n02123045", "cat"]} or {"cat": 0}'
        ) from None


def _of_json(found: Any) -> dict[int, str]:
    if isinstance(found, list):
        return {number: _name(entry) for number, entry in enumerate(found)}
    if all(isinstance(value, int) for value in found.values()):
        return {number: str(name) for name, number in found.items()}
    return {int(number): _name(entry) for number, entry in found.items()}


def _name(entry: Any) -> str:
    """A name alone, or the last of a row of an id and a name."""
    name = entry[-1] if isinstance(entry, list) and entry else entry
    if not isinstance(name, str):
        raise TypeError(f"{printable(entry, 80)} is no name")
    return name


def _checked(file: str, names: dict[int, str]) -> dict[int, str]:
    if not names:
        raise InputError(f"--classes {printable(file)}: names no class")
    return {number: printable(name, 80) for number, name in names.items()}
