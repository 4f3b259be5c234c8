"""Tests and benchmarks on a CUDA device: one command, in stages that can be resumed.

    python -m benchmarks.gpu                  every stage that has not passed yet
    python -m benchmarks.gpu --list           the stages, and how each stands
    python -m benchmarks.gpu --only smoke     one stage; --again repeats stages that passed
    python -m benchmarks.gpu --within 590     what is sure to end in that time; call it again

A stage is a process of its own with a time limit below nine minutes, and its failure does not stop
the next.  Its output is in DIR/<stage>.log, how it ended in DIR/state.json (DIR is --out).  Records
and a report are written to benchmarks/records.  Works from a bare checkout: nothing is installed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu_report import Outcome, listed, load, report, save
from benchmarks.gpu_runs import ROOT, Runner, environment_of, process, run
from benchmarks.gpu_suite import STAGES, Stage

__all__ = ["main"]


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
    parser.add_argument("--within", type=int, metavar="SECONDS", help="begin nothing longer")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu", metavar="DIR")
    parser.add_argument("--records", type=Path, default=ROOT / "benchmarks" / "records")
    options = parser.parse_args(argv)
    folder, records = options.out.resolve(), options.records.resolve()
    if options.only and options.only not in {stage.name for stage in stages}:
        names = ", ".join(stage.name for stage in stages)
        parser.error(f"--only: no stage {options.only!r}; there are {names}")
    if options.within is not None and options.within < 1:
        parser.error(f"--within {options.within}: expected 1 second or more")
    commit, found = _commit(), load(folder / "state.json")
    if options.list:
        print(listed(stages, found, commit))
        return 0
    if not (cuda or _has_cuda)():
        print(
            "benchmarks.gpu: no CUDA device that PyTorch can use; run this on a machine with an "
            "NVIDIA GPU and a CUDA build of torch (for the CPU: make bench, make kernels).",
            file=sys.stderr,
        )
        return 2
    environment = environment_of(folder)
    chosen = [stage for stage in stages if options.only in (None, stage.name)]
    began = time.monotonic()
    for stage in chosen:
        before = found.get(stage.name)
        if before is not None and _passed(before, commit) and not options.again:
            print(f"{stage.name}: passed on {before.date}, not repeated", flush=True)
            continue
        if options.within and time.monotonic() - began + stage.seconds > options.within:
            print(f"{stage.name}: may take {stage.seconds} s, left for the next call", flush=True)
            found.pop(stage.name, None)
            continue
        print(f"{stage.name}: {stage.what} (at most {stage.seconds} s)", flush=True)
        found[stage.name] = run(stage, folder, records, environment, commit, runner or process)
        print(f"{stage.name}: {found[stage.name]}", flush=True)
        save(folder / "state.json", found)
        report(records, stages, found, commit)
    print(listed(stages, found, commit))
    good = ("passed", "skipped")
    ended = [found.get(stage.name) for stage in chosen]
    return 0 if all(outcome and outcome.status in good for outcome in ended) else 1


def _passed(outcome: Outcome, commit: str) -> bool:
    return outcome.status == "passed" and outcome.commit == commit


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:  # there is no git
        return "unknown"
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    raise SystemExit(main())
