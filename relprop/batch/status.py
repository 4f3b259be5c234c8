"""How work goes, on standard error: one line, redrawn on a terminal, repeated elsewhere."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

from relprop.batch.worker import Tally

__all__ = ["Status", "Stop", "closing", "stages"]

TERMINAL_SECONDS = 0.2
LOG_SECONDS = 30.0
REMEMBERED = 100_000
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether the user wants a job to end: Ctrl-C or a scheduler's SIGTERM."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    @contextmanager
    def listening(self, say: bool, signals: tuple[signal.Signals, ...] = SIGNALS) -> Iterator[None]:
        """The first signal asks to stop after the current batch; the second stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            if say:
                print("relprop: stopping after this batch", file=sys.stderr, flush=True)

        earlier = {number: signal.signal(number, handle) for number in signals}
        try:
            yield
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)


class Status:
    """Progress of a job, or of anything that counts samples.

    Args:
        total: samples in all.
        quiet: no progress, only lines.
        workers: how many share the work, for the stages' shares.
        stream: where to; standard error.
        logged: whether progress is told where there is no terminal, too.
    """

    def __init__(
        self,
        total: int,
        quiet: bool,
        workers: int = 1,
        stream: TextIO | None = None,
        *,
        logged: bool = True,
    ) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.total, self.workers = total, workers
        self.terminal = self.stream.isatty()
        self.active = not quiet and (logged or self.terminal)
        self.done = 0
        self._said: set[str] = set()
        self._busy: dict[int, dict[str, float]] = {}
        self._started = self._drawn = time.monotonic()
        if self.active and self.terminal:
            self._draw(self._started)

    def advance(
        self, samples: int, busy: Mapping[str, float] | None = None, worker: int = 0
    ) -> None:
        """Count samples of a worker that are done, its stages at work for so many seconds."""
        self.done += samples
        self._busy[worker] = dict(busy or {})
        now = time.monotonic()
        pause = TERMINAL_SECONDS if self.terminal else LOG_SECONDS
        complete = self.terminal and self.done >= self.total
        if self.active and (complete or now - self._drawn >= pause):
            self._draw(now)

    def _draw(self, now: float) -> None:
        self._drawn = now
        start, end = ("\r\033[K", "") if self.terminal else ("", "\n")
        self.stream.write(f"{start}{self.text(now - self._started)}{end}")
        self.stream.flush()

    def line(self, text: str) -> None:
        """Print a line, once: a shard that several workers try in turn fails for one reason."""
        if text in self._said:
            return
        if len(self._said) < REMEMBERED:
            self._said.add(text)
        self.clear()
        print(f"relprop: {text}", file=self.stream, flush=True)

    def clear(self) -> None:
        """Take the progress off the terminal's line."""
        if self.terminal and self.active:
            self.stream.write("\r\033[K")
            self.stream.flush()

    def text(self, seconds: float) -> str:
        """The line after so many seconds."""
        rate = self.done / max(seconds, 1e-9)
        left = int((self.total - self.done) / max(rate, 1e-9)) if self.done else 0
        sums: dict[str, float] = {}
        for busy in self._busy.values():
            for stage, spent in busy.items():
                sums[stage] = sums.get(stage, 0.0) + spent
        shares = f"{stages(sums, seconds * self.workers)}  " if sums else ""
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        return f"{self.done}/{self.total}  {rate:.1f}/s  {shares}{clock} left"


def stages(busy: dict[str, float], seconds: float) -> str:
    """What share of the time each stage was at work; they overlap."""
    return " ".join(f"{name} {spent / max(seconds, 1e-9):.0%}" for name, spent in busy.items())


def closing(tally: Tally, workers: int) -> str:
    """The line after a run: its own speed and stages."""
    if not tally.samples:
        return f"nothing to do: {tally.found} shards were there"
    rate = tally.samples / max(tally.seconds, 1e-9)
    return (
        f"{tally.samples} samples in {tally.seconds:.1f} s, {rate:.1f}/s; "
        f"{stages(tally.busy, tally.seconds * workers)}"
    )
