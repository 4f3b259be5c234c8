"""Test runs in forked children: torch is imported once, the package anew in every child.

A baseline run finds which tests pass through which function and how long each takes; a mutant then
meets only the tests of its function.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import gc
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest

from .mutants import Mutant, compiled, instrumented


@dataclass(frozen=True)
class Project:
    """What to break and what must notice.

    Attributes:
        root: folder of the sources and of pyproject.toml.
        sources: files to mutate, relative to it, by label.
        tests: test files, relative to it.
        direct: those among them whose every test meets a mutant before all others.
        preload: modules that children need not import; none of them may import a source.
    """

    root: Path
    sources: Mapping[str, str]
    tests: Sequence[str]
    direct: Sequence[str] = ()
    preload: Sequence[str] = ()


@dataclass(frozen=True)
class Baseline:
    """The tests without a fault.

    Attributes:
        seconds: how long each test takes, by its id.
        passes: ids of the tests that pass through a function, by (label, qualified name).
        failed: ids of tests that fail.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    passes: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: `killed`, `timeout` or `survived`; which test noticed; seconds."""

    mutant: Mutant
    state: str
    test: str
    seconds: float


class _Finder(importlib.abc.MetaPathFinder):
    """Gives a module other code than its file holds."""

    def __init__(self, project: Project, label: str, make: Callable[[str, Path], CodeType]) -> None:
        path = project.sources[label]
        self.name = ".".join(Path(path).with_suffix("").parts)
        self.path = project.root / path
        self.code = make(self.path.read_text(encoding="utf-8"), self.path)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        loader = _Loader(fullname, str(self.path))
        loader.code = self.code
        return importlib.util.spec_from_file_location(fullname, self.path, loader=loader)


class _Loader(importlib.machinery.SourceFileLoader):
    code: CodeType

    def get_code(self, fullname: str) -> CodeType:
        return self.code


class _Recorder:
    """Pytest plugin: time and functions of every test."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.passes: dict[str, list[tuple[str, str]]] = {}
        self.failed: list[str] = []
        self._seen: set[tuple[str, str]] = set()

    def __call__(self, label: str, scope: str) -> None:
        """A function of the sources has been entered."""
        self._seen.add((label, scope))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._seen = set()
        start = time.perf_counter()
        yield
        self.seconds[item.nodeid] = time.perf_counter() - start
        self.passes[item.nodeid] = sorted(self._seen)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


class _Chosen:
    """Pytest plugin: runs these tests in this order, and notes the first that fails."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.order = {name: i for i, name in enumerate(tests)}
        self.noticed = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self.order),
            key=lambda item: self.order[item.nodeid],
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.noticed:
            self.noticed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.noticed:
            self.noticed = f"{report.nodeid} (import)"


Job = Callable[[], Any]


class _Children:
    """Jobs in forked children, several at once, each with a time limit.

    A job's result comes back as JSON; None where it ran out of time or crashed.
    """

    def __init__(self, folder: Path, at_once: int) -> None:
        self.folder, self.at_once = folder, at_once

    def run(self, jobs: Sequence[tuple[Job, float]]) -> Iterator[tuple[int, str, Any, float]]:
        """(number of the job, "done", "timeout" or "crashed", its result, seconds), as they end."""
        waiting = list(enumerate(jobs))[::-1]
        live: dict[int, tuple[int, float, float]] = {}
        while waiting or live:
            while waiting and len(live) < self.at_once:
                number, (job, limit) = waiting.pop()
                live[self._start(number, job)] = number, time.monotonic(), limit
            time.sleep(0.02)
            for pid in list(live):
                number, since, limit = live[pid]
                seconds = time.monotonic() - since
                ended = os.waitpid(pid, os.WNOHANG)[0] != 0
                if not ended and seconds < limit:
                    continue
                if not ended:
                    os.killpg(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                del live[pid]
                result = self._result(number)
                state = "timeout" if not ended else "crashed" if result is None else "done"
                yield number, state, result, seconds

    def _start(self, number: int, job: Job) -> int:
        result = self.folder / f"{number}.json"
        result.unlink(missing_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)
            return pid
        try:
            os.setpgid(0, 0)
            quiet = os.open(self.folder / f"{number}.log", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            text = json.dumps(job())
            unfinished = result.with_suffix(".part")
            unfinished.write_text(text)
            unfinished.rename(result)
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)

    def _result(self, number: int) -> Any:
        result = self.folder / f"{number}.json"
        return json.loads(result.read_text()) if result.exists() else None

    def log(self, number: int) -> str:
        """The last lines that a job wrote."""
        return (self.folder / f"{number}.log").read_text(errors="replace")[-2000:]


def preload(project: Project) -> None:
    """Import what every child would import, but nothing of the sources; one thread from here on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in project.preload:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    gc.collect()
    gc.freeze()  # so that collections in children leave the pages shared


