"""Which tile or library product is chosen, with a timer that tells what the test wants."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from relprop import kernels
from relprop.graph.maps import Dense
from relprop.rules import AlphaBeta


def tuning() -> Any:
    from relprop.kernels import tuning

    return tuning


def store(folder: Path) -> Any:
    from relprop.kernels.tuning_store import Store

    return Store("NVIDIA H100 80GB HBM3", "3.9.0", folder)


OPTIONS = [kernels.Tile(64, 64, 32), kernels.Tile(128, 64, 64, 8), "library"]


class Clock:
    """Tells each option's time, in the order in which they are run."""

    def __init__(self, times: list[float | Exception]) -> None:
        self.times, self.calls = times, 0

    def __call__(self, call: Callable[[], object]) -> float:
        time = self.times[self.calls]
        self.calls += 1
        call()
        if isinstance(time, Exception):
            raise time
        return time


@pytest.mark.parametrize("best", range(3))
def test_the_fastest_is_kept_for_other_processes(best: int, tmp_path: Path) -> None:
    clock = Clock([1.0 if number == best else 2.0 for number in range(3)])
    ran: list[object] = []
    tuner = tuning().Tuner(store(tmp_path), clock)
    assert tuner.select("a", OPTIONS, ran.append) == OPTIONS[best]
    assert ran == OPTIONS
    assert tuner.select("a", OPTIONS, ran.append) == OPTIONS[best] and clock.calls == 3
    other = tuning().Tuner(store(tmp_path), Clock([]))
    assert other.known("a", OPTIONS) == OPTIONS[best] and other.known("b", OPTIONS) is None
    assert other.select("a", OPTIONS, ran.append) == OPTIONS[best] and len(ran) == 3
    (file,) = tmp_path.iterdir()
    assert file.name == "kernels-nvidia-h100-80gb-hbm3-triton-3.9.0.json"


def test_what_does_not_run_is_not_chosen(tmp_path: Path) -> None:
    from triton.runtime.errors import OutOfResources

    clock = Clock([OutOfResources(300_000, 232_448, "shared memory"), RuntimeError("no"), 5.0])
    tuner = tuning().Tuner(store(tmp_path), clock)
    assert tuner.select("a", OPTIONS, lambda option: None) == "library"
    failing = tuning().Tuner(store(tmp_path), Clock([RuntimeError("no")] * 3))
    assert failing.select("b", OPTIONS, lambda option: None) == OPTIONS[0]
    assert store(tmp_path).get("b") is None


def test_a_library_choice_counts_only_where_there_is_one(tmp_path: Path) -> None:
    store(tmp_path).put("a", "library")
    tuner = tuning().Tuner(store(tmp_path), Clock([2.0, 1.0]))
    assert tuner.select("a", OPTIONS[:2], lambda option: None) == OPTIONS[1]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": 1}', '{"format": 1, "choices": [1]}', "\udcff"],
    ids=["empty", "torn", "list", "no choices", "choices a list", "no text"],
)
def test_a_broken_file_is_left_out_with_a_warning(text: str, tmp_path: Path) -> None:
    path = store(tmp_path).path
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.warns(UserWarning, match="cannot be read"):
        assert store(tmp_path).get("a") is None
    with pytest.warns(UserWarning, match="cannot be read"):
        store(tmp_path).put("a", "library")
    assert store(tmp_path).get("a") == "library"


@pytest.mark.parametrize("value", [7, "fast", [1, 2], [64, 64, 32, 4, 3, None], {"m": 1}])
def test_a_choice_of_another_kind_is_measured_again(value: object, tmp_path: Path) -> None:
    path = store(tmp_path).path
    path.write_text(json.dumps({"format": 1, "choices": {"a": value}}))
    tuner = tuning().Tuner(store(tmp_path), Clock([3.0, 2.0, 1.0]))
    assert tuner.select("a", OPTIONS, lambda option: None) == "library"


def test_another_format_is_not_read_and_other_choices_stay(tmp_path: Path) -> None:
    path = store(tmp_path).path
    path.write_text(json.dumps({"format": 0, "choices": {"a": "library"}}))
    assert store(tmp_path).get("a") is None
    first, second = store(tmp_path), store(tmp_path)
    assert first.get("x") is None and second.get("x") is None
    first.put("x", "library")
    second.put("y", "library")
    assert store(tmp_path).get("x") == store(tmp_path).get("y") == "library"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.warns(UserWarning, match="RELPROP_CACHE_DIR"):
        store(file / "below").put("a", "library")


