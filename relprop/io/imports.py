"""What `package.module:name` names; importing runs code, so it needs the user's trust."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from relprop.errors import InputError
from relprop.io.files import printable

__all__ = ["imported", "require_trust"]


def require_trust(spec: str, trust: bool, option: str, what: str) -> None:
    """Refuse what runs code, unless the user said that it may.

    Raises:
        InputError: not trusted.
    """
    if not trust:
        raise InputError(
            f"{option} {printable(spec)!r}: {what} runs code of its author; add --trust if you "
            "trust it as much as a program that you run"
        )


def imported(spec: str, trust: bool, option: str) -> Any:
    """The object that `package.module:name` names.

    Args:
        spec: the words.
        trust: whether code may run.
        option: what the user gave them for.

    Raises:
        InputError: not trusted, not of that form, or importing it fails.
    """
    require_trust(spec, trust, option, "importing a module")
    module, _, attribute = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` has it
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {printable(error)}"
        raise InputError(f"{option} {printable(spec)!r}: {reason}") from error
    return found
