"""Measured choices on disk: one JSON file for each device and Triton version, replaced whole."""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

from relprop.atomic import replacing

__all__ = ["Store", "default_folder"]

FORMAT = 1
"""Of the file; another one is not read."""


def default_folder() -> Path:
    """$RELPROP_CACHE_DIR, or `relprop` in the user's cache folder."""
    given = os.environ.get("RELPROP_CACHE_DIR")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "relprop"


class Store:
    """Choices by key, read once and written at each new one.

    A file that cannot be read is left out with a warning, and replaced at the next choice; a folder
    that cannot be written costs a warning and the choices last as long as the process.

    Args:
        device: name of the device, as its driver gives it.
        version: of Triton.
        folder: where the file lies; `default_folder()` if None.
    """

    def __init__(self, device: str, version: str, folder: Path | None = None) -> None:
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"kernels-{device}-triton-{version}").lower()
        self.path = (folder or default_folder()) / f"{name}.json"
        self._choices: dict[str, Any] | None = None

    def get(self, key: str) -> Any:
        """The choice for a key, None if there is none."""
        if self._choices is None:
            self._choices = self._read()
        return self._choices.get(key)

    def put(self, key: str, choice: Any) -> None:
        """Keep a choice; those that other processes have written meanwhile stay."""
        self._choices = {**self._read(), **(self._choices or {}), key: choice}
        text = json.dumps({"format": FORMAT, "choices": self._choices}, indent=1, sort_keys=True)
        try:
            with replacing(self.path) as beside:
                beside.write_text(text, encoding="utf-8")
        except OSError as error:
            warnings.warn(
                f"relprop: measured kernel choices cannot be kept in {self.path}: {error}; "
                "set RELPROP_CACHE_DIR to a folder that can be written",
                stacklevel=2,
            )

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found["format"] != FORMAT:
                return {}
            choices = found["choices"]
            if not isinstance(choices, dict):
                raise TypeError(f"its choices are a {type(choices).__name__}")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(
                f"relprop: {self.path} cannot be read ({error}); its kernel choices are measured "
                "again",
                stacklevel=2,
            )
            return {}
        return choices
