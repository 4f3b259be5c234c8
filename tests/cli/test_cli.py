"""The command line, end to end: what it explains, writes and prints, and how it fails."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import relprop
from relprop import data, methods, models
from relprop.batch.status import Status
from relprop.cli import main

MODEL = "mnist_cnn"
SAMPLE = "mnist:sample"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current folder; its name is fresh, so nothing is cached."""
    name = f"networks_{abs(hash(tmp_path)):x}"
    code = """
        import torch
        from torch import nn

        def dense():
            torch.manual_seed(0)
            return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))

        def colour():
            torch.manual_seed(0)
            return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                                 nn.Flatten(), nn.Linear(4, 3))

        class Dict(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = dense()
            def forward(self, x):
                return {"logits": self.inner(x), "other": x}

        class Sorted(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = dense()
            def forward(self, x):
                return self.inner(torch.sort(x, dim=1).values)

        def broken():
            raise KeyError("no such\\nlayer")

        number = 3
        """
    (tmp_path / f"{name}.py").write_text("\n".join(line[8:] for line in code.splitlines()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def run(*words: object) -> int:
    return main([str(word) for word in words])


def explain(*words: object) -> int:
    return run("explain", *words)


def summary(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / "summary.csv").read_text())))


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Standard error's lines, none of a stack trace."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text.splitlines()


def save_image(path: Path, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(str(path.name)))
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)


