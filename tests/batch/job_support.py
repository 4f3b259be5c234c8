"""What tests of jobs share: small networks, a job's files, the command line as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from relprop.batch import Job, open_job

NETWORKS = '''
import functools
import os
import time

import torch
from torch import nn


class Set:
    """Twelve inputs; the sixth cannot be read."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index == 5:
            raise OSError("disk on fire")
        torch.manual_seed(index)
        return torch.randn(3, 4, 4), index % 5


class Slow:
    """Inputs that take the time that the environment says."""

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        time.sleep(float(os.environ["SECONDS_A_SAMPLE"]))
        return torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(index))


@functools.cache  # one object, so that it is captured once
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).eval()


@functools.cache
def other():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)).eval()


@functools.cache
def words():
    torch.manual_seed(0)

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 6)
            self.rnn = nn.LSTM(6, 8, batch_first=True)
            self.head = nn.Linear(8, 4)

        def forward(self, tokens):
            return self.head(self.rnn(self.embedding(tokens))[0][:, -1])

    return Words().eval()


def sentences():
    generator = torch.Generator().manual_seed(3)
    lengths = [3, 7, 2, 7, 5]
    return [torch.randint(1, 20, (n,), generator=generator) for n in lengths]


def pad(samples):
    return {
        "inputs": nn.utils.rnn.pad_sequence(samples, batch_first=True),
        "lengths": [len(sample) for sample in samples],
    }
'''
COUNT = 50
OPTIONS: dict[str, Any] = {
    "model": "networks_for_jobs:net",
    "data": "x.npy",
    "trust": True,
    "shard_size": 16,
    "batch_size": 4,
    "threads": 1,
    "quiet": True,
}


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a job but its lock, by path."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def shard_of(folder: Path, number: int, kind: str = "safetensors") -> Path:
    """The file of a shard."""
    return folder / "shards" / "0000" / f"shard-{number:06d}.{kind}"


def everything(folder: Path) -> dict[str, Any]:
    """All explanations of a job."""
    opened: Job = open_job(folder)
    return opened[:]


def command(*words: object) -> list[str]:
    """`relprop` with these words, as a command of another process."""
    return [sys.executable, "-m", "relprop", *map(str, words)]


def environment(**more: str) -> dict[str, str]:
    """The environment of another process: one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def spawn(home: Path, *words: object, **more: str) -> subprocess.Popen[str]:
    """Start `relprop` in `home`."""
    return subprocess.Popen(
        command(*words),
        cwd=home,
        env=environment(**more),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
