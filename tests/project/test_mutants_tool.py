"""The mutation gate itself: names, choice, verdicts, on a small package."""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

CI = Path(__file__).resolve().parents[2] / ".ci"
pytestmark = pytest.mark.skipif(not CI.is_dir(), reason="the gate is not part of an sdist")

SOURCE = '''"""A module."""

__all__ = ["scaled", "share"]


def scaled(values: list[float], factor: float) -> list[float]:
    """Values times a factor, kept where they are >= 0."""
    return [v * factor for v in values if v >= 0]


def share(a: float, b: float) -> float:
    if a + b == 0:
        raise ValueError("nothing to share" + "!")
    return a / (a + b)


def harmless(a: float) -> float:
    return abs(a) if a >= 0 else -a
'''
TESTS = """
import pytest
from small.rules import harmless, scaled, share

def test_scaled():
    assert scaled([1.0, 0.0, -1.0], 2.0) == [2.0, 0.0]

def test_share():
    assert share(1.0, 3.0) == 0.25
    with pytest.raises(ValueError):
        share(0.0, 0.0)

def test_harmless():
    assert harmless(-2.0) == harmless(2.0) == 2.0
"""


@pytest.fixture(scope="module")
def tool() -> Any:
    sys.path.insert(0, str(CI))
    try:
        names = "mutation.mutants", "mutation.runner", "mutants", "mutation.operators"
        own, run, gate, operators = (importlib.import_module(name) for name in names)
    finally:
        sys.path.remove(str(CI))
    yield SimpleNamespace(**vars(own), run=run, gate=gate, operators=operators)
    gc.unfreeze()


