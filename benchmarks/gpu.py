"""Tests and benchmarks on a CUDA device: one command, in stages that can be resumed.

    python -m benchmarks.gpu                  every stage that has not passed yet
    python -m benchmarks.gpu --list           the stages, and how each stands
    python -m benchmarks.gpu --only smoke     one stage; --again repeats stages that passed

A stage is a process of its own with a time limit below nine minutes, and its failure does not stop
the next.  Its output is in DIR/<stage>.log, how it ended in DIR/state.json (DIR is --out).  Records
and a report are written to benchmarks/records.  Works from a bare checkout: nothing is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from relprop.atomic import replacing
from relprop.tables import table

__all__ = ["STAGES", "Outcome", "Stage", "main"]

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("vgg16", "resnet50")


@dataclass(frozen=True)
class Stage:
    """One process.

    Attributes:
        name: of the stage, its log and its record.
        seconds: its time limit.
        what: in words.
        arguments: of the Python interpreter; `{record}` stands for the record's path without
            its suffix.
        tool: a program that it needs beside Python.
        tunes: whether kernels are chosen by measuring; else the shipped tiles run.
    """

    name: str
    seconds: int
    what: str
    arguments: tuple[str, ...]
    tool: str = ""
    tunes: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: "passed", "failed", "timed out", or "skipped" with the reason."""

    status: str
    seconds: float
    commit: str
    date: str
    reason: str = ""


_PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
_KERNELS = "tests/kernels/"


def _cnn(model: str, precision: str, tunes: bool = False) -> Stage:
    arguments = ("-m", "benchmarks.cnn", "--device", "cuda", "--models", model, "--batch", "64")
    options = ("--precision", precision, "--triton", "--record", "{record}.csv")
    what = f"explanations per second of {model}, batch 64, 224 x 224, precision {precision!r}"
    name = f"{model}-{precision}" + "-tuned" * tunes
    what += ", kernels chosen by measuring" * tunes
    return Stage(name, 510, what, (*arguments, *options), tunes=tunes)


def _layers(tunes: bool) -> Stage:
    what = "each layer of both networks: share of the device's bound, against the library"
    arguments = ("-m", "benchmarks.gpu_layers", "--record", "{record}.csv")
    name = "layers" + "-tuned" * tunes
    return Stage(name, 530, what + ", tuned" * tunes, arguments, tunes=tunes)


STAGES = (
    Stage(
        "environment",
        120,
        "device, versions, measured copy bandwidth and matrix rates",
        ("-m", "benchmarks.gpu_stages", "environment", "--record", "{record}.csv"),
    ),
    Stage(
        "accuracy",
        480,
        "production sizes: error against float64 beside PyTorch's own, the same bits every run",
        ("-m", "benchmarks.gpu_stages", "accuracy", "--record", "{record}.csv"),
    ),
    Stage(
        "smoke",
        480,
        "every kernel and rule, small, against the float64 reference",
        (
            *_PYTEST,
            _KERNELS + "test_layers.py::test_every_rule",
            _KERNELS + "test_pool.py",
            _KERNELS + "test_plan.py",
            "-m",
            "not slow",
        ),
    ),
    _cnn("vgg16", "medium"),
    _cnn("resnet50", "medium"),
    _layers(tunes=False),
    Stage(
        "engine",
        480,
        "whole networks on CUDA: equal to the CPU, Triton equal to ATen, run to run",
        (*_PYTEST, "tests/test_cuda.py"),
    ),
    _cnn("vgg16", "high"),
    _layers(tunes=True),
    _cnn("vgg16", "medium", tunes=True),
    _cnn("resnet50", "medium", tunes=True),
    _cnn("resnet50", "high"),
    Stage(
        "kernels",
        530,
        "the kernels' whole test matrix, shared among processes",
        ("-m", "benchmarks.gpu_stages", "kernels"),
    ),
    Stage(
        "memcheck",
        530,
        "compute-sanitizer on the small tests",
        ("-m", "benchmarks.gpu_stages", "memcheck"),
        tool="compute-sanitizer",
    ),
    *(_cnn(model, "highest") for model in MODELS),
)
"""Most valuable first: right at production sizes, the tables, then what tuning gives."""

Runner = Callable[[Sequence[str], Mapping[str, str], Path, int], int | None]
"""Runs a command with an environment, output to a file, within seconds: its exit status, None if
time ran out."""


