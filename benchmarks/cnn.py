"""Whole CNNs on this machine: explanations per second, ratio to the plain gradient, peak memory.

python -m benchmarks.cnn                     VGG-16 and ResNet-50, batch 4, 224 x 224, float32
python -m benchmarks.cnn --models vgg16 --methods epsilon_plus --size 96 --record out/cnn.csv
python -m benchmarks.cnn --device cuda --batch 64 --precision high --triton

On CUDA everyone's float32 products are IEEE at precision "highest" and may be TF32 otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cells import Cell, measure
from benchmarks.models import FIRST, cells
from benchmarks.recording import FIELDS, write_record
from benchmarks.tables import printed

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the record if asked; 1 if anything of relprop's was not right."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cnn", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["vgg16", "resnet50"])
    parser.add_argument("--methods", nargs="+", default=list(FIRST))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="highest")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--triton", action="store_true", help="also with backend='triton'")
    parser.add_argument("--record", type=Path, help="CSV file to write")
    arguments = parser.parse_args(argv)
    reduced = arguments.precision != "highest"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = reduced
    command = " ".join(["python -m benchmarks.cnn", *(sys.argv[1:] if argv is None else argv)])
    rows: list[dict[str, Any]] = []
    for cell in _chosen(arguments):
        rows += measure(cell, command, arguments.device)
        if arguments.record is not None:
            kept = [{key: row.get(key, "") for key in FIELDS} for row in rows]
            write_record(arguments.record, kept)
    print(printed(rows))
    if arguments.record is not None:
        print(f"wrote {arguments.record}")
    own = [row for row in rows if row["library"].startswith("relprop")]
    return int(any(row["status"] != "ok" for row in own))


def _chosen(arguments: argparse.Namespace) -> list[Cell]:
    made = cells(
        arguments.device,
        arguments.batch,
        arguments.size,
        arguments.precision,
        arguments.triton,
        arguments.rounds,
        networks=arguments.models,
        methods=arguments.methods,
    )
    wanted = [cell for cell in made if cell.columns["workload"] in arguments.models]
    return [cell for cell in wanted if cell.columns["method"] in arguments.methods]


if __name__ == "__main__":
    raise SystemExit(main())
