"""How the stages of `benchmarks.gpu` ended: kept, listed, reported."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpu_suite import Stage
from relprop.atomic import replacing
from relprop.tables import table

__all__ = ["Outcome", "listed", "load", "report", "save"]


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: "passed", "failed", "timed out", or "skipped" with the reason."""

    status: str
    seconds: float
    commit: str
    date: str
    reason: str = ""

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.status} after {self.seconds:.0f} s{reason}"


def load(path: Path) -> dict[str, Outcome]:
    """The outcomes kept in a file, by stage; none where there is no file."""
    if not path.exists():
        return {}
    return {name: Outcome(**fields) for name, fields in json.loads(path.read_text()).items()}


def save(path: Path, found: Mapping[str, Outcome]) -> None:
    """Keep outcomes in a file."""
    with replacing(path) as beside:
        beside.write_text(json.dumps({name: asdict(found[name]) for name in found}, indent=1))


def listed(stages: Sequence[Stage], found: Mapping[str, Outcome], commit: str) -> str:
    """The stages as a table: limit, how each stands at a commit, what it is."""
    rows = []
    for stage in stages:
        outcome = found.get(stage.name)
        stands = "due" if outcome is None else str(outcome)
        if outcome is not None and outcome.commit != commit:
            stands += f" at commit {outcome.commit}: due"
        rows.append((stage.name, f"{stage.seconds} s", stands, stage.what))
    return table(("stage", "limit", "result", "what"), rows)


def report(
    records: Path, stages: Sequence[Stage], found: Mapping[str, Outcome], commit: str
) -> None:
    """A page that says on what it ran, how each stage ended, and what was recorded."""
    today = datetime.now(UTC).date().isoformat()
    lines = [
        f"# On a GPU, {today}, commit {commit}",
        "",
        "Written by `make gpu`; each stage's figures are in the file named beside it.",
        "",
    ]
    environment = records / f"gpu-environment-{today}.csv"
    if environment.exists():
        lines += [f"    {line}" for line in environment.read_text().splitlines()] + [""]
    lines += ["| Stage | What | Result | Record |", "|---|---|---|---|"]
    for stage in stages:
        outcome = found.get(stage.name)
        record = f"gpu-{stage.name}-{outcome.date}.csv" if outcome is not None else ""
        record = record if record and (records / record).exists() else ""
        result = "not run" if outcome is None else str(outcome)
        lines.append(f"| {stage.name} | {stage.what} | {result} | {record} |")
    with replacing(records / f"gpu-report-{today}.md") as beside:
        beside.write_text("\n".join(lines) + "\n")