def _pytest(project: Project, files: Iterable[str], plugin: Any, *options: str) -> int:
    os.chdir(project.root)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    # the second of these would walk through all that torch has made, twice a run
    without = ["-p", "no:cacheprovider", "-p", "no:unraisableexception"]
    where = [f"--rootdir={project.root}", "--import-mode=importlib"]
    return int(pytest.main([*files, "-q", *without, *where, *options], plugins=[plugin]))


def baseline(project: Project, at_once: int, limit: float = 600.0) -> Baseline:
    """Run all tests once, a child for each file."""
    found = Baseline()

    def job(test: str) -> Job:
        def run() -> Any:
            recorder = _Recorder()
            builtins.__dict__["__passed__"] = recorder
            for label in project.sources:
                marked = _Finder(project, label, functools.partial(instrumented, label))
                sys.meta_path.insert(0, marked)
            _pytest(project, [test], recorder)
            return recorder.seconds, recorder.passes, recorder.failed

        return run

    with tempfile.TemporaryDirectory() as folder:
        children = _Children(Path(folder), at_once)
        for number, state, result, _ in children.run([(job(t), limit) for t in project.tests]):
            if state != "done":
                found.failed.append(f"{project.tests[number]} ({state}) {children.log(number)}")
                continue
            seconds, passes, failed = result
            found.seconds.update(seconds)
            found.failed.extend(failed)
            for test, functions in passes.items():
                for label, scope in functions:
                    found.passes[label, scope].add(test)
    return found


def tests_of(project: Project, mutant: Mutant, known: Baseline, share: float) -> list[str]:
    """The tests that pass through the mutant's function, up to a share of the time of all tests.

    The direct ones come first, then those of the file named after the mutant's, then one case of
    each test function, then the quick ones.  The time is the baseline's own, so that a slow or busy
    machine runs about the same tests.  What is not in a function concerns all tests of the file.
    """
    own_file = f"test_{Path(project.sources[mutant.label]).stem}"

    def is_direct(test: str) -> bool:
        return test.split("::")[0] in project.direct

    tests = known.passes.get((mutant.label, mutant.scope), set())
    if not tests:
        own = [k for k in known.passes if k[0] == mutant.label]
        inner = [k for k in own if k[1].startswith(f"{mutant.scope}.")]
        tests = {test for key in inner or own for test in known.passes[key]}
    cases: dict[str, list[str]] = defaultdict(list)
    for test in sorted(tests, key=lambda t: hashlib.sha256(t.encode()).digest()):
        cases[test if is_direct(test) else test.split("[")[0]].append(test)
    first = {each[0] for each in cases.values()}
    budget = share * sum(known.seconds.values())
    picked: list[str] = []
    total = 0.0

    def rank(test: str) -> tuple[bool, bool, bool, float]:
        elsewhere = Path(test.split("::")[0]).stem != own_file
        return not is_direct(test), elsewhere, test not in first, known.seconds[test]

    for test in sorted(tests, key=rank):
        if picked and total + known.seconds[test] > budget:
            continue
        picked.append(test)
        total += known.seconds[test]
    return picked


def outcomes(
    project: Project, mutants: Sequence[Mutant], known: Baseline, at_once: int, share: float
) -> Iterator[Outcome]:
    """What becomes of each mutant, in the order in which they end."""
    plans = [tests_of(project, mutant, known, share) for mutant in mutants]
    jobs = []
    for mutant, tests in zip(mutants, plans, strict=True):
        expected = sum(known.seconds[test] for test in tests)
        jobs.append((_mutant_job(project, mutant, tests), 60.0 + 5 * expected))
    with tempfile.TemporaryDirectory() as folder:
        children = _Children(Path(folder), at_once)
        for number, state, result, seconds in children.run(jobs):
            mutant = mutants[number]
            if state == "timeout":
                yield Outcome(mutant, "timeout", "", seconds)
                continue
            if state == "crashed":
                raise RuntimeError(f"{mutant.shown}: the child crashed\n{children.log(number)}")
            status, noticed = result
            if status not in (0, 1, 2, 5):
                raise RuntimeError(f"{mutant.shown}: pytest ended with {status}")
            yield Outcome(mutant, "survived" if status in (0, 5) else "killed", noticed, seconds)


def _mutant_job(project: Project, mutant: Mutant, tests: Sequence[str]) -> Job:
    def run() -> Any:
        if not tests:
            return 5, ""
        broken = _Finder(project, mutant.label, functools.partial(compiled, mutant))
        sys.meta_path.insert(0, broken)
        plugin = _Chosen(tests)
        files = sorted({test.split("::")[0] for test in tests})
        return _pytest(project, files, plugin, "-x", "--tb=no", "--no-header"), plugin.noticed

    return run
