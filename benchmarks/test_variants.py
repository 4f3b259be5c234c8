"""This library's part of every quick cell under pytest-benchmark, for work on one of them.

    python -m pytest benchmarks -k "vgg16 and Gamma" --benchmark-autosave
    python -m pytest benchmarks -k "vgg16 and Gamma" --benchmark-compare

One variant after the other, so not for records: those come from `python -m benchmarks`, which
times peers and floor in the same rounds.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cells import gated
from benchmarks.suites import chosen, every

CELLS = {cell.name: cell for cell in chosen(every(), "quick")}


@pytest.mark.parametrize("name", CELLS)
def test_variant(name: str, benchmark: BenchmarkFixture) -> None:
    cell = CELLS[name]
    workload = cell.make()
    (variant,) = (v for v in workload.variants if v.library == "relprop")
    row = gated(variant)
    assert row["status"] == "ok", row
    benchmark.extra_info.update(row, samples=variant.samples)
    benchmark.pedantic(variant.call, rounds=cell.rounds, warmup_rounds=1)
