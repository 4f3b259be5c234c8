"""This version against another one of the project: `make bench BASE=<git revision>`.

The other version is checked out beside (git worktree).  Each version has a process of its own that
runs the benchmarks of this checkout on its own relprop and kernels; they are asked in turn, call
by call, so that one runs while the other waits: the same rounds, the same disturbances.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks.cells import Cell
from benchmarks.recording import ROOT
from benchmarks.tables import number
from benchmarks.timing import Timing
from relprop.tables import table

__all__ = ["Version", "checked_out", "compare", "linked", "measured"]

CELLS = "benchmarks.suites"
HEAD = ("cell", "who", "base ms", "spread", "here ms", "spread", "here / base", "peak here / base")


def compare(
    base: str,
    cells: Sequence[Cell],
    device: str = "cpu",
    budget: float = float("inf"),
    root: Path = ROOT,
    module: str = CELLS,
) -> int:
    """Measure the cells in both versions and print a table.

    Args:
        base: a git revision.
        cells: what to measure.
        device: "cpu" or "cuda".
        budget: seconds after which no cell is begun.
        root: the checkout.
        module: where the processes find cells by name.

    Returns:
        0, or 1 if a variant failed or was wrong in this version.
    """
    began, rows, bad = monotonic(), [], 0
    with (
        checked_out(base, root) as other,
        Version(root, root, module) as here,
        Version(other, root, module) as before,
    ):
        for cell in cells:
            if monotonic() - began > budget:
                break
            found = measured(cell, before, here)
            bad += sum("here ms" not in row for row in found)
            rows += found
            shown = [[str(row.get(key, "")) for key in KEYS] for row in found]
            print(table(HEAD, shown), flush=True)
    return 1 if bad or not rows else 0


KEYS = ("cell", "who", "base ms", "base spread", "here ms", "here spread", "ratio", "peak ratio")


class Version:
    """A process that measures with one version of the library.

    Args:
        tree: the checkout whose relprop and kernels it imports.
        root: the checkout whose benchmarks it runs.
        module: where it finds cells.
    """

    def __init__(self, tree: Path, root: Path, module: str = CELLS) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="relprop-bench-")
        path = [str(linked(tree, Path(self.folder.name))), str(root), str(ROOT)]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]),
            "PYTHONSAFEPATH": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_WAIT_POLICY": "passive",  # who waits leaves the cores to the other
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=root,
            env=environment,
            text=True,
        )

    def __enter__(self) -> Version:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request, wait for the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"failed": f"the process ended with status {self.process.wait()}"}
        found: dict[str, Any] = json.loads(line)
        return found


def linked(tree: Path, folder: Path) -> Path:
    """A folder to import a checkout's relprop from, its `kernels/` in place inside, by links."""
    package = folder / "relprop"
    package.mkdir()
    for entry in (tree / "relprop").iterdir():
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    if (tree / "kernels").exists():
        (package / "kernels").symlink_to(tree / "kernels")
    return folder


@contextmanager
def checked_out(revision: str, root: Path = ROOT) -> Iterator[Path]:
    """The project at a git revision, in a folder that is there for the time being.

    Raises:
        SystemExit: git knows no such revision.
    """
    git = ["git", "-C", str(root)]
    with tempfile.TemporaryDirectory(prefix="relprop-base-") as folder:
        tree = Path(folder) / "tree"
        added = subprocess.run(
            [*git, "worktree", "add", "--detach", "--quiet", str(tree), revision],
            capture_output=True,
            text=True,
        )
        if added.returncode:
            reason = added.stderr.strip().splitlines()[-1:]
            raise SystemExit(f"benchmarks: no version {revision!r} to compare with: {reason[0]}")
        try:
            yield tree
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=False)


@dataclass
class _Side:
    """One version's variant."""

    version: Version
    number: int
    seconds: list[float] = field(default_factory=list)
    problem: str = ""

    def run(self) -> None:
        answer = self.version.ask(run=self.number)
        self.problem = self.problem or answer.get("failed", "")
        self.seconds.append(answer.get("seconds", float("nan")))


def measured(cell: Cell, before: Version, here: Version) -> list[dict[str, str]]:
    """Both versions' own variants of a cell, in turn: a row each."""
    answers = {"base": before.ask(cell=cell.name), "here": here.ask(cell=cell.name)}
    failed = {side: answer["failed"] for side, answer in answers.items() if "failed" in answer}
    if failed:
        who = "; ".join(f"{side}: {problem}" for side, problem in failed.items())
        return [{"cell": cell.name, "who": who}]
    versions = {"base": before, "here": here}
    sides: dict[str, dict[str, _Side]] = {}
    for name, answer in answers.items():
        for place, variant in enumerate(answer["variants"]):
            side = _Side(versions[name], place, problem=_problem(variant))
            sides.setdefault(variant["library"], {})[name] = side
    running = [s for pair in sides.values() for s in pair.values() if not s.problem]
    began = monotonic()
    for round_ in range(1 + cell.rounds):
        if round_ > 3 and monotonic() - began > cell.limit:
            break
        turned = round_ % max(1, len(running))
        for side in running[turned:] + running[:turned]:
            side.run()
    return [_row(cell.name, library, pair) for library, pair in sides.items()]


def _problem(variant: dict[str, Any]) -> str:
    return "" if variant["status"] == "ok" else str(variant["status"])


def _row(cell: str, library: str, pair: dict[str, _Side]) -> dict[str, str]:
    row = {"cell": cell, "who": library}
    for name, side in pair.items():
        if side.problem:
            row["who"] += f", {name}: {side.problem}"
            continue
        timing = Timing.of(side.seconds[1:])  # the first was the warm-up
        row[f"{name} ms"] = number(1e3 * timing.median)
        row[f"{name} spread"] = f"{100 * timing.spread:.0f} %"
    if "base ms" in row and "here ms" in row:
        medians = [statistics.median(pair[name].seconds[1:]) for name in ("here", "base")]
        row["ratio"] = f"{medians[0] / medians[1]:.3f}"
        peaks = [pair[n].version.ask(peak=pair[n].number).get("bytes", 0) for n in pair]
        by_name = dict(zip(pair, peaks, strict=True))
        if by_name["base"]:
            row["peak ratio"] = f"{by_name['here'] / by_name['base']:.3f}"
    return row
