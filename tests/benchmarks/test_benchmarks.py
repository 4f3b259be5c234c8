"""The benchmark harness: its gate, its clock, its floors, its records, its command."""

from __future__ import annotations

import csv
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import benchmarks.__main__ as command
from benchmarks import cells, floor, gate, layers, recording, suites, timing
from benchmarks.cells import Cell, Variant, Workload
from benchmarks.floor import LinearWork, LstmWork, Work
from benchmarks.layers import LayerShape
from benchmarks.needed import work as work_of
from benchmarks.subjects import Subject
from benchmarks.timing import Timing, in_turn, interleaved, once, peak_bytes, rotation
from relprop import rules
from relprop.graph.maps import Conv, Dense

SMALL = LayerShape("small", (6, 10), 9, 3)
PIXELS = LayerShape("pixels", (3, 10), 9, 3, 2, pixels=True)
DEPTHWISE = LayerShape("depthwise", (6, 6), 9, 3, groups=6)
DENSE = LayerShape("dense", (12, 7))


@pytest.fixture(autouse=True)
def _small_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "CACHE_BYTES", 2**12)
    monkeypatch.setattr(floor, "COPY_BYTES", 2**22)


def layer_cell(shape: LayerShape, rule: str) -> Cell:
    make = partial(layers._linear, shape, layers.RULES[rule], 2, "cpu", False)
    columns = {"workload": shape.name, "method": rule, "batch": 2}
    return Cell(f"{shape.name}/{rule}", "layer", columns, make, rounds=2, limit=5.0)


# ---- the gate


@pytest.mark.parametrize(
    ("shape", "rule"),
    [
        *((SMALL, rule) for rule in ("Epsilon", "ZPlus", "AlphaBeta", "Gamma")),
        *((PIXELS, rule) for rule in ("ZBox", "WSquare", "Flat")),
        (DEPTHWISE, "Gamma"),
        (DENSE, "AlphaBeta"),
    ],
)
def test_everybody_agrees_with_float64(shape: LayerShape, rule: str) -> None:
    variants = layer_cell(shape, rule).make().variants
    libraries = [variant.library for variant in variants]
    assert libraries[:2] == ["gradient", "relprop"] and libraries[-1] == "naive reference"
    for variant in variants:
        row = cells.gated(variant)
        assert row["status"] == "ok", row
        assert row["error"] <= row["tolerance"] < 0.5
        assert variant.call().shape == (2, *shape.inputs(1, 1)[0].shape[1:])


def test_a_cell_is_a_row_for_each_variant() -> None:
    rows = cells.measure(layer_cell(DENSE, "AlphaBeta"))
    for row in rows:
        assert row["status"] == "ok" and row["workload"] == "dense" and row["level"] == "layer"
        assert row["explanations_per_s"] == pytest.approx(2 / row["median_s"])
        least = max(row["floor_products_s"], row["floor_bytes_s"])
        if row is not rows[0]:
            assert row["x_floor"] == pytest.approx(row["median_s"] / least)
        assert row["x_gradient"] == pytest.approx(row["median_s"] / rows[0]["median_s"])
        assert row["x_gradient_peak"] == row["peak_bytes"] / rows[0]["peak_bytes"]
        assert (row["contractions"], row["adjoints"]) == (2, 2)
    assert rows[0]["x_gradient"] == 1.0 and "x_floor" not in rows[0]


def broken(kind: str, explain: Any) -> Any:
    """A backend's evaluation with a fault of the kinds that real ones have."""

    def faulty(name: str, call: Any, w: Tensor, b: Any, x: Tensor, r: Tensor) -> Tensor:
        if name == "reference":
            return explain(name, call, w, b, x, r)
        found = explain(name, call, w, None if kind == "bias forgotten" else b, x, r)
        if kind == "one entry":
            found[found.abs() == found.abs().max()] *= 1.01
        elif kind == "not finite":
            found[0, 0] = float("nan")
        elif kind == "shape":
            found = found[..., :-1]
        elif kind == "last channel":
            found[:, -1] = 0
        return found

    return faulty


