"""A progress bar for a terminal; elsewhere it prints nothing."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

__all__ = ["Progress"]

INTERVAL = 0.1


class Progress:
    """Counts inputs on one line of standard error, redrawn at most ten times a second.

    Args:
        total: how many inputs there are.
        quiet: print nothing even on a terminal.
        stream: where to draw; standard error.
    """

    def __init__(self, total: int, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.total = total
        self.done = 0
        self.active = not quiet and self.stream.isatty()
        self.started = time.monotonic()
        self._drawn = 0.0
        if self.active:
            self._draw(0.0)

    def advance(self, count: int) -> None:
        """Note that `count` more inputs are done."""
        self.done += count
        now = time.monotonic()
        if self.active and (now - self._drawn >= INTERVAL or self.done >= self.total):
            self._drawn = now
            self._draw(now - self.started)

    def write(self, line: str) -> None:
        """Print a line on standard error, above the bar if there is one."""
        self.clear()
        print(line, file=self.stream, flush=True)

    def clear(self) -> None:
        """Take the bar off the line."""
        if self.active:
            self.stream.write("\r\033[K")
            self.stream.flush()

    def _draw(self, seconds: float) -> None:
        rate = self.done / seconds if seconds > 0 else 0.0
        text = f" {self.done}/{self.total}  {rate:.1f}/s"
        width = max(10, min(40, shutil.get_terminal_size().columns - len(text) - 4))
        filled = width * self.done // max(1, self.total)
        self.stream.write(f"\r\033[K[{'=' * filled}{' ' * (width - filled)}]{text}")
        self.stream.flush()
