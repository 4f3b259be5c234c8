"""Every kind of source, good and hostile, through whole jobs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from job_support import COUNT, everything, shard_of
from PIL import Image
from safetensors.torch import save_file

import relprop
from relprop.batch import verify_job
from relprop.errors import FileFormatError, InputError
from relprop.io.inputs import open_source
from relprop.io.sources import Item, SourceOptions

Runs = Callable[..., tuple[int, Path]]


def arrays(source: object) -> torch.Tensor:
    return torch.stack([item.value for item in source if isinstance(item, Item)])  # type: ignore[attr-defined]


class TestSafetensors:
    def test_same_as_npy(self, job: Runs) -> None:
        _, plain = job()
        x = torch.from_numpy(np.load("x.npy"))
        save_file({"x": x, "labels": torch.arange(COUNT) % 5}, "data.safetensors")
        status, folder = job("other", data="data.safetensors")
        found = everything(folder)
        assert status == 0 and torch.equal(found["relevance"], everything(plain)["relevance"])
        assert found["label"].tolist() == [i % 5 for i in range(COUNT)]

    def test_an_absurd_header(self, job: Runs) -> None:
        entry = {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 16]}
        text = json.dumps({"x": entry}).encode()
        Path("bad.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
        with pytest.raises(FileFormatError, match="not a readable safetensors file"):
            job(data="bad.safetensors")

    def test_a_name_that_is_not_there(self, home: Path) -> None:
        save_file({"a": torch.zeros(2, 2), "b": torch.zeros(3, 2)}, "two.safetensors")
        with pytest.raises(InputError, match="a, b; pick one with --array"):
            open_source("two.safetensors", SourceOptions())


class TestDataset:
    def test_an_item_that_cannot_be_read_costs_only_itself(
        self, job: Runs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status, folder = job(data="networks_for_jobs:Set", target="label")
        assert status == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line == "relprop: Set-00005: cannot be read (OSError: disk on fire)"
        found = everything(folder)
        assert found["index"].tolist() == [0, 1, 2, 3, 4, *range(6, 12)]
        assert found["label"].tolist() == [0, 1, 2, 3, 4, 1, 2, 3, 4, 0, 1]
        (failure,) = relprop.open_job(folder).failures()
        assert failure.index == 5
        verdict = verify_job(folder)
        assert not verdict.ok and verdict.failed == 1 and not verdict.faults

    def test_needs_trust(self) -> None:
        with pytest.raises(InputError, match="add --trust"):
            open_source("networks_for_jobs:Set", SourceOptions())

    def test_not_a_dataset(self, home: Path) -> None:
        with pytest.raises(InputError, match="expected a Dataset with a length"):
            open_source("networks_for_jobs:torch.pi", SourceOptions(trust=True))


class TestTokens:
    def test_collated_sentences_of_several_lengths(self, job: Runs) -> None:
        import networks_for_jobs

        status, folder = job(
            model="networks_for_jobs:words",
            data="networks_for_jobs:sentences",
            collate="networks_for_jobs:pad",
            shard_size=4,
            batch_size=3,
        )
        assert status == 0
        opened = relprop.open_job(folder)
        model = networks_for_jobs.words()
        for place, tokens in enumerate(networks_for_jobs.sentences()):
            row = opened[place]
            target = int(model(tokens[None]).argmax())
            alone = relprop.explain(model, tokens[None], target=target)[0]
            assert row["target"] == target and row["relevance"].shape == tokens.shape
            torch.testing.assert_close(row["relevance"], alone, rtol=1e-4, atol=1e-6)
        assert [len(r) for r in opened[0:5]["relevance"]] == [3, 7, 2, 7, 5]


class TestImages:
    @staticmethod
    def folder(count: int = 6) -> None:
        rng = np.random.default_rng(0)
        for number in range(count):
            Path("photos").mkdir(exist_ok=True)
            pixels = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"photos/{number}.png")

    def test_a_broken_image_leaves_the_others_as_they_were(
        self, job: Runs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Once mended, a rerun gives the file that an undisturbed run would have given."""
        self.folder()
        options = {"data": "photos", "resize": (4, 4), "batch_size": 4, "readers": 1}
        status, whole = job("whole", **options)
        assert status == 0
        good = Path("photos/2.png").read_bytes()
        Path("photos/2.png").write_bytes(good[:60])
        status, folder = job(**options)
        assert status == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("relprop: photos/2.png: not a readable image")
        rows = [0, 1, 3, 4, 5]
        assert torch.equal(everything(folder)["relevance"], everything(whole)["relevance"][rows])
        assert job(**options)[0] == 1  # a rerun says it again, and keeps what is there
        Path("photos/2.png").write_bytes(good)
        assert job(**options)[0] == 0
        assert shard_of(folder, 0).read_bytes() == shard_of(whole, 0).read_bytes()
        assert verify_job(folder).ok

    def test_a_decompression_bomb(self, job: Runs, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder(2)
        Image.new("L", (3000, 3000)).save("photos/bomb.png")
        status, _ = job(data="photos", resize=(4, 4), max_pixels=1_000_000)
        (line,) = capsys.readouterr().err.splitlines()
        assert status == 1 and "photos/bomb.png: 3000 x 3000 pixels, more than the cap" in line

    def test_reading_in_a_process_gives_the_same(self, job: Runs) -> None:
        self.folder()
        options = {"data": "photos", "resize": (4, 4)}
        _, one = job("one", readers=0, **options)
        _, two = job("two", readers=2, **options)
        assert shard_of(one, 0).read_bytes() == shard_of(two, 0).read_bytes()


class TestUrls:
    def test_a_file(self, job: Runs) -> None:
        fsspec = pytest.importorskip("fsspec")
        with fsspec.open("memory://place/x.npy", "wb") as stream:
            stream.write(Path("x.npy").read_bytes())
        _, plain = job()
        status, folder = job("other", data="memory://place/x.npy")
        assert status == 0
        assert torch.equal(everything(folder)["relevance"], everything(plain)["relevance"])

    def test_a_folder_of_images(self, home: Path) -> None:
        pytest.importorskip("fsspec")
        TestImages.folder(3)
        options = SourceOptions()
        here, there = open_source("photos", options), open_source(f"file://{home}/photos", options)
        assert torch.equal(arrays(here), arrays(there)) and list(here.names) == list(there.names)

    def test_too_large(self, home: Path) -> None:
        pytest.importorskip("fsspec")
        with pytest.raises(FileFormatError, match="more than the cap of 1,000 bytes"):
            open_source(f"file://{home}/x.npy", SourceOptions(max_bytes=1000))

    @pytest.mark.parametrize("url", ["nosuchprotocol://a/b", "memory://nothing/here.npy"])
    def test_nothing_there(self, url: str) -> None:
        pytest.importorskip("fsspec")
        with pytest.raises(FileFormatError, match="cannot be read"):
            open_source(url, SourceOptions())


class TestTables:
    def test_parquet_of_lists(self, home: Path) -> None:
        pytest.importorskip("pyarrow")
        import pyarrow
        import pyarrow.parquet

        x = np.load(home / "x.npy")
        table = pyarrow.table({"x": x.tolist(), "label": list(range(COUNT))})
        pyarrow.parquet.write_table(table, "x.parquet", row_group_size=7)
        source = open_source("x.parquet", SourceOptions())
        assert torch.equal(arrays(source), torch.from_numpy(x).double())
        item = source.item(13)
        assert isinstance(item, Item) and item.label == 13

    def test_parquet_of_images(self, home: Path) -> None:
        pytest.importorskip("pyarrow")
        import pyarrow
        import pyarrow.parquet

        TestImages.folder(3)
        stored = [Path(f"photos/{i}.png").read_bytes() for i in range(3)]
        expected = arrays(open_source("photos", SourceOptions()))
        cells = [{"bytes": data, "path": None} for data in stored]
        for name, column in (("flat", stored), ("struct", cells)):
            pyarrow.parquet.write_table(pyarrow.table({"image": column}), f"{name}.parquet")
            assert torch.equal(arrays(open_source(f"{name}.parquet", SourceOptions())), expected)

    def test_images_in_other_files_are_not_opened(self, home: Path) -> None:
        pytest.importorskip("pyarrow")
        import pyarrow
        import pyarrow.parquet

        TestImages.folder(1)
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        cells = pyarrow.array([{"bytes": None, "path": "photos/0.png"}], kind)
        pyarrow.parquet.write_table(pyarrow.table({"image": cells}), "x.parquet")
        failed = open_source("x.parquet", SourceOptions()).item(0)
        assert not isinstance(failed, Item) and "is not opened" in failed.reason

    def test_a_bomb_of_one_value(self, home: Path) -> None:
        pytest.importorskip("pyarrow")
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({"x": pyarrow.array([[0.0] * 1_000_000] * 40)})
        pyarrow.parquet.write_table(table, "bomb.parquet", compression="zstd")
        assert Path("bomb.parquet").stat().st_size < 100_000
        with pytest.raises(FileFormatError, match="more than the cap of 1,000,000"):
            open_source("bomb.parquet", SourceOptions(max_bytes=1_000_000))

    @pytest.mark.parametrize("data", [b"", b"PAR1PAR1", b"hello", b"PAR1" + bytes(100) + b"PAR1"])
    def test_damaged(self, home: Path, data: bytes) -> None:
        pytest.importorskip("pyarrow")
        Path("x.parquet").write_bytes(data)
        with pytest.raises(FileFormatError, match=r"x\.parquet"):
            open_source("x.parquet", SourceOptions())

    def test_hugging_face_on_disk(self, home: Path) -> None:
        datasets = pytest.importorskip("datasets")
        x = np.load(home / "x.npy")
        saved = datasets.Dataset.from_dict({"x": x.tolist(), "label": list(range(COUNT))})
        saved.save_to_disk("hf", num_shards=3)
        source = open_source("hf", SourceOptions())
        assert torch.equal(arrays(source), torch.from_numpy(x).double())
        item = source.item(49)
        assert isinstance(item, Item) and item.label == 49

    def test_hugging_face_images_arrays_and_splits(self, home: Path) -> None:
        datasets = pytest.importorskip("datasets")
        TestImages.folder(3)
        files = [f"photos/{i}.png" for i in range(3)]
        column = datasets.Image(), datasets.ClassLabel(names=["a", "b"])
        kinds = datasets.Features(dict(zip(("image", "label"), column)))
        saved = datasets.Dataset.from_dict({"image": files, "label": [0, 1, 1]}, features=kinds)
        saved.select([2, 0]).save_to_disk("chosen")
        source, plain = (open_source(name, SourceOptions()) for name in ("chosen", "photos"))
        assert torch.equal(arrays(source), arrays(plain)[[2, 0]])
        assert [item.label for item in source if isinstance(item, Item)] == [1, 0]
        datasets.DatasetDict(train=saved, test=saved).save_to_disk("splits")
        with pytest.raises(InputError, match="several splits; name one: splits/test, splits/train"):
            open_source("splits", SourceOptions())
        x = np.load("x.npy")[:3]
        kinds = datasets.Features({"x": datasets.Array3D(x.shape[1:], "float32")})
        datasets.Dataset.from_dict({"x": x}, features=kinds).save_to_disk("blocks")
        assert torch.equal(arrays(open_source("blocks", SourceOptions())), torch.from_numpy(x))

    @pytest.mark.parametrize("name", ["../x.arrow", "/etc/passwd", "a/b.arrow", "x.pkl", 3])
    def test_paths_that_lead_out(self, home: Path, name: object) -> None:
        pytest.importorskip("pyarrow")
        os.mkdir("hf")
        Path("hf/state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        with pytest.raises(FileFormatError, match="in the folder itself"):
            open_source("hf", SourceOptions())


def test_pickles_are_refused(job: Runs) -> None:
    torch.save(torch.zeros(3, 3), "x.pt")
    with pytest.raises(FileFormatError, match="run code when they are read"):
        job(data="x.pt")
    with pytest.raises(FileFormatError, match=r"only \.safetensors"):
        job(weights="x.pt")