def png_of(width: int, height: int) -> bytes:
    """A small PNG file whose header declares any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def npy_header(shape: str, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (63 - (10 + len(text)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


class TestExplain:
    def test_sample_matches_the_library(self, out: Path) -> None:
        assert explain(MODEL, SAMPLE, "--limit", 6, "--batch-size", 4, "--out", out) == 0
        images, labels = data.sample("mnist")
        model = models.load(MODEL)
        predicted = model(images[:6]).argmax(1)
        expected = relprop.explain(model, images[:6], target=predicted, method="epsilon_plus")
        tensors = load_file(out / "relevance.safetensors")
        torch.testing.assert_close(tensors["relevance:0"], expected, rtol=1e-4, atol=1e-6)
        assert tensors["label"].tolist() == labels[:6].tolist()
        assert tensors["prediction"].tolist() == predicted.tolist()
        rows = summary(out)
        assert [row["name"] for row in rows] == [f"mnist-sample-{i:05d}" for i in range(6)]
        assert [int(row["target"]) for row in rows] == predicted.tolist()
        for row, relevance in zip(rows, expected, strict=True):
            assert float(row["relevance"]) == pytest.approx(float(relevance.sum()), rel=1e-3)
            assert Image.open(out / row["heatmap"]).size == (2 * 224 + 12, 224 + 8)

    def test_explanation_load_reads_the_file(self, out: Path) -> None:
        words = ("--limit", 3, "--layers", "features.0,classifier.1", "--target", 4)
        assert explain(MODEL, SAMPLE, *words, "--out", out) == 0
        loaded = relprop.Explanation.load(out / "relevance.safetensors")
        images, _ = data.sample("mnist")
        layers = ["features.0", "classifier.1"]
        explainer = relprop.Explainer(models.load(MODEL), "epsilon_plus", layers=layers)
        expected = explainer.explain(images[:3], target=4)
        assert loaded.target == [4, 4, 4] and loaded.method == "epsilon_plus"
        for path in layers:
            torch.testing.assert_close(loaded.layers[path], expected.layers[path])
        torch.testing.assert_close(loaded.relevance, expected.relevance)
        torch.testing.assert_close(loaded.output, expected.output)
        delta = expected.convergence_delta.double()
        torch.testing.assert_close(loaded.convergence_delta, delta, rtol=1e-4, atol=1e-5)

    def test_method_options_reach_the_method(self, out: Path) -> None:
        options = ("--method-option", "low=-1", "--method-option", "high=1", "--target", "label")
        words = ("--limit", 2, "--method", "deep_taylor", *options, "--out", out)
        assert explain(MODEL, SAMPLE, *words) == 0
        images, labels = data.sample("mnist")
        expected = relprop.explain(
            models.load(MODEL),
            images[:2],
            target=labels[:2],
            method="deep_taylor",
            method_options={"low": -1, "high": 1},
        )
        tensors = load_file(out / "relevance.safetensors")
        torch.testing.assert_close(tensors["relevance:0"], expected, rtol=1e-4, atol=1e-6)

    def test_the_largest_outputs(self, out: Path) -> None:
        words = ("--limit", 5, "--batch-size", 3, "--top", 3, "--layers", "features.0")
        assert explain(MODEL, SAMPLE, *words, "--out", out) == 0
        images, model = data.sample("mnist")[0][:5], models.load(MODEL)
        wanted = model(images).topk(3).indices
        expected = relprop.Explainer(model, "epsilon_plus", layers="features.0").explain(
            images, target=wanted
        )
        loaded = relprop.Explanation.load(out / "relevance.safetensors")
        assert torch.equal(loaded.target, wanted) and loaded.relevance.shape == (5, 3, 1, 28, 28)
        torch.testing.assert_close(loaded.relevance, expected.relevance, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(loaded.layers["features.0"], expected.layers["features.0"])
        delta = expected.convergence_delta.double()
        torch.testing.assert_close(loaded.convergence_delta, delta, rtol=1e-4, atol=1e-5)
        for row, targets, scores in zip(summary(out), wanted, model(images), strict=True):
            assert row["target"] == " ".join(map(str, targets.tolist()))
            found = [float(word) for word in row["score"].split()]
            assert found == pytest.approx(scores[targets].tolist(), rel=1e-4)
            assert len(row["relevance"].split()) == len(row["delta"].split()) == 3
            assert Image.open(out / row["heatmap"]).size == (4 * 224 + 20, 224 + 8)

    def test_a_model_of_doubles_keeps_its_digits(
        self, tmp_path: Path, user_module: str, out: Path
    ) -> None:
        code = Path(f"{user_module}.py").read_text()
        Path(f"{user_module}.py").write_text(code.replace("5, 3))", "5, 3)).double()"))
        x = np.random.default_rng(0).normal(size=(3, 12))
        np.save(tmp_path / "x.npy", x)
        words = ("--trust", "--target", 1, "--out", out)
        assert explain(f"{user_module}:dense", tmp_path / "x.npy", *words) == 0
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3)]
        model = nn.Sequential(*layers).double().eval()
        expected = relprop.explain(model, torch.from_numpy(x), target=1)
        found = load_file(out / "relevance.safetensors")["relevance:0"]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)

    def test_the_model_itself_runs_for_its_capture_alone(
        self, out: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runs, seen = [0], []
        sequential, forward = nn.Sequential.forward, relprop.engine.run.forward

        def counted(self: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
            runs[0] += 1
            return sequential(self, x)

        def noted(*arguments: object, **options: object) -> object:
            seen.append(runs[0])
            return forward(*arguments, **options)

        monkeypatch.setattr(nn.Sequential, "forward", counted)
        monkeypatch.setattr("relprop.engine.run.forward", noted)
        assert explain(MODEL, SAMPLE, "--limit", 6, "--batch-size", 2, "--out", out) == 0
        assert len(seen) == 3 and {*seen, *runs} == {seen[0]} and seen[0] > 0

    @pytest.mark.parametrize(
        "words",
        [("--workers", 2), ("--reduce", "pool:2x2"), ("--no-maps",), ("--accept-versions",)],
    )
    def test_options_of_jobs_alone(
        self, words: tuple[object, ...], out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert explain(MODEL, SAMPLE, *words, "--out", out) == 2
        (line,) = lines_of(capsys)
        assert f"{words[0]}: of a job alone; add --job" in line and not out.exists()

    def test_missing_method_options_are_one_sentence(
        self, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert explain(MODEL, SAMPLE, "--method", "deep_taylor", "--out", out) == 2
        (line,) = lines_of(capsys)
        assert "low" in line and "high" in line

    def test_table_and_totals_on_standard_output(
        self, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert explain(MODEL, SAMPLE, "--limit", 25, "--heatmaps", 2, "--out", out) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        lines = captured.out.splitlines()
        assert lines[0].split()[:4] == ["name", "label", "prediction", "target"]
        assert lines[1].startswith("mnist-sample-00000")
        assert "… 5 more in summary.csv" in captured.out
        assert "25 explained by epsilon_plus, 0 failed" in captured.out
        assert len(list((out / "heatmaps").iterdir())) == 2

    def test_quiet_prints_nothing(self, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert explain(MODEL, SAMPLE, "--limit", 2, "--quiet", "--out", out) == 0
        captured = capsys.readouterr()
        assert captured.out == captured.err == ""

    def test_no_temporary_file_stays(self, out: Path) -> None:
        assert explain(MODEL, SAMPLE, "--limit", 1, "--heatmaps", 0, "--out", out) == 0
        assert sorted(p.name for p in out.iterdir()) == ["relevance.safetensors", "summary.csv"]


class TestFolders:
    def test_a_broken_image_costs_only_itself(
        self, tmp_path: Path, user_module: str, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "photos"
        save_image(folder / "a.png", (10, 12))
        save_image(folder / "c.jpg", (30, 20))
        (folder / "b.png").write_bytes(b"not an image")
        whole = (folder / "a.png").read_bytes()
        (folder / "d.png").write_bytes(whole[: len(whole) // 2])
        (folder / "e.png").write_bytes(png_of(60_000, 60_000))
        (folder / "notes.txt").write_text("not looked at")
        os.mkfifo(folder / "f.png")
        size = ("--resize", 9, "--crop", 8)
        status = explain(f"{user_module}:colour", folder, "--trust", *size, "--out", out)
        assert status == 1
        lines = lines_of(capsys)
        assert [Path(line.split(":")[1].strip()).name for line in lines] == [
            "b.png", "d.png", "e.png", "f.png"
        ]  # fmt: skip
        assert "60000 x 60000 pixels" in lines[2] and "not a regular file" in lines[3]
        rows = summary(out)
        assert [row["name"] for row in rows if row["error"]] == ["b.png", "d.png", "e.png", "f.png"]
        assert [row["name"] for row in rows if not row["error"]] == ["a.png", "c.jpg"]
        assert load_file(out / "relevance.safetensors")["relevance:0"].shape == (2, 3, 8, 8)

    def test_inputs_of_several_shapes(self, tmp_path: Path, user_module: str, out: Path) -> None:
        folder = tmp_path / "photos"
        save_image(folder / "a.png", (10, 12))
        save_image(folder / "b.png", (9, 7))
        assert explain(f"{user_module}:colour", folder, "--trust", "--out", out) == 0
        tensors = load_file(out / "relevance.safetensors")
        assert tensors["relevance:0.000000"].shape == (3, 12, 10)
        assert tensors["relevance:0.000001"].shape == (3, 7, 9)

    def test_labels_by_folder_and_by_name(
        self, tmp_path: Path, user_module: str, out: Path
    ) -> None:
        folder = tmp_path / "photos"
        for name in ("zebra/1.png", "ant/1.png", "ant/2.png"):
            save_image(folder / name)
        words = (f"{user_module}:colour", folder, "--trust", "--out", out)
        assert explain(*words, "--labels", "folders", "--target", "label") == 0
        assert [(r["name"], r["target"]) for r in summary(out)] == [
            ("ant/1.png", "0"), ("ant/2.png", "0"), ("zebra/1.png", "1")
        ]  # fmt: skip
        table = tmp_path / "labels.csv"
        table.write_text("file,label\nzebra/1.png,2\nant/2.png,1\n")
        assert explain(*words, "--labels", table) == 0
        assert [row["label"] for row in summary(out)] == ["", "1", "2"]

    def test_a_missing_label_fails_its_input_alone(
        self, tmp_path: Path, user_module: str, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder, table = tmp_path / "photos", tmp_path / "labels.csv"
        for name in ("a.png", "b.png", "c.png"):
            save_image(folder / name)
        table.write_text("a.png,0\nb.png,7\n")
        words = ("--trust", "--labels", table, "--target", "label", "--out", out)
        assert explain(f"{user_module}:colour", folder, *words) == 1
        lines = lines_of(capsys)
        assert len(lines) == 2
        assert "b.png" in lines[0] and "7 is out of range" in lines[0]
        assert "c.png" in lines[1] and "no label" in lines[1]

    def test_preprocessing_is_torchvisions(self, tmp_path: Path) -> None:
        transforms = pytest.importorskip("torchvision.transforms")
        from relprop.io.preprocess import Preprocess

        save_image(tmp_path / "a.png", (37, 53))
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        steps = [transforms.Resize(24), transforms.CenterCrop((20, 17)), transforms.ToTensor()]
        chain = transforms.Compose([*steps, transforms.Normalize(mean, std)])
        with Image.open(tmp_path / "a.png") as image:
            expected = chain(image)
        ours = Preprocess(resize=(24,), crop=(20, 17), mean=mean, std=std)
        torch.testing.assert_close(ours.load(tmp_path / "a.png", 10_000), expected)

    def test_a_long_thin_image_is_not_blown_up(
        self, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        save_image(tmp_path / "thin.png", (30_000, 1), "L")
        words = ("--resize", 9000, "--out", out)
        assert explain(MODEL, tmp_path / "thin.png", *words) == 2
        (line, *_) = lines_of(capsys)
        assert "resized to" in line and "cap" in line

    def test_grey_of_16_bits(self, tmp_path: Path) -> None:
        from relprop.io.preprocess import Preprocess

        values = np.array([[0, 257, 65535], [32896, 514, 771]], dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / "deep.png")
        loaded = Preprocess(channels=1).load(tmp_path / "deep.png", 100)
        expected = torch.tensor([[[0, 1, 255], [128, 2, 3]]]) / 255
        torch.testing.assert_close(loaded, expected)

    def test_names_lead_nowhere(self, tmp_path: Path, user_module: str, out: Path) -> None:
        save_image(tmp_path / "photos" / "~..\x1b[2J\n..evil.png")
        words = ("--trust", "--out", out)
        assert explain(f"{user_module}:colour", tmp_path / "photos", *words) == 0
        (heatmap,) = (out / "heatmaps").iterdir()
        assert heatmap.name == "00000-2J_..evil.png.png"
        assert "\x1b" not in (out / "summary.csv").read_text()


class TestArrays:
    def test_npz_with_labels(self, tmp_path: Path, user_module: str, out: Path) -> None:
        x = np.random.default_rng(0).normal(size=(5, 12))
        np.savez(tmp_path / "inputs.npz", x=x, y=np.array([0, 1, 2, 0, 1]))
        words = ("--trust", "--target", "label", "--method", "gradient_x_input", "--out", out)
        assert explain(f"{user_module}:dense", tmp_path / "inputs.npz", *words) == 0
        assert [row["target"] for row in summary(out)] == ["0", "1", "2", "0", "1"]
        relevance = load_file(out / "relevance.safetensors")["relevance:0"]
        assert relevance.shape == (5, 12) and relevance.dtype == torch.float32
        assert not (out / "heatmaps").exists()

    def test_npy_bytes_are_pixels(self, tmp_path: Path, out: Path) -> None:
        images, _ = data.sample("mnist")
        raw = ((images[:3, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
        np.save(tmp_path / "digits.npy", raw)
        assert explain(MODEL, tmp_path / "digits.npy", "--out", out) == 0
        one = load_file(out / "relevance.safetensors")["relevance:0"]
        assert explain(MODEL, SAMPLE, "--limit", 3, "--out", out) == 0
        other = load_file(out / "relevance.safetensors")["relevance:0"]
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)

    def test_floats_are_taken_as_they_are(self, tmp_path: Path, out: Path) -> None:
        images, _ = data.sample("mnist")
        np.save(tmp_path / "digits.npy", images[:3].double().numpy())
        assert explain(MODEL, tmp_path / "digits.npy", "--out", out) == 0
        one = load_file(out / "relevance.safetensors")
        assert explain(MODEL, SAMPLE, "--limit", 3, "--out", out) == 0
        other = load_file(out / "relevance.safetensors")
        torch.testing.assert_close(one["relevance:0"], other["relevance:0"])
        assert explain(MODEL, tmp_path / "digits.npy", "--mean", 0.5, "--out", out) == 0
        shifted = load_file(out / "relevance.safetensors")
        model = models.load(MODEL)
        torch.testing.assert_close(shifted["output"], model(images[:3] - 0.5).detach())

    def test_idx_with_labels(self, tmp_path: Path, out: Path) -> None:
        images, labels = data.sample("mnist")
        raw = ((images[:3, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
        header = struct.pack(">I", 0x803) + struct.pack(">III", *raw.shape)
        (tmp_path / "images-idx3-ubyte").write_bytes(header + raw.tobytes())
        head = struct.pack(">II", 0x801, 3)
        (tmp_path / "labels-idx1-ubyte").write_bytes(head + bytes(labels[:3].tolist()))
        words = ("--labels", tmp_path / "labels-idx1-ubyte", "--out", out)
        assert explain(MODEL, tmp_path / "images-idx3-ubyte", *words) == 0
        assert [int(row["label"]) for row in summary(out)] == labels[:3].tolist()

    def test_one_bad_row_costs_only_itself(
        self, tmp_path: Path, user_module: str, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        x = np.ones((4, 12), np.float32)
        x[2, 5] = np.nan
        np.save(tmp_path / "x.npy", x)
        words = ("--trust", "--out", out)
        assert explain(f"{user_module}:dense", tmp_path / "x.npy", *words) == 1
        (line,) = lines_of(capsys)
        assert line.startswith("relprop: x-00002: ") and "nan" in line.lower()
        assert len([row for row in summary(out) if not row["error"]]) == 3

    def test_a_model_with_named_outputs(
        self, tmp_path: Path, user_module: str, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        np.save(tmp_path / "x.npy", np.ones((2, 12), np.float32))
        words = (f"{user_module}:Dict", tmp_path / "x.npy", "--trust", "--out", out)
        assert explain(*words) == 2
        (line,) = lines_of(capsys)
        assert "logits" in line and "--output" in line
        assert explain(*words, "--output", "logits") == 0


HOSTILE = {
    "empty.npy": b"",
    "text.npy": b"hello",
    "truncated.npy": npy_header("(1000, 10)") + bytes(16),
    "absurd.npy": npy_header("(100000000000, 100000000000)"),
    "negative.npy": npy_header("(-1, 10)"),
    "objects.npy": npy_header("(2, 2)", "|O") + bytes(64),
    "text2.npy": npy_header("(2, 2)", "<U4") + bytes(64),
    "records.npy": npy_header("(2, 2)", "<f4,<f4") + bytes(64),
    "code.npy": npy_header("(__import__('os').system('true'),)"),
    "scalar.npy": npy_header("()") + bytes(4),
    "text.npz": b"PK\x03\x04 not really",
    "empty.npz": b"",
    "text.idx": b"hello, this is no IDX file",
    "absurd.idx": struct.pack(">IIII", 0x803, 2**31, 2**31, 2**31),
    "weights.pt": b"\x80\x04.",
    "data.pkl": b"\x80\x04.",
    "not.png": b"hello",
}


class TestHostileFiles:
    @pytest.mark.parametrize("name", HOSTILE)
    def test_one_sentence(
        self, name: str, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / name
        path.write_bytes(HOSTILE[name])
        assert explain(MODEL, path, "--out", out) == 2
        (line, *rest) = lines_of(capsys)
        assert line.startswith("relprop: ") and name in line and not rest

    def test_npz_bomb(self, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "bomb.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", npy_header("(2000, 1000)") + bytes(8_000_000))
        assert path.stat().st_size < 20_000
        assert explain(MODEL, path, "--max-bytes", 1_000_000, "--out", out) == 2
        (line,) = lines_of(capsys)
        assert "8,000,128 bytes" in line and "cap" in line

    def test_npz_whose_header_promises_more_than_the_member(
        self, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "liar.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", npy_header("(1000, 1000, 100)") + bytes(100))
        assert explain(MODEL, path, "--out", out) == 2
        (line,) = lines_of(capsys)
        assert "truncated" in line

    def test_npz_whose_directory_lies_about_a_size(
        self, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "liar.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", npy_header("(2000, 1000)") + bytes(8_000_000))
        raw = bytearray(path.read_bytes())
        place = raw.rindex(b"PK\x01\x02")
        raw[place + 24 : place + 28] = struct.pack("<I", 1000)  # the size it unpacks to
        path.write_bytes(bytes(raw))
        assert explain(MODEL, path, "--max-bytes", 100_000, "--out", out) == 2
        assert len(lines_of(capsys)) == 1

    def test_an_array_that_is_not_named(
        self, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        np.savez(tmp_path / "two.npz", first=np.zeros((2, 3)), second=np.zeros((2, 3)))
        assert explain(MODEL, tmp_path / "two.npz", "--out", out) == 2
        (line,) = lines_of(capsys)
        assert "first, second" in line and "--array" in line

    @pytest.mark.parametrize("named", ["x.npy", "mnist:sample", "photos"])
    def test_no_arrays_to_pick_from(
        self, named: str, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        np.save(tmp_path / "x.npy", np.zeros((2, 3)))
        (tmp_path / "photos").mkdir()
        data = named if ":" in named else tmp_path / named
        assert explain(MODEL, data, "--array", "x", "--out", out) == 2
        (line,) = lines_of(capsys)
        assert "nothing for --array to pick from" in line

    def test_splits_are_named(self, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert explain(MODEL, "mnist:validation", "--out", out) == 2
        (line,) = lines_of(capsys)
        assert "expected mnist:test, mnist:train, or, of what is shipped, mnist:sample" in line


class TestModels:
    def test_code_needs_trust(
        self, tmp_path: Path, user_module: str, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        marker = tmp_path / "ran"
        Path(f"{user_module}.py").write_text(f"open({str(marker)!r}, 'w')\n")
        assert explain(f"{user_module}:dense", SAMPLE, "--out", out) == 2
        (line,) = lines_of(capsys)
        assert "--trust" in line and not marker.exists() and not out.exists()

    def test_exported_program(
        self, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        images, _ = data.sample("mnist")
        batch = torch.export.Dim("batch", min=1, max=1024)
        program = torch.export.export(
            models.load(MODEL), (images[:2],), dynamic_shapes=({0: batch},)
        )
        torch.export.save(program, tmp_path / "model.pt2")
        words = (tmp_path / "model.pt2", SAMPLE, "--limit", 5, "--batch-size", 3)
        assert explain(*words, "--out", out) == 2
        assert "--trust" in lines_of(capsys)[0]
        assert explain(*words, "--trust", "--out", out) == 0
        one = load_file(out / "relevance.safetensors")["relevance:0"]
        assert explain(MODEL, SAMPLE, "--limit", 5, "--out", out) == 0
        other = load_file(out / "relevance.safetensors")["relevance:0"]
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)

    def test_weights(self, tmp_path: Path, user_module: str, out: Path) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
        save_file(model.state_dict(), tmp_path / "w.safetensors")
        x = np.random.default_rng(0).normal(size=(2, 12)).astype(np.float32)
        np.save(tmp_path / "x.npy", x)
        words = ("--trust", "--weights", tmp_path / "w.safetensors", "--target", 1, "--out", out)
        assert explain(f"{user_module}:dense", tmp_path / "x.npy", *words) == 0
        expected = model(torch.from_numpy(x))[:, 1].tolist()
        assert [float(row["score"]) for row in summary(out)] == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize(
        ("file", "said"),
        [
            ("missing.safetensors", "no such file"),
            ("w.pt", "pickled"),
            ("w.bin", "pickled"),
            ("text.safetensors", "not a readable safetensors file"),
            ("bomb.safetensors", "not a readable safetensors file"),
            ("nan.safetensors", "1.bias holds NaN"),
            ("shape.safetensors", "1.bias has shape [4]; the model's has [5]"),
            ("other.safetensors", "holds odd, not of this model"),
            ("part.safetensors", "lacks 1.weight, 3.weight, 3.bias"),
        ],
    )
    def test_bad_weights(
        self,
        file: str,
        said: str,
        tmp_path: Path,
        user_module: str,
        out: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (tmp_path / "w.pt").write_bytes(b"\x80\x04.")
        (tmp_path / "text.safetensors").write_bytes(b"hello, I am no such file")
        (tmp_path / "bomb.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
        save_file({"1.bias": torch.tensor([1, 2, 3, 4, torch.nan])}, "nan.safetensors")
        save_file({"1.bias": torch.zeros(4)}, "shape.safetensors")
        save_file({"odd": torch.zeros(4)}, "other.safetensors")
        save_file({"1.bias": torch.zeros(5)}, "part.safetensors")
        np.save(tmp_path / "x.npy", np.ones((1, 12), np.float32))
        words = ("--trust", "--weights", tmp_path / file, "--out", out)
        assert explain(f"{user_module}:dense", tmp_path / "x.npy", *words) == 2
        (line,) = lines_of(capsys)
        assert said in line and file in line

    @pytest.mark.parametrize(
        ("spec", "said"),
        [
            ("resnet9000", "expected mnist_cnn"),
            ("no_such_module_anywhere:net", "ModuleNotFoundError"),
            ("{module}:nothing", "AttributeError"),
            ("{module}:broken", "KeyError"),
            ("{module}:number", "TypeError"),
            ("{module}:torch.ones", "TypeError"),
            ("model.pth", "pickled"),
            ("missing.pt2", "no such file"),
            (":", "ValueError"),
        ],
    )
    def test_bad_models(
        self,
        spec: str,
        said: str,
        user_module: str,
        out: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        spec = spec.format(module=user_module)
        assert explain(spec, SAMPLE, "--trust", "--out", out) == 2
        (line,) = lines_of(capsys)
        assert said in line

    def test_bad_program(
        self, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "bad.pt2").write_bytes(b"hello")
        assert explain(tmp_path / "bad.pt2", SAMPLE, "--trust", "--out", out) == 2
        (line,) = lines_of(capsys)
        assert "not a readable zip archive" in line


NONSENSE = [
    [],
    ["explode"],
    ["explain"],
    ["explain", MODEL],
    ["explain", MODEL, SAMPLE, "--target", "cat"],
    ["explain", MODEL, SAMPLE, "--target", "99"],
    ["explain", MODEL, SAMPLE, "--target", "-1"],
    ["explain", MODEL, SAMPLE, "--target", "1,2"],
    ["explain", MODEL, SAMPLE, "--method", "lrp_alpha3_beta1"],
    ["explain", MODEL, SAMPLE, "--method", "wishful"],
    ["explain", MODEL, SAMPLE, "--method-option", "low"],
    ["explain", MODEL, SAMPLE, "--method-option", "hight=3"],
    ["explain", MODEL, SAMPLE, "--method-option", "=3"],
    ["explain", MODEL, SAMPLE, "--batch-size", "0"],
    ["explain", MODEL, SAMPLE, "--limit", "-3"],
    ["explain", MODEL, SAMPLE, "--limit", "³"],
    ["explain", MODEL, SAMPLE, "--layers", "no.such.layer"],
    ["explain", MODEL, SAMPLE, "--device", "toaster"],
    ["explain", MODEL, SAMPLE, "--device", "cuda:99"],
    ["explain", MODEL, SAMPLE, "--backend", "abacus"],
    ["explain", MODEL, SAMPLE, "--precision", "low"],
    ["explain", MODEL, SAMPLE, "--mean", "0,0,x"],
    ["explain", MODEL, SAMPLE, "--std", "0"],
    ["explain", MODEL, SAMPLE, "--std", "nan"],
    ["explain", MODEL, SAMPLE, "--resize", "8"],
    ["explain", MODEL, SAMPLE, "--resize", "1x2x3"],
    ["explain", MODEL, SAMPLE, "--out", "/dev/null/inside"],
    ["explain", MODEL, SAMPLE, "--output", "logits"],
    ["explain", MODEL, "mnist:validation"],
    ["explain", MODEL, "no/such/folder"],
    ["explain", MODEL, "/dev/zero"],
    ["explain", MODEL, "\0"],
    ["explain", MODEL, "."],
    ["check", MODEL, "no/such/file.npy"],
    ["explain", MODEL, ""],
    ["explain", MODEL, SAMPLE, "--job"],
    ["explain", MODEL, SAMPLE, "--job", "\0"],
    ["explain", MODEL, SAMPLE, "--job", "/dev/null/inside"],
    ["explain", MODEL, SAMPLE, "--job", "job", "--engine", "slurm"],
    ["explain", MODEL, SAMPLE, "--job", "job", "--engine", "torchrun"],
    ["explain", MODEL, SAMPLE, "--job", "job", "--workers", "-1"],
    ["explain", MODEL, SAMPLE, "--job", "job", "--workers", "two"],
    ["explain", MODEL, SAMPLE, "--job", "job", "--readers", "-1"],
    ["explain", MODEL, SAMPLE, "--job", "job", "--threads", "99999999999"],
    ["explain", MODEL, SAMPLE, "--job", "job", "--shard-size", "0"],
    ["explain", MODEL, SAMPLE, "--job", "job", "--shard-size", "99999999999"],
    ["explain", MODEL, SAMPLE, "--job", "job", "--batch-size", "10000000000000000000000"],
    ["explain", MODEL, SAMPLE, "--job", "job", "--format", "xml"],
    ["explain", MODEL, SAMPLE, "--job", "job", "--dtype", "int8"],
    ["explain", MODEL, SAMPLE, "--job", "job", "--reduce", "blur"],
    ["explain", MODEL, SAMPLE, "--job", "job", "--summary", "colour"],
    ["explain", MODEL, SAMPLE, "--job", "job", "--no-maps"],
    ["explain", MODEL, SAMPLE, "--job", "job", "--top", "0"],
    ["explain", MODEL, SAMPLE, "--job", "job", "--layers", "0"],
    ["explain", MODEL, SAMPLE, "--job", "job", "--collate", "a:b"],
    ["explain", MODEL, SAMPLE, "--job", "job", "--collate", "", "--trust"],
    ["explain", MODEL, "nosuchprotocol://a/b", "--job", "job"],
    ["verify"],
    ["verify", "\0"],
    ["verify", "no/such/folder"],
    ["export", "no/such/folder", "--to", "npz", "--out", "x.npz"],
    ["export", "no/such/folder", "--to", "doc", "--out", "x"],
    ["export", "no/such/folder", "--to", "npz", "--out", "x.npz", "--limit", "-3"],
]


@pytest.mark.parametrize(
    "words", NONSENSE, ids=lambda words: " ".join(words[1:]).replace("\0", "0")
)
def test_nonsense(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and captured.out == ""
    last = captured.err.splitlines()[-1]
    assert re.match(r"relprop( explain| check| verify| export)?: ", last)
    assert len(last) > 20


def test_help_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--help"]) == 0
    text = capsys.readouterr().out
    named = (*models.names(), *data.names(), *methods.names())
    for word in (*named, "--trust", "examples", "exit status"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 110


def test_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", MODEL, SAMPLE]) == 0
    text = capsys.readouterr().out
    assert "conv_map    2      linear" in text
    assert "features.0" in text.splitlines()[-1]


def test_check_lists_what_has_no_rule(
    tmp_path: Path, user_module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 12), np.float32))
    assert run("check", f"{user_module}:Sorted", tmp_path / "x.npy", "--trust") == 1
    assert "unsupported" in capsys.readouterr().out
    out = tmp_path / "out"
    assert explain(f"{user_module}:Sorted", tmp_path / "x.npy", "--trust", "--out", out) == 2
    (line,) = lines_of(capsys)
    assert "sort" in line


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    assert re.search(rf"^torch +{re.escape(torch.__version__)}$", capsys.readouterr().out, re.M)


def test_progress_bar_on_a_terminal_only(tmp_path: Path) -> None:
    parent, child = pty.openpty()
    with os.fdopen(child, "w") as terminal:
        progress = Status(4, quiet=False, stream=terminal, logged=False)
        progress.advance(2)
        progress.line("bad.png: not an image")
        progress.advance(2)
    shown = ""
    with contextlib.suppress(OSError):  # the end of what was written
        while part := os.read(parent, 10_000):
            shown += part.decode()
    os.close(parent)
    assert "0/4" in shown and "4/4" in shown and "relprop: bad.png: not an image\r\n" in shown
    silent = io.StringIO()
    Status(4, quiet=False, stream=silent, logged=False).advance(4)
    assert silent.getvalue() == ""


def test_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "relprop", "explain", MODEL, SAMPLE, "--limit", "2"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 explained" in done.stdout


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m relprop explain --help | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == "" and done.stdout.startswith("usage: relprop explain")
