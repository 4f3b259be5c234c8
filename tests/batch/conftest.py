"""Fixtures of tests of jobs: a small network that is quick to capture, data, a job in-process."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relprop.batch import JobSpec, run_job

sys.path.insert(0, str(Path(__file__).parent))

from job_support import COUNT, NETWORKS, OPTIONS

Runs = Callable[..., tuple[int, Path]]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job that is done, made once."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        _furnish(folder, patch)
        assert run_job(JobSpec(job=str(folder / "job"), **OPTIONS)) == 0
    return folder / "job"


@pytest.fixture
def folder(finished: Path, home: Path) -> Path:
    """A copy of a finished job, `job` in the current folder."""
    return Path(shutil.copytree(finished, home / "job"))


def _furnish(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "networks_for_jobs.py").write_text(NETWORKS)
    x = np.random.default_rng(0).normal(size=(COUNT, 3, 4, 4)).astype(np.float32)
    np.save(folder / "x.npy", x)
    patch.chdir(folder)
    patch.syspath_prepend(folder)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `networks_for_jobs.py` and `x.npy`: fifty inputs; the current one."""
    _furnish(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def job(home: Path) -> Iterator[Runs]:
    """Runs a job of the small network in this process; gives its exit status and its folder."""
    threads = torch.get_num_threads()

    def run(name: str = "job", **options: Any) -> tuple[int, Path]:
        return run_job(JobSpec(**{**OPTIONS, "job": str(home / name), **options})), home / name

    yield run
    torch.set_num_threads(threads)
