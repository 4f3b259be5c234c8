"""`relprop evaluate`: the study's table of cosine similarities beside the reported one."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from relprop.errors import InputError
from relprop.io.files import printable
from relprop.study import networks as study
from relprop.study.evaluation import SAMPLES, Cell, Job, Setting, evaluate, report
from relprop.study.evaluation.measure import BATCH
from relprop.study.evaluation.reported import MODELS, TASKS, TITLES

__all__ = ["add_evaluate", "run_evaluate"]

DESCRIPTION = f"""\
Measure how well explanations find the two of three images that make the label: the cosine
similarity of the images' shares of relevance to the truth, averaged over the test samples, for four
methods, nine architectures and the majority tasks of MNIST and Fashion-MNIST.  Printed beside what
the study reported, with the reason where they differ.

models  {", ".join(MODELS[:5])},
        {", ".join(MODELS[5:])}
tasks   {", ".join(TASKS)}
"""

EXAMPLES = """\
Every cell (a task and an architecture) is kept in a small file in --out, so that an interrupted run
goes on where it was; a cell is measured anew when its network's weights or relprop change.

examples
  relprop evaluate --samples 1000 --data folder/with/idx/files
  relprop evaluate --split sample --models deep,r_lstm_sd --tasks mnist_maj

exit status  0 all cells measured   1 some are missing, the table says which   2 nothing measured
"""


def add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command's arguments."""
    command = commands.add_parser(
        "evaluate",
        help="print the recurrent-explanation study's table beside the reported one",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("--samples", type=int, metavar="N", help="the first N; all by default")
    command.add_argument("--models", type=_names, default=MODELS, metavar="NAME[,NAME]")
    command.add_argument("--tasks", type=_names, default=TASKS, metavar="NAME[,NAME]")
    command.add_argument(
        "--split",
        default="test",
        choices=tuple(SAMPLES),
        help="the official test images, or those shipped with relprop (%(default)s)",
    )
    command.add_argument("--data", type=Path, metavar="FOLDER", help="where the data sets are")
    command.add_argument(
        "--weights", type=Path, metavar="FOLDER", help="of relprop train, instead of those shipped"
    )
    command.add_argument(
        "--out", type=Path, default="out/evaluate", metavar="FOLDER", help="(%(default)s)"
    )
    command.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes of one thread each (%(default)s, one a core)",
    )
    command.add_argument("--batch-size", type=int, default=BATCH, metavar="N", help="(%(default)s)")
    command.add_argument(
        "--dtype", default="float32", choices=("float32", "float64"), help="(%(default)s)"
    )
    command.add_argument("--quiet", action="store_true", help="the table alone")
    command.add_argument("--debug", action="store_true", help="show a stack trace on an error")


def run_evaluate(arguments: argparse.Namespace) -> int:
    """`relprop evaluate`: 0 if every cell was measured, 1 if some are missing, 2 if all are."""
    for option in ("samples", "workers", "batch_size"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise InputError(f"--{option.replace('_', '-')} {value}: expected 1 or more")
    jobs = _jobs(arguments)
    began = time.perf_counter()
    told = _silent if arguments.quiet else _tell
    cells = evaluate(jobs, arguments.workers, told)
    print(report(cells))
    if not arguments.quiet:
        seconds = time.perf_counter() - began
        print(f"cells in {printable(arguments.out)}; {seconds:.0f} s", file=sys.stderr)
    measured = sum(isinstance(cell, Cell) for cell in cells.values())
    return 0 if measured == len(jobs) else 1 if measured else 2


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",")))


def _jobs(arguments: argparse.Namespace) -> list[Job]:
    _check("--tasks", arguments.tasks, TASKS)
    _check("--models", arguments.models, [name for name in study.ARCHITECTURES if name != "lenet"])
    all_samples = SAMPLES[arguments.split]
    samples = min(arguments.samples or all_samples, all_samples)
    return [
        Job(
            Setting(task, model, arguments.split, samples, arguments.dtype),
            arguments.out,
            arguments.data,
            arguments.weights,
            arguments.batch_size,
        )
        for task in arguments.tasks
        for model in arguments.models
    ]


def _check(option: str, given: Sequence[str], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            raise InputError(f"{option}: no {printable(name)!r}; there are {', '.join(known)}")


def _silent(setting: Setting, cell: Cell, known: bool) -> None:
    pass


def _tell(setting: Setting, cell: Cell, known: bool) -> None:
    """A line on standard error for each cell as it comes."""
    took = "measured before" if known else f"{cell.seconds:.1f} s"
    name = f"{TITLES[setting.task]}, {study.TITLES[setting.model]}"
    print(f"{name}: {took}", file=sys.stderr, flush=True)
