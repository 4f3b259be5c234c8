"""How a product is run: as the caller says, as measured before, as measured now, as shipped.

On a CUDA device the first launch of a shape times the tiles that fit and, where the library has the
product too, the library's with one pointwise kernel; the winner is kept on disk.  RELPROP_TUNE=0
takes the shipped tiles instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import triton

from relprop.kernels.runtime import interpreted
from relprop.kernels.shipped import shipped
from relprop.kernels.tiling import Choice, Demand, Tile, candidates, interpreter_tile, limits
from relprop.kernels.tuning_store import Store

__all__ = ["LIBRARY", "Tuner", "launch", "shortlist", "tuner"]

LIBRARY = "library"
"""The choice of the library's product and one pointwise kernel."""

Timer = Callable[[Callable[[], object]], float]
MOST = 12
"""Tiles that are timed for one shape."""


class Tuner:
    """Chooses by measuring.

    Args:
        store: where measured choices are kept.
        timer: seconds, or any other unit, of a call; an exception rules the choice out.
    """

    def __init__(self, store: Store, timer: Timer) -> None:
        self.store, self.timer = store, timer
        self._known: dict[str, Choice] = {}

    def select(self, key: str, options: list[Choice], run: Callable[[Choice], object]) -> Choice:
        """The fastest of the options for a key, measured at most once."""
        found = self.known(key, options)
        if found is None:
            found = self._known[key] = self._measured(key, options, run)
        return found

    def known(self, key: str, options: list[Choice]) -> Choice | None:
        """The choice made before for a key, here or by another process, if there is one."""
        if key not in self._known:
            stored = self._stored(key, options)
            if stored is None:
                return None
            self._known[key] = stored
        return self._known[key]

    def _stored(self, key: str, options: list[Choice]) -> Choice | None:
        found = self.store.get(key)
        if found == LIBRARY:
            return LIBRARY if LIBRARY in options else None
        if isinstance(found, list) and len(found) == len(Tile._fields):
            return Tile(*found) if Tile(*found) in options else None
        return None

    def _measured(self, key: str, options: list[Choice], run: Callable[[Choice], object]) -> Choice:
        times = {}
        for option in options:
            try:
                times[option] = self.timer(lambda option=option: run(option))  # type: ignore[misc]
            except (RuntimeError, triton.TritonError):  # does not fit, or does not compile here
                continue
        if not times:
            return options[0]
        best = min(times, key=times.__getitem__)
        self.store.put(key, best if isinstance(best, str) else list(best))
        return best


def device_timer(call: Callable[[], object]) -> float:
    """Median milliseconds on the device, caches emptied between runs."""
    median: float = triton.testing.do_bench(call, warmup=2, rep=10, return_mode="median")
    return median


_TUNERS: dict[str, Tuner] = {}


def tuner() -> Tuner:
    """That of the current CUDA device."""
    name = torch.cuda.get_device_name()
    if name not in _TUNERS:
        _TUNERS[name] = Tuner(Store(name, triton.__version__), device_timer)
    return _TUNERS[name]


def _tunes(sample: torch.Tensor) -> bool:
    """Whether measured choices count for this launch: on a CUDA device, unless switched off."""
    return sample.is_cuda and not interpreted() and os.environ.get("RELPROP_TUNE") != "0"


def shortlist(demand: Demand, tiles: list[Tile]) -> list[Tile]:
    """The tiles worth timing: of each shape the deepest, of the first shapes more stages too.

    Tiles twice as large as the product are left out.
    """
    fitting = [
        tile
        for tile in tiles
        if tile.m < 2 * max(demand.m, 9) and tile.n < 2 * max(demand.n, 9)
        if tile.k < 2 * max(demand.k, 32)
    ] or tiles[-1:]
    shapes = list(dict.fromkeys((tile.m, tile.n) for tile in fitting))
    first = [next(tile for tile in fitting if (tile.m, tile.n) == shape) for shape in shapes]
    more = [tile for tile in fitting if (tile.m, tile.n) in shapes[:2] and tile not in first]
    return [*first, *more][:MOST]


def launch(
    demand: Demand,
    tile: Choice | None,
    sample: torch.Tensor,
    run: Callable[[Tile], object],
    library: Callable[[], object] | None = None,
    repeatable: bool = True,
    details: Any = "",
    tiles: list[Tile] | None = None,
) -> None:
    """Run a product once, by the best known choice.

    Args:
        demand: the product.
        tile: the caller's choice; None to choose.
        sample: one of the operands.
        run: launches the kernel with a tile.
        library: computes the same by the library's product, where that is possible.
        repeatable: whether the launch only writes, so that it may be repeated for timing.
        details: what else the time depends on, such as the taps of a convolution.
        tiles: the tiles to choose from, most preferred first; None for those that fit.
    """

    def by(choice: Choice) -> None:
        if choice == LIBRARY:
            assert library is not None
            library()
        else:
            assert isinstance(choice, Tile)
            run(choice)

    if tile is None and repeatable and _tunes(sample):
        options: list[Choice] = [*(tiles or shortlist(demand, candidates(demand, limits())))]
        options += [LIBRARY] if library is not None else []
        key = f"{demand.key} {details}".strip()
        if torch.cuda.is_current_stream_capturing():  # then nothing may be timed
            tile = tuner().known(key, options)
        else:
            tile = tuner().select(key, options, by)
    if tile is None:
        tile = tiles[0] if tiles else _choose(demand)
    by(tile)


def _choose(demand: Demand) -> Tile:
    """The tile for a product that nobody measured: the shipped one, or the first that fits."""
    if interpreted():
        return interpreter_tile(demand.m, demand.n, demand.k)
    tiles = candidates(demand, limits())
    if triton.runtime.driver.active.get_current_target().arch == 90:
        known = shipped(demand, tiles)
        if known is not None:
            return known
    for tile in tiles:
        deep = tile.k < 2 * max(demand.k, 32)
        if tile.m < 2 * max(demand.m, 9) and tile.n < 2 * max(demand.n, 9) and deep:
            return tile
    return tiles[-1]
