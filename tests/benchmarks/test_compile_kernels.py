"""The verdict on compiled kernels, and the gate that compares them with the committed record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compile_kernels import __main__ as command
from benchmarks.compile_kernels import gate
from benchmarks.compile_kernels.builds import Build, recorded_spills, table

CLEAN = Build("conv", "conv_adjoint", "sm_90", "128x64", 128, 0, 232_448, "wgmma", False)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, []),
        ({"spills": 8}, ["spills 8 bytes"]),
        ({"spills": None}, ["no report of spills"]),
        ({"serialized": True}, ["serialized tensor-core products (C7515)"]),
        ({"shared": 232_449}, ["232449 bytes of shared memory"]),
        ({"error": "CompilationError: at 3:7"}, ["CompilationError: at 3:7"]),
    ],
    ids=["clean", "spills", "no report", "C7515", "shared", "no compilation"],
)
def test_faults_of_a_build(changes: dict[str, Any], fault: list[str]) -> None:
    assert replace(CLEAN, **changes).faults == fault


def judged(
    monkeypatch: pytest.MonkeyPatch, folder: Path, recorded: list[Build], built: list[Build]
) -> int:
    """Status of the gate where the record and the compiler say this."""
    triton = pytest.importorskip("triton")
    record = folder / f"kernels-triton-{triton.__version__}.md"
    record.write_text(table(recorded, triton.__version__, 2))
    monkeypatch.setattr(command, "RECORDS", folder)
    monkeypatch.setattr(command, "compiled", lambda target, wanted: built)
    before = record.read_text()
    status = command.main(["--gate", "--target", "sm_90"])
    assert record.read_text() == before
    return status


@pytest.mark.parametrize(
    ("recorded", "changes", "status"),
    [
        (0, {}, 0),
        (0, {"spills": 8}, 1),
        (8, {"spills": 8}, 0),
        (8, {"spills": 0}, 0),
        (8, {"spills": 16}, 1),
        (8, {"spills": 8, "tile": "128x128"}, 1),
        (8, {"spills": 8, "serialized": True}, 1),
        (0, {"shared": 232_449}, 1),
        (0, {"spills": None}, 1),
        (0, {"kernel": "?", "spills": None, "error": "CompilationError: at 3:7"}, 1),
    ],
)
def test_gate(
    recorded: int,
    changes: dict[str, Any],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = replace(CLEAN, case="dense")
    built = [other, replace(CLEAN, **changes)]
    assert judged(monkeypatch, tmp_path, [other, replace(CLEAN, spills=recorded)], built) == status
    named = [line for line in capsys.readouterr().out.splitlines() if line.startswith("conv: ")]
    assert len(named) == status


def test_gate_without_a_record_allows_no_spill() -> None:
    spilling = replace(CLEAN, spills=4)
    assert gate.regressions([CLEAN, spilling], {}) == [(spilling, ["spills 4 bytes"])]


def test_spills_are_read_back_from_the_table() -> None:
    failed = Build("pool", "?", "sm_80", "?", None, None, 0, "-", False, "CompilationError")
    twice = [CLEAN, replace(CLEAN, spills=12, registers=255), replace(CLEAN, spills=4), failed]
    text = table(twice, "3.9.0", 90)
    assert recorded_spills(text.splitlines()) == {CLEAN.key: 12}
    assert "Of 90 cases were compiled for sm_80 1, for sm_90 1, for gfx942 0: 4 builds." in text
    assert "- conv: conv_adjoint for sm_90, tile 128x64: spills 12 bytes" in text


def test_every_case_of_the_gate_exists() -> None:
    assert {name for name, _ in command.work()} >= gate.CASES


def test_parts_are_joined_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    triton = pytest.importorskip("triton")
    names = [name for name, _ in command.work()][:3]
    first, second, third = (replace(CLEAN, case=name) for name in names)
    monkeypatch.setattr(command, "RECORDS", tmp_path)
    for part, builds in enumerate(
        [[third, first], [second, replace(first, target="sm_80", shared=0)]]
    ):
        monkeypatch.setattr(command, "compiled", lambda target, wanted, builds=builds: builds)
        saved = ["--target", "sm_90", "--part", f"{part}/2", "--save", str(tmp_path / f"{part}")]
        assert command.main(saved) == 0
    assert command.main(["--join", str(tmp_path / "0"), str(tmp_path / "1")]) == 0
    found = (tmp_path / f"kernels-triton-{triton.__version__}.md").read_text()
    expected = [replace(first, target="sm_80", shared=0), first, second, third]
    cases = len({name for name, _ in command.work()})
    assert found == table(expected, triton.__version__, cases)
    assert capsys.readouterr().out.endswith("4 builds, 0 with faults\n")


def test_every_recorded_kernel_occurs_in_the_gate() -> None:
    records = Path(command.RECORDS).glob("kernels-triton-*.md")
    keys = [key for path in records for key in recorded_spills(path.read_text().splitlines())]
    kernels = {kernel for _, kernel, _, _ in keys}
    assert len(kernels) > 20
    assert {kernel for case, kernel, _, _ in keys if case in gate.CASES} == kernels
