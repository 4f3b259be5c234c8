"""Interleaved timing: every variant in turn, the same number of times, medians and spread."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Timing", "interleaved", "peak_bytes"]


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
    def of(cls, seconds: list[float]) -> Timing:
        """Summarise the rounds."""
        middle = statistics.median(seconds)
        if len(seconds) < 4:
            return cls(middle, (max(seconds) - min(seconds)) / middle, len(seconds))
        low, _, high = statistics.quantiles(seconds, n=4)
        return cls(middle, (high - low) / middle, len(seconds))


def interleaved(
    variants: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1
) -> dict[str, Timing]:
    """Time the variants in turn, round after round, so that a disturbance hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warmup + rounds):
        for name, call in variants.items():
            gc.collect()
            _synchronise()
            began = time.perf_counter()
            call()
            _synchronise()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return {name: Timing.of(found) for name, found in seconds.items()}


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most bytes of tensors alive at once during a call, beyond those alive before it.

    On a CPU from the allocator's own events, as the profiler reports them.
    """
    if torch.cuda.is_available():
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