@pytest.mark.parametrize(
    "kind", ["bias forgotten", "one entry", "not finite", "shape", "last channel"]
)
def test_a_broken_variant_is_caught(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_backend", broken(kind, layers._backend))
    variants = layer_cell(SMALL, "ZPlus").make().variants
    rows = {variant.library: cells.gated(variant) for variant in variants}
    assert rows["relprop"]["status"] == "wrong"
    assert rows["relprop"]["error"] > rows["relprop"]["tolerance"]
    assert rows["gradient"]["status"] == rows["naive reference"]["status"] == "ok"


def test_a_broken_variant_is_reported_as_wrong_and_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layers, "_backend", broken("one entry", layers._backend))
    rows = {row["library"]: row for row in cells.measure(layer_cell(DENSE, "ZPlus"))}
    assert rows["relprop"]["status"] == "wrong"
    assert not {"median_s", "explanations_per_s", "x_gradient", "peak_bytes"} & set(rows["relprop"])
    assert rows["gradient"]["status"] == rows["naive reference"]["status"] == "ok"
    assert rows["naive reference"]["median_s"] > 0


def test_a_variant_that_fails_is_left_out_with_its_reason() -> None:
    def fails() -> Tensor:
        raise ValueError("no such thing\nat all")

    passes = gate.Gate(lambda: torch.ones(2), lambda size: torch.ones(2))
    row = cells.gated(Variant("peer", fails, fails, passes))
    assert row["status"] == "left out: ValueError: no such thing"


def test_the_tolerance_follows_the_conditioning_and_has_a_ceiling() -> None:
    exact = torch.ones(4, dtype=torch.float64)
    for factor in (1.0, 100.0):
        found = gate.Gate(lambda: exact, lambda size, factor=factor: exact * (1 + factor * size))
        expected = (gate.ALLOWED * factor + gate.LEAST) * 2.0**-24
        assert found.tolerance("highest") == pytest.approx(expected, rel=1e-6)
        assert found.tolerance("high") == found.tolerance("highest")
        medium = min(0.5, expected * 2.0**15)
        assert found.tolerance("medium") == pytest.approx(medium, rel=1e-6)
    zeros = gate.Gate(lambda: exact, lambda size: exact * 100)
    assert zeros.error(lambda: torch.zeros(4)) == 1.0 > zeros.tolerance("medium") == 0.5


def test_perturbed_changes_every_weight_by_at_most_one_rounding() -> None:
    w = torch.randn(50, 40, dtype=torch.float64)
    change = (gate.perturbed(w, 1e-3) / w - 1).abs()
    assert change.max() <= 1e-3 and change.max() > 0.99e-3 and (change > 0).all()
    torch.testing.assert_close(gate.perturbed(w, 1e-3), gate.perturbed(w, 1e-3), rtol=0, atol=0)


# ---- the clock and the scale


def test_a_known_sleep() -> None:
    naps: dict[float, list[float]] = {0.02: [], 0.05: []}

    def nap(seconds: float) -> None:
        began = time.perf_counter()
        time.sleep(seconds)
        naps[seconds].append(time.perf_counter() - began)

    calls = {str(seconds): partial(nap, seconds) for seconds in naps}
    timings = interleaved(calls, rounds=5)
    for seconds, taken in naps.items():
        timing = timings[str(seconds)]
        assert timing.median >= seconds and timing.rounds == 5
        # the machine may oversleep; the harness adds next to nothing to that
        assert timing.median == pytest.approx(statistics.median(taken[1:]), abs=5e-3)


def test_a_known_copy() -> None:
    source = np.ones(2**22)
    target = np.empty_like(source)
    copies: list[float] = []

    def copy() -> None:
        began = time.perf_counter()
        np.copyto(target, source)
        copies.append(time.perf_counter() - began)

    added = [once(copy) - copies[-1] for _ in range(9)]
    # another process may come between the two clocks, but not nine times
    assert min(added) >= 0 and min(added) < 5e-4 < min(copies)
    assert (target == 1).all()


def test_the_copy_bandwidth_is_that_of_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "once", lambda call: 0.5)
    assert floor.copy_bandwidth.__wrapped__() == 2 * 2**22 / 0.5
    monkeypatch.setattr(floor, "copy_bandwidth", lambda device: 1e9)
    assert floor.seconds_of_bytes(5 * 10**8) == 0.5


def test_known_peaks_of_memory() -> None:
    x = torch.ones(1000, 250)

    def one_at_a_time() -> None:
        for _ in range(3):
            x.clone()

    def three_at_once() -> Tensor:
        return sum((x.clone(), x.clone(), x.clone()), torch.zeros(()))

    assert peak_bytes(one_at_a_time) == x.nbytes
    assert 3 * x.nbytes <= peak_bytes(three_at_once) <= 5 * x.nbytes + 64