def test_folder_by_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from relprop.kernels.tuning_store import default_folder

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RELPROP_CACHE_DIR", raising=False)
    assert default_folder() == tmp_path / "cache" / "relprop"
    monkeypatch.setenv("RELPROP_CACHE_DIR", str(tmp_path / "own"))
    assert default_folder() == tmp_path / "own"
    monkeypatch.delenv("RELPROP_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "relprop"


def demand(**changes: Any) -> Any:
    import triton.language as tl

    from relprop.kernels.tiling import Demand

    given = {"m": 4096, "n": 512, "k": 512, "operand": tl.bfloat16, "precision": "ieee"}
    return Demand(**{**given, "kernel": "dense_contraction", **changes})


def hopper() -> Any:
    from relprop.kernels.tiling import Limits

    return Limits(232_448, 1)


def test_adjoints_of_convolutions_are_shallow_before_sm_90() -> None:
    from relprop.kernels.tiling import Limits, candidates

    ampere = Limits(163_840, 2)
    for kernel, deepest in (("conv_adjoint", 32), ("conv_contraction", 64)):
        depths = {tile.k for tile in candidates(demand(kernel=kernel), ampere)}
        assert max(depths) == deepest
    assert max(tile.k for tile in candidates(demand(kernel="conv_adjoint"), hopper())) == 64


def test_what_is_timed_fits_and_is_no_more_than_a_dozen() -> None:
    from relprop.kernels.tiling import candidates

    for changes in ({}, {"accumulators": 2, "parts": 2}, {"m": 20}, {"n": 3}, {"k": 8}):
        asked = demand(**changes)
        tiles = tuning().shortlist(asked, candidates(asked, hopper()))
        assert 1 <= len(tiles) <= 12 and len(set(tiles)) == len(tiles)
        for tile in tiles:
            assert asked.registers_of(tile) <= 128 and asked.shared_of(tile) <= 232_448
            assert tile.m < 2 * max(asked.m, 9) and tile.n < 2 * max(asked.n, 9)
    with_stages = tuning().shortlist(demand(), candidates(demand(), hopper()))
    assert {tile.stages for tile in with_stages} == {2, 3, 4}


def test_shipped_tiles_are_among_those_that_fit() -> None:
    from relprop.kernels.shipped import H100, shipped
    from relprop.kernels.tiling import candidates

    for row in H100:
        registers = 64 if row.kernel.startswith("conv") else 128
        asked = demand(
            kernel=row.kernel, m=row.rows, n=row.columns, accumulators=row.accumulators,
            parts=row.accumulators, registers=registers,
        )  # fmt: skip
        tiles = candidates(asked, hopper())
        assert row.tile in tiles and shipped(asked, tiles) is not None
    small = demand(m=16, n=16)
    assert shipped(small, candidates(small, hopper())) is None


def test_a_key_holds_all_that_the_time_depends_on() -> None:
    import triton.language as tl

    keys = {
        demand(**changes).key
        for changes in (
            {}, {"m": 8192}, {"n": 256}, {"k": 256}, {"operand": tl.float32},
            {"precision": "tf32x3"}, {"accumulators": 2}, {"parts": 2}, {"lefts": 2},
            {"left_width": 2}, {"kernel": "conv_adjoint"},
        )
    }  # fmt: skip
    assert len(keys) == 11
    assert demand(m=4000).key == demand(m=4096).key


def test_a_product_that_the_library_lacks_is_none() -> None:
    from relprop.kernels import library
    from relprop.kernels.operands import ContractionCall

    a, w = torch.randn(2, 5), torch.randn(3, 5)
    saved = kernels.contraction(Dense(), AlphaBeta(2, 1), a, w, None)  # signed: four products
    call = ContractionCall(
        saved.map, saved.program, a, saved.weight, None, saved.z, saved.y, "sum", None, "highest",
        None,
    )  # fmt: skip
    assert library.contraction(call) is None


def test_no_warning_without_a_file(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store(tmp_path / "none").get("a") is None
