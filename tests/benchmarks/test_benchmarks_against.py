"""`make bench BASE=<revision>` on a small repository of its own, and the worker's protocol."""

from __future__ import annotations

import gc
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import against
from benchmarks.cells import Cell, Variant, Workload
from benchmarks.gate import Gate
from benchmarks.recording import ROOT
from benchmarks.worker import Worker

CELLS = """
import time
import torch
from benchmarks.cells import Cell, Variant, Workload
from benchmarks.gate import Gate
from relprop.tiny import ANSWER, PAUSE

GATE = Gate(lambda: torch.ones(3), lambda size: torch.ones(3))

def make():
    def call():
        print("something that a library prints")
        time.sleep(PAUSE)
    return Workload([
        Variant("gradient", call),
        Variant("relprop", call, lambda: torch.full((3,), float(ANSWER)), GATE),
    ])

def find(name):
    if name != "nap":
        raise ValueError(f"no cell {name}")
    return Cell(name, "layer", {}, make)
"""


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    """A worker freezes the heap of its process, which here is that of the tests."""
    yield
    gc.unfreeze()


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout


def commit(folder: Path, pause: float, answer: int) -> None:
    (folder / "relprop" / "tiny.py").write_text(f"PAUSE = {pause}\nANSWER = {answer}\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", f"sleep {pause}, answer {answer}")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two versions, slow and fast, the second checked out."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "weights", "samples")
    shutil.copytree(ROOT / "relprop", folder / "relprop", ignore=ignored)
    (folder / "tiny_cells.py").write_text(CELLS)
    git(folder, "init", "-q")
    for name, pause in {"slow": 0.06, "fast": 0.02}.items():
        commit(folder, pause, answer=1)
        git(folder, "tag", name)
    return folder


NAP = Cell("nap", "layer", {}, lambda: Workload([]), rounds=5)


def test_two_versions_are_timed_in_turn(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Cell("other", "layer", {}, lambda: Workload([]))
    status = against.compare("slow", [NAP, other], root=repository, module="tiny_cells")
    lines = capsys.readouterr().out.splitlines()
    (nap,) = (line.split() for line in lines if line.startswith("nap"))
    base, here, ratio = float(nap[2]), float(nap[5]), float(nap[8])
    assert nap[1] == "relprop" and base >= 60 and 20 <= here < base
    assert ratio == pytest.approx(here / base, rel=0.01)
    assert "base: ValueError: no cell other; here: ValueError: no cell other" in lines[-1]
    assert status == 1  # a cell could not be measured
    assert git(repository, "worktree", "list").count("\n") == 1
    assert git(repository, "status", "--porcelain") == ""


class InProcess(against.Version):
    """A version whose worker answers in this process; it notes how long its naps really took."""

    def __init__(self, pause: float, answer: float = 1.0, peak: int = 1000) -> None:
        passes = Gate(lambda: torch.ones(3), lambda size: torch.ones(3))

        def nap() -> None:
            began = time.perf_counter()
            time.sleep(pause)
            self.naps.append(time.perf_counter() - began)

        found = [
            Variant("gradient", nap),
            Variant("relprop", nap, lambda: torch.full((3,), answer), passes),
        ]
        self.naps: list[float] = []
        self.calls: list[dict[str, Any]] = []
        self.peak = peak
        self.worker = Worker(lambda name: Cell(name, "layer", {}, lambda: Workload(found)))

    def ask(self, **request: Any) -> dict[str, Any]:
        self.calls.append(request)
        return {"bytes": self.peak} if "peak" in request else self.worker.answer(request)


def test_calls_take_turns_and_the_first_is_not_counted() -> None:
    base, here = InProcess(0.01), InProcess(0.02, peak=1500)
    (row,) = against.measured(NAP, base, here)
    medians = [statistics.median(side.naps[1:]) for side in (base, here)]
    assert float(row["base ms"]) == pytest.approx(1e3 * medians[0], rel=0.03)
    assert float(row["here ms"]) == pytest.approx(1e3 * medians[1], rel=0.03)
    assert float(row["ratio"]) == pytest.approx(medians[1] / medians[0], rel=0.05)
    assert row["peak ratio"] == "1.500"
    for side in (base, here):
        assert side.calls == [{"cell": "nap"}, *[{"run": 0}] * 6, {"peak": 0}]


def test_a_version_that_is_wrong_is_said_to_be_and_not_compared() -> None:
    (row,) = against.measured(NAP, InProcess(0.001, answer=2.0), InProcess(0.001))
    assert row["who"] == "relprop, base: wrong" and "here ms" in row
    (row,) = against.measured(NAP, InProcess(0.001), InProcess(0.001, answer=2.0))
    assert row["who"] == "relprop, here: wrong" and "base ms" in row
    assert "here ms" not in row and "ratio" not in row


def test_an_unknown_revision_is_one_sentence() -> None:
    with pytest.raises(SystemExit, match="no version 'none' to compare with: fatal: invalid ref"):
        against.compare("none", [NAP])


def test_the_import_folder_holds_the_version_and_its_kernels(tmp_path: Path) -> None:
    folder = against.linked(ROOT, tmp_path)
    assert (folder / "relprop" / "kernels").resolve() == ROOT / "kernels"
    assert (folder / "relprop" / "errors.py").resolve() == ROOT / "relprop" / "errors.py"
    assert (folder / "relprop" / "rules").resolve() == ROOT / "relprop" / "rules"
    assert not (folder / "relprop" / "__pycache__").exists()


def test_the_worker_answers_each_request() -> None:
    passes = Gate(lambda: torch.ones(2), lambda size: torch.ones(2))
    variants = [
        Variant("relprop", partial(time.sleep, 0.01), lambda: torch.ones(2), passes),
        Variant("zennit", lambda: None),
        Variant("relprop frozen", lambda: torch.ones(1000), lambda: torch.zeros(2), passes),
    ]
    worker = Worker(lambda name: Cell(name, "layer", {}, lambda: Workload(variants)))
    found = worker.answer({"cell": "x"})["variants"]
    assert [(v["library"], v["status"]) for v in found] == [
        ("relprop", "ok"),
        ("relprop frozen", "wrong"),
    ]
    assert worker.answer({"run": 0})["seconds"] >= 0.01
    assert worker.answer({"peak": 1}) == {"bytes": 4000}
    assert worker.answer({"run": 5}) == {"failed": "IndexError: list index out of range"}