@pytest.fixture
def project(tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "__init__.py").write_text("")
    (tmp_path / "small" / "rules.py").write_text(SOURCE)
    (tmp_path / "test_small.py").write_text(TESTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tool.run.Project(tmp_path, {"small": "small/rules.py"}, ["test_small.py"])


def named(mutants: list[Any], part: str) -> Any:
    (found,) = [m for m in mutants if part in m.name]
    return found


def test_names_are_unique_and_free_of_lines(tool: Any) -> None:
    mutants = tool.mutants_of("small", SOURCE)
    names = [m.name for m in mutants]
    assert len(set(names)) == len(names)
    assert "small:scaled:comparison: v >= 0 → v > 0" in names
    assert "small:share:sign: a + b → a - b (2)" in names
    assert not any("share" in n and "nothing" in n for n in names)  # messages are left alone
    moved = tool.mutants_of("small", SOURCE.replace('"""A', '"""\n\nA'))
    assert [m.name for m in moved] == names
    assert [m.line for m in moved] == [m.line + 2 for m in mutants]


def test_every_mutant_compiles_to_another_program(tool: Any) -> None:
    plain = compile(SOURCE, "small", "exec")
    for mutant in tool.mutants_of("small", SOURCE):
        code = tool.compiled(mutant, SOURCE, Path("small"))
        assert code.co_consts != plain.co_consts, mutant.name


def test_choice_takes_every_operator_in_turn(tool: Any) -> None:
    mutants = tool.mutants_of("small", SOURCE)
    operators = {m.operator for m in mutants}
    some = tool.chosen(mutants, len(operators))
    assert {m.operator for m in some} == operators
    assert some == tool.chosen(mutants[::-1], len(operators))


@pytest.mark.parametrize("pace", [1.0, 3.0])  # a busy machine runs the same tests
def test_direct_tests_first_then_a_case_of_each_then_the_quick(
    tool: Any, tmp_path: Path, pace: float
) -> None:
    project = tool.run.Project(tmp_path, {"small": "rules.py"}, ["a.py", "b.py"], direct=["b.py"])
    mutant = named(tool.mutants_of("small", SOURCE), "scaled:dropped factor: v * factor → v")
    seconds = {"a.py::slow[0]": 4.0, "a.py::slow[1]": 4.0, "a.py::quick[0]": 0.1,
               "a.py::quick[1]": 0.1, "a.py::quick[2]": 0.1, "b.py::one": 0.5}  # fmt: skip
    known = tool.run.Baseline({name: pace * each for name, each in seconds.items()})
    known.passes["small", "scaled"] = set(seconds)
    picked = tool.run.tests_of(project, mutant, known, 0.6)
    assert picked[0] == "b.py::one" and picked[1].startswith("a.py::quick")
    assert picked[2].startswith("a.py::slow") and len(picked) == 5  # the other slow one is too long


def test_the_wrong_die_and_the_equivalent_survive(tool: Any, project: Any) -> None:
    mutants = tool.mutants_of("small", SOURCE)
    wrong = named(mutants, "scaled:dropped factor: v * factor → v")
    harmless = named(mutants, "harmless:comparison: a >= 0 → a > 0")
    known = tool.run.baseline(project, 2)
    assert not known.failed
    assert known.passes["small", "share"] == {"test_small.py::test_share"}
    found = tool.run.outcomes(project, [wrong, harmless], known, 2, 1.0)
    states = {o.mutant.name: (o.state, o.test) for o in found}
    assert states[wrong.name] == ("killed", "test_small.py::test_scaled")
    assert states[harmless.name] == ("survived", "")


def test_a_loop_without_end_is_stopped(tool: Any, tmp_path: Path) -> None:
    def endless() -> None:
        while True:
            pass

    children = tool.run._Children(tmp_path, 2)
    ends = {number: state for number, state, _, _ in children.run([(endless, 0.2), (dict, 9.0)])}
    assert ends == {0: "timeout", 1: "done"}


def test_the_gate_wants_each_survivor_argued_and_no_name_out_of_date(
    tool: Any, project: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    every = tool.gate.generate(project)
    mutants = every["small"]
    wrong = named(mutants, "scaled:dropped factor: v * factor → v")
    harmless = named(mutants, "harmless:comparison: a >= 0 → a > 0")

    def status(argued: dict[str, str]) -> int:
        return tool.gate.gate(project, [wrong, harmless], every, argued, 2, 1.0)

    assert status({}) == 1
    assert f"argue in .ci/mutation/argued.py):\n{harmless.name}" in capsys.readouterr().out
    assert status({harmless.name: "at 0 both branches give 0"}) == 0
    counts = capsys.readouterr().out.split("small ")[-1].split()[:3]
    assert counts == ["1", "1", "0"]
    assert status({harmless.name: "as above", "small:gone:sign: a → b": "old"}) == 1
    assert "small:gone:sign: a → b" in capsys.readouterr().out


def test_failing_tests_stop_the_gate(
    tool: Any, project: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (project.root / "test_small.py").write_text("def test_wrong():\n    assert False\n")
    every = tool.gate.generate(project)
    assert tool.gate.gate(project, every["small"], every, {}, 1, 10.0) == 1
    assert "test_small.py::test_wrong" in capsys.readouterr().out


def test_a_fault_s_name_that_is_nowhere_in_the_sources_is_an_error(
    tool: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "alpha" in tool.operators.unknown_names([SOURCE])
    assert "factor" not in tool.operators.unknown_names([SOURCE])
    monkeypatch.setitem(tool.operators._SWAPS, "_SAME_SIGNS", "_OPPOSITE_SIGNS")
    monkeypatch.setattr(sys, "argv", ["mutants.py", "--list"])
    assert tool.gate.main() == 1
    assert capsys.readouterr().out.split("\n")[1:] == ["  _SAME_SIGNS", ""]


def test_the_gate_s_own_tables_name_what_is_there_and_the_oracle_is_broken_too(tool: Any) -> None:
    whole = tool.gate.project(tool.gate.ROOT)
    texts = [tool.gate.text(whole, label) for label in whole.sources]
    assert tool.operators.unknown_names(texts) == []
    files = sorted((tool.gate.ROOT / "relprop").rglob("*.py"))
    oracle = "movement_relevance", "_ranks", "naive_forward", "stepwise_relevance", "fused_scan"
    places = tool.gate.homes(tool.gate.defined_in(tool.gate.ROOT, files), oracle)
    assert set(places) <= set(whole.sources.values())


def test_files_are_found_by_what_they_define(tool: Any, tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    for name, text in [("a", "def one(): ...\ndef two(): ..."), ("b", "def two(): ..."),
                       ("room/c", "class Three:\n    def four(self): ...")]:  # fmt: skip
        (tmp_path / f"{name}.py").write_text(text)
    defined = tool.gate.defined_in(tmp_path, sorted(tmp_path.rglob("*.py")))
    assert tool.gate.homes(defined, ["one", "Three.four"]) == ["a.py", "room/c.py"]
    with pytest.raises(LookupError, match=r"two: in a.py, b.py\n  five: in no file"):
        tool.gate.homes(defined, ["one", "two", "five"])


def test_labels_that_share_a_file_are_one(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "relprop").mkdir()
    (tmp_path / "relprop" / "room.py").write_text("def one(): ...\nclass Two: ...")
    (tmp_path / "relprop" / "free.py").write_text("@register('x')\nclass Three: ...")
    monkeypatch.setattr(tool.gate, "SOURCES", {"a": ("one", 3), "b": ("Two", 2)})
    assert tool.gate.sources(tmp_path) == {
        "a": ("relprop/room.py", 5),
        "layers/free": ("relprop/free.py", 6),
    }
    monkeypatch.setattr(tool.gate, "SOURCES", {"a": ("gone", 3)})
    with pytest.raises(LookupError, match="gone: in no file"):
        tool.gate.sources(tmp_path)
