"""Every family of networks: how long it takes to plan, how exactly relevance is conserved.

python -m benchmarks.families
python -m benchmarks.families --only resnet --record out/families.csv
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import relprop
from benchmarks.recording import environment, write_record
from benchmarks.zoo import FAMILIES, Family, randomised
from relprop import composites
from relprop.conservation import ConservationReport
from relprop.engine.plan import Plan
from relprop.tables import table

__all__ = ["Conservation", "conservation", "main"]

_SLOWEST = 3


@dataclass(frozen=True)
class Conservation:
    """What LRP-0 and the z-plus rule without a stabilizer do in float64, all biases being 0.

    Attributes:
        operations: values that the model computes.
        steps: of them those that relevance goes through.
        planning: processor seconds from the model to its plan.
        zero: greatest part of a sample's relevance that LRP-0 lost.
        plus: the same for the z-plus rule, which loses relevance where no contribution is positive.
        start: relevance that the z-plus rule started with, over all samples.
        report: of the z-plus rule.
    """

    operations: int
    steps: int
    planning: float
    zero: float
    plus: float
    start: float
    report: ConservationReport


def conservation(family: Family) -> Conservation:
    """Plan a family's network and explain two samples."""
    model = randomised(family, plain=True).double()
    args, kwargs = family.inputs(torch.float64)
    explainer = relprop.Explainer(model, "lrp_zero", output=family.output)
    lost, times = 0.0, [time.process_time()]
    for _ in range(2):
        result = explainer.explain(*args, kwargs=kwargs, target=family.target)
        times.append(time.process_time())
        lost = max(lost, _lost(result))
    method = composites.lrp_zplus(stabilizer=0.0)
    plus = relprop.Explainer(model, method, output=family.output)
    found = plus.explain(*args, kwargs=kwargs, target=family.target)
    plan = explainer.plan
    assert isinstance(plan, Plan)
    planning = (times[1] - times[0]) - (times[2] - times[1])
    report = found.conservation()
    start = report.rows[0].relevance_out
    sizes = len(plan.graph.nodes), len(plan.steps)
    return Conservation(*sizes, planning, lost, _lost(found), abs(start), report)


def _lost(result: relprop.Explanation) -> float:
    """The greatest part of a sample's starting relevance that did not arrive."""
    assert isinstance(result.relevance, Tensor)
    delta = result.convergence_delta
    start = delta + result.relevance.flatten(1).sum(1)
    return float((delta / start).abs().max())


def slowest(family: Family) -> str:
    """The kinds of operation on which an explanation by `epsilon_plus` spends most of its time."""
    model = randomised(family)
    args, kwargs = family.inputs(torch.float32)
    explainer = relprop.Explainer(model, "epsilon_plus", output=family.output)
    explainer(*args, kwargs=kwargs, target=family.target)
    spent: Counter[str] = Counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        explainer(*args, kwargs=kwargs, target=family.target)
    for event in profile.key_averages():
        if event.key.startswith("aten::"):
            spent[event.key.removeprefix("aten::")] += event.self_cpu_time_total
    total = max(sum(spent.values()), 1e-9)
    return " ".join(f"{name} {time / total:.0%}" for name, time in spent.most_common(_SLOWEST))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the record if asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__)
    parser.add_argument("--only", default="", help="families whose name contains this")
    parser.add_argument("--record", type=Path, help="CSV file to write")
    arguments = parser.parse_args(argv)
    rows = [_row(family) for name, family in FAMILIES.items() if arguments.only in name]
    head = [*rows[0]][:7]
    print(table(head, [[str(row[key]) for key in head] for row in rows]))
    if arguments.record is not None:
        write_record(arguments.record, rows)
        print(f"wrote {arguments.record}")
    return 0


def _row(family: Family) -> dict[str, Any]:
    found = conservation(family)
    row = {
        "model": family.name,
        "operations": found.operations,
        "steps": found.steps,
        "planning_s": round(found.planning, 2),
        "lrp_zero_lost": f"{found.zero:.1e}",
        "z_plus_lost": f"{found.plus:.1e}",
        "slowest": slowest(family),
        "shape": "x".join(map(str, family.shape)),
        **environment(),
    }
    gc.collect()
    return row


if __name__ == "__main__":
    raise SystemExit(main())
