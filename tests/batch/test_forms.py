"""What a job stores and hands on: reductions, summaries, Parquet shards, exports, engines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from job_support import COUNT, environment, everything, files_of, shard_of
from PIL import Image

import relprop
from relprop import image
from relprop.batch import export_job, verify_job
from relprop.cli import main
from relprop.errors import InputError

Runs = Callable[..., tuple[int, Path]]


class TestReduced:
    def test_pooled_and_largest(self, job: Runs, folder: Path) -> None:
        whole = everything(folder)["relevance"]
        _, pooled = job("pooled", reduce="channel-sum,pool:2x2")
        expected = whole.sum(1).reshape(COUNT, 2, 2, 2, 2).sum((2, 4))
        torch.testing.assert_close(everything(pooled)["relevance"], expected, rtol=1e-5, atol=1e-6)
        _, largest = job("largest", reduce="topk:5", top=2)
        found = everything(largest)
        assert found["relevance"].shape == found["position"].shape == (COUNT, 2, 5)
        first = whole.flatten(1).gather(1, found["position"][:, 0])
        torch.testing.assert_close(found["relevance"][:, 0], first, rtol=1e-5, atol=1e-6)

    def test_summaries_alone(self, job: Runs, folder: Path) -> None:
        whole = everything(folder)
        _, summed = job("summed", summary=("channel", "class"), maps=False)
        opened = relprop.open_job(summed)
        assert "relevance" not in opened[0] and len(opened) == COUNT
        found = opened.summary()
        torch.testing.assert_close(
            found["channel"], whole["relevance"].abs().double().mean((0, 2, 3)), rtol=1e-6, atol=0
        )
        for row, label in enumerate(found["class.label"].tolist()):
            own = whole["relevance"][whole["target"] == label].double()
            assert len(own) == found["class.count"][row]
            torch.testing.assert_close(found["class"][row], own.mean(0), rtol=1e-5, atol=1e-7)
        assert shard_of(summed, 0).stat().st_size < shard_of(folder, 0).stat().st_size + 20_000

    def test_summaries_count_each_target(self, job: Runs) -> None:
        _, folder = job(summary=("class",), top=2)
        assert relprop.open_job(folder).summary()["count"].tolist() == [2 * COUNT]


class TestParquet:
    @pytest.mark.parametrize(
        "options", [{}, {"top": 2}, {"dtype": "float16"}, {"reduce": "topk:3", "top": 2}]
    )
    def test_same_content(self, job: Runs, options: dict[str, Any]) -> None:
        pytest.importorskip("pyarrow")
        _, plain = job("plain", **options)
        status, folder = job(format="parquet", **options)
        assert status == 0 and verify_job(folder).ok
        one, two = everything(plain), everything(folder)
        assert one.keys() == two.keys() and one["name"] == two["name"]
        for name in one.keys() - {"name"}:
            assert torch.equal(one[name], two[name]), name
        assert torch.equal(relprop.open_job(folder)[13:19]["relevance"], one["relevance"][13:19])

    def test_files_for_other_tools(self, job: Runs) -> None:
        parquet = pytest.importorskip("pyarrow.parquet")
        _, folder = job(format="parquet", shard_size=50)
        file = parquet.ParquetFile(shard_of(folder, 0, "parquet"))
        found = file.metadata.row_group(0).column(2)
        assert found.path_in_schema.startswith("relevance") and found.compression == "ZSTD"
        assert "BYTE_STREAM_SPLIT" in found.encodings
        assert max(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)) <= 64

    def test_damage_is_found_and_mended(self, job: Runs) -> None:
        pytest.importorskip("pyarrow")
        _, folder = job(format="parquet")
        before = files_of(folder)
        path = shard_of(folder, 1, "parquet")
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 4
        path.write_bytes(data)
        assert len(verify_job(folder).faults) == 1
        assert job(format="parquet")[0] == 0 and files_of(folder) == before


class TestExport:
    def test_npz(self, folder: Path, home: Path) -> None:
        assert export_job(folder, "npz", home / "some.npz", first=10, limit=30) == 30
        whole = everything(folder)
        with np.load(home / "some.npz") as archive:
            assert np.array_equal(archive["relevance"], whole["relevance"][10:40].numpy())
            assert archive["name"].tolist() == whole["name"][10:40]
            assert archive["target"].tolist() == whole["target"][10:40].tolist()

    def test_parquet(self, folder: Path, home: Path) -> None:
        parquet = pytest.importorskip("pyarrow.parquet")
        assert export_job(folder, "parquet", home / "all.parquet") == COUNT
        table = parquet.read_table(home / "all.parquet")
        relevance = np.array(table["relevance"].to_pylist(), np.float32)
        assert np.array_equal(relevance, everything(folder)["relevance"].flatten(1).numpy())
        assert table["shape"][0].as_py() == [3, 4, 4]

    def test_png(self, folder: Path, home: Path) -> None:
        assert export_job(folder, "png", home / "maps", first=48) == 2
        names = sorted(path.name for path in (home / "maps").iterdir())
        assert names == ["000000048-x-00048.png", "000000049-x-00049.png"]
        with Image.open(home / "maps" / names[0]) as picture:
            relevance = everything(folder)["relevance"][48:49].numpy()
            assert np.array_equal(np.asarray(picture), image.heatmap(relevance)[0])

    def test_png_of_every_target(self, job: Runs, home: Path) -> None:
        _, folder = job(top=2)
        assert export_job(folder, "png", home / "maps", limit=1) == 1
        maps, targets = everything(folder)["relevance"][0], everything(folder)["target"][0]
        names = [f"000000000-x-00000-{target}.png" for target in targets.tolist()]
        assert sorted(names) == sorted(path.name for path in (home / "maps").iterdir())
        for name, own in zip(names, maps, strict=True):
            with Image.open(home / "maps" / name) as picture:
                assert np.array_equal(np.asarray(picture), image.heatmap(own[None].numpy())[0])

    def test_nothing_to_export(self, folder: Path, home: Path) -> None:
        with pytest.raises(InputError, match="holds 50 explanations, none from 50"):
            export_job(folder, "npz", home / "x.npz", first=50)
        with pytest.raises(InputError, match=r"ends in \.npz"):
            export_job(folder, "npz", home / "x.zip")


class TestCommands:
    def test_explain_verify_export(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["explain", "networks_for_jobs:net", "x.npy", "--trust", "--job", "job"]
        assert main([*words, "--shard-size", "16", "--batch-size", "4"]) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[-1] == "job: 50 explained by epsilon_plus, 0 failed"
        assert out[-2].startswith("50 samples in ") and "explain " in out[-2]
        assert main(["verify", "job"]) == 0
        assert capsys.readouterr().out == (
            "job: 4 sound shards, 50 explained, 0 failed, 0 damaged, 0 missing: whole\n"
        )
        shard_of(home / "job", 2).unlink()
        assert main(["verify", "job"]) == 1
        first, last = capsys.readouterr().out.splitlines()
        assert first == "1 shards missing: 2" and "run its command again" in last
        assert main(["export", "job", "--to", "npz", "--out", "x.npz"]) == 0
        assert capsys.readouterr().out == "x.npz: 34 explanations\n"

    def test_not_a_job(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for words in (["verify", "."], ["export", "nothing", "--to", "png", "--out", "y"]):
            assert main(words) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("relprop: ")


class TestEngines:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "options",
        [{"workers": 2}, {"engine": "ray", "workers": 1}, {"engine": "ray", "workers": 2}],
        ids=["processes", "ray-1", "ray-2"],
    )
    def test_same_files_whoever_wrote_them(
        self, job: Runs, folder: Path, options: dict[str, Any]
    ) -> None:
        if "engine" in options:
            pytest.importorskip("ray")
        status, other = job("other", **options)
        assert status == 0 and files_of(other) == files_of(folder)

    @pytest.mark.slow
    def test_torchrun(self, folder: Path, home: Path) -> None:
        words = ["explain", "networks_for_jobs:net", "x.npy", "--trust", "--job", "other"]
        words += ["--shard-size", "16", "--batch-size", "4", "--engine", "torchrun"]
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        run += ["--nproc-per-node", "2", "-m", "relprop"]
        done = subprocess.run(
            [*run, *words],
            cwd=home,
            env=environment(),
            text=True,
            capture_output=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert files_of(home / "other") == files_of(folder)

    def test_one_rank_alone_does_everything(
        self, job: Runs, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The rank that never came is made up for."""
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "3")
        status, other = job("other", engine="torchrun")
        assert status == 0 and files_of(other) == files_of(folder)

    def test_without_ray(self, job: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(relprop.RelpropError, match=r"pip install 'relprop\[ray\]'"):
            job(engine="ray")
