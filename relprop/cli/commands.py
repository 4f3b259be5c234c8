"""The commands: explain, check, info."""

from __future__ import annotations

import argparse
import os
import time
from itertools import islice
from pathlib import Path

import torch

import relprop
from relprop._version import __version__
from relprop.cli import jobs
from relprop.cli.files import printable
from relprop.cli.job import Job, batches
from relprop.cli.opening import method_options, open_inputs, output_key
from relprop.cli.output import Results, table
from relprop.cli.outputs import floating_dtype
from relprop.cli.progress import Progress
from relprop.cli.sources import Failed, Item, Source
from relprop.errors import InputError

__all__ = ["check", "explain", "info"]

BATCH_SIZE = 32


def explain(arguments: argparse.Namespace) -> int:
    """`relprop explain`: 0 if every input was explained, 1 if some failed, 2 if all did."""
    if arguments.job:
        return jobs.run(arguments)
    model, source, device = open_inputs(arguments)
    output = output_key(arguments.output)
    explainer = relprop.Explainer(
        model,
        arguments.method,
        method_options=method_options(arguments.method_option),
        layers=arguments.layers,
        output=output,
        backend=arguments.backend,
        precision=arguments.precision,
        frozen=True,
    )
    job = Job(model, explainer, arguments.target, device, output)
    started = time.monotonic()
    with Results(Path(arguments.out), arguments.heatmaps) as results:
        _run(job, source, arguments, results)
        results.write(arguments.method, _facts(arguments, source))
    if not arguments.quiet:
        print(_report(results, arguments, time.monotonic() - started))
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


def _run(job: Job, source: Source, arguments: argparse.Namespace, results: Results) -> None:
    total = min(len(source), arguments.limit or len(source))
    progress = Progress(total, arguments.quiet)
    try:
        for batch in batches(islice(source, total), arguments.batch_size or BATCH_SIZE):
            for result in [batch] if isinstance(batch, Failed) else job.run(batch):
                if isinstance(result, Failed):
                    results.fail(result)
                    progress.write(f"relprop: {_located(result)}")
                else:
                    results.add(result)
                progress.advance(1)
    finally:
        progress.clear()


def _located(failed: Failed) -> str:
    inside = failed.name in failed.reason
    return failed.reason if inside else f"{failed.name}: {failed.reason}"


def _facts(arguments: argparse.Namespace, source: Source) -> dict[str, str]:
    return {
        "model": printable(arguments.model),
        "data": source.title,
        "method_options": repr(dict(arguments.method_option)),
        "relprop": __version__,
        "torch": str(torch.__version__),
    }


def _report(results: Results, arguments: argparse.Namespace, seconds: float) -> str:
    lines = [table(results.rows), ""] if results.explained else []
    speed = f", {results.explained / seconds:.1f}/s" if seconds > 0 else ""
    lines.append(
        f"{results.explained} explained by {arguments.method}, {len(results.failed)} failed, "
        f"{seconds:.1f} s{speed}"
    )
    if results.labelled:
        share = results.correct / results.labelled
        lines.append(f"{share:.1%} of {results.labelled} labelled inputs predicted correctly")
    files = ["summary.csv", *["relevance.safetensors"] * bool(results.explained)]
    if results.drawn:
        files.append(f"{results.drawn} in heatmaps{os.sep}")
    lines.append(f"{arguments.out}: {', '.join(files)}")
    return "\n".join(lines)
