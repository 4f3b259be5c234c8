"""`make gpu` without a GPU: the order of its stages, resuming, failures, the bare checkout."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu_runs import ROOT, environment_of
from benchmarks.gpu_suite import STAGES, Stage

THREE = (
    Stage("one", 5, "the first", ("-c", "1", "{record}.csv")),
    Stage("two", 5, "the second", ("-c", "2")),
    Stage("three", 5, "the third", ("-c", "3"), tool=""),
)


class Runner:
    """Notes what is run, and answers as told."""

    def __init__(self, **answers: int | None) -> None:
        self.answers = answers
        self.limits: tuple[int, ...] = (5,)
        self.ran: list[str] = []
        self.commands: list[Sequence[str]] = []
        self.tuned: list[str] = []

    def __call__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, seconds: int
    ) -> int | None:
        self.ran.append(log.stem)
        self.commands.append(command)
        assert seconds in self.limits and "TRITON_INTERPRET" not in environment
        self.tuned.append(environment["RELPROP_TUNE"])
        return self.answers.get(log.stem, 0)


def run(folder: Path, runner: Runner, *options: str, stages: Sequence[Stage] = THREE) -> int:
    arguments = ["--out", str(folder), "--records", str(folder / "records"), *options]
    return gpu.main(arguments, stages=stages, runner=runner, cuda=lambda: True)


def report(folder: Path) -> str:
    (path,) = (folder / "records").glob("gpu-report-*.md")
    return path.read_text()


def test_within_a_time_only_what_surely_ends_is_begun(tmp_path: Path) -> None:
    stages = (THREE[0], Stage("long", 500, "too long", ("-c", "4")), THREE[2])
    first = Runner()
    assert run(tmp_path, first, "--within", "400", stages=stages) == 1
    assert first.ran == ["one", "three"]
    second = Runner()
    second.limits = (500,)
    assert run(tmp_path, second, "--within", "590", stages=stages) == 0
    assert second.ran == ["long"]


def test_no_time_at_all_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, Runner(), "--within", "0")
    assert "--within 0: expected 1 second or more" in capsys.readouterr().err


def test_a_failure_and_a_time_out_do_not_stop_the_next_and_are_repeated(tmp_path: Path) -> None:
    first = Runner(one=1, two=None)
    assert run(tmp_path, first) == 1
    assert first.ran == ["one", "two", "three"]
    state = json.loads((tmp_path / "state.json").read_text())
    assert [state[n]["status"] for n in first.ran] == ["failed", "timed out", "passed"]
    assert "| two | the second | timed out" in report(tmp_path)
    second = Runner()
    assert run(tmp_path, second) == 0
    assert second.ran == ["one", "two"]
    assert "| one | the first | passed" in report(tmp_path)


def test_again_only_and_another_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, Runner()) == 0
    idle, again, one = Runner(), Runner(), Runner()
    assert run(tmp_path, idle) == 0 and idle.ran == []
    assert run(tmp_path, again, "--again") == 0 and again.ran == ["one", "two", "three"]
    assert run(tmp_path, one, "--only", "two", "--again") == 0 and one.ran == ["two"]
    monkeypatch.setattr(gpu, "_commit", lambda: "another")
    moved = Runner()
    assert run(tmp_path, moved) == 0 and moved.ran == ["one", "two", "three"]


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    class Interrupted(Runner):
        def __call__(self, *arguments: object) -> int | None:  # type: ignore[override]
            if self.ran == ["one"]:
                raise KeyboardInterrupt
            return super().__call__(*arguments)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupted())
    rest = Runner()
    assert run(tmp_path, rest) == 0 and rest.ran == ["two", "three"]


def test_records_are_named_after_stage_and_date(tmp_path: Path) -> None:
    runner = Runner()
    run(tmp_path, runner, "--only", "one")
    record = Path(runner.commands[0][-1])
    assert record.parent == tmp_path / "records"
    assert record.name.startswith("gpu-one-20") and record.suffix == ".csv"


def test_a_tool_that_is_not_there_skips_its_stage(tmp_path: Path) -> None:
    runner = Runner()
    stages = [Stage("sanitizer", 5, "checks", ("-c", "1"), tool="no-such-program")]
    assert run(tmp_path, runner, stages=stages) == 0 and runner.ran == []
    assert "skipped after 0 s (no-such-program is not installed)" in report(tmp_path)


def test_a_real_process_is_logged_and_ended_in_time(tmp_path: Path) -> None:
    code = "import os, relprop.kernels; print(relprop.kernels.__file__, flush=True)"
    stages = [
        Stage("imports", 60, "from this checkout", ("-c", code)),
        Stage("sleeps", 1, "too long", ("-c", "import time; time.sleep(60)")),
        Stage("fails", 60, "badly", ("-c", "raise SystemExit(3)")),
    ]
    arguments = ["--out", str(tmp_path), "--records", str(tmp_path / "records")]
    assert gpu.main(arguments, stages=stages, cuda=lambda: True) == 1
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["imports"]["status"] == "passed"
    assert state["sleeps"]["status"] == "timed out" and state["sleeps"]["seconds"] < 20
    assert state["fails"]["reason"] == "exit status 3, see fails.log"
    assert str(tmp_path / "site" / "relprop" / "kernels") in (tmp_path / "imports.log").read_text()


def test_without_cuda_one_sentence_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner = Runner()
    assert gpu.main(["--out", str(tmp_path)], runner=runner, cuda=lambda: False) == 2
    message = capsys.readouterr().err
    assert message.startswith("benchmarks.gpu: no CUDA device that PyTorch can use")
    assert message.count("\n") == 1 and runner.ran == []
    assert not (tmp_path / "state.json").exists()


def test_every_stage_stays_below_nine_minutes_and_runs_what_is_there() -> None:
    names = [stage.name for stage in STAGES]
    assert names[:4] == ["environment", "accuracy", "smoke", "vgg16-medium"]
    assert len(set(names)) == len(names)
    assert {stage.name for stage in STAGES if stage.tunes} == {
        "layers-tuned", "vgg16-medium-tuned", "resnet50-medium-tuned"
    }  # fmt: skip
    for stage in STAGES:
        assert 0 < stage.seconds < 540
        if stage.arguments[:2] == ("-m", "pytest"):
            files = [text.partition("::")[0] for text in stage.arguments if text[:6] == "tests/"]
            assert files and all((ROOT / file).exists() for file in files)
        else:
            assert (ROOT / f"{stage.arguments[1].replace('.', '/')}.py").exists()


def test_list_and_an_unknown_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--list"], stages=THREE) == 0
    assert "the second" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu.main(["--only", "nine"], stages=THREE)
    assert "no stage 'nine'; there are one, two, three" in capsys.readouterr().err


def test_accuracy_in_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    record = tmp_path / "accuracy.csv"
    command = ["-m", "benchmarks.gpu_stages", "accuracy", "--device", "cpu", "--record"]
    environment = environment_of(tmp_path) | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, *command, str(record)], cwd=ROOT, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    rows = record.read_text().splitlines()
    assert len(rows) == 1 + 2 * 3 * 3 and all(row.endswith(",True") for row in rows[1:])


def test_only_stages_that_say_so_choose_kernels_by_measuring(tmp_path: Path) -> None:
    stages = [Stage("plain", 5, "", ("-c", "1")), Stage("tuned", 5, "", ("-c", "1"), tunes=True)]
    runner = Runner()
    assert run(tmp_path, runner, stages=stages) == 0 and runner.tuned == ["0", "1"]


def test_layers_in_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    record = tmp_path / "layers.csv"
    command = ["-m", "benchmarks.gpu_layers", "--device", "cpu", "--batch", "2", "--rounds", "3"]
    environment = environment_of(tmp_path) | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, *command, "--record", str(record)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    head, *rows = (line.split(",") for line in record.read_text().splitlines())
    assert len(rows) == 2 * 3 * 2
    kernels = {(row[1], row[2]): row[head.index("kernels")] for row in rows[:6]}
    assert kernels["alphabeta", "adjoint"] == "conv_adjoint"
    assert kernels["epsilon", "contraction"] == "conv_contraction"
