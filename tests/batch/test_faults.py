"""What may go wrong around a job: kills, signals, disks, two of them at once, hostile folders."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from job_support import COUNT, everything, files_of, shard_of, spawn

import relprop
import relprop.engine.run
from relprop.batch import verify_job
from relprop.batch.locks import JobLock
from relprop.batch.manifest import read_manifest
from relprop.batch.worker import Worker
from relprop.errors import FileFormatError, RelpropError

Runs = Callable[..., tuple[int, Path]]
WORDS = (
    "explain", "networks_for_jobs:net", "x.npy", "--trust", "--shard-size", 4, "--batch-size", 2,
    "--threads", 1,
)  # fmt: skip


@pytest.fixture
def slow_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is too quick to be interrupted."""
    original = Worker._settle

    def settle(worker: Worker, sink: Any) -> None:
        time.sleep(0.05)
        original(worker, sink)

    monkeypatch.setattr(Worker, "_settle", settle)


class TestDisk:
    def test_a_file_that_may_not_grow(self, job: Runs, capsys: pytest.CaptureFixture[str]) -> None:
        """The limit on a file's size stands for a full disk; three shards in a row end the job."""
        _, whole = job("whole", shard_size=10)
        capsys.readouterr()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
        try:
            with pytest.raises(RelpropError, match="3 shards in a row could not be written"):
                job(shard_size=10)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        lines = capsys.readouterr().err.splitlines()
        assert [line.endswith("cannot be written: no space left") for line in lines] == [True] * 3
        status, folder = job(shard_size=10)
        assert status == 0 and files_of(folder) == files_of(whole)

    def test_one_shard_that_cannot_be_written_leaves_the_rest(
        self, job: Runs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _, whole = job("whole")
        folder = shard_of(whole, 1).parents[2].with_name("job")
        blocked = shard_of(folder, 1)
        blocked.mkdir(parents=True)  # a folder stands where the file should go
        (blocked / "x").touch()
        status, folder = job()
        assert status == 1
        lines = capsys.readouterr().err.splitlines()
        assert all("shard-000001.safetensors" in line for line in lines) and lines
        assert [shard_of(folder, i).is_file() for i in range(4)] == [True, False, True, True]
        assert not verify_job(folder).ok
        shutil.rmtree(blocked)
        assert job()[0] == 0 and files_of(folder) == files_of(whole)

    def test_the_folder_vanishes(self, job: Runs, home: Path, slow_writes: None) -> None:
        folder = home / "job"

        def remove() -> None:
            while not shard_of(folder, 1).exists():
                time.sleep(0.005)
            folder.rename(home / "elsewhere")

        thread = threading.Thread(target=remove)
        thread.start()
        with pytest.raises(RelpropError, match="has vanished while the job ran"):
            job(shard_size=4)
        thread.join()
        assert not list(folder.rglob("*.safetensors"))
        assert job(shard_size=4)[0] == 0 and verify_job(folder).ok

    def test_a_folder_that_cannot_be_made(self, job: Runs) -> None:
        with pytest.raises(FileFormatError, match="cannot be made"):
            job("x.npy/inside")


class TestMemory:
    """A device whose memory holds so many samples and no more."""

    @staticmethod
    def limit(monkeypatch: pytest.MonkeyPatch, most: int, spoiled: float | None = None) -> None:
        forward = relprop.engine.run.forward

        def limited(plan: Any, engine: Any, model: Any, values: Any, **options: Any) -> Any:
            (x,) = values.values()
            if len(x) > most or (spoiled is not None and bool((x == spoiled).any())):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(plan, engine, model, values, **options)

        monkeypatch.setattr("relprop.engine.run.forward", limited)

    def test_a_batch_is_halved_and_no_sample_lost(
        self, job: Runs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, whole = job("whole", batch_size=2)
        self.limit(monkeypatch, 2)
        status, folder = job(batch_size=8)
        assert status == 0 and read_manifest(folder).batch_size == 8
        expected, found = everything(whole), everything(folder)
        assert found["index"].tolist() == list(range(COUNT))
        assert found["target"].tolist() == expected["target"].tolist()
        torch.testing.assert_close(found["relevance"], expected["relevance"], rtol=1e-5, atol=1e-7)

    def test_a_sample_that_never_fits_fails_alone(
        self, job: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        x = np.load("x.npy")
        x[7, 0, 0, 0] = 77.0
        np.save("x.npy", x)
        self.limit(monkeypatch, COUNT, 77.0)
        status, folder = job()
        assert status == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line == "relprop: x-00007: out of memory; try a smaller input"
        assert everything(folder)["index"].tolist() == [i for i in range(COUNT) if i != 7]


def test_a_first_sample_that_is_no_number(job: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    """It costs only itself, also where the batch size is looked for with it."""
    x = np.load("x.npy")
    x[0] = np.nan
    np.save("x.npy", x)
    status, folder = job(batch_size=None)
    (line,) = capsys.readouterr().err.splitlines()
    assert status == 1 and "x-00000" in line and "NaN" in line
    assert everything(folder)["index"].tolist() == list(range(1, COUNT))


class TestSignals:
    def test_stops_after_the_batch_and_goes_on_later(
        self, job: Runs, home: Path, slow_writes: None
    ) -> None:
        _, whole = job("whole", shard_size=4)
        folder = home / "job"

        def interrupt() -> None:
            while not shard_of(folder, 2).exists():
                time.sleep(0.005)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        status, _ = job(shard_size=4)
        thread.join()
        assert status == 130
        done = len(relprop.open_job(folder))
        assert 12 <= done < 50 and done % 4 == 0
        assert json.loads((folder / "manifest.json").read_text())["shards"]
        assert job(shard_size=4)[0] == 0 and files_of(folder) == files_of(whole)


class TestTwoAtOnce:
    def test_the_second_says_so(self, home: Path) -> None:
        """The first is at work for as long as the second needs; then it is killed and goes on."""
        words = ("explain", "networks_for_jobs:net", "networks_for_jobs:Slow", "--trust")
        words += ("--limit", "8", "--shard-size", "4", "--batch-size", "2", "--job", "job")
        first = spawn(home, *words, SECONDS_A_SAMPLE="1000")
        holder = home / "job" / "lock"
        while not holder.exists() or not holder.read_bytes():
            time.sleep(0.01)
        second = spawn(home, *words, SECONDS_A_SAMPLE="0")
        _, said = second.communicate(timeout=200)
        assert second.returncode == 2 and first.poll() is None
        (line,) = said.splitlines()
        assert "another process works on this job" in line and f"process {first.pid}" in line
        first.kill()
        first.communicate(timeout=60)
        third = spawn(home, *words, SECONDS_A_SAMPLE="0")
        third.communicate(timeout=200)
        assert third.returncode == 0 and verify_job(home / "job").ok

    def test_ranks_share_and_know_their_own(self, home: Path) -> None:
        """This process stands for rank 0 at work: no other may, and rank 1 does it all."""
        (home / "job").mkdir()
        lock = JobLock(home / "job")
        lock.take_rank(0)
        words = (*WORDS, "--job", "job", "--engine", "torchrun")
        twin, other = [spawn(home, *words, RANK=rank, WORLD_SIZE="2") for rank in "01"]
        _, said = twin.communicate(timeout=200)
        other.communicate(timeout=200)
        lock.close()
        assert twin.returncode == 2 and "works on this job as rank 0" in said
        assert other.returncode == 0
        verdict = verify_job(home / "job")
        assert verdict.ok and len(read_manifest(home / "job").shards) == 13


class TestHostileFolders:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("samples", 10**30),
            ("samples", -1),
            ("shard_size", 0),
            ("batch_size", "4"),
            ("batch_size", True),
            ("version", 99),
            ("format", "pickle"),
            ("identity", []),
            ("id", "0"),
            ("shards", 3),
        ],
    )
    def test_a_manifest_that_lies(self, job: Runs, folder: Path, key: str, value: object) -> None:
        words = json.loads((folder / "manifest.json").read_text())
        words[key] = value
        (folder / "manifest.json").write_text(json.dumps(words))
        for attempt in (relprop.open_job, verify_job):
            with pytest.raises(FileFormatError, match=r"manifest\.json: damaged"):
                attempt(folder)
        with pytest.raises(FileFormatError, match=r"manifest\.json: damaged"):
            job()

    @pytest.mark.parametrize(
        "name", ["../../secret", "/etc/passwd", "shards/0000/shard-000001.safetensors"]
    )
    def test_names_in_a_manifest_are_not_followed(self, folder: Path, name: str) -> None:
        words = json.loads((folder / "manifest.json").read_text())
        words["shards"][0]["file"] = name
        (folder / "manifest.json").write_text(json.dumps(words))
        with pytest.raises(FileFormatError, match="shard 0 in a file"):
            relprop.open_job(folder)

    @pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\0", '{"format": 1}', "null"])
    def test_not_a_manifest(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(FileFormatError, match=r"manifest\.json"):
            relprop.open_job(tmp_path)

    @pytest.mark.parametrize(
        "entry",
        [
            {"shape": [2**40, 2**40]},
            {"shape": [-1, 3]},
            {"dtype": "OBJ"},
            {"data_offsets": [0, 2**60]},
            {"data_offsets": [16, 3088]},
            {"shape": ["3"]},
        ],
    )
    def test_a_shard_whose_header_lies(self, folder: Path, entry: dict[str, Any]) -> None:
        path = shard_of(folder, 0)
        data = bytearray(path.read_bytes())
        header = json.loads(data[8:4096])
        header["relevance"].update(entry)
        data[8:4096] = json.dumps(header).encode().ljust(4088)
        path.write_bytes(data)
        (fault,) = verify_job(folder).faults
        assert "not a whole shard" in fault

    @pytest.mark.parametrize("data", [b"", b"\x80\x04.", b"\xff" * 5000, bytes(4096)])
    def test_not_a_shard(self, folder: Path, data: bytes) -> None:
        shard_of(folder, 0).write_bytes(data)
        (fault,) = verify_job(folder).faults
        assert "not a whole shard" in fault

    def test_samples_twice(self, folder: Path) -> None:
        """A shard with a right checksum whose samples are not each there once."""
        import hashlib

        from relprop.batch.shard_writer import checksum

        path = shard_of(folder, 0)
        data = bytearray(path.read_bytes())
        header = json.loads(data[8:4096])
        start, _ = header["index"]["data_offsets"]
        data[4096 + start + 8 : 4096 + start + 16] = bytes(8)  # sample 1 becomes sample 0
        digest = hashlib.sha256(data[4096:]).digest()
        header["__metadata__"]["sha256"] = checksum(digest, header)
        data[8:4096] = json.dumps(header).encode().ljust(4088)
        path.write_bytes(data)
        (fault,) = verify_job(folder).faults
        assert "1 are there twice" in fault
