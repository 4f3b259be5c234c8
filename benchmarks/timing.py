"""Interleaved timing: every variant in turn, the same number of times, medians and spread."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

__all__ = ["Timing", "in_turn", "interleaved", "once", "peak_bytes", "rotation"]

T = TypeVar("T")
LEAST_ROUNDS = 3
MOST_REPEATS = 100
CACHE_BYTES = 2**28
"""Inputs of one cell together exceed this, so that none is still in a cache when its turn comes."""
MOST_INPUTS = 64


@dataclass(frozen=True)
class Timing:
    """Seconds of one variant.

    Attributes:
        median: of the rounds.
        spread: interquartile range over the median.
        rounds: how many were measured.
    """

    median: float
    spread: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Summarise the rounds."""
        middle = statistics.median(seconds)
        if len(seconds) < 4:
            return cls(middle, (max(seconds) - min(seconds)) / middle, len(seconds))
        low, _, high = statistics.quantiles(seconds, n=4)
        return cls(middle, (high - low) / middle, len(seconds))


def interleaved(
    variants: Mapping[str, Callable[[], Any]],
    rounds: int,
    warmup: int = 1,
    limit: float | None = None,
    least: float = 0.0,
) -> dict[str, Timing]:
    """Time the variants in turn, round after round, so that a disturbance hits all alike.

    Each round begins with another variant, so that none always follows the same one.

    Args:
        variants: what to call, by name.
        rounds: measured rounds.
        warmup: rounds before them, the same for all.
        limit: seconds after which no round begins, once `LEAST_ROUNDS` were measured.
        least: seconds that a measurement should take; shorter calls are repeated in it, as many
            times as the last warm-up round says.
    """
    repeats = dict.fromkeys(variants, 1)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    began = time.perf_counter()
    with _settled_heap():
        for number in range(warmup + rounds):
            late = limit is not None and time.perf_counter() - began > limit
            if late and number >= warmup + LEAST_ROUNDS:
                break
            first = number % len(names) if names else 0
            for name in names[first:] + names[:first]:
                taken = once(variants[name], repeats[name])
                if number >= warmup:
                    seconds[name].append(taken)
                elif number == warmup - 1:
                    repeats[name] = max(1, min(MOST_REPEATS, round(least / max(taken, 1e-9))))
    return {name: Timing.of(found) for name, found in seconds.items()}


@contextmanager
def _settled_heap() -> Iterator[None]:
    """What is alive now is not looked at by the garbage collector: it runs before every call."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def once(call: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds of one call: the device's own clock where CUDA has been used, else the processor's.

    Events are recorded on the current stream before and after, so that the time is the device's
    from one to the other, waiting for the host included.

    Args:
        call: what to time.
        repeats: how often to call it in one measurement; the mean is returned.
    """
    gc.collect()
    if not torch.cuda.is_initialized():
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - began) / repeats
    torch.cuda.synchronize()
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    for _ in range(repeats):
        call()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3 / repeats


def in_turn(call: Callable[[T], Any], inputs: Sequence[T]) -> Callable[[], Any]:
    """A call without arguments that takes the next of the inputs each time, round and round."""
    turn = itertools.cycle(inputs)
    return lambda: call(next(turn))


def rotation(one: int) -> int:
    """How many inputs of that many bytes are needed to exceed the cache."""
    return max(2, min(MOST_INPUTS, -(-CACHE_BYTES // one)))


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most bytes of tensors alive at once during a call, beyond those alive before it.

    On a CPU from the allocator's own events, as the profiler reports them.
    """
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    level, peak = 0, 0
    for event in _allocations(profile):
        level += event
        peak = max(peak, level)
    return peak


def _allocations(profile: Any) -> list[int]:
    """Sizes allocated (positive) and freed (negative), in order of time."""
    events = profile.profiler.kineto_results.events()
    found = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return [size for _, size in sorted(found)]
