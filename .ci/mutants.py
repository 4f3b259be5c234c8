"""The mutation gate: every chosen fault in the sources fails a test, or is argued by name.

    python .ci/mutants.py                    the gate
    python .ci/mutants.py --list             the chosen mutants
    python .ci/mutants.py --all FILE …       every mutant of some source files

Status 1: a mutant survives that nobody argued for, or an argued name is gone.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parent))

from mutation.argued import ARGUED  # noqa: E402
from mutation.mutants import Mutant, chosen, mutants_of  # noqa: E402
from mutation.runner import Outcome, Project, baseline, outcomes, preload  # noqa: E402

COUNTS = {
    "rules": 14, "maps": 12, "fold": 10, "rewrite": 5, "linearised": 5, "inplace": 6,
    "analysis": 8, "gates": 6, "targets": 10,
    "backends/forms/output": 5, "backends/forms/signs": 8, "backends/forms/joint": 6,
    "backends/forms/constants": 5, "backends/forms/general": 5, "backends/forms/layer": 3,
    "backends/products": 10, "backends/blockwise": 5, "backends/pointwise": 8,
    "backends/aten": 3, "backends/onednn": 6, "recurrent/reduced": 12, "recurrent/aten": 10,
    "layers/pool": 5, "layers/winner": 5, "layers/linear": 3,
    "layers/recurrent": 0, "layers/__init__": 0,
}  # fmt: skip
"""Mutants wanted of each module; all other layers give six."""


def _sources() -> dict[str, int]:
    layers = sorted(f"layers/{path.stem}" for path in (ROOT / "relprop" / "layers").glob("*.py"))
    counts = {**COUNTS, **{name: COUNTS.get(name, 6) for name in layers}}
    return {f"relprop/{name}.py": count for name, count in counts.items() if count}


PROJECT = Project(
    root=ROOT,
    sources=_sources(),
    tests=[
        "tests/test_recurrent_models.py",
        "tests/test_linear.py",
        "tests/test_blockwise.py",
        "tests/test_rectified.py",
        "tests/test_operations.py",
        "tests/test_networks_by_hand.py",
        "tests/test_recurrent.py",
        "tests/test_parity_zennit.py",
        "tests/test_rewrite.py",
        "tests/test_forms.py",
        "tests/test_products.py",
        "tests/test_layers.py",
        "tests/test_analysis.py",
        "tests/test_inplace.py",
        "tests/test_rules.py",
        "tests/test_targets.py",
        "tests/test_functional.py",
    ],
    direct=[
        "tests/test_rewrite.py", "tests/test_forms.py", "tests/test_products.py",
        "tests/test_layers.py", "tests/test_analysis.py", "tests/test_inplace.py",
    ],
    preload=[
        "torch", "numpy", "safetensors.torch", "torch.export", "torch._dynamo",
        "torch.fx.experimental.symbolic_shapes", "torch.func", "hypothesis",
        "PIL.Image", "sympy",
    ],
)  # fmt: skip


def main() -> int:
    """Run the gate; returns the exit status."""
    parser = argparse.ArgumentParser(description="Break the sources; the tests must notice.")
    parser.add_argument("--list", action="store_true", help="print the chosen mutants and stop")
    parser.add_argument("--all", nargs="+", metavar="FILE", help="every mutant of these sources")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once")
    parser.add_argument("--share", type=float, default=0.07, help="of all tests for each mutant")
    options = parser.parse_args()
    every = generate(PROJECT)
    picked = [m for f, n in PROJECT.sources.items() for m in chosen(every[f], n)]
    if options.all:
        picked = [m for f in options.all for m in every[f]]
    if options.list:
        print("\n".join(m.shown for m in picked))
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return gate(PROJECT, picked, every, ARGUED, options.jobs, options.share)


def generate(project: Project) -> dict[str, list[Mutant]]:
    """Every mutant of every source."""
    return {
        path: mutants_of(path, (project.root / path).read_text(encoding="utf-8"))
        for path in project.sources
    }


def gate(
    project: Project,
    picked: Sequence[Mutant],
    every: Mapping[str, Sequence[Mutant]],
    argued: Mapping[str, str],
    jobs: int,
    share: float,
) -> int:
    """Run the chosen mutants and print what became of them; returns the exit status."""
    start = time.monotonic()
    preload(project)
    known = baseline(project, jobs)
    if known.failed:
        print("the tests fail without any fault:", *sorted(known.failed), sep="\n  ")
        return 1
    timed = f"{time.monotonic() - start:.0f} s"
    print(f"{len(known.seconds)} tests, {timed}; {len(picked)} mutants", flush=True)
    found = []
    open_ = [m for m in picked if m.name not in argued]
    for outcome in outcomes(project, open_, known, jobs, share):
        found.append(outcome)
        if outcome.state != "killed":
            print(f"{outcome.state}: {outcome.mutant.shown}", flush=True)
    names = {m.name for mutants in every.values() for m in mutants}
    gone = sorted(set(argued) - names)
    survivors = sorted(o.mutant.name for o in found if o.state == "survived")
    print(table(picked, found, argued))
    print(f"{time.monotonic() - start:.0f} s")
    if survivors:
        print("\nsurvived (strengthen a test, or argue in .ci/mutation/argued.py):")
        print(*survivors, sep="\n")
    if gone:
        print("\nargued, but no longer a mutant:", *gone, sep="\n")
    return 1 if survivors or gone else 0


def table(picked: Sequence[Mutant], found: Sequence[Outcome], argued: Mapping[str, str]) -> str:
    """Killed, argued and survived by source file."""
    rows: dict[str, Counter[str]] = {m.path: Counter() for m in picked}
    for outcome in found:
        state = "killed" if outcome.state == "timeout" else outcome.state
        rows[outcome.mutant.path][state] += 1
    for mutant in picked:
        rows[mutant.path]["argued"] += mutant.name in argued
    rows["all"] = sum(rows.values(), Counter())
    columns = "killed", "argued", "survived"
    lines = [f"\n{'':34}" + "".join(f"{c:>10}" for c in columns)]
    for path, counts in rows.items():
        lines.append(f"{path:34}" + "".join(f"{counts[c]:10}" for c in columns))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
