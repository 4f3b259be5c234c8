"""The batch size: doubled until throughput no longer grows, memory ends, or the search's time."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from relprop.errors import is_out_of_memory

__all__ = ["best_batch_size"]

FIRST = 8
LARGEST = 1024
GAIN = 1.03
PATIENCE = 2
SECONDS = 0.1
BUDGET = 2.0


def best_batch_size(explain: Callable[[int], None], limit: int) -> int:
    """The batch size of the highest throughput.

    Args:
        explain: explains a batch of that many samples; raises when memory does not suffice.
        limit: the largest that makes sense.

    Returns:
        The size that first came within 3 % of the best throughput seen.
    """
    rates: dict[int, float] = {}
    began = time.perf_counter()
    size, since = min(FIRST, limit), 0
    while since < PATIENCE:
        try:
            rates[size] = _rate(explain, size)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and not is_out_of_memory(error):
                raise
            _free()
            break
        earlier = max((rate for other, rate in rates.items() if other < size), default=0.0)
        since = 0 if rates[size] > earlier * GAIN else since + 1
        spent = time.perf_counter() - began
        if size >= min(limit, LARGEST) or spent + 4 * size / rates[size] > BUDGET:
            break
        size = min(2 * size, limit)
    if not rates:
        return 1
    best = max(rates.values())
    return min(size for size, rate in rates.items() if rate * GAIN >= best)


def _rate(explain: Callable[[int], None], size: int) -> float:
    """Samples a second: the fastest of at least two calls."""
    explain(size)
    fastest, spent = float("inf"), 0.0
    while spent < SECONDS:
        started = time.perf_counter()
        explain(size)
        took = time.perf_counter() - started
        fastest, spent = min(fastest, took), spent + took
    return size / fastest


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