def test_rounds_are_interleaved_and_begin_with_another_variant() -> None:
    calls: list[str] = []
    variants = {name: partial(calls.append, name) for name in "abc"}
    timings = interleaved(variants, rounds=3, warmup=1)
    assert "".join(calls) == "abcbcacababc"
    assert all(timing.rounds == 3 for timing in timings.values())


def test_short_calls_are_repeated_in_a_measurement() -> None:
    calls: list[int] = []

    def nap() -> None:
        calls.append(1)
        time.sleep(0.002)

    timing = interleaved({"nap": nap}, rounds=4, least=0.02)["nap"]
    assert timing.median >= 0.002
    assert (len(calls) - 1) % 4 == 0 and 1 <= (len(calls) - 1) // 4 <= 10
    calls.clear()
    interleaved({"nap": lambda: calls.append(1)}, rounds=1, least=1.0)
    assert len(calls) == 1 + 100


def test_a_limit_ends_the_rounds_but_not_before_three() -> None:
    slow = interleaved({"nap": partial(time.sleep, 0.01)}, rounds=50, limit=0.0)
    assert slow["nap"].rounds == 3
    assert interleaved({"nap": partial(time.sleep, 0.001)}, 5, limit=60)["nap"].rounds == 5


def test_median_and_spread_by_hand() -> None:
    assert Timing.of([3.0, 1.0, 2.0]) == Timing(2.0, 1.0, 3)
    # quartiles of 1..7 are 2 and 6
    assert Timing.of([7.0, 1.0, 6.0, 2.0, 5.0, 3.0, 4.0]) == Timing(4.0, 1.0, 7)


def test_inputs_take_turns() -> None:
    seen: list[int] = []
    call = in_turn(seen.append, [1, 2, 3])
    for _ in range(5):
        call()
    assert seen == [1, 2, 3, 1, 2]


def test_inputs_exceed_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "CACHE_BYTES", 1000)
    assert [rotation(size) for size in (2000, 1000, 999, 300, 1)] == [2, 2, 2, 4, 64]
    xs = SMALL.inputs(2, 3)
    assert len({x.data_ptr() for x in xs}) == 3 and all((x >= 0).all() for x in xs)
    assert not torch.equal(xs[1], xs[2])


# ---- the floor

COUNTS = {
    # by hand from math.md: layer's output and denominators, then adjoints
    rules.Epsilon(): ((1, 1), (1, 1)),
    rules.ZPlus(): ((2, 1), (2, 2)),
    rules.AlphaBeta(): ((2, 2), (2, 2)),
    rules.AlphaBeta(1, 0): ((2, 1), (2, 2)),
    rules.Gamma(): ((2, 2), (2, 2)),
    rules.Gamma(0.0): ((1, 1), (1, 1)),
    rules.ZBox(-1, 1): ((1, 2), (1, 2)),
    rules.WSquare(): ((1, 1), (1, 1)),
    rules.Flat(): ((1, 0), (1, 0)),
}


@pytest.mark.parametrize("rule", COUNTS, ids=repr)
def test_products_that_a_rule_needs(rule: rules.LinearRule) -> None:
    nonnegative, signed = COUNTS[rule]
    assert floor.products(rule, nonnegative=True) == nonnegative
    assert floor.products(rule, nonnegative=False) == signed


def test_work_of_a_convolution_by_hand() -> None:
    conv = Conv((2, 2), ((1, 1), (1, 1)), (1, 1), groups=2)
    a, w = torch.rand(3, 4, 8, 6), torch.rand(10, 2, 3, 3)
    work = LinearWork(conv, a, w, contractions=2, adjoints=1, targets=5)
    z = 3 * 10 * 4 * 3
    assert work.multiplications == z * (2 * 3 * 3) * (2 + 5)
    sizes = a.numel(), w.numel(), z
    assert work.moved == 4 * (2 * sum(sizes) + 5 * (a.numel() + z))
    assert work.held == 4 * a.numel()


def test_work_of_a_transposed_convolution_and_of_a_dense_layer() -> None:
    transposed = Conv((2, 2), ((0, 0), (0, 0)), (1, 1), transposed=True)
    a, w = torch.rand(2, 4, 3, 3), torch.rand(4, 5, 2, 2)
    assert LinearWork(transposed, a, w, 1, 1).multiplications == a.numel() * 5 * 4 * 2
    dense = LinearWork(Dense(), torch.rand(6, 7), torch.rand(5, 7), 1, 2)
    assert dense.multiplications == 6 * 7 * 5 * 3


