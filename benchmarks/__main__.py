"""The benchmark suite: cells are checked, timed in turn, and recorded one by one.

    python -m benchmarks                            the quick suite, printed
    python -m benchmarks --suite full --record      everything, into benchmarks/records
    python -m benchmarks --only resnet50 --list     names of cells
    python -m benchmarks --base v0.1                against another version of this project

With --record a cell that the record has of this commit, machine and number of threads is not
measured again (--again measures it, --keep HOURS also trusts other commits for so long), so that a
run that was ended goes on where it stopped; --budget SECONDS ends one in time.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["main"]

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler that weighs memory is talkative


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; 1 if a variant of this library was wrong or failed."""
    options = _parser().parse_args(argv)
    from benchmarks import suites

    command = " ".join(["python -m benchmarks", *(sys.argv[1:] if argv is None else argv)])
    cells = suites.chosen(suites.every(options.device, options.triton), options.suite, options.only)
    if options.list:
        print("\n".join(cell.name for cell in cells))
        return 0
    if options.base:
        from benchmarks.against import compare

        return compare(options.base, cells, options.device, options.budget)
    return _measured(cells, command, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--suite", choices=("quick", "window", "full"), default="quick")
    parser.add_argument("--only", nargs="+", default=[], help="cells whose name holds one of these")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--triton", action="store_true", help="also with backend='triton'")
    parser.add_argument("--list", action="store_true", help="print the cells' names alone")
    parser.add_argument("--base", default="", metavar="REF", help="compare with that git revision")
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS")
    parser.add_argument("--record", action="store_true", help="write benchmarks/records/*.csv")
    parser.add_argument("--records", type=Path, help="write into this folder instead")
    parser.add_argument("--again", action="store_true", help="also what the record has already")
    parser.add_argument("--keep", type=float, default=0.0, metavar="HOURS")
    return parser


def _measured(cells: Sequence[Any], command: str, options: argparse.Namespace) -> int:
    from benchmarks.cells import measure
    from benchmarks.recording import RECORDS, fresh, merge
    from benchmarks.suites import record_of
    from benchmarks.tables import printed

    folder = options.records or (RECORDS if options.record else None)
    began, bad, left = time.monotonic(), 0, 0
    done: dict[str, set[str]] = {}
    for cell in cells:
        path = None if folder is None else record_of(cell.level, options.device, folder)
        if path is not None and not options.again:
            if cell.level not in done:
                done[cell.level] = fresh(path, options.device, options.keep)
            if cell.name in done[cell.level]:
                continue
        if time.monotonic() - began > options.budget:
            left += 1
            continue
        start = time.monotonic()
        rows = measure(cell, command, options.device)
        bad += sum(row["library"].startswith("relprop") and row["status"] != "ok" for row in rows)
        if path is not None:
            merge(path, cell.name, rows)
        print(f"\n{cell.name}  ({time.monotonic() - start:.0f} s)\n{printed(rows)}", flush=True)
        gc.collect()
    if left:
        print(f"\n{left} cells left when the budget was spent: run the same command again")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