def main(
    argv: Sequence[str] | None = None,
    *,
    stages: Sequence[Stage] = STAGES,
    runner: Runner | None = None,
    cuda: Callable[[], bool] | None = None,
) -> int:
    """Run the stages that are due: 0 if all passed, 1 if one did not, 2 without a CUDA device."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="print the stages and run nothing")
    parser.add_argument("--only", metavar="STAGE", help="run this stage alone")
    parser.add_argument("--again", action="store_true", help="also what has passed already")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu", metavar="DIR")
    parser.add_argument("--records", type=Path, default=ROOT / "benchmarks" / "records")
    options = parser.parse_args(argv)
    folder, records = options.out.resolve(), options.records.resolve()
    if options.only and options.only not in {stage.name for stage in stages}:
        names = ", ".join(stage.name for stage in stages)
        parser.error(f"--only: no stage {options.only!r}; there are {names}")
    commit, found = _commit(), _load(folder / "state.json")
    if options.list:
        print(_table(stages, found, commit))
        return 0
    if not (cuda or _has_cuda)():
        print(
            "benchmarks.gpu: no CUDA device that PyTorch can use; run this on a machine with an "
            "NVIDIA GPU and a CUDA build of torch (for the CPU: make bench, make kernels).",
            file=sys.stderr,
        )
        return 2
    environment = _environment(folder)
    chosen = [stage for stage in stages if options.only in (None, stage.name)]
    for stage in chosen:
        before = found.get(stage.name)
        if before is not None and _passed(before, commit) and not options.again:
            print(f"{stage.name}: passed on {before.date}, not repeated", flush=True)
            continue
        print(f"{stage.name}: {stage.what} (at most {stage.seconds} s)", flush=True)
        found[stage.name] = _run(stage, folder, records, environment, commit, runner or _process)
        print(f"{stage.name}: {_words(found[stage.name])}", flush=True)
        _save(folder / "state.json", found)
        _report(records, stages, found, commit)
    print(_table(stages, found, commit))
    good = ("passed", "skipped")
    return 0 if all(found[stage.name].status in good for stage in chosen) else 1


def _passed(outcome: Outcome, commit: str) -> bool:
    return outcome.status == "passed" and outcome.commit == commit


def _run(
    stage: Stage,
    folder: Path,
    records: Path,
    environment: Mapping[str, str],
    commit: str,
    runner: Runner,
) -> Outcome:
    environment = {**environment, "RELPROP_TUNE": "1" if stage.tunes else "0"}
    today = datetime.now(UTC).date().isoformat()
    if stage.tool and shutil.which(stage.tool) is None:
        return Outcome("skipped", 0.0, commit, today, f"{stage.tool} is not installed")
    record = records / f"gpu-{stage.name}-{today}"
    command = [text.replace("{record}", str(record)) for text in stage.arguments]
    records.mkdir(parents=True, exist_ok=True)
    log = folder / f"{stage.name}.log"
    began = time.monotonic()
    status = runner([sys.executable, *command], environment, log, stage.seconds)
    seconds = round(time.monotonic() - began, 1)
    if status is None:
        return Outcome("timed out", seconds, commit, today, f"see {log.name}")
    if status:
        return Outcome("failed", seconds, commit, today, f"exit status {status}, see {log.name}")
    return Outcome("passed", seconds, commit, today)


def _process(
    command: Sequence[str], environment: Mapping[str, str], log: Path, seconds: int
) -> int | None:
    """Run in a process group of its own, so that a time-out ends its children too."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(environment), stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _environment(folder: Path) -> dict[str, str]:
    """The environment of the stages: imports come from this checkout, `kernels/` included.

    `relprop.kernels` is the folder `kernels/`, which only an installation knows.  A folder of links
    stands in for it, and the safe path keeps the checkout's own `relprop/` from hiding it.
    """
    package = folder / "site" / "relprop"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for entry in (ROOT / "relprop").iterdir():
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    (package / "kernels").symlink_to(ROOT / "kernels")
    path = [str(package.parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return environment | {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "RELPROP_KERNEL_DEVICE": "cuda",
        "RELPROP_CACHE_DIR": os.environ.get("RELPROP_CACHE_DIR", str(folder / "choices")),
    }


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def _load(path: Path) -> dict[str, Outcome]:
    if not path.exists():
        return {}
    return {name: Outcome(**fields) for name, fields in json.loads(path.read_text()).items()}


def _save(path: Path, found: Mapping[str, Outcome]) -> None:
    with replacing(path) as beside:
        beside.write_text(json.dumps({name: asdict(found[name]) for name in found}, indent=1))


def _words(outcome: Outcome) -> str:
    reason = f" ({outcome.reason})" if outcome.reason else ""
    return f"{outcome.status} after {outcome.seconds:.0f} s{reason}"


def _table(stages: Sequence[Stage], found: Mapping[str, Outcome], commit: str) -> str:
    rows = []
    for stage in stages:
        outcome = found.get(stage.name)
        stands = "due" if outcome is None else _words(outcome)
        if outcome is not None and outcome.commit != commit:
            stands += f" at commit {outcome.commit}: due"
        rows.append((stage.name, f"{stage.seconds} s", stands, stage.what))
    return table(("stage", "limit", "result", "what"), rows)


def _report(
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
        result = "not run" if outcome is None else _words(outcome)
        lines.append(f"| {stage.name} | {stage.what} | {result} | {record} |")
    with replacing(records / f"gpu-report-{today}.md") as beside:
        beside.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
