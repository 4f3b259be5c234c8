"""The commands: explain, check, info."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch

import relprop
from relprop._version import __version__
from relprop.batch.explaining import Explaining
from relprop.batch.feed import Feed
from relprop.batch.loading import Loaded, Loader, windows
from relprop.batch.outputs import SetupError, floating_dtype
from relprop.batch.preparing import opened
from relprop.batch.spec import JobSpec
from relprop.batch.status import Status
from relprop.batch.worker import located
from relprop.cli import jobs
from relprop.cli.evaluate import run_evaluate
from relprop.cli.output import Results, table
from relprop.cli.training import run_train
from relprop.errors import InputError, ModelError
from relprop.io.classes import class_names
from relprop.io.files import listed, printable
from relprop.io.opening import open_inputs, source_options
from relprop.io.sources import Item, Source

__all__ = ["COMMANDS", "check", "explain", "info"]

BATCH_SIZE = 32


def explain(arguments: argparse.Namespace) -> int:
    """`relprop explain`: 0 if every input was explained, 1 if some failed, 2 if all did."""
    if arguments.job:
        return jobs.run(arguments)
    jobs.require_job(arguments)
    classes = class_names(arguments.classes, arguments.model)
    loader, explaining = opened(JobSpec.of(arguments), layers=arguments.layers)
    started = time.monotonic()
    several, photo = arguments.top is not None, source_options(arguments).preprocess.undo
    with Results(Path(arguments.out), arguments.heatmaps, several, photo, classes) as results:
        _run(loader, explaining, arguments, results)
        results.write(arguments.method, _facts(arguments, loader.source))
    if not arguments.quiet:
        print(_report(results, arguments, loader.source, time.monotonic() - started))
    if results.failed:
        return 1 if results.explained else 2
    return 0


def check(arguments: argparse.Namespace) -> int:
    """`relprop check`: print the report on the model; 1 if an operation has no rule."""
    model, source, device = open_inputs(arguments)
    item = next((item for item in source if isinstance(item, Item)), None)
    if item is None:
        raise InputError(f"{source.title}: holds no input that can be read")
    values = item.value.unsqueeze(0).to(device)
    if values.is_floating_point():
        values = values.to(floating_dtype(model))
    report = relprop.check(model, values)
    print(report)
    if report.modules:
        print(f"modules for --layers: {printable(', '.join(report.modules), 2000)}")
    return 0 if report.ok else 1


def info(arguments: argparse.Namespace) -> int:
    """`relprop info`: print what is installed."""
    relprop.info()
    return 0


def _run(
    loader: Loader, explaining: Explaining, arguments: argparse.Namespace, results: Results
) -> None:
    total = min(len(loader.source), arguments.limit or len(loader.source))
    feed = Feed(loader, arguments.readers or 0, explaining.device.type == "cuda")
    progress = Status(total, arguments.quiet, logged=False)
    try:
        for loaded in feed(windows(0, total, arguments.batch_size or BATCH_SIZE, 0)):
            rows, failures = explaining(loaded)
            if rows is None and not results.explained and loaded.groups:
                _require_sense(explaining, loaded)
            for line in [*loaded.remarks(), *map(located, failures)]:
                progress.line(line)
            results.add(loaded, rows, failures)
            progress.advance(loaded.task.stop - loaded.task.start)
    finally:
        progress.clear()
        feed.close()


def _require_sense(explaining: Explaining, loaded: Loaded) -> None:
    """Refuse what no input would mend; a model that wants another shape may find it further on."""
    try:
        explaining.probe(loaded)
    except SetupError as error:
        if not isinstance(error.__cause__, ModelError):
            raise


def _facts(arguments: argparse.Namespace, source: Source) -> dict[str, str]:
    return {
        "model": printable(arguments.model),
        "data": source.title,
        "method_options": repr(dict(arguments.method_option)),
        "relprop": __version__,
        "torch": str(torch.__version__),
    }


def _report(results: Results, arguments: argparse.Namespace, source: Source, seconds: float) -> str:
    lines = [table(results.rows), ""] if results.explained else []
    speed = f", {results.explained / seconds:.1f}/s" if seconds > 0 else ""
    lines.append(
        f"{results.explained} explained by {arguments.method}, {results.failed} failed, "
        f"{seconds:.1f} s{speed}"
    )
    if results.labelled:
        share = results.correct / results.labelled
        lines.append(f"{share:.1%} of {results.labelled} labelled inputs predicted correctly")
    if source.passed:
        lines.append(f"no images, passed over: {listed(source.passed)}")
    files = ["summary.csv", *["relevance.safetensors"] * bool(results.explained)]
    if results.drawn:
        files += [f"{results.drawn} in heatmaps{os.sep}", results.sheet]
    lines.append(f"{arguments.out}: {', '.join(files)}")
    return "\n".join(lines)


COMMANDS = {
    "explain": explain,
    "check": check,
    "train": run_train,
    "evaluate": run_evaluate,
    "verify": jobs.verify,
    "export": jobs.export,
    "info": info,
}
