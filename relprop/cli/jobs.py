"""Jobs on the command line: `explain --job`, `verify`, `export`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from relprop.batch.export import WRITERS
from relprop.batch.options import ENGINES, FORMATS, SHARD_SIZE, STORED
from relprop.errors import InputError

__all__ = [
    "JOB_NOTES",
    "add_job_commands",
    "add_job_options",
    "export",
    "require_job",
    "run",
    "verify",
]

JOB_ALONE = (
    "shard_size", "format", "dtype", "reduce", "summary", "maps", "engine", "workers", "quick",
    "accept_versions",
)  # fmt: skip
"""Options of `explain` that mean nothing without `--job`."""

JOB_NOTES = """\
jobs: --job FOLDER instead of --out explains a data set of any size into numbered files, one a shard
  Run the same command again after Ctrl-C, a crash or a full disk: it does what is missing.
  relprop explain networks:resnet18 photos/ --trust --job out/photos --reduce pool:14x14 --workers 2
  torchrun --nproc-per-node 8 -m relprop explain … --job out/photos --engine torchrun
  relprop verify out/photos; relprop export out/photos --to npz --out photos.npz
  relprop.open_job("out/photos") reads it.
"""


def add_job_options(
    command: argparse.ArgumentParser, count: Callable[[str], int], zero: Callable[[str], int]
) -> None:
    """The options of `relprop explain` that concern jobs.

    Args:
        command: `relprop explain`.
        count, zero: parse a whole number above 0, or not below 0.
    """
    group = command.add_argument_group("job")
    add: Any = group.add_argument
    add("--job", metavar="FOLDER", help="explain into shards in this folder, resumable")
    add("--shard-size", type=count, default=SHARD_SIZE, metavar="N", help="samples (%(default)s)")
    add("--format", default="safetensors", choices=FORMATS, help="of shards (%(default)s)")
    add("--dtype", default="float32", choices=STORED, help="(%(default)s)")
    add(
        "--reduce",
        metavar="CHAIN",
        help="store less of a map: pool:14x14 (sums of cells), channel-sum, topk:K, or a chain "
        "such as channel-sum,topk:100",
    )
    add(
        "--summary",
        type=lambda text: tuple(part.strip() for part in text.split(",")),
        default=(),
        metavar="KIND[,KIND]",
        help="sum up while streaming: channel, class, time",
    )
    add("--no-maps", dest="maps", action="store_false", help="keep summaries, not maps")
    add("--engine", default="local", choices=ENGINES, help="(%(default)s)")
    add("--workers", type=count, default=1, metavar="N", help="processes that explain")
    add("--readers", type=zero, metavar="N", help="processes that read, for each; 0: none")
    add("--threads", type=count, metavar="N", help="of one worker on a CPU")
    add("--collate", metavar="MODULE:NAME", help="makes a list of samples the model's inputs")
    add("--quick", action="store_true", help="on a rerun check sizes, not checksums")
    add("--accept-versions", action="store_true", help="go on with what other versions began")


def add_job_commands(commands: Any, style: dict[str, Any], count: Callable[[str], int]) -> None:
    """`relprop verify` and `relprop export`."""
    command = commands.add_parser(
        "verify",
        help="check a job's files: every sample once, every checksum right",
        description="Read all of a job and check counts, duplicates and checksums.",
        epilog="exit status  0 whole   1 something is missing, damaged or failed   2 no job there",
        **style,
    )
    command.add_argument("job", metavar="FOLDER")
    command.add_argument("--debug", action="store_true", help="show a stack trace on an error")
    command = commands.add_parser(
        "export",
        help="write a job's explanations as .npz, Parquet or PNG heatmaps",
        description="Write a job's explanations into one .npz or Parquet file, or PNG heatmaps.",
        **style,
    )
    command.add_argument("job", metavar="FOLDER")
    command.add_argument("--to", required=True, choices=tuple(WRITERS))
    command.add_argument("--out", required=True, metavar="PATH", help="a file; a folder for png")
    command.add_argument("--first", type=int, default=0, metavar="N", help="(%(default)s)")
    command.add_argument("--limit", type=count, metavar="N", help="at most N explanations")
    command.add_argument("--debug", action="store_true", help="show a stack trace on an error")


def require_job(arguments: argparse.Namespace) -> None:
    """Refuse options that would do nothing without `--job`.

    Raises:
        InputError: names the first of them.
    """
    from relprop.batch.spec import JobSpec

    for field in fields(JobSpec):
        if field.name in JOB_ALONE and getattr(arguments, field.name) != field.default:
            option = "no-maps" if field.name == "maps" else field.name.replace("_", "-")
            raise InputError(f"--{option}: of a job alone; add --job FOLDER, or drop it")


def run(arguments: argparse.Namespace) -> int:
    """`relprop explain --job`."""
    from relprop.batch.engines import run_job
    from relprop.batch.spec import JobSpec

    if arguments.layers:
        raise InputError("--layers: a job keeps the relevance of the input; drop --layers or --job")
    return run_job(JobSpec.of(arguments))


def verify(arguments: argparse.Namespace) -> int:
    """`relprop verify`: a line for each fault; 0 if there is none, else 1."""
    from relprop.batch.verify import verify_job

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
    from relprop.batch.export import export_job

    count = export_job(
        Path(arguments.job), arguments.to, Path(arguments.out), arguments.first, arguments.limit
    )
    print(f"{arguments.out}: {count} explanations")
    return 0
