"""`relprop train`: networks of the study, one or all of them."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch

from relprop import data
from relprop.batch.status import Status
from relprop.data import Task
from relprop.errors import InputError
from relprop.io.opening import chosen_device
from relprop.study import networks as study
from relprop.study.networks.training import ACCEPTED, EPOCHS, PAIRS, start, train, weights_path
from relprop.study.training import Recipe, Training

__all__ = ["add_train", "run_train"]

DESCRIPTION = f"""\
Train a network of the recurrent-explanation study, going on from its last checkpoint.

architecture is one of {", ".join(study.ARCHITECTURES)}, or all
task is one of {", ".join(data.TASKS)}, or all

With 'all' the pairs of the study are trained that come without weights and are not finished yet.
Written to --out, a folder for each pair: checkpoint.safetensors after each epoch, log.jsonl (a line
an epoch), and in the end weights.safetensors: float16, of the epoch of best validation accuracy.
"""

EXAMPLES = """\
examples
  relprop train r_lstm_sd mnist_maj --data folder/with/idx/files
  relprop train all all --data folder/with/idx/files --device cuda --jobs 6

exit status  0 all trained to the accepted accuracy   1 some below it, or failed
             2 nothing could be done
"""


SPLITS = ("train", "validation", "test")
NOT_OF_A_PAIR = ("command", "architecture", "task", "jobs")


def add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command's arguments."""
    command = commands.add_parser(
        "train",
        help="train a network of the study",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("architecture", help="see above")
    command.add_argument("task", help="see above")
    for field in fields(Recipe):
        word = dict(field.metadata)
        if word:
            kind = (
                {"action": "store_true"}
                if field.default is False
                else {"type": type(field.default)}
            )
            word |= {"dest": field.name, "default": field.default, **kind}
            command.add_argument(_option(word.pop("option", field.name)), **word)
    command.set_defaults(epochs=EPOCHS)
    command.add_argument("--data", metavar="FOLDER", help="where the data sets' files are")
    command.add_argument("--out", metavar="FOLDER", default="out/train", help="(%(default)s)")
    command.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, …; cuda where it is")
    command.add_argument("--threads", type=int, default=0, help="of the CPU; torch's default")
    command.add_argument("--jobs", type=int, default=1, help="pairs at a time (%(default)s)")
    command.add_argument("--restart", action="store_true", help="forget checkpoints and weights")
    command.add_argument("--quiet", action="store_true", help="no line an epoch")
    command.add_argument("--debug", action="store_true", help="show a stack trace on an error")


def run_train(arguments: argparse.Namespace) -> int:
    """`relprop train`: 0 if every pair reached the accepted accuracy, else 1."""
    if arguments.jobs < 1 or arguments.threads < 0:
        raise InputError(
            f"--jobs {arguments.jobs} --threads {arguments.threads}: expected --jobs of 1 or more, "
            "and --threads of 0 (torch's default) or more"
        )
    compilers = os.environ.get("CXX", ""), "g++", "clang++"
    if arguments.compiled and not any(map(shutil.which, compilers)):
        raise InputError("--compile: no C++ compiler found (g++, clang++, $CXX); install one")
    pairs = _pairs(arguments)
    if len(pairs) > 1 and arguments.jobs > 1:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            statuses = list(pool.map(partial(_in_a_process, arguments), pairs))
    else:
        statuses = [_train(arguments, *pair) for pair in pairs]
    return int(any(statuses))


def _folder(arguments: argparse.Namespace, name: str, task: str) -> Path:
    return Path(arguments.out) / f"{name}-{task}"


def _pairs(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    name, task = arguments.architecture, arguments.task
    if "all" not in (name, task):
        study.build(name, *study.steps_and_width(task))
        return [(name, task)]
    wanted = [pair for pair in PAIRS if name in ("all", pair[0]) and task in ("all", pair[1])]
    if not wanted:
        raise InputError(f"train {name} {task}: no pair of the study; name both to train others")
    if arguments.restart:
        return wanted
    done = set(study.pairs())
    return [
        pair
        for pair in wanted
        if pair not in done and not weights_path(_folder(arguments, *pair)).exists()
    ]


def _train(arguments: argparse.Namespace, name: str, task: str) -> int:
    folder, title = _folder(arguments, name, task), f"{name} {task}"
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.restart:
        for own in ("checkpoint.safetensors", "log.jsonl", weights_path(folder).name):
            (folder / own).unlink(missing_ok=True)
    if weights_path(folder).exists():
        print(f"{title}: trained already, {weights_path(folder)}")
        return 0
    asked = {f.name: getattr(arguments, f.name) for f in fields(Recipe) if f.metadata}
    recipe = Recipe(**asked, accepted=ACCEPTED[task])
    training = start(name, task, folder, recipe, chosen_device(arguments.device))
    splits = {split: data.task(task, split, arguments.data) for split in SPLITS}
    facts = _with_progress(training, splits, title, arguments.quiet)
    low = "" if facts["accepted"] else f", below the accepted {ACCEPTED[task]}"
    print(
        f"{title}: test accuracy {facts['test_accuracy']:.4f} ({facts['test_accuracy_float32']:.4f}"
        f" in float32){low}, epoch {facts['best_epoch']} of {facts['epochs']}: "
        f"{weights_path(folder)}",
        flush=True,
    )
    return 0 if facts["accepted"] else 1


def _with_progress(
    training: Training, splits: dict[str, Task], title: str, quiet: bool
) -> dict[str, object]:
    total = len(splits["train"]) * (training.recipe.epochs - len(training.log))
    progress = Status(total, quiet, logged=False)

    def report(entry: dict[str, float]) -> None:
        progress.clear()
        if not quiet:
            print(
                f"{title}: epoch {entry['epoch']}/{training.recipe.epochs}  "
                f"loss {entry['loss']:.4f}  validation {entry['validation_accuracy']:.4f}  "
                f"{entry['seconds']:.0f} s",
                flush=True,
            )

    try:
        return train(training, splits.__getitem__, advance=progress.advance, report=report)
    finally:
        progress.clear()


def _in_a_process(arguments: argparse.Namespace, pair: tuple[str, str]) -> int:
    """Train a pair in a process of its own: several share a GPU that one leaves idle."""
    options = {f.name: f.metadata.get("option", f.name) for f in fields(Recipe)}
    words = [sys.executable, "-m", "relprop", "train", *pair]
    for name, value in vars(arguments).items():
        if name not in NOT_OF_A_PAIR and value is not None and value is not False:
            words += [_option(options.get(name, name)), *([] if value is True else [str(value)])]
    return subprocess.run(words).returncode


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