def test_work_of_an_lstm_by_hand() -> None:
    work = LstmWork(steps=3, batch=2, inputs=4, hidden=5, like=torch.zeros(()), targets=2)
    assert work.multiplications == 3 * 2 * 5 * (4 + 5) * (4 + 2)
    assert Work([work]).at_once == 4 * 3 * 2 * (4 + 3 * 5 + 2 * (4 + 5))
    Work([work])()


def test_the_work_runs_every_product(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("contraction", "adjoint"):
        own = getattr(Dense, name)
        monkeypatch.setattr(
            Dense, name, lambda *args, own=own, name=name: calls.append(name) or own(*args)
        )
    work = Work([LinearWork(Dense(), torch.rand(6, 7), torch.rand(5, 7), 2, 3, targets=4)])
    work()  # makes its operands first
    calls.clear()
    work()
    assert calls == ["contraction"] * 2 + ["adjoint"] * 3
    assert work.counts == (2, 3)


def test_the_work_of_a_model_counts_every_layer_that_relevance_crosses() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(),
        torch.nn.Conv2d(8, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 5),
    ).eval().requires_grad_(False)  # fmt: skip
    x = torch.randn(6, 3, 4, 4)
    subject = Subject(model, [(x, torch.zeros(6, dtype=torch.long))])
    work = work_of(subject, "epsilon_plus", targets=2)
    per_sample = [16 * 8 * 27, 4 * 4 * 72, 16 * 5]
    # z-plus on signed pixels 2 + 2, behind the ReLU 2 + 1, epsilon 1 + 1; relevance for 2 targets
    products = [2 + 2 * 2, 2 + 1 * 2, 1 + 1 * 2]
    expected = [6 * n * p for n, p in zip(per_sample, products, strict=True)]
    assert [item.multiplications for item in work.items] == expected
    assert work.held == 4 * 6 * (3 * 16 + 8 * 16 + 16)
    # most are there at the second layer: its input and the first's, two targets' relevance
    assert work.at_once == 4 * 6 * (3 * 16 + 8 * 16 + 2 * (8 * 16 + 16))
    assert work.counts == (5, 4)
    work()


def test_ratios_are_of_one_explanation_to_one() -> None:
    nap = partial(time.sleep, 0.01)
    variants = [
        Variant(cells.GRADIENT, nap, samples=4),
        Variant("loop", nap, samples=1),
    ]
    cell = Cell("naps", "layer", {"workload": "nap"}, lambda: Workload(variants), rounds=5)
    gradient, loop = cells.measure(cell)
    assert gradient["x_gradient"] == 1.0
    assert loop["x_gradient"] == pytest.approx(4 * loop["median_s"] / gradient["median_s"])
    assert loop["explanations_per_s"] == pytest.approx(1 / loop["median_s"])
    assert gradient["explanations_per_s"] == pytest.approx(4 / gradient["median_s"])


# ---- records


def row(cell: str, **columns: Any) -> dict[str, Any]:
    base = dict.fromkeys(recording.FIELDS, "")
    base |= recording.circumstances("cpu", "python -m benchmarks")
    return base | {"cell": cell, "level": "layer", "status": "ok", "library": "relprop"} | columns


def test_a_record_holds_each_cell_once_and_other_machines_beside(tmp_path: Path) -> None:
    path = tmp_path / "suite-layer-cpu.csv"
    recording.merge(path, "a", [row("a", median_s=0.123456789), row("a", library="zennit")])
    old = [{k: v for k, v in r.items() if k != "at_once_bytes"} for r in recording.read([path])]
    recording.write_record(path, old)  # as a version without that column wrote it
    recording.merge(path, "b", [row("b")])
    recording.merge(path, "a", [row("a", threads=99, median_s=7.0)])
    recording.merge(path, "a", [row("a", median_s=1e-5)])
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        found = list(reader)
    assert tuple(reader.fieldnames or ()) == recording.FIELDS
    assert [(r["cell"], r["median_s"]) for r in found] == [("b", ""), ("a", "7"), ("a", "1e-05")]
    assert list(tmp_path.iterdir()) == [path]


