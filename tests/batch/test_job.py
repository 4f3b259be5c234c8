"""A job in one process: what it writes, resumes, refuses, and how it is read."""

from __future__ import annotations

import json
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from job_support import COUNT, OPTIONS, everything, files_of, shard_of
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

import relprop
from relprop.batch import JobSpec, verify_job
from relprop.batch.locks import BusyError, JobLock
from relprop.batch.preparing import join_job, prepare
from relprop.errors import FileFormatError, InputError, RelpropError

Runs = Callable[..., tuple[int, Path]]


def network() -> torch.nn.Module:
    import networks_for_jobs

    made: torch.nn.Module = networks_for_jobs.net()
    return made


def inputs() -> Tensor:
    return torch.from_numpy(np.load("x.npy"))


class TestContents:
    def test_same_as_the_explainer(self, job: Runs) -> None:
        status, folder = job()
        assert status == 0
        model, x = network(), inputs()
        predicted = model(x).argmax(1)
        expected = relprop.Explainer(model, "epsilon_plus").explain(x, target=predicted)
        found = everything(folder)
        assert isinstance(expected.relevance, Tensor)
        torch.testing.assert_close(found["relevance"], expected.relevance, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(found["delta"], expected.convergence_delta, rtol=0, atol=1e-5)
        torch.testing.assert_close(found["score"], model(x).max(1).values.detach())
        assert found["target"].tolist() == found["prediction"].tolist() == predicted.tolist()
        assert found["index"].tolist() == list(range(COUNT))
        assert found["label"].tolist() == [-1] * COUNT
        assert found["name"] == [f"x-{i:05d}" for i in range(COUNT)]

    def test_a_shard_is_a_plain_safetensors_file(self, folder: Path) -> None:
        shard = load_file(shard_of(folder, 3))
        assert shard["relevance"].shape == (2, 3, 4, 4)  # 50 = 3 * 16 + 2
        assert shard["index"].tolist() == [48, 49]
        assert torch.equal(shard["relevance"], everything(folder)["relevance"][48:])

    def test_manifest_lists_every_shard(self, folder: Path) -> None:
        words = json.loads((folder / "manifest.json").read_text())
        assert [row["samples"] for row in words["shards"]] == [
            [0, 16],
            [16, 32],
            [32, 48],
            [48, 50],
        ]
        for row in words["shards"]:
            assert (folder / row["file"]).stat().st_size == row["bytes"]
            assert re.fullmatch("[0-9a-f]{64}", row["sha256"])
        assert words["batch_size"] == 4 and words["identity"]["method"] == "epsilon_plus"

    def test_top_classes_from_one_forward(self, job: Runs) -> None:
        status, folder = job(top=3)
        assert status == 0
        model, x = network(), inputs()
        wanted = model(x).topk(3).indices
        expected = relprop.explain(model, x, target=wanted)
        found = everything(folder)
        torch.testing.assert_close(found["relevance"], expected, rtol=1e-5, atol=1e-7)
        assert torch.equal(found["target"], wanted)
        torch.testing.assert_close(found["score"], model(x).topk(3).values.detach())
        assert found["delta"].shape == (COUNT, 3)

    @pytest.mark.parametrize("target", [3, (2,)])
    def test_a_fixed_target(self, job: Runs, target: Any) -> None:
        _, folder = job(target=target)
        model, x = network(), inputs()
        expected = relprop.explain(model, x, target=target)
        found = everything(folder)
        torch.testing.assert_close(found["relevance"], expected, rtol=1e-5, atol=1e-7)
        entry = target if isinstance(target, int) else target[0]
        torch.testing.assert_close(found["score"], model(x)[:, entry].detach())

    def test_half_precision(self, job: Runs) -> None:
        _, folder = job(dtype="float16")
        _, whole = job("whole")
        half, full = everything(folder)["relevance"], everything(whole)["relevance"]
        assert half.dtype is torch.float16 and torch.equal(half, full.half())

    def test_relevance_too_large_for_half_precision(
        self, job: Runs, home: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        x = np.load("x.npy")
        x[7] *= 1e9
        np.save("x.npy", x)
        status, folder = job(dtype="float16")
        assert status == 1 and len(relprop.open_job(folder)) == COUNT - 1
        assert "x-00007: relevance beyond the range of float16" in capsys.readouterr().err


class TestReader:
    def test_slices_across_shards(self, folder: Path) -> None:
        opened = relprop.open_job(folder)
        whole = everything(folder)
        assert len(opened) == COUNT and opened.missing == []
        part = opened[14:34]
        assert torch.equal(part["relevance"], whole["relevance"][14:34])
        assert part["name"] == whole["name"][14:34]
        assert torch.equal(opened[-1]["relevance"], whole["relevance"][49])
        assert opened[5:5] == {} and opened[40:20:-7]["index"].tolist() == [40, 33, 26]
        with pytest.raises(IndexError, match="holds 50"):
            opened[50]
        assert opened.find(33) == 33 and opened[17]["name"] == "x-00017"

    @pytest.mark.parametrize("kind", ["safetensors", "parquet"])
    def test_by_a_word_or_a_list(self, job: Runs, kind: str) -> None:
        """A column, a sample by its name, some samples by their places or a mask."""
        if kind == "parquet":
            pytest.importorskip("pyarrow")
        _, folder = job(format=kind, top=2, reduce="topk:5")
        opened, whole = relprop.open_job(folder), everything(folder)
        assert [*whole, "no"] == [*opened[0], "no"] and "position" in whole
        for name, column in whole.items():
            assert len(opened[name]) == COUNT
            assert all(map(torch.equal, opened[name], column)) if name != "name" else (
                opened["name"] == column
            )  # fmt: skip
        one = opened["x-00033"]
        assert one["index"] == 33 and torch.equal(one["relevance"], whole["relevance"][33])
        some = opened[[40, 2, -1]]
        assert (
            some["index"].tolist() == [40, 2, 49] == opened[np.array([40, 2, 49])]["index"].tolist()
        )
        assert torch.equal(some["relevance"], whole["relevance"][[40, 2, 49]])
        assert opened[whole["index"] % 20 == 3]["index"].tolist() == [3, 23, 43]
        assert opened[torch.tensor(7)]["name"] == "x-00007" and opened[[]] == {}
        with pytest.raises(KeyError, match="'x-99999'; the columns are index, name, relevance"):
            opened["x-99999"]
        with pytest.raises(IndexError):
            opened[[3, 50]]

    def test_as_a_torch_dataset(self, folder: Path) -> None:
        opened = relprop.open_job(folder)
        batches = list(DataLoader(opened, batch_size=20))
        assert [len(batch["name"]) for batch in batches] == [20, 20, 10]
        found = torch.cat([batch["relevance"] for batch in batches])
        assert torch.equal(found, everything(folder)["relevance"])
        assert torch.equal(pickle.loads(pickle.dumps(opened))[3]["relevance"], found[3])

    def test_while_the_job_is_not_done(self, folder: Path) -> None:
        shard_of(folder, 1).unlink()
        opened = relprop.open_job(folder)
        assert opened.missing == [1] and len(opened) == COUNT - 16
        assert opened[16]["index"] == 32 and opened.find(32) == 16
        with pytest.raises(InputError, match="no explanation of sample 20"):
            opened.find(20)

    def test_not_a_job(self, tmp_path: Path) -> None:
        with pytest.raises(FileFormatError, match="no such folder"):
            relprop.open_job(tmp_path / "nothing")
        with pytest.raises(FileFormatError, match=r"manifest\.json: no such file"):
            relprop.open_job(tmp_path)


class TestResume:
    def test_only_what_is_missing(self, job: Runs, folder: Path) -> None:
        before = files_of(folder)
        old = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
        shard_of(folder, 2).unlink()
        assert job()[0] == 0
        assert files_of(folder) == before
        again = {path for path, time in old.items() if path.stat().st_mtime_ns != time}
        assert again == {shard_of(folder, 2)}

    @pytest.mark.parametrize("place", [200, 4096 + 50, -3])
    def test_a_corrupt_shard_is_found_and_mended(
        self, job: Runs, place: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _, folder = job()
        before = files_of(folder)
        data = bytearray(shard_of(folder, 1).read_bytes())
        data[place] ^= 1
        shard_of(folder, 1).write_bytes(data)
        verdict = verify_job(folder)
        assert not verdict.ok and verdict.shards == 3
        (fault,) = verdict.faults
        assert "shard-000001.safetensors" in fault
        capsys.readouterr()
        assert job()[0] == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert "shard-000001.safetensors" in line and "done again" in line
        assert files_of(folder) == before and verify_job(folder).ok

    def test_a_shard_of_another_job_is_not_taken(self, job: Runs, folder: Path) -> None:
        _, other = job("other", model="networks_for_jobs:other")
        before = files_of(folder)
        shard_of(folder, 0).write_bytes(shard_of(other, 0).read_bytes())
        (fault,) = verify_job(folder).faults
        assert "belongs to another job" in fault
        assert job()[0] == 0 and files_of(folder) == before

    def test_a_shard_under_another_number_is_not_taken(self, folder: Path) -> None:
        shard_of(folder, 0).write_bytes(shard_of(folder, 1).read_bytes())
        (fault,) = verify_job(folder).faults
        assert "other samples than its name says" in fault

    def test_half_written_files_go(self, job: Runs, folder: Path) -> None:
        shard_of(folder, 2).unlink()
        stale = shard_of(folder, 2).with_name(".shard-000002-abcd.safetensors")
        manifest = folder / ".manifest-abcd.json"
        for path in (stale, manifest):
            path.write_bytes(b"half")
        assert job()[0] == 0 and not stale.exists() and not manifest.exists()

    def test_the_batch_size_found_once_is_kept(self, job: Runs) -> None:
        _, folder = job(batch_size=None)
        first = json.loads((folder / "manifest.json").read_text())["batch_size"]
        before = files_of(folder)
        shard_of(folder, 0).unlink()
        assert job(batch_size=None)[0] == 0 and files_of(folder) == before
        assert 1 <= first <= 16
        with pytest.raises(InputError, match=f"batches have {first} samples, not {first + 1}"):
            job(batch_size=first + 1)


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"model": "networks_for_jobs:other"}, "model is"),
            ({"method": "lrp_epsilon"}, "method is lrp_epsilon, was epsilon_plus"),
            ({"dtype": "float16"}, "dtype is float16, was float32"),
            ({"target": 1}, "target is 1, was predicted"),
            ({"reduce": "channel-sum"}, "reduce is channel-sum, was None"),
            ({"shard_size": 8}, "in shards of 8, was 50 in shards of 16"),
            ({"limit": 20}, "20 samples"),
            ({"mean": (0.5,)}, "preprocessing is"),
        ],
    )
    def test_another_job_in_the_folder(
        self, job: Runs, folder: Path, change: dict[str, Any], said: str
    ) -> None:
        before = files_of(folder)
        with pytest.raises(InputError, match=re.escape(said)) as caught:
            job(**change)
        assert "folder of its own" in str(caught.value) and "\n" not in str(caught.value)
        assert files_of(folder) == before

    def test_changed_weights(self, job: Runs, home: Path) -> None:
        from safetensors.torch import save_file

        own = {name: value.clone() for name, value in network().state_dict().items()}
        save_file(own, home / "w.safetensors")
        job(weights="w.safetensors")
        changed = {**own, "3.bias": own["3.bias"] + 1e-6}
        save_file(changed, home / "w.safetensors")
        with pytest.raises(InputError, match="weights is"):
            job(weights="w.safetensors")
        # the right ones again; the network that all tests share has them afterwards
        save_file(own, home / "w.safetensors")
        assert job(weights="w.safetensors")[0] == 0

    def test_changed_data(self, job: Runs) -> None:
        job()
        x = np.load("x.npy")
        x[0] += 1
        np.save("x.npy", x)
        with pytest.raises(InputError, match="inputs is"):
            job()

    def test_other_versions_need_a_word(
        self, job: Runs, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = files_of(folder)
        monkeypatch.setattr("relprop.batch.identity.__version__", "9.9")
        with pytest.raises(InputError, match=r"begun with relprop .*accept-versions"):
            job()
        assert job(accept_versions=True)[0] == 0 and files_of(folder) == before

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"summary": ("class",), "format": "parquet"}, "drop --format parquet"),
            ({"maps": False}, "would keep nothing"),
            ({"top": 2, "target": 1}, "drop --target"),
            ({"reduce": "pool:9x9"}, "are smaller"),
            ({"reduce": "topk:5,channel-sum"}, "put it last"),
            ({"reduce": "blur"}, "expected pool:N"),
            ({"summary": ("colour",)}, "expected channel, class, time"),
            ({"summary": ("time",)}, "expected sequences"),
            ({"top": 6}, "at least 6"),
            ({"engine": "torchrun"}, "RANK, WORLD_SIZE"),
            ({"engine": "slurm"}, "expected local, torchrun, ray"),
            ({"trust": False}, "--trust"),
            ({"shard_size": 0}, "shard_size: 0; expected 1 to 16777216"),
            ({"batch_size": 10**22}, "batch_size: 10000000000000000000000; expected 1 to"),
            ({"threads": 10**11}, "threads: 100000000000; expected 1 to 1024"),
            ({"workers": -1}, "workers: -1; expected 1 to 65536"),
            ({"target": "label"}, "none of the first 50 inputs has a label"),
            ({"collate": ""}, "Empty module name"),
        ],
    )
    def test_one_sentence(
        self, job: Runs, options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(RelpropError, match=re.escape(said)) as caught:
            job(**options)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("package", "options", "line"),
        [
            ("ray", {"engine": "ray"}, "pip install 'relprop[ray]'"),
            ("pyarrow", {"format": "parquet"}, "pip install 'relprop[parquet]'"),
            ("pyarrow", {"data": "x.parquet"}, "pip install 'relprop[parquet]'"),
            ("fsspec", {"data": "memory://x.npy"}, "pip install fsspec"),
            ("s3fs", {"data": "s3://bucket/x.npy"}, "pip install s3fs"),
            ("PIL", {"data": "x.png"}, "pip install 'relprop[figures]'"),
        ],
    )
    def test_a_package_that_is_not_there(
        self,
        job: Runs,
        package: str,
        options: dict[str, Any],
        line: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It is said, with what installs it, before a model is captured or a file begun."""
        for name in ("x.parquet", "x.png"):
            Path(name).write_bytes(b"anything")
        for name in [package, *(n for n in sys.modules if n.startswith(f"{package}."))]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setattr("relprop.batch.explaining.Explaining.probe", None)
        with pytest.raises(RelpropError, match=re.escape(line)):
            job(**options)
        assert not list(Path("job").rglob("*.json"))

    def test_a_lock_is_of_a_process(self, folder: Path, home: Path) -> None:
        lock = JobLock(folder)
        assert lock.take_shard(1) and not lock.take_shard(1)
        lock.drop_shard(1)
        assert lock.take_shard(1)
        lock.close()
        assert issubclass(BusyError, RelpropError)

    def test_threads_are_shared_out_once_and_kept(self, job: Runs, home: Path) -> None:
        """Four workers of eight threads have two each, and a worker that joins has them too."""
        torch.set_num_threads(8)  # the fixture puts the number back
        spec = JobSpec("networks_for_jobs:net", "x.npy", "other", trust=True, workers=4)
        assert prepare(spec).wanted.environment["threads"] == 2 == torch.get_num_threads()
        _, folder = job(threads=2)
        torch.set_num_threads(8)
        _, manifest = join_job(JobSpec(**{**OPTIONS, "job": "", "threads": None}), folder)
        assert manifest.environment["threads"] == 2 == torch.get_num_threads()

    def test_spec_from_words(self) -> None:
        spec = JobSpec("a", "b", "c")
        assert JobSpec.of(spec) == spec
