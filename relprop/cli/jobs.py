"""Jobs on the command line: `explain --job`, `verify`, `export`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from relprop.batch.engines import run_job
from relprop.batch.export import export_job
from relprop.batch.spec import JobSpec
from relprop.batch.verify import verify_job
from relprop.errors import InputError

__all__ = ["JOB_NOTES", "export", "require_job", "run", "verify"]

WITHOUT_JOB = ("collate", "readers", "threads")
"""What the job's group holds that `explain` heeds without `--job` too."""

JOB_NOTES = """\
jobs: --job FOLDER instead of --out explains a data set of any size into numbered files, one a shard
  Run the same command again after Ctrl-C, a crash or a full disk: it does what is missing.
  relprop explain networks:resnet18 photos/ --trust --job out/photos --reduce pool:14x14 --workers 2
  torchrun --nproc-per-node 8 -m relprop explain … --job out/photos --engine torchrun
  relprop verify out/photos; relprop export out/photos --to npz --out photos.npz
  relprop.open_job("out/photos") reads it.
"""


def require_job(arguments: argparse.Namespace) -> None:
    """Refuse options that would do nothing without `--job`.

    Raises:
        InputError: names the first of them.
    """
    for field in fields(JobSpec):
        alone = field.metadata.get("group") == "job" and field.name not in WITHOUT_JOB
        if alone and getattr(arguments, field.name) != field.default:
            option = "no-maps" if field.name == "maps" else field.name.replace("_", "-")
            raise InputError(f"--{option}: of a job alone; add --job FOLDER, or drop it")


def run(arguments: argparse.Namespace) -> int:
    """`relprop explain --job`."""
    if arguments.layers:
        raise InputError("--layers: a job keeps the relevance of the input; drop --layers or --job")
    if arguments.classes is not None:
        raise InputError("--classes: a job draws nothing that has titles; drop --classes or --job")
    return run_job(JobSpec.of(arguments))


def verify(arguments: argparse.Namespace) -> int:
    """`relprop verify`: a line for each fault; 0 if there is none, else 1."""
    verdict = verify_job(Path(arguments.job))
    for line in (*verdict.faults, *verdict.failures):
        print(line)
    if verdict.missing:
        shown = ", ".join(map(str, verdict.missing[:10]))
        more = ", …" if len(verdict.missing) > 10 else ""
        print(f"{len(verdict.missing)} shards missing: {shown}{more}")
    state = "whole" if verdict.ok else "not whole; run its command again"
    print(
        f"{arguments.job}: {verdict.shards} sound shards, {verdict.explained} explained, "
        f"{verdict.failed} failed, {len(verdict.faults)} damaged, {len(verdict.missing)} missing: "
        f"{state}"
    )
    return 0 if verdict.ok else 1


def export(arguments: argparse.Namespace) -> int:
    """`relprop export`."""
    count = export_job(
        Path(arguments.job), arguments.to, Path(arguments.out), arguments.first, arguments.limit
    )
    print(f"{arguments.out}: {count} explanations")
    return 0