def test_every_row_says_where_it_comes_from() -> None:
    found = cells.measure(layer_cell(DENSE, "Epsilon"), "make bench")[0]
    assert found["threads"] == torch.get_num_threads()
    assert f"torch {torch.__version__.partition('+')[0]}" in found["versions"]
    assert found["command"] == "make bench" and found["device"] and found["commit"]
    assert found["time"].startswith("20") and found["time"].endswith("+00:00")
    assert set(found) <= set(recording.FIELDS)


def test_what_counts_as_measured_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "commit", lambda: "abc1234")
    path = tmp_path / "suite-layer-cpu.csv"
    old = "2020-01-01T00:00:00+00:00"
    recording.merge(path, "same commit", [row("same commit", time=old)])
    recording.merge(path, "another", [row("another", commit="0000000")])
    recording.merge(path, "old", [row("old", commit="0000000", time=old)])
    recording.merge(path, "threads", [row("threads", threads=99)])
    recording.merge(path, "changed", [row("changed", commit="abc1234+", time=old)])
    assert recording.fresh(path, "cpu", hours=0) == {"same commit"}
    assert recording.fresh(path, "cpu", hours=1) == {"same commit", "another"}
    monkeypatch.setattr(recording, "commit", lambda: "abc1234+")
    assert recording.fresh(path, "cpu", hours=0) == set()


# ---- the command


class Counted:
    """Cells that note when they are set up."""

    def __init__(self, fault: str = "") -> None:
        self.made: list[str] = []
        self.cells = [Cell(f"nap/{n}", "layer", {}, partial(self.make, n, fault)) for n in "abc"]

    def make(self, name: str, fault: str) -> Workload:
        self.made.append(name)
        answer = torch.zeros(2) if name == fault else torch.ones(2)
        passes = gate.Gate(lambda: torch.ones(2), lambda size: torch.ones(2))
        return Workload([Variant("relprop", lambda: None, lambda: answer, passes)])


def run(monkeypatch: pytest.MonkeyPatch, counted: Counted, *arguments: str) -> int:
    monkeypatch.setattr(suites, "every", lambda *_: counted.cells)
    return command.main(["--suite", "full", *arguments])


def test_a_run_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ("--records", str(tmp_path), "--keep", "1")
    counted = Counted()
    clock = iter([0.0, 0.0, 1.0, 2.0, 99.0, 99.0])
    with monkeypatch.context() as patch:
        patch.setattr(command.time, "monotonic", lambda: next(clock))
        assert run(patch, counted, *here, "--budget", "50") == 0
    assert counted.made == ["a"]
    assert "2 cells left" in capsys.readouterr().out
    assert run(monkeypatch, counted, *here) == 0 and counted.made == ["a", "b", "c"]
    assert run(monkeypatch, counted, *here) == 0 and counted.made == ["a", "b", "c"]
    assert run(monkeypatch, counted, *here, "--again", "--only", "nap/b") == 0
    assert counted.made == ["a", "b", "c", "b"]
    assert len(recording.read([tmp_path / "suite-layer-cpu.csv"])) == 3


def test_a_wrong_variant_of_ours_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, Counted(fault="b"), "--records", str(tmp_path)) == 1
    assert "wrong by 1.00, allowed" in capsys.readouterr().out
    wrong = [
        r for r in recording.read([tmp_path / "suite-layer-cpu.csv"]) if r["status"] == "wrong"
    ]
    assert [r["cell"] for r in wrong] == ["nap/b"] and wrong[0]["median_s"] == ""


def test_cells_have_names_of_their_own_and_every_suite_has_each_level() -> None:
    every = suites.every()
    names = [cell.name for cell in every]
    assert len(set(names)) == len(names)
    assert {cell.level for cell in every} == set(suites.LEVELS)
    for suite, levels in (("quick", {"model", "layer"}), ("window", set(suites.LEVELS))):
        assert {cell.level for cell in suites.chosen(every, suite)} >= levels
    assert len(suites.chosen(every, "full")) == len(every)
    assert suites.find(names[-1]).name == names[-1]
    with pytest.raises(SystemExit, match="no cell 'nothing'"):
        suites.find("nothing")


def test_list_prints_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = Counted()
    assert run(monkeypatch, counted, "--list", "--only", "/b", "/c") == 0
    assert capsys.readouterr().out == "nap/b\nnap/c\n" and not counted.made
