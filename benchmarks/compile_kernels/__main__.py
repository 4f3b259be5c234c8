"""Compile every kernel at its production tiles without a GPU, and write what the compiler used.

    python -m benchmarks.compile_kernels            # writes benchmarks/records/kernels-triton-*.md
    python -m benchmarks.compile_kernels --check    # writes nothing
    python -m benchmarks.compile_kernels --gate     # a few cases, against the record (make compile)
    python -m benchmarks.compile_kernels --part 0/4 --save a.json    # a share of the cases; then
    python -m benchmarks.compile_kernels --join a.json b.json …      # the record of all shares

The exit status is 1 if a kernel does not compile, spills (with --gate: more than the record says),
serialises its tensor-core products (ptxas advisory C7515) or needs more shared memory than a
program may have.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from benchmarks.compile_kernels import gate, layers, others, recurrent, units
from benchmarks.compile_kernels.builds import TARGETS, Build, described, recorded_spills, table
from benchmarks.compile_kernels.recorder import recording
from relprop.atomic import replacing

RECORDS = Path(__file__).resolve().parent.parent / "records"


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def work() -> list[tuple[str, Callable[[], object]]]:
    """Name and call of every case."""
    return layers.cases() + others.cases() + recurrent.cases() + units.cases()


def joined(paths: list[Path]) -> list[Build]:
    """Builds saved in parts, in the order in which one process makes them."""
    builds = [Build(**row) for path in paths for row in json.loads(path.read_text())]
    places = {name: number for number, (name, _) in enumerate(work())}
    return sorted(builds, key=lambda b: (list(TARGETS).index(b.target), places[b.case]))


def compiled(target: str, wanted: Callable[[int, str], bool]) -> list[Build]:
    """The builds of the cases whose number and name are wanted."""
    with recording(target) as recorder:
        for number, (name, run) in enumerate(work()):
            if not wanted(number, name):
                continue
            recorder.case = name
            try:
                run()
            except Exception as error:  # whatever the compiler raises
                what = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
                failed = Build(name, "?", target, "?", None, None, 0, "-", False, what)
                recorder.builds.append(failed)
    return recorder.builds


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="compile the cases whose name contains this")
    parser.add_argument("--target", choices=list(TARGETS), action="append")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--gate", action="store_true", help="the gate's cases, against the record")
    parser.add_argument("--part", default="0/1", help="K/N: every N-th case from the K-th on")
    parser.add_argument("--save", type=Path, help="write the builds to a file, and no record")
    parser.add_argument(
        "--join", type=Path, nargs="+", help="files of builds, instead of compiling"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Compile, write the record, name the faults."""
    import triton

    options = parsed(arguments)
    first, _, count = options.part.partition("/")

    def wanted(number: int, name: str) -> bool:
        own = number % int(count) == int(first) and options.only in name
        return own and (not options.gate or name in gate.CASES)

    builds: list[Build] = []
    if options.join:
        builds = joined(options.join)
    else:
        for target in options.target or TARGETS:
            builds += compiled(target, wanted)
    seen = list(dict.fromkeys(builds))
    cases = len({name for name, _ in work()})
    record = RECORDS / f"kernels-triton-{triton.__version__}.md"
    partial = options.only or options.target or options.part != "0/1"
    if options.save is not None:
        write(options.save, json.dumps([asdict(build) for build in seen]))
    elif options.check or options.gate or (partial and not options.join):
        print(table(seen, triton.__version__, cases))
    else:
        write(record, table(seen, triton.__version__, cases))
    known = {}
    if options.gate and record.exists():
        known = recorded_spills(record.read_text(encoding="utf-8").splitlines())
    faults = gate.regressions(seen, known)
    for build, found in faults:
        print(described(build, found))
    print(f"Triton {triton.__version__}: {len(seen)} builds, {len(faults)} with faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
